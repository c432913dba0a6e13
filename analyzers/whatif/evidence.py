"""Windows to evidence: observations of windows alike in load, each with what was seen and the traffic that it was seen under.

A calibration compares means, because the sum and the count of a histogram are exact however coarse its bins are. All figures are
per replica. Owns the reading of windows for calibration; fits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.whatif.fit import Observation, RequestGroup
from collectors.sketch import Sketch
from collectors.window import Window
from collectors.workload import Workload

#: Groups at most: more would only cost time, a fit has six unknowns.
MOST_GROUPS = 24
_LEAST_REQUESTS = 3.0


@dataclass(frozen=True, slots=True)
class WindowEvidence:
    """One window, per replica."""

    window: Window
    requests: float
    rate: float
    """Requests per second, consistent with ``running``: that over the mean time in the engine, where both are known."""
    prompt: float
    """Mean tokens."""
    output: float
    itl_s: float | None
    ttft_s: float | None
    """Without the queue where ``queue_known``."""
    e2e_s: float | None
    running: float
    """Mean sequences in the batch."""
    steady: bool
    """A full batch, or a closed loop of constant concurrency: the batch, not the arrival rate, is what is known."""
    queue_known: bool
    overhead_s: float | None
    """Mean time a request spends outside the engine before its first token, where the engine's own prefill time tells it apart.
    ``ttft_s`` is then without it."""
    cached: float
    """Share of the prompt tokens that the prefix cache held."""
    little: bool
    """``running`` is from Little's law, for want of a gauge."""


def sight(window: Window, replicas: int) -> WindowEvidence | None:
    """What one window says for calibration; None where it says too little: not observed, no requests, no lengths, no latency."""
    rate, requests = window.rate("requests"), window.count("requests")
    if not rate or requests is None or requests < _LEAST_REQUESTS:
        return None
    observed_s = window.duration_s * window.coverage
    prompt = _length(window, "prompt_length", "prompt_tokens", requests)
    output = _length(window, "output_length", "output_tokens", requests)
    if prompt is None or output is None or output <= 0:
        return None
    itl = _mean(window, "itl_s") or _mean(window, "tpot_s")
    ttft, e2e, queue = (_mean(window, name) for name in ("ttft_s", "e2e_s", "queue_s"))
    if itl is None and ttft is not None and e2e is not None and output > 1 and e2e > ttft:
        itl = (e2e - ttft) / (output - 1)
    if itl is None and e2e is None:
        return None
    latency = e2e if e2e is not None else (ttft or 0.0) + (itl or 0.0) * max(0.0, output - 1)
    inside_s = max(latency - (queue or 0.0), 1e-9)
    gauge = window.gauges.get("running")
    running, little = _running(window, observed_s, rate, inside_s)
    waiting = window.gauges.get("waiting")
    waits = waiting is not None and waiting.mean > max(0.5, 0.05 * running)
    constant = gauge is not None and gauge.mean >= 0.9 and gauge.maximum <= 1.02 * gauge.mean + 0.1 * replicas
    prefill, overhead = _mean(window, "prefill_s"), None
    if prefill is not None and ttft is not None and queue is not None:
        overhead = (
            0.0 if waits else max(0.0, ttft - queue - prefill)
        )  # under a growing queue these are of different requests
    if prefill is not None:  # of the same requests: while a queue grows, TTFT and queue are of different ones
        ttft = prefill
    elif ttft is not None and queue is not None:
        ttft = max(0.0, ttft - queue) or None
    elif waits:
        ttft = None  # it holds an unknown queue
    cached, tokens = window.count("cached_prompt_tokens"), window.count("prompt_tokens")
    return WindowEvidence(
        window=window,
        requests=requests,
        rate=(rate if waits else running / inside_s) / replicas,
        prompt=max(1.0, prompt),
        output=output,
        itl_s=itl,
        ttft_s=ttft,
        e2e_s=None if waits else e2e,
        running=running / replicas,
        steady=waits or constant,
        queue_known=prefill is not None or queue is not None,
        overhead_s=None if prefill is None else overhead or 0.0,
        cached=min(0.99, cached / tokens) if cached is not None and tokens else 0.0,
        little=little,
    )


def observations(sights: Sequence[WindowEvidence], seed: int, requests: int) -> list[Observation]:
    """Windows grouped by load, lengths and kind, coarser until there are at most ``MOST_GROUPS``; the rare loaded hour keeps its own.

    requests: how many to draw in all, for the groups' traffic.
    """
    width = 0.5
    while True:
        by_key: dict[tuple[int, int, int, bool, bool, bool, int], list[WindowEvidence]] = {}
        for s in sights:
            lengths = (round(math.log2(s.prompt) / (2 * width)), round(math.log2(s.output) / (2 * width)))
            key = (
                round(math.log2(max(s.running, 0.02)) / width), *lengths, s.steady, s.queue_known, s.overhead_s is not None,
                round(4 * s.cached),
            )  # fmt: skip
            by_key.setdefault(key, []).append(s)
        if len(by_key) <= MOST_GROUPS or width > 16:
            break
        width *= 1.5
    each = max(800, requests // len(by_key))
    return [_observation(by_key[key], seed + i, each) for i, key in enumerate(sorted(by_key))]


def _observation(sights: list[WindowEvidence], seed: int, requests: int) -> Observation:
    weights = np.array([s.requests for s in sights])
    running = float(np.average([s.running for s in sights], weights=weights))
    steady, inside = sights[0].steady, sights[0].overhead_s is not None
    workload = _traffic(sights, seed, max(requests, int((8 if steady else 20) * running)), steady)
    n = len(workload)
    middle = slice(n // 6, max(n // 6 + 1, n - n // 8))  # clear of the empty start and the draining end
    seen = {
        "itl_s": _seen([(s.itl_s, s.requests * s.output) for s in sights], 0.03 if steady else 0.01),
        "ttft_s": _seen([(s.ttft_s, s.requests) for s in sights], 0.03),
        "e2e_s": _seen([(s.e2e_s, s.requests) for s in sights], 0.02),
    }
    if seen["itl_s"] is not None:
        del seen["e2e_s"]  # it says the same once more
    return Observation(
        workload=workload,
        parts=(RequestGroup(middle, {name: value for name, value in seen.items() if value is not None}),),
        running=running,
        slots=max(1, round(running)) if steady else None,
        without_queue=steady or sights[0].queue_known,
        inside=inside,
    )


def _seen(values: Sequence[tuple[float | None, float]], floor: float) -> tuple[float, float] | None:
    """The weighted mean without outliers (beyond five scaled median deviations), and its relative standard error.

    ``floor``: the share that the iteration model itself cannot explain, so that no group is believed to the last digit.
    """
    known = [(v, w) for v, w in values if v is not None and v > 0 and w > 0]
    if not known:
        return None
    value, weight = np.array([v for v, _ in known]), np.array([w for _, w in known])
    logs = np.log(value)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    inside = np.abs(logs - middle) <= max(5.0 * spread, 0.05)
    value, weight, logs = value[inside], weight[inside], logs[inside]
    mean = float(np.average(value, weights=weight))
    n = value.shape[0]
    # One window alone shows no scatter: its counts, a tenth a request, stand in for it.
    scatter = float(np.std(logs, ddof=1)) / math.sqrt(n) if n > 2 else 0.3 / math.sqrt(float(weight.sum()))
    return mean, math.hypot(floor, min(scatter, 0.5))


def _traffic(sights: list[WindowEvidence], seed: int, n: int, steady: bool) -> Workload:
    """``n`` requests with exactly the group's mean rate and lengths: drawn in strata, so that the draw adds no noise of its own."""
    rng = np.random.default_rng(seed)
    weights = np.array([s.requests for s in sights])
    columns = []
    for name in ("prompt", "output"):
        mean = float(np.average([getattr(s, name) for s in sights], weights=weights))
        present = [k for s in sights if (k := s.window.sketches.get(f"{name}_length")) is not None and k.count > 0]
        if present:
            drawn = Sketch.merge(present).sample((rng.permutation(n) + rng.random(n)) / n)
            drawn = drawn * (mean / max(float(drawn.mean()), 1e-9))
        else:
            drawn = np.full(n, mean)
        columns.append(np.floor(drawn + rng.random(n)).astype(np.int64))
    prompt, output = np.maximum(1, columns[0]), np.maximum(1, columns[1])
    cached = float(np.average([s.cached for s in sights], weights=weights))
    prefix = np.minimum(prompt - 1, np.floor(cached * prompt + rng.random(n)).astype(np.int64))
    if steady:
        return Workload(np.zeros(n), prompt, output, prefix)
    rate = float(weights.sum() / sum(s.requests / s.rate for s in sights))
    gaps = rng.exponential(1.0, n)
    return Workload(np.cumsum(gaps / gaps.mean()) / rate, prompt, output, prefix)


def _running(window: Window, observed_s: float, rate: float, inside_s: float) -> tuple[float, bool]:
    """Mean sequences in the batch over all replicas, and whether that rests on Little's law alone.

    The sum of all token gaps in a window, over its seconds, is the mean number of decoding sequences, exactly; a gauge is a few
    samples of it. The gaps only count where they are those of this window's tokens.
    """
    gaps, tokens = window.sketches.get("itl_s"), window.count("output_tokens")
    gauge = window.gauges.get("running")
    if gaps is not None and tokens and gauge is not None and 0.5 * tokens < gaps.count <= tokens:
        prefill = max(0.0, inside_s * rate - gaps.total / observed_s) if gaps.count else 0.0
        decoding = gaps.total / observed_s
        return decoding + min(prefill, 0.2 * decoding), False
    if gauge is not None and gauge.mean > 0:
        return gauge.mean, False
    return rate * inside_s, True


def _mean(window: Window, name: str) -> float | None:
    sketch = window.sketches.get(name)
    return sketch.mean if sketch is not None and sketch.count > 0 and sketch.mean else None


def _length(window: Window, name: str, counter: str, requests: float) -> float | None:
    sketch = window.sketches.get(name)
    if sketch is not None and sketch.count > 0:
        return sketch.mean
    tokens = window.count(counter)
    return tokens / requests if tokens is not None else None
