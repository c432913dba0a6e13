"""Notices when an endpoint's engine, deployment or price becomes another one, and has the upgrade guard look at what came of it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from actuators.base import LiveState
from actuators.shape import Plan, Shape, difference
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, events, fleet
from agent.store.evidence import judged
from agent.store.rows import EventRow
from analyzers import guard
from analyzers.finding import Finding
from analyzers.situation import KnownEvent, Situation
from collectors.window import Window

#: So long after a change of the engine it is looked at, and so much of before it is compared with.
GUARDED_S, BEFORE_S = 6 * 3600.0, 12 * 3600.0
#: Of these kinds are changes of the engine.
_OF_THE_ENGINE = ("engine", "deploy")


def note(db: sa.Connection, endpoint: str, live: LiveState, per_hour: float | None, s: Situation, now: float) -> None:
    """Keep what became another one since the last analysis. Called before that one's row is overwritten.

    What Flyball itself has done is among its changes, and no event.
    """
    known = fleet.get(db, endpoint)
    if known is not None and known["shape_version"] != live.version:
        if not _own(db, endpoint, known["seen_at"], now):
            what = difference(Shape.from_dict(known["shape"]), live.shape) or "its deployment"
            body = {"before": known["shape_version"], "after": live.version}
            events.add(db, endpoint, at=now, kind="deploy", text=f"somebody else deployed: {what}", body=body)
    elif known is not None and live.shape.autoscaling is None:  # an autoscaled one costs what serves
        before = known["price_per_hour"]
        if before is not None and per_hour is not None and before != per_hour:
            text = f"the price became ${per_hour:.2f} an hour, from ${before:.2f}"
            events.add(db, endpoint, at=now, kind="price", text=text, body={"usd_per_hour": per_hour})
    _note_engine(db, endpoint, s.windows, now)


def _note_engine(db: sa.Connection, endpoint: str, rows: Sequence[Window], now: float) -> None:
    """By what the windows say of their engine. One in which replicas differ is on its way from one to the other."""
    told = [(w, guard.identity(w.facts)) for w in rows if w.facts and not _mixed(w)]
    if not told:
        return
    newest = told[-1][1]
    last = events.latest(db, endpoint, "engine")
    if last is None:
        events.add(db, endpoint, at=told[-1][0].start, kind="engine", text="", body=newest)
        return
    both = [name for name in newest if name in last["body"]]
    what = guard.difference({n: last["body"][n] for n in both}, {n: newest[n] for n in both})
    if not what:
        return
    at = told[-1][0].start
    for w, known in reversed(told):
        if known != newest:
            break
        at = w.start
    text = "" if _own(db, endpoint, at - rows[-1].duration_s, now) else what
    events.add(db, endpoint, at=at, kind="engine", text=text, body=newest)


def _mixed(window: Window) -> bool:
    return any(", " in text for text in guard.identity(window.facts).values())


def _own(db: sa.Connection, endpoint: str, since: float, until: float) -> bool:
    """Whether a change of Flyball's was under way at any time in between."""
    rows = changes.listed(db, endpoint=endpoint, limit=20)
    return any(r["created_at"] <= until and (r["finished_at"] is None or r["finished_at"] >= since) for r in rows)


def known(db: sa.Connection, endpoint: str, since: float) -> list[KnownEvent]:
    """What happened to the endpoint, whoever did it, oldest first."""
    found = [KnownEvent(e["at"], e["text"]) for e in events.listed(db, endpoint, since)]
    for row in changes.listed(db, endpoint=endpoint, limit=20):
        if row["applied_at"] is not None and row["applied_at"] >= since:
            plan = Plan.from_dict(row["plan"])
            what = difference(plan.before, plan.after)
            found.append(KnownEvent(row["applied_at"], f"Flyball's change {row['id']}: {what}"))
    return sorted(found, key=lambda event: event.at)


def _between_changes(db: sa.Connection, endpoint: EndpointSettings, at: float, now: float) -> tuple[float, float]:
    """From where to where about ``at`` Flyball itself changed nothing but the number of replicas."""
    since, until = at - BEFORE_S, now
    for row in changes.listed(db, endpoint=endpoint.name, since=since, limit=50):
        plan = Plan.from_dict(row["plan"])
        if plan.before.with_(replicas=None) == plan.after.with_(replicas=None):
            continue
        if row["created_at"] >= at:
            until = min(until, row["created_at"])
        else:
            since = max(since, (row["finished_at"] or at) + endpoint.verify.warmup_s)
    return since, until


class UpgradeGuard:
    """Compares what came after the last change of each engine with what was before it. Called in threads."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._before: dict[str, tuple[int, Sequence[Window]]] = {}
        """By endpoint: the event's id, and the windows before it."""

    def found(self, endpoint: EndpointSettings, s: Situation, now: float) -> Finding | None:
        with self._store.read() as db:
            seen = [e for e in events.listed(db, endpoint.name, now - GUARDED_S) if e["kind"] in _OF_THE_ENGINE]
            if not seen:
                return None
            event = seen[-1]
            since, until = _between_changes(db, endpoint, event["at"], now)
            before = self._known_before(db, endpoint, event, since)
            width = self._settings.collect.window_s
            after = judged(
                db, endpoint.name, endpoint.sources, event["at"] + width, until, width
            )  # the first one starts up
        return guard.guard(s, before, [w for w in after if not _mixed(w)], event["at"], event["text"])

    def _known_before(
        self, db: sa.Connection, endpoint: EndpointSettings, event: EventRow, since: float
    ) -> Sequence[Window]:
        known = self._before.get(endpoint.name)
        if known is None or known[0] != event["id"]:
            width = self._settings.collect.window_s
            rows = judged(db, endpoint.name, endpoint.sources, since, event["at"], width)
            known = self._before[endpoint.name] = (event["id"], [w for w in rows if not _mixed(w)])
        return known[1]
