"""What a tune's own loads teach of shapes that were not tried: held against an engine that is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.tuning.learn import FittedTrial, learn, promised, traffic
from analyzers.whatif.engine import Replay, replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.traffic import scaled
from collectors.workload import Floats, Workload

TRUTH = EngineModel(IterationCost(0.012, 4e-5, 8e-8, 6e-5, 3e-9), EngineLimits(16, 2048, 100_000))
SHAPE = Shape(
    replicas=1, accelerator="H100", engine={"max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_tokens": 100_000}
)
OBJECTIVE = Objective.from_mapping({"ttft_p95_s": 0.5, "itl_p95_s": 0.1})
CATALOGUE = Catalogue()
WORK = traffic("uniform:50:300", "uniform:20:120", 0, 0)


def at(rate: float, engine: EngineModel = TRUTH, replicas: int = 1) -> Replay:
    return replay(
        scaled(WORK, rate * WORK.duration_s / len(WORK)), engine, replicas=replicas, router="least_outstanding"
    )


def step(found: Replay, rate: float | None, **more: Any) -> dict[str, Any]:
    """As a trial keeps a load."""
    times = found.per_request
    values = {
        "ttft_s": times.ttft_s, "e2e_s": times.e2e_s, "tpot_s": times.tpot_s[times.tpot_s >= 0],
        "itl_s": times.tpot_s[times.tpot_s >= 0],
        "prompt_length": WORK.prompt_tokens[: found.requests], "output_length": WORK.output_tokens[: found.requests],
    }  # fmt: skip
    figures = {name: _spread(several) for name, several in values.items()}
    own = {
        "sent": found.requests, "completed": found.completed, "errors": {}, "measured_s": found.simulated_s,
        "requests_per_s": found.completed / found.simulated_s,
    }  # fmt: skip
    return {"kind": "rate", "users": None, "rate": rate, "invalid": None, "figures": {**figures, **own}} | more


def _spread(values: Any) -> dict[str, float]:
    found: Floats = np.asarray(values, float)
    return {
        "mean": float(found.mean()),
        **{f"p{q}": float(np.percentile(found, q)) for q in (50, 90, 95, 99)},
    }


def single() -> dict[str, Any]:
    """One user after the other: nobody meets another one."""
    n = 40
    alone = Workload(
        np.arange(n) * 60.0, WORK.prompt_tokens[:n], WORK.output_tokens[:n], np.zeros(n, np.int64)
    )  # far apart
    made = step(replay(alone, TRUTH), None, kind="single", users=1)
    made["figures"]["requests_per_s"] = 1.0 / made["figures"]["e2e_s"]["mean"]
    return made


def own_limit(engine: EngineModel, replicas: int = 1) -> float:
    """The highest rate at which the known engine itself keeps the objective."""

    def meets(rate: float) -> bool:
        found = at(rate, engine, replicas)
        p95 = found.ttft.quantile(0.95), found.itl.quantile(0.95)
        assert None not in p95
        return not found.saturated and (p95[0] or 0.0) <= 0.5 and (p95[1] or 0.0) <= 0.1

    low, high = 0.1, 200.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


@pytest.fixture(scope="module")
def known() -> FittedTrial:
    found = learn([single(), step(at(4.0), 4.0), step(at(7.0), 7.0)], SHAPE, "someone/unheard-of", CATALOGUE)
    assert found is not None
    return found


@pytest.mark.parametrize(("slots", "replicas"), [(16, 1), (4, 1), (8, 1), (32, 1), (8, 2)])
def test_a_promised_limit_is_the_known_engines_own(known: FittedTrial, slots: int, replicas: int) -> None:
    shape = SHAPE.with_(replicas=replicas, engine={"max_num_seqs": slots})
    told = promised(known, shape, WORK, OBJECTIVE, CATALOGUE)
    assert told == pytest.approx(own_limit(TRUTH.with_limits(max_num_seqs=slots), replicas), rel=0.1)


def test_loads_of_two_replicas_teach_what_one_does() -> None:
    two = [single(), step(at(8.0, replicas=2), 8.0), step(at(14.0, replicas=2), 14.0)]
    found = learn(two, SHAPE.with_(replicas=2), "someone/unheard-of", CATALOGUE)
    assert found is not None
    assert promised(found, SHAPE, WORK, OBJECTIVE, CATALOGUE) == pytest.approx(own_limit(TRUTH), rel=0.1)


def test_loads_that_say_nothing_teach_nothing() -> None:
    late = step(at(4.0), 4.0, invalid="the client was the bottleneck")
    unanswered = step(at(4.0), 4.0)
    unanswered["figures"]["completed"] = 0
    assert learn([], SHAPE, "m", CATALOGUE) is None
    assert learn([late, unanswered], SHAPE, "m", CATALOGUE) is None


def test_what_no_rate_can_meet_has_no_limit(known: FittedTrial) -> None:
    assert promised(known, SHAPE, WORK, Objective.from_mapping({"itl_p95_s": 0.001}), CATALOGUE) is None


def test_the_traffic_has_the_tunes_own_lengths() -> None:
    work = traffic("fixed:30", "fixed:7", 12, 3)
    assert set(work.prompt_tokens) == {42}
    assert set(work.output_tokens) == {7}
    assert len(work) / work.duration_s == pytest.approx(1.0, rel=0.1)
    assert np.array_equal(traffic("fixed:30", "fixed:7", 12, 3).arrival_s, work.arrival_s)
    assert not np.array_equal(traffic("fixed:30", "fixed:7", 12, 4).arrival_s, work.arrival_s)
