"""`flyball spend`: what was really spent, tokens by their kind, and what 1,000 tokens cost at the rate that the objective allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.inspect import named, opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    console,
    duration,
    money,
    print_json,
    table,
    text,
)

if TYPE_CHECKING:
    from agent.settings import EndpointSettings, Settings
    from agent.store import Store


def add(app: typer.Typer) -> None:
    app.command()(spend)


def spend(
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", "-e", help="One of the settings' endpoints only.")
    ] = None,
    since: Annotated[str, typer.Option(help="How far back, such as 24h or 7d.")] = "7d",
    read_bills: Annotated[
        bool, typer.Option("--read-bills", help="Read the vendors' own reports now; a daemon does so four times a day.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """What was really spent: by the prices of each moment, tokens by their kind, and what is not known of it.

    Beside it what 1,000 tokens would cost at the highest rate at which the present shape meets the objective.
    """
    import asyncio

    from agent import bills
    from agent import spend as spending
    from agent.clock import WallClock

    now = WallClock().now()
    start = now - duration(since)
    with opened(config) as (store, settings):
        if endpoint is not None:
            named(endpoint, settings)
        chosen = [e for e in settings.endpoints if endpoint in (None, e.name)]
        if read_bills:
            asyncio.run(_read(store, settings, chosen))
        with store.read() as db:
            found = [spending.of_endpoint(db, settings, e, start, now) for e in chosen]
            compared = [bills.compared(db, settings, e, start, now) for e in chosen]
        for view, e, bill in zip(found, chosen, compared, strict=True):
            view["bill"] = bill
            view["at_objective"] = spending.at_objective(store, settings, e, now)
    answer = {"schema_version": spending.SCHEMA_VERSION, "start": start, "end": now, "endpoints": found}
    if output is Output.json:
        print_json(answer)
    else:
        _print(answer)


async def _read(store: Store, settings: Settings, chosen: list[EndpointSettings]) -> None:
    from agent import bills
    from agent.clock import WallClock
    from agent.wiring import Environment
    from collectors.http import Http

    clock = WallClock()
    http = Http(ca_file=settings.tls_ca_file, monotonic=clock.monotonic)
    environment = Environment(http, clock)
    try:
        await bills.read(store, chosen, environment)
    finally:
        await environment.sessions.aclose()
        await http.aclose()


def _print(answer: dict[str, Any]) -> None:
    rows = [
        [
            text(e["endpoint"]),
            money(e["usd"]) + (" and more" if e["usd"] is not None and e["lacking"] else ""),
            *(_kind(e["tokens"][kind]) for kind in ("input", "cached_input", "output")),
            money(e["usd_per_1k_tokens"]),
            money(e["usd_per_request"]),
            money(e["at_objective"]["usd_per_1k_tokens"]),
        ]
        for e in answer["endpoints"]
    ]
    columns = [
        "endpoint",
        "spent",
        "input tokens",
        "cached",
        "output",
        "$/1k tokens",
        "$/request",
        "$/1k at the objective's rate",
    ]
    table("Spent", columns, rows, "No endpoint is set.")
    tags = [
        [
            text(e["endpoint"]),
            "untagged" if part["tag"] is None else text(part["tag"]),
            f"{part['tokens']:,.0f}",
            f"{part['share']:.1%}",
            money(part["usd"]),
        ]
        for e in answer["endpoints"]
        for part in e["by_tag"]
    ]
    if tags:
        table("Whose it was", ["endpoint", "tag", "tokens", "share", "cost"], tags, "")
    billed = [[text(e["endpoint"]), *_bill(e["bill"])] for e in answer["endpoints"] if e["bill"] is not None]
    if billed:
        columns = ["endpoint", "vendor", "whole days", "billed", "reckoned", "difference", "not compared"]
        table("Beside the vendors' own reports", columns, billed, "")
    for e in answer["endpoints"]:
        if e["bill"] is not None and e["bill"]["why"]:
            console.print(f"note: {text(e['endpoint'])}: {text(e['bill']['why'])}", highlight=False, soft_wrap=True)
        if e["charged_usd"] is not None:
            console.print(
                f"note: {text(e['endpoint'])}: its source says that it charged {money(e['charged_usd'])}",
                highlight=False,
            )
        if e["lacking"]:
            console.print(
                f"note: {text(e['endpoint'])}: not known: {', '.join(e['lacking'])}", highlight=False, soft_wrap=True
            )
        if e["at_objective"]["why"]:
            why = text(e["at_objective"]["why"])
            console.print(
                f"note: {text(e['endpoint'])}: at the objective's rate: {why}", highlight=False, soft_wrap=True
            )


def _bill(found: dict[str, Any]) -> list[str]:
    share = "" if not found["reckoned_usd"] else f" ({found['difference_usd'] / found['reckoned_usd']:+.1%})"
    return [
        found["vendor"],
        str(found["days"]),
        money(found["billed_usd"]),
        money(found["reckoned_usd"]),
        money(found["difference_usd"]) + share,
        f"{found['days_not_compared']} days",
    ]


def _kind(found: dict[str, float | None]) -> str:
    """Tokens, and their cost where they have a price."""
    priced = f" ({money(found['usd'])})" if found["usd"] is not None else ""
    return "-" if found["tokens"] is None else f"{found['tokens']:,.0f}{priced}"
