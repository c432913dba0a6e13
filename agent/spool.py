"""Rides out a database outage: windows that could not be saved wait on disk, bounded, and none is lost once it was taken."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from agent.store.windows import Entry, pack, unpack
from collectors.window import Gauge, Range, Window

log = structlog.get_logger()

#: Files that are kept for a person to look at; beyond them the trouble is only counted.
_MOST_ASIDE = 100
_Int = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one file holds."""

    entries: Sequence[Entry]
    damaged: int
    """How many more it should hold, that cannot be read."""


class Spool:
    """A folder of small JSON files, one a batch, oldest first. Raises no OSError: the disk's trouble is said, counted, and passed by."""

    def __init__(self, folder: Path, limit_bytes: int = 256 * 1024 * 1024) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._next = 0
        self._given_up: set[Path] = set()
        """Files that can be neither read nor moved."""

    def put(self, entries: Sequence[Entry]) -> bool:
        """Keep a batch; True once it is on disk. False: it does not fit, or the disk refused it."""
        try:
            data = json.dumps([_to_json(entry) for entry in entries], allow_nan=False).encode()
            fits = self.size() + len(data) <= self._limit
            if fits:
                self._write(data)
        except (OSError, ValueError) as error:  # the disk is full or gone: say so, and let the loop go on
            log.error("spool_unwritable", error=str(error))
            fits = False
        return fits

    def _write(self, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        names = [int(path.stem) for path in self._files() if path.stem.isdecimal()]
        self._next = max([self._next, *names]) + 1
        path = self._folder / f"{self._next:012d}.json"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)

    def batches(self) -> list[Path]:
        """What waits, oldest first."""
        return [path for path in self._files() if path not in self._given_up]

    def read(self, batch: Path) -> Batch:
        """The windows of one batch, and how many of it are damaged. Raises ValueError when nothing of it can be read."""
        try:
            items = json.loads(batch.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{batch} cannot be read: {error!r}") from error
        if not isinstance(items, list):
            raise ValueError(f"{batch} is not a batch of windows")
        entries = [entry for item in items if (entry := _from_json(item)) is not None]
        return Batch(entries, len(items) - len(entries))

    def remove(self, batch: Path) -> None:
        try:
            batch.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(batch, error)

    def set_aside(self, batch: Path) -> None:
        """Keep a damaged batch for a person to look at, out of the way."""
        try:
            batch.rename(batch.with_suffix(".damaged"))
        except OSError as error:
            self._give_up(batch, error)

    def keep_refused(self, entry: Entry, reason: str) -> None:
        """Keep a window that the database never takes, with the reason, for a person to look at."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if len(list(self._folder.glob("*.refused"))) < _MOST_ASIDE:
                name = f"{entry.window.start:.0f}-{abs(hash((entry.window.endpoint, entry.window.source))):x}.refused"
                text = json.dumps({"reason": reason, "window": _to_json(entry)})
                (self._folder / name).write_text(text, encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            log.error("spool_unwritable", error=str(error))

    def size(self) -> int:
        """Bytes that wait."""
        total = 0
        for path in self._files():
            try:
                total += path.stat().st_size
            except OSError:  # drained just now, or not ours to look at
                continue
        return total

    def _give_up(self, batch: Path, error: OSError) -> None:
        log.error("spool_stuck", batch=str(batch), error=str(error))
        self._given_up.add(batch)

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        except OSError as error:
            log.error("spool_unreadable", error=str(error))
            return []


class _SpooledWindow(BaseModel):
    """One window as it lies on disk: strict, because a batch that does not fit must not look like an outage of the database."""

    model_config = ConfigDict(strict=True, extra="forbid")

    endpoint: str
    source: str
    start: FiniteFloat
    duration_s: Annotated[FiniteFloat, Field(gt=0)]
    coverage: Annotated[FiniteFloat, Field(ge=0, le=1)]
    targets: _Int
    restarts: _Int
    counts: dict[str, FiniteFloat]
    sketches: str
    gauges: dict[str, Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]]
    errors: dict[str, _Int]
    facts: dict[str, str]
    quantiles: dict[str, dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]]
    observed: dict[str, FiniteFloat]
    cost_usd: FiniteFloat | None


def _to_json(entry: Entry) -> dict[str, Any]:
    window = entry.window
    fields = {name: getattr(window, name) for name in Window.__slots__}
    for name in ("counts", "errors", "facts", "observed"):
        fields[name] = dict(fields[name])
    fields["gauges"] = {name: [g.mean, g.maximum, g.last] for name, g in window.gauges.items()}
    fields["quantiles"] = {
        name: {str(q): [r.least, r.most] for q, r in ranges.items()} for name, ranges in window.quantiles.items()
    }
    fields["sketches"] = base64.b64encode(pack(window.sketches)).decode()
    return fields | {"cost_usd": entry.cost_usd}


def _from_json(data: object) -> Entry | None:
    """None where it is no window."""
    try:
        fields = _SpooledWindow.model_validate(data).model_dump()
        cost = fields.pop("cost_usd")
        fields["sketches"] = unpack(base64.b64decode(fields["sketches"], validate=True))
        fields["gauges"] = {name: Gauge(*values) for name, values in fields["gauges"].items()}
        fields["quantiles"] = {
            name: {float(q): Range(*ends) for q, ends in ranges.items()} for name, ranges in fields["quantiles"].items()
        }
    except (ValidationError, ValueError, RecursionError):
        return None
    return Entry(Window(**fields), cost)
