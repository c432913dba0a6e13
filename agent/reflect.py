"""Reflect: loads the evidence of one endpoint, has it analyzed, and keeps what came of it.

The thinking is in ``analyzers``; here are time, storage and order: what was said before, what a person said to that, what is
under way, and whether the same advice has come often enough in a row to be given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from actuators.base import ActuatorError, Live
from actuators.shape import Plan, Shape
from agent.metrics import Metrics
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, fleet, recommendations, tunes, windows
from agent.watch import Watched
from agent.wiring import policy_of
from analyzers.finding import Finding
from analyzers.findings import Situation, analyze
from analyzers.objective import attainment
from analyzers.prediction import CannotPredict, Prediction
from analyzers.recommend import Decision, Predict, recommend, request
from analyzers.recommendation import Recommendation
from analyzers.whatif.calibrate import Calibrated, calibrate, calibration_key
from analyzers.whatif.predict import predict
from analyzers.whatif.traffic import workload_from_windows
from collectors.clock import Clock
from collectors.workload import Workload

log = structlog.get_logger()

#: Advice that a person rejected is not given again for so long.
REJECTED_S = 7 * 86_400.0
#: So many windows must have passed since a change before anything is concluded from them.
SETTLING_WINDOWS = 5
#: A calibration is made again after so long, or when there is this many times the evidence.
REFIT_S, REFIT_GROWTH = 3600.0, 1.25
#: Figures that moved by this share make a new revision, and a new message.
MOVED = 0.2


@dataclass(slots=True)
class _Streak:
    """How often in a row an endpoint's analysis came to the same advice."""

    fingerprint: str | None = None
    length: int = 0

    def seen(self, fingerprint: str | None) -> int:
        self.length = self.length + 1 if fingerprint == self.fingerprint else 1
        self.fingerprint = fingerprint
        return self.length


@dataclass(frozen=True, slots=True)
class _Fit:
    """A calibration, when it was made, and of how many windows."""

    calibrated: Calibrated
    at: float
    windows: int


class Reflector:
    """The reflecting part of the loop."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._streaks: dict[str, _Streak] = {}
        self._fits: dict[str, _Fit] = {}

    async def cycle(self, watched: Watched) -> Decision | None:
        """Analyze one endpoint once. None while its system does not say what is live."""
        endpoint = watched.settings
        live = watched.live
        if live is None:
            return None
        now = self._clock.now()
        situation = await asyncio.to_thread(self._load, endpoint, live, watched.price_per_hour, now)
        findings, decision = await asyncio.to_thread(self._think, watched, situation)
        self._measure(endpoint, situation, findings, decision)
        await asyncio.to_thread(self._keep_findings, endpoint, findings, now)
        await self._advise(watched, live, decision, now)
        return decision

    async def request(self, watched: Watched, wanted: Shape, by: str) -> str:
        """Make a recommendation of what a person asks for; returns its id. Raises ValueError where it breaks a guardrail."""
        endpoint, live, now = watched.settings, watched.live, self._clock.now()
        if live is None:
            raise ValueError(f"{endpoint.name}: its system does not say what is live; see `flyball status`")
        situation = await asyncio.to_thread(self._load, endpoint, live, watched.price_per_hour, now)
        predictor = await asyncio.to_thread(self._predictor, watched, situation)
        advice = await asyncio.to_thread(request, situation, wanted, watched.catalogue, predictor, by)
        plan = await watched.actuator.plan(live, advice.proposed.shape)
        return await asyncio.to_thread(self._insert, advice, plan, now, by)

    # -- evidence ------------------------------------------------------------------------------------------------------

    def _load(self, endpoint: EndpointSettings, live: Live, per_hour: float | None, now: float) -> Situation:
        """The evidence since the last change (and its warm-up), at most ``evidence_s`` of it."""
        source = next(iter(endpoint.sources))
        width = self._settings.collect.window_s
        end = now // width * width
        start, settling = end - endpoint.policy.evidence_s, False
        with self._store.write() as db:
            fleet.saw_shape(
                db,
                endpoint.name,
                {
                    "shape": live.shape.as_dict(),
                    "shape_version": live.version,
                    "ready": live.ready,
                    "detail": live.detail,
                    "seen_at": now,
                    "price_per_hour": per_hour,
                },
            )
            known = fleet.get(db, endpoint.name)
            if known is not None and known["last_change_at"] is not None:
                settled = -(-(known["last_change_at"] + endpoint.verify.warmup_s) // width) * width
                settling = settled > start and end - settled < SETTLING_WINDOWS * width
                start = max(start, settled)
            rows = windows.load(db, endpoint.name, source, start, end, width) if end > start else []
        return Situation(
            endpoint.name,
            source,
            rows,
            start,
            max(end, start + width),
            endpoint.wanted(),
            policy_of(endpoint),
            live.shape,
            per_hour,
            settling,
        )

    def _think(self, watched: Watched, situation: Situation) -> tuple[list[Finding], Decision]:
        findings = analyze(situation)
        if any(f.kind == "insufficient_data" for f in findings):
            return findings, Decision(None, tuple(f.reason for f in findings if f.kind == "insufficient_data"))
        predictor = self._predictor(watched, situation)
        return findings, recommend(situation, findings, watched.catalogue, predictor)

    def _predictor(self, watched: Watched, situation: Situation) -> Predict:
        """The what-if engine, calibrated on this evidence, behind one call. A refusal comes at the call."""
        with self._store.read() as db:
            error = changes.measured_error(db, situation.endpoint)
        try:
            calibrated = self._calibrate(watched, situation)
        except CannotPredict as refused:
            return _refusing(refused)
        workloads: dict[float, Workload] = {}

        def predictor(shape: Shape, factor: float) -> Prediction:
            if factor not in workloads:
                workloads[factor] = workload_from_windows(
                    situation.windows, seed=self._settings.decide.seed, scale=factor
                )
            return predict(
                shape,
                workloads[factor],
                calibrated,
                objective=situation.objective,
                base_shape=situation.shape,
                hardware=watched.catalogue.hardware,
                error=error,
            )

        return predictor

    def _calibrate(self, watched: Watched, situation: Situation) -> Calibrated:
        """The calibration for this evidence: fitted again once there is clearly more of it, or when it is of another shape."""
        name, n = situation.endpoint, len(situation.windows)
        facts = situation.windows[-1].facts if situation.windows else {}
        key = calibration_key(facts, situation.shape)
        fit = self._fits.get(name)
        fresh = fit is not None and self._clock.now() - fit.at < REFIT_S and n <= fit.windows * REFIT_GROWTH
        if fit is not None and fresh and fit.calibrated.key == key:
            return fit.calibrated
        accelerator = situation.shape.accelerator
        hardware = watched.catalogue.hardware.get(accelerator) if accelerator is not None else None
        calibrated = calibrate(situation.windows, situation.shape, prior=None, hardware=hardware)
        self._fits[name] = _Fit(calibrated, self._clock.now(), n)
        with self._store.write() as db:
            fleet.keep_calibration(db, name, key=calibrated.key, now=self._clock.now(), body=calibrated.as_dict())
        return calibrated

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _measure(
        self, endpoint: EndpointSettings, s: Situation, findings: Sequence[Finding], decision: Decision
    ) -> None:
        name = endpoint.name
        for kind in ("breach", "trend", "saturation", "idle", "insufficient_data"):
            self._metrics.findings.labels(name, kind).set(sum(f.kind == kind for f in findings))
        for target in s.objective.targets:
            observed = attainment(s.windows, target).observed
            if observed is not None:
                self._metrics.attainment.labels(name, target.name).set(observed / target.limit)
        said = (
            decision.recommendation.direction
            if decision.recommendation
            else (decision.hold[0].code if decision.hold else "hold")
        )
        self._metrics.decisions.labels(name, said).inc()
        log.info("analyzed", endpoint=name, decision=said, findings=[f.reason.code for f in findings])

    def _keep_findings(self, endpoint: EndpointSettings, findings: Sequence[Finding], now: float) -> None:
        with self._store.write() as db:
            for finding in fleet.found(db, endpoint.name, findings, now):
                log.info("finding", endpoint=endpoint.name, code=finding.reason.code, text=finding.reason.text)

    async def _advise(self, watched: Watched, live: Live, decision: Decision, now: float) -> None:
        endpoint = watched.settings
        advice = decision.recommendation
        lacking = advice is None and any(r.code in _UNDECIDED for r in decision.hold)
        if lacking:  # not knowing is no advice, and withdraws none
            return
        streak = self._streaks.setdefault(endpoint.name, _Streak())
        if streak.seen(advice.fingerprint if advice else None) < endpoint.policy.stable_cycles:
            return
        if advice is None:
            await asyncio.to_thread(self._withdraw, endpoint.name, None, now)
            return
        refused = await asyncio.to_thread(self._held_back, endpoint, advice, now)
        if refused:
            log.info("advice_held_back", endpoint=endpoint.name, why=refused)
            return
        try:
            plan: Plan | None = await watched.actuator.plan(live, advice.proposed.shape)
        except ActuatorError as error:
            log.info("no_plan", endpoint=endpoint.name, code=error.code, why=error.detail)
            plan = None
        await asyncio.to_thread(self._propose, endpoint, advice, plan, now)

    def _held_back(self, endpoint: EndpointSettings, advice: Recommendation, now: float) -> str | None:
        """Why advice is not given now; None when it is."""
        with self._store.read() as db:
            state = fleet.get(db, endpoint.name)
            if changes.listed(
                db, endpoint=endpoint.name, states=("applying", "warming", "verifying", "rolling_back"), limit=1
            ):
                return "a change is under way"
            if tunes.running(db, endpoint.name) is not None:
                return "a tune is under way"
            if state is not None and state["frozen_because"]:
                return f"frozen: {state['frozen_because']}"
            if (
                state is not None
                and state["last_change_at"]
                and now < state["last_change_at"] + endpoint.policy.cooldown_s
            ):
                return "cooling down after the last change"
            for row in recommendations.listed(
                db, endpoint=endpoint.name, states=("rejected", "approved", "applying"), limit=20
            ):
                if row["state"] != "rejected":
                    return "one is approved and waits to be applied"
                if row["fingerprint"] == advice.fingerprint and now < (row["decided_at"] or 0.0) + REJECTED_S:
                    return f"rejected by {row['state_by']}"
        return None

    def _propose(self, endpoint: EndpointSettings, advice: Recommendation, plan: Plan | None, now: float) -> None:
        with self._store.read() as db:
            open_rows = recommendations.listed(db, endpoint=endpoint.name, states=recommendations.OPEN)
        same = next((r for r in open_rows if r["fingerprint"] == advice.fingerprint), None)
        self._withdraw(endpoint.name, same["id"] if same else None, now)
        self._metrics.saving.labels(endpoint.name).set(advice.saving_per_month or 0.0)
        if same is None:
            self._insert(advice, plan, now, "flyball")
            return
        if not _moved(same, advice, plan):
            return
        with self._store.write() as db:
            values = _figures(advice, plan) | {"expires_at": now + endpoint.policy.expires_s}
            recommendations.refresh(db, same["id"], revision=same["revision"], now=now, values=values)

    def _insert(self, advice: Recommendation, plan: Plan | None, now: float, by: str) -> str:
        endpoint = self._settings.endpoint(advice.endpoint)
        identity = recommendations.new_id()
        auto = endpoint.mode == "auto" and advice.direction in endpoint.policy.auto and advice.risk != "high"
        row = {
            "id": identity,
            "endpoint": advice.endpoint,
            "fingerprint": advice.fingerprint,
            "revision": 1,
            "state": "proposed",
            "state_reason": "",
            "state_by": by,
            "requested_by": by,
            "created_at": now,
            "refreshed_at": now,
            "expires_at": now + endpoint.policy.expires_s,
            "snoozed_until": None,
            "decided_at": None,
            **_figures(advice, plan),
        }
        with self._store.write() as db:
            if by != "flyball":
                self._supersede_others(db, advice.endpoint, now)
            recommendations.insert(db, row)
            if auto and plan is not None and by == "flyball":
                reason = f"auto policy allows {advice.direction}"
                recommendations.move(
                    db,
                    identity,
                    from_states=["proposed"],
                    to="approved",
                    now=now,
                    by="policy",
                    reason=reason,
                    decided_at=now,
                )
        log.info(
            "recommended", endpoint=advice.endpoint, id=identity, proposed=advice.proposed.shape.label(), auto=auto
        )
        return identity

    def _supersede_others(self, db: sa.Connection, endpoint: str, now: float) -> None:
        for row in recommendations.listed(db, endpoint=endpoint, states=recommendations.OPEN):
            recommendations.move(
                db,
                row["id"],
                from_states=recommendations.OPEN,
                to="superseded",
                now=now,
                by="flyball",
                reason="a person asked for another change",
            )

    def _withdraw(self, endpoint: str, keep: str | None, now: float) -> None:
        """Supersede the endpoint's other open advice that Flyball itself gave."""
        with self._store.write() as db:
            for row in recommendations.listed(db, endpoint=endpoint, states=recommendations.OPEN):
                if row["id"] != keep and row["requested_by"] == "flyball":
                    reason = "the evidence now calls for something else" if keep else "no longer called for"
                    recommendations.move(
                        db,
                        row["id"],
                        from_states=recommendations.OPEN,
                        to="superseded",
                        now=now,
                        by="flyball",
                        reason=reason,
                    )


_UNDECIDED = frozenset(
    (
        "SETTLING",
        "NO_DATA",
        "STALE",
        "LOW_COVERAGE",
        "UNKNOWN_REQUESTS",
        "FEW_REQUESTS",
        "UNKNOWN_METRIC",
        "UNKNOWN_SHAPE",
        "NO_EVIDENCE",
    )
)


def _refusing(error: CannotPredict) -> Callable[[Shape, float], Prediction]:
    def refuse(_shape: Shape, _factor: float) -> Prediction:
        raise error

    return refuse


def _figures(advice: Recommendation, plan: Plan | None) -> dict[str, object]:
    return {
        "plan": plan.as_dict() if plan else {},
        "plan_hash": plan.hash if plan else "",
        "body": advice.as_dict(),
        "saving_per_month": advice.saving_per_month,
    }


def _moved(row: recommendations.Row, advice: Recommendation, plan: Plan | None) -> bool:
    """Whether a person would want to look again."""
    if row["plan_hash"] != (plan.hash if plan else ""):
        return True
    before, after = row["body"]["proposed"]["prediction"], advice.proposed.prediction
    if before is None or after is None:
        return (before is None) != (after is None)
    for metric, interval in after.metrics.items():
        then = before["metrics"].get(metric)
        if (
            then is not None
            and metric.endswith("_s")
            and then["mid"] > 0
            and abs(interval.mid / then["mid"] - 1) > MOVED
        ):
            return True
    return False
