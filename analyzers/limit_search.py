"""Where the limit of a shape lies: the highest rate at which its objective holds, by few measurements, each of them in doubt.

A galloping search (J. L. Bentley, A. C. Yao, "An almost optimal algorithm for unbounded searching", 1976) from a guess, in steps of the
precision that double, then bisection in logarithms between what was met and what was missed. It goes by what each measurement shows, sure
or not, because a lower rate brings fewer requests and decides no more; where two contradict each other the sure one counts. Pure:
measurements in, the next rate or the limit out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["met", "missed", "unsure"]


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """One rate that was sent, and what is known of the objective there."""

    rate: float
    """Requests per second."""
    verdict: Verdict
    """With the confidence of the one who judged; ``unsure``: so few requests decide nothing."""
    likely: bool
    """Whether it was met as far as can be seen, sure or not."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Between which rates the limit lies. None: not bounded on this side by what was measured."""

    low: float | None
    """Highest rate that was met."""
    high: float | None
    """Lowest rate that was missed."""
    sure: bool
    """Whether ``low`` was met with confidence, and not only as far as can be seen."""


def limit_of(measured: Sequence[MeasuredRate]) -> Limit:
    """What is known. Where equals contradict each other (met above missed), the missed one counts: a promise is kept below it."""
    missed = min((m.rate for m in measured if m.verdict == "missed"), default=math.inf)
    met = max((m.rate for m in measured if m.verdict == "met" and m.rate < missed), default=0.0)
    # What is unsure tells only of the rates between those that are sure.
    between = [m for m in measured if m.verdict == "unsure" and met < m.rate < missed]
    high = min((m.rate for m in between if not m.likely), default=missed)
    low = max((m.rate for m in between if m.likely and m.rate < high), default=met)
    return Limit(low or None, None if high == math.inf else high, low > 0 and low == met)


def next_rate(measured: Sequence[MeasuredRate], guess: float, precision: float = 0.15, most: int = 8) -> float | None:
    """The rate to send next, ``guess`` first; None: the limit is known to within ``precision``, or ``most`` were measured.

    Raises ValueError on a guess or a precision that is not above 0.
    """
    if not (guess > 0 and precision > 0):
        raise ValueError(f"a guess and a precision above 0 are needed, not {guess} and {precision}")
    if len(measured) >= most:
        return None
    if not measured:
        return guess
    known = limit_of(measured)
    step = math.pow(1.0 + precision, 2 ** min(len(measured) - 1, 3))
    if known.high is None:
        return max(m.rate for m in measured) * step
    if known.low is None:
        return min(m.rate for m in measured) / step
    return None if known.high / known.low <= 1.0 + precision else math.sqrt(known.low * known.high)
