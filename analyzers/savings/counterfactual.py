"""The traffic that came, replayed on another shape: the replicas that would have run, and the time in which the objective was missed.

Each member of the ensemble sees a draw of its own of the traffic, because windows tell how many requests came and not when; the
engine is doubted as predictions doubt it. Pure values in and out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from actuators.shape import Shape
from analyzers.autoscaling.own import fleet_of
from analyzers.hardware import Hardware
from analyzers.objective import Objective, Target
from analyzers.prediction import CannotPredict, Interval
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.outlook import Member, look
from analyzers.whatif.predict import PRIOR_ERROR, PRIOR_ERROR_OTHER, Ensemble, replicas_of
from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from analyzers.whatif.traffic import arrival_rates, workload_from_windows
from collectors.window import Window
from collectors.workload import Floats, Workload

#: Draws of the traffic. Each is replayed with two members of the ensemble, whose doubts are each other's opposite.
TRAFFIC_DRAWS = 8
#: An autoscaler has so long to come from its most replicas to those that the load needs, before what it runs is counted.
SETTLE_S = 3600.0
#: Requests in one draw of the traffic at most. Beyond it, hours are taken evenly over the period.
MOST_REQUESTS = 1_000_000
#: A median absolute error as a standard deviation of a normal distribution.
_MEDIAN = 0.6745
#: What a replay tells of each request. A request's gaps between tokens are told by their mean.
_OF_REQUESTS = {"ttft_s": "ttft_s", "e2e_s": "e2e_s", "tpot_s": "tpot_s", "itl_s": "tpot_s", "queue_s": "queue_s"}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What a shape would have done with the traffic of some windows."""

    replica_hours: Interval | None
    """Over those windows. None: not known, and ``unknown`` says why."""
    missed_s: Interval | None
    """Seconds of those windows in which the objective would have been missed. None: not known."""
    requests: int = 0
    """In one draw of the traffic."""
    replays: int = 0
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    """What is not known, and why; a sentence each."""


@dataclass(frozen=True, slots=True)
class ReplayBasis:
    """What is replayed from, beside the windows."""

    calibrated: CalibratedEngine
    present: Shape
    """What it was calibrated on."""
    objective: Objective
    hardware: Mapping[str, Hardware]
    error: Mapping[str, float]
    """The ledger's median relative error by metric."""
    cold_start_s: float
    seed: int


def replayed(shape: Shape, windows: Sequence[Window], before: Sequence[Window], basis: ReplayBasis) -> Counterfactual:
    """``shape`` under the traffic of ``windows``, all of one endpoint, in order; ``before``: those of the hour before, as far as seen.

    Windows that were not observed, or that do not know their requests, must be left out. Raises CannotPredict.
    """
    if shape.schedule is not None:
        raise CannotPredict("SCHEDULE", f"{shape.label()}: a schedule that was given up is counted, and not replayed")
    fleet = fleet_of(shape, basis.cold_start_s) if shape.replicas is None else None
    one = shape if fleet is None else replace(shape, replicas=1, autoscaling=None)
    ensemble = Ensemble.of(one, basis.calibrated, basis.present, basis.hardware)
    lead = list(before) if fleet is not None else []
    chosen, share = _evenly(windows)
    run = _Run(lead, chosen, ensemble, basis, fleet, 1 if fleet is not None else replicas_of(shape))
    hours, missed = [], []
    requests = replays = 0
    for counted, member in run.members():
        requests, replays = max(requests, len(counted)), replays + 1
        rng = np.random.default_rng([basis.seed, 2, replays])
        hours.append(_whole(run.replica_hours(), share, rng))
        missed.append(_whole(run.missed_s(counted, member, replays), share, rng))
    notes = list(ensemble.notes)
    if share < 1.0:
        notes.append(f"{share:.0%} of the time is replayed, in hours taken evenly, and stands for the rest")
    if any(t.metric == "itl_s" for t in basis.objective.targets):
        notes.append("of a request's gaps between tokens their mean is told")
    return Counterfactual(
        replica_hours=_decile(hours),
        missed_s=_decile(missed) if run.targets else None,
        requests=requests,
        replays=replays,
        notes=tuple(notes),
        unknown=() if run.targets else ("no target of the objective is one that a replay tells",),
    )


class _Run:
    """The replays of one question."""

    def __init__(
        self,
        lead: Sequence[Window],
        windows: Sequence[Window],
        ensemble: Ensemble,
        basis: ReplayBasis,
        fleet: ReplicaFleet | None,
        replicas: int,
    ) -> None:
        self._all = [*lead, *windows]
        self._windows = windows
        self._ensemble, self._basis = ensemble, basis
        self._edges = np.concatenate(([0.0], np.cumsum([w.duration_s for w in self._all])))
        rates = arrival_rates(self._all)
        self._came = [round(rate * w.duration_s) for rate, w in zip(rates, self._all, strict=True)]
        self._begin = float(self._edges[len(lead)])
        self._end = float(self._edges[-1])
        self._lead = len(lead)
        number = [w.start // 3600.0 for w in windows]
        self._hours = [0, *(i for i in range(1, len(number)) if number[i] != number[i - 1]), len(number)]
        """Where each hour's windows begin, and the end of the last."""
        self._replicas = replicas
        self._course = None if fleet is None or fleet.policy is None else CountedPolicy(fleet.policy)
        self._fleet = None if fleet is None else replace(fleet, policy=self._course)
        self.targets = [t for t in basis.objective.targets if t.quantile is not None and t.metric in _OF_REQUESTS]

    def members(self) -> Iterator[tuple[Workload, Member]]:
        """Each with its draw of the traffic. The best fit alone is left out: it is less doubted than the truth is."""
        draws = self._ensemble.draws
        where: dict[str, Any] = {"replicas": self._replicas} if self._fleet is None else {"fleet": self._fleet}
        for k in range(TRAFFIC_DRAWS):
            seed = self._basis.seed + k
            work = self._draw(seed)
            pair = [draws[(1 + 2 * k + i) % len(draws)] for i in range(2)]
            found = look(
                work,
                self._ensemble.model,
                (draws[0], *pair),
                self._ensemble.discrepancy,
                seed=seed,
                horizon=self._end + 600.0,
                **where,
            )
            for i, member in enumerate(found):
                if i:
                    yield work, member
                if self._course is not None:
                    self._course.counts.clear()

    def _draw(self, seed: int) -> Workload:
        """The windows' traffic, with just as many requests in each as came: their number is known, their moments are not."""
        drawn = workload_from_windows(self._all, seed=seed, max_requests=10 * MOST_REQUESTS)
        rng = np.random.default_rng([seed, 1])
        bounds = np.searchsorted(drawn.arrival_s, self._edges, "left")
        which, at = [], []
        for first, last, came, since, until in zip(
            bounds, bounds[1:], self._came, self._edges, self._edges[1:], strict=False
        ):
            pool = np.arange(first, last) if last > first else np.arange(len(drawn))
            more = rng.choice(pool, max(0, came - pool.size))
            which.append(np.concatenate((rng.permutation(pool)[:came], more)))
            at.append(since + np.sort(rng.random(came)) * (until - since))
        return drawn.take(np.concatenate(which), arrival_s=np.concatenate(at))

    def replica_hours(self) -> list[float]:
        """Of the latest member, provisioned in each hour."""
        moments = [float(self._edges[self._lead + i]) for i in self._hours]
        if self._course is None:
            return [self._replicas * (b - a) / 3600.0 for a, b in pairwise(moments)]
        assert self._fleet is not None
        first, course = self._fleet.replicas, self._course
        return [course.replica_s(first, a, b) / 3600.0 for a, b in pairwise(moments)]

    def missed_s(self, work: Workload, member: Member, number: int) -> list[float]:
        """Seconds of each hour's windows in which a target was missed, by the requests that arrived in each window."""
        times = member.times.by_name()
        bounds = np.searchsorted(work.arrival_s, self._edges[self._lead :], "left")
        missed = np.zeros(len(self._windows), np.bool_)
        rng = np.random.default_rng([self._basis.seed, (number - 1) // 2])
        sign = 1.0 if number % 2 else -1.0
        for target in self.targets:
            own = _spread(target, self._basis.error) * sign * float(rng.standard_normal())
            missed |= _above(times[_OF_REQUESTS[target.metric]] * math.exp(own), bounds, target)
        seconds = [w.duration_s if miss else 0.0 for w, miss in zip(self._windows, missed, strict=True)]
        return [math.fsum(seconds[a:b]) for a, b in pairwise(self._hours)]


class CountedPolicy:
    """A policy whose wishes are kept."""

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        self.counts: list[tuple[float, int]] = []
        """(at_s, replicas ready and starting from then on)"""

    @property
    def interval_s(self) -> float:
        return self._policy.interval_s

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        wanted, state = self._policy(seen, state)
        if not self.counts or self.counts[-1][1] != wanted:
            self.counts.append((seen.at_s, wanted))
        return wanted, state

    def replica_s(self, first: int, begin: float, end: float) -> float:
        """Replica-seconds from ``begin`` to ``end``, of a fleet that starts with ``first``."""
        moments = [0.0, *(at for at, _ in self.counts), math.inf]
        counts = [first, *(n for _, n in self.counts)]
        return math.fsum(
            n * max(0.0, min(end, upto) - max(begin, since))
            for n, since, upto in zip(counts, moments, moments[1:], strict=False)
        )


def _above(values: Floats, bounds: np.ndarray, target: Target) -> np.ndarray:
    """(windows,) whether the target's quantile of the requests in each is above its limit. What never came is."""
    q = target.quantile
    assert q is not None
    late = np.concatenate(([0], np.cumsum(~(values <= target.limit))))
    number = np.diff(bounds)
    found: np.ndarray = np.diff(late[bounds]) > number - np.ceil(q * number)
    return found & (number > 0)


def _spread(target: Target, error: Mapping[str, float]) -> float:
    """The method's own error as a standard deviation of logarithms: the ledger's, or the prior."""
    family = target.metric.removesuffix("_s")
    measured = error.get(target.name)
    return (measured if measured is not None else PRIOR_ERROR.get(family, PRIOR_ERROR_OTHER)) / _MEDIAN


def _evenly(windows: Sequence[Window]) -> tuple[list[Window], float]:
    """Those that are replayed, and which share of the time they are."""
    rates = arrival_rates(windows)
    expected = sum(rate * w.duration_s for rate, w in zip(rates, windows, strict=True))
    if expected <= MOST_REQUESTS:
        return list(windows), 1.0
    hours: dict[float, list[Window]] = {}
    for window in windows:
        hours.setdefault(window.start // 3600.0, []).append(window)
    every = list(hours.values())
    keep = max(1, int(len(every) * MOST_REQUESTS / expected))
    chosen = [w for i in range(keep) for w in every[int((i + 0.5) * len(every) / keep)]]
    return chosen, sum(w.duration_s for w in chosen) / sum(w.duration_s for w in windows)


def _whole(parts: Sequence[float], share: float, rng: np.random.Generator) -> float:
    """The sum over all hours, of which ``parts`` are a share that was taken evenly; with a draw of the error that this makes.

    Its variance is that of a systematic sample, by the differences of neighbours. Source: K. M. Wolter, Introduction to Variance
    Estimation, section 8.2, estimator 2.
    """
    found = math.fsum(parts) / share
    if share >= 1.0 or len(parts) < 2:
        return found
    steps = np.diff(np.asarray(parts))
    variance = float((steps**2).sum()) / (2.0 * steps.size)
    n = len(parts)
    error = n / share * math.sqrt((1.0 - share) * variance / n)
    return max(0.0, found + error * float(rng.standard_normal()))


def _decile(values: Sequence[float]) -> Interval:
    low, mid, high = (float(v) for v in np.quantile(values, (0.1, 0.5, 0.9)))
    return Interval(low, mid, high)
