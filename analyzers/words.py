"""Figures in words, the same wherever people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Ends that differ by less than this share are one figure to a reader.
_ALIKE = 0.02


#: Units of a duration: from so many seconds on, its name, its seconds, and those of the unit that its rest is told in.
_DURATIONS = ((171_000.0, "d", 86_400, "h", 3600), (3570.0, "h", 3600, "min", 60), (59.5, "min", 60, "s", 1))
#: Of so many or more, no rest is told.
_MANY = 10


def lasting(seconds: float) -> str:
    """``0.25 s``, ``45 s``, ``2 min 31 s``, ``49 min``, ``3 h``, ``2 d 12 h``."""
    for least, unit, size, part, step in _DURATIONS:
        if seconds >= least:
            whole, rest = divmod(round(seconds / step) * step, size)
            if whole >= _MANY:
                return f"{round(seconds / size)} {unit}"
            return f"{whole} {unit} {rest // step} {part}" if rest else f"{whole} {unit}"
    return f"{seconds:.2g} s"


def spread(observed: float | None, least: float | None, most: float | None) -> str:
    """A figure that is known to lie between two: ``0.025 to 0.05``, ``at least 10``, or itself where both ends are alike."""
    if observed is None:
        return "unknown"
    if least is None:
        return f"{observed:.3g}"
    if most is None or math.isinf(most):
        return f"at least {least:.3g}"
    return f"{observed:.3g}" if most - least <= _ALIKE * abs(most) else f"{least:.3g} to {most:.3g}"


def verdict(met: bool | None) -> str:
    """Whether what must hold does: ``met``, ``missed``, ``not known``."""
    return {True: "met", False: "missed", None: "not known"}[met]


def promise(comparable: bool, inside: bool | None) -> str:
    """What came of a promised interval: ``held``, ``missed``, ``not comparable`` (the load was another), ``unknown``.

    What was observed as a range holds it where the two meet.
    """
    if not comparable:
        return "not comparable"
    return {True: "held", False: "missed", None: "unknown"}[inside]


def dollars(value: float) -> str:
    """``$1,234``, ``-$12.30``, ``$0.0025``."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    digits = f"{size:,.0f}" if size >= 100 else f"{size:,.2f}" if size >= 0.1 or size == 0 else f"{size:.3g}"
    return f"{sign}${digits}"


def and_unknown(lacking: Sequence[str]) -> str:
    """What a total must say of those of whom it is not wholly known: empty where it is whole."""
    return f", and an unknown amount on {', '.join(f'`{name}`' for name in lacking)}" if lacking else ""


def saved(total: Mapping[str, Any]) -> str:
    """What was saved, as a ``SavingTotal`` in JSON tells it: ``saved $12.30 (80 %: $11.00 to $13.60); the objective would have been
    missed on 14 min (80 %: 3 to 20), it was on 0 min``. Growth costs more, and says so.
    """
    if not total["periods"]:
        return "nothing is attested yet"
    usd = total["saved_usd"]
    if usd is None:
        money = "what was saved is not known"
    elif usd["mid"] < 0:
        money = f"cost {dollars(-usd['mid'])} more{_ends(dollars(-usd['high']), dollars(-usd['low']))}"
    else:
        money = f"saved {dollars(usd['mid'])}{_ends(dollars(usd['low']), dollars(usd['high']))}"
    return f"{money}{and_unknown(total.get('lacking', ())) if usd is not None else ''}; {_missed(total)}"


def _missed(total: Mapping[str, Any]) -> str:
    would, really = total["would_miss_s"], total["missed_s"]
    was = "whether it was is not known" if really is None else f"it was on {really / 60:.0f} min"
    if would is None:
        return f"whether the objective would have been missed is not known, {was}"
    low, mid, high = (f"{would[end] / 60:.0f}" for end in ("low", "mid", "high"))
    return f"the objective would have been missed on {mid} min{_ends(low, high)}, {was}"


def _ends(low: str, high: str) -> str:
    """Of an 80 % interval; nothing where both are one figure."""
    return "" if low == high else f" (80 %: {low} to {high})"


def track_record(held: Mapping[str, Mapping[str, int]]) -> str:
    """How good the promises have been, here and on all endpoints."""
    here, everywhere = held["endpoint"], held["all"]
    if not everywhere["promises"]:
        return "none yet; 80 % of them should hold"
    own = (
        f"{here['held']} of {here['promises']} held on this endpoint, "
        if here["promises"]
        else "none on this endpoint yet, "
    )
    return f"{own}{everywhere['held']} of {everywhere['promises']} held on all (80 % should)"
