"""Vendors' own cost reports: read now and then, kept by the day, and set beside what Flyball reckons for the same days."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
import structlog

from agent import spend
from agent.settings import BillSettings, EndpointSettings, Settings
from agent.store import Store, bills, control
from agent.store.control import Lead
from agent.wiring import Environment
from collectors.azure.client import shared
from collectors.azure.costs import AzureCosts
from collectors.azure.credentials import AzureAccount
from collectors.billing import DAY_S, CostReport
from collectors.bills.anthropic import URL as ANTHROPIC
from collectors.bills.anthropic import AnthropicCosts
from collectors.bills.litellm import LiteLLMSpend
from collectors.bills.openai import URL as OPENAI
from collectors.bills.openai import OpenAICosts
from collectors.window import CollectError

log = structlog.get_logger()

#: Vendors correct their reports for days: so far back is read again each time.
BACK_S = 31 * DAY_S
#: A day whose windows lack more of it than this is not compared.
_SOME_HOURS = 0.1
_Write = Callable[[], AbstractContextManager[sa.Connection]]


def report_of(bill: BillSettings, environment: Environment) -> CostReport:
    """The reader of one endpoint's report. Raises CollectError ``credentials``."""
    http, key = environment.http.call, bill.key
    if bill.vendor == "azure":
        where = {} if bill.url is None else {"arm_url": bill.url}
        account = AzureAccount(credential="default" if key is None else "token", token=key, **where)
        assert bill.scope is not None
        subscription = bill.scope.split("/")[2]
        client = shared(environment.sessions, subscription, account, http, environment.clock)
        return AzureCosts(client, bill.scope, bill.only)
    assert key is not None
    if bill.vendor == "litellm":
        assert bill.url is not None
        return LiteLLMSpend(http, key, bill.url, bill.only)
    if bill.vendor == "anthropic":
        return AnthropicCosts(http, key, bill.only, bill.url or ANTHROPIC)
    return OpenAICosts(http, key, bill.only, bill.url or OPENAI)


async def cycle(store: Store, settings: Settings, environment: Environment, lead: Lead) -> None:
    """Read every endpoint's bill. Raises LostLease."""
    await _read_all(settings.endpoints, environment, lambda: control.leading(store, lead))


async def read(store: Store, endpoints: list[EndpointSettings], environment: Environment) -> None:
    """Read the bills of these endpoints: a person's own wish, beside a daemon or without one."""
    await _read_all(endpoints, environment, store.write)


async def _read_all(endpoints: list[EndpointSettings], environment: Environment, write: _Write) -> None:
    for endpoint in endpoints:
        if endpoint.bill is None:
            continue
        now = environment.clock.now()
        end = now // DAY_S * DAY_S
        days, why = [], ""
        try:
            days = await report_of(endpoint.bill, environment).days(end - BACK_S, end)
        except CollectError as error:
            why = str(error)
            log.warning("bill_unread", endpoint=endpoint.name, vendor=endpoint.bill.vendor, why=why)

        def keep(name: str = endpoint.name, vendor: str = endpoint.bill.vendor) -> None:
            with write() as db:
                bills.keep(db, name, vendor, days, now)  # noqa: B023  ends before the next round
                control.put(db, _key(name), {"why": why}, now, vendor)  # noqa: B023

        await asyncio.to_thread(keep)


def _key(endpoint: str) -> str:
    return f"bill/{endpoint}"


def compared(
    db: sa.Connection, settings: Settings, endpoint: EndpointSettings, start: float, end: float
) -> dict[str, Any] | None:
    """The bill beside what Flyball reckons, over the days of which both are wholly known, as JSON. None: no bill is to be read.

    Days of which the one or the other is not known are counted, and compared with nothing.
    """
    if endpoint.bill is None:
        return None
    first = -(-start // DAY_S) * DAY_S
    billed = ours = 0.0
    days = 0
    found = bills.listed(db, endpoint.name, first, end // DAY_S * DAY_S)
    for row in found:
        day = spend.of_endpoint(db, settings, endpoint, row["day"], row["day"] + DAY_S)
        if day["usd"] is None or "price" in day["lacking"] or day["hours_without_a_window"] > _SOME_HOURS:
            continue
        days, billed, ours = days + 1, billed + row["usd"], ours + day["usd"]
    whole = max(0, int((end // DAY_S * DAY_S - first) / DAY_S))
    last = control.get(db, _key(endpoint.name))
    return {
        "vendor": endpoint.bill.vendor,
        "days": days,
        "days_not_compared": whole - days,
        "billed_usd": billed if days else None,
        "reckoned_usd": ours if days else None,
        "difference_usd": billed - ours if days else None,
        "read_at": last["at"] if last else None,
        "why": last["value"]["why"] if last else "its bill was not read yet",
    }
