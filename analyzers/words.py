"""Figures in words, the same wherever people read them."""

from __future__ import annotations

import math

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
