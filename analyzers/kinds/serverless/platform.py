"""Serverless: instances that start on demand, take a few requests each, and go when idle.

Stated so that two people would write the same thing:

- A request goes to the fullest ready instance with a free slot (the first of them on ties), so that others can become idle; else to the
  end of one queue, first come, first served. A slot that gets free, or an instance that gets ready, takes from its head.
- When a request has to wait and more wait than the starting instances have slots, another one starts, up to ``most``. It is ready
  ``cold_start_s`` later.
- An instance that had nothing to do for ``idle_s`` goes, unless no more than ``least`` are there. ``least`` are ready at the start.
- Beside k - 1 others on its instance a request takes 1 + sigma (k - 1) + kappa k (k - 1) times as long as alone, as the others come and
  go (``usl``'s law; 0 and 0: no slowdown; sigma 1: k share one processor).

At one instant instances act before arrivals do. Whom a platform picks, and when it starts another instance, is its own secret: this is the plain
reading of what Cloud Run, Knative and Lambda (one slot) document. Owns no prices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analyzers.kinds import kernels
from analyzers.kinds.service import CallTimes, ServiceReplay, Speed, check_not_empty, decoded, served
from collectors.workload import Floats, Workload


@dataclass(frozen=True)
class Serverless:
    """What a platform runs a function or a container with."""

    concurrency: int
    """Requests at once on one instance."""
    cold_start_s: float
    most: int
    """Instances."""
    least: int = 0
    """Kept warm."""
    idle_s: float = 300.0
    longest_wait_s: float = math.inf
    """A request that waited longer than this for a slot gives up."""
    sigma: float = 0.0
    kappa: float = 0.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.most < 1 or not 0 <= self.least <= self.most:
            raise ValueError("serverless: concurrency >= 1, most >= 1 and 0 <= least <= most are expected")
        for name in ("cold_start_s", "idle_s", "longest_wait_s", "sigma", "kappa"):
            value = getattr(self, name)
            if math.isnan(value) or value < 0:
                raise ValueError(f"serverless: {name} must be 0 or more, not {value}")
        if not math.isfinite(self.cold_start_s + self.sigma + self.kappa):
            raise ValueError("serverless: cold_start_s, sigma and kappa must be finite")


def replay(workload: Workload, platform: Serverless, speed: Speed, *, seed: int = 0) -> ServiceReplay:
    """Replay ``workload`` on ``platform``; ``speed`` is that of a request alone on an instance, seed that of its draws.

    ``used``: ``instance_s`` from each start (cold start included) to its end, or to that of the replay: what is billed where idle instances
    cost; ``busy_s``, with at least one request: what is billed by active time; ``request_s``, summed over requests: what is billed
    by the call; and the token counts. ``gauges``: ``cold_starts``, ``instances_max``, ``running_mean``.
    Raises ValueError on an empty workload.
    """
    check_not_empty(workload)
    first, tpot = speed.draw(workload, seed)
    whole, _ = decoded(workload, first, tpot)
    return run(workload, platform, first, whole, packed=True)


def run(workload: Workload, platform: Serverless, first: Floats, work: Floats, *, packed: bool) -> ServiceReplay:
    """Replay with (n,) seconds that each request takes alone: to its first token (-1: it does not stream), and in all.

    packed: the fullest instance gets the next request, else the emptiest.
    """
    n = len(workload)
    requests = tuple(np.ascontiguousarray(x, np.float64) for x in (workload.arrival_s, first, work))
    begun, answered, ended, sums = kernels.instances(
        requests,
        np.array(
            [
                min(platform.concurrency, n),
                platform.least,
                platform.most,
                platform.cold_start_s,
                platform.idle_s,
                platform.longest_wait_s,
                platform.sigma,
                platform.kappa,
                float(packed),
            ]
        ),
    )
    each = _each(workload, begun, answered, ended)
    done = each.e2e_s >= 0.0
    request_s = float((each.e2e_s - each.queue_s)[done].sum())
    lost = (workload.arrival_s[~done] + platform.longest_wait_s).max() if not done.all() else 0.0
    end = max(float(sums[kernels.END]), float(lost))
    waits = platform.concurrency < n
    return served(
        workload,
        each,
        served_at_s=np.where(done, begun if waits else ended, np.inf),
        end_s=end,
        throttled=0,
        used={
            "instance_s": float(sums[kernels.ALIVE_S]),
            "busy_s": float(sums[kernels.BUSY_S]),
            "request_s": request_s,
            "prompt_tokens": float(workload.prompt_tokens[done].sum()),
            "output_tokens": float(workload.output_tokens[done].sum()),
        },
        gauges={
            "cold_starts": float(sums[kernels.STARTS]),
            "instances_max": float(sums[kernels.PEAK]),
            "running_mean": request_s / end if end > 0 else 0.0,
        },
    )


def _each(workload: Workload, begun: Floats, answered: Floats, ended: Floats) -> CallTimes:
    arrival, more = workload.arrival_s, workload.output_tokens - 1
    done = ended >= 0.0
    streams = done & (answered >= 0.0)
    counts = streams & (more > 0)
    return CallTimes(
        queue_s=np.where(done, begun - arrival, -1.0),
        ttft_s=np.where(streams, answered - arrival, -1.0),
        tpot_s=np.where(counts, (ended - answered) / np.maximum(more, 1), -1.0),
        e2e_s=np.where(done, ended - arrival, -1.0),
        rejected=np.zeros(arrival.shape[0], np.bool_),
        tries=np.ones(arrival.shape[0], np.int64),
    )
