"""Whether attested savings hold: worlds whose truth is known, and how often the claimed 80 % interval contains what was really saved.

In each world a fixed fleet serves a few hours of random traffic on an engine that nobody is told; before, an autoscaler set the count.
Flyball sees the windows of what served, and attests through its own store what was saved. The truth is the hidden engine under the
very same requests with that autoscaler: its replica-hours, and the minutes in which the objective was missed.

    python benchmarks/savings.py --seeds 40 --output savings.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from actuators.shape import Autoscaling, Operation, Plan, Shape
from agent import attest
from agent.settings import Settings
from agent.store import Store, changes, control, fleet, savings, windows
from analyzers.autoscaling.case import QUANTILE, play
from analyzers.interval import wilson
from analyzers.money import Tariff, Unit
from analyzers.savings.counterfactual import CountedPolicy
from analyzers.whatif.kernel import KernelMachine
from analyzers.whatif.model import EngineModel, IterationCost
from analyzers.whatif.scaling import Hpa, MetricTarget, ScalingInput
from benchmarks.scenarios import SMALL, chat
from benchmarks.telemetry import FleetTelemetry
from benchmarks.world import Scenario
from collectors.window import Window
from collectors.workload import Floats, Workload

HOUR, MINUTE = 3600.0, 60.0
START = 1_699_941_600.0
#: Of the autoscaler before, and of the fleet that serves.
MOST, SERVING = 6, 4
USD = 2.0
COLD_START_S = 120.0
#: Standard deviation (of the logarithm) by which an engine of the world is faster or slower on the shape that was given up than its own
#: coefficients say: real engines are not of the model's kind, and are off by a median of 1 % between loads that were seen (docs/whatif.md).
MISFIT = 0.01 / 0.6745


@dataclass(frozen=True)
class SavingWorld:
    """One world: what nobody is told, and what came."""

    model: EngineModel
    work: Workload
    hours: int
    in_flight: float
    """The autoscaler's target of a replica."""
    ttft_s: float
    off: float
    """Every iteration is so many times as long on the shape that was given up."""

    @classmethod
    def of(cls, seed: int, hours: int) -> SavingWorld:
        """Coefficients a quarter off, either way; a rate that wanders by a third from hour to hour; a target from 4 to 14 in flight."""
        rng = np.random.default_rng([5, seed])
        cost = SMALL.iteration
        known = (cost.base_s, cost.per_sequence_s, cost.per_context_token_s, cost.per_prefill_token_s)
        model = replace(
            SMALL, iteration=IterationCost(*(v * f for v, f in zip(known, np.exp(rng.normal(0, 0.25, 4)), strict=True)))
        )
        knots = rng.normal(0.0, 0.35, hours + 2)

        def rate(at: Floats) -> Floats:
            found: Floats = np.clip(8.0 * np.exp(np.interp(at / HOUR, np.arange(knots.size), knots)), 1.0, 24.0)
            return found

        off = math.exp(float(np.random.default_rng([9, seed]).normal(0.0, MISFIT)))
        work = chat(rate, 24.0)(hours / 24.0, 1000 + seed)
        return cls(model, work, hours, float(rng.uniform(4.0, 14.0)), 1.0, off)

    @property
    def given_up(self) -> Shape:
        return Shape(size="gpu", engine=_ENGINE, autoscaling=Autoscaling(1, MOST, {"in_flight": self.in_flight}))

    def scenario(self, replicas: int) -> Scenario:
        return Scenario(
            "saving", self.work, self.hours * HOUR, self.model, self.ttft_s,
            replicas=replicas, most=MOST, cold_start_s=COLD_START_S,
        )  # fmt: skip


_ENGINE = {"max_num_seqs": SMALL.limits.max_num_seqs}


class _Serving:
    """A fixed count, and the windows that are seen of it."""

    interval_s = 15.0

    def __init__(self, machine: KernelMachine, world: SavingWorld) -> None:
        self._telemetry = FleetTelemetry(machine, world.work)
        self.windows: list[Window] = []

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        self._telemetry.look(seen.at_s, seen.kv_usage)
        if seen.at_s % MINUTE == 0:
            span = self._telemetry.span("chat", START)
            self.windows.append(
                Window(
                    "chat",
                    "vllm",
                    span.start,
                    MINUTE,
                    1.0,
                    targets=1,
                    counts=span.counts,
                    sketches=span.sketches,
                    gauges=span.gauges,
                    facts=span.facts,
                )
            )
        return SERVING, state


def seen(world: SavingWorld) -> list[Window]:
    """What served, as telemetry has it."""
    made: list[_Serving] = []

    def make(machine: KernelMachine) -> _Serving:
        made.append(_Serving(machine, world))
        return made[-1]

    play(world.scenario(SERVING), make)
    return [w for w in made[0].windows if w.end <= START + world.hours * HOUR]


def truth(world: SavingWorld, off: float, end: float) -> tuple[float, float]:
    """US dollars that the autoscaled fleet would have cost after the first hour, and seconds in which the objective would have been missed."""
    model = replace(world.model, iteration=world.model.iteration.scaled(off))
    policy = CountedPolicy(Hpa((MetricTarget("in_flight", world.in_flight),), most=MOST))
    played = play(replace(world.scenario(MOST), model=model), lambda _: policy)
    bounds = np.searchsorted(world.work.arrival_s, np.arange(HOUR, end + 1.0, MINUTE), "left")
    late = [
        (played.ttft_s[a:b] > world.ttft_s).sum() > b - a - math.ceil(QUANTILE * (b - a))
        for a, b in pairwise(bounds)
        if b > a
    ]
    return policy.replica_s(MOST, HOUR, end) / HOUR * USD, MINUTE * float(sum(late))


def claimed(world: SavingWorld, rows: Sequence[Window], folder: Path) -> dict[str, Any]:
    """What Flyball attests, through a store of its own."""
    settings = Settings.model_validate(
        {
            "database": f"sqlite:///{folder}/flyball.db",
            "sizes": {"gpu": {"usd_per_replica_hour": USD}},
            "savings": {"period_s": HOUR * (world.hours - 1)},
            "endpoints": [
                {
                    "name": "chat",
                    "url": "http://simulated.invalid",
                    "objective": {"ttft_p95_s": world.ttft_s},
                    "policy": {"cold_start_s": COLD_START_S},
                }
            ],
        }
    )
    period = settings.savings.period_s
    shift = -(-START // period) * period - START - HOUR  # the second hour begins a period
    moved = [replace(w, start=w.start + shift) for w in rows]
    at, now = START + shift + HOUR, START + shift + world.hours * HOUR + attest.SETTLES_S
    after = Shape(replicas=SERVING, size="gpu", engine=_ENGINE)
    step = Operation("become", {}, 60.0, "become")
    plan = Plan("chat", "simulated", world.given_up, after, "1", (step,), restarts=False, downtime_s=0.0, way_back="")
    store = Store(settings.database)
    store.upgrade()
    with store.write() as db:
        windows.save(db, moved, {"chat": Tariff.of({Unit.HOUR: USD * SERVING})})
        fleet.saw_shape(
            db, "chat",
            {"shape": after.as_dict(), "shape_version": "1", "ready": True, "detail": "", "seen_at": now, "price_per_hour": None},
        )  # fmt: skip
        changes.start(
            db,
            {
                "id": "change", "recommendation_id": "", "endpoint": "chat", "state": "applying", "state_reason": "",
                "approved_by": "ada", "plan_hash": plan.hash, "plan": plan.as_dict(), "epoch": 1, "created_at": at - 1,
            },
        )  # fmt: skip
        changes.move(
            db, "change", from_states=["applying"], to="succeeded", now=at, reason="", applied_at=at, finished_at=at
        )
        lead = control.acquire(db, "leader", "benchmark", 1e9)
    assert lead is not None
    attest.cycle(store, settings, now, lead)
    with store.read() as db:
        (row,) = savings.listed(db)
    store.close()
    return attest.view(row)


def judge(seed: int, hours: int) -> dict[str, Any]:
    """One world: what was claimed, what was true, and whether the one holds the other."""
    world = SavingWorld.of(seed, hours)
    with tempfile.TemporaryDirectory(prefix="flyball-") as folder:
        rows = seen(world)
        row = claimed(world, rows, Path(folder))
    end = rows[-1].end - START
    usd, missed_s = truth(world, world.off, end)
    really, alike = (each - row["spent_usd"] for each in (usd, truth(world, 1.0, end)[0]))
    return {
        "seed": seed,
        "requests": len(world.work),
        "saved_usd": row["saved_usd"],
        "really_saved_usd": really,
        "held": row["saved_usd"]["low"] <= really <= row["saved_usd"]["high"],
        "held_of_the_models_kind": row["saved_usd"]["low"] <= alike <= row["saved_usd"]["high"],
        "would_miss_s": row["would_miss_s"],
        "really_would_miss_s": missed_s,
        "minutes_held": row["would_miss_s"]["low"] <= missed_s <= row["would_miss_s"]["high"],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often the intervals held, with the 95 % interval of that share, and how wide they were."""
    held, n = sum(r["held"] for r in rows), len(rows)
    some = [r for r in rows if r["would_miss_s"]["high"] > 0 or r["really_would_miss_s"] > 0]
    width = [(r["saved_usd"]["high"] - r["saved_usd"]["low"]) / (r["really_saved_usd"] or 1.0) for r in rows]
    return {
        "worlds": n,
        "held": held / n,
        "held_between": wilson(held, n),
        "held_of_the_models_kind": sum(r["held_of_the_models_kind"] for r in rows) / n,
        "width_of_saving": float(np.median(np.abs(width))),
        "worlds_with_misses": len(some),
        "minutes_held": sum(r["minutes_held"] for r in some) / len(some) if some else None,
    }


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--hours", type=int, default=6)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(None if arguments is None else list(arguments))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    rows = []
    for seed in range(given.first, given.first + given.seeds):
        rows.append(judge(seed, given.hours))
        print(json.dumps(rows[-1]), flush=True)
    found = {"schema_version": 1, "summary": summary(rows), "rows": rows}
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["summary"]))


if __name__ == "__main__":
    main()
