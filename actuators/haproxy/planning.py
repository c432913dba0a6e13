"""The steps from one set of servers, weights and limits to another. Pure: servers in, a plan out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actuators.base import CannotPlan, LiveState
from actuators.haproxy.configtext import UneditableLine, with_servers
from actuators.shape import EngineValue, Operation, Plan, Shape
from collectors.haproxy.client import BackendServer

SYSTEM = "haproxy"
_SET_S = 60.0
MOST_WEIGHT = 256


@dataclass(frozen=True, slots=True)
class BackendTerms:
    """What the settings say of how a change goes."""

    endpoint: str
    socket: str
    backend: str
    path: str | None
    """HAProxy's file. None: a reload loses what is changed."""
    ready_s: float
    drain_s: float


def shape_of(servers: Sequence[BackendServer]) -> Shape:
    """Servers in rotation; each one's weight, and its limit where it has one."""
    engine: dict[str, EngineValue] = {f"weight.{s.name}": s.weight for s in servers}
    engine |= {f"maxconn.{s.name}": s.maxconn for s in servers if s.maxconn is not None}
    return Shape(replicas=len([s for s in servers if s.ready]), engine=engine)


def version_of(servers: Sequence[BackendServer], writes: int) -> str:
    """Of what is configured, never of health. HAProxy counts no changes of its own, so Flyball's own ``writes`` tell two visits apart."""
    rests_on = [writes, [[s.name, s.address, s.ready, s.draining, s.weight, s.maxconn] for s in servers]]
    return hashlib.sha256(json.dumps(rests_on).encode()).hexdigest()[:16]


def plan(
    terms: BackendTerms,
    servers: Sequence[BackendServer],
    text: str | None,
    live: LiveState,
    wanted: Shape,
    names: Sequence[str] | None = None,
) -> Plan:
    """``text``: HAProxy's file. ``names``: just which servers are to be in rotation, on a way back: it leaves the file alone.

    Raises ``CannotPlan``.
    """
    _check(terms, servers, live.shape, wanted)
    limits = {k: v for k, v in wanted.engine.items() if live.shape.engine.get(k) != v}
    lifted = [k for k in live.shape.engine if k not in wanted.engine]
    values: dict[str, int] = {k: int(v) for k, v in limits.items()} | dict.fromkeys(lifted, 0)
    now = [s.name for s in servers if s.ready]
    then = list(names) if names is not None else _chosen(terms, servers, now, wanted.replicas or 0)
    steps = _steps(terms, live, now, then, values)
    finish: tuple[Operation, ...] = ()
    if steps and terms.path is not None and names is None:
        finish = (_persist(terms, text or "", now, then, values),)
    keeps = (
        f"and in {terms.path} after the verdict"
        if terms.path is not None
        else "until HAProxy's next reload, as no file is named"
    )
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(steps),
        restarts=False,
        downtime_s=0.0,
        way_back=f"the same servers, weights and limits as before by the runtime API; they hold there {keeps}",
        finish=finish,
        undo={"servers": now},
        locks=(f"haproxy:{terms.path or terms.socket}",),
    )


def _check(terms: BackendTerms, servers: Sequence[BackendServer], now: Shape, wanted: Shape) -> None:
    other = [k for k in Shape.__slots__ if k not in ("engine", "replicas") and getattr(wanted, k) != getattr(now, k)]
    if other:
        raise CannotPlan(
            "UNSUPPORTED_CHANGE", f"HAProxy has no {', '.join(other)}: it belongs to the servers behind it"
        )
    if wanted.replicas is None or wanted.replicas < 0:
        text = f"say how many servers of {terms.backend} are to be in rotation, not {wanted.replicas}"
        raise CannotPlan("INCOMPLETE_SHAPE", text)
    if wanted.replicas > len(servers):
        text = f"backend {terms.backend} has {len(servers)} servers, and {wanted.replicas} are wanted: add lines to its file"
        raise CannotPlan("NO_SERVER", text)
    names = [s.name for s in servers]
    for name, value in wanted.engine.items():
        if now.engine.get(name) == value:  # also the engines' own limits, which the settings state
            continue
        limit, _, server = name.partition(".")
        if limit not in ("weight", "maxconn") or server not in names:
            text = f"{name}: known are weight.NAME and maxconn.NAME, with NAME one of {', '.join(names)}"
            raise CannotPlan("BAD_LIMIT", text)
        most = MOST_WEIGHT if limit == "weight" else 10**9
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            text = (
                f"{name}={value}: a whole number from 1 to {most} is needed; a server leaves the rotation by replicas"
            )
            raise CannotPlan("BAD_LIMIT", text)
    lacking = [name for name in now.engine if name.startswith("weight.") and name not in wanted.engine]
    if lacking:
        raise CannotPlan("INCOMPLETE_SHAPE", f"a server always has a weight: give {', '.join(lacking)}")


def _chosen(terms: BackendTerms, servers: Sequence[BackendServer], now: Sequence[str], count: int) -> list[str]:
    """The first ones of the file come in, the last ones go out."""
    if count <= len(now):
        return list(now[:count])
    free = [s.name for s in servers if s.name not in now and s.ours and s.weight > 0]
    if count - len(now) > len(free):
        held = ", ".join(s.name for s in servers if s.name not in (*now, *free))
        text = f"{held} cannot be brought into rotation: the weight is 0, the name is not resolved, or it follows another server"
        raise CannotPlan("NO_SERVER", f"backend {terms.backend}: {text}")
    come = free[: count - len(now)]
    return [s.name for s in servers if s.name in (*now, *come)]


def _steps(
    terms: BackendTerms, live: LiveState, now: Sequence[str], then: Sequence[str], values: Mapping[str, int]
) -> list[Operation]:
    of = {"version": live.version}
    steps: list[Operation] = []
    if values:
        said = ", ".join(f"{name}={value or 'none'}" for name, value in sorted(values.items()))
        was = {name: live.shape.engine.get(name, 0) for name in values}
        steps.append(
            Operation("set", {**of, "values": dict(values), "was": was}, _SET_S, f"{terms.backend}: set {said}")
        )
    for name in then:
        if name not in now:
            text = f"bring {terms.backend}/{name} into rotation, and wait until it is up"
            steps.append(Operation("ready", {**of, "server": name}, terms.ready_s, text))
    for name in reversed(now):
        if name not in then:
            text = f"give {terms.backend}/{name} nothing new, and wait until its requests have ended"
            steps.append(Operation("drain", {**of, "server": name}, terms.drain_s, text))
            text = f"take {terms.backend}/{name} out of rotation"
            steps.append(Operation("maint", {**of, "server": name}, _SET_S, text))
    return steps


def taken_back(plan: Plan) -> tuple[Operation, ...]:
    """What the plan wrote into the file, as it was before."""
    serving, engine = plan.undo.get("servers", ()), plan.before.engine
    return tuple(
        replace(
            step,
            args={
                "changes": {
                    server: {
                        name: server not in serving if name == "disabled" else engine.get(f"{name}.{server}", 0)
                        for name in values
                    }
                    for server, values in step.args["changes"].items()
                }
            },
            summary="write what was there before into HAProxy's file again",
        )
        for step in plan.finish
    )


def _persist(
    terms: BackendTerms, text: str, now: Sequence[str], then: Sequence[str], values: Mapping[str, int]
) -> Operation:
    changes: dict[str, dict[str, int | bool]] = {}
    for name, value in values.items():
        limit, _, server = name.partition(".")
        changes.setdefault(server, {})[limit] = value
    for server in {*now} ^ {*then}:
        changes.setdefault(server, {})["disabled"] = server not in then
    try:
        with_servers(text, terms.backend, changes)
    except UneditableLine as error:
        why = f"{terms.path}: {error}. Without the option config the change holds until the next reload"
        raise CannotPlan("BY_HAND", why) from error
    summary = f"write the same into {terms.path}, so that a reload keeps it"
    return Operation("persist", {"changes": {k: changes[k] for k in sorted(changes)}}, _SET_S, summary)
