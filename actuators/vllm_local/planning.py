"""Which replicas stay, come and go on the way to a shape, and the steps in order. Pure: values in, a plan out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from actuators.base import CannotPlan, LiveState
from actuators.shape import Operation, Plan, Shape
from actuators.vllm_local import settings
from actuators.vllm_local.processes import ProcessRecord

SYSTEM = "vllm-local"
ROUTER = "router"
_CHANGES = ("replicas", "engine")
#: The router takes a new list up with its next request; only on a host that stalls does this take long.
SWITCH_S = 120.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What the last switch put behind the address."""

    generation: int = 0
    shape: Shape = field(default_factory=lambda: Shape(replicas=0))
    backends: Mapping[str, str] = field(default_factory=dict)
    token: str = ""


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What is there when a plan is made."""

    endpoint: str
    served_name: str
    options: settings.Options
    serving: Serving
    records: Mapping[str, ProcessRecord]
    running: Collection[str]
    """Names of the processes that run, the router's too."""


@dataclass(frozen=True, slots=True)
class _BackendChange:
    kept: tuple[str, ...]
    new: Mapping[str, str | None]
    """Name to device."""
    old: tuple[str, ...]
    """Serve now and will not: drained, then stopped."""
    strays: tuple[str, ...]
    """Run, and serve nobody: left by a change that was interrupted."""
    overlap: bool
    """New ones first, or old ones first."""

    @property
    def then(self) -> list[str]:
        return [*self.kept, *self.new]


def plan(context: PlanContext, live: LiveState, wanted: Shape) -> Plan:
    """The steps from what is there to ``wanted``. Raises ``CannotPlan``."""
    digest = _check(context, live, wanted)
    moves = _moves(context, digest, wanted.replicas or 0)
    router_down = bool(wanted.replicas) and ROUTER not in context.running
    settled = live.shape == wanted and set(context.serving.backends) == set(moves.kept) and not router_down
    operations = _stop(context, moves) if settled and not moves.new else _steps(context, moves, live, wanted, digest)
    gap = context.options.start_s + (context.options.grace_s if moves.old else 0.0)
    interrupts = any(name in context.running for name in moves.old)
    return Plan(
        endpoint=context.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(operations),
        restarts=interrupts,
        downtime_s=gap if interrupts and moves.new and not moves.overlap else 0.0,
        way_back="the same steps towards the shape before: its replicas are started again, those of this plan drained and stopped",
    )


def _check(context: PlanContext, live: LiveState, wanted: Shape) -> str:
    """The digest of a wanted replica. Raises ``CannotPlan`` when the shape is incomplete or beyond this system."""
    if wanted.replicas is None or wanted.replicas < 0:
        raise CannotPlan("INCOMPLETE_SHAPE", "say how many replicas: vllm-local has no autoscaler")
    other = [k for k in Shape.__slots__ if k not in _CHANGES and getattr(wanted, k) != getattr(live.shape, k)]
    if other:
        text = f"vllm-local cannot change {', '.join(other)}: it changes replicas and engine limits on this host"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    places = len(context.options.devices)
    if places and wanted.replicas > places:
        raise CannotPlan("NO_FREE_DEVICE", f"{wanted.replicas} replicas need as many `devices`; {places} are listed")
    try:
        return settings.digest(context.options, context.served_name, wanted.engine)
    except ValueError as error:
        raise CannotPlan("BAD_ENGINE_LIMIT", str(error)) from None


def _moves(context: PlanContext, digest: str, count: int) -> _BackendChange:
    serving = sorted(context.serving.backends)
    fit = [n for n in serving if n in context.running and (r := context.records.get(n)) and r.digest == digest]
    kept = tuple(fit[:count])
    missing = count - len(kept)
    strategy, devices = context.options.strategy, context.options.devices
    held = {r.device for n, r in context.records.items() if n in context.running}
    room = [d for d in devices if d not in held]
    overlap = not missing or (strategy != "replace" and (not devices or len(room) >= missing))
    if strategy == "overlap" and not overlap:
        text = f"to overlap, {missing} free devices are needed and {len(room)} are: use the strategy auto or replace"
        raise CannotPlan("NO_FREE_DEVICE", text)
    if not overlap:
        room = [d for d in devices if d not in {context.records[n].device for n in kept}]
    first = _next_generation(context)
    return _BackendChange(
        kept=kept,
        new={f"g{first}-{i}": room[i] if devices else None for i in range(missing)},
        old=tuple(n for n in serving if n not in kept),
        strays=tuple(n for n in sorted(context.running) if n not in serving and n != ROUTER),
        overlap=overlap,
    )


def _next_generation(context: PlanContext) -> int:
    """Above all that is still known of, so that no name is used twice while anything of it is left."""
    names = {*context.records, *context.running} - {ROUTER}
    used = [int(g) for n in names if (g := n[1:].split("-")[0]).isdigit()]
    return max([context.serving.generation, *used]) + 1


def _steps(context: PlanContext, moves: _BackendChange, live: LiveState, wanted: Shape, digest: str) -> list[Operation]:
    now, then = context.serving.generation, _next_generation(context)
    stop = _stop(context, moves)
    if moves.overlap:
        start = _start(context, now, moves, wanted, digest)
        return [*start, _switch(now, then, moves.then, wanted), *stop]
    if not moves.old:
        start = _start(context, now, moves, wanted, digest)
        return [*stop, *start, _switch(now, then, moves.then, wanted)]
    meanwhile = replace(live.shape, replicas=len(moves.kept))
    leave = _switch(now, then, list(moves.kept), meanwhile)
    start = _start(context, then, moves, wanted, digest)
    return [leave, *stop, *start, _switch(then, then + 1, moves.then, wanted)]


def _start(context: PlanContext, now: int, moves: _BackendChange, wanted: Shape, digest: str) -> list[Operation]:
    if not moves.new:
        return []
    args = {"generation": now, "replicas": dict(moves.new), "engine": dict(wanted.engine), "command": digest}
    summary = f"start {', '.join(moves.new)} and wait until they serve"
    return [Operation("start_replicas", args, context.options.ready_timeout_s, summary)]


def _switch(before: int, after: int, names: list[str], shape: Shape) -> Operation:
    args = {"from_generation": before, "generation": after, "replicas": names, "shape": shape.as_dict()}
    return Operation("switch", args, SWITCH_S, f"send new requests to {', '.join(names) or 'nobody (503)'}")


def _stop(context: PlanContext, moves: _BackendChange) -> list[Operation]:
    leaving = [*moves.old, *moves.strays]
    if not leaving:
        return []
    names, drain_s, grace_s = ", ".join(leaving), context.options.drain_timeout_s, context.options.grace_s
    steps = [
        Operation(
            "stop_replicas", {"replicas": leaving, "grace_s": grace_s}, grace_s + 30.0, f"ask {names} to end (SIGTERM)"
        ),
        Operation(
            "kill_replicas", {"replicas": leaving}, 60.0, f"make sure that {names} are gone, children too (SIGKILL)"
        ),
    ]
    if moves.old:
        args = {"replicas": list(moves.old), "timeout_s": drain_s}
        summary = f"let {', '.join(moves.old)} finish their requests"
        steps.insert(0, Operation("drain", args, drain_s + 30.0, summary))
    return steps
