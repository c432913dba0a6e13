"""Machines of one's own cloud: virtual machines, scale sets, AKS node pools; the sizes that a region offers, and the cores that are free.

Raises ``AzureError``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from collectors.azure.client import AKS_VERSION, COMPUTE_VERSION, SKUS_VERSION, AzureClient
from collectors.sessions import Sessions

COMPUTE, CONTAINERS = "Microsoft.Compute", "Microsoft.ContainerService"
MachineKind = Literal["vm", "set", "pool"]
_PATTERNS: Mapping[MachineKind, str] = {
    "vm": rf"{re.escape(COMPUTE)}/virtualMachines/([^/]+)",
    "set": rf"{re.escape(COMPUTE)}/virtualMachineScaleSets/([^/]+)",
    "pool": rf"{re.escape(CONTAINERS)}/managedClusters/([^/]+/agentPools/[^/]+)",
}
_SHOWN = "a virtual machine, a scale set, or an AKS cluster's agent pool (…/managedClusters/…/agentPools/…)"
_SIZES_S = 86_400.0


@dataclass(frozen=True, slots=True)
class MachineId:
    """Where a virtual machine, a scale set or a node pool is."""

    subscription: str
    kind: MachineKind
    path: str

    @classmethod
    def parse(cls, text: str) -> MachineId:
        """Raises ValueError where it is none of the three."""
        path = text.rstrip("/")
        for kind, pattern in _PATTERNS.items():
            match = re.match(
                rf"^/subscriptions/([0-9a-f-]{{36}})/resourceGroups/[^/]+/providers/{pattern}$", path, re.IGNORECASE
            )
            if match is not None:
                return cls(match[1].lower(), kind, path)
        raise ValueError(f"{text!r} is not the resource id of {_SHOWN}")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def key(self) -> str:
        return self.path.lower()

    @property
    def version(self) -> str:
        """Of its API."""
        return AKS_VERSION if self.kind == "pool" else COMPUTE_VERSION


@dataclass(frozen=True, slots=True)
class MachineSize:
    """One size of a region."""

    name: str
    family: str
    """Quota is given by family."""
    cores: int
    memory_gb: float | None
    gpus: int
    refused: str | None
    """Why this subscription cannot have it there. None: it can."""


@dataclass(slots=True)
class _SizeEntry:
    at: float
    sizes: Mapping[str, MachineSize]


class MachineSizes:
    """Of one subscription, region by region; made by ``machine_sizes``."""

    def __init__(self, client: AzureClient) -> None:
        self._client = client
        self._regions: dict[str, _SizeEntry] = {}

    async def sizes(self, region: str) -> Mapping[str, MachineSize]:
        """By name; a day old at most."""
        now = self._client.clock.monotonic()
        kept = self._regions.get(region)
        if kept is None or now - kept.at > _SIZES_S:
            path = f"/subscriptions/{self._client.subscription}/providers/{COMPUTE}/skus"
            query = {"$filter": f"location eq '{region}'"}
            found = {}
            async for row in self._client.pages(path, SKUS_VERSION, **query):
                size = _size(row) if row.get("resourceType") == "virtualMachines" else None
                if size is not None:
                    found[size.name] = size
            kept = self._regions[region] = _SizeEntry(now, found)
        return kept.sizes

    async def free_cores(self, region: str, family: str) -> float | None:
        """Of a family, now, and no more than the region's own total has left. None: it is not told."""
        path = f"/subscriptions/{self._client.subscription}/providers/{COMPUTE}/locations/{region}/usages"
        free: dict[str, float] = {}
        async for row in self._client.pages(path, COMPUTE_VERSION):
            name, used, limit = (row.get("name") or {}).get("value"), row.get("currentValue"), row.get("limit")
            if isinstance(name, str) and isinstance(used, int | float) and isinstance(limit, int | float):
                free[name.lower()] = float(limit - used)
        own = free.get(family.lower())
        return None if own is None else min(own, free.get("cores", own))


def machine_sizes(sessions: Sessions, client: AzureClient) -> MachineSizes:
    """The one of that client."""
    return sessions.get(("azure-machine-sizes", id(client)), lambda: MachineSizes(client))


def power_of(view: Mapping[str, Any]) -> str:
    """Of a machine's instance view: ``running``, ``stopped``, ``deallocated`` ...; ``unknown`` where it does not say."""
    codes = [str(s.get("code", "")) for s in view.get("statuses") or ()]
    return next((code.partition("/")[2] for code in codes if code.startswith("PowerState/")), "unknown")


def _size(row: Mapping[str, Any]) -> MachineSize | None:
    """None where the row lacks what a size is."""
    told = {c.get("name"): c.get("value") for c in row.get("capabilities") or ()}
    name, family, cores = row.get("name"), row.get("family"), _number(told.get("vCPUs"))
    if not isinstance(name, str) or not isinstance(family, str) or cores is None:
        return None
    reasons = [str(r.get("reasonCode")) for r in row.get("restrictions") or () if r.get("type") == "Location"]
    gpus = _number(told.get("GPUs")) or 0.0
    return MachineSize(
        name, family, int(cores), _number(told.get("MemoryGB")), int(gpus), reasons[0] if reasons else None
    )


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
