"""How much CPU one scrape costs, all included: fetch, parse, window, store into SQLite; beside the plain prometheus_client parser.

    python benchmarks/ingest.py [--page FILE] [--replicas 500] [--endpoints 50] [--minutes 4] [--output FILE]

A server in a process of its own gives a recorded vLLM page with its counters moved on at each scrape, so that the windows are real.
The client is Flyball's own monitoring on virtual time: a scrape every 15 s, one-minute windows. Counted is the CPU time (user and
system, all threads) of the client's process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from actuators.base import LiveState, Step  # noqa: E402
from actuators.shape import Operation, Plan, Shape  # noqa: E402
from agent import logs  # noqa: E402
from agent.clock import VirtualClock  # noqa: E402
from agent.governor import Governor  # noqa: E402
from agent.settings import EndpointSettings, Settings  # noqa: E402
from agent.store import Store, windows  # noqa: E402
from agent.watch import WatchedEndpoint  # noqa: E402
from agent.wiring import Environment  # noqa: E402
from collectors.base import SourceContext  # noqa: E402
from collectors.exposition import Exposition  # noqa: E402
from collectors.http import Http  # noqa: E402
from collectors.vllm import _NAMES, VllmCollector, readings_of  # noqa: E402

PAGE = ROOT / "../shared/data/recorded/vllm/metrics_0.32.0_cpu_after_load.txt"
INTERVAL_S, WINDOW_S = 15.0, 60.0
#: 2,000 replicas a core at 15 s.
AIM_MS = 7.5
#: How often a page's counters can move on before they begin anew.
VERSIONS = 64
_COUNTER = re.compile(r"^(vllm:\S*(?:_total|_bucket|_sum|_count)\b\S*) (\S+)$", re.MULTILINE)


# -- the server --------------------------------------------------------------------------------------------------------


def moved_on(page: str, step: int) -> str:
    """The page after more of the same traffic: each counter a twentieth of its recorded value higher at each step."""

    def more(line: re.Match[str]) -> str:
        value = float(line[2]) * (1 + step / 20)
        return f"{line[1]} {value if '_sum' in line[1] else round(value)}"

    return _COUNTER.sub(more, page)


def serve(page: Path) -> None:
    """Answer ``/N/metrics`` and ``/N/version``, each on a connection of its own, until standard input closes. Prints the port."""
    text = page.read_text()
    bodies = [moved_on(text, step).encode() for step in range(VERSIONS)]
    answers = [_answer(body, "text/plain; version=0.0.4; charset=utf-8") for body in bodies]
    version = _answer(b'{"version":"0.32.0"}', "application/json")
    asked: dict[bytes, int] = {}

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
        if path.endswith(b"/version"):
            writer.write(version)
        else:
            step = asked[path] = asked.get(path, -1) + 1
            writer.write(answers[step % VERSIONS])
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(client, "127.0.0.1", 0, backlog=2048)
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        os._exit(0)  # with a thousand open connections there is nothing else to end

    asyncio.run(main())


def _answer(body: bytes, kind: str) -> bytes:
    # vLLM's server, and Flyball's client, let go of a connection that idles for a few seconds: each scrape opens one of its own
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


# -- the client --------------------------------------------------------------------------------------------------------


class Fixed:
    """A system with replicas that stay as they are."""

    system: ClassVar[str] = "fixed"
    poll_s = 15.0
    changes: ClassVar[Sequence[str]] = ()

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._live = LiveState(Shape(replicas=len(targets)), "1", True, targets=targets)

    async def live(self) -> LiveState:
        return self._live

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        raise NotImplementedError("a benchmark changes nothing")

    async def do(self, operation: Operation, token: str) -> None:
        raise NotImplementedError("a benchmark changes nothing")

    async def done(self, operation: Operation, token: str) -> Step:
        raise NotImplementedError("a benchmark changes nothing")


@dataclass(frozen=True)
class Cost:
    """CPU and wall time of one thing done ``n`` times."""

    what: str
    n: int
    cpu_ms: float
    """Of one."""
    wall_ms: float
    """Of one."""


async def cost(what: str, n: int, work: Callable[[], Awaitable[object]]) -> Cost:
    used, began = _cpu_s(), time.perf_counter()
    await work()
    wall = time.perf_counter() - began
    return Cost(what, n, 1000 * (_cpu_s() - used) / n, 1000 * wall / n)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def plain_parser(pages: Sequence[str]) -> None:
    for page in pages:
        for family in text_string_to_metric_families(page):
            _ = family.samples


async def own_parser(pages: Sequence[bytes]) -> None:
    exposition = Exposition(_NAMES, max_series=20_000)
    for page in pages:
        readings_of(exposition.parse(page, "text/plain; version=0.0.4"), "t", None, 0.0)


async def fetches(base: str, n: int) -> None:
    http = Http()
    for i in range(0, n, 100):
        await asyncio.gather(*(http.get(f"{base}/fetch-{k}/metrics", timeout_s=60) for k in range(i, min(i + 100, n))))
    await http.aclose()


async def whole_path(base: str, arguments: argparse.Namespace) -> tuple[Cost, dict[str, Any]]:
    """Flyball's monitoring, for some minutes of virtual time."""
    clock = VirtualClock(start=1_800_000_000.0)
    per_endpoint = -(-arguments.replicas // arguments.endpoints)
    names = [f"endpoint-{i}" for i in range(arguments.endpoints)]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            state_dir=Path(folder), endpoints=[EndpointSettings(name=name, url=f"{base}/{name}") for name in names]
        )
        store = Store(f"sqlite:///{folder}/flyball.db")
        store.upgrade()
        http = Http(monotonic=time.monotonic)
        governor = Governor(
            settings, store, clock, holder="benchmark", http=http, make_watched=_watched(base, per_endpoint)
        )
        await governor.take_lead()
        await governor.collect()  # connections, versions and first readings are not what goes on for ever
        cycles = round(arguments.minutes * 60 / INTERVAL_S)

        async def go_on() -> None:
            for _ in range(cycles):
                clock.set(clock.now() + INTERVAL_S)
                await governor.collect()

        n = cycles * per_endpoint * arguments.endpoints
        result = await cost("Flyball: fetch, parse, window, store", n, go_on)
        stored = _stored(store, names, clock)
        reads = sum(governor.metrics.reads.labels(name, "vllm")._value.get() for name in names)
        if reads != (cycles + 1) * per_endpoint * arguments.endpoints:
            raise SystemExit(f"only {reads} of the scrapes ended: the machine is too slow for this many replicas")
        await governor.close()
        await http.aclose()
        store.close()
    return result, stored


def _watched(base: str, replicas: int) -> Callable[[Settings, EndpointSettings, Environment], WatchedEndpoint]:
    def make(_settings: Settings, endpoint: EndpointSettings, environment: Environment) -> WatchedEndpoint:
        collector = VllmCollector(
            SourceContext(
                endpoint.name, None, environment.http, environment.clock, environment.sessions, {"timeout_s": 60.0}
            )
        )
        targets = {f"r{i:04d}": f"{base}/{endpoint.name}-{i}" for i in range(replicas)}
        return WatchedEndpoint(endpoint, {"vllm": collector}, Fixed(targets))

    return make


def _stored(store: Store, names: Sequence[str], clock: VirtualClock) -> dict[str, Any]:
    """What lies in the database in the end, as proof that the windows are real."""
    with store.read() as db:
        rows = [w for name in names for w in windows.load(db, name, "vllm", 0.0, clock.now(), WINDOW_S)]
    whole = [w for w in rows if w.coverage > 0.99]
    return {
        "windows": len(rows),
        "windows_wholly_observed": len(whole),
        "requests": sum(w.count("requests") or 0.0 for w in rows),
        "ttft_p95_s": whole[0].quantile("ttft_s", 0.95) if whole else None,
    }


# -- the run -----------------------------------------------------------------------------------------------------------


async def measure(base: str, arguments: argparse.Namespace) -> dict[str, Any]:
    text = arguments.page.read_text()
    pages = [moved_on(text, step) for step in range(VERSIONS)] * 2
    encoded = [page.encode() for page in pages]
    await own_parser(encoded[:5])
    costs = [
        await cost("prometheus_client's parser alone", len(pages), lambda: plain_parser(pages)),
        await cost("Flyball's parser alone, to readings", len(encoded), lambda: own_parser(encoded)),
        await cost("fetch alone", 1000, lambda: fetches(base, 1000)),
    ]
    whole, stored = await whole_path(base, arguments)
    costs.append(whole)
    return {
        "schema_version": 1,
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
        "page": {"lines": len(text.splitlines()), "bytes": len(text.encode())},
        "replicas": arguments.replicas,
        "endpoints": arguments.endpoints,
        "virtual_minutes": arguments.minutes,
        "costs": [asdict(c) for c in costs],
        "stored": stored,
        "scrapes_per_second": 1000 / whole.wall_ms,
        "replicas_per_core_at_15_s": INTERVAL_S * 1000 / whole.cpu_ms,
        "aim_cpu_ms": AIM_MS,
        "aim_met": whole.cpu_ms < AIM_MS,
    }


def show(result: Mapping[str, Any]) -> None:
    page, whole, plain = result["page"], result["costs"][-1], result["costs"][0]
    print(f"A vLLM page of {page['lines']} lines, {page['bytes']} bytes; {result['replicas']} replicas of "
          f"{result['endpoints']} endpoints for {result['virtual_minutes']:g} virtual minutes")  # fmt: skip
    print(f"{'':42}{'n':>8}{'CPU ms':>10}{'wall ms':>10}{'of plain':>10}")
    for c in result["costs"]:
        share = c["cpu_ms"] / plain["cpu_ms"]
        print(f"{c['what']:42}{c['n']:>8}{c['cpu_ms']:>10.2f}{c['wall_ms']:>10.2f}{share:>10.2f}")
    print(
        f"{result['scrapes_per_second']:.0f} scrapes/s; {result['replicas_per_core_at_15_s']:.0f} replicas a core at 15 s"
    )
    print(f"aim: under {AIM_MS} ms of CPU each: {'met' if result['aim_met'] else 'MISSED'} ({whole['cpu_ms']:.2f} ms)")
    print(f"stored: {result['stored']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="a page of vLLM's /metrics")
    parser.add_argument("--replicas", type=int, default=500)
    parser.add_argument("--endpoints", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=4.0, help="of virtual time")
    parser.add_argument("--output", type=Path, help="also write the figures there, as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.page.exists():
        raise SystemExit(f"{arguments.page} is missing; name a recorded page of vLLM's /metrics with --page")
    if arguments.serve:
        serve(arguments.page)
        return
    line = [sys.executable, __file__, "--serve", "--page", str(arguments.page)]
    logs.configure("error")
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        result = asyncio.run(measure(f"http://127.0.0.1:{port}", arguments))
    show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
