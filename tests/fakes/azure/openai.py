"""Cognitive Services' part: accounts, model deployments, quotas, Azure's own capacity, its calculator; and what the calls come to.

Azure writes to one deployment of an account at a time. Metrics come in the older family for OpenAI's models and in the newer one for others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.fakes.azure.cloud import GROUP, REGION, Cloud, Operation, Refusal
from tests.fakes.azure.server import Call, Reply, Route, paged, route

COGNITIVE = "Microsoft.CognitiveServices"
VERSIONS = "2024-10-01 2025-06-01 2025-09-01"
#: Of each model: prompt tokens a minute that a unit carries, what an output token counts as, requests for each 1,000 tokens a minute.
MODELS: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("OpenAI", "gpt-4.1", "2025-04-14"): (3000.0, 4.0, 6.0),
    ("OpenAI", "gpt-4o", "2024-08-06"): (2500.0, 4.0, 6.0),
    ("OpenAI", "gpt-4o", "2024-11-20"): (2500.0, 4.0, 6.0),
    ("Mistral AI", "mistral-large", "2411"): (2000.0, 3.0, 1.0),
}
#: Of each sku: least, most, step.
SKUS = {
    "Standard": (1, 1000, 1),
    "GlobalStandard": (1, 10_000, 1),
    "ProvisionedManaged": (25, 1000, 25),
    "GlobalProvisionedManaged": (15, 1000, 5),
}


@dataclass(frozen=True)
class CallMix:
    """What callers of a deployment ask for."""

    per_minute: float
    prompt: float = 400.0
    output: float = 100.0
    reserve: float = 1.0
    """Output tokens that a call is admitted with, over those that come out."""
    cached: float = 0.0
    """Share of the prompt."""


@dataclass
class ModelDeployment:
    name: str
    body: dict[str, Any]
    """As it was put: sku, tags, properties."""
    state: str = "Succeeded"
    changed: float = 0.0
    callers: Callable[[float], CallMix] = lambda _at: CallMix(0.0)
    history: list[tuple[float, int]] = field(default_factory=list)
    """From when on, which capacity it has."""
    really: Callable[[int], float] = float
    """What a capacity comes to: the truth's own secret."""

    @property
    def sku(self) -> str:
        return str(self.body["sku"]["name"])

    @property
    def capacity(self) -> int:
        return int(self.body["sku"]["capacity"])

    @property
    def model(self) -> tuple[str, str, str]:
        told = self.body["properties"]["model"]
        return told["format"], told["name"], told["version"]

    def capacity_at(self, at: float) -> float:
        return self.really(next((n for since, n in reversed(self.history) if since <= at), 0))


@dataclass
class Account:
    group: str
    name: str
    region: str
    kind: str = "AIServices"
    deployments: dict[str, ModelDeployment] = field(default_factory=dict)


def usage_name(sku: str, model: tuple[str, str, str]) -> str:
    """Provisioned throughput has one quota for all models."""
    return f"OpenAI.{sku}" if "Provisioned" in sku else f"OpenAI.{sku}.{model[1]}"


def add_deployment(
    cloud: Cloud,
    name: str,
    sku: str = "GlobalStandard",
    capacity: int = 60,
    *,
    account: str = "ai-chat",
    model: tuple[str, str, str] = ("OpenAI", "gpt-4.1", "2025-04-14"),
    region: str = REGION,
    **properties: Any,
) -> ModelDeployment:
    """One that has been there for long."""
    there = cloud.accounts.setdefault(f"{GROUP}/{account}".lower(), Account(GROUP, account, region))
    told = {"format": model[0], "name": model[1], "version": model[2]}
    body = {
        "sku": {"name": sku, "capacity": capacity},
        "tags": {"team": "search"},
        "properties": {
            "model": told,
            "versionUpgradeOption": "NoAutoUpgrade",
            "raiPolicyName": "Microsoft.DefaultV2",
            **properties,
        },
    }
    made = ModelDeployment(name, body, changed=cloud.clock() - 86_400.0, history=[(0.0, capacity)])
    there.deployments[name.lower()] = made
    return made


def account_id(cloud: Cloud, account: Account) -> str:
    return f"/subscriptions/{cloud.subscription}/resourceGroups/{account.group}/providers/{COGNITIVE}/accounts/{account.name}"


def deployment_id(cloud: Cloud, name: str, account: str = "ai-chat") -> str:
    return f"{account_id(cloud, cloud.accounts[f'{GROUP}/{account}'.lower()])}/deployments/{name}"


# -- bodies --------------------------------------------------------------------------------------------------------------


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _account_body(call: Call, account: Account) -> dict[str, Any]:
    return {
        "id": account_id(call.cloud, account),
        "name": account.name,
        "type": f"{COGNITIVE}/accounts",
        "kind": account.kind,
        "location": account.region,
        "sku": {"name": "S0"},
        "properties": {"endpoint": f"{call.base}/openai/{account.name}/", "provisioningState": "Succeeded"},
    }


def _deployment_body(call: Call, account: Account, deployment: ModelDeployment) -> dict[str, Any]:
    limits = []
    if "Provisioned" not in deployment.sku:
        ratio = MODELS[deployment.model][2]
        limits = [
            {"key": "request", "renewalPeriod": 60, "count": deployment.capacity * ratio},
            {"key": "token", "renewalPeriod": 60, "count": deployment.capacity * 1000},
        ]
    own = {
        "provisioningState": deployment.state,
        "currentCapacity": deployment.capacity,
        "rateLimits": limits,
        "capabilities": {"chatCompletion": "true"},
    }
    return {
        **deployment.body,
        "id": f"{account_id(call.cloud, account)}/deployments/{deployment.name}",
        "name": deployment.name,
        "type": f"{COGNITIVE}/accounts/deployments",
        "etag": f'"{deployment.changed}"',
        "systemData": {"lastModifiedAt": _stamp(deployment.changed)},
        "properties": {**deployment.body["properties"], **own},
    }


# -- accounts and deployments --------------------------------------------------------------------------------------------


def _key(call: Call) -> str:
    return f"{call.names['group']}/{call.names['account']}".lower()


def _found(call: Call) -> Account:
    account = call.cloud.accounts.get(_key(call))
    if account is None:
        raise Refusal(404, "ResourceNotFound", f"The Resource '{call.path}' was not found.")
    return account


def _deployed(call: Call) -> tuple[Account, ModelDeployment]:
    account = _found(call)
    deployment = account.deployments.get(call.names["deployment"].lower())
    if deployment is None:
        text = f"The deployment '{call.names['deployment']}' was not found in the account '{account.name}'."
        raise Refusal(404, "DeploymentNotFound", text)
    return account, deployment


def list_accounts(call: Call) -> Reply:
    return paged(call, [_account_body(call, a) for a in call.cloud.accounts.values()], call.cloud.page)


def get_account(call: Call) -> Reply:
    return Reply(200, _account_body(call, _found(call)))


def list_deployments(call: Call) -> Reply:
    account = _found(call)
    return paged(call, [_deployment_body(call, account, d) for d in account.deployments.values()], call.cloud.page)


def get_deployment(call: Call) -> Reply:
    return Reply(200, _deployment_body(call, *_deployed(call)))


def _idle(call: Call, account: Account) -> None:
    busy = next((d for d in account.deployments.values() if d.state not in ("Succeeded", "Failed")), None)
    if busy is not None:
        text = "Another operation is being performed on the parent resource. Please retry after the operation has completed."
        raise Refusal(409, "RequestConflict", text, {"Retry-After": str(call.cloud.retry_after_s)})


def _checked_sku(call: Call, account: Account, sku: Any, model: tuple[str, str, str], had: int) -> tuple[str, int]:
    """A sku that may be deployed, for ``had`` units that it has already."""
    if not isinstance(sku, dict) or set(sku) - {"name", "capacity", "tier", "size", "family"}:
        raise Refusal(400, "InvalidRequestContent", "sku takes name and capacity.")
    name, capacity = sku.get("name"), sku.get("capacity")
    if name not in SKUS or isinstance(capacity, bool) or not isinstance(capacity, int):
        raise Refusal(
            400, "InvalidResourceProperties", f"The specified SKU '{name}' or its capacity '{capacity}' is not valid."
        )
    least, most, step = SKUS[name]
    if not least <= capacity <= most or (capacity - least) % step:
        text = f"The capacity should be between {least} and {most}, in increments of {step}; {capacity} was asked for."
        raise Refusal(400, "InvalidCapacity", text)
    quota = usage_name(name, model)
    free = call.cloud.model_quota.get(quota, 0) - used_quota(call.cloud, account.region, quota)
    if capacity - had > free:
        text = (
            f"This operation require {capacity - had} new capacity in quota One Thousand Tokens Per Minute - {quota}, "
            f"which is bigger than the current available capacity {free}. The quota limit is {call.cloud.model_quota.get(quota, 0)}."
        )
        raise Refusal(400, "InsufficientQuota", text)
    if capacity - had > call.cloud.model_capacity.get((account.region, name), 1_000_000):
        raise Refusal(
            409, "SkuNotAvailable", f"Insufficient capacity: {name} is not available in location {account.region} now."
        )
    return name, capacity


def used_quota(cloud: Cloud, region: str, quota: str) -> int:
    return sum(
        d.capacity
        for a in cloud.accounts.values()
        for d in a.deployments.values()
        if a.region == region and usage_name(d.sku, d.model) == quota
    )


def patch_deployment(call: Call) -> Reply:
    account, deployment = _deployed(call)
    body = call.body
    if not isinstance(body, dict) or set(body) - {"sku", "tags"}:
        raise Refusal(400, "InvalidRequestContent", "Only sku and tags of a deployment can be patched.")
    _idle(call, account)
    before, model = dict(deployment.body), deployment.model
    if body.get("sku", {}).get("name", deployment.sku) != deployment.sku:
        raise Refusal(400, "InvalidResourceProperties", "The SKU name of a deployment cannot be changed.")
    name, capacity = _checked_sku(call, account, body.get("sku", deployment.body["sku"]), model, deployment.capacity)
    deployment.body = {**before, "sku": {"name": name, "capacity": capacity}, "tags": body.get("tags", before["tags"])}
    return _begun(call, account, deployment, "capacity", before)


def put_deployment(call: Call) -> Reply:
    account, name = _found(call), call.names["deployment"]
    body = call.body
    if not isinstance(body, dict) or set(body) - {
        "sku",
        "tags",
        "properties",
        "id",
        "name",
        "type",
        "etag",
        "systemData",
    }:
        raise Refusal(400, "InvalidRequestContent", "A deployment takes sku, tags and properties.")
    told = (body.get("properties") or {}).get("model") or {}
    model = (told.get("format"), told.get("name"), told.get("version"))
    if model not in MODELS:
        text = (
            f"The model 'Format:{model[0]},Name:{model[1]},Version:{model[2]}' of account deployment is not supported."
        )
        raise Refusal(400, "DeploymentModelNotSupported", text)
    _idle(call, account)
    there = account.deployments.get(name.lower())
    sku, capacity = _checked_sku(call, account, body.get("sku"), model, there.capacity if there is not None else 0)
    made = {
        "sku": {"name": sku, "capacity": capacity},
        "tags": body.get("tags") or {},
        "properties": dict(body["properties"]),
    }
    before = there.body if there is not None else None
    if there is None:
        there = account.deployments[name.lower()] = ModelDeployment(name, made, "Creating")
    there.body = made
    return _begun(call, account, there, "create", before, status=201)


def delete_deployment(call: Call) -> Reply:
    account = _found(call)
    if call.names["deployment"].lower() not in account.deployments:
        return Reply(204)
    _idle(call, account)
    account.deployments.pop(call.names["deployment"].lower())
    return Reply(200)


def _begun(
    call: Call,
    account: Account,
    deployment: ModelDeployment,
    kind: str,
    before: dict[str, Any] | None,
    status: int = 202,
) -> Reply:
    cloud, now = call.cloud, call.cloud.clock()
    deployment.state, deployment.changed = "Accepted" if status == 202 else "Creating", now
    error = cloud.operation_errors.pop((kind, deployment.name), None)

    def done() -> None:
        deployment.state = "Succeeded"
        deployment.history.append((cloud.clock(), deployment.capacity))

    def failed() -> None:
        deployment.state, deployment.body = "Failed", before or deployment.body

    name = cloud.new_id("cog").replace(":", "-")
    cloud.operations[name] = Operation(name, _key(call), None, kind, now, now + cloud.scale_s, done, failed, error)
    at = f"{call.base}/subscriptions/{cloud.subscription}/providers/{COGNITIVE}/locations/{account.region}/operationResults/{name}"
    headers = {
        "Azure-AsyncOperation": f"{at}?api-version={call.query['api-version']}",
        "Retry-After": str(cloud.retry_after_s),
    }
    return Reply(status, _deployment_body(call, account, deployment), headers)


def operation_status(call: Call) -> Reply:
    operation = call.cloud.operations.get(call.names["operation"])
    if operation is None:
        raise Refusal(404, "NotFound", f"The operation {call.names['operation']} was not found.")
    body: dict[str, Any] = {"id": call.path, "name": operation.name, "status": operation.status}
    if operation.status == "InProgress":
        return Reply(200, body, {"Retry-After": str(call.cloud.retry_after_s)})
    if operation.error is not None:
        body["error"] = {"code": operation.error[0], "message": operation.error[1]}
    return Reply(200, body)


# -- what may be had -----------------------------------------------------------------------------------------------------


def list_models(call: Call) -> Reply:
    _found(call)
    rows = []
    for model in MODELS:
        skus = [
            {
                "name": sku,
                "usageName": usage_name(sku, model),
                "capacity": {"minimum": least, "maximum": most, "step": step, "default": least},
                "cost": [
                    {"name": way, "meterId": f"{model[1]}-{sku}-{way}", "unit": "tokens"} for way in ("in", "out")
                ],
            }
            for sku, (least, most, step) in SKUS.items()
        ]
        rows.append({"format": model[0], "name": model[1], "version": model[2], "skus": skus})
    return paged(call, rows, call.cloud.page)


def list_skus(call: Call) -> Reply:
    _, deployment = _deployed(call)
    least, most, step = SKUS[deployment.sku]
    capacity = {"minimum": least, "maximum": most, "step": step, "default": least}
    return Reply(
        200,
        {
            "value": [
                {
                    "resourceType": f"{COGNITIVE}/accounts/deployments",
                    "sku": {"name": deployment.sku},
                    "capacity": capacity,
                }
            ]
        },
    )


def usages(call: Call) -> Reply:
    region = call.names["location"]
    rows = [
        {
            "name": {"value": name, "localizedValue": name},
            "unit": "Count",
            "limit": float(limit),
            "currentValue": float(used_quota(call.cloud, region, name)),
        }
        for name, limit in call.cloud.model_quota.items()
    ]
    return Reply(200, {"value": rows})


def capacities(call: Call) -> Reply:
    lacking = [n for n in ("modelformat", "modelname", "modelversion") if not call.query.get(n)]
    if lacking:
        raise Refusal(400, "MissingQueryParameter", f"The query parameter '{lacking[0]}' is required.")
    region = call.names["location"]
    rows = [
        {
            "id": f"{call.path}/{sku}",
            "name": sku,
            "location": region,
            "properties": {
                "model": {
                    "format": call.query["modelformat"],
                    "name": call.query["modelname"],
                    "version": call.query["modelversion"],
                },
                "skuName": sku,
                "availableCapacity": float(call.cloud.model_capacity.get((region, sku), 1_000_000)),
            },
        }
        for sku in SKUS
    ]
    return Reply(200, {"value": rows})


def calculate(call: Call) -> Reply:
    body = call.body
    told, sku = body.get("model") or {}, body.get("skuName")
    model = (told.get("format"), told.get("name"), told.get("version"))
    if model not in MODELS or sku not in SKUS or "Provisioned" not in sku:
        raise Refusal(400, "InvalidRequest", f"The capacity of {model} as {sku} cannot be calculated.")
    per_unit, weight, _ = MODELS[model]
    units = 0.0
    for load in body.get("workloads") or ():
        asked = load["requestParameters"]
        units += load["requestPerMinute"] * (asked["avgPromptTokens"] + weight * asked["avgGeneratedTokens"]) / per_unit
    least, _, step = SKUS[sku]
    deployable = max(least, -(-units // step) * step)
    return Reply(
        200,
        {
            "model": told,
            "skuName": sku,
            "estimatedCapacity": {"value": round(units), "deployableValue": int(deployable)},
        },
    )


# -- what the calls come to ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MinuteOfCalls:
    answered: float
    refused: float
    spilled: float
    usage: float | None


def minute_of(cloud: Cloud, account: Account, deployment: ModelDeployment, at: float) -> MinuteOfCalls:
    """A minute by its means: what lies above the limit is refused once, and then comes again in a later one, or spills over."""
    mix, capacity = deployment.callers(at), deployment.capacity_at(at)
    if mix.per_minute <= 0:
        return MinuteOfCalls(0.0, 0.0, 0.0, None)
    per_unit, weight, ratio = MODELS[deployment.model]
    if "Provisioned" in deployment.sku:
        each = mix.prompt * (1 - mix.cached) + weight * mix.output
        room = capacity * per_unit / each
        usage: float | None = min(1.0, mix.per_minute / room)
    else:
        room = min(capacity * 1000 / (mix.prompt + mix.reserve * mix.output), capacity * ratio)
        usage = None
    taken = min(mix.per_minute, room)
    over = mix.per_minute - taken
    spills = bool(deployment.body["properties"].get("spilloverDeploymentName"))
    return MinuteOfCalls(round(taken), 0.0 if spills else round(over), round(over) if spills else 0.0, usage)


def series_of(cloud: Cloud, account: Account, metric: str, at: float) -> Iterator[tuple[tuple[str, ...], float]]:
    """Labels (deployment, status code, spillover) and value, of one minute."""
    for deployment in account.deployments.values():
        openai = deployment.model[0] == "OpenAI"
        names = OPENAI_NAMES if openai else MODEL_NAMES
        what = names.get(metric)
        if what is None:
            continue
        mix, got = deployment.callers(at + 30), minute_of(cloud, account, deployment, at + 30)
        if got.answered + got.refused <= 0:
            continue
        if what == "requests":
            yield (deployment.name, "200", "False"), got.answered
            if got.refused:
                yield (deployment.name, "429", "False"), got.refused
            if got.spilled:
                yield (deployment.name, "200", "True"), got.spilled
            continue
        value = {
            "prompt": got.answered * mix.prompt,
            "output": got.answered * mix.output,
            "cached": got.answered * mix.prompt * mix.cached,
            "cache_share": 100 * mix.cached,
            "first": 350.0,
            "whole": 350.0 + 12.0 * mix.output,
            "gap": 12.0,
            "usage": None if got.usage is None else 100 * got.usage,
        }[what]
        if value is not None:
            yield (deployment.name, "", ""), value


OPENAI_NAMES = {
    "AzureOpenAIRequests": "requests",
    "ProcessedPromptTokens": "prompt",
    "GeneratedTokens": "output",
    "AzureOpenAIContextTokensCacheMatchRate": "cache_share",
    "AzureOpenAITimeToResponse": "first",
    "AzureOpenAITTLTInMS": "whole",
    "AzureOpenAINormalizedTBTInMS": "gap",
    "AzureOpenAIProvisionedManagedUtilizationV2": "usage",
}
MODEL_NAMES = {
    "ModelRequests": "requests",
    "InputTokens": "prompt",
    "OutputTokens": "output",
    "cacheReadInputTokens": "cached",
    "TimeToResponse": "first",
    "TimeToLastByte": "whole",
    "NormalizedTimeBetweenTokens": "gap",
    "ProvisionedUtilization": "usage",
}


def account_of(cloud: Cloud, uri: str) -> Account | None:
    match = re.match(
        rf"/?subscriptions/[^/]+/resourceGroups/([^/]+)/providers/{COGNITIVE}/accounts/([^/]+)$", uri, re.IGNORECASE
    )
    return cloud.accounts.get(f"{match[1]}/{match[2]}".lower()) if match else None


_P = f"/subscriptions/{{subscription}}/providers/{COGNITIVE}"
_A = f"/subscriptions/{{subscription}}/resourceGroups/{{group}}/providers/{COGNITIVE}/accounts/{{account}}"
_D = f"{_A}/deployments/{{deployment}}"
_ON = f"{COGNITIVE}/accounts"

ROUTES: list[Route] = [
    route("GET", f"{_P}/accounts", VERSIONS, f"{_ON}/read", list_accounts),
    route("GET", _A, VERSIONS, f"{_ON}/read", get_account),
    route("GET", f"{_A}/models", VERSIONS, f"{_ON}/models/read", list_models),
    route("GET", f"{_A}/deployments", VERSIONS, f"{_ON}/deployments/read", list_deployments),
    route("GET", _D, VERSIONS, f"{_ON}/deployments/read", get_deployment),
    route("PUT", _D, VERSIONS, f"{_ON}/deployments/write", put_deployment),
    route("PATCH", _D, VERSIONS, f"{_ON}/deployments/write", patch_deployment),
    route("DELETE", _D, VERSIONS, f"{_ON}/deployments/delete", delete_deployment),
    route("GET", f"{_D}/skus", VERSIONS, f"{_ON}/deployments/skus/read", list_skus),
    route("GET", f"{_P}/locations/{{location}}/usages", VERSIONS, f"{COGNITIVE}/locations/usages/read", usages),
    route("GET", f"{_P}/locations/{{location}}/modelCapacities", VERSIONS, f"{COGNITIVE}/locations/modelCapacities/read", capacities),
    route("POST", f"{_P}/calculateModelCapacity", VERSIONS, f"{COGNITIVE}/calculateModelCapacity/action", calculate),
    route("GET", f"{_P}/locations/{{location}}/operationResults/{{operation}}", VERSIONS, f"{COGNITIVE}/locations/operationResults/read",
          operation_status),
]  # fmt: skip
