"""A real Docker Engine on a socket of its own, with an image of busybox alone: no network of its own, no registry. Gone at the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.clock import WallClock
from collectors.docker.client import DockerClient, DockerSettings
from collectors.http import Http
from tests.real.conftest import REFUSED

IMAGE = "llama-server-of-busybox:1"
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"


def _program(name: str) -> str:
    if os.geteuid() != 0:
        pytest.skip(f"{REFUSED}: a Docker Engine of its own wants root")
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not here: .ci/run installs docker.io, containerd, runc and busybox-static")
    return found


class RunningDocker:
    """Its address, and what tests ask of it beside Flyball."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        async def asking() -> Any:
            http = Http()
            client = DockerClient(DockerSettings(host=self.host), http.call, WallClock())
            try:
                if method == "GET":
                    return await client.get(path, **query)
                return await (client.post(path, body, **query) if method == "POST" else client.delete(path, **query))
            finally:
                await client.aclose()
                await http.aclose()

        return asyncio.run(asking())

    def run(self, name: str, *words: str) -> None:
        """A container that runs with one CPU and 64 MiB, on the host's network."""
        host = {"NetworkMode": "host", "NanoCpus": 1_000_000_000, "Memory": 64 << 20, "MemorySwap": 64 << 20}
        body = {"Image": IMAGE, "Cmd": [*words], "Env": ["KEY=very-secret"], "HostConfig": host}
        self.ask("POST", "/containers/create", body, name=name)
        self.ask("POST", f"/containers/{name}/start")

    def names(self) -> dict[str, str]:
        """State by name, of all containers."""
        rows = self.ask("GET", "/containers/json", all="true")
        return {row["Names"][0].lstrip("/"): row["State"] for row in rows}


@contextmanager
def docker() -> Iterator[RunningDocker]:
    """Skips where it may not run."""
    dockerd, busybox = _program("dockerd"), _program("busybox")
    folder = Path(tempfile.mkdtemp(prefix="fb-docker-"))
    words = [dockerd, "--data-root", folder / "data", "--exec-root", folder / "exec", "-H", f"unix://{folder}/docker.sock",
             "--pidfile", folder / "pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, "PATH": _PATH}, start_new_session=True
        )
    try:
        running = RunningDocker(folder)
        _await(process, folder)
        _image(running, busybox)
        yield running
        for name in running.names():
            running.ask("DELETE", f"/containers/{name}", force="true")
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # the engine leaves the host's own network mounted
        subprocess.run(["umount", folder / "exec/netns/default"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(folder)


def _await(process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 60
    while not (folder / "docker.sock").exists() or b"API listen on" not in (folder / "log").read_bytes():
        if process.poll() is not None or time.monotonic() > end:
            tail = (folder / "log").read_text(errors="replace")[-500:]
            pytest.skip(f"{REFUSED}: a Docker Engine does not start: {tail}")
        time.sleep(0.1)


def _image(running: RunningDocker, busybox: str) -> None:
    """Of one file, which is called as a model server is."""
    archive = running.folder / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("busybox", "sh", "sleep", "chroot"):
            tar.add(os.path.realpath(busybox), f"bin/{name}")
        script = running.folder / "llama-server"
        script.write_text('#!/bin/sh\n[ "$2" = 13 ] && exit 7\nexec sleep 1000\n')
        script.chmod(0o755)
        tar.add(script, "bin/llama-server")

    async def load() -> None:
        http = Http(uds=running.folder / "docker.sock")
        repository, _, tag = IMAGE.partition(":")
        try:
            answer = await http.call(
                "POST",
                f"http://docker/v1.41/images/create?fromSrc=-&repo={repository}&tag={tag}",
                headers={"content-type": "application/x-tar"},
                content=archive.read_bytes(),
                timeout_s=60,
            )
            assert answer.status == 200, answer.body
        finally:
            await http.aclose()

    asyncio.run(load())
