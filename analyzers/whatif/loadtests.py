"""Load tests to evidence: observations of a calibration, from summaries that load generators wrote.

Open-loop arrivals are drawn as a Poisson process at the test's own rate, because no summary keeps them; a closed loop needs none.
Reads no files (``collectors.loadtests`` does) and fits nothing.
"""

from __future__ import annotations

import numpy as np

from analyzers.prediction import CannotPredict
from analyzers.whatif.fit import Observation, RequestGroup
from collectors.loadtests import LoadTest, Summary
from collectors.workload import Ints, Workload

_FEWEST, _MOST = 400, 12_000
#: Lengths of which only the mean is known vary by this share, as generators draw them.
_VARIES = 0.1
_DOUBTS = {"itl_s": 0.01, "ttft_s": 0.05, "e2e_s": 0.02}
#: A test in which more than this share failed tells of those that came through only.
_FAILED = 0.05


def observation(test: LoadTest, seed: int = 0) -> Observation:
    """One test as evidence. Raises CannotPredict ``NO_EVIDENCE`` that says what it lacks."""
    prompt, output = _mean(test.prompt_tokens), _mean(test.output_tokens)
    if prompt is None or output is None:
        raise _lacks(test, "the numbers of prompt and output tokens")
    seen = _seen(test, output)
    if not seen:
        raise _lacks(test, "a mean latency (ITL, TPOT, TTFT or end-to-end)")
    if test.failed and test.sent and test.failed > _FAILED * test.sent:
        raise _lacks(
            test, f"answers: {test.failed} of {test.sent} requests failed, and its latencies are of the others"
        )
    running = test.in_flight
    rng = np.random.default_rng(seed)
    if test.controlled == "concurrency" and test.concurrency:
        clients = max(1, round(test.concurrency))
        # As many as there were: the first of each client came all at once, and how much that weighs depends on the others.
        n = int(np.clip(test.completed or 10 * clients, 2 * clients, max(_MOST, 2 * clients)))
        workload = _workload(np.zeros(n), test, rng)
        return Observation(workload, (RequestGroup(slice(0, None), seen),), float(clients), closed=clients)
    rate = test.rate_per_s or test.throughput_per_s
    if not rate:
        raise _lacks(test, "the rate or the concurrency at which it was measured")
    n = int(np.clip(test.completed or _FEWEST, _FEWEST, _MOST))
    gaps = rng.exponential(1.0, n)
    workload = _workload(np.cumsum(gaps / gaps.mean()) / rate, test, rng)
    middle = slice(n // 20, n - n // 20)
    return Observation(
        workload, (RequestGroup(middle, seen),), running or rate * output * seen.get("itl_s", (0.01, 0.0))[0]
    )


def _seen(test: LoadTest, output: float) -> dict[str, tuple[float, float]]:
    means = {name: summary.mean for name, summary in test.latency.items() if summary.mean}
    gap = means.get("itl_s") or means.get("tpot_s")
    ttft, e2e = means.get("ttft_s"), means.get("e2e_s")
    if gap is None and ttft and e2e and output > 1 and e2e > ttft:
        gap = (e2e - ttft) / (output - 1)
    found = {"itl_s": gap, "ttft_s": ttft, "e2e_s": None if gap else e2e}
    return {name: (value, _DOUBTS[name]) for name, value in found.items() if value}


def _workload(arrival: np.ndarray, test: LoadTest, rng: np.random.Generator) -> Workload:
    n = arrival.shape[0]
    prompt, output = (np.maximum(1, _lengths(s, n, rng)) for s in (test.prompt_tokens, test.output_tokens))
    return Workload(arrival, prompt, output, np.zeros(n, np.int64))


def _lengths(summary: Summary | None, n: int, rng: np.random.Generator) -> Ints:
    """(n,) drawn in strata, of exactly the test's mean: by its quantiles where it has them."""
    assert summary is not None
    mean = summary.mean or summary.p50 or 1.0
    level = (rng.permutation(n) + rng.random(n)) / n
    known = [(q, v) for q, v in ((0.5, summary.p50), (0.9, summary.p90), (0.95, summary.p95), (0.99, summary.p99)) if v]
    if len(known) < 2:
        drawn = mean * (1.0 - _VARIES + 2.0 * _VARIES * level)
    else:
        levels, values = zip((0.0, max(1.0, 2.0 * known[0][1] - known[-1][1])), *known, strict=True)
        drawn = np.interp(level, levels, values)
    return np.floor(drawn * (mean / max(float(drawn.mean()), 1e-9)) + rng.random(n)).astype(np.int64)


def _mean(summary: Summary | None) -> float | None:
    return None if summary is None else summary.mean or summary.p50


def _lacks(test: LoadTest, what: str) -> CannotPredict:
    return CannotPredict("NO_EVIDENCE", f"{test.source} {test.name}: it lacks {what}")
