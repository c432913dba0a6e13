"""An advice as one HTML file that needs no network: options, cost against traffic, break-even rates, and what the guides say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent import charts
from agent.advise.answer import latency_names
from agent.report import environment, stylesheet


def page(told: Mapping[str, Any], curves: Mapping[str, Sequence[tuple[float, float]]], now: float) -> str:
    """curves: (requests per second, US dollars per hour) by name."""
    made = environment()
    traffic = told["workload"]
    # Those that cost least somewhere come first: not all can be told apart in one chart.
    order = dict.fromkeys((*(r["name"] for r in told["cheapest"]), *curves))
    drawn = {name: curves[name] for name in list(order)[: charts.MOST_CURVES]}
    prices = {(o["price_source"], o["price_as_of"]) for o in told["options"] if o["offered"] and o["prices"]}
    return made.get_template("advise.html").render(
        told=told,
        rows=[o for o in told["options"] if traffic is None or o["offered"]],
        left_out=[o for o in told["options"] if traffic is not None and not o["offered"]],
        of=None if traffic is None else Path(traffic["of"]).name,
        latencies=latency_names(told),
        chart=charts.costs(drawn, None if traffic is None else traffic["requests_per_s"], told["cheapest"]),
        not_drawn=len(curves) - len(drawn),
        one_source=next(iter(prices)) if len(prices) == 1 else None,
        now=now,
        css=stylesheet(),
    )
