"""A replayer deals lengths as they were recorded, at every multiple of the load, and under other windows too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.kinds.base import Basis, Replayer
from analyzers.kinds.engine.kind import EngineKind
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.prediction import Prediction
from analyzers.whatif.traffic import RecordedLengths
from collectors.workload import Workload
from tests.analyzers.test_reference import FAST
from tests.analyzers.whatif.reference_server import poisson, windows

SHAPE = Shape(replicas=1, engine={"max_num_seqs": 128})


class Watched(EngineKind):
    """The engine's kind, whose workloads are looked at in place of being replayed."""

    def __init__(self) -> None:
        self.seen: list[Workload] = []

    def predict(self, shape: Shape, workload: Workload, calibrated: Any, basis: Basis) -> Prediction:
        self.seen.append(workload)
        return Prediction({}, 0.0, "looked at")


def _together(workload: Workload) -> float:
    one, other = (values[:512].argsort().argsort() for values in (workload.prompt_tokens, workload.output_tokens))
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_its_workloads_have_them(factor: float) -> None:
    rows = windows(FAST, poisson(4.0, 600.0, 3))
    recorded = RecordedLengths(np.arange(1, 2001), np.arange(1, 2001))
    for lengths, least in ((None, -0.2), (recorded, 0.9)):
        kind = Watched()
        basis = Basis(SHAPE, Objective.from_mapping({"ttft_p95_s": 1.0}), Catalogue(), {}, lengths=lengths)
        replayer: Any = Replayer(kind, None, rows, basis, 7)  # type: ignore[type-var]
        replayer.predict(SHAPE, factor)
        replayer.under(rows[:5]).predict(SHAPE, factor)
        assert len(kind.seen) == 2
        for workload in kind.seen:
            assert _together(workload) > least
            assert (_together(workload) < 0.2) is (lengths is None)
