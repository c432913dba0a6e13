"""Whether an objective holds under one load that was sent, and how sure that is. Pure: a traffic's outcome in, a verdict out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from analyzers.client import reasons
from analyzers.interval import wilson
from analyzers.limit_search import MeasuredRate, Verdict
from analyzers.objective import Objective, Target
from collectors.traffic.tally import QUANTILES, Tally

#: Gaps between tokens of one request are alike, so that no interval counts them: within so near a share of the limit is no verdict.
_GAPS_DOUBT = 0.05
#: Where the objective says nothing of errors: more of them, and the rate is not served.
_MOST_ERRORS = 0.05
#: The client may be late by this share of the least limit.
_LATE_SHARE = 0.05
#: A server falls behind that answers less than this share of what is sent, by more than chance (so many standard deviations).
_BEHIND, _CHANCE = 0.9, 3.0


@dataclass(frozen=True, slots=True)
class SentLoad:
    """A traffic that was sent, as far as a verdict needs it."""

    tally: Tally
    objective: Objective
    closed: bool
    """Users, who wait for their answers."""
    stopped: str | None
    """Why it ended early; None: it did not."""
    measured_s: float
    """Between the warm-up and the end of the sending."""


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """One load."""

    verdict: Verdict
    likely: bool
    """Whether it was met as far as can be seen."""
    why: str
    """What decided it, for people."""
    targets: tuple[dict[str, Any], ...]
    """Each target with what was observed and its 95 % interval; None: not measured by a client, or by nobody."""

    def measured(self, rate: float) -> MeasuredRate:
        return MeasuredRate(rate, self.verdict, self.likely)


def judge(load: SentLoad, rate: float | None) -> LoadVerdict:
    """``rate``: of an open loop, which the server must keep up with; None for users, who wait."""
    tally, objective = load.tally, load.objective
    rows = tuple(_row(target, tally) for target in objective.targets)
    verdicts = [_verdict(row) for row in rows if row["observed"] is not None]
    likely = all(row["observed"] <= row["limit"] for row in rows if row["observed"] is not None)
    misses = [
        row["target"]
        for row, v in zip([r for r in rows if r["observed"] is not None], verdicts, strict=True)
        if v == "missed"
    ]
    errors = _errors(tally, objective)
    behind = rate is not None and _falls_behind(load, rate)
    if load.stopped == "error_storm" or errors == "missed":
        return LoadVerdict("missed", False, "too many errors", rows)
    if not tally.ok:
        return LoadVerdict("unsure", False, "nothing was answered", rows)
    if behind:
        return LoadVerdict("missed", False, "the server does not keep up", rows)
    if misses:
        return LoadVerdict("missed", False, f"{', '.join(misses)} missed", rows)
    if errors == "unsure" or "unsure" in verdicts:
        return LoadVerdict("unsure", likely, "too near the limit to tell", rows)
    return LoadVerdict("met", True, "the objective holds", rows)


def invalid(load: SentLoad) -> str | None:
    """Why nothing follows from this load: the client was the bottleneck. None: it is valid.

    What the client delays matters here against the objective's limits, not against a fast answer.
    """
    tally, objective = load.tally, load.objective
    limits = [t.limit for t in objective.targets if t.metric in ("ttft_s", "e2e_s")]
    late = max(v.quantiles([0.99])[0] or 0.0 for v in (tally.watch.lateness, tally.watch.read_delay))
    harmless = {"late_sending", "late_reading"} if limits and late <= _LATE_SHARE * min(limits) else set()
    found = [r for r in reasons(tally, load.stopped, load.closed) if r.code not in harmless | {"nothing_measured"}]
    return found[0].detail if found else None


def _row(target: Target, tally: Tally) -> dict[str, Any]:
    row: dict[str, Any] = {"target": target.name, "limit": target.limit, "observed": None, "low": None, "high": None}
    if target.quantile is None:
        failed = tally.errors.total()
        if tally.ok + failed:
            low, high = wilson(failed, tally.ok + failed)
            row |= {"observed": failed / (tally.ok + failed), "low": low, "high": high}
        return row
    values = tally.values.get(target.metric)
    if values is None or not values.count:
        return row
    observed = values.quantiles([target.quantile])[0]
    assert observed is not None
    if target.metric == "itl_s":
        return row | {"observed": observed, "low": observed * (1 - _GAPS_DOUBT), "high": observed * (1 + _GAPS_DOUBT)}
    low, high = values.interval(target.quantile)
    return row | {"observed": observed, "low": low, "high": high}


def _verdict(row: dict[str, Any]) -> Verdict:
    if row["target"] == "error_rate":
        return "met"  # judged by ``_errors``: few requests cannot show that one in a thousand fails
    if row["high"] is not None and row["high"] <= row["limit"]:
        return "met"
    return "missed" if row["low"] is not None and row["low"] > row["limit"] else "unsure"


def _errors(tally: Tally, objective: Objective) -> Verdict:
    limit = next((t.limit for t in objective.targets if t.metric == "error_rate"), _MOST_ERRORS)
    failed, n = tally.errors.total(), tally.ok + tally.errors.total()
    low, _ = wilson(failed, n)
    if low is not None and low > limit:
        return "missed"
    return "met" if not n or failed <= limit * n else "unsure"


def _falls_behind(load: SentLoad, rate: float) -> bool:
    """Fewer answers than requests between the warm-up and the end of the sending, by more than chance."""
    seconds = load.measured_s
    due = rate * seconds
    return seconds > 0 and load.tally.steady_ok < min(_BEHIND * due, due - _CHANCE * math.sqrt(due))


def figures(load: SentLoad) -> dict[str, Any]:
    """What is kept of one load: percentiles and means, rates, counts. Seconds; None where there is no value."""
    tally, seconds = load.tally, load.measured_s
    out: dict[str, Any] = {
        "sent": tally.sent,
        "completed": tally.ok,
        "errors": dict(tally.errors),
        "measured_s": seconds,
        "requests_per_s": tally.steady_ok / seconds if seconds else None,
        "output_tokens_per_s": tally.steady_tokens / seconds if seconds else None,
    }
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s", "prompt_length", "output_length"):
        values = tally.values[name]
        out[name] = {
            "mean": values.mean,
            **dict(zip(QUANTILES, values.quantiles(list(QUANTILES.values())), strict=True)),
        }
    return out
