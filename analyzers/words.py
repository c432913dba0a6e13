"""Figures in words, the same wherever people read them."""

from __future__ import annotations

import math

#: Ends that differ by less than this share are one figure to a reader.
_ALIKE = 0.02


def lasting(seconds: float) -> str:
    """``45 s``, ``12.5 min``, ``3 h``, ``2.5 d``."""
    for least, unit in ((2 * 86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= least:
            return f"{seconds / {'d': 86_400.0, 'h': 3600.0, 'min': 60.0}[unit]:.3g} {unit}"
    return f"{seconds:.3g} s"


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
