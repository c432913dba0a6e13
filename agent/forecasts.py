"""The load to come of an endpoint, as people and programs are shown it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from agent.report import environment, stylesheet
from agent.settings import EndpointSettings
from analyzers.forecast.forecast import Forecast
from analyzers.forecast.history import DAY, LOADS, STEP_S, LoadHistory
from analyzers.words import lasting


def describe(endpoint: EndpointSettings, history: LoadHistory, found: Forecast) -> dict[str, Any]:
    """What was asked in the last day, and what may come in the next: rates per second, slot by slot; unknown is None."""
    seen = history.rates["requests"][-DAY:]
    first = history.end - seen.shape[0] * STEP_S
    past = [
        {"start": first + i * STEP_S, "duration_s": STEP_S, "requests_per_s": None if math.isnan(rate) else float(rate)}
        for i, rate in enumerate(seen)
    ]
    coming = [
        {"start": found.start + i * STEP_S, "duration_s": STEP_S}
        | {
            f"{name}_per_s": {end: float(getattr(band, end)[i]) for end in ("low", "mid", "high")}
            for name in LOADS
            if (band := found.bands.get(name)) is not None
        }
        for i in range(found.slots)
    ]
    return {
        "endpoint": endpoint.name,
        "model": found.model,
        "season_s": found.season_s,
        "seen_s": found.seen_s,
        "backtest": [{"model": b.model, "error": b.error, "forecasts": b.forecasts} for b in found.backtest],
        "error": found.error,
        "held": found.held,
        "notes": notes(found),
        "past": past,
        "forecast": coming,
    }


def notes(found: Forecast) -> list[str]:
    """What limits it, in sentences."""
    if found.season_s is None:
        return [
            f"no season is known yet: {lasting(found.seen_s)} of the load were seen, a day is needed; until then the largest load seen, "
            "grown, stands for what may come"
        ]
    said = []
    if not found.backtest:
        said.append("too little was seen to test it on: the interval is the policy's growth, up and down")
    if found.season_s < 7 * 86_400:
        said.append(
            "what day of the week a day is like is not known yet, so no hour is taken to bring less than it did on any day seen"
        )
    if found.burst > 1.0:
        said.append(
            f"bursts of up to {found.burst:.2g} times the usual come at no time of their own: the upper ends hold one at any time"
        )
    return said


def by_hour(view: dict[str, Any]) -> list[dict[str, float]]:
    """The requests to come, hour by hour: the means of the middle, and the least and the most of any slot in it."""
    each = int(3600 / STEP_S)
    rows = []
    for i in range(0, len(view["forecast"]) - each + 1, each):
        slots = [slot["requests_per_s"] for slot in view["forecast"][i : i + each]]
        rows.append(
            {
                "start": view["forecast"][i]["start"],
                "low": min(s["low"] for s in slots),
                "mid": float(np.mean([s["mid"] for s in slots])),
                "high": max(s["high"] for s in slots),
            }
        )
    return rows


def page(view: dict[str, Any], now: float) -> str:
    """One HTML file that needs no network."""
    from agent import charts  # takes a while to import

    return environment().get_template("forecast_file.html").render(
        view=view, rows=by_hour(view), chart=charts.forecast(view["past"], view["forecast"]), now=now, css=stylesheet(),
        seen=lasting(view["seen_s"]), season=None if view["season_s"] is None else lasting(view["season_s"]),
    )  # fmt: skip
