"""Model deployments as Azure tells of them: both families of metrics, discovery, the role, list prices by meter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from agent.clock import VirtualClock
from agent.settings import EndpointSettings
from collectors.azure.accounts import ModelDeploymentId, model_accounts
from collectors.azure.calls import MODELS, OPENAI, _account
from collectors.azure.client import shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.deployments import DeploymentMetrics, Options
from collectors.azure.discover_models import AzureOpenAiSystem
from collectors.azure.errors import AzureError
from collectors.azure.permissions import OPENAI_ROLE
from collectors.azure.questions import MetricSeries
from collectors.azure.retail import MeterPrice, meter_prices
from collectors.base import FleetQuery
from collectors.discovery import DiscoveryContext
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Span
from tests.collectors.servers import answering, serve
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.openai import CallMix, add_deployment, deployment_id

NOW = 1_700_000_400.0
MISTRAL = ("Mistral AI", "mistral-large", "2411")


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
        return {
            "credential": "token",
            "token": "arm-token",
            "metrics_token": "metrics-token",
            "arm_url": self.azure.url,
            "metrics_url": self.azure.url,
        }

    def source(self, lag_s: float = 180.0) -> DeploymentMetrics:
        client = shared(self.sessions, SUBSCRIPTION, AzureAccount(**self.account), self.http.call, self.clock)
        return DeploymentMetrics(client, model_accounts(self.sessions, client), lag_s)

    async def read(self, source: DeploymentMetrics, *names: str) -> dict[str, list[Span | CollectError]]:
        wanted = [FleetQuery(n, None, {"resource": deployment_id(self.cloud, n)}) for n in names]
        found: dict[str, list[Any]] = {n: [] for n in names}
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
    made: Coroutine[Any, Any, None] = scenario()
    asyncio.run(made)


def test_an_id_is_read_in_any_case_and_nothing_else_is_one() -> None:
    at = f"/subscriptions/{SUBSCRIPTION.upper()}/resourcegroups/RG/providers/microsoft.cognitiveservices/accounts/a/deployments/Chat"
    id_ = ModelDeploymentId.parse(at)
    assert (id_.subscription, id_.group, id_.account, id_.name) == (SUBSCRIPTION, "RG", "a", "Chat")
    assert ModelDeploymentId.parse(id_.path).key == id_.key
    with pytest.raises(ValueError, match="resource id of a model deployment"):
        ModelDeploymentId.parse(at.rpartition("/deployments")[0])
    with pytest.raises(ValidationError, match="resource id of a model deployment"):
        Options(resource="chat")


def test_a_minute_of_the_older_family() -> None:
    """120 calls a minute of 500 tokens on 30,000 a minute: half are refused; a quarter of the prompt is cached."""

    async def scenario() -> None:
        async with scene() as s:
            add_deployment(s.cloud, "chat", capacity=30).callers = lambda _at: CallMix(120, cached=0.25)
            add_deployment(s.cloud, "quiet")
            found = await s.read(s.source(), "chat", "quiet")
            (span,) = found["chat"]
            assert isinstance(span, Span)
            assert span.end == NOW // 60 * 60 - 180
            assert span.counts == {
                "requests": 120.0,
                "errors": 0.0,
                "throttled": 60.0,
                "rejected": 0.0,
                "spilled": 0.0,
                "prompt_tokens": 24_000.0,
                "output_tokens": 6_000.0,
                "cached_prompt_tokens": 6_000.0,
                "e2e_total_s": pytest.approx(60 * 1.55),
            }
            assert span.gauges["ttft_mean_s"].mean == pytest.approx(0.35)
            assert span.gauges["itl_mean_s"].mean == pytest.approx(0.012)
            assert "ptu_usage" not in span.gauges
            assert found["quiet"] == [], "a minute without a point is unknown, and no zero"

    run(scenario)


def test_provisioned_throughput_tells_its_use_and_what_spills() -> None:
    async def scenario() -> None:
        async with scene() as s:
            units = add_deployment(s.cloud, "units", "GlobalProvisionedManaged", 25, spilloverDeploymentName="chat")
            units.callers = lambda _at: CallMix(100)
            (span,) = (await s.read(s.source(), "units"))["units"]
            assert isinstance(span, Span)
            assert (span.counts["spilled"], span.counts["throttled"]) == (6.0, 0.0)
            assert span.gauges["ptu_usage"].mean == 1.0
            units.callers = lambda _at: CallMix(40)
            await s.clock.advance(60)
            (span,) = (await s.read(s.source(), "units"))["units"]
            assert isinstance(span, Span)
            assert span.gauges["ptu_usage"].mean == pytest.approx(40 * 800 / 75_000)

    run(scenario)


def test_partners_models_are_told_by_the_newer_family() -> None:
    async def scenario() -> None:
        async with scene() as s:
            add_deployment(s.cloud, "chat").callers = lambda _at: CallMix(10)
            add_deployment(s.cloud, "mistral", model=MISTRAL).callers = lambda _at: CallMix(20, cached=0.5)
            found = await s.read(s.source(), "chat", "mistral")
            (span,) = found["mistral"]
            assert isinstance(span, Span)
            assert (span.counts["requests"], span.counts["cached_prompt_tokens"]) == (20.0, 4_000.0)
            batches = [p for m, p in s.cloud.requests if m == "POST"]
            assert len(batches) == 6, "three questions of each family, for all deployments of all accounts"

    run(scenario)


def test_a_deployment_that_both_families_tell_is_counted_once() -> None:
    def line(metric: str, value: float) -> MetricSeries:
        labels = {"modeldeploymentname": "Chat", "statuscode": "200", "isspillover": "False"}
        return MetricSeries(metric, labels, {}, {}, {60.0: value})

    found = _account([line(OPENAI.requests, 7.0)], [line(MODELS.requests, 7.0)])
    assert not isinstance(found, AzureError)
    (minute,) = found["chat"]
    assert minute.counts["requests"] == 7.0
    alone = _account(AzureError("invalid", "no such metric"), [line(MODELS.requests, 5.0)])
    assert not isinstance(alone, AzureError)
    assert alone["chat"][0].counts["requests"] == 5.0
    assert isinstance(_account(AzureError("denied", "a"), AzureError("denied", "b")), AzureError)


def test_what_was_missed_is_read_later_and_one_account_does_not_spoil_another() -> None:
    async def scenario() -> None:
        async with scene() as s:
            add_deployment(s.cloud, "chat").callers = lambda _at: CallMix(10)
            source = s.source()
            assert len((await s.read(source, "chat"))["chat"]) == 1
            await s.clock.advance(300)
            assert len((await s.read(source, "chat"))["chat"]) == 5
            gone = FleetQuery("gone", None, {"resource": deployment_id(s.cloud, "chat").replace("ai-chat", "nowhere")})
            there = FleetQuery("chat", None, {"resource": deployment_id(s.cloud, "chat")})
            await s.clock.advance(60)
            said = {name: one async for name, one in source.read_all([gone, there], None)}
            assert isinstance(said["gone"], AzureError)
            assert isinstance(said["chat"], Span)

    run(scenario)


def test_discovery_writes_entries_that_the_settings_take() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.cloud.page = 1
            add_deployment(s.cloud, "Chat", capacity=30)
            add_deployment(s.cloud, "units", "GlobalProvisionedManaged", 25, spilloverDeploymentName="Chat")
            add_deployment(s.cloud, "Chat", account="ai-other")
            found = [f async for f in AzureOpenAiSystem().discover(s.discovery())]
            assert [f.name for f in found] == ["chat", "units", "chat-ai-other"]
            assert [f.settings["kind"] for f in found] == ["quota", "ptu", "quota"]
            assert "limit: 30,000 tokens in 60 s" in found[0].note
            assert "spills over to Chat" in found[1].note
            entry = dict(found[0].settings)
            assert "arm-token" not in json.dumps(entry)
            for name in ("token", "metrics_token"):
                assert entry["sources"]["azure-openai"][name] == f"${{AZURE_{name.upper()}}}"
            EndpointSettings(**entry)
            only = [f.name async for f in AzureOpenAiSystem().discover(s.discovery(account="ai-other"))]
            assert only == ["chat"]
            with pytest.raises(CollectError, match="say which subscription"):
                [f async for f in AzureOpenAiSystem().discover(s.discovery(subscription=""))]

    run(scenario)


def test_the_least_role_is_enough_and_what_lacks_is_named() -> None:
    async def scenario() -> None:
        async with scene() as s:
            add_deployment(s.cloud, "chat").callers = lambda _at: CallMix(10)
            s.cloud.actions = tuple(json.loads(OPENAI_ROLE.definition())["Actions"])
            assert (await s.read(s.source(), "chat"))["chat"]
            entry = {"actuator": {"options": {"resource": deployment_id(s.cloud, "chat"), **s.account}}, "sources": {}}
            assert all(p.granted for p in await AzureOpenAiSystem().permitted(s.discovery(), entry))
            s.cloud.not_actions = ("Microsoft.CognitiveServices/accounts/deployments/write",)
            lacking = [p for p in await AzureOpenAiSystem().permitted(s.discovery(), entry) if not p.granted]
            assert [p.name for p in lacking] == ["Microsoft.CognitiveServices/accounts/deployments/write"]
            assert "change a deployment's capacity" in lacking[0].detail
            s.cloud.not_actions = ("Microsoft.CognitiveServices/accounts/deployments/read",)
            s.sessions = Sessions()
            (refused,) = (await s.read(s.source(), "chat"))["chat"]
            assert isinstance(refused, AzureError)
            assert "flyball permissions azure-openai" in refused.detail

    run(scenario)


# -- list prices -----------------------------------------------------------------------------------------------------------


def row(meter: str, usd: float, **other: Any) -> dict[str, Any]:
    return {
        "meterId": meter,
        "meterName": f"gpt 4.1 {meter} glbl Tokens",
        "retailPrice": usd,
        "unitOfMeasure": "1M",
        "type": "Consumption",
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "effectiveStartDate": "2026-05-01T00:00:00Z",
        **other,
    }


def test_a_meter_has_exactly_one_price_or_none() -> None:
    items = [
        row("inp", 2.0),
        row("inp", 2.0),  # the same once more, of another region
        row("two", 1.0),
        row("two", 3.0),
        row("reserved", 9.0, type="Reservation"),
        row("euro", 1.0, currencyCode="EUR"),
        row("free", 0.0),
    ]

    meters = [*{r["meterId"] for r in items}, "none"]
    with serve(answering(json.dumps({"Items": items, "NextPageLink": None}), kind="application/json")) as served:
        found = asyncio.run(priced(meters, served.url))
    assert set(found) == {"inp"}
    assert str(found["inp"]) == "gpt 4.1 inp glbl Tokens: $2 per 1M, list price since 2026-05-01"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("<html>", "200 OK", "price list"),
        ("no", "503 Service Unavailable", "price list"),
        (json.dumps({"Items": [], "NextPageLink": "http://elsewhere.invalid/next"}), "200 OK", "not followed"),
    ],
)
def test_a_price_list_that_cannot_be_read_is_said(body: str, status: str, said: str) -> None:
    with serve(answering(body, status, kind="application/json")) as served, pytest.raises(AzureError, match=said):
        asyncio.run(priced(["a"], served.url))


async def priced(meters: list[str], url: str) -> dict[str, MeterPrice]:
    http = Http()
    try:
        return await meter_prices(http.call, meters, url)
    finally:
        await http.aclose()


def test_discovery_shows_the_list_prices_of_a_models_own_meters() -> None:
    items = [row("gpt-4.1-GlobalStandard-in", 2.0)]
    with serve(answering(json.dumps({"Items": items, "NextPageLink": None}), kind="application/json")) as served:

        async def scenario() -> None:
            async with scene() as s:
                add_deployment(s.cloud, "chat")
                (found,) = [
                    f async for f in AzureOpenAiSystem().discover(s.discovery(prices=True, prices_url=served.url))
                ]
                assert "glbl Tokens: $2 per 1M, list price since 2026-05-01" in found.note
                assert "meter gpt-4.1-GlobalStandard-out: its price is not known" in found.note

        run(scenario)
