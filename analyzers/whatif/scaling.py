"""Autoscaler policies inside a replay, as pure functions: what was seen and the own state in, replicas wanted and the next state out.

The same rules as outside (HPA, KEDA, Knative's KPA, Flyball's own), so that a replay can ask what each would have done. A policy
holds no clock: time is in what it is told. The count that a policy steers is ``ready + starting``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

Metric = Literal["in_flight", "running", "waiting", "arrivals_per_s", "kv_usage"]


@dataclass(frozen=True, slots=True)
class ScalingInput:
    """What a policy is told at one tick. Means are over the time since the tick before, over all replicas together."""

    at_s: float
    ready: int
    """Replicas that take requests."""
    starting: int
    """Asked for, and still in their cold start."""
    arrivals_per_s: float
    running: float
    """Mean sequences in the batches."""
    waiting: float
    """Mean requests that wait, at replicas and at the router (which holds them while no replica is ready)."""
    kv_usage: float | None
    """0..1, mean over ready replicas, at the tick. None: the cache is not limited, or no replica is ready."""

    @property
    def in_flight(self) -> float:
        return self.running + self.waiting


class ScalingPolicy(Protocol):
    """Asked every ``interval_s`` of simulated time."""

    @property
    def interval_s(self) -> float: ...

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        """(replicas wanted: ready and starting together, the next state). ``state`` is None at the first tick."""
        ...


@dataclass(frozen=True, slots=True)
class MetricTarget:
    """What one replica should bear of a metric. ``kv_usage`` is a share, the others are counts or a rate."""

    metric: Metric
    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"the target of {self.metric} must be above 0, not {self.value}")

    def ratio(self, seen: ScalingInput, replicas: int) -> float | None:
        """The metric over the target of ``replicas`` replicas. None: not known."""
        total = getattr(seen, self.metric)
        if replicas == 0 or total is None or not math.isfinite(total):
            return None
        share = total if self.metric == "kv_usage" else total / replicas
        return float(share / self.value)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``pods``, or ``percent`` of the count at the period's start, within ``period_s``. Exactly one of the two is given."""

    period_s: float
    pods: int | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        if (self.pods is None) == (self.percent is None):
            raise ValueError("a rate limit needs either pods or percent")

    def furthest(self, now: int, changes: Iterable[tuple[float, int]], at_s: float, up: bool) -> int:
        """The furthest count that it lets the present one go to."""
        start = now - sum(change for when, change in changes if when > at_s - self.period_s)
        if self.pods is not None:
            return start + self.pods if up else start - self.pods
        assert self.percent is not None
        share = self.percent / 100.0
        return _ceil(start * (1.0 + share)) if up else math.floor(start * (1.0 - share) + 1e-9)


@dataclass(frozen=True, slots=True)
class HpaState:
    recommended: tuple[tuple[float, int], ...] = ()
    """(when, replicas) before stabilisation, as far back as the longer window."""
    changes: tuple[tuple[float, int], ...] = ()
    """(when, replicas added; negative: removed), as far back as the longest rate period."""


@dataclass(frozen=True, slots=True)
class Hpa:
    """Kubernetes' HorizontalPodAutoscaler, with its defaults.

    Per target, r = metric / target. |1 - r| <= tolerance keeps the count, else ceil(ready * r). Replicas in their cold start are its
    missing pods: counted at the whole target on the way down and at nothing on the way up, and where r then changes sides of 1 or
    comes within tolerance, the count stays. Over several targets the highest count holds; an unknown one forbids to go down, and
    where none is known the count stays. Then the windows: up by the least recommendation of ``up_window_s``, down by the greatest
    of ``down_window_s``; then the rate limits, of which the most permissive holds; then the bounds.
    Source: kubernetes ``pkg/controller/podautoscaler/{replica_calculator,horizontal}.go``. Ratios are rounded to 1e-9, as
    Kubernetes counts in thousandths.

    external: as for a metric of no pod (KEDA's): the total over the target of all replicas, starting ones too, and none missing.
    """

    targets: tuple[MetricTarget, ...]
    most: int
    least: int = 1
    tolerance: float = 0.1
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    up_limits: tuple[RateLimit, ...] = (RateLimit(15.0, pods=4), RateLimit(15.0, percent=100.0))
    down_limits: tuple[RateLimit, ...] = (RateLimit(15.0, percent=100.0),)
    external: bool = False
    interval_s: float = 15.0

    def __post_init__(self) -> None:
        _check_bounds(self.least, self.most, self.interval_s)
        if not self.targets:
            raise ValueError("an HPA needs at least one target")

    def __call__(self, seen: ScalingInput, state: HpaState | None) -> tuple[int, HpaState]:
        now = seen.ready + seen.starting
        state = state or HpaState(((seen.at_s, now),))
        if not self.least <= now <= self.most or now == 0:
            return self._changed(seen, now, _within(now, self.least, self.most), state)
        recommended = self._recommended(seen, now)
        if recommended is None:
            return now, state
        up = min([recommended, *(n for when, n in state.recommended if when > seen.at_s - self.up_window_s)])
        down = max([recommended, *(n for when, n in state.recommended if when > seen.at_s - self.down_window_s)])
        kept = seen.at_s - max(self.up_window_s, self.down_window_s)
        history = (*(entry for entry in state.recommended if entry[0] > kept), (seen.at_s, recommended))
        wanted = self._limited(now, min(max(now, up), down), state, seen.at_s)
        return self._changed(seen, now, _within(wanted, self.least, self.most), replace(state, recommended=history))

    def _recommended(self, seen: ScalingInput, now: int) -> int | None:
        found = [self._for_target(target, seen, now) for target in self.targets]
        known = [n for n in found if n is not None]
        if not known or (len(known) < len(found) and max(known) < now):
            return None
        return max(known)

    def _for_target(self, target: MetricTarget, seen: ScalingInput, now: int) -> int | None:
        counted = now if self.external else seen.ready
        r = target.ratio(seen, counted)
        if r is None:
            return None
        if self._close(r):
            return now
        used = counted * r  # in replicas' worth of target
        if counted == now:
            return _ceil(used)
        if r < 1.0:
            used += now - counted
        again = used / now
        return now if self._close(again) or (r > 1.0) != (again > 1.0) else _ceil(used)

    def _close(self, r: float) -> bool:
        return abs(1.0 - r) <= self.tolerance + 1e-9

    def _limited(self, now: int, wanted: int, state: HpaState, at_s: float) -> int:
        up = wanted > now
        limits = self.up_limits if up else self.down_limits
        reach = [limit.furthest(now, state.changes, at_s, up) for limit in limits]
        if wanted == now or not reach:
            return wanted
        return min(wanted, max(now, *reach)) if up else max(wanted, min(now, *reach))

    def _changed(self, seen: ScalingInput, now: int, wanted: int, state: HpaState) -> tuple[int, HpaState]:
        if wanted == now:
            return wanted, state
        longest = max((limit.period_s for limit in (*self.up_limits, *self.down_limits)), default=0.0)
        recent = (change for change in state.changes if change[0] > seen.at_s - longest)
        return wanted, replace(state, changes=(*recent, (seen.at_s, wanted - now)))


@dataclass(frozen=True, slots=True)
class KedaState:
    polled_s: float
    active_s: float
    """When a trigger was last active."""
    hpa: HpaState | None = None


@dataclass(frozen=True, slots=True)
class Keda:
    """KEDA: between 0 and 1 by itself, beyond one by the HPA that it owns.

    Every ``polling_interval_s`` it asks whether a target's metric, over all replicas, exceeds ``activation``. Where one does, 0
    becomes 1 (or ``least``). Where none did for longer than ``cooldown_s`` and ``least`` is 0, the count becomes 0; the first tick
    counts as active. Where no metric is known, nothing changes. ``hpa`` gives the targets, the upper bound and the rest; it is asked at
    its own interval, as for an external metric, with at least one replica.
    Source: keda.sh, ScaledObject specification (30 s, 300 s); kedacore/keda ``pkg/scaling/executor``.
    """

    hpa: Hpa
    least: int = 0
    activation: float = 0.0
    polling_interval_s: float = 30.0
    cooldown_s: float = 300.0

    def __post_init__(self) -> None:
        _check_bounds(self.least, self.hpa.most, self.polling_interval_s)

    @property
    def interval_s(self) -> float:
        return min(self.hpa.interval_s, self.polling_interval_s)

    def __call__(self, seen: ScalingInput, state: KedaState | None) -> tuple[int, KedaState]:
        now, at = seen.ready + seen.starting, seen.at_s
        first = state is None
        state = state or KedaState(at, at)
        if first or at - state.polled_s >= self.polling_interval_s - 1e-9:
            state = replace(state, polled_s=at)
            active = self._active(seen)
            if active:
                state = replace(state, active_s=at)
                if now == 0:
                    return max(1, self.least), state
            elif active is False and self.least == 0 and at > state.active_s + self.cooldown_s:
                return 0, state
        if now == 0:
            return self.least, state
        hpa = replace(self.hpa, external=True, least=max(1, self.least))
        wanted, inner = hpa(seen, state.hpa)
        return wanted, replace(state, hpa=inner)

    def _active(self, seen: ScalingInput) -> bool | None:
        values = [getattr(seen, target.metric) for target in self.hpa.targets]
        known = [v for v in values if v is not None and math.isfinite(v)]
        return any(v > self.activation for v in known) if known else None


@dataclass(frozen=True, slots=True)
class KpaState:
    values: tuple[tuple[float, float], ...] = ()
    """(when, metric over all replicas) within the stable window."""
    panic_s: float | None = None
    """When the panic threshold was last passed. None: not in panic."""
    panic_most: int = 0
    idle_s: float | None = None
    """Since when nothing is wanted at all."""


@dataclass(frozen=True, slots=True)
class Kpa:
    """Knative's pod autoscaler: a stable window, and a short one that starts a panic in which nothing goes down.

    d_s, d_p = ceil(mean over the stable, the panic window / (target * utilization)); ready = max(1, ready). d_p / ready >=
    ``panic_threshold`` starts or extends the panic; it ends when that was not so for longer than the stable window. Both are then
    held in [floor(ready / max_down), ceil(max_up * ready)]. In panic the greatest of d_s, d_p and what the panic wanted before holds,
    else d_s. Zero is wanted for ``grace_s`` before the last replica goes. An unknown metric keeps the count.
    Not here: the excess burst capacity, which decides only who buffers (in a replay, always the router).
    Only for fast starters (knative/serving#13284): with a cold start beyond the panic window, panic overshoots.
    Source: knative/serving ``pkg/autoscaler/scaling/autoscaler.go``, ``pkg/reconciler/autoscaling/kpa/scaler.go``.
    """

    target: MetricTarget
    """At 100 %; ``in_flight`` is its concurrency and ``arrivals_per_s`` its rps."""
    most: int
    least: int = 0
    utilization: float = 0.7
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0
    max_up: float = 1000.0
    max_down: float = 2.0
    grace_s: float = 30.0
    interval_s: float = 2.0

    def __post_init__(self) -> None:
        _check_bounds(self.least, self.most, self.interval_s)
        if self.target.metric == "kv_usage":
            raise ValueError("KPA scales on a sum over replicas; kv_usage is a share")
        if not 0 < self.panic_s <= self.stable_s or not 0 < self.utilization <= 1:
            raise ValueError("KPA: 0 < panic_s <= stable_s and 0 < utilization <= 1 are expected")

    def __call__(self, seen: ScalingInput, state: KpaState | None) -> tuple[int, KpaState]:
        now, at = seen.ready + seen.starting, seen.at_s
        state = state or KpaState()
        value = float(getattr(seen, self.target.metric))
        if not math.isfinite(value):
            return _within(now, self.least, self.most), state
        values = (*(v for v in state.values if v[0] > at - self.stable_s), (at, value))
        stable, panic = (self._for_window(values, at - window) for window in (self.stable_s, self.panic_s))
        ready = max(1, seen.ready)
        last = state.panic_s
        if panic / ready >= self.panic_threshold:
            last = at
        elif last is not None and at > last + self.stable_s:
            last = None
        low, high = math.floor(ready / self.max_down), _ceil(self.max_up * ready)
        stable, panic = _within(stable, low, high), _within(panic, low, high)
        wanted = stable if last is None else max(stable, panic, state.panic_most)
        kept = KpaState(values, last, 0 if last is None else wanted)
        if wanted > 0 or self.least > 0 or now == 0:
            return _within(wanted, self.least, self.most), kept
        idle = at if state.idle_s is None else state.idle_s
        return (0 if at - idle >= self.grace_s else 1), replace(kept, idle_s=idle)

    def _for_window(self, values: tuple[tuple[float, float], ...], after: float) -> int:
        inside = [value for when, value in values if when > after]
        return _ceil(sum(inside) / len(inside) / (self.target.value * self.utilization))


@dataclass(frozen=True, slots=True)
class GovernorState:
    changed_s: float
    """When the count wanted last changed."""
    wanted: int
    calm_s: float | None = None
    """Since when every signal agrees, tick after tick, that one replica less would do."""


@dataclass(frozen=True, slots=True)
class GovernorPolicy:
    """Flyball's own: any signal may grow, all must agree to shrink.

    Signals, each over its target: requests that wait per ready replica, the share of ``max_num_seqs`` that runs, KV usage
    (``kv_target`` None: not looked at). The worst asks for ceil(ready * signal) replicas; ones that start count as supply, and one
    go adds at most ``step_up`` times the ready ones (and at least one), so that nothing runs away during a cold start.
    It shrinks when nothing starts, every signal is known and, at the load of one replica less, signal * n / (n - 1), stays below
    ``margin``, and that has held for ``cooldown_s``, and as long since the last change: longer than a cold start, or what was
    asked for was never judged. Then to the fewest m for which signal * n / m stays below ``margin``, and by at most ``step_down`` times n
    (and at least one). Never down to zero; an unknown signal never shrinks.
    Source: the consolidation check and pending-counts-as-supply of NVIDIA Dynamo's planner; any-up, all-down of Powerplanner.
    """

    max_num_seqs: int
    most: int
    cold_start_s: float
    least: int = 1
    waiting_target: float = 1.0
    running_target: float = 0.85
    kv_target: float | None = 0.85
    margin: float = 0.8
    step_up: float = 2.0
    step_down: float = 0.5
    cooldown_s: float = 300.0
    interval_s: float = 15.0

    def __post_init__(self) -> None:
        _check_bounds(self.least, self.most, self.interval_s)
        if self.least < 1 or self.max_num_seqs < 1:
            raise ValueError("least and max_num_seqs must be 1 or more")
        if not self.cooldown_s > self.cold_start_s >= 0:
            raise ValueError(
                f"cooldown_s ({self.cooldown_s:g}) must be longer than the cold start ({self.cold_start_s:g} s); else the next "
                "change is decided before the last one took effect"
            )
        if not 0 < self.margin <= 1 or not self.step_up >= 0 or not 0 <= self.step_down < 1:
            raise ValueError("0 < margin <= 1, step_up >= 0 and 0 <= step_down < 1 are expected")
        self._targets()

    def __call__(self, seen: ScalingInput, state: GovernorState | None) -> tuple[int, GovernorState]:
        now, at = seen.ready + seen.starting, seen.at_s
        state = state or GovernorState(at, now)
        signals = [target.ratio(seen, seen.ready) for target in self._targets()]
        fewer = self._shrunk(seen, signals)
        if fewer == now:
            state = replace(state, calm_s=None)
            wanted = self._grown(seen, signals)
        else:
            calm = at if state.calm_s is None else state.calm_s
            state = replace(state, calm_s=calm)
            wanted = fewer if at - max(calm, state.changed_s) >= self.cooldown_s else now
        wanted = _within(wanted, self.least, self.most)
        if wanted != state.wanted:
            state = replace(state, changed_s=at, wanted=wanted)
        return wanted, state

    def _targets(self) -> list[MetricTarget]:
        running = self.running_target * self.max_num_seqs
        targets = [MetricTarget("waiting", self.waiting_target), MetricTarget("running", running)]
        return targets if self.kv_target is None else [*targets, MetricTarget("kv_usage", self.kv_target)]

    def _grown(self, seen: ScalingInput, signals: list[float | None]) -> int:
        now = seen.ready + seen.starting
        worst = max((s for s in signals if s is not None), default=0.0)
        if worst <= 1.0:
            return now
        step = seen.ready + max(1, int(seen.ready * self.step_up))
        return max(now, min(_ceil(seen.ready * worst), step))

    def _shrunk(self, seen: ScalingInput, signals: list[float | None]) -> int:
        n = seen.ready
        known = [s for s in signals if s is not None]
        if seen.starting or n < 2 or len(known) < len(signals) or max(known) * n / (n - 1) >= self.margin:
            return n + seen.starting
        step = n - max(1, int(n * self.step_down))
        return max(step, math.floor(max(known) * n / self.margin) + 1)


def _ceil(x: float) -> int:
    """Rounded up, but not for the crumbs of a division."""
    return math.ceil(x - 1e-9)


def _within(n: int, least: int, most: int) -> int:
    return min(max(n, least), most)


def _check_bounds(least: int, most: int, interval_s: float) -> None:
    if not 0 <= least <= most or most < 1:
        raise ValueError(f"bounds of replicas: 0 <= least <= most and most >= 1 are expected, not {least} and {most}")
    if not interval_s > 0:
        raise ValueError(f"the interval must be above 0 seconds, not {interval_s}")
