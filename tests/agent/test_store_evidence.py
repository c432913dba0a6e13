"""One endpoint, several sources: each metric from the first that tells it, and its coverage with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.store import Store, windows
from agent.store.evidence import combined, judged
from collectors.sketch import Sketch
from collectors.window import Gauge, Range, Window
from tests.agent.records import T0, window

FAST, SLOW = Sketch.from_values([0.1]), Sketch.from_values([9.0])


def host(start: float, coverage: float = 1.0) -> Window:
    gauges = {"gpu_power_w": Gauge(300.0, 310.0, 305.0), "running": Gauge(99.0, 99.0, 99.0)}
    return Window("chat", "host", start, 60.0, coverage, 1, gauges=gauges if coverage else {})


def probe(start: float) -> Window:
    return Window(
        "chat", "probe", start, 60.0, 0.5, 1, counts={"requests": 1.0}, sketches={"ttft_s": SLOW, "e2e_s": SLOW}
    )


def test_each_metric_comes_from_the_first_source_that_tells_it(store: Store) -> None:
    with store.write() as db:
        windows.save(db, [window(T0, ttft=(0.1,)), probe(T0), host(T0), window(T0, source="other")])
    with store.read() as db:
        (one,) = judged(db, "chat", ["vllm", "probe", "host"], T0, T0 + 60, 60.0)
    assert one.count("requests") == 120.0
    assert one.sketches["ttft_s"].quantile(0.5) == pytest.approx(0.1, rel=0.01)
    assert one.sketches["e2e_s"].quantile(0.5) == pytest.approx(9.0, rel=0.01)
    assert (one.gauges["running"].mean, one.gauges["gpu_power_w"].mean) == (4.0, 300.0)
    assert (one.coverage, one.coverage_of("e2e_s"), one.coverage_of("gpu_power_w")) == (1.0, 0.5, 1.0)
    assert one.source == "vllm+probe+host"


def test_a_metric_never_hops_to_another_source_in_a_gap() -> None:
    gap = window(T0 + 60, coverage=0.0, errors={"timeout": 3})
    first, second, third = combined({"vllm": [window(T0), gap], "probe": [probe(T0 + 60 * i) for i in range(3)]})
    assert (first.count("requests"), second.count("requests"), third.count("requests")) == (120.0, None, None)
    assert (second.coverage, third.coverage) == (0.0, 0.0)
    assert "ttft_s" not in second.sketches
    assert second.coverage_of("e2e_s") == 0.5
    assert second.errors == {"timeout": 3}


def test_a_source_of_gauges_alone_does_not_say_how_much_was_observed() -> None:
    (one,) = combined({"host": [host(T0)], "vllm": [window(T0, coverage=0.25)]})
    assert one.coverage == 0.25
    assert one.coverage_of("gpu_power_w") == 1.0
    assert one.rate("requests") == pytest.approx(8.0)


def test_percentiles_as_numbers_count_as_told() -> None:
    late = replace(window(T0, source="azure", ttft=()), quantiles={"e2e_s": {0.95: Range(1.0, 1.0)}})
    (one,) = combined({"azure": [late], "probe": [probe(T0)]})
    assert one.quantile("e2e_s", 0.95) == 1.0
    assert one.quantile("ttft_s", 0.5) == pytest.approx(9.0, rel=0.01)


def test_one_source_is_as_it_is_and_none_is_nothing(store: Store) -> None:
    assert combined({"vllm": [window(T0)]}) == [window(T0)]
    with store.read() as db:
        assert judged(db, "chat", ["vllm", "host"], T0, T0 + 60, 60.0) == []
