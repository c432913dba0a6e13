"""Charts, defined once and drawn as SVG without a browser or a network. Pure: series in, SVG out.

What is unknown leaves a gap in the line; it is never drawn as 0.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import altair as alt
import vl_convert

from agent.chartlabels import Dot, Label, Line, labels

Point = Mapping[str, Any]
_WIDTH, _HEIGHT = 520, 150
_BLUE, _LIGHT, _RED, _GREY = "#2f6db3", "#9dbfe3", "#c0392b", "#7a7f87"


#: The grammar that this Altair writes, for the converter: "6.1".
_GRAMMAR = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def svg(chart: alt.LayerChart | alt.FacetChart | alt.VConcatChart) -> str:
    """Inline SVG that fits its place, with ids that do not clash with those of other charts on the page."""
    spec = chart.configure_view(stroke=None).configure_axis(
        grid=True,
        gridColor="#e8eaee",
        domainColor="#b6bcc6",
        tickColor="#b6bcc6",
        labelColor="#4b5058",
        titleColor="#4b5058",
        titleFontWeight="normal",
    )
    spec = spec.configure_legend(orient="top", direction="horizontal", labelColor="#4b5058", symbolStrokeWidth=3)
    drawn: str = vl_convert.vegalite_to_svg(spec.to_json(), vl_version=_GRAMMAR)
    own = hashlib.sha256(drawn.encode()).hexdigest()[:8]
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', drawn)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", drawn)


def _time(series: Sequence[Point]) -> alt.X:
    """UTC, as all that is written on the pages; with the day where the span has several."""
    span = series[-1]["start"] - series[0]["start"] if series else 0.0
    if span > 3 * _DAY:
        axis = alt.Axis(format="%b %d", labelOverlap=True, tickCount={"interval": "day", "step": 1})
    else:
        axis = alt.Axis(format="%d. %H:%M" if span > _DAY else "%H:%M", labelOverlap=True)
    return alt.X("t:T", title=None, scale=alt.Scale(type="utc"), axis=axis)


_DAY = 86_400.0


def _steps(series: Sequence[Point], name: str) -> Iterator[dict[str, float | None]]:
    """Each window as a level from its start to its end. None, which breaks the line, where the value or the window is missing."""
    for p, following in zip(series, [*series[1:], None], strict=True):
        start, end = p["start"] * 1000, (p["start"] + p["duration_s"]) * 1000
        if p[name] is None:
            yield {"t": start, "v": None}
            continue
        yield from ({"t": start, "v": p[name]}, {"t": end, "v": p[name]})
        if following is None or following["start"] * 1000 > end:
            yield {"t": end, "v": None}


def latency(
    series: Sequence[Point], metric: str, limit: float | None, title: str, marks: Sequence[Mapping[str, Any]] = ()
) -> str:
    """p50 and p95 of ``metric`` (``ttft``, ``itl``, ``e2e``; seconds) over time, the objective's limit, and changes as vertical marks.

    ``marks``: ``{"at": Unix seconds, "what": label}``.
    """
    rows = [{**step, "q": q} for q in ("p50", "p95") for step in _steps(series, f"{metric}_{q}_s")]
    colour = alt.Color("q:N", title=None, scale=alt.Scale(domain=["p50", "p95"], range=[_LIGHT, _BLUE]))
    lines = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=1.6).encode(
        x=_time(series), y=alt.Y("v:Q", title=f"{title} (s)", axis=alt.Axis(tickCount=4)), color=colour
    )  # fmt: skip
    return svg(_with_marks(lines, series, limit, marks).properties(width=_WIDTH, height=_HEIGHT))


def load(series: Sequence[Point], marks: Sequence[Mapping[str, Any]] = ()) -> str:
    """Requests per second, and the requests that wait, over time."""
    names = (("requests_per_s", "requests/s"), ("waiting_mean", "waiting"))
    rows = [{**step, "what": what} for name, what in names for step in _steps(series, name)]
    colour = alt.Color("what:N", title=None, scale=alt.Scale(domain=["requests/s", "waiting"], range=[_BLUE, _RED]))
    lines = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=1.6).encode(
        x=_time(series), y=alt.Y("v:Q", title="load", axis=alt.Axis(tickCount=4)), color=colour
    )  # fmt: skip
    return svg(_with_marks(lines, series, None, marks).properties(width=_WIDTH, height=_HEIGHT))


def cache(series: Sequence[Point], marks: Sequence[Mapping[str, Any]] = ()) -> str:
    """How full the KV cache is, over time."""
    y = alt.Y("v:Q", title="KV cache in use", axis=alt.Axis(tickCount=4, format="%"), scale=alt.Scale(domain=[0, 1]))
    lines = alt.Chart(alt.InlineData(list(_steps(series, "kv_usage_mean")))).mark_line(strokeWidth=1.6, color=_BLUE)
    return svg(
        _with_marks(lines.encode(x=_time(series), y=y), series, None, marks).properties(width=_WIDTH, height=_HEIGHT)
    )


def forecast(past: Sequence[Point], coming: Sequence[Point]) -> str:
    """Requests per second that came, and those to come with their interval.

    past: ``start, duration_s, requests_per_s``; coming: the last as ``low``, ``mid`` and ``high``.
    """
    series = [*past, *coming]
    came = [{**step, "what": "came"} for step in _steps(past, "requests_per_s")]
    band = [{"t": p["start"] * 1000, **p["requests_per_s"]} for p in coming]
    x, y = _time(series), alt.Y("v:Q", title="requests/s", axis=alt.Axis(tickCount=4))
    area = alt.Chart(alt.InlineData(band)).mark_area(color=_LIGHT, opacity=0.5)
    mid = alt.Chart(alt.InlineData(band)).mark_line(color=_BLUE, strokeWidth=1.6)
    seen = alt.Chart(alt.InlineData(came)).mark_line(color="#20242b", strokeWidth=1.6)
    layers = (
        area.encode(x=x, y=alt.Y("low:Q", title="requests/s"), y2="high:Q"),
        mid.encode(x=x, y=alt.Y("mid:Q")),
        seen.encode(x=x, y=y),
    )
    return svg(alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT))


def _with_marks(
    lines: alt.Chart, series: Sequence[Point], limit: float | None, marks: Sequence[Mapping[str, Any]]
) -> alt.LayerChart | alt.FacetChart:
    layers: list[alt.Chart] = [lines]
    if limit is not None:
        rule = alt.Chart(alt.InlineData([{"limit": limit}])).mark_rule(color=_RED, strokeDash=[4, 3])
        layers.append(rule.encode(y="limit:Q"))
    if marks:
        data = alt.InlineData([{"t": m["at"] * 1000, "what": m["what"]} for m in marks])
        layers.append(alt.Chart(data).mark_rule(color=_GREY, strokeDash=[2, 2]).encode(x="t:T"))
        layers += [
            alt.Chart(alt.InlineData(named))
            .mark_text(align=align, dx=dx, fontSize=9, color=_GREY)
            .encode(x="t:T", y=alt.value(6), text="what:N")
            for align, dx, named in _names(series, marks)
            if named
        ]
    return alt.layer(*layers)


def _names(
    series: Sequence[Point], marks: Sequence[Mapping[str, Any]]
) -> list[tuple[Literal["left", "right"], int, list[dict[str, Any]]]]:
    """The marks' labels, to the right or, near the end, to the left; where they would lie over one another, the last of them."""
    start, end = (series[0]["start"], series[-1]["start"]) if series else (0.0, 0.0)
    kept: list[dict[str, Any]] = []
    for mark in sorted(marks, key=lambda m: m["at"]):
        if kept and mark["at"] - kept[-1]["t"] / 1000 < 0.12 * (end - start):
            kept.pop()
        kept.append({"t": mark["at"] * 1000, "what": mark["what"]})
    late = [k for k in kept if k["t"] / 1000 > start + 0.85 * (end - start)]
    return [("left", 3, [k for k in kept if k not in late]), ("right", -3, late)]


def front(options: Sequence[Mapping[str, Any]], metric: str, limit: float | None) -> str | None:
    """Cost against latency of every shape that was considered. None where no price or no prediction is known.

    ``options``: as in a recommendation's body.
    """
    rows = [
        {
            "cost": o["money"]["per_hour"],
            "low": i["low"],
            "v": i["mid"],
            "high": i["high"],
            "label": o["label"] if o["verdict"] in ("chosen", "current") else "",
            "verdict": o["verdict"] if o["verdict"] in ("chosen", "current") else "other",
        }
        for o in options
        if o["money"]["per_hour"] is not None and o["prediction"] and (i := o["prediction"]["metrics"].get(metric))
    ]
    if not rows:
        return None
    data = alt.InlineData(rows)
    x = alt.X("cost:Q", title="US dollars per hour", scale=alt.Scale(zero=False, padding=24))
    colour = alt.Color(
        "verdict:N", title=None, scale=alt.Scale(domain=["current", "chosen", "other"], range=[_GREY, _BLUE, "#c9ced6"])
    )
    y = alt.Y("v:Q", title=f"{metric} predicted", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=4))
    bars = (
        alt.Chart(data)
        .mark_rule(strokeWidth=1.5)
        .encode(x=x, y=alt.Y("low:Q", scale=alt.Scale(type="log")), y2="high:Q", color=colour)
    )
    dots = alt.Chart(data).mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour)
    named = sorted((r for r in rows if r["label"]), key=lambda r: float(r["v"]))
    names = [  # the lower one's below its dot, the other's above: current and chosen are often close
        alt.Chart(alt.InlineData([row]))
        .mark_text(align="left", dx=6, dy=-9 if i else 11, fontSize=10)
        .encode(x=x, y=y, text="label:N")
        for i, row in enumerate(named)
    ]
    layers: list[alt.Chart] = [bars, dots, *names]
    if limit is not None:
        layers.append(
            alt.Chart(alt.InlineData([{"limit": limit}])).mark_rule(color=_RED, strokeDash=[4, 3]).encode(y="limit:Q")
        )
    return svg(alt.layer(*layers).properties(width=_WIDTH, height=200))


def promises(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Predicted (80 % interval) against observed, relative to the prediction. None where nothing can be compared."""
    data = [
        {
            "what": f"{r['endpoint']}: {r['metric']}",
            "low": r["low"] / r["predicted"],
            "high": r["high"] / r["predicted"],
            "seen": r["observed"] / r["predicted"],
            "least": (r["observed"] if r["observed_low"] is None else r["observed_low"]) / r["predicted"],
            "most": (r["observed"] if r["observed_high"] is None else r["observed_high"]) / r["predicted"],
            "inside": "inside" if r["inside"] else "outside",
        }
        for r in rows
        if r["predicted"] and r["observed"] is not None and r["low"] is not None
    ]
    if not data:
        return None
    inline = alt.InlineData(data)
    y = alt.Y("what:N", title=None, sort=None, axis=alt.Axis(labelLimit=260))
    x = alt.X("low:Q", title="observed / predicted", scale=alt.Scale(zero=False))
    bars = alt.Chart(inline).mark_bar(height=7, color="#cfdcec").encode(y=y, x=x, x2="high:Q")
    colour = alt.Color("inside:N", title=None, scale=alt.Scale(domain=["inside", "outside"], range=[_BLUE, _RED]))
    dots = alt.Chart(inline).mark_point(filled=True, size=45, opacity=1).encode(y=y, x="seen:Q", color=colour)
    ranges = alt.Chart(inline).mark_rule(strokeWidth=2).encode(y=y, x="least:Q", x2="most:Q", color=colour)
    one = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(color=_GREY, strokeDash=[3, 3]).encode(x="one:Q")
    return svg(alt.layer(bars, one, ranges, dots).properties(width=_WIDTH - 120, height={"step": 18}))


#: Of several candidates in one chart, told apart also by people who do not see all colours (Okabe and Ito).
_SEVERAL = ("#2f6db3", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
#: So many curves can be told apart in one chart.
MOST_CURVES = len(_SEVERAL)


def tradeoff(points: Sequence[Mapping[str, Any]], cost: str, metric: str, limit: float | None) -> str | None:
    """Cost against latency of numbered candidates, and the line through those that nothing beats. None without any point.

    ``points``: ``number``, ``x``, ``y`` (seconds, above 0), ``low`` and ``high`` (None: exact), ``kind``: ``efficient`` where nothing is both
    cheaper and faster, ``beaten``, or ``saturates``. What saturates grows slower as long as its traffic lasts: it stands at the upper
    edge, whatever its ``y``. cost, metric: the axes' titles.
    """
    if not points:
        return None
    rows, bottom, top = _placed(points, limit)
    log = top / bottom > 5
    bottom = bottom / 1.3 if log else 0.0
    left, right = _across([float(r["x"]) for r in rows])
    x = alt.X(
        "x:Q",
        title=cost,
        scale=alt.Scale(domain=[left, right], nice=False),
        axis=alt.Axis(tickCount=6, tickMinStep=0.01),
    )
    scale = _log(bottom, top) if log else alt.Scale(domain=[bottom, top], nice=False)
    y = alt.Y("y:Q", title=metric, scale=scale, axis=_ticks(bottom, top) if log else alt.Axis(tickCount=5))
    kinds = ["efficient", "beaten", "saturates"]
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[_BLUE, "#a9b0ba", _RED]))
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=["circle", "circle", "triangle-up"]))
    data = alt.InlineData(rows)
    front = alt.InlineData(sorted((r for r in rows if r["kind"] == "efficient"), key=lambda r: float(r["x"])))
    layers: list[alt.Chart] = []
    if limit is not None:
        rule = alt.Chart(alt.InlineData([{"limit": limit}])).mark_rule(color=_RED, strokeDash=[4, 3])
        layers.append(rule.encode(y="limit:Q"))
    layers.append(alt.Chart(front).mark_line(interpolate="step-after", color=_LIGHT, strokeWidth=1.5).encode(x=x, y=y))
    layers.append(alt.Chart(data).mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour))
    layers.append(
        alt.Chart(data).mark_point(filled=True, size=80, opacity=1).encode(x=x, y=y, color=colour, shape=shape)
    )
    for row, label in _named(rows, limit, (left, right), (bottom, top), log):
        text = alt.Chart(alt.InlineData([{**row, "label": label.text}])).mark_text(
            dx=label.dx, dy=label.dy, align=label.align, baseline="middle", fontSize=11, color="#4b5058"
        )
        layers.append(text.encode(x=x, y=y, text="label:N"))
    return svg(alt.layer(*layers).properties(width=_FRONT_WIDTH, height=_FRONT_HEIGHT))


_FRONT_WIDTH, _FRONT_HEIGHT = 860, 260


def _across(values: Sequence[float]) -> tuple[float, float]:
    """The costs to show: with room at both ends, and never below nothing."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return max(low - room, min(low, 0.0)), high + room


def _named(
    rows: Sequence[Mapping[str, Any]],
    limit: float | None,
    across: tuple[float, float],
    up: tuple[float, float],
    log: bool,
) -> list[tuple[Mapping[str, Any], Label]]:
    """The labels, each with the point that it stands at. The scales are worked out here once more, to know the pixels."""
    (left, right), (bottom, top) = across, up

    def x(value: float) -> float:
        return _FRONT_WIDTH * (value - left) / (right - left)

    def y(value: float) -> float:
        share = math.log(value / bottom) / math.log(top / bottom) if log else (value - bottom) / (top - bottom)
        return _FRONT_HEIGHT * (1.0 - share)

    dots = [Dot(r["number"], x(r["x"]), y(r["y"]), y(r["high"] or r["y"]), y(r["low"] or r["y"])) for r in rows]
    efficient = {r["number"] for r in rows if r["kind"] == "efficient"}
    front = sorted((d for d in dots if d.number in efficient), key=lambda d: d.x)
    lines: list[Line] = [] if limit is None else [(0.0, y(limit), _FRONT_WIDTH, y(limit))]
    for here, there in pairwise(front):
        lines += [(here.x, here.y, there.x, here.y), (there.x, here.y, there.x, there.y)]
    at = {r["number"]: r for r in rows}
    return [(at[label.number], label) for label in labels(dots, lines, _FRONT_WIDTH, _FRONT_HEIGHT)]


def _placed(points: Sequence[Mapping[str, Any]], limit: float | None) -> tuple[list[dict[str, Any]], float, float]:
    """The points with what saturates at the edge, and the least and greatest seconds to show."""
    steady = [p for p in points if p["kind"] != "saturates"] or list(points)
    spread = [float(v) for p in steady for v in (p["y"], p["low"], p["high"], limit) if v]
    top = 1.25 * max(spread)
    edge = {"y": top, "low": None, "high": None}
    return [{**p, **({} if p in steady else edge)} for p in points], min(spread), top


def _log(bottom: float, top: float) -> alt.Scale:
    return alt.Scale(type="log", domain=[bottom, top], nice=False)


def _ticks(bottom: float, top: float) -> alt.Axis:
    """On a logarithmic axis: 1, 2 and 5 of each decade, or the decades alone where there are many."""
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return alt.Axis(values=[step * 10.0**decade for decade in decades for step in steps], format="~g")


def distribution(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, limit: float | None) -> str | None:
    """The share of values that lie below, by seconds on a logarithmic axis, a line each. None without any value above 0.

    ``curves``: by number, (share, seconds) in ascending order; the first ``MOST_CURVES`` are drawn.
    """
    names = list(curves)[:MOST_CURVES]
    rows = [{"what": name, "share": share, "s": s} for name in names for share, s in curves[name] if s > 0]
    if not rows:
        return None
    seconds = [s for name in names for _, s in curves[name] if s > 0] + ([limit] if limit else [])
    bottom, top = min(seconds) / 1.1, max(seconds) * 1.1
    x = alt.X("s:Q", title=f"{title} (s)", scale=_log(bottom, top), axis=_ticks(bottom, top))
    y = alt.Y("share:Q", title="share below", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    colour = alt.Color(
        "what:N",
        title="candidate",
        sort=names,
        scale=alt.Scale(domain=names, range=list(_SEVERAL[: len(names)])),
        legend=alt.Legend(
            symbolType="stroke", titleOrient="left", titlePadding=10, titleFontWeight="normal", titleColor="#4b5058"
        ),
    )
    lines = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=1.8).encode(x=x, y=y, color=colour, order="share:Q")
    layers: list[alt.Chart] = [lines]
    if limit is not None:
        rule = alt.Chart(alt.InlineData([{"limit": limit}])).mark_rule(color=_RED, strokeDash=[4, 3])
        layers.append(rule.encode(x="limit:Q"))
    return svg(alt.layer(*layers).properties(width=_WIDTH, height=220))


def loads(curves: Mapping[str, Sequence[Mapping[str, Any]]], title: str, limit: float | None) -> str | None:
    """A latency over the rate at which it was measured, a line for each shape, on logarithmic axes. None without any value above 0.

    ``curves``: by number, ``rate`` (requests per second), ``s``, and ``met`` (None: too few requests to tell); the first ``MOST_CURVES``.
    """
    names = list(curves)[:MOST_CURVES]
    words = {True: "met", False: "missed", None: "not sure"}
    rows = [
        {"what": name, "rate": p["rate"], "s": p["s"], "verdict": words[p["met"]]}
        for name in names
        for p in sorted(curves[name], key=lambda p: float(p["rate"]))
        if p["s"] and p["rate"]
    ]
    if not rows:
        return None
    rates, seconds = [r["rate"] for r in rows], [r["s"] for r in rows] + ([limit] if limit else [])
    across, up = (min(rates) / 1.15, max(rates) * 1.15), (min(seconds) / 1.3, max(seconds) * 1.3)
    x = alt.X("rate:Q", title="requests per second (log)", scale=_log(*across), axis=_ticks(*across))
    y = alt.Y("s:Q", title=f"{title} (s, log)", scale=_log(*up), axis=_ticks(*up))
    colour = alt.Color(
        "what:N", title="shape", sort=names, scale=alt.Scale(domain=names, range=list(_SEVERAL[: len(names)]))
    )
    shape = alt.Shape(
        "verdict:N", title=None, scale=alt.Scale(domain=list(words.values()), range=["circle", "cross", "diamond"])
    )
    data = alt.InlineData(rows)
    layers: list[alt.Chart] = []
    if limit is not None:
        rule = alt.Chart(alt.InlineData([{"limit": limit}])).mark_rule(color=_RED, strokeDash=[4, 3])
        layers.append(rule.encode(y="limit:Q"))
    layers.append(alt.Chart(data).mark_line(strokeWidth=1.6).encode(x=x, y=y, color=colour, order="rate:Q"))
    layers.append(
        alt.Chart(data).mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour, shape=shape)
    )
    return svg(alt.layer(*layers).properties(width=_FRONT_WIDTH, height=260))


def limits(shapes: Sequence[Mapping[str, Any]]) -> str | None:
    """How much each shape carries: from the rate that was met to the one that was missed, and what was predicted. None without any.

    ``shapes``: ``label``, ``low``, ``high`` and ``promised`` (requests per second; None: not known), ``best``.
    """
    rows = [{**s, "high": s["high"] or s["low"]} for s in shapes if s["low"]]
    if not rows:
        return None
    y = alt.Y("label:N", title=None, sort=[r["label"] for r in rows], axis=alt.Axis(labelLimit=250, minExtent=260))
    x = alt.X(
        "low:Q",
        title="requests per second within the objective",
        scale=alt.Scale(zero=True),
        axis=alt.Axis(tickCount=6),
    )
    colour = alt.Color("best:N", legend=None, scale=alt.Scale(domain=[True, False], range=[_BLUE, "#a9b0ba"]))
    data = alt.InlineData(rows)
    bars = alt.Chart(data).mark_bar(size=14).encode(y=y, x=x, color=colour)
    doubt = alt.Chart(data).mark_rule(strokeWidth=2, color=_GREY).encode(y=y, x=alt.X("low:Q"), x2="high:Q")
    told = alt.InlineData([r for r in rows if r["promised"]])
    tick = alt.Chart(told).mark_tick(color=_RED, thickness=2, size=18).encode(y=y, x=alt.X("promised:Q"))
    return svg(alt.layer(bars, doubt, tick).properties(width=_FRONT_WIDTH - 260, height={"step": 26}))


def costs(
    curves: Mapping[str, Sequence[tuple[float, float]]], rate: float | None, cheapest: Sequence[Mapping[str, Any]]
) -> str | None:
    """What each option costs over the rate of requests, on logarithmic axes. None without any cost above 0.

    ``curves``: (requests per second, US dollars per hour) by name, the first ``MOST_CURVES``. rate: of the traffic, marked. ``cheapest``:
    ``from_requests_per_s`` and ``usd_per_hour`` where another one becomes the cheapest; all but the first are marked.
    """
    names = list(curves)[:MOST_CURVES]
    rows: list[dict[str, Any]] = [
        {"what": n, "rate": r, "usd": usd} for n in names for r, usd in curves[n] if usd > 0 and r > 0
    ]
    if not rows:
        return None
    rates, usd = [r["rate"] for r in rows], [r["usd"] for r in rows]
    across, up = (min(rates), max(rates)), (min(usd) / 1.3, max(usd) * 1.3)
    x = alt.X("rate:Q", title="requests per second (log)", scale=_log(*across), axis=_ticks(*across))
    y = alt.Y("usd:Q", title="US dollars per hour (log)", scale=_log(*up), axis=_ticks(*up))
    colour = alt.Color(
        "what:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=list(_SEVERAL[: len(names)])),
        legend=alt.Legend(columns=3, labelLimit=220),
    )
    layers: list[alt.Chart] = []
    if rate is not None:
        rule = alt.Chart(alt.InlineData([{"rate": rate}])).mark_rule(color=_GREY, strokeDash=[4, 3])
        layers.append(rule.encode(x="rate:Q"))
    layers.append(
        alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=1.6).encode(x=x, y=y, color=colour, order="rate:Q")
    )
    crossings = [{"rate": c["from_requests_per_s"], "usd": c["usd_per_hour"]} for c in cheapest[1:]]
    if crossings:
        dots = alt.Chart(alt.InlineData(crossings)).mark_point(filled=True, size=45, color="#20242b", opacity=1)
        layers.append(dots.encode(x=x, y=y))
    return svg(alt.layer(*layers).properties(width=_FRONT_WIDTH, height=300))


# -- traffic that was sent ----------------------------------------------------------------------------------------------


def _seconds() -> alt.X:
    return alt.X("t:Q", title="seconds since the start", axis=alt.Axis(tickCount=8), scale=alt.Scale(nice=False))


def _levels(slices: Sequence[Point], name: str, what: str) -> Iterator[dict[str, Any]]:
    """Each slice as a level from its start to its end; None, which breaks the line, where it is unknown."""
    for piece in slices:
        for t in (piece["start_s"], piece["start_s"] + piece["seconds"]):
            yield {"t": t, "v": piece[name], "what": what}


def _warm(warmup_s: float) -> list[alt.Chart]:
    """A shade over the warm-up, which is in no figure."""
    if warmup_s <= 0:
        return []
    shade = alt.Chart(alt.InlineData([{"from": 0, "to": warmup_s}])).mark_rect(color="#f1f2f4")
    return [shade.encode(x=alt.X("from:Q"), x2="to:Q")]


def traffic(slices: Sequence[Point], warmup_s: float) -> str | None:
    """Requests sent, completed and failed per second, over the seconds of a run. None without any."""
    if not slices:
        return None
    names = (("sent_per_s", "sent"), ("completed_per_s", "completed"), ("errors_per_s", "failed"))
    rows = [row for name, what in names for row in _levels(slices, name, what)]
    colour = alt.Color(
        "what:N", title=None, scale=alt.Scale(domain=["sent", "completed", "failed"], range=[_LIGHT, _BLUE, _RED])
    )
    y = alt.Y("v:Q", title="requests per second", axis=alt.Axis(tickCount=4))
    lines = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=1.6).encode(x=_seconds(), y=y, color=colour)
    return svg(alt.layer(*_warm(warmup_s), lines).properties(width=_WIDTH, height=_HEIGHT))


def over_time(slices: Sequence[Point], metric: str, limit: float | None, warmup_s: float) -> str | None:
    """p50 and p95 of ``metric`` (``ttft``, ``itl``; seconds) over the seconds of a run. None where nothing is known."""
    rows = [row for q in ("p50", "p95") for row in _levels(slices, f"{metric}_{q}_s", q)]
    if not any(row["v"] is not None for row in rows):
        return None
    colour = alt.Color("what:N", title=None, scale=alt.Scale(domain=["p50", "p95"], range=[_LIGHT, _BLUE]))
    y = alt.Y("v:Q", title="seconds", axis=alt.Axis(tickCount=4), scale=alt.Scale(zero=True))
    lines = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=1.6).encode(x=_seconds(), y=y, color=colour)
    layers: list[alt.Chart] = [*_warm(warmup_s), lines]
    if limit is not None:
        rule = alt.Chart(alt.InlineData([{"limit": limit}])).mark_rule(color=_RED, strokeDash=[4, 3])
        layers.append(rule.encode(y="limit:Q"))
    return svg(alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT))


def quantiles(several: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Quantiles, each with the interval in which it lies, a row for each distribution, by seconds, on a logarithmic axis
    where they span much.

    ``several``: by title, ``share`` and ``s`` with ``low`` and ``high`` (None: not bounded). None without any value above 0.
    """
    rows = [
        {
            "what": what,
            "q": f"p{100 * p['share']:g}",
            "s": p["s"],
            "low": p["low"] or p["s"],
            "high": p["high"] or p["s"],
        }
        for what, points in several.items()
        for p in points
        if p["s"] > 0
    ]
    if not rows:
        return None
    bottom, top = min(r["low"] for r in rows) / 1.15, max(r["high"] for r in rows) * 1.15
    log = top / bottom > 10
    scale = _log(bottom, top) if log else alt.Scale(domain=[bottom, top], nice=True, zero=False)
    x = alt.X("s:Q", title="seconds", scale=scale, axis=_ticks(bottom, top) if log else alt.Axis(tickCount=6))
    names = list(dict.fromkeys(r["q"] for r in rows))
    y = alt.Y("q:N", title=None, sort=names)
    colour = alt.Color(
        "what:N", title=None, scale=alt.Scale(domain=list(several), range=list(_SEVERAL[: len(several)]))
    )
    offset = alt.YOffset("what:N", sort=list(several))
    data = alt.InlineData(rows)
    bars = alt.Chart(data).mark_rule(strokeWidth=4, opacity=0.35).encode(
        y=y, x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour, yOffset=offset
    )  # fmt: skip
    dots = alt.Chart(data).mark_point(filled=True, size=45, opacity=1).encode(y=y, x=x, color=colour, yOffset=offset)
    return svg(alt.layer(bars, dots).properties(width=_WIDTH, height={"step": 14 if len(several) > 1 else 22}))
