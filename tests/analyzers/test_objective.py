"""Whether an objective was met: over the whole span, by merged distributions, and never from nothing."""

from __future__ import annotations

import pytest

from analyzers.objective import Objective, Target, attainment, merged, sustained_breach, total
from collectors.sketch import Sketch
from collectors.window import Window
from tests.analyzers.observed import minute, objective

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
        ("ttft_p95", 1.0, "expected error_rate, or ttft"),
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
