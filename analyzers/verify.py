"""Did the change do what was promised? Judged at equal load, against what was before.

A breach that was there before at the same load is not the change's fault; one that is new, or a rise of errors, is. Source of the
rules: facts of the field, "verify, calibrate, roll back": three windows in a row, equal load, not comparable beyond 20 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analyzers.objective import SHARES, Objective, Target, answered, attainment, mean_rate, merged, told_s, total
from analyzers.prediction import Prediction
from analyzers.sequential import log_bayes_factor
from analyzers.words import figure, phrase
from collectors.sketch import Sketch
from collectors.window import Range, Window

State = Literal["pending", "succeeded", "regressed"]

#: A metric that was over its limit and stays within this share of what it was has not been helped.
NO_HELP = 0.1
#: A queue that the shape before left is gone when fewer wait than this share of those that run; and it goes while fewer wait than so many
#: windows before.
QUEUED_SHARE, SHORTER_OVER = 0.1, 3
#: Predicted, but not scored: load is asked of an endpoint, not promised by it; and gauges, read every few seconds, miss short waits
#: and maxima.
_NOT_SCORED = ("requests_per_s", "output_tokens_per_s", "waiting_mean", "kv_usage_max")
#: Of a row of the ledger without a promise.
NO_METHOD = "none"
#: The chance, for each change, that a breach is called and there is none: by the test's own assumptions; windows that it takes at least;
#: and its precision of a mean, in windows' standard deviations, before anything is seen: as little as a tenth of a window.
ALPHA, LEAST_WINDOWS, PRECISION = 0.01, 3, 0.1
#: Errors may rise by this share of requests before they count as a regression.
ERROR_RISE = 0.01


@dataclass(frozen=True, slots=True)
class LedgerScore:
    """One row of the ledger."""

    metric: str
    method: str
    low: float | None
    predicted: float | None
    high: float | None
    before: float | None
    observed: float | None
    comparable: bool
    at_least: float | None = None
    """The least and the most that ``observed`` can be: a histogram only says in which bucket it lies."""
    at_most: float | None = None

    @property
    def inside(self) -> bool | None:
        """Whether what was observed, as far as the source tells it apart, agrees with the predicted interval."""
        if self.low is None or self.high is None or self.observed is None:
            return None
        least = self.observed if self.at_least is None else self.at_least
        most = self.observed if self.at_most is None else self.at_most
        return least <= self.high and most >= self.low

    @property
    def error(self) -> float | None:
        """(observed - predicted) / predicted, where the observation is only known as a range: from its nearest end, 0 within it."""
        if self.predicted is None or self.observed is None or self.predicted <= 0:
            return None
        least = self.observed if self.at_least is None else self.at_least
        most = self.observed if self.at_most is None else self.at_most
        return (min(max(self.predicted, least), most) - self.predicted) / self.predicted


@dataclass(frozen=True, slots=True)
class Verdict:
    state: State
    code: str
    text: str
    load_ratio: float | None
    """Request rate after over before."""
    comparable: bool
    scores: tuple[LedgerScore, ...] = ()
    beyond: tuple[str, ...] = ()
    """Promised percentiles that came surely above their whole interval, at equal load."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "code": self.code,
            "text": self.text,
            "load_ratio": self.load_ratio,
            "comparable": self.comparable,
            "beyond_promise": list(self.beyond),
        }


def judge(
    before: Sequence[Window],
    after: Sequence[Window],
    objective: Objective,
    prediction: Prediction | None,
    *,
    needed: int,
    final: bool,
    load_tolerance: float,
) -> Verdict:
    """``before``/``after``: windows of the judged source, warm-up left out. ``needed`` whole windows are waited for unless ``final``.

    Requests that waited before the change are answered late after it, however well the new shape does: the windows in which the queue
    that it found gets shorter say nothing against it, and are not judged.
    """
    whole = [w for w in after if w.coverage > 0.5]
    judged = _after_the_queue(before, whole)
    ratio = _load_ratio(before, judged)
    comparable = _equal_load(before, judged, ratio, load_tolerance)
    scores = tuple(_scores(before, judged, objective, prediction, comparable))
    beyond = _beyond_promise(before, judged, prediction) if comparable else ()

    def verdict(state: State, code: str, text: str) -> Verdict:
        return Verdict(state, code, text + _surely(beyond, state), ratio, comparable, scores, beyond)

    worse = _errors_rose(before, whole) or _regression(before, judged, objective, ratio, load_tolerance)
    if worse is not None:
        return verdict("regressed", *worse)
    if whole and not judged:
        waiting = f"{_waiting(whole[-1]):.0f} requests of the queue that it found still wait, fewer than before"
        return verdict("succeeded", "IMPROVED", waiting) if final else verdict("pending", "QUEUE_GOES", waiting)
    if len(judged) < needed and not final:
        return verdict("pending", "WAITING", f"{len(judged)} of {needed} windows are there")
    if not judged:
        return verdict("regressed", "BLIND", "nothing could be read since the change, so it cannot be vouched for")
    if objective.targets and all(attainment(judged, t).observed is None for t in objective.targets):
        return verdict(*_nothing_served(before, judged, final=final))
    missed = [a for t in objective.targets if (a := attainment(judged, t)).met is False]
    if not missed:
        if comparable or (ratio is not None and ratio > 1):
            return verdict(
                "succeeded",
                "OBJECTIVE_MET",
                "the objective is met at equal load"
                if comparable
                else "the objective is met, at more load than before",
            )
        if not final:
            return verdict(
                "pending", "LOAD_DIFFERS", f"the load is {_share(ratio)} of what it was: waiting for equal load"
            )
        return verdict("succeeded", "MET_AT_OTHER_LOAD", f"the objective is met, at {_share(ratio)} of the load before")
    names = ", ".join(phrase(a.target.name) for a in missed)
    if not final and not comparable:
        return verdict("pending", "LOAD_DIFFERS", f"{names} missed, at {_share(ratio)} of the load before: waiting")
    helped = [a.target.name for a in missed if _helped(before, a.target.name, a.observed, objective)]
    if len(helped) == len(missed):
        return verdict("succeeded", "IMPROVED", f"{names} still missed, but clearly better than before")
    return verdict("regressed", "NO_HELP", f"{names} missed, and no better than before the change")


@dataclass(frozen=True, slots=True)
class RestoredVerdict:
    """Whether an endpoint is as it was before a change that was undone."""

    code: Literal["AS_BEFORE", "WORSE", "BLIND"]
    text: str


def judge_restored(
    before: Sequence[Window],
    left: Sequence[Window],
    after: Sequence[Window],
    objective: Objective,
    load_tolerance: float,
) -> RestoredVerdict:
    """``before``: of the shape before the change; ``left``: the last ones before the way back was done, whose queue says nothing against what
    came; ``after``: whole windows since it was warm. A breach that was there before is no fault of the way back."""
    served = _after_the_queue(left, after)
    if not after:
        return RestoredVerdict("BLIND", "nothing could be read since the way back, so that nobody knows how it is")
    if not served:
        return RestoredVerdict(
            "WORSE", f"{_waiting(after[-1]) or 0.0:.0f} requests of the queue that it left still wait"
        )
    if objective.targets and all(attainment(served, t).observed is None for t in objective.targets):
        if _at_rest(before, served):
            return RestoredVerdict("AS_BEFORE", "no request came since, and hardly any was due: as quiet as it was")
        return RestoredVerdict("BLIND", "no request was served since the way back, so that nobody knows how it is")
    ratio = _load_ratio(before, served)
    worse = _errors_rose(before, served) or _regression(before, served, objective, ratio, load_tolerance)
    if worse is not None:
        return RestoredVerdict("WORSE", worse[1])
    missed = [phrase(a.target.name) for t in objective.targets if (a := attainment(served, t)).met is False]
    if missed:
        return RestoredVerdict("AS_BEFORE", f"{', '.join(missed)} missed, as before the change")
    return RestoredVerdict("AS_BEFORE", f"the objective is met {_at(ratio, load_tolerance)}")


def _regression(
    before: Sequence[Window], after: Sequence[Window], objective: Objective, ratio: float | None, load_tolerance: float
) -> tuple[str, str] | None:
    if ratio is not None and ratio > 1 + load_tolerance:
        return None  # more load than before: a breach now says nothing about the change
    quantiles = [target for target in objective.targets if target.quantile is not None]
    for target in quantiles:
        then, now = attainment(before, target), attainment(after, target)
        if now.met is not False or not surely_above(before, after, target, len(quantiles)):
            continue
        if then.met is True or (then.observed is not None and (now.observed or 0.0) > then.observed * (1 + NO_HELP)):
            name = target.name
            was = figure(name, then.observed) if then.observed is not None else "unknown"
            text = (
                f"{phrase(name)} is {figure(name, now.observed)} over {len(after)} windows, surely above its limit of "
                f"{figure(name, target.limit)}; before the change it was {was} {_at(ratio, load_tolerance)}"
            )
            return "BREACH_AFTER_CHANGE", text
    return None


def _surely(beyond: Sequence[str], state: State) -> str:
    """For people, of a success that was not the one that was promised."""
    if state != "succeeded" or not beyond:
        return ""
    return f"; {' and '.join(map(phrase, beyond))} came surely above what was promised"


def _beyond_promise(
    before: Sequence[Window], after: Sequence[Window], prediction: Prediction | None
) -> tuple[str, ...]:
    """By the same test as a breach, with the interval's upper end as the limit: it may be asked after every window."""
    if prediction is None:
        return ()
    promised = {name: i.high for name, i in prediction.metrics.items() if _named(name) is not None and i.high > 0}
    found = []
    for name, high in promised.items():
        metric, q = _named(name) or ("", 0.0)
        target = Target(metric, q, high)
        if attainment(after, target).met is False and surely_above(before, after, target, len(promised)):
            found.append(name)
    return tuple(found)


def _errors_rose(before: Sequence[Window], after: Sequence[Window]) -> tuple[str, str] | None:
    then_failed, now_fail = _error_rate(before), _error_rate(after)
    if then_failed is not None and now_fail is not None and len(after) >= 2 and now_fail - then_failed > ERROR_RISE:
        return "ERRORS_ROSE", f"{now_fail:.1%} of the requests fail, {then_failed:.1%} did before"
    return None


def _after_the_queue(before: Sequence[Window], after: Sequence[Window]) -> Sequence[Window]:
    """Those after the queue that the new shape found was gone, or no longer got shorter; all where it found none."""
    if not before or (_waiting(before[-1]) or 0.0) < 1:
        return after
    waited: list[float] = []
    for i, window in enumerate(after):
        waiting, running = _waiting(window), window.gauges.get("running")
        if waiting is None:
            return after
        if waiting < max(1.0, QUEUED_SHARE * running.last if running is not None else 1.0):
            return after[i + 1 :]
        waited.append(waiting)
        if i >= SHORTER_OVER and waiting >= waited[i - SHORTER_OVER]:
            return after[i - SHORTER_OVER :]
    return []


def _waiting(window: Window) -> float | None:
    """Requests that waited at its end."""
    return window.gauges["waiting"].last if "waiting" in window.gauges else None


def surely_above(before: Sequence[Window], after: Sequence[Window], target: Target, targets: int = 1) -> bool:
    """Whether the windows since the change say that the target is missed, for sure: to be asked after every window.

    The logarithms of each window's quantile over the limit, with those before the change telling how much windows vary by themselves,
    make an e-process of a mean above 0: ``sequential.log_bayes_factor``, as in ``analyzers.guard``. Where the mean is not above the
    limit it ever passes ``targets / ALPHA`` with a probability of at most ``ALPHA / targets`` (normal and independent errors). Of a window in
    which requests are overdue and none ended nothing is known but that it missed: it counts as far above as the farthest that was seen.
    """
    new = _over(after, target)
    if len(new) < LEAST_WINDOWS:
        return False
    old = _over(before, target)
    known = [v for v in new if v is not None]
    if not known:
        return True
    worst = max(0.0, *known)
    fresh = [worst if v is None else v for v in new]
    return breach_evidence([v for v in old if v is not None], fresh) >= math.log(targets / ALPHA)


def breach_evidence(before: Sequence[float], after: Sequence[float]) -> float:
    """Logarithm of the e-process of a mean of ``after`` above 0; ``before`` tells the variance, with a mean of its own. -inf: not above."""
    past, fresh = np.array(before), np.array(after)
    if fresh.mean() <= 0.0:
        return -math.inf
    freedom = fresh.size + past.size - int(past.size > 0)
    spread = float(((past - past.mean()) ** 2).sum()) if past.size else 0.0
    return log_bayes_factor(fresh.size, float(fresh.sum()), spread + float((fresh**2).sum()), freedom, PRECISION)


def _over(windows: Sequence[Window], target: Target) -> list[float | None]:
    """The logarithm of a window's figure over the limit, by window that saw traffic; None: none ended, and some are overdue."""
    seen = [attainment([w], target) for w in windows]
    return [
        math.log(a.observed / target.limit) if a.observed else None
        for a in seen
        if (a.observed is not None and a.observed > 0) or a.overdue
    ]


def _nothing_served(before: Sequence[Window], after: Sequence[Window], *, final: bool) -> tuple[State, str, str]:
    if _at_rest(before, after):
        return (
            "succeeded",
            "STILL_QUIET",
            "no request came, and hardly any was due by the rate before: as quiet as it was",
        )
    if not final:
        return "pending", "WAITING", "no request was served since the change: waiting for one"
    return "regressed", "BLIND", "no request was served since the change, so it cannot be vouched for"


def _at_rest(before: Sequence[Window], after: Sequence[Window]) -> bool:
    """Whether no request came and nothing is under way, where at the rate before fewer than three were due: one time in twenty at
    least, none of them comes."""
    rate = mean_rate(before, "requests")
    under_way = any(w.gauges[g].last >= 1 for w in after for g in ("running", "waiting") if g in w.gauges)
    if rate is None or total(after, "requests") != 0 or under_way:
        return False
    return rate * told_s(after, "requests") < 3.0


def _error_rate(windows: Sequence[Window]) -> float | None:
    """Share of requests that failed; None where it is unknown, or nothing was served."""
    errors, requests = total(windows, "errors"), total(windows, "requests")
    return errors / requests if errors is not None and requests else None


def _load_ratio(before: Sequence[Window], after: Sequence[Window]) -> float | None:
    then, now = _rate(before), _rate(after)
    return now / then if then and now is not None else None


def _rate(windows: Sequence[Window]) -> float | None:
    """Arrivals per second: the requests that were answered, and those by which the backlog grew. A shape that chokes ends fewer."""
    known = [n for w in windows if (n := answered(w)) is not None]
    observed = told_s(windows, "requests")
    if not known or observed <= 0:
        return None
    requests = sum(known)
    backlog = [
        sum(w.gauges[g].last for g in ("running", "waiting"))
        for w in windows
        if {"running", "waiting"} <= set(w.gauges)
    ]
    return (requests + (backlog[-1] - backlog[0] if backlog else 0.0)) / observed


def _equal_load(before: Sequence[Window], after: Sequence[Window], ratio: float | None, tolerance: float) -> bool:
    """As many requests, as long ones, and as much of them found in caches."""
    return (
        ratio is not None
        and abs(ratio - 1) <= tolerance
        and _same_lengths(before, after, tolerance)
        and _same_hits(before, after, tolerance)
    )


def _same_lengths(before: Sequence[Window], after: Sequence[Window], tolerance: float) -> bool:
    """Whether tokens per request stayed alike, where they are known at all."""
    for name in ("prompt", "output"):
        then, now = _tokens_per_request(before, name), _tokens_per_request(after, name)
        if then and now is not None and abs(now / then - 1) > tolerance:
            return False
    return True


def _same_hits(before: Sequence[Window], after: Sequence[Window], tolerance: float) -> bool:
    """Whether as large a share of the prompts had to be computed, where caches tell what they held: hits that came or went make another
    load of the same requests."""
    then, now = _computed_share(before), _computed_share(after)
    return not then or now is None or abs(now / then - 1) <= tolerance


def _computed_share(windows: Sequence[Window]) -> float | None:
    """The share of prompt tokens that no cache held. None: not told."""
    known = [w for w in windows if w.count("cached_prompt_tokens") is not None and w.count("prompt_tokens")]
    prompt, cached = total(known, "prompt_tokens"), total(known, "cached_prompt_tokens")
    return 1 - min(1.0, cached / prompt) if prompt and cached is not None else None


def _tokens_per_request(windows: Sequence[Window], name: str) -> float | None:
    """Of requests that ended, where their lengths are told. A counter goes on under way: a shape that chokes has more tokens a request."""
    lengths = merged(windows, f"{name}_length")
    if lengths is not None and lengths.mean is not None:
        return lengths.mean
    tokens, requests = total(windows, f"{name}_tokens"), sum(answered(w) or 0.0 for w in windows)
    return tokens / requests if tokens is not None and requests else None


def _helped(before: Sequence[Window], name: str, observed: float | None, objective: Objective) -> bool:
    then = attainment(before, next(t for t in objective.targets if t.name == name)).observed
    return then is not None and observed is not None and observed < then * (1 - NO_HELP)


def _scores(
    before: Sequence[Window],
    after: Sequence[Window],
    objective: Objective,
    prediction: Prediction | None,
    comparable: bool,
) -> list[LedgerScore]:
    """Of each metric that was promised; where nothing was, of each target what came."""
    if prediction is None:
        return [_unpromised(before, after, target, comparable) for target in objective.targets]
    rows: list[LedgerScore] = []
    for metric, interval in prediction.metrics.items():
        now = observed_metric(after, metric)
        if now is None or metric in _NOT_SCORED:
            continue
        then, (least, most) = observed_metric(before, metric), _bounds(after, metric, now)
        promised = (interval.low, interval.mid, interval.high)
        rows.append(LedgerScore(metric, prediction.method, *promised, then, now, comparable, least, most))
    return rows


def _unpromised(before: Sequence[Window], after: Sequence[Window], target: Target, comparable: bool) -> LedgerScore:
    then, now = attainment(before, target), attainment(after, target)
    return LedgerScore(
        target.name, NO_METHOD, None, None, None, then.observed, now.observed, comparable, now.at_least, now.at_most
    )


def _bounds(windows: Sequence[Window], metric: str, observed: float) -> tuple[float, float]:
    """The least and the most that an observed metric can be."""
    told = _numbers(windows, metric)
    if told is not None:
        return told.least, told.most
    sketch, q = _percentile(windows, metric)
    return (observed, observed) if sketch is None else sketch.bounds(q)


def _named(metric: str) -> tuple[str, float] | None:
    """The distribution and the share that a name such as ``ttft_p95_s`` stands for; None where it is no percentile."""
    match = re.fullmatch(r"([a-z0-9]+)_p(\d+(?:\.\d+)?)_s", metric)
    return None if match is None else (f"{match[1]}_s", float(match[2]) / 100)


def _percentile(windows: Sequence[Window], metric: str) -> tuple[Sketch | None, float]:
    """The sketch and the share that a name stands for; (None, 0) where it is no percentile, or unknown."""
    named = _named(metric)
    sketch = merged(windows, named[0]) if named is not None else None
    return (sketch, named[1]) if named is not None and sketch is not None and sketch.count > 0 else (None, 0.0)


def _numbers(windows: Sequence[Window], metric: str) -> Range | None:
    """What a percentile lies between, where the source gives it as numbers; None where it gives none."""
    named = _named(metric)
    if named is None or not any(named[1] in w.quantiles.get(named[0], {}) for w in windows):
        return None
    return Range.merge(r for w in windows if (r := w.range(*named)) is not None)


def observed_metric(windows: Sequence[Window], metric: str) -> float | None:
    """A predicted metric, as it was observed: ``ttft_p50_s``, ``requests_per_s``, ``output_tokens_per_s``, ``running_mean`` ..."""
    if not windows:
        return None
    told = _numbers(windows, metric)
    if told is not None:
        return told.most
    sketch, q = _percentile(windows, metric)
    if sketch is not None:
        value = sketch.quantile(q)
        return sketch.bounds(q)[0] if value is None else value  # beyond the source's last bound: at least that
    if metric in SHARES:
        return attainment(windows, Target(metric, None, 1.0)).observed
    counters: Mapping[str, str] = {"requests_per_s": "requests", "output_tokens_per_s": "output_tokens"}
    if metric in counters:
        return mean_rate(windows, counters[metric])
    for suffix, pick in (("_mean", "mean"), ("_max", "maximum")):
        gauges = [w.gauges[metric.removesuffix(suffix)] for w in windows if metric.removesuffix(suffix) in w.gauges]
        if metric.endswith(suffix) and gauges:
            values: list[float] = [getattr(g, pick) for g in gauges]
            return max(values) if pick == "maximum" else sum(values) / len(values)
    return None


def _at(ratio: float | None, load_tolerance: float) -> str:
    """The load before, ``ratio`` times which comes now."""
    if ratio is not None and abs(ratio - 1) <= load_tolerance:
        return "at the same load"
    return f"at another load; now it is {_share(ratio)} of that"


def _share(ratio: float | None) -> str:
    return "an unknown share" if ratio is None else f"{ratio:.0%}"
