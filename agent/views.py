"""What people and programs are shown, as plain JSON: the same for pages, their .json twins, the command line and the report.

Reads the database alone, so that it works while the daemon runs and while it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from actuators.shape import Plan, Shape, difference
from agent.cases import verdicts_of
from agent.events import known as known_events
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, control, fleet, mutes, outbox, recommendations, savings, tunes
from agent.store import audit as audit_table
from agent.store.evidence import judged
from agent.store.rows import EndpointRow
from agent.store.schedules import StandingSchedule
from analyzers.guardrails import as_dicts
from analyzers.money import Tariff, Unit, Usage, per_1k_tokens, per_month, per_request
from analyzers.objective import attainment, mean_rate, told_s, total
from analyzers.prediction import Interval
from analyzers.recommendation import ObservedTarget
from analyzers.reference import ReferenceUse
from analyzers.words import between, promise, verdict
from collectors.window import Window

SCHEMA_VERSION = 1
#: A page must not follow the whole chain again each time that somebody looks.
_VERIFIED: WeakKeyDictionary[Store, audit_table.AuditCheckpoint] = WeakKeyDictionary()
#: An endpoint that was not read for so many windows is not read any more.
MISSED_WINDOWS = 3
#: What happened to an endpoint is shown for so long.
EVENTS_S = 7 * 86_400.0
#: What an endpoint's charts can look back over.
SPANS: Mapping[str, float] = {"day": 86_400.0, "week": 7 * 86_400.0, "month": 30 * 86_400.0}
View = dict[str, Any]


def status(store: Store, settings: Settings, now: float) -> View:
    """Flyball's own health: the loop, the leader, the pause, what could not be read or delivered.

    Running is who holds the lease: one that was killed holds it until it runs out, so the age of the last sign of life stands beside it.
    """
    with store.read() as db:
        beat = control.get(db, "heartbeat")
        leader = control.leader(db, "leader")
        paused = control.paused(db)
        troubled = [s for s in fleet.sources(db) if s["failures_in_a_row"]]
        undelivered = outbox.undelivered(db)
        reports = outbox.reports(db, limit=1)
        frozen = [e.name for e in settings.endpoints if (row := fleet.get(db, e.name)) and row["frozen_because"]]
        open_rows = recommendations.listed(db, states=recommendations.OPEN)
        active = changes.active(db)
        broken_at = audit_table.verify(db, _VERIFIED.setdefault(store, audit_table.AuditCheckpoint()))
    return {
        "schema_version": SCHEMA_VERSION,
        "running": leader is not None,
        "last_cycle_at": beat["at"] if beat else None,
        "last_cycle_age_s": max(0.0, now - beat["at"]) if beat else None,
        "loops": beat["value"] if beat else {},
        "leader": {"holder": leader["holder"], "epoch": leader["epoch"]} if leader else None,
        "paused": {"by": paused["by"], "at": paused["at"], "reason": paused["value"]["reason"]} if paused else None,
        "database": store.where,
        "schema": store.current(),
        "endpoints": len(settings.endpoints),
        "open_recommendations": len(open_rows),
        "active_changes": len(active),
        "frozen": frozen,
        "sources_in_trouble": [
            {k: s[k] for k in ("endpoint", "source", "last_error", "failures_in_a_row", "last_ok_at")} for s in troubled
        ],
        "undelivered": [{k: m[k] for k in ("channel", "kind", "subject", "attempts", "error")} for m in undelivered],
        "last_report": {k: reports[0][k] for k in ("made_at", "path")} if reports else None,
        "audit_intact": broken_at is None,
    }


def endpoints(store: Store, settings: Settings, now: float) -> View:
    """Every endpoint against its objective."""
    with store.read() as db:
        rows = [endpoint_now(db, settings, e, now) for e in settings.endpoints]
        watched = control.leader(db, "leader") is not None
    return {"schema_version": SCHEMA_VERSION, "watched": watched, "endpoints": rows}


def endpoint(store: Store, settings: Settings, name: str, now: float, span: str = "") -> View:
    """One endpoint with its series for charts. span: one of ``SPANS``; else the span that it is judged by. Raises KeyError."""
    chosen = settings.endpoint(name)
    with store.read() as db:
        view = endpoint_now(db, settings, chosen, now)
        if span in SPANS:
            from agent import spend  # takes a while to import

            rows = spend.rows(db, settings, chosen, now - SPANS[span], now)[-2 * spend.POINTS :]
        else:
            rows = _recent(db, settings, chosen, now, 0.0)
        view["span"] = span if span in SPANS else ""
        view["series"] = [point(w) for w in rows]
        view["recommendations"] = [_brief(r) for r in recommendations.listed(db, endpoint=name, limit=20)]
        view["changes"] = [_change(r) for r in changes.listed(db, endpoint=name, purpose="change", limit=20)]
        view["tunes"] = _tunes(db, name, 5)
        view["events"] = [{"at": e.at, "text": e.text} for e in reversed(known_events(db, name, now - EVENTS_S))]
        watched = control.leader(db, "leader") is not None
    return {"schema_version": SCHEMA_VERSION, "watched": watched, "endpoint": view}


def series(store: Store, settings: Settings, names: Sequence[str], now: float) -> dict[str, list[View]]:
    """By endpoint: the windows that it is judged by, as small charts draw them."""
    with store.read() as db:
        return {n: [point(w) for w in _recent(db, settings, settings.endpoint(n), now, 0.0)] for n in names}


def schedule_list(store: Store, settings: Settings, now: float) -> View:
    """The schedules that are kept."""
    with store.read() as db:
        found = [_schedule(db, e.name, fleet.get(db, e.name), now) for e in settings.endpoints]
    return {"schema_version": SCHEMA_VERSION, "schedules": [s for s in found if s is not None]}


def _schedule(db: sa.Connection, endpoint: str, known: EndpointRow | None, now: float) -> View | None:
    """The schedule that an endpoint keeps, with its last steps. None: it keeps none."""
    if known is None or known["schedule"] is None:
        return None
    standing = StandingSchedule.from_dict(known["schedule"])
    held = standing.held is not None and now < standing.held_until
    steps = []
    for row in changes.listed(db, endpoint=endpoint, purpose="schedule", limit=5):
        plan = Plan.from_dict(row["plan"])
        step = {"change": row["id"], "at": row["created_at"], "state": row["state"], "why": row["state_reason"]}
        steps.append(step | {"before": plan.before.replicas, "after": plan.after.replicas})
    return {
        "endpoint": endpoint,
        "label": standing.schedule.label(),
        "wanted": standing.wanted(now),
        "replicas": known["shape"].get("replicas"),
        "mean": standing.schedule.mean,
        "approved_by": standing.approved_by,
        "since": standing.since,
        "until": standing.until,
        "recommendation": standing.recommendation_id,
        "held": standing.held if held else None,
        "held_until": standing.held_until if held else None,
        "held_because": standing.held_because if held else "",
        "steps": steps,
    }


def _recent(db: sa.Connection, settings: Settings, e: EndpointSettings, now: float, since: float) -> list[Window]:
    """The span that the endpoint is judged by, but nothing from before ``since``: a change makes another endpoint of it."""
    width = settings.collect.window_s
    start = max(now - max(e.policy.evidence_s, 30 * width), -(-since // width) * width)
    return judged(db, e.name, e.sources, start, now, width)


def endpoint_now(db: sa.Connection, settings: Settings, e: EndpointSettings, now: float) -> View:
    """One endpoint, as it is now."""
    known = fleet.get(db, e.name)
    rows = _recent(db, settings, e, now, (known["last_change_at"] or 0.0) if known else 0.0)
    observed = [w for w in rows if w.coverage > 0]
    span = sum(w.coverage * w.duration_s for w in observed)
    until = max(rows[-1].end, now - MISSED_WINDOWS * settings.collect.window_s) if rows else now
    newest = observed[-1].end if observed else None
    requests = total(observed, "requests")
    price = known["price_per_hour"] if known else None
    prompt, output = (total(observed, n) for n in ("prompt_tokens", "output_tokens"))
    all_tokens = None if prompt is None or output is None else prompt + output
    spent = Tariff.of({Unit.HOUR: price}).cost(Usage(hours=span / 3600)).usd
    shape = Shape.from_dict(known["shape"]) if known else e.shape.shape()
    return {
        "name": e.name,
        "url": e.url,
        "model": e.model,
        "role": e.role,
        "mode": e.mode,
        "system": e.actuator.system,
        "shape": shape.as_dict(),
        "label": shape.label(),
        "ready": known["ready"] if known else None,
        "detail": known["detail"] if known else "",
        "seen_at": known["seen_at"] if known else None,
        "frozen": known["frozen_because"] if known else None,
        "decision": known["decision"] if known else None,
        "schedule": _schedule(db, e.name, known, now),
        "window": {
            "start": rows[0].start if rows else None,
            "end": rows[-1].end if rows else None,
            "coverage": span / (until - rows[0].start) if rows else None,
            "span_s": rows[-1].end - rows[0].start if rows else None,
            "newest_at": newest,
            "age_s": None if newest is None else max(0.0, now - newest),
            "old": newest is not None and now - newest > (MISSED_WINDOWS + 1) * settings.collect.window_s,
        },
        "now": _latest(rows, settings.collect.window_s, now),
        "objective": [
            {
                **ObservedTarget.of(a).as_dict(),
                "burn_rate": a.burn_rate,
                "samples": a.samples,
            }
            for a in (attainment(observed, t) for t in e.wanted().targets)
        ],
        "load": {
            "requests": requests,
            "requests_per_s": mean_rate(observed, "requests"),
            "requests_coverage": told_s(observed, "requests") / span if span > 0 else None,
            "running_mean": _gauge(observed, "running"),
            "waiting_mean": _gauge(observed, "waiting"),
            "kv_usage_mean": _gauge(observed, "kv_usage"),
            "gpu_usage_mean": _gauge(observed, "gpu_usage"),
        },
        "money": {
            "usd_per_hour": price,
            "usd_per_month": per_month(price),
            "usd_per_1k_tokens": per_1k_tokens(spent, all_tokens),
            "usd_per_request": per_request(spent, requests),
        },
        "findings": _findings(db, now, e.name),
        "reference": _beside(known) if e.role == "production" else None,
        "reference_use": reference_use(e, known, observed),
        "sources": [
            {
                "source": s["source"],
                "last_ok_at": s["last_ok_at"],
                "last_error": s["last_error"] if s["failures_in_a_row"] else None,
                "failures": s["failures"],
                "failures_in_a_row": s["failures_in_a_row"],
                "next_try_at": s["next_try_at"],
            }
            for s in fleet.sources(db, e.name)
        ],
    }


def findings(store: Store, now: float, name: str | None = None, *, every: bool = False) -> View:
    """What is found, most severe first, with who does not want to be told of it. every: also what was found before and has passed."""
    with store.read() as db:
        return {"schema_version": SCHEMA_VERSION, "findings": _findings(db, now, name, active=not every)}


def _findings(db: sa.Connection, now: float, name: str | None, *, active: bool = True) -> list[View]:
    muted = mutes.standing(db, now)
    rows = fleet.findings(db, name, active=active)
    return [
        {
            **row["body"],
            "active": bool(row["active"]),
            "first_seen_at": row["first_seen_at"],
            "last_seen_at": row["last_seen_at"],
            "muted": _muted(muted.get((row["endpoint"], row["code"]))),
        }
        for row in rows
    ]


def _muted(row: Mapping[str, Any] | None) -> View | None:
    if row is None:
        return None
    how = "suppressed" if row["until"] is None else "snoozed"
    return {"how": how, **{key: row[key] for key in ("until", "reason", "by", "at")}}


def references(store: Store, settings: Settings, now: float, name: str | None = None) -> View:
    """Each production endpoint, or one, beside its reference; and how much of each reference is used."""
    with store.read() as db:
        seen = [endpoint_now(db, settings, e, now) for e in settings.endpoints]
    compared = [e for e in seen if e["reference"] is not None and name in (None, e["name"])]
    used = [e for e in seen if e["reference_use"] is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "endpoints": [{"name": e["name"], **e["reference"]} for e in compared],
        "references": [{"name": e["name"], "label": e["label"], "use": e["reference_use"]} for e in used],
    }


def _beside(known: fleet.Row | None) -> View:
    """How a production endpoint stands beside its reference, and what it would take to compare them now."""
    comparison, lacks = (known["comparison"], known["comparison_lacks"]) if known is not None else (None, None)
    return {"comparison": comparison, "lacks": lacks if comparison or lacks else "nothing was compared so far"}


def reference_use(e: EndpointSettings, known: fleet.Row | None, rows: Sequence[Window]) -> View | None:
    """How much of a reference was used in ``rows``, and what it costs. None: it is none."""
    if e.role != "reference":
        return None
    shape = Shape.from_dict(known["shape"]) if known else e.shape.shape()
    each = shape.engine.get("max_num_seqs")
    slots = float(each * shape.replicas) if isinstance(each, int) and shape.replicas else None
    return ReferenceUse.of(rows, slots, known["price_per_hour"] if known else None).as_dict()


def _latest(rows: Sequence[Window], width: float, now: float) -> View | None:
    """The load of the last windows, beside that of the whole span. None: the newest one is old, or observed nothing."""
    last = [w for w in rows if w.end > now - (MISSED_WINDOWS + 1) * width][-MISSED_WINDOWS:]
    if not last or last[-1].coverage == 0:
        return None
    last = [w for w in last if w.coverage > 0]
    return {
        "span_s": last[-1].end - last[0].start,
        "requests_per_s": mean_rate(last, "requests"),
        "running_mean": _gauge(last, "running"),
        "waiting_mean": _gauge(last, "waiting"),
    }


def _gauge(rows: Sequence[Window], name: str) -> float | None:
    values: list[float] = [w.gauges[name].mean for w in rows if name in w.gauges]
    return sum(values) / len(values) if values else None


def point(w: Window) -> View:
    point: View = {
        "start": w.start,
        "duration_s": w.duration_s,
        "coverage": w.coverage,
        "requests_per_s": w.rate("requests"),
    }
    for metric in ("ttft", "itl", "e2e"):
        for label, q in (("p50", 0.5), ("p95", 0.95)):
            point[f"{metric}_{label}_s"] = w.quantile(f"{metric}_s", q)
    for name in ("running", "waiting", "kv_usage"):
        point[f"{name}_mean"] = w.gauges[name].mean if name in w.gauges else None
    return point


def recommendation_list(store: Store, *, endpoint_name: str | None = None, states: Sequence[str] | None = None) -> View:
    """Newest first."""
    with store.read() as db:
        rows = recommendations.listed(db, endpoint=endpoint_name, states=states)
    return {"schema_version": SCHEMA_VERSION, "recommendations": [_brief(r) for r in rows]}


def recommendation(store: Store, settings: Settings, identity: str, now: float) -> View | None:
    """One, whole: alternatives, plan, who decided what, what the guardrails say. None where the id is unknown or not unique."""
    with store.read() as db:
        row = recommendations.get(db, identity)
        if row is None:
            return None
        decisions = recommendations.decisions(db, row["id"])
        record = {"endpoint": _held(db, row["endpoint"]), "all": _held(db, None)}
        known = fleet.get(db, row["endpoint"])
        version = known["shape_version"] if known is not None else None
        there = any(e.name == row["endpoint"] for e in settings.endpoints)
        rules = as_dicts(verdicts_of(db, settings, row, now, version)) if there else []
    view = (
        _brief(row)
        | {"record": record}
        | {"body": row["body"], "plan": row["plan"], "decisions": decisions, "guardrails": rules}
    )
    return {"schema_version": SCHEMA_VERSION, "recommendation": view}


def _held(db: sa.Connection, endpoint: str | None) -> View:
    """How many of the promised intervals held, of those that could be compared."""
    rows = [r for r in changes.ledger(db, endpoint=endpoint) if r["comparable"] and r["inside"] is not None]
    return {"promises": len(rows), "held": sum(bool(r["inside"]) for r in rows)}


def _brief(row: Mapping[str, Any]) -> View:
    body = row["body"]
    predicted = (body["proposed"]["prediction"] or {}).get("metrics", {})
    keys = ("id", "endpoint", "revision", "state", "state_reason", "state_by", "requested_by", "plan_hash", "saving_per_month",
            "created_at", "refreshed_at", "expires_at", "snoozed_until", "decided_at")  # fmt: skip
    return {k: row[k] for k in keys} | {
        "direction": body["direction"],
        "what": difference(Shape.from_dict(body["current"]["shape"]), Shape.from_dict(body["proposed"]["shape"])),
        "current": body["current"]["label"],
        "proposed": body["proposed"]["label"],
        "reasons": body["reasons"],
        "by_merge": bool(row["plan"].get("by_merge")),
        "risk": body["risk"],
        "risk_reasons": body["risk_reasons"],
        "premortem": body.get("premortem"),
        "turning": body.get("turning", []),
        "reference": body.get("reference"),
        "predicted": predicted,
        "observed_now": {o["target"]: o for o in body.get("observed", ())},
        "predicted_verdicts": {
            o["target"]: verdict(Interval(**predicted[o["target"]]).within(o["limit"]))
            for o in body.get("observed", ())
            if o["target"] in predicted
        },
        "predicted_now": (body["current"]["prediction"] or {}).get("metrics", {}),
    }


def change_list(store: Store, *, endpoint_name: str | None = None, since: float | None = None) -> View:
    """Newest first, each with its row of predicted against observed."""
    with store.read() as db:
        rows = [
            _change(r) | {"ledger": _ledger(db, r["id"])}
            for r in changes.listed(db, endpoint=endpoint_name, since=since, purpose="change")
        ]
    return {"schema_version": SCHEMA_VERSION, "changes": rows}


def change(store: Store, identity: str) -> View | None:
    """One, whole: plan, journal, outcome, ledger, audit. None where the id is unknown or not unique."""
    with store.read() as db:
        row = changes.get(db, identity)
        if row is None:
            return None
        view = _change(row) | {
            "plan": row["plan"],
            "rollback_plan": row["rollback_plan"],
            "journal": changes.journal(db, row["id"]),
            "ledger": _ledger(db, row["id"]),
            "audit": audit_table.entries(db, row["id"]),
        }
    return {"schema_version": SCHEMA_VERSION, "change": view}


def _change(row: Mapping[str, Any]) -> View:
    plan = Plan.from_dict(row["plan"])
    keys = ("id", "recommendation_id", "endpoint", "state", "state_reason", "approved_by", "plan_hash", "created_at",
            "applied_at", "finished_at", "rollback_requested", "outcome")  # fmt: skip
    return {k: row[k] for k in keys} | {
        "before": plan.before.label(),
        "after": plan.after.label(),
        "what": difference(plan.before, plan.after),
    }


def _ledger(db: sa.Connection, change_id: str) -> list[View]:
    whose = ("id", "change_id", "endpoint")
    return [
        {k: v for k, v in row.items() if k not in whose} | ledger_words(row)
        for row in reversed(changes.ledger(db, change_id=change_id))
    ]


def ledger_words(row: Mapping[str, Any]) -> View:
    """What was observed, as the range that it is, and the one verdict on the promise, for wherever people read it."""
    return {
        "observed_text": between(row["metric"], row["observed"], row["observed_low"], row["observed_high"]),
        "verdict": promise(row["comparable"], row["inside"]) if row["low"] is not None else "no promise",
    }


def saving_list(store: Store, *, endpoint_name: str | None = None) -> View:
    """What was attested, newest first, and all of it together."""
    from agent import attest

    with store.read() as db:
        rows = savings.listed(db, endpoint=endpoint_name)
        broken_at = savings.altered(db)
    return {
        "schema_version": SCHEMA_VERSION,
        "total": attest.summed(rows),
        "savings": [attest.view(row) for row in reversed(rows)],
        "broken_at": broken_at,
    }


def tune_list(store: Store) -> View:
    """The last experiments, newest first."""
    with store.read() as db:
        return {"schema_version": SCHEMA_VERSION, "tunes": _tunes(db, None, 50)}


def tune(store: Store, identity: str) -> View | None:
    """One experiment with every load, also while it is under way."""
    from agent.tune.history import told

    with store.read() as db:
        found = told(db, identity)
    return {"schema_version": SCHEMA_VERSION, "tune": found} if found is not None else None


def _tunes(db: sa.Connection, endpoint_name: str | None, limit: int) -> list[View]:
    from agent.tune.history import brief

    return [brief(db, row) for row in tunes.latest(db, endpoint_name, limit)]


def accuracy(store: Store, since: float | None = None) -> View:
    """How good the promises were: by metric, how many, the median error, and how often the 80 % interval held."""
    with store.read() as db:
        rows = [r for r in changes.ledger(db, since=since) if r["comparable"] and r["error"] is not None]
    metrics = sorted({r["metric"] for r in rows})
    table = []
    for metric in metrics:
        mine = [r for r in rows if r["metric"] == metric]
        errors = [abs(r["error"]) for r in mine if r["error"] is not None]
        held = [r["inside"] for r in mine if r["inside"] is not None]
        table.append(
            {
                "metric": metric,
                "n": len(mine),
                "median_error": median(errors),
                "held_share": sum(held) / len(held) if held else None,
            }
        )
    return {"schema_version": SCHEMA_VERSION, "accuracy": table}
