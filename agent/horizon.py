"""The load to come of each endpoint, from its stored windows; and how long a change takes here. Made anew when a slot of load is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from agent.cases import hours_of
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, recommendations, windows
from agent.store.evidence import judged
from analyzers.forecast.days import days_of
from analyzers.forecast.forecast import Forecast, Learned, learned_forecast
from analyzers.forecast.history import DAY_S, STEP_S, WEEK, LoadHistory
from analyzers.forecast.horizon import Horizon, busiest_rate
from analyzers.guardrails import may_begin
from analyzers.objective import attainment
from collectors.window import Window

#: So long is looked back: four weeks, and the day that is compared with the first of them.
HISTORY_S = 29 * DAY_S
#: The busiest hour is sought in so many slots, and so many make an hour.
_HOUR = int(3600 / STEP_S)
#: The busiest hour that was found serves for so long, and while no other is busier by this share: what was replayed of it is not replayed
#: anew in each quarter of an hour of a load that rises.
BUSIEST_S, BUSIER = 86_400.0, 0.1
#: Changes count as of the last day when they are not older than this: a day's two are not exactly a day apart.
RECENT_S = 22 * 3600.0
#: How long a change takes is learned from so many of the last ones.
LAST = 3


@dataclass(frozen=True, slots=True)
class _HorizonEntry:
    """The horizon, and what it was made of."""

    key: tuple[float, float | None, int]
    horizon: Horizon | None
    found_at: float
    """When its busiest hour was sought last: Unix seconds."""


class Horizons:
    """By endpoint. Called in threads, one at a time for each endpoint."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._known: dict[str, _HorizonEntry] = {}
        self._learned: dict[str, Learned] = {}

    def of(self, endpoint: EndpointSettings, end: float, last_change_at: float | None) -> Horizon | None:
        """From what is known at ``end``. None: no rate of requests is known yet."""
        with self._store.read() as db:
            recent = _recent_changes(db, endpoint.name, end)
        key = (end // STEP_S, last_change_at, recent)
        known = self._known.get(endpoint.name)
        if known is None or known.key != key:
            known = self._known[endpoint.name] = self._make(endpoint, end, key)
        return known.horizon

    def _make(self, endpoint: EndpointSettings, end: float, key: tuple[float, float | None, int]) -> _HorizonEntry:
        _, last_change_at, recent = key
        history = load_history(self._store, self._settings, endpoint, end)
        learned = self._learned.get(endpoint.name, {})
        found, self._learned[endpoint.name] = learned_forecast(history, endpoint.policy.growth, learned)
        if found is None:
            return _HorizonEntry(key, None, end)
        busy, found_at = self._busy(endpoint, history, end)
        if not busy:
            return _HorizonEntry(key, None, end)
        with self._store.read() as db:
            start_s = replica_start_s(db, endpoint)
            lead_s = _reaction_s(db, endpoint, self._settings.decide.interval_s) + start_s
        settled = None if last_change_at is None else last_change_at + endpoint.verify.warmup_s
        horizon = Horizon(
            found,
            busy,
            lead_s,
            endpoint.policy.cooldown_s,
            may_change=self._open(endpoint, found.start, found.slots),
            recent_changes=recent,
            carried=(settled is None or busy[0].start >= settled) and _met(endpoint, busy),
            ended=_ended(self._known.get(endpoint.name), found),
            start_s=start_s,
            days=days_of(history, found, self._settings.timezone),
        )
        return _HorizonEntry(key, horizon, found_at)

    def _busy(self, endpoint: EndpointSettings, history: LoadHistory, end: float) -> tuple[Sequence[Window], float]:
        """Windows of the busiest hour, or of one that was nearly as busy and is known; and when it was sought."""
        known = self._known.get(endpoint.name)
        largest = history.largest("requests") or 0.0
        if known is not None and known.horizon is not None and end - known.found_at < BUSIEST_S:
            rate = busiest_rate(known.horizon.windows, "requests")
            if rate is not None and rate * (1 + BUSIER) >= largest:
                return known.horizon.windows, known.found_at
        with self._store.read() as db:
            return self._busiest(db, endpoint, history, end), end

    def _busiest(self, db: sa.Connection, endpoint: EndpointSettings, history: LoadHistory, end: float) -> list[Window]:
        """Windows of the busiest hour of the last week, as fine as they are kept."""
        rates = history.rates["requests"][-WEEK:]
        first = history.end - rates.shape[0] * STEP_S
        hour = min(_HOUR, rates.shape[0])
        known = np.where(np.isnan(rates), 0.0, rates)
        at = int(np.convolve(known, np.ones(hour), "valid").argmax())
        start = first + at * STEP_S
        for width in (self._settings.collect.window_s, *windows.ROLLUPS):
            found = judged(db, endpoint.name, endpoint.sources, start, min(end, start + hour * STEP_S), width)
            if any(w.count("requests") for w in found):
                return found
        return []

    def _open(self, endpoint: EndpointSettings, start: float, slots: int) -> tuple[bool, ...]:
        allowed, zone = hours_of(endpoint.policy.change_windows), self._settings.timezone
        return tuple(may_begin(allowed, start + i * STEP_S, zone) for i in range(slots)) if allowed else ()


def _ended(before: _HorizonEntry | None, found: Forecast) -> Mapping[str, float]:
    """What was forecast for the slot that has just ended, by the horizon that was made when it began."""
    if before is None or before.horizon is None:
        return {}
    then = before.horizon.forecast
    if then.start == found.start:  # made anew within one slot
        return before.horizon.ended
    if then.season_s is None or then.start + STEP_S != found.start:
        return {}
    return {name: float(band.high[0]) for name, band in then.bands.items()}


def load_history(store: Store, settings: Settings, endpoint: EndpointSettings, end: float) -> LoadHistory:
    """What was asked of the endpoint up to ``end``, by the first of its sources that tells it."""
    with store.read() as db:
        spans = windows.load_spans(
            db, endpoint.name, tuple(endpoint.sources), end - HISTORY_S, end, settings.collect.window_s
        )
    return LoadHistory.of(spans, end)


def _recent_changes(db: sa.Connection, endpoint: str, now: float) -> int:
    rows = changes.listed(db, endpoint=endpoint, since=now - RECENT_S, purpose="change")
    return sum(row["applied_at"] is not None for row in rows)


def _reaction_s(db: sa.Connection, endpoint: EndpointSettings, interval_s: float) -> float:
    """From the first analysis that calls for more to an approval: the longest that its parts took lately."""
    decided = recommendations.listed(
        db, endpoint=endpoint.name, states=("approved", "applying", "succeeded", "rolled_back", "failed"), limit=LAST
    )
    took = [row["decided_at"] - row["created_at"] for row in decided if row["decided_at"] is not None]
    reaction = max(took) if len(took) >= LAST else max([endpoint.policy.reaction_s, *took])
    if endpoint.mode == "auto" and "grow" in endpoint.policy.auto:
        reaction = 0.0
    return endpoint.policy.stable_cycles * interval_s + reaction


def replica_start_s(db: sa.Connection, endpoint: EndpointSettings) -> float:
    """From an approval, or a schedule's step, to replicas that serve: the longest that it took lately."""
    made = changes.listed(db, endpoint=endpoint.name, purpose="change", limit=LAST)
    grown = [c for c in changes.listed(db, endpoint=endpoint.name, purpose="schedule", limit=4 * LAST) if _grows(c)]
    started = [row["applied_at"] - row["created_at"] for row in (*made, *grown[:LAST]) if row["applied_at"] is not None]
    return max(started) if len(started) >= LAST else max([endpoint.policy.cold_start_s, *started])


def _grows(change: changes.Row) -> bool:
    before, after = (change["plan"][end].get("replicas") or 0 for end in ("before", "after"))
    return bool(after > before)


def _met(endpoint: EndpointSettings, busy: Sequence[Window]) -> bool:
    targets = endpoint.wanted().targets
    return bool(targets) and all(attainment(busy, target).met is True for target in targets)
