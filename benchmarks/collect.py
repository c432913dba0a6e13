"""A fleet in one cycle: what 2,000 replicas behind one Prometheus cost to read, in time, CPU and memory, on both sides.

    python benchmarks/collect.py [--replicas 2000] [--endpoints 50] [--page FILE] [--scrape-s 30] [--cycles 3] [--output FILE]

A server in a process of its own gives a recorded vLLM page (what Flyball asks for of it) to a real Prometheus, which takes it for
each replica. Then Flyball's own source reads all endpoints at once, as the daemon does each minute, and closes their windows. Counted
are the time of a cycle, the CPU time of each process during it (user and system, all threads), and their resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from agent.clock import WallClock  # noqa: E402
from benchmarks.ingest import PAGE, moved_on  # noqa: E402
from collectors.base import SourceContext  # noqa: E402
from collectors.builder import WindowBuilder  # noqa: E402
from collectors.http import Http  # noqa: E402
from collectors.prometheus.fleet import make  # noqa: E402
from collectors.prometheus.presets import PRESETS  # noqa: E402
from collectors.sessions import Sessions  # noqa: E402
from collectors.window import CollectError, Span  # noqa: E402

STEP_S, DELAY_S = 60.0, 5.0


def wanted_lines(page: str) -> str:
    """What the preset asks for, and no more: a relabel rule of the same effect is usual where 2,000 replicas are scraped."""
    asked = " ".join(template for query in PRESETS["vllm"].queries for template in query.templates)
    names = set(re.findall(r"[a-z_]+:?[a-z0-9_]+", asked)) | {PRESETS["vllm"].alive}
    lines = []
    for line in page.splitlines():
        name = re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line)
        if name is not None and re.sub(r"_(bucket|sum|count)$", "", name.group()) in names | {name.group()} & names:
            lines.append(line)
    return "\n".join([*lines, ""])


def serve(page: Path) -> None:
    """Answer ``GET /metrics?i=N`` until standard input closes; counters move on at each scrape of a target. Prints the port."""
    text = wanted_lines(page.read_text())
    bodies = [moved_on(text, step).encode() for step in range(64)]
    answers = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: %d\r\n\r\n" % len(b) + b
        for b in bodies
    ]
    asked: dict[bytes, int] = {}

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1]
                step = asked[path] = asked.get(path, -1) + 1
                writer.write(answers[step % len(answers)])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(client, "127.0.0.1", 0, backlog=2048)
        print(server.sockets[0].getsockname()[1], text.count("\n"), flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(main())


@contextmanager
def scraped(
    port: int, replicas: int, endpoints: int, scrape_s: float, folder: Path
) -> Iterator[tuple[str, psutil.Process]]:
    """A Prometheus that scrapes every replica of every endpoint: job ``eN``, instance ``rN``."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("prometheus is not installed (on Debian: apt-get install prometheus)")
    jobs = [
        {
            "job_name": f"e{e}",
            "static_configs": [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": f"r{r}", "__param_i": str(r)}}
                for r in range(e, replicas, endpoints)
            ],
        }
        for e in range(endpoints)
    ]
    config = {
        "global": {"scrape_interval": f"{scrape_s:g}s", "scrape_timeout": f"{scrape_s:g}s"},
        "scrape_configs": jobs,
    }
    (folder / "p.yml").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    command = [
        program,
        f"--config.file={folder}/p.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{own}", psutil.Process(process.pid)
        finally:
            process.terminate()


def wait_for(url: str, replicas: int) -> None:
    """Until every replica has been there at the beginning of the interval that is read."""
    query = f"count(vllm:num_requests_running offset {2 * STEP_S + DELAY_S:g}s)"
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api/v1/query?query={query.replace(' ', '%20')}", timeout=30) as answer:
                result = json.loads(answer.read())["data"]["result"]
            if result and float(result[0]["value"][1]) >= replicas:
                return
        except OSError:
            pass
        time.sleep(2)


@dataclass(frozen=True)
class Cycle:
    """One read of the whole fleet."""

    endpoints: int
    replicas: int
    seconds: float
    cpu_s: float
    store_cpu_s: float
    windows: int
    requests: float
    memory_mb: float
    store_memory_mb: float


async def read(url: str, names: Sequence[str], replicas: int, cycles: int, store: psutil.Process) -> list[Cycle]:
    http, sessions, clock = Http(), Sessions(), WallClock()
    options = {"url": url, "step_s": STEP_S, "delay_s": DELAY_S, "timeout_s": 120.0}
    members = [make(SourceContext(n, None, http, clock, sessions, {**options, "labels": {"job": n}})) for n in names]
    builders = {n: WindowBuilder(n, "prometheus", 60.0, max_gap_s=150.0) for n in names}
    mine, done = psutil.Process(), []
    for _ in range(cycles):
        before, theirs, started = _cpu(mine), _cpu(store), time.perf_counter()
        requests = 0.0
        async for name, said in members[0].fleet.read_all([m.wanted for m in members], None):
            if isinstance(said, CollectError):
                raise said
            if isinstance(said, Span):
                builders[name].span(said)
                requests += said.counts.get("requests", 0.0)
        closed = [window for builder in builders.values() for window in builder.close(clock.now())]
        done.append(
            Cycle(
                len(names), replicas, time.perf_counter() - started, _cpu(mine) - before, _cpu(store) - theirs, len(closed), requests,
                mine.memory_info().rss / 2**20, store.memory_info().rss / 2**20,
            )
        )  # fmt: skip
        await asyncio.sleep(STEP_S - clock.now() % STEP_S + DELAY_S + 1)
    await http.aclose()
    return done


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2000)
    parser.add_argument("--endpoints", type=int, default=50)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--scrape-s", type=float, default=30.0)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.page)
        return
    if not options.page.exists():
        sys.exit(f"{options.page} is not there; give a page of vLLM's /metrics with --page")
    command = [sys.executable, __file__, "--serve", "--page", str(options.page)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
        tempfile.TemporaryDirectory() as made,
    ):
        assert server.stdout is not None
        port, lines = (int(part) for part in server.stdout.readline().split())
        print(
            f"{options.replicas} replicas of {lines} series, {options.endpoints} endpoints; {platform.processor() or platform.machine()}"
        )
        try:
            with scraped(port, options.replicas, options.endpoints, options.scrape_s, Path(made)) as (url, store):
                wait_for(url, options.replicas)
                names = [f"e{e}" for e in range(options.endpoints)]
                cycles = asyncio.run(read(url, names, options.replicas, options.cycles, store))
        finally:
            server.terminate()
    for cycle in cycles:
        print(
            f"{cycle.seconds:6.2f} s a cycle, CPU {cycle.cpu_s:.2f} s here and {cycle.store_cpu_s:.2f} s in the store, "
            f"memory {cycle.memory_mb:.0f} MB here and {cycle.store_memory_mb:.0f} MB there; {cycle.requests:.0f} requests"
        )
    if options.output is not None:
        options.output.write_text(json.dumps([asdict(cycle) for cycle in cycles], indent=1) + "\n")


if __name__ == "__main__":
    main()
