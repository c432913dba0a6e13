"""What would break a proposed shape: each adversity does to the traffic what it says, and the answer counts only what was tried."""

from __future__ import annotations

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.prediction import CannotPredict, Prediction
from analyzers.premortem import ADVERSITIES, BURST_S, TICK_S, premortem
from collectors.workload import Workload
from tests.analyzers.situations import Whole, promise, situation
from tests.analyzers.test_decide_screening import situation as engine_situation

BY_CODE = {a.code: a for a in ADVERSITIES}


def hour(n: int = 3600) -> Workload:
    rng = np.random.default_rng(5)
    return Workload(
        np.sort(rng.random(n)) * 3600, rng.integers(10, 400, n), rng.integers(1, 200, n), rng.integers(0, 10, n)
    )


def changed(code: str, work: Workload) -> Workload:
    change = BY_CODE[code].change
    assert change is not None
    return change(work)


def test_each_change_of_the_requests_is_what_its_name_says() -> None:
    work = hour()
    assert changed("NO_PREFIX_HITS", work).prefix_tokens.sum() == 0
    assert changed("LONG_PROMPTS", work).prompt_tokens.sum() == pytest.approx(1.5 * work.prompt_tokens.sum(), rel=0.01)
    assert changed("LONG_ANSWERS", work).output_tokens.sum() == pytest.approx(1.5 * work.output_tokens.sum(), rel=0.02)
    tail = changed("LONG_TAIL", work).output_tokens
    assert np.count_nonzero(tail != work.output_tokens) == pytest.approx(len(work) / 10, abs=2)
    burst = changed("BURST", work)
    assert len(burst) == pytest.approx(len(work) * (1 + BURST_S / 3600), rel=0.02)
    ticks = changed("IN_STEP", work)
    assert len(ticks) == len(work)
    assert (
        np.count_nonzero(np.isclose(ticks.arrival_s % TICK_S, 0) | np.isclose(ticks.arrival_s % TICK_S, TICK_S))
        >= len(work) / 2
    )
    for adversity in ADVERSITIES:
        if adversity.change is not None:
            made = adversity.change(
                work
            )  # Workload itself refuses what is no traffic: not ascending, a prefix as long as its prompt
            assert np.all(np.diff(made.arrival_s) >= 0)


def slow_beyond(rate: float) -> Whole:
    """Two replicas carry twice as much as one."""

    def predict(shape: Shape, factor: float) -> Prediction:
        return promise(0.4 if factor <= rate * (shape.replicas or 0) else 4.0)

    return Whole(predict)


def test_it_says_how_many_and_what_breaks_it() -> None:
    found = premortem(situation(), Shape(replicas=2, size="small"), slow_beyond(0.6), 1.0)
    assert {a.code for a in found.broke} == {"LOAD_25", "LOAD_50", "LOAD_100", "REPLICA_LOST", "LOAD_AND_ANSWERS"}
    assert found.text.startswith("survives 6 of 11; breaks when the load is a quarter higher, when ")
    assert premortem(situation(), Shape(replicas=9, size="small"), slow_beyond(0.6), 1.0).text == "survives 11 of 11"


def test_a_late_replica_is_an_adversity_where_the_load_to_come_is_known() -> None:
    found = premortem(situation(), Shape(replicas=2, size="small"), slow_beyond(0.6), 1.0, delayed=1.3)
    assert "COLD_START_X3" in {a.code for a in found.broke}
    calm = premortem(situation(), Shape(replicas=2, size="small"), slow_beyond(0.6), 1.0, delayed=1.1)
    assert "COLD_START_X3" in {a.code for a in calm.survived}


def test_the_last_replica_lost_breaks_it_and_what_cannot_be_told_counts_for_neither() -> None:
    def refuses(_shape: Shape, _factor: float) -> Prediction:
        raise CannotPredict("NO_EVIDENCE", "nothing is known")

    found = premortem(situation(), Shape(replicas=1, size="small"), Whole(refuses), 1.0)
    assert [a.code for a in found.broke] == ["REPLICA_LOST"]
    assert len(found.unknown) == len(ADVERSITIES) - 1
    assert (
        premortem(situation(), Shape(size="small"), Whole(refuses), 1.0).text
        == "nothing could be tried: no replay supports it"
    )


def test_on_a_real_engine_more_is_never_easier() -> None:
    for seed in (1, 4, 9):
        s, replayer = engine_situation(seed)
        found = premortem(s, s.shape.with_(replicas=8), replayer, 1.0)
        broke = {a.code for a in found.broke}
        if "LOAD_25" in broke:
            assert {"LOAD_50", "LOAD_100", "LOAD_AND_ANSWERS"} <= broke
        if "LONG_ANSWERS" in broke:
            assert "LOAD_AND_ANSWERS" in broke
        assert len(found.survived) + len(found.broke) == len(ADVERSITIES)
