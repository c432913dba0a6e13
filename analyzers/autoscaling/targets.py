"""The targets and the least count of an endpoint's own autoscaler that would carry its days at the least cost.

Whole days are replayed under the autoscaler itself, and judged hour by hour: a target that is cheap on average and late each morning is
none. Pure: days in, a shape out; who replays them is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from actuators.shape import Autoscaling, Shape
from analyzers.prediction import AutoscaledDay

#: What the present targets are multiplied by, ascending: the larger the target, the fewer the replicas.
MULTIPLES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)


@dataclass(frozen=True, slots=True)
class TunedTargets:
    """The cheapest setting found that holds, beside the present one."""

    shape: Shape
    day: AutoscaledDay
    present: AutoscaledDay

    def why(self) -> str:
        """For people."""
        missed = self.present.hours_missed
        now = f"{self.present.replicas_mean:.3g} replicas on average" + (
            f", and {missed} hours a week in which the objective is missed" if missed else ""
        )
        return (
            f"a day of the most to expect at each time of day, replayed under the autoscaler itself: {self.day.replicas_mean:.3g} replicas on "
            f"average and {self.day.within:.1%} of the requests in time, no hour missed; as it is set now {now}"
        )


def tuned_targets(
    present: Shape, least_counts: Sequence[int], follow: Callable[[Shape], AutoscaledDay]
) -> TunedTargets | None:
    """The cheapest of all settings that hold every hour; None where none does, or the present one is it.

    least_counts: fewest replicas to try, within the most that there may be. follow: replays one; asked a handful of times for each of them,
    as what a target holds, a smaller one of the same autoscaler holds too.
    """
    assert present.autoscaling is not None, "only an autoscaler has targets"
    now = follow(present)

    def again(shape: Shape) -> AutoscaledDay:
        return now if shape == present else follow(shape)

    best: tuple[float, Shape, AutoscaledDay] | None = (now.replicas_mean, present, now) if now.held else None
    low = 0
    for least in sorted(least_counts):
        if best is not None and least >= best[0]:  # on average there are never fewer
            break
        found = _largest(present, least, low, again)
        if found is None:
            continue
        low, shape, day = found
        if best is None or day.replicas_mean < best[0]:
            best = (day.replicas_mean, shape, day)
    if best is None or best[1] == present:
        return None
    return TunedTargets(best[1], best[2], now)


def _largest(
    present: Shape, least: int, low: int, follow: Callable[[Shape], AutoscaledDay]
) -> tuple[int, Shape, AutoscaledDay] | None:
    """The largest targets that hold, by halving from the ``low``-th on: what holds with fewer replicas at least holds with more."""
    found: tuple[int, Shape, AutoscaledDay] | None = None
    high = len(MULTIPLES)
    while low < high:
        at = (low + high) // 2
        shape = _set(present, least, MULTIPLES[at])
        day = follow(shape)
        if day.held:
            found, low = (at, shape, day), at + 1
        else:
            high = at
    return found


def _set(present: Shape, least: int, multiple: float) -> Shape:
    bounds = present.autoscaling
    assert bounds is not None
    if multiple == 1.0 and least == bounds.least:
        return present
    targets = {
        name: float(f"{value * multiple:.2g}") if multiple != 1.0 else value for name, value in bounds.targets.items()
    }
    return replace(present, autoscaling=Autoscaling(least, bounds.most, targets))
