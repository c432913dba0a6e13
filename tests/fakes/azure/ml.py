"""Machine Learning's part of ARM: online endpoints and their deployments, sizes, usages, long operations; and the scoring address."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.fakes.azure.cloud import ML, Cloud, Deployment, Endpoint, Operation, Refusal
from tests.fakes.azure.server import Call, Reply, Route, allowed, paged, route

VERSIONS = "2023-04-01 2024-10-01 2025-12-01"
_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]$")
_DEPLOYMENT = {
    "description", "properties", "codeConfiguration", "environmentId", "environmentVariables", "scaleSettings", "requestSettings",
    "appInsightsEnabled", "livenessProbe", "readinessProbe", "startupProbe", "instanceType", "model", "endpointComputeType",
    "modelMountPath", "egressPublicNetworkAccess", "dataCollector", "provisioningState",
}  # fmt: skip
_ENDPOINT = {
    "authMode", "description", "keys", "properties", "compute", "traffic", "mirrorTraffic", "publicNetworkAccess",
    "scoringUri", "swaggerUri", "provisioningState",
}  # fmt: skip
_RESOURCE = {"id", "name", "type", "systemData", "tags", "location", "identity", "kind", "properties", "sku"}


# -- nouns as bodies ---------------------------------------------------------------------------------------------------


def _workspace(cloud: Cloud, group: str, name: str) -> str:
    return f"/subscriptions/{cloud.subscription}/resourceGroups/{group}/providers/{ML}/workspaces/{name}"


def endpoint_id(cloud: Cloud, endpoint: Endpoint) -> str:
    return f"{_workspace(cloud, endpoint.group, endpoint.workspace)}/onlineEndpoints/{endpoint.name}"


def deployment_id(cloud: Cloud, endpoint: Endpoint, name: str) -> str:
    return f"{endpoint_id(cloud, endpoint)}/deployments/{name}"


def _endpoint_body(call: Call, endpoint: Endpoint) -> dict[str, Any]:
    own = {
        "scoringUri": f"{call.base}/scoring/{endpoint.name}/score",
        "swaggerUri": f"{call.base}/scoring/{endpoint.name}/swagger.json",
        "provisioningState": endpoint.state,
        "properties": {"azureml.onlineendpointid": endpoint_id(call.cloud, endpoint).lower()},
    }
    return {
        **endpoint.body,
        "id": endpoint_id(call.cloud, endpoint),
        "name": endpoint.name,
        "type": f"{ML}/workspaces/onlineEndpoints",
        "properties": {**endpoint.body["properties"], **own},
    }


def _deployment_body(call: Call, endpoint: Endpoint, deployment: Deployment) -> dict[str, Any]:
    own: dict[str, Any] = {"provisioningState": deployment.state}
    if deployment.operation_uri:
        own["properties"] = {"AzureAsyncOperationUri": deployment.operation_uri}
    return {
        **deployment.body,
        "id": deployment_id(call.cloud, endpoint, deployment.name),
        "name": deployment.name,
        "type": f"{ML}/workspaces/onlineEndpoints/deployments",
        "properties": {**deployment.body["properties"], **own},
    }


def _key(call: Call) -> str:
    return f"{call.names['group']}/{call.names['workspace']}/{call.names['endpoint']}".lower()


def _found(call: Call) -> Endpoint:
    _in_workspace(call)
    endpoint = call.cloud.endpoints.get(_key(call))
    if endpoint is None:
        raise Refusal(404, "ResourceNotFound", f"The Resource '{call.path}' was not found.")
    return endpoint


def _in_workspace(call: Call) -> str:
    """Its region."""
    for (group, name), region in call.cloud.workspaces.items():
        if (group.lower(), name.lower()) == (call.names["group"].lower(), call.names["workspace"].lower()):
            return region
    raise Refusal(404, "ResourceNotFound", f"The workspace '{call.names['workspace']}' was not found.")


def _deployed(call: Call) -> tuple[Endpoint, Deployment]:
    endpoint = _found(call)
    deployment = endpoint.deployments.get(call.names["deployment"])
    if deployment is None:
        raise Refusal(
            404, "ResourceNotFound", f"Deployment {call.names['deployment']} was not found in endpoint {endpoint.name}."
        )
    return endpoint, deployment


# -- long operations ---------------------------------------------------------------------------------------------------


def _begin(
    call: Call,
    endpoint: Endpoint,
    kind: str,
    seconds: float,
    done: Callable[[], None],
    failed: Callable[[], None],
    deployment: str | None = None,
) -> Operation:
    cloud = call.cloud
    name = cloud.new_id("odidp" if deployment else "oeidp")
    error = cloud.operation_errors.pop((kind, deployment or endpoint.name), None)
    now = cloud.clock()
    operation = Operation(name, _key(call), deployment, kind, now, now + seconds, done, failed, error)
    cloud.operations[name] = operation
    cloud.touch(operation)
    if deployment and deployment in endpoint.deployments:
        endpoint.deployments[deployment].operation_uri = _status_url(call, name)
    return operation


def _where(call: Call, word: str, name: str) -> str:
    region = _in_workspace(call) if "workspace" in call.names else call.names["location"]
    at = f"{call.base}/subscriptions/{call.cloud.subscription}/providers/{ML}/locations/{region}/{word}/{name}"
    return f"{at}?api-version={call.query['api-version']}"


def _status_url(call: Call, name: str) -> str:
    return _where(call, "mfeOperationsStatus", name)


def _accepted(call: Call, operation: Operation) -> Reply:
    headers = {
        "Location": _where(call, "mfeOperationResults", operation.name),
        "Retry-After": str(call.cloud.retry_after_s),
        "x-ms-async-operation-timeout": "PT1H",
    }
    return Reply(202, None, headers)


def _put_reply(call: Call, status: int, body: Any, operation: Operation) -> Reply:
    headers = {"Azure-AsyncOperation": _status_url(call, operation.name), "x-ms-async-operation-timeout": "PT1H"}
    return Reply(status, body, headers)


def _idle(call: Call, endpoint: Endpoint) -> None:
    """Raises the conflict where another operation runs on the endpoint."""
    running = call.cloud.running(_key(call))
    if running is not None:
        what = f"deployment {running.deployment}" if running.deployment else f"endpoint {endpoint.name}"
        text = f"Already running method {running.kind} on {what}; wait until it has ended and try again."
        raise Refusal(409, "Conflict", text, {"Retry-After": str(call.cloud.retry_after_s)})


def _operation(call: Call) -> Operation:
    found = call.cloud.operations.get(call.names["operation"])
    if found is None:
        raise Refusal(404, "OperationNotFound", f"The operation {call.names['operation']} was not found.")
    return found


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def operation_status(call: Call) -> Reply:
    operation = _operation(call)
    body: dict[str, Any] = {"status": operation.status, "startTime": _stamp(operation.started)}
    if operation.status == "InProgress":
        return Reply(200, body, {"Retry-After": str(call.cloud.retry_after_s)})
    body["endTime"] = _stamp(operation.due)
    if operation.error is not None:
        body["error"] = {"code": operation.error[0], "message": operation.error[1]}
    return Reply(200, body)


def operation_result(call: Call) -> Reply:
    operation = _operation(call)
    if operation.status == "InProgress":
        return _accepted(call, operation)
    if operation.error is not None:
        raise Refusal(400, *operation.error)
    if operation.kind == "delete":
        return Reply(204)
    group, workspace, _ = operation.target.split("/")
    endpoint = call.cloud.endpoints[operation.target]
    call.names |= {"group": group, "workspace": workspace}
    if operation.deployment is None:
        return Reply(200, _endpoint_body(call, endpoint))
    return Reply(200, _deployment_body(call, endpoint, endpoint.deployments[operation.deployment]))


# -- checks ------------------------------------------------------------------------------------------------------------


def _invalid(what: str) -> Refusal:
    return Refusal(400, "BadRequest", "The request is invalid.", details=[{"code": "ValidationError", "message": what}])


def _object(value: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{where} must be an object.")
    unknown = sorted(set(value) - known)
    if unknown:
        raise _invalid(f"{where}: could not find member '{unknown[0]}' on object.")
    return value


def _resource(call: Call, known: set[str], name: str) -> dict[str, Any]:
    """The checked body of a PUT."""
    body = _object(call.body, _RESOURCE, "The body")
    if not _NAME.match(name):
        raise _invalid(f"The name '{name}' is not valid: 3 to 32 letters, digits and '-', beginning with a letter.")
    if body.get("location", "").replace(" ", "").lower() != _in_workspace(call):
        raise _invalid(f"The location must be that of the workspace, {_in_workspace(call)}.")
    if not all(isinstance(v, str) for v in (body.get("tags") or {}).values()):
        raise _invalid("tags must be strings.")
    _object(body.get("properties"), known, "properties")
    return {**body, "tags": body.get("tags") or {}}


def _writable(body: dict[str, Any]) -> dict[str, Any]:
    """Without what is read-only: it is ignored."""
    properties = {
        k: v for k, v in body["properties"].items() if k not in ("provisioningState", "scoringUri", "swaggerUri")
    }
    properties.pop("properties", None)
    return {k: v for k, v in body.items() if k not in ("id", "name", "type", "systemData")} | {"properties": properties}


def _capacity(sku: Any) -> int:
    checked = _object(sku, {"name", "capacity", "tier", "size", "family"}, "sku")
    capacity = checked.get("capacity")
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= 50:
        raise _invalid(f"sku.capacity must be a whole number from 1 to 50, not {capacity!r}.")
    if checked.get("name", "Default") != "Default":
        raise _invalid(f"sku.name must be Default, not {checked['name']!r}.")
    return capacity


def _check_quota(cloud: Cloud, size: str, count: int, already: int) -> None:
    family = cloud.sizes[size].family
    needed = cloud.cores_needed(size, count) - (cloud.cores_needed(size, already) if already else 0)
    used, limit = cloud.cores_used(family), cloud.quota.get(family, 0)
    if needed > 0 and used + needed > limit:
        said = (
            f'{{"error":{{"code":"Validation","message":"{{\\"errors\\":{{\\"VmSize\\":[\\"Not enough quota available for {size} in '
            f"SubscriptionId {cloud.subscription}. Current usage/limit: {used}/{limit}. Additional needed: {needed} Please see "
            f'troubleshooting guide, available here: https://aka.ms/oe-tsg#error-outofquota\\"]}}}}"}}}}'
        )
        raise Refusal(
            400,
            "BadRequest",
            "The request is invalid.",
            details=[{"code": "InferencingClientCallFailed", "message": said}],
        )


# -- endpoints ---------------------------------------------------------------------------------------------------------


def list_endpoints(call: Call) -> Reply:
    _in_workspace(call)
    prefix = f"{call.names['group']}/{call.names['workspace']}/".lower()
    found = [_endpoint_body(call, e) for key, e in sorted(call.cloud.endpoints.items()) if key.startswith(prefix)]
    return paged(call, found, call.cloud.page)


def get_endpoint(call: Call) -> Reply:
    return Reply(200, _endpoint_body(call, _found(call)))


def put_endpoint(call: Call) -> Reply:
    body = _writable(_resource(call, _ENDPOINT, call.names["endpoint"]))
    properties = body["properties"]
    if properties.get("authMode") not in ("Key", "AMLToken", "AADToken"):
        raise _invalid(f"authMode must be Key, AMLToken or AADToken, not {properties.get('authMode')!r}.")
    if not isinstance(body.get("identity"), dict):
        raise _invalid("identity is required.")
    endpoint = call.cloud.endpoints.get(_key(call))
    known = endpoint.deployments if endpoint else {}
    _check_traffic(properties.get("traffic") or {}, known, 100, exact=True)
    _check_traffic(properties.get("mirrorTraffic") or {}, known, 50, exact=False)
    fresh = endpoint is None
    if endpoint is None:
        endpoint = Endpoint(call.names["group"], call.names["workspace"], call.names["endpoint"], body)
        call.cloud.endpoints[_key(call)] = endpoint
    else:
        _idle(call, endpoint)
        if properties["authMode"] != endpoint.body["properties"]["authMode"]:
            raise _invalid("authMode cannot be changed.")
    before, there = endpoint.body, endpoint
    endpoint.state = "Creating" if fresh else "Updating"

    def done() -> None:
        there.body, there.state = body, "Succeeded"

    def failed() -> None:
        there.body, there.state = before, "Failed"

    operation = _begin(call, endpoint, "traffic", call.cloud.update_s, done, failed)
    return _put_reply(call, 201 if fresh else 200, _endpoint_body(call, endpoint), operation)


def _check_traffic(traffic: dict[str, Any], known: dict[str, Deployment], most: int, *, exact: bool) -> None:
    for name, share in traffic.items():
        if name not in known:
            raise _invalid(f"traffic names the deployment {name}, which does not exist.")
        if isinstance(share, bool) or not isinstance(share, int) or not 0 <= share <= most:
            raise _invalid(f"traffic of {name} must be a whole number from 0 to {most}, not {share!r}.")
        if share and known[name].state != "Succeeded":
            raise _invalid(f"traffic cannot go to {name}, which is {known[name].state}.")
    total = sum(traffic.values())
    if exact and total not in (0, 100):
        raise _invalid(f"The sum of traffic must be 0 or 100, not {total}.")


def patch_endpoint(call: Call) -> Reply:
    endpoint = _found(call)
    body = _object(call.body, {"tags", "identity"}, "The body")
    _idle(call, endpoint)
    endpoint.body = {**endpoint.body, **body}
    return Reply(200, _endpoint_body(call, endpoint))


def list_keys(call: Call) -> Reply:
    _found(call)
    return Reply(200, {"primaryKey": call.cloud.keys[0], "secondaryKey": call.cloud.keys[1]})


# -- deployments -------------------------------------------------------------------------------------------------------


def list_deployments(call: Call) -> Reply:
    endpoint = _found(call)
    found = [_deployment_body(call, endpoint, d) for _, d in sorted(endpoint.deployments.items())]
    return paged(call, found, call.cloud.page)


def get_deployment(call: Call) -> Reply:
    return Reply(200, _deployment_body(call, *_deployed(call)))


def put_deployment(call: Call) -> Reply:
    endpoint, name = _found(call), call.names["deployment"]
    body = _writable(_resource(call, _DEPLOYMENT, name))
    properties = body["properties"]
    if properties.get("endpointComputeType") != "Managed":
        raise _invalid("endpointComputeType must be Managed.")
    size, count = properties.get("instanceType"), _capacity(body.get("sku"))
    if size not in call.cloud.sizes:
        raise _invalid(f"instanceType {size!r} is not supported for managed online deployments.")
    there = endpoint.deployments.get(name)
    _idle(call, endpoint)
    if there is not None and there.size != size:
        raise _invalid(f"InstanceType cannot be changed for deployment {name}: {there.size} to {size}.")
    _check_quota(call.cloud, size, count, there.count if there else 0)
    fresh = there is None
    if there is None:
        if size in call.cloud.unavailable:
            text = f"The requested VM size {size} is currently not available in location '{_in_workspace(call)}'."
            raise Refusal(409, "SkuNotAvailable", text)
        there = Deployment(name, body)
        endpoint.deployments[name] = there
    before, deployment = there.body, there
    there.state = "Creating" if fresh else "Updating"

    def done() -> None:
        deployment.body, deployment.state, deployment.serving, deployment.since = (
            body,
            "Succeeded",
            count,
            call.cloud.clock(),
        )

    def failed() -> None:
        deployment.body, deployment.state = before, "Failed"

    operation = _begin(call, endpoint, "create", call.cloud.create_s, done, failed, name)
    return _put_reply(call, 201 if fresh else 200, _deployment_body(call, endpoint, there), operation)


def patch_deployment(call: Call) -> Reply:
    endpoint, deployment = _deployed(call)
    body = _object(call.body, {"tags", "sku"}, "The body")
    tags = body.get("tags", deployment.body["tags"])
    _idle(call, endpoint)
    if "sku" not in body:
        deployment.body = {**deployment.body, "tags": tags}
        return Reply(200, _deployment_body(call, endpoint, deployment))
    count = _capacity(body["sku"])
    if deployment.state == "Failed" and deployment.serving == 0:
        raise _invalid(f"Deployment {deployment.name} has failed and cannot be scaled.")
    _check_quota(call.cloud, deployment.size, count, deployment.count)
    if deployment.size in call.cloud.unavailable and count > deployment.count:
        call.cloud.operation_errors.setdefault(
            ("scale", deployment.name),
            (
                "OutOfCapacity",
                f"The specified VM Size {deployment.size} failed to provision due to a lack of capacity.",
            ),
        )
    before = deployment.body
    deployment.body = {**before, "tags": tags, "sku": {"name": "Default", "capacity": count}}
    deployment.state = "Scaling"

    def done() -> None:
        deployment.state, deployment.serving, deployment.since = "Succeeded", count, call.cloud.clock()

    def failed() -> None:
        deployment.state, deployment.body = "Failed", before

    operation = _begin(call, endpoint, "scale", call.cloud.scale_s, done, failed, deployment.name)
    return _accepted(call, operation)


def delete_deployment(call: Call) -> Reply:
    endpoint, name = _found(call), call.names["deployment"]
    if name not in endpoint.deployments:
        return Reply(204)
    if endpoint.traffic.get(name):
        text = f"Deployment {name} takes {endpoint.traffic[name]} % of the traffic of {endpoint.name}; set it to 0 before deleting it."
        raise _invalid(text)
    _idle(call, endpoint)
    endpoint.deployments[name].state = "Deleting"

    def done() -> None:
        endpoint.deployments.pop(name, None)
        left = {k: v for k, v in endpoint.traffic.items() if k != name}
        endpoint.body = {**endpoint.body, "properties": {**endpoint.body["properties"], "traffic": left}}

    def failed() -> None:
        endpoint.deployments[name].state = "Failed"

    return _accepted(call, _begin(call, endpoint, "delete", call.cloud.delete_s, done, failed, name))


def list_skus(call: Call) -> Reply:
    _deployed(call)
    capacity = {"minimum": 1, "maximum": 50, "default": 1, "scaleType": "Manual"}
    kind = f"{ML}/workspaces/onlineEndpoints/deployments"
    return Reply(200, {"value": [{"resourceType": kind, "sku": {"name": "Default"}, "capacity": capacity}]})


# -- serverless endpoints ----------------------------------------------------------------------------------------------


def add_serverless(cloud: Cloud, name: str, model: str = "Mistral-large", *, state: str = "Online") -> str:
    """One that has been there for long; its id."""
    (group, workspace), region = next(iter(cloud.workspaces.items()))
    at = f"{_workspace(cloud, group, workspace)}/serverlessEndpoints/{name}"
    cloud.serverless[f"{group}/{workspace}/{name}".lower()] = {
        "id": at,
        "name": name,
        "type": f"{ML}/workspaces/serverlessEndpoints",
        "location": region,
        "sku": {"name": "Consumption"},
        "systemData": {"lastModifiedAt": _stamp(cloud.clock() - 86_400.0)},
        "properties": {
            "modelSettings": {"modelId": f"azureml://registries/azureml-mistral/models/{model}"},
            "authMode": "Key",
            "inferenceEndpoint": {"uri": f"https://{name}.{region}.models.ai.azure.com", "headers": {}},
            "provisioningState": "Succeeded",
            "endpointState": state,
        },
    }
    return at


def list_serverless(call: Call) -> Reply:
    _in_workspace(call)
    under = f"{call.names['group']}/{call.names['workspace']}/".lower()
    return paged(call, [b for key, b in call.cloud.serverless.items() if key.startswith(under)], call.cloud.page)


def get_serverless(call: Call) -> Reply:
    body = call.cloud.serverless.get(_key(call))
    if body is None:
        raise Refusal(404, "ResourceNotFound", f"The Resource '{call.path}' was not found.")
    return Reply(200, body)


# -- the subscription --------------------------------------------------------------------------------------------------


def list_workspaces(call: Call) -> Reply:
    found = [
        {
            "id": _workspace(call.cloud, group, name),
            "name": name,
            "type": f"{ML}/workspaces",
            "location": region,
            "kind": "Default",
        }
        for (group, name), region in sorted(call.cloud.workspaces.items())
    ]
    return paged(call, found, call.cloud.page)


def get_workspace(call: Call) -> Reply:
    region = _in_workspace(call)
    group, name = call.names["group"], call.names["workspace"]
    return Reply(
        200, {"id": _workspace(call.cloud, group, name), "name": name, "type": f"{ML}/workspaces", "location": region}
    )


def list_resources(call: Call) -> Reply:
    """ARM's own index of resources; with ``$expand=changedTime``, when each was changed last."""
    wanted = re.match(
        rf"resourceType eq '({ML}/workspaces/onlineEndpoints(/deployments)?)'$",
        call.query.get("$filter", ""),
        re.IGNORECASE,
    )
    if wanted is None:
        raise Refusal(400, "InvalidFilterInQueryString", "Invalid $filter in query string.")
    found: list[dict[str, Any]] = []
    for endpoint in call.cloud.endpoints.values():
        at = endpoint_id(call.cloud, endpoint)
        if not wanted[2]:
            found.append({"id": at, "name": endpoint.name, "type": wanted[1], "changedTime": _stamp(endpoint.changed)})
        for d in endpoint.deployments.values() if wanted[2] else ():
            row = {
                "id": f"{at}/deployments/{d.name}",
                "name": f"{endpoint.workspace}/{endpoint.name}/{d.name}",
                "type": wanted[1],
            }
            found.append({**row, "sku": d.body["sku"], "changedTime": _stamp(d.changed)})
    if "changedTime" not in call.query.get("$expand", ""):
        found = [{k: v for k, v in row.items() if k != "changedTime"} for row in found]
    return paged(call, found, 1000)


def vm_sizes(call: Call) -> Reply:
    return Reply(200, {"value": [size.body() for size in call.cloud.sizes.values()]})


def usages(call: Call) -> Reply:
    def usage(name: str, used: int, limit: int) -> dict[str, Any]:
        at = f"/subscriptions/{call.cloud.subscription}/providers/{ML}/locations/{call.names['location']}/usages/{name}"
        return {"id": at, "type": f"{ML}/usages", "unit": "Count", "currentValue": used, "limit": limit,
                "name": {"value": name, "localizedValue": name}}  # fmt: skip

    return Reply(200, {"value": [usage(f, call.cloud.cores_used(f), limit) for f, limit in call.cloud.quota.items()]})


def permissions(call: Call) -> Reply:
    row = {
        "actions": list(call.cloud.actions),
        "notActions": list(call.cloud.not_actions),
        "dataActions": [],
        "notDataActions": [],
    }
    return Reply(200, {"value": [row]})


# -- scoring -----------------------------------------------------------------------------------------------------------


def score(call: Call) -> Reply:
    endpoint = next((e for e in call.cloud.endpoints.values() if e.name == call.names["name"]), None)
    if endpoint is None:
        raise Refusal(404, "NotFound", "no such endpoint")
    if call.headers.get("authorization") not in [f"Bearer {key}" for key in call.cloud.keys]:
        raise Refusal(401, "Unauthorized", "the key is not valid")
    named = call.headers.get("azureml-model-deployment")
    deployment = named or next((n for n, share in endpoint.traffic.items() if share), None)
    there = endpoint.deployments.get(deployment or "")
    if there is None or there.serving == 0:
        return Reply(404 if named else 503, {"message": f"no deployment {deployment}"})
    call.cloud.scored.append(there.name)
    if there.name in call.cloud.broken:
        return Reply(500, {"message": "model raised"}, {"azureml-model-deployment": there.name})
    return Reply(200, {"result": [1]}, {"azureml-model-deployment": there.name})


_W = f"/subscriptions/{{subscription}}/resourceGroups/{{group}}/providers/{ML}/workspaces/{{workspace}}"
_E = f"{_W}/onlineEndpoints/{{endpoint}}"
_D = f"{_E}/deployments/{{deployment}}"
_L = f"/subscriptions/{{subscription}}/providers/{ML}/locations/{{location}}"
_ON = f"{ML}/workspaces/onlineEndpoints"

ROUTES: list[Route] = [
    route("GET", f"/subscriptions/{{subscription}}/providers/{ML}/workspaces", VERSIONS, f"{ML}/workspaces/read", list_workspaces),
    route("GET", _W, VERSIONS, f"{ML}/workspaces/read", get_workspace),
    route("GET", f"{_W}/onlineEndpoints", VERSIONS, f"{_ON}/read", list_endpoints),
    route("GET", _E, VERSIONS, f"{_ON}/read", get_endpoint),
    route("PUT", _E, VERSIONS, f"{_ON}/write", put_endpoint),
    route("PATCH", _E, VERSIONS, f"{_ON}/write", patch_endpoint),
    route("POST", f"{_E}/listKeys", VERSIONS, f"{_ON}/listKeys/action", list_keys),
    route("GET", f"{_E}/deployments", VERSIONS, f"{_ON}/deployments/read", list_deployments),
    route("GET", _D, VERSIONS, f"{_ON}/deployments/read", get_deployment),
    route("PUT", _D, VERSIONS, f"{_ON}/deployments/write", put_deployment),
    route("PATCH", _D, VERSIONS, f"{_ON}/deployments/write", patch_deployment),
    route("DELETE", _D, VERSIONS, f"{_ON}/deployments/delete", delete_deployment),
    route("GET", f"{_D}/skus", VERSIONS, f"{_ON}/deployments/skus/read", list_skus),
    route("GET", f"{_W}/serverlessEndpoints", "2024-10-01", f"{ML}/workspaces/serverlessEndpoints/read", list_serverless),
    route("GET", f"{_W}/serverlessEndpoints/{{endpoint}}", "2024-10-01", f"{ML}/workspaces/serverlessEndpoints/read", get_serverless),
    route("GET", f"{_L}/vmSizes", VERSIONS, f"{ML}/locations/vmsizes/read", vm_sizes),
    route("GET", f"{_L}/usages", VERSIONS, f"{ML}/locations/usages/read", usages),
    route("GET", f"{_L}/mfeOperationsStatus/{{operation}}", f"{VERSIONS} 2023-04-01-preview", f"{ML}/locations/mfeOperationsStatus/read",
          operation_status),
    route("GET", f"{_L}/mfeOperationResults/{{operation}}", VERSIONS, f"{ML}/locations/mfeOperationResults/read", operation_result),
    route("GET", "/subscriptions/{subscription}/resources", "2021-04-01 2025-04-01", "Microsoft.Resources/subscriptions/resources/read",
          list_resources),
    route("GET", "/{+scope}/providers/Microsoft.Authorization/permissions", "2022-04-01",
          "Microsoft.Authorization/permissions/read", permissions),
    route("POST", "/scoring/{name}/score", "", None, score, audience=None),
]  # fmt: skip

__all__ = ["ROUTES", "allowed", "deployment_id", "endpoint_id"]
