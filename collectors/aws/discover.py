"""``flyball discover`` and ``flyball permissions`` for ``sagemaker``, ``ec2`` and ``bedrock``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from collectors.aws.client import AwsAccount, AwsClient, shared
from collectors.aws.endpoints import SageMakerEndpoint, inventory
from collectors.aws.errors import AwsError
from collectors.aws.permissions import permitted, policy
from collectors.aws.sizes import catalogue, price_line
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support, options_of


class AwsDiscoveryOptions(AwsAccount):
    """What ``flyball discover`` takes of Amazon's systems: the region and the profile."""


class _AwsSystem:
    """What the systems have in common. See ``collectors.discovery.System``."""

    name: ClassVar[str]
    options: ClassVar[type[BaseModel]] = AwsDiscoveryOptions

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        if entry is None:
            client = _client(context, options_of(AwsDiscoveryOptions, context.options, self.name))
            return await permitted(client, self.name, changes=False)
        actuator = entry.get("actuator") or {}
        stated = dict(actuator.get("options") or {}) if actuator.get("system") == self.name else {}
        account = {k: v for k, v in stated.items() if k in AwsAccount.model_fields}
        client = _client(context, options_of(AwsDiscoveryOptions, account, self.name))
        return await permitted(client, self.name, changes=entry.get("mode") != "observe")

    def permissions(self) -> str:
        return policy(self.name)


class SageMakerSystem(_AwsSystem):
    """Real-time endpoints."""

    name: ClassVar[str] = "sagemaker"
    support: ClassVar[Support] = Support(
        title="Amazon SageMaker real-time endpoints",
        sees=(
            "requests, errors, latencies and machines, by CloudWatch",
            "instances that serve, weights, instance types",
            "who owns the count: Application Auto Scaling",
            "prices, by Amazon's price list",
        ),
        changes=(
            "instances, and the weights of variants",
            "instance type, by another configuration and SageMaker's own update",
            "the bounds of Application Auto Scaling",
        ),
        verified="official SDK",
        how="real botocore against moto's server; what moto lacks (updates that take time, quantiles, prices) by a strict layer before it",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        options = options_of(AwsDiscoveryOptions, context.options, self.name)
        client = _client(context, options)
        taken: set[str] = set()
        for row in await client.items("sagemaker", "ListEndpoints", "Endpoints"):
            endpoint = await inventory(context.sessions, client).endpoint(str(row["EndpointName"]))
            yield await self._found(context, client, endpoint, taken)

    async def _found(
        self, context: DiscoveryContext, client: AwsClient, endpoint: SageMakerEndpoint, taken: set[str]
    ) -> DiscoveredEndpoint:
        account, sizes = _stated(client), catalogue(context.sessions, client)
        names = sorted({v.size for v in endpoint.variants if v.size is not None})
        types = await sizes.types(names)
        main = max(endpoint.variants, key=lambda v: (v.size is not None, v.weight or 0.0), default=None)
        known = types.get(main.size) if main is not None and main.size is not None else None
        machines = {} if known is None else {"cpus": known.cpus}
        if known is not None and known.accelerator_count:
            machines["gpus"] = known.accelerator_count
        source = {
            **account,
            "endpoint": endpoint.name,
            "variants": [v.name for v in endpoint.variants],
            **(machines if len(names) == 1 else {}),
        }
        changed = {**account, "endpoint": endpoint.name}
        if main is not None and len(endpoint.variants) > 1:
            changed["variant"] = main.name
        sized = main is not None and main.size is not None
        settings = {
            "name": _name(endpoint.name, taken),
            "url": f"https://runtime.sagemaker.{client.region}.amazonaws.com",
            "kind": "vm",
            "sources": {"cloudwatch": source},
            **({"actuator": {"system": "sagemaker", "options": changed}} if sized else {}),
            "mode": "observe",
        }
        notes = [f"{endpoint.status}, configuration {endpoint.config_name}"]
        for v in endpoint.variants:
            what = "serverless: it is only seen" if v.serverless else f"{v.desired} x {v.size}"
            target = (endpoint.targets or {}).get(v.name)
            owner = "" if target is None else f", {target['MinCapacity']}..{target['MaxCapacity']} by auto scaling"
            notes.append(f"{v.name}: {what}, weight {'?' if v.weight is None else f'{v.weight:g}'}{owner}")
        notes += [price_line(n, types.get(n), await sizes.usd_per_hour("sagemaker", n)) for n in names]
        return DiscoveredEndpoint(str(settings["name"]), settings, "\n".join(notes))


class Ec2System(_AwsSystem):
    """Instances, and Auto Scaling groups."""

    name: ClassVar[str] = "ec2"
    support: ClassVar[Support] = Support(
        title="Amazon EC2 instances and Auto Scaling groups",
        sees=("instance type, state, count", "CPU, by CloudWatch", "who owns a group's count", "prices, by Amazon's price list"),
        changes=("an instance's type: stop, change, start", "a group's count, or its bounds where policies set the count"),
        verified="official SDK",
        how="real botocore against moto's server; what moto allows and Amazon does not is refused by a strict layer before it",
    )  # fmt: skip

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """Groups, and instances of no group that run or are stopped."""
        options = options_of(AwsDiscoveryOptions, context.options, self.name)
        client = _client(context, options)
        taken: set[str] = set()
        for group in await client.items("autoscaling", "DescribeAutoScalingGroups", "AutoScalingGroups"):
            yield await self._group(context, client, group, taken)
        states = [{"Name": "instance-state-name", "Values": ["running", "stopped"]}]
        for reservation in await client.items("ec2", "DescribeInstances", "Reservations", Filters=states):
            for instance in reservation.get("Instances") or ():
                if "aws:autoscaling:groupName" not in _tags(instance):
                    yield await self._instance(context, client, instance, taken)

    async def _instance(
        self, context: DiscoveryContext, client: AwsClient, body: Mapping[str, Any], taken: set[str]
    ) -> DiscoveredEndpoint:
        id_, size = str(body["InstanceId"]), str(body["InstanceType"])
        host = body.get("PrivateIpAddress") or body.get("PublicIpAddress") or id_
        which = {**_stated(client), "instance": id_}
        settings = {
            "name": _name(_tags(body).get("Name") or id_, taken),
            "url": f"http://{host}:8000",
            "sources": {"vllm": {}, "cloudwatch": dict(which)},
            "actuator": {"system": "ec2", "options": which},
            "mode": "observe",
        }
        notes = [f"{id_}, {size}, {(body.get('State') or {}).get('Name')}", "correct the url's port, and the source"]
        notes.append(await _priced(context, client, size))
        return DiscoveredEndpoint(str(settings["name"]), settings, "\n".join(notes))

    async def _group(
        self, context: DiscoveryContext, client: AwsClient, body: Mapping[str, Any], taken: set[str]
    ) -> DiscoveredEndpoint:
        group = str(body["AutoScalingGroupName"])
        which = {**_stated(client), "group": group}
        settings = {
            "name": _name(group, taken),
            "url": "http://127.0.0.1:8000",
            "sources": {"cloudwatch": dict(which)},
            "actuator": {"system": "ec2", "options": which},
            "policy": {"min_replicas": int(body["MinSize"]), "max_replicas": int(body["MaxSize"])},
            "mode": "observe",
        }
        sizes = sorted({str(i.get("InstanceType")) for i in body.get("Instances") or ()})
        notes = [
            f"group {group}: {body['DesiredCapacity']} of {body['MinSize']}..{body['MaxSize']}, {', '.join(sizes)}"
        ]
        notes.append("set the url of the balancer before it, and a source of its requests")
        notes += [await _priced(context, client, size) for size in sizes]
        return DiscoveredEndpoint(str(settings["name"]), settings, "\n".join(notes))


class BedrockSystem(_AwsSystem):
    """Models that were called."""

    name: ClassVar[str] = "bedrock"
    support: ClassVar[Support] = Support(
        title="Amazon Bedrock models",
        sees=("requests, refusals, throttling, tokens, times, by CloudWatch", "provisioned throughput that is bought"),
        changes=(),
        verified="official SDK",
        how="real botocore against moto's server and a strict layer before it; names and units by Amazon's documentation",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """Each model that was called in the last two weeks, as CloudWatch lists them."""
        options = options_of(AwsDiscoveryOptions, context.options, self.name)
        client = _client(context, options)
        bought = await self._bought(client)
        rows = await client.items(
            "cloudwatch", "ListMetrics", "Metrics", Namespace="AWS/Bedrock", MetricName="Invocations"
        )
        called = {
            str(d["Value"]) for row in rows if len(row["Dimensions"]) == 1 for d in row["Dimensions"] if d["Name"] == "ModelId"
        }  # fmt: skip
        taken: set[str] = set()
        for model in sorted(called | bought.keys()):
            throughput = bought.get(model)
            settings = {
                "name": _name(model.rpartition("/")[2], taken),
                "url": f"https://bedrock-runtime.{client.region}.amazonaws.com",
                "model": model,
                "kind": "quota",
                "sources": {"cloudwatch": {**_stated(client), "bedrock_model": model}},
                "actuator": {"system": "none", "options": {"health": False}},
                "mode": "observe",
            }
            note = "pay per token: state usd_per_1k_input_tokens and usd_per_1k_output_tokens"
            if throughput is not None:
                term = throughput.get("commitmentDuration") or "no commitment"
                units = throughput.get("modelUnits")
                note = f"provisioned throughput: {units} model units, {throughput.get('status')}, {term}"
                note += f", paid by the hour whether it is used or not\nmodel {throughput.get('modelArn')}"
                if model not in called:
                    note += "\nnobody called it in the last two weeks"
            yield DiscoveredEndpoint(str(settings["name"]), settings, note)

    async def _bought(self, client: AwsClient) -> dict[str, Mapping[str, Any]]:
        """By ARN, which is also what CloudWatch has it under. Nothing where it may not be asked."""
        try:
            rows = await client.items("bedrock", "ListProvisionedModelThroughputs", "provisionedModelSummaries")
        except AwsError as error:
            if error.kind != "denied":
                raise
            return {}
        return {str(row["provisionedModelArn"]): row for row in rows}


async def _priced(context: DiscoveryContext, client: AwsClient, size: str) -> str:
    sizes = catalogue(context.sessions, client)
    return price_line(size, (await sizes.types([size])).get(size), await sizes.usd_per_hour("ec2", size))


def _tags(body: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag.get("Key")): str(tag.get("Value")) for tag in body.get("Tags") or ()}


def _name(text: str, taken: set[str]) -> str:
    """Its own, or with a number where that is taken; it is taken then."""
    own = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60] or "endpoint"
    name = own if own not in taken else next(n for i in range(2, 10_000) if (n := f"{own}-{i}") not in taken)
    taken.add(name)
    return name


def _client(context: DiscoveryContext, options: AwsAccount) -> AwsClient:
    return shared(context.sessions, AwsAccount.of(options), context.http, context.clock)


def _stated(client: AwsClient) -> dict[str, Any]:
    """The account in the entries: the region always, as it is part of what the endpoint is."""
    stated = client.account.model_dump(mode="json", exclude_none=True)
    return {"region": client.region, **stated}
