"""What a fitted engine is off by, carried to where a prediction is made.

Residuals (logarithms of seen over replayed) are taken as one smooth function of the load and the lengths, a Gaussian process with
known hyperparameters (Kennedy and O'Hagan, "Bayesian calibration of computer models", 2001). Near what was seen a prediction takes
the residual of there along; far from it the correction fades and the doubt grows. Values in, values out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from collectors.workload import Floats, Workload

#: Over which change of (running, prompt tokens, output tokens), in logarithms, residuals lose most of their likeness. The likeness falls
#: exponentially (Ornstein-Uhlenbeck): between two residuals the correction runs straight, and beyond them it fades and does not shoot on.
_REACH = np.array([3.0, 4.0, 4.0])
#: How far off the iteration model is by itself, before anything was seen (standard deviation of the logarithm), where it is rough: of
#: mixtures of experts, whose share that is read grows with the batch, and of models of which nothing is known.
AMPLITUDE: Mapping[str, float] = {"ttft_s": 0.3, "itl_s": 0.12}

#: What remains even where the load was seen: another day, another draw of arrivals, a load that was not steady.
FLOOR: Mapping[str, float] = {"ttft_s": 0.04, "itl_s": 0.015}
#: A residual of so many times its standard deviation is no property of this engine, but of something else that happened.
_NOT_OURS = 3.0
#: The stated hyperparameters count as much as so many residuals.
_BELIEVED = 4.0


@dataclass(frozen=True, slots=True)
class Residual:
    """One metric of one observation."""

    metric: str
    where: tuple[float, float, float]
    """Logarithms: running sequences, mean prompt tokens, mean output tokens."""
    value: float
    """Logarithm of seen over replayed."""
    doubt: float
    """Relative standard error of what was seen."""


def features(workload: Workload, running: float) -> tuple[float, float, float]:
    """Where on the map of loads this is."""
    return (
        math.log(max(running, 0.05)),
        math.log(max(float(workload.prompt_tokens.mean()), 1.0)),
        math.log(max(float(workload.output_tokens.mean()), 1.0)),
    )


@dataclass(frozen=True, slots=True)
class _MetricResiduals:
    """The residuals of one metric."""

    points: Floats
    values: Floats
    inverse: Floats
    """Of their covariance."""
    scale: float
    """By how much the doubt that the hyperparameters state is too small or too large: each residual foretold from the others."""


@dataclass(frozen=True)
class Discrepancy:
    """The residuals of a fit."""

    residuals: tuple[Residual, ...] = ()
    rough: float = 1.0
    """The iteration model's own error, as a share of ``AMPLITUDE``."""

    @classmethod
    def of(cls, compared: Sequence[Residual], rough: float = 1.0) -> Discrepancy:
        """From what a fit compared.

        The time to a first token is iterations above all, so its residual counts beyond the token gaps' of the same place. End-to-end
        times count for the gaps where those were not seen.
        """
        by_place: dict[tuple[float, float, float], list[Residual]] = {}
        for r in compared:
            by_place.setdefault(r.where, []).append(r)
        kept: list[Residual] = []
        for rows in by_place.values():
            gaps = [r for r in rows if r.metric == "itl_s"] or [r for r in rows if r.metric == "e2e_s"]
            gaps = [r for r in gaps if abs(r.value) < _NOT_OURS * math.hypot(AMPLITUDE["itl_s"], r.doubt)]
            mean = sum(r.value for r in gaps) / len(gaps) if gaps else 0.0
            kept += [replace(r, metric="itl_s") for r in gaps]
            starts = [replace(r, value=r.value - mean) for r in rows if r.metric == "ttft_s"]
            kept += [r for r in starts if abs(r.value) < _NOT_OURS * math.hypot(AMPLITUDE["ttft_s"], r.doubt)]
        return cls(tuple(kept), rough)

    def at(self, metric: str, where: tuple[float, float, float]) -> tuple[float, float]:
        """(mean, standard deviation) of the logarithm of truth over replay, for ``metric`` at ``where``; the floor is in it."""
        amplitude, floor = self.rough * AMPLITUDE[metric], FLOOR[metric]
        known = self._known.get(metric)
        if known is None:
            return 0.0, math.hypot(amplitude, floor)
        near = amplitude**2 * _likeness(known.points, np.array([where]))[:, 0]
        variance = amplitude**2 - float(near @ known.inverse @ near)
        return float(near @ known.inverse @ known.values), known.scale * math.hypot(
            math.sqrt(max(variance, 0.0)), floor
        )

    @cached_property
    def _known(self) -> Mapping[str, _MetricResiduals]:
        out = {}
        for metric in {r.metric for r in self.residuals}:
            rows = [r for r in self.residuals if r.metric == metric]
            points, values = np.array([r.where for r in rows]), np.array([r.value for r in rows])
            noise = np.hypot(np.array([r.doubt for r in rows]), FLOOR[metric])
            covariance = (self.rough * AMPLITUDE[metric]) ** 2 * _likeness(points, points) + np.diag(noise**2)
            inverse = np.asarray(np.linalg.inv(covariance), np.float64)
            # Each residual, foretold from the others: closed form in Rasmussen and Williams, "Gaussian Processes", 5.4.2.
            left_out = (inverse @ values) / np.sqrt(np.diag(inverse))
            scale = math.sqrt((_BELIEVED + float((left_out**2).sum())) / (_BELIEVED + len(rows)))
            out[metric] = _MetricResiduals(points, values, inverse, scale)
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"rough": self.rough, "residuals": [[r.metric, list(r.where), r.value, r.doubt] for r in self.residuals]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Discrepancy:
        """The reverse of ``as_dict``."""
        rows = data["residuals"]
        return cls(tuple(Residual(m, (w[0], w[1], w[2]), v, d) for m, w, v, d in rows), data["rough"])


def _likeness(one: Floats, other: Floats) -> Floats:
    apart = (one[:, None, :] - other[None, :, :]) / _REACH
    return np.asarray(np.exp(-np.sqrt((apart**2).sum(axis=2))))
