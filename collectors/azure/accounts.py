"""Azure OpenAI and Foundry accounts: their model deployments, what a model may be given, and how much of it is free.

An account is read whole, once for all of its deployments that are asked for: Azure writes to one of them at a time. Raises ``AzureError``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collectors.azure.client import COGNITIVE_VERSION, AzureClient
from collectors.azure.errors import AzureError
from collectors.sessions import Sessions

COGNITIVE = "Microsoft.CognitiveServices"
ACCOUNTS = f"{COGNITIVE}/accounts"
_DAY_S = 86_400.0
#: While an account cannot be read, it is tried so seldom.
_FAILED_S = 10.0
_ID = re.compile(
    rf"^/subscriptions/([0-9a-f-]{{36}})/resourceGroups/([^/]+)/providers/{re.escape(COGNITIVE)}/accounts/([^/]+)/deployments/([^/]+)$",
    re.IGNORECASE,
)
_SHOWN = f"/subscriptions/…/resourceGroups/…/providers/{ACCOUNTS}/…/deployments/…"
#: What Azure's calculator is asked for, so that its whole numbers are precise: calls a minute, tokens of a prompt, of an answer.
_RATE, _PROMPT, _LITTLE, _MUCH = 1000, 1000, 1, 1000


@dataclass(frozen=True, slots=True)
class ModelDeploymentId:
    """Where a model deployment is. ARM does not tell upper from lower case, and does not keep it: compare ``key``."""

    subscription: str
    group: str
    account: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ModelDeploymentId:
        """Raises ValueError where it is not the id of a model deployment."""
        match = _ID.match(text.rstrip("/"))
        if match is None:
            raise ValueError(
                f"{text!r} is not the resource id of a model deployment: {_SHOWN}, as `az cognitiveservices account deployment show` has it"
            )
        return cls(match[1].lower(), match[2], match[3], match[4])

    @property
    def account_path(self) -> str:
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.group}/providers/{ACCOUNTS}/{self.account}"

    @property
    def path(self) -> str:
        return f"{self.account_path}/deployments/{self.name}"

    @property
    def key(self) -> str:
        return self.path.lower()


@dataclass(frozen=True, slots=True)
class ModelAccount:
    """One account as ARM has it."""

    path: str
    body: Mapping[str, Any]
    deployments: tuple[Mapping[str, Any], ...]
    """By name."""

    @property
    def region(self) -> str:
        return str(self.body.get("location", "")).replace(" ", "").lower()

    def deployment(self, name: str) -> Mapping[str, Any] | None:
        return next((d for d in self.deployments if str(d.get("name", "")).lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """What an account may deploy a model with, in one of its skus."""

    usage: str | None
    """The name of its quota among the region's usages. None: not told."""
    least: int | None
    most: int | None
    step: int | None
    allowed: tuple[int, ...]
    """Empty: whatever lies between, in steps."""
    meters: tuple[str, ...]
    """Ids of the meters that it is billed by."""

    def refusal(self, capacity: int) -> str | None:
        """Why it cannot be deployed with so much; None: it can, as far as Azure tells."""
        if self.allowed and capacity not in self.allowed:
            return f"Azure offers {', '.join(map(str, self.allowed))}"
        if self.least is not None and capacity < self.least:
            return f"at least {self.least} is needed"
        if self.most is not None and capacity > self.most:
            return f"at most {self.most} is offered"
        if self.step and (capacity - (self.least or 0)) % self.step:
            return f"it goes in steps of {self.step} from {self.least or 0}"
        return None


@dataclass(frozen=True, slots=True)
class TokenRates:
    """What Azure's calculator says that one unit of provisioned throughput carries of a model."""

    per_unit: float
    """Prompt tokens a minute."""
    weight: float
    """Prompt tokens that one output token counts as."""


@dataclass(slots=True)
class _AccountSession:
    account: ModelAccount
    at: float


class ModelAccounts:
    """Of one subscription; made by ``model_accounts``."""

    def __init__(self, client: AzureClient) -> None:
        self._client = client
        self._kept: dict[str, _AccountSession] = {}
        self._failed: dict[str, tuple[float, AzureError]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._offers: dict[str, tuple[float, list[dict[str, Any]]]] = {}
        self._rates: dict[tuple[str, str, str], tuple[float, TokenRates | None]] = {}

    async def account(self, path: str, *, fresh: bool = False) -> ModelAccount:
        """At most ``poll_s`` old; or, ``fresh``, as it is now."""
        key, clock = path.lower(), self._client.clock
        async with self._locks.setdefault(key, asyncio.Lock()):
            kept, failed = self._kept.get(key), self._failed.get(key)
            if not fresh and kept is not None and clock.monotonic() - kept.at < self._client.account.poll_s:
                return kept.account
            if not fresh and failed is not None and clock.monotonic() - failed[0] < _FAILED_S:
                raise failed[1]
            try:
                body = await self._client.get(path, COGNITIVE_VERSION)
                found = [d async for d in self._client.pages(f"{path}/deployments", COGNITIVE_VERSION)]
            except AzureError as error:
                self._failed[key] = (clock.monotonic(), error)
                raise
            self._failed.pop(key, None)
            account = ModelAccount(path, body, tuple(sorted(found, key=lambda d: str(d.get("name")))))
            self._kept[key] = _AccountSession(account, clock.monotonic())
            return account

    def forget(self, path: str) -> None:
        """It was just changed: read it anew."""
        self._kept.pop(path.lower(), None)

    async def offer(self, path: str, model: Mapping[str, Any], sku: str) -> ModelOffer | None:
        """Of a model in a sku, from the account's own list, a day old at most. None: it is not offered (any more)."""
        key, now = path.lower(), self._client.clock.monotonic()
        kept = self._offers.get(key)
        if kept is None or now - kept[0] > _DAY_S:
            rows = [row async for row in self._client.pages(f"{path}/models", COGNITIVE_VERSION)]
            kept = self._offers[key] = (now, rows)
        wanted = tuple(model.get(name) for name in ("format", "name", "version"))
        for row in kept[1]:
            if tuple(row.get(name) for name in ("format", "name", "version")) == wanted:
                offered = next((s for s in row.get("skus") or () if s.get("name") == sku), None)
                if offered is not None:
                    return _offer(offered)
        return None

    async def quota(self, region: str, usage: str) -> float | None:
        """What is free of a quota in a region, now. None: it is not told."""
        path = f"/subscriptions/{self._client.subscription}/providers/{COGNITIVE}/locations/{region}/usages"
        async for row in self._client.pages(path, COGNITIVE_VERSION):
            used, limit = _number(row.get("currentValue")), _number(row.get("limit"))
            if (row.get("name") or {}).get("value") == usage and used is not None and limit is not None:
                return limit - used
        return None

    async def available(self, region: str, model: Mapping[str, Any], sku: str) -> float | None:
        """What Azure itself has left for a model in a sku in a region, now. None: it is not told."""
        path = f"/subscriptions/{self._client.subscription}/providers/{COGNITIVE}/locations/{region}/modelCapacities"
        query = {f"model{name.capitalize()}": str(model.get(name, "")) for name in ("format", "name", "version")}
        async for row in self._client.pages(path, COGNITIVE_VERSION, **query):
            told = row.get("properties") or {}
            if told.get("skuName") == sku:
                return _number(told.get("availableCapacity"))
        return None

    async def rates(self, model: Mapping[str, Any], sku: str) -> TokenRates | None:
        """By Azure's own calculator, asked for two workloads that differ in their answers; a day old at most. None: it does not say."""
        key, now = (str(model.get("name")), str(model.get("version")), sku), self._client.clock.monotonic()
        kept = self._rates.get(key)
        if kept is None or now - kept[0] > _DAY_S:
            units = [await self._estimated(model, sku, output) for output in (_LITTLE, _MUCH)]
            kept = self._rates[key] = (now, _rates(units[0], units[1]))
        return kept[1]

    async def _estimated(self, model: Mapping[str, Any], sku: str, output: int) -> float | None:
        path = f"/subscriptions/{self._client.subscription}/providers/{COGNITIVE}/calculateModelCapacity"
        told = {name: model[name] for name in ("format", "name", "version") if name in model}
        load = {
            "requestPerMinute": _RATE,
            "requestParameters": {"avgPromptTokens": _PROMPT, "avgGeneratedTokens": output},
        }
        answer = await self._client.post(path, COGNITIVE_VERSION, {"model": told, "skuName": sku, "workloads": [load]})
        value = _number((answer.get("estimatedCapacity") or {}).get("value"))
        return value or None


def model_accounts(sessions: Sessions, client: AzureClient) -> ModelAccounts:
    """The one of that client."""
    return sessions.get(("azure-accounts", id(client)), lambda: ModelAccounts(client))


def _offer(sku: Mapping[str, Any]) -> ModelOffer:
    told = sku.get("capacity") or {}
    least, most, step = (
        int(value) if (value := _number(told.get(name))) is not None else None
        for name in ("minimum", "maximum", "step")
    )
    meters = tuple(str(c["meterId"]) for c in sku.get("cost") or () if c.get("meterId"))
    allowed = tuple(v for v in told.get("allowedValues") or () if isinstance(v, int))
    return ModelOffer(sku.get("usageName"), least, most, step, allowed, meters)


def _rates(little: float | None, much: float | None) -> TokenRates | None:
    """Units = rate x (prompt + weight x output) / per_unit, at two lengths of the answer."""
    if little is None or much is None or much <= little:
        return None
    per_output = (much - little) / (_RATE * (_MUCH - _LITTLE))
    per_prompt = (little / _RATE - per_output * _LITTLE) / _PROMPT
    return TokenRates(1.0 / per_prompt, per_output / per_prompt) if per_prompt > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
