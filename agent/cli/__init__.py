"""The command line. Each command is thin: it opens the store, calls what the daemon and the pages call, and prints.

Heavy modules are imported where they are used, so that `flyball --help` and the listings answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from agent.cli import (
    advise,
    audit,
    calibrate,
    discover,
    emulate,
    findings,
    forecast,
    inspect,
    jobs,
    operate,
    recorder,
    reference,
    savings,
    schedules,
    scorecard,
    setup,
    simulate,
    slack,
    spend,
    tune,
    watch,
    whatif,
)
from agent.cli.output import fail

app = typer.Typer(
    name="flyball",
    help="The governor for deployed AI models: watches, replays, resizes with approval, verifies, and undoes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"flyball {version('flyball')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """The governor for deployed AI models: watches, replays, resizes with approval, verifies, and undoes."""


setup.add(app)
discover.add(app)
operate.add(app)
inspect.add(app)
watch.add(app)
audit.add(app)
schedules.add(app)
findings.add(app)
reference.add(app)
forecast.add(app)
recorder.add(app)
scorecard.add(app)
savings.add(app)
spend.add(app)
slack.add(app)
simulate.add(app)
whatif.add(app)
advise.add(app)
jobs.add(app)
tune.add(app)
calibrate.add(app)
emulate.add(app)
#: The commands as people need them.
PANELS: Mapping[str, tuple[str, ...]] = {
    "Begin": ("demo", "init", "check", "discover", "permissions", "slack"),
    "Run": ("run", "status", "pause", "resume", "deploy", "db"),
    "See": (
        "watch",
        "endpoints",
        "findings",
        "forecast",
        "scorecard",
        "reference",
        "spend",
        "savings",
        "report",
        "recorder",
    ),
    "Decide": ("recommendations", "changes", "schedules", "unfreeze", "audit"),
    "Ask what if, and measure": ("whatif", "advise", "jobs", "simulate", "tune", "calibrate", "emulate"),
}


def _arrange() -> None:
    """Put each command under its panel."""
    places = {name: panel for panel, names in PANELS.items() for name in names}
    for command in app.registered_commands:
        assert command.callback is not None
        command.rich_help_panel = places[command.name or command.callback.__name__]
    for group in app.registered_groups:
        group.rich_help_panel = places[str(group.name)]


_arrange()


def main() -> None:
    """The entry point: errors that a person can mend are one line each, and exit code 2."""
    try:
        app()
    except SystemExit:
        raise  # how every command ends; it must not make the next line load anything
    except _mendable() as error:
        for problem in getattr(error, "problems", (error,)):
            fail(str(problem))
        sys.exit(2)


def _mendable() -> tuple[type[Exception], ...]:
    """Asked only once a command failed: by then what it needed is loaded anyway."""
    from agent.configfile import BadSettings
    from agent.plugins import PluginError
    from agent.store import StoreError

    return BadSettings, PluginError, StoreError
