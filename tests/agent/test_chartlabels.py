"""Names of points in a chart: all there, and readable."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from agent.chartlabels import Dot, Label, labels

WIDTH, HEIGHT = 860.0, 260.0


def dot(number: int, x: float, y: float, bar: float = 0.0) -> Dot:
    return Dot(number, x, y, y - bar, y + bar)


def box(label: Label, at: Dot) -> tuple[float, float, float, float]:
    wide = 6.0 * len(label.text)
    left = at.x + label.dx - {"left": 0.0, "center": wide / 2, "right": wide}[label.align]
    return left, at.y + label.dy - 5, left + wide, at.y + label.dy + 5


def over(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


@pytest.mark.parametrize("seed", range(8))
def test_no_name_lies_over_another_a_dot_or_a_bar(seed: int) -> None:
    """In columns, as the prices of few sizes make them."""
    rng = np.random.default_rng(seed)
    xs = rng.choice([60.0, 300.0, 310.0, 700.0], 16) + rng.choice([0.0, 14.0], 16)
    dots = [
        dot(i + 1, x, y, bar=15.0 * (i % 2)) for i, (x, y) in enumerate(zip(xs, rng.uniform(0, 250, 16), strict=True))
    ]
    at = {d.number: d for d in dots}
    found = labels(dots, [], WIDTH, HEIGHT)
    told = [int(n) for label in found for n in label.text.split(", ")]
    assert sorted(told) == sorted(at)
    boxes = [box(label, at[label.number]) for label in found]
    assert not [1 for a, b in combinations(boxes, 2) if over(a, b)]
    points = [(d.x - 5, d.y - 5, d.x + 5, d.y + 5) for d in dots]
    assert not [1 for a in boxes for b in points if over(a, b)]


def test_points_that_lie_over_one_another_share_a_name() -> None:
    found = labels([dot(2, 100, 100), dot(7, 104, 103), dot(1, 100, 100), dot(3, 300, 100)], [], WIDTH, HEIGHT)
    assert sorted(label.text for label in found) == ["1, 2, 7", "3"]


def test_a_name_keeps_off_the_lines_and_within_the_chart() -> None:
    across = (0.0, 100.0, WIDTH, 100.0)
    (label,) = labels([dot(1, 100, 100)], [across], WIDTH, HEIGHT)
    assert (label.dx, abs(label.dy)) == (0, 13), "above or below a line that runs through it"
    (label,) = labels([dot(10, WIDTH, 100)], [], WIDTH, HEIGHT)
    assert label.align == "right"
    (label,) = labels([dot(1, 100, 0)], [], WIDTH, HEIGHT)
    assert label.dy == 0, "half a line above the edge is free"
