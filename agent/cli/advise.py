"""`flyball advise`: which kind of deployment, for this traffic, with these conditions, at these prices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.inspect import opened
from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    console,
    fail,
    money,
    number,
    print_json,
    stdout,
    text,
    write,
)
from analyzers.words import heading

if TYPE_CHECKING:
    from rich.table import Table

    from analyzers.advise.advice import Advice
    from analyzers.advise.estimates import AdviceContext
    from analyzers.advise.offers import DeploymentOffer
    from analyzers.objective import Objective
    from collectors.workload import Workload


@dataclasses.dataclass(frozen=True, slots=True)
class AdviseOptions:
    """The options, as they were given."""

    workload: Path | None
    trace_format: str | None
    time_unit: str | None
    speed: float | None
    endpoint: str | None
    since: str | None
    needs: list[str]
    only: list[str]
    offers: list[Path]
    prices: list[str]
    token_prices: Path | None
    objective: list[str]
    users: str
    calls_per_user_hour: float
    config: Path


def add(app: typer.Typer) -> None:
    app.command()(advise)


def advise(
    workload: Annotated[
        Path | None, typer.Option(help="Requests to serve: arrival_s,prompt_tokens,output_tokens, or a public trace.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="The traffic of this endpoint; it is an option itself.")] = None,
    since: Annotated[str | None, typer.Option(help="Its traffic of so long: 7d, 36h. Default: 7d.")] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(
            help="What is wanted: low-latency, batch, private-data, latest-model, high-availability, high-throughput, custom-model, "
            "no-operations, prototype, fixed-cost, own-cloud, own-access, mixed-importance, transition; or what the traffic will be: "
            "spaced-out, many-at-once, few-at-once, peaks, steady, large-scale."
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="What must hold: ttft_p95=0.5 (seconds). Default: none; of an endpoint its own."),
    ] = None,
    offers: Annotated[
        list[Path] | None,
        typer.Option(help="OFFERS.yaml: what can be had, with models and prices; see docs/advise.md."),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="Instead of what an offer says: gpu.usd_per_replica_hour=2.5.")
    ] = None,
    token_prices: Annotated[
        Path | None,
        typer.Option(help="LiteLLM's price list, for offers with `model`. Default: an installed LiteLLM's."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Options that can be had: serverless,dedicated. Default: all.")
    ] = None,
    users: Annotated[str, typer.Option(help="What would a call cost with so many?")] = "10,100",
    calls_per_user_hour: Annotated[float, typer.Option(help="Calls of one user in an hour.")] = 60.0,
    trace_format: Annotated[
        str | None,
        typer.Option(help="flyball, simulate, azure, burstgpt, mooncake or bailian. Default: by the columns."),
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(help="Of the trace's arrivals: s, ms, us or ns. Default: the format's.")
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Requests arrive so many times as fast.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Which kind of deployment: pay-per-token, provisioned, serverless, machines, a mixture; ranked, with costs and latencies."""
    from agent.advise.answer import answer, curves
    from analyzers.advise.advice import advise as make
    from analyzers.grammar import BadQuestion
    from analyzers.prediction import CannotPredict
    from collectors.traces import BadTrace

    given = AdviseOptions(
        workload, trace_format, time_unit, speed, endpoint, since, needs or [], only or [], offers or [], price or [], token_prices,
        objective or [], users, calls_per_user_hour, config,
    )  # fmt: skip
    notes: list[str] = []
    try:
        asked, among, counts = _conditions(given), _options(given), _users(given)
        on, found_offers, what = _situation(given, notes)
        found: Advice = make(found_offers, on, asked, among)
        told = answer(
            found, on, found_offers, workload=what, users=counts, calls_per_user_hour=given.calls_per_user_hour, notes=notes
        )  # fmt: skip
    except (BadQuestion, BadTrace) as error:
        raise fail(str(error), 2) from error
    except CannotPredict as refused:
        raise fail(str(refused)) from refused
    if html is not None:
        _write_page(html, told, curves(found, on) if on is not None else {})
    for note in told["notes"]:
        console.print(f"note: {text(note)}", highlight=False, soft_wrap=True)
    if output is Output.json:
        return print_json(told)
    print_advice(told)
    return None


# -- the question -------------------------------------------------------------------------------------------------------


def _conditions(given: AdviseOptions) -> list[Any]:
    from analyzers.advise.options import Condition

    return _named(given.needs, "--needs", Condition)


def _options(given: AdviseOptions) -> list[Any]:
    from analyzers.advise.options import DeploymentOption

    return _named(given.only, "--only", DeploymentOption) or list(DeploymentOption)


def _named(texts: list[str], option: str, kind: Any) -> list[Any]:
    """Each of ``a,b`` as one of ``kind``. Raises BadQuestion."""
    from analyzers.grammar import BadQuestion
    from analyzers.strict import nearest

    found = []
    for name in (part.strip() for one in texts for part in one.split(",")):
        if name not in set(kind):
            raise BadQuestion(f"{option} {name}: {nearest(name, [str(k) for k in kind])}")
        found.append(kind(name))
    return found


def _users(given: AdviseOptions) -> list[float]:
    from analyzers import grammar
    from analyzers.grammar import BadQuestion

    grammar.positive(given.calls_per_user_hour, "--calls-per-user-hour")
    try:
        counts = [float(part) for part in given.users.split(",")]
    except ValueError:
        counts = [0.0]
    if not all(0 < n < float("inf") for n in counts):
        raise BadQuestion(f"--users {given.users}: write how many, such as 10,100")
    return counts


def _situation(
    given: AdviseOptions, notes: list[str]
) -> tuple[AdviceContext | None, list[DeploymentOffer], str | None]:
    """The traffic, what can be had, and what the traffic is of."""
    from agent.advise import sources
    from agent.whatif import replays
    from analyzers import grammar
    from analyzers.grammar import BadQuestion

    if given.workload is not None and given.endpoint is not None:
        raise BadQuestion("give --workload FILE or --endpoint NAME, and not both")
    wanted = grammar.objective(given.objective)
    offers = sources.offers(given.offers, given.token_prices, notes)
    if given.endpoint is not None:
        work, wanted, own = _of_endpoint(given, wanted, notes)
        for offer in offers:
            if any(o.name == offer.name for o in own):
                raise BadQuestion(f"offers.{offer.name}: an endpoint has this name; give the offer another")
        found = sources.priced([*own, *offers], given.prices)
        return _context(work, wanted, given), found, given.endpoint
    found = sources.priced(offers, given.prices)
    if given.workload is None:
        return None, found, None
    work, _ = replays.read(given.workload, given.trace_format, given.speed, notes, given.time_unit)
    return _context(work, wanted, given), found, str(given.workload)


def _context(work: Workload, wanted: Objective, given: AdviseOptions) -> AdviceContext:
    from analyzers.advise.estimates import AdviceContext
    from analyzers.advise.profile import profile_of
    from analyzers.grammar import BadQuestion
    from analyzers.kinds.results import ReplayTraffic

    try:
        profile = profile_of(work)
    except ValueError as error:
        raise BadQuestion(f"{given.workload or given.endpoint}: {error}") from error
    return AdviceContext(ReplayTraffic(work, wanted), profile)


def _of_endpoint(
    given: AdviseOptions, wanted: Objective, notes: list[str]
) -> tuple[Workload, Objective, list[DeploymentOffer]]:
    """Its traffic, its objective where none is given, and what it and the reference servers are, as offers."""
    from agent.advise import sources
    from agent.clock import WallClock
    from agent.whatif import predictions
    from analyzers import grammar

    assert given.endpoint is not None
    since_s, speed = grammar.span(given.since or "7d"), grammar.positive(given.speed, "--speed") or 1.0
    with opened(given.config) as (store, settings):
        found = predictions.evidence(store, settings, given.endpoint, since_s, WallClock().now())
        work = found.traffic(seed=settings.decide.seed, speed=speed)
        others = [e.name for e in settings.endpoints if e.role == "reference" and e.name != given.endpoint]
        seen = [found, *(predictions.evidence(store, settings, name, since_s, WallClock().now()) for name in others)]
        own = [offer for telemetry in seen if (offer := sources.present(telemetry, settings, notes)) is not None]
        chosen = wanted if given.objective else settings.endpoint(given.endpoint).wanted()
    return work, chosen, own


# -- the answer ---------------------------------------------------------------------------------------------------------


def _write_page(path: Path, told: dict[str, Any], curves: dict[str, Any]) -> None:
    from agent.advise.page import page
    from agent.clock import WallClock

    write("--html", path, page(told, curves, WallClock().now()))


def print_advice(told: Mapping[str, Any]) -> None:
    """As tables."""
    from agent.advise.answer import latency_names

    traffic = told["workload"]
    if traffic is not None:
        stdout.print(
            f"{text(traffic['of'])}: {number(traffic['requests_per_s'])} requests/s of {traffic['prompt_tokens']:.0f} + "
            f"{traffic['output_tokens']:.0f} tokens",
            highlight=False,
            soft_wrap=True,
        )
    for c in told["conditions"]:
        stdout.print(f"  {text(c['name'])}: {text(c['why'])}", highlight=False, soft_wrap=True)
    shown = [o for o in told["options"] if traffic is None or o["offered"]]
    stdout.print(_table(shown, latency_names(told), numbers=traffic is not None))
    if traffic is not None:
        stdout.print(_of_users(told, shown))
    for r in told["cheapest"]:
        stdout.print(
            f"from {number(r['from_requests_per_s'])} requests/s: {text(r['name'])} costs least, {money(r['usd_per_hour'])} an hour",
            highlight=False,
            soft_wrap=True,
        )
    for b in told["break_even"]:
        share = b["share_of_capacity"]
        of = "" if share is None else f", {share:.0%} of what it carries"
        stdout.print(
            f"{text(b['reserved'])} costs as much as {text(b['by_token'])} at {number(b['requests_per_s'])} requests/s{of}",
            highlight=False,
            soft_wrap=True,
        )
    for c in told["contradictions"]:
        guide = f" ({text(c['guide'])})" if c["guide"] else ""
        stdout.print(f"[yellow]{c['code']}[/yellow] {text(c['detail'])}{guide}", highlight=False, soft_wrap=True)


def _table(shown: Sequence[Mapping[str, Any]], latencies: Sequence[str], *, numbers: bool) -> Table:
    """The options in their order. Where there is little room each one's conditions stand below its name."""
    wide = stdout.width >= 130
    made = _simple("Options, the best first (latencies in seconds)" if numbers else "Options, the best first")
    made.add_column("", no_wrap=True)
    made.add_column("option", overflow="fold", min_width=16)
    headings = ["$/h", "$/call", *(heading(name).replace(" ", "\n") for name in latencies), "meets"] if numbers else []
    for each in headings:
        made.add_column(each, justify="right", no_wrap=True)
    if wide:
        made.add_column("conditions", overflow="fold")
    for o in shown:
        beside = [o["option"]] if o["name"] != o["option"] else []
        name = "\n".join(
            (
                text(o["name"]),
                *(f"[dim]{text(line)}[/dim]" for line in beside),
                *([] if wide or not o["criteria"] else [_said(o)]),
            )
        )
        figures = (
            [
                money(o["usd_per_hour"]),
                money(o["usd_per_request"]),
                *(number(o["latency_s"].get(n)) for n in latencies),
                _met(o),
            ]
            if numbers
            else []
        )
        made.add_row(str(o["rank"]), name, *figures, *([_said(o)] if wide else []))
    return made


def _of_users(told: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Table:
    """What an hour and a call cost with so many users."""
    made = _simple(f"With users who make {told['users']['calls_per_user_hour']:g} calls an hour")
    made.add_column("option", overflow="fold", min_width=16)
    for n in told["users"]["counts"]:
        for each in (f"{n:g} users\n$/h", "\n$/call"):
            made.add_column(each, justify="right", no_wrap=True)
    for o in shown:
        if not o["excluded"]:
            cells = (money(u[key]) for u in o["users"] for key in ("usd_per_hour", "usd_per_call"))
            made.add_row(text(o["name"]), *cells)
    return made


def _simple(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)


def _met(option: Mapping[str, Any]) -> str:
    return {True: "[green]yes[/green]", False: "[red]no[/red]", None: "-"}[option.get("meets_objective")]


def _said(option: Mapping[str, Any]) -> str:
    """``+ low-latency, - spaced-out``."""
    signs = {"for": "+", "against": "-", "excludes": "[red]excluded by[/red]"}
    said = [f"{signs[c['verdict']]} {text(c['condition'])}" for c in option["criteria"]]
    return ", ".join(said)
