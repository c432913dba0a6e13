"""The stand-in for Azure OpenAI, driven by Microsoft's own clients: what they send it takes, and what it answers they understand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import GROUP, REGION, SUBSCRIPTION
from tests.fakes.azure.openai import CallMix, account_id, add_deployment

pytest.importorskip("azure.mgmt.cognitiveservices", reason="the Azure SDKs are not installed")
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.mgmt.cognitiveservices import CognitiveServicesManagementClient
from azure.mgmt.cognitiveservices import models as cs
from azure.monitor.querymetrics import MetricsClient

from tests.fakes.test_azure_sdk import NOW, _Bearer, _Passing, _Token

AT = (GROUP, "ai-chat")
#: Its client leaves the connection of a call that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    cloud = Cloud(_Passing())
    cloud.scale_s, cloud.retry_after_s = 5, 0
    cloud.model_quota = {"OpenAI.GlobalStandard.gpt-4.1": 100, "OpenAI.GlobalProvisionedManaged": 100}
    add_deployment(cloud, "chat").callers = lambda _at: CallMix(200)
    with FakeAzure(cloud) as fake:
        yield fake


@pytest.fixture
def client(azure: FakeAzure) -> Iterator[CognitiveServicesManagementClient]:
    made = CognitiveServicesManagementClient(
        _Token(), SUBSCRIPTION, base_url=azure.url, polling_interval=0, authentication_policy=_Bearer("arm-token")
    )
    with made:
        yield made


def test_it_lists_and_reads(azure: FakeAzure, client: CognitiveServicesManagementClient) -> None:
    azure.cloud.page = 1
    add_deployment(azure.cloud, "units", "GlobalProvisionedManaged", 50, spilloverDeploymentName="chat")
    (account,) = client.accounts.list()
    assert (account.name, account.kind, account.location) == ("ai-chat", "AIServices", REGION)
    chat, units = client.deployments.list(*AT)
    assert (chat.sku.name, chat.sku.capacity, chat.properties.model.name) == ("GlobalStandard", 60, "gpt-4.1")
    assert {r.key: (r.count, r.renewal_period) for r in chat.properties.rate_limits} == {
        "request": (360, 60),
        "token": (60_000, 60),
    }
    assert chat.system_data.last_modified_at is not None
    assert units.properties.spillover_deployment_name == "chat"
    offered = {m.version: {s.name: s for s in m.skus} for m in client.accounts.list_models(*AT) if m.name == "gpt-4.1"}
    sku = offered["2025-04-14"]["GlobalProvisionedManaged"]
    assert (sku.usage_name, sku.capacity.minimum, sku.capacity.step) == ("OpenAI.GlobalProvisionedManaged", 15, 5)
    assert sku.cost[0].meter_id == "gpt-4.1-GlobalProvisionedManaged-in"
    used = {u.name.value: (u.current_value, u.limit) for u in client.usages.list(REGION)}
    assert used["OpenAI.GlobalStandard.gpt-4.1"] == (60, 100)
    free = client.location_based_model_capacities.list(REGION, "OpenAI", "gpt-4.1", "2025-04-14")
    assert {c.properties.sku_name for c in free} >= {"GlobalStandard"}
    (skus,) = client.deployments.list_skus(*AT, "chat")
    assert (skus.capacity.minimum, skus.capacity.maximum) == (1, 10_000)


def test_it_changes_the_capacity_of_one_at_a_time(azure: FakeAzure, client: CognitiveServicesManagementClient) -> None:
    add_deployment(azure.cloud, "draw", capacity=10)
    azure.cloud.scale_s = 60
    more = cs.PatchResourceTagsAndSku(sku=cs.Sku(name="GlobalStandard", capacity=80))
    client.deployments.begin_update(*AT, "chat", more, polling=False)
    with pytest.raises(ResourceExistsError, match="RequestConflict"):
        client.deployments.begin_update(*AT, "draw", more)
    azure.cloud.clock.now += 60  # type: ignore[attr-defined]
    changed = client.deployments.begin_update(
        *AT, "chat", cs.PatchResourceTagsAndSku(sku=cs.Sku(name="GlobalStandard", capacity=70))
    )
    azure.cloud.clock.now += 60  # type: ignore[attr-defined]
    assert changed.result().sku.capacity == 70
    assert client.deployments.get(*AT, "chat").tags == {"team": "search"}
    with pytest.raises(HttpResponseError, match="InsufficientQuota"):
        client.deployments.begin_update(
            *AT, "chat", cs.PatchResourceTagsAndSku(sku=cs.Sku(name="GlobalStandard", capacity=500))
        )
    with pytest.raises(HttpResponseError, match="SKU name of a deployment cannot be changed"):
        client.deployments.begin_update(
            *AT, "chat", cs.PatchResourceTagsAndSku(sku=cs.Sku(name="Standard", capacity=1))
        )


def test_a_second_deployment_is_made_and_removed(azure: FakeAzure, client: CognitiveServicesManagementClient) -> None:
    model = cs.DeploymentModel(format="OpenAI", name="gpt-4.1", version="2025-04-14")
    wanted = cs.Deployment(
        sku=cs.Sku(name="GlobalProvisionedManaged", capacity=15), properties=cs.DeploymentProperties(model=model)
    )
    made = client.deployments.begin_create_or_update(*AT, "chat-2", wanted).result()
    assert made.properties.provisioning_state == "Succeeded"
    wanted.properties.model.version = "1999-01-01"
    with pytest.raises(HttpResponseError, match="DeploymentModelNotSupported"):
        client.deployments.begin_create_or_update(*AT, "chat-3", wanted)
    client.deployments.begin_delete(*AT, "chat-2").result()
    assert [d.name for d in client.deployments.list(*AT)] == ["chat"]


def test_its_calculator_says_what_a_workload_takes(client: CognitiveServicesManagementClient) -> None:
    found = client.calculate_model_capacity(
        model=cs.DeploymentModel(format="OpenAI", name="gpt-4.1", version="2025-04-14"),
        sku_name="GlobalProvisionedManaged",
        workloads=[
            cs.ModelCapacityCalculatorWorkload(
                request_per_minute=100,
                request_parameters=cs.ModelCapacityCalculatorWorkloadRequestParam(
                    avg_prompt_tokens=500, avg_generated_tokens=100
                ),
            )
        ],
    )
    assert found.estimated_capacity is not None
    assert (found.estimated_capacity.value, found.estimated_capacity.deployable_value) == (30, 30)


def test_its_metrics_are_answered_in_batches(azure: FakeAzure) -> None:
    azure.cloud.clock.now = NOW  # type: ignore[attr-defined]
    client = MetricsClient(azure.url, _Token(), authentication_policy=_Bearer("metrics-token"))
    at = account_id(azure.cloud, azure.cloud.accounts["rg-chat/ai-chat"])
    end = datetime.fromtimestamp(NOW - 300, UTC)
    with client:
        (answer,) = client.query_resources(
            resource_ids=[at],
            metric_namespace="Microsoft.CognitiveServices/accounts",
            metric_names=["AzureOpenAIRequests"],
            timespan=(end - timedelta(minutes=2), end),
            granularity=timedelta(minutes=1),
            aggregations=["total"],
            filter="ModelDeploymentName eq '*' and StatusCode eq '*'",
        )
    (metric,) = answer.metrics
    by_code = {line.metadata_values["statuscode"]: [p.total for p in line.data] for line in metric.timeseries}
    assert by_code == {"200": [120.0, 120.0], "429": [80.0, 80.0]}
