"""An endpoint's own telemetry, from the store: calibrate on it, and predict candidates under the traffic that it saw.

Calibrated on what came since the last change, because before that it was another shape; the traffic is that of the whole span.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sqlalchemy as sa

from actuators.shape import Shape
from agent import recorder
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, fleet, windows
from agent.store import evidence as store_evidence
from agent.whatif.figures import SCHEMA_VERSION, CandidateOutcome, Curves, curve, judged
from agent.whatif.parallel import each
from agent.wiring import catalogue_of, vocabulary_of
from analyzers import grammar
from analyzers.grammar import BadQuestion
from analyzers.hardware import find
from analyzers.kinds.base import Basis, Calibration, Kind
from analyzers.kinds.registry import KINDS
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.prediction import CannotPredict
from analyzers.shapes import Vocabulary, shape_of
from analyzers.strict import nearest
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.engine import Router
from analyzers.whatif.predict import Ensemble, replicas_of
from analyzers.whatif.traffic import RecordedLengths, scaled
from collectors.window import Window
from collectors.workload import Workload


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What is known of the endpoint."""

    endpoint: str
    kind: Kind[Any]
    shape: Shape
    start: float
    end: float
    windows: tuple[Window, ...]
    """Of the whole span."""
    since_change: tuple[Window, ...]
    """Those of them that the present shape served."""
    error: Mapping[str, float]
    """The ledger's, by metric."""
    catalogue: Catalogue
    vocabulary: Vocabulary
    """What may be written of its shape."""
    lengths: RecordedLengths | None
    """Of requests that the flight recorder holds. None: too few, or none."""
    recorded: Workload | None = None
    """The requests of the whole span, one by one, where the kind goes by seconds and the recorder holds them. None: it does not."""

    def traffic(self, *, seed: int, speed: float = 1.0) -> Workload:
        """Of the whole span, at ``speed`` times its rate; drawn, unless it was recorded. Raises CannotPredict."""
        if self.recorded is not None:
            return scaled(self.recorded, speed)
        drawn = self.kind.workload(self.windows, seed=seed, scale=speed)
        return drawn if self.lengths is None else self.lengths.dealt(drawn, seed=seed)


@dataclass(frozen=True, slots=True)
class Question:
    """What all candidates are predicted from."""

    kind: Kind[Any]
    workload: Workload
    calibrated: Calibration
    basis: Basis
    curves: bool
    """Whether distributions are wanted too."""


# -- evidence -----------------------------------------------------------------------------------------------------------


def evidence(store: Store, settings: Settings, endpoint: str, since_s: float, now: float) -> Telemetry:
    """Raises BadQuestion on an unknown endpoint."""
    names = [e.name for e in settings.endpoints]
    if endpoint not in names:
        raise BadQuestion(f"--endpoint {endpoint}: {nearest(endpoint, names)}")
    chosen = settings.endpoint(endpoint)
    width = settings.collect.window_s
    end = now // width * width
    with store.read() as db:
        known = fleet.get(db, endpoint)
        rows = _span(db, chosen, end - since_s, end, width)
        error = changes.measured_error(db, endpoint)
        together = recorder.lengths(db, endpoint, end - since_s, end)
        recorded = recorder.whole(db, endpoint, rows) if KINDS[chosen.kind].bursts else None
    changed = known["last_change_at"] if known is not None else None
    settled = end - since_s if changed is None else changed + chosen.verify.warmup_s
    return Telemetry(
        endpoint=endpoint,
        kind=KINDS[chosen.kind],
        shape=Shape.from_dict(known["shape"]) if known is not None and known["shape"] else chosen.shape.shape(),
        start=end - since_s,
        end=end,
        windows=tuple(rows),
        since_change=tuple(w for w in rows if w.start >= settled),
        error=error,
        catalogue=catalogue_of(settings, chosen),
        vocabulary=vocabulary_of(settings, chosen),
        lengths=together,
        recorded=recorded,
    )


def _span(db: sa.Connection, endpoint: EndpointSettings, start: float, end: float, width: float) -> list[Window]:
    """Windows as collected; what is older than those, as rolled up."""
    rows: list[Window] = []
    for duration_s in (width, *(w for w in windows.ROLLUPS if w > width)):
        rows = (
            store_evidence.judged(
                db, endpoint.name, endpoint.sources, start, rows[0].start if rows else end, duration_s
            )
            + rows
        )
    return rows


def question(
    found: Telemetry,
    objective: Objective,
    *,
    seed: int,
    speed: float = 1.0,
    router: Router = "round_robin",
    curves: bool = False,
) -> Question:
    """Calibrate, and draw the traffic. Raises CannotPredict where the windows do not support it."""
    return Question(
        kind=found.kind,
        workload=found.traffic(seed=seed, speed=speed),
        calibrated=calibrated(found),
        basis=Basis(found.shape, objective, found.catalogue, found.error, router),
        curves=curves,
    )


def faster(found: Telemetry, on: Question, *, seed: int, speed: float) -> Question:
    """The same question at ``speed`` times the rate. Raises CannotPredict."""
    return replace(on, workload=found.traffic(seed=seed, speed=speed))


def calibrated(found: Telemetry) -> Calibration:
    """On what the present shape served. Raises CannotPredict."""
    accelerator = found.shape.accelerator
    hardware = find(accelerator, found.catalogue.hardware) if accelerator is not None else None
    recorded = found.recorded if found.since_change == found.windows else None
    made: Calibration = found.kind.calibrate(found.since_change, found.shape, hardware, recorded)
    return made


# -- candidates ---------------------------------------------------------------------------------------------------------


def shapes(found: Telemetry, texts: Sequence[str], notes: list[str]) -> list[tuple[str, Shape]]:
    """Names and shapes: the present one first, then each ``accelerator=L40S,replicas=2`` as changes to it. Raises BadQuestion."""
    tried = [("present", found.shape)]
    for text in texts:
        with grammar.place(f"--candidate {text}"):
            tried.append((text, shape_of(text, found.shape, found.vocabulary, notes)))
    return tried


def _price(shape: Shape, on: Question) -> float | None:
    """US dollars per hour of the whole shape, what spills over included. The present size's own price holds for nothing built differently."""
    built, present = (shape.size, shape.accelerator, shape.accelerator_count), on.basis.present
    if shape.size is None and built != (present.size, present.accelerator, present.accelerator_count):
        return None
    try:
        spilled = on.kind.spill(shape, on.workload, on.calibrated, on.basis)
    except CannotPredict:
        return None
    return replace(on.basis.catalogue, spill=lambda _: spilled).per_hour(shape)


# -- predicting ---------------------------------------------------------------------------------------------------------


def all_predicted(
    tried: Sequence[tuple[str, Shape]], on: Question, advance: Callable[[], None] = lambda: None
) -> list[CandidateOutcome]:
    """All shapes, in order. ``advance`` is called as each is done."""
    return list(each(partial(predicted, on), tried, advance))


def predicted(on: Question, named: tuple[str, Shape]) -> CandidateOutcome:
    """One shape's prediction with its intervals, or why there is none."""
    name, shape = named
    figures: dict[str, Any] = {
        "candidate": name,
        "label": shape.label(),
        "shape": shape.as_dict(),
        "usd_per_hour": _price(shape, on),
        "prediction": None,
        "saturates": None,
        "misfit": dict(on.calibrated.misfit),
        "warnings": list(on.calibrated.warnings),
        **judged(on.basis.objective, {}, None),
        "refused": None,
    }
    try:
        got = on.kind.predict(shape, on.workload, on.calibrated, on.basis)
    except CannotPredict as refused:
        return CandidateOutcome({**figures, "refused": {"code": refused.code, "detail": refused.detail}}, {})
    told = {
        "prediction": got.as_dict(),
        "saturates": got.saturates,
        **judged(on.basis.objective, got.metrics, got.saturates),
    }
    return CandidateOutcome({**figures, **told}, _curves(shape, on) if on.curves else {})


def _curves(shape: Shape, on: Question) -> Curves:
    """Distributions of the best fit's replay; none of a kind that has no such replay."""
    if not isinstance(on.calibrated, CalibratedEngine):
        return {}
    ensemble = Ensemble.of(shape, on.calibrated, on.basis.present, on.basis.catalogue.hardware)
    (best,) = ensemble.members(on.workload, 0, replicas=replicas_of(shape), router=on.basis.router)
    return {"ttft_s": curve(best.distribution("ttft_s")), "itl_s": curve(best.distribution("itl_s"))}


def answer(
    found: Telemetry, on: Question, outcomes: Sequence[CandidateOutcome], notes: Sequence[str]
) -> dict[str, Any]:
    """The whole as JSON: the present shape's figures, and all of them under ``candidates``."""
    observed = [w for w in found.windows if w.coverage > 0]
    return {
        "schema_version": SCHEMA_VERSION,
        **outcomes[0].figures,
        "endpoint": found.endpoint,
        "evidence": {
            "start": found.start,
            "end": found.end,
            "windows": len(found.windows),
            "coverage": sum(w.coverage * w.duration_s for w in observed) / (found.end - found.start),
            "requests": sum(w.count("requests") or 0.0 for w in observed) if observed else None,
            "replayed_requests": len(on.workload),
        },
        "calibration": {
            "windows": on.calibrated.windows,
            "requests": on.calibrated.requests,
            "load_running": list(on.calibrated.load),
            "residuals": dict(on.calibrated.residuals),
            "notes": list(on.calibrated.notes),
        },
        "notes": [*notes, *(note for note in _notes(found, on) if note not in on.calibrated.warnings)],
        "candidates": [outcome.figures for outcome in outcomes],
    }


def _notes(found: Telemetry, on: Question) -> list[str]:
    """What a reader must know to trust the figures as far as they go."""
    notes: list[str] = []
    if len(found.since_change) < len(found.windows):
        notes.append(
            f"calibrated on the {len(found.since_change)} of {len(found.windows)} windows since the last change; "
            "the traffic is that of all"
        )
    requests = sum(w.count("requests") or 0.0 for w in found.windows)
    if len(on.workload) < 0.9 * requests:
        notes.append(f"{len(on.workload)} requests are replayed for {requests:.0f}: windows taken evenly over the span")
    return [*notes, *on.calibrated.notes]
