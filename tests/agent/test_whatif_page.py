"""The page of `flyball whatif`: what stands in it, and what its charts draw. No browser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from agent import charts
from agent.whatif.page import page
from agent.whatif.table import costs, efficient, rows, shown
from agent.whatif.timeline import MOST_ROWS, _thinned, timeline
from tests.agent.records import NASTY, T0

CURVE = [(0.1, 0.1), (0.5, 0.2), (0.9, 0.4)]


def replayed(
    name: str, *, cost: float | None = 1.0, replicas: int = 1, p95: float | None = 0.5, **values: Any
) -> dict[str, Any]:
    """A candidate of a trace's answer."""
    times = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), p95)
    none = (
        "label",
        "throttled",
        "retries",
        "gave_up",
        "cold_starts",
        "spilled_requests",
        "failed",
        "prediction",
        "refused",
    )
    return {
        "candidate": name, "kind": "engine", "shape": {"replicas": replicas}, "requests": 10, "completed": 10, "saturates": 0.0,
        "goodput_per_s": 2.0, "usd_per_hour": cost, "objective": [], "meets_objective": None, "verdict": None, "simulated_s": 7200.0,
        "replica_hours": 2.0 * replicas, "replicas_max": replicas, "replica_timeline": [[0.0, replicas]], **dict.fromkeys(none),
        **dict.fromkeys(("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s"), times), **values,
    }  # fmt: skip


def predicted(name: str, **values: Any) -> dict[str, Any]:
    """A candidate of an endpoint's answer."""
    interval = {"low": 0.4, "mid": 0.5, "high": 0.7}
    metrics = dict.fromkeys(("ttft_p50_s", "ttft_p95_s", "itl_p95_s", "e2e_p95_s"), interval)
    return {
        "candidate": name, "shape": {"replicas": 1, "size": "a100", "engine": {"max_num_seqs": 8}}, "usd_per_hour": 1.0,
        "prediction": {"metrics": metrics}, "saturates": 0.25, "objective": [], "meets_objective": None, "verdict": None,
        "refused": None, **values,
    }  # fmt: skip


def of_trace(*candidates: dict[str, Any], **values: Any) -> dict[str, Any]:
    trace = {"file": "some/where/t.csv", "requests": 10, "duration_s": 7200.0}
    return {"trace": trace, "objective": [], "notes": [], "warnings": [], "candidates": list(candidates), **values}


def of_store(*candidates: dict[str, Any]) -> dict[str, Any]:
    evidence = {"start": T0 - 86_400 * 7, "end": T0, "coverage": 0.9, "requests": 5.0, "replayed_requests": 5}
    return {
        "endpoint": "chat",
        "evidence": evidence,
        "objective": [],
        "notes": [],
        "warnings": [],
        "candidates": list(candidates),
    }


def test_those_that_nothing_beats() -> None:
    found = rows(
        of_trace(
            replayed("cheap", cost=1.0, p95=0.9),
            replayed("same price, slower", cost=1.0, p95=1.0),
            replayed("fast", cost=3.0, p95=0.1),
            replayed("dearer than fast", cost=4.0, p95=0.1),
            replayed("saturated", cost=0.5, p95=0.05, saturates=1.0),
            replayed("no price", cost=None, p95=0.01),
            replayed("nothing came of it", cost=0.1, p95=None),
            replayed("as fast", cost=3.0, p95=0.1),
        )
    )
    assert costs(found)[0] == "US dollars per hour"
    assert efficient(found, "ttft_p95_s") == {1, 3, 8}


def test_without_any_price_replicas_stand_for_cost() -> None:
    found = rows(of_trace(replayed("a", cost=None, replicas=1, p95=0.2), replayed("b", cost=None, replicas=2, p95=0.3)))
    assert costs(found) == ("replicas", {1: 1.0, 2: 2.0})
    assert efficient(found, "ttft_p95_s") == {1}


def test_rows_of_both_answers() -> None:
    (row,) = rows(of_trace(replayed("a", completed=7)))
    assert (row.done, row.saturates, row.label) == ((7, 10), 0.0, None)
    assert (row.figures["itl_p99_s"].mid, row.figures["itl_p99_s"].low) == (0.5, None)
    present, other, refused = rows(
        of_store(predicted("present"), predicted("x=1"), predicted("no", prediction=None, refused={"detail": "why"}))
    )
    assert (present.label, other.label) == ("1 x a100, max_num_seqs=8", "1 x a100")
    assert (other.figures["ttft_p95_s"].low, other.figures["ttft_p95_s"].high) == (0.4, 0.7)
    assert (refused.refused, dict(refused.figures), refused.saturates) == ("why", {}, 0.25)


def test_what_the_objective_bounds_is_shown_too() -> None:
    bound = [
        {"target": t, "limit": 1.0, "value": 0.1, "met": True} for t in ("ttft_p95_s", "e2e_p97.5_s", "error_rate")
    ]
    answer = of_trace(replayed("a", objective=bound), objective=bound)
    assert shown(answer) == ["ttft_p50_s", "ttft_p95_s", "itl_p95_s", "e2e_p95_s", "e2e_p97.5_s"]
    assert rows(answer)[0].figures["e2e_p97.5_s"].mid == 0.1


def test_what_else_came_of_it_is_told_in_a_few_words() -> None:
    """Only what the kind has, and of that what happened."""
    lines = [
        row.told
        for row in rows(
            of_trace(
                replayed("steady"),
                replayed("quota", throttled=1200, retries=1100, gave_up=1),
                replayed("free", throttled=0, retries=0, gave_up=0),
                replayed("ptu", throttled=9, retries=0, spilled_requests=9, gave_up=0),
                replayed("function", cold_starts=1, replicas_max=3, gave_up=0),
                replayed("fleet", replica_timeline=[[0, 2], [60, 4], [90, 3]], replica_hours=5.0, failed=1),
            )
        )
    ]
    assert lines == [
        (),
        ("1,200 answers of 429, 1,100 sent again, 1 gave up",),
        ("no answer of 429",),
        ("9 answers of 429, 9 spilled over",),
        ("1 cold start, at most 3 instances",),
        ("2 to 4 replicas, 2.5 paid for on average, 1 request lost with one that failed",),
    ]


def test_little_money_is_not_none() -> None:
    html = drawn(of_trace(replayed("a", cost=0.0012), replayed("b", cost=0.0), replayed("c", cost=None)), 3)
    assert re.findall(r'<td class="n">([$-][^<]*)</td>', html)[:3] == ["$0.0012", "$0.00", "-"]


def test_replicas_over_time_of_those_that_change() -> None:
    arrivals = np.linspace(0.0, 7200.0, 500)
    steps = [[0.0, 1], [600.0, 3], [5000.0, 2]]
    answer = of_trace(replayed("steady"), *(replayed(f"c{i}", replica_timeline=steps) for i in range(MOST_ROWS + 2)))
    html = page(answer, [{}] * (MOST_ROWS + 3), T0, arrivals)
    assert "no. 2<" in html
    assert f"no. {MOST_ROWS + 1}<" in html
    assert "no. 1<" not in html
    assert f"no. {MOST_ROWS + 2}<" not in html
    assert "2 more in the table only" in html
    assert "Replicas over time" not in page(of_trace(replayed("steady")), [{}], T0, arrivals)


def test_a_step_stays_until_the_next_and_a_crowd_keeps_its_extremes() -> None:
    svg = timeline({"no. 1": [(0.0, 1), (30.0, 3), (90.0, 2)]}, np.array([1.0, 50.0]), 100.0)
    assert svg is not None
    assert [w for w in ("days", "hours", "minutes", "seconds") if f">{w}<" in svg] == ["seconds"]
    corners = lines(svg)[-1]
    assert len({x for x, _ in corners}) == 4, "one at each change, and the end"
    levels = [y for _, y in corners]
    assert levels[0] > levels[-1] > min(levels), "1, then 3, then 2"
    many = [(float(i), 2 + (i == 5000) * 7 - (i == 7000)) for i in range(10_000)]
    kept = _thinned(many, 10_000 / 400)
    assert len(kept) <= 3 * 401
    assert {n for _, n in kept} == {1, 2, 9}
    assert kept == sorted(kept)
    assert timeline({}, np.array([1.0]), 10.0) is None


def drawn(answer: dict[str, Any], curves: int) -> str:
    return page(answer, [{"ttft_s": CURVE, "itl_s": CURVE}] * curves, T0)


def test_the_page_of_a_trace() -> None:
    bound = [{"target": "itl_p95_s", "limit": 0.2, "value": 0.5, "met": False}]
    answer = of_trace(
        replayed("1 replica", p95=0.5, objective=bound, verdict="missed"),
        replayed("replicas=2,max_num_seqs=8", cost=2.0, p95=0.1, completed=9, verdict="met"),
        replayed("nothing", p95=None),
        objective=bound,
        notes=["arrivals 3 times as fast"],
    )
    html = drawn(answer, 3)
    assert html.count("<svg") == 3
    assert "<h1>What if: t.csv</h1>" in html
    assert "<b>2 h</b>of traffic" in html
    assert "replicas=2, max_num_seqs=8" in html
    assert "9 of 10 requests completed" in html
    assert "gap between tokens, p95 (s)" in html, "the front is of the objective's metric"
    assert "Not shown: 1 without" in html
    assert "arrivals 3 times as fast" in html
    assert html.count('<tr class="best">') == 2
    assert "80 % intervals" not in html


def test_the_page_of_an_endpoint() -> None:
    html = drawn(
        of_store(
            predicted("present"),
            predicted("accelerator=X", prediction=None, saturates=None, refused={"detail": "why not"}),
        ),
        2,
    )
    assert "<h1>What if: chat</h1>" in html
    assert "0.4 to 0.7" in html
    assert "in 25%" in html
    assert "why not" in html
    assert "Bars: 80 % intervals" in html
    assert "goodput" not in html, "a prediction has none"


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    html = drawn(of_trace(replayed(NASTY), notes=[NASTY]), 1)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', html)
    assert not re.findall(r"url\((?!#)", html)


def test_nothing_to_draw_is_no_chart() -> None:
    html = page(of_trace(replayed("a", p95=None)), [{}], T0)
    assert "<svg" not in html
    assert "<h2>Distributions" not in html
    assert charts.tradeoff([], "cost", "TTFT", 1.0) is None
    assert charts.distribution({"1": [(0.5, 0.0)]}, "TTFT", 1.0) is None


def point(number: int, x: float, y: float, kind: str = "beaten") -> dict[str, Any]:
    return {"number": number, "x": x, "y": y, "low": None, "high": None, "kind": kind}


def marks(svg: str, role: str) -> list[tuple[float, float]]:
    """Where the points stand, in pixels."""
    found = []
    for group in ET.fromstring(svg).iter():
        if role in (group.get("class") or ""):
            for mark in group:
                at = re.match(r"translate\(([-\d.]+),([-\d.]+)\)", mark.get("transform") or "")
                if at:
                    found.append((float(at[1]), float(at[2])))
    return found


def test_what_saturates_stands_at_the_edge() -> None:
    """Its latency grows with its traffic's length; it must not squeeze the others together."""
    svg = charts.tradeoff(
        [point(1, 1.0, 5000.0, "saturates"), point(2, 2.0, 0.5, "efficient"), point(3, 3.0, 0.4, "efficient")],
        "c",
        "m",
        0.6,
    )
    assert svg is not None
    edge, slower, faster = sorted(marks(svg, "mark-symbol role-mark"), key=lambda at: at[0])
    assert edge[1] == 0.0
    assert 0.0 < slower[1] < faster[1]
    assert faster[1] - slower[1] > 20, "the scale is that of those that carry the load"
    assert "5,000" not in svg


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The corners of each line, in pixels."""
    drawn = [
        p.get("d") or ""
        for g in ET.fromstring(svg).iter()
        if "mark-line role-mark" in (g.get("class") or "")
        for p in g
    ]
    return [corners(d) for d in drawn]


def corners(path: str) -> list[tuple[float, float]]:
    """Of an SVG path of absolute moves and lines."""
    x = y = 0.0
    found = []
    for command, numbers in re.findall(r"([MLHV])([-\d.,]+)", path):
        values = [float(v) for v in numbers.split(",")]
        x = values[0] if command != "V" else x
        y = values[-1] if command != "H" else y
        found.append((x, y))
    return found


@pytest.mark.parametrize("values", [[0.001, 30.0], [5.0, 6.0], [1.0]], ids=["log", "linear", "one"])
def test_slower_stands_higher(values: list[float]) -> None:
    svg = charts.tradeoff([point(i, i, v) for i, v in enumerate(values)], "c", "m", None)
    assert svg is not None
    heights = [y for _, y in sorted(marks(svg, "mark-symbol role-mark"))]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == len(values)
    assert all(0 < y < 260 for y in heights)


def test_more_curves_than_can_be_told_apart_are_counted() -> None:
    many = [replayed(f"c{i}", cost=float(i + 1), p95=1.0) for i in range(charts.MOST_CURVES + 3)]
    html = drawn(of_trace(*many), len(many))
    assert html.count("3 more in the table only") == 2
