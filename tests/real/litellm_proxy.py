"""A real LiteLLM proxy on 127.0.0.1 that is started again by touching a file, as a service manager would: gone at the end."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.actuators.support import free_port

MASTER_KEY = "sk-flyball-0123456789abcdef0123456789abcdef"
#: Ten seconds on an idle machine.
STARTS_S = 240.0


def program() -> str:
    """The proxy's console script. Skips the test, with what to do, where there is none."""
    own = Path(__file__).parents[2] / ".venv-litellm" / "bin" / "litellm"
    path = Path(os.environ.get("FLYBALL_TEST_LITELLM") or own)
    if not path.exists():
        pytest.skip(f"no LiteLLM: {path} is missing; run .ci/install-litellm, or set FLYBALL_TEST_LITELLM")
    return str(path)


class RunningProxy:
    """One proxy, and the command that restarts it."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{free_port()}"
        self.starts = 0
        self._touched = config.with_name("restarted")
        self.restart = ["touch", str(self._touched)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._manage, daemon=True)
        self.log = config.with_name("litellm.log")

    def begin(self) -> None:
        self._touched.touch()
        self._thread.start()
        self._until_ready()

    def end(self) -> None:
        self._over.set()
        self._thread.join(30)

    def _manage(self) -> None:
        seen: int | None = None
        process: subprocess.Popen[bytes] | None = None
        while not self._over.wait(0.1):
            now = self._touched.stat().st_mtime_ns
            if now != seen:
                seen = now
                _stop(process)
                process = self._start()
        _stop(process)

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        port = self.url.rpartition(":")[2]
        command = [program(), "--config", str(self.config), "--host", "127.0.0.1", "--port", port]
        env = {
            **os.environ,
            "LITELLM_MASTER_KEY": MASTER_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_PROXY": "127.0.0.1",
        }
        with self.log.open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, env=env, cwd=self.config.parent)

    def _until_ready(self) -> None:
        until = time.monotonic() + STARTS_S
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.url}/health/liveliness", timeout=5).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
            else:
                return
        raise AssertionError(f"LiteLLM did not come up:\n{self.log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def proxying(config: Path) -> Iterator[RunningProxy]:
    """A proxy with this file, ready."""
    proxy = RunningProxy(config)
    program()
    try:
        proxy.begin()
        yield proxy
    finally:
        proxy.end()
