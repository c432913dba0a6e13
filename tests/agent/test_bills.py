"""Vendors' bills in the store, and beside what Flyball reckons: only days of which both are wholly known are compared."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from agent import bills, spend
from agent.clock import VirtualClock
from agent.report import summary
from agent.settings import BillSettings, Settings
from agent.store import Store, control, windows
from agent.store import bills as table
from agent.wiring import Environment
from analyzers.money import Tariff, Unit
from collectors.billing import DAY_S, BilledDay
from collectors.http import Http
from collectors.window import Window
from tests.collectors.servers import TRUST, answering, serve

D0 = 1_799_971_200.0  # 2027-01-15, 0:00 UTC
NOW = D0 + 3 * DAY_S + 3600.0
HOUR = 3600.0


def settings(url: str, **bill: Any) -> Settings:
    stated = {"vendor": "litellm", "key": "sk-1", "url": url, **bill}
    return Settings.model_validate({"endpoints": [{"name": "chat", "url": "http://127.0.0.1:1", "bill": stated}]})


def hours(store: Store, day: int, count: int, usd_per_hour: float | None = 1.0) -> None:
    """Hourly windows of a day, from its start on."""
    rows = [
        Window("chat", "vllm", D0 + day * DAY_S + HOUR * i, HOUR, 1.0, counts={"requests": 10.0}) for i in range(count)
    ]
    with store.write() as db:
        windows.save(db, rows, {"chat": Tariff.of({Unit.HOUR: usd_per_hour})})


def billed(store: Store, *usd: float) -> None:
    with store.write() as db:
        table.keep(db, "chat", "litellm", [BilledDay(D0 + i * DAY_S, v) for i, v in enumerate(usd)], NOW)


def compared(store: Store, chosen: Settings, end: float = NOW) -> dict[str, Any]:
    with store.read() as db:
        found = bills.compared(db, chosen, chosen.endpoints[0], D0 - HOUR, end)
    assert found is not None
    return found


def test_whole_days_are_compared_and_others_counted(store: Store) -> None:
    chosen = settings("http://127.0.0.1:1")
    hours(store, 0, 24)
    hours(store, 1, 23)  # an hour of it nobody saw
    hours(store, 2, 24, None)  # no price
    billed(store, 25.0, 24.0, 24.0)
    found = compared(store, chosen)
    assert (found["days"], found["days_not_compared"]) == (1, 2)
    assert (found["billed_usd"], found["reckoned_usd"]) == (25.0, pytest.approx(24.0))
    assert found["difference_usd"] == pytest.approx(1.0)
    with store.read() as db:
        day = spend.of_endpoint(db, chosen, chosen.endpoints[0], D0, D0 + DAY_S)
    assert day["usd"] == found["reckoned_usd"]


def test_without_a_bill_nothing_is_compared_and_nothing_is_zero(store: Store) -> None:
    hours(store, 0, 24)
    found = compared(store, settings("http://127.0.0.1:1"))
    assert (found["billed_usd"], found["difference_usd"], found["days"]) == (None, None, 0)
    assert found["why"] == "its bill was not read yet"
    plain = Settings.model_validate({"endpoints": [{"name": "chat", "url": "http://127.0.0.1:1"}]})
    with store.read() as db:
        assert bills.compared(db, plain, plain.endpoints[0], D0, NOW) is None


def test_a_later_reading_counts(store: Store) -> None:
    billed(store, 5.0)
    billed(store, 7.0)
    with store.read() as db:
        assert [row["usd"] for row in table.listed(db, "chat", D0, NOW)] == [7.0]


def read(store: Store, chosen: Settings) -> None:
    async def main() -> None:
        http = Http(tls=TRUST)
        environment = Environment(http, VirtualClock(NOW))
        with store.write() as db:
            lead = control.acquire(db, "leader", "me", 1e9)
        assert lead is not None
        try:
            await bills.cycle(store, chosen, environment, lead)
        finally:
            await http.aclose()

    asyncio.run(main())


def test_a_bill_is_read_kept_and_reported(store: Store) -> None:
    rows = [
        {"startTime": datetime.fromtimestamp(D0 + i * DAY_S, UTC).strftime("%Y-%m-%d"), "spend": 20.0 + i, "users": {}, "models": {}}
        for i in range(3)
    ]  # fmt: skip
    hours(store, 0, 24)
    with serve(answering(json.dumps(rows), kind="application/json")) as there:
        chosen = settings(there.url)
        read(store, chosen)
        (asked,) = there.requests
    assert asked.headers["authorization"] == "Bearer sk-1"
    found = summary(store, chosen, start=D0, end=NOW, now=NOW)["endpoints"][0]["bill"]
    assert (found["days"], found["difference_usd"], found["why"]) == (1, pytest.approx(-4.0), "")
    assert found["read_at"] == NOW


def test_a_bill_that_cannot_be_read_says_why_and_keeps_what_was(store: Store) -> None:
    billed(store, 25.0)
    hours(store, 0, 24)
    with serve(answering("no", status="403 Forbidden")) as there:
        chosen = settings(there.url)
        read(store, chosen)
    found = compared(store, chosen)
    assert found["billed_usd"] == 25.0
    assert "403" in found["why"]
    assert "sk-1" not in found["why"]


@pytest.mark.parametrize(
    "stated",
    [
        {"vendor": "openai"},
        {"vendor": "litellm", "key": "k"},
        {"vendor": "azure"},
        {"vendor": "azure", "scope": "here"},
        {"vendor": "else", "key": "k"},
    ],
)
def test_what_a_report_needs_is_asked_for(stated: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"endpoints": [{"name": "chat", "url": "http://127.0.0.1:1", "bill": stated}]})


def test_each_vendors_reader_is_made_from_its_settings() -> None:
    vendors = {
        "openai": {"key": "k"},
        "anthropic": {"key": "k"},
        "litellm": {"key": "k", "url": "http://127.0.0.1:1"},
        "azure": {"key": "k", "scope": "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/rg"},
    }
    environment = Environment(Http(tls=TRUST), VirtualClock(NOW))
    for vendor, stated in vendors.items():
        assert bills.report_of(BillSettings.model_validate({"vendor": vendor, **stated}), environment).vendor == vendor
