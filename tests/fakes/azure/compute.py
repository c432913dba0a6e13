"""Compute's and Container Service's parts: virtual machines, scale sets, AKS node pools; sizes, cores, long operations, etags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.azure.cloud import GROUP, REGION, Cloud, Operation, Refusal
from tests.fakes.azure.server import Call, Reply, Route, paged, route

COMPUTE, CONTAINERS = "Microsoft.Compute", "Microsoft.ContainerService"
VERSION, AKS, SKUS = "2026-04-01", "2026-08-01", "2021-07-01"


@dataclass
class Machine:
    """A virtual machine, a scale set, or a node pool."""

    kind: str
    path: str
    body: dict[str, Any]
    """Without provisioningState and etag."""
    state: str = "Succeeded"
    power: str = "running"
    etag: int = 1
    here: tuple[str, ...] = ()
    """Of a virtual machine: sizes of the hardware that it is on."""
    applied: list[bool] = field(default_factory=list)
    """Of a scale set: of each machine, whether it is what the model says."""
    busy: float = 0.5
    """Share of its cores in use."""
    running: str | None = None
    """The operation that is under way."""

    @property
    def size(self) -> str:
        told = self.body
        if self.kind == "vm":
            return str(told["properties"]["hardwareProfile"]["vmSize"])
        return str(told["sku"]["name"] if self.kind == "set" else told["properties"]["vmSize"])

    @property
    def count(self) -> int:
        if self.kind == "vm":
            return 0 if self.power == "deallocated" else 1
        return int(self.body["sku"]["capacity"] if self.kind == "set" else self.body["properties"]["count"])

    def shown(self) -> dict[str, Any]:
        properties = {**self.body["properties"], "provisioningState": self.state}
        if self.kind == "pool":
            return {
                **self.body,
                "id": self.path,
                "name": self.path.rpartition("/")[2],
                "properties": {**properties, "eTag": f'"{self.etag}"'},
            }
        return {
            **self.body,
            "id": self.path,
            "name": self.path.rpartition("/")[2],
            "etag": f'"{self.etag}"',
            "properties": properties,
        }


def _at(cloud: Cloud, provider: str, rest: str) -> str:
    return f"/subscriptions/{cloud.subscription}/resourceGroups/{GROUP}/providers/{provider}/{rest}"


def _added(cloud: Cloud, machine: Machine) -> Machine:
    cloud.machines[machine.path.lower()] = machine
    return machine


def add_vm(
    cloud: Cloud, name: str = "gpu", size: str = "Standard_F2s_v2", *, here: tuple[str, ...] = ("Standard_F4s_v2",)
) -> Machine:
    body = {
        "location": REGION,
        "tags": {"owner": "ada"},
        "properties": {"hardwareProfile": {"vmSize": size}, "storageProfile": {"osDisk": {"osType": "Linux"}}},
    }
    return _added(cloud, Machine("vm", _at(cloud, COMPUTE, f"virtualMachines/{name}"), body, here=(size, *here)))


def add_set(
    cloud: Cloud,
    name: str = "fleet",
    size: str = "Standard_F2s_v2",
    count: int = 2,
    *,
    mode: str = "Manual",
    flexible: bool = False,
) -> Machine:
    properties = {"upgradePolicy": {"mode": mode}, "orchestrationMode": "Flexible" if flexible else "Uniform"}
    body = {"location": REGION, "sku": {"name": size, "tier": "Standard", "capacity": count}, "properties": properties}
    made = Machine("set", _at(cloud, COMPUTE, f"virtualMachineScaleSets/{name}"), body, applied=[True] * count)
    return _added(cloud, made)


def add_pool(
    cloud: Cloud,
    name: str = "gpupool",
    size: str = "Standard_F2s_v2",
    count: int = 2,
    bounds: tuple[int, int] | None = None,
) -> Machine:
    properties: dict[str, Any] = {
        "vmSize": size,
        "count": count,
        "mode": "User",
        "osType": "Linux",
        "nodeLabels": {"gpu": "yes"},
    }
    if bounds is not None:
        properties |= {"enableAutoScaling": True, "minCount": bounds[0], "maxCount": bounds[1]}
    return _added(
        cloud,
        Machine("pool", _at(cloud, CONTAINERS, f"managedClusters/aks/agentPools/{name}"), {"properties": properties}),
    )


# -- finding, and long operations --------------------------------------------------------------------------------------------


def _found(call: Call) -> Machine:
    path = call.path.rstrip("/")
    for tail in ("/instanceView", "/vmSizes", "/deallocate", "/start", "/manualupgrade", "/virtualMachines"):
        path = path.removesuffix(tail)
    machine = call.cloud.machines.get(path.lower())
    if machine is None:
        raise Refusal(404, "ResourceNotFound", f"The Resource '{path}' was not found.")
    return machine


def _check(call: Call, machine: Machine) -> None:
    """Its etag, and that nothing is under way."""
    wanted = call.headers.get("if-match")
    if wanted is not None and wanted != f'"{machine.etag}"':
        raise Refusal(412, "PreconditionFailed", "The condition specified using HTTP conditional header(s) is not met.")
    if machine.running is not None and call.cloud.operations[machine.running].status == "InProgress":
        text = "The request failed due to conflict with a concurrent request. Another operation is in progress."
        raise Refusal(409, "AnotherOperationInProgress", text, {"Retry-After": str(call.cloud.retry_after_s)})


def _begun(
    call: Call,
    machine: Machine,
    kind: str,
    done: Callable[[], None],
    undo: Callable[[], None],
    status: int,
    state: str = "Updating",
) -> Reply:
    cloud, now = call.cloud, call.cloud.clock()
    error = cloud.operation_errors.pop((kind, machine.path.rpartition("/")[2]), None)
    machine.state, machine.etag = state, machine.etag + 1

    def ended() -> None:
        done()
        machine.state, machine.etag = "Succeeded", machine.etag + 1

    def failed() -> None:
        undo()
        machine.state, machine.etag = "Failed", machine.etag + 1

    name = cloud.new_id("op").replace(":", "-")
    cloud.operations[name] = Operation(
        name, machine.path.lower(), None, kind, now, now + cloud.scale_s, ended, failed, error
    )
    machine.running = name
    provider, version = (CONTAINERS, AKS) if machine.kind == "pool" else (COMPUTE, VERSION)
    at = f"{call.base}/subscriptions/{cloud.subscription}/providers/{provider}/locations/{REGION}/operations/{name}?api-version={version}"
    body = None if kind in ("deallocate", "start", "upgrade") else machine.shown()
    return Reply(status, body, {"Azure-AsyncOperation": at, "Retry-After": str(cloud.retry_after_s)})


def operation_status(call: Call) -> Reply:
    operation = call.cloud.operations.get(call.names["operation"])
    if operation is None:
        raise Refusal(404, "NotFound", "no such operation")
    body: dict[str, Any] = {"name": operation.name, "status": operation.status}
    if operation.status == "InProgress":
        return Reply(200, body, {"Retry-After": str(call.cloud.retry_after_s)})
    if operation.error is not None:
        body["error"] = {"code": operation.error[0], "message": operation.error[1]}
    return Reply(200, body)


def cores_used(cloud: Cloud, family: str | None) -> int:
    return sum(
        cloud.sizes[m.size].cores * m.count
        for m in cloud.machines.values()
        if family is None or cloud.sizes[m.size].family == family
    )


def _check_cores(call: Call, machine: Machine, size: str, count: int) -> None:
    cloud = call.cloud
    if size not in cloud.sizes:
        raise Refusal(400, "InvalidParameter", f"The value {size} provided for the VM size is not valid.")
    new, old = cloud.sizes[size], cloud.sizes[machine.size]
    had = machine.count * old.cores if old.family == new.family else 0
    free = cloud.quota[new.family] - cores_used(cloud, new.family)
    if count * new.cores - had > free:
        text = (
            f"Operation could not be completed as it results in exceeding approved {new.family} Cores quota. "
            f"Additional Required: {count * new.cores - had}, (Minimum) New Limit Required: more than {free} free."
        )
        raise Refusal(409, "OperationNotAllowed", text)


# -- virtual machines --------------------------------------------------------------------------------------------------------


def get(call: Call) -> Reply:
    return Reply(200, _found(call).shown())


def instance_view(call: Call) -> Reply:
    machine = _found(call)
    return Reply(
        200,
        {"statuses": [{"code": f"ProvisioningState/{machine.state.lower()}"}, {"code": f"PowerState/{machine.power}"}]},
    )


def vm_sizes(call: Call) -> Reply:
    machine = _found(call)
    names = call.cloud.sizes if machine.power == "deallocated" else machine.here
    return Reply(200, {"value": [{"name": n, "numberOfCores": call.cloud.sizes[n].cores} for n in names]})


def patch_vm(call: Call) -> Reply:
    machine = _found(call)
    _check(call, machine)
    size = ((call.body or {}).get("properties") or {}).get("hardwareProfile", {}).get("vmSize")
    if size is None or set(call.body) - {"properties", "tags"}:
        raise Refusal(400, "InvalidParameter", "Only a size is patched here.")
    if machine.power == "running" and size not in machine.here:
        text = f"Unable to resize the VM because the requested size {size} is not available in the current hardware cluster."
        raise Refusal(409, "OperationNotAllowed", text)
    _check_cores(call, machine, size, machine.count)
    before = machine.body
    machine.body = {**before, "properties": {**before["properties"], "hardwareProfile": {"vmSize": size}}}

    def undo() -> None:
        machine.body = before

    return _begun(call, machine, "resize", lambda: None, undo, 200)


def deallocate(call: Call) -> Reply:
    machine = _found(call)
    _check(call, machine)

    def done() -> None:
        machine.power = "deallocated"

    machine.power = "deallocating"
    return _begun(call, machine, "deallocate", done, lambda: None, 202)


def start(call: Call) -> Reply:
    machine = _found(call)
    _check(call, machine)
    if machine.size in call.cloud.unavailable:
        text = "Allocation failed. We do not have sufficient capacity for the requested VM size in this region."
        call.cloud.operation_errors["start", machine.path.rpartition("/")[2]] = ("AllocationFailed", text)
    machine.power = "starting"

    def done() -> None:
        machine.power = "running"

    def undo() -> None:
        machine.power = "deallocated"

    return _begun(call, machine, "start", done, undo, 202)


# -- scale sets ---------------------------------------------------------------------------------------------------------------


def patch_set(call: Call) -> Reply:
    machine = _found(call)
    _check(call, machine)
    sku = (call.body or {}).get("sku")
    if not isinstance(sku, dict) or set(call.body) - {"sku", "tags"}:
        raise Refusal(400, "InvalidParameter", "Only sku is patched here.")
    size, count = sku.get("name", machine.size), sku.get("capacity", machine.count)
    _check_cores(call, machine, size, count)
    before, applied = machine.body, list(machine.applied)
    resized = size != machine.size
    machine.body = {**before, "sku": {"name": size, "tier": "Standard", "capacity": count}}

    def done() -> None:
        kept = [was and not resized for was in applied[:count]]
        machine.applied = kept + [True] * (count - len(kept))
        if resized and before["properties"]["upgradePolicy"]["mode"] != "Manual":
            machine.applied = [True] * count

    def undo() -> None:
        machine.body = before

    return _begun(call, machine, "set", done, undo, 200)


def upgrade(call: Call) -> Reply:
    machine = _found(call)
    _check(call, machine)
    if (call.body or {}).get("instanceIds") != ["*"]:
        raise Refusal(400, "InvalidParameter", "instanceIds is required.")

    def done() -> None:
        machine.applied = [True] * machine.count

    return _begun(call, machine, "upgrade", done, lambda: None, 202)


def list_instances(call: Call) -> Reply:
    machine = _found(call)
    rows = [{"instanceId": str(i), "properties": {"latestModelApplied": yes}} for i, yes in enumerate(machine.applied)]
    return paged(call, rows, call.cloud.page)


# -- node pools ---------------------------------------------------------------------------------------------------------------


def get_cluster(call: Call) -> Reply:
    at = call.path.rstrip("/")
    if not any(key.startswith(f"{at.lower()}/") for key in call.cloud.machines):
        raise Refusal(404, "ResourceNotFound", f"The Resource '{at}' was not found.")
    return Reply(
        200,
        {"id": at, "name": at.rpartition("/")[2], "location": REGION, "properties": {"provisioningState": "Succeeded"}},
    )


def put_pool(call: Call) -> Reply:
    machine = _found(call)
    _check(call, machine)
    told = (call.body or {}).get("properties")
    if not isinstance(told, dict):
        raise Refusal(400, "BadRequest", "properties is required.")
    for name in ("vmSize", "osType"):
        if told.get(name) != machine.body["properties"][name]:
            text = f"Changing property 'properties.{name}' is not allowed."
            raise Refusal(400, "PropertyChangeNotAllowed", text)
    if told.get("enableAutoScaling") and not (
        told.get("minCount", 0) <= told.get("count", 0) <= told.get("maxCount", 0)
    ):
        raise Refusal(400, "InvalidParameter", "count must be between minCount and maxCount.")
    _check_cores(call, machine, machine.size, told["count"])
    before = machine.body
    machine.body = {"properties": {k: v for k, v in told.items() if k not in ("provisioningState", "eTag")}}

    def undo() -> None:
        machine.body = before

    return _begun(call, machine, "pool", lambda: None, undo, 200)


# -- the subscription ----------------------------------------------------------------------------------------------------------


def listed(kind: str) -> Callable[[Call], Reply]:
    return lambda call: paged(
        call, [m.shown() for m in call.cloud.machines.values() if m.kind == kind], call.cloud.page
    )


def list_clusters(call: Call) -> Reply:
    paths = dict.fromkeys(
        m.path.rpartition("/agentPools/")[0] for m in call.cloud.machines.values() if m.kind == "pool"
    )
    return paged(
        call,
        [{"id": p, "name": p.rpartition("/")[2], "location": REGION, "properties": {}} for p in paths],
        call.cloud.page,
    )


def list_pools(call: Call) -> Reply:
    at = call.path.rstrip("/").lower()
    return paged(
        call, [m.shown() for key, m in call.cloud.machines.items() if key.startswith(f"{at}/")], call.cloud.page
    )


def skus(call: Call) -> Reply:
    rows = []
    for size in call.cloud.sizes.values():
        told = {"vCPUs": size.cores, "MemoryGB": size.memory_gb, "GPUs": size.gpus}
        rows.append(
            {
                "resourceType": "virtualMachines",
                "name": size.name,
                "family": size.family,
                "locations": [REGION],
                "capabilities": [{"name": n, "value": str(v)} for n, v in told.items()],
                "restrictions": [{"type": "Location", "reasonCode": "NotAvailableForSubscription"}]
                if size.name in call.cloud.forbidden
                else [],
            }
        )
    return paged(call, rows, 1000)


def usages(call: Call) -> Reply:
    def usage(name: str, used: int, limit: int) -> dict[str, Any]:
        return {"name": {"value": name, "localizedValue": name}, "unit": "Count", "currentValue": used, "limit": limit}

    rows = [usage(f, cores_used(call.cloud, f), limit) for f, limit in call.cloud.quota.items()]
    return Reply(200, {"value": [usage("cores", cores_used(call.cloud, None), 10_000), *rows]})


_G = "/subscriptions/{subscription}/resourceGroups/{group}/providers"
_S = "/subscriptions/{subscription}/providers"
_VM = f"{_G}/{COMPUTE}/virtualMachines/{{machine}}"
_SET = f"{_G}/{COMPUTE}/virtualMachineScaleSets/{{machine}}"
_POOL = f"{_G}/{CONTAINERS}/managedClusters/{{cluster}}/agentPools/{{machine}}"
_OF = f"{COMPUTE}/virtualMachines"
_OFS = f"{COMPUTE}/virtualMachineScaleSets"
_OFP = f"{CONTAINERS}/managedClusters"

ROUTES: list[Route] = [
    route("GET", f"{_S}/{COMPUTE}/virtualMachines", VERSION, f"{_OF}/read", listed("vm")),
    route("GET", _VM, VERSION, f"{_OF}/read", get),
    route("GET", f"{_VM}/instanceView", VERSION, f"{_OF}/instanceView/read", instance_view),
    route("GET", f"{_VM}/vmSizes", VERSION, f"{_OF}/vmSizes/read", vm_sizes),
    route("PATCH", _VM, VERSION, f"{_OF}/write", patch_vm),
    route("POST", f"{_VM}/deallocate", VERSION, f"{_OF}/deallocate/action", deallocate),
    route("POST", f"{_VM}/start", VERSION, f"{_OF}/start/action", start),
    route("GET", f"{_S}/{COMPUTE}/virtualMachineScaleSets", VERSION, f"{_OFS}/read", listed("set")),
    route("GET", _SET, VERSION, f"{_OFS}/read", get),
    route("PATCH", _SET, VERSION, f"{_OFS}/write", patch_set),
    route("POST", f"{_SET}/manualupgrade", VERSION, f"{_OFS}/manualUpgrade/action", upgrade),
    route("GET", f"{_SET}/virtualMachines", VERSION, f"{_OFS}/virtualMachines/read", list_instances),
    route("GET", f"{_S}/{CONTAINERS}/managedClusters", AKS, f"{_OFP}/read", list_clusters),
    route("GET", f"{_G}/{CONTAINERS}/managedClusters/{{cluster}}", AKS, f"{_OFP}/read", get_cluster),
    route("GET", f"{_G}/{CONTAINERS}/managedClusters/{{cluster}}/agentPools", AKS, f"{_OFP}/agentPools/read", list_pools),
    route("GET", _POOL, AKS, f"{_OFP}/agentPools/read", get),
    route("PUT", _POOL, AKS, f"{_OFP}/agentPools/write", put_pool),
    route("GET", f"{_S}/{COMPUTE}/locations/{{location}}/operations/{{operation}}", VERSION, f"{COMPUTE}/locations/operations/read",
          operation_status),
    route("GET", f"{_S}/{CONTAINERS}/locations/{{location}}/operations/{{operation}}", AKS, f"{CONTAINERS}/locations/operations/read",
          operation_status),
    route("GET", f"{_S}/{COMPUTE}/skus", SKUS, f"{COMPUTE}/skus/read", skus),
    route("GET", f"{_S}/{COMPUTE}/locations/{{location}}/usages", VERSION, f"{COMPUTE}/locations/usages/read", usages),
]  # fmt: skip
