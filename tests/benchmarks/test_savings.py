"""The benchmark of attested savings: one small world through the store, and how its rows are counted."""

from __future__ import annotations

from typing import Any

import pytest

from analyzers.whatif import calibrate
from benchmarks import savings


def test_a_world_is_attested_and_judged_by_its_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "REPLAYED", 1_000)
    row = savings.judge(0, hours=2)
    low, mid, high = (row["saved_usd"][end] for end in ("low", "mid", "high"))
    assert low <= mid <= high
    assert mid == pytest.approx(row["really_saved_usd"], abs=savings.USD), "a replica-hour of the four that served"
    assert row["held"] is (low <= row["really_saved_usd"] <= high)


def test_worlds_without_a_missed_minute_say_nothing_of_minutes() -> None:
    def row(held: bool, high_s: float, minutes_held: bool) -> dict[str, Any]:
        return {
            "held": held, "saved_usd": {"low": 9.0, "high": 11.0}, "really_saved_usd": 10.0, "held_of_the_models_kind": True,
            "would_miss_s": {"high": high_s}, "really_would_miss_s": 0.0, "minutes_held": minutes_held,
        }  # fmt: skip

    found = savings.summary([row(True, 0.0, True), row(True, 60.0, False), row(False, 60.0, True)])
    assert found["held"] == pytest.approx(2 / 3)
    assert (found["worlds_with_misses"], found["minutes_held"]) == (2, 0.5)
    assert found["width_of_saving"] == pytest.approx(0.2)
