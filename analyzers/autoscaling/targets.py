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

#: Settings whose replicas differ by no more than this share cost the same.
SAME = 0.01
#: A course of load for each kind of day.
SEASONAL = "a day of the most to expect at each time of day"


@dataclass(frozen=True, slots=True)
class TunedTargets:
    """The cheapest setting found that holds, beside the present one."""

    shape: Shape
    day: AutoscaledDay
    present: AutoscaledDay
    course: str
    """Of load, that was replayed."""

    def why(self) -> str:
        """For people."""
        missed = f"{self.present.within:.1%} in time"
        if self.course == SEASONAL:
            missed = f"{self.present.hours_missed} hours a week in which the objective is missed"
        now = f"{self.present.replicas_mean:.3g} replicas on average" + ("" if self.present.held else f", and {missed}")
        return (
            f"{self.course}, replayed under the autoscaler itself: {self.day.replicas_mean:.3g} replicas on "
            f"average and {self.day.within:.1%} of the requests in time, no hour missed; as it is set now {now}"
        )


def tuned_targets(
    present: Shape,
    least_counts: Sequence[int],
    follow: Callable[[Shape], AutoscaledDay],
    course: str = SEASONAL,
    *,
    laxer: bool = True,
) -> TunedTargets | None:
    """The cheapest of all settings that hold every hour; None where none does, or the present one is it.

    Of targets that take as many replicas, the smallest: it answers soonest to what nobody expected.

    least_counts: fewest replicas to try, within the most that there may be. follow: replays one; asked a handful of times for each of them,
    as what a target holds, a smaller one of the same autoscaler holds too. course: of load, for people. laxer: whether larger targets than the
    present ones are tried.
    """
    assert present.autoscaling is not None, "only an autoscaler has targets"
    known: dict[str, AutoscaledDay] = {}

    def once(shape: Shape) -> AutoscaledDay:
        key = repr(shape.autoscaling)
        if key not in known:
            known[key] = follow(shape)
        return known[key]

    def cheapest(least: int, low: int) -> tuple[int, Shape] | None:
        """With so many replicas at the least: from the ``low``-th target on, the place of the largest that holds; and the smallest that
        takes as few replicas."""
        shapes = [_set(present, least, multiple) for multiple in multiples]
        largest = _first(range(low, len(shapes)), lambda at: not once(shapes[at]).held) - 1
        if largest < low:
            return None
        as_cheap = once(shapes[largest]).replicas_mean * (1 + SAME)
        return largest, shapes[_first(range(largest), lambda at: once(shapes[at]).replicas_mean <= as_cheap)]

    now = once(present)
    multiples = [multiple for multiple in MULTIPLES if laxer or multiple <= 1.0]
    best = present if now.held else None
    low = 0
    for least in sorted(least_counts):
        if best is not None and least >= once(best).replicas_mean:  # on average there are never fewer
            break
        found = cheapest(least, low)
        if found is not None:
            low, shape = found
            if best is None or once(shape).replicas_mean < once(best).replicas_mean:
                best = shape
    return None if best is None or best == present else TunedTargets(best, once(best), now, course)


def _first(among: range, suits: Callable[[int], bool]) -> int:
    """By halving: the first that suits, where all after one that does do too; ``among.stop`` where none does."""
    low, high = among.start, among.stop
    while low < high:
        at = (low + high) // 2
        if suits(at):
            high = at
        else:
            low = at + 1
    return low


def _set(present: Shape, least: int, multiple: float) -> Shape:
    bounds = present.autoscaling
    assert bounds is not None
    if multiple == 1.0 and least == bounds.least:
        return present
    targets = {
        name: float(f"{value * multiple:.2g}") if multiple != 1.0 else value for name, value in bounds.targets.items()
    }
    return replace(present, autoscaling=Autoscaling(least, bounds.most, targets))
