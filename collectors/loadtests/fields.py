"""Reading of JSON fields that may be missing or senseless: what is not a sensible value is None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from collectors.loadtests.loadtest import Summary

Json = Mapping[str, Any]
#: How the figures of ``Summary`` are called where the median has its name.
MEDIAN_NAMES = ("mean", "median", "p90", "p95", "p99")


def label(concurrency: float | None, rate: float | None) -> str:
    """A load, for people."""
    if concurrency is not None:
        return f"{concurrency:g} at once"
    return f"{rate:g} a second" if rate is not None else "unknown load"


def section(data: Json, *names: str) -> Json:
    """The first of ``names`` that is an object; empty where none is."""
    return next((data[n] for n in names if isinstance(data.get(n), dict)), {})


def rows(data: Json, name: str) -> list[Any]:
    """A list; empty where it is none."""
    value = data.get(name)
    return value if isinstance(value, list) else []


def sensible(value: object) -> float | None:
    """A finite number, 0 or more; else None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    return None


def number(data: Json, *names: str) -> float | None:
    """The first of ``names`` that is a sensible number."""
    return next((v for name in names if (v := sensible(data.get(name))) is not None), None)


def count(data: Json, name: str) -> int | None:
    """A number without its fraction."""
    value = number(data, name)
    return None if value is None else int(value)


def text(data: Json, name: str) -> str | None:
    """A text that is not empty."""
    value = data.get(name)
    return value if isinstance(value, str) and value else None


def summary(data: Json, names: Sequence[str]) -> Summary | None:
    """Its five figures, by the names that the program has for them; None where it has none of them."""
    found = Summary(*(number(data, name) for name in names))
    return found if found != Summary() else None


def capped(cap: float) -> str:
    """The note on a rate that is sent with a cap on requests in flight."""
    return f"a rate with a cap of {cap:g} in flight: where the cap holds, calls go late, and they are replayed so"


#: Engine arguments that change how an engine answers, by the names that vLLM has for them.
_ENGINE_COUNTS = ("max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size", "max_model_len", "block_size")
_ENGINE_SHARES = ("gpu_memory_utilization",)
_ENGINE_WORDS = ("quantization", "dtype")


def engine_arguments(data: Json) -> dict[str, str | int | float]:
    """Those that stand among the fields, written ``max_num_seqs``, ``max-num-seqs`` or ``--max-num-seqs``, as numbers or text."""
    found: dict[str, str | int | float] = {}
    for key, value in data.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name in _ENGINE_WORDS and isinstance(value, str) and value:
            found[name] = value
        if name not in (*_ENGINE_COUNTS, *_ENGINE_SHARES):
            continue
        try:
            as_number = sensible(float(value)) if isinstance(value, str) else sensible(value)
        except ValueError:
            continue
        if not as_number:
            continue
        if name in _ENGINE_SHARES and as_number <= 1.0:
            found[name] = as_number
        elif name in _ENGINE_COUNTS and as_number == int(as_number):
            found[name] = int(as_number)
    return found


def mean(summary: Summary | None) -> float | None:
    """None where there is none."""
    return None if summary is None else summary.mean


def latencies(found: Mapping[str, Summary | None]) -> dict[str, Summary]:
    """Those that are known: a mean of 0 is how a generator writes that there was none."""
    return {name: s for name, s in found.items() if s is not None and s.mean != 0.0}
