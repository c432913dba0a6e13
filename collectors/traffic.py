"""The open-loop traffic simulator: sends what is due when it is due, and measures each answer.

A server that slows down does not slow the traffic down, so nothing is hidden by waiting ("coordinated omission"): the latencies
that count are those from the moment at which a request was due. What the client itself could not do is counted, not hidden.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from collectors.base import Target
from collectors.builder import WindowBuilder
from collectors.clock import Clock
from collectors.completion import PATHS, complete, request_of
from collectors.http import Http
from collectors.plan import TrafficPlan
from collectors.prompt import TokensPerWord, prompt_of
from collectors.sketch import Sketch
from collectors.window import CollectError, Window

#: Words in the two requests that measure how many tokens a word has.
_FEW, _MANY = 16, 64


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds from the start of the traffic; None: not reached."""

    due_s: float
    sent_s: float | None
    """When its first byte was handed to the socket; None where it never was, and so counts from when it was due."""
    first_s: float | None
    last_s: float | None
    gaps_s: tuple[float, ...]
    """Between output tokens."""
    prompt_tokens: int | None
    output_tokens: int
    error: str | None
    """The kind of failure; None for a success."""

    @property
    def ttft_s(self) -> float | None:
        """Sent to first token."""
        return None if self.first_s is None or self.sent_s is None else self.first_s - self.sent_s

    @property
    def ttft_sched_s(self) -> float | None:
        """Due to first token: what a user waited."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2e_s(self) -> float | None:
        """Due to last token."""
        return None if self.last_s is None else self.last_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """(Last token - first token) / (output tokens - 1)."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)


@dataclass(slots=True)
class TrafficResult:
    """What was sent and what came of it, so far or in the end."""

    started_at: float
    """Unix seconds."""
    planned: int = 0
    sent: int = 0
    shed: int = 0
    """Due but not sent, because as many as allowed were under way."""
    abandoned: int = 0
    """Under way when the traffic was stopped."""
    latest_s: float = 0.0
    """How late the client was at worst with starting a request: above a few milliseconds, the client is the bottleneck."""
    elapsed_s: float = 0.0
    cancelled: bool = False
    records: list[Record] = field(default_factory=list)
    """In the order in which they ended."""

    @property
    def errors(self) -> Counter[str]:
        """Failures by kind."""
        return Counter(record.error for record in self.records if record.error is not None)

    @property
    def succeeded(self) -> int:
        return sum(record.error is None for record in self.records)

    @property
    def output_tokens(self) -> int:
        return sum(record.output_tokens for record in self.records)

    def sketches(self) -> dict[str, Sketch]:
        """By canonical histogram name, and ``ttft_sent_s``. ``ttft_s`` and ``e2e_s`` count from when a request was due."""
        values: dict[str, list[float]] = {}
        for record in self.records:
            for name, several in _samples(record):
                values.setdefault(name, []).extend(several)
        sent = [record.ttft_s for record in self.records if record.ttft_s is not None]
        return {name: Sketch.from_values(several) for name, several in (values | {"ttft_sent_s": sent}).items()}

    def windows(self, endpoint: str, window_s: float) -> list[Window]:
        """As windows of the source ``traffic``. A request belongs to the window in which it ended."""
        builder = WindowBuilder(endpoint, "traffic", window_s, max_gap_s=window_s)
        at, closed = self.started_at, []
        for record in sorted(self.records, key=_ended):
            ended = self.started_at + _ended(record)
            builder.observe(
                ended,
                target="traffic",
                requests=1,
                errors=0 if record.error is None else 1,
                counts={"output_tokens": record.output_tokens}
                | ({} if record.prompt_tokens is None else {"prompt_tokens": record.prompt_tokens}),
                samples=dict(_samples(record)),
                spans_s=ended - at,
            )
            at = ended
        end = self.started_at + self.elapsed_s
        builder.observe(max(at, end), target="traffic", spans_s=max(0.0, end - at))
        closed += builder.close(max(at, end) + window_s)
        return closed


async def simulate(
    plan: TrafficPlan,
    target: Target,
    http: Http,
    clock: Clock,
    on_result: Callable[[Record], None] | None = None,
) -> TrafficResult:
    """Send the plan's traffic and wait for the answers.

    Cancelling stops it within a moment and gives what there is, marked ``cancelled``. Before the first request two small
    ones (cancelled as anything else is) measure how many tokens a word has. Raises CollectError when even those fail: then
    nothing is sent.
    """
    words = await _calibrate(plan, target, http)
    run = _Run(plan, target, http, clock, words, on_result or (lambda _: None))
    try:
        await run.send()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        run.result.cancelled = True
    await run.stop()
    return run.result


class _Run:
    """One simulation under way."""

    def __init__(
        self,
        plan: TrafficPlan,
        target: Target,
        http: Http,
        clock: Clock,
        words: TokensPerWord,
        on_result: Callable[[Record], None],
    ) -> None:
        self._plan = plan
        self._target = target
        self._url = target.url + PATHS[plan.api]
        self._http = http
        self._clock = clock
        self._words = words
        self._on_result = on_result
        self._rng = np.random.default_rng((plan.seed, 1))
        self._tasks: set[asyncio.Task[None]] = set()
        self._start = http.monotonic()
        self.result = TrafficResult(started_at=clock.now())

    def _elapsed(self) -> float:
        return self._http.monotonic() - self._start

    async def send(self) -> None:
        """Every request at its time, then wait for the last answer."""
        workload = self._plan.workload()
        result = self.result
        result.planned = len(workload)
        for due, prompt, output in zip(
            workload.arrival_s.tolist(), workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True
        ):
            # Also with nothing to wait for: a client that is late must still read its answers.
            await self._clock.sleep(max(0.0, due - self._elapsed()))
            result.latest_s = max(result.latest_s, self._elapsed() - due)
            if len(self._tasks) >= self._plan.max_in_flight:
                result.shed += 1
                continue
            result.sent += 1
            task = asyncio.create_task(self._one(due, prompt, output))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def stop(self) -> None:
        """Give up what is under way."""
        under_way = set(self._tasks)
        self.result.abandoned += len(under_way)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)
        self.result.elapsed_s = self._elapsed()

    async def _one(self, due: float, prompt_tokens: int, output_tokens: int) -> None:
        plan = self._plan
        prompt = prompt_of(self._words.words(prompt_tokens), self._rng)
        body = request_of(plan.api, plan.model, prompt, output_tokens, exact=plan.exact_output)
        try:
            done = await complete(self._http, self._url, body, headers=self._target.headers, timeout_s=plan.timeout_s)
        except CollectError as error:
            record = Record(due, None, None, self._elapsed(), (), None, 0, error.kind)
        else:
            record = Record(
                due,
                done.sent_at - self._start,
                done.first_at - self._start,
                done.last_at - self._start,
                done.gaps_s,
                done.prompt_tokens,
                done.output_tokens,
                None,
            )
        self.result.records.append(record)
        self._on_result(record)


async def _calibrate(plan: TrafficPlan, target: Target, http: Http) -> TokensPerWord:
    rng = np.random.default_rng((plan.seed, 2))
    tokens = []
    for words in (_FEW, _MANY):
        body = request_of(plan.api, plan.model, prompt_of(words, rng), 1)
        done = await complete(
            http, target.url + PATHS[plan.api], body, headers=target.headers, timeout_s=plan.timeout_s
        )
        if done.prompt_tokens is None:
            return TokensPerWord()
        tokens.append(done.prompt_tokens)
    return TokensPerWord.fitted((_FEW, tokens[0]), (_MANY, tokens[1]))


def _ended(record: Record) -> float:
    return record.due_s if record.last_s is None else record.last_s


def _samples(record: Record) -> Iterator[tuple[str, list[float]]]:
    """What a request tells, by canonical histogram name. A failed one tells no latency: it is an error."""
    if record.error is not None or record.ttft_sched_s is None or record.e2e_s is None:
        return
    yield "ttft_s", [record.ttft_sched_s]
    yield "e2e_s", [record.e2e_s]
    yield "itl_s", list(record.gaps_s)
    if record.tpot_s is not None:
        yield "tpot_s", [record.tpot_s]
    if record.prompt_tokens is not None:
        yield "prompt_length", [float(record.prompt_tokens)]
    yield "output_length", [float(record.output_tokens)]
