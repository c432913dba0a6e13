"""Windows and situations whose figures can be worked out by head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actuators.shape import Shape
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy, candidates
from analyzers.prediction import AutoscaledDay, Bar, CannotPredict, Interval, LoadCourse, Miss, Prediction
from analyzers.situation import Situation
from collectors.sketch import Sketch
from collectors.window import Gauge, Window
from collectors.workload import Workload

#: A histogram source, as vLLM is: requests within 0.5 s, within 1 s, beyond.
MINUTE, HOUR = 60.0, 3600.0
SHAPE = Shape(replicas=2, size="small", engine={"max_num_seqs": 10})


def minute(
    i: int,
    *,
    requests: float | None = 60.0,
    errors: float | None = 0.0,
    ttft: Sequence[float] = (0.2,) * 10,
    itl: Sequence[float] = (),
    running: float | None = 8.0,
    waiting: float | None = 0.0,
    kv_max: float | None = None,
    preemptions: float | None = None,
    tokens: tuple[float, float] | None = (100.0, 50.0),
    coverage: float = 1.0,
) -> Window:
    """The i-th minute: by default a request a second of 100 and 50 tokens, first tokens after 0.2 s, 8 of 20 slots in use."""
    known = (("requests", requests), ("errors", errors), ("preemptions", preemptions))
    counts = {name: value for name, value in known if value is not None}
    if tokens is not None and requests is not None:
        counts |= {"prompt_tokens": tokens[0] * requests, "output_tokens": tokens[1] * requests}
    gauges = {n: Gauge(v, v, v) for n, v in (("running", running), ("waiting", waiting)) if v is not None}
    if kv_max is not None:
        gauges["kv_usage"] = Gauge(kv_max / 2, kv_max, kv_max / 2)
    sketches = {n: Sketch.from_values(v) for n, v in (("ttft_s", ttft), ("itl_s", itl)) if v}
    return Window("chat", "vllm", i * MINUTE, MINUTE, coverage, 2, 0, counts, sketches, gauges)


def hour(**each: Any) -> list[Window]:
    return [minute(i, **each) for i in range(60)]


def objective(limits: Mapping[str, float] | None = None) -> Objective:
    return Objective.from_mapping({"ttft_p95_s": 1.0} if limits is None else limits)


def situation(windows: Sequence[Window] | None = None, **other: Any) -> Situation:
    """An hour of ``chat`` on two small replicas at a dollar an hour each."""
    base = Situation(
        endpoint="chat",
        source="vllm",
        windows=hour() if windows is None else windows,
        start=0.0,
        end=HOUR,
        objective=objective(),
        policy=Policy(),
        shape=SHAPE,
        per_hour=2.0,
    )
    return replace(base, **other)


def promise(mid: float, *, spread: float = 0.2, saturates: float = 0.0, **metrics: float) -> Prediction:
    """``ttft_p95_s`` (and others) within ``spread`` of the middle."""
    named = {"ttft_p95_s": mid, **metrics}
    intervals = {n: Interval(v * (1 - spread), v, v * (1 + spread)) for n, v in named.items()}
    return Prediction(intervals, saturates, "simulation", {"ttft_p95_s": 0.1})


@dataclass(frozen=True)
class Whole:
    """A predictor that gives nothing up early."""

    of: Callable[[Shape, float], Prediction]
    autoscaled: Callable[[Shape, LoadCourse], AutoscaledDay] | None = None

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue, /) -> list[Shape]:
        return candidates(shape, policy, catalogue)

    def predict(self, shape: Shape, factor: float, /) -> Prediction:
        return self.of(shape, factor)

    def screen(self, shape: Shape, factor: float, _bar: Bar, /) -> Prediction | Miss:
        return self.of(shape, factor)

    def follow(self, shape: Shape, course: LoadCourse, _cold_start_s: float, _room: float, /) -> AutoscaledDay:
        if self.autoscaled is None:
            raise CannotPredict("UNREPLAYABLE_AUTOSCALER", "no autoscaler is replayed here")
        return self.autoscaled(shape, course)

    def under(self, _windows: Sequence[Window], /) -> Whole:
        return self

    def changed(self, _change: Callable[[Workload], Workload], /) -> Whole:
        return self
