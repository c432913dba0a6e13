"""The Ray driver of one traffic, as a process of its own: one relay on a node for each worker, and the way of their frames.

Run by ``cluster``, as ``python -m collectors.traffic.relay ADDRESS``. It is a process of its own because Ray ends the one it lives in
when it loses its cluster, keeps it waiting for minutes, and prints; and when the command is killed, this one sees the end of its input,
and with the driver Ray ends all that it had started.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import IO, Any

from collectors.traffic.worker import Frame, begin, packed, read, write
from collectors.window import CollectError

#: Seconds for the cluster to have the CPUs that are asked for, and for a worker's process to begin and to end.
ROOM_S, BEGIN_S, END_S = 30.0, 60.0, 5.0
_TRIES = 15
#: The driver asks a relay at least so often what there is to say; a relay that was not asked for so long is cut off, and ends.
_ASK_S, SILENCE_S = 1.0, 20.0
#: What a node runs to say its Flyball's version: the same program and the same imports as its worker.
_VERSION = "import importlib.metadata as m, collectors.traffic.worker; print(m.version('flyball'))"


class Relay:
    """A Ray actor with one worker process of its node, so that nothing of Ray is in the way of that one's stamps.

    It travels by value and imports Flyball late, so that it can say of a node that it has none. Nobody else may be left to stop it: where
    Ray dies on its node, or the network to it, it ends its worker and itself.
    """

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._asked_at = time.monotonic()
        self._ended: str | None = None

    def hello(self) -> tuple[str, str | None, str]:
        """Python's version here, Flyball's, and what is wrong if there is none."""
        command = [sys.executable, "-c", _VERSION]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        python = ".".join(map(str, sys.version_info[:3]))
        if asked.returncode:
            return python, None, (asked.stderr.strip().splitlines() or ["it does not start"])[-1]
        return python, asked.stdout.strip(), ""

    def clock(self) -> float:
        """The clock by which this machine's workers stamp."""
        return time.perf_counter()

    def begin(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  as long as the worker
        self._worker = begin(self._said)
        self._asked_at = time.monotonic()
        for task in (self._listen, self._watch):
            threading.Thread(target=task, daemon=True).start()

    def _watch(self) -> None:
        while self._ended is None:
            if time.monotonic() - self._asked_at >= SILENCE_S:
                self.end(0.0)
                os._exit(1)
            time.sleep(_ASK_S)

    def _listen(self) -> None:
        """In a thread: a worker must never wait for Ray to listen."""
        from collectors.traffic.worker import taken

        assert self._worker is not None
        assert self._worker.stdout is not None
        data: bytes | None = b""
        while data is not None:
            data = taken(self._worker.stdout)
            self._frames.put(data)
        self._worker.stdout.close()

    def write(self, data: bytes) -> None:
        assert self._worker is not None
        assert self._worker.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it is gone: ``read`` says so
            self._worker.stdin.write(data)
            self._worker.stdin.flush()

    def hang_up(self) -> None:
        assert self._worker is not None
        assert self._worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._worker.stdin.close()

    def read(self) -> list[bytes | None]:
        """The frames that are there, after a moment; None is the end."""
        self._asked_at = time.monotonic()
        try:
            frames = [self._frames.get(timeout=_ASK_S)]
        except queue.Empty:
            return []
        while frames[-1] is not None and not self._frames.empty():
            frames.append(self._frames.get())
        return frames

    def end(self, within_s: float) -> str:
        """Wait for the worker's end, and make one; how it ended."""
        if self._worker is None:
            return "never began"
        if self._ended is not None:
            return self._ended
        self.hang_up()
        try:
            self._worker.wait(within_s)
        except subprocess.TimeoutExpired:
            self._worker.kill()
        code = self._worker.wait()
        self._said.seek(0)
        said = self._said.read()[-2000:].decode(errors="replace").strip()
        self._said.close()
        self._ended = f"ended with {code}" + (f": {said.splitlines()[-1]}" if said else "")
        return self._ended


def offset(ask: Callable[[], float], here: Callable[[], float] = time.perf_counter, tries: int = _TRIES) -> float:
    """What to add to a stamp of ``here`` for the same moment on the clock that ``ask`` reads; wrong by half of the least round trip at
    most. Source: D. L. Mills, RFC 5905 (NTP), section 8."""
    least, found = math.inf, 0.0
    for _ in range(tries):
        before = here()
        there = ask()
        after = here()
        if after - before < least:
            least, found = after - before, there - (before + after) / 2
    return found


def node_names(nodes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Names for people, by Ray's id: the name or address of each, with a piece of its id where two share one."""
    shared = Counter(node["NodeName"] for node in nodes)
    return {
        node["NodeID"]: node["NodeName"]
        if shared[node["NodeName"]] == 1
        else f"{node['NodeName']}/{node['NodeID'][:8]}"
        for node in nodes
    }


def check(node: str, python: str, version: str | None, wrong: str, ours: str) -> None:
    """Raises CollectError ``client`` where a node has another Flyball than this machine, or none."""
    if version == ours:
        return
    has = f"has no Flyball that starts ({wrong})" if version is None else f"has Flyball {version}"
    raise CollectError(
        "client",
        f"node {node} {has}, with Python {python}; here is {ours}. Install flyball=={ours} in its Ray's environment",
    )


def brief(error: BaseException, lines: int = 1) -> str:
    """What Ray says first, in one line: its messages are pages."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said[:lines])[:400] or type(error).__name__


class Driver:
    """Told by frames what to do, it says what comes by frames."""

    def __init__(self, told: IO[bytes], out: IO[bytes]) -> None:
        self._out, self._turn = out, threading.Lock()
        self._relays: list[Any] = []
        self._offsets: list[float] = []
        self._told: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        threading.Thread(target=self._hear, args=(told,), daemon=True).start()

    def _hear(self, told: IO[bytes]) -> None:
        """In a thread, so that the end of the command is heard even while Ray keeps this process waiting."""
        frame: Frame | None = ("", None)
        while frame is not None:
            frame = read(told)
            self._told.put(frame)
        time.sleep(2 * END_S)
        os._exit(1)

    def _say(self, what: str, value: Any) -> None:
        with self._turn, contextlib.suppress(BrokenPipeError):  # nobody listens: the end of the input comes too
            write(self._out, what, value)

    def run(self, address: str) -> None:
        """Until the end of the input."""
        try:
            self._say("nodes", self._connect(address))
            while (frame := self._told.get()) is not None:
                self._do(*frame)
        except CollectError as error:
            self._say("trouble", error.detail)
        self._end()

    def _connect(self, address: str) -> dict[str, int]:
        """CPUs by node, of those that have any."""
        import ray

        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (Exception, SystemExit) as error:  # Ray raises whatever it meets
            raise CollectError("client", f"Ray at {address} takes no work from here: {brief(error, 8)}") from error
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise CollectError("client", f"Ray at {address} has no node with a CPU")
        self._names = node_names(nodes)
        return {self._names[node["NodeID"]]: int(node["Resources"]["CPU"]) for node in nodes}

    def _do(self, what: str, value: Any) -> None:
        if what == "hire":
            self._say("hired", self._hire(value))
            return
        k, it = value
        told = self._relays[k].hang_up if what == "hang_up" else self._relays[k].write
        if what == "start":
            it = packed("start", it + self._offsets[k])
        told.options(concurrency_group="told").remote(*([] if what == "hang_up" else [it]))

    def _hire(self, workers: int) -> list[str]:
        """The node of each. A CPU for each, over as many nodes as there are."""
        from importlib.metadata import version

        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        try:
            room = placement_group([{"CPU": 1}] * workers, strategy="SPREAD")
            if not room.wait(ROOM_S):
                raise CollectError(
                    "client", f"Ray had no {workers} free CPUs within {ROOM_S:g} s: ask for fewer --workers"
                )
            actor = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"told": 1, "said": 1})(Relay)
            self._relays = [
                actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(room, k)).remote()
                for k in range(workers)
            ]
            hellos = ray.get([relay.hello.remote() for relay in self._relays], timeout=BEGIN_S)
            table = ray.util.placement_group_table(room)["bundles_to_node_id"]
            nodes = [self._names.get(table[k], table[k]) for k in range(workers)]
            for node, (python, has, wrong) in zip(nodes, hellos, strict=True):
                check(node, python, has, wrong, version("flyball"))
            self._offsets = [self._offset(relay) for relay in self._relays]
            ray.get([relay.begin.remote() for relay in self._relays], timeout=BEGIN_S)
        except ray.exceptions.RayError as error:
            raise CollectError("client", f"Ray could not start the workers: {brief(error)}") from error
        for k in range(workers):
            threading.Thread(target=self._listen, args=(k,), daemon=True).start()
        return nodes

    def _offset(self, relay: Any) -> float:
        import ray

        return offset(lambda: float(ray.get(relay.clock.remote())))

    def _listen(self, k: int) -> None:
        """What one worker says, in a thread."""
        import ray

        relay = self._relays[k]
        try:
            while True:
                for data in ray.get(relay.read.options(concurrency_group="said").remote()):
                    if data is None:
                        self._say("gone", (k, ray.get(relay.end.remote(END_S))))
                        return
                    self._say("said", (k, data))
        except ray.exceptions.RayError as error:
            self._say("gone", (k, f"was lost with its node or its Ray actor ({brief(error)})"))

    def _end(self) -> None:
        """Nothing is left on the nodes; Ray would see to it too, a little later."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get([relay.end.remote(END_S) for relay in self._relays], timeout=1.5 * END_S)
        ray.shutdown()
        os._exit(0)  # threads wait within Ray


def main() -> None:
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what Ray prints must not get among the frames
    Driver(sys.stdin.buffer, out).run(sys.argv[1])


if __name__ == "__main__":
    main()
