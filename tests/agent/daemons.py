"""The real daemon as a process, for tests: started with settings in a folder of its own, asked by HTTP, and always ended."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from typer.testing import CliRunner, Result

from agent.cli import app
from agent.configfile import load
from agent.settings import Settings
from agent.store import Store
from tests.actuators.support import free_port

ROOT = Path(__file__).parents[2]
_T = TypeVar("_T")

#: Everything that takes a minute takes a second.
QUICK: Mapping[str, Any] = {
    "database": "sqlite:///flyball.db",
    "collect": {"interval_s": 0.5, "window_s": 1, "timeout_s": 5, "max_backoff_s": 4},
    "decide": {"interval_s": 1, "act_interval_s": 0.5},
}


def write_settings(folder: Path, endpoints: list[dict[str, Any]], **more: Any) -> Path:
    """``flyball.yaml`` in ``folder`` with these endpoints, quick, with a page on a free port. Returns its path."""
    path = folder / "flyball.yaml"
    data = {**QUICK, "web": {"port": free_port()}, "endpoints": endpoints, **more}
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def flyball(
    *words: str, env: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; its tables are wide, so that nothing is folded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(env or {})}
    line = [sys.executable, "-m", "agent", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=timeout_s)


def invoke(*words: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """The command line within this process, where a process of its own would prove nothing more."""
    return CliRunner().invoke(app, [str(word) for word in words], env=env)


class Daemon:
    """One process of ``flyball run``."""

    def __init__(self, config: Path, log: Path, process: subprocess.Popen[bytes], settings: Settings) -> None:
        self.config = config
        self.log = log
        self.process = process
        self.settings = settings

    def get(self, path: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """Status and body of a GET; status 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.web.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def json(self, path: str) -> dict[str, Any]:
        status, body = self.get(path)
        assert status == 200, f"{path} answered {status}: {body[:500]}\n{self.tail()}"
        answer: dict[str, Any] = json.loads(body)
        return answer

    def ready(self) -> None:
        """Wait until the first cycles are through."""
        self.until(lambda: self.get("/readyz")[0] == 200, "the daemon is ready")

    def until(self, condition: Callable[[], _T | None], what: str, limit_s: float = 120.0) -> _T:
        """Wait until ``condition`` gives something true. Fails, with the end of the log, when it does not, or the daemon ends."""
        end = time.monotonic() + limit_s
        while True:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, f"waiting until {what}, the daemon ended\n{self.tail()}"
            assert time.monotonic() < end, f"it did not come so far that {what}\n{self.tail()}"
            time.sleep(0.1)

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log's lines, each of which must be JSON; only those of one event where it is named."""
        whole = self.log.read_text().rpartition("\n")[0].splitlines()  # the last line may be half written
        said = [json.loads(line) for line in whole]
        return [line for line in said if event is None or line.get("event") == event]

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, limit_s: float = 30.0) -> int:
        """SIGTERM, and the exit code. A daemon that does not obey is killed, and the test fails."""
        self.process.terminate()
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes into the log where each thread stands
            self.process.wait()
            raise AssertionError(f"SIGTERM did not end the daemon within {limit_s} s\n{self.tail()}") from None

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The daemon's database, opened beside it."""
        opened = Store(self.settings.database)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def running(
    config: Path, name: str = "flyball", env: Mapping[str, str] | None = None, stdin: int | None = None
) -> Iterator[Daemon]:
    """Start ``flyball run`` with the settings at ``config``; killed at the end where it still runs. Its log is ``name``.log."""
    log = config.parent / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", **(env or {})}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "-c", str(config)],
            stdin=stdin,
            stdout=file,
            stderr=file,
            env=environment,
        )
    try:
        yield Daemon(config, log, process, _settings(config, env or {}))
    finally:
        process.kill()
        process.wait()


def _settings(config: Path, env: Mapping[str, str]) -> Settings:
    """As the daemon reads them: the secrets stand in our environment only meanwhile."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        return load(config).settings
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
