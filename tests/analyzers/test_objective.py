"""Whether an objective was met: over the whole span, by merged distributions, and never from nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.objective import Objective, Target, attainment, merged, sustained_breach, total
from collectors.sketch import Sketch
from collectors.window import Range, Window
from tests.analyzers.situations import minute, objective

TTFT = Target.parse("ttft_p95_s", 1.0)
ERRORS = Target.parse("error_rate", 0.01)


@pytest.mark.parametrize(
    ("name", "metric", "quantile"),
    [
        ("ttft_p95_s", "ttft_s", 0.95),
        ("itl_p99.9_s", "itl_s", 0.999),
        ("e2e_p50_s", "e2e_s", 0.5),
        ("queue_p90_s", "queue_s", 0.9),
    ],
)
def test_names_are_read_and_written_alike(name: str, metric: str, quantile: float) -> None:
    target = Target.parse(name, 2.0)
    assert (target.metric, target.quantile) == (metric, pytest.approx(quantile))
    assert target.name == name


@pytest.mark.parametrize(
    ("name", "limit", "says"),
    [
        ("ttft_p95", 1.0, "expected error_rate, throttle_rate, or ttft"),
        ("ttft_p100_s", 1.0, "expected"),
        ("ttft_p0_s", 1.0, "expected"),
        ("ttft_px_s", 1.0, "expected"),
        ("speed_p95_s", 1.0, "expected"),
        ("ttft_p95_s", 0.0, "must be above 0"),
        ("ttft_p95_s", float("nan"), "must be above 0"),
        ("error_rate", 1.0, "1 % is 0.01"),
    ],
)  # fmt: skip
def test_names_and_limits_that_make_no_sense_are_refused(name: str, limit: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Target.parse(name, limit)


def test_error_rate_and_its_burn_rate() -> None:
    """3 of 120 requests fail; 1 % may: that burns the budget at 2.5 times the rate that spends it just so."""
    a = attainment([minute(0, errors=1.0), minute(1, errors=2.0)], ERRORS)
    assert (a.observed, a.bad_share, a.burn_rate) == (pytest.approx(0.025), pytest.approx(0.025), pytest.approx(2.5))
    assert a.met is False
    assert a.samples == 120


def test_latency_and_its_burn_rate() -> None:
    """20 of 200 first tokens come late; 5 % may."""
    a = attainment([minute(0, ttft=[0.2] * 95 + [2.0] * 5), minute(1, ttft=[0.2] * 85 + [2.0] * 15)], TTFT)
    assert a.observed == pytest.approx(2.0, rel=0.01)
    assert a.bad_share == pytest.approx(0.1)
    assert a.burn_rate == pytest.approx(2.0)
    assert a.met is False


def test_percentiles_are_merged_and_never_averaged() -> None:
    """A quiet minute with slow requests and a busy one with fast ones: the mean of the two p95 would miss the objective."""
    a = attainment([minute(0, ttft=[2.0] * 2), minute(1, ttft=[0.1] * 98)], TTFT)
    assert a.met is True
    assert a.observed == pytest.approx(0.1, rel=0.01)


def test_just_at_the_limit_is_met() -> None:
    assert attainment([minute(0, errors=0.6)], ERRORS).met is True


@pytest.mark.parametrize(
    "windows",
    [[], [minute(0, ttft=(), errors=None)], [minute(0, ttft=(), requests=0.0)], [minute(0, ttft=(), requests=None)]],
    ids=["no window", "unknown", "no traffic", "unknown requests"],
)
def test_from_nothing_nothing_is_concluded(windows: list[Window]) -> None:
    for target in (TTFT, ERRORS):
        a = attainment(windows, target)
        assert (a.observed, a.met, a.bad_share, a.burn_rate) == (None, None, None, None)


def test_unknown_windows_do_not_count_as_zero() -> None:
    rows = [minute(0, errors=3.0), minute(1, errors=None, requests=None, ttft=())]
    assert total(rows, "errors") == 3.0
    assert total(rows, "preemptions") is None
    assert merged(rows, "itl_s") is None
    assert attainment(rows, ERRORS).observed == pytest.approx(0.05)


def test_beyond_the_last_bucket_is_known_to_be_missed() -> None:
    """A histogram that ends at 0.5 s, with 10 % beyond it: p95 is at least 0.5 s."""
    sketch = Sketch.from_histogram((0.1, 0.5), (80.0, 10.0, 10.0), 60.0)
    row = Window("chat", "vllm", 0.0, 60.0, 1.0, sketches={"ttft_s": sketch})
    a = attainment([row], Target.parse("ttft_p95_s", 0.4))
    assert a.observed == 0.5
    assert a.met is False


def test_a_breach_is_sustained_after_three_windows_in_a_row_with_traffic() -> None:
    bad, good, silent = {"ttft": [2.0] * 10}, {"ttft": [0.2] * 10}, {"ttft": (), "requests": 0.0}
    limits = objective()

    def breach(*kinds: dict[str, object]) -> bool:
        return sustained_breach([minute(i, **kind) for i, kind in enumerate(kinds)], "ttft_p95_s", limits)  # type: ignore[arg-type]

    assert breach(bad, bad, bad)
    assert breach(good, good, bad, bad, bad)
    assert breach(bad, silent, bad, bad)  # silence is no proof of health
    assert not breach(bad, bad)
    assert not breach(bad, bad, good)
    assert not breach(bad, good, bad, bad)
    assert not breach()


def test_objectives_from_settings_keep_their_order() -> None:
    named = Objective.from_mapping({"ttft_p95_s": 1.0, "error_rate": 0.01})
    assert [t.name for t in named.targets] == ["ttft_p95_s", "error_rate"]


# -- what is not known for certain ---------------------------------------------------------------------------------------


def bucketed(counts: tuple[float, ...], total_s: float) -> Window:
    sketch = Sketch.from_histogram((0.5, 1.0, 2.5), counts, total_s)
    return replace(minute(0), sketches={"ttft_s": sketch})


@pytest.mark.parametrize(
    ("counts", "total_s", "limit", "met"),
    [
        ((100, 0, 0, 0), 20.0, 0.5, True),
        ((0, 0, 100, 0), 200.0, 1.0, False),
        ((0, 0, 100, 0), 200.0, 2.0, None),  # somewhere between 1 and 2.5
        ((0, 0, 100, 0), 105.0, 2.0, True),  # but with a mean of 1.05, no 5 % of them are above 2
        ((0, 0, 0, 100), 500.0, 3.0, None),  # beyond the last bound
        ((0, 0, 0, 100), 500.0, 2.0, False),
    ],
)
def test_a_limit_within_a_bucket_is_met_missed_or_not_known(
    counts: tuple[float, ...], total_s: float, limit: float, met: bool | None
) -> None:
    assert attainment([bucketed(counts, total_s)], Target.parse("ttft_p95_s", limit)).met is met


def numbered(i: int, requests: float | None = 60.0, **shares: float) -> Window:
    ranges = {float(f"0.{q[1:]}"): Range(value, value) for q, value in shares.items()}
    return replace(minute(i, requests=requests, ttft=()), quantiles={"ttft_s": ranges})


@pytest.mark.parametrize(
    ("parts", "met", "least", "most"),
    [
        ([numbered(0, p95=0.8), numbered(1, p95=0.9)], True, 0.8, 0.9),
        ([numbered(0, p95=1.2), numbered(1, p95=1.9)], False, 1.2, 1.9),
        ([numbered(0, p95=0.8), numbered(1, p95=1.9)], None, 0.8, 1.9),
        # 57 minutes with at most 1 % above the limit, 3 with at most half: 3.5 % of all, and 5 % are allowed.
        ([numbered(i, p95=0.8, p99=0.9) for i in range(57)] + [numbered(i, p50=0.7, p95=1.9) for i in range(57, 60)], True, 0.8, 1.9),
        # 40 of 60 minutes with more than half above it.
        ([numbered(i, p50=1.5, p95=1.9) for i in range(40)] + [numbered(i, p95=0.5) for i in range(40, 60)], False, 0.5, 1.9),
        # the same, but nobody counted the requests.
        ([numbered(i, None, p50=1.5, p95=1.9) for i in range(40)] + [numbered(i, None, p95=0.5) for i in range(40, 60)], None, 0.5, 1.9),
    ],
)  # fmt: skip
def test_percentiles_that_came_as_numbers(parts: list[Window], met: bool | None, least: float, most: float) -> None:
    a = attainment(parts, TTFT)
    assert (a.met, a.at_least, a.at_most) == (met, least, most)


@given(
    st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), min_size=1, max_size=8),
    st.floats(0.05, 8),
    st.sampled_from([0.5, 0.9, 0.95]),
)
def test_a_verdict_from_numbers_is_never_wrong(parts: list[list[float]], limit: float, q: float) -> None:
    def quantile(values: list[float], share: float) -> float:
        ordered = sorted(values)
        return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]

    rows = [
        replace(
            minute(i, requests=float(len(values)), ttft=()),
            quantiles={"ttft_s": {p: Range(v, v) for p in (0.5, 0.9, 0.95) if (v := quantile(values, p))}},
        )
        for i, values in enumerate(parts)
    ]
    whole = quantile([v for values in parts for v in values], q)
    a = attainment(rows, Target("ttft_s", q, limit))
    assert a.at_least is not None
    assert a.at_most is not None
    assert a.at_least <= whole <= a.at_most
    if a.met is not None:
        assert a.met is (whole <= limit)


def test_errors_are_a_share_of_the_requests_of_the_same_windows() -> None:
    a = attainment([minute(0, errors=3.0), minute(1, errors=None)], ERRORS)
    assert a.observed == pytest.approx(3 / 60)


@pytest.mark.parametrize(
    ("name", "limit", "says"),
    [
        ("ttft_p95_s", 1000.0, r"did you mean 1 s \(1000ms\)\?"),
        ("itl_p99_s", 50.0, r"did you mean 0.05 s \(50ms\)\?"),
        ("e2e_p50_s", 30_000.0, r"did you mean 30 s \(30000ms\)\?"),
        ("ttft_p95_s", 200.0, r"did you mean 0.2 s \(200ms\)\? Where seconds are meant, write 200s"),
        ("queue_p50_s", 61.0, r"\(61ms\)"),
        ("tpot_p90_s", 6.0, r"\(6ms\)"),
        ("e2e_p95_s", 601.0, r"\(601ms\)"),
    ],
)
def test_a_limit_in_milliseconds_is_refused(name: str, limit: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Target.parse(name, limit)
    assert Target.parse(name, limit / 1000).limit == limit / 1000
    assert Target.parse(name, limit, with_unit=True).limit == limit
