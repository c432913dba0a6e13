"""JSON objects as dataclasses, by the dataclass's own names: nothing unknown, nothing missing, and errors that say where.

pydantic validates; here is said what it found. A field of the type ``Annotated[..., APART]`` is in no file.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import AfterValidator, GetPydanticSchema, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, to_json

from collectors.workload import Floats

Read = TypeVar("Read")

_UNKNOWN = "unexpected_keyword_argument"
#: What must stand there, by pydantic's type of error.
_WANTED = {
    "float_type": "a finite number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dataclass_type": "an object",
    "mapping_type": "an object",
}


def _refused(_: object) -> Any:
    raise PydanticCustomError(_UNKNOWN, "is in no file")


def _array(value: float | list[float]) -> float | Floats:
    return np.array(value, np.float64) if isinstance(value, list) else value


APART = PlainValidator(_refused)
#: One number, or an array of them: a list in JSON.
NumberOrArray = Annotated[
    float | Floats,
    GetPydanticSchema(lambda _, schema_of: schema_of(Annotated[float | list[float], AfterValidator(_array)])),
    PlainSerializer(lambda value: value.tolist() if isinstance(value, np.ndarray) else value),
]


def read(kind: type[Read], data: object, place: str = "", *, also: Iterable[str] = ()) -> Read:
    """``data`` as a ``kind``. Raises ValueError that names the field.

    place: of ``data`` in its file. also: names that stand there too, and that the caller reads by itself.
    """
    adapter: TypeAdapter[Read] = _adapter(kind)  # type: ignore[arg-type]  # mypy takes type[Read] for unhashable
    try:
        return adapter.validate_json(to_json(data, inf_nan_mode="strings"), strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(_said(kind, error, place, also)) from error


def plain(value: Any) -> dict[str, Any]:
    """The reverse of ``read``, as plain JSON: without what is unknown or without bounds, which an absent field says as well."""
    kind: Any = type(value)
    found = _adapter(kind).dump_python(value, mode="json", exclude_none=True)
    return {name: found[name] for name in _names(kind) if found.get(name, math.inf) != math.inf}


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def _names(kind: type) -> Mapping[str, Any]:
    """Those of the fields that may stand in a file, each with the types that it may be of."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: _choices(hints[f.name]) for f in fields(kind) if APART not in get_args(hints[f.name])}


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Annotated:
        return _choices(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


# -- what is wrong, in words ----------------------------------------------------------------------------------------------

_Path = tuple[int | str, ...]


def _said(kind: type, error: ValidationError, place: str, also: Iterable[str]) -> str:
    """The first of the errors. An unknown name comes before all: where one is misspelt, another is missing too."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != _UNKNOWN)
    paths = [_located(kind, problem)[0] for problem in problems]
    # Where one of several types may stand there is an error for each of them, and the deepest is of the one that was meant.
    path = max((p for p in paths if p[: len(paths[0])] == paths[0]), key=len)
    alike = [problem for problem, p in zip(problems, paths, strict=True) if p == path]
    problem, given, where = alike[0], alike[0]["input"], _text(place, path)
    _, inside, choices = _located(kind, problem)
    match problem["type"]:
        case "unexpected_keyword_argument":
            return f"{where}: unknown field; {nearest(str(path[-1]), {*_names(inside), *(also if inside is kind else ())})}"
        case "missing" if isinstance(path[-1], int):
            length = len(given) + sum(p[:-1] == path[:-1] for p in paths)
            return f"{_text(place, path[:-1])} must be a list of {length}, not {given!r}"
        case "missing":
            return f"{where}: missing"
        case "too_long":
            return f"{where} must be a list of {problem['ctx']['max_length']}, not {given!r}"
        case "literal_error":
            known = re.findall("'(.*?)'", problem["ctx"]["expected"])
            return f"{where}: {given!r} is not known; {nearest(str(given), known)}"
        case "value_error":
            said = str(problem["ctx"]["error"])
            return said if not where or said.startswith((f"{where}:", f"{where}.")) else f"{where}: {said}"
    wanted = [_WANTED.get(p["type"], p["msg"].removeprefix("Input should be ")) for p in alike] + ["null"] * (
        NoneType in choices
    )
    return f"{where or 'the file'} must be {' or '.join(wanted)}, not {given!r}"


def _located(kind: type, problem: ErrorDetails) -> tuple[_Path, type, tuple[Any, ...]]:
    """Where it is, without the names of types that pydantic has tried; the dataclass there, and the types that may stand there."""
    path: _Path = ()
    inside: type = kind
    choices: tuple[Any, ...] = ()
    for part in problem["loc"]:
        if isinstance(part, int):
            path, choices = (*path, part), ()
        elif part in _names(inside):
            path, choices = (*path, part), _names(inside)[part]
            inside = _dataclass_in(choices) or inside
    return (path if problem["type"] != _UNKNOWN else (*path, problem["loc"][-1])), inside, choices


def _dataclass_in(hints: Iterable[Any]) -> type | None:
    """The first that is written in these types: of ``tuple[Point, ...]`` it is ``Point``."""
    for hint in hints:
        if (found := hint if _is_dataclass(hint) else _dataclass_in(get_args(hint))) is not None:
            return found
    return None


def _is_dataclass(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _text(place: str, path: _Path) -> str:
    return (place + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)).lstrip(".")


def nearest(given: str, known: Iterable[str]) -> str:
    """What to do about an unknown name."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"


# -- single values, by their names ----------------------------------------------------------------------------------------


def changed(kind: type, data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with single values of it changed, by their own names where only one has it, or with their place: ``tokens.per_minute``.

    Raises ValueError on a name that there is not.
    """
    places = settable(kind)
    for given, value in changes.items():
        if given not in places:
            raise ValueError(f"{given}: there is no such setting; {nearest(given, places)}")
        data = _set(data, places[given], value)
    return dict(data)


def settable(kind: type) -> dict[str, tuple[str, ...]]:
    """Names that ``changed`` knows, and where they stand."""
    paths = list(_paths(kind))
    last = Counter(path[-1] for path in paths)
    return {".".join(path): path for path in paths} | {path[-1]: path for path in paths if last[path[-1]] == 1}


def _paths(kind: type) -> Iterator[tuple[str, ...]]:
    for name, choices in _names(kind).items():
        inner = next((c for c in choices if _is_dataclass(c)), None)
        if inner is not None:
            yield from ((name, *path) for path in _paths(inner))
        elif any(c in (float, int, bool, str) or get_origin(c) is Literal for c in choices):
            yield (name,)


def _set(data: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    inner = value if len(path) == 1 else _set(data.get(path[0]) or {}, path[1:], value)
    return {**data, path[0]: inner}
