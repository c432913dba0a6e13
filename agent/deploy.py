"""The first step of the loop: puts an endpoint up in the shape that the settings state, through its own system.

For a person at a keyboard, who is the approval. What is up is never touched here: changes to it go through a recommendation, with
its prediction, its approval and its verification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from actuators.base import Actuator, ActuatorError, Live, Progress, Receipt
from actuators.shape import Operation, Plan, Shape
from agent.settings import EndpointSettings, Settings
from agent.store import Store, audit, changes, control, recommendations, tunes
from agent.wiring import Environment, actuator_of
from collectors.clock import Clock

POLL_S = 1.0
#: Who deploys holds a lease, renewed before each step and each look, so that no two people do it at once.
LEASE_S = 120.0


class CannotDeploy(Exception):
    """Nothing was deployed, or not all of it; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What would be done, for the person to say yes to."""

    endpoint: str
    plan: Plan
    actuator: Actuator


async def prepare(store: Store, settings: Settings, endpoint: EndpointSettings, environment: Environment) -> Deployment:
    """Look at what is there and plan to the settings' shape. Sends only reads. Raises ``CannotDeploy``."""
    with store.read() as db:
        if any(change["endpoint"] == endpoint.name for change in changes.active(db)):
            raise CannotDeploy(f"{endpoint.name}: a change is under way; see `flyball changes list`")
        if (tune := tunes.running(db, endpoint.name)) is not None:
            raise CannotDeploy(f"{endpoint.name}: tune {tune['id']} is under way; end it with `flyball tune --abandon`")
    try:
        actuator = actuator_of(settings, endpoint, environment)
        live = await actuator.live()
        plan = await actuator.plan(live, _wanted(endpoint, live))
    except ActuatorError as error:
        raise CannotDeploy(f"{endpoint.name}: {error}") from error
    return Deployment(endpoint.name, plan, actuator)


def _wanted(endpoint: EndpointSettings, live: Live) -> Shape:
    if live.shape.replicas is None:
        raise CannotDeploy(f"{endpoint.name}: its system ({endpoint.actuator.system}) cannot deploy; start it yourself")
    if live.shape.replicas > 0 and live.ready:
        raise CannotDeploy(
            f"{endpoint.name} runs already, as {live.shape.label()}; to change it: "
            f"flyball recommendations propose {endpoint.name} --set NAME=VALUE"
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
    holder: str | None = None,
) -> Live:
    """Do every step in order, wait for each, and note it in the audit. Raises ``CannotDeploy``.

    holder: of the lease on deploying the endpoint, where the caller holds it and goes on holding it.
    """
    name, plan, run = deployment.endpoint, deployment.plan, recommendations.new_id()
    own = holder is None
    holder = holder or f"{by}:{run}"
    noted = {"plan_hash": plan.hash, "before": plan.before.as_dict(), "after": plan.after.as_dict()}
    _note(store, clock, by, "deploy", name, noted)
    try:
        for i, operation in enumerate(plan.operations):
            say(operation.summary)
            await _step(deployment, operation, f"{run}:deploy:{i}", store, clock, holder, say)
        live = await deployment.actuator.live()
    except (ActuatorError, CannotDeploy) as error:
        _note(store, clock, by, "deploy_failed", name, noted | {"why": str(error)})
        raise CannotDeploy(f"{name}: {error}") from error
    finally:
        if own:
            with store.write() as db:
                control.release(db, lease(name), holder)
    _note(store, clock, by, "deployed", name, noted)
    return live


async def _step(
    deployment: Deployment,
    operation: Operation,
    token: str,
    store: Store,
    clock: Clock,
    holder: str,
    say: Callable[[str], None],
) -> None:
    deadline, shown = clock.monotonic() + operation.deadline_s, ""
    receipt: Receipt | None = None
    while clock.monotonic() <= deadline:
        _hold(deployment.endpoint, store, clock, holder, before_a_step=receipt is None)
        try:
            if receipt is None:
                receipt = await deployment.actuator.do(operation, token, None)
            step = await deployment.actuator.done(operation, receipt)
        except ActuatorError as error:
            if not error.passes:
                raise
            say(f"  {error}; trying again")
        else:
            if step.progress is Progress.DONE:
                return
            if step.progress is Progress.FAILED:
                raise CannotDeploy(f"{operation.summary}: {step.detail}")
            if step.detail != shown:
                shown = step.detail
                say(f"  {shown}")
        await clock.sleep(POLL_S)
    raise CannotDeploy(f"{operation.summary}: not done within {operation.deadline_s:.0f} s")


def _hold(name: str, store: Store, clock: Clock, holder: str, *, before_a_step: bool) -> None:
    with store.write() as db:
        if before_a_step and control.paused(db) is not None:
            raise CannotDeploy("Flyball is paused; `flyball resume` first, then deploy again: it goes on from here")
        if control.acquire(db, lease(name), holder, clock.now(), LEASE_S) is None:
            raise CannotDeploy("somebody else is deploying it at this moment")


def lease(name: str) -> str:
    """Whoever holds it may deploy the endpoint."""
    return f"deploy:{name}"


def _note(store: Store, clock: Clock, by: str, action: str, endpoint: str, body: Mapping[str, object]) -> None:
    with store.write() as db:
        audit.append(db, at=clock.now(), actor=by, action=action, subject=endpoint, body=body)
