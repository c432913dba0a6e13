"""`flyball savings`: what Flyball's changes saved, by the traffic that came; and whether that can be found again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agent.cli.inspect import named, opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    console,
    fail,
    print_json,
    stdout,
    table,
    text,
)


def add(app: typer.Typer) -> None:
    app.command()(savings)


def savings(
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", "-e", help="One of the settings' endpoints only.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Follow the chain, and compute each row again from the database.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """What Flyball's changes saved: the traffic that came, replayed on the shape that was given up.

    Exit code 1 where --verify finds a row that was altered or is missing, or that comes out otherwise.
    """
    from agent import views

    with opened(config) as (store, settings):
        if endpoint is not None:
            named(endpoint, settings)
        view = views.saving_list(store, endpoint_name=endpoint)
        if verify:
            view["verified"] = _verified(store, settings, endpoint)
    if output is Output.json:
        print_json(view)
    else:
        _print(view)
    if verify and not view["verified"]["holds"]:
        raise fail("the savings do not hold", 1)


def _verified(store: Any, settings: Any, endpoint: str | None) -> dict[str, Any]:
    from agent import attest
    from agent.store import savings as table_of

    with store.read() as db:
        rows = table_of.listed(db, endpoint=endpoint)
        broken_at, missing = table_of.altered(db), table_of.missing(db)
    found = []
    for row in rows:
        same, why = attest.recomputed(store, settings, row)
        found.append({"id": row["id"], "same": same, "why": why})
    return {
        "holds": broken_at is None and not missing and all(r["same"] is not False for r in found),
        "broken_at": broken_at,
        "missing": missing,
        "rows": found,
    }


def _print(view: dict[str, Any]) -> None:
    from analyzers.words import dollars, saved

    verified = {row["id"]: row for row in view.get("verified", {}).get("rows", ())}
    rows = [
        [
            text(s["endpoint"]),
            _day(s["since"]),
            text(f"{s['given_up_label']} → {s['serves_label']}"),
            "not known" if s["spent_usd"] is None else dollars(s["spent_usd"]),
            _interval(s["would_cost_usd"], dollars),
            _interval(s["saved_usd"], dollars),
            "-" if s["missed_s"] is None else f"{s['missed_s'] / 60:.0f} min",
            _interval(s["would_miss_s"], lambda seconds: f"{seconds / 60:.0f} min"),
            *([_again(verified[s["id"]])] if verified else []),
        ]
        for s in view["savings"]
    ]
    columns = [
        "endpoint",
        "since (UTC)",
        "given up → serves",
        "spent",
        "would have cost",
        "saved",
        "missed",
        "would have been",
    ]
    table("Savings", [*columns, *(["computed again"] if verified else [])], rows, "Nothing is attested yet.")
    total = view["total"]
    if total["periods"]:
        stdout.print(f"Flyball's changes {text(saved(total))}.", highlight=False, soft_wrap=True)
    for s in view["savings"]:
        for why in s["unknown"]:
            console.print(
                f"note: {text(s['endpoint'])}, {_day(s['since'])}: {text(why)}", soft_wrap=True, highlight=False
            )
    if view["broken_at"] is not None:
        console.print(f"row {view['broken_at']} was altered, or one before it is missing", highlight=False)
    for digest in view.get("verified", {}).get("missing", ()):
        console.print(f"a row is missing that the audit names: {digest[:12]}", highlight=False)


def _day(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _interval(value: dict[str, float] | None, said: Any) -> str:
    """The middle, and the ends of the 80 % interval where it has some."""
    if value is None:
        return "not known"
    low, mid, high = (said(value[end]) for end in ("low", "mid", "high"))
    return mid if low == high else f"{mid} ({low} to {high})"


def _again(row: dict[str, Any]) -> str:
    return {True: "the same", False: f"NO: {row['why']}", None: f"cannot: {row['why']}"}[row["same"]]
