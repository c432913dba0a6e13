"""The decision, with a table in place of the simulation: what is chosen, what is not, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.shape import Schedule, ScheduleStep, Shape
from analyzers.findings import analyze
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import CannotPredict, Interval, Prediction, Predictor
from analyzers.recommend import Decision, ScheduleHold, at_rest, recommend, request
from analyzers.situation import Situation
from collectors.window import Gauge, Window
from tests.analyzers.situations import HOUR, MINUTE, SHAPE, Whole, hour, minute, objective, promise, situation

CATALOGUE = Catalogue(prices={"small": 1.0, "big": 3.0})
WIDE = Policy(max_replicas=4, sizes=["big"])
SLOW = hour(ttft=[3.0] * 10, waiting=6.0, running=20.0)
Key = tuple[str | None, int | None]


def table(known: Mapping[Key, float | Prediction], grown: Mapping[Key, float] | None = None) -> Predictor:
    """``ttft_p95_s`` by size and replicas, at the load observed and (default: the same) at the grown load."""

    def predict(shape: Shape, factor: float) -> Prediction:
        key = (shape.size, shape.replicas)
        found = (grown or {}).get(key) if factor > 1 else None
        found = known.get(key) if found is None else found
        if found is None:
            raise CannotPredict("NO_EVIDENCE", f"nothing is known of {shape.label()}")
        return found if isinstance(found, Prediction) else promise(found)

    return Whole(predict)


def decide(s: Situation, predict: Predictor) -> Decision:
    return recommend(s, analyze(s), CATALOGUE, predict)


def chosen(decision: Decision) -> Key:
    assert decision.recommendation is not None, [r.code for r in decision.hold]
    shape = decision.recommendation.proposed.shape
    return shape.size, shape.replicas


def hold(decision: Decision) -> list[str]:
    assert decision.recommendation is None
    return [r.code for r in decision.hold]


# -- growing ------------------------------------------------------------------------------------------------------------


def test_a_breach_is_relieved_by_the_cheapest_shape_that_meets_the_objective() -> None:
    predict = table(
        {("small", 2): 3.0, ("small", 1): 9.0, ("small", 3): 0.95, ("small", 4): 0.8, ("big", 1): 0.7, ("big", 2): 0.3}
    )
    decision = decide(situation(SLOW, policy=WIDE), predict)
    assert chosen(decision) == ("big", 1)  # 3 dollars, where four small ones cost 4; three small ones miss the margin
    advice = decision.recommendation
    assert advice is not None
    assert advice.direction == "grow"
    assert advice.saving_per_month == pytest.approx(-730.0)
    assert [r.code for r in advice.reasons] == ["OBJECTIVE_BREACH_TTFT_P95_S", "QUEUE_WAITING", "BATCH_FULL"]
    verdicts = {(o.shape.size, o.shape.replicas): o.verdict for o in advice.options}
    assert verdicts[("small", 3)] == "MISSES_OBJECTIVE"
    assert verdicts[("small", 2)] == "current"
    assert verdicts[("small", 1)] == "TOO_FEW"
    assert verdicts[("big", 2)] == "COSTS_MORE"  # and is not replayed: a cheaper one would do
    assert advice.options[0].verdict == "chosen"
    assert advice.options[0].shape == advice.proposed.shape


def test_what_may_meet_it_is_not_said_to_meet_it() -> None:
    wide = Prediction({"ttft_p95_s": Interval(0.3, 0.8, 1.4)}, 0.0, "simulation")
    decision = decide(situation(SLOW, policy=Policy(max_replicas=4)), table({("small", 2): 3.0, ("small", 3): wide}))
    assert chosen(decision) == ("small", 3)
    assert (
        decision.options[0].why
        == "time to first token (p95) would be at 80% of its limit, and may be at 140%: whether it meets it is not known"
    )


def test_where_nothing_meets_it_the_nearest_is_proposed_and_said_to_be_that() -> None:
    predict = table({("small", 2): 3.0, ("small", 3): 2.0, ("small", 4): 1.5})
    decision = decide(situation(SLOW, policy=Policy(max_replicas=4)), predict)
    assert chosen(decision) == ("small", 4)
    assert decision.recommendation is not None
    assert "BEST_EFFORT" in [r.code for r in decision.recommendation.reasons]
    assert decision.recommendation.risk == "high"


def test_where_nothing_helps_nothing_is_proposed() -> None:
    predict = table({("small", 2): 3.0, ("small", 3): 2.9, ("small", 4): 2.8})
    assert hold(decide(situation(SLOW, policy=Policy(max_replicas=4)), predict)) == ["NO_SHAPE_MEETS"]
    assert hold(decide(situation(SLOW, policy=Policy(max_replicas=2)), predict)) == ["NO_SHAPE_MEETS"]


def test_what_would_saturate_is_not_chosen() -> None:
    predict = table(
        {("small", 2): 3.0, ("small", 3): promise(0.5, saturates=0.4), ("small", 4): promise(0.5, saturates=0.1)}
    )
    decision = decide(situation(SLOW, policy=Policy(max_replicas=4)), predict)
    assert chosen(decision) == ("small", 4)
    assert decision.recommendation is not None
    assert decision.recommendation.risk == "high"  # it saturates in a tenth of the replays still
    assert next(o for o in decision.options if o.shape.replicas == 3).verdict == "SATURATES"


def test_saturation_without_a_breach_does_not_grow() -> None:
    s = situation(hour(waiting=6.0, running=18.5), policy=WIDE)
    assert hold(decide(s, table({("small", 2): 0.2, ("small", 3): 0.1}))) == ["QUEUE_WAITING"]


def test_among_equals_the_one_that_touches_least() -> None:
    policy = Policy(max_replicas=2, engine={"max_num_seqs": [20]})
    predict = table({("small", 2): 2.9, ("small", 1): 9.0})

    def by_engine(shape: Shape, factor: float) -> Prediction:
        return (
            promise(0.5)
            if shape.engine["max_num_seqs"] == 20 and shape.replicas == 2
            else predict.predict(shape, factor)
        )

    decision = recommend(
        situation(SLOW, policy=policy), analyze(situation(SLOW, policy=policy)), CATALOGUE, Whole(by_engine)
    )
    assert decision.recommendation is not None
    assert decision.recommendation.proposed.shape == SHAPE.with_(engine={"max_num_seqs": 20})
    assert decision.recommendation.direction == "reshape"
    assert decision.recommendation.saving_per_month == 0.0


# -- shrinking ----------------------------------------------------------------------------------------------------------


def test_a_smaller_shape_that_holds_at_the_grown_load_by_its_high_end() -> None:
    decision = decide(situation(), table({("small", 2): 0.25, ("small", 1): 0.5}))
    assert chosen(decision) == ("small", 1)
    assert decision.recommendation is not None
    assert decision.recommendation.direction == "shrink"
    assert decision.recommendation.saving_per_month == pytest.approx(730.0)
    assert decision.recommendation.risk == "medium"


@pytest.mark.parametrize(
    ("now", "grown"),
    [
        (0.95, 0.2),  # misses the margin now
        (0.5, 0.8),  # 0.96 at the high end of the grown load
    ],
)
def test_a_smaller_shape_without_headroom_is_not_proposed(now: float, grown: float) -> None:
    predict = table({("small", 2): 0.25, ("small", 1): now}, {("small", 1): grown})
    assert hold(decide(situation(), predict)) == ["RIGHT_SIZE"]


def test_a_smaller_shape_that_saturates_once_at_the_grown_load_is_not_proposed() -> None:
    def predict(shape: Shape, factor: float) -> Prediction:
        return promise(0.2, saturates=0.01 if factor > 1 else 0.0)

    assert hold(decide(situation(), Whole(predict))) == ["RIGHT_SIZE"]


@pytest.mark.parametrize(
    ("policy", "codes"),
    [
        (Policy(min_saving_per_month=731.0), ["SAVING_TOO_SMALL"]),
        (Policy(min_saving_share=0.51), ["SAVING_TOO_SMALL"]),
        (Policy(min_saving_share=0.5), []),
        (Policy(min_replicas=2), ["RIGHT_SIZE"]),
    ],
)
def test_a_saving_must_be_worth_the_disruption(policy: Policy, codes: list[str]) -> None:
    decision = decide(situation(policy=policy), table({("small", 2): 0.25, ("small", 1): 0.5}))
    assert [r.code for r in decision.hold] == codes
    assert (decision.recommendation is None) == bool(codes)


@pytest.mark.parametrize(
    ("windows", "code"),
    [
        (hour(waiting=3.0, running=18.5), "QUEUE_WAITING"),
        (hour(kv_max=0.99), "KV_CACHE_FULL"),
        (hour(running=19.5), "BATCH_FULL"),
    ],
)
def test_any_signal_forbids_a_smaller_shape(windows: list[object], code: str) -> None:
    decision = decide(situation(windows), table({("small", 2): 0.25, ("small", 1): 0.5}))  # type: ignore[arg-type]
    assert hold(decision) == [code]
    assert decision.options  # they were judged, and can be shown


def test_rising_load_forbids_a_smaller_shape() -> None:
    rising = [replace(w, counts={**w.counts, "requests": 60.0 + i}) for i, w in enumerate(hour())]
    assert hold(decide(situation(rising), table({("small", 2): 0.25, ("small", 1): 0.5}))) == ["LOAD_RISING"]


def test_a_model_that_is_too_hopeful_is_not_believed() -> None:
    """0.2 s were observed; for the very shape that it has, at most 0.12 s were predicted."""
    assert hold(decide(situation(), table({("small", 2): 0.1, ("small", 1): 0.2}))) == ["MODEL_TOO_HOPEFUL"]


# -- what is not decided ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s", "code"),
    [
        (situation([]), "NO_DATA"),
        (situation(hour(coverage=0.5, ttft=[9.0] * 10)), "LOW_COVERAGE"),
        (situation(hour(requests=0.5)), "FEW_REQUESTS"),
        (situation(objective=objective({})), "NO_OBJECTIVE"),
        (situation(shape=Shape(size="small")), "UNKNOWN_SHAPE"),
    ],
)
def test_without_evidence_nothing_is_decided(s: Situation, code: str) -> None:
    assert hold(decide(s, table({("small", 2): 0.2, ("small", 1): 0.1}))) == [code]


def test_without_a_prediction_nothing_is_decided() -> None:
    for windows in (hour(), SLOW):
        assert hold(decide(situation(windows, policy=WIDE), table({}))) == ["NO_EVIDENCE"]


def test_without_a_price_replicas_can_still_be_compared_but_no_saving_is_claimed() -> None:
    s = situation(per_hour=None)
    decision = recommend(s, analyze(s), Catalogue(), table({("small", 2): 0.25, ("small", 1): 0.5}))
    assert chosen(decision) == ("small", 1)
    assert decision.recommendation is not None
    assert decision.recommendation.direction == "shrink"
    assert decision.recommendation.saving_per_month is None
    assert decision.recommendation.proposed.money.per_hour is None


def test_without_a_price_another_size_is_not_taken_for_cheaper() -> None:
    s = situation(per_hour=None, policy=Policy(sizes=["big"], min_replicas=2, max_replicas=2))
    assert hold(recommend(s, analyze(s), Catalogue(), table({("small", 2): 0.25, ("big", 2): 0.1}))) == ["RIGHT_SIZE"]


# -- what the server shows against what the model, or the settings, say --------------------------------------------------


def by_load(known: Mapping[Key, float], at_more: Mapping[Key, float | Prediction]) -> Predictor:
    """At the load observed, and at any more of it."""

    def predict(shape: Shape, factor: float) -> Prediction:
        found = (at_more if factor > 1 else known)[shape.size, shape.replicas]
        return found if isinstance(found, Prediction) else promise(found)

    return Whole(predict)


HOPEFUL = {("small", n): 0.039 for n in (1, 2, 3, 4)}


def test_under_a_breach_a_model_that_the_server_refutes_is_not_followed_but_what_waits_is() -> None:
    """4 s are observed, 0.039 s predicted; 20 run and 9 wait: 2.9 replicas of 2 would run them all."""
    s = situation(hour(ttft=[4.0] * 10, waiting=9.0, running=20.0), policy=Policy(max_replicas=4))
    decision = decide(s, by_load(HOPEFUL, HOPEFUL))
    assert chosen(decision) == ("small", 3)
    advice = decision.recommendation
    assert advice is not None
    assert "MODEL_TOO_HOPEFUL" in [r.code for r in advice.reasons]
    assert advice.proposed.prediction is None
    assert advice.risk == "high"
    assert "20.0 run: 2.9 replicas" in advice.proposed.why
    assert [o.observed for o in advice.observed] == [pytest.approx(4.0, rel=0.02)]


def test_where_nothing_waits_replicas_do_not_help_a_refuted_model() -> None:
    s = situation(hour(ttft=[4.0] * 10, running=2.0), policy=Policy(max_replicas=4))
    assert hold(decide(s, by_load(HOPEFUL, HOPEFUL))) == ["MODEL_TOO_HOPEFUL", "NOTHING_BY_OBSERVATION"]
    s = situation(hour(ttft=[4.0] * 10, waiting=9.0, running=20.0), policy=Policy(max_replicas=2))
    assert hold(decide(s, by_load(HOPEFUL, HOPEFUL))) == ["MODEL_TOO_HOPEFUL", "NOTHING_BY_OBSERVATION"]


def test_a_queue_that_a_little_more_load_would_explain_refutes_no_model() -> None:
    """Near what a shape can carry, a queue without end is a few per cent away."""
    known = {("small", 2): 0.8, ("small", 1): 9.0, ("small", 3): 0.3, ("small", 4): 0.2}
    full = {**known, ("small", 2): promise(5.0, saturates=1.0)}
    assert chosen(decide(situation(SLOW, policy=Policy(max_replicas=4)), by_load(known, full))) == ("small", 3)


def test_what_is_predicted_to_change_nothing_is_not_proposed() -> None:
    """The present shape meets it by the model, within its error; the others are hardly better."""
    s = situation(hour(ttft=[1.05] * 10, running=20.0), policy=Policy(max_replicas=4))
    wide = {n: promise(0.88 - 0.01 * n, spread=0.4) for n in (1, 2, 3, 4)}
    decision = decide(s, table({("small", n): p for n, p in wide.items()}))
    assert hold(decision) == ["NO_SHAPE_MEETS"]


def test_under_a_breach_fewer_machines_of_the_same_size_are_never_proposed() -> None:
    """Whatever a replay says of another limit on one of them: it was never seen there."""
    policy = Policy(max_replicas=2, engine={"max_num_seqs": [40]})
    best = {(2, 10): 3.0, (1, 40): 0.3, (2, 40): 0.5}
    s = situation(SLOW, policy=policy)
    decision = decide(s, Whole(lambda c, _: promise(best.get((c.replicas, c.engine["max_num_seqs"]), 9.0))))
    assert decision.recommendation is not None
    assert decision.recommendation.proposed.shape == SHAPE.with_(engine={"max_num_seqs": 40})


@given(st.floats(0.01, 0.6), st.floats(0.5, 30.0), st.floats(0.0, 30.0))
@settings(max_examples=60, deadline=None)
def test_no_refuted_model_is_ever_followed(predicted: float, seen: float, waiting: float) -> None:
    """Whatever it says: beside a breach that it denies, a proposal is more replicas of the same shape, or none."""
    policy = Policy(max_replicas=4, sizes=["big"], engine={"max_num_seqs": [5, 10, 20]})
    s = situation(
        hour(ttft=[seen] * 10, waiting=waiting, running=20.0), policy=policy, objective=objective({"ttft_p95_s": 0.4})
    )
    decision = decide(s, Whole(lambda _shape, _factor: promise(predicted)))
    if decision.recommendation is None or seen * 0.95 <= predicted * 1.2:
        return
    proposed = decision.recommendation.proposed.shape
    assert proposed == SHAPE.with_(replicas=proposed.replicas)
    assert proposed.replicas is not None
    assert SHAPE.replicas is not None
    assert proposed.replicas > SHAPE.replicas


def test_settings_that_the_server_contradicts_are_as_good_as_a_refuted_model() -> None:
    """Never more than 8 run while 12 wait, and 20 are stated."""
    s = situation(
        hour(ttft=[4.0] * 10, waiting=12.0, running=8.0), policy=Policy(max_replicas=4, engine={"max_num_seqs": [40]})
    )
    decision = decide(s, by_load(HOPEFUL, HOPEFUL))
    assert chosen(decision) == ("small", 4)
    assert decision.recommendation is not None
    assert "SETTINGS_CONTRADICT" in [r.code for r in decision.recommendation.reasons]
    state, text = decision.standing(analyze(s))
    assert state == "contradiction"
    assert text.endswith("is max_num_seqs really 10, and does each replica get requests?; proposed: replicas 2 → 4")
    fine = situation(hour(waiting=12.0, running=8.0))
    assert "SETTINGS_CONTRADICT" in hold(decide(fine, table({("small", 2): 0.2, ("small", 1): 0.3})))


def test_telemetry_that_cannot_be_so_decides_nothing() -> None:
    rows = [minute(i) if i < 57 else minute(i, requests=0.0, ttft=(), running=12.0) for i in range(60)]
    assert hold(decide(situation(rows), table({("small", 2): 0.2, ("small", 1): 0.3}))) == ["ENGINE_STUCK"]


# -- what was seen so far ------------------------------------------------------------------------------------------------


def test_after_a_few_minutes_a_breach_is_acted_on_provisionally_and_with_wide_intervals() -> None:
    known = {("small", 2): 3.0, ("small", 1): 9.0, ("small", 3): 0.5, ("small", 4): 0.3}
    policy = Policy(max_replicas=4)
    whole = decide(situation(SLOW, policy=policy), table(known)).recommendation
    early = decide(situation(SLOW[:5], policy=policy, end=5 * MINUTE, wanted_s=HOUR), table(known)).recommendation
    assert whole is not None
    assert early is not None
    assert early.proposed.shape == whole.proposed.shape
    assert any(r.startswith("provisional: 5 min of 1 h were seen") for r in early.risk_reasons)
    narrow, wide = (a.proposed.prediction.metrics["ttft_p95_s"] for a in (whole, early) if a.proposed.prediction)
    assert wide.low < narrow.low
    assert wide.high > narrow.high
    assert wide.mid == narrow.mid


def test_a_smaller_shape_waits_until_enough_was_seen_and_says_until_when() -> None:
    s = situation(hour()[:5], end=5 * MINUTE, wanted_s=HOUR)
    decision = decide(s, table({("small", 2): 0.25, ("small", 1): 0.5}))
    assert hold(decision) == ["GATHERING"]
    (reason,) = decision.hold
    assert reason.numbers == {"seen_s": 300.0, "wanted_s": 3600.0, "whole_at": 2880.0}
    assert "so far 1 x small, max_num_seqs=10 would do" in reason.text
    assert "from about 00:48 UTC" in reason.text
    later = situation(hour()[:48], end=48 * MINUTE, wanted_s=HOUR)
    assert chosen(decide(later, table({("small", 2): 0.25, ("small", 1): 0.5}))) == ("small", 1)


def test_no_proposal_comes_without_a_reason() -> None:
    advice = decide(situation(), table({("small", 2): 0.25, ("small", 1): 0.5})).recommendation
    assert advice is not None
    assert [r.code for r in advice.reasons] == ["LESS_WOULD_DO"]


# -- at rest -------------------------------------------------------------------------------------------------------------


def days(n: int, *, requests: float = 0.0, most: float = 0.0) -> list[Window]:
    """Hours with so many requests each."""
    calm = {"running": Gauge(0.0, most, 0.0), "waiting": Gauge(0.0, 0.0, 0.0)}
    return [
        Window("chat", "vllm", (i - 24 * n) * HOUR, HOUR, 1.0, 2, 0, {"requests": requests}, {}, calm)
        for i in range(24 * n)
    ]


def resting(longer: list[Window], **other: Any) -> Situation:
    return situation(hour(requests=0.0, ttft=(), running=0.0), longer=longer, wanted_s=HOUR, **other)


@pytest.mark.parametrize(("requests", "most"), [(0.0, 0.0), (3.0, 2.0)])
def test_two_replicas_without_traffic_for_days_become_one(requests: float, most: float) -> None:
    s = resting(days(3, requests=requests, most=most))
    decision = at_rest(s, analyze(s), CATALOGUE)
    assert decision is not None
    assert chosen(decision) == ("small", 1)
    advice = decision.recommendation
    assert advice is not None
    assert (advice.direction, advice.risk, advice.saving_per_month) == ("shrink", "medium", pytest.approx(730.0))
    assert [r.code for r in advice.reasons] == ["LITTLE_TRAFFIC"]


def test_one_that_can_be_no_smaller_is_told_of_other_kinds_of_deployment() -> None:
    s = resting(days(3), policy=Policy(min_replicas=2))
    decision = at_rest(s, analyze(s), CATALOGUE)
    assert decision is not None
    assert hold(decision) == ["LITTLE_TRAFFIC", "SMALLEST_ALREADY"]
    assert "pay by token" in decision.hold[1].text


@pytest.mark.parametrize(
    "longer",
    [
        [],
        days(3)[-20:],
        [replace(w, coverage=0.3) for w in days(3)],
        days(3, requests=60.0),
        days(2, requests=3.0, most=20.0),
    ],
    ids=["nothing", "not a day", "hardly watched", "enough requests", "busy at moments"],
)
def test_what_is_not_known_to_be_at_rest_stays_as_it_is(longer: list[Window]) -> None:
    s = resting(longer)
    decision = at_rest(s, analyze(s), CATALOGUE)
    assert decision is None or decision.recommendation is None


# -- asked for ----------------------------------------------------------------------------------------------------------


def test_a_persons_own_wish_is_replayed_and_priced() -> None:
    advice = request(
        situation(policy=WIDE), SHAPE.with_(size="big"), CATALOGUE, table({("small", 2): 0.2, ("big", 2): 2.0}), "ann"
    )
    assert advice.reasons[0].code == "REQUESTED"
    assert advice.direction == "grow"
    assert advice.saving_per_month == pytest.approx(-4 * 730)
    assert advice.risk == "high"  # it would miss the objective, and it is said, not forbidden
    assert "asked for by ann" in advice.proposed.why


def test_a_persons_own_wish_stays_within_the_guardrails() -> None:
    with pytest.raises(ValueError, match=r"more than max_replicas 4; 7 replicas at once .* max_step_replicas"):
        request(situation(policy=WIDE), SHAPE.with_(replicas=9), CATALOGUE, table({}), "ann")
    with pytest.raises(ValueError, match="the shape that it has already"):
        request(situation(), SHAPE, CATALOGUE, table({}), "ann")


def test_a_persons_own_wish_without_a_prediction_says_so() -> None:
    advice = request(situation(policy=WIDE), SHAPE.with_(replicas=3), CATALOGUE, table({}), "ann")
    assert advice.proposed.prediction is None
    assert (advice.risk, advice.risk_reasons) == ("high", ("nothing supports a prediction for this shape",))


# -- the value itself ---------------------------------------------------------------------------------------------------


def test_the_same_in_is_the_same_out() -> None:
    predict = table({("small", 2): 0.25, ("small", 1): 0.5})
    first, second = (decide(situation(), predict).recommendation for _ in range(2))
    assert first is not None
    assert second is not None
    assert first == second
    assert first.fingerprint == second.fingerprint
    body = json.loads(json.dumps(first.as_dict()))
    assert body["workload"] == pytest.approx(
        {"requests_per_s": 1.0, "peak_factor": 1.0, "prompt_tokens_mean": 100.0, "output_tokens_mean": 50.0}
    )
    assert Prediction.from_dict(body["proposed"]["prediction"]) == first.proposed.prediction


def test_under_a_schedule_a_breach_takes_the_most_that_was_approved_and_asks_nobody() -> None:
    schedule = Schedule((ScheduleStep("00:00", 2), ScheduleStep("12:00", 4)))
    shape = Shape(replicas=2, size="small", engine={"max_num_seqs": 10}, schedule=schedule)
    predict = table({("small", 2): 3.0, ("small", 3): 0.9, ("small", 4): 0.3})
    decision = decide(situation(SLOW, shape=shape, policy=Policy(max_replicas=4)), predict)
    assert decision.recommendation is None
    assert [(r.code, r.numbers) for r in decision.hold] == [("SCHEDULE_TOO_SMALL", {"replicas": 4.0})]
    assert decision.schedule_hold == ScheduleHold(4, decision.hold[0])
    at_most = situation(
        SLOW, shape=replace(shape, replicas=4, engine={"max_num_seqs": 5}), policy=Policy(max_replicas=5)
    )
    beyond = decide(at_most, table({("small", 4): 3.0, ("small", 5): 0.3}))
    assert beyond.recommendation is not None, "no more was approved: more is asked for"
    assert beyond.recommendation.proposed.shape.replicas == 5
    assert beyond.schedule_hold is not None, "and the clock takes none of the four away meanwhile"
    assert beyond.schedule_hold.replicas == 4
