"""The server of exactly known timing, as a process of its own; and one that writes raw bytes, for what no sound server would send."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collectors.plan import Lengths
from collectors.traffic.account import CountRules
from collectors.traffic.connection import resolve
from collectors.traffic.engine import Assignment, Engine
from collectors.traffic.preflight import ask
from collectors.traffic.record import RequestRecord
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import Load, OpenSchedule, UserSchedule
from collectors.traffic.tally import Tally
from collectors.workload import Workload

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "exact_server.py"


@dataclass
class Exact:
    url: str

    def log(self) -> dict[str, Any]:
        """What the server did."""
        log = json.loads(ask(resolve(self.url), "GET", "/log", {}, None, 10)[1])
        assert isinstance(log, dict)
        return log


@contextmanager
def exact(case: str = "plain", **timing: float) -> Iterator[Exact]:
    arguments = [part for name, value in timing.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(SCRIPT), "--case", case, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Exact(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


def open_loop(rate: float, seconds: float, output: int = 50, prompt: int = 16) -> OpenSchedule:
    n = int(rate * seconds)
    ones = np.ones(n, np.int64)
    return OpenSchedule(Workload(np.arange(n) / rate, ones * prompt, ones * output, ones * 0), seconds)


def users(n: int, seconds: float, output: int = 50) -> UserSchedule:
    return UserSchedule(n, seconds, Lengths.parse("fixed:16"), Lengths.parse(f"fixed:{output}"))


def sent(url: str, load: Load, rules: CountRules | None = None, **changes: Any) -> tuple[Tally, list[RequestRecord]]:
    """One engine's traffic, in this thread."""
    records: list[RequestRecord] = []
    template = changes.pop("template", RequestTemplate("m"))
    server = changes.pop("server", None) or resolve(url)
    engine = Engine(Assignment(server, template, load, rules or CountRules(), **changes), records.append)
    engine.open(5.0)
    engine.run(time.perf_counter())
    return engine.account.tally, records


Script = Callable[[socket.socket, bytes], None]


@contextmanager
def raw(script: Script) -> Iterator[str]:
    """Each request is handed to ``script`` with its socket; the connection is closed when it returns."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threads: list[threading.Thread] = []
    stopped = threading.Event()

    def talk(client: socket.socket) -> None:
        with client:
            client.settimeout(10)
            try:
                while request := _request(client):
                    script(client, request)
            except (OSError, StopIteration):
                return

    def accept() -> None:
        while not stopped.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=talk, args=(client,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10)


def _request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    mark = head.lower().find(b"content-length:")
    length = int(head[mark + 15 :].split(b"\r\n", 1)[0]) if mark >= 0 else 0
    while len(body) < length:
        more = client.recv(65536)
        if not more:
            return b""
        body += more
    return head + b"\r\n\r\n" + body
