"""How things are printed: tables for people, JSON for programs."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from analyzers.words import dollars, plain
from collectors.durations import seconds_of

#: For messages; what was asked for goes to standard output.
console = Console(stderr=True)
stdout = Console()


class Output(StrEnum):
    table = "table"
    json = "json"


ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="FLYBALL_CONFIG", help="The settings file.", show_default=True)
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Tables for people, JSON for programs.")]
DEFAULT_CONFIG = Path("flyball.yaml")


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, sort_keys=False, default=str))


#: Of a column that need not be whole in its line, so much is.
_LEAST_COLUMN = 24


def table(title: str, columns: list[str], rows: list[list[str]], empty: str) -> None:
    """A table; on a terminal that is too narrow for one whose words are whole, each row below the other; one line where there is nothing."""
    if not rows:
        stdout.print(empty)
        return
    least = [_least_width(cells) for cells in zip(columns, *rows, strict=True)]
    if sum(least) + 3 * len(columns) + 1 > stdout.width:
        stdout.print(_stacked(title, columns, rows))
        return
    made = Table(title=title, title_justify="left", header_style="bold")
    for name, width in zip(columns, least, strict=True):
        made.add_column(name, overflow="fold", min_width=width)
    for row in rows:
        made.add_row(*row)
    stdout.print(made)


def _least_width(cells: Sequence[str]) -> int:
    """Of a column in which no word is broken: the longest word, and most of what stands in a short line."""
    plain = [Text.from_markup(cell).plain for cell in cells]
    words = max((len(word) for cell in plain for word in cell.split()), default=0)
    lines = max((len(line) for cell in plain[1:] for line in cell.splitlines()), default=0)
    return max(words, min(lines, _LEAST_COLUMN))


def _stacked(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Each row as its first cell, and below it the others with their names. What is not there is left out."""
    made = Table(
        title=title, title_justify="left", header_style="bold", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    made.add_column("", overflow="fold", min_width=max(map(len, [*columns[1:], *(row[0] for row in rows)])))
    made.add_column("", overflow="fold")
    for row in rows:
        made.add_row(f"[bold]{row[0]}[/bold]")
        for name, cell in zip(columns[1:], row[1:], strict=True):
            if cell not in ("", "-"):
                made.add_row(f"  [dim]{name}[/dim]", cell)
    return made


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """``-`` for what is not known."""
    return "-" if value is None else f"{plain(float(f'{value:.{digits}g}'))}{unit}"


def money(value: float | None) -> str:
    return "-" if value is None else dollars(value)


def moment(value: float | None) -> str:
    return "-" if value is None else datetime.fromtimestamp(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def text(value: Any) -> str:
    """Text from elsewhere, so that it cannot act as markup."""
    return "-" if value in (None, "") else escape(str(value))


def actor() -> str:
    """Who calls: the operating system's user."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:uid-{os.getuid()}"


def write(option: str, path: Path, content: str) -> None:
    """What was asked for with ``option`` (``--out ENGINE.json``), into its file. Exit code 2, with the reason, where it cannot be."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise fail(f"{option} {path}: cannot be written ({error.strerror})", 2) from error
    console.print(f"Wrote {text(path)}", highlight=False, soft_wrap=True)


def fail(message: str, code: int = 1) -> typer.Exit:
    """Print why, and return what is to be raised."""
    console.print(f"[red]error[/red] {escape(message)}", soft_wrap=True, highlight=False)
    return typer.Exit(code)


def read_as(now: str, old: Mapping[str, str | None]) -> list[str]:
    """What was given by options of an earlier Flyball, as the option ``now`` takes it; each is said on standard error."""
    given = {option: value for option, value in old.items() if value is not None}
    for option, value in given.items():
        console.print(f"note: {option} is read as {now} {text(value)}", highlight=False, soft_wrap=True)
    return list(given.values())


def renamed(option: str, value: str | None, now: str) -> None:
    """Refuse an option whose old name meant different things: it must be said which."""
    if value is not None:
        raise fail(f"{option} is called {now} here: a price says of what it is", 2)


def duration(value: str) -> float:
    """The parser of an option that is a duration: seconds, or 500ms, 5s, 2m, 1h, 7d."""
    try:
        return seconds_of(value)
    except ValueError as error:
        raise fail(str(error), 2) from error


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """What the daemon's own parts log stays out of standard output, which holds the answer; of it, only warnings are shown."""
    import logging

    import structlog

    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)
