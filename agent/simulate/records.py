"""What is kept of a traffic: each request as a row of a file, and windows in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from agent.simulate.run import TrafficOutcome
from agent.store import Store, windows
from analyzers.grammar import BadQuestion
from collectors.traffic.windows import windows_of
from collectors.traffic.worker import COLUMNS, Row

_GROUP = 10_000
_INTS = {
    "prompt_tokens", "output_tokens", "cached_tokens", "asked_prompt", "asked_output", "chunks", "arrivals", "status", "session", "turn",
}  # fmt: skip
_TEXTS = {"token_source", "packing", "error", "detail", "finish_reason"}


class Records:
    """A file of requests, written as they end: Parquet where its name ends in .parquet, JSON lines where in .jsonl."""

    def __init__(self, path: Path) -> None:
        """Raises BadQuestion."""
        if path.suffix not in (".parquet", ".jsonl"):
            raise BadQuestion(f"--save {path}: end the name in .parquet or .jsonl, which says what is written")
        self._rows: list[Row] = []
        self._lines: IO[str] | None = None
        self._table: Any = None
        try:
            if path.suffix == ".jsonl":
                self._lines = path.open("w", encoding="utf-8")
            else:
                import pyarrow.parquet as pq

                self._table = pq.ParquetWriter(path, _schema())
        except OSError as error:
            raise BadQuestion(f"--save {path}: cannot be written ({error.strerror})") from error

    def add(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if len(self._rows) >= _GROUP:
            self._write()

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        if self._lines is not None:
            self._lines.writelines(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows)
        elif rows:
            import pyarrow as pa

            columns = [list(column) for column in zip(*rows, strict=True)]
            self._table.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=_schema()))

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write()
        if self._lines is not None:
            self._lines.close()
        else:
            self._table.close()


def _schema() -> Any:
    import pyarrow as pa

    def kind(name: str) -> Any:
        if name in _INTS:
            return pa.int64()
        return pa.string() if name in _TEXTS else pa.bool_() if name == "retried" else pa.float64()

    return pa.schema([(name, kind(name)) for name in COLUMNS])


def to_store(store: Store, outcome: TrafficOutcome, window_s: float) -> int:
    """Windows of the source ``traffic`` for the endpoint; how many. Windows are of the collected length."""
    endpoint = outcome.traffic.target.endpoint
    assert endpoint is not None
    run, width = outcome.run, outcome.rules.slice_s
    if window_s % width:
        raise BadQuestion(
            f"windows of {window_s:g} s cannot be made of slices of {width:g} s; set collect.window_s to 60"
        )
    made = windows_of(run.tally, width, endpoint, window_s, run.started_at, run.elapsed_s)
    with store.write() as db:
        return windows.save(db, made, {endpoint: outcome.traffic.prices.tariff})
