"""Jobs that were run: when each was wanted, when it began and ended. Owns the CSV of them. Knows no platform."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from collectors.discovery import DiscoveryContext

_COLUMNS = ("name", "created", "started", "ended", "failed", "prompt_tokens", "output_tokens")
_MOST_ROWS = 2_000_000


class BadJobFile(ValueError):
    """What a file of jobs says that cannot be. The text names the row."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One job: a file, a data set, a call that nobody waits for. Times are Unix seconds; None: not yet, or not told."""

    name: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    failed: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None


@runtime_checkable
class JobPlatform(Protocol):
    """A system (``collectors.discovery.System``) that can tell of the jobs it ran."""

    async def jobs(self, context: DiscoveryContext, of: str) -> list[BatchJob]:
        """Those that it still knows of, of a service or a job by that name. Sends only reads. Raises CollectError."""


def as_csv(jobs: Iterable[BatchJob]) -> str:
    """With a header; times in RFC 3339; what is not known stays empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for job in sorted(jobs, key=lambda job: (job.created_at, job.name)):
        times = (_moment(at) for at in (job.created_at, job.started_at, job.ended_at))
        rows.writerow([job.name, *times, str(job.failed).lower(), job.prompt_tokens, job.output_tokens])
    return text.getvalue()


def read_jobs(path: Path) -> list[BatchJob]:
    """``created``, ``started`` and ``ended`` are needed, in Unix seconds or RFC 3339; the other columns may lack.

    Raises BadJobFile, OSError.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        lacking = [name for name in ("created", "started", "ended") if name not in (rows.fieldnames or ())]
        if lacking:
            raise BadJobFile(f"{path}: has no column {', '.join(lacking)}; expected: {','.join(_COLUMNS)}")
        found = []
        try:
            for number, row in enumerate(rows, 2):
                if number > _MOST_ROWS:
                    raise BadJobFile(f"{path}: more than {_MOST_ROWS:,} rows")
                found.append(_job(row, f"{path}: line {number}"))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadJobFile(f"{path}: is no CSV ({error})") from error
    return found


def _job(row: Mapping[str, Any], place: str) -> BatchJob:
    try:
        created, started, ended = (_time(row.get(name)) for name in ("created", "started", "ended"))
        tokens = [int(row[name]) if row.get(name) else None for name in ("prompt_tokens", "output_tokens")]
    except (ValueError, TypeError) as error:
        raise BadJobFile(f"{place}: {error}") from error
    if created is None:
        raise BadJobFile(f"{place}: created is empty")
    known = [at for at in (created, started, ended) if at is not None]
    if sorted(known) != known or any(n is not None and n < 0 for n in tokens):
        raise BadJobFile(f"{place}: created, started and ended must follow each other, and tokens be 0 or more")
    failed = str(row.get("failed") or "").strip().lower() in ("true", "1", "yes", "failed")
    return BatchJob(str(row.get("name") or ""), created, started, ended, failed, *tokens)


def _time(text: Any) -> float | None:
    said = str(text or "").strip()
    if not said:
        return None
    try:
        return float(said)
    except ValueError:
        at = datetime.fromisoformat(said)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _moment(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
