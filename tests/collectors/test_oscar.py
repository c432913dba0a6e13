"""OSCAR's jobs, each counted once and timed; and each service as an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.oscar.client import OscarClient, OscarSettings
from collectors.oscar.discover import OscarSystem
from collectors.oscar.services import bytes_of, cpus_of
from collectors.oscar.source import make
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, answering, serve
from tests.fakes.oscar import PASSWORD, FakeOscar, definition

EXPOSED = definition("api", expose={"api_port": [5000], "min_scale": 1, "max_scale": 3})


def read(oscar: FakeOscar, *between: Callable[[], None], **options: Any) -> list[Reading]:
    """One collector's readings: one, and one more after each of ``between``."""

    async def main(url: str) -> list[Reading]:
        http = Http(tls=TRUST)
        try:
            given = {"cluster": url, "password": PASSWORD, "service": "chat", **options}
            collector = make(SourceContext("chat", None, http, SetClock(), Sessions(), given))
            found = [*await collector.read(ScrapeTarget("chat", url))]
            for happens in between:
                happens()
                found += await collector.read(ScrapeTarget("chat", url))
            return found
        finally:
            await http.aclose()

    with oscar as url:
        found = asyncio.run(main(url))
    assert oscar.writes == []
    return found


def cluster(**more: Any) -> FakeOscar:
    oscar = FakeOscar(**more)
    oscar.add(definition(synchronous={"min_scale": 2}))
    return oscar


def test_a_job_counts_once_when_it_has_ended_with_what_it_waited_and_ran() -> None:
    oscar = cluster()
    oscar.job("chat", "old", 1000, 1010, 1100)
    oscar.job("chat", "a", 2000)

    def first() -> None:
        oscar.job("chat", "a", 2000, 2030, 2090)
        oscar.job("chat", "b", 2000, 2040)
        oscar.job("chat", "c", 2001, 2005, 2006, failed=True)

    def second() -> None:
        oscar.job("chat", "b", 2000, 2040, 2100)
        del oscar.services["chat"].jobs["a"]  # the cluster cleans up

    zero, one, two = read(oscar, first, second)
    assert (zero.counters, zero.samples) == ({"requests": 0.0, "errors": 0.0}, {}), "what ended before is of before"
    assert (zero.gauges["waiting"], zero.gauges["running"], zero.gauges["replicas"]) == (1.0, 0.0, 2.0)
    assert one.counters == {"requests": 2.0, "errors": 1.0}
    told = {"queue_s": (30.0,), "processing_s": (60.0,), "e2e_s": (90.0,)}
    assert one.samples == told, (
        "of those that succeeded; b waited too when a came, so that a's wait was no cold start alone"
    )
    assert (one.gauges["waiting"], one.gauges["running"]) == (0.0, 1.0)
    assert two.counters == {"requests": 3.0, "errors": 1.0}
    assert two.samples["e2e_s"] == (100.0,)
    assert zero.facts == {"mode": "jobs"}


def test_the_wait_of_a_job_before_which_nobody_waited_is_a_cold_start() -> None:
    oscar = cluster()

    def ran() -> None:
        oscar.job("chat", "alone", 2000, 2012, 2030)
        oscar.job("chat", "behind", 2005, 2040, 2050)

    _, after = read(oscar, ran)
    assert after.samples["cold_start_s"] == (12.0,)
    assert sorted(after.samples["queue_s"]) == [12.0, 35.0]


def test_all_pages_are_read() -> None:
    oscar = cluster()

    def many() -> None:
        for i in range(250):
            oscar.job("chat", f"j{i:03}", 1000, 1001, 1002)

    _, after = read(oscar, many)
    assert after.counters["requests"] == 250.0


def test_the_form_of_an_older_oscar_is_read_too() -> None:
    job = {"status": "Succeeded", "creation_time": "2026-01-01T00:00:00Z", "start_time": "2026-01-01T00:00:05Z"}

    async def main(url: str) -> None:
        http = Http(tls=TRUST)
        try:
            (found,) = await OscarClient(OscarSettings(cluster=url), http.call).jobs("chat")
            assert (found.name, found.started_at, found.finished_at) == ("j", 1767225605.0, None)
        finally:
            await http.aclose()

    with serve(answering(json.dumps({"j": job}), kind="application/json")) as there:
        asyncio.run(main(there.url))


def test_where_oscar_tells_nothing_of_requests_nothing_is_told() -> None:
    oscar = cluster()
    oscar.add(EXPOSED)
    (reading,) = read(oscar, service="api")
    assert (reading.counters, reading.gauges, reading.facts) == ({}, {"replicas": 1.0}, {"mode": "exposed"})


def test_instances_that_do_not_serve_are_no_replicas_and_where_only_jobs_run_none_are_known() -> None:
    oscar = cluster()
    oscar.services["chat"].failed = "ImagePullBackOff"
    (reading,) = read(oscar)
    assert reading.gauges["replicas"] == 0.0
    (reading,) = read(cluster(knative=False))
    assert "replicas" not in reading.gauges


@pytest.mark.parametrize(("text", "cpus"), [("0.5", 0.5), ("500m", 0.5), ("", None), (None, None)])
def test_cores(text: str | None, cpus: float | None) -> None:
    assert cpus_of(text) == cpus


@pytest.mark.parametrize(("text", "amount"), [("256Mi", 268435456.0), ("1G", 1e9), ("2.5Gi", 2.5 * 2**30), ("", None)])
def test_memory(text: str, amount: float | None) -> None:
    assert bytes_of(text) == amount
    with pytest.raises(ValueError, match="no amount of memory"):
        bytes_of("1Ki" + "M")


# -- discovery ---------------------------------------------------------------------------------------------------------


def asked(then: Callable[[OscarSystem, DiscoveryContext], Any], oscar: FakeOscar, **options: Any) -> Any:
    async def main(url: str) -> Any:
        http = Http(tls=TRUST)
        try:
            context = DiscoveryContext(http.call, SetClock(), Sessions(), {"cluster": url, **options})
            return await then(OscarSystem(), context)
        finally:
            await http.aclose()

    with oscar as url:
        found = asyncio.run(main(url))
    assert oscar.writes == []
    return found


def test_each_service_is_an_endpoint_and_no_secret_stands_in_it() -> None:
    async def found(system: OscarSystem, context: DiscoveryContext) -> list[DiscoveredEndpoint]:
        return [one async for one in system.discover(context)]

    oscar = cluster()
    oscar.add(EXPOSED)
    oscar.add(definition("with-secrets", environment={"secrets": {"KEY": "hidden"}}))
    by_name = {one.name: one for one in asked(found, oscar, password=PASSWORD)}
    assert set(by_name) == {"chat", "api", "with-secrets"}
    assert by_name["chat"].settings["url"] == f"{oscar.url}/run/chat"
    assert by_name["api"].settings["url"] == f"{oscar.url}/system/services/api/exposed"
    assert by_name["api"].settings["policy"] == {"min_replicas": 1, "max_replicas": 3}
    assert by_name["api"].settings["actuator"]["options"] == {
        "cluster": oscar.url,
        "user": "oscar",
        "password": "${OSCAR_PASSWORD}",
        "service": "api",
    }
    assert "add the engine's own source" in by_name["api"].note
    assert "only seen" in by_name["with-secrets"].note
    assert PASSWORD not in json.dumps([dict(one.settings) for one in by_name.values()])


def test_who_asks_is_told_what_he_may() -> None:
    async def all_of(system: OscarSystem, context: DiscoveryContext) -> list[Permission]:
        return list(await system.permitted(context, None))

    oscar = FakeOscar(tokens={"ada": "ada@egi.eu"})
    assert [p.granted for p in asked(all_of, oscar, password=PASSWORD)] == [True, True]
    assert [p.granted for p in asked(all_of, oscar, token="ada")] == [True, None], "it is not told who a token is"
    (refused,) = asked(all_of, oscar, token="wrong")
    assert (refused.granted, "administrator" in refused.detail) == (False, True)


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (answering("no", "503 Service Unavailable"), "unreachable"),
        (answering("[]", kind="application/json"), "invalid"),
        (answering('{"j": {"creation_time": "yesterday"}}', kind="application/json"), "invalid"),
        (answering("no", "403 Forbidden"), "denied"),
    ],
)
def test_a_cluster_that_is_none_is_an_error(handler: Any, kind: str) -> None:
    async def main(url: str) -> None:
        http = Http(tls=TRUST)
        try:
            await OscarClient(OscarSettings(cluster=url), http.call).jobs("chat")
        finally:
            await http.aclose()

    with serve(handler) as there, pytest.raises(CollectError) as refused:
        asyncio.run(main(there.url))
    assert refused.value.kind == kind
