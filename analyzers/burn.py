"""How fast the error budget burns, by pairs of a long and a short span: Google SRE Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".

The long span says that it matters, the short one that it still goes on. A rate of 1 spends just what the objective allows. The workbook's
rates are of a month's budget: 14.4 spends 2 % of it in an hour, 6 spends 5 % in six hours, 1 spends a tenth in three days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analyzers.finding import Finding, Reason, Severity
from analyzers.objective import Target, attainment
from analyzers.situation import Situation
from analyzers.words import lasting
from collectors.window import Window

HOUR = 3600.0
#: A long span of which less was observed says nothing of its length.
LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class BurnPair:
    """Seconds, and how many times the allowed rate burns in both."""

    long_s: float
    short_s: float
    rate: float
    severity: Severity


PAIRS = (
    BurnPair(HOUR, 300.0, 14.4, "critical"),
    BurnPair(6 * HOUR, 1800.0, 6.0, "critical"),
    BurnPair(72 * HOUR, 6 * HOUR, 1.0, "warning"),
)
#: All spans that are looked at.
SPANS = tuple(sorted({s for pair in PAIRS for s in (pair.long_s, pair.short_s)}))


def burning(s: Situation, spans: Mapping[float, Sequence[Window]]) -> Iterator[Finding]:
    """One finding for each target that burns in both spans of a pair: of the fastest such pair.

    spans: by length in seconds, the windows of the last so many seconds. What a histogram leaves open counts as good.
    """
    for target in s.objective.targets:
        for pair in PAIRS:
            long, short = (_rate(spans.get(span, ()), span, target) for span in (pair.long_s, pair.short_s))
            if long is not None and short is not None and min(long, short) >= pair.rate:
                text = (
                    f"{target.name}: {long:.3g} times what the objective allows was bad over {lasting(pair.long_s)}, and "
                    f"{short:.3g} times over {lasting(pair.short_s)}; {pair.rate:g} is too fast"
                )
                numbers = {"long_s": pair.long_s, "short_s": pair.short_s, "limit": pair.rate}
                reason = Reason(
                    f"BUDGET_BURN_{target.name.upper()}", text, numbers | {"long_rate": long, "short_rate": short}
                )
                yield Finding(s.endpoint, "burn", pair.severity, reason, s.evidence)
                break


def _rate(windows: Sequence[Window], span_s: float, target: Target) -> float | None:
    """The burn rate that is certain. None: not known, or too little of the span was observed."""
    seen = sum(w.coverage * w.duration_s for w in windows)
    if seen < LEAST_SHARE * span_s:
        return None
    judged = attainment(windows, target)
    bad = judged.bad_share if judged.bad_least is None else judged.bad_least
    if bad is None:
        return None
    return bad / (target.limit if target.quantile is None else 1 - target.quantile)
