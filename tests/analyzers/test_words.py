"""Figures as people say them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.words import lasting

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"), (0.25, "0.25 s"), (1.5, "1.5 s"), (45.2, "45 s"), (59.7, "1 min"), (60.0, "1 min"), (150.6, "2 min 31 s"),
        (599.8, "10 min"), (750.0, "12 min"), (3580.0, "1 h"), (3600.0, "1 h"), (9000.0, "2 h 30 min"), (86_400.0, "24 h"),
        (172_800.0, "2 d"), (216_000.0, "2 d 12 h"), (2_592_000.0, "30 d"),
    ],
)  # fmt: skip
def test_a_duration_is_said_in_at_most_two_units(seconds: float, said: str) -> None:
    assert lasting(seconds) == said


@given(st.floats(0.001, 1e8))
def test_what_is_said_is_near_what_it_is(seconds: float) -> None:
    words = lasting(seconds).split()
    told = sum(float(n) * UNITS[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    assert told == pytest.approx(seconds, rel=0.055)
