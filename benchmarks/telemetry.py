"""What a vLLM server would have said of a simulated fleet: each window's counters, histograms with vLLM's own bounds, and gauges.

Owns nothing of the truth: it reads the machine's arrays, and tells no request's fate before its time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analyzers.whatif.kernel import BIN_EDGES, GAPS, UNFINISHED, KernelMachine
from collectors.sketch import Sketch
from collectors.window import Gauge, Span
from collectors.workload import Floats, Ints, Workload

#: vLLM's own bounds.
TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
LENGTH = tuple(step * 10.0**power for power in range(6) for step in (1.0, 2.0, 5.0))  # up to 500,000 tokens
FACTS = {"model": "sim-8b", "engine_version": "0.19.0"}
#: Each figure's own error, in this order.
FIGURES = (
    "requests", "prompt_tokens", "output_tokens", "running", "waiting", "kv_usage", "ttft_s", "itl_s", "e2e_s", "queue_s", "prefill_s",
)  # fmt: skip


class FleetTelemetry:
    """Call ``look`` at each moment at which a gauge would be read, and ``span`` at the end of each window."""

    def __init__(
        self, machine: KernelMachine, work: Workload, errors: Callable[[float, int], Floats] | None = None
    ) -> None:
        """errors: (at_s, figures) to what each figure that is read then is multiplied by. None: all is read as it is."""
        self._machine = machine
        self._work = work
        self._errors = errors
        self._at = self._since = 0.0
        self._open: Ints = np.zeros(0, np.int64)
        """Requests that had arrived by the last look, and had not ended."""
        self._next = 0
        self._first: list[Ints] = []
        """Requests whose first token came in this window."""
        self._ended: list[Ints] = []
        self._bins, self._gaps = machine.bins.copy(), 0.0
        self._gauges: dict[str, list[float]] = {"running": [], "waiting": [], "kv_usage": []}

    def look(self, at: float, kv_usage: float | None) -> None:
        """Take in what happened by ``at``, which the machine has reached."""
        m = self._machine
        upto = int(np.searchsorted(m.arrival, at, "left"))
        present = np.concatenate((self._open, np.arange(self._next, upto)))
        self._next = upto
        arrival = m.arrival[present]
        first, ends, admitted = (
            np.where(marks[present] >= 0.0, arrival + marks[present], np.inf) for marks in (m.ttft, m.e2e, m.queue)
        )
        self._first.append(present[(first > self._at) & (first <= at)])
        over = ends <= at
        self._ended.append(present[over])
        left = ~over & (m.e2e[present] >= UNFINISHED)  # what was refused never was the engine's
        self._open = present[left]
        running = int(np.count_nonzero(left & (admitted <= at)))
        self._gauges["running"].append(float(running))
        self._gauges["waiting"].append(float(self._open.size - running))
        if kv_usage is not None:
            self._gauges["kv_usage"].append(kv_usage)
        self._at = at

    def span(self, target: str, epoch: float) -> Span:
        """All since the last one. ``epoch``: Unix seconds of the scenario's start."""
        drawn = np.ones(len(FIGURES)) if self._errors is None else self._errors(self._at, len(FIGURES))
        off = dict(zip(FIGURES, drawn.tolist(), strict=True))
        m, work = self._machine, self._work
        first, ended = np.concatenate(self._first), np.concatenate(self._ended)
        bins, gaps = m.bins.copy(), float(m.real[:, GAPS].sum())
        fresh = np.maximum(bins - self._bins, 0.0)
        itl = np.bincount(_of_itl(off["itl_s"]), weights=fresh, minlength=len(ITL) + 1)
        span = Span(
            target=target,
            start=epoch + self._since,
            end=epoch + self._at,
            counts={
                "requests": off["requests"] * ended.size,
                "errors": 0.0,
                "preemptions": 0.0,
                "prompt_tokens": off["prompt_tokens"] * float(work.prompt_tokens[first].sum()),
                "output_tokens": off["output_tokens"] * float(fresh.sum() + first.size),
            },
            sketches={
                "ttft_s": _histogram(TTFT, off["ttft_s"] * m.ttft[first]),
                "itl_s": Sketch.from_histogram(ITL, itl, off["itl_s"] * max(0.0, gaps - self._gaps)),
                "e2e_s": _histogram(REQUEST, off["e2e_s"] * m.e2e[ended]),
                "queue_s": _histogram(REQUEST, off["queue_s"] * m.queue[ended]),
                "prefill_s": _histogram(REQUEST, off["prefill_s"] * np.maximum(0.0, m.ttft[ended] - m.queue[ended])),
                "prompt_length": _histogram(LENGTH, work.prompt_tokens[ended].astype(np.float64)),
                "output_length": _histogram(LENGTH, work.output_tokens[ended].astype(np.float64)),
            },
            gauges={
                name: Gauge(*(_gauge(name, off[name] * v) for v in (float(np.mean(values)), max(values), values[-1])))
                for name, values in self._gauges.items()
                if values
            },
            facts=FACTS,
        )
        self._since, self._first, self._ended = self._at, [], []
        self._bins, self._gaps = bins, gaps
        self._gauges = {name: [] for name in self._gauges}
        return span


def _gauge(name: str, value: float) -> float:
    return min(1.0, value) if name == "kv_usage" else value


def _of_itl(off: float) -> Ints:
    """(BINS,) the bucket that each bin's gaps, ``off`` times as long, are counted in."""
    found: Ints = np.searchsorted(ITL, off * BIN_EDGES / np.sqrt(1.01))
    return found


def _histogram(edges: tuple[float, ...], values: Floats) -> Sketch:
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return Sketch.from_histogram(edges, counts, float(values.sum()))
