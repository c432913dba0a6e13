"""The weekly report: what was spent, what was promised, what came, and what to decide. One HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import sqlalchemy as sa

from agent import attest, bills, brief, spend, views
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, control, fleet, outbox, savings
from agent.store import recommendations as advice
from agent.store.control import Lead
from analyzers.money import Cost, Total, parts
from analyzers.objective import attainment, total
from analyzers.recommendation import ObservedTarget
from analyzers.words import (
    and_unknown,
    dollars,
    figure,
    heading,
    lasting,
    observed,
    plain,
    saved,
    track_record,
    verdict,
    wording,
)

SCHEMA_VERSION = 1


def summary(store: Store, settings: Settings, *, start: float, end: float, now: float) -> dict[str, Any]:
    """The report's figures as JSON. ``start``/``end``: of the period, Unix seconds; what is to be done is as of ``now``."""
    with store.read() as db:
        endpoints = [_endpoint(db, settings, e, start, end) for e in settings.endpoints]
        done = [c for c in changes.listed(db, since=start, purpose="change", limit=1000) if c["created_at"] < end]
        promised = [r for r in changes.ledger(db, since=start) if r["at"] < end]
        waiting = advice.listed(db, states=advice.OPEN)
        attested = savings.listed(db, start=start, end=end)
        known = {e.name: row for e in settings.endpoints if (row := fleet.get(db, e.name)) is not None}
    spent = Total.of({e["name"]: Cost(e["spent_usd"], tuple(e["spent_lacking"])) for e in endpoints if e["coverage"]})
    offered = _summed((r["endpoint"], r["saving_per_month"]) for r in waiting if (r["saving_per_month"] or 0.0) >= 0)
    figures: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "start": start,
        "end": end,
        "endpoints": endpoints,
        "spent_usd": spent.usd if spent.usd is not None and any(e["coverage"] for e in endpoints) else None,
        "spent_lacking": list(spent.lacking),
        "saved": attest.summed(attested),
        "saving_waiting_usd_per_month": offered.usd,
        "saving_waiting_lacking": list(offered.lacking),
        "changes": {
            state: sum(c["state"] == state for c in done)
            for state in ("succeeded", "rolled_back", "failed", "applying", "warming", "verifying", "rolling_back")
        },
        "promises": len([r for r in promised if r["comparable"] and r["inside"] is not None]),
        "promises_held": len([r for r in promised if r["comparable"] and r["inside"]]),
        "open_recommendations": len(waiting),
    }
    standing = {name: {k: row[k] for k in ("decision", "frozen_because")} for name, row in known.items()}
    open_now = views.recommendation_list(store, states=advice.OPEN)["recommendations"]
    health = views.status(store, settings, now)
    return figures | {"brief": brief.brief(figures, open_now, standing, health, settings.timezone)}


def _summed(named: Iterable[tuple[str, float | None]]) -> Total:
    """Dollars of endpoints, each of which may stand there more than once. Of nothing at all: 0."""
    each: dict[str, list[Cost]] = {}
    for name, usd in named:
        each.setdefault(name, []).append(Cost(usd, () if usd is not None else ("price",)))
    return Total.of({name: parts(costs) for name, costs in each.items()}) if each else Total(0.0)


def weekly(
    store: Store,
    settings: Settings,
    *,
    start: float,
    end: float,
    now: float,
    path: Path | None = None,
    only_with_data: bool = False,
    lead: Lead | None = None,
) -> Path | None:
    """Write the report of ``start``..``end`` and note it. None where ``only_with_data`` and nothing was observed.

    lead: who makes it, where it is not a person; raises LostLease, and nothing is noted, where that is no longer the truth.
    """
    figures = summary(store, settings, start=start, end=end, now=now)
    if only_with_data and not any(e["coverage"] for e in figures["endpoints"]):
        return None
    file = path or settings.report.directory / f"flyball-{datetime.fromtimestamp(end, UTC):%Y-%m-%d-%H%M}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(_render(store, settings, figures, now), encoding="utf-8")
    partial.replace(file)
    with store.write() if lead is None else control.leading(store, lead) as db:
        outbox.add_report(db, start=start, end=end, now=now, path=str(file), summary=figures)
        if settings.slack is not None:
            outbox.put(db, channel="slack", kind="report", subject=str(file), revision=int(end), now=now)
        if settings.email is not None:
            outbox.put(db, channel="email", kind="report", subject=str(file), revision=int(end), now=now)
    return file


def _endpoint(db: sa.Connection, settings: Settings, e: EndpointSettings, start: float, end: float) -> dict[str, Any]:
    rows = spend.rows(db, settings, e, start, end)
    observed = [w for w in rows if w.coverage > 0]
    seen = sum(w.coverage * w.duration_s for w in rows)
    span = end - rows[0].start if rows else 0.0  # since it was first watched: time without any window is a gap
    prompt, output = (total(observed, n) for n in ("prompt_tokens", "output_tokens"))
    spent = spend.spent(db, rows)
    return {
        "name": e.name,
        "mode": e.mode,
        "watched_since": rows[0].start if rows else None,
        "coverage": min(1.0, seen / span) if rows else None,
        "coverage_of_period": min(1.0, seen / (end - start)) if rows else None,
        "requests": total(observed, "requests"),
        "tokens": None if prompt is None or output is None else prompt + output,
        "spent_usd": spent.usd,
        "spent_lacking": list(spent.lacking),
        "reference_use": views.reference_use(e, fleet.get(db, e.name), observed),
        "usd_per_1k_tokens": spend.per_1k(spent, prompt, output),
        "by_tag": spend.by_tag(observed, spent, spend.tariff_of(db, e)),
        "bill": bills.compared(db, settings, e, start, end),
        "objective": [
            {
                **ObservedTarget.of(a).as_dict(),
                "bad_share": a.bad_share,
                "burn_rate": a.burn_rate,
            }
            for a in (attainment(observed, t) for t in e.wanted().targets)
        ],
    }


def _render(store: Store, settings: Settings, figures: Mapping[str, Any], now: float) -> str:
    from agent import charts  # takes a while to import, and a daemon draws seldom

    since, until = figures["start"], figures["end"]
    done = views.change_list(store, since=since)["changes"]
    sections = []
    for e in settings.endpoints:
        with store.read() as db:
            rows = spend.rows(db, settings, e, since, until)[-2 * spend.POINTS :]
        series = [views.point(w) for w in rows]
        marks = [
            {"at": c[key], "what": what}
            for c in done
            if c["endpoint"] == e.name
            for key, what in (("applied_at", "changed"), ("finished_at", c["state"].replace("_", " ")))
            if c[key]
        ]
        sections.append({"name": e.name, "charts": _charts(e, series, marks), "options": _options(store, e)})
    with store.read() as db:
        attested = [attest.view(row) for row in savings.listed(db, start=since, end=until)]
    ledger = [{**row, "endpoint": c["endpoint"]} for c in done for row in c["ledger"] if row["comparable"]]
    return (
        environment()
        .get_template("report.html")
        .render(
            figures=figures,
            endpoints=sections,
            changes=done,
            beside=_beside(store, settings, figures, now),
            found=_found(store, settings, since, until, now),
            savings=attested,
            promises=charts.promises([r for r in ledger if r["metric"].endswith("_s") and "_p" in r["metric"]]),
            accuracy=views.accuracy(store)["accuracy"],
            waiting=views.recommendation_list(store, states=advice.OPEN)["recommendations"],
            status=views.status(store, settings, now),
            now=now,
            css=stylesheet(),
        )
    )


def _found(store: Store, settings: Settings, start: float, end: float, now: float) -> list[dict[str, Any]]:
    """What was found at these endpoints and seen within the period, but for what lacked."""
    names = {e.name for e in settings.endpoints}
    return [
        f
        for f in views.findings(store, now, every=True)["findings"]
        if f["endpoint"] in names
        and f["kind"] != "insufficient_data"
        and f["last_seen_at"] >= start
        and f["first_seen_at"] <= end
    ]


def _beside(store: Store, settings: Settings, figures: Mapping[str, Any], now: float) -> dict[str, Any] | None:
    """Each endpoint beside its reference as it stands now, and how the references were used over the period. None: there is none."""
    found = views.references(store, settings, now)
    if not found["references"]:
        return None
    used = {e["name"]: e["reference_use"] for e in figures["endpoints"]}
    return found | {"references": [r | {"use": used[r["name"]]} for r in found["references"]]}


def _charts(e: EndpointSettings, series: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]]) -> list[str]:
    if not series:
        return []
    from agent import charts

    drawn = [charts.load(series, marks)]
    for target in e.wanted().targets:
        metric = target.metric.removesuffix("_s")
        if metric in ("ttft", "itl", "e2e"):
            drawn.append(charts.latency(series, metric, target.limit, wording(target.name).partition(",")[0], marks))
    return drawn


def _options(store: Store, e: EndpointSettings) -> dict[str, Any] | None:
    """The trade-off of the newest recommendation: every shape that was considered, and the front of cost and latency."""
    from agent import charts

    with store.read() as db:
        rows = advice.listed(db, endpoint=e.name, limit=20)
    row = max(rows, key=lambda r: (len(r["body"]["options"]) > 2, r["created_at"]), default=None)
    if row is None:
        return None
    targets = [t for t in e.wanted().targets if t.quantile is not None]
    options = row["body"]["options"]
    chart = charts.front(options, targets[0].name, targets[0].limit) if targets else None
    return {"rows": options, "chart": chart, "metrics": [t.name for t in targets]}


def stylesheet() -> str:
    """What a page that stands alone carries in itself."""
    source = environment().loader
    assert source is not None
    return source.get_source(environment(), "style.css")[0]


@cache
def environment() -> jinja2.Environment:
    """The templates of pages and reports, autoescaped, with the filters that both use."""
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("agent", "web/templates"), jinja2.PackageLoader("agent", "web/static")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"and_unknown": and_unknown}
    found.filters |= {"number": _number, "money": _money, "moment": _moment, "percent": _percent, "spread": observed}
    found.filters |= {"lasting": lasting, "verdict": verdict, "saved": saved, "track_record": track_record}
    found.filters |= {"wording": wording, "heading": heading, "figure": lambda value, metric: figure(metric, value)}
    return found


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else plain(float(f"{value:.{digits}g}") if abs(value) < 1000 else value)


def _money(value: float | None) -> str:
    return "-" if value is None else dollars(value)


def _moment(value: float | None, style: str = "%Y-%m-%d %H:%M") -> str:
    return "-" if value is None else f"{datetime.fromtimestamp(value, UTC):{style}} UTC"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
