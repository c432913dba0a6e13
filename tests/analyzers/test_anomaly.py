"""Unlike its season: the stated chance of a false alarm holds, a planted anomaly is found and named, a usual night is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from analyzers.anomaly import ALPHA, DAY_S, IN_A_ROW, LEAST_SLOTS, SLOT_S, SeasonModel, SlotFigures, anomaly
from tests.analyzers.situations import situation

DAY = int(DAY_S / SLOT_S)


def slots(n: int, seed: int, first: int = 0) -> list[SlotFigures]:
    """A day curve of 2/s give or take 1.6, whose latencies follow the load."""
    rng = np.random.default_rng((seed, first))
    made = []
    for i in range(first, first + n):
        rate = (2 + 1.6 * math.sin(2 * math.pi * i / DAY)) * math.exp(rng.normal(0, 0.08))
        ttft = (0.1 + 0.05 * rate) * math.exp(rng.normal(0, 0.05))
        values = {
            "requests_per_s": rate,
            "prompt_tokens": 600 * math.exp(rng.normal(0, 0.05)),
            "output_tokens": 200 * math.exp(rng.normal(0, 0.05)),
            "ttft_p50_s": ttft,
            "ttft_p95_s": 2 * ttft * math.exp(rng.normal(0, 0.1)),
            "itl_p50_s": (0.01 + 0.002 * rate) * math.exp(rng.normal(0, 0.03)),
            "error_rate": max(0.0, rng.normal(0, 0.001)),
            "waiting": max(0.0, rng.normal(0, 0.1)),
        }
        made.append(SlotFigures(i * SLOT_S, values))
    return made


@cache
def season(seed: int = 0) -> SeasonModel:
    found = SeasonModel.of(slots(7 * DAY, seed), 7)
    assert found is not None
    return found


def like(slot: SlotFigures, **changed: float) -> SlotFigures:
    return SlotFigures(slot.start, {n: v * changed.get(n, 1.0) for n, v in slot.values.items()})


def judged(latest: Sequence[SlotFigures]) -> str | None:
    found = anomaly(situation(), season(), latest)
    return None if found is None else found.reason.text


def test_a_usual_slot_is_called_strange_as_seldom_as_is_stated() -> None:
    """Split conformal: over ten days that it has not seen, within three standard deviations of the rate, and of the calibration's."""
    found = season().probabilities(slots(10 * DAY, 1, 7 * DAY))
    share, n, m = float(np.mean(found <= 0.05)), 10 * DAY, 3.5 * DAY
    assert share <= 0.05 + 3 * math.sqrt(0.05 * (1 / n + 1 / m))
    strange = found <= ALPHA
    assert float(np.mean(strange)) <= ALPHA + 3 * math.sqrt(ALPHA * (1 / n + 1 / m))
    alarms = int(np.sum(strange[1:] & strange[:-1]))
    assert alarms <= 2


def test_slow_answers_at_a_usual_load_are_found_and_named() -> None:
    usual = slots(IN_A_ROW, 2, 7 * DAY)
    assert judged(usual) is None
    text = judged([like(s, ttft_p50_s=4.0, ttft_p95_s=4.0) for s in usual])
    assert text is not None
    assert text.startswith("unlike the same hour of the days before for 10 min: ")
    assert "the median time to first token" in text
    assert "at this hour usually" in text


def test_a_load_of_noon_is_no_anomaly_at_noon_and_is_one_at_midnight() -> None:
    noon, midnight = slots(IN_A_ROW, 3, 7 * DAY + DAY // 4), slots(IN_A_ROW, 3, 7 * DAY + 3 * DAY // 4)
    assert judged(noon) is None
    assert judged([SlotFigures(m.start, n.values) for m, n in zip(midnight, noon, strict=True)]) is not None


def test_one_strange_slot_alone_and_what_is_not_known_are_none() -> None:
    first, second = slots(IN_A_ROW, 4, 7 * DAY)
    strange = like(second, ttft_p50_s=9.0, ttft_p95_s=9.0)
    assert judged([first, strange]) is None
    assert judged([strange]) is None
    unknown = SlotFigures(first.start, {"requests_per_s": 50.0})
    assert np.isnan(season().probabilities([unknown])[0])
    assert judged([unknown, strange]) is None


@pytest.mark.parametrize("n", [0, LEAST_SLOTS - 1])
def test_without_three_days_there_is_no_season(n: int) -> None:
    assert SeasonModel.of(slots(n, 5), 7) is None


def test_without_some_hours_of_the_day_there_is_none_either() -> None:
    day = [s for s in slots(7 * DAY, 6) if s.start % DAY_S < DAY_S / 2]
    assert len(day) >= LEAST_SLOTS
    assert SeasonModel.of(day, 7) is None


def test_the_same_history_gives_the_same_answer() -> None:
    again = SeasonModel.of(slots(7 * DAY, 0), 7)
    assert again is not None
    assert np.array_equal(again.distances, season().distances)
