"""Durations as people write them."""

from __future__ import annotations

import pytest

from collectors.durations import seconds_of


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("7d", 604_800.0), ("2w", 1_209_600.0), ("1.5 h", 5400.0),
     ("30", 30.0), (0.25, 0.25), (3, 3.0), ("0", 0.0), (" 10 MS ", 0.01)],
)  # fmt: skip
def test_what_is_read(written: object, seconds: float) -> None:
    assert seconds_of(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "soon", "5 parsecs", "-1s", "1e400", "nan", float("inf"), float("nan"), True, None, "5s5s"]
)
def test_what_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="write for instance 500ms"):
        seconds_of(written)
