"""What needs more than the evidence of a decision: days of figures for what is unlike its season, and of budget for how fast that burns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.settings import EndpointSettings, Settings
from agent.store import Store, windows
from agent.store.evidence import judged
from analyzers.anomaly import IN_A_ROW, SLOT_S, SeasonModel, SlotFigures, anomaly
from analyzers.burn import SPANS, burning
from analyzers.commitment import worth_reserving
from analyzers.finding import Finding
from analyzers.situation import Situation
from collectors.window import Window

#: So much is learned from, and what was learned serves for so long.
HISTORY_S, RELEARN_S = 7 * 86_400.0, 6 * 3600.0
#: What is worth reserving is told by the hours of so long.
COMMITMENT_S = 28 * 86_400.0
#: Spans longer than an hour are read again after so long.
REREAD_S = 300.0
#: Up to this length a span's windows are taken as they were collected; a longer one has so many of them at least.
RAW_S, LEAST_WINDOWS = 3600.0, 12


@dataclass(frozen=True, slots=True)
class _SeasonEntry:
    at: float
    model: SeasonModel | None


@dataclass(frozen=True, slots=True)
class _BudgetEntry:
    at: float
    spans: Mapping[float, Sequence[Window]]


@dataclass(frozen=True, slots=True)
class _CommitmentEntry:
    at: float
    hours: tuple[float | None, ...]
    """US dollars of each hour."""


class Seasons:
    """By endpoint. Called in threads, one at a time for each endpoint."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._models: dict[str, _SeasonEntry] = {}
        self._budgets: dict[str, _BudgetEntry] = {}
        self._commitments: dict[str, _CommitmentEntry] = {}

    def found(self, endpoint: EndpointSettings, s: Situation, now: float) -> list[Finding]:
        """What is unlike its season, each target whose budget burns too fast, and what would be worth reserving."""
        others = (self._unlike(endpoint, s, now), self._worth_reserving(endpoint, s, now))
        return [*burning(s, self._spans(endpoint, now)), *(f for f in others if f is not None)]

    def _worth_reserving(self, endpoint: EndpointSettings, s: Situation, now: float) -> Finding | None:
        """By the hours of the last weeks, which change slowly."""
        prices = self._prices(endpoint, s)
        if prices is None:
            return None
        known = self._commitments.get(endpoint.name)
        if known is None or now - known.at >= RELEARN_S:
            with self._store.read() as db:
                hours = windows.costs(db, endpoint.name, s.source.partition("+")[0], now - COMMITMENT_S, now, 3600.0)
            known = self._commitments[endpoint.name] = _CommitmentEntry(now, tuple(hours.values()))
        return worth_reserving(s, known.hours, *prices)

    def _prices(self, endpoint: EndpointSettings, s: Situation) -> tuple[float, float] | None:
        """US dollars an hour of a replica, or of a unit of provisioned throughput: the usual one, and where it is reserved."""
        if s.shape.purchase is not None:
            usual, reserved = endpoint.usd_per_ptu_hour, endpoint.usd_per_ptu_hour_reserved
        else:
            size = self._settings.sizes.get(s.shape.size or "")
            usual = size.usd_per_replica_hour if size is not None else None
            reserved = size.usd_per_replica_hour_reserved if size is not None else None
        return None if usual is None or reserved is None else (usual, reserved)

    def _unlike(self, endpoint: EndpointSettings, s: Situation, now: float) -> Finding | None:
        known = self._models.get(endpoint.name)
        if known is None or now - known.at >= RELEARN_S:
            # Of what is judged next nothing has been learned.
            history = self._figures(endpoint, now - HISTORY_S, now - 2 * IN_A_ROW * SLOT_S)
            known = self._models[endpoint.name] = _SeasonEntry(now, SeasonModel.of(history, self._settings.decide.seed))
        if known.model is None:
            return None
        latest = self._figures(endpoint, now - 2 * IN_A_ROW * SLOT_S, now)
        return anomaly(s, known.model, latest)

    def _figures(self, endpoint: EndpointSettings, start: float, end: float) -> list[SlotFigures]:
        """Each figure from the first source that tells it."""
        found: dict[float, dict[str, float]] = {}
        with self._store.read() as db:
            for source in endpoint.sources:
                for slot in windows.load_figures(db, endpoint.name, source, start, end, SLOT_S):
                    known = found.setdefault(slot.start, {})
                    known |= {name: value for name, value in slot.values.items() if name not in known}
        return [SlotFigures(at, values) for at, values in sorted(found.items())]

    def _spans(self, endpoint: EndpointSettings, now: float) -> Mapping[float, Sequence[Window]]:
        """The windows of each span that a budget is judged by: as collected up to an hour, and rolled up beyond it."""
        known = self._budgets.get(endpoint.name)
        if known is None or now - known.at >= REREAD_S:
            spans = {span: self._rows(endpoint, now - span, now) for span in SPANS if span > RAW_S}
            known = self._budgets[endpoint.name] = _BudgetEntry(now, spans)
        hour = self._rows(endpoint, now - RAW_S, now)
        return {**known.spans, **{span: [w for w in hour if w.start >= now - span] for span in SPANS if span <= RAW_S}}

    def _rows(self, endpoint: EndpointSettings, start: float, end: float) -> list[Window]:
        """The finest windows that the span needs: a rolled-up one that is not made yet is taken from finer ones."""
        widths = [self._settings.collect.window_s, *(w for w in windows.ROLLUPS if w > self._settings.collect.window_s)]
        take = [w for w in widths if (end - start) >= w * LEAST_WINDOWS and (w == widths[0] or end - start > RAW_S)]
        with self._store.read() as db:
            rows: list[Window] = []
            for width in reversed(take or widths[:1]):
                since = rows[-1].end if rows else start
                rows += judged(db, endpoint.name, endpoint.sources, since, end, width)
        return rows
