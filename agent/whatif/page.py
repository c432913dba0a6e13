"""An answer as one HTML file that needs no network: the front of cost and latency, the distributions, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent import charts
from agent.report import environment, stylesheet
from agent.whatif.figures import Curves
from agent.whatif.table import SATURATED, Row, costs, efficient, rows, shown
from agent.whatif.timeline import MOST_ROWS, timeline
from analyzers.words import METRICS, heading, lasting, wording
from collectors.workload import Floats


def page(answer: Mapping[str, Any], curves: Sequence[Curves], now: float, arrival_s: Floats | None = None) -> str:
    """``curves``: of each candidate, in order; an empty one is left out. arrival_s: of a trace's traffic."""
    found = rows(answer)
    metric = _metric(found, answer)
    best = efficient(found, metric)
    cost, _ = costs(found)
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
            replicas=None if arrival_s is None else _replicas(answer, arrival_s),
            intervals=any(f.low is not None for row in found for f in row.figures.values()),
            now=now,
            css=stylesheet(),
        )
    )


def _metric(found: Sequence[Row], answer: Mapping[str, Any]) -> str:
    """What the front is of: the objective's first latency, else TTFT, or where some kinds do not stream end-to-end."""
    bound = [o["target"] for o in answer["objective"] if o["target"].endswith("_s")]
    streams = all("ttft_p95_s" in row.figures or not row.figures for row in found)
    return bound[0] if bound else "ttft_p95_s" if streams else "e2e_p95_s"


def _span(answer: Mapping[str, Any]) -> str:
    """How long the traffic is: ``7 d``."""
    seconds = (
        answer["trace"]["duration_s"] if "trace" in answer else answer["evidence"]["end"] - answer["evidence"]["start"]
    )
    return lasting(seconds)


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
    return {
        "svg": drawn,
        "left_out": len(found) - len(points),
        "limit": _limit(answer, metric),
        "intervals": any(point["low"] is not None for point in points),
    }


def _distributions(
    found: Sequence[Row], best: set[int], curves: Sequence[Curves], answer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """TTFT and ITL, and end-to-end where some candidate does not stream, of as many candidates as lines can be told apart."""
    silent = any(c.get("e2e_s") and not c.get("ttft_s") for c in curves)
    drawn = []
    for metric in ("ttft", "itl", *(["e2e"] if silent else [])):
        order = [row for row in _telling(found, best, answer) if curves[row.number - 1].get(f"{metric}_s")]
        of_each = {str(row.number): curves[row.number - 1][f"{metric}_s"] for row in order[: charts.MOST_CURVES]}
        limit = next((o["limit"] for o in answer["objective"] if o["target"].startswith(f"{metric}_")), None)
        svg = charts.distribution(of_each, METRICS[metric], limit)
        if svg is not None:
            fits = any(row.figures[m].low is not None for row in order[: len(of_each)] for m in row.figures)
            drawn.append(
                {
                    "svg": svg,
                    "name": METRICS[metric],
                    "left_out": len(found) - len(of_each),
                    "limit": limit,
                    "fits": fits,
                }
            )
    return drawn


def _telling(found: Sequence[Row], best: set[int], answer: Mapping[str, Any]) -> list[Row]:
    """The first candidate, the first of each other kind, those on the front, then others; without those that do not carry the load."""
    carries = [row for row in found if row.number == 1 or (row.saturates or 0.0) <= SATURATED]
    kinds = [answer["candidates"][row.number - 1].get("kind") for row in carries]
    first_of = [row for i, row in enumerate(carries) if kinds[i] not in kinds[:i]]
    order = dict.fromkeys(row.number for row in (*first_of, *(r for r in carries if r.number in best), *carries))
    return [found[number - 1] for number in order]


def _replicas(answer: Mapping[str, Any], arrival_s: Floats) -> dict[str, Any] | None:
    """Replicas over time, of the candidates whose replicas change. None: there is none."""
    changing = {
        number: c["replica_timeline"]
        for number, c in enumerate(answer["candidates"], 1)
        if len(c["replica_timeline"] or ()) > 1
    }
    if not changing:
        return None
    end = max(answer["candidates"][number - 1]["simulated_s"] for number in changing)
    svg = timeline({f"no. {number}": steps for number, steps in changing.items()}, arrival_s, end)
    return {"svg": svg, "left_out": max(0, len(changing) - MOST_ROWS)}
