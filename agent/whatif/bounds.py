"""The fewest replicas that any policy could have used: a clairvoyant's schedule, and what nobody can go below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent.horizon import replica_start_s
from agent.settings import Settings
from agent.store import Store
from agent.whatif.candidates import Candidate
from agent.whatif.predictions import Question, Telemetry
from analyzers.autoscaling.case import HOUR, FleetCase, case_of, fewest_static, in_time
from analyzers.autoscaling.clairvoyant import clairvoyant_and_bound
from analyzers.grammar import BadQuestion
from analyzers.kinds.engine.engines import Engines
from analyzers.kinds.results import ReplayTraffic
from analyzers.prediction import CannotPredict
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.predict import Ensemble
from analyzers.whatif.traffic import workload_from_windows
from collectors.window import Window
from collectors.workload import Workload

#: A clairvoyant may have so many replicas more than the fewest that never change.
SPARE = 2
#: More requests than so many are not replayed.
MOST_REQUESTS = 2_000_000


def lower_bound(case: FleetCase) -> dict[str, Any]:
    """As plain JSON. Raises CannotPredict where no number of replicas meets the objective."""
    static = fewest_static(case, case.quantile)
    if static is None:
        text = "no number of replicas meets the objective: a request misses it also where it has a replica to itself"
        raise CannotPredict("NEVER_MET", text)
    case = replace(case, replicas=static, most=max(static, 1) + SPARE)
    played, least = clairvoyant_and_bound(case, case.quantile)
    hours = case.duration_s / HOUR
    return {
        "share_in_time": case.quantile,
        "hours": hours,
        "cold_start_s": case.cold_start_s,
        "least_replica_hours": least / HOUR,
        "clairvoyant": {
            "replica_hours": played.replica_s / HOUR,
            "share_in_time": float(in_time(case, played).mean()),
            "replicas_mean": played.replica_s / case.duration_s,
            "replicas_most": max(n for _, n in played.ready),
            "changes": len(played.actions),
            "ready": [{"at_s": at, "replicas": n} for at, n in played.ready],
        },
        "constant": {"replicas": static, "replica_hours": static * hours},
    }


def of_trace(tried: Candidate, traffic: ReplayTraffic, cold_start_s: float) -> dict[str, Any]:
    """Of a trace on an engine file. Raises BadQuestion where it is no engine, CannotPredict."""
    system = tried.system
    if not isinstance(system, Engines):
        raise BadQuestion(f"--lower-bound: {tried.name} is no engine whose replicas could be counted")
    work = traffic.workload
    ensemble = system.ensemble
    model, overhead_s = system.model, 0.0
    if ensemble is not None:
        model = ensemble.best_model
        overhead_s = ensemble.draws[0].overhead_s
    made = case_of(
        tried.name,
        work,
        max(work.duration_s, 1.0),
        model,
        traffic.objective,
        overhead_s=overhead_s,
        cold_start_s=cold_start_s,
    )
    return lower_bound(made)


def of_endpoint(store: Store, settings: Settings, found: Telemetry, on: Question) -> dict[str, Any]:
    """Of an endpoint's own traffic on the shape that it has. Raises BadQuestion where it is no engine, CannotPredict."""
    if not isinstance(on.calibrated, CalibratedEngine):
        raise BadQuestion(f"--lower-bound: {found.endpoint} is no engine whose replicas could be counted")
    one = found.shape.with_(replicas=1, autoscaling=None)
    ensemble = Ensemble.of(one, on.calibrated, found.shape, found.catalogue.hardware)
    with store.read() as db:
        cold_start_s = replica_start_s(db, settings.endpoint(found.endpoint))
    work = _whole(found.windows, settings.decide.seed)
    return lower_bound(
        case_of(
            found.endpoint,
            work,
            max(work.duration_s, 1.0),
            ensemble.best_model,
            on.basis.objective,
            overhead_s=ensemble.draws[0].overhead_s,
            cold_start_s=cold_start_s,
        )
    )


def _whole(windows: Sequence[Window], seed: int) -> Workload:
    """Every request of the newest windows, as far back as so many can be replayed: a sample would have another day's course."""
    kept: list[Window] = []
    requests = 0.0
    for window in reversed(windows):
        requests += window.count("requests") or 0.0
        if kept and requests > MOST_REQUESTS:
            break
        kept.append(window)
    return workload_from_windows(kept[::-1], seed=seed, max_requests=2 * MOST_REQUESTS)
