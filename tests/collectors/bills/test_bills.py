"""Vendors' cost reports against strict stand-ins, built after the vendors' documentation: what they are asked, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from pydantic import SecretStr

from collectors.billing import DAY_S, BilledDay
from collectors.bills.anthropic import AnthropicCosts
from collectors.bills.litellm import LiteLLMSpend
from collectors.bills.openai import OpenAICosts
from collectors.http import HttpAnswer
from collectors.window import CollectError

D0 = 1_799_971_200.0  # 2027-01-15, 0:00 UTC
KEY = SecretStr("sk-admin-1")
Answer = tuple[int, Any]


@dataclass
class Vendor:
    """Answers what its handler says; knows its key. Any other address is 404."""

    path: str
    header: tuple[str, str]
    handler: Callable[[Mapping[str, str]], Answer]
    asked: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, method: str, url: str, **options: Any) -> HttpAnswer:
        parts, headers = urlsplit(url), options.get("headers") or {}
        assert method == "GET"
        query = dict(parse_qsl(parts.query, strict_parsing=True))
        name, wanted = self.header
        if parts.path != self.path:
            status, body = 404, {"error": "not found"}
        elif headers.get(name) != wanted:
            status, body = 401, {"error": {"message": "invalid key"}}
        else:
            self.asked.append(query)
            status, body = self.handler(query)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return HttpAnswer(status, {}, text, 0.01, url)


def read(report: Any, days: int = 3) -> list[BilledDay]:
    return asyncio.run(report.days(D0, D0 + days * DAY_S))


def date(day: int) -> str:
    return datetime.fromtimestamp(D0 + day * DAY_S, UTC).strftime("%Y-%m-%d")


# -- OpenAI --------------------------------------------------------------------------------------------------------------


def bucket(day: int, *usd: float, currency: str = "usd") -> dict[str, Any]:
    results = [
        {"object": "organization.costs.result", "amount": {"value": v, "currency": currency}, "line_item": None}
        for v in usd
    ]
    start = int(D0 + day * DAY_S)
    return {"object": "bucket", "start_time": start, "end_time": start + int(DAY_S), "results": results}


def openai(handler: Callable[[Mapping[str, str]], Answer]) -> Vendor:
    return Vendor("/v1/organization/costs", ("authorization", f"Bearer {KEY.get_secret_value()}"), handler)


def page(*buckets: dict[str, Any], after: str | None = None) -> Answer:
    return 200, {"object": "page", "data": list(buckets), "has_more": after is not None, "next_page": after}


def test_openais_pages_add_up_by_the_day_and_a_day_of_nothing_is_told() -> None:
    pages = {"": page(bucket(0, 1.5, 0.25), after="p2"), "p2": page(bucket(1), bucket(2, 4.0))}
    vendor = openai(lambda query: pages[query.get("page", "")])
    found = read(OpenAICosts(vendor, KEY, "proj_1"))
    assert found == [BilledDay(D0, 1.75), BilledDay(D0 + DAY_S, 0.0), BilledDay(D0 + 2 * DAY_S, 4.0)]
    assert vendor.asked[0] == {
        "start_time": str(int(D0)), "end_time": str(int(D0 + 3 * DAY_S)), "bucket_width": "1d", "limit": "31", "project_ids": "proj_1",
    }  # fmt: skip


def test_a_day_that_is_not_told_is_absent_and_no_zero() -> None:
    assert read(OpenAICosts(openai(lambda _: page(bucket(1, 2.0))), KEY)) == [BilledDay(D0 + DAY_S, 2.0)]


def test_days_beyond_what_was_asked_are_left_out() -> None:
    assert read(OpenAICosts(openai(lambda _: page(bucket(-1, 9.0), bucket(0, 1.0), bucket(3, 9.0))), KEY)) == [
        BilledDay(D0, 1.0)
    ]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (page(bucket(0, 1.0, currency="eur")), "currency"),
        ((200, {"data": "none"}), "protocol"),
        ((200, b"<html>"), "protocol"),
        ((200, {"data": [{"results": []}]}), "protocol"),
        ((200, {"data": [{**bucket(0), "results": [{"amount": "1.0"}]}]}), "protocol"),
        ((200, {"data": [bucket(0, float("nan"))]}), "protocol"),
        ((429, {"error": "slow down"}), "http_4xx"),
        ((500, b""), "http_5xx"),
    ],
)
def test_what_is_no_report_is_an_error_with_its_kind(answer: Answer, kind: str) -> None:
    with pytest.raises(CollectError) as refused:
        read(OpenAICosts(openai(lambda _: answer), KEY))
    assert refused.value.kind == kind


def test_a_wrong_key_is_refused_and_not_shown() -> None:
    with pytest.raises(CollectError) as refused:
        read(OpenAICosts(openai(lambda _: page()), SecretStr("sk-wrong")))
    assert refused.value.kind == "http_401"
    assert "sk-wrong" not in str(refused.value)


def test_pages_without_end_are_given_up() -> None:
    with pytest.raises(CollectError, match="loop"):
        read(OpenAICosts(openai(lambda _: page(bucket(0), after="again")), KEY))


# -- Anthropic -----------------------------------------------------------------------------------------------------------


def anthropic(handler: Callable[[Mapping[str, str]], Answer]) -> Vendor:
    return Vendor("/v1/organizations/cost_report", ("x-api-key", KEY.get_secret_value()), handler)


def report(day: int, *items: tuple[str, str | None]) -> dict[str, Any]:
    results = [{"amount": cents, "currency": "USD", "workspace_id": workspace} for cents, workspace in items]
    return {"starting_at": f"{date(day)}T00:00:00Z", "ending_at": f"{date(day + 1)}T00:00:00Z", "results": results}


def test_anthropics_amounts_are_cents_as_text_and_workspaces_are_told_apart() -> None:
    pages = {
        "": page(report(0, ("123.45", "wrkspc_1"), ("900", None)), after="x"),
        "x": page(report(1, ("50", "wrkspc_1"))),
    }
    vendor = anthropic(lambda query: pages[query.get("page", "")])
    assert read(AnthropicCosts(vendor, KEY, "wrkspc_1")) == [
        BilledDay(D0, pytest.approx(1.2345)),  # type: ignore[arg-type]
        BilledDay(D0 + DAY_S, pytest.approx(0.5)),  # type: ignore[arg-type]
    ]
    assert vendor.asked[0]["group_by[]"] == "workspace_id"
    assert vendor.asked[0]["starting_at"] == f"{date(0)}T00:00:00Z"
    whole = read(AnthropicCosts(vendor, KEY))
    assert whole[0].usd == pytest.approx(10.2345)


# -- LiteLLM -------------------------------------------------------------------------------------------------------------


def litellm(rows: list[dict[str, Any]]) -> Vendor:
    return Vendor("/spend/logs", ("authorization", f"Bearer {KEY.get_secret_value()}"), lambda _: (200, rows))


def day(number: int, **models: float) -> dict[str, Any]:
    return {
        "startTime": date(number),
        "spend": sum(models.values()),
        "users": {"u": 1.0},
        "models": models,
        "88dc28": 1.0,
    }


def test_litellms_days_and_one_model_of_them() -> None:
    rows = [day(0, chat=1.0, code=2.0), day(1, code=4.0), day(3, chat=9.0)]
    vendor = litellm(rows)
    assert [d.usd for d in read(LiteLLMSpend(vendor, KEY, "http://proxy"))] == [3.0, 4.0]
    assert vendor.asked == [{"start_date": date(0), "end_date": date(3)}]
    assert [d.usd for d in read(LiteLLMSpend(vendor, KEY, "http://proxy/", "chat"))] == [1.0, 0.0]


def test_a_proxy_without_a_database_is_an_error() -> None:
    vendor = Vendor(
        "/spend/logs",
        ("authorization", f"Bearer {KEY.get_secret_value()}"),
        lambda _: (500, {"error": {"message": "Database not connected"}}),
    )
    with pytest.raises(CollectError) as refused:
        read(LiteLLMSpend(vendor, KEY, "http://proxy"))
    assert refused.value.kind == "http_5xx"


def test_rows_of_single_requests_are_no_days() -> None:
    with pytest.raises(CollectError, match="no day"):
        read(LiteLLMSpend(litellm([{"request_id": "r1", "spend": 1.0}]), KEY, "http://proxy"))


# -- Azure ---------------------------------------------------------------------------------------------------------------

SUBSCRIPTION = "/subscriptions/11111111-2222-4333-8444-555555555555"


@dataclass
class CostManagement:
    """Takes the one query that is documented, and answers in two pages."""

    pages: list[Any]
    asked: list[Any] = field(default_factory=list)

    async def __call__(self, method: str, url: str, **options: Any) -> HttpAnswer:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        assert (method, parts.path) == ("POST", f"{SUBSCRIPTION}/providers/Microsoft.CostManagement/query")
        assert query["api-version"] == "2025-03-01"
        assert options["headers"]["authorization"] == "Bearer t"
        body = json.loads(options["content"])
        assert set(body) == {"type", "timeframe", "timePeriod", "dataset"}
        self.asked.append(body)
        answer = self.pages[int(query.get("$skiptoken", 0))]
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return HttpAnswer(status, {}, json.dumps(body).encode(), 0.01, url)


def azure(http: CostManagement, resource: str | None = None) -> Any:
    from agent.clock import VirtualClock
    from collectors.azure.client import AzureClient
    from collectors.azure.costs import AzureCosts
    from collectors.azure.credentials import AzureAccount

    account = AzureAccount(credential="token", token=SecretStr("t"))
    return AzureCosts(AzureClient(SUBSCRIPTION.split("/")[2], account, http, VirtualClock(D0)), SUBSCRIPTION, resource)


def answer(
    *rows: list[Any], after: int | None = None, columns: tuple[str, ...] = ("Cost", "UsageDate", "Currency")
) -> Any:
    link = f"https://management.azure.com{SUBSCRIPTION}/providers/Microsoft.CostManagement/query?api-version=2025-03-01&$skiptoken={after}"
    return {
        "properties": {
            "columns": [{"name": name, "type": "String"} for name in columns],
            "rows": list(rows),
            "nextLink": link if after is not None else None,
        }
    }


def test_azures_rows_add_up_by_the_day_over_pages() -> None:
    first, second = 20270115, 20270116
    http = CostManagement([answer([1.5, first, "USD"], [0.5, second, "USD"], after=1), answer([2.0, second, "USD"])])
    assert read(azure(http, f"{SUBSCRIPTION}/x")) == [BilledDay(D0, 1.5), BilledDay(D0 + DAY_S, 2.5)]
    assert http.asked[0]["timePeriod"] == {"from": f"{date(0)}T00:00:00Z", "to": f"{date(2)}T23:59:59Z"}
    assert http.asked[0]["dataset"]["filter"] == {
        "dimensions": {"name": "ResourceId", "operator": "In", "values": [f"{SUBSCRIPTION}/x"]}
    }


@pytest.mark.parametrize(
    ("pages", "kind"),
    [
        ([answer([1.5, 20270115, "EUR"])], "currency"),
        ([answer([1.5, 20270115], columns=("Cost", "UsageDate"))], "protocol"),
        ([{"properties": {}}], "invalid"),
        ([(403, {"error": {"code": "AuthorizationFailed", "message": "no"}})], "denied"),
        ([(429, {"error": {"code": "429", "message": "Too many requests"}})], "throttled"),
    ],
)
def test_what_azure_does_not_tell_is_an_error_with_its_kind(pages: list[Any], kind: str) -> None:
    with pytest.raises(CollectError) as refused:
        read(azure(CostManagement(pages)))
    assert refused.value.kind == kind
