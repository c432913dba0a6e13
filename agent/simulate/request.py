"""What a person asks to be sent, as written on the command line. Text in, a TrafficRequest out; whatever is wrong is ``BadQuestion``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.simulate.profile import LoadProfile, shape_of
from analyzers.grammar import BadQuestion, positive
from analyzers.money import Tariff, Unit
from analyzers.objective import Objective
from collectors.openai import Api
from collectors.plan import Arrivals, Lengths, Rates, arrivals_of
from collectors.traffic.schedule import Load, OpenSchedule, SessionSchedule, ThinkTime, UserSchedule
from collectors.workload import Workload

_WARMUP_SHARE, _WARMUP_MOST_S = 0.1, 10.0
_ARRIVALS: tuple[Arrivals, ...] = ("constant", "poisson", "gamma")
#: Requests that a replayed workload of an endpoint has at most.
MOST_REPLAYED = 1_000_000
#: Users of a closed loop begin evenly within the warm-up, and within so many seconds.
_MOST_RAMP_S = 1.0


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars. None: unknown."""

    usd_per_hour: float | None = None
    """Of the whole endpoint."""
    usd_per_1k_input_tokens: float | None = None
    usd_per_1k_output_tokens: float | None = None

    @property
    def tariff(self) -> Tariff:
        return Tariff.of(
            {
                Unit.HOUR: self.usd_per_hour,
                Unit.INPUT_1K: self.usd_per_1k_input_tokens,
                Unit.OUTPUT_1K: self.usd_per_1k_output_tokens,
            },
            "options",
        )


@dataclass(frozen=True, slots=True)
class Caps:
    """What the traffic must not exceed. None: no bound."""

    rate: float | None = None
    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None
    error_rate: float = 0.5
    """Share of the latest requests that may fail before the traffic stops by itself."""


@dataclass(frozen=True, slots=True)
class TrafficTarget:
    """Where it goes."""

    url: str
    model: str | None = None
    """None: the only one that the server has."""
    api: Api = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    endpoint: str | None = None
    production: bool = False


@dataclass(frozen=True, slots=True)
class TrafficRequest:
    """Everything that is to be known before it is sent."""

    target: TrafficTarget
    load: Load
    about: Mapping[str, Any]
    """The load in words and numbers, for the answer."""
    duration_s: float
    warmup_s: float
    peak_rate: float | None
    """Requests a second at most, of an open loop."""
    mean_prompt: float
    mean_output: float
    most_in_flight: int | None = None
    timeout_s: float = 120.0
    exact_output: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    objective: Objective = field(default_factory=Objective)
    prices: Prices = field(default_factory=Prices)
    caps: Caps = field(default_factory=Caps)
    workers: int | None = None

    @property
    def closed(self) -> bool:
        return isinstance(self.load, UserSchedule)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How the load was asked for, as it was given."""

    rate: float | None = None
    concurrency: int | None = None
    profile: Path | None = None
    workload: Callable[[], Workload] | None = None
    """A trace, or what an endpoint saw."""
    of: Mapping[str, Any] = field(default_factory=dict)
    """Where that comes from, for the answer."""
    speed: float = 1.0
    duration_s: float | None = None
    arrivals: str = "poisson"
    burstiness: float | None = None
    prompt_tokens: str | None = None
    output_tokens: str | None = None
    prefix_tokens: int = 0
    think: str | None = None
    turns: str | None = None
    warmup_s: float | None = None
    requests: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrafficLoad:
    """A load, and what is known of it ahead."""

    load: Load
    about: Mapping[str, Any]
    duration_s: float
    peak_rate: float | None
    mean_prompt: float
    mean_output: float


def loaded(options: LoadOptions) -> TrafficLoad:
    """The load that the options ask for. Raises BadQuestion."""
    forms = {
        "--rate": options.rate,
        "--concurrency": options.concurrency,
        "--profile": options.profile,
        "--trace or --like": options.workload,
    }
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        raise BadQuestion(
            f"give one of --rate R, --concurrency N, --profile FILE, --trace FILE and --like ENDPOINT, not {' and '.join(given) or 'none'}"
        )
    try:
        if options.workload is not None:
            return _replayed(options, options.workload())
        shape = shape_of(options.profile) if options.profile is not None else LoadProfile()
        return _shaped(options, shape)
    except ValueError as error:
        raise error if isinstance(error, BadQuestion) else BadQuestion(str(error)) from error


def _shaped(options: LoadOptions, shape: LoadProfile) -> TrafficLoad:
    prompt = Lengths.parse(options.prompt_tokens or shape.prompt_tokens or "fixed:64")
    output = Lengths.parse(options.output_tokens or shape.output_tokens or "fixed:64")
    think = ThinkTime.parse(options.think or shape.think or "0")
    turns = options.turns or shape.turns
    prefix = options.prefix_tokens or shape.prefix_tokens
    if prefix < 0:
        raise BadQuestion(f"--prefix-tokens {prefix}: give a number of 0 or more")
    duration = positive(options.duration_s, "--duration") or shape.duration_s
    if duration is None:
        raise BadQuestion("give --duration SECONDS: how long requests are sent")
    about: dict[str, Any] = {
        "prompt_tokens": f"{prompt.kind}:{prompt.first:g}" + (f":{prompt.second:g}" if prompt.second else ""),
        "output_tokens": f"{output.kind}:{output.first:g}" + (f":{output.second:g}" if output.second else ""),
        "prefix_tokens": prefix,
    }
    users = options.concurrency if options.concurrency is not None else shape.users
    if users is not None:
        if users < 1:
            raise BadQuestion(f"--concurrency {users}: give 1 or more")
        about |= {"kind": "closed", "users": users, "think_s": think.mean_s}
        ramp = min(_MOST_RAMP_S, warmup_of(options, duration))
        load: Load = UserSchedule(users, duration, prompt, output, think, prefix, options.requests, ramp)
        return TrafficLoad(load, about, duration, None, prompt.mean + prefix, output.mean)
    rates = _rates(options, shape, duration)
    kind, burstiness = _process(options, shape)
    at = arrivals_of(rates, kind, np.random.default_rng((options.seed, 3)), burstiness)[: options.requests]
    about |= {"kind": "open", "arrivals": kind, "burstiness": burstiness, "peak_rate": rates.peak, "requests": at.size}
    if not at.size:
        raise BadQuestion(f"no request falls into these {duration:g} s; send for longer, or at a higher rate")
    if turns is not None:
        number = Lengths.parse(turns)
        about |= {"kind": "sessions", "sessions": at.size, "turns": turns, "think_s": think.mean_s}
        del about["requests"]
        load = SessionSchedule(at, duration, prompt, output, number, think, prefix)
        return TrafficLoad(
            load, about, duration, rates.peak * number.mean, prompt.mean * number.mean / 2 + prefix, output.mean
        )
    workload = _drawn(at, prompt, output, prefix, options.seed)
    return TrafficLoad(OpenSchedule(workload, duration), about, duration, rates.peak, *_means(workload))


def _rates(options: LoadOptions, shape: LoadProfile, duration_s: float) -> Rates:
    if options.rate is not None:
        rate = positive(options.rate, "--rate")
        assert rate is not None
        return Rates.constant(rate, duration_s)
    return shape.rates(duration_s, options.seed)


def _process(options: LoadOptions, shape: LoadProfile) -> tuple[Arrivals, float]:
    name = (shape.arrivals or options.arrivals) if options.profile is not None else options.arrivals
    burstiness = positive(options.burstiness, "--burstiness") or shape.burstiness
    if options.burstiness is not None:
        name = "gamma"
    kind = next((a for a in _ARRIVALS if a == name), None)
    if kind is None:
        raise BadQuestion(f"--arrivals {name}: known are {', '.join(_ARRIVALS)}")
    return kind, burstiness if kind == "gamma" else float(kind == "poisson")


def _drawn(at: np.ndarray[Any, Any], prompt: Lengths, output: Lengths, prefix: int, seed: int) -> Workload:
    rng = np.random.default_rng((seed, 4))
    n = at.size
    return Workload(at, prompt.draw(rng, n) + prefix, output.draw(rng, n), np.full(n, prefix, np.int64))


def _replayed(options: LoadOptions, found: Workload) -> TrafficLoad:
    """As it was, ``speed`` times as fast, as far as the duration goes."""
    speed = positive(options.speed, "--speed") or 1.0
    found = replace(found, arrival_s=found.arrival_s / speed)
    duration = positive(options.duration_s, "--duration") or max(1.0, math.nextafter(found.duration_s, math.inf))
    n = int(np.searchsorted(found.arrival_s, duration, side="left"))
    n = min(n, options.requests or n)
    if not n:
        raise BadQuestion(f"no request falls into the first {duration:g} s; give a longer --duration")
    workload = found.take(slice(n))
    seconds = np.bincount(workload.arrival_s.astype(np.int64))
    about = {"kind": "replay", **options.of, "speed": speed, "requests": n, "peak_rate": float(seconds.max())}
    return TrafficLoad(OpenSchedule(workload, duration), about, duration, float(seconds.max()), *_means(workload))


def _means(workload: Workload) -> tuple[float, float]:
    return float(workload.prompt_tokens.mean()), float(np.maximum(1, workload.output_tokens).mean())


def warmup_of(options: LoadOptions, duration_s: float) -> float:
    """As given, else a tenth of the duration, 10 s at most."""
    if options.warmup_s is None:
        return min(_WARMUP_SHARE * duration_s, _WARMUP_MOST_S)
    if not 0 <= options.warmup_s < duration_s:
        raise BadQuestion(
            f"--warmup {options.warmup_s:g}: give 0 or more, and less than the {duration_s:g} s of sending"
        )
    return options.warmup_s


def headers_of(given: Sequence[str], api_key_env: str | None) -> dict[str, str]:
    """From ``NAME: VALUE`` lines, and the environment's variable with a key."""
    found: dict[str, str] = {}
    for line in given:
        name, separator, value = line.partition(":")
        if not separator or not name.strip() or any(c in line for c in "\r\n"):
            raise BadQuestion("--header: write 'NAME: VALUE', on one line")
        found[name.strip()] = value.strip()
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise BadQuestion(f"--api-key-env {api_key_env}: the environment has no such variable; set it to the key")
        found["authorization"] = f"Bearer {key}"
    return found
