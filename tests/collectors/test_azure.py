"""Azure's client, lists, sizes, permissions and discovery, against the strict stand-in over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from agent.clock import VirtualClock
from agent.settings import EndpointSettings
from collectors.azure.client import ML_VERSION, AzureClient, shared
from collectors.azure.credentials import ARM_SCOPE, METRICS_SCOPE, AzureAccount, EntraToken
from collectors.azure.discover import AzureMlSystem
from collectors.azure.errors import AzureError, of_error
from collectors.azure.inventory import inventory
from collectors.azure.minutes import Minute, read
from collectors.azure.monitor import make
from collectors.azure.names import EndpointId
from collectors.azure.permissions import ML_ROLE, allows
from collectors.azure.sizes import cores_needed, size_catalogue
from collectors.base import FleetMember, SourceContext
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Range
from tests.fakes.azure import Cloud, FakeAzure, Law
from tests.fakes.azure.cloud import REGION, SUBSCRIPTION, Deployment, Endpoint, Fault
from tests.fakes.azure.ml import deployment_id, endpoint_id

NOW = 1_700_000_400.0


@dataclass
class Scene:
    azure: FakeAzure
    clock: VirtualClock
    http: Http
    sessions: Sessions
    account: AzureAccount
    client: AzureClient

    @property
    def cloud(self) -> Cloud:
        return self.azure.cloud

    def id(self, endpoint: Endpoint) -> EndpointId:
        return EndpointId.parse(endpoint_id(self.cloud, endpoint))

    async def minutes(self, *endpoints: Endpoint, since: float = 600.0) -> dict[str, Any]:
        lists = inventory(self.sessions, self.client)
        states = [await lists.endpoint(self.id(e)) for e in endpoints]
        found = await read(self.client, states, NOW - since, NOW)
        return {e.name: found[self.id(e).key] for e in endpoints}


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    clock = VirtualClock(NOW)
    cloud = Cloud(clock.now)
    http, sessions = Http(), Sessions()
    with FakeAzure(cloud) as azure:
        account = AzureAccount(
            credential="token",
            token=SecretStr("arm-token"),
            metrics_token=SecretStr("metrics-token"),
            arm_url=azure.url,
            metrics_url=azure.url,
        )
        try:
            yield Scene(
                azure, clock, http, sessions, account, shared(sessions, SUBSCRIPTION, account, http.call, clock)
            )
        finally:
            await http.aclose()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


# -- names, errors, credentials ----------------------------------------------------------------------------------------


def test_an_id_is_read_in_any_case_and_nothing_else_is_one() -> None:
    at = f"/subscriptions/{SUBSCRIPTION.upper()}/resourcegroups/RG/providers/microsoft.machinelearningservices"
    text = f"{at}/workspaces/w/onlineendpoints/Chat"
    id_ = EndpointId.parse(text)
    assert (id_.subscription, id_.group, id_.workspace, id_.name) == (SUBSCRIPTION, "RG", "w", "Chat")
    assert EndpointId.parse(id_.path).key == id_.key
    for wrong in ("chat", text + "/deployments/blue", text.replace("onlineendpoints", "batchEndpoints"), ""):
        with pytest.raises(ValueError, match="resource id of an online endpoint"):
            EndpointId.parse(wrong)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ({"code": "Conflict", "message": "busy"}, 409, "conflict"),
        ({"code": "SkuNotAvailable", "message": "no"}, 409, "capacity"),
        ({"code": "ZonalAllocationFailed", "message": "no"}, 409, "capacity"),
        ({"code": "OutOfCapacity", "message": "due to a lack of Azure Machine Learning capacity"}, 0, "capacity"),
        ({"code": "OperationNotAllowed", "message": "exceeding approved Total Regional Cores quota"}, 409, "quota"),
        (
            {"code": "BadRequest", "details": [{"code": "X", "message": "Not enough quota available for S"}]},
            400,
            "quota",
        ),
        ({"code": "TooManyRequests", "message": "slow"}, 429, "throttled"),
        ({"code": "AuthorizationFailed", "message": "no"}, 403, "denied"),
        ({"code": "ExpiredAuthenticationToken", "message": "no"}, 401, "credentials"),
        ({"code": "ResourceNotFound", "message": "no"}, 404, "missing"),
        ({"code": "InternalServerError", "message": "no"}, 500, "unreachable"),
        ({"code": "BadArgument", "message": "no"}, 400, "invalid"),
        ({}, 400, "invalid"),
    ],
)
def test_what_a_refusal_means(error: dict[str, Any], status: int, kind: str) -> None:
    found = of_error(error, "GET /x", status)
    assert found.kind == kind
    assert "GET /x" in found.detail


def test_an_account_says_what_it_lacks() -> None:
    for stated in (
        {"credential": "token"},
        {"token": "t"},
        {"credential": "client_secret", "tenant": "t"},
        {"nonsense": 1},
    ):
        with pytest.raises(ValidationError):
            AzureAccount.model_validate(stated)
    assert "secret-word" not in repr(AzureAccount(credential="token", token=SecretStr("secret-word")).key())


def test_a_token_is_asked_for_once_and_renewed_before_it_ends() -> None:
    asked: list[str] = []
    now = [1000.0]

    class Source:
        def get_token(self, *scopes: str) -> Any:
            asked.append(scopes[0])
            return SimpleNamespace(token=f"t{len(asked)}", expires_on=int(now[0]) + 3600)

    async def scenario() -> None:
        token = EntraToken(Source(), ARM_SCOPE, lambda: now[0])
        same = await asyncio.gather(*(token.headers("GET", "u", b"") for _ in range(5)))
        assert {h["authorization"] for h in same} == {"Bearer t1"}
        now[0] += 3400
        assert (await token.headers("GET", "u", b""))["authorization"] == "Bearer t2"
        assert asked == [ARM_SCOPE] * 2

    run(scenario)


def test_who_gets_no_token_says_so() -> None:
    class Source:
        def get_token(self, *_scopes: str) -> Any:
            raise RuntimeError("az login\nfirst")

    async def scenario() -> None:
        with pytest.raises(
            CollectError, match=r"no token for https://management\.azure\.com/\.default: az login first"
        ):
            await EntraToken(Source(), ARM_SCOPE).headers("GET", "u", b"")

    run(scenario)


def test_a_managed_identity_is_asked_by_the_official_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """``azure-identity`` itself, against the address that an app's identity is served at."""
    pytest.importorskip("azure.identity", reason="azure-identity is not installed")
    from tests.collectors.servers import Request, serve

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.headers["x-identity-header"] == "shared-secret"
        scope = "arm" if "management" in request.path else "metrics"
        body = json.dumps(
            {"access_token": scope, "expires_on": "4000000000", "resource": "r", "token_type": "Bearer"}
        ).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    async def scenario() -> None:
        arm, metrics = AzureAccount(credential="managed_identity").credentials()
        assert await arm.headers("GET", "u", b"") == {"authorization": "Bearer arm"}
        assert await metrics.headers("GET", "u", b"") == {"authorization": "Bearer metrics"}

    with serve(answer) as served:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{served.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "shared-secret")
        run(scenario)
    assert METRICS_SCOPE.startswith("https://metrics")


# -- the client --------------------------------------------------------------------------------------------------------


def test_pages_are_followed_and_never_to_another_place() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.page = 2
            endpoints = [s.cloud.add(f"chat{i}") for i in range(5)]
            path = f"{s.id(endpoints[0]).workspace_path}/onlineEndpoints"
            names = [e["name"] async for e in s.client.pages(path, ML_VERSION)]
            assert names == [f"chat{i}" for i in range(5)]
            with pytest.raises(AzureError, match="not followed"):
                await s.client.operation({"status": "https://elsewhere.example/steal"})

    run(scenario)


def test_after_429_nobody_is_asked_until_then() -> None:
    async def scenario() -> None:
        async with scene() as s:
            at = s.id(s.cloud.add("chat")).path
            s.cloud.faults.append(Fault("GET", "chat", 429, "TooManyRequests", "slow down", {"Retry-After": "30"}))
            for left in (30.0, 30.0):
                with pytest.raises(AzureError) as limited:
                    await s.client.get(at, ML_VERSION)
                assert (limited.value.kind, limited.value.retry_after_s) == ("throttled", left)
            assert len(s.cloud.requests) == 1
            await s.clock.advance(31)
            assert (await s.client.get(at, ML_VERSION))["name"] == "chat"

    run(scenario)


def test_a_wrong_token_and_a_wrong_version_are_said() -> None:
    async def scenario() -> None:
        async with scene() as s:
            at = s.id(s.cloud.add("chat")).path
            with pytest.raises(AzureError, match="InvalidApiVersionParameter"):
                await s.client.get(at, "2019-01-01")
            s.cloud.tokens.pop("arm-token")
            with pytest.raises(AzureError) as refused:
                await s.client.get(at, ML_VERSION)
            assert refused.value.kind == "credentials"
            assert "arm-token" not in str(refused.value)

    run(scenario)


def test_one_client_for_all_of_a_subscription() -> None:
    async def scenario() -> None:
        async with scene() as s:
            again = shared(s.sessions, SUBSCRIPTION, s.account.model_copy(), s.http.call, s.clock)
            assert again is s.client
            other = s.account.model_copy(update={"token": SecretStr("another")})
            assert shared(s.sessions, SUBSCRIPTION, other, s.http.call, s.clock) is not s.client

    run(scenario)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_only_what_has_changed_is_read_anew() -> None:
    async def scenario() -> None:
        async with scene() as s:
            endpoints = [s.cloud.add(f"chat{i}") for i in range(6)]
            lists = inventory(s.sessions, s.client)
            for endpoint in endpoints:
                await lists.endpoint(s.id(endpoint))
            changed = endpoints[3].deployments["blue"]
            changed.body = {**changed.body, "sku": {"name": "Default", "capacity": 5}}
            changed.changed = NOW + 1
            await s.clock.advance(61)
            s.cloud.requests.clear()
            states = [await lists.endpoint(s.id(endpoint)) for endpoint in endpoints]
            assert [st.deployments[0]["sku"]["capacity"] for st in states] == [2, 2, 2, 5, 2, 2]
            assert len(s.cloud.requests) == 3 + 2, "the index, the autoscale settings, and the one that changed"

    run(scenario)


def test_who_may_not_read_the_index_reads_each_endpoint_by_itself() -> None:
    async def scenario() -> None:
        async with scene() as s:
            endpoints = [s.cloud.add(f"chat{i}") for i in range(3)]
            s.cloud.not_actions = ("Microsoft.Resources/subscriptions/resources/read",)
            lists = inventory(s.sessions, s.client)
            for _ in range(2):
                s.cloud.requests.clear()
                states = [await lists.endpoint(s.id(endpoint)) for endpoint in endpoints]
                assert [st.traffic for st in states] == [{"blue": 100}] * 3
                assert len([p for _, p in s.cloud.requests if "/onlineEndpoints/" in p]) == 6
                await s.clock.advance(61)

    run(scenario)


def test_lists_that_cannot_be_read_are_tried_once_for_all() -> None:
    async def scenario() -> None:
        async with scene() as s:
            endpoints = [s.cloud.add(f"chat{i}") for i in range(5)]
            s.cloud.faults.append(Fault("GET", "/resources", 503, times=100))
            lists = inventory(s.sessions, s.client)
            for endpoint in endpoints:
                with pytest.raises(AzureError, match="503"):
                    await lists.endpoint(s.id(endpoint))
            assert len(s.cloud.requests) == 1
            s.cloud.faults.clear()
            await s.clock.advance(11)
            assert (await lists.endpoint(s.id(endpoints[0]))).traffic == {"blue": 100}

    run(scenario)


def test_what_was_just_changed_is_read_directly() -> None:
    async def scenario() -> None:
        async with scene() as s:
            endpoint = s.cloud.add("chat")
            lists = inventory(s.sessions, s.client)
            await lists.endpoint(s.id(endpoint))
            blue = endpoint.deployments["blue"]
            blue.body = {**blue.body, "sku": {"name": "Default", "capacity": 7}}  # and the index does not know it yet
            assert (await lists.endpoint(s.id(endpoint))).deployments[0]["sku"]["capacity"] == 2
            lists.touch(s.id(endpoint))
            assert (await lists.endpoint(s.id(endpoint))).deployments[0]["sku"]["capacity"] == 7

    run(scenario)


def test_sizes_and_quota() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.add("chat", "Standard_F4s_v2", 2)
            catalogue = size_catalogue(s.sessions, s.client)
            sizes = await catalogue.sizes(REGION)
            f4s = sizes["Standard_F4s_v2"]
            assert (f4s.cores, f4s.memory_gb, f4s.gpus, f4s.usd_per_replica_hour) == (4, 8.0, 0, 0.194)
            assert sizes["Standard_NC24ads_A100_v4"].gpus == 1
            assert sizes["Standard_DS3_v2"].usd_per_replica_hour is None, "unknown is not zero"
            assert [cores_needed(f4s, n) for n in (1, 2, 4, 5, 6)] == [8, 12, 20, 24, 32]
            quota = (await catalogue.quotas(REGION))["standardfsv2family"]
            assert (quota.used, quota.limit, quota.free) == (12, 100, 88)
            s.cloud.requests.clear()
            await catalogue.sizes(REGION)
            await catalogue.quotas(REGION)
            assert s.cloud.requests == []

    run(scenario)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_minutes_are_counts_seconds_and_ranges_and_come_late() -> None:
    async def scenario() -> None:
        async with scene() as s:
            chat = s.cloud.add("chat", count=4)
            s.cloud.rate = lambda _at: 12.0
            s.cloud.error_share = lambda _size: 0.05
            (minutes,) = (await s.minutes(chat)).values()
            assert [m.start for m in minutes] == [NOW - 600 + 60 * i for i in range(7)]
            last: Minute = minutes[-1]
            assert last.counts["requests"] == 720
            assert last.counts["errors"] == 36
            assert last.counts["throttled"] == last.counts["rejected"] == 0
            mean, held = s.cloud.law.latency_s(3.0, s.cloud.sizes["Standard_F2s_v2"])
            assert last.counts["e2e_total_s"] == pytest.approx(720 * mean)
            assert last.counts["e2e_total_s"] / 60 == pytest.approx(4 * held, rel=0.06), "Little's law"
            p95 = s.cloud.law.quantile(mean, 0.95)
            assert last.quantiles[0.95] == Range(pytest.approx(p95), pytest.approx(p95))
            assert set(last.quantiles) == {0.5, 0.9, 0.95, 0.99}
            assert 0 < last.gauges["cpu_usage"].mean < last.gauges["cpu_usage"].maximum <= 1
            assert last.gauges["replicas"].mean == 4
            assert "gpu_usage" not in last.gauges

    run(scenario)


def test_two_deployments_make_a_range_and_no_mean_of_percentiles() -> None:
    async def scenario() -> None:
        async with scene() as s:
            chat = s.cloud.add("chat", count=2)
            blue = chat.deployments["blue"]
            body = {**blue.body, "properties": {**blue.body["properties"], "instanceType": "Standard_F8s_v2"}}
            chat.deployments["green"] = Deployment("green", body, "Succeeded", 2)
            chat.body["properties"]["traffic"] = {"blue": 50, "green": 50}
            s.cloud.record(chat, NOW - 3600)
            s.cloud.rate = lambda _at: 8.0
            (minutes,) = (await s.minutes(chat)).values()
            slow, fast = (
                s.cloud.law.latency_s(2.0, s.cloud.sizes[z])[0] for z in ("Standard_F2s_v2", "Standard_F8s_v2")
            )
            assert minutes[0].counts["requests"] == 480
            assert minutes[0].counts["e2e_total_s"] == pytest.approx(240 * (slow + fast))
            bounds = minutes[0].quantiles[0.95]
            assert (bounds.least, bounds.most) == (
                pytest.approx(s.cloud.law.quantile(fast, 0.95)),
                pytest.approx(s.cloud.law.quantile(slow, 0.95)),
            )

    run(scenario)


def test_what_azure_leaves_out_is_unknown() -> None:
    async def scenario() -> None:
        async with scene() as s:
            chat = s.cloud.add("chat")
            s.cloud.rate = lambda _at: 3.0
            s.cloud.silent = {"RequestLatency", "RequestLatency_P95", "CpuUtilizationPercentage"}
            (minutes,) = (await s.minutes(chat)).values()
            assert "e2e_total_s" not in minutes[0].counts
            assert set(minutes[0].quantiles) == {0.5, 0.9, 0.99}
            assert "cpu_usage" not in minutes[0].gauges
            s.cloud.silent = {"RequestsPerMinute"}
            (minutes,) = (await s.minutes(chat)).values()
            assert minutes[0].counts == {}
            assert minutes[0].quantiles == {}, "whose they are is not known"

    run(scenario)


def test_fifty_are_asked_about_at_once_and_one_that_is_gone_costs_the_others_nothing() -> None:
    async def scenario() -> None:
        async with scene() as s:
            endpoints = [s.cloud.add(f"chat{i:03d}") for i in range(120)]
            s.cloud.rate = lambda _at: 3.0
            s.cloud.page = 1000
            s.cloud.requests.clear()
            found = await s.minutes(*endpoints, since=300)
            assert all(found[e.name][0].counts["requests"] == 180 for e in endpoints)
            assert len([p for m, p in s.cloud.requests if m == "POST"]) == 9, "three questions for each 50"
            s.cloud.endpoints.pop(next(k for k in s.cloud.endpoints if k.endswith("chat007")))
            found = await s.minutes(*endpoints, since=300)
            gone = found.pop("chat007")
            assert isinstance(gone, AzureError)
            assert gone.kind == "missing"
            assert all(minutes[0].counts["requests"] == 180 for minutes in found.values())

    run(scenario)


def test_series_that_azure_may_have_dropped_are_not_used() -> None:
    async def scenario() -> None:
        async with scene() as s:
            chat = s.cloud.add("chat")
            s.cloud.rate = lambda _at: 3.0
            state = await inventory(s.sessions, s.client).endpoint(s.id(chat))
            answer = s.client.metrics

            async def many(*args: Any, **how: Any) -> Any:
                values = await answer(*args, **how)
                for value in values:
                    for metric in value["value"]:
                        metric["timeseries"] = list(metric["timeseries"]) * 1000
                return values

            s.client.metrics = many  # type: ignore[method-assign]
            found = (await read(s.client, [state], NOW - 600, NOW))[s.id(chat).key]
            assert isinstance(found, AzureError)
            assert "drops the rest" in found.detail

    run(scenario)


# -- permissions and discovery -----------------------------------------------------------------------------------------


def test_the_role_is_what_is_checked() -> None:
    assert len(json.loads(ML_ROLE.definition(SUBSCRIPTION))["Actions"]) == 15
    assert allows([{"actions": ["Microsoft.Insights/*/read"]}], "Microsoft.Insights/Metrics/Read")
    assert not allows([{"actions": ["*"], "notActions": ["*/Delete"]}], "A/B/delete")
    assert allows([{"actions": ["*"], "notActions": ["*/Delete"]}, {"actions": ["A/B/delete"]}], "A/B/delete")
    assert not allows([], "A/B/read")


def test_the_exact_permission_that_lacks_is_named() -> None:
    async def scenario() -> None:
        async with scene() as s:
            chat = s.cloud.add("chat")
            s.cloud.actions = tuple(json.loads(ML_ROLE.definition())["Actions"])
            assert all(p.granted for p in await ML_ROLE.permitted(s.client, s.id(chat).workspace_path))
            s.cloud.not_actions = ("Microsoft.Insights/AutoscaleSettings/Write",)
            lacking = [p for p in await ML_ROLE.permitted(s.client, s.id(chat).workspace_path) if not p.granted]
            assert [p.name for p in lacking] == ["Microsoft.Insights/AutoscaleSettings/Write"]
            assert "tune an autoscaler's bounds" in lacking[0].detail

    run(scenario)


def test_the_least_role_is_enough_for_all_that_is_done() -> None:
    """Nothing that the collectors ask needs more than the role; the actuator's own tests run as an owner."""

    async def scenario() -> None:
        async with scene() as s:
            chat = s.cloud.add("chat")
            s.cloud.rate = lambda _at: 3.0
            s.cloud.actions = tuple(json.loads(ML_ROLE.definition())["Actions"])
            assert (await s.minutes(chat))["chat"][0].counts["requests"] == 180
            await size_catalogue(s.sessions, s.client).sizes(REGION)
            await size_catalogue(s.sessions, s.client).quotas(REGION)

    run(scenario)


def test_discovery_writes_entries_that_the_settings_take() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.page = 1
            chat = s.cloud.add("Chat")
            s.cloud.add("Chat", workspace="other", group="rg-other")
            s.cloud.add_autoscale("auto", deployment_id(s.cloud, chat, "blue"), 2, 6)
            options = {**s.account.model_dump(exclude_defaults=True), "subscription": SUBSCRIPTION}
            context = DiscoveryContext(s.http.call, s.clock, s.sessions, options)
            found = [f async for f in AzureMlSystem().discover(context)]
            assert [f.name for f in found] == ["chat", "chat-other"]
            assert "autoscale setting auto owns the count" in found[0].note
            entry = dict(found[0].settings)
            assert "arm-token" not in json.dumps(entry)
            assert entry["actuator"]["options"]["token"] == "${AZURE_TOKEN}"
            assert entry["actuator"]["options"]["resource"] == s.id(chat).path
            assert entry["url"] == s.azure.url
            settings = EndpointSettings.model_validate(entry)
            assert (settings.mode, settings.actuator.system) == ("observe", "azure-ml")
            entry["actuator"]["options"] |= {"token": "arm-token", "metrics_token": "metrics-token"}
            assert all(p.granted for p in await AzureMlSystem().permitted(context, entry))
            assert json.loads(AzureMlSystem().permissions())["Name"] == "Flyball"
            with pytest.raises(CollectError, match="which subscription"):
                [f async for f in AzureMlSystem().discover(DiscoveryContext(s.http.call, s.clock, s.sessions, {}))]

    run(scenario)


def test_the_law_of_the_stand_in_holds_its_own() -> None:
    law = Law()
    size = Cloud(lambda: NOW).sizes["Standard_F2s_v2"]
    alone, _ = law.latency_s(0.1, size)
    busy, held = law.latency_s(20.0, size)
    assert alone == pytest.approx(1 / 8.0, rel=0.06)
    assert busy > alone
    assert held == pytest.approx(20 * busy, rel=0.01)


# -- the source --------------------------------------------------------------------------------------------------------


def _member(s: Scene, endpoint: Endpoint, **options: Any) -> FleetMember:
    stated = {**s.account.model_dump(exclude_defaults=True), "resource": s.id(endpoint).path, **options}
    return make(SourceContext(endpoint.name, None, s.http, s.clock, s.sessions, stated))


async def _told(members: list[FleetMember], since: float | None) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    async for name, said in members[0].fleet.read_all([m.wanted for m in members], since):
        found.setdefault(name, []).append(said)
    return found


def test_the_source_tells_each_minute_once_it_has_settled() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.rate = lambda _at: 3.0
            endpoints = [s.cloud.add(f"chat{i}") for i in range(3)]
            members = [_member(s, e) for e in endpoints]
            assert len({id(m.fleet) for m in members}) == 1, "read together"
            assert members[0].settles_s == 240.0
            first = await _told(members, None)
            assert {name: [(x.target, x.start) for x in said] for name, said in first.items()} == {
                e.name: [(e.name, NOW - 240.0)] for e in endpoints
            }
            span = first["chat0"][0]
            assert (span.end - span.start, span.counts["requests"]) == (60.0, 180.0)
            assert set(span.quantiles["e2e_s"]) == {0.5, 0.9, 0.95, 0.99}
            await s.clock.advance(180)
            later = await _told(members, NOW)
            assert [x.start for x in later["chat1"]] == [NOW - 180.0, NOW - 120.0, NOW - 60.0]
            again = await _told(members, NOW)
            assert [x.start for x in again["chat1"]] == [NOW - 60.0], "the newest once more: it is told, and not silent"

    run(scenario)


def test_what_could_not_be_read_of_one_is_read_later_and_costs_the_others_nothing() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.rate = lambda _at: 3.0
            one, two = s.cloud.add("one"), s.cloud.add("two")
            members = [_member(s, e) for e in (one, two)]
            await _told(members, None)
            kept = s.cloud.endpoints.pop(next(k for k in s.cloud.endpoints if k.endswith("/one")))
            await s.clock.advance(120)
            found = await _told(members, NOW)
            assert isinstance(found["one"][0], AzureError)
            assert len(found["two"]) == 2
            s.cloud.endpoints["rg-chat/ws-chat/one"] = kept
            await s.clock.advance(60)
            found = await _told(members, NOW + 120)
            assert [x.start for x in found["one"]] == [NOW - 180.0, NOW - 120.0, NOW - 60.0]
            assert [x.start for x in found["two"]] == [NOW - 60.0]

    run(scenario)


def test_the_source_says_what_it_lacks() -> None:
    async def scenario() -> None:
        async with scene() as s:
            for options, said in (({}, "resource"), ({"resource": "chat"}, "resource id"), ({"lag": 1}, "lag")):
                with pytest.raises(CollectError, match=said):
                    make(SourceContext("chat", None, s.http, s.clock, s.sessions, options))

    run(scenario)
