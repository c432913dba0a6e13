"""Load tests to evidence: observations of a calibration, from summaries that load generators wrote.

What is replayed is what was sent: as many requests, by as many clients or at the same rate, with the same beginning and end, and the
same requests are compared. Where the file has every request, they arrive as they did; otherwise an open loop's arrivals are drawn
from its own distribution, a short run several times over, because no summary keeps them. A closed loop needs none.
Reads no files (``collectors.loadtests`` does) and fits nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from analyzers.prediction import CannotPredict
from analyzers.whatif.fit import Observation, RequestGroup
from collectors.loadtests import LoadTest, RateRamp, Summary
from collectors.plan import Lengths
from collectors.workload import Floats, Ints, Workload

#: Requests to replay: a shorter open loop is replayed several times, of a longer one that is steady a part tells as much.
_FEWEST, _MOST, _MOST_UNSTEADY = 400, 12_000, 100_000
#: Requests of each client in a closed loop above which its beginning weighs too little to tell.
_ROUNDS = 20
#: An open loop that completes less than this share of its rate is not steady.
_STEADY = 0.95
#: Lengths of which only the mean is known vary by this share, as generators draw them.
_VARIES = 0.1
_DOUBTS = {"itl_s": 0.01, "ttft_s": 0.05, "e2e_s": 0.02}
#: A test in which more than this share failed tells of those that came through only.
_FAILED = 0.05
_DRAWN = 20_000


def stated(
    test: LoadTest,
    *,
    prompt: Lengths | None = None,
    output: Lengths | None = None,
    rate_per_s: float | None = None,
    concurrency: int | None = None,
) -> LoadTest:
    """The test with what a person says of it. That wins over the file; where the two differ, a note says so."""
    changes: dict[str, object] = {}
    notes = list(test.notes)

    def differs(what: str, given: float, found: float | None) -> None:
        if found is not None and abs(given / found - 1.0) > 0.01:
            notes.append(f"{what}: {given:g} is stated and the file says {found:g}; what is stated is taken")

    for name, lengths in (("prompt_tokens", prompt), ("output_tokens", output)):
        if lengths is not None:
            drawn = lengths.draw(np.random.default_rng(0), _DRAWN)
            differs(name.replace("_", " "), lengths.mean, _mean(getattr(test, name)))
            changes[name] = replace(Summary.of([float(v) for v in drawn]) or Summary(), mean=lengths.mean)
    if prompt is not None or output is not None:
        changes["records"] = ()
    if rate_per_s is not None:
        differs("rate", rate_per_s, test.rate_per_s)
        changes |= {
            "controlled": "rate",
            "rate_per_s": rate_per_s,
            "ramp": None,
            "burst": 0,
            "max_concurrency": concurrency,
        }
        changes["concurrency"] = None
    elif concurrency is not None:
        differs("concurrency", concurrency, test.concurrency if test.controlled == "concurrency" else None)
        changes |= {"controlled": "concurrency", "concurrency": float(concurrency), "rate_per_s": None, "ramp": None}
        changes["max_concurrency"] = None
    return replace(test, **changes, notes=tuple(notes)) if changes else test  # type: ignore[arg-type]


def observation(test: LoadTest, seed: int = 0) -> Observation:
    """One test as evidence. Raises CannotPredict ``NO_EVIDENCE`` that says what it lacks, and the option that states it."""
    prompt, output = _mean(test.prompt_tokens), _mean(test.output_tokens)
    lacking = [name for name, value in (("prompt", prompt), ("output", output)) if value is None]
    if prompt is None or output is None:
        what = " and ".join(f"the number of {name} tokens" for name in lacking)
        raise _lacks(test, f"{what}; give it with {' and '.join(f'--{name}-tokens N' for name in lacking)}")
    seen = _seen(test, output)
    if not seen:
        raise _lacks(test, "a mean latency (ITL, TPOT, TTFT or end-to-end)")
    if test.failed and test.sent and test.failed > _FAILED * test.sent:
        raise _lacks(
            test, f"answers: {test.failed} of {test.sent} requests failed, and its latencies are of the others"
        )
    closed = test.controlled == "concurrency" and test.concurrency
    if not closed and not (test.controlled == "rate" and (test.rate_per_s or test.ramp)):
        raise _lacks(
            test,
            "the rate or the concurrency at which it was measured; give it with --rate N (requests per second) or --concurrency N",
        )
    rng = np.random.default_rng(seed)
    return _closed(test, seen, rng) if closed else _open(test, seen, output, rng)


def _closed(test: LoadTest, seen: dict[str, tuple[float, float]], rng: np.random.Generator) -> Observation:
    assert test.concurrency is not None
    sent, answered = _counts(test)
    clients = max(1, round(test.concurrency))
    n = sent or 10 * clients
    clients = min(clients, n)
    replayed = min(n, max(_MOST, _ROUNDS * clients))
    workload = _recorded(test, steady=True)
    if workload is None or len(workload) > replayed:
        workload = _workload(np.zeros(replayed), test, rng)
    which = slice(0, answered if answered and replayed == n else None)
    return Observation(
        workload, (RequestGroup(which, seen),), min(float(clients), _little(test) or clients), closed=clients
    )


def _open(test: LoadTest, seen: dict[str, tuple[float, float]], output: float, rng: np.random.Generator) -> Observation:
    sent, answered = _counts(test)
    rate = test.rate_per_s or (sent / _ramp_gaps(test.ramp, sent).sum() if test.ramp and sent else 0.0)
    if not rate:
        raise _lacks(test, "the number of its requests, over which its rate changed")
    running = test.in_flight or rate * output * seen.get("itl_s", (0.01, 0.0))[0]
    steady = test.ramp is None and (test.throughput_per_s or rate) >= _STEADY * rate
    recorded = _recorded(test, steady=False)
    if recorded is not None and len(recorded) <= _MOST_UNSTEADY:
        return Observation(recorded, (RequestGroup(slice(0, None), seen),), running)
    n = min(sent or _FEWEST, _MOST if steady else _MOST_UNSTEADY)
    copies = -(-_FEWEST // n)
    apart = 10.0 * max(test.duration_s or 0.0, n / rate) + 100.0  # all is answered before the next begins
    arrival = np.concatenate([k * (n / rate + apart) + _arrivals(test, n, rate, rng) for k in range(copies)])
    compared = min(answered or n, n)
    which = np.flatnonzero(np.arange(n * copies) % n < compared)
    closed = test.max_concurrency if test.max_concurrency and test.max_concurrency < n else None
    return Observation(_workload(arrival, test, rng), (RequestGroup(which, seen),), running, closed=closed)


def _counts(test: LoadTest) -> tuple[int, int]:
    """Requests that were sent, and of these those that were answered, if only by a failure. 0: not known."""
    answered = (test.completed or 0) + (test.failed or 0)
    if not answered and test.throughput_per_s and test.duration_s:
        answered = round(test.throughput_per_s * test.duration_s)
    return max(test.sent or 0, answered), answered


def _arrivals(test: LoadTest, n: int, rate: float, rng: np.random.Generator) -> Floats:
    """(n,) ascending seconds from 0, of one run."""
    burst = min(test.burst, n)
    even = math.isinf(test.burstiness)
    gaps = np.ones(n - burst) if even else rng.gamma(test.burstiness, 1.0, n - burst)
    if gaps.size:
        gaps = gaps / max(float(gaps.mean()), 1e-12)
    gaps = gaps / rate if test.ramp is None else gaps * _ramp_gaps(test.ramp, n)[burst:]
    return np.concatenate([np.zeros(burst), np.cumsum(gaps)])


def _ramp_gaps(ramp: RateRamp, n: int) -> Floats:
    """(n,) mean seconds before each request."""
    progress = np.arange(n) / max(n - 1, 1)
    if ramp.kind == "exponential":
        return np.asarray(1.0 / (ramp.start_per_s * (ramp.end_per_s / ramp.start_per_s) ** progress))
    rates = ramp.start_per_s + (ramp.end_per_s - ramp.start_per_s) * progress
    return 1.0 / np.maximum(rates, max(ramp.start_per_s, ramp.end_per_s) / n)


def _recorded(test: LoadTest, *, steady: bool) -> Workload | None:
    """Every request as it was sent; None where the file does not have them all. steady: arrival times do not count."""
    rows = test.records
    if not rows or test.completed != len(rows) or max(test.sent or 0, len(rows)) != len(rows):
        return None
    if any(r.sent_s is None or not r.prompt_tokens or not r.output_tokens for r in rows):
        return None
    rows = tuple(sorted(rows, key=lambda r: r.sent_s or 0.0))
    prompt, output = (
        np.array([getattr(r, name) for r in rows], np.int64) for name in ("prompt_tokens", "output_tokens")
    )
    at = np.zeros(len(rows)) if steady else np.array([r.sent_s or 0.0 for r in rows])
    return Workload(at, prompt, output, _prefix(test, prompt))


def _little(test: LoadTest) -> float | None:
    """Mean requests in flight over the whole run, by Little's law."""
    return replace(test, concurrency=None).in_flight


def _seen(test: LoadTest, output: float) -> dict[str, tuple[float, float]]:
    means = {name: summary.mean for name, summary in test.latency.items() if summary.mean}
    gap = means.get("itl_s") or means.get("tpot_s")
    ttft, e2e = means.get("ttft_s"), means.get("e2e_s")
    if gap is None and ttft and e2e and output > 1 and e2e > ttft:
        gap = (e2e - ttft) / (output - 1)
    found = {"itl_s": gap, "ttft_s": ttft, "e2e_s": None if gap else e2e}
    return {name: (value, _DOUBTS[name]) for name, value in found.items() if value}


def _workload(arrival: Floats, test: LoadTest, rng: np.random.Generator) -> Workload:
    n = arrival.shape[0]
    prompt, output = (np.maximum(1, _lengths(s, n, rng)) for s in (test.prompt_tokens, test.output_tokens))
    return Workload(arrival, prompt, output, _prefix(test, prompt))


def _prefix(test: LoadTest, prompt: Ints) -> Ints:
    """(n,) the same share of each prompt, so that as much is cached as the server told."""
    share = min(1.0, (test.cached_tokens or 0.0) / float(prompt.mean()))
    return np.minimum(prompt - 1, (share * prompt).astype(np.int64))


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
