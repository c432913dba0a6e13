"""What is due when: of open loops, of users in a closed loop, and of sessions. Plain values and a seed; reads no clock.

Times are seconds from the start of the traffic. ``inf`` is "nothing, unless something under way ends".
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from collectors.durations import seconds_of
from collectors.plan import Lengths
from collectors.workload import Floats, Ints, Workload

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class ThinkTime:
    """How long a user thinks between an answer and the next request: ``fixed:2`` or ``exponential:500ms``; a bare number is seconds."""

    kind: str = "fixed"
    mean_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> ThinkTime:
        """Raises ValueError."""
        kind, _, number = text.rpartition(":")
        try:
            mean = seconds_of(number)
        except ValueError:
            mean = -1.0
        if kind not in ("", "fixed", "exponential") or mean < 0:
            raise ValueError(f"think time {text!r}: expected fixed:2 or exponential:500ms; a bare number is seconds")
        return cls(kind or "fixed", mean)

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.exponential(self.mean_s)) if self.kind == "exponential" else self.mean_s


@dataclass(slots=True)
class Job:
    """One request that is to be sent."""

    due: float
    prompt_tokens: int
    output_tokens: int
    prefix_tokens: int = 0
    """Of the prompt, shared with others: of its session where ``own_prefix``, else with all."""
    own_prefix: bool = False
    session: int | None = None
    turn: int = 0
    user: int = 0
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns: (prompt, answer)."""
    said: str = ""
    """Its own prompt, once it is made."""


@dataclass(frozen=True, slots=True)
class OpenSchedule:
    """Each request at its own time, whatever became of the others."""

    workload: Workload
    duration_s: float
    """Sending ends here; at least the last arrival."""


@dataclass(frozen=True, slots=True)
class UserSchedule:
    """Each of ``users`` sends, waits for the answer, thinks, and sends again."""

    users: int
    duration_s: float
    prompt_tokens: Lengths
    output_tokens: Lengths
    think: ThinkTime = field(default_factory=ThinkTime)
    prefix_tokens: int = 0
    most: int | None = None
    """So many requests at most."""
    ramp_s: float = 0.0
    """They begin evenly within so long. Users that begin at once stay in step, and a server that meets them so is another one."""


@dataclass(frozen=True, slots=True)
class SessionSchedule:
    """Conversations that begin at given times; each turn repeats all that was said before, so it shares that prefix."""

    starts: Floats
    duration_s: float
    prompt_tokens: Lengths
    """What a turn adds."""
    output_tokens: Lengths
    turns: Lengths
    think: ThinkTime = field(default_factory=ThinkTime)
    prefix_tokens: int = 0
    """Which all conversations begin with."""


Load = OpenSchedule | UserSchedule | SessionSchedule


def shares(load: Load, n: int) -> list[Load]:
    """The load over ``n`` workers: the same requests in all."""
    if n == 1:
        return [load]  # the plan of a million requests is large: no second one is made of it
    if isinstance(load, OpenSchedule):
        return [OpenSchedule(load.workload.take(_mine(load.workload, n, k)), load.duration_s) for k in range(n)]
    if isinstance(load, SessionSchedule):
        return [replace(load, starts=load.starts[k::n]) for k in range(n)]
    parts = [load.users // n + (k < load.users % n) for k in range(n)]
    most = [None if load.most is None else load.most // n + (k < load.most % n) for k in range(n)]
    return [replace(load, users=users, most=m) for users, m in zip(parts, most, strict=True)]


Mask = NDArray[np.bool_]


def _mine(workload: Workload, n: int, k: int) -> Mask:
    """In turn; a session stays together."""
    order = np.arange(len(workload)) if workload.session is None else workload.session
    mine: Mask = order % n == k
    return mine


class Source(Protocol):
    """Gives requests as they become due."""

    ahead: bool
    """Whether the contents of a request are known before it is due."""
    scheduled: bool
    """Whether its time is a promise that latencies count from; a user in a closed loop makes none."""

    def due(self) -> float:
        """When the next one is; inf: nothing, unless something under way ends."""

    def take(self) -> Job:
        """The one that ``due`` spoke of."""

    def contents(self, number: int) -> Job | None:
        """The number-th one that will be taken, but for its time; None where there is none."""

    def ended(self, job: Job, at: float, text: str | None) -> None:
        """One that was taken is over; ``text``: what was answered, None for a failure."""

    def left(self) -> int:
        """How many were planned and not taken; 0 where that is open."""


def source_of(load: Load, seed: tuple[int, ...]) -> Source:
    """What gives this load."""
    if isinstance(load, OpenSchedule):
        return _OpenSource(load)
    if isinstance(load, UserSchedule):
        return _UserSource(load, np.random.default_rng(seed))
    return _SessionSource(load, np.random.default_rng(seed))


class _OpenSource:
    ahead = scheduled = True

    def __init__(self, load: OpenSchedule) -> None:
        w = load.workload
        self._due = w.arrival_s
        self._columns: tuple[Ints, Ints, Ints] = (w.prompt_tokens, w.output_tokens, w.prefix_tokens)
        self._session = w.session
        self._next = 0

    def due(self) -> float:
        return float(self._due[self._next]) if self._next < len(self._due) else math.inf

    def take(self) -> Job:
        job = self.contents(self._next)
        assert job is not None
        self._next += 1
        return job

    def contents(self, number: int) -> Job | None:
        if number >= len(self._due):
            return None
        prompt, output, prefix = (int(column[number]) for column in self._columns)
        session = None if self._session is None else int(self._session[number])
        return Job(float(self._due[number]), prompt, max(1, output), prefix, session is not None, session)

    def ended(self, job: Job, at: float, text: str | None) -> None:
        """Changes nothing: that is what open loop means."""

    def left(self) -> int:
        return len(self._due) - self._next


class _UserSource:
    ahead, scheduled = True, False

    def __init__(self, load: UserSchedule, rng: np.random.Generator) -> None:
        self._load, self._rng = load, rng
        self._waiting = [(load.ramp_s * user / load.users, user) for user in range(load.users)]
        self._drawn: list[tuple[int, int]] = []
        self._taken = self._base = 0

    def due(self) -> float:
        spent = self._load.most is not None and self._taken >= self._load.most
        if not self._waiting or spent or self._waiting[0][0] >= self._load.duration_s:
            return math.inf
        return self._waiting[0][0]

    def take(self) -> Job:
        due, user = heapq.heappop(self._waiting)
        job = self.contents(self._taken)
        assert job is not None
        self._taken += 1
        job.due, job.user = due, user
        if self._taken - self._base > 4 * _BLOCK:
            del self._drawn[: 2 * _BLOCK]
            self._base += 2 * _BLOCK
        return job

    def contents(self, number: int) -> Job | None:
        while number - self._base >= len(self._drawn):
            prompts = self._load.prompt_tokens.draw(self._rng, _BLOCK).tolist()
            self._drawn += zip(prompts, self._load.output_tokens.draw(self._rng, _BLOCK).tolist(), strict=True)
        prompt, output = self._drawn[number - self._base]
        prefix = self._load.prefix_tokens
        return Job(0.0, prompt + prefix, output, prefix)

    def ended(self, job: Job, at: float, text: str | None) -> None:
        heapq.heappush(self._waiting, (at + self._load.think.draw(self._rng), job.user))

    def left(self) -> int:
        return 0


class _SessionSource:
    ahead, scheduled = False, True

    def __init__(self, load: SessionSchedule, rng: np.random.Generator) -> None:
        self._load, self._rng = load, rng
        n = load.starts.size
        self._turns = load.turns.draw(rng, n).tolist()
        self._drawn = 0
        self._waiting: list[tuple[float, int, Job]] = []
        for session, start in enumerate(load.starts.tolist()):
            self._push(start, session, 0, ())

    def _push(self, due: float, session: int, turn: int, history: tuple[tuple[str, str], ...]) -> None:
        load, rng = self._load, self._rng
        prompt, output = int(load.prompt_tokens.draw(rng, 1)[0]), int(load.output_tokens.draw(rng, 1)[0])
        job = Job(due, prompt + load.prefix_tokens, output, load.prefix_tokens, False, session, turn, history=history)
        self._drawn += 1
        heapq.heappush(self._waiting, (due, self._drawn, job))

    def due(self) -> float:
        if not self._waiting or self._waiting[0][0] >= self._load.duration_s:
            return math.inf
        return self._waiting[0][0]

    def take(self) -> Job:
        return heapq.heappop(self._waiting)[2]

    def contents(self, number: int) -> Job | None:
        return None

    def ended(self, job: Job, at: float, text: str | None) -> None:
        assert job.session is not None
        if text is None or job.turn + 1 >= self._turns[job.session]:
            return  # a conversation ends with its last turn, or where it breaks
        due = at + self._load.think.draw(self._rng)
        self._push(due, job.session, job.turn + 1, (*job.history, (job.said, text)))

    def left(self) -> int:
        return sum(due < self._load.duration_s for due, _, _ in self._waiting)
