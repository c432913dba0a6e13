"""`flyball schedules`: which replicas are kept by the time of day, and the end of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from agent.cli.inspect import named, opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    actor,
    console,
    fail,
    moment,
    print_json,
    table,
    text,
)


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Replicas by the time of day, as they were approved.", no_args_is_help=True)
    group.command("list")(schedules_list)
    group.command("export")(schedules_export)
    group.command("end")(schedules_end)
    app.add_typer(group, name="schedules")


def schedules_list(config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.table) -> None:
    """The schedules that are kept, what each wants now, and its last steps."""
    from agent import views
    from agent.clock import WallClock

    with opened(config) as (store, settings):
        view = views.schedule_list(store, settings, WallClock().now())
    if output is Output.json:
        return print_json(view)
    rows = [
        [
            text(s["endpoint"]),
            text(s["label"]),
            f"{s['wanted']} wanted, {s['replicas']} there" + (f"\n{text(s['held_because'])}" if s["held"] else ""),
            f"{text(s['approved_by'])}, until {moment(s['until'])}",
            "\n".join(
                f"{moment(step['at'])}: {step['before']} → {step['after']}, {step['state']}" for step in s["steps"]
            )
            or "-",
        ]
        for s in view["schedules"]
    ]
    table("Schedules", ["endpoint", "replicas", "now", "approved by", "last steps"], rows, "No schedule is kept.")
    return None


class Keeper(StrEnum):
    keda = "keda"
    azure = "azure"


def schedules_export(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")],
    keeper: Annotated[Keeper, typer.Option("--for", help="Who is to keep it.")] = Keeper.keda,
    resource: Annotated[str, typer.Option(help="azure: the id of the deployment or scale set.", metavar="ID")] = "",
    location: Annotated[str, typer.Option(help="azure: the region that it is in.", metavar="REGION")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """The schedule for whom the system itself is to keep it. Apply it, then `flyball schedules end`.

    keda: a ScaledObject (YAML). azure: the body of an autoscale setting (JSON), as `az rest --method put` takes it.
    """
    import yaml

    from agent.store import schedules
    from analyzers.schedule import azure_autoscale, keda_cron

    if keeper is Keeper.azure and not (resource and location):
        raise fail("--for azure needs --resource ID and --location REGION")
    with opened(config) as (store, settings), store.read() as db:
        named(endpoint, settings)
        standing = schedules.of(db, endpoint)
    if standing is None:
        raise fail(f"{endpoint} keeps no schedule")
    if keeper is Keeper.keda:
        typer.echo(yaml.safe_dump(keda_cron(standing.schedule, endpoint), sort_keys=False), nl=False)
        return
    try:
        print_json(azure_autoscale(standing.schedule, endpoint, resource, location))
    except ValueError as problem:
        raise fail(str(problem)) from problem


def schedules_end(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")], config: ConfigOption = DEFAULT_CONFIG
) -> None:
    """Keep it no longer: the replicas stay what they are now."""
    from agent.clock import WallClock
    from agent.store import schedules

    with opened(config) as (store, settings), store.write() as db:
        ended = schedules.end(db, endpoint, now=WallClock().now(), by=actor(), reason="ended by a person")
        if not ended:
            named(endpoint, settings)
            raise fail(f"{endpoint} keeps no schedule")
    console.print(f"{text(endpoint)} keeps its schedule no longer; its replicas stay what they are")
