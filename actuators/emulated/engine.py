"""The emulated engine: a continuous-batching scheduler, iteration by iteration. Pure: no clock, no sockets.

It schedules as vLLM's V1 engine does: FCFS admission, chunked prefill, ``max_num_seqs``, ``max_num_batched_tokens``, KV blocks
with preemption by recomputation, and a prefix cache of whole blocks. How long an iteration takes is a linear function of what is in it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from collections.abc import Sequence as Blocks
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Size:
    """What a replica of one size has."""

    bandwidth_gb_s: float
    tflops: float
    kv_tokens: int


#: An A100 80 GB by its data sheet, and the tokens of KV cache beside an 8B model in bfloat16 (131,072 bytes each).
REFERENCE = Size(bandwidth_gb_s=2039.0, tflops=312.0, kv_tokens=400_000)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of an iteration: ``base + per_sequence D + per_context C + per_prefill P + per_prefill_context Q + expert_read U(D + P)``,
    and ``prefill_base`` where P > 0.

    D counts decoding sequences, C their context tokens, P prefill tokens, Q prefill tokens times the tokens before them; U(n) is the share
    of a mixture's experts that n tokens touch, ``1 - (1 - expert_share) ** n``. The
    defaults are the roofline of an 8B model in bfloat16 on ``REFERENCE``: weights and cache over bandwidth, arithmetic at half
    its peak.
    """

    base_s: float = 8.0e-3
    per_sequence_s: float = 2.0e-5
    per_context_token_s: float = 6.5e-8
    per_prefill_token_s: float = 1.0e-4
    per_prefill_context_token_s: float = 3.4e-9
    prefill_base_s: float = 0.0
    expert_read_s: float = 0.0
    expert_share: float = 0.0
    """No seconds: active experts over all."""

    def on(self, size: Size) -> Timing:
        """The same model on another size, by the roofline: decoding waits for memory, prefill for arithmetic."""
        memory, arithmetic = REFERENCE.bandwidth_gb_s / size.bandwidth_gb_s, REFERENCE.tflops / size.tflops
        return Timing(
            self.base_s * memory,
            self.per_sequence_s * memory,
            self.per_context_token_s * memory,
            self.per_prefill_token_s * arithmetic,
            self.per_prefill_context_token_s * arithmetic,
            self.prefill_base_s,
            self.expert_read_s * memory,
            self.expert_share,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Engine limits by their vLLM names, and the size of the KV cache."""

    kv_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 4096
    block_size: int = 16
    prefix_caching: bool = True

    @property
    def blocks(self) -> int:
        return self.kv_tokens // self.block_size


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way through the engine. Times are the server's monotonic clock."""

    prompt: int
    output: int
    """Tokens that it will produce."""
    arrived: float
    on_token: Callable[[Sequence, float], None]
    """Called with each token that comes out, at its time."""
    output_limited: bool = True
    """It ends because it may produce no more (``length``), not because it is done (``stop``)."""
    content: Blocks[int] = ()
    """What stands in each full block of prompt and output: a hash that holds all before it. Empty: not known, so nothing is found again."""
    cached: int = 0
    """Prompt tokens that the prefix cache held at its admission."""
    produced: int = 0
    computed: int = 0
    """Tokens whose KV entries are there."""
    blocks: int = 0
    kept: int = 0
    """Its blocks that the prefix cache knows."""
    decoding: bool = False
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    preemptions: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.produced

    @property
    def finished(self) -> bool:
        return self.produced >= self.output


@dataclass(slots=True)
class Iteration:
    """What one iteration does."""

    decoding: list[Sequence] = field(default_factory=list)
    context: int = 0
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    """(sequence, prefill tokens computed in it)"""
    prefill: int = 0
    prefill_context: float = 0.0
    started: list[Sequence] = field(default_factory=list)
    """Scheduled for the first time."""
    preempted: int = 0

    def seconds(self, timing: Timing) -> float:
        tokens = len(self.decoding) + self.prefill
        return (
            timing.base_s
            + (timing.prefill_base_s if self.prefill else 0.0)
            + timing.expert_read_s * (1.0 - (1.0 - timing.expert_share) ** tokens)
            + timing.per_sequence_s * len(self.decoding)
            + timing.per_context_token_s * self.context
            + timing.per_prefill_token_s * self.prefill
            + timing.per_prefill_context_token_s * self.prefill_context
        )


class PrefixCache:
    """What stands in blocks of the KV cache, by content. Those least recently asked for or computed go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, None] = OrderedDict()

    def leading(self, content: Blocks[int]) -> int:
        """How many blocks from the first on are there."""
        for number, block in enumerate(content):
            if block not in self._known:
                return number
            self._known.move_to_end(block)
        return len(content)

    def add(self, block: int) -> None:
        self._known[block] = None
        self._known.move_to_end(block)

    def shrink(self, most: int) -> None:
        while len(self._known) > most:
            self._known.popitem(last=False)


class Scheduler:
    """Which sequences run. ``begin`` plans an iteration, ``end`` takes its tokens out."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running: list[Sequence] = []
        """In the order of their admission; partly prefilled ones included."""
        self.waiting: deque[Sequence] = deque()
        self.free_blocks = limits.blocks
        self._cache = PrefixCache()
        self._kept = 0
        """Blocks of running sequences that the prefix cache knows; it holds no more than these and the free ones."""

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    @property
    def outstanding(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def kv_usage(self) -> float:
        return 1.0 - self.free_blocks / self.limits.blocks if self.limits.blocks else 0.0

    def fits(self, prompt: int, output: int) -> bool:
        """Whether a request can ever be served."""
        return prompt + output <= min(self.limits.max_model_len, self.limits.blocks * self.limits.block_size)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Abort it, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def begin(self) -> Iteration:
        """Plan the next iteration from what has arrived."""
        iteration = Iteration()
        budget = self.limits.max_num_batched_tokens - self._decode(iteration)
        position = 0
        while position < len(self.running) and budget > 0:
            sequence = self.running[position]
            if not sequence.decoding:
                taken = self._chunk(iteration, sequence, budget)
                if not taken:  # two half prefilled prompts must not wait for each other's blocks
                    self._preempt(self.running.pop(), iteration)
                    continue
                budget -= taken
            position += 1
        if iteration.preempted:  # as vLLM: nobody is admitted in an iteration that had to preempt
            return iteration
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            sequence.computed = self._found(sequence)
            taken = self._chunk(iteration, sequence, budget)
            if not taken:
                sequence.computed = 0
                break
            budget -= taken
            self.running.append(self.waiting.popleft())
            iteration.started.append(sequence)
        self._cache.shrink(self.free_blocks + self._kept)
        return iteration

    def _found(self, sequence: Sequence) -> int:
        """Tokens that need no prefill: as many whole blocks as the cache holds, the prompt's last token not among them. One that was
        preempted finds what it found at first."""
        if self.limits.prefix_caching and not sequence.preemptions:
            size = self.limits.block_size
            sequence.cached = size * self._cache.leading(sequence.content[: (sequence.prompt - 1) // size])
        return sequence.cached

    def _keep(self, sequence: Sequence) -> None:
        """Its full blocks can be found by others from now on."""
        full = min(sequence.computed // self.limits.block_size, len(sequence.content))
        for block in sequence.content[sequence.kept : full]:
            self._cache.add(block)
        self._kept += max(0, full - sequence.kept)
        sequence.kept = max(full, sequence.kept)

    def end(self, iteration: Iteration, now: float) -> list[Sequence]:
        """Let the iteration's tokens out; gives the sequences that have finished. Those aborted meanwhile give nothing."""
        out = [s for s in iteration.decoding if s.blocks]
        size = self.limits.block_size
        for sequence in out:
            sequence.computed += 1
            if sequence.computed % size == 0:
                self._keep(sequence)
        for sequence, tokens in iteration.chunks:
            if not sequence.blocks:
                continue
            sequence.computed += tokens
            self._keep(sequence)
            if sequence.computed == sequence.tokens:
                sequence.decoding = True
                out.append(sequence)
        finished = []
        for sequence in out:
            sequence.produced += 1
            if sequence.finished:
                finished.append(sequence)
                self.running.remove(sequence)
                self._free(sequence)
            sequence.on_token(sequence, now)
        return finished

    def _decode(self, iteration: Iteration) -> int:
        """Take every decoding sequence into the iteration; preempt the latest admitted where blocks run out."""
        position = 0
        while position < len(self.running):
            sequence = self.running[position]
            position += 1
            if not sequence.decoding:
                continue
            while not self._grow(sequence, sequence.tokens):
                victim = self.running.pop()
                self._preempt(victim, iteration)
                if victim is sequence:
                    break
            if sequence.decoding:
                iteration.decoding.append(sequence)
                iteration.context += sequence.tokens
        return len(iteration.decoding)

    def _chunk(self, iteration: Iteration, sequence: Sequence, budget: int) -> int:
        """Prefill as much of it as budget and blocks allow; gives how many tokens."""
        room = (sequence.blocks + self.free_blocks) * self.limits.block_size - sequence.computed
        tokens = min(sequence.tokens - sequence.computed, budget, room)
        if tokens <= 0:
            return 0
        self._grow(sequence, sequence.computed + tokens)
        iteration.chunks.append((sequence, tokens))
        iteration.prefill += tokens
        iteration.prefill_context += (sequence.computed + tokens / 2) * tokens
        return tokens

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        needed = -(-tokens // self.limits.block_size) - sequence.blocks
        if needed > self.free_blocks:
            return False
        if needed > 0:
            self.free_blocks -= needed
            sequence.blocks += needed
        return True

    def _preempt(self, sequence: Sequence, iteration: Iteration) -> None:
        iteration.preempted += 1
        if sequence in iteration.decoding:
            iteration.decoding.remove(sequence)
            iteration.context -= sequence.tokens
        self._free(sequence)
        sequence.computed, sequence.decoding = 0, False
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        self._kept -= sequence.kept
        sequence.blocks = sequence.kept = 0
