"""How many requests the what-if engine replays in a second, on one core.

The Azure conversation trace, tiled to the wanted number of requests and run at a share of the capacity of the engine below. The
plain iteration-by-iteration simulator of the tests runs a slice of the same traffic in the same process, for the ratio, and to
check that both agree. ``--week`` adds a week of one endpoint (5,000,000 requests) on one candidate, and the same under an
autoscaler that is asked every 15 s. ``--command`` adds the whole command, in a process of its own, on as many requests and on a
week's. ``--calibration`` adds one from a day of windows. ``--sweep`` adds a day of it on 200 candidates, over all cores.
``--install-peers DIR`` installs public simulators there, and ``--peers DIR`` runs those of an earlier time: on the same traffic, in
this run (``simulators.py``). The last table is of wall times as published or as measured elsewhere.

    python benchmarks/whatif_speed.py [--data ../shared/data] [--requests 1000000] [--load 0.7] [--command] [--week] [--calibration] [--sweep]
        [--output FILE] [--install-peers DIR | --peers DIR]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost  # noqa: E402
from analyzers.whatif.scaling import ScalingInput  # noqa: E402
from collectors.workload import Workload  # noqa: E402

TRACE = Path("traces") / "AzureLLMInferenceTrace_conv.csv"
WEEK_S, WEEK_REQUESTS = 604_800.0, 5_000_000
CANDIDATES = tuple(
    itertools.product(
        (1, 2, 3, 4, 6), (32, 64, 128, 256, 512), (1024, 2048, 4096, 8192), ("round_robin", "least_outstanding")
    )
)
"""Replicas, max_num_seqs, max_num_batched_tokens, router."""
OBJECTIVE = {"ttft_s": 0.2, "tpot_s": 0.02}
PEERS = {
    "BLIS inference-sim, 7B .. 70B": "12,000 requests in 6.8 s .. 224 s: 1,770 .. 54 requests/s",
    "LLMServingSim 2.0": "300 requests in 200 s: 1.5 requests/s",
    "Vidur": "8.6 s a run",
    "AIConfigurator 0.12": "0.45 s a point, means alone",
}


def read_trace(path: Path) -> Workload:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    arrival = np.array([(t - times[0]).total_seconds() for t in times])
    columns = (np.array([int(row[c]) for row in rows], np.int64) for c in ("ContextTokens", "GeneratedTokens"))
    return Workload(arrival, *columns, np.zeros(len(rows), np.int64))


def tiled(trace: Workload, n: int) -> Workload:
    """The trace again and again, up to ``n`` requests."""
    period = trace.duration_s + trace.duration_s / len(trace)
    index = np.arange(n)
    at = index % len(trace)
    return Workload(
        trace.arrival_s[at] + period * (index // len(trace)),
        trace.prompt_tokens[at],
        trace.output_tokens[at],
        trace.prefix_tokens[at],
    )


def at_rate(work: Workload, rate: float) -> Workload:
    factor = rate * work.duration_s / len(work)
    return Workload(work.arrival_s / factor, work.prompt_tokens, work.output_tokens, work.prefix_tokens)


def head(work: Workload, n: int) -> Workload:
    return Workload(work.arrival_s[:n], work.prompt_tokens[:n], work.output_tokens[:n], work.prefix_tokens[:n])


def engine() -> EngineModel:
    """About a 7B model on one H100."""
    return EngineModel(IterationCost(6e-3, 3e-5, 2.5e-8, 2.8e-5, 2e-10), EngineLimits(256, 2048, kv_tokens=400_000))


def mixture() -> EngineModel:
    """About a mixture of 30B on one H100, of which a token reads 8 of 128 experts."""
    cost = IterationCost(4e-3, 3e-5, 2.5e-8, 2.8e-5, 2e-10, 2e-3, 9e-3, 8 / 128)
    return EngineModel(cost, EngineLimits(256, 2048, kv_tokens=400_000))


def capacity(trace: Workload, model: EngineModel | None = None) -> float:
    """Requests a second that the engine completes when all are there at once."""
    from analyzers.whatif.engine import replay

    all_at_once = Workload(np.zeros(len(trace)), trace.prompt_tokens, trace.output_tokens, trace.prefix_tokens)
    return len(trace) / replay(all_at_once, model or engine()).simulated_s


def measure(
    trace: Workload, n: int, load: float, slice_n: int, repeats: int, model: EngineModel | None = None
) -> dict[str, Any]:
    started = time.perf_counter()
    from analyzers.whatif.engine import replay

    model = model or engine()
    imported = time.perf_counter()
    replay(head(trace, 10), model)
    ready = time.perf_counter()

    at_most = capacity(trace, model)
    work = at_rate(tiled(trace, n), load * at_most)
    walls = []
    for _ in range(repeats):
        begin = time.perf_counter()
        out = replay(work, model)
        quantiles = {
            f"{name}_p{q * 100:g}": out.distribution(name).quantile(q)
            for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s")
            for q in (0.5, 0.95)
        }
        walls.append(time.perf_counter() - begin)

    from tests.analyzers.whatif.reference_simulator import simulate

    part = head(work, slice_n)
    begin = time.perf_counter()
    plain = simulate(part, model)
    plain_wall = time.perf_counter() - begin
    begin = time.perf_counter()
    each = replay(part, model).per_request
    fast_wall = time.perf_counter() - begin
    worst = max(
        float(np.max(np.abs(ours - np.array(theirs)) / np.array(theirs)))
        for ours, theirs in (
            (each.ttft_s, [r.ttft for r in plain.requests]),
            (each.e2e_s, [r.e2e for r in plain.requests]),
        )
    )
    best = min(walls)
    return {
        "schema_version": 1,
        "requests": n,
        "tokens": int(work.prompt_tokens.sum() + work.output_tokens.sum()),
        "capacity_requests_per_s": at_most,
        "load": load,
        "running_mean": out.running_mean,
        "preemptions": out.preemptions,
        "simulated_s": out.simulated_s,
        "import_s": imported - started,
        "compile_or_load_s": ready - imported,
        "wall_s": walls,
        "requests_per_s": n / best,
        "reference_requests": len(part),
        "reference_requests_per_s": len(part) / plain_wall,
        "engine_on_the_same_slice_requests_per_s": len(part) / fast_wall,
        "ratio": (n / best) / (len(part) / plain_wall),
        "worst_relative_difference": worst,
        "quantiles": quantiles,
    }


def measure_command(trace: Workload, n: int, load: float, repeats: int) -> dict[str, Any]:
    """``flyball whatif --trace FILE --engine FILE --output json`` in a process of its own, from its start to its end; the file is CSV."""
    from collectors.traces import write_trace

    work = at_rate(tiled(trace, n), load * capacity(trace))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "engine.json").write_text(engine().to_json())
        write_trace(work, folder / "trace.csv")
        flyball = Path(sys.executable).with_name("flyball")
        command = [
            flyball,
            "whatif",
            "--trace",
            folder / "trace.csv",
            "--engine",
            folder / "engine.json",
            "--output",
            "json",
        ]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        walls, cpus = [], []
        for _ in range(repeats + 1):  # the first compiles, where nothing is compiled yet
            begin, used = time.perf_counter(), _cpu_of_children()
            subprocess.run(command, check=True, capture_output=True, env=own)
            walls.append(time.perf_counter() - begin)
            cpus.append(_cpu_of_children() - used)
    return {"requests": n, "wall_s": walls[1:], "cpu_s": cpus[1:], "requests_per_s": n / min(walls[1:])}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Tracking:
    """As many replicas as keep ``target`` requests in flight on each."""

    target: float
    interval_s: float = 15.0

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        return math.ceil(seen.in_flight / self.target), state


def measure_week(trace: Workload, repeats: int) -> dict[str, Any]:
    """A week on one candidate: a fixed replica, and one to eight under an autoscaler."""
    from analyzers.whatif.engine import replay
    from analyzers.whatif.fleet import ReplicaFleet

    work = at_rate(tiled(trace, WEEK_REQUESTS), WEEK_REQUESTS / WEEK_S)
    result: dict[str, Any] = {"requests": len(work), "output_tokens": int(work.output_tokens.sum())}
    scaled = ReplicaFleet(1, 120.0, policy=Tracking(16.0), min_replicas=1, max_replicas=8)
    for name, fleet in (("fixed", None), ("autoscaled", scaled)):
        walls = []
        for _ in range(repeats):
            begin = time.perf_counter()
            out = replay(work, engine(), fleet=fleet)
            values = {m: out.distribution(m).quantile(0.95) for m in ("ttft_s", "itl_s", "tpot_s", "e2e_s")}
            good = out.goodput_per_s(OBJECTIVE)
            walls.append(time.perf_counter() - begin)
        result[name] = {
            "wall_s": walls,
            "p95": values,
            "goodput_per_s": good,
            "completed": out.completed,
            "replica_hours": out.replica_s / 3600,
            "replicas_max": out.replicas_max,
            "changes": len(out.replicas) - 1,
        }
    return result


def measure_calibration(repeats: int) -> dict[str, Any]:
    """From a day of windows of a minute, whose load goes up and down by a factor of ten: processor time."""
    from actuators.shape import Shape
    from analyzers.hardware import ACCELERATORS
    from analyzers.whatif.calibrate import calibrate
    from tests.analyzers.whatif.reference_server import poisson, windows

    hours = [poisson(1.0 + 4.5 * (1.0 - math.cos(2.0 * math.pi * hour / 24)), 3600.0, hour) for hour in range(24)]
    day = Workload(
        np.concatenate([work.arrival_s + 3600.0 * hour for hour, work in enumerate(hours)]),
        *(
            np.concatenate([getattr(work, f"{name}_tokens") for work in hours])
            for name in ("prompt", "output", "prefix")
        ),
    )
    seen = windows(engine(), day)
    limits = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_tokens": 400_000}
    shape = Shape(replicas=1, accelerator="H100", accelerator_count=1, engine=limits)
    used = []
    for _ in range(repeats):
        begin = time.process_time()
        found = calibrate(seen, shape, prior=None, hardware=ACCELERATORS["H100"])
        used.append(time.process_time() - begin)
    return {
        "windows": len(seen),
        "requests": len(day),
        "loads": found.loads,
        "cpu_s": used,
        "residuals": dict(found.residuals),
    }


def measure_peers(trace: Workload, load: float, folder: Path, requests: int) -> list[dict[str, Any]]:
    """Public simulators on the traffic of ``measure``, each beside the engine on the same question."""
    from benchmarks.simulators import POINT_REQUESTS, beside

    work = at_rate(tiled(trace, max(requests, POINT_REQUESTS)), load * capacity(trace))
    rows = beside(folder, work, engine(), requests)
    return [{**asdict(row), "ratio": row.ratio} for row in rows]


def show_peers(rows: list[dict[str, Any]]) -> None:
    """The rates as a table; below it, of each, what is to be known about it, or why it did not run."""
    table = Table(title="Beside public simulators, in this run, one core each")
    for name in ("simulator", "one answer of it is", "its rate", "Flyball's", "ratio"):
        table.add_column(name, overflow="fold")
    ran = [row for row in rows if row["ratio"] is not None]
    for row in ran:
        rates = [f"{said(row[k])} {row['unit']}/s" for k in ("theirs_per_s", "ours_per_s")]
        table.add_row(row["simulator"], row["answers"], *rates, f"{row['ratio']:,.0f}")
    console = Console()
    if ran:
        console.print(table)
    for row in rows:
        console.print(f"{row['simulator']}: {row['note']}", highlight=False, markup=False)


def measure_sweep(trace: Workload, workers: int) -> dict[str, Any]:
    """A day on each candidate, in threads: the compiled loop holds no interpreter lock, and the traffic is there once."""
    n = WEEK_REQUESTS // 7
    day = WEEK_S / 7
    work = at_rate(tiled(trace, n), n / day)

    def one(candidate: tuple[int, int, int, str]) -> tuple[float, dict[str, Any]]:
        from analyzers.whatif.engine import replay

        replicas, seqs, budget, router = candidate
        begin = time.perf_counter()
        model = engine().with_limits(max_num_seqs=seqs, max_num_batched_tokens=budget)
        out = replay(work, model, replicas=replicas, router=router, horizon=2 * day)  # type: ignore[arg-type]
        p95 = {metric: out.distribution(metric).quantile(0.95) for metric in OBJECTIVE}
        met = not out.saturated and all((p95[m] or math.inf) <= limit for m, limit in OBJECTIVE.items())
        return time.perf_counter() - begin, {"candidate": candidate, "p95": p95, "met": met}

    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(one, candidate) for candidate in CANDIDATES]
        found = [run.result() for run in track(as_completed(runs), "Candidates", len(runs))]
    wall = time.perf_counter() - begin
    met = sorted((row for _, row in found if row["met"]), key=lambda row: row["candidate"])
    return {
        "candidates": len(CANDIDATES),
        "requests_each": n,
        "workers": workers,
        "wall_s": wall,
        "work_s": sum(each for each, _ in found),
        "requests_per_s": n * len(CANDIDATES) / wall,
        "meet_the_objective": len(met),
        "smallest_that_meets_it": met[0]["candidate"] if met else None,
    }


def show(result: dict[str, Any], title: str) -> None:
    table = Table("figure", "value", title=title)
    for key, value in result.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(f"{key}: {name}", said(inner))
        else:
            table.add_row(key, said(value))
    Console().print(table)


def said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e3 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {said(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(said(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.7, help="share of the engine's capacity")
    parser.add_argument("--reference-requests", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--command", action="store_true", help="also `flyball whatif` on the requests as a file")
    parser.add_argument("--week", action="store_true", help="also 5,000,000 requests on one candidate")
    parser.add_argument("--calibration", action="store_true", help="also a calibration from a day of windows")
    parser.add_argument("--sweep", action="store_true", help="also a day on 200 candidates, over all cores")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads of the sweep")
    parser.add_argument("--peers", type=Path, help="the folder that --install-peers filled: run those simulators too")
    parser.add_argument("--install-peers", type=Path, help="install public simulators into this folder, and run them")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    path = args.data / TRACE
    if not path.is_file():
        print(f"{path} is not there. Give the folder that holds {TRACE} with --data.", file=sys.stderr)
        return 2
    result = measure(read_trace(path), args.requests, args.load, args.reference_requests, args.repeats)
    show(result, "What-if engine, one core")
    result["mixture"] = measure(
        read_trace(path), args.requests, args.load, args.reference_requests, args.repeats, mixture()
    )
    show(result["mixture"], "The same of a mixture of experts")
    if args.command:
        result["command"] = []
        for n in (args.requests, WEEK_REQUESTS):
            result["command"].append(measure_command(read_trace(path), n, args.load, args.repeats))
            show(result["command"][-1], "The whole command: start, trace read, replayed, answered")
    if args.week:
        result["week"] = measure_week(read_trace(path), args.repeats)
        show(result["week"], "A week on one candidate, one core")
    if args.calibration:
        result["calibration"] = measure_calibration(args.repeats)
        show(result["calibration"], "A calibration from a day of windows, one core")
    if args.sweep:
        result["sweep"] = measure_sweep(read_trace(path), args.workers)
        show(result["sweep"], "A day on 200 candidates")
    folder = args.install_peers or args.peers
    if args.install_peers is not None:
        from benchmarks.simulators import install

        install(args.install_peers)
    if folder is not None:
        result["peers"] = measure_peers(read_trace(path), args.load, folder, args.reference_requests)
        show_peers(result["peers"])
    result["published_elsewhere"] = PEERS
    show(PEERS, "Other simulators, as published or measured elsewhere, not in this run")
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
