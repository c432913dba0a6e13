"""The workers of one traffic: started together, on one clock, stopped together, and what they counted merged.

Where they run is a ``WorkerHost``: here, as child processes, or over a Ray cluster (``cluster``). CLOCK_MONOTONIC is one for all processes
of a machine, so a start stamp means the same in each of them; a place on other machines says it in their clocks.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol

from collectors.traffic.engine import Assignment
from collectors.traffic.schedule import OpenSchedule, SessionSchedule, UserSchedule, shares
from collectors.traffic.tally import Tally
from collectors.traffic.worker import Frame, Row, begin, read, write
from collectors.window import CollectError

#: Chunks a second that one worker reads and stamps with room to spare: about a third of what it can.
CHUNKS_PER_WORKER = 15_000
#: Gap between tokens that is assumed of a server before it was measured, to plan workers for users in a closed loop.
_FAST_GAP_S = 0.01
_LEAD_S = 0.02
_STOPPING_S = 10.0


@dataclass(slots=True)
class TrafficRun:
    """How the traffic went."""

    tally: Tally = field(default_factory=Tally)
    started_at: float = 0.0
    """Unix seconds of second 0."""
    elapsed_s: float = 0.0
    stopped: str | None = None
    """Why it ended before its time."""
    nodes: Mapping[str, int] | None = None
    """Workers by the machine they ran on; None: all on this one."""


class Worker(Protocol):
    """One worker, wherever it runs. ``read`` is called by one thread, all else by another."""

    node: str | None
    """The machine it runs on; None: this one."""

    def write(self, what: str, value: Any) -> None:
        """Tell it. A ``start`` is a stamp of this machine's ``time.perf_counter``. Raises BrokenPipeError where it is gone."""

    def read(self) -> Frame | None:
        """What it says next; waits for it. None: it has ended."""

    def hang_up(self) -> None:
        """Nothing more is told; it stops, and says what it counted."""

    def end(self, within_s: float) -> None:
        """Wait for its end, and make one."""

    def why(self) -> str:
        """How it ended."""


class WorkerHost(Protocol):
    """Where workers run."""

    lead_s: float
    """So long ahead a start has to be said for all to hear it in time."""

    def hire(self, workers: int) -> Sequence[Worker]:
        """Raises CollectError ``client``."""


class _LocalWorker:
    """A worker as a process of this machine."""

    node: str | None = None

    def __init__(self) -> None:
        self._process = begin()

    def write(self, what: str, value: Any) -> None:
        assert self._process.stdin is not None
        write(self._process.stdin, what, value)

    def read(self) -> Frame | None:
        assert self._process.stdout is not None
        frame = read(self._process.stdout)
        if frame is None:
            self._process.stdout.close()
        return frame

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what was not written is for a worker that is gone
            self._process.stdin.close()

    def end(self, within_s: float) -> None:
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def why(self) -> str:
        return f"a worker ended with {self._process.wait()}; its message is above. Send less, or report it"


class LocalHost:
    """This machine."""

    lead_s = _LEAD_S

    def hire(self, workers: int) -> Sequence[Worker]:
        return [_LocalWorker() for _ in range(workers)]


def workers_for(chunks_per_s: float, cores: int | None = None) -> int:
    """How many workers it takes before the client becomes the bottleneck; one core is left to whatever else runs here."""
    cores = cores or os.cpu_count() or 1
    return max(1, min(math.ceil(chunks_per_s / CHUNKS_PER_WORKER), cores - 1))


def chunks_per_s(load: OpenSchedule | UserSchedule | SessionSchedule, peak_rate: float, mean_output: float) -> float:
    """Chunks with tokens that are to be expected at the peak. ``peak_rate``: requests a second, of an open loop."""
    if isinstance(load, UserSchedule):
        return load.users / _FAST_GAP_S
    return peak_rate * mean_output


def divided(whole: Assignment, workers: int) -> list[Assignment]:
    """The assignment over workers: the same requests and connections in all."""
    cap = whole.most_in_flight
    workers = min(workers, cap or workers, whole.load.users if isinstance(whole.load, UserSchedule) else workers)
    return [
        replace(
            whole,
            load=load,
            worker=k,
            connections=math.ceil(whole.connections / workers),
            most_in_flight=None if cap is None else cap // workers + (k < cap % workers),
        )
        for k, load in enumerate(shares(whole.load, workers))
    ]


class WorkerFleet:
    """Workers: ``with WorkerFleet(n) as fleet: fleet.send(...)``. They start at once, so that they are up when they are needed."""

    def __init__(self, workers: int, host: WorkerHost | None = None) -> None:
        """``host``: where they run; None: here. Raises CollectError ``client`` where it has no room for them."""
        host = host or LocalHost()
        self._lead_s = host.lead_s
        self._start = 0.0
        self._counts: dict[int, Counter[str]] = {}
        self._told_at = 0.0
        self._finished: set[int] = set()
        self._run = TrafficRun()
        self._workers = host.hire(workers)
        self._frames: queue.SimpleQueue[tuple[int, Frame | None]] = queue.SimpleQueue()
        self._readers = [threading.Thread(target=self._read, args=(k,), daemon=True) for k in range(workers)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> WorkerFleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _read(self, k: int) -> None:
        """Whatever a worker says, in a thread: a worker must never wait for this process to listen."""
        frame: Frame | None = ("", None)
        while frame is not None:
            frame = self._workers[k].read()
            self._frames.put((k, frame))

    def send(
        self,
        assignments: Sequence[Assignment],
        on_progress: Callable[[float, Counter[str]], str | None] = lambda _at, _counts: None,
        on_records: Callable[[list[Row]], None] = lambda _rows: None,
    ) -> TrafficRun:
        """Send it all, one assignment a worker. ``on_progress`` is told the second and the counts so far, and may say why to stop.

        KeyboardInterrupt stops it too: what was counted until then is given. Raises CollectError ``client`` where a worker dies.
        """
        self._on_progress, self._on_records = on_progress, on_records
        sending = self._workers[: len(assignments)]
        nodes = Counter(worker.node for worker in sending if worker.node is not None)
        self._run.nodes = dict(nodes) or None
        try:
            for worker, assignment in zip(sending, assignments, strict=True):
                worker.write("assignment", self._dated(assignment))
            for _ in sending:
                k, frame = self._frames.get()
                if frame is None:
                    raise CollectError("client", self._workers[k].why())
            self._start = time.perf_counter() + self._lead_s
            for worker in sending:
                worker.write("start", self._start)
        except BrokenPipeError as error:
            raise CollectError("client", worker.why()) from error
        while len(self._finished) < len(sending):
            try:
                self._listen()
            except KeyboardInterrupt:
                self._stop("interrupted")
        self._run.elapsed_s = time.perf_counter() - self._start
        return self._run

    def _dated(self, assignment: Assignment) -> Assignment:
        """With the wall time of second 0, as near as it is known before the start."""
        self._run.started_at = self._run.started_at or time.time() + self._lead_s
        return replace(assignment, rules=replace(assignment.rules, started_at=self._run.started_at))

    def _listen(self) -> None:
        try:
            k, frame = self._frames.get(timeout=0.25)
        except queue.Empty:
            k, frame = -1, ("", None)
        if frame is None:
            if k not in self._finished:
                raise CollectError("client", self._workers[k].why())
            return
        what, value = frame
        if what == "progress":
            self._counts[k] = Counter(value)
        elif what == "records":
            self._on_records(value)
        elif what == "done":
            self._run.tally.merge(value)
            self._finished.add(k)
        now = time.perf_counter()
        if now - self._told_at >= 0.25:
            self._told_at = now
            why = self._on_progress(now - self._start, sum(self._counts.values(), Counter()))
            if why is not None:
                self._stop(why)

    def _stop(self, why: str) -> None:
        self._run.stopped = self._run.stopped or why
        for worker in self._workers:
            worker.hang_up()  # the end of what it is told tells it to stop

    def _end(self) -> None:
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end(_STOPPING_S)
        for reader in self._readers:
            reader.join()  # its worker is gone, so it is at its end
