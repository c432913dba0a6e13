"""A real Ray node with Serve on 127.0.0.1, as a group of processes of its own: gone at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.actuators.support import free_port

#: One request holds its replica's only seat for so long: a replica carries five a second.
REQUEST_S = 0.2
CODE = f"""\
import asyncio
from ray import serve

@serve.deployment(num_replicas=1, max_ongoing_requests=1, ray_actor_options={{"num_cpus": 0.1}})
class Model:
    async def __call__(self, request):
        await asyncio.sleep({REQUEST_S})
        return "a valve"

app = Model.bind()
"""


def program() -> str:
    """Ray's console script. Skips the test, with what to do, where there is none."""
    own = Path(__file__).parents[2] / ".venv-ray-serve" / "bin" / "ray"
    path = Path(os.environ.get("FLYBALL_TEST_RAY_SERVE") or own)
    if not path.exists():
        pytest.skip(f"no Ray Serve: {path} is missing; run .ci/install-ray-serve, or set FLYBALL_TEST_RAY_SERVE")
    return str(path)


class RunningServe:
    """One node, its dashboard, and an application ``chat``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dashboard, self.metrics = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}/metrics"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "ray.log"

    def begin(self) -> None:
        ports = {
            "port": free_port(),
            "dashboard-port": self.dashboard.rpartition(":")[2],
            "metrics-export-port": self.metrics.rpartition(":")[2].partition("/")[0],
            "ray-client-server-port": free_port(),
            "dashboard-agent-listen-port": free_port(),
        }
        command = [
            *(program(), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--object-store-memory=100000000"),
            *(f"--{name}={port}" for name, port in ports.items()),
        ]
        env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(self.folder)}
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # then it listens on the loopback address alone
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
        self.until(lambda: self.call("GET")[0] == 200, "the dashboard answers")

    def end(self) -> None:
        """By its own tree: `ray stop` would end every Ray of this machine."""
        group = psutil.Process(self.process.pid).children(recursive=True) if psutil.pid_exists(self.process.pid) else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in group:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(group, timeout=20)

    def deploy(self, **more: Any) -> None:
        """``more``: of the application's configuration."""
        (self.folder / "flyball_app.py").write_text(CODE)
        application = {
            "name": "chat",
            "route_prefix": "/",
            "import_path": "flyball_app:app",
            "runtime_env": {"env_vars": {"PYTHONPATH": str(self.folder)}},
            **more,
        }
        options = {"host": "127.0.0.1", "port": self.port}
        status, said = self.call("PUT", {"http_options": options, "applications": [application]})
        assert status == 200, said
        self.until(lambda: self.application()["status"] == "RUNNING", "the application runs")

    def application(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("GET")[1])["applications"]["chat"]
        return found

    def call(self, method: str, body: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """Status and body; status 0 where nobody answers."""
        content = None if body is None else json.dumps(body).encode()
        url = f"{self.dashboard}/api/serve/applications/"
        request = urllib.request.Request(url, content, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def until(self, condition: Any, what: str) -> None:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            if condition():
                return
            time.sleep(0.5)
        raise AssertionError(f"it did not come so far that {what}:\n{self.log.read_text(errors='replace')[-3000:]}")


@contextmanager
def serving() -> Iterator[RunningServe]:
    program()
    folder = Path(tempfile.mkdtemp(prefix="fbs-"))  # Ray's sockets lie in it, so its path has to be short
    running = RunningServe(folder)
    running.begin()
    try:
        yield running
    finally:
        running.end()
        shutil.rmtree(folder, ignore_errors=True)
