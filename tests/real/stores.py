"""Real Prometheus and VictoriaMetrics on 127.0.0.1, and emulated servers for them to scrape: all of them gone at the end."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRAPE_S = 1


class EmulatedEndpoints:
    """Emulated endpoints, one process each."""

    def __init__(
        self, folder: Path, number: int, *, model: str | None, max_num_seqs: int, slow: Sequence[float]
    ) -> None:
        self._folder = folder
        self._model = model
        self._max_num_seqs = max_num_seqs
        self._slow = slow
        self._processes: list[subprocess.Popen[str]] = []
        self.addresses: list[str] = []
        """As ``host:port``."""
        for i in range(number):
            process, address = self._start(i, 0)
            self._processes.append(process)
            self.addresses.append(address)

    def restart(self, i: int) -> None:
        """A new process in its place, whose counters begin at 0."""
        self._end(self._processes[i])
        self._processes[i], _ = self._start(i, int(self.addresses[i].rpartition(":")[2]))

    def end(self) -> None:
        for process in self._processes:
            self._end(process)

    def _start(self, i: int, port: int) -> tuple[subprocess.Popen[str], str]:
        shape = json.dumps({"replicas": 1, "size": "emu", "engine": {"max_num_seqs": self._max_num_seqs}})
        sizes = json.dumps({"emu": {"bandwidth_gb_s": 2000.0, "tflops": 300.0, "kv_tokens": 100_000}})
        command = [
            *(
                sys.executable,
                "-m",
                "actuators.emulated.server",
                "--endpoint",
                f"e{i}",
                "--model",
                self._model or f"model-{i}",
            ),
            *("--shape", shape, "--sizes", sizes, "--state", str(self._folder / f"e{i}.json"), "--until-stdin-closes"),
            *("--cold-start-s", "0.1", "--port", str(port)),
            *(("--slow", str(self._slow[i])) if self._slow else ()),
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().rpartition(" on ")[2].strip()

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def emulated(
    number: int, folder: Path, *, model: str | None = None, max_num_seqs: int = 64, slow: Sequence[float] = ()
) -> Iterator[EmulatedEndpoints]:
    """``model``: what all of them serve; None: each its own. ``slow``: how many times as long each one's iterations take."""
    servers = EmulatedEndpoints(folder, number, model=model, max_num_seqs=max_num_seqs, slow=slow)
    try:
        yield servers
    finally:
        servers.end()


def scrape_config(jobs: Mapping[str, Sequence[str]]) -> str:
    """By job, its targets."""
    return json.dumps(
        {
            "global": {"scrape_interval": f"{SCRAPE_S}s"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
            ],
        }
    )  # JSON is YAML


@contextmanager
def prometheus(jobs: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The base address of a Prometheus that scrapes these. Skips where it is not installed."""
    with _store("prometheus", "prometheus", jobs) as (program, folder, config, port):
        command = [
            *(program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"),
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with _running(command, f"http://127.0.0.1:{port}/-/ready"):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def victoria_metrics(jobs: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The same of VictoriaMetrics."""
    with _store("victoria-metrics", "victoria-metrics", jobs) as (program, folder, config, port):
        command = [
            *(program, f"-storageDataPath={folder}/data", f"-httpListenAddr=127.0.0.1:{port}", "-loggerLevel=ERROR"),
            *(f"-promscrape.config={config}", "-search.latencyOffset=1s"),
        ]
        with _running(command, f"http://127.0.0.1:{port}/health"):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def _store(name: str, package: str, jobs: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Path, Path, int]]:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed (on Debian: apt-get install {package})")
    with tempfile.TemporaryDirectory(prefix="flyball-store-") as made, socket.socket() as free:
        folder = Path(made)
        config = folder / "scrape.yml"
        config.write_text(scrape_config(jobs))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        yield program, folder, config, port


@contextmanager
def _running(command: Sequence[str], ready: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(ready, process)
            yield
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        assert process.poll() is None, f"{process.args!r} ended"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} was never ready")
