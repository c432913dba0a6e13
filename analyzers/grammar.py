"""What a person may ask, as written on the command line. Text in, values out; whatever is wrong is ``BadQuestion``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from analyzers.objective import SHARES, Objective, Target
from analyzers.strict import nearest
from analyzers.whatif.model import EngineModel
from collectors.durations import has_unit, seconds_of

Value = int | float | str | bool | None
#: vLLM's own names, where the engine file has another.
_ALSO = {"enable_chunked_prefill": "chunked_prefill"}


class BadQuestion(ValueError):
    """What was asked cannot be answered as it stands: what is wrong, and what to do."""


#: Names of an earlier Flyball, and what they are called now.
RENAMED = {
    "sku": "size",
    "gpu": "accelerator",
    "gpus": "accelerator_count",
    "price_per_hour": "usd_per_replica_hour",
    "price_per_ptu_hour": "usd_per_ptu_hour",
    "price_per_1k_input_tokens": "usd_per_1k_input_tokens",
    "price_per_1k_cached_input_tokens": "usd_per_1k_cached_input_tokens",
    "price_per_1k_output_tokens": "usd_per_1k_output_tokens",
}


def pairs(text: str, notes: list[str]) -> dict[str, Value]:
    """``accelerator=L40S,replicas=2`` by name. ``notes`` takes what was read by an old name. Raises BadQuestion."""
    found: dict[str, Value] = {}
    for part in text.split(","):
        given, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not given or not value:
            raise BadQuestion(f"{part!r} is no NAME=VALUE; write for instance replicas=2")
        name = RENAMED.get(given, given)
        if name != given:
            notes.append(f"{given}= is called {name}= now, and read as that")
        if name in found:
            raise BadQuestion(f"{name} is given twice; keep one")
        found[name] = scalar(value)
    return found


@contextmanager
def place(where: str) -> Iterator[None]:
    """Whatever is wrong within is said to be wrong there."""
    try:
        yield
    except BadQuestion as error:
        raise BadQuestion(f"{where}: {error}") from error


def scalar(text: str) -> Value:
    """A number, true, false or none where it reads as one, else the text."""
    words: dict[str, Value] = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def settings(texts: Sequence[str], option: str, notes: list[str]) -> dict[str, Value]:
    """The pairs of an option that is given several times; the last one of a name counts. Raises BadQuestion."""
    found: dict[str, Value] = {}
    for text in texts:
        with place(f"{option} {text}"):
            found |= pairs(text, notes)
    return found


def objective(texts: Sequence[str]) -> Objective:
    """From ``ttft_p95=0.5`` (seconds; ``ttft_p95_s`` is the same) and ``error_rate=0.01``."""
    targets: dict[str, Target] = {}
    for text in texts:
        name, separator, value = (piece.strip() for piece in text.partition("="))
        try:
            limit = seconds_of(value)
        except ValueError:
            limit = math.nan
        if not separator or not math.isfinite(limit):
            raise BadQuestion(f"--objective {text}: write NAME=DURATION, such as ttft_p95=0.5 or ttft_p95=500ms")
        full = name if name in SHARES or name.endswith("_s") else f"{name}_s"
        try:
            targets[full] = Target.parse(full, limit, with_unit=has_unit(value))
        except ValueError as error:
            raise BadQuestion(f"--objective {text}: {error}") from error
    return Objective(tuple(targets.values()))


def span(text: str) -> float:
    """``7d``, ``36h``, ``90m`` in seconds."""
    try:
        seconds = seconds_of(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0 or not text.strip()[-1:].isalpha():  # a week, and seven seconds, are far apart
        raise BadQuestion(f"--since {text}: write a span such as 7d, 36h or 90m")
    return seconds


def positive(value: float | None, option: str, *, zero: bool = False) -> float | None:
    """A finite number above 0 (or 0, where ``zero`` is one)."""
    if value is not None and not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise BadQuestion(f"{option} {value:g}: give a number {'of 0 or more' if zero else 'above 0'}")
    return value


def whole(value: Value, name: str, *, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadQuestion(f"{name}={value}: write a whole number, {least} or more")
    return value


def price(value: Value, name: str) -> float | None:
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise BadQuestion(f"{name}={value}: write US dollars, such as 2.5")
    return positive(value, name, zero=True)


def engine_settings(model: EngineModel) -> set[str]:
    """Names that ``with_settings`` knows."""
    return {*_places(model.to_dict()), *_ALSO}


def with_settings(model: EngineModel, changes: Mapping[str, Value]) -> EngineModel:
    """A copy with the named fields of the engine file changed, by their own names without the group: ``max_num_seqs``."""
    data = model.to_dict()
    places = _places(data)
    for given, value in changes.items():
        name = _ALSO.get(given, given)
        if name not in places:
            raise BadQuestion(f"{given}={value}: the engine has no such setting; {nearest(given, places)}")
        places[name][name] = value
    try:
        return EngineModel.from_dict(data)
    except (ValueError, TypeError) as error:
        said = ", ".join(f"{name}={value}" for name, value in changes.items())
        raise BadQuestion(f"{said}: {error}") from error


def _places(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Where each setting stands in the engine file's JSON."""
    groups = ("iteration", "limits", "source")
    places: dict[str, dict[str, Any]] = {f.name: data for f in fields(EngineModel) if f.name not in groups}
    return places | {name: data[group] for group in ("iteration", "limits") for name in data[group]}
