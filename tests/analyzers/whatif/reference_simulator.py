"""The schedule of ``analyzers.whatif.engine``, written as plainly as possible: one iteration at a time, one object a request.

The tests hold the compiled engine against it. It shares no code with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineModel
from analyzers.whatif.scaling import ScalingInput
from collectors.workload import Workload

Span = tuple[float, float]


@dataclass
class Request:
    index: int
    arrival: float
    prompt: int
    output: int
    prefix: int
    session: int | None = None
    timeout: float = math.inf
    produced: int = 0
    prefilled: int = 0
    after_prefill: int = 0
    """Tokens produced when its latest prefill ended."""
    decodes: int = 0
    """Decode iterations since then."""
    blocks: int = 0
    queue: float = -1.0
    tokens: list[float] = field(default_factory=list)
    """When each came."""
    end: float | None = None
    rejected: bool = False
    timed_out: bool = False
    failed: bool = False
    waits: list[list[float]] = field(default_factory=list)
    """[from, to] at a replica or at the router; to infinity while it waits."""

    @property
    def ttft(self) -> float:
        came = bool(self.tokens) and self.tokens[0] - self.arrival <= self.timeout
        return self.tokens[0] - self.arrival if came else -1.0

    @property
    def e2e(self) -> float:
        return -1.0 if self.end is None or self.timed_out or self.failed else self.end - self.arrival

    def gave_up(self, at: float) -> bool:
        return self.timeout < math.inf and self.arrival + self.timeout <= at

    def wait(self, at: float) -> None:
        self.waits.append([at, math.inf])

    def wait_over(self, at: float) -> None:
        self.waits[-1][1] = at


class Server:
    """One replica."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.now = 0.0
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # in order of admission; prefilling and decoding alike
        self.preemptions = 0
        self.ends: list[float] = []
        """When requests left, complete or, with their last token, too late."""
        self.gaps: list[float] = []
        self.iterations: list[tuple[float, float, int]] = []
        """(start, end, sequences in the batch)."""
        self.peak = 0
        self.served: list[Request] = []
        # In a fleet:
        self.since = 0.0
        self.ready_at = 0.0
        self.drained_at = math.inf
        self.left_at = math.inf

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.model.limits.block_size)

    def held(self) -> int:
        return sum(r.blocks for r in self.running)

    def free(self) -> float:
        kv = self.model.limits.kv_tokens
        total = math.inf if kv is None else kv // self.model.limits.block_size
        return total - self.held()

    def idle(self) -> bool:
        return not self.waiting and not self.running

    def outstanding(self, at: float) -> int:
        return len(self.waiting) + len(self.running) + sum(1 for end in self.ends if end > at)

    def arrive(self, request: Request, at: float) -> None:
        if self.idle():
            self.now = max(self.now, at)
        request.wait(at)
        self.waiting.append(request)
        self.served.append(request)

    def advance(self, until: float) -> None:
        while self.now < until and not self.idle():
            self.iterate()

    def preempt(self) -> Request:
        victim = self.running.pop()
        victim.blocks = 0
        victim.prefilled = 0
        victim.wait(self.now)
        self.waiting.insert(0, victim)
        self.preemptions += 1
        return victim

    def drop_who_gave_up(self) -> None:
        for request in [r for r in self.waiting if r.gave_up(self.now)]:
            request.timed_out = True
            request.wait_over(self.now)
            self.waiting.remove(request)
        for request in [r for r in self.running if r.gave_up(self.now)]:
            request.timed_out = True
            self.running.remove(request)

    def die(self, at: float) -> None:
        """All that it holds is lost, and so are the tokens that had not come yet."""
        for request in self.served:
            late = request.end is not None and request.end > at
            if request in self.waiting or request in self.running or late:
                request.tokens = [t for t in request.tokens if t <= at]
                request.timed_out = request.gave_up(at)
                request.failed = not request.timed_out
                if request in self.waiting:
                    request.wait_over(at)
        self.iterations = [(start, min(end, at), batch) for start, end, batch in self.iterations]
        self.waiting, self.running = [], []
        self.now = min(self.now, at)
        self.left_at = at

    def iterate(self) -> None:
        limits, cost = self.model.limits, self.model.iteration
        self.drop_who_gave_up()
        if self.idle():
            return
        decoding: list[Request] = []
        for request in [r for r in self.running if r.prefilled < 0]:
            if request not in self.running:
                continue
            need = self.blocks(request.prompt + request.produced) - request.blocks
            while need > self.free():
                if self.preempt() is request:
                    break
            else:
                request.blocks += need
                decoding.append(request)
        budget = limits.max_num_batched_tokens - len(decoding)
        chunks: list[tuple[Request, int, int]] = []  # request, tokens before the chunk, chunk
        blocked = False
        for request in [r for r in self.running if r.prefilled >= 0]:
            chunk = min(request.prompt + request.produced - request.prefilled, budget)
            need = self.blocks(request.prefilled + chunk) - request.blocks
            if chunk <= 0 or need > self.free():
                blocked = True
                break
            request.blocks += need
            chunks.append((request, request.prefilled, chunk))
            budget -= chunk
        while not blocked and self.waiting and budget > 0 and len(self.running) < limits.max_num_seqs:
            request = self.waiting[0]
            left = request.prompt + request.produced - request.prefix
            chunk = min(left, budget)
            if not self.model.chunked_prefill and chunk < left:
                if decoding or chunks:
                    break
                chunk = left
            if self.blocks(request.prefix + chunk) > self.free():
                break
            self.waiting.pop(0)
            request.wait_over(self.now)
            self.running.append(request)
            if request.queue < 0:
                request.queue = self.now - request.arrival
            request.blocks = self.blocks(request.prefix + chunk)
            request.prefilled = request.prefix
            chunks.append((request, request.prefix, chunk))
            budget -= chunk
        duration = (
            cost.base_s
            + cost.per_sequence_s * len(decoding)
            + cost.per_context_token_s * sum(r.prompt + r.produced for r in decoding)
            + cost.per_prefill_token_s * sum(chunk for _, _, chunk in chunks)
            + cost.per_prefill_context_token_s * sum((before + chunk / 2) * chunk for _, before, chunk in chunks)
            + (cost.prefill_base_s if chunks else 0.0)
        )
        tokens = len(decoding) + sum(chunk for _, _, chunk in chunks)
        duration += cost.expert_read_s * (1.0 - (1.0 - cost.expert_share) ** tokens)
        self.iterations.append((self.now, self.now + duration, len(self.running)))
        self.now += duration
        self.peak = max(self.peak, self.held())
        for request in decoding:
            request.decodes += 1
            so_far = request.after_prefill + math.floor(request.decodes * self.model.accept_length)
            self.produce(request, min(so_far, request.output) - request.produced)
        for request, before, chunk in chunks:
            request.prefilled = before + chunk
            if request.prefilled == request.prompt + request.produced:
                request.prefilled = -1  # decodes from now on
                self.produce(request, 1)
                request.after_prefill = request.produced
                request.decodes = 0

    def produce(self, request: Request, tokens: int) -> None:
        if request.tokens:
            self.gaps += [(self.now - request.tokens[-1]) / tokens] * tokens
        request.tokens += [self.now] * tokens
        request.produced += tokens
        if request.produced >= request.output:
            request.end = self.now
            request.timed_out = self.now - request.arrival > request.timeout
            request.blocks = 0
            self.running.remove(request)
            self.ends.append(self.now)


class Router:
    """Who gets a request, of the ready replicas in the order in which they became ready."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self.served: dict[int, list[Server]] = {}
        """By session: its replicas, the last one at the end."""

    def send(self, request: Request, at: float, ready: list[Server]) -> None:
        server = self.choose(request, at, ready)
        if request.session is not None:
            before = self.served.setdefault(request.session, [])
            if before and server not in before:
                request.prefix = 0
            before.append(server)
        server.arrive(request, at)

    def choose(self, request: Request, at: float, ready: list[Server]) -> Server:
        if self.rule == "round_robin":
            return ready[request.index % len(ready)]
        least = min(ready, key=lambda s: s.outstanding(at))
        if self.rule == "prefix_aware" and request.session is not None and request.session in self.served:
            last = self.served[request.session][-1]
            low, load = least.outstanding(at), last.outstanding(at)
            if last in ready and not (load > low + 32 and load > 1.5 * low):
                return last
        return least


@dataclass
class Result:
    requests: list[Request]
    servers: list[Server]
    """All that ever were."""
    timeline: list[tuple[float, int]]
    seen: list[ScalingInput] = field(default_factory=list)
    """What the policy was told."""


class Cluster:
    """Replicas that come and go."""

    def __init__(
        self, requests: list[Request], model: EngineModel, router: str, fleet: ReplicaFleet, horizon: float
    ) -> None:
        self.model, self.fleet, self.horizon = model, fleet, horizon
        self.router = Router(router)
        self.requests = requests
        self.to_come = [r for r in requests if r.arrival < horizon]
        self.last_arrival = max((r.arrival for r in self.to_come), default=0.0)
        self.arrived: list[float] = []
        self.held: list[Request] = []
        self.ready = [Server(model) for _ in range(fleet.replicas)]
        self.starting: list[Server] = []
        self.draining: list[Server] = []
        self.all = list(self.ready)
        self.down: list[float] = []
        self.failures = list(fleet.failures)
        self.schedule = list(fleet.schedule)
        self.ticks = 0
        self.state: Any = None
        self.result = Result(requests, self.all, [(0.0, fleet.replicas)])

    def run(self) -> Result:
        while True:
            at = min(self.next_change(), self.horizon)
            while self.to_come and self.to_come[0].arrival < at:
                self.arrive(self.to_come.pop(0))
            self.advance(at)
            if at >= self.horizon or self.done(at):
                break
            while self.next_change() <= at:
                self.change(at)
            self.hand_out(at)
        for request in self.requests:
            if not request.rejected and not request.failed and request.end is None and request.gave_up(self.horizon):
                request.timed_out = True
                if request in self.held:
                    request.wait_over(request.arrival + request.timeout)
        return self.result

    def next_change(self) -> float:
        times = [s.ready_at for s in self.starting] + self.down
        times += [at for at, _ in self.failures] + [at for at, _ in self.schedule]
        if self.fleet.policy is not None:
            times.append((self.ticks + 1) * self.fleet.policy.interval_s)
        return min(times, default=math.inf)

    def advance(self, until: float) -> None:
        for server in self.ready + self.draining:
            server.advance(until)
        for server in list(self.draining):
            if server.idle() and server.now <= until:
                server.left_at = max(server.now, server.drained_at)
                self.draining.remove(server)

    def arrive(self, request: Request) -> None:
        limits = self.model.limits
        self.arrived.append(request.arrival)
        size = request.prompt + request.output
        blocks = math.ceil(size / limits.block_size)
        if (limits.max_model_len is not None and size > limits.max_model_len) or (
            limits.kv_tokens is not None and blocks > limits.kv_tokens // limits.block_size
        ):
            request.rejected = True
            return
        for server in self.ready:
            server.advance(request.arrival)
        if self.ready:
            self.router.send(request, request.arrival, self.ready)
        else:
            request.wait(request.arrival)
            self.held.append(request)

    def hand_out(self, at: float) -> None:
        for request in list(self.held):
            if request.gave_up(at):
                request.timed_out = True
                request.wait_over(request.arrival + request.timeout)
                self.held.remove(request)
            elif self.ready:
                request.wait_over(at)
                self.held.remove(request)
                self.router.send(request, at, self.ready)

    def done(self, at: float) -> bool:
        left = [r for r in self.held if not r.gave_up(at)]
        busy = [s for s in self.ready + self.draining if not s.idle() or s.now > at]
        return not self.to_come and at > self.last_arrival and not left and not busy

    def change(self, at: float) -> None:
        for server in [s for s in self.starting if s.ready_at <= at]:
            self.starting.remove(server)
            self.ready.append(server)
        for start in [d for d in self.down if d <= at]:
            self.down.remove(start)
            self.start(at)
        while self.failures and self.failures[0][0] <= at:
            _, down = self.failures.pop(0)
            if self.ready:
                self.ready.pop(0).die(at)
                if self.fleet.policy is None:
                    self.down = sorted([*self.down, at + down])
        while self.schedule and self.schedule[0][0] <= at:
            self.resize(self.schedule.pop(0)[1], at)
        policy = self.fleet.policy
        if policy is not None and (self.ticks + 1) * policy.interval_s <= at:
            seen = self.look(at, policy.interval_s)
            self.ticks += 1
            self.result.seen.append(seen)
            wanted, self.state = policy(seen, self.state)
            self.resize(min(max(wanted, self.fleet.min_replicas), self.fleet.max_replicas), at)
        timeline = self.result.timeline
        if timeline[-1][1] != len(self.ready):
            if timeline[-1][0] == at:
                timeline.pop()
            timeline.append((at, len(self.ready)))

    def start(self, at: float) -> None:
        server = Server(self.model)
        server.since, server.ready_at = at, at + self.fleet.cold_start_s
        self.all.append(server)
        (self.starting if server.ready_at > at else self.ready).append(server)

    def resize(self, wanted: int, at: float) -> None:
        more = wanted - len(self.ready) - len(self.starting) - len(self.down)
        for _ in range(more):
            self.start(at)
        for _ in range(-more):
            if self.down:
                self.down.pop()
            elif self.starting:
                self.starting.pop().left_at = at
            else:
                server = min(reversed(self.ready), key=lambda s: s.outstanding(at))
                self.ready.remove(server)
                server.drained_at = at
                if server.idle() and server.now <= at:
                    server.left_at = at
                else:
                    self.draining.append(server)

    def look(self, at: float, interval: float) -> ScalingInput:
        span = (self.ticks * interval, at)
        running = sum(batch * overlap((start, end), span) for s in self.all for start, end, batch in s.iterations)
        waiting = sum(
            overlap((start, min(end, r.arrival + r.timeout if r in self.held else end)), span)
            for r in self.requests
            for start, end in r.waits
        )
        kv = self.model.limits.kv_tokens
        usage = None
        if kv is not None and self.ready:
            usage = sum(s.held() for s in self.ready) / len(self.ready) / (kv // self.model.limits.block_size)
        arrivals = sum(1 for a in self.arrived if span[0] <= a < at)
        return ScalingInput(
            at, len(self.ready), len(self.starting), arrivals / interval, running / interval, waiting / interval, usage
        )


def overlap(one: Span, other: Span) -> float:
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def simulate(
    workload: Workload,
    model: EngineModel,
    replicas: int = 1,
    router: str = "round_robin",
    timeout: float = math.inf,
    fleet: ReplicaFleet | None = None,
    horizon: float = math.inf,
) -> Result:
    columns = (workload.arrival_s, workload.prompt_tokens, workload.output_tokens, workload.prefix_tokens)
    requests = [
        Request(i, float(a), int(p), int(o), int(x), timeout=timeout)
        for i, (a, p, o, x) in enumerate(zip(*columns, strict=True))
    ]
    if workload.session is not None:
        for request, session in zip(requests, workload.session, strict=True):
            request.session = int(session)
    return Cluster(requests, model, router, fleet or ReplicaFleet(replicas, 0.0), horizon).run()
