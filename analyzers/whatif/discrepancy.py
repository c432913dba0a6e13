"""What a fitted engine is off by, carried to where a prediction is made.

Residuals (logarithms of seen over replayed) are taken as one smooth function of the load and the lengths, a Gaussian process with
known hyperparameters (Kennedy and O'Hagan, "Bayesian calibration of computer models", 2001). Near what was seen a prediction takes
the residual of there along; far from it the correction fades and the doubt grows. A residual that is no property of the engine is not
carried as a correction, but as doubt: near where it was seen, an interval is as wide as it is. Values in, values out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from collectors.workload import Floats, Workload

#: 80 % of a normal distribution lies within so many standard deviations.
Z80 = 1.2816
#: Over which change of (running, prompt tokens, output tokens), in logarithms, residuals lose most of their likeness. The likeness falls
#: exponentially (Ornstein-Uhlenbeck): between two residuals the correction runs straight, and beyond them it fades and does not shoot on.
_REACH = np.array([3.0, 4.0, 4.0])
#: How far off the iteration model is by itself, before anything was seen (standard deviation of the logarithm), where it is rough: of
#: mixtures of experts, whose share that is read grows with the batch, and of models of which nothing is known.
AMPLITUDE: Mapping[str, float] = {"ttft_s": 0.6, "itl_s": 0.25}

#: By how much more, for each factor of e that the load lies beyond all that was seen, where the fit shows nothing of its own error: one load
#: does not tell a base cost from a slope, nor prefill from what lies outside the engine. From sweeps of real engines, of which only the
#: lowest load was seen.
SLOPE: Mapping[str, float] = {"ttft_s": 0.12, "itl_s": 0.11}

#: What remains even where the load was seen: another day, another draw of arrivals, a load that was not steady.
FLOOR: Mapping[str, float] = {"ttft_s": 0.04, "itl_s": 0.015}
#: A residual of so many times its standard deviation is no property of this engine, but of something else that happened, or of a model
#: that did not reach its data.
_NOT_OURS = 3.0
#: Intervals hold what is unexplained with so much to spare: they are read off few draws, whose ninth decile may be no more than half
#: of the normal distribution's.
_WIDE = 2.5
#: The stated hyperparameters count as much as so many residuals.
_BELIEVED = 2.0


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
    free: float = 1.0
    """The share of it that the fit could not take up by itself: what it tells of the iteration model."""


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
    told: float
    """How many residuals' worth the fit shows of its own error."""

    def outside(self, metric: str, where: tuple[float, float, float]) -> float:
        """The standard deviation that lies in going beyond all loads that were seen."""
        running = self.points[:, 0]
        steps = max(0.0, where[0] - float(running.max()), float(running.min()) - where[0])
        return SLOPE[metric] * steps / math.sqrt(1.0 + self.told)


@dataclass(frozen=True)
class Discrepancy:
    """The residuals of a fit."""

    residuals: tuple[Residual, ...] = ()
    rough: float = 1.0
    """The iteration model's own error, as a share of ``AMPLITUDE``."""
    unexplained: tuple[Residual, ...] = ()
    """Those too large to be this engine's own."""

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
        unexplained: list[Residual] = []

        def own(rows: Sequence[Residual], metric: str) -> list[Residual]:
            found = [replace(r, metric=metric) for r in rows]
            small = [abs(r.value) < _NOT_OURS * math.hypot(AMPLITUDE[metric], r.doubt) for r in found]
            unexplained.extend(r for r, ok in zip(found, small, strict=True) if not ok)
            return [r for r, ok in zip(found, small, strict=True) if ok]

        for rows in by_place.values():
            gaps = own([r for r in rows if r.metric == "itl_s"] or [r for r in rows if r.metric == "e2e_s"], "itl_s")
            mean = sum(r.value for r in gaps) / len(gaps) if gaps else 0.0
            starts = [replace(r, value=r.value - mean) for r in rows if r.metric == "ttft_s"]
            kept += [*gaps, *own(starts, "ttft_s")]
        return cls(tuple(kept), rough, tuple(unexplained))

    def at(self, metric: str, where: tuple[float, float, float]) -> tuple[float, float]:
        """(mean, standard deviation) of the logarithm of truth over replay, for ``metric`` at ``where``; the floor is in it."""
        amplitude, floor = self.rough * AMPLITUDE[metric], FLOOR[metric]
        known = self._known.get(metric)
        if known is None:
            return 0.0, math.hypot(amplitude, floor, self._beyond(metric, where, 0.0))
        near = amplitude**2 * _likeness(known.points, np.array([where]))[:, 0]
        variance = amplitude**2 - float(near @ known.inverse @ near)
        mean = float(near @ known.inverse @ known.values)
        doubt = known.scale * math.hypot(math.sqrt(max(variance, 0.0)), floor)
        return mean, math.hypot(doubt, known.outside(metric, where), self._beyond(metric, where, mean))

    def _beyond(self, metric: str, where: tuple[float, float, float], mean: float) -> float:
        """The standard deviation under which an 80 % interval about ``mean`` at ``where`` holds what is unexplained near it.

        An engine that is slower by a factor than its model runs so many times as many sequences: within that factor it is the same load.
        """
        if not any(r.metric == metric for r in self.unexplained):
            return 0.0
        places: dict[tuple[float, float, float], list[float]] = {}
        for r in (*self.unexplained, *self.residuals):  # what lies beside the unexplained is no surer
            if r.metric == metric:
                places.setdefault(r.where, []).append(r.value - mean)
        found = 0.0
        for place, values in places.items():
            off = math.sqrt(
                sum(v * v for v in values) / len(values)
            )  # one group of requests of many is a part of the whole
            apart = np.abs(np.subtract(where, place))
            apart[0] = max(0.0, apart[0] - off)
            alike = float(_likeness(apart[None, :], np.zeros((1, 3)))[0, 0])
            found = max(found, _WIDE * off / Z80 * alike)
        return found

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
            told = sum(r.free for r in rows)
            scale = math.sqrt((_BELIEVED + float((left_out**2).sum())) / (_BELIEVED + told))
            out[metric] = _MetricResiduals(points, values, inverse, scale, told)
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        parts = {"residuals": self.residuals, "unexplained": self.unexplained}
        rows = {
            name: [[r.metric, list(r.where), r.value, r.doubt, r.free] for r in found] for name, found in parts.items()
        }
        return {"rough": self.rough, **rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Discrepancy:
        """The reverse of ``as_dict``."""
        residuals, unexplained = (
            tuple(Residual(m, (w[0], w[1], w[2]), v, d, f) for m, w, v, d, f in data.get(name, ()))
            for name in ("residuals", "unexplained")
        )
        return cls(residuals, data["rough"], unexplained)


def _likeness(one: Floats, other: Floats) -> Floats:
    apart = (one[:, None, :] - other[None, :, :]) / _REACH
    return np.asarray(np.exp(-np.sqrt((apart**2).sum(axis=2))))
