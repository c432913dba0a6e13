"""The loop that sends what is due and stamps what comes, on many connections in one thread.

It owns the order of things, which is what makes the times true. Bytes bear the stamp of when the kernel had them; where it gives none
(TLS) they are stamped as they are taken from the socket, for all sockets that are ready, before anything else is done with any of
them. Then ends are found and what is due is sent; streams that ended are parsed and requests to come are written only when no socket
has anything to say. What the loop itself delays is measured.
"""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collectors.traffic.account import Account, CountRules
from collectors.traffic.connection import READ, Connection, ServerAddress, judged
from collectors.traffic.framing import BadAnswer
from collectors.traffic.record import Exchange, RequestRecord, record_of
from collectors.traffic.requests import RequestFactory, RequestTemplate
from collectors.traffic.schedule import Load, source_of

_IN = select.EPOLLIN | select.EPOLLRDHUP
_BATCH = 4096
#: So often in a row sockets are read before anything is done with what they had, where the kernel stamps nothing (TLS).
_ROUNDS = 8
#: The kernel's own wait is rounded up to the millisecond, so that the last ones are waited for otherwise.
_COARSE_S = 0.003
#: Nothing else is begun when something is due so soon.
_SOON_S = 0.0005
#: Streams that ended and wait to be parsed: with more of them the loop does so even while sockets have something to say or
#: something is due, so that they do not pile up.
_MOST_UNREAD = 500
_AHEAD = 64
#: A wait shorter than this found what had been there before it.
_WAITED_S = 30e-6
_TICK_S = 0.1
#: Two looks at two clocks that are further apart than this are no look; a wall clock that moves by more from turn to turn was set.
_APART_S, _LOOKS, _STEP_S = 50e-6, 5, 1e-3


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one worker is to do."""

    server: ServerAddress
    template: RequestTemplate
    load: Load
    rules: CountRules
    timeout_s: float = 120.0
    """Of one request, from when it is taken up."""
    most_bytes: int = 16 * 2**20
    """Of one answer."""
    most_in_flight: int | None = None
    """Requests that are due beyond this wait; their latencies count from when they were due."""
    connections: int = 8
    """Opened ahead."""
    worker: int = 0
    records: bool = False
    """Whether each request is told."""


class Clocks:
    """How far this process's stamps lie behind the wall clock, in which the kernel states its own."""

    def __init__(self) -> None:
        self._last = self._look()

    def behind(self) -> float | None:
        """Seconds; None in the moment in which the wall clock was set, since then nobody knows which of the two a stamp is in."""
        last, self._last = self._last, self._look()
        return self._last if abs(self._last - last) < _STEP_S else None

    @staticmethod
    def _look() -> float:
        for _ in range(_LOOKS):  # again where something came between the two
            before, wall, after = time.perf_counter(), time.time(), time.perf_counter()
            if after - before < _APART_S:
                break
        return wall - (before + after) / 2


class Engine:
    """One worker's traffic. ``open`` its connections, then ``run``; ``stop`` may be called from another thread."""

    def __init__(
        self,
        assignment: Assignment,
        on_record: Callable[[RequestRecord], None] | None = None,
        on_tick: Callable[[Engine], None] | None = None,
        control: int | None = None,
    ) -> None:
        """``on_tick``: called a few times a second. ``control``: a file descriptor; when something comes there, or its end, the
        traffic is stopped. Both callbacks are in the way of everything else: short."""
        self._a = assignment
        self._on_record = on_record
        self._on_tick = on_tick
        self._control = control
        self._context = assignment.server.tls()
        self._rounds = _ROUNDS if self._context is not None else 0
        self._factory = RequestFactory(assignment.server, assignment.template, assignment.worker)
        self._source = source_of(assignment.load, (assignment.template.seed, 1, assignment.worker))
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._opening = 0
        self._busy = 0
        self._bodies: deque[bytes] = deque()
        self._made = 0
        self._unread: deque[Exchange] = deque()
        self._start = 0.0
        self._ready_at = 0.0
        self._freed_at = 0.0
        self._stopped = False
        self._tick_at = 0.0
        self._began = (0.0, 0.0, 0.0)
        self._clocks = Clocks()
        self.account = Account(assignment.rules)
        if control is not None:
            self._epoll.register(control, select.EPOLLIN)

    @property
    def in_flight(self) -> int:
        return self._busy

    def stop(self) -> None:
        """No more is sent, and what is under way is given up."""
        self._stopped = True

    # -- before -----------------------------------------------------------------------------------------------------

    def open(self, within_s: float) -> None:
        """Open connections and write the first requests, so that the traffic begins with all that it needs."""
        for _ in range(self._a.connections):
            self._connect(None)
        while self._write_ahead():
            pass
        until = time.perf_counter() + within_s
        while self._opening and time.perf_counter() < until and not self._stopped:
            self._turn(0.01)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, start: float) -> None:
        """Send everything, from the stamp ``start`` on, and wait for the answers."""
        self._start = start
        self._began = (time.thread_time(), _waited_for_core(), time.perf_counter())
        self._ready_at = time.perf_counter()
        while not self._stopped:
            self._tick()
            self._send_due()
            if not self._busy and self._source.due() == math.inf and not self._unread:
                break
            now = time.perf_counter()
            spare = self._next() - now
            crowded = len(self._unread) > _MOST_UNREAD
            if crowded or (spare > _SOON_S and (self._unread or self._wants_bodies() or self._wants_connection())):
                if not self._turn(0.0) or crowded:
                    self._work()
            else:
                self._turn(max(0.0, spare))
        self._finish()

    def _next(self) -> float:
        """The stamp at which the loop has something to do even if nothing comes."""
        return self._tick_at if self._full() else min(self._start + self._source.due(), self._tick_at)

    def _full(self) -> bool:
        return self._a.most_in_flight is not None and self._busy >= self._a.most_in_flight

    def _turn(self, timeout: float) -> bool:
        """Wait at most so long for the sockets, and take what they have; whether there was anything."""
        before = time.perf_counter()
        if timeout > _COARSE_S:
            events = self._epoll.poll(timeout - 0.002, _BATCH)
        elif timeout > 0:
            select.select((self._epoll.fileno(),), (), (), timeout)
            events = self._epoll.poll(0, _BATCH)
        else:
            events = self._epoll.poll(0, _BATCH)
        back = time.perf_counter()
        waited = back - before > _WAITED_S
        self._ready_at, ready_at = back, back if waited else self._ready_at  # when it became so, at the earliest
        got: list[tuple[Connection, float, bytes | OSError]] = []
        if events and not self._stopped:
            ready_at = self._read(events, got, ready_at)
        for _ in range(self._rounds):  # whatever came in the meantime too: stamps first
            events = self._epoll.poll(0, _BATCH)
            if not events or self._stopped:
                break
            ready_at = self._read(events, got, ready_at)
        for connection, stamp, data in got:
            self._take(connection, stamp, data)
        watch = self.account.tally.watch
        watch.lag_max_s = max(watch.lag_max_s, time.perf_counter() - back)
        return bool(got)

    def _read(
        self, events: list[tuple[int, int]], got: list[tuple[Connection, float, bytes | OSError]], ready_at: float
    ) -> float:
        """Take and stamp what the sockets have that were not ready before ``ready_at``; when they had been asked."""
        asked, before = time.perf_counter(), len(got)
        behind = self._clocks.behind()
        delays: list[float] = []
        connections = self._connections
        for fd, event in events:
            connection = connections.get(fd)
            if connection is None:
                self._stopped = self._stopped or fd == self._control
            elif connection.up and event & ~select.EPOLLOUT:
                data: bytes | OSError
                try:
                    data, at = connection.receive(READ)
                except BlockingIOError:
                    continue
                except OSError as error:
                    data, at = error, None
                stamp = time.perf_counter()
                if at is not None and behind is not None:
                    delay = max(0.0, stamp + behind - at)
                    stamp -= delay
                    delays.append(delay)
                got.append((connection, stamp, data))
            else:
                self._go_on(connection)
        watch = self.account.tally.watch
        watch.read_delay.extend(delays)
        unstamped = len(got) - before - len(delays)
        if unstamped:  # it lay there since the kernel was asked before, at most
            watch.own_stamps += unstamped
            watch.read_delay.extend([time.perf_counter() - ready_at] * unstamped)
        return asked

    def _work(self) -> None:
        """One piece of what can wait."""
        if self._unread:
            self._conclude(self._unread.popleft())
        elif self._wants_bodies():
            self._write_ahead()
        else:
            self._connect(None)

    def _wants_bodies(self) -> bool:
        return self._source.ahead and len(self._bodies) < _AHEAD and self._source.contents(self._made) is not None

    def _wants_connection(self) -> bool:
        """In an open loop: so that the next one need not wait for a connection to open."""
        return self._busy > 0 and not self._idle and not self._opening and not self._full()

    def _write_ahead(self) -> bool:
        if not self._wants_bodies():
            return False
        job = self._source.contents(self._made)
        assert job is not None
        self._made += 1
        self._bodies.append(self._factory.request(job))
        return True

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send_due(self) -> None:
        due = self._source.due()
        while due < math.inf and not self._full() and not self._stopped:
            now = time.perf_counter()
            if self._start + due > now:
                return
            self._begin(now)
            due = self._source.due()

    def _begin(self, now: float) -> None:
        tally = self.account.tally
        job = self._source.take()
        due = self._start + job.due
        if not self._source.scheduled:  # a user sends when it can: nothing was due at any time
            job.due = now - self._start
        if self._a.most_in_flight is not None and self._freed_at > due:
            tally.held += 1  # it could not go before another one had ended
            due = self._freed_at
        tally.watch.lateness.add(max(0.0, now - due))
        if self._source.ahead and not self._bodies:
            self._write_ahead()
        body = self._bodies.popleft() if self._source.ahead else self._factory.request(job)
        exchange = Exchange(job, body, now)
        tally.sent += 1
        self._busy += 1
        while self._idle:
            connection = self._idle.pop()
            if connection.up:
                connection.carrying = exchange
                self._hand_over(connection, exchange)
                return
        self._connect(exchange)

    def _connect(self, exchange: Exchange | None) -> None:
        """Open a connection, for this request or for any."""
        try:
            connection = Connection(self._a.server, self._context)
        except OSError as error:
            if exchange is not None:
                self._end(exchange, time.perf_counter(), judged(error))
            return
        connection.carrying = exchange
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLOUT)
        self._opening += 1
        self.account.tally.watch.connections += 1

    def _go_on(self, connection: Connection) -> None:
        """A socket that takes more: its connection opens, or the rest of a request goes out."""
        exchange: Exchange | None = connection.carrying
        try:
            if connection.up:
                if connection.flush():
                    self._epoll.modify(connection.fd, _IN)
                return
            if not connection.ready():
                self._epoll.modify(connection.fd, select.EPOLLIN)
                return
        except OSError as error:
            self._drop(connection)
            if exchange is not None:
                self._end(exchange, time.perf_counter(), judged(error))
            return
        self._opening -= 1
        self._epoll.modify(connection.fd, _IN)
        if exchange is None:
            self._idle.append(connection)
        else:
            self._hand_over(connection, exchange)

    def _hand_over(self, connection: Connection, exchange: Exchange) -> None:
        if exchange.sent is None:
            exchange.sent = time.perf_counter()
        try:
            whole = connection.send(exchange.body)
        except OSError as error:
            self._broken(connection, exchange, time.perf_counter(), judged(error))
            return
        if not whole:
            self._epoll.modify(connection.fd, _IN | select.EPOLLOUT)

    # -- receiving --------------------------------------------------------------------------------------------------

    def _take(self, connection: Connection, stamp: float, data: bytes | OSError) -> None:
        """What one socket had."""
        if not connection.up:
            return  # its end was seen in a read just before
        exchange: Exchange | None = connection.carrying
        if exchange is None:  # the server closed an idle connection, or talks out of turn
            if connection in self._idle:
                self._idle.remove(connection)
            self._drop(connection)
            return
        answer = exchange.answer
        if isinstance(data, OSError):
            self._broken(connection, exchange, stamp, judged(data))
            return
        try:
            payload = answer.feed(data) if data else answer.eof()
        except BadAnswer as error:
            kind = "broken_stream" if not data or answer.status is not None else "protocol"
            self._broken(connection, exchange, stamp, (kind, str(error)))
            return
        if exchange.head_at is None and answer.status is not None:
            exchange.head_at = stamp
        if payload:
            exchange.reads.append((stamp, payload))
            exchange.size += len(payload)
        if answer.complete:
            connection.carrying = None
            connection.used = True
            if answer.reusable and not connection.sending:
                self._idle.append(connection)
            else:
                self._drop(connection)
            self._end(exchange, stamp, None)
        elif exchange.size > self._a.most_bytes:
            self._drop(connection)
            self._end(exchange, stamp, ("too_large", f"the answer is longer than {self._a.most_bytes} bytes"))

    def _broken(self, connection: Connection, exchange: Exchange, stamp: float, failure: tuple[str, str]) -> None:
        """The connection broke. Where it was an old one and nothing came yet, the server had closed it: once more, on a new one."""
        nothing = exchange.answer.status is None and not exchange.reads
        stale = connection.used and nothing and not exchange.retried
        self._drop(connection)
        if not stale:
            kind, detail = failure
            if nothing and kind == "broken_stream":
                kind, detail = "reset", "the server closed the connection without an answer"
            elif kind == "reset" and not nothing:
                kind, detail = "broken_stream", "the connection was reset in the middle of the answer"
            self._end(exchange, stamp, (kind, detail))
            return
        exchange.retried = True
        self._connect(exchange)

    def _drop(self, connection: Connection) -> None:
        if self._connections.pop(connection.fd, None) is None:
            return
        self._opening -= not connection.up
        connection.up = False
        self._epoll.unregister(connection.fd)
        connection.close()

    def _tick(self) -> None:
        """A few times a second: end the requests whose time is over, and say how it goes."""
        now = time.perf_counter()
        if now < self._tick_at:
            return
        self._tick_at = now + _TICK_S
        for connection in list(self._connections.values()):
            exchange: Exchange | None = connection.carrying
            if exchange is not None and exchange.started + self._a.timeout_s <= now:
                self._drop(connection)
                self._end(exchange, now, ("timeout", f"no end within {self._a.timeout_s:g} s"))
        if self._on_tick is not None:
            self._on_tick(self)

    # -- ending -----------------------------------------------------------------------------------------------------

    def _end(self, exchange: Exchange, stamp: float, failure: tuple[str, str] | None) -> None:
        exchange.ended, exchange.failure = stamp, failure
        exchange.body = b""
        if self._full():
            self._freed_at = stamp
        self._busy -= 1
        self._unread.append(exchange)
        if self._source.ahead:  # else the answer's text decides what follows
            self._source.ended(exchange.job, stamp - self._start, None)

    def _conclude(self, exchange: Exchange) -> None:
        record = record_of(exchange, self._start)
        if not self._source.ahead:
            assert exchange.ended is not None
            at = exchange.ended - self._start
            self._source.ended(exchange.job, at, None if record.error else record.text)
        exchange.reads = []
        self.account.add(record)
        if self._on_record is not None:
            self._on_record(record)

    def _finish(self) -> None:
        """Read what ended, give up what did not, and close."""
        tally = self.account.tally
        while self._unread:
            self._conclude(self._unread.popleft())
        tally.abandoned += self._busy
        tally.unsent += self._source.left()
        tally.planned = tally.sent + tally.unsent
        cpu, waited, wall = (
            now - then
            for now, then in zip(
                (time.thread_time(), _waited_for_core(), time.perf_counter()), self._began, strict=True
            )
        )
        watch = tally.watch
        watch.cpu_s, watch.workers = cpu, 1
        watch.busiest = max(watch.busiest, (cpu + waited) / wall if wall > 0 else 0.0)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()


def _waited_for_core() -> float:
    """Seconds that this thread could have run and had no core. Source: Linux, Documentation/scheduler/sched-stats.rst."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):  # a kernel that does not count it
        return 0.0
