"""Running: `flyball deploy`, `run`, `pause`, `resume`, `report`, `demo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    print_json,
    read_as,
    stdout,
    text,
    warnings_on_stderr,
    write,
)

if TYPE_CHECKING:
    from actuators.base import LiveState
    from agent.settings import Settings
    from agent.store import Store

_SHORTEST_REPORT_S = 60.0


def add(app: typer.Typer) -> None:
    app.command()(deploy)
    app.command()(run)
    app.command()(pause)
    app.command()(resume)
    app.command()(report)
    app.command()(demo)


def deploy(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")],
    config: ConfigOption = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Put an endpoint up in the shape that the settings state, through its own system. What runs already is left alone."""
    import asyncio

    from agent.configfile import load
    from agent.deploy import CannotDeploy
    from agent.store import Store

    settings = load(config).settings
    named(endpoint, settings)
    store = Store(settings.database)
    try:
        store.upgrade()  # deploying comes before the daemon's first start
        with warnings_on_stderr():
            live = asyncio.run(_deploy(store, settings, endpoint, yes))
    except CannotDeploy as error:
        raise fail(str(error)) from error
    finally:
        store.close()
    console.print(
        f"{text(endpoint)} is up: {text(live.shape.label())}{'' if live.ready else f', but {text(live.detail)}'}"
    )


async def _deploy(store: Store, settings: Settings, endpoint: str, yes: bool) -> LiveState:
    from agent.clock import WallClock
    from agent.deploy import carry_out, prepare
    from agent.wiring import Environment
    from collectors.http import Http

    clock = WallClock()
    http = Http(ca_file=settings.tls_ca_file, monotonic=clock.monotonic)
    try:
        deployment = await prepare(store, settings, settings.endpoint(endpoint), Environment(http, clock))
        plan = deployment.plan
        console.print(f"{text(endpoint)}: {text(plan.before.label())} → [bold]{text(plan.after.label())}[/bold]")
        for operation in plan.operations:
            console.print(f"  {text(operation.summary)} (at most {operation.deadline_s:.0f} s)", highlight=False)
        if not yes:
            typer.confirm("Deploy this?", abort=True)
        return await carry_out(
            deployment, store, clock, actor(), say=lambda line: console.print(text(line), highlight=False)
        )
    finally:
        await http.aclose()


def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the daemon until SIGTERM. SIGHUP reloads the settings; the closing of the terminal that it was begun on ends it."""
    from agent import daemon, logs
    from agent.check import check_file
    from agent.configfile import BadSettings, load

    loaded = load(config)
    problems = check_file(loaded)
    if problems:
        raise BadSettings(problems)
    logs.configure(loaded.settings.log_level)
    try:
        code = daemon.run(config)
    except daemon.CannotListen as error:
        raise fail(str(error)) from error
    raise typer.Exit(code)


def pause(
    config: ConfigOption = DEFAULT_CONFIG,
    reason: Annotated[str, typer.Option(help="Why, for the others.")] = "by hand",
) -> None:
    """Stop the next operation, whichever it is. Watching and proposing go on."""
    from agent.clock import WallClock
    from agent.store import control

    with opened(config) as (store, _), store.write() as db:
        control.pause(db, now=WallClock().now(), by=actor(), reason=reason)
    console.print("Paused: nothing is applied until `flyball resume`")


def resume(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Let operations go on."""
    from agent.clock import WallClock
    from agent.store import control

    with opened(config) as (store, _), store.write() as db:
        if not control.resume(db, now=WallClock().now(), by=actor()):
            raise fail("nothing is paused")
    console.print("Resumed")


class ReportForm(StrEnum):
    html = "html"
    markdown = "markdown"
    csv = "csv"


def report(
    config: ConfigOption = DEFAULT_CONFIG,
    since: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="DURATION", help="Of so long up to now: 7d, 36h. Default: 7d."),
    ] = None,
    days: Annotated[str | None, typer.Option(hidden=True)] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Where to write it; default: the settings' report directory.")
    ] = None,
    form: Annotated[
        ReportForm,
        typer.Option("--as", help="A page in one file, Markdown, or CSV; the last two are printed without --to."),
    ] = ReportForm.html,
    output: OutputOption = Output.table,
) -> None:
    """Write the report of the time up to now."""
    from agent.brief import as_csv, markdown
    from agent.clock import WallClock
    from agent.report import summary, weekly

    for old in read_as("--since", {"--days": days and (days if days[-1].isalpha() else f"{days}d")}):
        since = duration(old)
    now, span = WallClock().now(), 7 * 86_400.0 if since is None else since
    if span < _SHORTEST_REPORT_S:
        raise fail(
            f"--since {span:g}s: a report of less than {_SHORTEST_REPORT_S:g} s says nothing; give for instance 7d", 2
        )
    with opened(config) as (store, settings):
        if output is Output.json or form is not ReportForm.html:
            figures = summary(store, settings, start=now - span, end=now, now=now)
            if output is Output.json:
                return print_json(figures)
            told = (markdown if form is ReportForm.markdown else as_csv)(figures)
            return typer.echo(told, nl=False) if to is None else write("--to", to, told)
        path = weekly(store, settings, start=now - span, end=now, now=now, path=to)
    console.print(f"Wrote {text(path)}")
    return None


def demo(
    once: Annotated[
        bool | None,
        typer.Option(
            "--once/--stay",
            help="End when the story is told, or keep the page up. Default: stay where a terminal watches.",
        ),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where to leave everything; default: a new demo-... folder.")
    ] = None,
) -> None:
    """Show the whole loop on a small fleet of emulated endpoints, on this machine, in about two minutes."""
    from agent.demo import show

    raise typer.Exit(show(directory, once=not stdout.is_terminal if once is None else once))
