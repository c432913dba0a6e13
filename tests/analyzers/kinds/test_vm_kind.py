"""A plain VM endpoint learned from its own windows: other loads, other sizes, and the change that is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.findings import analyze
from analyzers.kinds.base import Basis, Replayer
from analyzers.kinds.vm import usl
from analyzers.kinds.vm.kind import CalibratedMachine, VmKind
from analyzers.kinds.vm.usl import Usl
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import CannotPredict
from analyzers.recommend import recommend
from analyzers.situation import Situation
from collectors.sketch import Sketch
from collectors.window import Window
from collectors.workload import Workload

#: Of one F2s: ten requests a second alone, with some contention.
TRUTH = Usl(10.0, 0.05, 0.001)
CATALOGUE = Catalogue(prices={"F2s": 0.10, "F4s": 0.14, "F8s": 0.40}, cpus={"F2s": 2, "F4s": 4, "F8s": 8})
FOUR = Shape(replicas=4, size="F2s", cpus=2)
OBJECTIVE = Objective.from_mapping({"e2e_p95_s": 2.0})
VM = VmKind()


def requests(rate: float, seconds: float, seed: int) -> Workload:
    rng = np.random.default_rng(seed)
    n = max(2, int(rng.poisson(rate * seconds)))
    ones = np.ones(n, np.int64)
    return Workload(np.sort(rng.random(n)) * seconds, ones, ones, np.zeros(n, np.int64))


def hour(rates: Sequence[float], law: Usl = TRUTH, machines: int = 4) -> list[Window]:
    """A minute at each of the rates, as Azure Monitor tells it: requests and their time, no tokens, no gauges."""
    found = []
    for i, rate in enumerate(rates):
        each = usl.replay(requests(rate, 60.0, i), law, replicas=machines)
        counts = {"requests": float(each.completed), "errors": 0.0}
        sketches = {"e2e_s": Sketch.from_values(each.each.e2e_s)}
        found.append(Window("chat", "azure", i * 60.0, 60.0, 1.0, machines, 0, counts, sketches, {}))
    return found


DAY = hour([4.0 + 14.0 * (1 + np.sin(i / 8)) / 2 for i in range(60)])


@pytest.fixture(scope="module")
def known() -> CalibratedMachine:
    return VM.calibrate(DAY, FOUR, None)


def basis() -> Basis:
    return Basis(FOUR, OBJECTIVE, CATALOGUE, {})


def test_the_law_comes_out_of_the_windows(known: CalibratedMachine) -> None:
    assert known.fit.best.rate_per_s == pytest.approx(TRUTH.rate_per_s, rel=0.2)
    assert (known.windows, known.cpus) == (60, 2)
    assert VM.read(known.as_dict()) == known


@pytest.mark.parametrize(
    ("shape", "law"),
    [
        (FOUR, TRUTH),
        (FOUR.with_(replicas=3), TRUTH),
        (FOUR.with_(replicas=2, size="F4s", cpus=4), replace(TRUTH, rate_per_s=20.0)),
    ],
)
def test_the_truth_lies_in_the_interval(known: CalibratedMachine, shape: Shape, law: Usl) -> None:
    work = requests(15.0, 600.0, 99)
    got = VM.predict(shape, work, known, basis())
    truth = usl.replay(work, law, replicas=shape.replicas or 1)
    for q in (0.5, 0.95):
        assert truth.distribution("e2e_s").quantile(q) in got.metrics[f"e2e_p{q * 100:g}_s"]
    assert got.extrapolates is (shape.cpus != 2)


def test_fewer_and_larger_machines_are_proposed_where_they_are_cheaper(known: CalibratedMachine) -> None:
    """2 x F4s have the cores of 4 x F2s, and cost a third less."""
    policy = Policy(min_replicas=2, max_replicas=4, sizes=["F4s"], growth=1.05, margin=0.05)
    s = Situation("chat", "azure", DAY, 0.0, 3600.0, OBJECTIVE, policy, FOUR, CATALOGUE.per_hour(FOUR))
    decision = recommend(s, analyze(s), CATALOGUE, Replayer(VM, known, DAY, basis(), 7))
    assert decision.recommendation is not None, decision.hold
    assert decision.recommendation.proposed.shape.size == "F4s"
    assert (decision.recommendation.saving_per_month or 0.0) > 20


def test_what_nothing_supports_is_refused(known: CalibratedMachine) -> None:
    with pytest.raises(CannotPredict, match="cpus") as refused:
        VM.predict(FOUR.with_(size="E9", cpus=None), requests(5.0, 60.0, 1), known, basis())
    assert refused.value.code == "UNKNOWN_CORES"
    with pytest.raises(CannotPredict) as narrow:
        VM.calibrate(hour([8.0] * 20), FOUR, None)
    assert narrow.value.code in ("USL_NARROW", "USL_FEW_POINTS", "USL_NO_FIT")
    bare = [replace(w, sketches={}) for w in DAY]
    with pytest.raises(CannotPredict, match="e2e_s") as silent:
        VM.calibrate(bare, FOUR, None)
    assert silent.value.code == "NO_EVIDENCE"
