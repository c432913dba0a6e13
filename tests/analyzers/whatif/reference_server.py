"""Windows as a collector would make them, from a server whose truth is known: the engine itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineModel
from collectors.sketch import Sketch
from collectors.window import Gauge, Window
from collectors.workload import Floats, Workload

#: vLLM's own buckets for times.
EDGES = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip


def poisson(rate: float, seconds: float, seed: int, *, prompt: float = 600.0, output: float = 200.0) -> Workload:
    rng = np.random.default_rng(seed)
    n = int(rng.poisson(rate * seconds))
    return Workload(
        np.sort(rng.random(n)) * seconds,
        np.clip(rng.lognormal(np.log(prompt), 0.7, n), 1, 3500).astype(np.int64),
        np.clip(rng.lognormal(np.log(output), 0.6, n), 1, 1500).astype(np.int64),
        np.zeros(n, np.int64),
    )


def coarse(values: Floats, weights: Floats | None = None, edges: Sequence[float] = EDGES) -> Sketch:
    weights = np.ones(values.shape[0]) if weights is None else weights
    counts, _ = np.histogram(values, (0.0, *edges, np.inf), weights=weights)
    return Sketch.from_histogram(edges, counts, float((values * weights).sum()))


def windows(
    model: EngineModel,
    work: Workload,
    *,
    duration_s: float = 60.0,
    leave_out: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    replicas: int = 1,
    edges: Sequence[float] = EDGES,
    stuck_at: float = np.inf,
) -> list[Window]:
    """edges: of the latencies' buckets. stuck_at: from then on nothing is admitted, no token comes out, and nothing ends."""
    each = replay(work, model, replicas=replicas).per_request
    assert each is not None
    admitted, first, end = (work.arrival_s + v for v in (each.queue_s, each.ttft_s, each.e2e_s))
    took = np.maximum(end - first, 1e-9)
    last = np.minimum(end, stuck_at)
    admitted, first, end = (np.where(v > stuck_at, np.inf, v) for v in (admitted, first, end))
    gaps = np.maximum(work.output_tokens - 1, 0)
    ordered = [np.sort(v) for v in (work.arrival_s, admitted, end)]
    out = []
    for start in np.arange(0.0, work.duration_s - duration_s + 1e-6, duration_s):
        stop = start + duration_s
        done = (end >= start) & (end < stop)
        # The share of each request's tokens that came in this window.
        share = np.clip(np.minimum(last, stop) - np.maximum(first, start), 0, None) / took
        moments = np.linspace(start, stop, 120, endpoint=False)
        arrived_by, admitted_by, ended_by = (np.searchsorted(v, moments, "right") for v in ordered)
        running, waiting = admitted_by - ended_by, arrived_by - admitted_by
        some = (gaps > 0) & (share > 0)
        sketches = {
            "ttft_s": coarse(each.ttft_s[done], edges=edges),
            "e2e_s": coarse(each.e2e_s[done], edges=edges),
            "queue_s": coarse(each.queue_s[done], edges=edges),
            "itl_s": coarse((took / np.maximum(gaps, 1))[some], (share * gaps)[some], edges),
            "prompt_length": Sketch.from_values(work.prompt_tokens[done]),
            "output_length": Sketch.from_values(work.output_tokens[done]),
        }
        gauges = {
            name: Gauge(float(v.mean()), float(v.max()), float(v[-1]))
            for name, v in (("running", running), ("waiting", waiting))
        }
        counts = {
            "requests": float(done.sum()),
            "prompt_tokens": float(work.prompt_tokens[done].sum()),
            "output_tokens": float((share * gaps)[some].sum() + done.sum()),
        }
        out.append(
            Window(
                endpoint="chat",
                source="vllm",
                start=float(start),
                duration_s=duration_s,
                coverage=1.0,
                targets=1,
                counts={k: v for k, v in counts.items() if k not in leave_out},
                sketches={k: v for k, v in sketches.items() if k not in leave_out and v.count > 0},
                gauges={k: v for k, v in gauges.items() if k not in leave_out},
                facts=facts or {},
            )
        )
    return out
