"""What an analysis of one endpoint costs: evidence to decision, screened against every candidate replayed whole.

Endpoints as a fleet has them: each its own load, engine, shape and objective, an hour of one-minute windows at about two requests a
second, and 36 allowed shapes (three sizes, three replica counts, four engine settings). Windows come from replays of a known engine.
Both ways decide on the same evidence in the same process, the whole way on a few endpoints, for the ratio and to see that both
choose alike. A fit is counted as often as it is made: once in ``REFIT_S``; and so is what is learned then of the load to come: what each
count of replicas carries of it, and the pre-mortem of what is proposed.

    python benchmarks/decide.py [--endpoints 200] [--whole 10] [--threads 2] [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from actuators.shape import Shape  # noqa: E402
from agent.reflect import REFIT_S  # noqa: E402
from analyzers.findings import analyze  # noqa: E402
from analyzers.forecast.forecast import forecast  # noqa: E402
from analyzers.forecast.history import LOADS, STEP_S, LoadHistory  # noqa: E402
from analyzers.forecast.horizon import Horizon  # noqa: E402
from analyzers.hardware import ACCELERATORS  # noqa: E402
from analyzers.kinds.base import Basis, Replayer  # noqa: E402
from analyzers.kinds.engine.kind import EngineKind  # noqa: E402
from analyzers.objective import Objective, mean_rate  # noqa: E402
from analyzers.path import Capacities  # noqa: E402
from analyzers.policy import Catalogue, Policy, candidates  # noqa: E402
from analyzers.prediction import Bar, Miss, Prediction  # noqa: E402
from analyzers.premortem import Premortem  # noqa: E402
from analyzers.recommend import Decision, premortem_of, recommend  # noqa: E402
from analyzers.situation import Situation  # noqa: E402
from analyzers.whatif.calibrate import CalibratedEngine, calibrate  # noqa: E402
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost  # noqa: E402
from collectors.window import Window  # noqa: E402
from collectors.workload import Workload  # noqa: E402
from tests.analyzers.exhaustive import chosen_of_all  # noqa: E402
from tests.analyzers.whatif.reference_server import poisson, windows  # noqa: E402

CATALOGUE = Catalogue(
    prices={"a10": 1.0, "l40s": 1.9, "a100": 3.7},
    built={"a10": ("A10G", 1), "l40s": ("L40S", 1), "a100": ("A100", 1)},
    hardware=dict(ACCELERATORS),
)
SLOTS = (32, 48, 64, 96)


@dataclass(frozen=True)
class Case:
    situation: Situation
    calibrated: CalibratedEngine
    fit_s: float

    @property
    def replayer(self) -> Replayer:
        s = self.situation
        return Replayer(EngineKind(), self.calibrated, s.windows, Basis(s.shape, s.objective, CATALOGUE, {}), 7)


@dataclass
class Tally:
    """A predictor that counts replays."""

    of: Replayer
    predictions: int = 0
    given_up: int = 0

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue, /) -> list[Shape]:
        return self.of.knobs(shape, policy, catalogue)

    def predict(self, shape: Shape, factor: float, /) -> Prediction:
        self.predictions += 1
        return self.of.predict(shape, factor)

    def screen(self, shape: Shape, factor: float, bar: Bar, /) -> Prediction | Miss:
        got = self.of.screen(shape, factor, bar)
        self.given_up += isinstance(got, Miss)
        self.predictions += not isinstance(got, Miss)
        return got

    def under(self, seen: Sequence[Window], /) -> Replayer:
        return self.of.under(seen)

    def changed(self, change: Callable[[Workload], Workload], /) -> Replayer:
        return self.of.changed(change)


def case(seed: int, span_s: float) -> Case:
    rng = np.random.default_rng(seed)
    replicas = int(rng.choice([2, 2, 3, 4]))
    slow = float(np.exp(rng.normal(0.0, 0.2)))
    model = EngineModel(
        IterationCost(0.012 * slow, 1.5e-4 * slow, 6e-8 * slow, 6e-5 * slow, 2e-9), EngineLimits(64, 2048, 120_000)
    )
    shape = Shape(replicas=replicas, size="a10", accelerator="A10G", accelerator_count=1, engine={"max_num_seqs": 64})
    rate = 2.0 * float(np.exp(rng.normal(0.0, 0.3)))
    seen = windows(model, poisson(rate / replicas, span_s, seed))
    seen = [_times(w, replicas) for w in seen]
    limits = {"ttft_p95_s": float(rng.uniform(0.3, 2.0)), "itl_p95_s": float(rng.uniform(0.02, 0.06))}
    policy = Policy(
        min_replicas=replicas - 1,
        max_replicas=replicas + 1,
        sizes=list(CATALOGUE.prices),
        engine={"max_num_seqs": SLOTS},
    )
    s = Situation(
        f"e{seed}", "vllm", seen, seen[0].start, seen[-1].end, Objective.from_mapping(limits), policy, shape,
        CATALOGUE.per_hour(shape),
    )  # fmt: skip
    begin = time.process_time()
    known = calibrate(seen, shape, prior=None, hardware=ACCELERATORS["A10G"])
    return Case(s, known, time.process_time() - begin)


def _times(window: Any, replicas: int) -> Any:
    """A replica's window as that of several alike."""
    from collectors.sketch import Sketch
    from collectors.window import Gauge

    return replace(
        window,
        targets=replicas,
        counts={name: value * replicas for name, value in window.counts.items()},
        sketches={name: Sketch.merge([sketch] * replicas) for name, sketch in window.sketches.items()},
        gauges={n: Gauge(g.mean * replicas, g.maximum * replicas, g.last * replicas) for n, g in window.gauges.items()},
    )


def screened(c: Case) -> tuple[Decision, Tally, float]:
    tally, begin = Tally(c.replayer), time.thread_time()
    decision = recommend(c.situation, analyze(c.situation), CATALOGUE, tally)
    return decision, tally, time.thread_time() - begin


def ahead(c: Case, capacities: Capacities, premortems: dict[str, Premortem]) -> float:
    """CPU seconds of a decision that knows three days of the load, and plans the next one."""
    at = np.arange(0.0, 3 * 86_400.0, STEP_S)
    rate = mean_rate(c.situation.windows, "requests") or 0.0
    rates = rate * (1 + 0.4 * np.sin(2 * np.pi * at / 86_400.0)) / 1.4
    found = forecast(
        LoadHistory(0.0, {name: rates if name == "requests" else rates * np.nan for name in LOADS}), growth=1.2
    )
    assert found is not None
    s = replace(c.situation, horizon=Horizon(found, c.situation.windows, 2400.0, 3600.0))
    begin, predictor = time.thread_time(), Tally(c.replayer)
    advice = recommend(s, analyze(s), CATALOGUE, predictor, capacities).recommendation
    if advice is not None and advice.fingerprint not in premortems:
        premortems[advice.fingerprint] = premortem_of(advice, s, CATALOGUE, predictor, capacities)
    return time.thread_time() - begin


def whole(c: Case) -> tuple[Shape | str, float]:
    begin = time.thread_time()
    chosen = chosen_of_all(c.situation, analyze(c.situation), CATALOGUE, c.replayer)
    return chosen, time.thread_time() - begin


def _chosen(decision: Decision) -> Shape | str:
    return decision.recommendation.proposed.shape if decision.recommendation else decision.hold[0].code


def measure(endpoints: int, compared: int, threads: int, span_s: float, cycle_s: float) -> dict[str, Any]:
    cases = [case(seed, span_s) for seed in range(endpoints)]
    screened(cases[0])
    begin, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(screened, cases))
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    slow = [whole(c) for c in cases[:compared]]
    fit = median(c.fit_s for c in cases)
    known: list[tuple[Capacities, dict[str, Premortem]]] = [(Capacities(), {}) for _ in cases]
    first, again = ([ahead(c, *k) for c, k in zip(cases, known, strict=True)] for _ in range(2))
    learned, planned = sum(first) / endpoints, sum(again) / endpoints
    often = (fit + learned) * cycle_s / REFIT_S  # what a cycle has of what is made once in six hours
    each = max(planned, cpu / endpoints) + often
    of_both = [t for _, _, t in found[:compared]]
    kinds = Counter(d.recommendation.direction if d.recommendation else d.hold[0].code for d, _, _ in found)
    return {
        "endpoints": endpoints,
        "candidates": median(len(candidates(c.situation.shape, c.situation.policy, CATALOGUE)) for c in cases),
        "threads": threads,
        "cpu_s_screened": cpu / endpoints,
        "cpu_s_p95": float(np.quantile([t for _, _, t in found], 0.95)),
        "cpu_s_whole": sum(t for _, t in slow) / compared,
        "ratio": sum(t for _, t in slow) / sum(of_both),
        "alike": sum(_chosen(d) == w for (d, _, _), (w, _) in zip(found, slow, strict=False)),
        "compared": compared,
        "predictions": sum(t.predictions for _, t, _ in found) / endpoints,
        "given_up": sum(t.given_up for _, t, _ in found) / endpoints,
        "cpu_s_fit": fit,
        "cpu_s_ahead_first": learned,
        "cpu_s_ahead": planned,
        "cpu_s_with_fit": each,
        "endpoints_per_minute": 60 * endpoints / wall,
        "minutes_for_1000": 1000 * (wall / endpoints * max(1.0, planned * endpoints / cpu) + often / threads) / 60,
        "decisions": dict(kinds),
    }


def show(got: dict[str, Any]) -> None:
    table = Table(
        title=f"{got['endpoints']} endpoints, {got['candidates']:.0f} allowed shapes each, {got['threads']} threads"
    )
    for name in ("", "CPU s an endpoint", "replayed whole", "given up early"):
        table.add_column(name, justify="left" if not name else "right")
    n = got["candidates"]
    table.add_row("every shape replayed whole", f"{got['cpu_s_whole']:.2f}", f"{2 * n - 1:.0f}", "0")
    table.add_row("screened", f"{got['cpu_s_screened']:.2f}", f"{got['predictions']:.1f}", f"{got['given_up']:.1f}")
    table.add_row("with the load to come", f"{got['cpu_s_ahead']:.2f}", "", "")
    table.add_row("the same for the first time, once in six hours", f"{got['cpu_s_ahead_first']:.2f}", "", "")
    table.add_row("a fit, once in six hours", f"{got['cpu_s_fit']:.2f}", "", "")
    console = Console()
    console.print(table)
    console.print(
        f"{got['ratio']:.1f} times less; the same choice in {got['alike']} of {got['compared']}; {got['endpoints_per_minute']:.0f} endpoints "
        f"a minute; 1,000 endpoints, fits included, in {got['minutes_for_1000']:.1f} minutes; decisions: {got['decisions']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=200)
    parser.add_argument("--whole", type=int, default=10, help="endpoints that are also replayed whole")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="6 endpoints, 20 minutes of evidence")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.quick:
        got = measure(6, 3, args.threads, 1200.0, 600.0)
    else:
        got = measure(args.endpoints, min(args.whole, args.endpoints), args.threads, 3600.0, 600.0)
    show(got)
    if args.output is not None:
        args.output.write_text(json.dumps(got, indent=2) + "\n")


if __name__ == "__main__":
    main()
