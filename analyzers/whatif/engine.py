"""Replay: a workload on a simulated engine, request by request. The schedule that it is exact to:

- An iteration starts when the one before it ends, or, when nothing runs or waits, at the next arrival. It sees every request
  that arrived by its start.
- Every sequence that finished its prefill decodes one token in it, and takes one token of ``max_num_batched_tokens``. The rest of
  that budget goes to prefill in chunks: to the partly prefilled sequence, then to waiting requests in arrival order, each admitted
  while a slot (``max_num_seqs``) and the cache blocks for its chunk are free. The first that does not get in holds back those
  behind it; a partly prefilled one whose next chunk has no blocks keeps what it has and waits. With ``chunked_prefill=False`` a
  prompt is prefilled whole or not at all; one that is larger than the whole budget runs alone (vLLM would not start like this).
- Its time is ``Iteration``'s formula. The first token comes at the end of the iteration that completes the prefill.
- A decode with L = prompt + produced tokens holds ceil(L / block_size) blocks. Decodes take their blocks before prefill does. When
  one finds none, the latest admitted sequence loses its blocks and goes to the head of the queue, to be prefilled again with prompt
  and produced tokens; what the prefix cache held of its prompt is still held. That prefill gives its next token.
- ``prefix_tokens`` are in the cache: not computed, but they take blocks of the sequence like the others.
- A request for 0 output tokens ends with its prefill, as one for 1 token does (vLLM always samples one): its TTFT is that end.
- A request of more than ``max_model_len`` tokens (prompt + output), or more blocks than the cache has, is rejected.
- Round robin gives request i of the input to replica i mod n. Least outstanding gives an arrival to the replica with the fewest
  unfinished requests (those that finish at that very instant are finished), the first of them on ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analyzers.whatif import kernel
from analyzers.whatif.distribution import Bins, Distribution, Samples
from analyzers.whatif.model import EngineModel
from collectors.workload import Floats, Workload

Router = Literal["round_robin", "least_outstanding"]


@dataclass(frozen=True, slots=True)
class PerRequest:
    """One entry for each request of the workload, in its order. A time that never came (rejected, or cut off) is -1."""

    ttft_s: Floats
    queue_s: Floats
    """Arrival to the start of the first iteration that prefills it."""
    e2e_s: Floats
    rejected: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Replay:
    """What happened. Counts and means are over all replicas together, and over the whole of ``simulated_s``."""

    requests: int
    """Seen: those that arrive after the horizon are not."""
    completed: int
    rejected: int
    """Larger than the cache or ``max_model_len``."""
    preemptions: int
    output_tokens: int
    """Of completed requests."""
    running_mean: float
    waiting_mean: float
    kv_usage_max: float | None
    """0..1, of the fullest replica. None: the cache is not limited, so there is no share."""
    simulated_s: float
    """From 0 to the end of the last iteration."""
    busy_s: float
    """Time in iterations, summed over replicas."""
    ttft: Distribution
    itl: Distribution
    """Over gaps between consecutive tokens, not over requests."""
    tpot: Distribution
    """Over requests of two tokens and more."""
    e2e: Distribution
    queue: Distribution
    waiting_growth: float
    """Requests that waited at the last arrival (or the horizon), less those that did half-way there."""
    arrivals_late: int
    """Requests that arrived in that second half."""
    per_request: PerRequest | None = None

    def distribution(self, metric: str) -> Distribution:
        """By canonical name: ``ttft_s``, ``itl_s``, ``tpot_s``, ``e2e_s``, ``queue_s``. Raises KeyError on another."""
        return {"ttft_s": self.ttft, "itl_s": self.itl, "tpot_s": self.tpot, "e2e_s": self.e2e, "queue_s": self.queue}[
            metric
        ]

    @property
    def saturated(self) -> bool:
        """Whether the queue was still growing when the traffic ended: the shape cannot carry this workload for long.

        Over the second half of the arrivals the number that waits for a first admission grew by more than 5 % of them, and by
        more than three standard deviations of a Poisson count of them, so that neither a burst nor little data says so.
        """
        n = self.arrivals_late
        return self.waiting_growth > max(0.05 * n, 3.0 * math.sqrt(n))


def replay(
    workload: Workload,
    model: EngineModel,
    *,
    replicas: int = 1,
    router: Router = "round_robin",
    horizon: float | None = None,
    per_request: bool = False,
) -> Replay:
    """Replay ``workload`` on ``replicas`` engines that are each ``model``.

    horizon: seconds; no iteration starts at or after it, and later arrivals are not seen. None: until all is done.
    per_request: also return each request's own times.
    Raises ValueError on an empty workload, and on what no replay can be made of.
    """
    n = len(workload)
    if n == 0:
        raise ValueError("the workload has no requests; replay at least one")
    if n >= 1 << kernel.REQUEST_BITS:
        raise ValueError(f"the workload has {n} requests, more than one replay can number; split it by time")
    if replicas < 1:
        raise ValueError(f"replicas must be 1 or more, not {replicas}")
    if router not in ("round_robin", "least_outstanding"):
        raise ValueError(f"unknown router {router!r}; known: round_robin, least_outstanding")
    end = float("inf") if horizon is None else float(horizon)
    if not end > 0:
        raise ValueError(f"horizon must be above 0 seconds, not {horizon}")

    limits = model.limits
    slots = min(limits.max_num_seqs, n)
    size = limits.block_size
    blocks = kernel.UNLIMITED if limits.kv_tokens is None else limits.kv_tokens // size
    real = np.zeros((replicas, kernel.REAL_COLUMNS))
    whole = np.zeros((replicas, kernel.WHOLE_COLUMNS), np.int64)
    whole[:, [kernel.PARTIAL, kernel.HEAD, kernel.TAIL]] = -1
    ttft, queue, e2e = (np.full(n, -1.0) for _ in range(3))
    bins = np.zeros(kernel.BINS)
    rejected, seen = kernel.simulate(
        int(router == "least_outstanding" and replicas > 1),
        end,
        real,
        whole,
        np.zeros((replicas, slots), np.int64),
        np.zeros((replicas, size), np.int64),
        np.zeros(slots, np.int64),
        np.array(model.iteration.as_tuple()),
        np.array(
            [
                limits.max_num_seqs,
                limits.max_num_batched_tokens,
                blocks,
                size,
                kernel.UNLIMITED if limits.max_model_len is None else limits.max_model_len,
                int(model.chunked_prefill),
            ],
            np.int64,
        ),
        (
            np.ascontiguousarray(workload.arrival_s, np.float64),
            np.ascontiguousarray(workload.prompt_tokens, np.int64),
            np.ascontiguousarray(workload.output_tokens, np.int64),
            np.ascontiguousarray(workload.prefix_tokens, np.int64),
        ),
        (np.empty(n, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64), ttft, queue, e2e),
        bins,
        kernel.BIN_EDGES,
    )
    return _read(workload, real, whole, (ttft, queue, e2e), bins, rejected, seen, blocks, per_request)


def _read(
    workload: Workload,
    real: Floats,
    whole: NDArray[np.int64],
    times: tuple[Floats, Floats, Floats],
    bins: Floats,
    rejected: int,
    seen: int,
    blocks: int,
    per_request: bool,
) -> Replay:
    """The kernel's arrays as a Replay."""
    ttft, queue, e2e = times
    refused = e2e == -2.0
    completed = int(whole[:, kernel.COMPLETED].sum())
    whole_run = completed == len(workload)
    e2e[refused] = -1.0
    done = e2e >= 0.0
    outputs = workload.output_tokens
    many = outputs > 1 if whole_run else done & (outputs > 1)
    decode = e2e[many] - ttft[many]
    simulated = max(float(real[:, kernel.NOW].max()), float(workload.arrival_s[seen - 1]) if seen else 0.0)
    growth, late = _waiting_growth(workload.arrival_s[:seen], queue[:seen], refused[:seen])
    span = simulated or 1.0
    return Replay(
        requests=seen,
        completed=completed,
        rejected=rejected,
        preemptions=int(whole[:, kernel.PREEMPTIONS].sum()),
        output_tokens=int(outputs.sum() if whole_run else outputs[done].sum()),
        running_mean=float(real[:, kernel.RUNNING].sum()) / span,
        waiting_mean=float(real[:, kernel.WAITING].sum()) / span,
        kv_usage_max=None if blocks == kernel.UNLIMITED else float(whole[:, kernel.PEAK].max()) / blocks,
        simulated_s=simulated,
        busy_s=float(real[:, kernel.BUSY].sum()),
        ttft=Samples(ttft if whole_run else ttft[ttft >= 0.0]),
        itl=Bins(bins, kernel.BIN_EDGES, float(real[:, kernel.GAPS].sum())),
        tpot=Samples(decode / (outputs[many] - 1)),
        e2e=Samples(e2e if whole_run else e2e[done]),
        queue=Samples(queue if whole_run else queue[queue >= 0.0]),
        waiting_growth=growth,
        arrivals_late=late,
        per_request=PerRequest(ttft, queue, e2e, refused) if per_request else None,
    )


def _waiting_growth(arrival: Floats, queue: Floats, refused: NDArray[np.bool_]) -> tuple[float, int]:
    """How many more requests waited for a first admission at the last arrival than half-way through the arrivals; and that half."""
    half = arrival.shape[0] // 2
    if half == 0:
        return 0.0, 0
    admitted = np.where(queue >= 0.0, arrival + queue, np.inf)
    waits = ~refused
    late = float(arrival[-1])
    middle = float(arrival[half])

    def waiting(at: float) -> int:
        return int(np.count_nonzero(waits & (arrival <= at) & (admitted > at)))

    return float(waiting(late) - waiting(middle)), int(np.count_nonzero(waits[half:]))
