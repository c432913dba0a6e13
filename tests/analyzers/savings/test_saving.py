"""Savings by hand: what is compared, what is unknown, and how several periods add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from actuators.shape import Schedule, ScheduleStep, Shape
from analyzers.autoscaling.own import fleet_of
from analyzers.money import Price, Tariff, Unit
from analyzers.objective import Objective
from analyzers.prediction import CannotPredict, Interval
from analyzers.savings.counterfactual import CountedPolicy, Counterfactual
from analyzers.savings.saving import PeriodEvidence, Saving, SavingTotal, reckon
from analyzers.whatif.scaling import Hpa, Keda, MetricTarget, ScalingInput
from analyzers.words import saved
from collectors.sketch import Sketch
from collectors.window import Window

T0 = 1_800_000_000.0
FIXED = Shape(replicas=3, size="gpu")
SCALED = Shape.from_dict({"size": "gpu", "autoscaling": {"least": 1, "most": 4, "targets": {"running": 5.0}}})
OBJECTIVE = Objective.from_mapping({"ttft_p95_s": 1.0})


def window(number: int, ttft: float = 0.2, requests: float | None = 60.0, coverage: float = 1.0) -> Window:
    return Window(
        "chat", "vllm", T0 + 60 * number, 60.0, coverage,
        counts={} if requests is None else {"requests": requests},
        sketches={"ttft_s": Sketch.from_values([ttft] * 60)} if coverage else {},
    )  # fmt: skip


def evidence(rows: Sequence[Window], usd: float | None = 1.0, minutes: int = 60) -> PeriodEvidence:
    return PeriodEvidence(T0, T0 + 60 * minutes, rows, (), {w.start: usd for w in rows})


def tariff(_at: float) -> Tariff:
    return Tariff.of({Unit.REPLICA_HOUR: 60.0})  # a dollar a replica-minute


def reckoned(shape: Shape, known: PeriodEvidence, found: Counterfactual | CannotPredict) -> Saving:
    def replay(_rows: Sequence[Window], _before: Sequence[Window]) -> Counterfactual:
        if isinstance(found, CannotPredict):
            raise found
        return found

    return reckon(shape, known, OBJECTIVE, tariff, replay)


def counterfactual(hours: float = 2.0, missed_s: float = 0.0) -> Counterfactual:
    ends = (0.9, 1.0, 1.2)
    return Counterfactual(Interval(*(hours * e for e in ends)), Interval(missed_s, missed_s, missed_s), 3600, 16)


def test_of_replicas_that_stay_only_the_price_is_asked() -> None:
    got = reckoned(FIXED, evidence([window(i) for i in range(60)]), CannotPredict("NO_EVIDENCE", "too little"))
    assert got.saved_usd == Interval(120.0, 120.0, 120.0)
    assert got.would_miss_s is None
    assert got.would_miss_unknown_s == 3600.0
    assert got.unknown == ("it could not be replayed: too little",)


def test_of_a_schedule_each_moments_replicas_are_paid() -> None:
    """From the half hour on one, before it three."""
    steps = (ScheduleStep(f"{int(T0 % 86_400 // 3600):02}:00", 3), ScheduleStep(f"{int(T0 % 86_400 // 3600):02}:30", 1))
    got = reckoned(
        FIXED.with_(schedule=Schedule(steps)),
        evidence([window(i) for i in range(60)]),
        CannotPredict("SCHEDULE", "why"),
    )
    assert got.saved_usd == Interval(60.0, 60.0, 60.0)


def test_of_an_autoscaler_the_replays_replicas_are_paid() -> None:
    got = reckoned(SCALED, evidence([window(i) for i in range(60)]), counterfactual())
    assert got.would_cost_usd == Interval(pytest.approx(108.0), pytest.approx(120.0), pytest.approx(144.0))
    assert got.saved_usd == Interval(pytest.approx(48.0), pytest.approx(60.0), pytest.approx(84.0))


def test_without_a_replay_an_autoscalers_cost_is_not_known() -> None:
    got = reckoned(SCALED, evidence([window(i) for i in range(60)]), CannotPredict("X", "why"))
    assert (got.would_cost_usd, got.saved_usd, got.spent_usd) == (None, None, 60.0)
    assert (got.hours_compared, got.hours_unknown) == (0.0, 1.0)


def test_windows_without_a_cost_are_compared_with_nothing() -> None:
    rows = [window(i) for i in range(60)]
    known = PeriodEvidence(T0, T0 + 3600, rows, (), {w.start: 1.0 if w.start < T0 + 1800 else None for w in rows})
    got = reckoned(SCALED, known, counterfactual())
    assert got.spent_usd == 30.0
    assert got.would_cost_usd is not None
    assert got.would_cost_usd.mid == pytest.approx(60.0), "two replicas on average, for half an hour"
    assert got.hours_unknown == pytest.approx(0.5)


def test_minutes_missed_not_missed_and_not_known() -> None:
    rows = [window(0), window(1, ttft=9.0), window(2, coverage=0.0, requests=None)]
    got = reckoned(FIXED, evidence(rows, minutes=5), counterfactual())
    assert got.missed_s == 60.0
    assert got.missed_unknown_s == pytest.approx(60.0 + 120.0), "one that saw nothing, and two that are not there"


def test_a_quiet_minute_is_met() -> None:
    quiet = Window("chat", "vllm", T0, 60.0, 1.0, counts={"requests": 0.0})
    got = reckoned(FIXED, evidence([quiet, window(1)], minutes=2), counterfactual())
    assert (got.missed_s, got.missed_unknown_s) == (0.0, 0.0)


def test_it_is_the_same_after_a_journey_through_json() -> None:
    got = reckoned(SCALED, evidence([window(i) for i in range(60)]), counterfactual(missed_s=60.0))
    assert Saving.from_dict({**got.as_dict(), "more": 1}) == got


def test_periods_add_up_and_what_is_not_known_is_left_out_and_counted() -> None:
    known = reckoned(SCALED, evidence([window(i) for i in range(60)]), counterfactual(missed_s=60.0))
    unknown = reckoned(SCALED, evidence([window(i) for i in range(60)]), CannotPredict("X", "why"))
    total = SavingTotal.of([known, known, unknown])
    assert total.saved_usd == Interval(pytest.approx(96.0), pytest.approx(120.0), pytest.approx(168.0))
    assert (total.spent_usd, total.periods, total.hours_unknown) == (120.0, 3, 1.0)
    assert SavingTotal.of([unknown]).saved_usd is None
    assert SavingTotal.of([]).saved_usd is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "saved $60.00 (80 %: $48.00 to $84.00); the objective would have been missed on 1 min, it was on 0 min"),
        ({"saved_usd": Interval(-84.0, -60.0, -48.0)}, "cost $60.00 more (80 %: $48.00 to $84.00); the objective"),
        ({"saved_usd": Interval(5.0, 5.0, 5.0)}, "saved $5.00; "),
        ({"saved_usd": None}, "what was saved is not known; "),
        ({"would_miss_s": None}, "whether the objective would have been missed is not known, it was on 0 min"),
    ],
)
def test_it_is_said_in_words(changed: dict[str, Any], said: str) -> None:
    one = reckoned(SCALED, evidence([window(i) for i in range(60)]), counterfactual(missed_s=60.0))
    total = SavingTotal.of([one])
    fields = {name: getattr(total, name) for name in SavingTotal.__slots__} | changed
    assert said in saved(SavingTotal(**fields).as_dict())


def test_prices_of_a_moment() -> None:
    prices = Tariff(
        (
            Price(3.0, Unit.REPLICA_HOUR),
            Price(4.0, Unit.REPLICA_HOUR, since=100.0),
            Price(1.0, Unit.INPUT_1K, since=50.0),
        )
    )
    assert [{p.per: p.usd for p in prices.at(at).prices} for at in (0.0, 60.0, 100.0)] == [
        {Unit.REPLICA_HOUR: 3.0},
        {Unit.REPLICA_HOUR: 3.0, Unit.INPUT_1K: 1.0},
        {Unit.REPLICA_HOUR: 4.0, Unit.INPUT_1K: 1.0},
    ]


# -- autoscalers --------------------------------------------------------------------------------------------------------


def test_an_autoscaler_by_an_engines_names() -> None:
    shape = Shape.from_dict(
        {"autoscaling": {"least": 2, "most": 6, "targets": {"vllm:num_requests_waiting": 5, "kv_usage": 0.8}}}
    )
    fleet = fleet_of(shape, 90.0)
    assert isinstance(fleet.policy, Hpa)
    assert fleet.policy.targets == (MetricTarget("waiting", 5.0), MetricTarget("kv_usage", 0.8))
    assert (fleet.replicas, fleet.min_replicas, fleet.max_replicas, fleet.cold_start_s) == (6, 2, 6, 90.0)


def test_one_that_may_go_to_none_is_kedas() -> None:
    shape = Shape.from_dict({"autoscaling": {"least": 0, "most": 3, "targets": {"in_flight": 8}}})
    assert isinstance(fleet_of(shape, 90.0).policy, Keda)


@pytest.mark.parametrize("targets", [{}, {"cpu": 0.7}, {"running": 5, "cpu": 0.7}])
def test_what_no_replay_can_follow_is_refused(targets: dict[str, float]) -> None:
    shape = Shape.from_dict({"autoscaling": {"least": 1, "most": 3, "targets": targets}})
    with pytest.raises(CannotPredict, match="UNREPLAYABLE_AUTOSCALER"):
        fleet_of(shape, 90.0)


def test_replicas_are_counted_between_two_moments() -> None:
    wishes = iter((4, 2, 2, 1))

    class Wish:
        interval_s = 10.0

        def __call__(self, _seen: ScalingInput, state: Any) -> tuple[int, Any]:
            return next(wishes), state

    policy = CountedPolicy(Wish())
    for i in range(1, 5):
        policy(ScalingInput(10.0 * i, 4, 0, 0.0, 0.0, 0.0, None), None)
    assert policy.replica_s(4, 0.0, 50.0) == 4 * 20 + 2 * 20 + 1 * 10
    assert policy.replica_s(4, 15.0, 35.0) == 4 * 5 + 2 * 15
