"""How much of what an endpoint runs is worth reserving: paid whether used or not, at a lower price. Values in, values out.

The k-th replica is worth it where the share of the time in which at least k were there is above the reserved price over the usual one: the
break-even of a commitment, one replica at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.finding import Finding, Reason
from analyzers.money import HOURS_PER_MONTH
from analyzers.situation import Situation

#: Fewer known hours tell no week; of those looked at, this share must be known.
LEAST_HOURS, KNOWN = 7 * 24, 0.8


@dataclass(frozen=True, slots=True)
class Commitment:
    """What reserving would have changed."""

    replicas: int
    share: float
    """Of the time in which the last of them was there."""
    saved_per_month: float
    """US dollars, had the month been as the hours looked at."""


def commitment(replicas: Sequence[float], on_demand: float, reserved: float) -> Commitment | None:
    """The number of reserved replicas that would have cost least. None: none would have saved anything.

    replicas: of each hour, as many as were paid for. on_demand, reserved: US dollars per replica-hour.
    """
    counts = np.asarray(replicas, np.float64)
    if not counts.size or not 0 <= reserved < on_demand:
        return None
    best, share, saved = 0, 0.0, 0.0
    while True:
        used = float(np.clip(counts - best, 0.0, 1.0).mean())
        if used * on_demand <= reserved:
            break
        best, share, saved = best + 1, used, saved + used * on_demand - reserved
    return Commitment(best, share, saved * HOURS_PER_MONTH) if best else None


def worth_reserving(
    s: Situation, usd_per_hour: Sequence[float | None], on_demand: float, reserved: float
) -> Finding | None:
    """``RESERVATION_WOULD_SAVE``. usd_per_hour: what each hour of the last weeks cost at the usual price; None: not known."""
    known = [usd / on_demand for usd in usd_per_hour if usd is not None] if on_demand > 0 else []
    if len(known) < max(LEAST_HOURS, KNOWN * len(usd_per_hour)):
        return None
    found = commitment(known, on_demand, reserved)
    if found is None or found.saved_per_month < s.policy.min_saving_per_month:
        return None
    days = len(known) / 24
    text = (
        f"{found.replicas} x {_what(s)} reserved would save ${found.saved_per_month:,.0f} a month: in the last {days:.0f} days "
        f"so many were there {found.share:.0%} of the time, and at ${reserved:g} in place of ${on_demand:g} an hour a reservation pays from "
        f"{reserved / on_demand:.0%} on. Reserve after the size is right: what is reserved is paid for whether it runs or not"
    )
    numbers = {"replicas": float(found.replicas), "share": found.share, "saved_per_month": found.saved_per_month}
    return Finding(s.endpoint, "cost", "info", Reason("RESERVATION_WOULD_SAVE", text, numbers), s.evidence)


def _what(s: Situation) -> str:
    """One of what is reserved."""
    return "PTU" if s.shape.purchase is not None else s.shape.size or "replica"
