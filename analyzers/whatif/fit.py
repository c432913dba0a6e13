"""Fit an engine to what was seen of it: coefficients that replay the seen traffic to the seen latencies.

Each observation's traffic is replayed, and the means of its parts are compared with what was seen. The coefficients that agree best
are found by robust least squares in their logarithms, so that each stays positive, drawn towards a prior where the evidence says
little. Replaying, instead of a formula for the mean, takes the wait for the running iteration, chunks, limits and the batch's own
fluctuation into account as the later prediction does.

Two more unknowns lie between the engine and its client: ``overhead_s``, a fixed time (network, tokenizer), and ``lag``, iterations
that a first token is late by. An engine that schedules the next iteration while one runs (vLLM's asynchronous scheduling) has a lag
of one: what arrives now is first seen by the iteration after the next.

What the coefficients cannot express (graphs captured for some batch sizes, experts that are not drawn alike) remains as residuals. They
are smooth in the load, so a prediction near what was seen takes the residual of there along (``Discrepancy``).

The ensemble is drawn from the fit's posterior in the linear approximation (randomised maximum likelihood: Oliver, He and Reynolds
1996): noise of the size seen in the data, and priors of their own width. Owns no reading of windows or files.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy  # which imports its parts when they are first used

from analyzers.whatif.discrepancy import Z80, Discrepancy, Residual, features
from analyzers.whatif.engine import Replay, RequestOutcomes, outcomes, replay
from analyzers.whatif.model import EngineModel, IterationCost
from collectors.workload import Floats, Ints, Workload

DRAWS = 24
#: Indices of the unknowns: the coefficients in ``IterationCost``'s order, then these. All are logarithms but ``lag``; ``CACHE`` is that of
#: true over stated size.
PREFILL_BASE, EXPERT_READ, EXPERT_SHARE, OVERHEAD, LAG, CACHE = 5, 6, 7, 8, 9, 10
UNKNOWNS = 11
#: The logarithm of a coefficient that this engine does not have.
ABSENT = math.log(1e-12)
_MOST_SHARE = math.log(0.9)
#: Lag's prior: no more is known than that engines do or do not schedule ahead.
LAG_CENTRE, LAG_DOUBT = 0.5, 0.6
_LAG_MOST = 3.0
#: The logarithm of the ninth decile of end-to-end times over the first. Under random arrivals the load fluctuates, and times with it:
#: one steady load alone tells how steeply the engine slows.
SPREAD = "e2e_spread"
#: Relative doubt of a first token's time that is all waiting.
_QUEUE_DOUBT = 0.3
#: The greatest residual (root mean square of logarithms) of a fit that reached its data. It is half the width of the 80 % interval
#: that a method's unmeasured error alone gives (25 % for TTFT, 15 % for others; ``predict.PRIOR_ERROR``): beyond it, a prediction of the
#: very data would miss them.
MISFIT: Mapping[str, float] = {"ttft_s": 0.475, "itl_s": 0.285, "e2e_s": 0.285}
#: Where a fit that did not reach its data begins anew: engines so many times as slow as the prior's, in all coefficients.
_FACTORS = (0.2, 1.0, 5.0)
_SPEED = np.array([1.0] * EXPERT_SHARE + [0.0] * (UNKNOWNS - EXPERT_SHARE))
#: Overheads that are tried, from this one up to the longest time that was seen.
_LEAST_OVERHEAD_S, _OVERHEADS = 1e-4, 40
#: Another valley is taken where its cost is lower than by this factor, and left alone where a few steps do not bring it so near.
_CLEARLY, _PROMISING = 0.8, 2.0
#: An overhead that is larger by this factor (a logarithm) is another one.
_FAR = math.log(3.0)
#: A single client is another regime, with kernels of its own for a batch of one: what it saw holds for others to within this.
_ALONE: Mapping[str, float] = {"itl_s": 0.1, "e2e_s": 0.1, "ttft_s": 0.15, SPREAD: 0.0}
#: Steps of the solver at most; and to see which of several starts is the best.
_STEPS, _ROUGH_STEPS = 20, 6
#: Beyond so many requests in one evaluation, of at least so many loads, only one of so many points on the solver's way has a Jacobian by
#: differences, which takes an evaluation for each unknown. On few requests there is little to save, and on few loads the valley is flat.
_MANY_REQUESTS, _MANY_LOADS, _FRESH = 10_000, 8, 3
_STEP = 0.03  # replays are piecewise smooth: a smaller difference would see their steps


@dataclass(frozen=True, slots=True)
class PosteriorDraw:
    """One set of unknowns that the data allow."""

    iteration: IterationCost
    overhead_s: float
    lag: float = 0.0
    """Iterations that a first token is late by."""
    cache: float = 1.0
    """Size of the KV cache over what the limits state."""


@dataclass(frozen=True, slots=True)
class RequestGroup:
    """Some requests of an observation, and what was seen of them on average: metric -> (seconds, relative standard error)."""

    which: slice | Ints
    seen: Mapping[str, tuple[float, float]]
    """``itl_s`` (mean of all their token gaps), ``ttft_s``, ``e2e_s``, and ``SPREAD``, which is a logarithm and no seconds."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Traffic of one replica, and what was seen of it."""

    workload: Workload
    parts: tuple[RequestGroup, ...]
    running: float
    """Mean sequences in the batch."""
    closed: int | None = None
    """Requests in flight at most, by their clients: what arrives beyond waits outside, and that wait is not in what was seen. A closed
    loop of so many clients is a workload that arrives whole at 0."""
    slots: int | None = None
    """Sequences at most in the batch where that is what is known (a full batch); the engine's own limit holds as well."""
    without_queue: bool = False
    """Seen times do not hold the wait for admission."""
    inside: bool = False
    """Seen in the engine itself, without ``overhead_s``."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Engine limits of this observation, where they differ."""
    timeout_s: float | None = None
    """Clients give up after so long."""


@dataclass(frozen=True, slots=True)
class Times:
    """(n,) seconds as a client sees them, one entry a request; not a number where it never came."""

    ttft_s: Floats
    e2e_s: Floats
    queue_s: Floats
    """The part of ``ttft_s`` that is waiting for admission."""
    gaps: Floats
    """Token gaps of each request, as a count."""

    @property
    def tpot_s(self) -> Floats:
        return np.where(self.gaps > 0, (self.e2e_s - self.ttft_s) / np.maximum(self.gaps, 1.0), np.nan)

    def by_name(self) -> dict[str, Floats]:
        """``ttft_s``, ``tpot_s``, ``e2e_s``, ``queue_s``: (n,) each."""
        return {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s, "queue_s": self.queue_s}

    def with_start(self, factor: float) -> Times:
        """The same, with the time from admission to the first token ``factor`` times as long."""
        more = (self.ttft_s - self.queue_s) * (factor - 1.0)
        return replace(self, ttft_s=self.ttft_s + more, e2e_s=self.e2e_s + more)

    def mean(self, metric: str, which: slice | Ints) -> float | None:
        """Over requests; ``itl_s`` over their token gaps. None where nothing completed."""
        ttft, e2e, gaps = self.ttft_s[which], self.e2e_s[which], self.gaps[which]
        done = np.isfinite(e2e)
        if not done.any():
            return None
        if metric == "itl_s":
            return float((e2e[done] - ttft[done]).sum() / gaps[done].sum()) if gaps[done].sum() else None
        if metric == SPREAD:
            low, high = np.quantile(e2e[done], (0.1, 0.9))
            return float(math.log(high / low))
        return float((ttft if metric == "ttft_s" else e2e)[done].mean())


@dataclass(frozen=True, slots=True)
class Prior:
    """Where the unknowns are believed to be. (11,) each: centre (logarithms, and the lag) and standard deviation; 0: it is known."""

    centre: Floats
    doubt: Floats
    rough: float = 1.0
    """The iteration model's own error on this engine: ``Discrepancy.rough``."""


@dataclass(frozen=True, slots=True)
class EngineFit:
    """What a fit found."""

    best: PosteriorDraw
    draws: tuple[PosteriorDraw, ...]
    theta: Floats
    """(11,) the best unknowns, as in ``Prior.centre``."""
    spread: Floats
    """(11,) their posterior standard deviations."""
    discrepancy: Discrepancy
    residuals: Mapping[str, float]
    """Root mean square relative error by metric, before the discrepancy is taken along."""
    misfit: Mapping[str, float]
    """Those of them that show that the fit did not reach its data."""


def client_replay(
    workload: Workload,
    model: EngineModel,
    draw: PosteriorDraw,
    *,
    closed: int | None = None,
    inside: bool = False,
    **how: Any,
) -> tuple[Replay, Times]:
    """Replay, and see it as a client does. ``closed`` and ``inside``: as in ``Observation``. ``how`` goes to ``replay``."""
    got = replay(workload, with_draw(model, draw), **how)
    return got, _client_times(got.per_request, workload.arrival_s, draw, closed=closed, inside=inside)


def _client_times(
    each: RequestOutcomes, arrival_s: Floats, draw: PosteriorDraw, *, closed: int | None, inside: bool
) -> Times:
    """What was replayed, as a client sees it. Of ``draw``, only what lies between engine and client counts."""
    done = each.e2e_s >= 0
    ttft, e2e, queue = (np.where(done, v, np.nan) for v in (each.ttft_s, each.e2e_s, each.queue_s))
    if closed is not None:
        late = send_times(arrival_s, e2e, closed) - arrival_s
        ttft, e2e = ttft - late, e2e - late
        # Of a closed loop the wait in the engine is as long as its clients are many, and no chance is in it.
        queue = np.maximum(queue - late, 0.0) if arrival_s[-1] > 0 else np.zeros_like(queue)
    gaps = np.maximum(each.output_tokens - 1, 0).astype(np.float64)
    late = draw.lag * np.where(gaps > 0, (e2e - ttft) / np.maximum(gaps, 1.0), 0.0)
    late = late + (0.0 if inside else draw.overhead_s)
    return Times(ttft + late, e2e + late, queue, gaps)


def with_draw(model: EngineModel, draw: PosteriorDraw) -> EngineModel:
    """``model`` with the draw's coefficients and cache."""
    limits = model.limits
    if draw.cache != 1.0 and limits.kv_tokens is not None:
        limits = replace(limits, kv_tokens=max(limits.block_size, round(limits.kv_tokens * draw.cache)))
    return replace(model, iteration=draw.iteration, limits=limits)


def send_times(arrival_s: Floats, e2e: Floats, clients: int) -> Floats:
    """When each request was sent, of a replay in which ``clients`` fit in the batch and the others wait in the engine.

    First come, first served, and clients are interchangeable: the i-th request is sent when the (i - clients)-th of all ends, and not
    before it arrives. e2e: (n,) seconds from arrival, not a number where it never ended.
    """
    n = arrival_s.shape[0]
    ends = np.sort((arrival_s + e2e)[np.isfinite(e2e)])
    free = np.full(n, np.nan)
    free[: min(clients, n)] = 0.0
    after = ends[: max(0, n - clients)]
    free[clients : clients + after.shape[0]] = after
    return np.asarray(np.maximum(arrival_s, free))


def fit(observations: Sequence[Observation], engine: EngineModel, prior: Prior, seed: int = 0) -> EngineFit:
    """The unknowns under which ``engine`` replays ``observations`` best. ``engine``'s own coefficients do not count."""
    problem = _Problem(engine, observations, prior)
    solved = problem.solved(problem.with_best_cache(prior.centre))
    again = problem.with_best_cache(solved.theta)
    if again[CACHE] != solved.theta[CACHE]:
        solved = min(solved, problem.solved(again), key=_cost)
    # Least squares finds the valley that it starts in. A far client is in another one than a near client, with a ridge between them:
    # the longer the fixed time, the less of a first token's time is waiting, and the surer is what was seen.
    for far in (problem.with_best_overhead(at) for at in (solved.theta, prior.centre)):
        if far[OVERHEAD] > solved.theta[OVERHEAD] + _FAR:
            other = problem.solved(far, _ROUGH_STEPS)
            if other.cost < _PROMISING * solved.cost:
                other = problem.solved(other.theta)
            if other.cost < _CLEARLY * solved.cost:
                solved = other
    if _misfit(problem.compared(solved.theta)):  # not on the data: engines of another speed are tried
        starts = [problem.with_best_overhead(problem.faster(prior.centre, math.log(factor))) for factor in _FACTORS]
        best = min((problem.solved(start, _ROUGH_STEPS) for start in starts), key=_cost)
        if best.cost < solved.cost:
            solved = min(best, problem.solved(best.theta), key=_cost)
    theta = solved.theta
    draws, spread = problem.draws(theta, solved.jacobian, seed)
    shares = problem.unabsorbed(solved.jacobian)
    compared = [replace(r, free=float(share)) for r, share in zip(problem.compared(theta), shares, strict=True)]
    return EngineFit(
        best=problem.draw(theta),
        draws=draws,
        theta=theta,
        spread=spread,
        discrepancy=Discrepancy.of(compared, prior.rough),
        residuals={m: _rms([c.value for c in rows]) for m, rows in _by_metric(compared).items()},
        misfit=_misfit(compared),
    )


@dataclass(frozen=True, slots=True)
class _Solution:
    """Where one run of the solver ended."""

    theta: Floats
    cost: float
    jacobian: Floats
    """(residuals, free unknowns), plain."""


def _cost(solution: _Solution) -> float:
    return solution.cost


def _misfit(compared: Sequence[Residual]) -> dict[str, float]:
    """Metrics whose residual, root mean square, is beyond ``MISFIT`` and what the doubt of their data allows."""
    found = {}
    for metric, rows in _by_metric(compared).items():
        off, doubt = _rms([r.value for r in rows]), _rms([r.doubt for r in rows])
        if metric in MISFIT and off > math.hypot(MISFIT[metric], Z80 * doubt):
            found[metric] = off
    return found


def _by_metric(compared: Sequence[Residual]) -> dict[str, list[Residual]]:
    found: dict[str, list[Residual]] = {}
    for r in compared:
        found.setdefault(r.metric, []).append(r)
    return found


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


class _Problem:
    """The comparison of all observations as a function of the unknowns."""

    def __init__(self, engine: EngineModel, observations: Sequence[Observation], prior: Prior) -> None:
        self._prior = prior
        self._free = np.flatnonzero(prior.doubt > 0.0)
        self._observations = [(o, _engine_of(o, engine), features(o.workload, o.running)) for o in observations]
        requests = sum(len(o.workload) for o in observations)
        self._many = requests > _MANY_REQUESTS and len(observations) >= _MANY_LOADS
        self._limited = any(engine.limits.kv_tokens is not None for _, engine, _ in self._observations)
        outside = [part.seen for o in observations if not o.inside for part in o.parts]
        times = [seen["ttft_s"][0] for seen in outside if "ttft_s" in seen]
        self._longest_s, self._least_ttft_s = max(times, default=0.0), min(times, default=0.0)
        self._replays: OrderedDict[tuple[IterationCost, float], list[RequestOutcomes]] = OrderedDict()

    def draw(self, theta: Floats) -> PosteriorDraw:
        logarithms = np.delete(theta, LAG)
        values = [float(v) for v in np.insert(np.where(logarithms > ABSENT, np.exp(logarithms), 0.0), LAG, theta[LAG])]
        return PosteriorDraw(IterationCost(*values[:OVERHEAD]), *values[OVERHEAD:])

    def faster(self, theta: Floats, factor: float) -> Floats:
        """``theta`` with all coefficients that are not known ``factor``, a logarithm, larger."""
        return theta + factor * _SPEED * (self._prior.doubt > 0.0)

    def solved(self, start: Floats, most: int = _STEPS) -> _Solution:
        """The solver's end from ``start``, after ``most`` steps at most."""
        low, high = (bound[self._free] for bound in self.bounds)

        def whole(free: Floats) -> Floats:
            theta = self._prior.centre.copy()
            theta[self._free] = free
            return theta

        def residuals(free: Floats) -> Floats:
            return self.residuals(whole(free))

        slope = _Slope(residuals, lambda free: self.jacobian(whole(free)), _FRESH if self._many else 1)
        found = scipy.optimize.least_squares(
            residuals, np.clip(start[self._free], low + 1e-6, high - 1e-6), slope, bounds=(low, high),
            loss="soft_l1", f_scale=2.0, max_nfev=most, xtol=1e-4, ftol=1e-4,
        )  # fmt: skip
        theta = whole(np.asarray(found.x))
        return _Solution(theta, float(found.cost), self.jacobian(theta))

    def compared(self, theta: Floats) -> list[Residual]:
        """What was seen over what is replayed, in logarithms, for each metric of each part."""
        draw = self.draw(theta)
        out = []
        for (o, _, where), each in zip(self._observations, self._replayed(draw), strict=True):
            times = _client_times(each, o.workload.arrival_s, draw, closed=o.closed, inside=o.inside)
            if o.without_queue:
                times = replace(times, ttft_s=times.ttft_s - times.queue_s, e2e_s=times.e2e_s - times.queue_s)
            for part in o.parts:
                for metric, (value, doubt) in part.seen.items():
                    got = times.mean(metric, part.which)
                    off = math.log(value / got) if got is not None and got > 0 else -5.0  # no such engine served this
                    if metric == "ttft_s" and got and not o.without_queue:
                        # A queue is as long as the load is close to the limit: a little off is far off.
                        waited = float(np.nanmean(times.queue_s[part.which])) / got
                        doubt = math.hypot(doubt, _QUEUE_DOUBT * waited)
                    if o.closed == 1:
                        doubt = math.hypot(doubt, _ALONE[metric])
                    out.append(Residual(metric, where, off, doubt))
        return out

    def _replayed(self, draw: PosteriorDraw) -> list[RequestOutcomes]:
        """Each observation's traffic on the draw's engine. The last few are kept: a step of ``overhead_s`` or ``lag`` alone, and of the
        size of a cache that has no limit, is no new replay."""
        key = (draw.iteration, draw.cache if self._limited else 1.0)
        known = self._replays.get(key)
        if known is None:
            known = self._replays[key] = [
                outcomes(o.workload, with_draw(engine, draw), timeout_s=o.timeout_s)
                for o, engine, _ in self._observations
            ]
            if len(self._replays) > UNKNOWNS:
                self._replays.popitem(last=False)
        else:
            self._replays.move_to_end(key)
        return known

    def residuals(self, theta: Floats) -> Floats:
        data = [c.value / c.doubt for c in self.compared(theta)]
        believed = (theta - self._prior.centre)[self._free] / self._prior.doubt[self._free]
        return np.array([*data, *believed])

    def with_best_cache(self, theta: Floats) -> Floats:
        """``theta`` with the cache that fits best, the rest as it is: a cache that fills up makes steps that no slope shows."""
        if self._prior.doubt[CACHE] < 0.01:
            return theta
        tried = [theta]
        for factor in np.linspace(-2.0, 2.0, 9) * self._prior.doubt[CACHE]:
            other = theta.copy()
            other[CACHE] = self._prior.centre[CACHE] + factor
            tried.append(other)
        return min(tried, key=self.cost)

    def with_best_overhead(self, theta: Floats) -> Floats:
        """``theta`` with the overhead that fits best, the rest as it is: no replay, and far from its own slope at the prior."""
        if self._longest_s <= _LEAST_OVERHEAD_S:
            return theta
        tried = [theta]
        for seconds in (*np.geomspace(_LEAST_OVERHEAD_S, self._longest_s, _OVERHEADS), 0.9 * self._least_ttft_s):
            other = theta.copy()
            other[OVERHEAD] = math.log(max(seconds, _LEAST_OVERHEAD_S))
            tried.append(other)
        return min(tried, key=self.cost)

    def cost(self, theta: Floats) -> float:
        """What the least squares minimise: soft_l1 of the residuals at scale 2."""
        return 4.0 * float((np.sqrt(1.0 + (self.residuals(theta) / 2.0) ** 2) - 1.0).sum())

    def jacobian(self, theta: Floats) -> Floats:
        """By forward differences."""
        here = self.residuals(theta)
        steps = _STEP * np.eye(theta.shape[0])[self._free]
        columns = [(self.residuals(theta + step) - here) / _STEP for step in steps]
        return np.stack(columns, axis=1)

    @staticmethod
    def unabsorbed(jacobian: Floats) -> Floats:
        """Of each compared figure, the share that the fit did not take up: 1 - leverage. Near 0 where there are as many unknowns as
        figures: such a figure agrees whatever the engine is."""
        known = jacobian.shape[0] - jacobian.shape[1]
        leverage = np.einsum("ij,ji->i", jacobian, np.linalg.pinv(jacobian))[:known]
        return np.asarray(np.clip(1.0 - leverage, 0.0, 1.0))

    def draws(self, theta: Floats, jacobian: Floats, seed: int) -> tuple[tuple[PosteriorDraw, ...], Floats]:
        """Members of the posterior, and its standard deviations."""
        rng = np.random.default_rng(seed)
        at_best, known = self.residuals(theta), self._free.shape[0]
        data = at_best[:-known]
        # Misfit beyond the noise counts as noise: a model that does not fit must not be sure of itself.
        excess = max(1.0, 1.4826 * float(np.median(np.abs(data)))) if data.shape[0] else 1.0
        rows = np.concatenate([np.full(data.shape[0], 1.0 / excess), np.ones(known)])
        weighted = jacobian * rows[:, None]
        solve = np.linalg.pinv(weighted)
        low, high = (bound[self._free] for bound in self.bounds)
        drawn = []
        half = (solve @ rng.standard_normal((weighted.shape[0], DRAWS // 2))).T
        for step in np.stack([half, -half], axis=1).reshape(
            DRAWS, -1
        ):  # each with its opposite: the middle is not left to chance
            at = theta.copy()
            at[self._free] = np.clip(theta[self._free] + step, low, high)
            # Far from the best the straight line misleads; two more steps bring the draw to the residuals that it stands for.
            for _ in range(2):
                astray = rows * (self.residuals(at) - at_best) - weighted @ step
                at[self._free] = np.clip(at[self._free] - np.clip(solve @ astray, -1.0, 1.0), low, high)
            drawn.append(self.draw(at))
        spread = np.zeros(UNKNOWNS)
        spread[self._free] = np.sqrt((solve**2).sum(axis=1))
        return tuple(drawn), spread

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        low, high = self._prior.centre - 6.0, self._prior.centre + 6.0
        low[LAG], high[LAG] = 0.0, max(_LAG_MOST, float(self._prior.centre[LAG] + 3.0 * self._prior.doubt[LAG]))
        high[EXPERT_SHARE] = _MOST_SHARE
        if self._longest_s > 0:  # no wider than the data ask for: the solver's steps go by the bounds
            high[OVERHEAD] = max(high[OVERHEAD], math.log(self._longest_s))
        return low, high


def _engine_of(o: Observation, engine: EngineModel) -> EngineModel:
    limits = dict(o.limits)
    slots = o.closed if o.closed is not None else o.slots
    if slots is not None:
        limits["max_num_seqs"] = max(1, min(slots, limits.get("max_num_seqs", engine.limits.max_num_seqs)))
    return engine.with_limits(**limits) if limits else engine


class _Slope:
    """The Jacobian for the solver: by differences at each ``fresh``-th point, and between them as the steps show it (Broyden 1965)."""

    def __init__(
        self, residuals: Callable[[Floats], Floats], differences: Callable[[Floats], Floats], fresh: int
    ) -> None:
        self._residuals, self._differences, self._fresh = residuals, differences, fresh
        self._points = 0
        self._free = self._here = self._slope = np.empty(0)

    def __call__(self, free: Floats) -> Floats:
        here = self._residuals(free)
        if self._points % self._fresh == 0:
            slope = self._differences(free)
        else:
            step = free - self._free
            slope = self._slope + np.outer(here - self._here - self._slope @ step, step) / float(step @ step)
        self._points += 1
        self._free, self._here, self._slope = free.copy(), here, slope
        return slope.copy()
