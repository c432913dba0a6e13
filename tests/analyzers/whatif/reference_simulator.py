"""The schedule of ``analyzers.whatif.engine``, written as plainly as possible: one iteration at a time, one object a request.

The tests hold the compiled engine against it. It shares no code with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from analyzers.whatif.model import EngineModel
from collectors.workload import Workload


@dataclass
class Request:
    index: int
    arrival: float
    prompt: int
    output: int
    prefix: int
    produced: int = 0
    prefilled: int = 0
    blocks: int = 0
    admission: int = -1
    queue: float = -1.0
    ttft: float = -1.0
    e2e: float = -1.0
    last_token: float = -1.0
    rejected: bool = False


class Server:
    """One replica."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.now = 0.0
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # in order of admission; prefilling and decoding alike
        self.admissions = 0
        self.preemptions = 0
        self.completed_at: list[float] = []
        self.gaps: list[float] = []
        self.running_integral = 0.0
        self.waiting_integral = 0.0
        self.peak = 0

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.model.limits.block_size)

    def free(self) -> float:
        kv = self.model.limits.kv_tokens
        total = math.inf if kv is None else kv // self.model.limits.block_size
        return total - sum(r.blocks for r in self.running)

    def outstanding(self, at: float) -> int:
        return len(self.waiting) + len(self.running) + sum(1 for end in self.completed_at if end > at)

    def arrive(self, request: Request) -> None:
        if not self.waiting and not self.running:
            self.now = max(self.now, request.arrival)
        self.waiting_integral += self.now - request.arrival
        self.waiting.append(request)

    def advance(self, until: float) -> None:
        while self.now < until and (self.waiting or self.running):
            self.iterate()

    def preempt(self) -> Request:
        victim = self.running.pop()
        victim.blocks = 0
        victim.prefilled = 0
        self.waiting.insert(0, victim)
        self.preemptions += 1
        return victim

    def iterate(self) -> None:
        limits, cost = self.model.limits, self.model.iteration
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
            self.running.append(request)
            request.admission = self.admissions
            self.admissions += 1
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
        )
        self.now += duration
        self.peak = max(self.peak, sum(r.blocks for r in self.running))
        self.running_integral += len(self.running) * duration
        self.waiting_integral += len(self.waiting) * duration
        for request in decoding:
            self.token(request)
        for request, before, chunk in chunks:
            request.prefilled = before + chunk
            if request.prefilled == request.prompt + request.produced:
                request.prefilled = -1  # decodes from now on
                self.token(request)

    def token(self, request: Request) -> None:
        if request.produced == 0:
            request.ttft = self.now - request.arrival
        else:
            self.gaps.append(self.now - request.last_token)
        request.last_token = self.now
        request.produced += 1
        if request.produced >= request.output:
            request.e2e = self.now - request.arrival
            request.blocks = 0
            self.running.remove(request)
            self.completed_at.append(self.now)


@dataclass
class Result:
    requests: list[Request]
    servers: list[Server]


def simulate(workload: Workload, model: EngineModel, replicas: int = 1, router: str = "round_robin") -> Result:
    servers = [Server(model) for _ in range(replicas)]
    requests = [
        Request(i, float(a), int(p), int(o), int(x))
        for i, (a, p, o, x) in enumerate(
            zip(workload.arrival_s, workload.prompt_tokens, workload.output_tokens, workload.prefix_tokens, strict=True)
        )
    ]
    limits = model.limits
    for request in requests:
        size = request.prompt + request.output
        blocks = math.ceil(size / limits.block_size)
        if (limits.max_model_len is not None and size > limits.max_model_len) or (
            limits.kv_tokens is not None and blocks > limits.kv_tokens // limits.block_size
        ):
            request.rejected = True
            continue
        for server in servers:
            server.advance(request.arrival)
        in_turn = servers[request.index % replicas]
        least = min(servers, key=lambda s: s.outstanding(request.arrival))
        (in_turn if router == "round_robin" else least).arrive(request)
    for server in servers:
        server.advance(math.inf)
    return Result(requests, servers)
