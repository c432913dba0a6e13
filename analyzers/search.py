"""Searching shapes without trying all: shapes that differ in nothing but replicas are ordered by what they can carry.

One that has fewer replicas than one that does not do, will not do either. Values in, values out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from actuators.shape import Shape
from analyzers.policy import most_replicas


def key(shape: Shape) -> str:
    """The same for equal shapes."""
    return json.dumps(shape.as_dict(), sort_keys=True, default=str)


def by_kind(shapes: Iterable[Shape]) -> list[list[Shape]]:
    """Groups that are alike but for their replicas, each with the fewest first.

    Where the least of an autoscaler is varied under one most, the most parts groups too: fewer at most and more at least are in no order.
    """
    every = list(shapes)
    bounds = [shape.autoscaling for shape in every if shape.autoscaling is not None]
    parted = len({(b.least, b.most) for b in bounds}) > len({b.most for b in bounds})
    groups: dict[str, list[Shape]] = {}
    for shape in every:
        most = most_replicas(shape) if parted and shape.autoscaling is not None else None
        groups.setdefault(f"{key(_any_count(shape))} {most}", []).append(shape)
    return [sorted(group, key=_count) for group in groups.values()]


def _count(shape: Shape) -> tuple[int, int]:
    return most_replicas(shape) or 0, shape.autoscaling.least if shape.autoscaling is not None else 0


def _any_count(shape: Shape) -> Shape:
    autoscaling = None if shape.autoscaling is None else replace(shape.autoscaling, least=0, most=0)
    return shape.with_(replicas=None, autoscaling=autoscaling)


def least_replicas(
    group: Sequence[Shape], suits: Callable[[Shape], bool | None], dominated: Callable[[Shape, Shape], None]
) -> Shape | None:
    """The one of ``group`` (fewest first) with the fewest replicas that suits; None where none does.

    suits: None where that cannot be told, which says nothing of the others. dominated: called with each that is not tried, because it
    has fewer replicas than the second, which does not suit.
    """
    found: Shape | None = None
    low, high = 0, len(group)
    while low < high:
        # The most replicas first: where they do not do, nothing in the group does.
        at = high - 1 if found is None else (low + high) // 2
        answer = suits(group[at])
        if answer:
            found, high = group[at], at
        elif answer is None:
            group = [*group[:at], *group[at + 1 :]]
            high -= 1
        else:
            for less in group[low:at]:
                dominated(less, group[at])
            low = at + 1
    return found
