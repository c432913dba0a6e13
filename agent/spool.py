"""Rides out a database outage: windows that could not be saved wait on disk, bounded, and none is lost once it was taken."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from agent.store.windows import pack, unpack
from collectors.window import Gauge, Window

log = structlog.get_logger()


class Spool:
    """A folder of small JSON files, one a batch, oldest first."""

    def __init__(self, folder: Path, limit_bytes: int = 256 * 1024 * 1024) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._next = 0
        self.dropped = 0
        """Windows that did not fit. Shown, never silent."""

    def put(self, windows: Sequence[Window]) -> bool:
        """Keep a batch; True once it is on disk. False: it does not fit, or the disk refused it; it was counted as dropped."""
        data = json.dumps([_to_json(w) for w in windows]).encode()
        try:
            fits = self.size() + len(data) <= self._limit
            if fits:
                self._write(data)
        except OSError as error:  # the disk is full or gone: say so, and let the loop go on
            log.error("spool_unwritable", error=str(error))
            fits = False
        self.dropped += 0 if fits else len(windows)
        return fits

    def _write(self, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        names = [int(p.stem) for p in self._files()]
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
        return self._files()

    def read(self, batch: Path) -> list[Window]:
        """The windows of one batch. Raises ValueError when the file is damaged."""
        try:
            return [_from_json(item) for item in json.loads(batch.read_bytes())]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{batch} is not a batch of windows: {error!r}") from error

    def remove(self, batch: Path) -> None:
        batch.unlink(missing_ok=True)

    def set_aside(self, batch: Path) -> None:
        """Keep a damaged batch for a person to look at, out of the way."""
        batch.rename(batch.with_suffix(".damaged"))

    def size(self) -> int:
        """Bytes that wait."""
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []


def _to_json(window: Window) -> dict[str, Any]:
    fields = {name: getattr(window, name) for name in Window.__slots__ if name not in ("sketches", "gauges")}
    for name in ("counts", "errors", "facts"):
        fields[name] = dict(fields[name])
    fields["gauges"] = {name: [g.mean, g.maximum, g.last] for name, g in window.gauges.items()}
    fields["sketches"] = base64.b64encode(pack(window.sketches)).decode()
    return fields


def _from_json(data: dict[str, Any]) -> Window:
    data["sketches"] = unpack(base64.b64decode(data["sketches"]))
    data["gauges"] = {name: Gauge(*values) for name, values in data["gauges"].items()}
    return Window(**data)
