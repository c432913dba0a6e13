"""Each request's own times, as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from analyzers.grammar import BadQuestion
from analyzers.kinds.results import STATES, Rows
from collectors.workload import Floats, Workload

_TIMES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")
_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", *_TIMES, "state")


class RequestWriter:
    """One row a request, candidate after candidate, in the workload's order. A time that never came is an empty cell."""

    def __init__(self, stream: BinaryIO, workload: Workload, several: bool) -> None:
        self._stream, self._workload, self._several = stream, workload, several
        stream.write(",".join([*(["candidate"] if several else []), *_COLUMNS]).encode() + b"\n")

    def write(self, candidate: str, rows: Rows) -> None:
        work = self._workload
        columns = {
            **({"candidate": pa.repeat(candidate, len(work))} if self._several else {}),
            **{name: getattr(work, name) for name in _COLUMNS[:3]},
            **{name: _came(getattr(rows, name)) for name in _TIMES},
            "state": pa.DictionaryArray.from_arrays(rows.state, list(STATES)).cast(pa.string()),
        }
        quoting = "needed" if self._several else "none"  # a candidate's name has commas, a state has none
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style=quoting)
        pyarrow.csv.write_csv(pa.table(columns), self._stream, options)


@contextmanager
def writing(path: Path | None, workload: Workload, several: bool) -> Iterator[RequestWriter | None]:
    """Raises BadQuestion where ``path`` cannot be written. several: candidates, told apart by a column."""
    if path is None:
        yield None
        return
    try:
        with path.open("wb") as stream:
            yield RequestWriter(stream, workload, several)
    except OSError as error:
        raise BadQuestion(f"--requests-out {path}: cannot be written ({error.strerror or error})") from error


def _came(values: Floats) -> pa.Array:
    return pa.array(values, mask=values < 0)
