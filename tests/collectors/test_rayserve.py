"""Ray's metrics of an application: noise dropped, processes that come and go added up, milliseconds; and each application as an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.rayserve.client import DashboardSettings, RayServeClient
from collectors.rayserve.discover import RayServeSystem
from collectors.rayserve.source import RayServeCollector, SeriesSum, make
from collectors.sessions import Sessions
from collectors.window import CollectError, Histogram, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, Handler, Request, answering, serve
from tests.fakes.rayserve import FakeApplication, FakeRayServe

RECORDED = Path(__file__).parents[2] / "../shared/data/recorded/rayserve"
STATED = {"name": "chat", "import_path": "app:app"}


def series(name: str, value: float, worker: str, **labels: str) -> str:
    """One line, with the noise that Ray writes on each."""
    noise = {
        "Component": "core_worker",
        "NodeAddress": "10.0.0.1",
        "Version": "2.60.0",
        "otel_scope_name": "ray._private",
    }
    told = {**noise, "WorkerId": worker, "application": "chat", **labels}
    text = ",".join(f'{key}="{label}"' for key, label in told.items())
    return f"ray_serve_{name}{{{text}}} {value}\n"


def requests(worker: str, status: str, number: float) -> str:
    return series("num_http_requests_total", number, worker, method="POST", route="/", status_code=status)


def times(worker: str, counts: tuple[int, int, int], total_ms: float) -> str:
    labels = {"method": "POST", "route": "/", "status_code": "200"}
    lines = [
        series("http_request_latency_ms_bucket", n, worker, le=le, **labels)
        for le, n in zip(("100.0", "1000.0", "+Inf"), counts, strict=True)
    ]
    return "".join(lines) + series("http_request_latency_ms_sum", total_ms, worker, **labels)


def read_all(pages: list[str], **options: Any) -> list[Reading]:
    """One collector's readings of these pages, one after the other."""
    left = list(pages)

    async def metrics(request: Request, writer: asyncio.StreamWriter) -> None:
        await answering(left[0])(request, writer)

    async def main(dashboard: str, url: str) -> list[Reading]:
        http = Http(tls=TRUST)
        try:
            given = {"dashboard": dashboard, "metrics": [url], **options}
            collector: RayServeCollector = make(SourceContext("chat", None, http, SetClock(), Sessions(), given))
            found = []
            while left:
                found += await collector.read(
                    ScrapeTarget("chat", "http://127.0.0.1:9", {"Authorization": "Bearer own"})
                )
                del left[0]
            return found
        finally:
            await http.aclose()

    with FakeRayServe(FakeApplication("chat", stated=STATED)) as dashboard, serve(metrics) as there:
        found = asyncio.run(main(dashboard, there.url))
        assert all("authorization" not in r.headers for r in there.requests), "the endpoint's key is not the cluster's"
        return found


def test_proxies_are_added_up_by_status_and_times_are_seconds() -> None:
    page = (
        requests("p1", "200", 7) + requests("p2", "200", 3) + requests("p1", "500", 2) + requests("p1", "429", 1) + requests("p1", "499", 1)
        + times("p1", (4, 8, 9), 2000.0) + times("p2", (1, 2, 3), 900.0)
        + series("num_http_requests_total", 99, "p1", application="other", status_code="200")
        + series("replica_processing_queries", 2, "w1", deployment="Model", replica="r2")
        + series("replica_processing_queries", 5, "w0", deployment="Model", replica="gone")
        + series("deployment_queued_queries", 3, "p1", deployment="Model", handle="h")
    )  # fmt: skip
    (reading,) = read_all([page])
    assert reading.counters == {"requests": 14.0, "errors": 2.0, "throttled": 1.0, "rejected": 0.0}
    assert reading.histograms == {"e2e_s": Histogram((0.1, 1.0), (5.0, 10.0, 12.0), 2.9)}
    assert reading.gauges == {"replicas": 1.0, "running": 2.0, "waiting": 3.0}, "a dead replica's series linger"
    assert reading.facts == {"deployment": "Model", "status": "HEALTHY"}


def test_a_process_that_comes_or_goes_is_no_restart() -> None:
    first, second, third = read_all(
        [
            requests("p1", "200", 100),
            requests("p1", "200", 110) + requests("p2", "200", 5),
            requests("p2", "200", 9) + requests("p3", "500", 1),  # the series of p1 have gone with it
        ]
    )
    assert [r.counters["requests"] for r in (first, second, third)] == [100.0, 115.0, 120.0]
    assert [r.counters["errors"] for r in (first, second, third)] == [0.0, 0.0, 1.0]


def test_what_was_seen_is_remembered_of_so_many_and_no_more() -> None:
    total = SeriesSum()
    for i in range(10_500):
        total.after({(str(i),): 1.0})
    assert total.after({("10499",): 3.0}) == 10_502.0
    assert len(total._last) == 10_000


def test_before_the_first_request_nothing_is_told_of_requests() -> None:
    (reading,) = read_all([series("deployment_replica_healthy", 1, "w1", deployment="Model")])
    assert reading.counters == {}
    assert reading.gauges == {"replicas": 1.0}


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("vllm:num_requests_running 1.0\n", "not_ray"),
        (requests("p1", "200", -1), "invalid_value"),
        (times("p1", (3, 2, 3), 1.0), "invalid_value"),
        ("<html></html>", "not_metrics"),
    ],
)
def test_what_cannot_be_is_an_error(page: str, kind: str) -> None:
    with pytest.raises(CollectError) as refused:
        read_all([page])
    assert refused.value.kind == kind


def test_an_application_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(CollectError, match="there are: chat"):
        read_all([""], application="gone")


def test_the_recorded_page_and_state() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded Ray Serve pages are not beside the project (shared/data)")
    state = (RECORDED / "applications_get.json").read_bytes()
    page = (RECORDED / "metrics.txt").read_bytes()

    async def main(dashboard: str, url: str) -> Reading:
        http = Http(tls=TRUST)
        try:
            given = {"dashboard": dashboard, "metrics": [url], "application": "echo"}
            (reading,) = await make(SourceContext("chat", None, http, SetClock(), Sessions(), given)).read(
                ScrapeTarget("chat", "http://127.0.0.1:9")
            )
            return reading
        finally:
            await http.aclose()

    with serve(answering(state, kind="application/json")) as dashboard, serve(answering(page)) as there:
        reading = asyncio.run(main(dashboard.url, there.url))
    assert reading.counters == {"requests": 101.0, "errors": 0.0, "throttled": 0.0, "rejected": 0.0}
    assert reading.histograms["e2e_s"].counts[-1] == 101.0
    assert reading.histograms["e2e_s"].total == pytest.approx(7.575), (
        "seconds: 101 middles of the bucket from 50 to 100 ms"
    )
    assert reading.histograms["processing_s"].counts[-1] == 44.0 + 57.0, "both replicas', one of which has gone"
    assert reading.gauges["replicas"] == 1.0


# -- discovery ---------------------------------------------------------------------------------------------------------


def asked(
    then: Callable[[RayServeSystem, DiscoveryContext], Any], *applications: FakeApplication, **options: Any
) -> Any:
    async def main(url: str) -> Any:
        http, sessions = Http(tls=TRUST), Sessions()
        try:
            context = DiscoveryContext(http.call, SetClock(), sessions, {"dashboard": url, **options})
            return await then(RayServeSystem(), context)
        finally:
            await http.aclose()

    fake = FakeRayServe(*applications, token="right")
    with fake as url:
        found = asyncio.run(main(url))
    assert fake.writes == []
    return found


def test_each_application_is_an_endpoint() -> None:
    async def found(system: RayServeSystem, context: DiscoveryContext) -> list[DiscoveredEndpoint]:
        return [one async for one in system.discover(context)]

    external = FakeApplication("Ext App", {"In": {}, "Helper": {}}, {**STATED, "external_scaler_enabled": True})
    several = asked(found, FakeApplication("chat", stated=STATED), external, FakeApplication("script"), token="right")
    by_name = {one.name: one for one in several}
    assert set(by_name) == {"chat", "ext-app", "script"}
    assert by_name["chat"].settings["url"] == "http://127.0.0.1:8000"
    options = by_name["ext-app"].settings["actuator"]["options"]
    assert (options["application"], options["deployment"], options["token"]) == ("Ext App", "In", "${RAY_AUTH_TOKEN}")
    assert "external scaler" in by_name["ext-app"].note
    assert "Helper can be changed" in by_name["ext-app"].note
    assert "only seen" in by_name["script"].note
    assert "right" not in json.dumps([dict(one.settings) for one in several])


def test_a_token_that_lacks_is_the_permission_that_lacks() -> None:
    async def all_of(system: RayServeSystem, context: DiscoveryContext) -> list[Permission]:
        return list(await system.permitted(context, None))

    (refused,) = asked(all_of, token="wrong")
    assert (refused.name, refused.granted) == ("GET /api/serve/applications/", False)
    assert "token_file" in refused.detail
    assert [p.granted for p in asked(all_of, token="right")] == [True, None], "Ray tells no roles"


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (answering("no", "503 Service Unavailable"), "unreachable"),
        (answering("[]", kind="application/json"), "invalid"),
        (answering('{"applications": 5}', kind="application/json"), "invalid"),
        (answering("no", "404 Not Found"), "missing"),
    ],
)
def test_a_dashboard_that_is_none_is_an_error(handler: Handler, kind: str) -> None:
    async def main(url: str) -> None:
        http = Http(tls=TRUST)
        try:
            await RayServeClient(DashboardSettings(dashboard=url), http.call).state()
        finally:
            await http.aclose()

    with serve(handler) as there, pytest.raises(CollectError) as refused:
        asyncio.run(main(there.url))
    assert refused.value.kind == kind
