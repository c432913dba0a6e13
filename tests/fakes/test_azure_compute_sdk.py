"""The stand-in for machines, scale sets and node pools, driven by Microsoft's own clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import GROUP, REGION, SUBSCRIPTION
from tests.fakes.azure.compute import add_pool, add_set, add_vm

pytest.importorskip("azure.mgmt.compute", reason="the Azure SDKs are not installed")
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.compute import models as c
from azure.mgmt.containerservice import ContainerServiceClient

from tests.fakes.test_azure_sdk import _Bearer, _Passing, _Token

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    cloud = Cloud(_Passing())
    cloud.scale_s, cloud.retry_after_s = 3, 0
    with FakeAzure(cloud) as fake:
        yield fake


@pytest.fixture
def client(azure: FakeAzure) -> Iterator[ComputeManagementClient]:
    made = ComputeManagementClient(
        _Token(), SUBSCRIPTION, base_url=azure.url, polling_interval=0, authentication_policy=_Bearer("arm-token")
    )
    with made:
        yield made


def test_a_machine_is_read_resized_moved_and_started(azure: FakeAzure, client: ComputeManagementClient) -> None:
    add_vm(azure.cloud)
    (one,) = client.virtual_machines.list_all()
    assert (one.name, one.hardware_profile.vm_size, one.location) == ("gpu", "Standard_F2s_v2", REGION)
    here = {s.name for s in client.virtual_machines.list_available_sizes(GROUP, "gpu")}
    assert here == {"Standard_F2s_v2", "Standard_F4s_v2"}

    def to(size: str) -> c.VirtualMachineUpdate:
        return c.VirtualMachineUpdate(hardware_profile=c.HardwareProfile(vm_size=size))

    with pytest.raises(HttpResponseError, match="current hardware cluster"):
        client.virtual_machines.begin_update(GROUP, "gpu", to("Standard_F8s_v2"))
    how = {"etag": '"0"', "match_condition": MatchConditions.IfNotModified}
    with pytest.raises(HttpResponseError) as moved:
        client.virtual_machines.begin_update(GROUP, "gpu", to("Standard_F4s_v2"), **how)
    assert moved.value.status_code == 412
    client.virtual_machines.begin_deallocate(GROUP, "gpu").result()
    view = client.virtual_machines.instance_view(GROUP, "gpu")
    assert "PowerState/deallocated" in [s.code for s in view.statuses]
    client.virtual_machines.begin_update(GROUP, "gpu", to("Standard_F8s_v2")).result()
    client.virtual_machines.begin_start(GROUP, "gpu").result()
    assert client.virtual_machines.get(GROUP, "gpu").hardware_profile.vm_size == "Standard_F8s_v2"
    used = {u.name.value: (u.current_value, u.limit) for u in client.usage.list(REGION)}
    assert used["standardFSv2Family"] == (8, 100)


def test_a_scale_set_is_scaled_and_told(azure: FakeAzure, client: ComputeManagementClient) -> None:
    add_set(azure.cloud)
    wanted = c.VirtualMachineScaleSetUpdate(sku=c.Sku(name="Standard_F4s_v2", tier="Standard", capacity=3))
    client.virtual_machine_scale_sets.begin_update(GROUP, "fleet", wanted).result()
    rows = list(client.virtual_machine_scale_set_vms.list(GROUP, "fleet"))
    assert [r.latest_model_applied for r in rows] == [False, False, True]
    ids = c.VirtualMachineScaleSetVMInstanceRequiredIDs(instance_ids=["*"])
    client.virtual_machine_scale_sets.begin_update_instances(GROUP, "fleet", ids).result()
    assert all(r.latest_model_applied for r in client.virtual_machine_scale_set_vms.list(GROUP, "fleet"))
    (fleet,) = client.virtual_machine_scale_sets.list_all()
    assert (fleet.sku.name, fleet.sku.capacity, fleet.upgrade_policy.mode) == ("Standard_F4s_v2", 3, "Manual")


def test_a_pool_is_put_whole(azure: FakeAzure) -> None:
    add_pool(azure.cloud, bounds=(1, 4))
    made = ContainerServiceClient(
        _Token(), SUBSCRIPTION, base_url=azure.url, polling_interval=0, authentication_policy=_Bearer("arm-token")
    )
    with made as client:
        pool = client.agent_pools.get(GROUP, "aks", "gpupool")
        assert (pool.count, pool.min_count, pool.max_count, pool.vm_size) == (2, 1, 4, "Standard_F2s_v2")
        pool.max_count = 6
        changed = client.agent_pools.begin_create_or_update(GROUP, "aks", "gpupool", pool).result()
        assert (changed.max_count, changed.node_labels) == (6, {"gpu": "yes"})
        pool.vm_size = "Standard_F4s_v2"
        with pytest.raises(HttpResponseError, match="not allowed"):
            client.agent_pools.begin_create_or_update(GROUP, "aks", "gpupool", pool)
