"""Flyball itself as a policy: the real governor over a store of its own, on virtual time, and a person who approves at once.

Nothing of it is rebuilt here: the collector tells what a vLLM server would have told, the actuator sets the count that is wanted, and
the governor's own cycles do the rest. Coarser than a daemon of the defaults: an analysis every few minutes in place of one a minute, and
one after three minutes that missed the objective, so that one alone is enough for an advice that needs three in a row by default;
windows that are read when they are needed, with the gauges of four looks each; a look once a minute at a change under way, and no
analysis until it has ended.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import structlog

from actuators.base import LiveState, Progress, Receipt, Step
from actuators.shape import Autoscaling, Operation, Plan, Shape
from agent.clock import VirtualClock
from agent.governor import Governor
from agent.settings import EndpointSettings, Settings
from agent.store import Store, changes, recommendations, schedules
from agent.watch import WatchedEndpoint
from agent.wiring import Environment, catalogue_of
from analyzers.autoscaling.case import Play, SizeChange, play
from analyzers.whatif.kernel import KernelMachine
from analyzers.whatif.scaling import Hpa, ScalingInput, ScalingPolicy
from benchmarks.sizes import SizedMachine
from benchmarks.telemetry import FleetTelemetry
from benchmarks.world import Scenario
from collectors.base import Scope, ScrapeTarget
from collectors.http import Http
from collectors.window import Gauge, Span

_T = TypeVar("_T")

NAME, SIZE = "chat", "gpu"
WINDOW_S = 60.0
TICK_S = 15.0
#: An advice needs three analyses in a row by default, one a minute: after so many minutes that miss the objective one is made at once.
LATE_WINDOWS = 3


class DirectLoop(asyncio.SelectorEventLoop):
    """What would run in a thread runs on the loop, at once: on virtual time, handing over costs more than the work."""

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class ControlPlane:
    """What is wanted: a count, or the bounds of an autoscaler that sets it. And how many replicas are ready."""

    def __init__(self, shape: Shape, ready: int) -> None:
        self.shape = shape
        self.ready = ready
        self.starting = 0
        self.version = 1
        self._tokens: set[str] = set()

    @property
    def serves(self) -> bool:
        return self.shape.autoscaling is not None or (self.starting == 0 and self.ready == self.shape.replicas)

    def become(self, shape: Shape, token: str) -> None:
        if token not in self._tokens:
            self._tokens.add(token)
            self.shape = shape
            self.version += 1


class FleetActuator:
    """See ``actuators.base.Actuator``."""

    system: ClassVar[str] = "simulated"
    changes: ClassVar[Sequence[str]] = ("replicas", "autoscaling", "size")
    poll_s = 0.0

    def __init__(self, control: ControlPlane, cold_start_s: float) -> None:
        self._control = control
        self._deadline_s = 3 * cold_start_s + 600.0

    async def live(self) -> LiveState:
        c = self._control
        return LiveState(c.shape, str(c.version), c.serves, serving=c.ready)

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        step = Operation("become", {"shape": wanted.as_dict()}, self._deadline_s, wanted.label())
        return Plan(
            NAME, self.system, live.shape, wanted, live.version, (step,), restarts=False, downtime_s=0.0,
            way_back="the shape before",
        )  # fmt: skip

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        return await self.plan(live, plan.before)

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        """Nothing stands against it."""

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        self._control.become(Shape.from_dict(operation.args["shape"]), token)
        return Receipt({"token": token})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        if self._control.serves:
            return Step(Progress.DONE, "it serves")
        return Step(Progress.PENDING, "starting")


class SpanCollector:
    """See ``collectors.base.Collector``. Tells each window once."""

    source: ClassVar[str] = "vllm"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "endpoint"

    def __init__(self) -> None:
        self.told: list[Span] = []

    async def read(self, target: ScrapeTarget) -> Sequence[Span]:
        told, self.told = self.told, []
        return told


def settings(scenario: Scenario, folder: Path, policy: Mapping[str, Any]) -> Settings:
    """Defaults, but for what a person must state: the objective, the price, how far it may go, and that it may be changed at all."""
    objective = {"ttft_p95_s": scenario.ttft_s}
    if scenario.itl_s is not None:
        objective["itl_p95_s"] = scenario.itl_s
    return Settings(
        database=f"sqlite:///{folder}/flyball.db",
        state_dir=folder / "state",
        collect={"interval_s": WINDOW_S, "window_s": WINDOW_S},
        decide={"interval_s": scenario.decide_s},
        sizes={
            size.name: {"usd_per_replica_hour": size.usd_per_replica_hour, "accelerator": size.accelerator}
            for size in scenario.sizes
        }
        or {SIZE: {"usd_per_replica_hour": scenario.usd_per_replica_hour}},
        endpoints=[
            {
                "name": NAME,
                "url": "http://simulated.invalid",
                "mode": "approve",
                "objective": objective,
                "policy": {
                    "max_replicas": scenario.most,
                    "stable_cycles": 1,
                    "sizes": [size.name for size in scenario.sizes],
                    **policy,
                },
            }
        ],
    )  # type: ignore[arg-type]


class FlyballPolicy:
    """See ``analyzers.whatif.scaling.ScalingPolicy``. ``play_flyball`` makes one."""

    interval_s = TICK_S

    def __init__(
        self, scenario: Scenario, machine: KernelMachine, stated: Settings, loop: DirectLoop, below: Hpa | None
    ) -> None:
        """``below``: the autoscaler that sets the count, and of which the bounds and targets are tuned. None: the count is set here."""
        self._scenario = scenario
        self._machine = machine
        self.sizes: list[SizeChange] = []
        self._old = 0
        """Replicas of another size that serve until those of the new one do."""
        self._loop = loop
        self._telemetry = FleetTelemetry(machine, scenario.work, scenario.errors)
        self._clock = VirtualClock(scenario.starts_at)
        self._below = below
        self._late = 0
        """Windows in a row, the last one among them, that missed the objective."""
        self._under_way = False
        """Whether a change is, or waits to be."""
        self._scheduled = False
        """Whether a schedule is in force, whose steps may be due at any minute."""
        shape = Shape(size=SIZE, engine={"max_num_seqs": scenario.model.limits.max_num_seqs})
        if scenario.sizes:
            shape = shape.with_(
                size=scenario.sizes[0].name, accelerator=scenario.sizes[0].accelerator, accelerator_count=1
            )
        if below is None:
            shape = shape.with_(replicas=scenario.replicas)
        else:
            targets = {target.metric: target.value for target in below.targets}
            shape = shape.with_(autoscaling=Autoscaling(below.least, below.most, targets))
        self._control = ControlPlane(shape, scenario.replicas)
        self._collector = SpanCollector()
        self._settings = stated
        self._store = Store(self._settings.database, now=self._clock.now)
        self._store.upgrade()
        self._http = Http(monotonic=self._clock.monotonic)
        self._governor = Governor(
            self._settings, self._store, self._clock, holder="flyball", http=self._http, make_watched=self._watched
        )
        loop.run_until_complete(self._begin())

    def _watched(self, settings: Settings, endpoint: EndpointSettings, _: Environment) -> WatchedEndpoint:
        actuator = FleetActuator(self._control, self._scenario.cold_start_s)
        return WatchedEndpoint(endpoint, {"vllm": self._collector}, actuator, catalogue_of(settings, endpoint))

    def __call__(self, seen: ScalingInput, state: Any) -> tuple[int, Any]:
        """``state``: the autoscaler's below."""
        self._telemetry.look(seen.at_s, seen.kv_usage)
        self._control.ready, self._control.starting = seen.ready, seen.starting
        self._loop.run_until_complete(self._tick(seen.at_s))
        shape = self._control.shape
        if self._below is None or shape.autoscaling is None:
            assert shape.replicas is not None
            return shape.replicas + self._others(shape, seen), state
        if self._scenario.dark(seen.at_s):
            return seen.ready + seen.starting, state
        targets = tuple(replace(t, value=shape.autoscaling.targets[t.metric]) for t in self._below.targets)
        bounds = shape.autoscaling
        return replace(self._below, targets=targets, least=bounds.least, most=bounds.most)(
            self._scenario.read(seen), state
        )

    def _others(self, shape: Shape, seen: ScalingInput) -> int:
        """Replicas of another size than the shape's that are still needed; and from now on new ones are of the shape's."""
        size = next((i for i, each in enumerate(self._scenario.sizes) if each.name == shape.size), 0)
        if isinstance(self._machine, SizedMachine) and size != self._machine.wanted:
            self._machine.wanted = size
            self._old = seen.ready
            chosen = self._scenario.sizes[size]
            price = chosen.usd_per_replica_hour / self._scenario.usd_per_replica_hour
            self.sizes.append(SizeChange(seen.at_s, chosen.model, price))
        elif self._old and seen.starting == 0 and seen.ready > self._old:
            self._old = 0
        return self._old

    async def _begin(self) -> None:
        await self._governor.take_lead()
        await self._governor.collect()

    async def _tick(self, at_s: float) -> None:
        if at_s % WINDOW_S:
            return
        span = self._telemetry.span(NAME, self._scenario.starts_at)
        due = at_s % self._settings.decide.interval_s == 0
        if not self._scenario.dark(at_s):
            self._collector.told += [span] if self._below is None else _by_replica(span, self._control.ready)
            due |= self._misses(span)
        if (
            due or self._under_way or self._scheduled or self._below is not None
        ):  # who comes and goes is noticed within the minute
            await self._clock.advance(self._scenario.starts_at + at_s - self._clock.now())
            await self._cycle(due)

    def _misses(self, span: Span) -> bool:
        """Whether the objective was missed for ``LATE_WINDOWS`` windows, and for as many since the last time it was said."""
        sketch = span.sketches["ttft_s"]
        ttft_s = sketch.quantile(0.95)
        missed = sketch.count > 0 and (ttft_s is None or ttft_s > self._scenario.ttft_s)
        self._late = self._late + 1 if missed else 0
        return self._late > 0 and self._late % LATE_WINDOWS == 0

    async def _cycle(self, due: bool) -> None:
        governor = self._governor
        await governor.take_lead()
        await governor.collect()
        if due:
            await governor.keep_house()
            if not self._under_way:
                await governor.decide()
                self._approve()
        await governor.act()
        with self._store.read() as db:
            self._under_way = bool(changes.active(db) or recommendations.listed(db, states=["approved"], limit=1))
            self._scheduled = bool(schedules.in_force(db))

    def _approve(self) -> None:
        """The person who approves at once."""
        with self._store.read() as db:
            rows = recommendations.listed(db, states=recommendations.OPEN)
        for row in rows:
            self._governor.approvals.decide(
                row["id"], action="approve", actor="ada", channel="cli", plan_hash=row["plan_hash"]
            )

    def decided_s(self) -> tuple[float, ...]:
        """When the changes that were approved began; a schedule is one, its steps are none."""
        with self._store.read() as db:
            rows = changes.listed(db, purpose="change")
        return tuple(row["created_at"] - self._scenario.starts_at for row in rows)

    def check(self) -> None:
        """Raises RuntimeError where an analysis, a read or a change ended in an error that nobody foresaw."""
        m = self._governor.metrics
        failed = {
            sample.name: sample.labels
            for counter in (m.analysis_errors, m.read_errors, m.change_errors)
            for metric in counter.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.value
        }
        if failed:
            raise RuntimeError(f"the governor failed: {failed}")

    async def close(self) -> None:
        await self._governor.close()
        await self._http.aclose()
        self._store.close()


def _by_replica(span: Span, replicas: int) -> list[Span]:
    """The span in equal parts, as those who read each replica would have it: they count the replicas by it."""
    share = 1.0 / max(1, replicas)
    gauges = {
        name: gauge if name == "kv_usage" else Gauge(gauge.mean * share, gauge.maximum * share, gauge.last * share)
        for name, gauge in span.gauges.items()
    }
    part = replace(
        span,
        counts={name: count * share for name, count in span.counts.items()},
        sketches={name: sketch.scaled(share) for name, sketch in span.sketches.items()},
        gauges=gauges,
    )
    return [replace(part, target=f"{span.target}-{i}") for i in range(max(1, replicas))]


def play_flyball(scenario: Scenario, below: Hpa | None = None, policy: Mapping[str, Any] | None = None) -> Play:
    """The scenario under Flyball.

    below: as for ``FlyballPolicy``. policy: settings beside the defaults.
    Raises RuntimeError at the end where one of the governor's loops failed: a broken one says nothing about policies.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    made: list[FlyballPolicy] = []
    loop = DirectLoop()
    with tempfile.TemporaryDirectory(prefix="flyball-") as folder:
        stated = settings(scenario, Path(folder), policy or {})

        def make(machine: KernelMachine) -> ScalingPolicy:
            made.append(FlyballPolicy(scenario, machine, stated, loop, below))
            return made[-1]

        try:
            played = play(scenario, make)
            for one in made:
                one.check()
            return replace(played, decided_s=made[0].decided_s(), sizes=tuple(made[0].sizes))
        finally:
            for one in made:
                loop.run_until_complete(one.close())
            loop.close()
            structlog.reset_defaults()
