"""A plain VM endpoint by the universal scalability law: contention and coherence, fitted from load tests or windows.

X(N) = lambda N / (1 + sigma (N - 1) + kappa N (N - 1)) requests per second with N in the server; latency N / X(N) by Little's law.
Source: N. J. Gunther, "Guerrilla Capacity Planning" (2007), chapters 4 to 6. sigma is the share that is done one at a time, kappa what
keeping each other consistent costs; throughput is greatest at N* = sqrt((1 - sigma) / kappa) and falls beyond.

N / X(N) is linear in (d, b, c) = ((1 - sigma), sigma, kappa) / lambda: d + b N + c N (N - 1). That is what is fitted, none below 0
(so sigma stays within 0..1), to relative errors. Owns the law, its fit and its replay; knows no prices and no settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # which imports its parts when they are first used

from analyzers.kinds.serverless.platform import Serverless, run
from analyzers.kinds.service import ServiceReplay, check_not_empty
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict, Interval, Prediction
from collectors.workload import Floats, Workload

#: Distinct concurrencies, and the highest over the lowest, below which three coefficients say nothing.
LEAST_LEVELS = 3
LEAST_SPREAD = 2.0
#: Relative scatter around the best curve above which, and share of the points near it below which, they follow no such curve.
MOST_SCATTER = 0.3
LEAST_KEPT = 0.6
#: What is assumed of one point's error before the points have shown theirs, and how many points that assumption weighs.
PRIOR_SCATTER = 0.05
_PRIOR_POINTS = 2.0
#: Standard deviation of the exponent with which lambda grows with cores; 1 is assumed, in proportion.
CORES_SPREAD = 0.15
#: A weight below this marks an outlier, which the draws leave out.
_OUTLIER = 0.1
#: Which of (d, b, c) a law may do without: linear, contention alone, coherence alone, both.
_LAWS = ((True, False, False), (True, True, False), (True, False, True), (True, True, True))
#: The three coefficients are far from independent: so many turns until the draws have forgotten where they began.
_SWEEPS = 120
_ALWAYS = (("e2e_s", 0.5), ("e2e_s", 0.95), ("queue_s", 0.95))


@dataclass(frozen=True, slots=True)
class Point:
    """One steady load: mean requests in the server, and the throughput or the mean latency with them (Little's law gives the other)."""

    concurrency: float
    throughput_per_s: float | None = None
    latency_s: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.throughput_per_s, self.latency_s) if v is not None]
        if not given:
            raise ValueError("a USL point needs throughput_per_s or latency_s")
        if not all(math.isfinite(v) and v > 0 for v in (self.concurrency, *given)):
            raise ValueError(f"a USL point's values must be finite and above 0: {self}")

    @property
    def seconds(self) -> float:
        """Mean latency: as measured, else concurrency / throughput."""
        if self.latency_s is not None:
            return self.latency_s
        assert self.throughput_per_s is not None
        return self.concurrency / self.throughput_per_s


@dataclass(frozen=True, slots=True)
class Usl:
    """The law's three coefficients."""

    rate_per_s: float
    """lambda: requests per second with one in the server."""
    sigma: float = 0.0
    kappa: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_per_s) and self.rate_per_s > 0 and 0 <= self.sigma <= 1 and self.kappa >= 0):
            raise ValueError(f"USL: rate_per_s > 0, 0 <= sigma <= 1 and kappa >= 0 are expected, not {self}")

    def throughput_per_s(self, concurrency: float) -> float:
        n = concurrency
        return self.rate_per_s * n / (1.0 + self.sigma * (n - 1.0) + self.kappa * n * (n - 1.0))

    def latency_s(self, concurrency: float) -> float:
        return concurrency / self.throughput_per_s(concurrency)

    @property
    def peak(self) -> float:
        """Concurrency of the greatest throughput, N* = sqrt((1 - sigma) / kappa), at least 1; infinite where it never falls."""
        return max(1.0, math.sqrt((1.0 - self.sigma) / self.kappa)) if self.kappa > 0 else math.inf

    @property
    def highest_per_s(self) -> float:
        """The greatest throughput; without kappa its limit lambda / sigma, infinite where sigma is 0 too."""
        if self.kappa > 0:
            return self.throughput_per_s(self.peak)
        return self.rate_per_s / self.sigma if self.sigma > 0 else math.inf


@dataclass(frozen=True, slots=True)
class UslFit:
    """The best coefficients, and draws of what else the points allow."""

    best: Usl
    draws: tuple[Usl, ...]
    """In no order: any part of them stands for all."""
    scatter: float
    """Relative standard deviation of the points around the curve."""
    points: int
    load: tuple[float, float]
    """Lowest and highest concurrency that was seen."""
    notes: tuple[str, ...] = ()

    def interval(self, quantity: Callable[[Usl], float]) -> Interval:
        """80 % of the draws, with the best in the middle: ``fit.interval(lambda law: law.latency_s(32))``."""
        mid = quantity(self.best)
        drawn = sorted(quantity(law) for law in self.draws)
        last = len(drawn) - 1
        return Interval(min(drawn[round(0.1 * last)], mid), mid, max(drawn[round(0.9 * last)], mid))


def fit(points: Sequence[Point], *, seed: int = 0, draws: int = 200) -> UslFit:
    """Fit the law to steady loads, at which the endpoint was the limit or N is really how many were in it.

    Robust: outliers lose their weight (Tukey's bisquare, from a least-absolute start). The draws are of the coefficients' posterior, a
    Gaussian cut off at 0, with the scatter that the points show, and ``PRIOR_SCATTER`` where they are too few to show one.
    Raises CannotPredict ``USL_FEW_POINTS`` (fewer than 3 distinct concurrencies), ``USL_NARROW`` (they span less than a factor of 2),
    ``USL_NO_FIT`` (no such curve comes near the points).
    """
    concurrency = np.array([p.concurrency for p in points], np.float64)
    _check_support(concurrency)
    seconds = np.array([p.seconds for p in points], np.float64)
    rows = (
        np.column_stack([np.ones_like(concurrency), concurrency, concurrency * (concurrency - 1.0)]) / seconds[:, None]
    )
    found, weights = _robust(rows)
    kept = weights > _OUTLIER
    rows = rows[kept]
    freedom = max(rows.shape[0] - 3.0, 0.0) + _PRIOR_POINTS
    squares = float(np.sum((rows @ found - 1.0) ** 2))
    scatter = math.sqrt((squares + _PRIOR_POINTS * PRIOR_SCATTER**2) / freedom)
    levels = np.unique(concurrency[kept]).size
    if scatter > MOST_SCATTER or levels < LEAST_LEVELS or kept.mean() < LEAST_KEPT or found[0] + found[1] <= 0:
        raise CannotPredict(
            "USL_NO_FIT",
            f"{rows.shape[0]} of {len(points)} points lie near a USL curve, and scatter {scatter:.0%} around it; check that each was a "
            "steady load of the same requests on the same machine",
        )
    return UslFit(
        best=_law(found),
        draws=tuple(_law(c) for c in _posterior(rows, scatter, freedom, np.random.default_rng(seed), draws)),
        scatter=scatter,
        points=len(points),
        load=(float(concurrency.min()), float(concurrency.max())),
    )


def on_cores(fitted: UslFit, ratio: float, *, seed: int = 0) -> UslFit:
    """The fit on a machine with ``ratio`` times the cores: Standard_F2s to F4s is 2, to F8s 4.

    Assumed: lambda grows in proportion to the cores, sigma and kappa stay. A request that uses one core only gets no faster, and has more
    beside it; so the draws take lambda x ratio^e with e of mean 1 and standard deviation ``CORES_SPREAD``, wider the further away.
    Raises ValueError on a ratio that is not above 0.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"the ratio of cores must be above 0, not {ratio}")
    exponents = 1.0 + CORES_SPREAD * np.random.default_rng(seed).standard_normal(len(fitted.draws))
    draws = (
        replace(law, rate_per_s=law.rate_per_s * ratio ** float(e))
        for law, e in zip(fitted.draws, exponents, strict=True)
    )
    note = f"{ratio:g} times the cores: lambda in proportion, sigma and kappa kept; assumed, not measured"
    best = replace(fitted.best, rate_per_s=fitted.best.rate_per_s * ratio)
    return replace(fitted, best=best, draws=tuple(draws), notes=(*fitted.notes, note))


def replay(
    workload: Workload,
    law: Usl,
    *,
    replicas: int = 1,
    max_concurrency: int | None = None,
    work: Floats | None = None,
) -> ServiceReplay:
    """Replay ``workload`` on ``replicas`` machines that follow ``law``: with k in a machine each gets X(k) / k of it.

    max_concurrency: at most so many in one machine, and the others wait in one queue; None: all share. The emptiest machine gets the next.
    work: (n,) of each request, 1 being the mean request that the law was fitted on; None: all alike.
    It answers whole and does not stream: TTFT and token gaps are not there. ``used``: ``replica_s``. ``gauges``: ``running_mean``.
    Where all share and demand is beyond the peak, the law has the machine go ever slower: such a replay says ``saturated``, and ends late.
    Raises ValueError on an empty workload or wrong arguments.
    """
    check_not_empty(workload)
    n = len(workload)
    share = np.ones(n) if work is None else np.asarray(work, np.float64)
    if share.shape != (n,) or not np.all(np.isfinite(share)) or share.min() < 0:
        raise ValueError(f"work must be {n} finite numbers, 0 or more")
    if replicas < 1 or (max_concurrency is not None and max_concurrency < 1):
        raise ValueError("replicas and max_concurrency must be 1 or more")
    machines = Serverless(
        concurrency=max_concurrency or n,
        cold_start_s=0.0,
        most=replicas,
        least=replicas,
        sigma=law.sigma,
        kappa=law.kappa,
    )
    got = run(workload, machines, np.full(n, -1.0), share / law.rate_per_s, packed=False)
    return replace(
        got,
        used={"replica_s": replicas * got.simulated_s},
        gauges={"running_mean": got.gauges["running_mean"]},
    )


def predict(
    fitted: UslFit,
    workload: Workload,
    *,
    objective: Objective,
    replicas: int = 1,
    max_concurrency: int | None = None,
    work: Floats | None = None,
    error: Mapping[str, float | None] | None = None,
    draws: int = 24,
) -> Prediction:
    """How ``replicas`` machines of this fit would respond: one replay for the best coefficients and each of the first ``draws``.

    ``metrics``: the objective's end-to-end and queue percentiles, ``e2e_p50_s``, ``e2e_p95_s``, ``queue_p95_s``, ``requests_per_s``,
    ``running_mean``; 80 % intervals. ``saturates``: the share of replays that were. error: the ledger's, passed on.
    Raises as ``replay``.
    """
    targets = [(t.metric, t.quantile) for t in objective.targets if t.metric in ("e2e_s", "queue_s")]
    rows, saturated = [], 0
    for law in (fitted.best, *fitted.draws[:draws]):
        got = replay(workload, law, replicas=replicas, max_concurrency=max_concurrency, work=work)
        saturated += got.saturated
        row: dict[str, float] = {}
        for metric, q in (*_ALWAYS, *targets):
            value = got.distribution(metric).quantile(q) if q is not None else None
            if value is not None and q is not None:
                row[f"{metric.removesuffix('_s')}_p{q * 100:g}_s"] = value
        rows.append(row | {"requests_per_s": got.completed / (got.simulated_s or 1.0)} | dict(got.gauges))
    metrics = {}
    for name, mid in rows[0].items():
        low, high = (float(v) for v in np.quantile([r[name] for r in rows], (0.1, 0.9)))
        metrics[name] = Interval(min(low, mid), mid, max(high, mid))
    running = metrics["running_mean"].mid / replicas
    beyond = running > 1.5 * fitted.load[1]
    seen = f"expects {running:.3g} requests in each machine, {fitted.load[1]:.3g} at most were seen: this extrapolates"
    return Prediction(
        metrics=metrics,
        saturates=saturated / len(rows),
        method="usl",
        error={name: (error or {}).get(name) for name in metrics},
        notes=(*fitted.notes, seen) if beyond else fitted.notes,
        extrapolates=beyond or bool(fitted.notes),
    )


def _check_support(concurrency: Floats) -> None:
    levels = np.unique(np.round(concurrency, 6))
    if levels.size < LEAST_LEVELS:
        raise CannotPredict(
            "USL_FEW_POINTS",
            f"{levels.size} distinct concurrencies, and three coefficients need {LEAST_LEVELS} or more; measure other loads",
        )
    if levels[-1] < LEAST_SPREAD * levels[0]:
        raise CannotPredict(
            "USL_NARROW",
            f"concurrencies from {levels[0]:g} to {levels[-1]:g} are too alike to tell contention from speed; measure at twice the load",
        )


def _robust(rows: Floats) -> tuple[Floats, Floats]:
    """(d, b, c), none below 0, so that ``rows @ (d, b, c)`` is near 1 in logarithms; and (n,) weights from 0, an outlier, to 1.

    Logarithms, as a point three times too fast must not pull harder than one three times too slow.
    """
    weights, near = np.ones(rows.shape[0]), np.ones(rows.shape[0])
    found = np.zeros(3)
    for step in range(60):
        root = np.sqrt(weights / near)
        found = scipy.optimize.nnls(rows * root[:, None], root)[0]
        near = np.maximum(rows @ found, 1e-6)
        distance = np.abs(np.log(near))
        if step < 30:
            weights = 1.0 / np.maximum(distance, 1e-3)
            weights /= weights.max()
        else:
            spread = max(1.4826 * float(np.median(distance)), 0.02)
            weights = np.clip(1.0 - (distance / (7.0 * spread)) ** 2, 0.0, 1.0) ** 2
    return found, weights


def _law(coefficients: Floats) -> Usl:
    d, b, c = (float(x) for x in coefficients)
    return Usl(1.0 / (d + b), b / (d + b), c / (d + b))


def _posterior(rows: Floats, scatter: float, freedom: float, rng: np.random.Generator, count: int) -> list[Floats]:
    """Draws of (d, b, c) from the Gaussian of the fit, cut off at 0; its scale drawn too.

    Laws that do without sigma, kappa or both take the share of the draws that their fit deserves (Schwarz's criterion): else, where the
    truth needs none of them, every draw would have some.
    """
    scores = []
    for law in _LAWS:
        _, off = scipy.optimize.nnls(rows[:, np.array(law)], np.ones(rows.shape[0]))
        scores.append((off / scatter) ** 2 + sum(law) * math.log(rows.shape[0]))
    shares = np.exp(-0.5 * (np.array(scores) - min(scores)))
    out = []
    for law, n in zip(_LAWS, rng.multinomial(count, shares / shares.sum()), strict=True):
        free = np.flatnonzero(law)
        found = _gibbs(rows[:, free], scatter * np.sqrt(freedom / rng.chisquare(freedom, n)), rng)
        full = np.zeros((n, 3))
        full[:, free] = found
        out += [c for c in full if c[0] + c[1] > 0]
    return [out[i] for i in rng.permutation(len(out))]


def _gibbs(rows: Floats, scale: Floats, rng: np.random.Generator) -> Floats:
    """(chains, k) coefficients, one draw of each of the chains, which have ``scale`` each."""
    precision, towards = rows.T @ rows, rows.sum(axis=0)
    at = np.tile(scipy.optimize.nnls(rows, np.ones(rows.shape[0]))[0], (scale.shape[0], 1))
    for _ in range(_SWEEPS):
        for j, own in enumerate(np.diag(precision)):
            mean = (towards[j] - at @ precision[j]) / own + at[:, j]
            at[:, j] = _cut_normal(mean, scale / math.sqrt(float(own)), rng.random((at.shape[0],)))
    return at


def _cut_normal(mean: Floats, spread: Floats, u: Floats) -> Floats:
    """Normal values given that they are 0 or more, by their quantiles ``u``."""
    below = -mean / spread
    far = below > 6.0  # there it falls off exponentially, and the normal's own tail is beyond the precision of a float
    tail = -spread * np.log1p(-u) / np.where(far, below, 1.0)
    return np.where(
        far,
        tail,
        np.maximum(
            0.0, mean - spread * scipy.special.ndtri(scipy.special.ndtr(-np.where(far, 0.0, below)) * (1.0 - u))
        ),
    )
