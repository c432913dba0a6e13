"""How true `flyball simulate` is: against a server of exactly known timing, in closed and open loop, and in the cases that are hard.

    python benchmarks/traffic.py                       # closed loop 10..400 users, open loop 10..400 requests a second, the cases
    python benchmarks/traffic.py --million             # memory over a million requests (streams of 2 tokens)
    python benchmarks/traffic.py --install-peers DIR   # GuideLLM and AIPerf into environments of their own, once
    python benchmarks/traffic.py --peers DIR           # and these beside it

The truth is the server's own log. Beside each closed loop the least that a client in Python does (bare_reader.py), so that CPU can be
given as a ratio, whatever the machine. Each run is a process as a person would start it; its CPU and memory are those of all its processes.
Run it on a machine that does nothing else: the table says how busy it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from collectors.loadtests import BadLoadTest, read
from collectors.traffic.connection import resolve
from collectors.traffic.preflight import ask

HERE = Path(__file__).parent
FLYBALL = [sys.executable, "-m", "agent", "simulate"]
PEERS = {"guidellm": "guidellm==0.8.1", "aiperf": "aiperf==0.13.0"}
TOKENS, TTFT_MS, ITL_MS = 50, 100.0, 10.0


@dataclass
class Row:
    """One run. Milliseconds; None: the tool does not say."""

    tool: str
    load: str
    ttft_mean: float | None = None
    ttft_p99: float | None = None
    truth_mean: float | None = None
    """By the server's log: request read to first token written."""
    truth_p99: float | None = None
    itl: float | None = None
    rps: float | None = None
    cpu_per_request: float | None = None
    """Of all its processes, start included."""
    worker_cpu_per_request: float | None = None
    rss_mb: float | None = None
    first_request_s: float | None = None
    sent: int = 0
    seen: int = 0
    """By the server."""
    gap_cv: float | None = None
    """Of the gaps between requests, at the server: 0 for a constant rate."""
    valid: bool | None = None
    notes: list[str] = field(default_factory=list)


@contextmanager
def server(case: str = "plain") -> Iterator[str]:
    command = [sys.executable, str(HERE / "exact_server.py"), "--case", case]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def get(url: str, path: str) -> Any:
    return json.loads(ask(resolve(url), "GET", path, {}, None, 60)[1])


class Footprint:
    """CPU seconds and memory of a process and all that it starts, sampled."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._cpu: dict[int, float] = {}
        self.rss = 0
        self.series: list[int] = []
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            rss = 0
            for one in family:
                try:
                    times, memory = one.cpu_times(), one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                self._cpu[one.pid] = times.user + times.system
                rss += memory
            self.series.append(rss)
            self.rss = max(self.rss, rss)

    def stop(self) -> float:
        self._stop.set()
        self._thread.join()
        return sum(self._cpu.values())


def watched(
    command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None
) -> tuple[str, int, Footprint, float, float]:
    """Standard output, exit code, footprint, CPU seconds, and the stamp of its start."""
    begun = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=env
    ) as process:
        footprint = Footprint(process.pid)
        out, err = process.communicate()
        cpu = footprint.stop()
    if process.returncode not in (0, 3):
        print(err[-2000:], file=sys.stderr)
    return out, process.returncode, footprint, cpu, begun


def against_log(row: Row, url: str, begun: float, cpu: float, footprint: Footprint) -> Row:
    log = get(url, "/log")
    truth, at = 1e3 * np.array(log["ttft"]), np.array(log["at"])
    row.seen = log["requests"]
    row.rss_mb = footprint.rss / 2**20
    if truth.size:
        row.truth_mean, row.truth_p99 = float(truth.mean()), float(np.quantile(truth, 0.99))
        row.cpu_per_request = 1e3 * cpu / row.seen
        row.first_request_s = float(at[0] - begun)
    if at.size > 2:
        gaps = np.diff(at)
        row.gap_cv = float(gaps.std() / gaps.mean())
    return row


def flyball(
    load: list[str], name: str, case: str = "plain", seconds: float = 12.0, output: str = f"fixed:{TOKENS}"
) -> tuple[Row, dict[str, Any]]:
    with server(case) as url:
        # The model is named, so that the first request is one that counts.
        command = [
            *FLYBALL,
            "--url",
            url,
            "--model",
            "exact",
            *load,
            "--duration",
            str(seconds),
            "--output-tokens",
            output,
            "-o",
            "json",
        ]
        out, code, footprint, cpu, begun = watched(command)
        answer = json.loads(out)
        client = answer["client"]
        row = Row(
            "flyball",
            name,
            ttft_mean=ms(answer["ttft_sent_s"]["mean"]),
            ttft_p99=ms(answer["ttft_sent_s"]["p99"]),
            itl=ms(answer["itl_s"]["mean"]),
            rps=answer["requests_per_s"],
            worker_cpu_per_request=ms(client["cpu_per_request_s"]),
            sent=answer["sent"],
            valid=answer["valid"],
            notes=[r["code"] for r in answer["invalid_reasons"]] + ([] if code in (0, 3) else [f"exit {code}"]),
        )
        return against_log(row, url, begun, cpu, footprint), answer


def ms(value: float | None) -> float | None:
    return None if value is None else 1e3 * value


def bare(users: int, seconds: float) -> Row:
    """The reader that reads nothing."""
    with server() as url:
        command = [sys.executable, str(HERE / "bare_reader.py"), "--port", url.rpartition(":")[2]]
        out, _, footprint, cpu, begun = watched([*command, "--users", str(users), "--seconds", str(seconds)])
        ttft = 1e3 * np.array(json.loads(out)["ttft_s"])
        row = Row("bare", f"{users} users", float(ttft.mean()), float(np.quantile(ttft, 0.99)), sent=ttft.size)
        return against_log(row, url, begun, cpu, footprint)


# -- the hard cases -----------------------------------------------------------------------------------------------------


def cases() -> list[dict[str, Any]]:
    """Each: what came out, what is true, and whether that is near enough."""
    found: list[dict[str, Any]] = []

    def case(name: str, what: str, value: float | None, truth: float, within: float) -> None:
        right = value is not None and abs(value - truth) <= within
        found.append({"case": name, "what": what, "value": value, "truth": truth, "within": within, "right": right})

    rate = ["--rate", "20", "--arrivals", "constant", "--warmup", "0"]
    answers = {
        name: flyball(rate, name, name, 10.0)[1]
        for name in (
            "spec4",
            "role_early",
            "reasoning",
            "late_usage",
            "coalesced",
            "http_503",
            "reset",
            "in_stream_error",
            "truncated",
        )
    }
    case("spec4", "TPOT ms", ms(answers["spec4"]["tpot_s"]["mean"]), 10.0, 0.1)
    case("spec4", "ITL ms", ms(answers["spec4"]["itl_s"]["mean"]), 10.0, 0.1)
    case("role_early", "TTFT ms", ms(answers["role_early"]["ttft_sent_s"]["mean"]), 100.0, 2.0)
    case("reasoning", "TTFT ms", ms(answers["reasoning"]["ttft_sent_s"]["mean"]), 100.0, 2.0)
    case("late_usage", "last token ms", ms(answers["late_usage"]["e2e_sent_s"]["mean"]), 590.0, 2.0)
    case("coalesced", "flagged", float(answers["coalesced"]["stream"]["buffered"] is True), 1.0, 0.0)
    case(
        "coalesced",
        "taken for speculative",
        float(answers["coalesced"]["stream"]["several_tokens_per_chunk"] is True),
        0.0,
        0.0,
    )
    case("spec4", "flagged as buffered", float(answers["spec4"]["stream"]["buffered"] is True), 0.0, 0.0)
    for name in ("http_503", "reset", "in_stream_error", "truncated"):
        case(name, "errors of 20", float(sum(answers[name]["errors"].values())), 20.0, 0.0)
    _, stalled = flyball(
        ["--rate", "50", "--arrivals", "constant", "--warmup", "0", "--max-concurrency", "30"], "stall", "stall", 12.0
    )
    truth = stall_truth(50, 12.0, 30)
    case("stall", "TTFT p99 by schedule, s", stalled["ttft_s"]["p99"], truth, 0.05 * truth)
    return found


def stall_truth(rate: float, seconds: float, cap: int) -> float:
    """p99 of due to first token, from the server's stall and the cap alone: a request goes when it is due and a place is free."""
    ttft, whole, stall_at, stall = 0.1, 0.1 + (TOKENS - 1) * 0.01, 2.0, 3.0
    places = [0.0] * cap
    waits = []
    for i in range(int(rate * seconds)):
        due = i / rate
        place = min(range(cap), key=places.__getitem__)
        sent = max(due, places[place])
        held = max(sent, stall_at + stall) if stall_at <= sent < stall_at + stall else sent
        places[place] = held + whole
        waits.append(held + ttft - due)
    return float(np.sort(waits)[int(np.ceil(0.99 * len(waits))) - 1])


def million(requests: int) -> dict[str, Any]:
    """Memory at a tenth and at the end of so many requests, of 2 tokens each."""
    rate = 1500.0
    seconds = requests / rate
    with server() as url:
        command = [*FLYBALL, "--url", url, "--model", "exact", "--rate", str(rate), "--arrivals", "constant"]
        command += [
            "--duration",
            f"{seconds:g}",
            "--output-tokens",
            "fixed:2",
            "--prompt-tokens",
            "fixed:8",
            "-o",
            "json",
        ]
        out, _, footprint, cpu, _ = watched(command)
    answer, series = json.loads(out), footprint.series
    return {
        "requests": answer["sent"],
        "completed": answer["completed"] + answer["warmup_requests"],
        "rss_mb_at_a_tenth": max(series[: len(series) // 10]) / 2**20,
        "rss_mb_at_the_end": max(series[-max(5, len(series) // 10) :]) / 2**20,
        "cpu_ms_per_request": 1e3 * cpu / answer["sent"],
        "valid": answer["valid"],
    }


# -- peers --------------------------------------------------------------------------------------------------------------


def install_peers(folder: Path) -> None:
    for name, requirement in PEERS.items():
        venv.create(folder / name, with_pip=True)
        subprocess.run([folder / name / "bin" / "pip", "install", "--quiet", requirement], check=True)


def peer(name: str, folder: Path, url: str, closed: bool, n: int, seconds: float) -> Row:
    """One run of another load generator, with a tokenizer of words that is made on the spot: none is fetched."""
    label = f"{n} {'users' if closed else 'rps'}"
    row = Row(name, label)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        tokenizer = make_tokenizer(folder / name / "bin" / "python", out / "tokenizer")
        tool = str(folder / name / "bin" / name)
        if name == "guidellm":
            profile = f"kind=concurrent,streams={n}" if closed else f"kind=constant,rate={n}"
            command = [tool, "run", "--disable-progress", "--profile", profile]
            command += ["--backend", f"kind=openai_http,target={url},model=exact"]
            command += ["--constraint", f"kind=max_duration,seconds={seconds:g}"]
            command += ["--tokenizer", f"kind=hf_auto,model={tokenizer}"]
            command += ["--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={TOKENS}"]
            command += ["--output", f"kind=json,path={out}/benchmarks.json"]
        else:
            command = [
                tool,
                "profile",
                "--model",
                "exact",
                "--url",
                url,
                "--endpoint-type",
                "chat",
                "--streaming",
                "--use-server-token-count",
                "--tokenizer",
                tokenizer,
            ]
            command += [
                "--synthetic-input-tokens-mean",
                "64",
                "--output-tokens-mean",
                str(TOKENS),
                "--ui",
                "none",
                "--artifact-dir",
                str(out),
            ]
            command += (
                ["--concurrency", str(n)] if closed else ["--request-rate", str(n), "--request-rate-mode", "constant"]
            )
            command += ["--benchmark-duration", f"{seconds:g}"]
        env = {**os.environ, "DO_NOT_TRACK": "1"}
        _, code, footprint, cpu, begun = watched(command, out, env)
        try:
            path = next(p for p in out.rglob("*.json") if p.name in ("benchmarks.json", "profile_export_aiperf.json"))
            test = read(path)[-1]
        except (StopIteration, BadLoadTest) as error:
            row.notes.append(f"exit {code}: {error}")
            return row
        ttft, itl = test.latency.get("ttft_s"), test.latency.get("tpot_s")
        row.ttft_mean, row.ttft_p99 = (ms(ttft.mean), ms(ttft.p99)) if ttft is not None else (None, None)
        row.itl, row.rps, row.sent = ms(itl.mean) if itl is not None else None, test.throughput_per_s, test.sent or 0
    return against_log(row, url, begun, cpu, footprint)


def make_tokenizer(python: Path, folder: Path) -> str:
    code = (
        "import sys; from tokenizers import Tokenizer, models, pre_tokenizers, trainers, decoders\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "t = Tokenizer(models.BPE()); t.pre_tokenizer = pre_tokenizers.ByteLevel(); t.decoder = decoders.ByteLevel()\n"
        "t.train_from_iterator(['the valve turns'] * 9, trainers.BpeTrainer(special_tokens=['<s>', '</s>'], "
        "initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))\n"
        "PreTrainedTokenizerFast(tokenizer_object=t, eos_token='</s>', bos_token='<s>').save_pretrained(sys.argv[1])\n"
    )
    subprocess.run([python, "-c", code, str(folder)], check=True, capture_output=True)
    return str(folder)


# -- telling ------------------------------------------------------------------------------------------------------------

HEAD = "tool       load       TTFT mean/p99 ms   server says       ITL ms   rps     CPU ms/req (worker)  MB    first s  sent/seen   CV    valid"


def shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def line(row: Row) -> str:
    cpu = f"{shown(row.cpu_per_request, 2)} ({shown(row.worker_cpu_per_request, 2)})"
    return (
        f"{row.tool:<10} {row.load:<10} {shown(row.ttft_mean, 2):>7}/{shown(row.ttft_p99, 2):<9} {shown(row.truth_mean, 2):>7}/"
        f"{shown(row.truth_p99, 2):<8} {shown(row.itl, 3):>7} {shown(row.rps):>7}  {cpu:>16} {shown(row.rss_mb, 0):>7} "
        f"{shown(row.first_request_s, 2):>7} {row.sent:>7}/{row.seen:<6} {shown(row.gap_cv, 3):>6} {row.valid} {' '.join(row.notes)}"
    )


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--closed", type=numbers, default=[10, 50, 100, 200, 400])
    parser.add_argument("--open", type=numbers, default=[10, 50, 100, 200, 400])
    parser.add_argument("--duration", type=float, default=12.0)
    parser.add_argument("--no-cases", action="store_true")
    parser.add_argument("--million", nargs="?", type=int, const=1_000_000, help="so many requests; default a million")
    parser.add_argument("--peers", type=Path, help="the folder that --install-peers filled")
    parser.add_argument("--install-peers", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.install_peers is not None:
        install_peers(given.install_peers)
    print(f"{os.cpu_count()} cores, load before: {os.getloadavg()[0]:.2f}\n{HEAD}")
    rows: list[Row] = []
    ratios: dict[int, float] = {}
    for closed, several in ((True, given.closed), (False, given.open)):
        for n in several:
            load = ["--concurrency", str(n)] if closed else ["--rate", str(n), "--arrivals", "constant"]
            row, _ = flyball(load, f"{n} {'users' if closed else 'rps'}", seconds=given.duration)
            rows.append(row)
            print(line(row), flush=True)
            if closed:
                rows.append(bare(n, given.duration))
                print(line(rows[-1]), flush=True)
                ratios[n] = float(row.cpu_per_request or 0.0) / float(rows[-1].cpu_per_request or math.inf)
            for name in PEERS if given.peers is not None else ():
                with server() as url:
                    rows.append(peer(name, given.peers, url, closed, n, given.duration))
                print(line(rows[-1]), flush=True)
    print("CPU a request, over the bare reader's:", ", ".join(f"{n} users {ratio:.2f}" for n, ratio in ratios.items()))
    result: dict[str, Any] = {"rows": [asdict(row) for row in rows], "cpu_over_bare": ratios}
    if not given.no_cases:
        result["cases"] = cases()
        for c in result["cases"]:
            print(
                f"{'right' if c['right'] else 'WRONG':<6} {c['case']:<16} {c['what']:<24} {shown(c['value'], 3):>9} of {c['truth']:.3f}"
            )
    if given.million:
        result["million"] = million(given.million)
        print(result["million"])
    result["load_after"] = os.getloadavg()[0]
    print(f"load after: {result['load_after']:.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
