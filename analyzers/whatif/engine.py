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
  unfinished requests (those that finish at that very instant are finished), the first of them on ties. Prefix-aware gives it to
  the replica that served its session last, unless that one takes no more requests, or has more than 32 more and more than 1.5
  times the fewest outstanding; then, and without a session or with a new one, it goes to the least outstanding. (Affinity until
  the load is out of balance by a difference and a ratio is the idea of SGLang's router.)
- With sessions, ``prefix_tokens`` are in the cache of the replica that a request is given to, unless requests of its session were
  given to others before and never to this one: then it computes its whole prompt.
- With ``accept_length`` a above 1 (speculative decoding), a sequence that has decoded j iterations since its latest prefill has
  produced floor(a * j) tokens in them, or all that it owed, if that is less. It counts once in D and takes one token of the budget
  as without; C and blocks go with the tokens that it has. The tokens of one iteration come at equal gaps: its time over their number.
- With ``timeout_s`` a client gives up at arrival + timeout. The first iteration that starts then or later takes its request out of
  queue or batch, with slot and blocks. A request completes if its end-to-end time is at most ``timeout_s``; one whose last token
  comes in the iteration that spans its deadline timed out too, as did one that the horizon cuts off after its deadline. A TTFT
  within the timeout stays.
- Replicas that come and go: ``fleet`` states the rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analyzers.whatif import kernel
from analyzers.whatif.distribution import Bins, Distribution, Samples
from analyzers.whatif.fleet import FleetHistory, ReplicaFleet, operate, steady
from analyzers.whatif.model import EngineModel
from collectors.workload import Floats, Ints, Workload

Router = Literal["round_robin", "least_outstanding", "prefix_aware"]
ROUTERS: tuple[Router, ...] = (
    "round_robin",
    "least_outstanding",
    "prefix_aware",
)  # in the order of the kernel's constants


@dataclass(frozen=True, slots=True)
class RequestOutcomes:
    """One entry for each request of the workload, in its order. A time that never came is -1: the request was rejected or cut off by
    the horizon, its client gave up, or its replica died."""

    ttft_s: Floats
    queue_s: Floats
    """Arrival to the start of the first iteration that prefills it."""
    e2e_s: Floats
    rejected: NDArray[np.bool_]
    timed_out: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    output_tokens: Ints

    @property
    def tpot_s(self) -> Floats:
        """The mean gap between its tokens; -1 where it has no two, or did not complete."""
        gaps = (self.e2e_s - self.ttft_s) / np.maximum(self.output_tokens - 1, 1)
        return np.where((self.e2e_s >= 0.0) & (self.output_tokens > 1), gaps, -1.0)


@dataclass(frozen=True, slots=True)
class Replay:
    """What happened. Counts and means are over all replicas together, and over the whole of ``simulated_s``."""

    requests: int
    """Seen: those that arrive after the horizon are not."""
    completed: int
    rejected: int
    """Larger than the cache or ``max_model_len``."""
    timed_out: int
    """Their clients gave up."""
    failed: int
    """Lost with a replica that died."""
    preemptions: int
    output_tokens: int
    """Of completed requests."""
    running_mean: float
    waiting_mean: float
    kv_usage_max: float | None
    """0..1, of the fullest replica. None: the cache is not limited, so there is no share."""
    simulated_s: float
    """From 0 to the end of the last iteration, or to the last arrival if that is later, or while the router holds requests."""
    busy_s: float
    """Time in iterations, summed over replicas."""
    replica_s: float
    """Time provisioned, cold starts and emptying included, summed over replicas."""
    replicas: tuple[tuple[float, int], ...]
    """(at_s, replicas that take requests), at the start and at each change."""
    ttft: Distribution
    itl: Distribution
    """Over gaps between consecutive tokens that the engine made, not over requests."""
    tpot: Distribution
    """Over requests of two tokens and more."""
    e2e: Distribution
    queue: Distribution
    waiting_growth: float
    """Requests that waited at the last arrival (or the horizon), less those that did half-way there."""
    arrivals_late: int
    """Requests that arrived in that second half."""
    per_request: RequestOutcomes

    @property
    def replicas_max(self) -> int:
        """The most that took requests at once."""
        return max(ready for _, ready in self.replicas)

    def distribution(self, metric: str) -> Distribution:
        """By canonical name: ``ttft_s``, ``itl_s``, ``tpot_s``, ``e2e_s``, ``queue_s``. Raises KeyError on another."""
        return {"ttft_s": self.ttft, "itl_s": self.itl, "tpot_s": self.tpot, "e2e_s": self.e2e, "queue_s": self.queue}[
            metric
        ]

    def goodput_per_s(self, limits: Mapping[str, float]) -> float:
        """Requests a second of simulated time that completed and met every limit.

        limits: seconds by ``ttft_s``, ``e2e_s``, ``queue_s``, and ``tpot_s`` or ``itl_s`` (both the request's own mean gap).
        Raises ValueError on another name, and on a limit that is no number.
        """
        each = self.per_request
        good = each.e2e_s >= 0.0
        for name, limit in limits.items():
            if name not in ("ttft_s", "e2e_s", "queue_s", "tpot_s", "itl_s"):
                raise ValueError(
                    f"goodput: no limit on {name!r} is known; known: ttft_s, e2e_s, queue_s, tpot_s, itl_s"
                )
            if not limit >= 0:
                raise ValueError(f"goodput: the limit on {name} must be 0 seconds or more, not {limit}")
            good &= getattr(each, "tpot_s" if name == "itl_s" else name) <= limit
        return int(np.count_nonzero(good)) / (self.simulated_s or 1.0)

    @property
    def saturated(self) -> bool:
        """Whether the queue was still growing when the traffic ended: the shape cannot carry this workload for long.

        Over the second half of the arrivals the number that waits for a first admission grew by more than 5 % of them, and by
        more than three standard deviations of a Poisson count of them, so that neither a burst nor little data says so. Clients
        that give up hold a queue down: where more than 5 % of all do (and more than those deviations), it would have grown.
        """
        late, all_ = self.arrivals_late, self.requests
        return self.waiting_growth > max(0.05 * late, 3.0 * math.sqrt(late)) or self.timed_out > max(
            0.05 * all_, 3.0 * math.sqrt(all_)
        )


def replay(
    workload: Workload,
    model: EngineModel,
    *,
    replicas: int = 1,
    router: Router = "round_robin",
    horizon: float | None = None,
    timeout_s: float | None = None,
    fleet: ReplicaFleet | None = None,
) -> Replay:
    """Replay ``workload`` on ``replicas`` engines that are each ``model``, or on a ``fleet`` of them that changes.

    horizon: seconds; no iteration starts at or after it, and later arrivals are not seen. None: until all is done.
    timeout_s: how long a client waits for its last token. None: for ever.
    Raises ValueError on an empty workload, and on what no replay can be made of.
    """
    end = math.inf if horizon is None else float(horizon)
    patience = math.inf if timeout_s is None else float(timeout_s)
    _check(workload, replicas, router, end, patience, fleet)
    sessions = workload.session is not None and (replicas > 1 or fleet is not None)
    machine = kernel.KernelMachine(
        workload,
        model,
        max(1, replicas if fleet is None else fleet.replicas),
        ROUTERS.index(router) if replicas > 1 or fleet is not None else kernel.ROUND_ROBIN,
        patience,
        tracked=sessions or (fleet is not None and bool(fleet.failures)),
    )
    course = steady(replicas, machine, end) if fleet is None else operate(fleet, machine, end)
    return _read(workload, machine, course, end)


def outcomes(workload: Workload, model: EngineModel, *, timeout_s: float | None = None) -> RequestOutcomes:
    """``replay(...).per_request`` on one engine, without the sums and distributions beside it, which cost a short replay a quarter."""
    patience = math.inf if timeout_s is None else float(timeout_s)
    _check(workload, 1, ROUTERS[0], math.inf, patience, None)
    machine = kernel.KernelMachine(workload, model, 1, kernel.ROUND_ROBIN, patience, tracked=False)
    course = steady(1, machine, math.inf)
    return _outcomes(workload, machine, course.seen, math.inf)


def _check(
    workload: Workload, replicas: int, router: str, end: float, patience: float, fleet: ReplicaFleet | None
) -> None:
    n = len(workload)
    if n == 0:
        raise ValueError("the workload has no requests; replay at least one")
    if n >= 1 << kernel.REQUEST_BITS:
        raise ValueError(f"the workload has {n} requests, more than one replay can number; split it by time")
    if replicas < 1:
        raise ValueError(f"replicas must be 1 or more, not {replicas}")
    if fleet is not None and replicas != 1:
        raise ValueError(f"replicas ({replicas}) beside a fleet; say it in the fleet")
    if router not in ROUTERS:
        raise ValueError(f"unknown router {router!r}; known: {', '.join(ROUTERS)}")
    if not end > 0:
        raise ValueError(f"horizon must be above 0 seconds, not {end}")
    if not patience > 0:
        raise ValueError(f"timeout_s must be above 0 seconds, not {patience}; leave it out where clients wait for ever")


def _read(workload: Workload, machine: kernel.KernelMachine, course: FleetHistory, end: float) -> Replay:
    """The machine's arrays as a Replay."""
    real, whole, seen, arrival = machine.real, machine.whole, course.seen, workload.arrival_s
    each = _outcomes(workload, machine, seen, end)
    ttft, queue, e2e, outputs = each.ttft_s, each.queue_s, each.e2e_s, each.output_tokens
    refused, late, failed = each.rejected, each.timed_out, each.failed
    done = e2e >= 0.0
    completed = int(np.count_nonzero(done))
    whole_run = completed == len(workload)
    many = outputs > 1 if whole_run else done & (outputs > 1)
    decode = e2e[many] - ttft[many]
    simulated = max(machine.latest_end(), float(arrival[seen - 1]) if seen else 0.0, course.until_s)
    gone = np.where(late, arrival + machine.timeout_s, np.inf) if late.any() else None
    growth, rest = _waiting_growth(arrival[:seen], queue[:seen], (refused | failed)[:seen], gone)
    span = simulated or 1.0
    return Replay(
        requests=seen,
        completed=completed,
        rejected=int(np.count_nonzero(refused)),
        timed_out=int(np.count_nonzero(late)),
        failed=int(np.count_nonzero(failed)),
        preemptions=int(whole[:, kernel.PREEMPTIONS].sum()),
        output_tokens=int(outputs.sum() if whole_run else outputs[done].sum()),
        running_mean=float(real[:, kernel.RUNNING].sum()) / span,
        waiting_mean=(float(real[:, kernel.WAITING].sum()) + course.held_s) / span,
        kv_usage_max=None
        if machine.blocks == kernel.UNLIMITED
        else float(whole[:, kernel.PEAK].max()) / machine.blocks,
        simulated_s=simulated,
        busy_s=float(real[:, kernel.BUSY].sum()),
        replica_s=course.replica_s(simulated),
        replicas=course.ready,
        ttft=Samples(ttft if whole_run else ttft[ttft >= 0.0]),
        itl=Bins(machine.bins, kernel.BIN_EDGES, float(real[:, kernel.GAPS].sum())),
        tpot=Samples(decode / (outputs[many] - 1)),
        e2e=Samples(e2e if whole_run else e2e[done]),
        queue=Samples(queue if whole_run else queue[queue >= 0.0]),
        waiting_growth=growth,
        arrivals_late=rest,
        per_request=each,
    )


def _outcomes(workload: Workload, machine: kernel.KernelMachine, seen: int, end: float) -> RequestOutcomes:
    """What became of each request."""
    e2e = machine.e2e
    if machine.timeout_s < math.inf:
        gone = workload.arrival_s[:seen] + machine.timeout_s <= end
        e2e[:seen][(e2e[:seen] == kernel.UNFINISHED) & gone] = kernel.TIMED_OUT
    lost = e2e < 0.0
    if lost.any():
        refused, late, failed = (e2e == what for what in (kernel.REJECTED, kernel.TIMED_OUT, kernel.FAILED))
        e2e[lost] = -1.0
    else:
        refused = late = failed = lost
    return RequestOutcomes(machine.ttft, machine.queue, e2e, refused, late, failed, workload.output_tokens)


def _waiting_growth(arrival: Floats, queue: Floats, never: NDArray[np.bool_], gone: Floats | None) -> tuple[float, int]:
    """How many more requests waited for a first admission at the last arrival than half-way through the arrivals; and that half.

    never: those that are not counted. gone: when a client gave up, infinity where it did not; None where none did.
    """
    half = arrival.shape[0] // 2
    if half == 0:
        return 0.0, 0
    admitted = np.where(queue >= 0.0, arrival + queue, np.inf)
    if gone is not None:
        admitted = np.minimum(admitted, gone[: arrival.shape[0]])
    waits = ~never
    late = float(arrival[-1])
    middle = float(arrival[half])

    def waiting(at: float) -> int:
        return int(np.count_nonzero(waits & (arrival <= at) & (admitted > at)))

    return float(waiting(late) - waiting(middle)), int(np.count_nonzero(waits[half:]))
