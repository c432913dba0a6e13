"""SageMaker endpoints as they are: status, configuration, and who sets the number of instances. Read once for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collectors.aws.client import AwsClient
from collectors.aws.errors import AwsError
from collectors.sessions import Sessions

Body = Mapping[str, Any]
#: What Application Auto Scaling calls the number of instances of a variant.
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
#: Lists are as old as this at most for those who only watch.
LIST_S = 15.0


@dataclass(frozen=True, slots=True)
class SageMakerVariant:
    """One production variant: a model on instances of one type, with a part of the traffic."""

    name: str
    size: str | None
    """The instance type. None: it is serverless, or SageMaker picks one of several."""
    serverless: bool
    current: int | None
    """How many instances serve."""
    desired: int | None
    weight: float | None
    """Its part of the traffic, against those of the others."""


@dataclass(frozen=True, slots=True)
class SageMakerEndpoint:
    """One endpoint, with its configuration and its scalable targets."""

    name: str
    body: Body
    config: Body
    variants: tuple[SageMakerVariant, ...]
    targets: Mapping[str, Body] | None
    """By variant: its scalable target. None: they may not be read."""
    policies: Mapping[str, tuple[Body, ...]]
    """By variant: what moves the count within the target's bounds."""

    @property
    def status(self) -> str:
        """``InService``, ``Updating``, ``RollingBack``, ``Failed``, ``UpdateRollbackFailed`` ..."""
        return str(self.body.get("EndpointStatus"))

    @property
    def config_name(self) -> str:
        return str(self.body.get("EndpointConfigName"))

    @property
    def pending_config(self) -> str | None:
        """The configuration that an update under way leads to."""
        found = (self.body.get("PendingDeploymentSummary") or {}).get("EndpointConfigName")
        return None if found is None else str(found)

    @property
    def failure(self) -> str:
        return str(self.body.get("FailureReason") or "")

    def variant(self, name: str | None) -> SageMakerVariant | None:
        """The named one; without a name the only one."""
        if name is None:
            return self.variants[0] if len(self.variants) == 1 else None
        return next((v for v in self.variants if v.name == name), None)


def resource(endpoint: str, variant: str) -> str:
    """What Application Auto Scaling calls a variant."""
    return f"endpoint/{endpoint}/variant/{variant}"


class SageMakerInventory:
    """Of one account and region. Raises ``AwsError``."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self._configs: dict[tuple[str, Any], Body] = {}
        """By name and time of creation: a configuration is never changed, and its name may be used again."""
        self._lists: dict[str, tuple[float, dict[str, list[Body]]]] = {}
        self._asking = asyncio.Lock()

    async def endpoint(self, name: str, *, fresh: bool = False) -> SageMakerEndpoint:
        """``fresh``: with scalable targets as they are at this moment, for those who are about to change something."""
        body = await self._client.call("sagemaker", "DescribeEndpoint", EndpointName=name)
        pending = body.get("PendingDeploymentSummary") or {}
        config = await self._config(str(body.get("EndpointConfigName")), body.get("LastModifiedTime"))
        stated = {v.get("VariantName"): v for v in config.get("ProductionVariants") or ()}
        to_come = {v.get("VariantName"): v for v in pending.get("ProductionVariants") or ()}
        variants = tuple(
            _variant(v, to_come.get(v.get("VariantName"), v), stated.get(v.get("VariantName")) or {})
            for v in body.get("ProductionVariants") or ()
        )
        targets, policies = await self._scaling(fresh)
        found: dict[str, Body] | None = None
        if targets is not None:
            found = {v.name: held[0] for v in variants if (held := targets.get(resource(name, v.name)))}
        moved = {v.name: tuple((policies or {}).get(resource(name, v.name), ())) for v in variants}
        return SageMakerEndpoint(name, body, config, variants, found, moved)

    def forget(self) -> None:
        """Something was written: what was read before is old."""
        self._lists.clear()

    async def _config(self, name: str, modified: Any) -> Body:
        key = (name, modified)
        if key not in self._configs:
            if len(self._configs) > 1000:
                self._configs.clear()
            self._configs[key] = await self._client.call("sagemaker", "DescribeEndpointConfig", EndpointConfigName=name)
        return self._configs[key]

    async def _scaling(self, fresh: bool) -> tuple[dict[str, list[Body]] | None, dict[str, list[Body]] | None]:
        targets = await self._list("DescribeScalableTargets", "ScalableTargets", fresh)
        return targets, await self._list("DescribeScalingPolicies", "ScalingPolicies", fresh)

    async def _list(self, operation: str, key: str, fresh: bool) -> dict[str, list[Body]] | None:
        """All of SageMaker's, by resource: one question for all endpoints. None: it may not be asked."""
        async with self._asking:
            known, now = self._lists.get(operation), self._client.clock.monotonic()
            if known is not None and not fresh and now - known[0] < LIST_S:
                return known[1]
            try:
                rows = await self._client.items(
                    "application-autoscaling", operation, key, ServiceNamespace="sagemaker", ScalableDimension=DIMENSION
                )
            except AwsError as error:
                if error.kind != "denied":
                    raise
                return None
            found: dict[str, list[Body]] = {}
            for row in rows:
                found.setdefault(str(row.get("ResourceId")), []).append(row)
            self._lists[operation] = (now, found)
            return found


def inventory(sessions: Sessions, client: AwsClient) -> SageMakerInventory:
    """The one of that client."""
    return sessions.get(("aws sagemaker", id(client)), lambda: SageMakerInventory(client))


def _variant(body: Body, to_come: Body, stated: Body) -> SageMakerVariant:
    """What serves, what is wanted of it, and what its configuration says."""
    weight = to_come.get("DesiredWeight", to_come.get("CurrentWeight"))
    return SageMakerVariant(
        name=str(body.get("VariantName")),
        size=stated.get("InstanceType"),
        serverless="CurrentServerlessConfig" in body or "ServerlessConfig" in stated,
        current=body.get("CurrentInstanceCount"),
        desired=to_come.get("DesiredInstanceCount", to_come.get("CurrentInstanceCount")),
        weight=None if weight is None else float(weight),
    )
