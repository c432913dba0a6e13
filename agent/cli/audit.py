"""`flyball audit`: who did, or was refused, what; and whether the record is whole."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli.inspect import opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    fail,
    moment,
    print_json,
    stdout,
    table,
    text,
)

#: A hash that is told, or expected, is no shorter than this.
_SHORTEST = 12


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="The record of who did, or was refused, what.", no_args_is_help=True)
    group.command("list")(audit_list)
    group.command("verify")(audit_verify)
    app.add_typer(group, name="audit")


def audit_list(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
    subject: Annotated[str | None, typer.Option(help="Only of this endpoint, recommendation or change.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 50,
) -> None:
    """The newest entries first."""
    from agent.store import audit

    with opened(config) as (store, _), store.read() as db:
        rows = audit.entries(db, subject, limit)
    if output is Output.json:
        return print_json({"schema_version": 1, "entries": list(rows)})
    told = [
        [moment(row["at"]), text(row["actor"]), text(row["action"]), text(row["subject"]), text(row["body"])]
        for row in rows
    ]
    table("Audit", ["when", "who", "did", "to", "with"], told, "Nothing was done yet.")
    return None


def audit_verify(
    config: ConfigOption = DEFAULT_CONFIG,
    expect: Annotated[
        str | None,
        typer.Option(help="A hash that an earlier run told: the chain must still hold it, or its end was cut off."),
    ] = None,
) -> None:
    """Follow the whole chain of hashes: exit code 1 where a row was altered, or is missing.

    Rows that were cut off the end leave a chain that holds: keep the last hash elsewhere, and give it as --expect.
    """
    from agent.store import audit

    if expect is not None and len(expect) < _SHORTEST:
        raise fail(f"--expect {expect}: at least {_SHORTEST} characters of a hash are needed", 2)
    with opened(config) as (store, _), store.read() as db:
        broken, newest = audit.verify(db), audit.last(db)
        kept = expect is None or audit.holds(db, expect)
    if broken is not None:
        raise fail(f"row {broken} was altered, or one before it is missing: nothing from there on is proven", 1)
    if not kept:
        raise fail(f"the chain holds no row {expect}: rows were cut off its end, or it is another chain", 1)
    stdout.print(f"intact, up to row {newest.id}: {newest.hash}", highlight=False, soft_wrap=True)
