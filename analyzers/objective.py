"""What must hold for an endpoint, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from collectors.sketch import Sketch
from collectors.window import Range, Window

#: Rounding of shares.
_CRUMBS = 1e-9


#: Shares of the requests that a target may bound, and the counter of each: what failed, and what was refused for a rate or a quota.
SHARES = {"error_rate": "errors", "throttle_rate": "throttled"}

#: A number without a unit that is above this many seconds was meant in milliseconds.
_MOST_BARE_S = {"ttft": 60.0, "queue": 60.0, "itl": 5.0, "tpot": 5.0, "e2e": 600.0}


@dataclass(frozen=True, slots=True)
class Target:
    """One bound: ``metric`` at ``quantile`` (None: a share or a mean) must be at most ``limit``."""

    metric: str
    quantile: float | None
    limit: float

    @property
    def name(self) -> str:
        """``ttft_p95_s``, ``error_rate``."""
        if self.quantile is None:
            return self.metric
        base = self.metric.removesuffix("_s")
        return f"{base}_p{self.quantile * 100:g}_s"

    @classmethod
    def parse(cls, name: str, limit: float, *, with_unit: bool = False) -> Target:
        """From a settings key: ``ttft_p95_s``, ``itl_p99_s``, ``e2e_p90_s``, ``tpot_p50_s``, ``queue_p95_s``, ``error_rate``, ``throttle_rate``.

        with_unit: whether the limit (in seconds) was written with its unit; a bare number may be one of milliseconds.
        Raises ValueError on any other name, and on a limit that cannot be met or cannot be meant.
        """
        if not limit > 0:
            raise ValueError(f"{name}: the limit must be above 0, not {limit}")
        most = _MOST_BARE_S.get(name.split("_")[0])
        if most is not None and limit > most and not with_unit:
            raise ValueError(
                f"{name}: {limit:g} s is more than anybody waits for that; did you mean {limit / 1000:g} s ({limit:g}ms)? "
                f"Where seconds are meant, write {limit:g}s"
            )
        if name in SHARES:
            if limit >= 1:
                raise ValueError(f"{name}: a share below 1 is expected, not {limit} (1 % is 0.01)")
            return cls(name, None, limit)
        parts = name.split("_")
        if len(parts) == 3 and parts[0] in ("ttft", "itl", "tpot", "e2e", "queue") and parts[2] == "s":
            digits = parts[1].removeprefix("p")
            if parts[1].startswith("p") and digits.replace(".", "", 1).isdigit() and 0 < float(digits) < 100:
                return cls(f"{parts[0]}_s", float(digits) / 100, limit)
        raise ValueError(
            f"{name}: expected {', '.join(SHARES)}, or ttft, itl, tpot, e2e or queue with a percentile, such as ttft_p95_s"
        )


@dataclass(frozen=True, slots=True)
class Objective:
    """All of the targets must hold."""

    targets: tuple[Target, ...] = ()

    @classmethod
    def from_mapping(cls, limits: Mapping[str, float]) -> Objective:
        """Of limits that are known to be in seconds."""
        return cls(tuple(Target.parse(name, limit, with_unit=True) for name, limit in limits.items()))

    def scaled(self, factor: float) -> Objective:
        """With each limit so many times as large."""
        return Objective(tuple(replace(target, limit=target.limit * factor) for target in self.targets))


@dataclass(frozen=True, slots=True)
class Attainment:
    """How one target was met over a span of windows."""

    target: Target
    observed: float | None
    """The metric over the whole span (sketches merged, never a mean of percentiles). None: unknown."""
    bad_share: float | None
    """Share of requests (or token gaps) that were worse than the limit, as well as it is known."""
    burn_rate: float | None
    """``bad_share`` over the share that the objective allows: 1 spends the budget just so, above 1 breaches it.

    Source: Google SRE Workbook, chapter 5, "Alerting on SLOs".
    """
    samples: float
    at_least: float | None = None
    """The least that ``observed`` can be: a histogram only says in which bucket it lies."""
    at_most: float | None = None
    """The most that it can be; infinite beyond the last bucket."""
    bad_least: float | None = None
    """The least that ``bad_share`` can be: exact where the limit is a bucket's edge."""
    bad_most: float | None = None
    stalled_s: float = 0.0
    """How long, at the end of the span, requests have been under way without a token and without an answer. At least so old are they."""
    overdue: bool = False
    """Whether it is among those that this target counts that some have been waiting for longer than its limit."""

    @property
    def met(self) -> bool | None:
        """Whether it held for certain; None: not known, because the limit lies between what the metric can be.

        Requests that do not end break it by their age, though no answer of theirs has been measured.
        """
        if self.overdue:
            return False
        if self.observed is None:
            return None
        limit = self.target.limit * (1 + _CRUMBS)
        allowed = None if self.target.quantile is None else 1 - self.target.quantile + _CRUMBS
        least = self.observed if self.at_least is None else self.at_least
        most = self.observed if self.at_most is None else self.at_most
        if most <= limit or (allowed is not None and self.bad_most is not None and self.bad_most <= allowed):
            return None if self.target.quantile is not None and self.stalled_s > limit else True
        if least > limit or (allowed is not None and self.bad_least is not None and self.bad_least > allowed):
            return False
        return None


def merged(windows: Sequence[Window], metric: str) -> Sketch | None:
    """The metric's sketch over all windows; None where no window has it."""
    sketches = [w.sketches[metric] for w in windows if metric in w.sketches]
    return Sketch.merge(sketches) if sketches else None


def total(windows: Sequence[Window], counter: str) -> float | None:
    """The counter's increase over all windows that know it; None where none does."""
    known = [value for w in windows if (value := w.count(counter)) is not None]
    return sum(known) if known else None


def answered(window: Window) -> float | None:
    """Requests that were taken and ended: those that were refused for a rate or a quota mostly come again. None: unknown."""
    requests, refused = window.count("requests"), window.count("throttled")
    return None if requests is None else max(0.0, requests - (refused or 0.0))


def mean_rate(windows: Sequence[Window], counter: str) -> float | None:
    """Per second in which the counter was told: a window that tells it in a part counts for that part. None: unknown."""
    increase, seconds = total(windows, counter), told_s(windows, counter)
    return increase / seconds if increase is not None and seconds > 0 else None


def told_s(windows: Sequence[Window], counter: str) -> float:
    """Seconds in which the counter was told."""
    return sum(w.coverage_of(counter) * w.duration_s for w in windows if w.count(counter) is not None)


def stalled_s(windows: Sequence[Window]) -> float:
    """Seconds at the end of the span in which requests were under way and nothing came of them: no token, no answer. 0: none.

    A window counts where its source tells the tokens, and a request or more was under way throughout. What is unknown ends the count.
    """
    age = 0.0
    for window in reversed(windows):
        under_way = [window.gauges[name] for name in ("running", "waiting") if name in window.gauges]
        still = window.count("output_tokens") == 0 and not window.count("requests")
        if not still or sum(g.mean for g in under_way) < 1 or sum(g.last for g in under_way) < 1:
            break
        age += window.duration_s * window.coverage_of("output_tokens")
    return age


def attainment(windows: Sequence[Window], target: Target) -> Attainment:
    """Judge one target over ``windows`` of one endpoint."""
    judged = _of_what_ended(windows, target)
    stalled = stalled_s(windows) if target.quantile is not None else 0.0
    if not stalled:
        return judged
    last = windows[-1].gauges
    waits, runs = (name in last and last[name].last >= 1 for name in ("waiting", "running"))
    counted = {"e2e_s": True, "ttft_s": waits, "queue_s": waits, "itl_s": runs and not waits and judged.samples > 0}
    overdue = counted.get(target.metric, False) and stalled > target.limit
    return replace(judged, stalled_s=stalled, overdue=overdue)


def _of_what_ended(windows: Sequence[Window], target: Target) -> Attainment:
    if target.metric in SHARES:
        counter = SHARES[target.metric]
        known = [w for w in windows if w.count(counter) is not None and w.count("requests") is not None]
        bad, requests = total(known, counter), total(known, "requests")
        if bad is None or not requests:
            return Attainment(target, None, None, None, requests or 0.0)
        share = min(1.0, bad / requests)
        return Attainment(target, share, share, share / target.limit, requests)
    assert target.quantile is not None  # parse() gives every latency target one
    if any(target.quantile in w.quantiles.get(target.metric, {}) for w in windows):
        return _of_numbers(windows, target, target.quantile)
    sketch = merged(windows, target.metric)
    if sketch is None or sketch.count <= 0:
        return Attainment(target, None, None, None, 0.0)
    least, most = sketch.bounds(target.quantile)[0], sketch.most(target.quantile)
    observed = sketch.quantile(target.quantile)
    bad = max(0.0, round(sketch.share_above(target.limit), 9))  # spread buckets leave crumbs
    if most <= target.limit:
        bad = min(bad, 1 - target.quantile)
    if observed is None:  # beyond the source's last bound: known to be at least that
        observed = least
    observed = min(observed, max(least, most))
    low, high = sketch.share_bounds(target.limit)
    return Attainment(target, observed, bad, bad / (1 - target.quantile), sketch.count, least, most, low, high)


def _of_numbers(windows: Sequence[Window], target: Target, q: float) -> Attainment:
    """From quantiles that came as numbers.

    The q-quantile of the whole lies between the least and the greatest of the parts. More is known where requests were counted: of a
    part whose p-quantile is at most the limit, at most 1 - p of the requests were worse; of one whose p-quantile is above it, more
    than 1 - p were.
    """
    known = [(w, r) for w in windows if (r := w.range(target.metric, q)) is not None]
    among = Range.merge(r for _, r in known)
    weights = [(w, n) for w, _ in known if (n := w.count("requests")) is not None]
    requests = sum(n for _, n in weights)
    least = most = bad = None
    if len(weights) == len(known) and requests > 0:
        shares = [(n / requests, _bad_shares(w, target)) for w, n in weights]
        least, most = sum(s * low for s, (low, _) in shares), sum(s * high for s, (_, high) in shares)
        bad = (least + most) / 2
    burn = None if bad is None else bad / (1 - q)
    return Attainment(target, among.most, bad, burn, requests, among.least, among.most, least, most)


def _bad_shares(window: Window, target: Target) -> tuple[float, float]:
    """The least and the most that the share worse than the limit can be, by all quantiles that the window has."""
    sketch = window.sketches.get(target.metric)
    least, most = 0.0, 1.0
    if sketch is not None and sketch.count > 0:
        least, most = sketch.share_bounds(target.limit)
    for p, known in window.quantiles.get(target.metric, {}).items():
        if known.most <= target.limit:
            most = min(most, 1 - p)
        if known.least > target.limit:
            least = max(least, 1 - p)
    return min(least, most), most


def sustained_breach(windows: Sequence[Window], name: str, objective: Objective, run: int = 3) -> bool:
    """Whether each of the last ``run`` windows that saw traffic missed the target of that name."""
    target = next(t for t in objective.targets if t.name == name)
    judged = [a for w in windows if (a := attainment([w], target)).observed is not None or a.overdue]
    return len(judged) >= run and all(a.met is False for a in judged[-run:])
