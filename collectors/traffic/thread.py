"""Open-loop traffic from within a program that does other things too: the demo, the tests of the whole loop.

The same engine as that of ``flyball simulate``, in a thread: its stamps share the interpreter with the rest, so it is for load, and for
measuring what needs no thousandth of a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from collectors.base import ScrapeTarget
from collectors.clock import Clock
from collectors.plan import TrafficPlan
from collectors.sketch import Sketch
from collectors.traffic.account import CountRules
from collectors.traffic.connection import ServerAddress, resolve
from collectors.traffic.engine import Assignment, Engine
from collectors.traffic.preflight import tokens_per_word
from collectors.traffic.record import RequestRecord
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import OpenSchedule
from collectors.traffic.tally import Tally
from collectors.traffic.windows import windows_of
from collectors.window import Window
from collectors.workload import Workload


@dataclass(slots=True)
class TrafficResult:
    """What was sent and what came of it, so far or in the end."""

    started_at: float
    """Unix seconds."""
    planned: int = 0
    sent: int = 0
    held: int = 0
    """Due, but sent only once another one had ended, because as many as allowed were under way."""
    abandoned: int = 0
    """Under way when the traffic was stopped."""
    latest_s: float = 0.0
    """How late the client was at worst with starting a request: above a few milliseconds, the client is the bottleneck."""
    elapsed_s: float = 0.0
    cancelled: bool = False
    records: list[RequestRecord] = field(default_factory=list)
    """In the order in which they ended."""
    tally: Tally = field(default_factory=Tally)

    @property
    def errors(self) -> Counter[str]:
        """Failures by kind."""
        return self.tally.errors

    @property
    def succeeded(self) -> int:
        return self.tally.ok

    @property
    def output_tokens(self) -> int:
        return self.tally.tokens

    def sketches(self) -> dict[str, Sketch]:
        """By canonical histogram name, and ``ttft_sent_s``. ``ttft_s`` and ``e2e_s`` count from when a request was due."""
        names = ("ttft_s", "ttft_sent_s", "itl_s", "tpot_s", "e2e_s", "prompt_length", "output_length")
        return {name: self.tally.values[name].sketch() for name in names}

    def windows(self, endpoint: str, window_s: float) -> list[Window]:
        """As windows of the source ``traffic``. A request belongs to the window in which it ended."""
        return windows_of(self.tally, 1.0, endpoint, window_s, self.started_at, self.elapsed_s)


async def simulate(
    plan: TrafficPlan,
    target: ScrapeTarget,
    clock: Clock,
    on_result: Callable[[RequestRecord], None] | None = None,
    ca_file: Path | None = None,
) -> TrafficResult:
    """Send the plan's traffic and wait for the answers.

    Cancelling stops it within a moment and gives what there is, marked ``cancelled``. Before the first request two small
    ones measure how many tokens a word has. Raises CollectError when even those fail: then nothing is sent.
    """
    thread = _TrafficThread(plan, target, clock, ca_file, asyncio.get_running_loop(), on_result or (lambda _: None))
    work = asyncio.ensure_future(asyncio.to_thread(thread.run))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        thread.stop()
        await asyncio.wait({work})
        if not thread.began:
            work.exception()  # what stopping did to the first small requests is no news
            raise
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        thread.result.cancelled = True
    return thread.result


class _TrafficThread:
    """One simulation, in its thread."""

    def __init__(
        self,
        plan: TrafficPlan,
        target: ScrapeTarget,
        clock: Clock,
        ca_file: Path | None,
        loop: asyncio.AbstractEventLoop,
        on_result: Callable[[RequestRecord], None],
    ) -> None:
        self._plan, self._target, self._clock, self._ca_file = plan, target, clock, ca_file
        self._loop, self._on_result = loop, on_result
        self._engine: Engine | None = None
        self._stopped = False
        self.began = False
        self.result = TrafficResult(started_at=clock.now())

    def stop(self) -> None:
        """From the other thread."""
        self._stopped = True
        if self._engine is not None:
            self._engine.stop()

    def _running(self, engine: Engine) -> None:
        self._engine = engine
        if self._stopped:
            engine.stop()

    def run(self) -> None:
        plan, target = self._plan, self._target
        workload = plan.workload()
        server = resolve(target.url, self._ca_file)
        template = RequestTemplate(
            plan.model, plan.api, exact_output=plan.exact_output, headers=dict(target.headers), seed=plan.seed
        )
        words = tokens_per_word(server, template, plan.timeout_s, self._running)
        self._send(server, replace(template, words=words), workload)

    def _send(self, server: ServerAddress, template: RequestTemplate, workload: Workload) -> None:
        plan, result = self._plan, self.result
        result.started_at, result.planned = self._clock.now(), len(workload)
        assignment = Assignment(
            server,
            template,
            OpenSchedule(workload, plan.duration_s),
            CountRules(slice_s=1.0, started_at=result.started_at),
            plan.timeout_s,
            most_in_flight=plan.max_in_flight,
            connections=4,
        )
        engine = Engine(assignment, self._tell)
        self._running(engine)
        engine.open(plan.timeout_s)
        self.began = True
        start = time.perf_counter()
        engine.run(start)
        result.elapsed_s = time.perf_counter() - start
        tally = result.tally = engine.account.tally
        result.sent, result.held, result.abandoned = tally.sent, tally.held, tally.abandoned
        result.latest_s = tally.watch.lateness.quantiles([1.0])[0] or 0.0

    def _tell(self, record: RequestRecord) -> None:
        self.result.records.append(record)
        self._loop.call_soon_threadsafe(self._on_result, record)
