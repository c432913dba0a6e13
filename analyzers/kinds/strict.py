"""JSON objects as dataclasses, by the dataclass's own names: nothing unknown, nothing missing, and errors that say where.

A field whose metadata is ``INLINE`` holds a dataclass whose fields stand in the same object, beside its own; one that is ``APART`` is in no
file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from analyzers.grammar import Value, nearest

INLINE = {"inline": True}
APART = {"apart": True}
_WANTED = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text"}

Made = TypeVar("Made")


def made(kind: type[Made], data: object, place: str = "", *, also: Iterable[str] = (), **given: Any) -> Made:
    """``data`` as a ``kind``. Raises ValueError that names the field.

    place: of ``data`` in its file, with a dot at its end, such as ``tokens.``. also: names that the caller reads by itself. given: fields
    that ``data`` does not hold.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{place.rstrip('.') or 'the file'}: expected an object, not {data!r}")
    known = {*also, *(f.name for f, _ in _fields(kind) if f.name not in given)}
    for name in data:
        if name not in known:
            raise ValueError(f"{place}{name}: unknown field; {nearest(str(name), known)}")
    return _made(kind, data, place, given)


def _made(kind: type[Made], data: Mapping[str, Any], place: str, given: Mapping[str, Any]) -> Made:
    hints, values = get_type_hints(kind), dict(given)
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name in given:
            continue
        if f.metadata.get("inline"):
            values[f.name] = _made(hints[f.name], data, place, {})
        elif f.name in data:
            values[f.name] = _value(hints[f.name], data[f.name], place + f.name)
        elif not _has_default(f):
            raise ValueError(f"{place}{f.name}: missing")
    try:
        return kind(**values)
    except ValueError as error:
        where = place.rstrip(".")
        said = not where or str(error).startswith(f"{where}:")
        raise ValueError(str(error) if said else f"{where}: {error}") from error


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _value(hint: Any, given: Any, place: str) -> Any:
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if given is None and NoneType in choices:
        return None
    for choice in choices:
        origin = get_origin(choice)
        if is_dataclass(choice) and isinstance(choice, type) and (isinstance(given, Mapping) or len(choices) == 1):
            return made(choice, given, f"{place}.")
        if origin is tuple and isinstance(given, list):
            return _items(get_args(choice), given, place)
        if origin is np.ndarray and isinstance(given, list):
            return np.array([_value(float, v, f"{place}[{i}]") for i, v in enumerate(given)], np.float64)
        if origin is Literal:
            if given not in get_args(choice):
                raise ValueError(f"{place}: {given!r} is not known; {nearest(str(given), get_args(choice))}")
            return given
        if _is(choice, given):
            return given
    wanted = [_wanted(c) for c in choices]
    raise ValueError(f"{place} must be {' or '.join(w for w in wanted if w)}, not {given!r}")


def _is(kind: Any, given: Any) -> bool:
    if isinstance(given, bool) or kind not in _WANTED:
        return kind is bool and isinstance(given, bool)
    return isinstance(given, int | float) and math.isfinite(given) if kind is float else isinstance(given, kind)


def _wanted(kind: Any) -> str:
    if kind is NoneType:
        return "null"
    if get_origin(kind) in (tuple, np.ndarray):
        return "a list"
    return _WANTED.get(kind, "an object")


def _items(kinds: tuple[Any, ...], given: list[Any], place: str) -> tuple[Any, ...]:
    """Of ``tuple[X, ...]``, or of a tuple of a fixed length."""
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(given)
    if len(kinds) != len(given):
        raise ValueError(f"{place} must be a list of {len(kinds)}, not {given!r}")
    return tuple(_value(kind, v, f"{place}[{i}]") for i, (kind, v) in enumerate(zip(kinds, given, strict=True)))


def plain(made_of: Any) -> dict[str, Any]:
    """The reverse of ``made``, as plain JSON: without what is unknown or without bounds, which an absent field says as well."""
    found: dict[str, Any] = {}
    for f in fields(made_of):
        value = getattr(made_of, f.name)
        if f.metadata.get("inline"):
            found |= plain(value)
        elif f.metadata.get("apart"):
            continue
        elif value is not None and not (isinstance(value, float) and math.isinf(value)):
            found[f.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


# -- single values, by their names --------------------------------------------------------------------------------------


def changed(kind: type, data: Mapping[str, Any], changes: Mapping[str, Value]) -> dict[str, Any]:
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
    for f, hint in _fields(kind):
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        inner = [c for c in choices if isinstance(c, type) and is_dataclass(c)]
        if inner:
            yield from ((f.name, *path) for path in _paths(inner[0]))
        elif any(c in _WANTED or get_origin(c) is Literal for c in choices):
            yield (f.name,)


def _set(data: Mapping[str, Any], path: tuple[str, ...], value: Value) -> dict[str, Any]:
    inner = value if len(path) == 1 else _set(data.get(path[0]) or {}, path[1:], value)
    return {**data, path[0]: inner}


def _fields(kind: type) -> Iterator[tuple[Field[Any], Any]]:
    """With their types; for one that is inline, those in it."""
    hints = get_type_hints(kind)
    for f in fields(kind):
        if f.metadata.get("inline"):
            yield from _fields(hints[f.name])
        elif not f.metadata.get("apart"):
            yield f, hints[f.name]
