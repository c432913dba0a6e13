"""What is chosen with screening is what a whole replay of every allowed shape would have chosen, over many situations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.findings import analyze
from analyzers.hardware import ACCELERATORS
from analyzers.kinds.base import Basis, Replayer
from analyzers.kinds.engine.kind import EngineKind
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy, candidates
from analyzers.prediction import Bar, Miss, Prediction
from analyzers.recommend import Decision, recommend
from analyzers.recommendation import Recommendation
from analyzers.situation import Situation
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.fit import PosteriorDraw
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.window import Window
from collectors.workload import Workload
from tests.analyzers.exhaustive import chosen_of_all
from tests.analyzers.whatif.reference_server import poisson, windows

MODEL = EngineModel(IterationCost(0.02, 4e-4, 3e-7, 1e-4, 2e-9), EngineLimits(16, 2048, 60_000))
CATALOGUE = Catalogue(
    prices={"small": 1.0, "big": 2.5},
    built={"small": ("L4", 1), "big": ("L40S", 1)},
    hardware={name: ACCELERATORS[name] for name in ("L4", "L40S")},
)


@dataclass
class Counted:
    """A predictor that counts what it is asked."""

    of: Replayer
    whole: int = 0
    screened: int = 0
    given_up: list[Miss] = field(default_factory=list)

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue, /) -> list[Shape]:
        return self.of.knobs(shape, policy, catalogue)

    def predict(self, shape: Shape, factor: float) -> Prediction:
        self.whole += 1
        return self.of.predict(shape, factor)

    def screen(self, shape: Shape, factor: float, bar: Bar) -> Prediction | Miss:
        self.screened += 1
        got = self.of.screen(shape, factor, bar)
        if isinstance(got, Miss):
            self.given_up.append(got)
        return got

    def under(self, windows: Sequence[Window]) -> Replayer:
        return self.of.under(windows)

    def changed(self, change: Callable[[Workload], Workload]) -> Replayer:
        return self.of.changed(change)


def calibrated(spread: float, seed: int) -> CalibratedEngine:
    rng = np.random.default_rng(seed)
    drawn = [
        PosteriorDraw(
            IterationCost(
                *(v * float(np.exp(spread * z)) for v, z in zip(MODEL.iteration.as_tuple(), row, strict=True))
            ),
            0.0,
        )
        for row in rng.standard_normal((16, 8))
    ]
    return CalibratedEngine("key", "L4", 1, MODEL, 0.0, 0.0, tuple(drawn), 60, 5000.0, (1.0, 16.0))


def situation(seed: int) -> tuple[Situation, Replayer]:
    """One endpoint with its own load, shape, limits, margin and doubt."""
    rng = np.random.default_rng(seed)
    replicas = int(rng.choice([1, 1, 2, 3]))
    slots = int(rng.choice([8, 16, 32]))
    shape = Shape(
        replicas=replicas, size="small", accelerator="L4", accelerator_count=1, engine={"max_num_seqs": slots}
    )
    work = poisson(float(rng.uniform(0.1, 2.5)), 600.0, seed, prompt=300.0, output=100.0)
    model = MODEL.with_limits(max_num_seqs=slots)
    seen: list[Window] = windows(model, work)
    limits = {"ttft_p95_s": float(rng.uniform(0.2, 4.0)), "itl_p95_s": float(rng.uniform(0.025, 0.06))}
    policy = Policy(
        max_replicas=int(rng.integers(replicas, 7)),
        sizes=["big"] if rng.random() < 0.5 else [],
        engine={"max_num_seqs": [8, 16, 32]} if rng.random() < 0.6 else {},
        margin=float(rng.uniform(0.0, 0.3)),
        growth=float(rng.uniform(1.0, 1.5)),
        min_requests=10,
    )
    s = Situation(
        "chat", "vllm", seen, seen[0].start, seen[-1].end, Objective.from_mapping(limits), policy, shape,
        CATALOGUE.per_hour(shape),
    )  # fmt: skip
    error = {name: float(rng.uniform(0.02, 0.3)) for name in limits} if rng.random() < 0.5 else {}
    known = calibrated(float(rng.uniform(0.02, 0.2)), seed)
    replayer = Replayer(EngineKind(), known, seen, Basis(shape, s.objective, CATALOGUE, error), seed)
    return s, replayer


def outcome(decision: Decision) -> Shape | str:
    if decision.recommendation is None:
        return decision.hold[0].code
    return decision.recommendation.proposed.shape


def doubted(advice: Recommendation) -> bool:
    return bool({"MODEL_TOO_HOPEFUL", "SETTINGS_CONTRADICT"} & {reason.code for reason in advice.reasons})


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.real) for first in (12, 24, 36))])
def test_the_choice_is_that_of_a_whole_replay_of_all(first: int) -> None:
    for seed in range(first, first + 12):
        s, replayer = situation(seed)
        findings, counted = analyze(s), Counted(replayer)
        decision = recommend(s, findings, CATALOGUE, counted)
        if decision.recommendation is not None and doubted(decision.recommendation):
            continue  # one engine made this telemetry, and the shape states several: rightly, no replay is believed
        assert outcome(decision) == chosen_of_all(s, findings, CATALOGUE, replayer), f"seed {seed}"
        assert counted.whole + counted.screened <= 1 + 2 * len(candidates(s.shape, s.policy, CATALOGUE))


def test_every_kind_of_decision_is_among_them() -> None:
    """Otherwise the comparison above would say little: already of the first twelve."""
    seen: set[str] = set()
    for seed in range(12):
        s, replayer = situation(seed)
        decision = recommend(s, analyze(s), CATALOGUE, replayer)
        seen.add(decision.recommendation.direction if decision.recommendation else decision.hold[0].code)
    assert {"grow", "shrink", "RIGHT_SIZE"} <= seen, seen
