"""The VM sizes that a region offers, what each is, and how many cores of its family are free. From Machine Learning's own lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collectors.azure.client import ML_VERSION, AzureClient
from collectors.azure.names import ML
from collectors.sessions import Sessions

_SIZES_S = 86_400.0
_USAGE_S = 60.0


@dataclass(frozen=True, slots=True)
class VmSize:
    """One size of a region."""

    name: str
    family: str
    """Quota is given by family."""
    cores: int
    memory_gb: float
    gpus: int
    usd_per_replica_hour: float | None
    """Linux, pay as you go, as Azure estimates it. None: it does not tell, or not in dollars."""


@dataclass(frozen=True, slots=True)
class CoreQuota:
    """Cores of one family in one region."""

    family: str
    used: int
    limit: int

    @property
    def free(self) -> int:
        return self.limit - self.used


def cores_needed(size: VmSize, replicas: int) -> int:
    """A managed deployment of N instances takes the quota of 1.2 N, rounded up: room for upgrades."""
    return math.ceil(1.2 * replicas) * size.cores


class SizeCatalogue:
    """Of one subscription, region by region. Raises ``AzureError``."""

    def __init__(self, client: AzureClient) -> None:
        self._client = client
        self._sizes: dict[str, tuple[float, Mapping[str, VmSize]]] = {}
        self._quotas: dict[str, tuple[float, Mapping[str, CoreQuota]]] = {}

    async def sizes(self, region: str) -> Mapping[str, VmSize]:
        """By name; a day old at most."""
        now = self._client.clock.monotonic()
        kept = self._sizes.get(region)
        if kept is None or now - kept[0] > _SIZES_S:
            body = await self._client.get(self._path(region, "vmSizes"), ML_VERSION)
            found = {size.name: size for row in body.get("value") or () if (size := _size(row)) is not None}
            kept = self._sizes[region] = (now, found)
        return kept[1]

    async def quotas(self, region: str, *, fresh: bool = False) -> Mapping[str, CoreQuota]:
        """By family; a minute old at most, or as it is now."""
        now = self._client.clock.monotonic()
        kept = self._quotas.get(region)
        if fresh or kept is None or now - kept[0] > _USAGE_S:
            found = {}
            async for row in self._client.pages(self._path(region, "usages"), ML_VERSION):
                family, used, limit = (row.get("name") or {}).get("value"), row.get("currentValue"), row.get("limit")
                if isinstance(family, str) and isinstance(used, int) and isinstance(limit, int):
                    found[family.lower()] = CoreQuota(family, used, limit)
            kept = self._quotas[region] = (now, found)
        return kept[1]

    def _path(self, region: str, word: str) -> str:
        return f"/subscriptions/{self._client.subscription}/providers/{ML}/locations/{region}/{word}"


def size_catalogue(sessions: Sessions, client: AzureClient) -> SizeCatalogue:
    """The one of that client."""
    return sessions.get(("azure-sizes", id(client)), lambda: SizeCatalogue(client))


def _size(row: Any) -> VmSize | None:
    """None where the row lacks what a size is."""
    if not isinstance(row, dict):
        return None
    name, family, cores, memory = (row.get(k) for k in ("name", "family", "vCPUs", "memoryGB"))
    if not (
        isinstance(name, str) and isinstance(family, str) and isinstance(cores, int) and isinstance(memory, int | float)
    ):
        return None
    gpus = row.get("gpus")
    return VmSize(
        name, family, cores, float(memory), gpus if isinstance(gpus, int) else 0, _price(row.get("estimatedVMPrices"))
    )


def _price(prices: Any) -> float | None:
    if (
        not isinstance(prices, dict)
        or prices.get("billingCurrency") != "USD"
        or prices.get("unitOfMeasure") != "OneHour"
    ):
        return None
    rows = [
        row.get("retailPrice")
        for row in prices.get("values") or ()
        if isinstance(row, dict) and row.get("osType") == "Linux" and row.get("vmTier") == "Standard"
    ]
    return float(rows[0]) if len(rows) == 1 and isinstance(rows[0], int | float) else None
