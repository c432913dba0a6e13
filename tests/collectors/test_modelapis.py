"""Usage by the minute of OpenAI and Anthropic: late, paged, told once; and each model in use as an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.modelapis import anthropic, openai
from collectors.modelapis.discover import AnthropicApiSystem, OpenAIApiSystem
from collectors.sessions import Sessions
from collectors.window import CollectError, Span
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, answering, serve
from tests.fakes.modelapis import ADMIN_KEY, FakeAnthropic, FakeOpenAI

#: A whole minute of some day.
NOW = 1_800_000_000 // 60 * 60
LAG_S = 300.0


def spans(make: Any, organization: Any, *between: Callable[[SetClock], None], **options: Any) -> list[list[Span]]:
    """One collector's reads: one, and one more after each of ``between``."""

    async def main(url: str) -> list[list[Span]]:
        http, clock = Http(tls=TRUST), SetClock(float(NOW) + 30.0)
        try:
            given = {"url": url, "key": ADMIN_KEY, **options}
            collector = make(SourceContext("chat", "small", http, clock, Sessions(), given))
            found = [list(await collector.read(ScrapeTarget("chat", "http://127.0.0.1:9")))]
            for happens in between:
                happens(clock)
                found.append(list(await collector.read(ScrapeTarget("chat", "http://127.0.0.1:9"))))
            return found
        finally:
            await http.aclose()

    with organization as url:
        return asyncio.run(main(url))


def openai_org(**more: Any) -> FakeOpenAI:
    org = FakeOpenAI(
        {"proj_a": {"small": (30_000, 500), "large": (10_000, 100)}, "proj_b": {"small": (1_000, 10)}}, **more
    )
    for minute in range(5, 12):
        org.use("proj_a", "small", NOW - 60 * minute, minute, 100 * minute, 40 * minute, 7)
    org.use("proj_a", "large", NOW - 360, 99, 9900, 0, 99)
    org.use("proj_b", "small", NOW - 360, 50, 5000, 0, 50)
    return org


def test_a_minute_is_told_when_it_has_settled_and_those_after_it_follow() -> None:
    def later(clock: SetClock) -> None:
        clock.time += 180.0

    first, second = spans(openai.make, openai_org(), later, project="proj_a", lag_s=LAG_S)
    (span,) = first
    assert (span.start, span.end) == (NOW - 360, NOW - 300)
    assert span.counts == {
        "requests": 6.0,
        "prompt_tokens": 600.0,
        "cached_prompt_tokens": 240.0,
        "output_tokens": 7.0,
    }, "of this project and this model alone"
    assert span.facts == {"model": "small"}
    assert [(s.start - NOW, s.counts["requests"]) for s in second] == [(-300, 5.0), (-240, 0.0), (-180, 0.0)]


def test_minutes_that_passed_meanwhile_are_told_page_by_page() -> None:
    org = openai_org(page=3)

    def long_after(clock: SetClock) -> None:
        clock.time += 1200.0

    _, second = spans(openai.make, org, long_after, project="proj_a", lag_s=LAG_S)
    assert [s.start for s in second] == [NOW - 300 + 60 * i for i in range(20)]


def test_anthropic_tells_tokens_and_no_number_of_calls() -> None:
    org = FakeAnthropic({"small": (50_000, 50)}, {"wrkspc_a": {}})
    org.use("wrkspc_a", "small", NOW - 360, uncached=100, written=30, read=70, output=11)
    org.use(None, "small", NOW - 360, uncached=5000, written=0, read=0, output=500)
    ((span,),) = spans(anthropic.make, org, workspace="wrkspc_a", lag_s=LAG_S)
    assert (span.start, span.end) == (NOW - 360, NOW - 300)
    assert span.counts == {"prompt_tokens": 200.0, "cached_prompt_tokens": 70.0, "output_tokens": 11.0}


def test_a_workspaces_own_limit_stands_before_the_organizations() -> None:
    async def main(url: str) -> Any:
        http = Http(tls=TRUST)
        try:
            settings = anthropic.AnthropicSettings(url=url, key=ADMIN_KEY)
            return await anthropic.AnthropicAdmin(settings, http.call).rate_limits("wrkspc_a")
        finally:
            await http.aclose()

    with FakeAnthropic({"small": (50_000, 50), "large": (10, 1)}, {"wrkspc_a": {"small": (20_000, 40)}}) as url:
        limits = {limit.model: limit for limit in asyncio.run(main(url))}
    assert (limits["small"].tokens_per_minute, limits["small"].requests_per_minute) == (20_000, 40)
    assert limits["large"].tokens_per_minute == 10


# -- discovery ---------------------------------------------------------------------------------------------------------


def asked(then: Callable[[Any, DiscoveryContext], Any], system: Any, organization: Any, **options: Any) -> Any:
    async def main(url: str) -> Any:
        http = Http(tls=TRUST)
        try:
            context = DiscoveryContext(http.call, SetClock(float(NOW)), Sessions(), {"url": url, **options})
            return await then(system, context)
        finally:
            await http.aclose()

    with organization as url:
        found = asyncio.run(main(url))
    assert organization.writes == []
    return found


async def _found(system: Any, context: DiscoveryContext) -> list[DiscoveredEndpoint]:
    return [one async for one in system.discover(context)]


async def _permitted(system: Any, context: DiscoveryContext) -> list[Permission]:
    return list(await system.permitted(context, None))


def test_each_model_that_a_project_used_is_an_endpoint() -> None:
    org = openai_org(page=1)
    org.use("proj_a", "small-2026-08-01", NOW - 86_400, 1, 1, 0, 1)
    by_name = {one.name: one for one in asked(_found, OpenAIApiSystem(), org, key=ADMIN_KEY)}
    assert set(by_name) == {"a-small", "a-large", "b-small", "a-small-2026-08-01"}
    small = by_name["a-small"].settings
    assert (small["kind"], small["model"]) == ("quota", "small")
    assert small["actuator"]["options"] == {
        "key": "${OPENAI_ADMIN_KEY}",
        "url": org.url,
        "project": "proj_a",
        "model": "small",
    }
    assert by_name["a-small-2026-08-01"].settings["actuator"]["options"]["model"] == "small", "its alias has the limit"
    assert "30000 tokens and 500 requests a minute" in by_name["a-small"].note
    assert ADMIN_KEY not in json.dumps([dict(one.settings) for one in by_name.values()])


def test_each_model_that_a_workspace_used_is_an_endpoint() -> None:
    org = FakeAnthropic({"small": (50_000, 50)}, {"wrkspc_a": {}})
    org.use("wrkspc_a", "small", NOW - 360, 1, 0, 0, 1)
    org.use(None, "large", NOW - 360, 1, 0, 0, 1)
    by_name = {one.name: one for one in asked(_found, AnthropicApiSystem(), org, key=ADMIN_KEY)}
    assert set(by_name) == {"a-small", "default-large"}
    assert by_name["a-small"].settings["shape"] == {"purchase": {"amount": 50_000, "unit": "tokens_per_minute"}}
    assert "actuator" not in by_name["a-small"].settings
    assert "shape" not in by_name["default-large"].settings
    assert "no rate limit" in by_name["default-large"].note


@pytest.mark.parametrize("system", [OpenAIApiSystem(), AnthropicApiSystem()])
def test_a_key_that_is_none_of_an_admin_is_the_permission_that_lacks(system: Any) -> None:
    def org() -> Any:
        return openai_org() if system.name == "openai-api" else FakeAnthropic({}, {})

    assert all(p.granted for p in asked(_permitted, system, org(), key=ADMIN_KEY))
    refused = asked(_permitted, system, org(), key="sk-project")
    assert not any(p.granted for p in refused)
    assert "admin key" in refused[0].detail


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (answering("no", "503 Service Unavailable"), "unreachable"),
        (answering("[]", kind="application/json"), "invalid"),
        (answering('{"data": [{"start_time": -1, "results": []}]}', kind="application/json"), "invalid"),
        (answering("no", "429 Too Many Requests"), "throttled"),
    ],
)
def test_an_api_that_is_none_is_an_error(handler: Any, kind: str) -> None:
    async def main(url: str) -> None:
        http = Http(tls=TRUST)
        try:
            given = {"url": url, "key": ADMIN_KEY}
            collector = openai.make(SourceContext("chat", "m", http, SetClock(float(NOW)), Sessions(), given))
            await collector.read(ScrapeTarget("chat", url))
        finally:
            await http.aclose()

    with serve(handler) as there, pytest.raises(CollectError) as refused:
        asyncio.run(main(there.url))
    assert refused.value.kind == kind
