"""`flyball scorecard`: the autoscalers on an endpoint's own days, beside a clairvoyant, and how they are best set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.inspect import opened
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
    write,
)


def add(app: typer.Typer) -> None:
    app.command()(scorecard)


def scorecard(
    endpoint: Annotated[str, typer.Option("--endpoint", "-e", help="One of the settings' endpoints.")],
    days: Annotated[int, typer.Option(min=1, max=28, help="So many of its last days.")] = 7,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="hpa-concurrency, hpa-queue, keda-waiting, kpa, ray-serve. Default: all of them."),
    ] = None,
    yaml_file: Annotated[
        Path | None, typer.Option("--yaml", help="Write what sets the best of them so, ready to apply.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Score autoscalers on an endpoint's own last days, each as documented and as it would have done best.

    What really came is replayed on the engine as it was learned from its windows. Settings are searched for on every other day, and
    all scores are of the days between. Wasted is what was paid above a clairvoyant's need.

    Exit code 1 where its telemetry supports no replay.
    """
    from agent import scorecards
    from agent.clock import WallClock
    from analyzers.autoscaling.rules import RULES
    from analyzers.grammar import BadQuestion
    from analyzers.prediction import CannotPredict
    from analyzers.strict import nearest

    rules = list(dict.fromkeys(rule or RULES))
    unknown = [name for name in rules if name not in RULES]
    if unknown:
        raise fail(f"--rule {unknown[0]}: {nearest(unknown[0], list(RULES))}", 2)
    asked = scorecards.ScorecardRequest(endpoint, days, rules)
    try:
        with opened(config) as (store, settings), console.status("reading") as status:
            view = scorecards.scorecard(store, settings, asked, WallClock().now(), status.update)
    except BadQuestion as error:
        raise fail(str(error), 2) from error
    except CannotPredict as refused:
        raise fail(str(refused)) from refused
    best = next((t for t in view["tuned"] if t["rule"] == view["best"]), None)
    if yaml_file is not None:
        if best is None:
            raise fail("none of them kept the objective: there is nothing to write")
        write("--yaml", yaml_file, _yaml(best))
    if output is Output.json:
        print_json(view)
    else:
        _print(view, best, shown=yaml_file is None)


def _yaml(tuned: dict[str, Any]) -> str:
    import yaml

    settings = ", ".join(f"{name} {value:g}" for name, value in tuned["settings"].items())
    made: str = yaml.safe_dump(tuned["manifest"], sort_keys=False)
    return f"# {tuned['title']}: {settings}\n{made}"


def _print(view: dict[str, Any], best: dict[str, Any] | None, *, shown: bool) -> None:
    dollars = view["unit"] == "usd"
    unit = "$" if dollars else "replica-hours"

    def amount(value: float) -> str:
        return f"${value:,.2f}" if dollars else f"{value:,.1f}"

    rows = [
        [
            text(row["name"]),
            amount(row["usd"]),
            "-" if row["name"] == "clairvoyant" else amount(row["wasted_usd"]),
            f"{row['within']:.2%}" if row["within"] >= view["within"] else f"[yellow]{row['within']:.2%}[/yellow]",
            str(row["minutes_missed"]),
            str(row["moves"]),
            str(row["flaps"]),
        ]
        for row in view["rows"]
    ]
    reported = [day for day in view["days"] if not day["learned"]]
    hours = sum(day["hours"] for day in reported)
    requests = sum(day["requests"] for day in reported)
    table(
        f"{text(view['endpoint'])}: {hours:.0f} h, {requests:,} requests; nobody could pay less than {amount(view['least'])}",
        ["policy", unit, "wasted", "in time", "minutes missed", "moves", "flaps"],
        rows,
        "",
    )
    for note in view["notes"]:
        console.print(f"note: {text(note)}", soft_wrap=True, highlight=False)
    if best is None:
        stdout.print(f"None of them kept {view['within']:.0%} of the requests within the objective.")
        return
    stdout.print(f"Cheapest that did: {text(best['title'])}, set so:" if shown else "")
    if shown:
        stdout.print(text(_yaml(best)), highlight=False, soft_wrap=True)
