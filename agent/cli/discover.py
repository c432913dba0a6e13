"""`flyball discover`, `flyball permissions`: the first step with a vendor or a platform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import Output, OutputOption, console, fail, print_json, stdout, warnings_on_stderr, write

if TYPE_CHECKING:
    from collectors.discovery import Permission

SystemArgument = Annotated[
    str, typer.Argument(help="The system by name, such as azure-ml; docs/systems.md lists them.")
]
OptionOption = Annotated[
    list[str] | None, typer.Option("--option", help="One of the system's own options, as name=value. May be repeated.")
]


def add(app: typer.Typer) -> None:
    app.command()(discover)
    app.command()(permissions)


def discover(
    system: SystemArgument,
    option: OptionOption = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the entries. Default: standard output.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """List the endpoints that a system has, as entries for `endpoints` in the settings. Sends nothing but reads."""
    import asyncio

    from agent.discover import as_yaml, found_by

    with warnings_on_stderr():
        found, lacking = asyncio.run(found_by(system, options_of(option)))
    if output is Output.json:
        entries = [{"name": f.name, "note": f.note, "settings": dict(f.settings)} for f in found]
        print_json({"schema_version": 1, "system": system, "found": entries, "lacking": _as_rows(lacking)})
    elif out is not None:
        write("--out", out, as_yaml(found))
    elif found:
        typer.echo(as_yaml(found), nl=False)
    for permission in lacking:
        console.print(f"[yellow]lacks[/yellow] {_said(permission)}", highlight=False, soft_wrap=True)
    if not found:
        raise fail(f"{system}: nothing was found{'; see what is lacking above' if lacking else ''}")


def permissions(system: SystemArgument) -> None:
    """Print the least role, policy or manifest that Flyball needs there, ready to be applied."""
    from agent.discover import system_of

    stdout.print(system_of(system).permissions(), markup=False, highlight=False, soft_wrap=True, end="")


def options_of(given: Sequence[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise fail(f"--option {item!r}: write name=value", 2)
        options[name] = value
    return options


def _as_rows(lacking: Sequence[Permission]) -> list[dict[str, Any]]:
    return [{"name": p.name, "what_for": p.what_for, "granted": p.granted, "detail": p.detail} for p in lacking]


def _said(permission: Permission) -> str:
    from agent.cli.output import text

    why = f": {text(permission.detail)}" if permission.detail else ""
    return f"{text(permission.name)} (needed to {permission.what_for}){why}"
