"""Request traces: a file with one request a row, read as a Workload.

Owns the formats: Flyball's own columns in CSV or Parquet, what ``flyball simulate --save`` wrote, and the public traces of Azure, BurstGPT,
Mooncake and Bailian. Nothing is mended in silence: a row that is left out or changed is counted in the notes, anything else that is wrong
is ``BadTrace``. Where names do not tell formats or units apart, the values must; where they do not either, it is asked for.
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

__all__ = ["FORMATS", "TIME_UNITS", "BadTrace", "Trace", "read", "read_trace", "write_trace"]

TIME_UNITS: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds."""
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
#: Mean requests per second that a trace of an endpoint may have: below, an hour has not a hundred; above, it is a whole cloud's.
_PLAUSIBLE = (0.02, 1000.0)
#: Where there are signs of another unit: in that one, so few are still possible.
_RARE = 1e-4
_CHATS = ("chat_id", "parent_chat_id")
#: Arrivals below which a mean rate tells nothing, and whole numbers are no habit.
_FEW = 10
#: Tokens that one block of ``hash_ids`` stands for.
MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16
_BLOCK_SIZES = (MOONCAKE_BLOCK, BAILIAN_BLOCK, 32, 64, 128, 256, 1024)
#: A block size is a file's own if so many of its prompts fill as many blocks as they list; another is if nearly all do.
_FITS, _FITS_WELL = 0.5, 0.99
#: Beyond the year 2001 in Unix seconds: no workload starts that long after its own beginning.
_UNIX_S = 1e9
_MOST_TOKENS = 1e9
#: Names of columns that are at least so alike are probably meant to be the same.
_ALIKE = 0.6
_A_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)\s*$")


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a file, and what the file was taken for."""

    workload: Workload
    format: str
    time_unit: str
    """``s``, ``ms``, ``us``, ``ns``, or ``dates``."""
    unread: tuple[str, ...]
    """Columns that were not read."""

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.workload.duration_s - float(self.workload.arrival_s[0])

    @property
    def rate_per_s(self) -> float | None:
        """Mean arrivals per second. None of a single instant."""
        return (len(self.workload) - 1) / self.span_s if self.span_s > 0 else None


def read_trace(
    path: Path | str,
    format: str | None = None,  # noqa: A002
    notes: list[str] | None = None,
    time_unit: str | None = None,
) -> Workload:
    """The requests of a file: ``read`` without what it was taken for."""
    return read(path, format, notes, time_unit).workload


def read(
    path: Path | str,
    format: str | None = None,  # noqa: A002
    notes: list[str] | None = None,
    time_unit: str | None = None,
) -> Trace:
    """The requests of a file, and what it was taken for.

    format: ``flyball`` (columns ``arrival_s,prompt_tokens,output_tokens[,prefix_tokens,session]``), ``simulate`` (its saved requests),
    ``azure`` (the LLM inference traces of 2023 and 2024), ``burstgpt``, ``mooncake`` or ``bailian``. None: by the columns and their
    values.
    notes: what was left out or changed is added to it, a line each, with counts.
    time_unit: of the arrivals, one of ``TIME_UNITS``. None: the format's own, if the values agree with it.
    Raises BadTrace on a file that cannot be read, that says something impossible, or whose times may be of two units.
    """
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise BadTrace(Path(path), f"cannot be read in {time_unit!r}", f"Time units: {', '.join(TIME_UNITS)}")
    file = opened(Path(path))
    name = _format_name(file, format)
    _require(file, name)
    said = [] if notes is None else notes
    clock = _Clock(file, time_unit)
    workload, used = _FORMATS[name].read(file, clock, said)
    unread = tuple(column for column in file.names if column not in used)
    if unread:
        said.append(f"columns that are not used: {', '.join(unread)}")
    return Trace(workload, name, clock.unit, unread)


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
    values: Floats = _array(column).copy()  # Arrow's own memory is read-only
    _refuse(file, name, ~np.isfinite(values), values, "Write a finite number", "is {}")
    return values


def _first_null(column: pa.Array) -> int:
    return int(pc.index(column.is_null(), True).as_py())


def _array(column: pa.Array) -> NDArray[Any]:
    """Arrow's own memory of a column of numbers, none missing. (``to_numpy`` gives the same, but imports pandas where that is installed.)"""
    return np.from_dlpack(column)


def _seconds(file: TraceFile, name: str, column: pa.Array) -> Floats:
    values = _numbers(file, name, column)
    _refuse(file, name, values < 0, values, "Count from the start of the trace, 0 or more", "is {:g}")
    return values


def _plausible_in_seconds(rates: Mapping[str, float]) -> bool:
    return any(_PLAUSIBLE[0] <= rates[unit] <= _PLAUSIBLE[1] for unit in ("s", "ms"))


class _Clock:
    """Which unit a file's times are in: as stated, else its format's own where the values agree."""

    def __init__(self, file: TraceFile, stated: str | None) -> None:
        self._file, self._stated = file, stated
        self.unit = stated or "s"

    def seconds(
        self, name: str, values: Floats, usual: str, *, own: bool, whole: bool | None, notes: list[str]
    ) -> Floats:
        """``values`` in seconds.

        usual: the format's own unit. own: the file shows more of its format than names that others have as well.
        whole: whether the format's times are whole numbers. None: either.
        Raises BadTrace where two units are as likely.
        """
        self.unit = self._stated or self._judged(name, values, usual, own, whole)
        if self.unit != usual:
            why = "as stated" if self._stated else "by its values"
            notes.append(f"{name} is read in {_UNIT_NAMES[self.unit]}, {why}; the format has {_UNIT_NAMES[usual]}")
        return values / round(1.0 / TIME_UNITS[self.unit])

    def _judged(self, name: str, values: Floats, usual: str, own: bool, whole: bool | None) -> str:
        span, n = float(values.max() - values.min()), values.shape[0]
        wholes = bool(np.all(values == np.floor(values)))
        # A single fraction shows that times are not whole; that they may have fractions, only many without one deny.
        odd = (whole is True and not wholes) or (whole is False and wholes and n >= _FEW)
        if span <= 0 or (n < _FEW and not odd):
            return usual
        rates = {unit: (n - 1) / (span * second) for unit, second in TIME_UNITS.items()}
        low, high = _PLAUSIBLE
        usual_likely = low <= rates[usual] <= high
        least = _RARE if odd else low  # what speaks against the usual unit lets another one be of few requests
        # Microseconds and finer are thought of where neither seconds nor milliseconds make sense.
        units = ("s", "ms") if usual_likely or _plausible_in_seconds(rates) else tuple(TIME_UNITS)
        others = [unit for unit in units if unit != usual and least <= rates[unit] <= high]
        if not others or (usual_likely and own and not odd):
            return usual
        if not usual_likely and others[0] in ("s", "ms") and (not own or odd):
            return others[0]
        asked = [usual, *others]
        could = " or in ".join(f"{_UNIT_NAMES[u]} ({rates[u]:.3g} requests a second)" for u in asked)
        raise self._file.wrong(
            f"may be in {could}", f"Say which with {' or '.join(f'--time-unit {u}' for u in asked)}", column=name
        )

    def by_name(self, name: str, values: Floats, notes: list[str]) -> Floats:
        """``values`` of a column whose name tells that they are seconds, unless it is stated otherwise."""
        return self.seconds(name, values, "s", own=True, whole=None, notes=notes) if self._stated else values

    def dates(self, name: str) -> None:
        """Of a column of dates, which have no unit. Raises BadTrace where one is stated."""
        if self._stated:
            raise self._file.wrong("holds dates, which have no unit", "Leave --time-unit out", column=name)
        self.unit = "dates"


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
        codes: Ints = _array(pc.fill_null(named.indices.cast(pa.int64()), -1)).copy()
    except pa.ArrowException as error:
        raise file.wrong(f"holds {column.type}", "Store text or whole numbers", column="session") from error
    without = codes < 0
    codes[without] = len(named.dictionary) + np.arange(int(without.sum()))
    return codes


# -- formats ------------------------------------------------------------------------------------------------------------


#: A workload, and the columns that it was made of.
_Read = tuple[Workload, Sequence[str]]


def _flyball(file: TraceFile, clock: _Clock, notes: list[str]) -> _Read:
    numbers = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens")
    found = file.columns({**dict.fromkeys(numbers, NUMBER), "session": TEXT})
    arrival = clock.by_name("arrival_s", _seconds(file, "arrival_s", found["arrival_s"]), notes)
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
    session = _sessions(file, found["session"]) if "session" in found else None
    return Workload(arrival, prompt, output, prefix, session), tuple(found)


def _simulated(file: TraceFile, clock: _Clock, notes: list[str]) -> _Read:
    """What ``flyball simulate --save`` wrote: a row as each request ended, with the lengths and cache hits that the server counted."""
    numbers = ("due_s", "prompt_tokens", "output_tokens", "cached_tokens")
    found = file.columns({**dict.fromkeys((*numbers, "session"), NUMBER), "error": TEXT})
    failed = ~_null(found["error"])
    untold = _null(found["prompt_tokens"]) & ~failed
    keep = ~(failed | untold)
    _left_out(~failed, "they failed", notes)
    _left_out(~untold, "the server did not tell their prompt_tokens", notes)
    if not keep.any():
        raise file.wrong("has no requests left", "Give one with at least one request that was answered")
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(_seconds(file, "due_s", found["due_s"])[rows], kind="stable")]
    due, prompt, output, cached = (_array(pc.fill_null(found[name], 0.0))[rows] for name in numbers)
    due = clock.by_name("due_s", due, notes)
    prompt = np.maximum(prompt, 1).astype(np.int64)
    prefix = np.clip(cached.astype(np.int64), 0, prompt - 1)
    session = found["session"].take(pa.array(rows))
    sessions = None if session.null_count == len(session) else _sessions(file, session)
    work = Workload(due, prompt, output.astype(np.int64), prefix, sessions)
    return work, file.names  # the other columns are of the server that answered


def _null(column: pa.Array) -> NDArray[np.bool_]:
    """(n,) where nothing stands."""
    found: NDArray[np.bool_] = _array(column.is_null().cast(pa.uint8())).astype(np.bool_)
    return found


def _below(prompt: Ints, prefix: Ints, notes: list[str]) -> Ints:
    """At least one token of a prompt is computed, also where all of it is cached."""
    whole = int(np.count_nonzero(prefix == prompt))
    if whole:
        notes.append(f"{whole} prompts are cached whole: their last token is computed all the same")
    return np.minimum(prefix, prompt - 1)


def _azure(file: TraceFile, clock: _Clock, notes: list[str]) -> _Read:
    found = file.columns({"TIMESTAMP": TEXT, "ContextTokens": NUMBER, "GeneratedTokens": NUMBER})
    clock.dates("TIMESTAMP")
    instant = _instants(file, "TIMESTAMP", found["TIMESTAMP"])
    prompt = _tokens(file, "ContextTokens", found["ContextTokens"], 0)
    output = _tokens(file, "GeneratedTokens", found["GeneratedTokens"], 0)
    keep = prompt > 0
    _left_out(keep, "0 ContextTokens", notes)
    return _plain(file, instant, 1e9, prompt, output, keep, "TIMESTAMP", notes), tuple(found)


def _burstgpt(file: TraceFile, clock: _Clock, notes: list[str]) -> _Read:
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
    at = clock.seconds("Timestamp", at, "s", own=True, whole=None, notes=notes)
    return _plain(file, at, 1.0, prompt, output, keep, "Timestamp", notes), tuple(found)


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
        found: Ints = _array(column.cast(pa.timestamp("ns", zone)).cast(pa.int64()))
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


def _hash_columns(file: TraceFile) -> tuple[Mapping[str, Any], Floats, Ints, Ints]:
    """The columns that traces with hashed blocks share: all of them, times as written, prompt and output tokens."""
    numbers = ("timestamp", "input_length", "output_length")
    found = file.columns({**dict.fromkeys(numbers, NUMBER), "hash_ids": BLOCKS})
    at = _seconds(file, "timestamp", found["timestamp"])
    prompt = _tokens(file, "input_length", found["input_length"], 1)
    output = _tokens(file, "output_length", found["output_length"], 0)
    _must_ascend(file, "timestamp", at)
    return found, at, prompt, output


def _mooncake(file: TraceFile, clock: _Clock, notes: list[str]) -> _Read:
    """Times in milliseconds, blocks of 512 tokens."""
    found, at, prompt, output = _hash_columns(file)
    blocks = _blocks(file, found.get("hash_ids"), prompt, MOONCAKE_BLOCK, notes)
    own = blocks is not None and blocks.size == MOONCAKE_BLOCK
    at = clock.seconds("timestamp", at, "ms", own=own, whole=True, notes=notes)
    used = [name for name in found if name != "hash_ids" or blocks is not None]
    if blocks is None:
        return Workload(at, prompt, output, np.zeros_like(prompt)), used
    prefix, before = _continued(blocks, prompt, notes)
    return Workload(at, prompt, output, prefix, _chained(before)), used


def _bailian(file: TraceFile, clock: _Clock, notes: list[str]) -> _Read:
    """Times in seconds, blocks of 16 tokens; ``parent_chat_id`` tells which request a request goes on with."""
    found, at, prompt, output = _hash_columns(file)
    blocks = _blocks(file, found.get("hash_ids"), prompt, BAILIAN_BLOCK, notes)
    at = clock.seconds("timestamp", at, "s", own=True, whole=False, notes=notes)
    used = [name for name in found if name != "hash_ids" or blocks is not None]
    if blocks is None:
        return Workload(at, prompt, output, np.zeros_like(prompt)), used
    prefix, before = _continued(blocks, prompt, notes)
    if (chats := _chats(file)) is not None:
        before, used = _parents(*chats), [*used, *_CHATS]
    return Workload(at, prompt, output, prefix, _chained(before)), used


def _chats(file: TraceFile) -> tuple[Floats, Floats] | None:
    """(n,) the number of each request and of the one before it in its conversation; None where they are no numbers."""
    if not set(_CHATS) <= set(file.names):
        return None
    try:
        found = file.columns(dict.fromkeys(_CHATS, NUMBER))
        own, parent = (_numbers(file, name, found[name]) for name in _CHATS)
    except BadTrace:
        return None
    return own, parent


def _parents(chat: Floats, parent: Floats) -> Ints:
    """(n,) the row that each row goes on with: the latest one above it of its parent's name; itself where there is none."""
    seen: dict[float, int] = {}
    before = np.arange(chat.shape[0])
    for i, (own, other) in enumerate(zip(chat.tolist(), parent.tolist(), strict=True)):
        before[i] = seen.get(other, i)
        seen[own] = i
    return before


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What the prompts consist of."""

    ids: Ints
    """Of all prompts, one after the other."""
    counts: Ints
    """(n,) of each prompt."""
    size: int
    """Tokens."""


def _blocks(file: TraceFile, column: pa.Array | None, prompt: Ints, usual: int, notes: list[str]) -> _Blocks | None:
    """None where the file has none. The size is the format's, ``usual``, unless the prompts fit another one, and not this."""
    if column is None or column.null_count == len(column):
        notes.append("no hash_ids: nothing is known of the prefix cache")
        return None
    if column.null_count:
        raise file.wrong("is missing", "Write [] where nothing is known", row=_first_null(column), column="hash_ids")
    counts = np.diff(_array(column.offsets)).astype(np.int64)
    size = _block_size(counts, prompt, usual)
    if size != usual:
        notes.append(f"hash_ids are of {size} tokens, by the prompts' lengths; the format has {usual}")
    small = counts > -(-prompt // size)
    do = f"Its blocks must be of {size} tokens"
    _refuse(file, "hash_ids", small, counts, do, "holds {} blocks, more than the prompt fills")
    ids = column.flatten()
    if ids.null_count:
        row = int(np.searchsorted(np.cumsum(counts), _first_null(ids), "right"))
        raise file.wrong("holds null", "Write whole numbers", row=row, column="hash_ids")
    return _Blocks(_array(ids), counts, size)


def _block_size(counts: Ints, prompt: Ints, usual: int) -> int:
    def fit(size: int) -> float:
        known = counts > 0
        full = prompt[known] // size
        return (
            float(np.mean((counts[known] == full) | (counts[known] == -(-prompt[known] // size))))
            if known.any()
            else 1.0
        )

    best = max(_BLOCK_SIZES, key=fit)
    return best if fit(usual) < _FITS and fit(best) >= _FITS_WELL else usual


def _continued(blocks: _Blocks, prompt: Ints, notes: list[str]) -> tuple[Ints, Ints]:
    """(n,) each: prefix tokens that are in the cache, and the request that each one goes on with (itself: none).

    A prefix is held as far as leading blocks were seen before in the trace. A request goes on with the session of the one that first
    had its deepest matched block, if it has all of that one's full blocks. If not, it only shares a beginning with it, most often the
    system prompt, and begins a session of its own: by blocks alone Mooncake's whole conversation trace, where all share the first,
    would be one session.
    """
    matched, writer = _leading_matches(blocks.ids, blocks.counts)
    whole = np.where(writer >= 0, prompt[writer] // blocks.size, 0)
    goes_on = (writer >= 0) & (matched >= whole)
    shared = int(np.count_nonzero((matched > 0) & ~goes_on))
    notes.append(
        f"{int(np.count_nonzero(goes_on))} requests go on with an earlier one's session; {shared} share only a beginning with one"
    )
    return np.minimum(matched * blocks.size, prompt - 1), np.where(goes_on, writer, np.arange(prompt.shape[0]))


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
    read: Callable[[TraceFile, _Clock, list[str]], _Read]


_FORMATS: Mapping[str, _Format] = {
    "flyball": _Format(("arrival_s", "prompt_tokens", "output_tokens"), _flyball),
    "azure": _Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    "burstgpt": _Format(("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
    "simulate": _Format(("due_s", "prompt_tokens", "output_tokens", "error"), _simulated),
    "mooncake": _Format(("timestamp", "input_length", "output_length"), _mooncake),
    "bailian": _Format(("timestamp", "input_length", "output_length"), _bailian),
}
FORMATS = tuple(_FORMATS)
#: Columns that Bailian's traces have and Mooncake's have not; so many of them are a sign.
_OF_BAILIAN, _A_SIGN = ("chat_id", "parent_chat_id", "turn", "type"), 2
_ALSO = {
    "qwen": "bailian",
    "qwenbailian": "bailian",
    "csv": "flyball",
    "parquet": "flyball",
    "azure2023": "azure",
    "azure2024": "azure",
}


def _format_name(file: TraceFile, given: str | None) -> str:
    """The format that was asked for, else the one whose columns are there, else the one that comes nearest."""
    if given is not None:
        plain = re.sub(r"[^a-z0-9]", "", given.lower())
        name = _ALSO.get(plain, plain)
        if name not in _FORMATS:
            raise file.wrong(f"cannot be read as {given!r}", f"Known formats: {', '.join(FORMATS)}")
        return name
    there = [name for name, f in _FORMATS.items() if set(f.needs) <= set(file.names)]
    if "mooncake" in there and _is_bailian(file):
        return "bailian"
    if there:
        return there[0]
    near = {name: min(_nearest(need, file.names)[0] for need in f.needs) for name, f in _FORMATS.items()}
    best = max(near, key=lambda name: near[name])
    return best if near[best] > _ALIKE else "flyball"


def _is_bailian(file: TraceFile) -> bool:
    """Which of the two formats that share three names it is: by its other columns, else by the size of its blocks."""
    if sum(name in file.names for name in _OF_BAILIAN) >= _A_SIGN:
        return True
    if "hash_ids" not in file.names:
        return False
    try:
        found = file.columns({"input_length": NUMBER, "hash_ids": BLOCKS})
        if found["hash_ids"].null_count or found["input_length"].null_count:
            return False
        counts = np.diff(_array(found["hash_ids"].offsets)).astype(np.int64)
        prompt = _array(found["input_length"])
        tokens = np.clip(np.nan_to_num(prompt), 0, _MOST_TOKENS).astype(np.int64)
        return _block_size(counts, tokens, MOONCAKE_BLOCK) == BAILIAN_BLOCK
    except BadTrace:  # the format's own reader says what is wrong, and where
        return False


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
