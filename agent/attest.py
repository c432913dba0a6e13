"""Attesting: at the end of each period, what the endpoint would have cost and done on the shape that Flyball's changes gave up.

The rule for several changes: the counterfactual is the shape that stood before the first of an unbroken row of Flyball's changes, and
each period is counted once against it. Counted each against its own predecessor, a fleet that is made smaller every night and larger
every morning would lose by day what it gained by night. A person's deployment, or a shape that somebody else set, begins a new row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
import structlog

from actuators.shape import Plan, Shape, difference
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, control, fleet, prices, savings, windows
from agent.store.control import Lead
from agent.store.evidence import judged, main_source
from agent.wiring import catalogue_of, token_prices
from analyzers.hardware import find
from analyzers.kinds.registry import KINDS
from analyzers.money import Tariff, Unit
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.prediction import CannotPredict
from analyzers.savings import counterfactual
from analyzers.savings.counterfactual import Counterfactual, ReplayBasis
from analyzers.savings.saving import PeriodEvidence, Saving, SavingTotal, reckon
from analyzers.whatif.calibrate import CalibratedEngine
from collectors.window import Window

log = structlog.get_logger()

METHOD = "counterfactual replay, 1"
#: After a period's end its last windows have so long to come in.
SETTLES_S = 900.0
#: A shape that no longer serves is learned of from so much of its own time.
_OWN_S = 86_400.0
#: So many changes are looked back at.
_MANY = 10_000
#: A period of which so many hours are not known is not wholly known.
_SOME_HOURS = 0.1
#: Figures that are recomputed may differ by this share: another machine rounds otherwise.
_CRUMBS = 1e-6


# -- which changes -------------------------------------------------------------------------------------------------------


def standing(rows: Sequence[changes.Row]) -> list[changes.Row]:
    """The unbroken row of Flyball's changes that the newest belongs to, oldest first. rows: of one endpoint, oldest first."""
    line: list[changes.Row] = []
    for row in rows:
        if not _stands(row):
            continue
        if row["purpose"] == "deploy":
            line = []
            continue
        plan = Plan.from_dict(row["plan"])
        if line and not same(Plan.from_dict(line[-1]["plan"]).after, plan.before):
            line = []
        line.append(row)
    return line


def _stands(row: changes.Row) -> bool:
    """Whether it made a shape that stayed; a tune leads its endpoint back."""
    return row["applied_at"] is not None and row["state"] == "succeeded" and row["purpose"] != "trial"


def same(one: Shape, other: Shape) -> bool:
    """Whether nothing that costs or serves differs now: a schedule is no part of what is live, and what only a system knows moves by itself."""
    return not difference(*(replace(shape, extra={}, schedule=None) for shape in (one, other)))


@dataclass(frozen=True, slots=True)
class AttestPeriod:
    """What is to be attested."""

    start: float
    end: float
    line: tuple[changes.Row, ...]
    """Flyball's changes: the first, the last before its start, and those within it, steps of schedules included."""

    @property
    def given_up(self) -> Shape:
        return Plan.from_dict(self.line[0]["plan"]).before

    @property
    def since(self) -> float:
        """When it was given up, or the period's start."""
        applied = self.line[0]["applied_at"]
        assert applied is not None
        return max(self.start, applied)


def due(db: sa.Connection, settings: Settings, endpoint: EndpointSettings, now: float) -> list[AttestPeriod]:
    """Periods that are over, that changes of Flyball's reach into, and that are not attested yet; oldest first.

    None while a change is under way: only its end says whether it stands. None of which no window is kept as it was collected.
    """
    length = settings.savings.period_s
    last = (now - SETTLES_S) // length * length
    newest = savings.listed(db, endpoint=endpoint.name, start=last - length)
    if newest or changes.active_of(db, endpoint.name) is not None:
        return []
    rows = changes.listed(db, endpoint=endpoint.name, limit=_MANY)[::-1]
    kept = now - settings.retention.raw_days * 86_400 + length
    first = (
        max(kept, min((r["applied_at"] for r in rows if r["applied_at"] is not None), default=now)) // length * length
    )
    done = {row["period_start"] for row in savings.listed(db, endpoint=endpoint.name, start=first)}
    found = []
    while first < last:
        line = standing([r for r in rows if r["applied_at"] is not None and r["applied_at"] < first + length])
        if line and first not in done:
            within = [i for i, row in enumerate(line) if (row["applied_at"] or 0.0) >= first]
            kept_from = max(1, (within[0] if within else len(line)) - 1)
            found.append(AttestPeriod(first, first + length, (line[0], *line[kept_from:])))
        first += length
    return found


# -- evidence ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Material:
    """What a saving is reckoned from: all of it is in the database."""

    evidence: PeriodEvidence
    taught: tuple[tuple[Shape, tuple[Window, ...]], ...]
    """Shapes, and the windows that they served: the first that an engine can be learned from is taken."""
    tariff: Tariff
    digest: str
    """Of all of it."""


def _material(
    db: sa.Connection, settings: Settings, endpoint: EndpointSettings, period: AttestPeriod, until: float
) -> _Material:
    """until: prices that were noted later do not count, so that what was attested can be found again."""
    width, given_up = settings.collect.window_s, period.given_up
    since = -(-period.since // width) * width
    rows = judged(db, endpoint.name, endpoint.sources, since, period.end, width)
    before = judged(db, endpoint.name, endpoint.sources, since - counterfactual.SETTLE_S, since, width)
    usd = windows.costs(db, endpoint.name, main_source(rows[0]), since, period.end, width) if rows else {}
    warm = endpoint.verify.warmup_s
    applied = [c["applied_at"] or 0.0 for c in period.line]
    bounds = [since, *(at for at in applied if since < at < period.end), period.end]
    shapes = [_served(period.line, at) for at in bounds[:-1]]
    parts = [
        (shape, tuple(w for w in rows if begin + (warm if begin in applied else 0.0) <= w.start and w.end <= end))
        for shape, (begin, end) in zip(shapes, pairwise(bounds), strict=True)
    ]
    parts.sort(key=lambda part: -len(part[1]))
    began = period.line[0]["created_at"]
    if not _alike(given_up, parts[0][0]):
        own = judged(db, endpoint.name, endpoint.sources, began - _OWN_S, began, width)
        parts.insert(0, (given_up, tuple(own)))
    history = prices.history(db, subject_of(given_up, endpoint, settings))
    tariff = Tariff(tuple(p for p in history.prices if p.since <= until and p.per is Unit.REPLICA_HOUR))
    digest = hashlib.sha256()
    for window in (*before, *rows, *(w for _, group in parts for w in group)):
        digest.update(
            repr((window.start, window.coverage, sorted(window.counts.items()), usd.get(window.start))).encode()
        )
    return _Material(PeriodEvidence(since, period.end, rows, before, usd), tuple(parts), tariff, digest.hexdigest())


def _served(line: Sequence[changes.Row], at: float) -> Shape:
    """The shape that changes had made by then."""
    made = [Plan.from_dict(c["plan"]).after for c in line if (c["applied_at"] or 0.0) <= at]
    return made[-1] if made else Plan.from_dict(line[0]["plan"]).before


def _alike(one: Shape, other: Shape) -> bool:
    """Whether a replica of the one is a replica of the other: what is learned of the one holds for the other."""
    return all(getattr(one, name) == getattr(other, name) for name in ("size", "accelerator", "accelerator_count"))


def subject_of(shape: Shape, endpoint: EndpointSettings, settings: Settings) -> str:
    """Under which name its price is kept: its size's, or its endpoint's own."""
    listed = settings.sizes.get(shape.size) if shape.size is not None else None
    if listed is not None and listed.usd_per_replica_hour is not None:
        return f"size:{shape.size}"
    return f"endpoint:{endpoint.name}" if shape.size == endpoint.shape.size else f"size:{shape.size}"


def known_prices(settings: Settings) -> dict[tuple[str, Unit], float]:
    """US dollars by subject and unit."""
    stated = {(f"size:{name}", Unit.REPLICA_HOUR): size.usd_per_replica_hour for name, size in settings.sizes.items()}
    for e in settings.endpoints:
        stated[f"endpoint:{e.name}", Unit.REPLICA_HOUR] = e.usd_per_replica_hour
        stated[f"endpoint:{e.name}", Unit.PTU_HOUR] = e.usd_per_ptu_hour
        stated |= {(f"endpoint:{e.name}", unit): usd for unit, usd in token_prices(e).items()}
    return {key: usd for key, usd in stated.items() if usd is not None}


# -- reckoning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ReplayMaterial:
    """What a replay needs, so that it can be done again: as stated in the row."""

    objective: Mapping[str, float]
    error: Mapping[str, float]
    cold_start_s: float
    seed: int


def _reckoned(
    endpoint: EndpointSettings, catalogue: Catalogue, period: AttestPeriod, material: _Material, on: _ReplayMaterial
) -> Saving:
    objective = Objective.from_mapping(on.objective)

    def replay(rows: Sequence[Window], before: Sequence[Window]) -> Counterfactual:
        calibrated, shape = _calibrated(endpoint, catalogue, material)
        basis = ReplayBasis(calibrated, shape, objective, catalogue.hardware, on.error, on.cold_start_s, on.seed)
        return counterfactual.replayed(period.given_up, rows, before, basis)

    return reckon(period.given_up, material.evidence, objective, material.tariff.at, replay)


def _calibrated(
    endpoint: EndpointSettings, catalogue: Catalogue, material: _Material
) -> tuple[CalibratedEngine, Shape]:
    """Raises CannotPredict."""
    refused = CannotPredict("NO_EVIDENCE", "no window to learn from")
    for shape, rows in material.taught:
        hardware = find(shape.accelerator, catalogue.hardware) if shape.accelerator is not None else None
        try:
            found = KINDS[endpoint.kind].calibrate(rows, shape, hardware)
        except CannotPredict as error:
            refused = error
            continue
        if isinstance(found, CalibratedEngine):
            return found, shape
        raise CannotPredict("NO_REPLAY", f"an endpoint of kind {endpoint.kind} is not replayed request by request")
    raise refused


def _body(
    endpoint: EndpointSettings,
    period: AttestPeriod,
    material: _Material,
    on: _ReplayMaterial,
    saving: Saving,
    ours: bool,
) -> dict[str, Any]:
    """ours: whether what serves is what Flyball's changes made; where not, nothing is said of what they saved."""
    return {
        "endpoint": endpoint.name,
        "change_id": period.line[0]["id"],
        "changes": [c["id"] for c in period.line],
        "period_start": period.start,
        "period_end": period.end,
        "since": period.since,
        "given_up": period.given_up.as_dict(),
        "serves": _served(period.line, period.end).as_dict(),
        "method": METHOD,
        "objective": dict(on.objective),
        "error": dict(on.error),
        "cold_start_s": on.cold_start_s,
        "seed": on.seed,
        "prices": [{"usd": p.usd, "per": str(p.per), "since": p.since} for p in material.tariff.prices],
        "evidence": material.digest,
        "ours": ours,
        **(saving if ours else _disowned(saving)).as_dict(),
    }


def cycle(store: Store, settings: Settings, now: float, lead: Lead, moved: Callable[[], object] = lambda: None) -> int:
    """Attest what is due, and note prices; how many periods. ``moved`` is called after each. Raises LostLease."""
    with control.leading(store, lead) as db:
        prices.note(db, known_prices(settings), now)
    made = 0
    for endpoint in settings.endpoints:
        with store.read() as db:
            periods = due(db, settings, endpoint, now)
        for period in periods:
            with store.read() as db:
                ours = _ours(db, endpoint.name)
                material = _material(db, settings, endpoint, period, now)
                error = changes.measured_error(db, endpoint.name)
            on = _ReplayMaterial(endpoint.objective, error, endpoint.policy.cold_start_s, settings.decide.seed)
            saving = _reckoned(endpoint, catalogue_of(settings, endpoint), period, material, on)
            with control.leading(store, lead) as db:
                savings.append(db, _body(endpoint, period, material, on, saving, ours), now)
            log.info("saving_attested", endpoint=endpoint.name, period_start=period.start)
            made += 1
            moved()
    return made


def _ours(db: sa.Connection, endpoint: str) -> bool:
    """Whether what is live is what was last made through Flyball, as far as it was looked at since."""
    known = fleet.get(db, endpoint)
    made = next((row for row in changes.listed(db, endpoint=endpoint, limit=100) if _stands(row)), None)
    if known is None or made is None or not known["shape"] or known["seen_at"] <= (made["applied_at"] or 0.0):
        return True
    return same(Shape.from_dict(known["shape"]), Plan.from_dict(made["plan"]).after)


def _disowned(saving: Saving) -> Saving:
    why = "what serves was changed by somebody else since: what is saved is not Flyball's doing"
    return replace(saving, would_cost_usd=None, saved_usd=None, would_miss_s=None, unknown=(*saving.unknown, why))


# -- what people see -----------------------------------------------------------------------------------------------------


def view(row: savings.Row) -> dict[str, Any]:
    """A row as JSON, with both shapes in words."""
    body = json.loads(row["body"])
    labels = {f"{name}_label": Shape.from_dict(body[name]).label() for name in ("given_up", "serves")}
    return {**body, **labels, "id": row["id"], "attested_at": row["attested_at"], "hash": row["hash"]}


def summed(rows: Sequence[savings.Row]) -> dict[str, Any]:
    """Periods together as JSON: money and times with their intervals, and the names of endpoints of which something is not known."""
    bodies = [json.loads(row["body"]) for row in rows]
    total = SavingTotal.of([Saving.from_dict(body) for body in bodies])
    lacking = dict.fromkeys(b["endpoint"] for b in bodies if b["saved_usd"] is None or b["hours_unknown"] > _SOME_HOURS)
    return {**total.as_dict(), "lacking": list(lacking)}


# -- verifying -----------------------------------------------------------------------------------------------------------


def recomputed(store: Store, settings: Settings, row: savings.Row) -> tuple[bool | None, str]:
    """Whether a row's figures come out of the database again; None: its evidence is no longer there. And why."""
    body = json.loads(row["body"])
    if body["endpoint"] not in {e.name for e in settings.endpoints}:
        return None, "the endpoint is no longer in the settings"
    endpoint = settings.endpoint(body["endpoint"])
    with store.read() as db:
        found = [changes.get(db, identity) for identity in body["changes"]]
        line = tuple(c for c in found if c is not None)
        if len(line) < len(found):
            return None, "a change is no longer in the database"
        period = AttestPeriod(body["period_start"], body["period_end"], line)
        material = _material(db, settings, endpoint, period, row["attested_at"])
    if material.digest != body["evidence"]:
        return None, "its windows are no longer as they were: they aged out, or fuller ones came later"
    on = _ReplayMaterial(body["objective"], body["error"], body["cold_start_s"], body["seed"])
    saving = _reckoned(endpoint, catalogue_of(settings, endpoint), period, material, on)
    again = _body(endpoint, period, material, on, saving, body["ours"])
    wrong = [name for name, value in again.items() if not _equal(value, body[name])]
    return not wrong, f"{', '.join(wrong)} come out otherwise" if wrong else "the same figures again"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, float) and isinstance(other, float | int):
        return abs(one - other) <= _CRUMBS * max(1.0, abs(one))
    return bool(one == other)
