"""Which replicas stay, come and go on the way to a shape, and the steps in order. Pure: values in, a plan out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from actuators.base import CannotPlan, Live
from actuators.shape import Operation, Plan, Shape
from actuators.vllm_local import settings
from actuators.vllm_local.processes import Record

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
class World:
    """What is there when a plan is made."""

    endpoint: str
    served_name: str
    options: settings.Options
    serving: Serving
    records: Mapping[str, Record]
    running: Collection[str]
    """Names of the processes that run, the router's too."""


@dataclass(frozen=True, slots=True)
class _Moves:
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


def plan(world: World, live: Live, wanted: Shape) -> Plan:
    """The steps from what is there to ``wanted``. Raises ``CannotPlan``."""
    digest = _check(world, live, wanted)
    moves = _moves(world, digest, wanted.replicas or 0)
    router_down = bool(wanted.replicas) and ROUTER not in world.running
    settled = live.shape == wanted and set(world.serving.backends) == set(moves.kept) and not router_down
    operations = _stop(world, moves) if settled and not moves.new else _steps(world, moves, live, wanted, digest)
    gap = world.options.start_s + (world.options.grace_s if moves.old else 0.0)
    interrupts = any(name in world.running for name in moves.old)
    return Plan(
        endpoint=world.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=tuple(operations),
        restarts=interrupts,
        downtime_s=gap if interrupts and moves.new and not moves.overlap else 0.0,
        way_back="the same steps towards the shape before: its replicas are started again, those of this plan drained and stopped",
    )


def _check(world: World, live: Live, wanted: Shape) -> str:
    """The digest of a wanted replica. Raises ``CannotPlan`` when the shape is incomplete or beyond this system."""
    if wanted.replicas is None or wanted.replicas < 0:
        raise CannotPlan("INCOMPLETE_SHAPE", "say how many replicas: vllm-local has no autoscaler")
    other = [k for k in Shape.__slots__ if k not in _CHANGES and getattr(wanted, k) != getattr(live.shape, k)]
    if other:
        text = f"vllm-local cannot change {', '.join(other)}: it changes replicas and engine limits on this host"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    places = len(world.options.devices)
    if places and wanted.replicas > places:
        raise CannotPlan("NO_FREE_DEVICE", f"{wanted.replicas} replicas need as many `devices`; {places} are listed")
    try:
        return settings.digest(world.options, world.served_name, wanted.engine)
    except ValueError as error:
        raise CannotPlan("BAD_ENGINE_LIMIT", str(error)) from None


def _moves(world: World, digest: str, count: int) -> _Moves:
    serving = sorted(world.serving.backends)
    fit = [n for n in serving if n in world.running and (r := world.records.get(n)) and r.digest == digest]
    kept = tuple(fit[:count])
    missing = count - len(kept)
    strategy, devices = world.options.strategy, world.options.devices
    held = {r.device for n, r in world.records.items() if n in world.running}
    room = [d for d in devices if d not in held]
    overlap = not missing or (strategy != "replace" and (not devices or len(room) >= missing))
    if strategy == "overlap" and not overlap:
        text = f"to overlap, {missing} free devices are needed and {len(room)} are: use the strategy auto or replace"
        raise CannotPlan("NO_FREE_DEVICE", text)
    if not overlap:
        room = [d for d in devices if d not in {world.records[n].device for n in kept}]
    first = _next_generation(world)
    return _Moves(
        kept=kept,
        new={f"g{first}-{i}": room[i] if devices else None for i in range(missing)},
        old=tuple(n for n in serving if n not in kept),
        strays=tuple(n for n in sorted(world.running) if n not in serving and n != ROUTER),
        overlap=overlap,
    )


def _next_generation(world: World) -> int:
    """Above all that is still known of, so that no name is used twice while anything of it is left."""
    names = {*world.records, *world.running} - {ROUTER}
    used = [int(g) for n in names if (g := n[1:].split("-")[0]).isdigit()]
    return max([world.serving.generation, *used]) + 1


def _steps(world: World, moves: _Moves, live: Live, wanted: Shape, digest: str) -> list[Operation]:
    now, then = world.serving.generation, _next_generation(world)
    stop = _stop(world, moves)
    if moves.overlap:
        start = _start(world, now, moves, wanted, digest)
        return [*start, _switch(now, then, moves.then, wanted), *stop]
    if not moves.old:
        start = _start(world, now, moves, wanted, digest)
        return [*stop, *start, _switch(now, then, moves.then, wanted)]
    meanwhile = replace(live.shape, replicas=len(moves.kept))
    leave = _switch(now, then, list(moves.kept), meanwhile)
    start = _start(world, then, moves, wanted, digest)
    return [leave, *stop, *start, _switch(then, then + 1, moves.then, wanted)]


def _start(world: World, now: int, moves: _Moves, wanted: Shape, digest: str) -> list[Operation]:
    if not moves.new:
        return []
    args = {"generation": now, "replicas": dict(moves.new), "engine": dict(wanted.engine), "command": digest}
    summary = f"start {', '.join(moves.new)} and wait until they serve"
    return [Operation("start_replicas", args, world.options.ready_timeout_s, summary)]


def _switch(before: int, after: int, names: list[str], shape: Shape) -> Operation:
    args = {"from_generation": before, "generation": after, "replicas": names, "shape": shape.as_dict()}
    return Operation("switch", args, SWITCH_S, f"send new requests to {', '.join(names) or 'nobody (503)'}")


def _stop(world: World, moves: _Moves) -> list[Operation]:
    leaving = [*moves.old, *moves.strays]
    if not leaving:
        return []
    names, drain_s, grace_s = ", ".join(leaving), world.options.drain_timeout_s, world.options.grace_s
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
