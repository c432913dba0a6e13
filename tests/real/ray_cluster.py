"""A Ray cluster of two nodes on this machine, reachable on 127.0.0.1 alone, as a process of its own that ends with its input.

Run as a program it prints its address and the process id of its second node's raylet. Ray listens on the loopback address where it takes
the machine for a desktop; its usage statistics, dashboard and notes on disk stay away from those of other clusters.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

CPUS = 2


@dataclass(frozen=True)
class RayCluster:
    address: str
    second: int
    """Of the second node's raylet: its process id."""
    env: dict[str, str]
    """For programs that use it."""
    process: psutil.Process

    def workers(self) -> list[psutil.Process]:
        """Flyball's, on its nodes."""
        return [
            p for p in self.process.children(recursive=True) if "collectors.traffic.worker" in " ".join(p.cmdline())
        ]


@contextmanager
def two_nodes() -> Iterator[RayCluster]:
    """Nodes ``one`` and ``two``. Skips where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (pip install 'flyball[ray]')")
    folder = Path(tempfile.mkdtemp(prefix="fbr-"))  # Ray's sockets lie in it, so its path has to be short
    env = os.environ | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # how long a lost head is waited for
    }
    try:
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            found = psutil.Process(process.pid)
            started: list[psutil.Process] = []
            try:
                said = process.stdout.readline().split()
                assert len(said) == 2, (folder / "log").read_text()
                started = found.children(recursive=True)
                yield RayCluster(said[0], int(said[1]), env, found)
            finally:
                process.stdin.close()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                for one in psutil.wait_procs(started, 10)[1]:
                    one.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": CPUS, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"node_name": "one", "include_dashboard": False})
    second = cluster.add_node(**node, node_name="two")
    print(cluster.address, second.all_processes["raylet"][0].process.pid, flush=True)  # noqa: T201
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
