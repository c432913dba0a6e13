"""A real HAProxy on 127.0.0.1 before servers of one backend, reloaded as a service manager would: gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.actuators.support import free_port

FILE = """\
global
  stats socket {folder}/admin.sock mode 600 level admin
  stats socket {folder}/user.sock mode 600 level user
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend in
  bind 127.0.0.1:{port}
  default_backend chat
frontend statistics
  bind 127.0.0.1:{statistics}
  http-request use-service prometheus-exporter if {{ path /metrics }}
backend chat
  balance leastconn
  option httpchk GET /health
{servers}"""


class RunningHAProxy:
    """Its file, its sockets and its addresses."""

    def __init__(self, folder: Path, servers: Sequence[str]) -> None:
        """``servers``: host:port; the first is in rotation, the others are spares."""
        self.folder = folder
        self.port, self.statistics = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.socket, self.user_socket = str(folder / "admin.sock"), str(folder / "user.sock")
        self.file = folder / "haproxy.cfg"
        lines = [
            f"  server s{i} {address} check inter 500ms weight 10{' disabled  # a spare' if i > 1 else ''}\n"
            for i, address in enumerate(servers, 1)
        ]
        text = FILE.format(folder=folder, port=self.port, statistics=self.statistics, servers="".join(lines))
        self.file.write_text(text)
        self.log = folder / "haproxy.log"

    def begin(self) -> None:
        program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if program is None:
            pytest.skip("HAProxy is not installed (on Debian: apt-get install haproxy)")
        with self.log.open("wb") as file:
            self.process = subprocess.Popen([program, "-W", "-f", str(self.file)], stdout=file, stderr=file)
        self._until(lambda: "s1" in self.ask("show stat"))

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def reload(self) -> None:
        """A new worker with the file as it is now."""
        before = self.ask("show info").partition("Pid: ")[2].split()[0]
        self.process.send_signal(signal.SIGUSR2)
        self._until(lambda: self.ask("show info").partition("Pid: ")[2].split()[0] != before)

    def ask(self, command: str) -> str:
        """Over the user socket."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(self.user_socket)
            asked.sendall(command.encode() + b"\n")
            pieces = []
            while piece := asked.recv(65536):
                pieces.append(piece)
        return b"".join(pieces).decode()

    def _until(self, condition: object) -> None:
        assert callable(condition)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if condition():
                    return
            except (OSError, IndexError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"HAProxy did not come so far:\n{self.log.read_text()}")


@contextmanager
def haproxying(servers: Sequence[str]) -> Iterator[RunningHAProxy]:
    with tempfile.TemporaryDirectory(prefix="fbh-") as made:  # a socket's path has to be short
        running = RunningHAProxy(Path(made), servers)
        running.begin()
        try:
            yield running
        finally:
            running.end()
