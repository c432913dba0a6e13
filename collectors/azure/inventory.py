"""What is there in a subscription: online endpoints with their deployments and autoscale settings, read once for all who ask.

ARM's index of resources says, in one list for all, when each was changed last; only what has changed is read anew. The index comes late,
so an endpoint that Flyball itself has just changed is read directly for a while, and a plan is always made and checked on a direct read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collectors.azure.client import AUTOSCALE_VERSION, ML_VERSION, RESOURCES_VERSION, AzureClient
from collectors.azure.errors import AzureError
from collectors.azure.names import DEPLOYMENTS, ENDPOINTS, EndpointId
from collectors.sessions import Sessions

#: What has not changed by the index is read anew after this all the same.
_TRUST_S = 900.0
#: For so long after its own change an endpoint is read directly: the index may not have it yet.
_DIRECT_S = 600.0
#: While the lists cannot be read, they are tried so seldom: a thousand endpoints must not wait for a thousand timeouts.
_FAILED_S = 10.0


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint as ARM has it."""

    id: EndpointId
    body: Mapping[str, Any]
    deployments: tuple[Mapping[str, Any], ...]
    """By name."""
    autoscale: tuple[Mapping[str, Any], ...] | None
    """The settings whose target is one of its deployments. None: they may not be read, so nobody knows."""

    @property
    def region(self) -> str:
        return str(self.body.get("location", "")).replace(" ", "").lower()

    @property
    def traffic(self) -> dict[str, int]:
        """Percent by deployment, without those that take none."""
        stated = (self.body.get("properties") or {}).get("traffic") or {}
        return {str(name): int(share) for name, share in sorted(stated.items()) if share}

    def deployment(self, name: str) -> Mapping[str, Any] | None:
        return next((d for d in self.deployments if d.get("name") == name), None)


@dataclass(slots=True)
class _CacheEntry:
    state: EndpointState
    at: float
    stamp: tuple[str, ...]


class Inventory:
    """Of one subscription; made by ``of``. Raises ``AzureError``."""

    def __init__(self, client: AzureClient) -> None:
        self._client = client
        self._clock = client.clock
        self._kept: dict[str, _CacheEntry] = {}
        self._touched: dict[str, float] = {}
        self._index: dict[str, str] = {}
        self._settings: list[dict[str, Any]] | None = None
        self._listed_at: float | None = None
        self._failed: tuple[float, AzureError] | None = None
        self._lock = asyncio.Lock()
        self._locks: dict[str, asyncio.Lock] = {}

    async def endpoint(self, id_: EndpointId, *, fresh: bool = False) -> EndpointState:
        """As the lists have it, at most ``poll_s`` old; or, ``fresh``, as it is now."""
        if fresh:
            return await self._read(id_, await self._list_settings())
        async with self._lock:
            await self._list()
        now, kept = self._clock.monotonic(), self._kept.get(id_.key)
        stamp = self._stamp(id_)
        async with self._locks.setdefault(id_.key, asyncio.Lock()):
            kept = self._kept.get(id_.key)
            trusted = (
                kept is not None
                and kept.stamp == stamp
                and now - kept.at < (_TRUST_S if stamp else self._client.account.poll_s)
            )
            recent = now - self._touched.get(id_.key, -_DIRECT_S) < _DIRECT_S
            if kept is None or not trusted or recent:
                kept = _CacheEntry(await self._read(id_, self._settings), now, stamp)
                self._kept[id_.key] = kept
        return EndpointState(id_, kept.state.body, kept.state.deployments, _of(id_, self._settings))

    def touch(self, id_: EndpointId) -> None:
        """It was just changed: read it directly for a while."""
        self._touched[id_.key] = self._clock.monotonic()
        self._listed_at = None

    async def _read(self, id_: EndpointId, settings: list[dict[str, Any]] | None) -> EndpointState:
        body = await self._client.get(id_.path, ML_VERSION)
        found = [d async for d in self._client.pages(f"{id_.path}/deployments", ML_VERSION)]
        return EndpointState(id_, body, tuple(sorted(found, key=lambda d: str(d.get("name")))), _of(id_, settings))

    def _stamp(self, id_: EndpointId) -> tuple[str, ...]:
        """When it and its deployments were changed, as the index has it; empty where the index does not know it."""
        if id_.key not in self._index:
            return ()
        mine = (key for key in self._index if key == id_.key or key.startswith(f"{id_.key}/deployments/"))
        return tuple(f"{key}={self._index[key]}" for key in sorted(mine))

    async def _list(self) -> None:
        now = self._clock.monotonic()
        if self._listed_at is not None and now - self._listed_at < self._client.account.poll_s:
            return
        if self._failed is not None and now - self._failed[0] < _FAILED_S:
            raise self._failed[1]
        try:
            self._index, self._settings = await self._list_index(), await self._list_settings()
        except AzureError as error:
            self._failed = (self._clock.monotonic(), error)
            raise
        self._listed_at, self._failed = now, None

    async def _list_index(self) -> dict[str, str]:
        """When each was changed, by its id; empty where the index may not be read."""
        index = {}
        path = f"/subscriptions/{self._client.subscription}/resources"
        try:
            for kind in (ENDPOINTS, DEPLOYMENTS):
                query = {"$filter": f"resourceType eq '{kind}'", "$expand": "changedTime"}
                async for row in self._client.pages(path, RESOURCES_VERSION, **query):
                    index[str(row.get("id", "")).lower()] = str(row.get("changedTime", ""))
        except AzureError as error:
            if error.kind != "denied":
                raise
            return {}
        return index

    async def _list_settings(self) -> list[dict[str, Any]] | None:
        path = f"/subscriptions/{self._client.subscription}/providers/Microsoft.Insights/autoscalesettings"
        try:
            return [row async for row in self._client.pages(path, AUTOSCALE_VERSION)]
        except AzureError as error:
            if error.kind == "denied":
                return None
            raise


def inventory(sessions: Sessions, client: AzureClient) -> Inventory:
    """The one of that client."""
    return sessions.get(("azure-inventory", id(client)), lambda: Inventory(client))


def _of(id_: EndpointId, settings: list[dict[str, Any]] | None) -> tuple[Mapping[str, Any], ...] | None:
    if settings is None:
        return None
    prefix = f"{id_.key}/deployments/"
    mine = [
        s for s in settings if str((s.get("properties") or {}).get("targetResourceUri", "")).lower().startswith(prefix)
    ]
    return tuple(sorted(mine, key=lambda s: str(s.get("id"))))
