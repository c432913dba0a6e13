"""Did the change do what was promised? Every verdict by its code, at equal load and at another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analyzers.objective import Objective
from analyzers.prediction import Interval, Prediction
from analyzers.verify import (
    ALPHA,
    LEAST_WINDOWS,
    LedgerScore,
    Verdict,
    breach_evidence,
    judge,
    judge_restored,
    observed_metric,
)
from collectors.sketch import Sketch
from collectors.window import Gauge, Range, Window
from tests.analyzers.situations import hour, minute, objective, promise

FAST, SLOW, SLOWER = [0.2] * 10, [2.0] * 10, [4.0] * 10


def some(n: int, **each: Any) -> list[Window]:
    return [minute(100 + i, **each) for i in range(n)]


def verdict(
    after: Sequence[Window],
    before: Sequence[Window] | None = None,
    *,
    final: bool = False,
    wanted: Objective | None = None,
    promised: Prediction | None = None,
) -> Verdict:
    return judge(
        hour() if before is None else before,
        after,
        wanted or objective(),
        promised,
        needed=5,
        final=final,
        load_tolerance=0.2,
    )


def told(v: Verdict) -> tuple[str, str]:
    return v.state, v.code


def test_met_at_equal_load() -> None:
    v = verdict(some(5))
    assert told(v) == ("succeeded", "OBJECTIVE_MET")
    assert v.load_ratio == pytest.approx(1.0)
    assert v.comparable


def test_tokens_of_requests_that_are_under_way_are_no_longer_requests() -> None:
    """A shape that chokes: as many arrive, half of them end, and tokens of all come out. The lengths of those that ended are as before."""
    length = {"prompt_length": Sketch.from_values([100.0] * 9), "output_length": Sketch.from_values([50.0] * 9)}

    def told(windows: Sequence[Window]) -> list[Window]:
        return [replace(w, sketches={**w.sketches, **length}) for w in windows]

    choked = [
        replace(
            minute(100 + i, requests=30.0, ttft=SLOWER, tokens=(200.0, 100.0)),
            gauges={"running": Gauge(20.0, 20.0, 20.0), "waiting": Gauge(30.0 * i, 30.0 * i, 30.0 * (i + 1))},
        )
        for i in range(5)
    ]
    v = verdict(told(choked), told(hour()), promised=promise(0.2))
    assert (v.code, v.comparable) == ("BREACH_AFTER_CHANGE", True)
    assert "at the same load" in v.text
    assert all(score.comparable for score in v.scores)
    assert not verdict(choked, hour()).comparable  # by the counters alone nobody knows


def test_whole_windows_are_waited_for() -> None:
    assert told(verdict(some(4))) == ("pending", "WAITING")
    assert told(verdict([*some(4), minute(104, coverage=0.4)])) == ("pending", "WAITING")
    assert told(verdict(some(4), final=True)) == ("succeeded", "OBJECTIVE_MET")


def test_a_change_that_nobody_saw_is_not_vouched_for() -> None:
    assert told(verdict([], final=True)) == ("regressed", "BLIND")
    assert told(verdict([])) == ("pending", "WAITING")
    assert told(verdict(some(5, coverage=0.1), final=True)) == ("regressed", "BLIND")


def test_silence_is_not_success() -> None:
    silent = some(5, requests=0.0, ttft=())
    assert told(verdict(silent)) == ("pending", "WAITING")
    assert told(verdict(silent, final=True)) == ("regressed", "BLIND")


def test_silence_after_silence_is_as_quiet_as_it_was() -> None:
    silent = some(5, requests=0.0, ttft=(), running=0.0)
    assert told(verdict(silent, hour(requests=0.0, ttft=()))) == ("succeeded", "STILL_QUIET")
    assert told(verdict(silent, hour(requests=0.01, ttft=()))) == ("succeeded", "STILL_QUIET")
    assert told(verdict(silent, hour(requests=5.0))) == ("pending", "WAITING")  # 25 were due
    waits = some(5, requests=0.0, ttft=(), running=2.0)
    assert told(verdict(waits, hour(requests=0.0, ttft=()), final=True)) == ("regressed", "BLIND")


def test_less_load_is_waited_for_and_said() -> None:
    quiet = some(5, requests=30.0)
    assert told(verdict(quiet)) == ("pending", "LOAD_DIFFERS")
    v = verdict(quiet, final=True)
    assert told(v) == ("succeeded", "MET_AT_OTHER_LOAD")
    assert "50%" in v.text
    assert not v.comparable


def test_met_at_more_load_is_met() -> None:
    assert told(verdict(some(5, requests=90.0))) == ("succeeded", "OBJECTIVE_MET")


def test_longer_requests_are_not_equal_load() -> None:
    v = verdict(some(5, tokens=(100.0, 100.0)))
    assert not v.comparable
    assert told(v) == ("pending", "LOAD_DIFFERS")


def test_a_new_breach_in_three_windows_turns_back_at_once() -> None:
    v = verdict(some(3, ttft=SLOW))
    assert told(v) == ("regressed", "BREACH_AFTER_CHANGE")
    assert "before the change it was 200 ms" in v.text
    assert told(verdict(some(2, ttft=SLOW))) == ("pending", "WAITING")


def test_a_breach_that_was_there_before_is_not_the_changes_fault() -> None:
    before = hour(ttft=SLOW)
    assert told(verdict(some(3, ttft=SLOW), before)) == ("pending", "WAITING")
    assert told(verdict(some(3, ttft=SLOWER), before)) == ("regressed", "BREACH_AFTER_CHANGE")  # it is worse, though


def test_a_breach_at_clearly_more_load_says_nothing() -> None:
    assert told(verdict(some(3, ttft=SLOW, requests=90.0))) == ("pending", "WAITING")


def test_errors_that_rose() -> None:
    v = verdict(some(2, errors=3.0))
    assert told(v) == ("regressed", "ERRORS_ROSE")
    assert "5.0% of the requests fail, 0.0% did before" in v.text
    assert told(verdict(some(2, errors=0.3))) == ("pending", "WAITING")  # half a percent is within the noise
    assert told(verdict(some(5, errors=3.0), hour(errors=3.0))) == ("succeeded", "OBJECTIVE_MET")


def test_helped_but_not_enough() -> None:
    assert told(verdict(some(5, ttft=SLOW), hour(ttft=SLOWER))) == ("succeeded", "IMPROVED")


def test_no_help() -> None:
    assert told(verdict(some(5, ttft=SLOW), hour(ttft=SLOW))) == ("regressed", "NO_HELP")
    limits = objective({"ttft_p95_s": 1.0, "error_rate": 0.01})
    one_of_two = verdict(some(5, ttft=SLOW, errors=3.0), hour(ttft=SLOWER, errors=3.0), wanted=limits)
    assert told(one_of_two) == ("regressed", "NO_HELP")


def test_missed_at_less_load_is_waited_for() -> None:
    before = hour(ttft=SLOW)
    assert told(verdict(some(5, ttft=SLOW, requests=30.0), before)) == ("pending", "LOAD_DIFFERS")
    assert told(verdict(some(5, ttft=SLOW, requests=30.0), before, final=True)) == ("regressed", "NO_HELP")


def test_nothing_known_of_before_is_not_equal_load() -> None:
    v = verdict(some(5), [])
    assert v.load_ratio is None
    assert told(v) == ("pending", "LOAD_DIFFERS")
    assert told(verdict(some(5), [], final=True)) == ("succeeded", "MET_AT_OTHER_LOAD")


def test_the_queue_that_it_found_is_not_the_new_shapes_fault() -> None:
    """Hundreds wait; the new shape answers them, each later than any before the change; nobody waits any more, and all is well."""
    before = [*hour()[:-5], *(minute(55 + i, ttft=SLOW, waiting=40.0 * (i + 1)) for i in range(5))]
    going = [minute(100 + i, ttft=SLOWER, waiting=w) for i, w in enumerate((230.0, 190.0, 130.0, 50.0, 0.5))]
    well = [minute(105 + i) for i in range(5)]
    assert told(verdict(going[:4], before)) == ("pending", "QUEUE_GOES")
    assert told(verdict(going[:4], before, final=True)) == ("succeeded", "IMPROVED")
    assert told(verdict([*going, *well[:4]], before)) == ("pending", "WAITING")
    v = verdict([*going, *well], before, promised=promise(0.2))
    assert told(v) == ("succeeded", "OBJECTIVE_MET")
    assert next(s for s in v.scores if s.metric == "ttft_p95_s").observed == pytest.approx(0.2, rel=0.01), (
        "the queue teaches nothing of the shape"
    )
    slow = [replace(w, start=w.start + 300.0) for w in some(5, ttft=SLOW)]
    assert told(verdict([*going, *slow], before)) == ("regressed", "NO_HELP")
    failing = [replace(w, counts={**w.counts, "errors": 30.0}) for w in going[:2]]
    assert told(verdict(failing, before)) == ("regressed", "ERRORS_ROSE"), "errors are, at once"


def test_a_queue_that_does_not_get_shorter_is_its_fault() -> None:
    before = [*hour()[:-1], minute(59, ttft=SLOW, waiting=400.0)]
    stays = [minute(100 + i, ttft=SLOWER, waiting=400.0 + 10.0 * i) for i in range(5)]
    assert told(verdict(stays, before)) == ("regressed", "BREACH_AFTER_CHANGE")
    queue = enumerate((380.0, 360.0, 340.0, 360.0, 380.0, 400.0))
    turns = [minute(100 + i, requests=80.0 if i < 3 else 40.0, ttft=SLOWER, waiting=w) for i, w in queue]
    assert told(verdict(turns, before)) == ("regressed", "BREACH_AFTER_CHANGE")
    new = [minute(100 + i, ttft=SLOW, waiting=400.0 - 10.0 * i) for i in range(4)]
    assert told(verdict(new, hour())) == ("regressed", "BREACH_AFTER_CHANGE"), "there was none before"


# -- the ledger ---------------------------------------------------------------------------------------------------------


def test_scores_of_what_was_promised() -> None:
    promised = promise(0.25, itl_p95_s=0.01, running_mean=10.0)
    scores = {s.metric: s for s in verdict(some(5), promised=promised).scores}
    assert set(scores) == {"ttft_p95_s", "running_mean"}  # gaps between tokens were not observed: no row, and no zero
    ttft = scores["ttft_p95_s"]
    assert (ttft.low, ttft.predicted, ttft.high) == (pytest.approx(0.2), 0.25, pytest.approx(0.3))
    assert ttft.observed == ttft.before == pytest.approx(0.2, rel=0.01)
    assert ttft.error == pytest.approx(-0.2, abs=0.01)
    assert ttft.inside is True
    assert ttft.comparable
    assert scores["running_mean"].inside is True
    (bare,) = verdict(some(5)).scores
    assert (bare.metric, bare.method, bare.predicted, bare.observed) == ("ttft_p95_s", "none", None, pytest.approx(0.2))


def _scored(observed: float | None, *, low: float | None = 1.0, predicted: float | None = 2.0) -> LedgerScore:
    return LedgerScore("m", "simulation", low, predicted, 3.0, None, observed, True)


def test_inside_and_error() -> None:
    assert [_scored(v).inside for v in (0.9, 1.0, 3.0, 3.1, None)] == [False, True, True, False, None]
    assert _scored(2.0, low=None).inside is None
    assert [_scored(v).error for v in (3.0, 1.0, None)] == [0.5, -0.5, None]
    assert _scored(2.0, predicted=0.0).error is None


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("requests_per_s", 1.0),
        ("output_tokens_per_s", 50.0),
        ("running_mean", 8.0),
        ("running_max", 8.0),
        ("kv_usage_max", None),
        ("ttft_p50_s", pytest.approx(0.2, rel=0.01)),
        ("itl_p95_s", None),
        ("nonsense", None),
    ],
)
def test_metrics_as_they_were_observed(metric: str, value: object) -> None:
    assert observed_metric(some(5), metric) == value
    assert observed_metric([], metric) is None


def test_percentiles_that_came_as_numbers_are_scored_as_what_they_lie_between() -> None:
    def told(low: float, high: float) -> Window:
        return Window("chat", "azure-monitor", 0.0, 60.0, 1.0, 1, counts={"requests": 60.0, "errors": 0.0},
                      quantiles={"e2e_s": {0.95: Range(low, high)}})  # fmt: skip

    before, after = [told(0.9, 0.9)] * 6, [told(0.3, 0.4), told(0.35, 0.5), *[told(0.4, 0.4)] * 4]
    promised = Prediction(
        {"e2e_p95_s": Interval(0.3, 0.4, 0.45), "e2e_p50_s": Interval(0.1, 0.1, 0.1)}, 0.0, "usl", {}, ()
    )
    v = verdict(after, before, wanted=Objective.from_mapping({"e2e_p95_s": 0.6}), promised=promised)
    assert v.code == "OBJECTIVE_MET"
    (score,) = v.scores  # nothing tells the median, and nothing is scored of it
    assert (score.before, score.observed, score.at_least, score.at_most) == (0.9, 0.5, 0.3, 0.5)
    assert score.inside is True
    assert score.error == 0.0


def windows_over(seed: int, mean: float, *, alike: float, n: int = 60) -> tuple[list[float], list[float]]:
    """(60,) and (n,) logarithms of windows' figures over the limit: before at 0.7 of it, after at ``mean`` of it, 15 % noise, a share of
    which (``alike``) a window has from the one before."""
    rng, error, drawn = np.random.default_rng(seed), 0.0, []
    for level in [0.7] * 60 + [mean] * n:
        error = alike * error + rng.normal(0.0, 0.15 * math.sqrt(1 - alike**2))
        drawn.append(math.log(level) + error)
    return drawn[:60], drawn[60:]


def called_after(before: list[float], after: list[float]) -> int | None:
    """Windows until a breach is called, looking after each."""
    sure = math.log(1 / ALPHA)
    counts = range(LEAST_WINDOWS, len(after) + 1)
    return next((k for k in counts if breach_evidence(before, after[:k]) >= sure), None)


@pytest.mark.parametrize(("mean", "alike", "at_most"), [(0.9, 0.0, 0), (0.9, 0.5, 0), (1.0, 0.0, 3), (1.0, 0.5, 16)])
def test_looking_after_every_window_calls_no_breach_that_is_none(mean: float, alike: float, at_most: int) -> None:
    """Of 200 changes, over 60 windows each; docs/how-it-decides.md states the figures."""
    called = [called_after(*windows_over(seed, mean, alike=alike)) for seed in range(200)]
    assert sum(k is not None for k in called) <= at_most


@pytest.mark.parametrize(("mean", "windows"), [(1.5, 3), (1.3, 5), (1.15, 18)])
def test_a_breach_is_called_soon(mean: float, windows: int) -> None:
    called = [called_after(*windows_over(seed, mean, alike=0.0)) for seed in range(200)]
    known = [k for k in called if k is not None]
    assert len(known) >= 198
    assert np.median(known) <= windows


# -- equal load, promises, and the way back --------------------------------------------------------------------------------


def cached(windows: Sequence[Window], share: float) -> list[Window]:
    return [replace(w, counts={**w.counts, "cached_prompt_tokens": share * w.counts["prompt_tokens"]}) for w in windows]


def test_a_load_of_which_caches_hold_another_share_is_another_load() -> None:
    assert verdict(cached(some(5), 0.5), cached(hour(), 0.5)).comparable
    other = verdict(cached(some(5), 0.9), cached(hour(), 0.5))
    assert told(other) == ("pending", "LOAD_DIFFERS")
    assert told(verdict(cached(some(5), 0.9), cached(hour(), 0.5), final=True)) == ("succeeded", "MET_AT_OTHER_LOAD")
    assert verdict(cached(some(5), 0.9), hour()).comparable, "who does not tell is not held to it"


def test_a_promise_is_broken_for_sure_before_a_breach_is() -> None:
    """The objective is met, and what was promised is not: that is said, and is no regression."""
    v = verdict(some(5), promised=promise(0.1))
    assert told(v) == ("succeeded", "OBJECTIVE_MET")
    assert v.beyond == ("ttft_p95_s",)
    assert "came surely above what was promised" in v.text
    kept = verdict(some(5), promised=promise(0.2))
    assert kept.beyond == ()
    assert "promised" not in kept.text


@pytest.mark.parametrize(("mean", "at_most", "at_least"), [(1.0, 2, 0), (1.4, 40, 39)])
def test_a_promise_is_called_broken_as_seldom_as_is_stated(mean: float, at_most: int, at_least: int) -> None:
    """By the test of a breach, whose rates are measured above: the interval ends where the windows' mean is, or below it."""
    rng, called = np.random.default_rng(5), 0

    def noisy(i: int, ttft: float) -> Window:
        return minute(i, ttft=[ttft * math.exp(0.1 * rng.standard_normal())] * 10)

    for _ in range(40):
        before = [noisy(i, 0.2) for i in range(60)]
        after = [noisy(100 + i, mean * 0.3) for i in range(20)]
        promised = promise(0.3 / 1.2)  # the upper end is 0.3 s
        called += any(verdict(after[:n], before, promised=promised).beyond for n in range(5, 21, 5))
    assert at_least <= called <= at_most


def restored(after: Sequence[Window], left: Sequence[Window] = (), before: Sequence[Window] | None = None) -> str:
    return judge_restored(hour() if before is None else before, left, after, objective(), 0.2).code


def test_what_a_way_back_led_to() -> None:
    assert restored(some(5)) == "AS_BEFORE"
    assert restored(some(5, ttft=SLOW), before=hour(ttft=SLOW)) == "AS_BEFORE", "it was no better before"
    assert restored(some(5, ttft=SLOW)) == "WORSE"
    assert restored(some(5, errors=30.0)) == "WORSE"
    assert restored([]) == "BLIND"
    assert restored(some(5, requests=0.0, ttft=[])) == "BLIND"


def test_the_queue_that_a_change_left_says_nothing_against_the_way_back() -> None:
    left = [minute(99, waiting=50.0)]
    going = [minute(100 + i, ttft=SLOWER, waiting=30.0 - 10.0 * i) for i in range(4)]
    assert restored([*going, *some(4)], left) == "AS_BEFORE"
    assert restored(going[:2], left) == "WORSE", "it has not gone yet"
