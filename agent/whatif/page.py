"""An answer as one HTML file that needs no network: the front of cost and latency, the distributions, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent import charts
from agent.report import environment
from agent.whatif.table import SATURATED, Row, costs, efficient, rows, shown
from agent.whatif.traced import Curves

_NAMES = {
    "ttft": "time to first token",
    "itl": "gap between tokens",
    "e2e": "end-to-end time",
    "tpot": "time per output token",
    "queue": "time in the queue",
}


def page(answer: Mapping[str, Any], curves: Sequence[Curves], now: float) -> str:
    """``curves``: of each candidate, in order; an empty one is left out."""
    found = rows(answer)
    metric = next((o["target"] for o in answer["objective"] if o["target"].endswith("_s")), "ttft_p95_s")
    best = efficient(found, metric)
    cost, _ = costs(found)
    source = environment().loader
    assert source is not None
    return (
        environment()
        .get_template("whatif.html")
        .render(
            answer=answer,
            rows=found,
            best=best,
            metrics=shown(answer),
            heading=heading,
            goodput=any(row.goodput_per_s is not None for row in found),
            span=_span(answer),
            trace=Path(answer["trace"]["file"]).name if "trace" in answer else None,
            front=_front(found, best, metric, answer),
            metric=wording(metric),
            cost=cost,
            distributions=_distributions(found, best, curves, answer),
            now=now,
            css=source.get_source(environment(), "style.css")[0],
        )
    )


def _span(answer: Mapping[str, Any]) -> str:
    """How long the traffic is: ``7 days``."""
    seconds = (
        answer["trace"]["duration_s"] if "trace" in answer else answer["evidence"]["end"] - answer["evidence"]["start"]
    )
    for unit, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def wording(metric: str) -> str:
    """``time to first token, p95`` of ``ttft_p95_s``."""
    name, quantile = metric.removesuffix("_s").rsplit("_", 1)
    return f"{_NAMES[name]}, {quantile}"


def heading(metric: str) -> str:
    """``TTFT p95`` of ``ttft_p95_s``, as in a table's head."""
    name, quantile = metric.removesuffix("_s").rsplit("_", 1)
    return f"{name if name in ('e2e', 'queue') else name.upper()} {quantile}"


def _limit(answer: Mapping[str, Any], target: str) -> float | None:
    return next((o["limit"] for o in answer["objective"] if o["target"] == target), None)


def _front(found: Sequence[Row], best: set[int], metric: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The chart, and how many candidates cannot stand in it."""
    title, cost = costs(found)
    points = [
        {
            "number": row.number,
            "x": cost[row.number],
            "y": figure.mid,
            "low": figure.low,
            "high": figure.high,
            "kind": "efficient"
            if row.number in best
            else "saturates"
            if (row.saturates or 0.0) > SATURATED
            else "beaten",
        }
        for row in found
        if row.number in cost and (figure := row.figures.get(metric)) is not None and figure.mid > 0
    ]
    drawn = charts.tradeoff(points, title, f"{wording(metric)} (s)", _limit(answer, metric))
    return {"svg": drawn, "left_out": len(found) - len(points), "limit": _limit(answer, metric)}


def _distributions(
    found: Sequence[Row], best: set[int], curves: Sequence[Curves], answer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """TTFT and ITL of the first candidate, of those on the front, and of others that carry the load, while lines can be told apart."""
    order = [row for row in found if row.number == 1 or row.number in best]
    order += [row for row in found if row not in order and (row.saturates or 0.0) <= SATURATED]
    drawn = []
    for metric in ("ttft", "itl"):
        of_each = {str(row.number): c for row in order if (c := curves[row.number - 1].get(f"{metric}_s"))}
        limit = next((o["limit"] for o in answer["objective"] if o["target"].startswith(f"{metric}_")), None)
        svg = charts.distribution(of_each, _NAMES[metric], limit)
        if svg is not None:
            left_out = len(found) - min(len(of_each), charts.MOST_CURVES)
            drawn.append({"svg": svg, "name": _NAMES[metric], "left_out": left_out, "limit": limit})
    return drawn
