"""Replicas that come and go during a replay: cold starts, a schedule, failures, an autoscaler's policy.

Owns the count of replicas and who is one when. Does not run them: the ``ReplicaMachine`` (``kernel``'s) does, from one moment of change to
the next, so that this loop costs with the changes (and a policy's ticks) and not with the requests. The rules:

- A moment comes before the arrivals and the iteration starts of the same instant. Of several at one instant, the order is: replicas
  whose cold start ends, replacements that begin theirs, failures, the schedule, the policy.
- The router knows the ready replicas in the order in which they became so. While there is none it holds requests in order of
  arrival and hands them out, in that order, when one becomes ready; TTFT counts from the arrival. A held request whose client
  gives up is dropped.
- Growing starts new replicas, which are ready ``cold_start_s`` later. Shrinking cancels first replacements that wait to be started,
  then the youngest of those that are starting, then takes the ready replica with the fewest outstanding requests (the youngest on
  ties), which gets no new ones and leaves when it is empty.
- A failure takes the oldest ready replica, if there is one, with all that it holds and the tokens of the iteration that is under
  way. Without a policy a replacement begins its cold start ``down_s`` later, and counts as one that is on its way until then; a
  policy sees one replica less and decides by itself.
- The policy is asked at ``interval_s``, 2 ``interval_s``, ...; what it wants is kept within the bounds.
- Moments are simulated up to the last arrival and the end of the last iteration. Without a horizon, a policy that leaves requests
  at the router without a ready replica for a day (and two cold starts) after the last arrival is not asked again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np

from analyzers.strict import APART
from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from collectors.workload import Floats, Ints

PATIENCE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class ReplicaFleet:
    """How many replicas there are, and when. Raises ValueError where that contradicts itself."""

    replicas: int
    """Ready at time 0."""
    cold_start_s: float
    """From the wish for a replica to its first request."""
    policy: Annotated[ScalingPolicy | None, APART] = None
    schedule: tuple[tuple[float, int], ...] = ()
    """(at_s, replicas wanted from then on), ascending. Not beside a policy."""
    failures: tuple[tuple[float, float], ...] = ()
    """(at_s, down_s), ascending: a replica dies, and its replacement begins its cold start ``down_s`` later."""
    min_replicas: int = 0
    max_replicas: int = 1000
    """Ready and starting together; those that still empty themselves come on top."""

    def __post_init__(self) -> None:
        counts = (self.replicas, self.min_replicas, self.max_replicas, *(count for _, count in self.schedule))
        if not all(isinstance(count, int) for count in counts):
            raise ValueError(f"fleet: numbers of replicas must be whole, not {counts}")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"fleet: min_replicas ({self.min_replicas}) must be 0 or more, and max_replicas ({self.max_replicas}) at least 1 and that"
            )
        for what, count in (("replicas", self.replicas), *(("schedule", count) for _, count in self.schedule)):
            if not self.min_replicas <= count <= self.max_replicas:
                raise ValueError(
                    f"fleet: {what} says {count}, outside min_replicas ({self.min_replicas}) and max_replicas ({self.max_replicas})"
                )
        if not 0 <= self.cold_start_s < math.inf:
            raise ValueError(
                f"fleet: cold_start_s must be a finite number of seconds, 0 or more, not {self.cold_start_s}"
            )
        for name, pairs in (("schedule", self.schedule), ("failures", self.failures)):
            times = [at for at, _ in pairs]
            if not all(0 <= at < math.inf for at in times) or times != sorted(times):
                raise ValueError(f"fleet: the times of {name} must be finite, from 0 upwards and sorted")
        if not all(0 <= down < math.inf for _, down in self.failures):
            raise ValueError("fleet: down_s of a failure must be a finite number of seconds, 0 or more")
        if self.policy is not None and self.schedule:
            raise ValueError(
                "fleet: give a schedule or a policy, not both; the policy alone decides how many there are"
            )
        if self.policy is not None and not 0 < self.policy.interval_s < math.inf:
            raise ValueError(f"fleet: the policy's interval_s must be above 0, not {self.policy.interval_s}")


@dataclass(frozen=True, slots=True)
class FleetHistory:
    """What became of the fleet."""

    seen: int
    """Requests that arrived."""
    until_s: float
    """The last moment at which the router held one."""
    held_s: float
    """Request-seconds at the router."""
    lives: tuple[tuple[float, float], ...]
    """(from, to) of each replica, cold start and emptying included; to infinity where it was there at the end."""
    ready: tuple[tuple[float, int], ...]
    """(at_s, ready replicas), at the start and at each change."""

    def replica_s(self, simulated_s: float) -> float:
        """Seconds provisioned, summed over replicas."""
        return math.fsum(max(0.0, min(to, simulated_s) - since) for since, to in self.lives)


class ReplicaMachine(Protocol):
    """What runs the replicas. Each is in a row of its own, and a row is free again when its replica has left."""

    arrival: Floats
    """Of each request, ascending."""
    timeout_s: float

    @property
    def rows(self) -> int: ...

    def grow(self) -> None:
        """As many rows again."""

    def run(self, first: int, upto: int, since: float, until: float, order: Ints, ready: int) -> tuple[float, float]:
        """Route the requests ``first <= i < upto`` to the first ``ready`` rows of ``order``, and run all rows of it to ``until``."""
        ...

    def take(self, row: int, number: int) -> None:
        """A new replica in a free row."""

    def lose(self, row: int, at: float, upto: int) -> None:
        """The replica dies, with all that it holds of the first ``upto`` requests."""

    def outstanding(self, row: int, at: float) -> int: ...

    def empty_since(self, row: int) -> float | None:
        """The end of its last iteration, of a replica that holds nothing any more."""

    def latest_end(self) -> float:
        """The end of the last iteration of all."""
        ...

    def kv_usage(self, rows: list[int]) -> float | None:
        """Their mean, 0..1. None: not limited, or no rows."""

    def refuse(self, first: int, upto: int) -> Floats:
        """Reject those of the requests that no replica can hold; returns when the others arrive."""
        ...

    def give_up(self, request: int) -> bool:
        """The client of a request at the router does. False: it was rejected."""
        ...


def steady(replicas: int, machine: ReplicaMachine, end: float) -> FleetHistory:
    """Run the machine's requests on a fleet that never changes, up to ``end`` or until all is done."""
    seen = int(np.searchsorted(machine.arrival, end, "left"))
    machine.run(0, seen, 0.0, end, np.arange(replicas), replicas)
    return FleetHistory(seen, 0.0, 0.0, ((0.0, math.inf),) * replicas, ((0.0, replicas),))


def operate(fleet: ReplicaFleet, machine: ReplicaMachine, end: float) -> FleetHistory:
    """Run the machine's requests on the fleet, up to ``end`` or until all is done."""
    return _Operation(fleet, machine, end).run()


@dataclass(slots=True)
class _Replica:
    number: int
    since: float
    ready_at: float
    row: int = -1
    drained_at: float = math.inf


class _RouterQueue:
    """The requests at the router while no replica is ready."""

    def __init__(self, machine: ReplicaMachine) -> None:
        self.count = 0
        self.area = 0.0
        """Request-seconds held so far."""
        self.until = 0.0
        """The last moment at which there was one."""
        self._machine = machine
        self._oldest = 0
        """The first request whose client may still give up."""

    def hold(self, first: int, upto: int, since: float, until: float) -> None:
        """Time passes, and the requests ``first <= i < upto`` arrive in it."""
        m = self._machine
        new = m.refuse(first, upto)
        self.area += self.count * (until - since) + float((until - new).sum())
        self.count += new.shape[0]
        while self._oldest < upto and (deadline := float(m.arrival[self._oldest]) + m.timeout_s) <= until:
            if m.give_up(self._oldest):
                self.area -= until - deadline
                self.until = deadline
                self.count -= 1
            self._oldest += 1
        if self.count:
            self.until = until

    def hand_out(self, upto: int) -> None:
        """A replica is there, and all requests up to ``upto`` are the machine's."""
        self.count = 0
        self._oldest = upto


class _Operation:
    """The loop over the moments of change, and who is a replica at each."""

    def __init__(self, fleet: ReplicaFleet, machine: ReplicaMachine, end: float) -> None:
        self._fleet, self._machine, self._end = fleet, machine, end
        self._n = int(np.searchsorted(machine.arrival, end, "left"))
        self._last_arrival = float(machine.arrival[self._n - 1]) if self._n else 0.0
        self._at = 0.0
        self._seen = 0
        self._first = 0
        """The first request that no replica has got."""
        self._held = _RouterQueue(machine)
        self._ready = [_Replica(i, 0.0, 0.0, row=i) for i in range(fleet.replicas)]
        self._starting: list[_Replica] = []
        self._draining: list[_Replica] = []
        self._down: list[float] = []
        """When replacements begin their cold start."""
        self._rows = list(range(fleet.replicas, machine.rows))
        self._numbers = fleet.replicas
        self._lives: list[tuple[float, float]] = []
        self._timeline = [(0.0, fleet.replicas)]
        self._failed = self._scheduled = self._ticks = 0
        self._areas = (0.0, 0.0)
        self._told = (0, 0.0, 0.0)
        """At the last tick: arrivals, and sequence- and request-seconds."""
        self._state: Any = None
        self._last_ready = 0.0

    def run(self) -> FleetHistory:
        while True:
            until = min(self._next(), self._end)
            self._advance(until)
            if until >= self._end or self._done(until):
                break
            self._at = until
            while self._next() <= until:
                self._change(until)
        alive = (*self._ready, *self._starting, *self._draining)
        lives = (*self._lives, *((r.since, math.inf) for r in alive))
        return FleetHistory(self._seen, self._held.until, self._held.area, lives, tuple(self._timeline))

    def _next(self) -> float:
        """The next moment of change."""
        fleet = self._fleet
        return min(
            self._starting[0].ready_at if self._starting else math.inf,
            self._down[0] if self._down else math.inf,
            fleet.failures[self._failed][0] if self._failed < len(fleet.failures) else math.inf,
            fleet.schedule[self._scheduled][0] if self._scheduled < len(fleet.schedule) else math.inf,
            self._tick_at(),
        )

    def _tick_at(self) -> float:
        return math.inf if self._fleet.policy is None else (self._ticks + 1) * self._fleet.policy.interval_s

    def _advance(self, until: float) -> None:
        """All that happens before ``until`` with the replicas that there are."""
        machine = self._machine
        upto = int(np.searchsorted(machine.arrival, until, "left"))
        order = np.array([r.row for r in (*self._ready, *self._draining)], np.int64)
        first = self._first if self._ready else upto
        self._areas = machine.run(first, upto, self._at, until, order, len(self._ready))
        if self._ready:
            self._first = upto
            self._held.hand_out(upto)
        else:
            if until == math.inf:
                patience = machine.timeout_s if machine.timeout_s < math.inf else 0.0
                until = max(self._at, self._last_arrival + patience, machine.latest_end())
            self._held.hold(self._seen, upto, self._at, until)
        self._seen = upto
        for replica in [r for r in self._draining if self._gone(r, until)]:
            self._draining.remove(replica)

    def _gone(self, replica: _Replica, until: float) -> bool:
        """Whether one that takes no requests is empty by ``until``; if so it leaves."""
        empty = self._machine.empty_since(replica.row)
        if empty is None or empty > until:
            return False
        self._leave(replica, max(empty, replica.drained_at))
        return True

    def _leave(self, replica: _Replica, at: float) -> None:
        self._lives.append((replica.since, at))
        if replica.row >= 0:
            self._rows.append(replica.row)

    def _done(self, until: float) -> bool:
        """Whether nothing is left to simulate, or nobody will ever do it."""
        machine = self._machine
        if self._seen < self._n:
            return False
        if self._held.count:
            waited = until - max(self._last_arrival, self._last_ready)
            return self._end == math.inf and waited > PATIENCE_S + 2 * self._fleet.cold_start_s
        ends = [machine.empty_since(r.row) for r in (*self._ready, *self._draining)]
        return all(end is not None and end <= until for end in ends)

    def _change(self, at: float) -> None:
        """All changes that are due at ``at``, once each."""
        fleet = self._fleet
        while self._starting and self._starting[0].ready_at <= at:
            self._be_ready(self._starting.pop(0))
        while self._down and self._down[0] <= at:
            self._down.pop(0)
            self._start(at)
        while self._failed < len(fleet.failures) and fleet.failures[self._failed][0] <= at:
            self._fail(at, fleet.failures[self._failed][1])
            self._failed += 1
        while self._scheduled < len(fleet.schedule) and fleet.schedule[self._scheduled][0] <= at:
            self._resize(fleet.schedule[self._scheduled][1], at)
            self._scheduled += 1
        if self._tick_at() <= at:
            self._tick(at)
        if len(self._ready) != self._timeline[-1][1]:
            if self._timeline[-1][0] == at:
                self._timeline.pop()
            self._timeline.append((at, len(self._ready)))
        if self._ready:
            self._last_ready = at

    def _start(self, at: float) -> None:
        replica = _Replica(self._numbers, at, at + self._fleet.cold_start_s)
        self._numbers += 1
        if replica.ready_at <= at:
            self._be_ready(replica)
        else:
            self._starting.append(replica)

    def _be_ready(self, replica: _Replica) -> None:
        if not self._rows:
            full = self._machine.rows
            self._machine.grow()
            self._rows = list(range(full, self._machine.rows))
        replica.row = self._rows.pop()
        self._machine.take(replica.row, replica.number)
        self._ready.append(replica)

    def _fail(self, at: float, down_s: float) -> None:
        if not self._ready:
            return
        replica = self._ready.pop(0)
        self._machine.lose(replica.row, at, self._seen)
        self._leave(replica, at)
        if self._fleet.policy is None:
            self._down = sorted((*self._down, at + down_s))

    def _resize(self, wanted: int, at: float) -> None:
        """Ready, starting and waiting to be started together become ``wanted``."""
        more = wanted - len(self._ready) - len(self._starting) - len(self._down)
        for _ in range(more):
            self._start(at)
        for _ in range(-more):
            if self._down:
                self._down.pop()
            elif self._starting:
                self._leave(self._starting.pop(), at)
            else:
                self._drain(at)

    def _drain(self, at: float) -> None:
        replica = min(reversed(self._ready), key=lambda r: self._machine.outstanding(r.row, at))
        self._ready.remove(replica)
        replica.drained_at = at
        if not self._gone(replica, at):
            self._draining.append(replica)

    def _tick(self, at: float) -> None:
        policy = self._fleet.policy
        assert policy is not None
        told, now = self._told, (self._seen, self._areas[0], self._areas[1] + self._held.area)
        wanted, self._state = policy(
            ScalingInput(
                at_s=at,
                ready=len(self._ready),
                starting=len(self._starting),
                arrivals_per_s=(now[0] - told[0]) / policy.interval_s,
                running=max(0.0, now[1] - told[1]) / policy.interval_s,
                waiting=max(0.0, now[2] - told[2]) / policy.interval_s,
                kv_usage=self._machine.kv_usage([r.row for r in self._ready]),
            ),
            self._state,
        )
        self._told = now
        self._ticks += 1
        self._resize(min(max(int(wanted), self._fleet.min_replicas), self._fleet.max_replicas), at)
