"""A container or a service as a Shape, and the steps from one to another. Pure.

No body stands in a plan, since an environment may hold secrets: a step says which container it copies, and what is to be different.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actuators.base import CannotPlan, LiveState
from actuators.commandline import ENGINE_LIMITS, engine_of, with_engine
from actuators.shape import EngineValue, Operation, Plan, Shape

SYSTEM = "docker"
Body = Mapping[str, Any]
#: Marks a container that Flyball made, with the plan that it was made for.
MARK = "dev.flyball.plan"
#: The name of the second container while there are two.
NEXT = "-next"


@dataclass(frozen=True, slots=True)
class ContainerTerms:
    """What the settings say of how a change goes, and what the host has."""

    endpoint: str
    start_s: float
    stop_s: float
    host_cpus: int
    host_memory: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class ContainerPair:
    """A container, and the one beside it while one takes the other's place."""

    name: str
    """The settings' own."""
    live: Body
    other: Body | None

    @property
    def free_name(self) -> str:
        """Whose name the next one takes."""
        return self.name if name_of(self.live) == self.name + NEXT else self.name + NEXT


def name_of(container: Body) -> str:
    return str(container.get("Name") or "").lstrip("/")


def runs(container: Body | None) -> bool:
    return bool(((container or {}).get("State") or {}).get("Running"))


def shape_of(container: Body) -> Shape:
    host, config = container.get("HostConfig") or {}, container.get("Config") or {}
    cpus = (host.get("NanoCpus") or 0) / 1e9
    if not cpus and (host.get("CpuQuota") or 0) > 0:
        cpus = host["CpuQuota"] / (host.get("CpuPeriod") or 100_000)
    memory = (host.get("Memory") or 0) / 1e9
    return Shape(
        replicas=1,
        accelerator_count=gpus_of(host) or None,
        cpus=cpus or None,
        memory_gb=memory or None,
        engine=engine_of(_words(config)),
    )


def _words(config: Body) -> Body:
    return {"command": config.get("Entrypoint") or (), "args": config.get("Cmd") or ()}


def gpus_of(host: Body) -> int:
    """How many; -1: all that there are."""
    request = _request(host)
    if request is None:
        return 0
    return len(request.get("DeviceIDs") or ()) or int(request.get("Count") or 0)


def _request(host: Body) -> Body | None:
    for request in host.get("DeviceRequests") or ():
        if any("gpu" in each for each in request.get("Capabilities") or ()) or request.get("Driver") == "nvidia":
            found: Body = request
            return found
    return None


def version_of(container: Body, writes: int) -> str:
    """Of what is configured. Limits have no version of their own, so Flyball's own ``writes`` tell two visits of one state apart."""
    host, config = container.get("HostConfig") or {}, container.get("Config") or {}
    limits = [host.get(k) for k in ("NanoCpus", "CpuQuota", "CpuPeriod", "Memory", "MemorySwap", "DeviceRequests")]
    return digest([writes, container.get("Id"), limits, config.get("Cmd")])


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan(terms: ContainerTerms, pair: ContainerPair, live: LiveState, wanted: Shape) -> Plan:
    """Raises ``CannotPlan``."""
    now = live.shape
    _check(terms, now, wanted)
    if (pair.live.get("HostConfig") or {}).get("AutoRemove") and (wanted.engine, wanted.accelerator_count) != (
        now.engine,
        now.accelerator_count,
    ):
        text = f"container {pair.name} is removed by Docker once it is stopped (--rm), so there would be no way back: run it without"
        raise CannotPlan("NO_WAY_BACK", text)
    limits = {
        name: getattr(wanted, name) for name in ("cpus", "memory_gb") if getattr(wanted, name) != getattr(now, name)
    }
    changes: dict[str, Any] = {}
    if wanted.accelerator_count != now.accelerator_count:
        changes["gpus"] = wanted.accelerator_count or 0
    engine: dict[str, EngineValue | None] = {k: v for k, v in wanted.engine.items() if now.engine.get(k) != v}
    engine |= dict.fromkeys(now.engine.keys() - wanted.engine.keys())
    if engine:
        try:
            changes["args"] = with_engine(_words(pair.live.get("Config") or {}), engine)
        except ValueError as error:
            raise CannotPlan("BY_HAND", f"container {pair.name}: {error}") from error
        changes["engine"] = engine
    if changes:
        return _recreated(terms, pair, live, wanted, {**changes, **limits})
    steps = []
    if limits:
        args = {"container": name_of(pair.live), "id": pair.live["Id"], "version": live.version, **limits}
        said = ", ".join(f"{v:g} {'CPUs' if k == 'cpus' else 'GB'}" for k, v in limits.items())
        steps.append(Operation("limit", args, 60.0, f"{name_of(pair.live)} may use {said}, as it runs"))
    return _plan(terms, live, wanted, tuple(steps), way_back="the limits are set back, as it runs", pair=pair)


def _recreated(terms: ContainerTerms, pair: ContainerPair, live: LiveState, wanted: Shape, changes: Body) -> Plan:
    old, new = name_of(pair.live), pair.free_name
    own = {k: v for k, v in changes.items() if k not in ("args", "engine")}
    said = [f"{k}={v if v is not None else 'none'}" for k, v in sorted({**changes.get("engine", {}), **own}.items())]
    of = {"old": old, "id": pair.live["Id"], "new": new, "version": live.version}
    mark = digest([of, changes])
    kept = {k: v for k, v in changes.items() if k != "args"}
    steps = [
        Operation("create", {**of, "mark": mark, "changes": kept}, 120.0, f"make {new}: {old} with {', '.join(said)}"),
    ]
    stop = Operation("stop", {"container": old, "id": pair.live["Id"]}, terms.stop_s + 60, f"stop {old}")
    start = Operation("start", {"container": new, "mark": mark}, terms.start_s, f"start {new}, until it is healthy")
    beside = not takes_ports(pair.live)
    steps += [start, stop] if beside else [stop, start]
    finish = [
        Operation("remove", {"container": old, "id": pair.live["Id"]}, 60.0, f"remove {old}, which is stopped"),
    ]
    if new != pair.name:
        args = {"container": new, "mark": mark, "to": pair.name}
        finish.append(Operation("rename", args, 60.0, f"{new} takes the name {pair.name}"))
    way_back = f"{new} is removed and {old} started again: it is kept until the change is verified"
    undo = {"old": old, "id": pair.live["Id"], "new": new, "mark": mark}
    return _plan(
        terms,
        live,
        wanted,
        tuple(steps),
        way_back=way_back,
        pair=pair,
        finish=tuple(finish),
        undo=undo,
        restarts=True,
        downtime_s=0.0 if beside else terms.stop_s + terms.start_s,
    )


def back(terms: ContainerTerms, undone: Plan, old: Body | None, new: Body | None, live: LiveState) -> Plan | None:
    """From wherever another container took the place. None where the old one is gone: plan anew."""
    undo = undone.undo
    if old is None or old.get("Id") != undo["id"]:
        return None
    steps = []
    ours = new if new is not None and mark_of(new) == undo["mark"] else None
    if ours is not None and runs(ours):
        args = {"container": name_of(ours), "id": ours["Id"]}
        steps.append(Operation("stop", args, terms.stop_s, f"stop {name_of(ours)}"))
    if not runs(old):
        args = {"container": name_of(old), "id": old["Id"]}
        steps.append(Operation("start", args, terms.start_s, f"start {name_of(old)} again, until it is healthy"))
    if ours is not None:
        args = {"container": name_of(ours), "id": ours["Id"]}
        steps.append(Operation("remove", args, 60.0, f"remove {name_of(ours)}"))
    return _plan(
        terms, live, undone.before, tuple(steps), way_back="none: this is the way back", pair=None, restarts=True
    )


def mark_of(container: Body) -> str | None:
    found = ((container.get("Config") or {}).get("Labels") or {}).get(MARK)
    return None if found is None else str(found)


def takes_ports(container: Body) -> bool:
    """Whether two of it cannot run at once, as they would want the same port of the host."""
    host = container.get("HostConfig") or {}
    return host.get("NetworkMode") == "host" or any((host.get("PortBindings") or {}).values())


def creation(container: Body, changes: Body, mark: str, image: str) -> dict[str, Any]:
    """The body that makes a container like this one with the changes. ``image``: its name, or its id where the name is another's now."""
    config = copy.deepcopy(dict(container.get("Config") or {}))
    host = copy.deepcopy(dict(container.get("HostConfig") or {}))
    if config.get("Hostname") == str(container.get("Id"))[:12] or host.get("NetworkMode") == "host":
        config.pop("Hostname", None)  # Docker's own, which the new one gets of itself
    config["Image"] = image
    config["Labels"] = {**(config.get("Labels") or {}), MARK: mark}
    if "engine" in changes:
        config["Cmd"] = with_engine(_words(config), changes["engine"])
    if "gpus" in changes:
        host["DeviceRequests"] = _gpus(host, int(changes["gpus"]))
    host |= limits_body(host, changes.get("cpus"), changes.get("memory_gb"))
    host["Binds"] = [*(host.get("Binds") or ()), *_volumes(container, host)]
    body: dict[str, Any] = {**config, "HostConfig": host}
    networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
    if host.get("NetworkMode") not in ("host", "none") and networks:
        kept = ("IPAMConfig", "Links", "Aliases", "DriverOpts")
        own = str(container.get("Id"))[:12]
        body["NetworkingConfig"] = {
            "EndpointsConfig": {
                name: {
                    k: [a for a in v if a != own] if k == "Aliases" else v for k, v in each.items() if k in kept and v
                }
                for name, each in networks.items()
            }
        }
    return body


def _volumes(container: Body, host: Body) -> list[str]:
    """Volumes without a name of anybody's choice: the new one takes them over, where `Binds` and `Mounts` do not name them."""
    named = {str(b).split(":")[1] for b in host.get("Binds") or () if ":" in str(b)}
    named |= {str(m.get("Target")) for m in host.get("Mounts") or ()}
    return [
        f"{m['Name']}:{m['Destination']}"
        for m in container.get("Mounts") or ()
        if m.get("Type") == "volume" and m.get("Name") and m.get("Destination") not in named
    ]


def _gpus(host: Body, count: int) -> list[dict[str, Any]]:
    request = _request(host)
    others = [dict(r) for r in host.get("DeviceRequests") or () if r is not request]
    if count == 0:
        return others
    made = dict(request) if request is not None else {"Driver": "", "Capabilities": [["gpu"]], "Options": {}}
    return [*others, {**made, "Count": count, "DeviceIDs": None}]


def limits_body(host: Body, cpus: float | None, memory_gb: float | None) -> dict[str, Any]:
    """As the container states them: by quota where it does, and with as much swap on top as before."""
    body: dict[str, Any] = {}
    if cpus is not None:
        if (host.get("CpuQuota") or 0) > 0:
            body["CpuQuota"] = round(cpus * (host.get("CpuPeriod") or 100_000))
        else:
            body["NanoCpus"] = round(cpus * 1e9)
    if memory_gb is not None:
        memory, swap, was = round(memory_gb * 1e9), host.get("MemorySwap") or 0, host.get("Memory") or 0
        body["Memory"] = memory
        body["MemorySwap"] = swap if swap < 0 else memory + max(0, swap - was) if swap else 2 * memory
    return body


def _check(terms: ContainerTerms, now: Shape, wanted: Shape) -> None:
    names = ("cpus", "memory_gb", "engine", "accelerator_count")
    other = [k for k in Shape.__slots__ if k not in names and getattr(wanted, k) != getattr(now, k)]
    if other:
        text = f"a container has no {', '.join(other)} to change here: one container is one replica of one host"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)
    for name in ("cpus", "memory_gb"):
        then = getattr(wanted, name)
        if then != getattr(now, name) and (then is None or getattr(now, name) is None):
            text = f"{name}: Docker cannot set a limit for the first time and take it away again as it runs: state one at `docker run`"
            raise CannotPlan("NOT_STATED", text)
    if wanted.cpus is not None and not 0.01 <= wanted.cpus <= terms.host_cpus:
        raise CannotPlan("NO_ROOM", f"the host has {terms.host_cpus} CPUs, and not {wanted.cpus:g}")
    if wanted.memory_gb is not None and not 6e6 <= wanted.memory_gb * 1e9 <= terms.host_memory:
        raise CannotPlan("NO_ROOM", f"the host has {terms.host_memory / 1e9:.3g} GB, and not {wanted.memory_gb:g}")
    if wanted.accelerator_count is not None and wanted.accelerator_count < -1:
        raise CannotPlan("BAD_COUNT", f"{wanted.accelerator_count} GPUs: a count, or -1 for all of the host's")
    _check_engine(now.engine, wanted.engine)


def _check_engine(now: Mapping[str, EngineValue], wanted: Mapping[str, EngineValue]) -> None:
    for name, value in wanted.items():
        if value == now.get(name):
            continue
        if name not in ENGINE_LIMITS or isinstance(value, bool) or not isinstance(value, int) or value < 1:
            text = f"{name}={value}: known are {', '.join(ENGINE_LIMITS)}, whole numbers above 0"
            raise CannotPlan("BAD_ENGINE_LIMIT", text)


# -- a service of a swarm ----------------------------------------------------------------------------------------------


def service_shape(service: Body) -> Shape:
    spec = service.get("Spec") or {}
    limits = ((spec.get("TaskTemplate") or {}).get("Resources") or {}).get("Limits") or {}
    inner = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    replicas = ((spec.get("Mode") or {}).get("Replicated") or {}).get("Replicas")
    words = {"command": inner.get("Command") or (), "args": inner.get("Args") or ()}
    return Shape(
        replicas=replicas,
        cpus=(limits.get("NanoCPUs") or 0) / 1e9 or None,
        memory_gb=(limits.get("MemoryBytes") or 0) / 1e9 or None,
        engine=engine_of(words),
    )


def service_version(service: Body, writes: int) -> str:
    """Of the specification: the index counts up with its status too."""
    return digest([writes, service.get("ID"), service.get("Spec")])


def scale(terms: ContainerTerms, service: Body, live: LiveState, wanted: Shape) -> Plan:
    """Raises ``CannotPlan``."""
    now, name = live.shape, str((service.get("Spec") or {}).get("Name"))
    other = [k for k in Shape.__slots__ if k != "replicas" and getattr(wanted, k) != getattr(now, k)]
    if other:
        raise CannotPlan(
            "UNSUPPORTED_CHANGE", f"of service {name} only the replicas are changed here, not {', '.join(other)}"
        )
    if now.replicas is None and wanted != now:
        raise CannotPlan("UNSUPPORTED_CHANGE", f"service {name} is global: it runs once on each node")
    if now.replicas is not None and (wanted.replicas is None or wanted.replicas < 0):
        raise CannotPlan("INCOMPLETE_SHAPE", f"say how many replicas of service {name}, not {wanted.replicas}")
    steps = []
    if wanted.replicas != now.replicas:
        args = {"service": name, "replicas": wanted.replicas, "was": now.replicas, "version": live.version}
        summary = f"service {name}: {now.replicas} replicas become {wanted.replicas}"
        steps.append(Operation("scale", args, terms.start_s, summary))
    return _plan(terms, live, wanted, tuple(steps), way_back="the count is set back", pair=None)


def _plan(
    terms: ContainerTerms,
    live: LiveState,
    wanted: Shape,
    steps: tuple[Operation, ...],
    *,
    way_back: str,
    pair: ContainerPair | None,
    finish: tuple[Operation, ...] = (),
    undo: Body | None = None,
    restarts: bool = False,
    downtime_s: float = 0.0,
) -> Plan:
    return Plan(
        endpoint=terms.endpoint,
        system=SYSTEM,
        before=live.shape,
        after=wanted,
        version=live.version,
        operations=steps,
        restarts=restarts and bool(steps),
        downtime_s=downtime_s,
        way_back=way_back if steps else "nothing is done",
        finish=finish,
        undo=undo or {},
        locks=(f"docker:{pair.name}",) if pair is not None and steps else (),
    )
