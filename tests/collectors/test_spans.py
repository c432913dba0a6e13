"""Sources that tell intervals instead of counters: late, in percentiles, or only in part."""

from __future__ import annotations

import math

import pytest

from collectors.builder import WindowBuilder
from collectors.metrics import METRICS, names, over_targets
from collectors.sketch import Sketch
from collectors.window import CollectError, Gauge, Range, Reading, Span, Window

T0 = 1_800_000_000.0


def builder() -> WindowBuilder:
    return WindowBuilder("chat", "store", 60.0, max_gap_s=150.0)


def span(i: int, *, target: str = "chat", requests: float = 60.0, **more: object) -> Span:
    fields = {"counts": {"requests": requests, "throttled": 1.0}, **more}
    return Span(target, T0 + 60 * i, T0 + 60 * (i + 1), **fields)  # type: ignore[arg-type]


def test_spans_make_whole_windows() -> None:
    b = builder()
    for i in range(3):
        b.span(
            span(
                i,
                sketches={"e2e_s": Sketch.from_values([1.0])},
                gauges={"running": Gauge(2.0, 7.0, 3.0)},
                facts={"sku": "F2s"},
            )
        )
    windows = b.close(T0 + 180)
    assert [(w.coverage, w.count("requests"), w.count("throttled")) for w in windows] == [(1.0, 60.0, 1.0)] * 3
    assert windows[0].gauges["running"] == Gauge(2.0, 7.0, 3.0)
    assert windows[0].sketches["e2e_s"].count == 1
    assert windows[0].facts == {"sku": "F2s"}


def test_a_late_span_opens_its_window_once_more_and_that_is_fuller() -> None:
    b = builder()
    for i in (0, 1, 3):
        b.span(span(i))
    early = b.close(T0 + 240)
    assert [w.coverage for w in early] == [1.0, 1.0, 0.0, 1.0]
    b.span(span(2))
    (again,) = b.close(T0 + 240)
    assert (again.start, again.coverage, again.count("requests")) == (T0 + 120, 1.0, 60.0)
    b.span(span(3))  # told again
    assert b.close(T0 + 240) == []


def test_half_of_a_window_late_adds_to_the_half_that_was_there() -> None:
    b = builder()
    b.span(Span("chat", T0, T0 + 30, {"requests": 10.0}))
    (half,) = b.close(T0 + 60)
    b.span(Span("chat", T0 + 30, T0 + 60, {"requests": 20.0}))
    (whole,) = b.close(T0 + 60)
    assert (half.coverage, whole.coverage, whole.count("requests")) == (0.5, 1.0, 30.0)


def test_what_is_far_too_late_is_counted_and_changes_nothing() -> None:
    b = builder()
    b.span(span(0))
    b.close(T0 + 60)
    for i in range(1, 200):
        b.span(span(i))
        b.close(T0 + 60 * (i + 1))
    b.span(Span("chat", T0 + 1, T0 + 30, {"requests": 10.0}))
    (window,) = b.close(T0 + 60 * 201)
    assert window.start == T0 + 60 * 200
    assert window.errors == {"late": 1}


def test_a_span_over_a_boundary_is_divided_by_time() -> None:
    b = builder()
    b.span(Span("chat", T0 + 30, T0 + 90, {"requests": 60.0}, {"e2e_s": Sketch.from_values([1.0] * 4)}))
    first, second = b.close(T0 + 120)
    assert (first.count("requests"), second.count("requests")) == (30.0, 30.0)
    assert (first.sketches["e2e_s"].count, second.sketches["e2e_s"].count) == (2.0, 2.0)


def test_percentiles_of_several_targets_are_a_range() -> None:
    b = builder()
    for target, p95 in (("a", 0.8), ("b", 1.2)):
        b.span(span(0, target=target, quantiles={"e2e_s": {0.95: Range(p95, p95)}}))
    (window,) = b.close(T0 + 60)
    assert window.range("e2e_s", 0.95) == Range(0.8, 1.2)
    assert window.quantile("e2e_s", 0.95) == 1.2
    assert window.count("requests") == 120.0
    assert window.coverage == 1.0


def test_a_target_that_says_nothing_lowers_the_coverage() -> None:
    b = builder()
    for i in range(4):
        b.span(span(i, target="a"))
        if i != 2:
            b.span(span(i, target="b"))
    assert [w.coverage for w in b.close(T0 + 240)] == [1.0, 1.0, 0.5, 1.0]


def test_a_share_and_a_metric_that_is_missing_lower_the_coverage() -> None:
    b = builder()
    b.span(span(0))
    b.span(Span("chat", T0 + 60, T0 + 120, {"requests": 60.0}, share=0.75))
    _, window = b.close(T0 + 120)
    assert window.coverage == 0.75
    assert window.coverage_of("throttled") == 0.0
    assert window.rate("requests") == pytest.approx(60 / 45)


@pytest.mark.parametrize(
    "bad",
    [
        {"counts": {"requests": math.nan}}, {"end": T0}, {"end": math.inf}, {"share": 1.5}, {"gauges": {"running": Gauge(0.0, math.inf, 0.0)}},
        {"quantiles": {"e2e_s": {0.95: Range(2.0, 1.0)}}}, {"quantiles": {"e2e_s": {95.0: Range(1.0, 1.0)}}},
    ],
)  # fmt: skip
def test_spans_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(CollectError, match="invalid_value"):
        builder().span(Span(**{"target": "a", "start": T0, "end": T0 + 60, **bad}))  # type: ignore[arg-type]


# -- each metric for itself ----------------------------------------------------------------------------------------------


def test_counters_that_vanish_are_unknown_from_then_on_and_the_rate_before_is_right() -> None:
    """The page keeps its gauges and loses its counters: KEDA 3065 and others take that for zero."""
    b = WindowBuilder("chat", "vllm", 60.0, max_gap_s=40.0)
    for i in range(12):
        at = 15.0 * i
        counters = {"requests": 5 * at} if at <= 90 else {}
        b.add(Reading("a", T0 + at, counters, gauges={"running": 12.0}))
    whole, part, none = b.close(T0 + 180)[:3]
    assert (whole.rate("requests"), whole.coverage_of("requests")) == (pytest.approx(5.0), 1.0)
    assert (part.coverage, part.coverage_of("requests")) == (1.0, pytest.approx(0.5))
    assert part.rate("requests") == pytest.approx(5.0)
    assert (none.count("requests"), none.coverage_of("requests")) == (None, 0.0)
    assert none.coverage > 0.5


def test_the_table_says_how_gauges_add_up() -> None:
    assert over_targets("running") == "sum"
    assert over_targets("kv_usage") == "mean"
    assert over_targets("never_heard_of") == "mean"
    assert len(METRICS) == sum(len(names(kind)) for kind in ("counter", "distribution", "gauge"))


def only(windows: list[Window]) -> Window:
    (window,) = windows
    return window


def test_a_name_that_nobody_knows_is_kept() -> None:
    b = WindowBuilder("chat", "vllm", 60.0, max_gap_s=40.0)
    for i in range(3):
        b.add(Reading("a", T0 + 30 * i, {"my_counter": 10.0 * i}, gauges={"my_gauge": 3.0}))
    window = only(b.close(T0 + 60))
    assert window.count("my_counter") == pytest.approx(20.0)
    assert window.gauges["my_gauge"].mean == 3.0


@pytest.mark.parametrize(
    ("serving", "coverage"),
    [(1, 1.0), (3, pytest.approx(1 / 3)), (None, pytest.approx(1 / 3))],
)
def test_who_fell_silent_was_removed_where_the_system_says_that_fewer_serve(
    serving: int | None, coverage: float
) -> None:
    """An autoscaler took two of three replicas away: the load of the one that stays is all that there is, and not a third of it."""
    b = builder()
    for i, there in enumerate(("abc", "abc", "a")):
        for name in there:
            b.span(span(i, target=name, requests=30.0))
        if serving is not None:
            b.settle(3 if i < 2 else serving)
        (window,) = b.close(T0 + 60 * (i + 1))
    assert window.coverage == coverage
    assert window.rate("requests") == pytest.approx(0.5 / window.coverage)


def test_who_fails_is_missed_whatever_the_system_says() -> None:
    b = builder()
    for name in "ab":
        b.span(span(0, target=name))
    b.close(T0 + 60)
    b.span(span(1, target="a"))
    b.failed("b", T0 + 90, "timeout")
    b.settle(1)
    (window,) = b.close(T0 + 120)
    assert window.coverage == pytest.approx(0.5)
