"""Workers over a Ray cluster, for more traffic than one machine can send. Owns the driver's process (``relay``); imports no Ray itself."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from collectors.traffic.relay import BEGIN_S, END_S, ROOM_S
from collectors.traffic.worker import Frame, packed, read, unpacked, write
from collectors.window import CollectError

_REACH_S, _CONNECT_S = 5.0, 30.0
#: Usage statistics are not sent, and what Ray would print about itself is not printed.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_LOG_TO_STDERR": "0"}


class Cluster:
    """A place for workers: ``with Cluster("10.0.0.1:6379") as cluster, WorkerFleet(n, cluster) as fleet``.

    ``address``: ``HOST:PORT`` of Ray's head, or ``auto``; this machine is a node of it. Raises CollectError ``client`` where it does not
    answer within 30 seconds.
    """

    lead_s = 1.0

    def __init__(self, address: str) -> None:
        reach(address)
        self._address = address
        self._workers: list[_NodeWorker] = []
        self._answers: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  as long as the driver
        self._driver = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "collectors.traffic.relay", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_QUIET | os.environ,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        try:
            self._reader.start()
            self.nodes: Mapping[str, int] = self._answer(
                _CONNECT_S, "is that its head, and is this machine one of its nodes?"
            )
            """CPUs by node."""
        except BaseException:
            self._driver.kill()  # it may hang within Ray
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of it runs any more."""
        assert self._driver.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._driver.stdin.close()
        try:
            self._driver.wait(3 * END_S)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        self._reader.join()
        self._said.close()

    def hire(self, workers: int) -> Sequence[_NodeWorker]:
        """Raises CollectError ``client`` where it has no room for them, or a node has another Flyball."""
        self._workers = [_NodeWorker(self, k) for k in range(workers)]
        with contextlib.suppress(BrokenPipeError):  # then the answer says why
            self.tell("hire", workers)
        nodes = self._answer(ROOM_S + 2 * BEGIN_S, "its nodes are too busy, or gone")
        for worker, node in zip(self._workers, nodes, strict=True):
            worker.node = node
        return self._workers

    def tell(self, what: str, value: Any) -> None:
        """Raises BrokenPipeError where the driver is gone."""
        assert self._driver.stdin is not None
        write(self._driver.stdin, what, value)

    def _answer(self, within_s: float, perhaps: str) -> Any:
        try:
            what, value = self._answers.get(timeout=within_s)
        except queue.Empty:
            raise CollectError(
                "client", f"Ray at {self._address} did not answer within {within_s:g} s: {perhaps}"
            ) from None
        if what == "trouble":
            raise CollectError("client", value)
        return value

    def _read(self) -> None:
        """What the driver says, in a thread: to whom it belongs."""
        assert self._driver.stdout is not None
        while (frame := read(self._driver.stdout)) is not None:
            what, value = frame
            if what == "said":
                self._workers[value[0]].said.put(value[1])
            elif what == "gone":
                self._workers[value[0]].gone(value[1])
            else:
                self._answers.put(frame)
        self._driver.stdout.close()
        why = f"the connection to Ray at {self._address} broke{self._last_words()}"
        self._answers.put(("trouble", why))
        for worker in self._workers:
            worker.gone(f"was lost: {why}")

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1].strip()[:300]})" if lines else ""


class _NodeWorker:
    """A worker on a node."""

    def __init__(self, cluster: Cluster, k: int) -> None:
        self._cluster, self._k = cluster, k
        self.node: str | None = None
        self.said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._why = ""
        self._gone, self._hung_up = threading.Event(), False

    def gone(self, why: str) -> None:
        """Told by the reader, once or more."""
        self._why = self._why or why
        self._gone.set()
        self.said.put(None)

    def write(self, what: str, value: Any) -> None:
        if what == "start":  # the driver knows that node's clock
            self._cluster.tell("start", (self._k, value))
        else:
            self._cluster.tell("write", (self._k, packed(what, value)))

    def read(self) -> Frame | None:
        data = self.said.get()
        return None if data is None else unpacked(data)

    def hang_up(self) -> None:
        if not self._hung_up:
            self._hung_up = True
            with contextlib.suppress(BrokenPipeError):
                self._cluster.tell("hang_up", (self._k, None))

    def end(self, within_s: float) -> None:
        """Its process ends with the cluster's driver at the latest."""
        if not self._gone.wait(within_s):
            self.gone("did not end")

    def why(self) -> str:
        self._gone.wait(END_S)
        return f"the worker on node {self.node} {self._why or 'ended'}"


def reach(address: str) -> None:
    """Raises CollectError ``client`` where nothing listens: Ray itself would try for more than a minute."""
    if address == "auto":
        return
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.path:
        raise CollectError("client", f"--ray {address}: give HOST:PORT of its head, or auto, on one of its machines")
    try:
        socket.create_connection((host, port), _REACH_S).close()
    except OSError as error:
        raise CollectError(
            "client", f"--ray {address}: nothing answers there ({error.strerror or error}); is Ray's head running?"
        ) from error
