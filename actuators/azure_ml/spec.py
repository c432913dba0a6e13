"""What an online endpoint is, read from ARM's bodies: its shape, the version that plans rest on, and who sets its count.

Pure: bodies in, values out. The main deployment is the one that takes the traffic; the shape is that deployment's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actuators.arm import digest, is_settled, provisioning
from actuators.base import Owner
from actuators.shape import Autoscaling, Shape
from collectors.azure.inventory import EndpointState
from collectors.azure.sizes import VmSize

Body = Mapping[str, Any]

#: Set on a deployment that Flyball made, so that it removes its own and nobody else's.
MARK = ("created-by", "flyball")
_READ_ONLY = ("provisioningState", "scoringUri", "swaggerUri", "properties")


def name_of(deployment: Body) -> str:
    return str(deployment.get("name", ""))


def properties_of(body: Body) -> Mapping[str, Any]:
    return body.get("properties") or {}


def count_of(deployment: Body) -> int | None:
    capacity = (deployment.get("sku") or {}).get("capacity")
    return capacity if isinstance(capacity, int) else None


def size_of(deployment: Body) -> str | None:
    size = properties_of(deployment).get("instanceType")
    return size if isinstance(size, str) else None


def main_of(state: EndpointState) -> Body | None:
    """The deployment with the most traffic; without traffic, the only one. None: nobody can say which it is."""
    named = [
        d for name, _ in sorted(state.traffic.items(), key=lambda t: -t[1]) if (d := state.deployment(name)) is not None
    ]
    if named:
        return named[0]
    return state.deployments[0] if len(state.deployments) == 1 else None


def setting_of(state: EndpointState, deployment: Body) -> Body | None:
    """The enabled autoscale setting whose target it is."""
    target = state.id.deployment(name_of(deployment)).lower()
    for setting in state.autoscale or ():
        if target_of(setting) == target and properties_of(setting).get("enabled", True):
            return setting
    return None


def profiles_of(setting: Body) -> list[Mapping[str, Any]]:
    return [p for p in properties_of(setting).get("profiles") or () if isinstance(p, Mapping)]


def autoscaling_of(setting: Body) -> Autoscaling | None:
    """The bounds and the scale-out thresholds of its usual profile. None where they cannot be read."""
    usual = next((p for p in profiles_of(setting) if not p.get("recurrence") and not p.get("fixedDate")), None)
    if usual is None:
        return None
    capacity = usual.get("capacity") or {}
    try:
        least, most = int(capacity["minimum"]), int(capacity["maximum"])
    except (KeyError, TypeError, ValueError):
        return None
    targets = {}
    for rule in usual.get("rules") or ():
        trigger, action = rule.get("metricTrigger") or {}, rule.get("scaleAction") or {}
        threshold = trigger.get("threshold")
        if action.get("direction") == "Increase" and isinstance(threshold, int | float):
            targets[str(trigger.get("metricName"))] = float(threshold)
    return Autoscaling(least, most, targets)


def target_of(setting: Body) -> str:
    """The deployment that it looks after, in lower case."""
    return str(properties_of(setting).get("targetResourceUri", "")).lower()


def default_of(setting: Body) -> int:
    """The count that an autoscale setting keeps while it has no metric."""
    capacity = profiles_of(setting)[0].get("capacity") or {}
    return int(capacity.get("default", capacity["minimum"]))


def owner_of(setting: Body | None) -> Owner | None:
    return None if setting is None else Owner("azure-autoscale", str(setting.get("name", "")), frozenset(("replicas",)))


def shape_of(state: EndpointState, main: Body, sizes: Mapping[str, VmSize]) -> Shape:
    """``sizes``: what the region offers, by name, as far as it may be known."""
    setting = setting_of(state, main)
    autoscaling = autoscaling_of(setting) if setting is not None else None
    return Shape(
        replicas=None if setting is not None else count_of(main),
        size=size_of(main),
        cpus=float(known.cores) if (known := sizes.get(size_of(main) or "")) is not None else None,
        autoscaling=autoscaling,
        region=state.region or None,
    )


def busy(state: EndpointState) -> str | None:
    """What is under way on it, for people; None where nothing is."""
    for what, body in (
        (f"endpoint {state.id.name}", state.body),
        *((f"deployment {name_of(d)}", d) for d in state.deployments),
    ):
        if not is_settled(body):
            return f"{what} is {provisioning(body)}"
    return None


def version_of(state: EndpointState) -> str:
    """Of what is configured: traffic, each deployment but for a count that an autoscaler moves, and the autoscaler's own rules."""
    deployments = {}
    for deployment in state.deployments:
        count = None if setting_of(state, deployment) is not None else count_of(deployment)
        deployments[name_of(deployment)] = {"spec": writable(deployment)["properties"], "count": count}
    settings = [{"id": str(s.get("id", "")).lower(), "spec": properties_of(s)} for s in state.autoscale or ()]
    stated = properties_of(state.body)
    whole = {
        "traffic": state.traffic,
        "mirror": stated.get("mirrorTraffic") or {},
        "deployments": deployments,
        "autoscale": settings,
    }
    return digest(whole)


def writable(body: Body) -> dict[str, Any]:
    """What a PUT may send of what a GET gave: all of it but what only the service writes. What is left out would be lost."""
    stated = properties_of(body)
    kept: dict[str, Any] = {k: v for k, v in stated.items() if k not in _READ_ONLY and v is not None}
    own = {k: v for k, v in (stated.get("properties") or {}).items() if not _service_key(k)}
    if own:
        kept["properties"] = own
    out: dict[str, Any] = {"location": body.get("location"), "tags": dict(body.get("tags") or {}), "properties": kept}
    for name in ("kind", "sku"):
        if body.get(name) is not None:
            out[name] = body[name]
    identity = body.get("identity")
    if isinstance(identity, Mapping):
        users = identity.get("userAssignedIdentities")
        out["identity"] = {"type": identity.get("type")} | (
            {"userAssignedIdentities": {key: {} for key in users}} if users else {}
        )
    return out


def _service_key(name: str) -> bool:
    return name.startswith("azureml.") or name in ("AzureAsyncOperationUri", "createdAt", "createdBy", "lastModifiedAt")
