"""The whole fleet on one page: totals, the worst first, and of those that are asked for what each is doing. Reads the database alone.

Which endpoints are shown is told from one row of each; only those of the page are looked at closely, so that a thousand cost what fifty do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from agent import views
from agent.settings import EndpointSettings, Settings
from agent.store import Store, control, fleet, recommendations, windows
from analyzers.money import Cost, Total, per_month

#: How an endpoint stands, most urgent first; ``frozen`` and ``not_judged`` beside what a decision says.
STATES = (
    "too_small", "stuck", "contradiction", "frozen", "not_known", "not_judged", "gathering", "too_large", "fine",
)  # fmt: skip
Order = Literal["worst", "name", "cost"]
#: Endpoints of one page.
PAGE = 50
#: The small chart of an endpoint's requests: this long, hour by hour.
TREND_S = 7 * 86_400.0
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class FleetFilter:
    """Which endpoints are asked for."""

    text: str = ""
    """A part of the name, model or system."""
    state: str = ""
    """One of ``STATES``; empty: any."""
    order: Order = "worst"
    page: int | None = 1
    """From 1 on; None: all of them."""


def overview(store: Store, settings: Settings, now: float, wanted: FleetFilter) -> dict[str, Any]:
    """The fleet as JSON."""
    with store.read() as db:
        known = fleet.by_name(db)
        open_rows = recommendations.listed(db, states=recommendations.OPEN, limit=1000)
        watched = control.leader(db, "leader") is not None
        states = {e.name: _state(known.get(e.name)) for e in settings.endpoints}
        chosen = _chosen(settings.endpoints, states, known, wanted)
        pages = max(1, -(-len(chosen) // PAGE))
        page = None if wanted.page is None else min(max(1, wanted.page), pages)
        shown = chosen if page is None else chosen[(page - 1) * PAGE : page * PAGE]
        rows = [
            {**views.endpoint_now(db, settings, e, now), "state": states[e.name], "trend": _trend(db, e, now)}
            for e in shown
        ]
    prices = {
        e.name: per_month(known[e.name]["price_per_hour"] if e.name in known else None) for e in settings.endpoints
    }
    cost = Total.of({name: Cost(usd, () if usd is not None else ("price",)) for name, usd in prices.items()})
    saves = [r["saving_per_month"] for r in open_rows if r["saving_per_month"] and r["saving_per_month"] > 0]
    return {
        "schema_version": views.SCHEMA_VERSION,
        "watched": watched,
        "fleet": {
            "endpoints": len(settings.endpoints),
            "states": {state: n for state in STATES if (n := sum(s == state for s in states.values()))},
            "usd_per_month": cost.usd if settings.endpoints else None,
            "usd_lacking": list(cost.lacking),
            "to_decide": len(open_rows),
            "saving_waiting_usd_per_month": sum(saves),
        },
        "filter": {"text": wanted.text, "state": wanted.state, "order": wanted.order},
        "found": len(chosen),
        "page": page,
        "pages": pages,
        "endpoints": rows,
    }


def _state(row: fleet.Row | None) -> str:
    if row is not None and row["frozen_because"]:
        return "frozen"
    if row is None or row["decision"] is None:
        return "not_judged"
    return str(row["decision"]["state"])


def _chosen(
    endpoints: Sequence[EndpointSettings],
    states: Mapping[str, str],
    known: Mapping[str, fleet.Row],
    wanted: FleetFilter,
) -> list[EndpointSettings]:
    text = wanted.text.strip().lower()

    def price(e: EndpointSettings) -> float:
        row = known.get(e.name)
        return (row["price_per_hour"] or 0.0) if row is not None else 0.0

    found = [
        e
        for e in endpoints
        if (not wanted.state or states[e.name] == wanted.state)
        and (not text or any(text in (part or "").lower() for part in (e.name, e.model, e.actuator.system)))
    ]
    keys = {
        "name": lambda e: (e.name,),
        "cost": lambda e: (-price(e), e.name),
        "worst": lambda e: (STATES.index(states[e.name]) if states[e.name] in STATES else 0, -price(e), e.name),
    }
    return sorted(found, key=keys[wanted.order])


def _trend(db: sa.Connection, e: EndpointSettings, now: float) -> list[float | None]:
    """Requests per second of each hour of the last week; None: not known. Empty: of none."""
    begin = (now - TREND_S) // _HOUR_S * _HOUR_S
    for source in e.sources:
        found = {
            f.start: f.values.get("requests_per_s")
            for f in windows.load_figures(db, e.name, source, begin, now, _HOUR_S)
        }
        if any(value is not None for value in found.values()):
            return [found.get(begin + i * _HOUR_S) for i in range(int(TREND_S / _HOUR_S))]
    return []
