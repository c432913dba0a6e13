"""What windows say about readings: nothing lost, nothing twice, and what was not seen is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.builder import WindowBuilder
from collectors.window import Histogram, Reading, Window

T0 = 1_800_000_000.0  # a whole number of minutes
EDGES = (0.1, 1.0)


def builder(max_gap_s: float = 40.0) -> WindowBuilder:
    return WindowBuilder("chat", "vllm", 60.0, max_gap_s=max_gap_s)


def reading(
    at: float,
    requests: float,
    *,
    target: str = "a",
    started: float | None = 1.0,
    running: float | None = None,
    edges: tuple[float, ...] = EDGES,
    **facts: str,
) -> Reading:
    """All requests took 0.5 s."""
    counts = (0.0, *[requests] * len(edges))
    return Reading(
        target=target,
        at=T0 + at,
        counters={"requests": requests},
        histograms={"ttft_s": Histogram(edges, counts, requests * 0.5)},
        gauges={} if running is None else {"running": running, "kv_usage": running / 10},
        started_at=started,
        facts=facts,
    )


def only(windows: list[Window]) -> Window:
    assert len(windows) == 1
    return windows[0]


def test_a_whole_minute() -> None:
    b = builder()
    for i in range(5):
        b.add(reading(15 * i, 100 + 10 * i, running=4))
    window = only(b.close(T0 + 60))
    assert (window.start, window.end, window.coverage, window.targets, window.restarts) == (T0, T0 + 60, 1.0, 1, 0)
    assert window.count("requests") == pytest.approx(40)
    assert window.rate("requests") == pytest.approx(40 / 60)
    assert window.sketches["ttft_s"].count == pytest.approx(40)
    assert window.mean("ttft_s") == pytest.approx(0.5)
    assert window.mean("running") == 4
    assert window.errors == {}


def test_the_first_window_is_not_whole() -> None:
    b = builder()
    b.add(reading(30, 100))
    b.add(reading(45, 110))
    b.add(reading(60, 120))
    assert only(b.close(T0 + 60)).coverage == pytest.approx(0.5)


def test_nothing_is_known_from_one_reading_but_its_gauges() -> None:
    b = builder()
    b.add(reading(10, 5000, running=3))
    window = only(b.close(T0 + 60))
    assert (window.coverage, window.counts, window.sketches) == (0.0, {}, {})
    assert window.gauges["running"].last == 3
    assert window.rate("requests") is None


@given(
    st.lists(st.tuples(st.floats(1, 39), st.integers(0, 50)), min_size=1, max_size=40),
    st.floats(0, 59),
    st.booleans(),
)
def test_what_was_counted_is_in_the_windows_once(
    steps: list[tuple[float, int]], begin: float, close_early: bool
) -> None:
    """However the readings fall: the windows' sum is the counter's increase, and the coverage the time between them."""
    b = builder()
    at, counter = begin, 7.0
    b.add(reading(at, counter))
    windows = []
    for step, more in steps:
        at, counter = at + step, counter + more
        b.add(reading(at, counter))
        if close_early:
            windows += b.close(T0 + at)
    windows += b.close(T0 + at + 120)
    assert sum(w.counts.get("requests", 0.0) for w in windows) == pytest.approx(counter - 7)
    assert sum(w.sketches["ttft_s"].count for w in windows if "ttft_s" in w.sketches) == pytest.approx(counter - 7)
    assert sum(w.coverage for w in windows) * 60 == pytest.approx(at - begin, abs=1e-4)
    assert [w.start for w in windows] == [T0 + 60 * i for i in range(len(windows))]
    assert all(0 <= w.coverage <= 1 for w in windows)


def test_a_delta_over_a_boundary_is_divided_by_time() -> None:
    b = builder()
    b.add(reading(50, 0))
    b.add(reading(80, 30, running=6))
    first, second = b.close(T0 + 120)
    assert first.count("requests") == pytest.approx(10)
    assert second.count("requests") == pytest.approx(20)
    assert second.coverage == pytest.approx(20 / 60)


def test_a_restart_by_its_start_time() -> None:
    b = builder()
    b.add(reading(0, 100, started=1.0))
    b.add(reading(30, 120, started=500.0))  # more than before, all of it since the start
    b.add(reading(60, 130, started=500.2))  # the same start, told less exactly
    window = only(b.close(T0 + 60))
    assert window.restarts == 1
    assert window.count("requests") == pytest.approx(130)
    assert window.sketches["ttft_s"].count == pytest.approx(130)


def test_a_restart_by_a_counter_that_fell() -> None:
    b = builder()
    b.add(reading(0, 100, started=None))
    b.add(reading(30, 20, started=None))
    window = only(b.close(T0 + 60))
    assert (window.restarts, window.count("requests")) == (1, 20)


def test_other_edges_are_a_new_histogram() -> None:
    b = builder()
    b.add(reading(0, 100))
    b.add(reading(30, 110, edges=(0.1, 0.6, 2.0)))
    b.add(reading(60, 120, edges=(0.1, 0.6, 2.0)))
    window = only(b.close(T0 + 60))
    assert window.restarts == 1
    assert window.count("requests") == 20
    assert window.sketches["ttft_s"].count == pytest.approx(120)
    assert window.sketches["ttft_s"].bounds(0.5) == (0.1, 0.6)


def test_gaps_are_windows_without_coverage() -> None:
    b = builder()
    b.add(reading(0, 100))
    b.add(reading(30, 110))
    b.failed("a", T0 + 45, "timeout")
    b.failed("a", T0 + 75, "timeout")
    b.failed("a", T0 + 90, "down")
    b.add(reading(250, 900))
    b.add(reading(280, 910))
    windows = b.close(T0 + 300)
    assert [round(w.coverage, 3) for w in windows] == [0.5, 0.0, 0.0, 0.0, 0.5]
    assert [w.counts.get("requests") for w in windows] == [10, None, None, None, 10]
    assert windows[0].errors == {"timeout": 1}
    assert windows[1].errors == {"timeout": 1, "down": 1}
    assert [w.targets for w in windows] == [1, 0, 0, 0, 1]


def test_nothing_before_the_first_sign_and_gaps_ever_after() -> None:
    b = builder()
    assert b.close(T0 + 600) == []
    b.failed("a", T0 + 610, "down")
    assert [w.coverage for w in b.close(T0 + 780)] == [0.0, 0.0, 0.0]
    assert b.close(T0 + 780) == []
    assert len(b.close(T0 + 840)) == 1


def test_a_clock_that_jumps_by_years_does_not_fill_the_memory() -> None:
    b = builder()
    b.add(reading(0, 1))
    windows = b.close(T0 + 40 * 365 * 86_400)
    assert len(windows) == 1_001
    assert windows[0].start == T0
    assert windows[-1].end == T0 + 40 * 365 * 86_400


def test_a_reading_from_the_past_is_skipped_and_counted() -> None:
    b = builder()
    b.add(reading(0, 100))
    b.add(reading(30, 110))
    b.add(reading(10, 111))
    b.add(reading(40, 112))
    b.add(reading(70, 115))
    window = only(b.close(T0 + 60))
    assert window.errors == {"clock_back": 1}
    assert window.count("requests") == pytest.approx(10 + 1 + 2)


def test_the_same_moment_twice_loses_nothing() -> None:
    b = builder()
    b.add(reading(0, 100))
    b.add(reading(30, 110))
    b.add(reading(30, 114))
    b.add(reading(60, 130))
    assert only(b.close(T0 + 60)).count("requests") == pytest.approx(30)


def test_several_targets_add_up() -> None:
    b = builder()
    for i in range(5):
        b.add(reading(15 * i, 10 * i, target="a", running=2, version="1"))
        b.add(reading(15 * i, 20 * i, target="b", running=4, version="2"))
    window = only(b.close(T0 + 60))
    assert (window.targets, window.coverage) == (2, 1.0)
    assert window.count("requests") == pytest.approx(40 + 80)
    assert window.gauges["running"].mean == pytest.approx(6)
    assert window.gauges["running"].maximum == 6
    assert window.gauges["kv_usage"].mean == pytest.approx(0.3)
    assert window.gauges["kv_usage"].maximum == pytest.approx(0.4)
    assert window.facts == {"version": "1, 2"}


def test_one_of_two_targets_fails() -> None:
    b = builder()
    for i in range(9):
        b.add(reading(15 * i, 10 * i, target="a"))
        if i == 0:
            b.add(reading(0, 0, target="b"))
        elif i == 2:
            b.failed("b", T0 + 30, "timeout")  # and then it is only retried much later
    windows = b.close(T0 + 120)
    assert [w.coverage for w in windows] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert windows[0].errors == {"timeout": 1}


def test_a_failure_is_one_of_all_engines_behind_the_address() -> None:
    b = builder()
    for i in range(2):
        b.add(reading(15 * i, 0, target="a"))
        b.add(reading(15 * i, 0, target="a#1"))
    b.failed("a", T0 + 30, "down")
    window = only(b.close(T0 + 60))
    assert window.errors == {"down": 1}
    assert window.coverage == pytest.approx(15 / 60)


def test_targets_come_and_go() -> None:
    b = builder()
    for i in range(17):
        b.add(reading(15 * i, 10 * i, target="a"))
        if i >= 6:
            b.add(reading(15 * i, 10 * i, target="late"))
        if i <= 10:
            b.add(reading(15 * i, 10 * i, target="early"))
        elif i == 11:
            b.gone("early", T0 + 150)
    windows = b.close(T0 + 240)
    assert [w.coverage for w in windows] == [pytest.approx(1.0)] * 4
    assert [w.targets for w in windows] == [2, 3, 3, 2]


def test_a_target_that_nobody_reads_any_more_is_forgotten() -> None:
    b = builder()
    for i in range(200):
        b.add(reading(15 * i, 10 * i, target=f"pod-{i}"))
        b.close(T0 + 15 * i)
    assert len(b._present) < 10
    assert len(b._last) < 10


def test_a_gauge_is_weighted_by_time() -> None:
    b = builder()
    b.add(reading(0, 0, running=0))
    b.add(reading(20, 0, running=0))
    b.add(reading(40, 0, running=10))
    b.add(reading(80, 0, running=10))
    window = only(b.close(T0 + 60))
    assert window.gauges["running"].mean == pytest.approx((0 * 20 + 5 * 20 + 10 * 20) / 60)
    assert (window.gauges["running"].maximum, window.gauges["running"].last) == (10, 10)


def test_a_name_that_appears_later_has_no_known_beginning() -> None:
    b = builder()
    b.add(Reading("a", T0, {"requests": 1.0}))
    b.add(Reading("a", T0 + 30, {"requests": 2.0, "errors": 7.0}))
    b.add(Reading("a", T0 + 60, {"requests": 3.0, "errors": 8.0}))
    window = only(b.close(T0 + 60))
    assert window.counts == {"requests": pytest.approx(2), "errors": pytest.approx(1)}


def test_values_that_a_reading_measured_itself() -> None:
    b = builder()
    b.add(Reading("a", T0 + 1, {"requests": 1.0}, samples={"ttft_s": (0.2,)}))
    b.add(Reading("a", T0 + 31, {"requests": 2.0}, samples={"ttft_s": (0.4,)}))
    window = only(b.close(T0 + 60))
    assert window.sketches["ttft_s"].count == 2
    assert window.sketches["ttft_s"].maximum == 0.4


def test_direct_observations() -> None:
    b = builder()
    b.observe(T0 + 20, requests=3, errors=1, counts={"output_tokens": 30}, samples={"e2e_s": [1.0, 2.0]}, spans_s=20)
    b.observe(T0 + 60, spans_s=40)
    window = only(b.close(T0 + 60))
    assert window.counts == {"requests": 3, "errors": 1, "output_tokens": 30}
    assert window.coverage == 1.0
    assert window.sketches["e2e_s"].mean == 1.5
