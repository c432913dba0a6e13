"""Which endpoint is the yardstick of which, and what its engine is: learned from its own windows, or kept from when it had some."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from actuators.shape import Shape
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, fleet, windows
from agent.store.evidence import judged
from agent.store.rows import CalibrationRow
from agent.wiring import catalogue_of
from analyzers.hardware import Hardware, find
from analyzers.kinds.base import Basis, Calibration, Kind
from analyzers.kinds.registry import KINDS
from analyzers.objective import Objective, total
from analyzers.prediction import CannotPredict
from analyzers.reference import CalibratedEndpoint
from collectors.window import Window

#: A reference is busy seldom: so far back its requests are looked for, in windows of five minutes.
LOOK_BACK_S = 7 * 86_400.0
#: What was learned of one serves for so long.
RELEARN_S = 3600.0
#: It is kept for when there is no traffic any more, and not more often than this.
KEEP_S = 6 * 3600.0

_Write = Callable[[], AbstractContextManager[sa.Connection]]


class NoReference(Exception):
    """There is none to compare with; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class _ReferenceEntry:
    """What was learned of a reference, when, and for which shape."""

    at: float
    shape: Shape
    calibrated: Calibration


class References:
    """By name. Called in threads; what two learn at once is the same."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._known: dict[str, _ReferenceEntry] = {}

    def of(
        self, endpoint: EndpointSettings, model: str | None, objective: Objective, now: float, write: _Write
    ) -> CalibratedEndpoint:
        """The reference of ``endpoint``, which serves ``model``. What is learned of it is kept by ``write``. Raises NoReference."""
        width = self._settings.collect.window_s
        with self._store.read() as db:
            models = {e.name: _model(db, e, width) for e in _standing(self._settings)}
            chosen = choose(endpoint, model, self._settings, models)
            shape = _shape(db, chosen)
            error = changes.measured_error(db, chosen.name)
        kind, catalogue = KINDS[chosen.kind], catalogue_of(self._settings, chosen)
        calibrated = self._learned(chosen, kind, shape, now, write)
        basis = Basis(shape, objective, catalogue, error)
        return CalibratedEndpoint(chosen.name, kind, calibrated, basis, catalogue.per_replica_hour(shape))

    def codes(self, name: str) -> frozenset[str]:
        """Of what is found at a reference itself."""
        with self._store.read() as db:
            return frozenset(f["code"] for f in fleet.findings(db, name))

    def _learned(
        self, chosen: EndpointSettings, kind: Kind[Any], shape: Shape, now: float, write: _Write
    ) -> Calibration:
        known = self._known.get(chosen.name)
        if known is not None and known.shape == shape and now - known.at < RELEARN_S:
            return known.calibrated
        with self._store.read() as db:
            rows = _evidence(db, self._settings, chosen, now)
            key = kind.key(rows[-1].facts if rows else {}, shape)
            kept = fleet.calibration(db, chosen.name, key)
        catalogue = catalogue_of(self._settings, chosen)
        hardware = None if shape.accelerator is None else find(shape.accelerator, catalogue.hardware)
        mine = [w for w in rows if kind.key(w.facts, shape) == key]
        calibrated = _calibrated(kind, mine, shape, hardware)
        if isinstance(calibrated, CannotPredict):
            text = (
                f"nothing is known of {chosen.name}'s engine yet: {calibrated.detail}; `flyball simulate` can send some"
            )
            earlier = _read(kind, kept)
            if earlier is None:
                raise NoReference(text)
            calibrated = earlier
        elif kept is None or now - kept["fitted_at"] >= KEEP_S:
            with write() as db:
                fleet.keep_calibration(db, chosen.name, key=key, now=now, body=calibrated.as_dict())
        self._known[chosen.name] = _ReferenceEntry(now, shape, calibrated)
        return calibrated


def _calibrated(
    kind: Kind[Any], rows: Sequence[Window], shape: Shape, hardware: Hardware | None
) -> Calibration | CannotPredict:
    try:
        found: Calibration = kind.calibrate(rows, shape, hardware)
    except CannotPredict as refused:
        return refused
    return found


def _read(kind: Kind[Any], row: CalibrationRow | None) -> Calibration | None:
    try:
        found: Calibration | None = None if row is None else kind.read(row["body"])
    except (KeyError, TypeError, ValueError):  # an older Flyball's
        return None
    return found


def choose(
    endpoint: EndpointSettings, model: str | None, settings: Settings, models: Mapping[str, str | None]
) -> EndpointSettings:
    """The reference that ``endpoint`` names; else the only one of its model's family; else the only one. Raises NoReference.

    models: of each reference, by name.
    """
    if endpoint.reference is not None:
        return settings.endpoint(endpoint.reference)
    standing = _standing(settings)
    if not standing:
        raise NoReference("no reference server stands; give one endpoint `role: reference`")
    same = [e for e in standing if model is not None and models.get(e.name) == model]
    kin = [e for e in standing if (f := family(model)) is not None and family(models.get(e.name)) == f]
    for found in (same, kin, standing):
        if len(found) == 1:
            return found[0]
    names = ", ".join(e.name for e in kin or standing)
    raise NoReference(f"{names} could each be the reference of {endpoint.name}; name one by `reference:`")


def family(model: str | None) -> str | None:
    """The letters that a model's own name begins with: ``llama`` of ``meta-llama/Llama-3.1-8B-Instruct``. None: unknown."""
    begins = re.match(r"[a-z]+", model.rpartition("/")[2].lower()) if model else None
    return begins[0] if begins is not None else None


def _standing(settings: Settings) -> list[EndpointSettings]:
    return [e for e in settings.endpoints if e.role == "reference"]


def _model(db: sa.Connection, endpoint: EndpointSettings, width: float) -> str | None:
    """By the settings, else as it says itself."""
    if endpoint.model is not None:
        return endpoint.model
    for source in endpoint.sources:
        newest = windows.latest(db, endpoint.name, width, source)
        if newest is not None and newest.facts.get("model"):
            return newest.facts["model"]
    return None


def _shape(db: sa.Connection, endpoint: EndpointSettings) -> Shape:
    known = fleet.get(db, endpoint.name)
    return Shape.from_dict(known["shape"]) if known is not None and known["shape"] else endpoint.shape.shape()


def _evidence(db: sa.Connection, settings: Settings, endpoint: EndpointSettings, now: float) -> Sequence[Window]:
    """Its last span; where that saw too few requests, what was rolled up of the last week. Nothing from before its last change."""
    width = settings.collect.window_s
    known = fleet.get(db, endpoint.name)
    changed = known["last_change_at"] if known is not None else None
    since = 0.0 if changed is None else changed + endpoint.verify.warmup_s
    recent = judged(db, endpoint.name, endpoint.sources, max(since, now - endpoint.policy.evidence_s), now, width)
    if (total(recent, "requests") or 0.0) >= endpoint.policy.min_requests:
        return recent
    coarse = next(w for w in windows.ROLLUPS if w >= width)
    longer = judged(db, endpoint.name, endpoint.sources, max(since, now - LOOK_BACK_S), now, coarse)
    return [*(w for w in longer if not recent or w.end <= recent[0].start), *recent]
