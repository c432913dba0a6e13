"""Request traces: a file with one request a row, read as a Workload.

Owns the formats: Flyball's own columns in CSV or Parquet, and the public traces of Azure, BurstGPT and Mooncake. Nothing is mended
in silence: a row that is left out or changed is counted in the notes, anything else that is wrong is ``BadTrace``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from collectors.tracefile import BLOCKS, NUMBER, TEXT, BadTrace, TraceFile, opened, short
from collectors.workload import Floats, Ints, Workload

__all__ = ["FORMATS", "BadTrace", "read_trace", "write_trace"]

#: Tokens that one block of a Mooncake trace's ``hash_ids`` stands for.
MOONCAKE_BLOCK = 512
#: Beyond the year 2001 in Unix seconds: no workload starts that long after its own beginning.
_UNIX_S = 1e9
_MOST_TOKENS = 1e9
#: Names of columns that are at least so alike are probably meant to be the same.
_ALIKE = 0.6
_A_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)\s*$")


def read_trace(path: Path | str, format: str | None = None, notes: list[str] | None = None) -> Workload:  # noqa: A002
    """The requests of a file.

    format: ``flyball`` (columns ``arrival_s,prompt_tokens,output_tokens[,prefix_tokens,session]``), ``azure`` (the LLM inference
    traces of 2023 and 2024), ``burstgpt`` or ``mooncake``. None: by the names of the columns.
    notes: what was left out or changed is added to it, a line each, with counts.
    Raises BadTrace on a file that cannot be read, or that says something impossible.
    """
    file = opened(Path(path))
    name = _format_name(file, format)
    _require(file, name)
    return _FORMATS[name].read(file, [] if notes is None else notes)


def write_trace(workload: Workload, path: Path | str) -> None:
    """Write Flyball's own columns, as CSV, or as Parquet where the name ends in ``.parquet``."""
    names = ["arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens"]
    columns: dict[str, Any] = {name: getattr(workload, name) for name in names}
    if workload.session is not None:
        columns["session"] = workload.session
    table = pa.table(columns)
    if Path(path).suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with Path(path).open("wb") as stream:
            stream.write(",".join(table.column_names).encode() + b"\n")
            pacsv.write_csv(table, stream, pacsv.WriteOptions(include_header=False, quoting_style="none"))


# -- columns ------------------------------------------------------------------------------------------------------------


def _refuse(file: TraceFile, name: str, bad: NDArray[np.bool_], values: Floats | Ints, do: str, what: str) -> None:
    """Raise for the first row where ``bad``; ``what`` may hold ``{}`` for its value."""
    if bad.any():
        row = int(bad.argmax())
        raise file.wrong(what.format(values[row]), do, row=row, column=name)


def _numbers(file: TraceFile, name: str, column: pa.Array) -> Floats:
    """(n,) finite numbers."""
    if column.null_count:
        raise file.wrong("is missing", "Write a number", row=_first_null(column), column=name)
    values: Floats = column.to_numpy(zero_copy_only=False).copy()  # Arrow's own memory is read-only
    _refuse(file, name, ~np.isfinite(values), values, "Write a finite number", "is {}")
    return values


def _first_null(column: pa.Array) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))


def _seconds(file: TraceFile, name: str, column: pa.Array) -> Floats:
    values = _numbers(file, name, column)
    _refuse(file, name, values < 0, values, "Count from the start of the trace, 0 or more", "is {:g}")
    return values


def _tokens(file: TraceFile, name: str, column: pa.Array, least: int) -> Ints:
    values = _numbers(file, name, column)
    _refuse(file, name, values != np.floor(values), values, "Tokens are whole numbers", "is {:g}")
    _refuse(file, name, values < least, values, f"Write {least} or more, or leave the row out", "is {:g}")
    _refuse(file, name, values > _MOST_TOKENS, values, "No request is so large; check the column", "is {:g}")
    return values.astype(np.int64)


def _must_ascend(file: TraceFile, name: str, times: Floats) -> None:
    back = np.flatnonzero(np.diff(times) < 0)
    if back.size:
        row = int(back[0]) + 1
        what = f"is {times[row]:g}, earlier than {times[row - 1]:g} in the row before it"
        raise file.wrong(what, f"Sort the rows by {name}", row=row, column=name)


def _left_out(keep: NDArray[np.bool_], why: str, notes: list[str]) -> None:
    gone = int(np.count_nonzero(~keep))
    if gone:
        notes.append(f"left out {gone} of {keep.shape[0]} rows: {why}")


def _sorted(times: Floats | Ints, name: str, notes: list[str]) -> NDArray[np.intp]:
    """The stable order by time. Public traces are collected from several machines, and are not always in order."""
    back = int(np.count_nonzero(np.diff(times) < 0))
    if back:
        notes.append(f"sorted by {name}: {back} of {times.shape[0]} rows stood behind a later one")
    return np.argsort(times, kind="stable")


def _sessions(file: TraceFile, column: pa.Array) -> Ints:
    """Any names as 0..n in order of appearance; a request without one is a session of its own."""
    if pa.types.is_floating(column.type):  # whole numbers with gaps, as pandas stores them
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        named = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        codes: Ints = pc.fill_null(named.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False).copy()
    except pa.ArrowException as error:
        raise file.wrong(f"holds {column.type}", "Store text or whole numbers", column="session") from error
    without = codes < 0
    codes[without] = len(named.dictionary) + np.arange(int(without.sum()))
    return codes


# -- formats ------------------------------------------------------------------------------------------------------------


def _flyball(file: TraceFile, notes: list[str]) -> Workload:
    numbers = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens")
    found = file.columns({**dict.fromkeys(numbers, NUMBER), "session": TEXT})
    unread = [name for name in file.names if name not in found]
    if unread:
        notes.append(f"columns that are not used: {', '.join(unread)}")
    arrival = _seconds(file, "arrival_s", found["arrival_s"])
    prompt = _tokens(file, "prompt_tokens", found["prompt_tokens"], 1)
    output = _tokens(file, "output_tokens", found["output_tokens"], 0)
    _must_ascend(file, "arrival_s", arrival)
    if arrival[0] > _UNIX_S:
        notes.append("arrival_s is Unix time: counted from the first arrival")
        arrival = arrival - arrival[0]
    prefix = np.zeros_like(prompt)
    if "prefix_tokens" in found:
        prefix = _tokens(file, "prefix_tokens", found["prefix_tokens"], 0)
        _refuse(
            file, "prefix_tokens", prefix > prompt, prefix, "Write a part of prompt_tokens", "is {}, beyond the prompt"
        )
        prefix = _below(prompt, prefix, notes)
    return Workload(arrival, prompt, output, prefix, _sessions(file, found["session"]) if "session" in found else None)


def _below(prompt: Ints, prefix: Ints, notes: list[str]) -> Ints:
    """At least one token of a prompt is computed, also where all of it is cached."""
    whole = int(np.count_nonzero(prefix == prompt))
    if whole:
        notes.append(f"{whole} prompts are cached whole: their last token is computed all the same")
    return np.minimum(prefix, prompt - 1)


def _azure(file: TraceFile, notes: list[str]) -> Workload:
    found = file.columns({"TIMESTAMP": TEXT, "ContextTokens": NUMBER, "GeneratedTokens": NUMBER})
    instant = _instants(file, "TIMESTAMP", found["TIMESTAMP"])
    prompt = _tokens(file, "ContextTokens", found["ContextTokens"], 0)
    output = _tokens(file, "GeneratedTokens", found["GeneratedTokens"], 0)
    keep = prompt > 0
    _left_out(keep, "0 ContextTokens", notes)
    return _plain(file, instant, 1e9, prompt, output, keep, "TIMESTAMP", notes)


def _burstgpt(file: TraceFile, notes: list[str]) -> Workload:
    numbers = ("Timestamp", "Request tokens", "Response tokens")
    found = file.columns({**dict.fromkeys(numbers, NUMBER), "Model": TEXT})
    at = _seconds(file, "Timestamp", found["Timestamp"])
    prompt = _tokens(file, "Request tokens", found["Request tokens"], 0)
    output = _tokens(file, "Response tokens", found["Response tokens"], 0)
    answered = output > 0
    _left_out(answered, "0 Response tokens, so the request failed", notes)
    keep = answered & (prompt > 0)
    _left_out(keep | ~answered, "0 Request tokens", notes)
    models = len(found["Model"].unique()) if "Model" in found else 1
    if models > 1:
        notes.append(f"requests to {models} models, taken as one traffic")
    return _plain(file, at, 1.0, prompt, output, keep, "Timestamp", notes)


def _plain(
    file: TraceFile,
    at: Floats | Ints,
    per_s: float,
    prompt: Ints,
    output: Ints,
    keep: NDArray[np.bool_],
    name: str,
    notes: list[str],
) -> Workload:
    """The kept rows in order of time, from the first of them; nothing is known of their caches."""
    if not keep.any():
        raise file.wrong("has no requests left", "Give a trace with at least one that can be replayed")
    at, prompt, output = at[keep], prompt[keep], output[keep]
    order = _sorted(at, name, notes)
    at = at[order]
    return Workload((at - at[0]) / per_s, prompt[order], output[order], np.zeros_like(prompt))


def _instants(file: TraceFile, name: str, column: pa.Array) -> Ints:
    """(n,) nanoseconds since 1970. ISO 8601, with up to nine digits of a second, all with a time zone or all without."""
    if column.null_count:
        raise file.wrong("is missing", "Write a time", row=_first_null(column), column=name)
    zoned = pa.types.is_string(column.type) and bool(_A_ZONE.search(column[0].as_py()))
    try:
        zone = column.type.tz if pa.types.is_timestamp(column.type) else "UTC" if zoned else None
        found: Ints = column.cast(pa.timestamp("ns", zone)).cast(pa.int64()).to_numpy(zero_copy_only=False)
        return found
    except pa.ArrowException as error:
        for row, text in enumerate(column.to_pylist()):
            what = _not_a_time(text, zoned)
            if what:
                raise file.wrong(what, "Write 2024-05-10 00:00:00.123", row=row, column=name) from error
        raise file.wrong(f"cannot be read as times ({short(error)})", "Write ISO 8601", column=name) from error


def _not_a_time(text: object, zoned: bool) -> str | None:
    try:
        at = datetime.fromisoformat(str(text).strip())
    except ValueError:
        return f"is {text!r}"
    if (at.tzinfo is not None) != zoned:
        return f"is {text!r}, {'without' if zoned else 'with'} a time zone where the first row is not"
    return None


def _mooncake(file: TraceFile, notes: list[str]) -> Workload:
    """A prefix is held as far as leading blocks were seen before in the trace.

    A request goes on with the session of the one that first had its deepest matched block, if it has all of that one's full blocks.
    If not, it only shares a beginning with it, most often the system prompt, and begins a session of its own: by blocks alone the
    whole conversation trace, where all share the first, would be one session.
    """
    numbers = ("timestamp", "input_length", "output_length")
    found = file.columns({**dict.fromkeys(numbers, NUMBER), "hash_ids": BLOCKS})
    at = _seconds(file, "timestamp", found["timestamp"]) / 1000.0
    prompt = _tokens(file, "input_length", found["input_length"], 1)
    output = _tokens(file, "output_length", found["output_length"], 0)
    _must_ascend(file, "timestamp", at)
    blocks = found.get("hash_ids")
    if blocks is None or blocks.null_count == len(blocks):
        notes.append("no hash_ids: nothing is known of the prefix cache")
        return Workload(at, prompt, output, np.zeros_like(prompt))
    if blocks.null_count:
        raise file.wrong("is missing", "Write [] where nothing is known", row=_first_null(blocks), column="hash_ids")
    counts = np.diff(blocks.offsets.to_numpy()).astype(np.int64)
    small = counts > -(-prompt // MOONCAKE_BLOCK)
    do = "Its blocks must be of 512 tokens, as Mooncake's are"
    _refuse(file, "hash_ids", small, counts, do, "holds {} blocks, more than the prompt fills")
    matched, writer = _leading_matches(blocks.flatten().to_numpy(zero_copy_only=False), counts)
    whole = np.where(writer >= 0, prompt[writer] // MOONCAKE_BLOCK, 0)
    goes_on = (writer >= 0) & (matched >= whole)
    shared = int(np.count_nonzero((matched > 0) & ~goes_on))
    notes.append(
        f"{int(np.count_nonzero(goes_on))} requests go on with an earlier one's session; {shared} share only a beginning with one"
    )
    prefix = np.minimum(matched * MOONCAKE_BLOCK, prompt - 1)
    return Workload(at, prompt, output, prefix, _chained(np.where(goes_on, writer, np.arange(prompt.shape[0]))))


def _leading_matches(ids: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """For each request: how many leading blocks an earlier request had already, and which request was the first with the last of
    these (-1: none)."""
    n = counts.shape[0]
    row = np.repeat(np.arange(n), counts)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    writer = row[first][inverse]
    place = np.arange(ids.shape[0]) - starts[row]
    matched = counts.copy()
    new = np.flatnonzero(writer >= row)
    np.minimum.at(matched, row[new], place[new])
    deepest = np.full(n, -1)
    some = np.flatnonzero(matched > 0)
    deepest[some] = writer[starts[some] + matched[some] - 1]
    return matched, deepest


def _chained(before: Ints) -> Ints:
    """Sessions 0..n, from the request that each one goes on with (itself: it begins one)."""
    while True:
        further = before[before]
        if np.array_equal(further, before):
            break
        before = further
    return np.unique(before, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Format:
    needs: tuple[str, ...]
    read: Callable[[TraceFile, list[str]], Workload]


_FORMATS: Mapping[str, _Format] = {
    "flyball": _Format(("arrival_s", "prompt_tokens", "output_tokens"), _flyball),
    "azure": _Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    "burstgpt": _Format(("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
    "mooncake": _Format(("timestamp", "input_length", "output_length"), _mooncake),
}
FORMATS = tuple(_FORMATS)
_ALSO = {"csv": "flyball", "parquet": "flyball", "azure2023": "azure", "azure2024": "azure"}


def _format_name(file: TraceFile, given: str | None) -> str:
    """The format that was asked for, else the one whose columns are there, else the one that comes nearest."""
    if given is not None:
        plain = re.sub(r"[^a-z0-9]", "", given.lower())
        name = _ALSO.get(plain, plain)
        if name not in _FORMATS:
            raise file.wrong(f"cannot be read as {given!r}", f"Known formats: {', '.join(FORMATS)}")
        return name
    there = [name for name, f in _FORMATS.items() if set(f.needs) <= set(file.names)]
    if there:
        return there[0]
    near = {name: min(_nearest(need, file.names)[0] for need in f.needs) for name, f in _FORMATS.items()}
    best = max(near, key=lambda name: near[name])
    return best if near[best] > _ALIKE else "flyball"


def _nearest(name: str, among: Sequence[str]) -> tuple[float, str]:
    """How near (0..1), and which."""
    scores = [(difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio(), other) for other in among]
    return max(scores, default=(0.0, ""))


def _require(file: TraceFile, name: str) -> None:
    needs = _FORMATS[name].needs
    for need in needs:
        if need not in file.names:
            score, near = _nearest(need, [n for n in file.names if n not in needs])
            do = f"Rename {near!r}" if score > _ALIKE else f"The {name} format has {', '.join(needs)}"
            raise file.wrong(f"has no column {need!r}, but {', '.join(file.names)[:200]}", do)
