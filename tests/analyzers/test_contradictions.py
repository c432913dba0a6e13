"""Facts that exclude each other are named; what only looks odd is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.shape import Purchase, Shape
from analyzers.finding import Finding
from analyzers.findings import analyze
from analyzers.objective import Target, attainment, stalled_s
from analyzers.situation import Situation
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.sketch import Sketch
from collectors.window import Gauge, Window
from collectors.workload import Workload
from tests.analyzers.situations import MINUTE, hour, minute, objective, situation
from tests.analyzers.whatif import reference_server


def found(s: Situation) -> dict[str, Finding]:
    return {f.reason.code: f for f in analyze(s)}


def stuck(n: int, *, running: float = 12.0, waiting: float = 0.0) -> list[Window]:
    """An hour of which the last ``n`` minutes have requests under way and nothing that comes of them."""
    silent: dict[str, Any] = {"requests": 0.0, "ttft": (), "running": running, "waiting": waiting}
    return [*hour()[: 60 - n], *(minute(i, **silent) for i in range(60 - n, 60))]


# -- stuck ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("running", "waiting"), [(12.0, 0.0), (0.0, 400.0), (16.0, 30.0)])
def test_an_engine_that_is_stuck_is_named_within_three_windows(running: float, waiting: float) -> None:
    assert "ENGINE_STUCK" not in found(situation(stuck(2, running=running, waiting=waiting)))
    f = found(situation(stuck(3, running=running, waiting=waiting)))["ENGINE_STUCK"]
    assert f.severity == "critical"
    assert f.reason.numbers == {"running": running, "waiting": waiting, "stalled_s": 180.0}


def test_a_stuck_engine_is_no_idleness_and_is_not_met() -> None:
    wanted = objective({"ttft_p95_s": 1.0, "e2e_p95_s": 60.0})
    rows = [replace(w, sketches={**w.sketches, "e2e_s": Sketch.from_values([2.0] * 60)}) for w in stuck(3, waiting=5.0)]
    codes = found(situation(rows, objective=wanted))
    assert not {"NO_TRAFFIC", "LOW_OCCUPANCY", "LOAD_FALLING"} & set(codes)
    for name in ("TTFT_P95_S", "E2E_P95_S"):
        breach = codes[f"OBJECTIVE_BREACH_{name}"]
        assert breach.severity == "critical"
        assert "under way for 3 min without a token" in breach.reason.text
    assert [attainment(rows, t).met for t in wanted.targets] == [False, False]


def test_only_what_is_known_to_be_late_is_missed() -> None:
    """What runs may have had its first token, what waits has not; an age below the limit breaks nothing."""
    ttft, patient = Target.parse("ttft_p95_s", 1.0), Target.parse("e2e_p95_s", 600.0)
    assert attainment(stuck(3, waiting=5.0), ttft).met is False
    assert attainment(stuck(3), ttft).met is None
    rows = [replace(w, sketches={"e2e_s": Sketch.from_values([2.0] * 60)}) for w in stuck(3)]
    assert attainment(rows, patient).met is True


@pytest.mark.parametrize(
    "last",
    [
        {"requests": None, "tokens": None},  # its counters are gone: unknown is not nothing
        {"running": 0.0},  # nothing is under way
        {"running": None},  # nobody says that anything is
        {"requests": 5.0},  # something ends
        {"coverage": 0.0, "requests": None},  # nobody looked
    ],
)
def test_what_is_not_known_to_stand_still_is_not_stuck(last: dict[str, Any]) -> None:
    each: dict[str, Any] = {"requests": 0.0, "ttft": (), "running": 12.0} | last
    rows = [*hour()[:57], *(minute(i, **each) for i in range(57, 60))]
    assert "ENGINE_STUCK" not in found(situation(rows))
    assert stalled_s(rows) == 0.0


# -- telemetry that cannot be so -----------------------------------------------------------------------------------------


def full(i: int, *, running: float = 6.0, e2e: float = 6.0, **more: Any) -> Window:
    """A request a second that takes ``e2e`` seconds."""
    window = minute(i, running=running, **more)
    return replace(window, sketches={**window.sketches, "e2e_s": Sketch.from_values([e2e] * 60)})


def test_a_queue_of_400_and_no_request_are_not_both_true() -> None:
    each: dict[str, Any] = {"requests": 0.0, "ttft": (), "running": 0.0, "waiting": 400.0, "tokens": None}
    f = found(situation([minute(i, **each) for i in range(60)]))
    assert f["TELEMETRY_CONTRADICTS"].severity == "critical"
    assert "400 requests wait, none runs" in f["TELEMETRY_CONTRADICTS"].reason.text
    assert "NO_TRAFFIC" not in f


@pytest.mark.parametrize(("running", "wrong"), [(6.0, False), (15.0, False), (2.5, False), (25.0, True), (1.5, True)])
def test_what_is_under_way_is_the_rate_times_the_time_that_each_takes(running: float, wrong: bool) -> None:
    """By a factor of three: a gauge is read at moments."""
    f = found(situation([full(i, running=running) for i in range(60)]))
    assert ("TELEMETRY_CONTRADICTS" in f) == wrong


def test_more_cached_than_prompt_tokens_is_a_contradiction() -> None:
    rows = [replace(w, counts={**w.counts, "cached_prompt_tokens": 20_000.0}) for w in hour()]
    assert "cached of" in found(situation(rows))["TELEMETRY_CONTRADICTS"].reason.text


def test_more_gaps_than_tokens_are_a_contradiction() -> None:
    rows = [minute(i, itl=[0.01] * 9000) for i in range(5)]  # 3,000 tokens came out in each minute
    f = found(situation(rows, end=5 * MINUTE))
    assert "gaps between tokens were timed" in f["TELEMETRY_CONTRADICTS"].reason.text


def test_two_sources_may_count_at_different_places() -> None:
    rows = [replace(w, source="vllm+probe", counts={**w.counts, "cached_prompt_tokens": 20_000.0}) for w in hour()]
    assert "TELEMETRY_CONTRADICTS" not in found(situation(rows))


@given(st.floats(0.1, 20.0), st.floats(0.05, 30.0), st.floats(0.6, 1.6))
@settings(max_examples=50, deadline=None)
def test_telemetry_that_agrees_is_never_called_a_contradiction(rate: float, e2e: float, error: float) -> None:
    under_way = rate * e2e * error
    rows = []
    for i in range(60):
        window = minute(i, requests=rate * 60, running=under_way, ttft=[0.1] * 3)
        rows.append(
            replace(window, sketches={**window.sketches, "e2e_s": Sketch.from_values([e2e] * round(rate * 60))})
        )
    assert not {"TELEMETRY_CONTRADICTS", "ENGINE_STUCK"} & set(found(situation(rows)))


# -- metrics that vanish -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 20])
def test_what_the_server_tells_no_more_is_named_after_three_windows(n: int) -> None:
    gone = [
        replace(minute(i, requests=None, ttft=()), observed={"requests": 0.0, "ttft_s": 0.0}) for i in range(60 - n, 60)
    ]
    f = found(situation([*hour()[: 60 - n], *gone]))
    assert ("METRICS_LOST" in f) == (n >= 3)
    if n >= 3:
        assert (
            f["METRICS_LOST"].reason.text == "the server answers, and has not told requests, ttft_s for 3 min or longer"
        )
    assert "NO_TRAFFIC" not in f


def test_no_request_is_not_a_metric_lost() -> None:
    """A histogram without new values was told: nothing came."""
    rows = [*hour()[:50], *(minute(i, requests=0.0, ttft=(), running=0.0) for i in range(50, 60))]
    assert "METRICS_LOST" not in found(situation(rows))


# -- settings that the server contradicts ----------------------------------------------------------------------------------


def test_a_plateau_below_the_stated_limit_while_requests_wait() -> None:
    """running sits at 16 with 20 waiting, the cache is free, and 64 are stated (two replicas of 32)."""
    s = situation(hour(running=16.0, waiting=20.0, kv_max=0.01))
    shape = s.shape.with_(engine={"max_num_seqs": 32})
    f = found(replace(s, shape=shape))["SETTINGS_CONTRADICT"]
    assert f.kind == "contradiction"
    assert f.reason.numbers == {"running_most": 16.0, "waiting_mean": 20.0, "stated": 32.0, "replicas": 2.0}
    assert "is max_num_seqs really 32, and does each" in f.reason.text


@pytest.mark.parametrize(
    "each",
    [
        {"running": 19.5, "waiting": 20.0},  # the limit itself
        {"running": 8.0, "waiting": 0.0},  # nothing waits
        {"running": 8.0, "waiting": 20.0, "kv_max": 0.98},  # the cache is what holds it
        {"running": 8.0, "waiting": 20.0, "preemptions": 1.0},
    ],
)
def test_a_queue_with_another_cause_says_nothing_of_the_settings(each: dict[str, Any]) -> None:
    assert "SETTINGS_CONTRADICT" not in found(situation(hour(**each)))


def test_a_queue_that_comes_and_goes_beside_a_batch_half_empty_is_no_plateau() -> None:
    rows = [minute(i, running=3.0 + 1.5 * (i % 4), waiting=4.0 if i % 2 else 0.0) for i in range(60)]
    assert "SETTINGS_CONTRADICT" not in found(situation(rows))


@pytest.mark.parametrize(
    ("output", "prompt", "rate", "slots"),
    [
        (1, 1000, 60.0, 64),  # no decode at all: a sequence is gone with its prefill
        (8, 1000, 35.0, 64),
        (20, 1500, 25.0, 64),  # each iteration's budget goes into prompts, and 28 sequences are all that there ever are
        (60, 100, 60.0, 16),  # here the slots are what is short, and are what is stated
    ],
)
def test_what_waits_for_an_iterations_token_budget_is_no_plateau_of_slots(
    output: int, prompt: int, rate: float, slots: int
) -> None:
    """Prompts of one length, so that as many sequences run all the time, on an engine that is what the settings state."""
    engine = EngineModel(IterationCost(0.006, 4e-5, 3e-8, 2.8e-5, 2e-9), EngineLimits(slots, 2048, 400_000))
    arrival = reference_server.poisson(rate, 600.0, 1).arrival_s
    work = Workload(arrival, *(np.full(arrival.shape[0], n, np.int64) for n in (prompt, output, 0)))
    rows = reference_server.windows(engine, work)
    queue = [w.gauges["waiting"].mean for w in rows]
    assert min(queue[1:]) >= 1
    s = situation(rows, shape=Shape(replicas=1, engine={"max_num_seqs": slots}), end=rows[-1].end)
    assert "SETTINGS_CONTRADICT" not in found(s)
    wrong = found(replace(s, shape=Shape(replicas=1, engine={"max_num_seqs": 4 * slots})))
    assert ("SETTINGS_CONTRADICT" in wrong) == (output == 60)


def test_more_than_the_stated_limit_run() -> None:
    f = found(situation(hour(running=32.0, waiting=3.0)))["SETTINGS_CONTRADICT"]
    assert f.reason.text.startswith("32 sequences run at once")


def test_while_a_change_is_applied_two_engines_run_and_contradict_nothing() -> None:
    s = situation(hour(running=32.0, waiting=3.0))
    assert "SETTINGS_CONTRADICT" not in found(replace(s, changing=True))


def test_another_model_than_the_settings_name() -> None:
    rows = [replace(w, facts={"model": "llama-8b"}) for w in hour()]
    f = found(situation(rows, model="llama-70b"))["OTHER_MODEL"]
    assert not f.refutes
    assert f.reason.text == "the server serves llama-8b, and the settings name llama-70b"
    assert "OTHER_MODEL" not in found(situation(rows, model="llama-8b"))
    assert "OTHER_MODEL" not in found(situation(model="llama-70b"))


def test_bursts_between_two_readings_are_no_plateau_of_gauge_noise() -> None:
    """The largest reading stands alone: the means of the queued windows lie far below it."""
    rows = [replace(w, gauges={"running": Gauge(9.0, 16.0, 5.0), "waiting": Gauge(2.0, 9.0, 0.0)}) for w in hour()]
    assert "SETTINGS_CONTRADICT" not in found(situation(rows))


def test_a_small_limit_is_seen_through_the_gaps_between_two_sequences_and_a_dip() -> None:
    """As a server with four slots was read: now and then three run, and in one window of four the users pause."""
    means = [(3.58, 6.9), (4.0, 12.0), (3.75, 10.2), (2.35, 4.3)]
    rows = [
        replace(minute(i), gauges={"running": Gauge(running, 4.0, 4.0), "waiting": Gauge(waiting, 12.0, 12.0)})
        for i, (running, waiting) in enumerate(means, start=56)
    ]
    before = [minute(i, running=2.0, waiting=0.0) for i in range(56)]
    f = found(situation([*before, *rows]))["SETTINGS_CONTRADICT"]
    assert f.reason.numbers["running_most"] == 4.0
    below = {"running": Gauge(2.35, 3.0, 2.0), "waiting": Gauge(4.3, 9.0, 9.0)}
    rows[3] = replace(rows[3], gauges=below)
    rows[0] = replace(rows[0], gauges=below)
    assert "SETTINGS_CONTRADICT" not in found(situation([*before, *rows])), "a queue while fewer than that run"


@pytest.mark.parametrize(
    ("told", "refuted"), [("60000", True), ("120000", False), ("121000", False), ("n/a", False), ("", False)]
)
def test_answers_that_tell_another_limit_than_is_known(told: str, refuted: bool) -> None:
    rows = [replace(w, facts={"token_limit": told}) for w in hour()]
    bought = Shape(purchase=Purchase(120_000, "tokens_per_minute"))
    codes = found(situation(rows, shape=bought))
    assert ("SETTINGS_CONTRADICT" in codes) == refuted
    if refuted:
        assert codes["SETTINGS_CONTRADICT"].reason.numbers == {"told": 60_000.0, "known": 120_000.0}
        assert "a limit of 60,000 tokens a minute, and 120,000 are known" in codes["SETTINGS_CONTRADICT"].reason.text
    units = Shape(purchase=Purchase(50, "ptu"))
    assert "SETTINGS_CONTRADICT" not in found(situation(rows, shape=units))
