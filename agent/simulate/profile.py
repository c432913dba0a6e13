"""A load over time, written in a file: YAML or JSON, a few names, each checked. Times are seconds, or 500ms, 2m, 1h.

arrivals: gamma          # constant, poisson (the default) or gamma
burstiness: 2            # of gamma: the coefficient of variation of the gaps
steps: [[60, 5], [60, 20]]              # seconds and requests per second, one after the other
points: [[0, 1], [300, 50]]             # or: straight lines between points in time
day: {rates: [2, 1, 4, 9], seconds: 86400}   # or: a curve that repeats, one rate for each equal part
bursts: {rates: [5, 40], dwell_s: [30, 5]}   # or: Markov-modulated, each rate for an exponential time
users: 50                # or: a closed loop
think: exponential:3     # seconds between an answer and the next request
turns: uniform:2:6       # conversations: each turn repeats what was said before
prefix_tokens: 500       # which all prompts begin with
prompt_tokens: lognormal:300:1
output_tokens: uniform:50:250
duration_s: 600
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analyzers.grammar import BadQuestion
from analyzers.strict import nearest
from collectors.durations import seconds_of
from collectors.plan import Rates

_CURVES = ("rate", "steps", "points", "day", "bursts")


@dataclass(frozen=True, slots=True)
class LoadProfile:
    """What such a file says; None or the least where it does not."""

    arrivals: str | None = None
    burstiness: float = 1.0
    rate: Any = None
    steps: Any = None
    points: Any = None
    day: Any = None
    bursts: Any = None
    users: int | None = None
    think: str | None = None
    turns: str | None = None
    prefix_tokens: int = 0
    prompt_tokens: str | None = None
    output_tokens: str | None = None
    duration_s: float | None = None
    where: str = "--profile"

    def rates(self, duration_s: float, seed: int) -> Rates:
        """The rate over time. Raises BadQuestion, ValueError."""
        if self.points is not None:
            return _cut(Rates(tuple(_pairs(self.points, f"{self.where}: points"))), duration_s)
        if self.steps is not None:
            return _cut(Rates.steps(_pairs(self.steps, f"{self.where}: steps")), duration_s)
        if self.day is not None:
            day = _section(self.day, f"{self.where}: day", ("rates", "seconds"))
            seconds = _spans([day.get("seconds", 86_400.0)], f"{self.where}: day: seconds")[0]
            return Rates.day(_rates(day.get("rates"), f"{self.where}: day: rates"), seconds, duration_s)
        if self.bursts is not None:
            bursts = _section(self.bursts, f"{self.where}: bursts", ("rates", "dwell_s"))
            rates = _rates(bursts.get("rates"), f"{self.where}: bursts: rates")
            dwell = _spans(bursts.get("dwell_s"), f"{self.where}: bursts: dwell_s")
            if len(dwell) != len(rates):
                raise BadQuestion(f"{self.where}: bursts: give as many dwell_s as rates")
            return Rates.bursts(rates, dwell, duration_s, seed)
        return Rates.constant(_positives([self.rate], f"{self.where}: rate")[0], duration_s)


def shape_of(path: Path) -> LoadProfile:
    """Read such a file. Raises BadQuestion."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadQuestion(f"--profile {path}: cannot be read ({error}); name a YAML file") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadQuestion(f"--profile {path}: is not YAML ({' '.join(str(error).split())})") from error
    where = f"--profile {path}"
    known = [f.name for f in fields(LoadProfile) if f.name != "where"]
    data = _section(data, where, known)
    curves = [name for name in (*_CURVES, "users") if name in data]
    if len(curves) != 1:
        raise BadQuestion(f"{where}: give one of {', '.join(_CURVES)} and users, not {' and '.join(curves) or 'none'}")
    for name, read in (("burstiness", _positives), ("duration_s", _spans)):
        if name in data:
            data[name] = read([data[name]], f"{where}: {name}")[0]
    for name in ("users", "prefix_tokens"):
        if name in data and (not isinstance(data[name], int) or isinstance(data[name], bool)):
            raise BadQuestion(f"{where}: {name}: {data[name]!r} is no whole number")
    for name in ("think", "turns", "prompt_tokens", "output_tokens"):
        if name in data:
            data[name] = str(data[name])
    shape = LoadProfile(**data, where=where)
    if shape.duration_s is None and (shape.steps is not None or shape.points is not None):
        whole = Rates.steps(_pairs(shape.steps, f"{where}: steps")) if shape.steps is not None else None
        ends = whole.duration_s if whole is not None else _pairs(shape.points, f"{where}: points")[-1][0]
        return LoadProfile(**{**data, "duration_s": ends}, where=where)
    return shape


def _section(data: object, where: str, known: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        raise BadQuestion(f"{where}: write names with values, such as rate: 5")
    for name in data:
        if name not in known:
            raise BadQuestion(f"{where}: {name} is not known; {nearest(str(name), known)}")
    return {str(name): value for name, value in data.items()}


def _number(value: object) -> float:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if sound and isinstance(value, int | float) else -1.0


def _positives(values: object, where: str) -> list[float]:
    found = [_number(v) for v in values] if isinstance(values, list) else []
    if not found or min(found) <= 0:
        raise BadQuestion(f"{where}: give numbers above 0")
    return found


def _seconds(value: object) -> float:
    try:
        return seconds_of(value)
    except ValueError:
        return -1.0


def _spans(values: object, where: str) -> list[float]:
    found = [_seconds(v) for v in values] if isinstance(values, list) else []
    if not found or min(found) <= 0:
        raise BadQuestion(f"{where}: give durations, such as 30 (seconds), 500ms or 2m")
    return found


def _rates(values: object, where: str) -> list[float]:
    found = [_number(v) for v in values] if isinstance(values, list) else []
    if not found or min(found) < 0:
        raise BadQuestion(f"{where}: give a list of requests per second, 0 or more each")
    return found


def _pairs(values: object, where: str) -> list[tuple[float, float]]:
    pairs = values if isinstance(values, list) else []
    read = [(_seconds(p[0]), _number(p[1])) for p in pairs if isinstance(p, list) and len(p) == 2]
    if not read or len(read) < len(pairs) or min(map(min, read)) < 0:
        raise BadQuestion(f"{where}: write pairs of seconds and requests per second, such as [[60, 5], [2m, 20]]")
    return read


def _cut(rates: Rates, duration_s: float) -> Rates:
    """As far as the duration goes."""
    if duration_s >= rates.duration_s:
        return rates
    inside = [(t, r) for t, r in rates.points if t < duration_s]
    later = next((t, r) for t, r in rates.points if t >= duration_s)
    (t0, r0), (t1, r1) = inside[-1], later
    return Rates((*inside, (duration_s, r0 + (r1 - r0) * (duration_s - t0) / (t1 - t0))))
