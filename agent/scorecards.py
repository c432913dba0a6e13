"""The autoscalers' scorecard of an endpoint: its last days' traffic, replayed under each, beside a clairvoyant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from actuators.shape import Shape
from agent.horizon import replica_start_s
from agent.settings import EndpointSettings, Settings
from agent.store import Store
from agent.whatif import predictions
from agent.whatif.predictions import Telemetry
from analyzers.autoscaling.case import HOUR, FleetCase, case_of, fewest_static
from analyzers.autoscaling.own import fleet_of
from analyzers.autoscaling.rules import RULES
from analyzers.autoscaling.scorecard import AutoscalerScore, Scorecard, TunedRule, by_halves, manifest_of
from analyzers.prediction import CannotPredict
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.predict import Ensemble
from analyzers.whatif.traffic import workload_from_windows
from collectors.window import Window

SCHEMA_VERSION = 1
DAY_S = 86_400.0
#: More requests than so many are not replayed: fewer days are scored instead.
MOST_REQUESTS = 4_000_000
#: A day, or a part of one, counts where this share of it was seen; shorter than two hours, nothing is learned of it.
WHOLE, SHORTEST_S = 0.8, 7200.0


@dataclass(frozen=True, slots=True)
class ScorecardRequest:
    endpoint: str
    days: int
    rules: Sequence[str]


def scorecard(
    store: Store,
    settings: Settings,
    asked: ScorecardRequest,
    now: float,
    advance: Callable[[str], None] = lambda _what: None,
) -> dict[str, Any]:
    """As plain JSON. Raises BadQuestion on an unknown endpoint, CannotPredict where its telemetry supports no replay."""
    found = predictions.evidence(store, settings, asked.endpoint, asked.days * DAY_S, now)
    chosen = settings.endpoint(asked.endpoint)
    if found.kind.name != "engine":
        raise CannotPredict(
            "NO_ENGINE", f"{asked.endpoint} is of kind {found.kind.name}: only engines are replayed under an autoscaler"
        )
    advance("calibrating")
    on = predictions.calibrated(found)
    assert isinstance(on, CalibratedEngine)
    ensemble = Ensemble.of(found.shape.with_(replicas=1, autoscaling=None), on, found.shape, found.catalogue.hardware)
    with store.read() as db:
        cold_start_s = replica_start_s(db, chosen)
    notes: list[str] = []
    cases = _cases(found, chosen, settings.decide.seed, ensemble, cold_start_s, notes)
    card = Scorecard(cases)
    learned, reported = by_halves(len(cases))
    advance("the clairvoyant")
    rows = [card.clairvoyant(reported)]
    advance("as it is")
    rows += _as_it_is(card, found.shape, reported, notes)
    tuned: list[TunedRule] = []
    for rule in asked.rules:
        advance(rule)
        one = card.tuned(rule, learned, reported)
        tuned.append(one)
        rows += [one.documented, one.tuned]
    best = min((t for t in tuned if t.tuned.within >= card.within), key=lambda t: t.tuned.usd, default=None)
    priced = found.catalogue.per_replica_hour(found.shape) is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "endpoint": asked.endpoint,
        "unit": "usd" if priced else "replica_hours",
        "within": card.within,
        "cold_start_s": cold_start_s,
        "days": [
            {"name": case.name, "hours": case.duration_s / HOUR, "requests": len(case.work), "learned": i in learned}
            for i, case in enumerate(cases)
        ],
        "least": sum(card.needed(day)[1] / HOUR * cases[day].usd_per_replica_hour for day in reported),
        "rows": [row.as_dict() for row in rows],
        "tuned": [
            {
                "rule": t.rule,
                "title": RULES[t.rule].title,
                "settings": dict(t.settings),
                "manifest": manifest_of(t.rule, asked.endpoint, cases[0], t.settings),
            }
            for t in tuned
        ],
        "best": None if best is None else best.rule,
        "notes": [*notes, *ensemble.notes],
    }


def _cases(
    found: Telemetry, chosen: EndpointSettings, seed: int, ensemble: Ensemble, cold_start_s: float, notes: list[str]
) -> list[FleetCase]:
    """A case for each day that was seen, the newest first to be kept; with less than two days, for each half of what was seen."""
    price = found.catalogue.per_replica_hour(found.shape)
    most = chosen.policy.max_replicas or found.shape.replicas
    if found.shape.autoscaling is not None:
        most = max(found.shape.autoscaling.most, chosen.policy.max_replicas or 0)
    cases: list[FleetCase] = []
    requests = 0
    parts = _parts(found)
    for name, rows in parts:
        work = workload_from_windows(rows, seed=seed, max_requests=MOST_REQUESTS)
        requests += len(work)
        if len(cases) >= 2 and requests > MOST_REQUESTS:
            notes.append(
                f"the newest {len(cases)} of {len(parts)} days are scored: more than {MOST_REQUESTS:,} requests are not replayed"
            )
            break
        case = case_of(
            name,
            work,
            rows[-1].end - rows[0].start,
            ensemble.best_model,
            chosen.wanted(),
            overhead_s=ensemble.draws[0].overhead_s,
            cold_start_s=cold_start_s,
            usd_per_replica_hour=1.0 if price is None else price,
        )
        needed = fewest_static(case, case.quantile)
        if needed is None:
            text = f"no number of replicas would have met the objective on {name}: the model of the engine is too slow for it"
            raise CannotPredict("NEVER_MET", text)
        cases.append(replace(case, replicas=needed, most=max(most or 0, needed + 2)))
    top = max((case.most for case in cases), default=0)
    return [replace(case, most=top) for case in reversed(cases)]


def _parts(found: Telemetry) -> list[tuple[str, list[Window]]]:
    """Newest first. Raises CannotPredict where too little was seen."""
    seen = [w for w in found.windows if w.coverage > 0]
    if not seen:
        raise CannotPredict("NO_DATA", f"{found.endpoint}: no window of it is kept")
    end, begun = found.end, seen[0].start
    days = math.floor((end - begun) / DAY_S)
    width = DAY_S if days >= 2 else (end - begun) / 2
    if width < SHORTEST_S:
        text = (
            f"{found.endpoint}: {(end - begun) / 3600:.1f} h were seen, and two parts of two hours at least are needed"
        )
        raise CannotPredict("TOO_LITTLE", text)
    parts = []
    for k in range(max(2, days)):
        since, until = end - (k + 1) * width, end - k * width
        rows = [w for w in seen if since - 1e-6 <= w.start and w.end <= until + 1e-6]
        covered = sum(w.coverage * w.duration_s for w in rows) / width
        if covered >= WHOLE:
            parts.append((datetime.fromtimestamp(since, UTC).strftime("%a %d %b %H:%M UTC"), rows))
    if len(parts) < 2:
        raise CannotPredict(
            "TOO_LITTLE", f"{found.endpoint}: fewer than two days, or parts of a day, were seen nearly whole"
        )
    return parts


def _as_it_is(card: Scorecard, shape: Shape, days: Sequence[int], notes: list[str]) -> list[AutoscalerScore]:
    """The endpoint's own count, or its own autoscaler where its metrics can be replayed."""
    if shape.autoscaling is None:
        count = shape.replicas
        return [card.score(f"as it is: {count} replicas", lambda _case: count, days)] if count else []
    try:
        policy = fleet_of(shape, card.cases[0].cold_start_s).policy
        assert policy is not None, "an autoscaler's fleet has one"
    except CannotPredict as refused:
        notes.append(f"its own autoscaler is not scored: {refused.detail}")
        return []
    return [card.score("as it is: its own autoscaler", lambda _case: policy, days)]
