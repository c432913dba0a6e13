"""Look ahead with a fitted engine: the replays of its ensemble under a workload, seen as a client sees them.

Between a fit and every figure that is promised. The best fit's replay tells the load; what the fit was off by near that load
(``Discrepancy``) scales the engine; then the best fit and each draw, with its own share of that doubt, are replayed. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analyzers.whatif.discrepancy import Discrepancy, features
from analyzers.whatif.distribution import Distribution, Samples
from analyzers.whatif.engine import Replay
from analyzers.whatif.fit import PosteriorDraw, Times, client_replay
from analyzers.whatif.model import EngineModel
from collectors.workload import Workload


@dataclass(frozen=True, slots=True)
class Member:
    """One replay of the ensemble."""

    replay: Replay
    times: Times

    def distribution(self, metric: str) -> Distribution:
        """``ttft_s``, ``tpot_s``, ``e2e_s``, ``queue_s`` as a client sees them, over requests that completed; ``itl_s`` over token gaps."""
        if metric == "itl_s":
            return self.replay.itl
        values = self.times.by_name()[metric]
        return Samples(values[np.isfinite(values)])


def look(
    workload: Workload,
    model: EngineModel,
    draws: Sequence[PosteriorDraw],
    discrepancy: Discrepancy,
    *,
    closed: int | None = None,
    doubt: float = 0.0,
    seed: int = 0,
    **how: Any,
) -> Iterator[Member]:
    """Replays of ``draws``, the best fit first, one at a time: a long trace weighs much. ``how`` goes to ``engine.replay``.

    closed: clients of a closed loop, as ``Observation.closed``. doubt: added for a method (a transfer) that is less sure, as a
    standard deviation of logarithms.
    """
    rng = np.random.default_rng(seed)
    if closed is not None:
        model = model.with_limits(max_num_seqs=max(1, min(closed, model.limits.max_num_seqs)))
    first, _ = client_replay(workload, model, draws[0], closed=closed, **how)
    replicas = first.replica_s / first.simulated_s if first.simulated_s else 1.0
    where = features(workload, first.running_mean / max(replicas, 1e-3))
    (decode, decode_doubt), (start, start_doubt) = (discrepancy.at(m, where) for m in ("itl_s", "ttft_s"))
    decode_doubt, start_doubt = math.hypot(decode_doubt, doubt), math.hypot(start_doubt, doubt)
    moved = np.zeros(2)
    for i, draw in enumerate(draws):
        if i % 2:
            moved = rng.standard_normal(2)
        elif i:
            moved = -moved  # each with its opposite, as the draws are
        own, at_start = decode + decode_doubt * moved[0], start + start_doubt * moved[1]
        slower = replace(draw, iteration=draw.iteration.scaled(math.exp(own)))
        replayed, times = client_replay(workload, model, slower, closed=closed, **how)
        yield Member(replayed, times.with_start(math.exp(at_start)))
