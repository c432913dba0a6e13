"""`flyball reference`: each endpoint beside the reference server, for the same traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from agent.cli.inspect import named, opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    moment,
    money,
    number,
    print_json,
    stdout,
    table,
    text,
)


def add(app: typer.Typer) -> None:
    app.command()(reference)


def reference(
    name: Annotated[str | None, typer.Argument(help="Only this endpoint. Default: all.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """What the same traffic would take and cost on the reference server, and how much of that one idles."""
    from agent import views
    from agent.clock import WallClock

    with opened(config) as (store, settings):
        if name is not None:
            named(name, settings)
        view = views.references(store, settings, WallClock().now(), name)
    if output is Output.json:
        return print_json(view)
    for e in view["endpoints"]:
        _print_endpoint(e)
    rows = [
        [
            text(r["name"]),
            text(r["label"]),
            _share(r["use"]["idle_share"]),
            _share(r["use"]["occupancy"]),
            _share(r["use"]["gpu_usage"]),
            money(r["use"]["usd_per_month"]),
            money(r["use"]["idle_usd_per_month"]),
        ]
        for r in view["references"]
    ]
    columns = ["reference", "shape", "time without a request", "slots in use", "GPU at work", "$/month", "of it idle"]
    table("References", columns, rows, "No reference server stands: give one endpoint `role: reference`.")
    return None


def _print_endpoint(e: Mapping[str, Any]) -> None:
    found, lacks = e["comparison"], e["lacks"]
    if found is None:
        stdout.print(f"{text(e['name'])}: not compared: {text(lacks)}", highlight=False)
        return
    stdout.print(f"[bold]{text(e['name'])}[/bold] {text(found['text'])} ({moment(found['at'])})", highlight=False)
    for lacking in [*found["missing"], *([lacks] if lacks else [])]:
        stdout.print(f"  not known: {text(lacking)}", highlight=False)
    rows = [
        [metric, _interval(r["own"]), _interval(r["reference"]), _interval(r["ratio"])]
        for metric, r in found["ratios"].items()
    ]
    here = f"{number(found['requests_per_s'], '/s')} on {found['replicas']} replica(s) each"
    columns = ["80 % intervals", text(e["name"]), text(found["reference"]), "ratio"]
    table(f"The same traffic, {here}", columns, rows, "Nothing could be compared.")


def _interval(i: Mapping[str, float]) -> str:
    return f"{i['mid']:.3g}" if i["low"] == i["high"] else f"{i['mid']:.3g} ({i['low']:.3g} to {i['high']:.3g})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
