"""`flyball jobs`: jobs that a platform ran, and what they would cost elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.discover import OptionOption, SystemArgument, options_of
from agent.cli.output import (
    Output,
    OutputOption,
    duration,
    fail,
    money,
    number,
    print_json,
    stdout,
    table,
    warnings_on_stderr,
    write,
)

if TYPE_CHECKING:
    from analyzers.advise.jobs import JobEstimate, JobSet

_app = typer.Typer(
    no_args_is_help=True, help="Jobs that were run: read them from their platform, and compare where they could run."
)


def add(app: typer.Typer) -> None:
    app.add_typer(_app, name="jobs")


@_app.command()
def read(
    system: SystemArgument,
    of: Annotated[str, typer.Argument(help="The service (oscar) or the batch job (nomad), by name.")],
    option: OptionOption = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the CSV. Default: standard output.")] = None,
) -> None:
    """The jobs that a platform still knows of, as CSV: when each was wanted, began and ended. Sends nothing but reads."""
    import asyncio

    from agent.discover import jobs_of
    from collectors.jobs import as_csv

    with warnings_on_stderr():
        found = asyncio.run(jobs_of(system, options_of(option), of))
    if out is not None:
        write("--out", out, as_csv(found))
    else:
        typer.echo(as_csv(found), nl=False)


@_app.command()
def advise(
    file: Annotated[
        Path, typer.Argument(help="Jobs: created,started,ended and more, as `flyball jobs read` writes them.")
    ],
    offers: Annotated[list[Path], typer.Option(help="OFFERS.yaml: what can be had; see docs/advise.md.")],
    deadline: Annotated[
        str | None,
        typer.Option(help="Each job is to be done so long after it was wanted: 8h, 30min. Default: whenever."),
    ] = None,
    price: Annotated[
        list[str] | None, typer.Option(help="Instead of what an offer says: gpu.usd_per_replica_hour=2.5.")
    ] = None,
    token_prices: Annotated[Path | None, typer.Option(help="LiteLLM's price list, for offers with `model`.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """What these jobs would cost on machines, on instances that start for each, or as a batch; and when they would be done."""
    from agent.advise import sources
    from analyzers.advise.jobs import JobSet, ranked
    from analyzers.grammar import BadQuestion
    from collectors.jobs import BadJobFile, read_jobs

    notes: list[str] = []
    try:
        jobs = JobSet.of(read_jobs(file))
        limit_s = None if deadline is None else duration(deadline)
        found = ranked(sources.priced(sources.offers(offers, token_prices, notes), price or []), jobs, limit_s)
    except (BadJobFile, BadQuestion) as error:
        raise fail(str(error), 2) from error
    except OSError as error:
        raise fail(f"{file}: {error.strerror}", 2) from error
    except ValueError as error:
        raise fail(f"{file}: {error}") from error
    if output is Output.json:
        return print_json(_as_dict(jobs, found, limit_s, notes))
    return _print(jobs, found, notes)


def _as_dict(
    jobs: JobSet, found: Sequence[JobEstimate], deadline_s: float | None, notes: Sequence[str]
) -> dict[str, Any]:
    from dataclasses import asdict

    import numpy as np

    seen = {
        "jobs": len(jobs),
        "failed": jobs.failed,
        "unfinished": jobs.unfinished,
        "run_hours": jobs.hours,
        **{
            f"{name}_p{q:g}_s": float(np.quantile(values, q / 100))
            for name, values in (("wait", jobs.wait_s), ("run", jobs.run_s), ("done", jobs.done_s))
            for q in (50, 95)
        },
    }
    return {
        "schema_version": 1,
        "seen": seen,
        "deadline_s": deadline_s,
        "options": [asdict(estimate) for estimate in found],
        "notes": list(notes),
    }


def _print(jobs: JobSet, found: Sequence[JobEstimate], notes: Sequence[str]) -> None:
    seen = _as_dict(jobs, found, None, notes)["seen"]
    stdout.print(
        f"{seen['jobs']:,} jobs, {seen['failed']:,} failed, {seen['unfinished']:,} not done; waited {number(seen['wait_p50_s'], 's')} "
        f"(p95 {number(seen['wait_p95_s'], 's')}), ran {number(seen['run_p50_s'], 's')} (p95 {number(seen['run_p95_s'], 's')}), "
        f"{number(seen['run_hours'])} h in all",
        highlight=False,
        soft_wrap=True,
    )
    met = {True: "yes", False: "no", None: "not known"}
    rows = [
        [
            estimate.name,
            estimate.option.value,
            "" if estimate.units is None else str(estimate.units),
            money(estimate.usd),
            money(estimate.usd_per_job),
            number(estimate.done_p95_s, "s"),
            number(estimate.whole_s, "s"),
            met[estimate.meets],
            "; ".join([*estimate.notes, *(f"lacks {name}" for name in estimate.lacking)]),
        ]
        for estimate in found
    ]
    columns = ["offer", "option", "units", "all", "a job", "done p95", "all done", "in time", "notes"]
    table("Where these jobs could run, the best first", columns, rows, "no offers")
    for note in notes:
        stdout.print(f"note: {note}", highlight=False, soft_wrap=True)
