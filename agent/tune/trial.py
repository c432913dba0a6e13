"""One shape: deploy it, warm it, find the highest rate at which the objective holds, and watch both sides meanwhile."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from actuators.base import ActuatorError
from actuators.shape import Shape
from agent.cases import guardrails_of, obstacle_of
from agent.deploy import Deployment, carry_out
from agent.settings import Settings
from agent.simulate.options import TrafficOptions, traffic_of
from agent.simulate.request import LoadOptions, Prices, TrafficRequest
from agent.simulate.run import TrafficOutcome, estimate, sent
from agent.store import Store
from agent.tune.lease import LeaseHolder
from agent.tune.observe import observing
from agent.tune.request import TuneRequest
from agent.watch import WatchedEndpoint
from analyzers.limit_search import Limit, MeasuredRate, limit_of, next_rate
from analyzers.tuning.choose import Trial
from analyzers.tuning.judge import LoadVerdict, figures, invalid, judge
from collectors.clock import Clock

#: Users of the load that shows what a shape can do at most: as many as its sequences, or so many where that is not known.
_MANY, _MOST_USERS = 32, 256
#: Of what users in a closed loop get out of it, an open loop is tried first at this share; above the other one it cannot keep up.
_FIRST, _BEYOND = 0.7, 1.1
#: A server that was just started is slow at first: so many seconds, and this share of a load at least, count for nothing.
_WARM_S, _WARM_SHARE, _MOST_WARM_SHARE = 3.0, 0.1, 0.4
_LONGEST = 3.0
#: With less of a request under way on average, an open loop is one user after the other, and that was measured.
_IDLE = 0.2
_PATIENCE_S, _PATIENCE = 30.0, 20.0


class TuneEnd(Exception):
    """The tune ends here, with what it has: ``interrupted`` or a budget. Nothing is wrong with the trial."""


class TrialError(Exception):
    """This shape cannot be measured, and why."""


@dataclass(slots=True)
class TrialContext:
    """What trials work with."""

    asked: TuneRequest
    settings: Settings
    store: Store
    clock: Clock
    watched: WatchedEndpoint
    by: str
    hold: LeaseHolder
    allow_production: bool
    say: Callable[[str], None]
    keep: Callable[[Trial], None]
    """Writes a trial to the store."""
    check: Callable[[], None]
    """Raises ``TuneEnd`` where the tune must end."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set: a load under way is ended."""
    model: str | None = None

    async def deployed(self, shape: Shape, *, guarded: bool = True) -> None:
        """Lead the endpoint to ``shape`` and wait until it serves. Raises TrialError, CannotDeploy, LeaseConflict.

        guarded: refuse what the endpoint's guardrails forbid; the way back to what was there is none of theirs.
        """
        name, actuator = self.watched.settings.name, self.watched.actuator
        self.hold.check()
        rails = guardrails_of(self.settings, name)
        if guarded:
            with self.store.read() as db:
                stop = obstacle_of(db, rails, name, (shape, shape), self.clock.now(), "step", tune=self.hold.tune)
            if stop is not None:
                raise TrialError(f"a guardrail forbids it: {stop.text}")
        try:
            plan = await actuator.plan(await actuator.live(), shape)
            if plan.operations:
                deployment = Deployment(name, plan, actuator, rails, "trial", self.hold.tune, guarded)
                await carry_out(
                    deployment,
                    self.store,
                    self.clock,
                    self.by,
                    say=lambda line: self.say(f"  {line}"),
                    lead=self.hold.lead,
                )
            live = await actuator.live()
        except ActuatorError as error:
            raise TrialError(str(error)) from error
        if shape.replicas and not live.ready:
            raise TrialError(f"it does not serve: {live.detail}")
        self.watched.saw(live)

    async def sent(
        self, options: LoadOptions, trial: Trial, patience_s: float
    ) -> tuple[TrafficOutcome, dict[str, Any]]:
        """One load, and what the server said of it. Raises CollectError, TuneEnd, LeaseConflict, TrialError."""
        traffic = self._traffic(options, trial, patience_s)
        self.stop.clear()

        def watch(_at: float, _counts: Counter[str]) -> str | None:
            return "interrupted" if self.stop.is_set() or self.hold.lost else None

        async with observing(self.watched, self.clock) as seen:
            outcome = await asyncio.to_thread(sent, traffic, estimate(traffic), watch)
        self.hold.check()
        if self.stop.is_set():
            raise TuneEnd("interrupted")
        if outcome.run.tally.all_errors:
            await self._lives()
        self.model = outcome.model
        return outcome, seen.summary()

    async def _lives(self) -> None:
        """A server that has died says nothing of its shape's limit. Raises TrialError."""
        try:
            live = await self.watched.actuator.live()
        except ActuatorError as error:
            raise TrialError(f"it died under this load: {error}") from error
        if not live.ready:
            raise TrialError(f"it died under this load: {live.detail}")

    def _traffic(self, options: LoadOptions, trial: Trial, patience_s: float) -> TrafficRequest:
        load = self.asked.load
        given = TrafficOptions(
            endpoint=self.asked.endpoint,
            api=load.api,
            exact_output=load.exact_output,
            timeout_s=patience_s,
            allow_production=self.allow_production,
            prices=Prices(usd_per_hour=trial.usd_per_hour),
        )
        options = replace(
            options,
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            prefix_tokens=load.prefix_tokens,
            seed=self.asked.seed + len(trial.steps),
        )
        return replace(traffic_of(given, options, self.settings, []), objective=self.asked.objective)


async def run(context: TrialContext, trial: Trial) -> None:
    """Measure the trial, or go on with it: each load is kept as it ends. Raises CollectError, TuneEnd, LeaseConflict, TrialError."""
    begun, before = context.clock.monotonic(), trial.busy_s

    def note() -> None:
        trial.busy_s = before + context.clock.monotonic() - begun
        context.keep(trial)

    trial.state, trial.why = "running", ""
    note()
    try:
        await context.deployed(trial.shape)
        note()
        await _measure(context, trial, note)
    except TuneEnd as why:
        if str(why) != "interrupted" and (measured := _measured(trial)):  # what is known of it counts
            trial.limit = limit_of(measured)
            _done(trial, str(why))
        raise
    finally:
        note()


async def _measure(context: TrialContext, trial: Trial, note: Callable[[], None]) -> None:
    asked = context.asked
    single = await _single(context, trial, note)
    if single["verdict"] == "missed":
        trial.limit = Limit(None, 0.0, False)
        _done(trial, f"not even one user is served within the objective: {single['why']}")
        return
    alone = single["figures"]["e2e_s"]["mean"] or 0.0
    measured = _measured(trial)
    guess = trial.promised or next((s["guess"] for s in trial.steps if "guess" in s), None)
    if guess is None:
        most = await _most(context, trial, note, alone)
        if most is None:
            _done(trial, "with as many users as it has sequences nothing was answered in time")
            return
        guess, measured = most * _FIRST, _measured(trial)
    while (rate := next_rate(measured, guess, asked.effort.precision, asked.effort.most_steps)) is not None:
        context.check()
        if rate * alone < _IDLE:
            break
        step = await _rate(context, trial, note, rate, alone)
        if step["invalid"] and not _is_clients_limit(trial):  # what held this client up may be over
            context.check()
            await _rate(context, trial, note, rate, alone)
        measured = _measured(trial)
    trial.limit = limit_of(measured) if measured else None
    _done(trial, _open_end(trial))


def _is_clients_limit(trial: Trial) -> bool:
    """Whether this client was twice too late for one rate: then it is no moment of something else."""
    late = Counter(s["rate"] for s in trial.steps if s["kind"] == "rate" and s["invalid"])
    return any(n > 1 for n in late.values())


def _open_end(trial: Trial) -> str:
    """Why the limit is bounded by this client, or not from below; empty: it was found."""
    low, high = (trial.limit.low, trial.limit.high) if trial.limit is not None else (None, None)
    ours = min((s["rate"] for s in _rates(trial) if s["invalid"]), default=math.inf)
    if high is not None and high >= ours:
        return f"this client sends no {ours:.3g}/s: it may carry more"
    if low is None and high is not None:
        return f"missed at every rate that was sent, {high:.3g}/s the lowest"
    return ""


def _done(trial: Trial, why: str) -> None:
    trial.state, trial.why = "done", why
    tokens = [
        (s["figures"]["completed"], s["figures"]["output_length"]["mean"]) for s in trial.steps if not s["invalid"]
    ]
    known = [(n, mean) for n, mean in tokens if n and mean is not None]
    trial.output_tokens = sum(n * mean for n, mean in known) / sum(n for n, _ in known) if known else None


def _rates(trial: Trial) -> list[dict[str, Any]]:
    """The loads in open loop, each rate once: a valid load stands for an invalid one of the same rate."""
    found: dict[float, dict[str, Any]] = {}
    for step in trial.steps:
        if step["kind"] == "rate" and (step["rate"] not in found or not step["invalid"]):
            found[step["rate"]] = step
    return list(found.values())


def _measured(trial: Trial) -> list[MeasuredRate]:
    """What was sent in open loop; and what a closed one says of rates that cannot be kept up with. A rate that this client cannot
    send bounds the search, but not for sure: it may have been a moment of something else."""
    found = [
        MeasuredRate(s["rate"], "unsure", False) if s["invalid"] else MeasuredRate(s["rate"], s["verdict"], s["likely"])
        for s in _rates(trial)
    ]
    beyond = [s["figures"]["requests_per_s"] for s in trial.steps if s["kind"] == "most" and not s["invalid"]]
    return [MeasuredRate(b * _BEYOND, "missed", False) for b in beyond if b and found] + found


async def _single(context: TrialContext, trial: Trial, note: Callable[[], None]) -> dict[str, Any]:
    """One user after the other: warms the server, and shows the best that anybody gets."""
    known = next((s for s in trial.steps if s["kind"] == "single"), None)
    if known is not None:
        if len(trial.steps) > 1 or trial.steps[0] is not known:
            await context.sent(
                LoadOptions(concurrency=1, duration_s=_WARM_S, warmup_s=0.0), trial, 120.0
            )  # as warm as it was
        return known
    context.check()
    step_s = context.asked.effort.step_s
    warm = min(_WARM_S, step_s / 2)
    options = LoadOptions(concurrency=1, duration_s=max(2 * warm, step_s / 2), warmup_s=warm)
    outcome, server = await context.sent(options, trial, 120.0)
    return _kept(trial, note, "single", {"users": 1, "rate": None}, outcome, server, judge(outcome.load, None))


async def _most(context: TrialContext, trial: Trial, note: Callable[[], None], alone: float) -> float | None:
    """Requests per second of as many users as it has sequences. None: not one was answered."""
    slots = trial.shape.engine.get("max_num_seqs")
    each = slots if isinstance(slots, int) else _MANY
    users = min(_MOST_USERS, max(2, (trial.shape.replicas or 1) * min(each, _MOST_USERS)))
    context.check()
    seconds = _seconds(context.asked, alone, 0)
    options = LoadOptions(concurrency=users, duration_s=seconds, warmup_s=_warm(seconds, alone))
    outcome, server = await context.sent(options, trial, _patience(alone))
    step = _kept(trial, note, "most", {"users": users, "rate": None}, outcome, server, judge(outcome.load, None))
    reached = step["figures"]["requests_per_s"]
    if not reached:
        return None  # where only the client was too slow, the rates show it: this is but where they begin
    step["guess"] = reached * _FIRST
    note()
    return float(reached)


async def _rate(
    context: TrialContext, trial: Trial, note: Callable[[], None], rate: float, alone: float
) -> dict[str, Any]:
    """An open loop, long enough for the objective's percentile."""
    quantiles = [t.quantile for t in context.asked.objective.targets if t.quantile is not None]
    # With fewer requests than this not even none beyond the limit would show, at 95 %, that so few are (the rule of three).
    needed = 3.0 / (1.0 - max(quantiles, default=0.95)) + 1
    seconds = _seconds(context.asked, alone, needed / rate)
    options = LoadOptions(rate=rate, duration_s=seconds, warmup_s=_warm(seconds, alone))
    outcome, server = await context.sent(options, trial, _patience(alone))
    return _kept(trial, note, "rate", {"users": None, "rate": rate}, outcome, server, judge(outcome.load, rate))


def _seconds(asked: TuneRequest, alone: float, needed_s: float) -> float:
    """Of sending: some answers' time at least, and not without end."""
    least = max(asked.effort.step_s, 5.0 * alone)
    return min(max(least, needed_s / (1 - _WARM_SHARE)), _LONGEST * least)


def _warm(seconds: float, alone: float) -> float:
    return min(max(_WARM_SHARE * seconds, 2.0 * alone), _MOST_WARM_SHARE * seconds)


def _patience(alone: float) -> float:
    return max(_PATIENCE_S, math.ceil(_PATIENCE * alone))


def _kept(
    trial: Trial,
    note: Callable[[], None],
    kind: str,
    load: dict[str, Any],
    outcome: TrafficOutcome,
    server: dict[str, Any],
    judged: LoadVerdict,
) -> dict[str, Any]:
    step = {
        "kind": kind,
        **load,
        "seconds": outcome.traffic.duration_s,
        "started_at": outcome.run.started_at,
        "verdict": judged.verdict,
        "likely": judged.likely,
        "why": judged.why,
        "targets": list(judged.targets),
        "figures": figures(outcome.load),
        "server": server,
        "invalid": invalid(outcome.load),
    }
    trial.steps.append(step)
    note()
    return step
