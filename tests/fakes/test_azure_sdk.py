"""The stand-in for Azure, driven by Microsoft's own clients: what they send it takes, and what it answers they understand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import GROUP, REGION, SUBSCRIPTION, WORKSPACE, Fault
from tests.fakes.azure.ml import deployment_id, endpoint_id

pytest.importorskip("azure.mgmt.machinelearningservices", reason="the Azure SDKs are not installed")
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceExistsError
from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.machinelearningservices import MachineLearningServicesMgmtClient
from azure.mgmt.machinelearningservices import models as ml
from azure.mgmt.monitor import MonitorManagementClient
from azure.monitor.querymetrics import MetricsClient

NOW = 1_700_000_400.0
AT = (GROUP, WORKSPACE)


class _Passing:
    """A clock on which a moment passes with every look, so that polling clients come to an end."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


class _Token:
    """A credential that a client asks for its own scope. Its usual policy refuses plain HTTP, which loopback is."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        raise AssertionError(f"not asked through the policy below: {scopes}")


class _Bearer(SansIOHTTPPolicy):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.http_request.headers["Authorization"] = f"Bearer {self._token}"


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    cloud = Cloud(_Passing())
    cloud.create_s, cloud.scale_s, cloud.update_s, cloud.delete_s = 5, 5, 2, 3
    cloud.retry_after_s = 0
    cloud.rate = lambda _at: 12.0
    cloud.add("chat", count=4, tags={"owner": "ada"})
    with FakeAzure(cloud) as fake:
        yield fake


@pytest.fixture
def client(azure: FakeAzure) -> Iterator[MachineLearningServicesMgmtClient]:
    made = MachineLearningServicesMgmtClient(
        _Token(), SUBSCRIPTION, base_url=azure.url, polling_interval=0, authentication_policy=_Bearer("arm-token")
    )
    with made:
        yield made


def test_it_lists_and_reads(azure: FakeAzure, client: MachineLearningServicesMgmtClient) -> None:
    azure.cloud.page = 1
    azure.cloud.add("draw", "Standard_F4s_v2", 1)
    assert [e.name for e in client.online_endpoints.list(*AT)] == ["chat", "draw"]
    (blue,) = client.online_deployments.list(*AT, "chat")
    assert (blue.sku.capacity, blue.properties.instance_type, blue.tags) == (4, "Standard_F2s_v2", {"team": "search"})
    assert blue.properties.provisioning_state == "Succeeded"
    assert client.online_endpoints.list_keys(*AT, "chat").primary_key == "primary-key"
    sizes = {s.name: s for s in client.virtual_machine_sizes.list(REGION).value}
    assert (sizes["Standard_F4s_v2"].v_cp_us, sizes["Standard_F4s_v2"].memory_gb) == (4, 8)
    used = {u.name.value: (u.current_value, u.limit) for u in client.usages.list(REGION)}
    assert used["standardFSv2Family"] == (10 + 8, 100)  # 1.2 x 4, rounded up, of 2 cores; and 1.2 x 1 of 4


def test_it_scales(azure: FakeAzure, client: MachineLearningServicesMgmtClient) -> None:
    body = ml.PartialMinimalTrackedResourceWithSku(
        sku=ml.PartialSku(name="Default", capacity=6), tags={"team": "search"}
    )
    azure.cloud.scale_s = 60
    client.online_deployments.begin_update(*AT, "chat", "blue", body, polling=False)
    assert client.online_deployments.get(*AT, "chat", "blue").properties.provisioning_state == "Scaling"
    with pytest.raises(ResourceExistsError, match="Already running"):
        client.online_deployments.begin_update(*AT, "chat", "blue", body)
    azure.cloud.clock.now += 60  # type: ignore[attr-defined]
    assert client.online_deployments.begin_update(*AT, "chat", "blue", body).result().sku.capacity == 6
    assert azure.cloud.endpoints[f"{GROUP}/{WORKSPACE}/chat"].deployments["blue"].serving == 6


def test_another_size_is_another_deployment(azure: FakeAzure, client: MachineLearningServicesMgmtClient) -> None:
    blue = client.online_deployments.get(*AT, "chat", "blue")
    blue.properties.instance_type = "Standard_F4s_v2"
    with pytest.raises(HttpResponseError, match="InstanceType cannot be changed"):
        client.online_deployments.begin_create_or_update(*AT, "chat", "blue", blue)
    blue.sku.capacity = 2
    green = client.online_deployments.begin_create_or_update(*AT, "chat", "green", blue).result()
    assert green.properties.provisioning_state == "Succeeded"
    endpoint = client.online_endpoints.get(*AT, "chat")
    endpoint.properties.traffic = {"blue": 90, "green": 20}
    with pytest.raises(HttpResponseError, match="must be 0 or 100"):
        client.online_endpoints.begin_create_or_update(*AT, "chat", endpoint)
    endpoint.properties.traffic, endpoint.tags = {"blue": 0, "green": 100}, None
    moved = client.online_endpoints.begin_create_or_update(*AT, "chat", endpoint).result()
    assert moved.properties.traffic == {"blue": 0, "green": 100}
    assert moved.tags == {}, "what a PUT leaves out is lost"
    client.online_deployments.begin_delete(*AT, "chat", "blue").result()
    assert [d.name for d in client.online_deployments.list(*AT, "chat")] == ["green"]
    with pytest.raises(HttpResponseError, match="takes 100 %"):
        client.online_deployments.begin_delete(*AT, "chat", "green")


def test_it_refuses_for_want_of_quota_capacity_and_permission(
    azure: FakeAzure, client: MachineLearningServicesMgmtClient
) -> None:
    azure.cloud.quota["standardFSv2Family"] = 14
    more = ml.PartialMinimalTrackedResourceWithSku(sku=ml.PartialSku(capacity=6))
    with pytest.raises(HttpResponseError, match="Not enough quota available") as refused:
        client.online_deployments.begin_update(*AT, "chat", "blue", more)
    assert "Current usage/limit: 10/14. Additional needed: 6" in str(refused.value)
    azure.cloud.quota["standardFSv2Family"] = 100
    azure.cloud.unavailable.add("Standard_F2s_v2")
    with pytest.raises(HttpResponseError, match="lack of capacity"):
        client.online_deployments.begin_update(*AT, "chat", "blue", more).result()
    azure.cloud.not_actions = ("*/deployments/write",)
    with pytest.raises(HttpResponseError, match="does not have authorization to perform action") as denied:
        client.online_deployments.begin_update(*AT, "chat", "blue", more)
    assert denied.value.status_code == 403


def test_its_own_retries_meet_a_limit(azure: FakeAzure, client: MachineLearningServicesMgmtClient) -> None:
    azure.cloud.faults.append(
        Fault("GET", "onlineEndpoints", 429, "TooManyRequests", "slow down", {"Retry-After": "0"}, times=2)
    )
    assert len(list(client.online_endpoints.list(*AT))) == 1


def test_metrics_come_late_and_missing_is_not_zero(azure: FakeAzure) -> None:
    monitor = MonitorManagementClient(
        _Token(), SUBSCRIPTION, base_url=azure.url, authentication_policy=_Bearer("arm-token")
    )
    cloud = azure.cloud
    uri = endpoint_id(cloud, cloud.endpoints[f"{GROUP}/{WORKSPACE}/chat"])
    span = f"{_iso(NOW - 600)}/{_iso(NOW)}"
    with monitor:
        found = monitor.metrics.list(
            uri, timespan=span, interval="PT1M", metricnames="RequestsPerMinute,RequestLatency_P95", aggregation="Average",
            filter="deployment eq '*'", top=100,
        )  # fmt: skip
        plain = monitor.metrics.list(
            uri, timespan=span, interval="PT1M", metricnames="ConnectionsActive", aggregation="Average"
        )
        names = {d.name.value for d in monitor.metric_definitions.list(uri)}
    assert {"RequestsPerMinute", "RequestLatency_P50"} <= names
    requests, p95 = found.value
    assert [m.value for m in requests.timeseries[0].metadatavalues] == ["blue"]
    values = [p.average for p in requests.timeseries[0].data]
    assert values == [720.0] * 7 + [None] * 3, "the last three minutes are not there yet"
    assert all(p.average > 100 for p in p95.timeseries[0].data[:7])
    assert [p.average for p in plain.value[0].timeseries[0].data] == [2.0] * 7 + [None] * 3


def test_a_batch_answers_for_many(azure: FakeAzure) -> None:
    cloud = azure.cloud
    ids = [endpoint_id(cloud, cloud.add(f"one{i}")) for i in range(3)]
    with MetricsClient(azure.url, _Token(), authentication_policy=_Bearer("metrics-token")) as client:
        found = client.query_resources(
            resource_ids=ids,
            metric_namespace="Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
            metric_names=["RequestsPerMinute"],
            timespan=(datetime.fromtimestamp(NOW - 600, UTC), datetime.fromtimestamp(NOW - 300, UTC)),
            granularity=timedelta(minutes=1),
            aggregations=["average"],
            filter="deployment eq '*' and statusCode eq '*'",
            max_results=500,
        )
    assert len(found) == 3
    points = [p.average for r in found for m in r.metrics for s in m.timeseries for p in s.data]
    assert points == [720.0] * 15


def test_autoscale_settings_are_found_and_changed(azure: FakeAzure) -> None:
    cloud = azure.cloud
    uri = deployment_id(cloud, cloud.endpoints[f"{GROUP}/{WORKSPACE}/chat"], "blue")
    cloud.add_autoscale("chat-auto", uri, 2, 6)
    with MonitorManagementClient(
        _Token(), SUBSCRIPTION, base_url=azure.url, authentication_policy=_Bearer("arm-token")
    ) as monitor:
        (setting,) = monitor.autoscale_settings.list_by_subscription()
        assert setting.target_resource_uri == uri
        setting.profiles[0].capacity.maximum = "9"
        put = monitor.autoscale_settings.create_or_update(GROUP, "chat-auto", setting)
    assert put.profiles[0].capacity.maximum == "9"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
