"""Nomad's agents of a job: frozen and lingering series left out, shares of what was given; and each service job as an endpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.nomad.client import NomadClient, NomadSettings, ports_of
from collectors.nomad.discover import NomadSystem
from collectors.nomad.source import make
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, Request, answering, serve
from tests.fakes.nomad import FakeNomad, NomadCluster, service_job

RECORDED = Path(__file__).parents[2] / "../shared/data/recorded/nomad"
SEES = {"list-jobs", "read-job"}


def cluster_of(*jobs: dict[str, Any], **more: Any) -> NomadCluster:
    cluster = NomadCluster(time.time, start_s=0.0, healthy_s=0.0, **more)
    for job in jobs:
        cluster.register(job)
    cluster.settle()
    return cluster


def read(nomad: FakeNomad, **options: Any) -> Reading:
    async def main(url: str) -> Reading:
        http = Http(tls=TRUST)
        try:
            context = SourceContext("chat", None, http, SetClock(), Sessions(), {"address": url, **options})
            (reading,) = await make(context).read(ScrapeTarget("chat", "http://127.0.0.1:9", {"Authorization": "own"}))
            return reading
        finally:
            await http.aclose()

    with nomad as url:
        return asyncio.run(main(url))


def test_running_allocations_count_and_neither_ended_ones_nor_a_nodes_past() -> None:
    cluster = cluster_of(service_job(count=3))
    cluster.scale("chat", {"Count": 2, "Target": {"Group": "web"}})
    cluster.register(service_job("other", CPU=4000))
    cluster.settle()
    reading = read(FakeNomad(cluster))
    assert reading.gauges == {
        "replicas": 2.0,
        "replicas_starting": 0.0,
        "replicas_unplaced": 0.0,
        "cpu_usage": 0.5,
        "memory_usage": 0.25,
        "host_cpu_usage": pytest.approx(0.6),
        "host_memory_usage": pytest.approx(0.4),
        "blocked_evaluations": 0.0,
    }
    assert (reading.counters, reading.histograms) == ({}, {}), "Nomad tells nothing of requests"
    assert reading.facts == {"job_version": "1"}


def test_what_waits_for_room_is_told_and_is_no_replica() -> None:
    reading = read(FakeNomad(cluster_of(service_job(count=5), mib=3_000)))
    assert (reading.gauges["replicas"], reading.gauges["replicas_unplaced"]) == (2.0, 3.0)


def test_an_agent_that_tells_nothing_of_the_jobs_allocations_leaves_them_unknown() -> None:
    elsewhere = 'nomad_client_allocs_cpu_allocated{alloc_id="x",job="chat",task="t"} 5\n'
    with serve(answering(elsewhere)) as there:
        reading = read(FakeNomad(cluster_of(service_job())), agents=(there.url,))
    assert "cpu_usage" not in reading.gauges
    assert "memory_usage" not in reading.gauges
    assert reading.gauges["replicas"] == 1.0


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("vllm:num_requests_running 1.0\n", "not_nomad"),
        ('nomad_client_host_memory_total{node_status="ready"} -5\n', "invalid_value"),
        ("<html></html>", "not_metrics"),
    ],
)
def test_what_cannot_be_is_an_error(page: str, kind: str) -> None:
    with serve(answering(page)) as there, pytest.raises(CollectError) as refused:
        read(FakeNomad(cluster_of(service_job())), agents=(there.url,))
    assert refused.value.kind == kind


def test_prometheus_that_is_off_is_said_with_the_line_that_lacks() -> None:
    with pytest.raises(CollectError, match="prometheus_metrics = true") as refused:
        read(FakeNomad(cluster_of(service_job()), prometheus=False))
    assert refused.value.kind == "no_prometheus"


def test_a_group_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(CollectError, match="there are: web"):
        read(FakeNomad(cluster_of(service_job())), group="gone")


def test_the_recorded_page() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded Nomad page is not beside the project (shared/data)")
    page = (RECORDED / "metrics.txt").read_bytes().partition(b"HTTP 200")[0]
    allocation = {
        "ID": "b69ee9c1-f4c4-d41a-a68f-197ebe2655c7", "Name": "srv.g[0]", "TaskGroup": "g", "ClientStatus": "running",
        "DesiredStatus": "run", "JobVersion": 0,
    }  # fmt: skip
    answers = {
        "/v1/job/srv/summary": {"Summary": {"g": {"Running": 1, "Starting": 0, "Queued": 0}}},
        "/v1/job/srv/allocations": [allocation],
    }

    async def agent(request: Request, writer: asyncio.StreamWriter) -> None:
        path = request.path.partition("?")[0]
        body = json.dumps(answers[path]) if path in answers else page
        await answering(body, kind="application/json" if path in answers else "text/plain")(request, writer)

    async def main(url: str) -> Reading:
        http = Http(tls=TRUST)
        try:
            context = SourceContext("srv", None, http, SetClock(), Sessions(), {"address": url})
            (reading,) = await make(context).read(ScrapeTarget("srv", url))
            return reading
        finally:
            await http.aclose()

    with serve(agent) as there:
        reading = asyncio.run(main(there.url))
    assert reading.gauges["cpu_usage"] == 0.0
    assert reading.gauges["memory_usage"] == pytest.approx(37584896 / 33554432), "more than it was given"
    assert reading.gauges["host_cpu_usage"] == pytest.approx(1 - (75.53191375732422 + 56.9892463684082) / 200)
    assert reading.gauges["host_memory_usage"] == pytest.approx(1 - 2.2802464768e10 / 2.5276514304e10)


# -- discovery ---------------------------------------------------------------------------------------------------------


def asked(then: Callable[[NomadSystem, DiscoveryContext], Any], nomad: FakeNomad, **options: Any) -> Any:
    async def main(url: str) -> Any:
        http = Http(tls=TRUST)
        try:
            context = DiscoveryContext(http.call, SetClock(), Sessions(), {"address": url, **options})
            return await then(NomadSystem(), context)
        finally:
            await http.aclose()

    with nomad as url:
        found = asyncio.run(main(url))
    assert nomad.writes == []
    return found


def test_each_group_of_a_service_job_is_an_endpoint() -> None:
    async def found(system: NomadSystem, context: DiscoveryContext) -> list[DiscoveredEndpoint]:
        return [one async for one in system.discover(context)]

    deepaas = service_job("Deep AaS")
    group = deepaas["TaskGroups"][0]
    group["Tasks"][0]["Config"]["image"] = "ai4oshub/plants:latest"
    group["Scaling"] = {"Min": 0, "Max": 5, "Enabled": True, "Policy": {}}
    deepaas["TaskGroups"].append({**group, "Name": "second", "Scaling": None})
    cluster = cluster_of(service_job(), deepaas, {**service_job("nightly"), "Type": "batch"})
    nomad = FakeNomad(cluster, {"right": SEES})
    by_name = {one.name: one for one in asked(found, nomad, token="right")}
    assert set(by_name) == {"chat", "deep-aas-web", "deep-aas-second"}
    chat = by_name["chat"].settings
    (allocation,) = cluster.jobs["chat"].allocations
    assert chat["url"] == f"http://127.0.0.1:{allocation.port}"
    assert (list(chat["sources"]), "kind" in chat) == (["vllm", "nomad"], False)
    assert chat["actuator"]["options"] == {
        "address": nomad.url,
        "namespace": "default",
        "token": "${NOMAD_TOKEN}",
        "job": "chat",
        "group": "web",
    }
    other = by_name["deep-aas-web"]
    assert (list(other.settings["sources"]), other.settings["kind"]) == (["nomad"], "vm")
    assert other.settings["policy"] == {"min_replicas": 1, "max_replicas": 5}
    assert "add a source, or probe" in other.note
    assert "right" not in json.dumps([dict(one.settings) for one in by_name.values()])


@pytest.mark.parametrize(
    ("tokens", "granted"),
    [
        (None, [True, True, True, True]),
        ({"t": {"*"}}, [True, True, True, True]),
        ({"t": SEES}, [True, True, False, False]),
        ({"t": {"read-job", "scale-job"}}, [False, True, True, False]),
    ],
)
def test_the_capability_that_lacks_is_named(tokens: dict[str, set[str]] | None, granted: list[bool]) -> None:
    async def all_of(system: NomadSystem, context: DiscoveryContext) -> list[Permission]:
        return list(await system.permitted(context, None))

    permissions: list[Permission] = asked(all_of, FakeNomad(cluster_of(), tokens), token="t")
    assert [(p.name, p.granted) for p in permissions] == list(
        zip(("list-jobs", "read-job", "scale-job", "submit-job"), granted, strict=True)
    )


def test_a_token_that_nobody_knows_is_denied() -> None:
    async def all_of(system: NomadSystem, context: DiscoveryContext) -> list[Permission]:
        return list(await system.permitted(context, None))

    with pytest.raises(CollectError) as refused:
        asked(all_of, FakeNomad(cluster_of(), {"right": SEES}), token="wrong")
    assert refused.value.kind == "denied"


def test_the_policy_names_what_is_asked_for() -> None:
    role = NomadSystem().permissions()
    assert all(f'"{name}"' in role for name in ("list-jobs", "read-job", "scale-job", "submit-job"))


def test_addresses_of_a_groups_network_and_of_a_tasks() -> None:
    port = {"Label": "api", "Value": 20001, "HostIP": "10.0.0.1"}
    assert ports_of({"AllocatedResources": {"Shared": {"Ports": [port]}, "Tasks": {}}}) == {"api": "10.0.0.1:20001"}
    network = {"IP": "fd00::1", "DynamicPorts": [{"Label": "http", "Value": 20002}], "ReservedPorts": None}
    old = {"AllocatedResources": {"Shared": {}, "Tasks": {"server": {"Networks": [network]}}}}
    assert ports_of(old) == {"http": "[fd00::1]:20002"}


def test_an_agent_that_is_none_is_an_error() -> None:
    async def main(url: str) -> None:
        http = Http(tls=TRUST)
        try:
            await NomadClient(NomadSettings(address=url), http.call).scale_of("chat")
        finally:
            await http.aclose()

    for handler, kind in (
        (answering("no", "503 Service Unavailable"), "unreachable"),
        (answering("[]", kind="application/json"), "invalid"),
        (answering('{"TaskGroups": {"g": {}}}', kind="application/json"), "invalid"),
        (answering("No cluster leader", "500 Internal Server Error"), "unreachable"),
    ):
        with serve(handler) as there, pytest.raises(CollectError) as refused:
            asyncio.run(main(there.url))
        assert refused.value.kind == kind
