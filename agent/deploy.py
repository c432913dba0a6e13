"""The first step of the loop: puts an endpoint up in the shape that the settings state, through its own system.

For a person at a keyboard, who is the approval. It is a change like any other: one at a time on an endpoint, journalled, carried out by
``Execution`` under the endpoint's mode and guardrails. What is up is never touched here: that goes through a recommendation, with its
prediction, its approval and its verification.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from actuators.base import Actuator, ActuatorError, LiveState
from actuators.shape import Plan, Shape
from agent.apply import lease_of
from agent.cases import guardrails_of, obstacle_of, standing
from agent.execution import ChangeRun, Execution, in_time
from agent.settings import EndpointSettings, Settings
from agent.store import Store, audit, changes, control, recommendations
from agent.store.control import Lead, LostLease
from agent.wiring import Environment, actuator_of
from analyzers.guardrails import Guardrails, Stage
from analyzers.policy import RuleVerdict
from collectors.clock import Clock

POLL_S = 1.0
#: Who deploys holds a lease, renewed at each look, so that no two people do it at once.
LEASE_S = 120.0


class CannotDeploy(Exception):
    """Nothing was deployed, or not all of it; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What would be done, for the person to say yes to."""

    endpoint: str
    plan: Plan
    actuator: Actuator
    rails: Guardrails
    purpose: Literal["deploy", "trial"] = "deploy"
    tune: str | None = None
    """The tune that it is a trial of."""
    guarded: bool = True
    """Whether every rule is asked; the way back to what was there heeds only the mode and the pause."""

    def obstacle(self, db: sa.Connection, now: float, change: str | None = None) -> RuleVerdict | None:
        """What of the guardrails stands against it, as if another shape had never been there."""
        after = self.plan.after
        stage: Stage = "undo" if not self.guarded else "deploy" if self.purpose == "deploy" else "step"
        return obstacle_of(db, self.rails, self.endpoint, (after, after), now, stage, change=change, tune=self.tune)


async def prepare(store: Store, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> Deployment:
    """See what is there and plan to the settings' shape, or go on where the last deployment was cut off.

    Sends only reads. Raises ``CannotDeploy``.
    """
    rails = guardrails_of(settings, endpoint.name)
    with store.read() as db:
        change = changes.active_of(db, endpoint.name)
        busy = standing(db, endpoint.name, environment.clock.now())["under_way"]
    if busy is not None and (change is None or change["purpose"] != "deploy"):
        raise CannotDeploy(f"{endpoint.name}: {busy} is under way{hint('ONE_AT_A_TIME', endpoint.name)}")
    try:
        actuator = actuator_of(settings, endpoint, environment)
        if change is not None and change["purpose"] == "deploy":
            return Deployment(endpoint.name, Plan.from_dict(change["plan"]), actuator, rails)
        live = await in_time(actuator.live())
        plan = await in_time(actuator.plan(live, _wanted(endpoint, live)))
    except ActuatorError as error:
        raise CannotDeploy(f"{endpoint.name}: {error}") from error
    deployment = Deployment(endpoint.name, plan, actuator, rails)
    with store.read() as db:
        stop = deployment.obstacle(db, environment.clock.now())
    if stop is not None:
        raise CannotDeploy(f"{endpoint.name}: a guardrail forbids it: {stop.text}{hint(stop.rule, endpoint.name)}")
    return deployment


def hint(rule: str, name: str) -> str:
    """What a person can do about a rule that stands against it; empty where there is nothing."""
    return _HINTS.get(rule, "").format(name=name)


_HINTS = {
    "MODE": "; set `mode: approve` first",
    "PAUSE": "; `flyball resume` first",
    "ONE_AT_A_TIME": "; see `flyball changes list` and `flyball tune list`",
    "FREEZE": "; `flyball unfreeze {name}` first",
}


def _wanted(endpoint: EndpointSettings, live: LiveState) -> Shape:
    if live.shape.replicas is None:
        raise CannotDeploy(f"{endpoint.name}: its system ({endpoint.actuator.system}) cannot deploy; start it yourself")
    if live.shape.replicas > 0 and live.ready:
        raise CannotDeploy(
            f"{endpoint.name} runs already, as {live.shape.label()}; to change it: "
            f"flyball recommendations propose {endpoint.name} --shape NAME=VALUE"
        )
    if live.shape.replicas > 0:  # it was up and has died: what was there comes back, adjusted as it had been
        return live.shape
    stated = endpoint.shape.shape()
    if not stated.replicas:
        raise CannotDeploy(f"{endpoint.name}: the settings do not say how many replicas; set shape.replicas")
    return stated


async def carry_out(
    deployment: Deployment,
    store: Store,
    clock: Clock,
    by: str,
    *,
    say: Callable[[str], None] = lambda _: None,
    lead: Lead | None = None,
) -> LiveState:
    """Do every step in order, wait for each, and note it in the audit. Raises ``CannotDeploy``.

    lead: the lease on deploying the endpoint, where the caller holds it and goes on holding it.
    """
    name, plan = deployment.endpoint, deployment.plan
    noted = {"plan_hash": plan.hash, "before": plan.before.as_dict(), "after": plan.after.as_dict()}
    await asyncio.to_thread(_note, store, clock, by, "deploy", name, noted)
    holder = f"{by}:{recommendations.new_id()}"
    try:
        held = lead if lead is not None else await asyncio.to_thread(_hold, store, name, holder)
        change = await asyncio.to_thread(_begin, deployment, store, clock, by, held)
        await _every_step(deployment, change, store, clock, held, say, renew=lead is None)
        live = await in_time(deployment.actuator.live())
    except (ActuatorError, CannotDeploy, LostLease) as error:
        await asyncio.to_thread(_note, store, clock, by, "deploy_failed", name, noted | {"why": str(error)})
        raise CannotDeploy(f"{name}: {error}") from error
    finally:
        if lead is None:
            await asyncio.to_thread(_release, store, name, holder)
    await asyncio.to_thread(_note, store, clock, by, "deployed", name, noted)
    return live


async def _every_step(
    deployment: Deployment,
    change: str,
    store: Store,
    clock: Clock,
    lead: Lead,
    say: Callable[[str], None],
    *,
    renew: bool,
) -> None:
    """Until the change has ended, well or not. Raises ``CannotDeploy``."""
    execution, plan, shown = Execution(store, clock), deployment.plan, ""

    def asks(db: sa.Connection) -> RuleVerdict | None:
        return deployment.obstacle(db, clock.now(), change)

    run = ChangeRun(change, deployment.endpoint, "apply", (*plan.operations, *plan.finish), deployment.actuator, asks)
    for operation in run.operations:
        say(operation.summary)
    while True:
        if renew:
            await asyncio.to_thread(_hold, store, deployment.endpoint, lead.holder)
        progress = await execution.advance(run, lead)
        if progress.state != "waiting":
            break
        if progress.rule:
            raise CannotDeploy(
                f"{progress.why}{hint(progress.rule, deployment.endpoint)}, then deploy again: it goes on from here"
            )
        if progress.why != shown:
            shown = progress.why
            say(f"  {shown}")
        await clock.sleep(POLL_S)
    await asyncio.to_thread(_end, store, clock, change, lead, progress.state == "done", progress.why)
    if progress.state == "failed":
        raise CannotDeploy(progress.why)


def _begin(deployment: Deployment, store: Store, clock: Clock, by: str, lead: Lead) -> str:
    """The change to go on with, or a new one; its id. Raises ``CannotDeploy``, ``LostLease``."""
    name, plan, now = deployment.endpoint, deployment.plan, clock.now()
    with control.leading(store, lead) as db:
        known = changes.active_of(db, name)
        if known is not None and known["purpose"] == deployment.purpose and known["plan_hash"] == plan.hash:
            return str(known["id"])
        if known is not None and known["purpose"] == "trial" == deployment.purpose:  # another trial was cut off
            changes.move(db, known["id"], from_states=["applying"], to="failed", now=now, reason="cut off")
            changes.unlock(db, known["id"])
        identity = recommendations.new_id()
        row = {
            "id": identity,
            "recommendation_id": "",
            "endpoint": name,
            "state": "applying",
            "state_reason": "",
            "purpose": deployment.purpose,
            "approved_by": by,
            "plan_hash": plan.hash,
            "plan": plan.as_dict(),
            "prediction": None,
            "epoch": lead.epoch,
            "created_at": now,
        }
        held = changes.lock(db, plan.locks, identity, lead.epoch)
        if held is not None:
            raise CannotDeploy(f"another change holds {held}; try again when it has ended")
        if not changes.start(db, row):
            raise CannotDeploy("a change is under way; see `flyball changes list`")
    return identity


def _end(store: Store, clock: Clock, change: str, lead: Lead, well: bool, why: str) -> None:
    now, state = clock.now(), "succeeded" if well else "failed"
    with control.leading(store, lead) as db:
        changes.move(db, change, from_states=["applying"], to=state, now=now, reason=why, finished_at=now)
        changes.unlock(db, change)


def _hold(store: Store, name: str, holder: str) -> Lead:
    """Take or keep the lease on deploying the endpoint. Raises ``CannotDeploy``."""
    with store.write() as db:
        lead = control.acquire(db, lease_of(name), holder, LEASE_S)
    if lead is None:
        raise CannotDeploy("somebody else is deploying it at this moment")
    return lead


def _release(store: Store, name: str, holder: str) -> None:
    with store.write() as db:
        control.release(db, lease_of(name), holder)


def _note(store: Store, clock: Clock, by: str, action: str, endpoint: str, body: Mapping[str, object]) -> None:
    with store.write() as db:
        audit.append(db, at=clock.now(), actor=by, action=action, subject=endpoint, body=body)
