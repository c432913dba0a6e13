"""Starts and stops emulated servers as child processes: for the demo and for tests.

No server outlives the process that started it, however that one ends: each holds the other end of a pipe and leaves when it closes.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actuators.emulated.engine import Size
from actuators.shape import Shape


@dataclass(frozen=True, slots=True)
class EmulatedSpec:
    """One emulated endpoint. See the server's options for the meaning of each."""

    name: str
    model: str
    shape: Shape
    sizes: Mapping[str, Size] = field(default_factory=dict)
    iteration: Mapping[str, float] = field(default_factory=dict)
    cold_start_s: float = 1.0
    noise: float = 0.03
    seed: int = 0
    sabotage: Mapping[str, Any] | None = None
    """``{"when": {"replicas": 1}, "slowdown": 4.0}``"""
    port: int = 0
    """0: the system chooses."""

    def arguments(self, state: Path) -> list[str]:
        sizes = {name: asdict(size) for name, size in self.sizes.items()}
        line = ["--endpoint", self.name, "--model", self.model, "--shape", json.dumps(self.shape.as_dict())]
        line += ["--sizes", json.dumps(sizes), "--iteration", json.dumps(dict(self.iteration)), "--state", str(state)]
        line += ["--cold-start-s", str(self.cold_start_s), "--noise", str(self.noise), "--seed", str(self.seed)]
        if self.sabotage is not None:
            line += ["--sabotage", json.dumps(dict(self.sabotage))]
        return line


class FleetError(RuntimeError):
    """A server did not start; the text holds the end of its log."""


class EmulatedFleet:
    """A context manager: every server that it started is gone when it is left. State and logs stay in ``folder``."""

    def __init__(self, folder: Path, start_timeout_s: float = 20.0) -> None:
        self.folder = folder
        self._timeout_s = start_timeout_s
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        atexit.register(self.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        atexit.unregister(self.close)

    def start(self, spec: EmulatedSpec) -> str:
        """Start one server and wait until it serves; gives its base address. Raises ``FleetError``."""
        if spec.name in self._servers:
            raise FleetError(f"{spec.name} is started already: stop it first, or give the other one another name")
        # The socket listens before the server is there, and is handed over: no port can be lost in between.
        listening = socket.create_server(("127.0.0.1", spec.port), backlog=1024)
        with listening, self.log(spec.name).open("ab") as log:
            port = listening.getsockname()[1]
            command = [sys.executable, "-m", "actuators.emulated.server", "--until-stdin-closes"]
            command += ["--fd", str(listening.fileno()), *spec.arguments(self.folder / f"{spec.name}.state.json")]
            self._servers[spec.name] = subprocess.Popen(  # noqa: S603 - our own module
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is for the demo to handle, not for its servers
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self._wait(spec.name, port)
        return f"http://127.0.0.1:{port}"

    def pid(self, name: str) -> int:
        return self._servers[name].pid

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def stop(self, name: str) -> None:
        """Stop one server; its state file stays, so that a start with the same name goes on from there."""
        server = self._servers.pop(name)
        server.terminate()
        if server.stdin is not None:
            server.stdin.close()
        try:
            server.wait(5.0)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    def close(self) -> None:
        """Stop all."""
        for server in self._servers.values():
            server.terminate()  # all at once, then one by one
        for name in list(self._servers):
            self.stop(name)

    def _wait(self, name: str, port: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline and self._servers[name].poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
            try:
                connection.request("GET", "/version")
                if connection.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)  # not yet
            finally:
                connection.close()
        self.stop(name)
        end = self.log(name).read_text(errors="replace")[-2000:]
        raise FleetError(f"the emulated endpoint {name} did not start; the end of its log:\n{end}")
