"""`flyball init`, `flyball check`, `flyball db`: before anything runs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    console,
    fail,
    print_json,
    stdout,
    text,
    warnings_on_stderr,
)

if TYPE_CHECKING:
    from agent.configfile import Problem


def add(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(check)
    database = typer.Typer(help="The database's schema.", no_args_is_help=True)
    database.command("upgrade")(db_upgrade)
    database.command("current")(db_current)
    app.add_typer(database, name="db")


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = DEFAULT_CONFIG,
    url: Annotated[
        str | None, typer.Option(help="Look at this server, and write what it tells: http://HOST:PORT.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the endpoint. Default: its model's.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="By reference, as it will stand in the file: '${VLLM_API_KEY}' or file:PATH.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="What it runs on, such as H100: a server seldom tells.")
    ] = None,
    usd_per_replica_hour: Annotated[float | None, typer.Option(min=0, help="What one replica costs.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a commented settings file to start from; with --url of a server, from what it tells.

    The server is only read: its metrics page and its list of models.
    """
    if path.exists() and not force:
        raise fail(f"{path} is there already; edit it, or write over it with --force", 2)
    stated = {
        "name": name,
        "api_key": api_key,
        "accelerator": accelerator,
        "usd_per_replica_hour": usd_per_replica_hour,
    }
    if url is None:
        if given := next((option for option, value in stated.items() if value is not None), None):
            raise fail(f"--{given.replace('_', '-')} is of the server at --url, which is not given", 2)
        settings = files("agent").joinpath("flyball.example.yaml").read_text(encoding="utf-8")
    else:
        settings = _of_server(url, path.parent, stated)
    try:
        path.write_text(settings, encoding="utf-8")
    except OSError as error:
        raise fail(f"{path} cannot be written: {error.strerror}", 2) from error
    if url is None:
        console.print(f"Wrote {path}. Set your endpoint's url and objective, then: flyball check -c {path} --live")
    else:
        stdout.print(text(settings), highlight=False, soft_wrap=True, end="")
        console.print(f"Wrote {path}. Set the objective and the price, then: flyball run -c {path}")


def _of_server(url: str, folder: Path, stated: dict[str, Any]) -> str:
    """The settings' text for the server there. Ends the command where nothing can be learned from it."""
    import asyncio

    from agent.configfile import BadSettings, secret_of
    from agent.first_settings import UnknownServer, describe, written

    try:
        key = None if stated["api_key"] is None else secret_of(stated["api_key"], folder)
        with warnings_on_stderr():
            found = asyncio.run(describe(url.rstrip("/"), key))
        return written(found, **stated)
    except (UnknownServer, BadSettings) as error:
        raise fail(str(error), 1 if isinstance(error, UnknownServer) else 2) from error


def check(
    config: ConfigOption = DEFAULT_CONFIG,
    live: Annotated[bool, typer.Option("--live", help="Also reach each endpoint, source and system once.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Validate the settings: every problem with its file, line, field, and what to do. Exit code 2 when there is one;
    notes change nothing.

    With --live it also prints what each endpoint says of itself: models, version, load, limits, and what the settings state otherwise.
    """
    import asyncio

    from agent.check import check_file, check_live, notes_of
    from agent.configfile import BadSettings, load
    from agent.snapshots import EndpointSnapshot

    seen: list[EndpointSnapshot] = []
    notes: list[Problem] = []
    try:
        loaded = load(config)
        problems = check_file(loaded)
        wrong = {problem.field for problem in problems}
        notes = [note for note in notes_of(loaded) if note.field not in wrong]
        if live and not problems:
            with warnings_on_stderr():
                problems, seen = asyncio.run(check_live(loaded))
    except BadSettings as error:
        problems = list(error.problems)
    if output is Output.json:
        fields = ("file", "line", "field", "what", "do")
        print_json(
            {
                "schema_version": 1,
                "ok": not problems,
                "problems": [{f: getattr(p, f) for f in fields} for p in problems],
                **({"endpoints": [snapshot.as_dict() for snapshot in seen]} if live else {}),
                "notes": [{f: getattr(n, f) for f in fields} for n in notes],
            }
        )
    else:
        for line in (line for snapshot in seen for line in snapshot.lines()):
            stdout.print(text(line), highlight=False, soft_wrap=True)
        for problem in problems:
            stdout.print(f"[red]error[/red] {text(problem)}", highlight=False, soft_wrap=True)
        for note in notes:
            stdout.print(f"note: {text(note)}", highlight=False, soft_wrap=True)
        if not problems:
            stdout.print(f"{text(config)}: fine{', and everything answers' if live else ''}", highlight=False)
    if problems:
        raise typer.Exit(2)


def db_upgrade(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Bring the schema to what this Flyball needs. Safe to call at any time, by several at once."""
    from agent.configfile import load
    from agent.store import Store

    store = Store(load(config).settings.database)
    stdout.print(f"{store.where} is at schema {store.upgrade()}", highlight=False, soft_wrap=True)


def db_current(config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.table) -> None:
    """Show the schema's revision, and the one that this Flyball needs."""
    from agent.configfile import load
    from agent.store import Store

    store = Store(load(config).settings.database)
    current, head = store.current(), store.head()
    if output is Output.json:
        print_json({"schema_version": 1, "database": store.where, "current": current, "needed": head})
    else:
        stdout.print(f"{store.where}: schema {current or 'none'}, needed {head}", highlight=False, soft_wrap=True)
