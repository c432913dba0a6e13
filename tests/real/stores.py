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
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

SCRAPE_S = 1


@contextmanager
def emulated(number: int, folder: Path) -> Iterator[list[str]]:
    """Emulated endpoints, one process each; their addresses, as ``host:port``."""
    shape = json.dumps({"replicas": 1, "size": "emu", "engine": {"max_num_seqs": 64}})
    sizes = json.dumps({"emu": {"bandwidth_gb_s": 2000.0, "tflops": 300.0, "kv_tokens": 100_000}})
    with ExitStack() as stack:
        addresses = []
        for i in range(number):
            command = [
                *(sys.executable, "-m", "actuators.emulated.server", "--endpoint", f"e{i}", "--model", f"model-{i}"),
                *("--shape", shape, "--sizes", sizes, "--state", str(folder / f"e{i}.json"), "--until-stdin-closes"),
                *("--cold-start-s", "0.1"),
            ]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            addresses.append(process.stdout.readline().rpartition(" on ")[2].strip())
        yield addresses


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
