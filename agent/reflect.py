"""Reflect: loads the evidence of one endpoint, has it analyzed, and keeps what came of it.

The thinking is in ``analyzers``; here are time, storage and order: what was said before, what a person said to that, what is
under way, and whether the same advice has come often enough in a row to be given.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import sqlalchemy as sa
import structlog
from opentelemetry.trace import Tracer

from actuators.base import ActuatorError, LiveState
from actuators.none import ReadOnlyActuator
from actuators.shape import Plan, Shape
from agent import events, recorder
from agent.cases import guardrails_of, obstacle_of
from agent.horizon import Horizons
from agent.metrics import Metrics
from agent.references import NoReference, References
from agent.schedules import BREACH_HELD_S, HELD_S, plan_of
from agent.seasons import Seasons
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, control, fleet, recommendations, schedules, windows
from agent.store.control import Lead, LostLease
from agent.store.evidence import judged
from agent.watch import WatchedEndpoint
from agent.wiring import policy_of
from analyzers.finding import Finding, Reason
from analyzers.finding import Kind as FindingKind
from analyzers.findings import EVENT_S, analyze
from analyzers.guardrails import BY_POLICY, OWN, auto_approves
from analyzers.kinds.base import Basis, Calibration, Kind, Replayer
from analyzers.kinds.registry import KINDS
from analyzers.objective import attainment, total
from analyzers.path import Capacities
from analyzers.policy import Catalogue
from analyzers.prediction import CannotPredict, Predictor, Refusal
from analyzers.premortem import Premortem
from analyzers.recommend import (
    BLIND,
    QUIET,
    Decision,
    ScheduleHold,
    at_rest,
    before_the_load,
    premortem_of,
    recommend,
    request,
)
from analyzers.recommendation import Recommendation
from analyzers.reference import CalibratedEndpoint, ReferenceComparison, compare, with_causes
from analyzers.situation import Situation
from analyzers.turning import turning_points
from collectors.clock import Clock
from collectors.workload import Workload

log = structlog.get_logger()

#: Opens the transaction that something is written in: a leader's, who is refused once he is deposed, or a person's.
_Write = Callable[[], AbstractContextManager[sa.Connection]]

#: Advice that a person rejected is not given again for so long.
REJECTED_S = 7 * 86_400.0
#: So many windows must have passed since a change before anything is concluded from them.
SETTLING_WINDOWS = 5
#: A window is closed by the first reading after it: for so many intervals it may still be on its way, and lacks nothing.
WINDOW_LATE = 2.0
#: A calibration is made again after so long, or when there is this many times the evidence: it is the engine's, which its key names,
#: and not the load's. Sooner where what is observed does not agree with it.
REFIT_S, DOUBTED_S, REFIT_GROWTH = 6 * 3600.0, 3600.0, 1.25
#: Where the load is less than this share of what a calibration has seen, it is kept for so long: idle hours tell less than busy ones.
IDLE_SHARE, IDLE_REFIT_S = 0.5, 7 * 86_400.0
#: One endpoint's analysis, a fit included, ends within this; what hangs is left alone.
ANALYSIS_S = 120.0
#: A control plane that makes no plan within this makes none in this cycle.
PLAN_S = 60.0
#: More analyses than this that hang for ever leave none for the others.
MOST_THREADS = 64
#: Of an endpoint without enough requests in its span, so long is looked back.
REST_S = 7 * 86_400.0
#: Figures that moved by this share make a new revision, and a new message; but only once in the span that they are taken over.
MOVED = 0.2
#: In these states of a change engines of both shapes may run.
_TWO_SHAPES = ("applying", "rolling_back")


@dataclass(slots=True)
class _Streak:
    """How often in a row an endpoint's analysis came to the same advice."""

    fingerprint: str | None = None
    length: int = 0

    def seen(self, fingerprint: str | None) -> None:
        self.length = self.length + 1 if fingerprint == self.fingerprint else 1
        self.fingerprint = fingerprint


@dataclass(slots=True)
class _Fit:
    """A calibration, when it was made, of how many windows, and whether what is observed agrees with it."""

    calibrated: Calibration
    at: float
    windows: int
    doubted: bool = False

    def holds(self, key: str, now: float, windows: int, load: float | None) -> bool:
        """Whether it still serves: of the same engine, not much less than is known now, and not old where there is doubt.

        load: requests in one replica now, on average. Idle hours do not take the place of the busy one that it was learned from.
        """
        idle = load is not None and load < IDLE_SHARE * self.calibrated.load[1]
        lasts = DOUBTED_S if self.doubted else IDLE_REFIT_S if idle else REFIT_S
        return self.calibrated.key == key and now - self.at < lasts and windows <= self.windows * REFIT_GROWTH


@dataclass(frozen=True, slots=True)
class _KnownCapacities:
    """What replicas carry, and what it holds for."""

    fit: _Fit | None
    busiest: float
    """Start of the hour whose traffic was replayed."""
    shape: str
    """But for its replicas."""
    capacities: Capacities = field(default_factory=Capacities)
    premortems: dict[str, Premortem] = field(default_factory=dict)
    turning: dict[str, tuple[Reason, ...]] = field(default_factory=dict)
    """Both by the advice's fingerprint."""


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What one analysis rests on. The same evidence gives the same decision."""

    situation: Situation
    error: Mapping[str, float]
    """The ledger's, by metric."""

    def key(self) -> tuple[object, ...]:
        """Equal for equal evidence of one endpoint. Its policy, objective and prices are those of this Reflector's settings."""
        s = self.situation
        seen = tuple((w.start, w.coverage, w.count("requests")) for w in s.windows)
        return (
            s.start,
            s.end,
            s.settling,
            s.changing,
            repr(s.shape),
            s.per_hour,
            seen,
            id(s.horizon),  # the same object as long as it is the same load to come
            tuple(s.events),
            tuple(sorted(self.error.items())),
        )


@dataclass(frozen=True, slots=True)
class _KnownComparison:
    """An endpoint beside its reference, and which calibrations of both it rests on."""

    at: float
    own: Calibration
    reference: Calibration
    comparison: ReferenceComparison


@dataclass(frozen=True, slots=True)
class _ReferenceView:
    """An endpoint's reference, as it is now, and how the two stand."""

    known: _KnownComparison
    reference: CalibratedEndpoint
    codes: frozenset[str]
    """Of what is found at the reference itself."""

    def applied(
        self, findings: list[Finding], decision: Decision, s: Situation, seed: int
    ) -> tuple[list[Finding], Decision]:
        """Whose each finding is, and what a recommendation says of it."""
        advice, comparison = decision.recommendation, self.known.comparison
        if advice is not None:
            decision = replace(decision, recommendation=replace(advice, reference=comparison))
        if any(f.kind == "insufficient_data" for f in findings):
            return findings, decision
        return with_causes(findings, s, self.reference, comparison, self.codes, seed), decision


@dataclass(frozen=True, slots=True)
class _Analysis:
    """What came of it."""

    key: tuple[object, ...]
    findings: list[Finding]
    decision: Decision
    attained: Mapping[str, float]
    """Observed over limit, by target."""


class Reflector:
    """The reflecting part of the loop. Thinking is done in threads, as many at once as there are cores."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, metrics: Metrics, tracer: Tracer) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._tracer = tracer
        self._streaks: dict[str, _Streak] = {}
        self._fits: dict[str, _Fit] = {}
        self._analyses: dict[str, _Analysis] = {}
        self._hung: dict[str, asyncio.Future[_Analysis]] = {}
        self._horizons = Horizons(settings, store)
        self._references = References(settings, store)
        self._upgrades = events.UpgradeGuard(settings, store)
        self._seasons = Seasons(settings, store)
        self._comparisons: dict[str, _KnownComparison] = {}
        self._capacities: dict[str, _KnownCapacities] = {}
        self._under_way: set[str] = set()
        self._read_until: dict[str, float | None] = {}
        """The newest window that was saved when each was analyzed last."""
        self._threads = ThreadPoolExecutor(MOST_THREADS, "reflect")
        self._at_once = max(1, os.cpu_count() or 1)

    async def cycle_all(
        self, endpoints: Iterable[WatchedEndpoint], lead: Lead, *, moved: Callable[[], None] = lambda: None
    ) -> None:
        """Analyze each endpoint once. What one raises, or how long it hangs, costs the others nothing.

        Nothing is kept where ``lead`` is no longer the truth. moved: called after each endpoint that was analyzed.
        """
        seats = asyncio.Semaphore(self._at_once)

        async def one(watched: WatchedEndpoint) -> None:
            async with seats:
                if await self._guarded(watched, lead):
                    moved()

        await asyncio.gather(*(one(watched) for watched in endpoints))

    def awaiting(self, endpoints: Iterable[WatchedEndpoint]) -> list[WatchedEndpoint]:
        """Those that were not judged yet since this began, for want of evidence too, and have a window that was not looked at.

        One of an earlier daemon's counts as well. Reads the store.
        """
        found = [watched for watched in endpoints if watched.live is not None and not self._judged(watched)]
        new = [watched for watched in found if watched.saved_until is None]
        width = self._settings.collect.window_s
        with self._store.read() as db:
            stored = {w.settings.name for w in new if windows.begun(db, w.settings.name, width) is not None}
        return [w for w in found if w.saved_until is not None or w.settings.name in stored]

    def _judged(self, watched: WatchedEndpoint) -> bool:
        name, last = watched.settings.name, self._analyses.get(watched.settings.name)
        enough = last is not None and all(f.kind != "insufficient_data" for f in last.findings)
        return enough or (name in self._read_until and self._read_until[name] == watched.saved_until)

    async def _guarded(self, watched: WatchedEndpoint, lead: Lead) -> bool:
        """Whether it was analyzed."""
        name = watched.settings.name
        if name in self._under_way:
            return False
        self._under_way.add(name)
        try:
            return await self._alone(watched, lead)
        finally:
            self._under_way.discard(name)

    async def _alone(self, watched: WatchedEndpoint, lead: Lead) -> bool:
        name = watched.settings.name
        structlog.contextvars.bind_contextvars(endpoint=name)  # of this endpoint's task alone
        with self._tracer.start_as_current_span("analyze", attributes={"flyball.endpoint": name}) as span:
            try:
                decision = await self.cycle(watched, lead)
            except LostLease as error:
                log.warning("deposed", why=str(error))
                return False
            except Exception as error:  # the boundary around an endpoint: counted, and the next cycle tries again
                self._metrics.analysis_errors.labels(name, type(error).__name__).inc()
                log.exception("analysis_failed")
                return False
            if decision is not None and decision.recommendation is not None:
                span.set_attribute("flyball.direction", decision.recommendation.direction)
        return True

    async def cycle(self, watched: WatchedEndpoint, lead: Lead) -> Decision | None:
        """Analyze one endpoint once. None while its system does not say what is live.

        Raises TimeoutError where it takes longer than ``ANALYSIS_S``, and for as long as that analysis has not ended; LostLease.
        """
        endpoint, live = watched.settings, watched.live
        if live is None:
            return None
        now, before = self._clock.now(), self._analyses.get(endpoint.name)
        self._read_until[endpoint.name] = watched.saved_until
        write = partial(control.leading, self._store, lead)
        analysis = await self._thought(endpoint.name, partial(self._analyze, watched, live, now, write))
        fresh = analysis is not before
        if fresh and analysis.decision.schedule_hold is not None:
            await asyncio.to_thread(self._hold_schedule, endpoint.name, analysis.decision.schedule_hold, now, write)
        if fresh:
            self._measure(endpoint, analysis)
        held = await self._advise(watched, live, analysis.decision, now, write, fresh=fresh)
        await asyncio.to_thread(self._stand, endpoint, analysis, held, now, write)
        return analysis.decision

    async def _thought(self, name: str, work: Callable[[], _Analysis]) -> _Analysis:
        """``work`` in a thread of ours. A thread cannot be stopped: one that hangs keeps its endpoint from being analyzed again."""
        hung = self._hung.get(name)
        if hung is not None and not hung.done():
            raise TimeoutError("an earlier analysis has not ended yet")
        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)
        try:
            return await asyncio.wait_for(asyncio.shield(running), ANALYSIS_S)
        except TimeoutError:
            running.add_done_callback(lambda late: late.cancelled() or late.exception())  # nobody waits for it any more
            self._hung[name] = running
            raise TimeoutError(f"the analysis took longer than {ANALYSIS_S:.0f} s") from None

    async def request(self, watched: WatchedEndpoint, wanted: Shape, by: str) -> str:
        """Make a recommendation of what a person asks for; returns its id.

        Raises ValueError where it breaks a guardrail, ActuatorError where no plan leads there, TimeoutError where the plan is long in coming.
        """
        endpoint, live, now = watched.settings, watched.live, self._clock.now()
        if live is None:
            raise ValueError(f"{endpoint.name}: its system does not say what is live; see `flyball status`")

        def advise() -> Recommendation:
            with self._store.write() as db:
                _keep_shape(db, endpoint.name, live, watched.price_per_hour, now)
            found = self._evidence(watched, live, now)
            predictor = self._predictor(watched, found, now, self._store.write)
            catalogue = _with_spill(watched.catalogue, predictor)
            made = request(found.situation, wanted, catalogue, predictor, by)
            beside = self._beside_reference(watched, found, now, self._store.write)
            comparison = beside.known.comparison if isinstance(beside, _ReferenceView) else None
            tried = premortem_of(made, found.situation, catalogue, predictor)
            turning = turning_points(made, found.situation, catalogue, predictor)
            return replace(made, premortem=tried, turning=turning, reference=comparison)

        advice = await asyncio.to_thread(advise)
        plan = await asyncio.wait_for(self._plan(watched, live, advice), PLAN_S)
        return await asyncio.to_thread(self._insert, advice, plan, now, self._settings.identity(by), self._store.write)

    # -- evidence ------------------------------------------------------------------------------------------------------

    def _analyze(self, watched: WatchedEndpoint, live: LiveState, now: float, write: _Write) -> _Analysis:
        """From the evidence to the decision; the last one where the evidence has not changed."""
        endpoint = watched.settings
        found = self._evidence(watched, live, now)
        key, before = found.key(), self._analyses.get(endpoint.name)
        if before is not None and before.key == key:
            return before
        findings, decision = self._think(watched, found, now, write)
        upgraded = self._upgrades.found(endpoint, found.situation, now)
        findings = [
            *findings,
            *([] if upgraded is None else [upgraded]),
            *self._seasons.found(endpoint, found.situation, now),
        ]
        beside = self._beside_reference(watched, found, now, write)
        if isinstance(beside, _ReferenceView):
            findings, decision = beside.applied(findings, decision, found.situation, self._settings.decide.seed)
        self._keep(endpoint, live, watched.price_per_hour, found.situation, findings, beside, now, write)
        analysis = self._analyses[endpoint.name] = _Analysis(key, findings, decision, _attained(found.situation))
        return analysis

    def _evidence(self, watched: WatchedEndpoint, live: LiveState, now: float) -> _Evidence:
        """The evidence since the last change (and its warm-up), at most ``evidence_s`` of it."""
        endpoint = watched.settings
        width = self._settings.collect.window_s
        end = (now - watched.settles_s) // width * width
        start, settling = end - endpoint.policy.evidence_s, False
        with self._store.read() as db:
            begun = windows.begun(db, endpoint.name, width)
            start = max(start, begun) if begun is not None else start
            known = fleet.get(db, endpoint.name)
            if known is not None and known["last_change_at"] is not None:
                settled = -(-(known["last_change_at"] + endpoint.verify.warmup_s) // width) * width
                settling = settled > start and end - settled < SETTLING_WINDOWS * width
                start = max(start, settled)
            first = start // width * width
            rows = judged(db, endpoint.name, endpoint.sources, first, end, width) if end > first else []
            few = (total(rows, "requests") or 0.0) < endpoint.policy.min_requests
            longer = judged(db, endpoint.name, endpoint.sources, end - REST_S, end, windows.ROLLUPS[-1]) if few else []
            error = changes.measured_error(db, endpoint.name)
            standing = schedules.of(db, endpoint.name)
            change = changes.active_of(db, endpoint.name)
            happened = events.known(db, endpoint.name, start - EVENT_S)
        coming = now - watched.settles_s - end < WINDOW_LATE * self._settings.collect.interval_s
        part = len(rows) > 1 and rows[-1].coverage < endpoint.policy.min_coverage  # what one before a restart had of it
        if coming and rows and (rows[-1].end < end or part):
            end -= width
            rows = [w for w in rows if w.end <= end]
        changed_at = known["last_change_at"] if known is not None else None
        situation = Situation(
            endpoint.name,
            rows[-1].source if rows else " or ".join(endpoint.sources),
            rows,
            start,
            max(end, first + width),
            endpoint.wanted(),
            policy_of(endpoint),
            live.shape if standing is None else live.shape.with_(schedule=standing.schedule),
            watched.price_per_hour,
            lag_s=watched.lag_s,
            settling=settling,
            changing=change is not None and change["state"] in _TWO_SHAPES,
            wanted_s=endpoint.policy.evidence_s,
            longer=longer,
            horizon=self._horizons.of(endpoint, end, changed_at),
            model=endpoint.model,
            events=happened,
            by_platform=endpoint.kind == "serverless",
            stated=isinstance(watched.actuator, ReadOnlyActuator),
        )
        return _Evidence(situation, error)

    def _think(
        self, watched: WatchedEndpoint, found: _Evidence, now: float, write: _Write
    ) -> tuple[list[Finding], Decision]:
        situation = found.situation
        findings = analyze(situation)
        lacking = tuple(f.reason for f in findings if f.kind == "insufficient_data")
        schedule = situation.shape.schedule
        if schedule is not None and BLIND & {reason.code for reason in lacking}:
            return findings, Decision(None, lacking, schedule_hold=ScheduleHold(schedule.most, lacking[0]))
        if lacking:
            resting = at_rest(situation, findings, watched.catalogue)
            quiet = situation.horizon is not None and {reason.code for reason in lacking} <= QUIET
            if resting is not None or not quiet:
                return findings, resting or Decision(None, lacking)
        predictor = self._predictor(watched, found, now, write)
        catalogue = _with_spill(watched.catalogue, predictor)
        fit = self._fits.get(situation.endpoint)
        known = self._capacities_of(situation, fit)
        if lacking:
            coming = before_the_load(situation, findings, catalogue, predictor, known.capacities)
            return findings, coming or Decision(None, lacking)
        decision = recommend(situation, findings, catalogue, predictor, known.capacities)
        advice = decision.recommendation
        if advice is not None:
            if advice.fingerprint not in known.premortems:
                tried = premortem_of(advice, situation, catalogue, predictor, known.capacities)
                known.premortems[advice.fingerprint] = tried
                known.turning[advice.fingerprint] = turning_points(advice, situation, catalogue, predictor)
            decision = replace(
                decision,
                recommendation=replace(
                    advice, premortem=known.premortems[advice.fingerprint], turning=known.turning[advice.fingerprint]
                ),
            )
        if fit is not None:
            fit.doubted |= any(reason.code == "MODEL_TOO_HOPEFUL" for reason in decision.hold)
        return findings, decision

    def _beside_reference(
        self, watched: WatchedEndpoint, found: _Evidence, now: float, write: _Write
    ) -> _ReferenceView | str | None:
        """How the endpoint stands beside its reference, or what it would take to know. None: it is a reference itself."""
        if watched.settings.role != "production":
            return None
        try:
            known, reference = self._compared(watched, found, now, write)
        except NoReference as lacking:
            return str(lacking)
        except CannotPredict as refused:
            return refused.detail
        return _ReferenceView(known, reference, self._references.codes(reference.name))

    def _compared(
        self, watched: WatchedEndpoint, found: _Evidence, now: float, write: _Write
    ) -> tuple[_KnownComparison, CalibratedEndpoint]:
        """Raises NoReference, CannotPredict. Made anew with each calibration, and where it is as old as one may be."""
        endpoint, s = watched.settings, found.situation
        model = endpoint.model or (s.windows[-1].facts.get("model") if s.windows else None)
        reference = self._references.of(endpoint, model, s.objective, now, write)
        fit = self._fits.get(endpoint.name)
        if fit is None:
            raise NoReference(f"nothing is known of {endpoint.name}'s own engine yet")
        known = self._comparisons.get(endpoint.name)
        fits = None if known is None else (known.own, known.reference)
        if known is None or fits != (fit.calibrated, reference.calibrated) or now - known.at >= REFIT_S:
            price = watched.catalogue.per_replica_hour(s.shape)
            basis = Basis(s.shape, s.objective, watched.catalogue, found.error)
            own = CalibratedEndpoint(endpoint.name, KINDS[endpoint.kind], fit.calibrated, basis, price)
            replicas = max(1, round(s.serving(s.shape) or 1.0))
            made = compare(own, reference, s, replicas, self._settings.decide.seed)
            known = _KnownComparison(now, fit.calibrated, reference.calibrated, made)
            self._comparisons[endpoint.name] = known
        return known, reference

    def _capacities_of(self, s: Situation, fit: _Fit | None) -> _KnownCapacities:
        """What was learned of replicas under this fit and this busiest hour, whose replays need no repeating."""
        busiest = s.horizon.windows[0].start if s.horizon is not None else 0.0
        known = self._capacities.get(s.endpoint)
        shape = repr(s.shape.with_(replicas=None, schedule=None))
        if known is None or known.fit is not fit or (known.busiest, known.shape) != (busiest, shape):
            again = _KnownCapacities(fit, busiest, shape)
            if known is not None and known.shape == shape:  # days are not replayed again for each fit
                again.capacities.targets = known.capacities.targets
            known = self._capacities[s.endpoint] = again
        return known

    def _predictor(self, watched: WatchedEndpoint, found: _Evidence, now: float, write: _Write) -> Predictor:
        """The endpoint's kind, calibrated on this evidence."""
        s, kind = found.situation, KINDS[watched.settings.kind]
        with self._store.read() as db:
            together = recorder.lengths(db, s.endpoint, s.start, s.end)
            recorded = recorder.whole(db, s.endpoint, s.windows) if kind.bursts else None
        try:
            calibrated = self._calibrated(watched, kind, s, recorded, now, write)
        except CannotPredict as refused:
            return Refusal(refused)
        basis = Basis(s.shape, s.objective, watched.catalogue, found.error, lengths=together)
        return Replayer(kind, calibrated, s.windows, basis, self._settings.decide.seed, recorded=recorded)

    def _calibrated(
        self,
        watched: WatchedEndpoint,
        kind: Kind[Any],
        situation: Situation,
        recorded: Workload | None,
        now: float,
        write: _Write,
    ) -> Calibration:
        """The calibration for this evidence: the last one (also of the daemon before this one) while it holds, or a new one."""
        name, n = situation.endpoint, len(situation.windows)
        facts = situation.windows[-1].facts if situation.windows else {}
        key = kind.key(facts, situation.shape)
        fit = self._fits.get(name) or self._stored_fit(kind, name, key)
        if fit is None or not fit.holds(key, now, n, _load(situation)):
            accelerator = situation.shape.accelerator
            hardware = watched.catalogue.hardware.get(accelerator) if accelerator is not None else None
            fit = _Fit(kind.calibrate(situation.windows, situation.shape, hardware, recorded), now, n)
            with write() as db:
                fleet.keep_calibration(db, name, key=fit.calibrated.key, now=now, body=fit.calibrated.as_dict())
        self._fits[name] = fit
        return fit.calibrated

    def _stored_fit(self, kind: Kind[Any], name: str, key: str) -> _Fit | None:
        with self._store.read() as db:
            row = fleet.calibration(db, name, key)
        try:
            known = None if row is None else kind.read(row["body"])
        except (KeyError, TypeError, ValueError):  # an older Flyball's
            return None
        return None if known is None or row is None else _Fit(known, row["fitted_at"], known.windows)

    def _hold_schedule(self, name: str, hold: ScheduleHold, now: float, write: _Write) -> None:
        """More replicas than the schedule's, for a while: looked at anew in each analysis."""
        with write() as db:
            standing = schedules.of(db, name)
            if standing is None:
                return
            still = standing.held is not None and now < standing.held_until
            count = max(hold.replicas, standing.held or 0) if still else hold.replicas
            because = hold.reason.text
            held_s = BREACH_HELD_S if hold.reason.code == "SCHEDULE_TOO_SMALL" else HELD_S
            until = max(now + held_s, standing.held_until if still else 0.0)
            held = replace(standing, held=count, held_until=until, held_because=because)
            schedules.keep(db, name, held)
        log.info("schedule_held", endpoint=name, replicas=count, why=because)

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _measure(self, endpoint: EndpointSettings, analysis: _Analysis) -> None:
        name, findings, decision = endpoint.name, analysis.findings, analysis.decision
        for target, share in analysis.attained.items():
            self._metrics.attainment.labels(name, target).set(share)
        for kind in get_args(FindingKind):
            self._metrics.findings.labels(name, kind).set(sum(f.kind == kind for f in findings))
        said = (
            decision.recommendation.direction
            if decision.recommendation
            else (decision.hold[0].code if decision.hold else "hold")
        )
        self._metrics.decisions.labels(name, said).inc()
        log.info("analyzed", endpoint=name, decision=said, findings=[f.reason.code for f in findings])

    def _keep(
        self,
        endpoint: EndpointSettings,
        live: LiveState,
        per_hour: float | None,
        situation: Situation,
        findings: Sequence[Finding],
        beside: _ReferenceView | str | None,
        now: float,
        write: _Write,
    ) -> None:
        with write() as db:
            events.note(db, endpoint.name, live, per_hour, situation, now)
            _keep_shape(db, endpoint.name, live, per_hour, now)
            if isinstance(beside, str):
                fleet.lacks_comparison(db, endpoint.name, beside)
            elif beside is not None:
                fleet.compared(db, endpoint.name, beside.known.comparison.as_dict() | {"at": beside.known.at})
            for finding in fleet.found(db, endpoint.name, findings, now):
                log.info("finding", endpoint=endpoint.name, code=finding.reason.code, text=finding.reason.text)

    async def _advise(
        self, watched: WatchedEndpoint, live: LiveState, decision: Decision, now: float, write: _Write, *, fresh: bool
    ) -> str | None:
        """Give the advice once it has come often enough in a row; the same evidence once more does not count again.

        Returns why it is not given, where there is some.
        """
        endpoint = watched.settings
        advice = decision.recommendation
        lacking = advice is None and any(r.code in _UNDECIDED for r in decision.hold)
        if lacking:  # not knowing is no advice, and withdraws none
            return None
        streak = self._streaks.setdefault(endpoint.name, _Streak())
        if fresh:
            streak.seen(advice.fingerprint if advice else None)
        needed = endpoint.policy.stable_cycles
        if streak.length < needed:
            return f"seen in {streak.length} of the {needed} analyses in a row that it takes" if advice else None
        if advice is None:
            await asyncio.to_thread(self._withdraw, endpoint.name, None, now, write)
            return None
        refused = await asyncio.to_thread(self._held_back, endpoint, advice, now)
        if refused:
            log.info("advice_held_back", endpoint=endpoint.name, why=refused)
            return refused
        no_plan = None
        plan: Plan | None = None
        try:
            plan = await asyncio.wait_for(self._plan(watched, live, advice), PLAN_S)
        except ActuatorError as error:
            log.info("no_plan", endpoint=endpoint.name, code=error.code, why=error.detail)
            no_plan = f"no plan leads there: {error.detail}"
        except TimeoutError:
            no_plan = f"no plan within {PLAN_S:.0f} s"
            log.warning("no_plan", endpoint=endpoint.name, code="TIMED_OUT", why=no_plan)
        await asyncio.to_thread(self._propose, endpoint, advice, plan, now, write)
        return no_plan

    async def _plan(self, watched: WatchedEndpoint, live: LiveState, advice: Recommendation) -> Plan:
        """From the shape that it has, the schedule with it, to the proposed one. Raises ActuatorError."""
        before, after = advice.current.shape.schedule, advice.proposed.shape
        return await plan_of(watched.settings.name, watched.actuator, live, before, after)

    def _stand(
        self, endpoint: EndpointSettings, analysis: _Analysis, held: str | None, now: float, write: _Write
    ) -> None:
        """Keep how the endpoint stands, and tell people of what is new and bad: in every mode, proposal or none."""
        state, text = analysis.decision.standing(analysis.findings)
        reasons = analysis.decision.hold or (() if held is None else (Reason("HELD_BACK", held),))
        body = {
            "at": now,
            "state": state,
            "text": text if held is None else f"{text}; {held}",
            "reasons": [{"code": r.code, "text": r.text, "numbers": dict(r.numbers)} for r in reasons],
        }
        with write() as db:
            fleet.decided(db, endpoint.name, body)

    def _held_back(self, endpoint: EndpointSettings, advice: Recommendation, now: float) -> str | None:
        """Why advice is not given now; None when it is."""
        with self._store.read() as db:
            shapes, rails = (advice.current.shape, advice.proposed.shape), guardrails_of(self._settings, endpoint.name)
            stop = obstacle_of(db, rails, endpoint.name, shapes, now, "propose")
            if stop is not None:
                return stop.text
            for row in recommendations.listed(
                db, endpoint=endpoint.name, states=("rejected", "approved", "applying"), limit=20
            ):
                if row["state"] != "rejected":
                    return "one is approved and waits to be applied"
                if row["fingerprint"] == advice.fingerprint and now < (row["decided_at"] or 0.0) + REJECTED_S:
                    return f"rejected by {row['state_by']}"
        return None

    def _propose(
        self, endpoint: EndpointSettings, advice: Recommendation, plan: Plan | None, now: float, write: _Write
    ) -> None:
        with self._store.read() as db:
            open_rows = recommendations.listed(db, endpoint=endpoint.name, states=recommendations.OPEN)
        same = next((r for r in open_rows if r["fingerprint"] == advice.fingerprint), None)
        self._withdraw(endpoint.name, same["id"] if same else None, now, write)
        self._metrics.saving.labels(endpoint.name).set(advice.saving_per_month or 0.0)
        if same is None:
            self._insert(advice, plan, now, "flyball", write)
            return
        rails = guardrails_of(self._settings, endpoint.name)
        as_it_was = same["plan_hash"] == (plan.hash if plan else "") and same["policy_hash"] == rails.hash
        if as_it_was and (now < same["refreshed_at"] + endpoint.policy.evidence_s or not _moved(same, advice)):
            return
        with write() as db:
            values = _figures(advice, plan) | {
                "expires_at": now + endpoint.policy.expires_s,
                "policy_hash": rails.hash,
            }
            recommendations.refresh(db, same["id"], revision=same["revision"], now=now, values=values)

    def _insert(self, advice: Recommendation, plan: Plan | None, now: float, by: str, write: _Write) -> str:
        endpoint = self._settings.endpoint(advice.endpoint)
        identity = recommendations.new_id()
        rails = guardrails_of(self._settings, advice.endpoint)
        auto = (
            plan is not None and not plan.by_merge and auto_approves(rails, advice.direction, advice.risk, plan.needs)
        )
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
            "policy_hash": rails.hash,
            **_figures(advice, plan),
        }
        with write() as db:
            if by != "flyball":
                self._supersede_others(db, advice.endpoint, now)
            recommendations.insert(db, row)
            if auto and by == OWN:
                reason = f"auto policy allows {advice.direction}"
                recommendations.move(
                    db,
                    identity,
                    from_states=["proposed"],
                    to="approved",
                    now=now,
                    by=BY_POLICY,
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

    def _withdraw(self, endpoint: str, keep: str | None, now: float, write: _Write) -> None:
        """Supersede the endpoint's other open advice that Flyball itself gave."""
        with write() as db:
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
        "GATHERING",
        "ENGINE_STUCK",
        "TELEMETRY_CONTRADICTS",
    )
)


def _keep_shape(db: sa.Connection, endpoint: str, live: LiveState, per_hour: float | None, now: float) -> None:
    row = {
        "shape": live.shape.as_dict(),
        "shape_version": live.version,
        "ready": live.ready,
        "detail": live.detail,
        "seen_at": now,
        "price_per_hour": per_hour,
    }
    fleet.saw_shape(db, endpoint, row)


def _with_spill(catalogue: Catalogue, predictor: Predictor) -> Catalogue:
    """With what the load observed would cost elsewhere, where a shape has no room for all of it."""
    return replace(catalogue, spill=predictor.spill) if isinstance(predictor, Replayer) else catalogue


def _load(s: Situation) -> float | None:
    """Requests in one replica, on average."""
    running = [w.mean("running") for w in s.windows]
    known = [r for r in running if r is not None]
    replicas = s.serving(s.shape)
    return sum(known) / len(known) / replicas if known and replicas else None


def _attained(s: Situation) -> dict[str, float]:
    observed = {target: attainment(s.windows, target).observed for target in s.objective.targets}
    return {target.name: value / target.limit for target, value in observed.items() if value is not None}


def _figures(advice: Recommendation, plan: Plan | None) -> dict[str, object]:
    return {
        "plan": plan.as_dict() if plan else {},
        "plan_hash": plan.hash if plan else "",
        "body": advice.as_dict(),
        "saving_per_month": advice.saving_per_month,
    }


def _moved(row: recommendations.Row, advice: Recommendation) -> bool:
    """Whether its figures are others, so that a person would want to look again."""
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
