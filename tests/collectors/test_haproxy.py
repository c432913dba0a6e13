"""HAProxy's statistics in both forms, what its sliding means tell of the time spent, and each backend as an endpoint."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.haproxy.discover import HAProxySystem
from collectors.haproxy.source import HAProxyCollector, TimeSpent, make
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, answering, serve
from tests.fakes.haproxy import FakeHAProxy, FakeServer
from tests.fakes.haproxy.runtime import FORCED

EXPORTED = """\
haproxy_process_start_time_seconds 1796067029
haproxy_backend_current_queue{proxy="be"} 3
haproxy_backend_current_sessions{proxy="be"} 5
haproxy_backend_active_servers{proxy="be"} 1
haproxy_backend_http_responses_total{proxy="be",code="1xx"} 0
haproxy_backend_http_responses_total{proxy="be",code="2xx"} 700
haproxy_backend_http_responses_total{proxy="be",code="3xx"} 0
haproxy_backend_http_responses_total{proxy="be",code="4xx"} 20
haproxy_backend_http_responses_total{proxy="be",code="5xx"} 10
haproxy_backend_http_responses_total{proxy="be",code="other"} 0
haproxy_backend_connection_errors_total{proxy="be"} 4
haproxy_backend_retry_warnings_total{proxy="be"} 2
haproxy_backend_redispatch_warnings_total{proxy="be"} 1
haproxy_backend_queue_time_average_seconds{proxy="be"} 0.005000
haproxy_backend_connect_time_average_seconds{proxy="be"} 0.001000
haproxy_backend_response_time_average_seconds{proxy="be"} 0.090000
haproxy_backend_total_time_average_seconds{proxy="be"} 0.100000
haproxy_server_current_queue{proxy="be",server="a"} 0
haproxy_server_current_queue{proxy="be",server="b"} 0
haproxy_server_current_sessions{proxy="be",server="a"} 5
haproxy_server_current_sessions{proxy="be",server="b"} 0
haproxy_server_status{proxy="be",server="a",state="UP"} 1
haproxy_server_status{proxy="be",server="a",state="DOWN"} 0
haproxy_server_status{proxy="be",server="b",state="MAINT"} 1
haproxy_server_queue_limit{proxy="be",server="a"} NaN
haproxy_backend_current_sessions{proxy="stats"} 0
"""


def servers() -> list[FakeServer]:
    return [FakeServer("a", 9001, sessions=5), FakeServer("b", 9002, admin=FORCED)]


def reads(collector: Callable[[Http], HAProxyCollector], url: str = "http://127.0.0.1:9") -> Reading:
    async def main() -> Reading:
        http = Http(tls=TRUST)
        try:
            (reading,) = await collector(http).read(ScrapeTarget("chat", url, {"Authorization": "Bearer own"}))
            return reading
        finally:
            await http.aclose()

    return asyncio.run(main())


def of(http: Http, **options: Any) -> HAProxyCollector:
    return make(SourceContext("chat", None, http, SetClock(), Sessions(), options))


def test_the_socket_and_the_exporter_tell_the_same() -> None:
    with FakeHAProxy(servers()) as haproxy:
        by_socket = reads(lambda http: of(http, socket=haproxy.socket))
        assert haproxy.writes == []
    with serve(answering(EXPORTED)) as there:
        by_page = reads(of, there.url)
        assert (there.requests[0].path, there.requests[0].headers["authorization"]) == ("/metrics", "Bearer own")
    with FakeHAProxy(servers()) as haproxy, serve(answering(haproxy.answer("show stat"), kind="text/plain")) as there:
        by_csv = reads(lambda http: of(http, url=f"{there.url}/stats;csv", backend="be"))
        assert "authorization" not in there.requests[0].headers, "the key of the endpoint is not the statistics page's"
    assert by_socket.counters == by_page.counters == by_csv.counters
    assert by_socket.counters == {
        "requests": 730.0,
        "errors": 10.0,
        "responses_4xx": 20.0,
        "connection_errors": 4.0,
        "retries": 2.0,
        "redispatches": 1.0,
        "e2e_total_s": 73.0,
    }
    assert by_socket.gauges == by_page.gauges == by_csv.gauges
    assert by_socket.gauges == {
        "running": 5.0,
        "waiting": 3.0,
        "replicas": 1.0,
        "e2e_mean_s": 0.1,
        "first_byte_mean_s": 0.09,
        "queue_mean_s": 0.005,
        "connect_mean_s": 0.001,
        "running@a": 5.0,
        "running@b": 0.0,
        "waiting@a": 0.0,
        "waiting@b": 0.0,
    }
    assert by_socket.histograms == {}, "a mean is no distribution"
    assert by_socket.started_at == by_page.started_at == 1796067029
    assert by_csv.started_at is None
    assert by_socket.facts == {"server a": "UP", "server b": "MAINT", "haproxy_version": "2.6.12"}


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("vllm:num_requests_running 1.0\n", "not_haproxy"),
        (EXPORTED.replace('sessions{proxy="be"} 5', 'sessions{proxy="be"} -5'), "invalid_value"),
        (EXPORTED.replace('proxy="be"', 'proxy="x"').replace("stats", "be"), "no_backend"),
        ("<html></html>", "not_metrics"),
        ("# pxname,svname,scur,\nchat,BACKEND,many,\nchat,a,1,\n", "invalid_value"),
    ],
)
def test_what_cannot_be_is_an_error(page: str, kind: str) -> None:
    with serve(answering(page)) as there, pytest.raises(CollectError) as refused:
        reads(lambda http: of(http, backend="nobody" if kind == "no_backend" else None), there.url)
    assert refused.value.kind == kind


def test_the_exporter_has_no_mean_before_512_requests_as_it_divides_by_so_many() -> None:
    with serve(answering(EXPORTED.replace('code="2xx"} 700', 'code="2xx"} 70'))) as there:
        reading = reads(of, there.url)
    assert reading.counters["requests"] == 100.0
    assert "e2e_total_s" not in reading.counters
    assert "e2e_mean_s" not in reading.gauges


def test_a_backend_that_served_nothing_yet_has_no_mean() -> None:
    page = EXPORTED.replace("0.100000", "0.000000")
    for code, count in (("2xx", 700), ("4xx", 20), ("5xx", 10)):
        page = page.replace(f'code="{code}"}} {count}', f'code="{code}"}} 0')
    with serve(answering(page)) as there:
        reading = reads(of, there.url)
    assert reading.counters["requests"] == 0.0
    assert "e2e_total_s" not in reading.counters
    assert "e2e_mean_s" not in reading.gauges


def test_two_backends_and_no_name_is_an_error_that_lists_them() -> None:
    page = EXPORTED + 'haproxy_server_current_queue{proxy="two",server="a"} 0\n'
    with serve(answering(page)) as there, pytest.raises(CollectError, match="be, two"):
        reads(of, there.url)


# -- time spent --------------------------------------------------------------------------------------------------------


class SlidingMean:
    """HAProxy's own: ``swrate_add`` and ``swrate_avg`` over 512 samples (include/haproxy/freq_ctr.h), whole milliseconds."""

    def __init__(self) -> None:
        self.sum = self.requests = 0

    def add(self, ms: int) -> None:
        self.sum = self.sum - (self.sum + 511) // 512 + ms
        self.requests += 1

    @property
    def mean_ms(self) -> int:
        n = min(512, self.requests)
        return -(-self.sum // n) if n else 0


@pytest.mark.parametrize("each", [1, 10, 300, 5000])
def test_the_time_spent_is_known_though_the_mean_slides_over_older_requests(each: int) -> None:
    """A change from 0.2 s to 2 s is seen in the requests after it, where the mean itself lags by hundreds."""
    random.seed(1)
    haproxy, spent = SlidingMean(), TimeSpent()
    told, true = [spent.after(0, 0)], [0.0]
    for i in range(max(12, 6000 // each)):
        level = 200 if i < 5 + 3000 // each else 2000
        ms = [round(random.uniform(0.5, 1.5) * level) for _ in range(each)]
        for one in ms:
            haproxy.add(one)
        true.append(true[-1] + sum(ms) / 1000)
        told.append(spent.after(haproxy.requests, haproxy.mean_ms))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(true[-1], rel=0.03)
    half = len(true) // 2  # of an interval too, but for the whole milliseconds of a mean of 512
    assert told[-1] - told[half] == pytest.approx(true[-1] - true[half], rel=0.03, abs=1.1)


def test_a_restart_begins_anew() -> None:
    spent = TimeSpent()
    spent.after(5000, 300)
    assert spent.after(10, 200) == pytest.approx(2.0)
    assert spent.after(20, 200) == pytest.approx(4.0, abs=0.1)


# -- discovery ---------------------------------------------------------------------------------------------------------


def asked(then: Callable[[HAProxySystem, DiscoveryContext], Any], level: str = "admin", **options: Any) -> Any:
    async def main(socket: str) -> Any:
        http, sessions = Http(tls=TRUST), Sessions()
        try:
            context = DiscoveryContext(http.call, SetClock(), sessions, {"socket": socket, **options})
            return await then(HAProxySystem(), context)
        finally:
            await http.aclose()

    with FakeHAProxy(servers(), level=level) as haproxy:
        found = asyncio.run(main(haproxy.socket))
        assert haproxy.writes == []
        return found


def test_each_backend_is_an_endpoint_with_its_servers(tmp_path: Path) -> None:
    async def found(system: HAProxySystem, context: DiscoveryContext) -> list[DiscoveredEndpoint]:
        return [one async for one in system.discover(context)]

    (backend,) = asked(found, url="http://127.0.0.1:8080", config=tmp_path / "haproxy.cfg")
    assert backend.name == "be"
    assert backend.settings["url"] == "http://127.0.0.1:8080"
    assert backend.settings["policy"] == {"min_replicas": 1, "max_replicas": 2}
    assert backend.settings["actuator"]["options"]["config"] == str(tmp_path / "haproxy.cfg")
    assert "1 of 2 servers in rotation: a" in backend.note


def test_the_sockets_level_is_the_permission(tmp_path: Path) -> None:
    async def lacking(system: HAProxySystem, context: DiscoveryContext) -> list[Permission]:
        return [p for p in await system.permitted(context, None) if p.granted is False]

    assert asked(lacking) == []
    (level,) = asked(lacking, level="user")
    assert (level.name, level.what_for) == ("stats socket level admin", "change")
    assert "level user" in level.detail

    async def of_an_entry(system: HAProxySystem, context: DiscoveryContext) -> list[Permission]:
        options = {"socket": context.options["socket"], "config": tmp_path / "gone" / "haproxy.cfg"}
        entry = {"sources": {"haproxy": {}}, "actuator": {"system": "haproxy", "options": options}}
        only_read = await system.permitted(context, {**entry, "actuator": {"system": "none", "options": {}}})
        assert only_read == [], "by HTTP it asks for nothing of this host"
        return [p for p in await system.permitted(context, entry) if p.granted is False]

    assert len(asked(of_an_entry)) == 3
