"""Where the names of points stand in a chart, so that none lies over another, a dot or a bar. Pure: pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Align = Literal["left", "center", "right"]
#: From x, y to x, y, in pixels.
Line = tuple[float, float, float, float]

#: Of a figure in 11 px type, and of a line of it.
_WIDE, _HIGH = 6.4, 11.0
_DOT = 6.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A point in pixels, right and down, with its number and the ends of its bar."""

    number: int
    x: float
    y: float
    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Label:
    """A text, and how far from the dot ``number`` it stands."""

    number: int
    text: str
    dx: float
    dy: float
    align: Align


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def over(self, other: _Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)

    def outside(self, width: float, height: float) -> float:
        """The area beyond the chart's edges; half a line's height above is free of anything."""
        high, wide = self.bottom - self.top, self.right - self.left
        return (
            max(0.0, -self.left, self.right - width) * high
            + max(0.0, -self.top - _HIGH / 2, self.bottom - height) * wide
        )


def labels(dots: Sequence[Dot], lines: Sequence[Line], width: float, height: float) -> list[Label]:
    """A label for each dot; those that lie over one another share one, with all their numbers.

    lines: what else is drawn, each level or upright. Each label takes the first place around its dots where nothing is yet, or the
    one where it covers least.
    """
    taken = [_Box(d.x - _DOT, d.y - _DOT, d.x + _DOT, d.y + _DOT) for d in dots]
    taken += [_Box(d.x - 1.5, d.top, d.x + 1.5, d.bottom) for d in dots]
    taken += [
        _Box(min(x, to_x) - 1, min(y, to_y) - 1, max(x, to_x) + 1, max(y, to_y) + 1) for x, y, to_x, to_y in lines
    ]
    out = []
    for together in _heaps(dots):
        text = ", ".join(str(d.number) for d in sorted(together, key=lambda d: d.number))
        places = [(label, _box(label, dot, len(text))) for label, dot in _places(together, text)]
        label, box = min(
            places, key=lambda place: sum(place[1].over(t) for t in taken) + place[1].outside(width, height)
        )
        taken.append(box)
        out.append(label)
    return out


def _heaps(dots: Sequence[Dot]) -> list[list[Dot]]:
    """Dots that touch, directly or through others, from the left."""
    heaps: list[list[Dot]] = []
    for dot in sorted(dots, key=lambda d: (d.x, d.y, d.number)):
        near = [h for h in heaps if any(abs(d.x - dot.x) < 1.5 * _DOT and abs(d.y - dot.y) < 1.5 * _DOT for d in h)]
        heaps = [h for h in heaps if h not in near] + [[d for h in near for d in h] + [dot]]
    return heaps


def _places(heap: Sequence[Dot], text: str) -> Iterator[tuple[Label, Dot]]:
    """The places around a heap, the best first: beside it, above and below it, then at its corners, and further away."""
    right, left = max(heap, key=lambda d: d.x), min(heap, key=lambda d: d.x)
    above, below = min(heap, key=lambda d: d.y), max(heap, key=lambda d: d.y)
    for far in (1.0, 1.6, 2.4):
        sides: tuple[tuple[Dot, float, float, Align], ...] = (
            (right, 9, 0, "left"),
            (left, -9, 0, "right"),
            (above, 0, -13, "center"),
            (below, 0, 13, "center"),
            (right, 8, -10, "left"),
            (right, 8, 10, "left"),
            (left, -8, -10, "right"),
            (left, -8, 10, "right"),
        )
        for dot, dx, dy, align in sides:
            yield Label(dot.number, text, dx * far, dy * far, align), dot


def _box(label: Label, dot: Dot, characters: int) -> _Box:
    wide = _WIDE * characters
    left = dot.x + label.dx - {"left": 0.0, "center": wide / 2, "right": wide}[label.align]
    return _Box(left, dot.y + label.dy - _HIGH / 2, left + wide, dot.y + label.dy + _HIGH / 2)
