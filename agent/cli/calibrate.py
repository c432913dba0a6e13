"""`flyball calibrate`: learn an engine, from an endpoint's own telemetry or from load tests."""

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
    number,
    print_json,
    read_as,
    stdout,
    table,
    text,
    write,
)


def add(app: typer.Typer) -> None:
    app.command()(calibrate)


def calibrate(
    endpoint: Annotated[str | None, typer.Option(help="Learn from this endpoint's telemetry in the store.")] = None,
    since: Annotated[
        str, typer.Option(help="How far back: 7d, 36h, 90m. Only what came since the last change counts.")
    ] = "7d",
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="A load test's result: inference-perf, GuideLLM, AIPerf, vllm bench serve. May be given again.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --from: the model's name, where the files do not tell.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="With --from: what was tested: accelerator=H100,accelerator_count=2,max_num_seqs=128."),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(help="With --from, where the files lack it: 50, fixed:50, uniform:50:200, lognormal:MEAN:CV."),
    ] = None,
    output_tokens: Annotated[str | None, typer.Option(help="The same, of the answers.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="With --from, where the files lack it: requests sent per second.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="With --from, where the files lack it: requests in flight.")
    ] = None,
    accept_misfit: Annotated[
        bool, typer.Option("--accept-misfit", help="Write an engine that did not reach its data, with wide intervals.")
    ] = False,
    gpu: Annotated[str | None, typer.Option(hidden=True)] = None,
    gpus: Annotated[int | None, typer.Option(hidden=True)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(help="Write ENGINE.json here, for `flyball whatif --engine`.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Learn what an iteration of an engine costs, with the doubt that is left.

    Exit code 1 where there is too little evidence, or where no engine of this model does what was measured.
    """
    from agent import calibration
    from agent.calibration import CannotPredict
    from analyzers import grammar
    from analyzers.grammar import BadQuestion
    from collectors.loadtests import BadLoadTest

    notes: list[str] = []
    load = calibration.StatedLoad(prompt_tokens, output_tokens, rate, concurrency)
    try:
        if (endpoint is None) == (not from_):
            raise BadQuestion("give either --endpoint NAME, or --from FILE")
        if endpoint is not None:
            if model or shape or gpu or set_ or gpus or load != calibration.StatedLoad():
                raise BadQuestion(
                    "--model, --shape, --prompt-tokens, --output-tokens, --rate and --concurrency go with --from: "
                    "an endpoint's shape and traffic are known"
                )
            known = _of_endpoint(endpoint, grammar.span(since), config)
        else:
            old = {
                "--gpu": f"accelerator={gpu}" if gpu else None,
                "--gpus": f"accelerator_count={gpus}" if gpus else None,
            }
            texts = [*(shape or []), *read_as("--shape", old | {"--set": ",".join(set_ or []) or None})]
            tested = calibration.tested_shape(texts, notes)
            known = calibration.from_files(from_ or [], model=model, shape=tested, load=load)
        if out is not None and (not known.misfit or accept_misfit):
            write("--out", out, known.engine.to_json())
    except (BadQuestion, BadLoadTest) as error:
        raise fail(str(error), 2) from error
    except CannotPredict as error:
        raise fail(str(error), 1) from error
    for note in notes:
        console.print(f"note: {text(note)}", highlight=False, soft_wrap=True)
    answer = calibration.answer(known)
    if output is Output.json:
        print_json(answer)
    else:
        _show(answer)
    if known.misfit and not accept_misfit:
        unwritten = f"; {out} is not written" if out is not None else ""
        raise misfit(f"{known.warning}{unwritten}")


def misfit(warning: str) -> typer.Exit:
    """An engine that did not reach its data, and nobody who accepts that: exit code 1."""
    return fail(
        f"{warning}. Look at the tests or windows whose figures do not fit the others (a gateway, a cache, another engine?), "
        "or take it as it is with --accept-misfit",
        1,
    )


def _of_endpoint(endpoint: str, since_s: float, config: Path) -> Any:
    from agent import calibration
    from agent.clock import WallClock

    with opened(config) as (store, settings):
        return calibration.from_store(store, settings, endpoint, since_s, WallClock().now())


def _show(answer: dict[str, Any]) -> None:
    rows = [[r["name"], *(number(r[k], digits=4) for k in ("value", "low", "high"))] for r in answer["unknowns"]]
    table("Engine", ["unknown", "value", "10 %", "90 %"], rows, "")
    found = answer["evidence"]
    off = ", ".join(f"{name} {value:.1%}" for name, value in answer["residuals"].items() if value is not None)
    said = f"off by {off or '-'}" if answer["checked"] else "not checked: one load only"
    stdout.print(
        f"{text(answer['key'])}: {found['observations']} observations, {found['requests']:.0f} requests, "
        f"{found['running'][0]:.3g} to {found['running'][1]:.3g} running; {said}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for warning in answer["warnings"]:
        stdout.print(f"warning: {text(warning)}", highlight=False, soft_wrap=True)
    for note in answer["notes"]:
        if note in answer["warnings"]:
            continue
        stdout.print(f"note: {text(note)}", highlight=False, soft_wrap=True)
