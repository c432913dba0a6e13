"""`flyball tune`: try shapes for real, one after the other, and say which is best."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    actor,
    console,
    duration,
    fail,
    money,
    number,
    print_json,
    read_as,
    stdout,
    table,
    text,
    warnings_on_stderr,
    write,
)

if TYPE_CHECKING:
    from agent.settings import Settings
    from agent.store import Store
    from agent.tune.request import Budget, Effort, Load, TuneRequest

INTERRUPTED, NOTHING_FOUND = 130, 3


def add(app: typer.Typer) -> None:
    app.command()(tune)


def tune(
    endpoint: Annotated[str, typer.Option(help="The endpoint of the settings whose system deploys the shapes.")],
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="A shape to try, as changes to the present one: replicas=2,max_num_seqs=64. May be given again."
        ),
    ] = None,
    candidates: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="YAML with lists under replicas, size, engine and so on: every combination is a shape."),
    ] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="What must hold: ttft_p95=0.5. Default: the endpoint's own.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second that it must carry. Default: the cheapest per token wins.")
    ] = None,
    think: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            help="Of a user, between an answer and the next request: how many users a rate is.",
        ),
    ] = 0.0,
    prompt_tokens: Annotated[str, typer.Option(help="fixed:64, uniform:50:200, lognormal:MEAN:CV.")] = "fixed:64",
    output_tokens: Annotated[str, typer.Option(help="The same.")] = "fixed:64",
    prefix_tokens: Annotated[int, typer.Option(help="With which all prompts begin.")] = 0,
    api: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    exact_output: Annotated[
        bool, typer.Option("--exact-output", help="Ask for exactly so many tokens (ignore_eos).")
    ] = False,
    budget_usd: Annotated[
        float | None, typer.Option(help="Begin nothing more when so many US dollars are spent.")
    ] = None,
    budget_time: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="DURATION", help="Begin nothing more after so long: 90m, 2h."),
    ] = None,
    budget_minutes: Annotated[str | None, typer.Option(hidden=True)] = None,
    step_seconds: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            help="Of sending at one rate; up to three times that where few requests come.",
        ),
    ] = 15.0,
    precision: Annotated[
        float, typer.Option(help="How near to each other what was met and what was missed must be.")
    ] = 0.15,
    max_steps: Annotated[int, typer.Option(min=2, help="Rates for each shape at most.")] = 8,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and words.")] = 0,
    allow_production: Annotated[
        bool, typer.Option("--allow-production", help="Tune an endpoint that serves production.")
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Forget a tune that was killed, and lead the endpoint back.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Deploy each shape, find the highest rate that meets the objective, watch both sides, take it down, and recommend one.

    A tune that was interrupted goes on where it was when it is asked again.
    """
    import asyncio

    from agent.configfile import load
    from agent.store import Store
    from agent.tune.request import Budget, Effort, Load
    from agent.tune.run import CannotTune
    from analyzers.grammar import BadQuestion
    from collectors.window import CollectError

    settings = load(config).settings
    for old in read_as("--budget-time", {"--budget-minutes": None if budget_minutes is None else f"{budget_minutes}m"}):
        budget_time = duration(old)
    store = Store(settings.database)
    try:
        store.upgrade()
        shaped = _Options(
            [
                *(candidate or []),
                *(one for text_ in candidates or [] for one in read_as("--candidate", {"--candidates": text_})),
            ],
            space,
            objective or [],
            rate,
            Load(prompt_tokens, output_tokens, prefix_tokens, api, exact_output, think),
            Effort(step_seconds, precision, max_steps),
            Budget(budget_usd, None if budget_time is None else budget_time / 60),
            seed,
        )
        with warnings_on_stderr():
            found = asyncio.run(_tune(store, settings, endpoint, shaped, allow_production, abandon, yes))
    except BadQuestion as error:
        raise fail(str(error), 2) from error
    except (CannotTune, CollectError) as error:
        raise fail(str(error)) from error
    except asyncio.CancelledError as error:  # before it had anything to tell
        raise fail("interrupted; the same command goes on from here", INTERRUPTED) from error
    finally:
        store.close()
    if found is not None:
        _tell(found, html, output)


@dataclass(frozen=True, slots=True)
class _Options:
    """What was given, before the endpoint was looked at."""

    candidates: list[str]
    space: Path | None
    objective: list[str]
    rate: float | None
    load: Load
    effort: Effort
    budget: Budget
    seed: int


async def _tune(
    store: Store, settings: Settings, name: str, given: _Options, allow_production: bool, abandon: bool, yes: bool
) -> dict[str, Any] | None:
    """None: it was abandoned."""
    import asyncio

    from agent.clock import WallClock
    from agent.tune.run import Tune, estimate
    from analyzers.grammar import BadQuestion
    from analyzers.strict import nearest
    from collectors.http import Http

    names = [e.name for e in settings.endpoints]
    if name not in names:
        raise BadQuestion(f"--endpoint {name}: {nearest(name, names)}")
    if settings.endpoint(name).role == "production" and not (allow_production or abandon):
        raise BadQuestion(
            f"{name} is a production endpoint: its users would meet every shape that is tried, and the traffic. Tune a reference "
            "endpoint or a copy, or give --allow-production"
        )
    clock = WallClock()
    http = Http(ca_file=settings.tls_ca_file, monotonic=clock.monotonic)
    try:
        asked = await _asked(store, settings, name, given, http, abandon)
        tune = Tune(
            asked,
            settings,
            store,
            clock,
            http,
            actor(),
            allow_production,
            lambda line: console.print(text(line), highlight=False, soft_wrap=True),
        )
        if abandon:
            identity = await tune.abandon()
            console.print(f"Tune {identity} is abandoned" if identity else f"{text(name)}: no tune is under way")
            return None
        found = estimate(asked, settings)
        cost = "unknown cost" if found.usd is None else f"about {money(found.usd)}"
        console.print(
            f"{len(asked.candidates)} shapes on {text(name)}: about {found.minutes:.0f} minutes and {cost} if none can be left out",
            highlight=False,
        )
        if not yes:
            typer.confirm("Begin?", abort=True, err=True)
        task = asyncio.ensure_future(tune.run())
        for number_ in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number_, task.cancel)
        return await task
    finally:
        await http.aclose()


async def _asked(store: Store, settings: Settings, name: str, given: _Options, http: Any, abandon: bool) -> TuneRequest:
    from agent.clock import WallClock
    from agent.tune import request
    from agent.tune.run import present
    from agent.wiring import vocabulary_of
    from analyzers import grammar as words
    from analyzers.objective import Objective
    from analyzers.shapes import shape_of

    endpoint = settings.endpoint(name)
    if abandon:
        return request.TuneRequest(
            name, endpoint.shape.shape(), (), Objective(), None, given.load, given.effort, given.budget
        )
    for option, value in {
        "--step-seconds": given.effort.step_s, "--precision": given.effort.precision, "--budget-usd": given.budget.usd,
        "--budget-time": given.budget.minutes, "--rate": given.rate,
    }.items():  # fmt: skip
        words.positive(value, option)
    words.positive(given.load.think_s, "--think", zero=True)
    request.check_load(given.load)
    shape = await present(store, settings, endpoint, http, WallClock())
    known = vocabulary_of(settings, endpoint)
    notes: list[str] = []
    shapes = []
    for one in given.candidates:
        with words.place(f"--candidate {one}"):
            shapes.append((one, shape_of(one, shape, known, notes)))
    if given.space is not None:
        shapes += request.space(given.space, shape, known, notes)
    for note in notes:
        console.print(f"note: {text(note)}", highlight=False, soft_wrap=True)
    wanted = words.objective(given.objective) if given.objective else endpoint.wanted()
    if not wanted.targets:
        raise words.BadQuestion(
            f"{name} has no objective: without one no rate is too high; give --objective ttft_p95=0.5"
        )
    return request.TuneRequest(
        name,
        shape,
        request.distinct(shapes),
        wanted,
        given.rate,
        given.load,
        given.effort,
        given.budget,
        given.seed,
    )


def _tell(found: Mapping[str, Any], html: Path | None, output: Output) -> None:
    if html is not None:
        from agent.clock import WallClock
        from agent.tune.page import page

        write("--html", html, page(found, WallClock().now()))
    if output is Output.json:
        print_json(found)
    else:
        print_answer(found)
    if found["ended"] == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if found["recommended"] is None:
        raise typer.Exit(NOTHING_FOUND)


def print_answer(found: Mapping[str, Any]) -> None:
    """The trade-off table, and the shape to take."""
    from agent.tune.table import columns, rows

    cells = [[text(cell) for cell in row] for row in rows(found)]
    table(f"Tune {found['tune']} of {found['endpoint']}", columns(found), cells, "No shape was tried.")
    for trial in found["trials"]:
        if trial["why"]:
            stdout.print(f"{trial['number']}: {trial['state']}: {text(trial['why'])}", highlight=False, soft_wrap=True)
    spent, told = found["spent"], found["predictions"]
    stdout.print(f"{spent['minutes']:.1f} minutes of shapes, {money(spent['usd'])}", highlight=False)
    if told["checked"]:
        off = ", ".join(f"{e:+.0%}" for e in told["errors"])
        stdout.print(
            f"limits predicted by the what-if engine before they were measured were off by {off}", highlight=False
        )
    best = found["recommended"]
    if best is None:
        stdout.print("No shape carries anything within the objective", highlight=False)
    else:
        each = best["cost_per_1k_output_tokens_usd"]
        cost = f", ${number(each)} per 1k output tokens" if each else ""
        said = f"{text(best['why'])} ({number(best['carries_per_s'])} requests/s{cost})"
        stdout.print(f"[bold]Take {text(best['label'])}[/bold]: {said}", highlight=False, soft_wrap=True)
        for note in best["notes"]:
            stdout.print(f"note: {text(note)}", highlight=False)
    if found["ended"] == "interrupted":
        stdout.print("Interrupted. The same command goes on from here; --abandon forgets it", highlight=False)
    elif not found["complete"]:
        stdout.print(f"Ended early: {text(found['ended'])}", highlight=False)
