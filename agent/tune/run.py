"""The experiment: one shape after the other, the most promising first, until none is left that could win, or a budget is spent.

Everything is in the store before the next thing is begun: a tune that was killed goes on where it was when it is asked again. Whatever
ends it, the endpoint is led back to what it was: to its own shape, or to nothing where nothing was up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from actuators.base import ActuatorError, LiveState, RemovableActuator
from actuators.shape import Shape
from agent.cases import guardrails_of, obstacle_of
from agent.deploy import CannotDeploy, hint
from agent.settings import EndpointSettings, Settings
from agent.store import Store, fleet, recommendations, tunes
from agent.store.rows import TrialRow
from agent.tune.answer import answer
from agent.tune.history import trial_of
from agent.tune.lease import LeaseConflict, LeaseHolder, held
from agent.tune.request import TuneRequest
from agent.tune.trial import TrialContext, TrialError, TuneEnd, run
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, catalogue_of, watched_of
from analyzers.money import Tariff, Unit, Usage
from analyzers.tuning import choose
from analyzers.tuning.choose import Trial
from analyzers.tuning.learn import FittedTrial, learn, promised, traffic
from collectors.clock import Clock
from collectors.http import Http
from collectors.window import CollectError

#: For the estimate: seconds to deploy a shape, and loads to find its limit.
_DEPLOY_S, _LOADS, _OVERHEAD = 60.0, 7, 1.3


class CannotTune(Exception):
    """The tune cannot begin, or go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class TuneEstimate:
    """What it will come to, roughly, if no shape can be left out."""

    minutes: float
    usd: float | None
    """None: no price is known."""


def estimate(asked: TuneRequest, settings: Settings) -> TuneEstimate:
    each = _DEPLOY_S + _LOADS * asked.effort.step_s * _OVERHEAD
    prices = [price_of(settings, asked.endpoint, shape) for _, shape in asked.candidates]
    costs = [Tariff.of({Unit.HOUR: p}).cost(Usage(hours=each / 3600)).usd for p in prices]
    usd = None if None in costs else sum(c for c in costs if c is not None)
    return TuneEstimate(len(asked.candidates) * each / 60, usd)


def price_of(settings: Settings, endpoint: str, shape: Shape) -> float | None:
    """US dollars per hour of the whole shape."""
    return catalogue_of(settings, settings.endpoint(endpoint)).per_hour(shape)


async def present(store: Store, settings: Settings, endpoint: EndpointSettings, http: Http, clock: Clock) -> Shape:
    """What the candidates are changes to: what was there when an unfinished tune began, else what is live, else what the settings
    state. Raises CannotTune."""
    with store.read() as db:
        known = tunes.running(db, endpoint.name)
    if known is not None:
        return TuneRequest.from_dict(known["question"]).present
    watched = watched_of(settings, endpoint, Environment(http, clock))
    live = await _live(watched)
    if live.shape.replicas:
        watched.saw(live)
        assert watched.live is not None
        return watched.live.shape
    stated = endpoint.shape.shape()
    return stated if stated.replicas else stated.with_(replicas=1)


async def _live(watched: WatchedEndpoint) -> LiveState:
    name, system = watched.settings.name, watched.settings.actuator.system
    try:
        live = await watched.actuator.live()
    except ActuatorError as error:
        raise CannotTune(f"{name}: {error}") from error
    if live.shape.replicas is None or "replicas" not in watched.actuator.changes:
        raise CannotTune(f"{name}: its system ({system}) cannot deploy shapes; tune an endpoint of a system that can")
    return live


@dataclass(slots=True)
class Tune:
    """One experiment on one endpoint."""

    asked: TuneRequest
    settings: Settings
    store: Store
    clock: Clock
    http: Http
    by: str
    allow_production: bool = False
    say: Callable[[str], None] = lambda _: None
    """A line for whoever watches."""

    async def run(self) -> dict[str, Any]:
        """To its end, or until it is cancelled. Raises CannotTune."""
        endpoint = self.settings.endpoint(self.asked.endpoint)
        watched = watched_of(self.settings, endpoint, Environment(self.http, self.clock))
        row = await self._begun(watched)
        async with self._alone(watched, row) as running:
            return await running.run()

    async def abandon(self) -> str | None:
        """Lead the endpoint of an unfinished tune back and forget the rest; its id. None: there is none. Raises CannotTune."""
        with self.store.read() as db:
            row = tunes.running(db, self.asked.endpoint)
        if row is None:
            return None
        watched = watched_of(
            self.settings, self.settings.endpoint(self.asked.endpoint), Environment(self.http, self.clock)
        )
        async with self._alone(watched, row) as running:
            await running.back()
            running.end("abandoned")
        return str(row["id"])

    async def _begun(self, watched: WatchedEndpoint) -> tunes.Row:
        """The unfinished one of the same question, or a new one."""
        name = self.asked.endpoint
        with self.store.read() as db:
            known = tunes.running(db, name)
            where = self.settings.endpoint(name).shape.shape()
            own = known["id"] if known is not None else ""
            rails = guardrails_of(self.settings, name)
            stop = obstacle_of(db, rails, name, (where, where), self.clock.now(), "tune", tune=own)
        if stop is not None and not (known is not None and stop.rule == "FREEZE"):
            raise CannotTune(f"{name}: a guardrail forbids it: {stop.text}{hint(stop.rule, name)}")
        if known is not None and known["digest"] != self.asked.digest:
            raise CannotTune(
                f"{name}: tune {known['id']} of another question is not at its end; ask the same to go on with it, or give --abandon"
            )
        if known is not None:
            self.say(f"going on with tune {known['id']}")
            return known
        live = await _live(watched)
        original = live.shape.as_dict() if live.shape.replicas else None
        row: tunes.Row = {
            "id": recommendations.new_id(),
            "endpoint": name,
            "state": "running",
            "ended_at": None,
            "result": None,
            "question": self.asked.as_dict(),
            "digest": self.asked.digest,
            "original": original,
            "started_by": self.by,
            "started_at": self.clock.now(),
        }
        planned = [
            {"number": i, "name": text, "shape": shape.as_dict()}
            for i, (text, shape) in enumerate(self.asked.candidates)
        ]
        with self.store.write() as db:
            if not tunes.start(db, row, planned):
                raise CannotTune(f"{name}: somebody else has just begun a tune")
        return row

    @asynccontextmanager
    async def _alone(self, watched: WatchedEndpoint, row: tunes.Row) -> AsyncIterator[_TuneRun]:
        """The tune, with nobody else at it. Raises CannotTune."""
        try:
            async with held(self.store, self.clock, self.asked.endpoint, row["id"]) as hold:
                with self.store.read() as db:
                    known = tunes.running(db, self.asked.endpoint)
                if known is None or known["id"] != row["id"]:  # whoever was waited for has brought it to its end
                    raise CannotTune(f"{self.asked.endpoint}: tune {row['id']} has just ended")
                yield _TuneRun(self, watched, row, hold)
        except LeaseConflict as error:
            raise CannotTune(str(error)) from error


class _TuneRun:
    """A tune that holds its leases."""

    def __init__(self, tune: Tune, watched: WatchedEndpoint, row: tunes.Row, hold: LeaseHolder) -> None:
        self._tune, self._row, self._watched, self._hold = tune, row, watched, hold
        self._asked = tune.asked
        self._begun = tune.clock.monotonic()
        with tune.store.read() as db:
            self.trials = [_again(r, tune.settings, tune.asked) for r in tunes.trials(db, row["id"])]
        self._before_s = sum(t.busy_s for t in self.trials)
        self._context = TrialContext(
            asked=tune.asked,
            settings=tune.settings,
            store=tune.store,
            clock=tune.clock,
            watched=watched,
            by=tune.by,
            hold=hold,
            allow_production=tune.allow_production,
            say=tune.say,
            keep=self._keep,
            check=self._check,
            stop=threading.Event(),
        )

    async def run(self) -> dict[str, Any]:
        ended = "stopped"
        try:
            ended = await self._all()
        except asyncio.CancelledError:
            self._context.stop.set()
            ended = "interrupted"
        finally:
            back = asyncio.ensure_future(self.back())
            while not back.done():
                with contextlib.suppress(asyncio.CancelledError):  # a second Ctrl-C waits for it too
                    await asyncio.shield(back)
            back.result()
        found = answer(self._asked, self._row, self.trials, ended, choose.doubt(self.trials))
        if ended != "interrupted":
            self.end("done", found)
        return found

    async def _all(self) -> str:
        """Every trial that may win; how it ended."""
        try:
            while (trial := await self._next()) is not None:
                self._check()
                told = f", {trial.promised:.3g}/s predicted" if trial.promised else ""
                self._tune.say(f"trial {trial.number + 1} of {len(self.trials)}: {trial.shape.label()}{told}")
                try:
                    await run(self._context, trial)
                except (TrialError, CannotDeploy, CollectError) as error:
                    trial.state, trial.why = "failed", str(error)
                    self._keep(trial)
                self._tune.say(f"  {_said(trial)}")
        except TuneEnd as why:
            if str(why) == "interrupted":
                raise asyncio.CancelledError from why
            for trial in self.trials:
                if trial.state in ("planned", "running"):
                    trial.state, trial.why = "skipped", str(why)
                    self._keep(trial)
            return str(why)
        return "done"

    async def _next(self) -> Trial | None:
        """The one under way when it was killed, else the most promising one; those that cannot win are struck out."""
        running = next((t for t in self.trials if t.state == "running"), None)
        if running is not None:
            return running
        await asyncio.to_thread(self._learn)
        leader, off = choose.best(self.trials, self._asked.demand), choose.doubt(self.trials)
        for trial in self.trials:
            why = choose.hopeless(trial, leader, self._asked.demand, off) if trial.state == "planned" else None
            if why is not None and leader is not None:  # something is measured before anything is struck out
                trial.state, trial.why = "pruned", why
                self._keep(trial)
                self._tune.say(f"not tried: {trial.name}: {why}")
        return choose.following([t for t in self.trials if t.state == "planned"], self._asked.demand)

    def _learn(self) -> None:
        """Promise what is not yet measured, by the trial that says most: the one whose loads lie furthest apart."""
        planned = [t for t in self.trials if t.state == "planned"]
        known = [k for t in self.trials if t.state == "done" and (k := self._learned(t)) is not None]
        if not planned or not known:
            return
        widest = max(known, key=lambda k: k.calibrated.load[1])
        load, catalogue = self._asked.load, self._watched.catalogue
        work = traffic(load.prompt_tokens, load.output_tokens, load.prefix_tokens, self._asked.seed)
        for trial in planned:
            trial.promised = promised(widest, trial.shape, work, self._asked.objective, catalogue)

    def _learned(self, trial: Trial) -> FittedTrial | None:
        return learn(
            trial.steps, trial.shape, self._context.model or self._watched.settings.model, self._watched.catalogue
        )

    def _check(self) -> None:
        budget, spent = self._asked.budget, [t.spent_usd for t in self.trials if t.busy_s]
        if self._context.stop.is_set():
            raise TuneEnd("interrupted")
        minutes = (self._before_s + self._tune.clock.monotonic() - self._begun) / 60
        if budget.minutes is not None and minutes >= budget.minutes:
            raise TuneEnd(f"the budget of {budget.minutes:g} minutes is spent")
        if budget.usd is not None and sum(s for s in spent if s is not None) >= budget.usd:
            raise TuneEnd(f"the budget of ${budget.usd:g} is spent")

    def end(self, state: str, result: dict[str, Any] | None = None) -> None:
        """It is not gone on with. Raises LeaseConflict."""
        tune = self._tune
        self._hold.check()
        with tune.store.write() as db:
            tunes.end(db, self._row["id"], state=state, now=tune.clock.now(), by=tune.by, result=result)

    async def back(self) -> None:
        """To what was there before. What cannot be undone is said; the row still knows what was there. Raises CannotTune, LeaseConflict."""
        self._hold.check()
        original = self._row["original"]
        try:
            live = await _live(self._watched)
            shape = Shape.from_dict(original) if original is not None else live.shape.with_(replicas=0)
            self._tune.say("leads the endpoint back" if original is not None else "takes down what it put up")
            await self._context.deployed(shape, guarded=False)
            if original is None and isinstance(self._watched.actuator, RemovableActuator):
                await self._watched.actuator.remove()
        except (TrialError, CannotDeploy, CannotTune) as error:
            raise CannotTune(
                f"{self._asked.endpoint} is not back in its old shape: {error}. Try again with `flyball tune --abandon`"
            ) from error
        with self._tune.store.write() as db:
            fleet.changed(db, self._asked.endpoint, self._tune.clock.now())

    def _keep(self, trial: Trial) -> None:
        self._hold.check()
        limit = trial.limit
        with self._tune.store.write() as db:
            tunes.keep(
                db,
                self._row["id"],
                trial.number,
                state=trial.state,
                why=trial.why,
                body=dict(trial.as_body()),
                limit_low=limit.low if limit is not None else None,
                limit_high=limit.high if limit is not None else None,
                cost_per_1k_output_tokens_usd=trial.cost_per_1k(),
                busy_s=trial.busy_s,
                spent_usd=trial.spent_usd,
                ended_at=self._tune.clock.now() if trial.state != "running" else None,
            )


def _again(row: TrialRow, settings: Settings, asked: TuneRequest) -> Trial:
    """As the store has it; what was skipped for want of budget may be tried now."""
    trial = trial_of(row, price_of(settings, asked.endpoint, Shape.from_dict(row["shape"])))
    trial.state = "planned" if trial.state == "skipped" else trial.state
    return trial


def _said(trial: Trial) -> str:
    if trial.state == "failed":
        return f"failed: {trial.why}"
    if trial.carries is None:
        below = trial.limit.high if trial.limit is not None else None
        return trial.why or (f"carries less than {below:.3g} requests/s" if below else "its limit was not found")
    high = f" and less than {trial.limit.high:.3g}" if trial.limit is not None and trial.limit.high else ""
    return f"carries {trial.carries:.3g} requests/s{high}{f' ({trial.why})' if trial.why else ''}"
