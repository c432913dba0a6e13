"""What the policies are compared on: traffic, with the truth that serves it, and the same endpoint's traffic of an earlier time.

Synthetic days are Poisson arrivals under a rate that is stated here, with lognormal lengths. A trace's two halves are kept apart: peers
are searched on the first, all are reported on the second. Production traces of an hour are too short for what decides by the hour, so
each of their minutes is drawn out: its rate and its requests' lengths last for as many minutes as make half a day of a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from benchmarks.sizes import MachineSize
from benchmarks.world import Scenario, arrivals
from collectors.traces import read_trace
from collectors.workload import Floats, Workload

DAY, HOUR = 86_400.0, 3600.0
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
#: A small model on a small GPU: about nine requests a second of 180 + 40 tokens, the first token within a second.
SMALL = EngineModel(IterationCost(0.025, 0.0001, 2e-7, 0.0001), EngineLimits(16, 2048, 40_000))
#: A larger one on a large GPU, for traces of long prompts.
LARGE = EngineModel(IterationCost(0.008, 1e-4, 5e-8, 2.5e-5, 2e-10), EngineLimits(64, 8192, 600_000))

#: Twice and a half as fast as the small one, for 1.6 times its price: the roofline between their GPUs says 2.9 times.
SIZES = (
    MachineSize("l4", "L4", 1.0, SMALL),
    MachineSize("l40s", "L40S", 1.6, EngineModel(IterationCost(0.01, 0.00004, 8e-8, 0.00004), SMALL.limits)),
)

#: By ``prompt`` and ``output``: the median of a lognormal, its sigma, and the most tokens.
Lengths = Mapping[str, tuple[float, float, int]]
CHAT: Lengths = {"prompt": (180.0, 0.4, 1500), "output": (40.0, 0.4, 400)}
LONG_ANSWERS: Lengths = {"prompt": (180.0, 0.4, 1500), "output": (80.0, 0.4, 800)}
DOCUMENTS: Lengths = {"prompt": (1400.0, 0.3, 4000), "output": (200.0, 0.4, 800)}

Rate = Callable[[Floats], Floats]
#: The traffic of so many days, with a seed.
Traffic = Callable[[float, int], Workload]


# -- traffic -----------------------------------------------------------------------------------------------------------


def wave(mean: float, swing: float, phase_s: float = 0.0) -> Rate:
    """Requests a second over the day, the greatest six hours after ``-phase_s``."""

    def rate(at: Floats) -> Floats:
        found: Floats = mean * (1.0 + swing * np.sin(2 * math.pi * (at + phase_s) / DAY))
        return found

    return rate


def traffic(rate: Rate, top: float, *kinds: tuple[Lengths, Callable[[Floats, Floats], NDArray[np.bool_]]]) -> Traffic:
    """``kinds``: lengths, and which requests have them, by arrival and a uniform draw; the last that applies holds."""

    def made(days: float, seed: int) -> Workload:
        arrival = arrivals(rate, top, days * DAY, seed)
        rng = np.random.default_rng(seed + 1)
        columns = {name: np.zeros(arrival.size, np.int64) for name in ("prompt", "output")}
        draw = rng.random(arrival.size)
        for lengths, applies in kinds:
            mine = applies(arrival, draw)
            for name, (median, sigma, most) in lengths.items():
                drawn = rng.lognormal(math.log(median), sigma, arrival.size)
                columns[name][mine] = np.clip(drawn[mine], 2, most)
        return Workload(arrival, columns["prompt"], columns["output"], np.zeros(arrival.size, np.int64))

    return made


def _always(arrival: Floats, _draw: Floats) -> NDArray[np.bool_]:
    return np.ones(arrival.size, np.bool_)


def chat(rate: Rate, top: float) -> Traffic:
    return traffic(rate, top, (CHAT, _always))


def bursts() -> Traffic:
    """8 a second, from 4 to 12 over the day, and six times a day two and a half times as many for ten minutes."""
    starts = np.sort(np.random.default_rng(11).random(6 * 14)) * 14 * DAY

    def rate(at: Floats) -> Floats:
        before = np.searchsorted(starts, at, "right") - 1
        burst = (before >= 0) & (at - starts[np.maximum(before, 0)] < 600.0)
        return wave(8.0, 0.5)(at) * np.where(burst, 2.5, 1.0)

    return chat(rate, 30.0)


def office() -> Traffic:
    """2 a second at night and at the weekend, 24 on work days from 8:00 to 18:00, up and down within half an hour. Begins on a Tuesday, 6:00."""

    def rate(at: Floats) -> Floats:
        hour, weekday = (6.0 + at / HOUR) % 24.0, (1 + np.floor((6.0 + at / HOUR) / 24.0)) % 7
        open_ = np.clip((hour - 7.5) / 0.5, 0, 1) * np.clip((18.5 - hour) / 0.5, 0, 1) * (weekday < 5)
        found: Floats = 2.0 + 22.0 * open_
        return found

    return chat(rate, 24.0)


def launch() -> Traffic:
    """4 a second; after a day and a half six times as many within ten minutes, half of what is more gone every six hours."""

    def rate(at: Floats) -> Floats:
        since = at - 1.5 * DAY
        more = np.clip(since / 600.0, 0, 1) * 20.0 * 0.5 ** (np.maximum(since - 600.0, 0) / (6 * HOUR))
        found: Floats = wave(4.0, 0.3)(at) + more
        return found

    return chat(rate, 26.0)


def regime() -> Traffic:
    """10 a second, from 4 to 16; after a day and a half the answers are twice as long."""
    changed = (LONG_ANSWERS, lambda arrival, _draw: arrival > 1.5 * DAY)
    return traffic(wave(10.0, 0.6), 16.0, (CHAT, _always), changed)


def bimodal() -> Traffic:
    """6 a second, from 2.4 to 9.6; one in seven is a document of 1,400 tokens with an answer of 200."""
    return traffic(wave(6.0, 0.6), 9.6, (CHAT, _always), (DOCUMENTS, lambda _arrival, draw: draw < 1 / 7))


# -- scenarios ---------------------------------------------------------------------------------------------------------


def synthetic(name: str, made: Traffic, **changed: Any) -> Callable[[bool], Scenario]:
    def scenario(quick: bool) -> Scenario:
        def days(n: int, seed: int) -> Scenario:
            decide_s, learning_s = 900.0 if quick else 300.0, DAY if n > 1 else 0.0
            return Scenario(name, made(n, seed), n * DAY, SMALL, ttft_s=1.0, decide_s=decide_s, learning_s=learning_s)

        found = replace(days(3 if quick else 7, seed=1), earlier=replace(days(1, seed=101), **changed))
        return replace(found, **changed)

    return scenario


def of_file(path: Path, quick: bool, *, name: str | None = None, gain: float = 1.0, ttft_s: float = 1.0) -> Scenario:
    """The later half of a trace, with the earlier one to search on. Raises ValueError where it cannot be read."""
    trace = read_trace(path)
    middle = trace.duration_s / 2
    stretch = max(1.0, math.ceil(12 * HOUR / middle))

    def half(since: float, seed: int) -> Scenario:
        work = _drawn_out(trace, since, since + middle, stretch, gain, seed)
        found = name or path.stem
        decide_s = 900.0 if quick else 300.0
        return Scenario(found, work, middle * stretch, LARGE, ttft_s=ttft_s, decide_s=decide_s)

    return replace(half(middle, 1), earlier=half(0.0, 101))


def _drawn_out(trace: Workload, since: float, until: float, stretch: float, gain: float, seed: int) -> Workload:
    """Each minute of [since, until) lasts ``stretch`` minutes at ``gain`` times its rate, with requests drawn from its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in np.arange(since, until, 60.0):
        end = min(start + 60.0, until)
        first, last = np.searchsorted(trace.arrival_s, (start, end), "left")
        n = int(rng.poisson((last - first) * stretch * gain)) if last > first else 0
        arrival = np.sort(rng.random(n)) * (end - start) * stretch + (start - since) * stretch
        parts.append((arrival, rng.integers(first, max(last, first + 1), n)))
    arrival = np.concatenate([p[0] for p in parts])
    index = np.concatenate([p[1] for p in parts])
    return Workload(arrival, trace.prompt_tokens[index], trace.output_tokens[index], np.zeros(arrival.size, np.int64))


DAY_CURVE = chat(wave(16.0, 0.8), 28.8)
#: By name; each is told whether it must be quick.
SCENARIOS: dict[str, Callable[[bool], Scenario]] = {
    # 3.2 to 28.8 a second over the day, which begins on the way up at 6:00; and one that begins on the way down at 18:00.
    "day-curve": synthetic("day-curve", DAY_CURVE),
    "night-first": synthetic("night-first", chat(wave(16.0, 0.8, DAY / 2), 28.8), starts_at=1_699_984_800.0),
    "bursts": synthetic("bursts", bursts()),
    "office": synthetic("office", office()),
    "launch": synthetic("launch", launch()),
    "regime": synthetic("regime", regime()),
    "bimodal": synthetic("bimodal", bimodal()),
    "cold-30": synthetic("cold-30", DAY_CURVE, cold_start_s=30.0),
    "cold-600": synthetic("cold-600", DAY_CURVE, cold_start_s=600.0),
    "missing": synthetic("missing", DAY_CURVE, missing=0.15),
    "sizes": synthetic("sizes", chat(wave(20.0, 0.5), 30.0), sizes=SIZES),
    "noise": synthetic("noise", DAY_CURVE, noise=0.15),
    "azure": lambda quick: of_file(DATA / "AzureLLMInferenceTrace_conv.csv", quick, name="azure", gain=6.0),
    "mooncake": lambda quick: of_file(DATA / "mooncake_conversation_trace.jsonl", quick, name="mooncake", ttft_s=5.0),
}
