"""What Azure's systems share: how ARM's refusals read as troubles of a change, and how far a resource is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from actuators.base import ActuatorError, Progress, Step, Trouble
from collectors.azure.errors import AzureError
from collectors.window import CollectError

_TROUBLE = {
    "conflict": Trouble.CONFLICT,
    "quota": Trouble.QUOTA,
    "capacity": Trouble.CAPACITY,
    "throttled": Trouble.THROTTLED,
    "denied": Trouble.DENIED,
    "credentials": Trouble.DENIED,
    "drift": Trouble.DRIFT,
    "unreachable": Trouble.UNREACHABLE,
}
_SETTLED = frozenset(("succeeded", "failed", "canceled", "disabled"))


def actuator_error(error: CollectError) -> ActuatorError:
    trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
    again = error.retry_after_s if isinstance(error, AzureError) else None
    return ActuatorError(f"AZURE_{error.kind.upper()}", error.detail, trouble=trouble, retry_after_s=again)


def provisioning(body: Mapping[str, Any]) -> str:
    return str((body.get("properties") or {}).get("provisioningState", "unknown"))


def is_settled(body: Mapping[str, Any]) -> bool:
    """Whether no operation is under way on it."""
    return provisioning(body).lower() in _SETTLED


def unsettled(body: Mapping[str, Any] | None, what: str) -> Step | None:
    """PENDING or FAILED by its provisioning state; None where it has come to a good end."""
    if body is None:
        return Step(Progress.FAILED, f"{what} is gone")
    state = provisioning(body)
    if state == "Succeeded":
        return None
    if is_settled(body):
        return Step(Progress.FAILED, f"{what} is {state}: its activity log says why")
    return Step(Progress.PENDING, f"{what} is {state}")


def digest(value: Any) -> str:
    """Of a specification: what is empty counts as left out, since the service leaves out today what it sent as null yesterday."""
    text = json.dumps(_known(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: kept for k, v in value.items() if (kept := _known(v)) not in (None, {}, [])}
    return [_known(v) for v in value] if isinstance(value, list | tuple) else value
