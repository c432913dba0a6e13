"""How many requests the what-if engine replays in a second, on one core.

The Azure conversation trace, tiled to the wanted number of requests and run at a share of the capacity of the engine below. The
plain iteration-by-iteration simulator of the tests runs a slice of the same traffic in the same process, for the ratio, and to
check that both agree.

    python benchmarks/whatif_speed.py [--data ../shared/data] [--requests 1000000] [--load 0.7] [--output FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from collectors.workload import Workload  # noqa: E402
from tests.analyzers.whatif.reference_simulator import simulate  # noqa: E402

TRACE = Path("traces") / "AzureLLMInferenceTrace_conv.csv"


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


def measure(trace: Workload, n: int, load: float, slice_n: int, repeats: int) -> dict[str, Any]:
    started = time.perf_counter()
    from analyzers.whatif.engine import replay
    from analyzers.whatif.model import EngineModel, Iteration, Limits

    # About a 7B model on one H100.
    model = EngineModel(Iteration(6e-3, 3e-5, 2.5e-8, 2.8e-5, 2e-10), Limits(256, 2048, kv_tokens=400_000))
    imported = time.perf_counter()
    replay(head(trace, 10), model)
    ready = time.perf_counter()

    all_at_once = Workload(np.zeros(len(trace)), trace.prompt_tokens, trace.output_tokens, trace.prefix_tokens)
    capacity = len(trace) / replay(all_at_once, model).simulated_s
    work = at_rate(tiled(trace, n), load * capacity)
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

    part = head(work, slice_n)
    begin = time.perf_counter()
    plain = simulate(part, model)
    plain_wall = time.perf_counter() - begin
    begin = time.perf_counter()
    each = replay(part, model, per_request=True).per_request
    fast_wall = time.perf_counter() - begin
    assert each is not None
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
        "capacity_requests_per_s": capacity,
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.7, help="share of the engine's capacity")
    parser.add_argument("--reference-requests", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    path = args.data / TRACE
    if not path.is_file():
        print(f"{path} is not there. Give the folder that holds {TRACE} with --data.", file=sys.stderr)
        return 2
    result = measure(read_trace(path), args.requests, args.load, args.reference_requests, args.repeats)
    table = Table("figure", "value", title="What-if engine, one core")
    for key, value in result.items():
        if isinstance(value, int | float):
            table.add_row(
                key, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if value < 1e3 else f"{value:,.0f}"
            )
    for key, value in result["quantiles"].items():
        table.add_row(key, f"{value:.4g}")
    Console().print(table)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
