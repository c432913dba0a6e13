"""`flyball recorder`: the requests that were told, without their content, and a trace of them for `flyball whatif`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.inspect import named, opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    console,
    duration,
    fail,
    moment,
    number,
    print_json,
    stdout,
    table,
    text,
)


def add(app: typer.Typer) -> None:
    group = typer.Typer(
        help="The flight recorder: requests as they came, without a token of what they said.", no_args_is_help=True
    )
    group.command("list")(recorder_list)
    group.command("export")(recorder_export)
    app.add_typer(group, name="recorder")


def recorder_list(config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.table) -> None:
    """What is recorded of each endpoint."""
    from agent.recorder import SCHEMA_VERSION
    from agent.store import flights

    with opened(config) as (store, _), store.read() as db:
        rows = flights.summaries(db)
    if output is Output.json:
        return print_json({"schema_version": SCHEMA_VERSION, "recorded": rows})
    columns = ["endpoint", "measured by", "requests", "first", "last", "with hashed prefixes"]
    cells = [
        [
            text(r["endpoint"]), r["side"], f"{r['requests']:,}", moment(r["first_at"]), moment(r["last_at"]), f"{r['with_prefixes']:,}",
        ]
        for r in rows
    ]  # fmt: skip
    table("Flight recorder", columns, cells, "Nothing is recorded; see docs/systems/otlp.md.")
    return None


def recorder_export(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")],
    out: Annotated[Path, typer.Option(help="The trace: CSV, or Parquet where the name ends in .parquet.")],
    since: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="How far back it begins: 1d, 90m.")
    ] = 86_400.0,
    until: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="How far back it ends. Default: now.")
    ] = 0.0,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Write the requests as a trace that `flyball whatif --trace` replays, and say what was seen of them.

    Exit code 1 where there is nothing to replay.
    """
    from agent import recorder
    from agent.clock import WallClock
    from collectors.traces import write_trace

    now = WallClock().now()
    with opened(config) as (store, settings):
        named(endpoint, settings)
        try:
            with store.read() as db:
                found = recorder.stretch(db, endpoint, now - since, now - until)
        except recorder.NoFlights as error:
            raise fail(str(error)) from error
    try:
        write_trace(found.workload, out)
    except OSError as error:
        raise fail(f"--out {out}: cannot be written ({error.strerror})", 2) from error
    answer = recorder.as_dict(endpoint, found)
    if output is Output.json:
        print_json(answer | {"trace": str(out)})
    else:
        _print(answer, out)


def _print(answer: dict[str, Any], out: Path) -> None:
    stdout.print(
        f"{answer['requests']:,} requests of {text(answer['endpoint'])}, {moment(answer['first_at'])} to {moment(answer['last_at'])}, "
        f"as the {answer['side']} measured them",
        highlight=False,
        soft_wrap=True,
    )
    names = (("TTFT", "ttft_s"), ("end to end", "e2e_s"), ("queue", "queue_s"))
    rows = [
        [name, *(number(seen[q], " s") for q in ("mean", "p50", "p95", "p99"))]
        for name, key in names
        if (seen := answer["seen"][key]) is not None
    ]
    table("Seen", ["", "mean", "p50", "p95", "p99"], rows, "No request tells its times.")
    for note in answer["notes"]:
        console.print(f"note: {text(note)}", soft_wrap=True, highlight=False)
    stdout.print(
        f"Wrote {text(out)}; replay it: flyball whatif --trace {text(out)} --engine ENGINE.json",
        highlight=False,
        soft_wrap=True,
    )
