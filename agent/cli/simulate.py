"""`flyball simulate`: send traffic to a server, and measure it truthfully."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.output import (
    Output,
    OutputOption,
    console,
    duration,
    fail,
    money,
    number,
    print_json,
    renamed,
    stdout,
    text,
    write,
)
from analyzers.words import verdict

if TYPE_CHECKING:
    from agent.settings import Settings
    from agent.simulate.options import TrafficOptions
    from agent.simulate.records import Records
    from agent.simulate.request import LoadOptions, TrafficRequest
    from agent.simulate.run import TrafficEstimate, TrafficOutcome

#: What a run ended as, beside 0 for a valid one, 1 for an error and 2 for a wrong question.
INVALID, STORM, INTERRUPTED = 3, 4, 130


def add(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    url: Annotated[str | None, typer.Option(help="The server's address: http://host:port.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the only one that the server has.")] = None,
    api: Annotated[str, typer.Option(help="chat or completions.")] = "chat",
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second, come what may.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many users, each waits for its answer.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A load over time: steps, ramps, days, bursts, sessions (YAML).")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Requests to send again: Flyball's columns, or a public trace.")
    ] = None,
    trace_format: Annotated[
        str | None, typer.Option(help="flyball, simulate, azure, burstgpt, mooncake or bailian. Default: by columns.")
    ] = None,
    time_unit: Annotated[
        str | None,
        typer.Option(help="Of the trace's arrivals: s, ms, us or ns. Default: the format's, if the values agree."),
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="The traffic that was observed on this endpoint of the settings.")
    ] = None,
    since: Annotated[str, typer.Option(help="Of --like: its traffic of so long, 7d or 36h.")] = "7d",
    speed: Annotated[float, typer.Option(help="Of --trace and --like: so many times as fast.")] = 1.0,
    duration: Annotated[
        float | None, typer.Option(parser=duration, metavar="DURATION", help="Seconds of sending.")
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="DURATION", help="Seconds left out of all figures. Default: a tenth, 10 at most."
        ),
    ] = None,
    arrivals: Annotated[str, typer.Option(help="Of --rate: constant, poisson or gamma.")] = "poisson",
    burstiness: Annotated[float | None, typer.Option(help="Gamma arrivals with this coefficient of variation.")] = None,
    prompt_tokens: Annotated[str | None, typer.Option(help="fixed:64, uniform:50:200, lognormal:MEAN:CV.")] = None,
    output_tokens: Annotated[str | None, typer.Option(help="The same. Default of both: fixed:64.")] = None,
    prefix_tokens: Annotated[int, typer.Option(help="With which all prompts begin.")] = 0,
    think: Annotated[
        str | None, typer.Option(help="Between an answer and the next request: fixed:2, exponential:2.")
    ] = None,
    turns: Annotated[
        str | None, typer.Option(help="Conversations of so many turns: fixed:4. --rate starts them.")
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option(help="Of an open loop: the others wait, and their wait counts.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="Seconds for one request.")
    ] = 120.0,
    exact_output: Annotated[
        bool, typer.Option("--exact-output", help="Ask for exactly so many tokens (ignore_eos).")
    ] = False,
    extra: Annotated[str | None, typer.Option(help="More fields of each request, as JSON.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="'NAME: VALUE', sent with each request.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment's variable that holds the key.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="PEM of the authorities to trust.")] = None,
    objective: Annotated[list[str] | None, typer.Option(help="What must hold: ttft_p95=0.5. For goodput.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="US dollars, of the whole endpoint.")] = None,
    price_per_hour: Annotated[str | None, typer.Option(hidden=True)] = None,
    price_input: Annotated[str | None, typer.Option(hidden=True)] = None,
    price_output: Annotated[str | None, typer.Option(hidden=True)] = None,
    usd_per_1k_input_tokens: Annotated[float | None, typer.Option(help="US dollars per 1,000 prompt tokens.")] = None,
    usd_per_1k_output_tokens: Annotated[float | None, typer.Option(help="US dollars per 1,000 output tokens.")] = None,
    max_rate: Annotated[float | None, typer.Option(help="Never more requests per second.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Never more requests.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Never more tokens, of prompts and outputs; users are stopped before it.")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(help="Never more US dollars; users are stopped before it.")] = None,
    max_error_rate: Annotated[float, typer.Option(help="Stop when more of the latest 50 requests failed.")] = 0.5,
    allow_production: Annotated[
        bool, typer.Option("--allow-production", help="Send to a production endpoint.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: as many as the load takes.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Workers over the nodes of this Ray cluster: HOST:PORT of its head, or auto.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and words.")] = 0,
    endpoint: Annotated[
        str | None, typer.Option(help="Of the settings: its address, key, objective, price; keeps windows.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", envvar="FLYBALL_CONFIG", help="The settings file.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write each request here: FILE.parquet or FILE.jsonl.")] = None,
    export: Annotated[list[str] | None, typer.Option(help="guidellm:FILE or aiperf:FILE: in their format.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """Send traffic to a server and measure it at the socket. Exit code 3: the client was the bottleneck; the figures are not valid."""
    renamed("--price-per-hour", price_per_hour, "--usd-per-hour")
    renamed("--price-input", price_input, "--usd-per-1k-input-tokens (US dollars per 1,000, no longer per million)")
    renamed("--price-output", price_output, "--usd-per-1k-output-tokens (US dollars per 1,000, no longer per million)")
    from agent.simulate.options import TrafficOptions
    from agent.simulate.request import Caps, LoadOptions, Prices

    given = TrafficOptions(
        url=url, model=model, api=api, endpoint=endpoint, config=config, headers=header or [], api_key_env=api_key_env,
        ca_file=ca_file, trace=trace, trace_format=trace_format, time_unit=time_unit, like=like, since=since, max_concurrency=max_concurrency,
        timeout_s=timeout, exact_output=exact_output, extra=extra, objective=objective or [],
        prices=Prices(usd_per_hour, usd_per_1k_input_tokens, usd_per_1k_output_tokens),
        caps=Caps(max_rate, max_requests, max_tokens, max_usd, max_error_rate), workers=workers, ray=ray,
        allow_production=allow_production,
    )  # fmt: skip
    options = LoadOptions(
        rate=rate, concurrency=concurrency, profile=profile, speed=speed, duration_s=duration, arrivals=arrivals,
        burstiness=burstiness, prompt_tokens=prompt_tokens, output_tokens=output_tokens, prefix_tokens=prefix_tokens, think=think,
        turns=turns, warmup_s=warmup, requests=max_requests if concurrency is not None else None, seed=seed,
    )  # fmt: skip
    with _mended():
        answer = _run(given, options, save)
        _write(answer, html, export or [])
    if output is Output.json:
        print_json(answer)
    else:
        print_answer(answer)
    code = exit_code(answer)
    if code:
        raise typer.Exit(code)


@contextmanager
def _mended() -> Iterator[None]:
    """What a person can mend, as one line and exit code 2; what the server did, as one line and exit code 1."""
    from analyzers.grammar import BadQuestion
    from collectors.window import CollectError

    try:
        yield
    except BadQuestion as error:
        raise fail(str(error), 2) from error
    except CollectError as error:
        raise fail(str(error)) from error


def _run(given: TrafficOptions, options: LoadOptions, save: Path | None) -> dict[str, Any]:
    from agent.simulate.answer import answer
    from agent.simulate.options import cluster_of, settings_of, traffic_of
    from agent.simulate.run import check_caps, estimate, sent

    notes: list[str] = []
    settings = settings_of(given)
    traffic = traffic_of(given, options, settings, notes)
    with ExitStack() as stack:
        cluster = stack.enter_context(cluster_of(given.ray, traffic.target, notes)) if given.ray is not None else None
        found = estimate(traffic, cluster.nodes if cluster is not None else None)
        check_caps(traffic, found)
        _say_estimate(traffic, found, notes)
        records = _records(stack, save) if save is not None else None
        show = stack.enter_context(progress(traffic))
        outcome = sent(traffic, found, show, records.add if records is not None else None, cluster)
    if settings is not None and traffic.target.endpoint is not None:
        _keep(settings, outcome)
    return answer(outcome)


def _records(stack: ExitStack, path: Path) -> Records:
    from agent.simulate.records import Records

    return stack.enter_context(Records(path))


def _keep(settings: Settings, outcome: TrafficOutcome) -> None:
    from agent.simulate.records import to_store
    from agent.store import Store

    store = Store(settings.database)
    try:
        store.upgrade()
        made = to_store(store, outcome, settings.collect.window_s)
    finally:
        store.close()
    console.print(f"{made} windows of source traffic are in the store", highlight=False)


def _say_estimate(traffic: TrafficRequest, found: TrafficEstimate, notes: list[str]) -> None:
    cost = "unknown cost" if found.usd is None else money(found.usd)
    tokens = found.prompt_tokens + found.output_tokens
    guessed = found.each_s is not None and found.requests != found.most_requests
    console.print(
        f"To {text(traffic.target.url)}: {'about ' * guessed}{found.requests:,} requests in {traffic.duration_s:g} s, "
        f"about {tokens:,} tokens, {cost}; {found.workers} worker{'s' * (found.workers != 1)}",
        highlight=False,
        soft_wrap=True,
    )
    if guessed:
        most = (
            "no bound is set: --max-requests sets one"
            if found.most_requests is None
            else f"never more than {found.most_requests:,}"
        )
        basis = f"a guess: a user sends again every {found.each_s:.3g} s where the server is fast; a faster one gets more, a slower one less"
        console.print(f"{basis}; {most}", highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {text(note)}", highlight=False, soft_wrap=True)


@contextmanager
def progress(traffic: TrafficRequest) -> Iterator[Callable[[float, Counter[str]], None]]:
    """A line on standard error, where a person watches."""
    if not console.is_terminal:
        yield lambda _at, _counts: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[counts]}"))
    shown = Progress(*columns, console=console, transient=True, auto_refresh=False)
    with shown as bar:
        task = bar.add_task("sending", total=traffic.duration_s, counts="")

        def show(at_s: float, counts: Counter[str]) -> None:
            errors = f", [red]{counts['errors']} failed[/red]" if counts["errors"] else ""
            said = f"{counts['sent']} sent, {counts['ok']} done, {counts['in_flight']} under way{errors}"
            bar.update(task, completed=min(at_s, traffic.duration_s), counts=said, refresh=True)

        yield show


def _write(answer: Mapping[str, Any], html: Path | None, exports: list[str]) -> None:
    """The page and the files for other tools."""
    import json

    from agent.clock import WallClock
    from agent.simulate import export
    from analyzers.grammar import BadQuestion

    formats = {"guidellm": export.guidellm, "aiperf": export.aiperf}
    written: list[tuple[str, Path, str]] = []
    for one in exports:
        name, _, file = one.partition(":")
        if name not in formats or not file:
            raise BadQuestion(f"--export {one}: write guidellm:FILE or aiperf:FILE")
        written.append(("--export", Path(file), json.dumps(formats[name](answer), indent=2)))
    if html is not None:
        from agent.simulate.page import page

        written.append(("--html", html, page(answer, WallClock().now())))
    for option, path, content in written:
        write(option, path, content)


def exit_code(answer: Mapping[str, Any]) -> int:
    if answer["stopped"] == "interrupted":
        return INTERRUPTED
    if answer["stopped"] == "error_storm":
        return STORM
    return 0 if answer["valid"] else INVALID


NAMES = {
    "ttft_s": "TTFT, from when it was due",
    "ttft_sent_s": "TTFT, from when it was sent",
    "itl_s": "ITL, between tokens",
    "tpot_s": "TPOT, of a request",
    "e2e_s": "end-to-end, from when it was due",
}


def print_answer(answer: Mapping[str, Any]) -> None:
    """Latencies in milliseconds, and a line for each other thing to know."""
    from rich import box
    from rich.table import Table

    if not answer["valid"]:
        for reason in answer["invalid_reasons"]:
            stdout.print(
                f"[red]INVALID[/red] {reason['code']}: {text(reason['detail'])}", highlight=False, soft_wrap=True
            )
    made = Table(title="Milliseconds", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=0)
    made.add_column("", min_width=max(len(word) for title in NAMES.values() for word in title.split()))
    quantiles = ("mean", "p50", "p90", "p95", "p99", "p99.9")
    for name in quantiles:
        made.add_column(name, justify="right", no_wrap=True)
    for name, title in NAMES.items():
        row = answer[name]
        made.add_row(title, *("-" if row[q] is None else f"{1000 * row[q]:,.2f}" for q in quantiles))
    stdout.print(made)
    for line in lines(answer):
        stdout.print(line, highlight=False, soft_wrap=True)


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """What else there is to say, each as one line."""
    errors = ", ".join(f"{n} {text(kind)}" for kind, n in answer["errors"].items()) or "none"
    yield f"sent {answer['sent']} of {answer['planned']} ({answer['warmup_requests']} in the warm-up), completed {answer['completed']}"
    yield f"errors: {errors}"
    yield f"{number(answer['requests_per_s'])} requests/s, {number(answer['output_tokens_per_s'], digits=4)} output tokens/s"
    if answer["attainment"] is not None:
        a = answer["attainment"]
        between = " to ".join("-" if share is None else f"{share:.0%}" for share in (a["low"], a["high"]))
        kept = "-" if a["share"] is None else f"{a['share']:.0%}"
        yield f"goodput {number(answer['goodput_per_s'])}/s: {kept} of the requests kept the objective ({between})"
    for o in answer["objective"]:
        yield f"{o['target']} {number(o['observed'])} / {o['limit']:g}: {verdict(o['met'])}"
    if answer["cost_usd"] is not None:
        each, thousand = answer["cost_per_call_usd"], answer["cost_per_1k_output_tokens_usd"]
        yield f"cost ${answer['cost_usd']:.4g}: ${number(each)} a call, ${number(thousand)} per 1k output tokens"
    stream = answer["stream"]
    if stream["buffered"]:
        yield f"[yellow]held up[/yellow]: chunks come {number(stream['chunks_per_read'])} at once; a proxy buffers the stream"
    if stream["several_tokens_per_chunk"]:
        yield f"{number(stream['tokens_per_chunk'])} tokens in each chunk (speculative decoding, or a server that packs)"
    if answer["stopped"]:
        yield f"[yellow]stopped[/yellow]: {text(answer['stopped'])}; these are the figures until then"
    client = answer["client"]
    late, delay = client["lateness_p99_s"], client["read_delay_p99_s"]
    shown = [number(None if v is None else 1000 * v) for v in (late, delay, client["cpu_per_request_s"])]
    where = f" on {len(client['nodes'])} node(s)" if client["nodes"] else ""
    workers = f"{client['workers']} worker(s){where}"
    yield f"client: late {shown[0]} ms at p99, read delay {shown[1]} ms at p99, {shown[2]} ms CPU a request, {workers}"
