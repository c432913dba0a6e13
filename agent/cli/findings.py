"""`flyball findings`: what is found, and what nobody wants to be told of any more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.inspect import named, opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    actor,
    console,
    duration,
    fail,
    moment,
    print_json,
    table,
    text,
)

EndpointArgument = Annotated[str, typer.Argument(help="The endpoint's name.")]
CodeArgument = Annotated[str, typer.Argument(help="The finding's code, such as LOW_OCCUPANCY.")]


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="What is found at endpoints, and what nobody wants to be told of.", no_args_is_help=True)
    group.command("list")(findings_list)
    group.command("suppress")(findings_suppress)
    group.command("snooze")(findings_snooze)
    group.command("resume")(findings_resume)
    app.add_typer(group, name="findings")


def findings_list(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
    endpoint: Annotated[str | None, typer.Option(help="Only of this endpoint.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that have passed.")] = False,
) -> None:
    """What is found now, most severe first; what is suppressed or snoozed is listed as such."""
    from agent import views
    from agent.clock import WallClock

    with opened(config) as (store, settings):
        if endpoint is not None:
            named(endpoint, settings)
        view = views.findings(store, WallClock().now(), endpoint, every=every)
    if output is Output.json:
        return print_json(view)
    rows = [
        [
            text(f["endpoint"]),
            text(f["code"]),
            f["severity"] if f["active"] else "passed",
            text(f["text"]) + (f"; {text(f['cause']['text'])}" if f.get("cause") else ""),
            moment(f["first_seen_at"]),
            moment(f["last_seen_at"]),
            _muted(f["muted"]),
        ]
        for f in view["findings"]
    ]
    columns = ["endpoint", "code", "severity", "what", "first seen", "last seen", "told"]
    table("Findings", columns, rows, "Nothing is found.")
    return None


def _muted(muted: Mapping[str, Any] | None) -> str:
    if muted is None:
        return "yes"
    until = "" if muted["until"] is None else f" until {moment(muted['until'])}"
    return f"{muted['how']}{until} by {text(muted['by'])}: {text(muted['reason'])}"


def findings_suppress(
    endpoint: EndpointArgument,
    code: CodeArgument,
    reason: Annotated[str, typer.Option(help="Why. It stands beside the finding, and in the audit.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Tell nobody of this finding of this endpoint any more. It is still listed."""
    _mute(config, endpoint, code, reason, None)


def findings_snooze(
    endpoint: EndpointArgument,
    code: CodeArgument,
    lasts: Annotated[
        float, typer.Option("--for", parser=duration, metavar="TIME", help="For so long: 4h, 7d.")
    ] = 86_400.0,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Tell nobody of this finding of this endpoint for a while."""
    _mute(config, endpoint, code, reason, lasts)


def _mute(config: Path, endpoint: str, code: str, reason: str, lasts_s: float | None) -> None:
    from agent.clock import WallClock
    from agent.store import fleet, mutes
    from analyzers.strict import nearest

    now = WallClock().now()
    with opened(config) as (store, settings):
        named(endpoint, settings)
        with store.write() as db:
            known = sorted({f["code"] for f in fleet.findings(db, endpoint, active=False)})
            if code not in known:
                raise fail(f"{endpoint} never had a finding {code}; {nearest(code, known)}", 2)
            until = None if lasts_s is None else now + lasts_s
            mutes.mute(db, endpoint, code, until=until, reason=reason, now=now, by=actor())
    how = "suppressed" if until is None else f"snoozed until {moment(until)}"
    console.print(f"{text(code)} of {text(endpoint)} is {how}; `flyball findings resume` tells of it again")


def findings_resume(endpoint: EndpointArgument, code: CodeArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Tell of this finding again."""
    from agent.clock import WallClock
    from agent.store import mutes

    with opened(config) as (store, settings):
        named(endpoint, settings)
        with store.write() as db:
            resumed = mutes.unmute(db, endpoint, code, now=WallClock().now(), by=actor())
    if not resumed:
        raise fail(f"{code} of {endpoint} is neither suppressed nor snoozed")
    console.print(f"{text(code)} of {text(endpoint)} is told of again")
