"""Files of rows, opened and read by columns: CSV, Parquet and JSON lines, with errors that say where.

Owns what a file is and where in it something stands; what its columns mean is ``traces``' business. Whole columns are read at once,
so that millions of rows take seconds; a file is walked line by line only to say where it is wrong.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

NUMBER, TEXT, BLOCKS = pa.float64(), pa.string(), pa.list_(pa.int64())
"""What a column may be asked for as."""
_A_NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?|nan)\s*", re.IGNORECASE)


class BadTrace(ValueError):
    """A trace that cannot be used: which file, where in it, what is wrong, and what to do."""

    def __init__(self, file: Path, what: str, do: str, *, where: str = "", column: str = "") -> None:
        at = f"{file}:{where}" if where.isdigit() else f"{file}: {where}" if where else str(file)
        super().__init__(f"{at}: {f'{column} ' if column else ''}{what}. {do}")
        self.file = file
        self.where = where
        """The line of a text file, or ``row 7`` of a Parquet file, both from 1; empty where it is the whole file."""
        self.column = column


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A file whose kind and columns are known, and whose rows are not read yet."""

    path: Path
    kind: str
    """``CSV``, ``Parquet`` or ``JSON lines``."""
    names: tuple[str, ...]
    skip: int = 0
    """Lines up to and with the header."""

    def columns(self, wanted: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
        """The wanted columns, those of them that the file has. Raises BadTrace where a cell is not of its type."""
        types = {name: kind for name, kind in wanted.items() if name in self.names or self.kind == "JSON lines"}
        table = _LOADERS[self.kind](self, types)
        if table.num_rows == 0:
            raise self.wrong("has no requests", "Give a trace with at least one row")
        return {name: table.column(name).combine_chunks() for name in types}

    def wrong(self, what: str, do: str, *, row: int | None = None, column: str = "") -> BadTrace:
        """An error about a row (from 0, the header apart), said as a person finds it in the file."""
        where = ""
        if row is not None:
            lines = (number for i, (number, _) in enumerate(_lines(self)) if i == row)
            where = f"row {row + 1}" if self.kind == "Parquet" else str(next(lines, ""))
        return BadTrace(self.path, what, do, where=where, column=column)


def opened(path: Path) -> TraceFile:
    """What kind of file this is, by its first bytes, and its columns."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise BadTrace(path, f"cannot be read ({error.strerror})", "Name an existing trace file") from error
    if not head:
        raise BadTrace(path, "is empty", "Give a trace with a header and at least one row")
    if head == b"PAR1" or path.suffix.lower() == ".parquet":
        try:
            return TraceFile(path, "Parquet", _distinct(path, pq.read_schema(path).names))
        except (pa.ArrowException, OSError) as error:
            what = f"is no readable Parquet file ({short(error)})"
            raise BadTrace(path, what, "Write it again, or as CSV") from error
    if head[:2] in (b"\x1f\x8b", b"PK") or head == b"\x28\xb5\x2f\xfd":
        raise BadTrace(path, "is compressed", "Unpack it first")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadTrace(path, "is UTF-16", "Save it as UTF-8")
    return _text_file(path)


def _text_file(path: Path) -> TraceFile:
    number, line = next(((n, text) for n, text in _lines(TraceFile(path, "CSV", ()))), (0, ""))
    if number == 0:
        raise BadTrace(path, "is empty", "Give a trace with a header and at least one row")
    if line.lstrip().startswith("{"):
        return TraceFile(path, "JSON lines", tuple(_object(path, number, line)), number - 1)
    names = tuple(cell.strip() for cell in _cells(path, number, line))
    if all(_A_NUMBER.fullmatch(name) for name in names):
        raise BadTrace(path, "has no header", "Write the columns' names into the first line", where=str(number))
    return TraceFile(path, "CSV", _distinct(path, names, str(number)), number)


def _distinct(path: Path, names: Sequence[str], where: str = "") -> tuple[str, ...]:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise BadTrace(path, "is the name of two columns", "Keep one of them", where=where, column=repr(twice))
    return tuple(names)


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise BadTrace(path, f"is no CSV ({error})", "Separate the cells by commas", where=str(number)) from error


def _lines(file: TraceFile) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and text, of all lines behind the header that are not empty."""
    with file.path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if number <= file.skip or not raw.strip(b"\r\n"):
                continue
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise BadTrace(file.path, "is not UTF-8", "Save the file as UTF-8", where=str(number)) from error


def _csv(file: TraceFile, types: Mapping[str, pa.DataType]) -> pa.Table:
    try:
        return pacsv.read_csv(
            file.path,
            pacsv.ReadOptions(column_names=file.names, skip_rows=file.skip, block_size=1 << 24),
            convert_options=pacsv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowException as error:
        number = 0
        for number, line in _lines(file):
            _check_cells(file, number, _cells(file.path, number, line), types)
        if number == 0:
            return pa.table({name: pa.array([], kind) for name, kind in types.items()})
        raise file.wrong(f"is no readable CSV ({short(error)})", "Separate the cells by commas") from error


def _check_cells(file: TraceFile, number: int, cells: Sequence[str], types: Mapping[str, pa.DataType]) -> None:
    if len(cells) != len(file.names):
        what = f"has {len(cells)} cells, the header has {len(file.names)}"
        raise BadTrace(file.path, what, "Complete or remove this line", where=str(number))
    for name, cell in zip(file.names, cells, strict=True):
        if types.get(name) == NUMBER and cell and not _A_NUMBER.fullmatch(cell):
            raise BadTrace(file.path, f"is {cell!r}", "Write a number", where=str(number), column=name)


def _parquet(file: TraceFile, types: Mapping[str, pa.DataType]) -> pa.Table:
    try:
        table = pq.read_table(file.path, columns=list(types))
    except (pa.ArrowException, OSError) as error:
        raise file.wrong(f"is no readable Parquet file ({short(error)})", "Write it again, or as CSV") from error
    for at, (name, kind) in enumerate(types.items()):
        found = table.column(name)
        if kind != NUMBER:
            continue
        if not (pa.types.is_integer(found.type) or pa.types.is_floating(found.type) or pa.types.is_decimal(found.type)):
            raise file.wrong(f"holds {found.type}", "Store numbers", column=name)
        table = table.set_column(at, name, found.cast(NUMBER, safe=False))
    return table


def _jsonl(file: TraceFile, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Read with the types that are wanted; where that fails, line by line for the first that is wrong."""
    try:
        return pajson.read_json(
            file.path,
            pajson.ReadOptions(block_size=1 << 26),
            pajson.ParseOptions(explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException as error:
        for number, line in _lines(file):
            _check_fields(file, number, _object(file.path, number, line), types)
        raise file.wrong(f"cannot be read as JSON lines ({short(error)})", "Write one object a line") from error


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"is not JSON ({short(error)})"
        raise BadTrace(path, what, "Complete or remove this line", where=str(number)) from error
    if not isinstance(found, dict):
        raise BadTrace(path, "is not a JSON object", "Write one object a line", where=str(number))
    return found


def _check_fields(file: TraceFile, number: int, fields: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> None:
    for name, kind in types.items():
        value = fields.get(name)
        if kind == NUMBER and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            raise BadTrace(file.path, f"is {value!r}", "Write a number", where=str(number), column=name)
        if kind == BLOCKS and not (
            value is None or (isinstance(value, list) and all(isinstance(v, int) and abs(v) < 1 << 63 for v in value))
        ):
            raise BadTrace(file.path, "is no list of whole numbers", "Write [1, 2]", where=str(number), column=name)


_LOADERS: Mapping[str, Callable[[TraceFile, Mapping[str, pa.DataType]], pa.Table]] = {
    "CSV": _csv,
    "Parquet": _parquet,
    "JSON lines": _jsonl,
}


def short(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
