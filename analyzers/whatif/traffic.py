"""Windows to workload: the traffic that was, drawn again request by request.

Windows keep rates and length distributions, not single requests. Arrivals are drawn as a Poisson process with each window's own
rate, lengths from each window's own distributions. Owns no clock and no randomness but the seed it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.prediction import CannotPredict
from collectors.sketch import Sketch
from collectors.window import Window
from collectors.workload import Floats, Ints, Workload


def workload_from_windows(
    windows: Sequence[Window], *, seed: int, scale: float = 1.0, max_requests: int = 20_000, lengths: bool = True
) -> Workload:
    """The workload that ``windows`` describe, with arrivals at ``scale`` times the rate at which requests came: those that ended, and
    those by which the backlog grew. What a full server answers is what it can carry, and not what is asked of it.

    Windows that were not observed (coverage 0), or whose request count is unknown, are left out: time closes over them, they are
    no quiet time. Windows observed as empty are quiet time. Where more than ``max_requests`` are expected, windows are taken
    evenly over the span, whole and in order, so that rates stay what they were; of a single window, a shorter piece.
    Lengths: the window's ``prompt_length`` and ``output_length`` sketches, else those of all windows, else mean tokens per request.
    Prompt and output lengths are drawn independently of each other: windows do not hold their joint distribution, ``RecordedLengths`` do.
    lengths: whether they matter; where not, each request is of one token in and out.
    Raises CannotPredict ``NO_TRAFFIC`` where no rate or no lengths are known.
    """
    if not scale > 0 or max_requests < 1:
        raise ValueError(f"scale ({scale}) must be above 0 and max_requests ({max_requests}) at least 1")
    rng = np.random.default_rng(seed)
    known = [w for w in windows if w.coverage > 0 and w.count("requests") is not None]
    rates = dict(zip((w.start for w in known), arrival_rates(known), strict=True))
    expected = sum(rates[w.start] * w.duration_s for w in known) * scale
    if not expected > 0:
        raise CannotPredict(
            "NO_TRAFFIC",
            f"none of {len(windows)} windows holds a request; give a span that saw traffic, or a trace",
        )
    share = min(1.0, max_requests / expected)
    chosen, piece = _thinned(known, share, rates)
    of_length: _Lengths | _UnitLengths = _Lengths(known) if lengths else _UnitLengths()

    arrivals: list[Floats] = []
    columns: list[tuple[Ints, Ints, Ints]] = []
    at = 0.0
    for window in chosen:
        span = window.duration_s * piece
        n = int(rng.poisson(rates[window.start] * scale * span))
        if n:
            arrivals.append(at + np.sort(rng.random(n)) * span)
            columns.append(of_length.draw(window, n, rng))
        at += span
    if not arrivals:  # a handful expected, none drawn: one request keeps the answer defined
        busiest = max(chosen, key=lambda w: rates[w.start])
        arrivals.append(np.array([0.5 * at]))
        columns.append(of_length.draw(busiest, 1, rng))
    prompt, output, prefix = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Workload(np.concatenate(arrivals), prompt, output, prefix)


#: Lengths are dealt among so many neighbours: they are of one time of day.
_NEIGHBOURS = 512
#: Fewer recorded requests do not tell how lengths go together.
LEAST_RECORDED = 100


@dataclass(frozen=True, slots=True)
class RecordedLengths:
    """Requests' prompts and answers as they came together: (n,) tokens each."""

    prompt_tokens: Ints
    output_tokens: Ints

    def __post_init__(self) -> None:
        if self.prompt_tokens.shape != self.output_tokens.shape or self.prompt_tokens.ndim != 1:
            raise ValueError("recorded lengths: as many prompts as answers, one of each a request")

    def dealt(self, workload: Workload, *, seed: int) -> Workload:
        """The workload with its answers dealt anew among neighbours, so that a long prompt has the answer that such prompts had.

        How many tokens there are of each length stays as it was, everywhere: windows tell that, and records, which may be a sample, how
        lengths go together. By ranks: Iman and Conover 1982, "A distribution-free approach to inducing rank correlation".
        """
        if self.prompt_tokens.size < LEAST_RECORDED:
            return workload
        rng = np.random.default_rng(seed)
        output = workload.output_tokens.copy()
        for begin in range(0, len(workload), _NEIGHBOURS):
            part = slice(begin, begin + _NEIGHBOURS)
            prompts, answers = workload.prompt_tokens[part], np.sort(output[part])
            picked = rng.integers(0, self.prompt_tokens.size, prompts.size)
            place = np.empty(prompts.size, np.int64)
            place[_in_order(self.output_tokens[picked], rng)] = np.arange(prompts.size)
            dealt = np.empty_like(answers)
            dealt[_in_order(prompts, rng)] = answers[place[_in_order(self.prompt_tokens[picked], rng)]]
            output[part] = dealt
        arrival, prompt, prefix = workload.arrival_s, workload.prompt_tokens, workload.prefix_tokens
        return Workload(arrival, prompt, output, prefix, workload.session)


def _in_order(values: Ints, rng: np.random.Generator) -> Ints:
    """Where the least stands, then the next; equal ones in any order."""
    order: Ints = np.lexsort((rng.random(values.size), values))
    return order


def scaled(workload: Workload, factor: float) -> Workload:
    """The same requests, arriving ``factor`` times as fast."""
    return Workload(workload.arrival_s / factor, workload.prompt_tokens, workload.output_tokens, workload.prefix_tokens)


#: More requests than so many are not drawn for a course of load.
MOST_ON_COURSE = 3_000_000


def on_course(workload: Workload, step_s: float, factors: Sequence[float]) -> Workload:
    """The same requests again and again, arriving at ``factors`` times their rate, one for each step of so many seconds.

    Their order and their bursts stay: time is stretched, no request is drawn anew. Raises CannotPredict ``NO_TRAFFIC`` where nothing
    would arrive, ``TOO_MUCH_TRAFFIC`` beyond ``MOST_ON_COURSE``.
    """
    own = np.concatenate(
        ([0.0], np.cumsum(np.asarray(factors, np.float64) * step_s))
    )  # the requests' own time at each step's begin
    span = workload.duration_s * (
        1.0 + 1.0 / max(1, len(workload) - 1)
    )  # and one more gap, to the first of the next round
    if not span > 0 or not own[-1] > 0:
        raise CannotPredict("NO_TRAFFIC", "a course of load without a request")
    rounds = math.ceil(own[-1] / span)
    if rounds * len(workload) > MOST_ON_COURSE:
        text = (
            f"more than {MOST_ON_COURSE:,} requests in {step_s * len(factors) / 3600:.0f} h are not replayed for this"
        )
        raise CannotPredict("TOO_MUCH_TRAFFIC", text)
    since = workload.arrival_s - workload.arrival_s[0]
    at = (np.arange(rounds)[:, None] * span + since[None, :]).ravel()
    n = int(np.searchsorted(at, own[-1], "left"))
    step = (
        np.searchsorted(own, at[:n], "right") - 1
    )  # of steps without load the one after them: nothing arrives in them
    arrival = step * step_s + (at[:n] - own[step]) / np.asarray(factors)[step]
    columns = (np.tile(v, rounds)[:n] for v in (workload.prompt_tokens, workload.output_tokens, workload.prefix_tokens))
    return Workload(arrival, *columns)


def arrival_rates(windows: Sequence[Window]) -> list[float]:
    """(n,) requests per second that came in each window, in order; of windows that know how many ended.

    The backlog is what ran and waited at a window's end; where it is not known at both ends, what ended is all that can be said.
    """
    found: list[float] = []
    before: Window | None = None
    for window in windows:
        rate, grown = window.rate("requests") or 0.0, 0.0
        if before is not None and before.end == window.start:
            then, now = _backlog(before), _backlog(window)
            grown = now - then if then is not None and now is not None else 0.0
        found.append(max(0.0, rate + grown / window.duration_s))
        before = window
    return found


def _backlog(window: Window) -> float | None:
    running, waiting = window.gauges.get("running"), window.gauges.get("waiting")
    return running.last + waiting.last if running is not None and waiting is not None else None


def _thinned(windows: Sequence[Window], share: float, rates: Mapping[float, float]) -> tuple[list[Window], float]:
    """Every n-th window so that about ``share`` of the requests remain, and which part of each one's duration to take."""
    if share >= 1.0:
        return list(windows), 1.0
    keep = max(1, int(share * len(windows)))
    picked = [windows[int((i + 0.5) * len(windows) / keep)] for i in range(keep)]
    requests = sum(rates[w.start] for w in picked)
    if requests <= 0:  # the few picked were quiet ones
        picked = [max(windows, key=lambda w: rates[w.start])]
    wanted = share * sum(rates[w.start] * w.duration_s for w in windows)
    have = sum(rates[w.start] * w.duration_s for w in picked)
    return picked, min(1.0, wanted / have)


class _UnitLengths:
    """Requests of one token."""

    def draw(self, _window: Window, n: int, _rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        return np.ones(n, np.int64), np.ones(n, np.int64), np.zeros(n, np.int64)


class _Lengths:
    """Draws of prompt, output and cached prefix, window by window, with the whole span to fall back on."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._sketches: dict[str, Sketch] = {}
        self._means: dict[str, float] = {}
        for name, counter in (("prompt_length", "prompt_tokens"), ("output_length", "output_tokens")):
            present = [w.sketches[name] for w in windows if name in w.sketches and w.sketches[name].count > 0]
            if present:
                self._sketches[name] = Sketch.merge(present)
            mean = _per_request(windows, counter)
            if mean is not None:
                self._means[name] = mean
            if not present and mean is None:
                raise CannotPredict(
                    "NO_TRAFFIC",
                    f"no window knows {name} or {counter}; a source that counts tokens is needed to replay its requests",
                )

    def draw(self, window: Window, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """(n,) prompt tokens, output tokens, and prefix tokens in the cache."""
        prompt = np.maximum(1, self._column(window, "prompt_length", "prompt_tokens", n, rng))
        output = self._column(window, "output_length", "output_tokens", n, rng)
        cached, tokens = window.count("cached_prompt_tokens"), window.count("prompt_tokens")
        share = min(1.0, cached / tokens) if cached is not None and tokens else 0.0
        prefix = np.minimum(prompt - 1, np.floor(share * prompt + rng.random(n)).astype(np.int64))
        return prompt, output, np.maximum(0, prefix)

    def _column(self, window: Window, name: str, counter: str, n: int, rng: np.random.Generator) -> Ints:
        sketch = window.sketches.get(name)
        if sketch is None or sketch.count <= 0:
            mean = _per_request([window], counter)
            sketch = self._sketches.get(name) if mean is None else None
            if sketch is None:
                # Only a mean: every request has it, the fraction drawn, so that token rates come out right.
                return np.floor((mean if mean is not None else self._means[name]) + rng.random(n)).astype(np.int64)
        drawn = sketch.sample(rng.random(n)) * _to_exact_mean(sketch)
        return np.floor(drawn + rng.random(n)).astype(np.int64)


def _to_exact_mean(sketch: Sketch) -> float:
    """A coarse histogram's draws lie anywhere in its bins, but its mean is exact: the factor that brings them there."""
    mean = float(sketch.sample((np.arange(200) + 0.5) / 200).mean())
    return sketch.mean / mean if sketch.mean and mean > 0 else 1.0


def _per_request(windows: Sequence[Window], counter: str) -> float | None:
    both = [(t, r) for w in windows if (t := w.count(counter)) is not None and (r := w.count("requests"))]
    requests = sum(r for _, r in both)
    return sum(t for t, _ in both) / requests if requests else None
