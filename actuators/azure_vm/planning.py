"""What a virtual machine, a scale set or a node pool is, and the plans for it. Pure: bodies in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actuators.arm import digest
from actuators.base import CannotPlan
from actuators.shape import Autoscaling, Need, Operation, Plan, Shape
from collectors.azure.machines import MachineId, MachineSize

Body = Mapping[str, Any]

#: Seconds in which a machine does not serve: it starts anew, or is taken off its hardware before.
_REBOOT_S, _MOVE_S = 180.0, 600.0
#: Fields of a Shape that nobody can change here; cores and accelerators come and go with the size.
_FIXED = ("memory_gb", "purchase", "tier", "region", "extra", "schedule")


@dataclass(frozen=True, slots=True)
class MachineState:
    """One of the three as ARM has it."""

    id: MachineId
    body: Body
    power: str = "running"
    """Of a virtual machine."""
    here: frozenset[str] = frozenset()
    """Of a virtual machine: sizes that the hardware which it runs on has."""
    owner: str | None = None
    """The autoscale setting that sets a scale set's count. None: none does."""
    owner_known: bool = True

    @property
    def properties(self) -> Body:
        return self.body.get("properties") or {}

    @property
    def sku(self) -> Body:
        return self.body.get("sku") or {}

    @property
    def size(self) -> str | None:
        if self.id.kind == "vm":
            size = (self.properties.get("hardwareProfile") or {}).get("vmSize")
        else:
            size = self.sku.get("name") if self.id.kind == "set" else self.properties.get("vmSize")
        return size if isinstance(size, str) else None

    @property
    def count(self) -> int | None:
        if self.id.kind == "vm":
            return 1
        count = self.sku.get("capacity") if self.id.kind == "set" else self.properties.get("count")
        return count if isinstance(count, int) and not isinstance(count, bool) else None

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Of a pool that the cluster's autoscaler scales."""
        if self.id.kind != "pool" or not self.properties.get("enableAutoScaling"):
            return None
        least, most = self.properties.get("minCount"), self.properties.get("maxCount")
        return (least, most) if isinstance(least, int) and isinstance(most, int) else None

    @property
    def etag(self) -> str | None:
        etag = self.properties.get("eTag") if self.id.kind == "pool" else self.body.get("etag")
        return etag if isinstance(etag, str) and etag else None

    @property
    def manual(self) -> bool:
        """Whether a scale set's machines become what its model says only when they are told."""
        return (self.properties.get("upgradePolicy") or {}).get("mode") == "Manual"


@dataclass(frozen=True, slots=True)
class AzureTerms:
    """What a plan takes beside what is there."""

    endpoint: str
    region: str
    sizes: Mapping[str, MachineSize]
    free: Mapping[str, float | None]
    """Cores by family."""
    change_s: float
    start_s: float

    def needs(self, size: str | None, count: int, before: str | None, had: int) -> tuple[Need, ...]:
        """Cores that ``count`` machines of ``size`` take beyond those that there are."""
        new, old = self.sizes.get(size or ""), self.sizes.get(before or "")
        if new is None:
            return ()
        more = count * new.cores - (had * old.cores if old is not None and old.family == new.family else 0)
        return (Need(f"cores of {new.family}", float(more), self.free.get(new.family)),) if more > 0 else ()


def shape_of(state: MachineState, sizes: Mapping[str, MachineSize], region: str) -> Shape:
    known = sizes.get(state.size or "")
    bounds = state.bounds
    owned = bounds is not None or state.owner is not None
    return Shape(
        replicas=None if owned else state.count,
        size=state.size,
        cpus=float(known.cores) if known is not None else None,
        autoscaling=Autoscaling(*bounds) if bounds is not None else None,
        region=region or None,
    )


def version_of(state: MachineState, writes: int) -> str:
    """Of what is configured, and of how often Flyball itself wrote: an etag moves with the state, too."""
    count = None if state.bounds is not None or state.owner is not None else state.count
    return digest({"size": state.size, "count": count, "bounds": state.bounds, "owner": state.owner, "writes": writes})


def plan(
    terms: AzureTerms, state: MachineState, version: str, live: Shape, wanted: Shape, *, start: bool = False
) -> Plan:
    """From what is there to ``wanted``; ``start``: and have a machine run that does not. Raises CannotPlan."""
    steps: list[Operation] = []
    needs: tuple[Need, ...] = ()
    if _same(live, wanted):
        if start and state.id.kind == "vm" and state.power != "running":
            steps = [_step("start", {}, terms.start_s, f"{state.id.name} is started")]
        return _made(terms, state, version, live, wanted, steps, (), "nothing is done")
    _check(terms, state, live, wanted)
    count = wanted.replicas if wanted.replicas is not None else state.count or 0
    if wanted.autoscaling is not None:
        count = wanted.autoscaling.most
    needs = terms.needs(
        wanted.size, count, state.size, state.bounds[1] if state.bounds is not None else state.count or 0
    )
    if state.id.kind == "vm":
        return _made(
            terms,
            state,
            version,
            live,
            wanted,
            _resize(terms, state, wanted, start=start),
            needs,
            f"it is made a {live.size} again",
        )
    if state.id.kind == "set":
        return _made(
            terms,
            state,
            version,
            live,
            wanted,
            _scale_set(terms, state, wanted),
            needs,
            f"it is made {live.label()} again",
        )
    if wanted.size != live.size:
        return _made(
            terms,
            state,
            version,
            live,
            wanted,
            [],
            needs,
            "the old pool is kept",
            by_hand=_new_pool(state, wanted, count),
        )
    return _made(
        terms, state, version, live, wanted, [_pool(terms, state, wanted)], needs, f"it is made {live.label()} again"
    )


def _same(live: Shape, wanted: Shape) -> bool:
    return all(getattr(live, name) == getattr(wanted, name) for name in ("replicas", "size", "autoscaling", *_FIXED))


def _check(terms: AzureTerms, state: MachineState, live: Shape, wanted: Shape) -> None:
    fixed = [name for name in _FIXED if getattr(wanted, name) != getattr(live, name)]
    if fixed:
        raise CannotPlan("UNSUPPORTED_CHANGE", f"machines of a cloud have no {', '.join(fixed)} to change here")
    if wanted.size is None:
        raise CannotPlan("INCOMPLETE_SHAPE", "say which VM size")
    if wanted.size != live.size and terms.sizes:
        found = terms.sizes.get(wanted.size)
        if found is None or found.refused is not None:
            why = "is not offered" if found is None else f"may not be had ({found.refused})"
            raise CannotPlan("UNKNOWN_SIZE", f"{wanted.size} {why} in {terms.region}")
    _check_count(state, live, wanted)
    if state.id.kind == "vm" and wanted.replicas != 1:
        raise CannotPlan("UNSUPPORTED_CHANGE", "a virtual machine is one; several are a scale set")
    if state.id.kind == "set" and wanted.size != live.size and state.properties.get("orchestrationMode") == "Flexible":
        text = "machines of a flexible scale set are resized one by one: name each as an endpoint, or make another set"
        raise CannotPlan("UNSUPPORTED_CHANGE", text)


def _check_count(state: MachineState, live: Shape, wanted: Shape) -> None:
    if (wanted.autoscaling is None) != (live.autoscaling is None):
        raise CannotPlan(
            "UNSUPPORTED_CHANGE", "whether an autoscaler sets the count is not changed here: its bounds are"
        )
    if wanted.autoscaling is not None:
        scaled = wanted.autoscaling
        if dict(scaled.targets) or not 0 <= scaled.least <= scaled.most:
            raise CannotPlan("INCOMPLETE_SHAPE", "a pool's autoscaler has a least and a most count, and no targets")
        return
    if state.owner is not None or not state.owner_known:
        whose = f"autoscale setting {state.owner} sets" if state.owner is not None else "it may not be known who sets"
        if wanted.replicas != live.replicas or not state.owner_known:
            raise CannotPlan("OWNED", f"{whose} the count of {state.id.name}: tune it by hand")
    elif wanted.replicas is None or wanted.replicas < (1 if state.id.kind == "vm" else 0):
        raise CannotPlan(
            "INCOMPLETE_SHAPE", f"say how many machines, not {wanted.replicas}; to stop paying for one, deallocate it"
        )


def _resize(terms: AzureTerms, state: MachineState, wanted: Shape, *, start: bool) -> list[Operation]:
    """In place where the hardware that it runs on has the size; else it leaves that hardware first."""
    name, size, before = state.id.name, wanted.size, state.size
    resize = _step("resize", {"from": before, "size": size}, terms.change_s, f"{name}: {before} becomes {size}")
    on = _step("start", {}, terms.start_s, f"{name} is started")
    if state.power == "deallocated":
        return [resize, on] if start else [resize]
    if size in state.here and state.power == "running":
        return [resize]
    off = _step(
        "deallocate",
        {},
        terms.change_s,
        f"{name} is stopped and leaves its hardware: a dynamic address and its temporary disk are lost",
    )
    return [off, resize, on]


def _scale_set(terms: AzureTerms, state: MachineState, wanted: Shape) -> list[Operation]:
    count = state.count if wanted.replicas is None else wanted.replicas
    args = {"from": [state.size, state.count], "to": [wanted.size, count], "owned": state.owner is not None}
    said = f"{state.id.name}: {state.count} x {state.size} become {count} x {wanted.size}"
    steps = [_step("set", args, terms.change_s, said)]
    if wanted.size != state.size:
        how = "are told to become" if state.manual else "become, by its own upgrade policy,"
        step = {"size": wanted.size, "manual": state.manual}
        steps.append(
            _step("upgrade", step, terms.start_s, f"{state.id.name}: its machines {how} {wanted.size}, and start anew")
        )
    return steps


def _pool(terms: AzureTerms, state: MachineState, wanted: Shape) -> Operation:
    if wanted.autoscaling is not None:
        before, after = list(state.bounds or ()), [wanted.autoscaling.least, wanted.autoscaling.most]
        said = f"pool {state.id.name}: {before[0]}..{before[1]} nodes become {after[0]}..{after[1]}"
        return _step("pool", {"from": before, "to": after}, terms.change_s, said)
    said = f"pool {state.id.name}: {state.count} nodes become {wanted.replicas}"
    return _step("pool", {"from": [state.count], "to": [wanted.replicas]}, terms.start_s, said)


def _new_pool(state: MachineState, wanted: Shape, count: int) -> str:
    parts = state.id.path.split("/")
    group, cluster, old = parts[4], parts[8], state.id.name
    new = f"{old[:11]}2"
    scaled = wanted.autoscaling
    nodes = (
        f"--enable-cluster-autoscaler --min-count {scaled.least} --max-count {scaled.most}"
        if scaled is not None
        else f"--node-count {count}"
    )
    mode = state.properties.get("mode", "User")
    return (
        f"The size of a pool's nodes cannot be changed: make a second pool, move what runs there, then delete {old}.\n\n"
        f"    az aks nodepool add -g {group} --cluster-name {cluster} -n {new} --mode {mode} --node-vm-size {wanted.size} {nodes}\n"
        f"    kubectl cordon -l agentpool={old} && kubectl drain -l agentpool={old} --ignore-daemonsets --delete-emptydir-data\n"
        f"    az aks nodepool delete -g {group} --cluster-name {cluster} -n {old}\n\n"
        f"Labels and taints that the pods ask for must be given to {new}, too. Then name {new} as this endpoint's resource.\n"
    )


def _step(name: str, args: Mapping[str, Any], deadline_s: float, summary: str) -> Operation:
    return Operation(name, args, deadline_s, summary)


def _made(
    terms: AzureTerms,
    state: MachineState,
    version: str,
    before: Shape,
    after: Shape,
    steps: list[Operation],
    needs: tuple[Need, ...],
    way_back: str,
    by_hand: str | None = None,
) -> Plan:
    names = [step.name for step in steps]
    down = (
        _MOVE_S
        if "deallocate" in names or "start" in names
        else _REBOOT_S
        if "resize" in names or "upgrade" in names
        else 0.0
    )
    return Plan(
        endpoint=terms.endpoint,
        system="azure-vm",
        before=before,
        after=after,
        version=version,
        operations=tuple(steps),
        restarts=down > 0,
        downtime_s=down,
        way_back=way_back,
        locks=(f"azure-vm:{state.id.key}",) if steps else (),
        needs=needs,
        by_hand=by_hand,
    )
