"""Machines as Azure tells of them: CPU and memory, sizes, discovery, the role, list prices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from agent.clock import VirtualClock
from agent.settings import EndpointSettings
from collectors.azure.client import AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.discover_machines import AzureMachineSystem
from collectors.azure.errors import AzureError
from collectors.azure.machine_metrics import MachineMetrics, Options
from collectors.azure.machines import MachineId, machine_sizes
from collectors.azure.permissions import MACHINE_ROLE
from collectors.azure.retail import machine_price
from collectors.base import FleetQuery
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Span
from tests.collectors.servers import answering, serve
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import REGION, SUBSCRIPTION
from tests.fakes.azure.compute import add_pool, add_set, add_vm

NOW = 1_700_000_400.0


@dataclass
class Scene:
    azure: FakeAzure
    clock: VirtualClock
    http: Http
    sessions: Sessions

    @property
    def cloud(self) -> Cloud:
        return self.azure.cloud

    @property
    def account(self) -> dict[str, Any]:
        url = self.azure.url
        return {
            "credential": "token",
            "token": "arm-token",
            "metrics_token": "metrics-token",
            "arm_url": url,
            "metrics_url": url,
        }

    @property
    def client(self) -> AzureClient:
        return shared(self.sessions, SUBSCRIPTION, AzureAccount(**self.account), self.http.call, self.clock)

    async def read(self, source: MachineMetrics, **resources: str) -> dict[str, list[Span | CollectError]]:
        found: dict[str, list[Any]] = {name: [] for name in resources}
        wanted = [FleetQuery(name, None, {"resource": at}) for name, at in resources.items()]
        async for name, said in source.read_all(wanted, None):
            found[name].append(said)
        return found

    def discovery(self, **options: Any) -> DiscoveryContext:
        stated = {**self.account, "subscription": SUBSCRIPTION, "prices": False, **options}
        return DiscoveryContext(self.http.call, self.clock, self.sessions, stated)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    clock = VirtualClock(NOW)
    http = Http()
    with FakeAzure(Cloud(clock.now)) as azure:
        try:
            yield Scene(azure, clock, http, Sessions())
        finally:
            await http.aclose()


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_an_id_is_of_one_of_three_kinds() -> None:
    base = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g/providers"
    kinds = {
        f"{base}/microsoft.compute/virtualmachines/a": "vm",
        f"{base}/Microsoft.Compute/virtualMachineScaleSets/a/": "set",
        f"{base}/Microsoft.ContainerService/managedClusters/c/agentPools/a": "pool",
    }
    assert {at: MachineId.parse(at).kind for at in kinds} == kinds
    assert {MachineId.parse(at).name for at in kinds} == {"a"}
    for wrong in ("a", f"{base}/Microsoft.Compute/disks/a", f"{base}/Microsoft.ContainerService/managedClusters/c"):
        with pytest.raises(ValueError, match="resource id of a virtual machine, a scale set"):
            MachineId.parse(wrong)
    with pytest.raises(ValidationError, match="a node pool has no metrics of its own"):
        Options(resource=next(at for at, kind in kinds.items() if kind == "pool"))


def test_minutes_of_machines_and_sets() -> None:
    async def scenario() -> None:
        async with scene() as s:
            one, fleet = add_vm(s.cloud), add_set(s.cloud)
            fleet.busy = 0.8
            source = MachineMetrics(s.client, 180.0)
            found = await s.read(source, gpu=one.path, fleet=fleet.path)
            (span,) = found["gpu"]
            assert isinstance(span, Span)
            assert span.end == NOW // 60 * 60 - 180
            assert span.gauges["cpu_usage"].mean == pytest.approx(0.5)
            assert span.gauges["memory_usage"].mean == pytest.approx(0.6)
            (span,) = found["fleet"]
            assert isinstance(span, Span)
            assert span.gauges["cpu_usage"].mean == pytest.approx(0.8)
            await s.clock.advance(180)
            one.power = "deallocated"
            again = await s.read(source, gpu=one.path, fleet=fleet.path, gone=one.path.replace("/gpu", "/gone"))
            assert again["gpu"] == [], "a machine that is off tells nothing"
            assert len(again["fleet"]) == 3
            assert isinstance(again["gone"][0], AzureError)

    run(scenario)


def test_sizes_and_cores_of_a_region() -> None:
    async def scenario() -> None:
        async with scene() as s:
            add_vm(s.cloud)
            s.cloud.forbidden.add("Standard_F8s_v2")
            sizes = await machine_sizes(s.sessions, s.client).sizes(REGION)
            assert (sizes["Standard_F2s_v2"].cores, sizes["Standard_F2s_v2"].refused) == (2, None)
            assert sizes["Standard_NC24ads_A100_v4"].gpus == 1
            assert sizes["Standard_F8s_v2"].refused == "NotAvailableForSubscription"
            assert await machine_sizes(s.sessions, s.client).free_cores(REGION, "standardFSv2Family") == 98
            assert await machine_sizes(s.sessions, s.client).free_cores(REGION, "unheard") is None

    run(scenario)


def test_discovery_writes_entries_that_the_settings_take() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.page = 1
            add_vm(s.cloud)
            add_set(s.cloud)
            add_pool(s.cloud)
            found = [f async for f in AzureMachineSystem().discover(s.discovery())]
            assert [f.name for f in found] == ["gpu", "fleet", "gpupool"]
            assert [sorted(f.settings["sources"]) for f in found] == [
                ["azure-vm", "vllm"],
                ["azure-vm", "vllm"],
                ["vllm"],
            ]
            assert "2 x Standard_F2s_v2, westeurope" in found[1].note
            assert "sizes: {Standard_F2s_v2: {cpus: 2}}" in found[0].note
            for f in found:
                EndpointSettings(**f.settings)
                assert "arm-token" not in json.dumps(f.settings)
            assert [f.name async for f in AzureMachineSystem().discover(s.discovery(tag="owner"))] == ["gpu"]
            assert [f async for f in AzureMachineSystem().discover(s.discovery(group="other"))] == []

    run(scenario)


def test_the_least_role_is_enough_and_what_lacks_is_named_of_its_own_kind() -> None:
    async def scenario() -> None:
        async with scene() as s:
            one, pool = add_vm(s.cloud), add_pool(s.cloud)
            s.cloud.actions = tuple(json.loads(MACHINE_ROLE.definition())["Actions"])
            assert (await s.read(MachineMetrics(s.client, 180.0), gpu=one.path))["gpu"]
            assert len([f async for f in AzureMachineSystem().discover(s.discovery())]) == 2
            for machine in (one, pool):
                entry = {"actuator": {"options": {"resource": machine.path, **s.account}}, "sources": {}}
                assert all(p.granted for p in await AzureMachineSystem().permitted(s.discovery(), entry))
            s.cloud.not_actions = ("Microsoft.Compute/virtualMachines/deallocate/action", "*/agentPools/write")
            entry = {"actuator": {"options": {"resource": one.path, **s.account}}, "sources": {}}
            lacking = [p.name for p in await AzureMachineSystem().permitted(s.discovery(), entry) if not p.granted]
            assert lacking == ["Microsoft.Compute/virtualMachines/deallocate/action"]
            s.cloud.not_actions = ("Microsoft.Compute/virtualMachines/read",)
            (refused,) = (await s.read(MachineMetrics(s.client, 180.0), gpu=one.path))["gpu"]
            assert "flyball permissions azure-vm" in str(refused)

    run(scenario)


def row(usd: float, **other: Any) -> dict[str, Any]:
    return {
        "retailPrice": usd,
        "currencyCode": "USD",
        "type": "Consumption",
        "unitOfMeasure": "1 Hour",
        "tierMinimumUnits": 0.0,
        "productName": "Virtual Machines Fsv2 Series",
        "skuName": "F2s v2",
        "meterName": "F2s v2",
        "isPrimaryMeterRegion": True,
        **other,
    }


@pytest.mark.parametrize(
    ("rows", "usd"),
    [
        (
            [
                row(0.097),
                row(0.18, productName="Virtual Machines Fsv2 Series Windows"),
                row(0.02, skuName="F2s v2 Spot"),
            ],
            0.097,
        ),
        ([row(0.097), row(0.2)], None),
        ([row(900.0, type="Reservation"), row(0.05, meterName="F2s v2 Low Priority")], None),
        ([row(0.0)], None),
        ([row(0.097), row(0.11, isPrimaryMeterRegion=False)], 0.097),
    ],
)
def test_a_size_has_exactly_one_price_or_none(rows: list[dict[str, Any]], usd: float | None) -> None:
    async def priced(url: str) -> float | None:
        http = Http()
        try:
            return await machine_price(http.call, REGION, "Standard_F2s_v2", url)
        finally:
            await http.aclose()

    with serve(answering(json.dumps({"Items": rows, "NextPageLink": None}), kind="application/json")) as served:
        assert asyncio.run(priced(served.url)) == usd
