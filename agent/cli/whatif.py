"""`flyball whatif`: what another shape would do under this traffic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.calibrate import misfit
from agent.cli.inspect import opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    console,
    duration,
    fail,
    money,
    number,
    print_json,
    read_as,
    renamed,
    stdout,
    text,
    write,
)
from analyzers.words import heading, lasting

if TYPE_CHECKING:
    from agent.whatif.figures import CandidateOutcome
    from agent.whatif.table import Figure, Row
    from collectors.traces import Trace
    from collectors.workload import Floats

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class WhatIfOptions:
    """The options, as they were given."""

    trace: Path | None
    trace_format: str | None
    time_unit: str | None
    engine: Path | None
    replicas: int | None
    shape: list[str]
    usd_per_replica_hour: float | None
    fleet: Path | None
    autoscale: str | None
    cold_start: float | None
    timeout: float | None
    requests_out: Path | None
    endpoint: str | None
    since: str | None
    candidate: list[str]
    router: str | None
    objective: list[str]
    speed: float | None
    html: Path | None
    lower_bound: bool
    config: Path


#: Options of one form that say nothing in the other.
_OF_TRACES = (
    "trace_format", "time_unit", "engine", "replicas", "shape", "usd_per_replica_hour", "fleet", "autoscale", "cold_start", "timeout",
    "requests_out",
)  # fmt: skip
_OF_ENDPOINTS = ("since",)


def add(app: typer.Typer) -> None:
    app.command()(whatif)


def whatif(
    trace: Annotated[
        Path | None, typer.Option(help="Requests to replay: arrival_s,prompt_tokens,output_tokens, or a public trace.")
    ] = None,
    trace_format: Annotated[
        str | None,
        typer.Option(help="flyball, simulate, azure, burstgpt, mooncake or bailian. Default: by the columns."),
    ] = None,
    time_unit: Annotated[
        str | None,
        typer.Option(help="Of the trace's arrivals: s, ms, us or ns. Default: the format's, if the values agree."),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(
            help="ENGINE.json, as `flyball calibrate` writes it, or one of the kind vm, quota, serverless or ptu."
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=0, help="Engines side by side; of a fleet, at first. Default: 1.")
    ] = None,
    router: Annotated[
        str | None, typer.Option(help="round_robin, least_outstanding or prefix_aware. Default: round_robin.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="The first candidate, as changes to the engine file: max_num_seqs=64.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(help="FLEET.json: replicas that come and go by a schedule, failures or an autoscaler."),
    ] = None,
    autoscale: Annotated[
        str | None, typer.Option(help="hpa, keda, kpa or flyball, and its settings: hpa:in_flight=8,min=1,max=10.")
    ] = None,
    cold_start: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="DURATION", help="Seconds from the wish for a replica to its first request."
        ),
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Ask this endpoint's own telemetry, instead of a trace.")] = None,
    since: Annotated[str | None, typer.Option(help="Its traffic of so long: 7d, 36h. Default: 7d.")] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="What else to try, as changes: replicas=2,max_num_seqs=64; accelerator=L40S,accelerator_count=2; of an endpoint also "
            "size=NAME; of a trace also engine=FILE, fleet=FILE, autoscale=..., usd_per_replica_hour=."
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="What must hold: ttft_p95=0.5 (seconds). Default: none; of an endpoint its own."),
    ] = None,
    usd_per_replica_hour: Annotated[float | None, typer.Option(help="US dollars per replica-hour.")] = None,
    price_per_hour: Annotated[str | None, typer.Option(hidden=True)] = None,
    timeout: Annotated[
        float | None, typer.Option(parser=duration, metavar="DURATION", help="Clients give up after so many seconds.")
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Requests arrive so many times as fast.")] = None,
    requests_out: Annotated[
        Path | None, typer.Option(help="Write each request's times on each candidate here, as CSV.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.")] = None,
    lower_bound: Annotated[
        bool,
        typer.Option(
            "--lower-bound",
            help="Also the fewest replicas of the first candidate that any policy could have used. Needs an objective.",
        ),
    ] = False,
    accept_misfit: Annotated[
        bool, typer.Option("--accept-misfit", help="Exit with 0 also where an engine did not reach its own data.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Replay traffic on other shapes: a trace on an engine file, or an endpoint's own telemetry on other hardware.

    Exit code 1 where nothing can be predicted, or where an engine did not reach the data that it was learned from: the answer is shown,
    with the warning.
    """
    from agent.whatif.figures import misfits
    from analyzers.grammar import BadQuestion
    from analyzers.prediction import CannotPredict
    from collectors.traces import BadTrace

    shapes = [*(shape or []), *read_as("--shape", {"--set": ",".join(set_ or []) or None})]
    given = WhatIfOptions(
        trace, trace_format, time_unit, engine, replicas, shapes, usd_per_replica_hour, fleet, autoscale, cold_start, timeout, requests_out,
        endpoint, since, candidate or [], router, objective or [], speed, html, lower_bound, config,
    )  # fmt: skip
    renamed("--price-per-hour", price_per_hour, "--usd-per-replica-hour")
    try:
        _check(given)
        answer, outcomes, arrival_s = _from_trace(given) if given.trace is not None else _from_store(given)
        if html is not None:
            _write_page(html, answer, outcomes, arrival_s)
    except (BadQuestion, BadTrace) as error:
        raise fail(str(error), 2) from error
    except CannotPredict as refused:
        raise fail(str(refused)) from refused
    for note in answer["notes"]:
        console.print(f"note: {text(note)}", highlight=False, soft_wrap=True)
    off = misfits(answer)
    for warning in answer["warnings"]:
        if accept_misfit or warning not in off:
            console.print(f"warning: {text(warning)}", highlight=False, soft_wrap=True)
    if output is Output.json:
        print_json(answer)
    else:
        print_answer(answer)
    if off and not accept_misfit:
        raise misfit("; ".join(off))


def _check(given: WhatIfOptions) -> None:
    """Which of the two questions this is. Raises BadQuestion where it is neither, or both."""
    from analyzers.grammar import BadQuestion

    if (given.trace is None) == (given.endpoint is None):
        raise BadQuestion("give either --trace FILE --engine ENGINE.json, or --endpoint NAME")
    if given.trace is not None and given.engine is None:
        raise BadQuestion("--trace needs --engine ENGINE.json: what the requests are replayed on")
    foreign, form = (_OF_ENDPOINTS, "--trace") if given.trace is not None else (_OF_TRACES, "--endpoint")
    wrong = [f"--{name.replace('_', '-')}" for name in foreign if getattr(given, name) not in (None, [])]
    if wrong:
        raise BadQuestion(
            f"{', '.join(wrong)}: no option of a question with {form}; `flyball whatif --help` tells each"
        )


def _from_trace(given: WhatIfOptions) -> tuple[Answer, list[CandidateOutcome], Floats]:
    from collectors import traces

    assert given.trace is not None
    of_file: list[str] = []
    with ThreadPoolExecutor(1) as pool:  # the file is read while the engine is loaded
        reading = pool.submit(traces.read, given.trace, given.trace_format, of_file, given.time_unit)
        return _replayed(given, reading, of_file)


def _replayed(
    given: WhatIfOptions, reading: Future[Trace], of_file: list[str]
) -> tuple[Answer, list[CandidateOutcome], Floats]:
    """of_file: the notes about the trace, whole once it is read."""
    from agent.whatif import replays
    from agent.whatif.candidates import candidates
    from analyzers import grammar
    from analyzers.kinds.results import ReplayTraffic

    assert given.trace is not None
    assert given.engine is not None
    notes: list[str] = []
    objective, timeout_s = grammar.objective(given.objective), grammar.positive(given.timeout, "--timeout")
    tried = candidates(
        given.engine,
        replicas=given.replicas,
        router=given.router,
        settings=grammar.settings(given.shape, "--shape", notes),
        notes=notes,
        usd_per_replica_hour=given.usd_per_replica_hour,
        fleet=given.fleet,
        autoscale=given.autoscale,
        cold_start=given.cold_start,
        others=given.candidate,
        timeout_s=timeout_s,
    )
    with progress("replaying", len(tried)) as advance:
        replays.load(tried[0])
        taken = reading.result()
        notes += of_file
        workload = replays.at_speed(taken.workload, given.speed, notes)
        traffic = ReplayTraffic(workload, objective, timeout_s)
        outcomes = replays.all_replayed(traffic, tried, requests_out=given.requests_out, advance=advance)
    told = replays.answer(traffic, tried, outcomes, trace=given.trace, taken=taken, engine=given.engine, notes=notes)
    if given.lower_bound:
        from agent.whatif import bounds

        told["lower_bound"] = bounds.of_trace(tried[0], traffic, given.cold_start or 0.0)
    return told, outcomes, workload.arrival_s


def _from_store(given: WhatIfOptions) -> tuple[Answer, list[CandidateOutcome], None]:
    from agent.clock import WallClock
    from agent.whatif import predictions
    from analyzers import grammar
    from analyzers.kinds.engine.engines import router_named

    assert given.endpoint is not None
    speed = grammar.positive(given.speed, "--speed") or 1.0
    since_s, chosen = grammar.span(given.since or "7d"), router_named(given.router or "round_robin")
    with opened(given.config) as (store, settings), progress("predicting", 1 + len(given.candidate)) as advance:
        found = predictions.evidence(store, settings, given.endpoint, since_s, WallClock().now())
        notes: list[str] = []
        tried = predictions.shapes(found, given.candidate, notes)
        objective = (
            grammar.objective(given.objective) if given.objective else settings.endpoint(given.endpoint).wanted()
        )
        on = predictions.question(
            found, objective, seed=settings.decide.seed, speed=speed, router=chosen, curves=given.html is not None
        )
        outcomes = predictions.all_predicted(tried, on, advance)
        told = predictions.answer(found, on, outcomes, notes)
        if given.lower_bound:
            from agent.whatif import bounds

            told["lower_bound"] = bounds.of_endpoint(store, settings, found, on)
    return told, outcomes, None


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where a person watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _write_page(path: Path, answer: Answer, outcomes: list[CandidateOutcome], arrival_s: Floats | None) -> None:
    from agent.clock import WallClock
    from agent.whatif.page import page

    write("--html", path, page(answer, [outcome.curves for outcome in outcomes], WallClock().now(), arrival_s))


def print_answer(answer: Mapping[str, Any]) -> None:
    """The candidates as a table."""
    from rich import box
    from rich.table import Table

    from agent.whatif.table import rows, shown

    if trace := answer.get("trace"):
        stdout.print(text(_taken(trace)), highlight=False, soft_wrap=True)
    metrics, found = shown(answer), rows(answer)
    made = Table(title="What if (times in seconds)", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    wide = stdout.width >= 110
    made.padding = (0, int(wide))  # every column also on a terminal of 80
    made.add_column("", min_width=2)
    made.add_column("candidate", overflow="fold", min_width=12)
    goodput = any(row.goodput_per_s is not None for row in found)
    saturates = any(row.saturates != 0 for row in found)  # a column that says nothing is left out
    for each in (
        "$/h",
        *(heading(name).replace(" ", "\n") for name in metrics),
        *(["goodput\n/s"] if goodput else []),
        *(["satu-\nrates"] if saturates else []),
        "objec-\ntive",
    ):
        made.add_column(each, justify="right", no_wrap=True)
    for row in found:
        made.add_row(
            str(row.number),
            text(row.name.replace(",", ", ")) + "".join(f"\n[dim]{text(line)}[/dim]" for line in _beside(row) if wide),
            money(row.usd_per_hour),
            *(_figure(row.figures.get(name), wide) for name in metrics),
            *([number(row.goodput_per_s)] if goodput else []),
            *([_saturates(row)] if saturates else []),
            _COLOURED.get(row.verdict or "", row.verdict or "-"),
        )
    stdout.print(made)
    if bound := answer.get("lower_bound"):
        stdout.print(text(_bound(bound)), highlight=False, soft_wrap=True)
    for row in found:
        if not wide and _beside(row):
            stdout.print(f"[dim]{row.number}: {text('; '.join(_beside(row)))}[/dim]", highlight=False, soft_wrap=True)
        if row.refused:
            stdout.print(f"{row.number}: not predicted. {text(row.refused)}", highlight=False, soft_wrap=True)
        elif row.done is not None and row.done[0] < row.done[1]:
            stdout.print(f"{row.number}: {row.done[0]} of {row.done[1]} requests completed", highlight=False)


def _bound(bound: Mapping[str, Any]) -> str:
    """The fewest replicas that any policy could have used."""
    best, constant = bound["clairvoyant"], bound["constant"]
    changes = best["changes"]
    return (
        f"No policy could have done with less than {number(bound['least_replica_hours'])} replica-hours ({bound['share_in_time']:.0%} of the "
        f"requests in time). A clairvoyant takes {number(best['replica_hours'])}: {number(best['replicas_mean'])} replicas on average, "
        f"{best['replicas_most']} at most, {changes} change{'s' * (changes != 1)}. Without a change it takes {constant['replicas']} replicas, "
        f"{number(constant['replica_hours'])} replica-hours."
    )


_COLOURED = {"met": "[green]met[/green]", "missed": "[red]missed[/red]", "not known": "[yellow]not known[/yellow]"}


def _taken(trace: Mapping[str, Any]) -> str:
    """What a trace was read as."""
    rate, unit = trace["rate_per_s"], trace["time_unit"]
    often = "" if rate is None else f", {number(rate)} a second on average"
    return (
        f"{trace['file']}: read as {trace['format']}, times {'as dates' if unit == 'dates' else f'in {unit}'}; "
        f"{trace['requests']:,} requests in {lasting(trace['span_s'])}{often}"
    )


def _beside(row: Row) -> list[str]:
    """What stands in small letters: within the table where it is wide, else below it."""
    return [line for line in (row.label, *row.told) if line]


def _figure(figure: Figure | None, wide: bool) -> str:
    """With its 80 % interval, or where there is little room its upper end."""
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return _seconds(figure.mid)
    interval = f"{_seconds(figure.low, 2)} to {_seconds(figure.high, 2)}" if wide else f"≤ {_seconds(figure.high, 2)}"
    return f"{_seconds(figure.mid)}\n[dim]{interval}[/dim]"


def _seconds(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if value >= 100 else number(value, digits=digits)


def _saturates(row: Row) -> str:
    if row.saturates is None:
        return "-"
    words = {0.0: "no", 1.0: "[red]yes[/red]"}
    return words.get(row.saturates, f"[yellow]{row.saturates:.0%}[/yellow]")
