"""`flyball forecast`: the load of the next day, by which model, and how well that model has done here."""

from __future__ import annotations

from datetime import UTC, datetime
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
    fail,
    number,
    print_json,
    stdout,
    table,
    text,
    write,
)

#: Characters of the longest bar.
_BAR = 28


def add(app: typer.Typer) -> None:
    app.command()(forecast)


def forecast(
    endpoint: Annotated[str, typer.Option("--endpoint", "-e", help="One of the settings' endpoints.")],
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
    html: Annotated[Path | None, typer.Option("--html", help="Also as one HTML file with a chart.")] = None,
) -> None:
    """The load of the next day: by which model, how well it has done on this endpoint, and within which interval.

    Exit code 1 where no load is known yet.
    """
    from agent import forecasts
    from agent.clock import WallClock
    from agent.horizon import load_history
    from analyzers.forecast.forecast import learned_forecast

    now = WallClock().now()
    with opened(config) as (store, settings):
        named(endpoint, settings)
        chosen = settings.endpoint(endpoint)
        history = load_history(store, settings, chosen, now)
        found, _ = learned_forecast(history, chosen.policy.growth, {})
    if found is None:
        raise fail(f"{endpoint}: no load is known yet; a quarter of an hour of telemetry is needed", 1)
    view = forecasts.describe(chosen, history, found)
    if html is not None:
        write("--html", html, forecasts.page(view, now))
    if output is Output.json:
        print_json(view)
    else:
        _print(view, forecasts.by_hour(view))


def _print(view: dict[str, Any], hours: list[dict[str, float]]) -> None:
    from analyzers.words import lasting

    error, held = view["error"], view["held"]
    tested = (
        f"; on this endpoint's own past it was off by {error:.1%} of the load, and its interval held {held:.0%} of the time"
        if error is not None and held is not None
        else ""
    )
    stdout.print(
        f"{text(view['endpoint'])}: {text(view['model'])}, from {lasting(view['seen_s'])} of load{tested}",
        soft_wrap=True,
        highlight=False,
    )
    if view["season_s"] is None:
        hours = hours[:1]  # each is like the next
    top = max(row["high"] for row in hours) or 1.0
    rows = [
        [
            datetime.fromtimestamp(row["start"], UTC).strftime("%a %H:%M"),
            number(row["mid"]),
            f"{number(row['low'])} to {number(row['high'])}",
            _bar(row, top),
        ]
        for row in hours
    ]
    table("Requests a second, by hour (UTC)", ["from", "expected", "80 % interval", ""], rows, "")
    if len(view["backtest"]) > 1:
        scores = [
            [
                text(b["model"]),
                f"{b['error']:.1%}",
                "chosen" if b["model"] == view["model"] else "the bar" if i == 0 else "",
            ]
            for i, b in enumerate(view["backtest"])
        ]
        table("Tested on the past", ["model", "error", ""], scores, "")
    for note in view["notes"]:
        console.print(f"note: {text(note)}", soft_wrap=True, highlight=False)


def _bar(row: dict[str, float], top: float) -> str:
    """What is expected as a solid bar, and what may come beside it as a light one."""
    solid, light = (round(_BAR * row[end] / top) for end in ("mid", "high"))
    return "█" * solid + "░" * (light - solid)
