"""The demo's end on the terminal: what was considered, what came of it, in one sentence what happened, and what to try now."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from actuators.shape import Shape, difference
from agent import views
from agent.cli.output import money, number, stdout, text
from agent.demo.cast import ROLES
from agent.settings import Settings
from agent.store import Store
from analyzers.money import per_month
from analyzers.words import heading

_SHOWN = ("ttft_p95_s", "itl_p95_s")


def tradeoffs(store: Store, settings: Settings, at: float) -> None:
    """What each considered shape would cost and do."""
    table = _table("Trade-offs: every shape that was considered", "$/month", "TTFT p95, s", "ITL p95, s", "verdict")
    for brief in views.recommendation_list(store)["recommendations"]:
        view = views.recommendation(store, settings, brief["id"], at)
        assert view is not None
        now = Shape.from_dict(view["recommendation"]["body"]["current"]["shape"])
        table.add_row(f"[bold]{brief['endpoint']}[/bold]")
        for o in view["recommendation"]["body"]["options"][:6]:
            style = {"chosen": "bold green", "current": "bold"}.get(o["verdict"], "dim")
            table.add_row(
                difference(now, Shape.from_dict(o["shape"])) or "as it is",
                money(per_month(o["money"]["per_hour"])),
                _interval(o, "ttft_p95_s"),
                _interval(o, "itl_p95_s"),
                o["verdict"].lower().replace("_", " "),
                style=style,
            )
    stdout.print(table)


def ledger(changes: Sequence[Mapping[str, Any]]) -> None:
    """Of each change what was promised and what was observed, and how it ended."""
    table = _table(
        "Ledger: promised and observed, in seconds; the report has every metric",
        "",
        "before",
        "promised",
        "observed",
        "promise",
    )
    for c in changes:
        rows = [r for r in c["ledger"] if r["metric"] in _SHOWN]
        for first, r in zip([f"[bold]{c['endpoint']}[/bold]", c["what"], *[""] * len(rows)], rows, strict=False):
            table.add_row(
                first,
                heading(r["metric"]),
                number(r["before"], digits=2),
                f"{number(r['low'], digits=2)} to {number(r['high'], digits=2)}",
                r["observed_text"],
                {"held": "[green]held[/green]", "missed": "[red]missed[/red]"}.get(r["verdict"], r["verdict"]),
            )
    stdout.print(table)
    for c in changes:
        stdout.print(f"[bold]{c['endpoint']}[/bold] {c['state'].replace('_', ' ')}: {text(c['state_reason'])}.")


def handover(summary: Mapping[str, Any], config: Path, page: str | None) -> None:
    """In one sentence what happened, what was made to fail, the proposal that is left, and commands for the store of ``config``.

    page: where the daemon's pages stay up; None: it has ended.
    """
    stdout.print(f"\n[bold]{text(what_happened(summary))}[/bold]", highlight=False)
    for role in ROLES:
        if role.harm and summary["story"][role.name]["came"] == "rolled_back":
            stdout.print(
                f"{role.name} was made to fail: {role.harm}. Flyball saw it, led it back, and proposes nothing for it until "
                f"`flyball unfreeze {role.name}`.",
                highlight=False,
            )
    waiting = _open(summary)
    for r in waiting:
        stdout.print(
            f"\nOne proposal is left for you: [bold]{r['endpoint']}[/bold] {text(r['what'])}, {_saving(r['saving_per_month'])}.",
            highlight=False,
        )
        if page is not None:
            stdout.print(f"Press Approve at {page}/recommendations/{r['id']}", highlight=False, soft_wrap=True)
    stdout.print("\nTo look around, also after the demo has ended:" if page is not None else "\nTo look around:")
    for words in commands(waiting, running=page is not None):
        stdout.print(f"  {_program()} {words} -c {shlex.quote(_short(config))}", highlight=False, soft_wrap=True)
    stdout.print()


def what_happened(summary: Mapping[str, Any]) -> str:
    """One sentence, by what came and not by what was expected."""
    changes = {c["endpoint"]: c for c in summary["changes"]}
    grown: list[str] = []
    smaller: list[str] = []
    alone: list[str] = []
    undone: list[str] = []
    for name, told in summary["story"].items():
        change = changes.get(name)
        if told["came"] == "right":
            alone.append(name)
        elif told["came"] == "succeeded" and change is not None:
            before, after = (change["outcome"][f"per_hour_{when}"] for when in ("before", "after"))
            saving = per_month(before - after) if before is not None and after is not None else None
            which = smaller if saving is not None and saving > 0 else grown
            which.append(f"{name}: {change['what']}, {_saving(saving)}")
        elif told["came"] == "rolled_back" and change is not None:
            undone.append(f"{name}: {change['what']}")
    parts = [
        f"enlarged {_many(grown, 'endpoint that was too small', 'endpoints that were too small')}" if grown else "",
        f"made {_many(smaller, 'endpoint smaller that was too large', 'endpoints smaller that were too large')}"
        if smaller
        else "",
        f"left {_many(alone, 'alone', 'alone')}" if alone else "",
        f"undid {_many(undone, 'change that did harm', 'changes that did harm')}" if undone else "",
    ]
    said = [part for part in parts if part]
    return (
        f"Flyball {', '.join(said[:-1])}{' and ' if said[1:] else ''}{said[-1]}."
        if said
        else "Flyball changed nothing."
    )


def commands(waiting: Sequence[Mapping[str, Any]], *, running: bool) -> list[str]:
    """The words after ``flyball``, each of which works on the demo's store."""
    shown = [f"recommendations show {r['id']}" for r in waiting]
    if running:
        shown += [f"recommendations approve {r['id']}" for r in waiting]
    return ["status", "endpoints", *shown, "changes list", "whatif --endpoint search --candidate replicas=1"]


def _open(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [r for r in summary["recommendations"] if r["state"] in ("proposed", "notified", "snoozed")]


def _many(which: Sequence[str], one: str, more: str) -> str:
    return f"{len(which)} {one if len(which) == 1 else more} ({'; '.join(which)})"


def _saving(usd: float | None) -> str:
    if usd is None:
        return "at a price that is not known"
    if abs(usd) < 0.5:
        return "at the same price"
    return f"{money(abs(usd))} a month {'less' if usd > 0 else 'more'} by the price list"


def _program() -> str:
    """How this Flyball is called from here."""
    called = Path(sys.argv[0])
    if called.name != "flyball":
        return f"{shlex.quote(sys.executable)} -m agent"
    found = shutil.which("flyball")
    return "flyball" if found is not None and Path(found).samefile(called) else shlex.quote(_short(called.absolute()))


def _short(path: Path) -> str:
    """From here, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _table(title: str, *columns: str) -> Table:
    """Of endpoints, and under each what differs: readable at 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("", min_width=16, overflow="fold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _interval(option: Mapping[str, Any], metric: str) -> str:
    interval = (option["prediction"] or {"metrics": {}})["metrics"].get(metric)
    return f"{interval['low']:.2g} to {interval['high']:.2g}" if interval else "-"
