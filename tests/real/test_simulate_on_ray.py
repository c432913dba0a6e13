"""`flyball simulate --ray` on a real Ray cluster of two nodes: all is sent once, by one clock, and nothing is left behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.collectors.exact import Exact, exact
from tests.real.ray_cluster import CPUS, RayCluster, two_nodes

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(300)]

ENDLESS = ("--concurrency", "4", "--duration", "600", "--output-tokens", "fixed:5")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Exact]:
    with exact() as served:
        yield served


def command(address: str, server: Exact, *arguments: str | Path) -> list[str]:
    asked = ["simulate", "--ray", address, "--url", server.url, *map(str, arguments), "-o", "json"]
    return [sys.executable, "-m", "agent", *asked]


def run(cluster: RayCluster, server: Exact, *arguments: str | Path, address: str | None = None) -> tuple[int, str, str]:
    asked = command(address or cluster.address, server, *arguments)
    done = subprocess.run(asked, env=cluster.env, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@contextmanager
def under_way(cluster: RayCluster, server: Exact) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Endless traffic that is being sent, and its processes on the nodes and here, which all have to be gone at the end."""
    before = server.log()["requests"]
    asked = command(cluster.address, server, *ENDLESS)
    with subprocess.Popen(asked, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 60
            while server.log()["requests"] < before + 20:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.2)
            processes = [*cluster.workers(), *psutil.Process(process.pid).children(recursive=True)]
            assert len(processes) == 3, processes
            yield process, processes
        finally:
            process.kill()
    left = psutil.wait_procs(processes, 30)[1]
    assert not left, left


def test_two_nodes_send_the_traffic_of_one(cluster: RayCluster, server: Exact, tmp_path: Path) -> None:
    before, file = server.log()["requests"], tmp_path / "requests.parquet"
    code, out, err = run(
        cluster, server, "--rate", "50", "--duration", "4", "--arrivals", "constant", "--warmup", "0", "--output-tokens", "fixed:10",
        "--save", file,
    )  # fmt: skip
    assert code in (0, 3), err  # 3: a busy machine was late, and says so
    answer = json.loads(out)
    assert answer["client"]["nodes"] == {"one": 1, "two": 1}
    assert answer["client"]["workers"] == 2
    assert answer["planned"] == answer["sent"] == answer["completed"] == 200
    assert answer["errors"] == {}
    log = server.log()
    assert log["requests"] - before == 200, "the server's own count"
    assert answer["ttft_sent_s"]["p50"] == pytest.approx(np.median(log["ttft"][-200:]), abs=0.005)
    rows = pq.read_table(file)
    due, sent = (np.sort(rows[name].to_numpy()) for name in ("due_s", "sent_s"))
    assert due == pytest.approx(np.arange(200) / 50, abs=1e-9), "one schedule"
    at = np.sort(log["at"][-200:])
    assert np.median(np.abs(at - at[0] - due)) < 0.01, "one clock"
    assert np.median(sent - due) < 0.01
    ttft = rows["first_s"].to_numpy() - rows["due_s"].to_numpy()
    assert answer["ttft_s"]["count"] == ttft.size == 200
    assert answer["ttft_s"]["mean"] == pytest.approx(ttft.mean()), "merged exactly"
    assert answer["ttft_s"]["p95"] == pytest.approx(np.quantile(ttft, 0.95), rel=0.02)


def test_all_cpus_and_no_more(cluster: RayCluster, server: Exact) -> None:
    load = ("--rate", "20", "--duration", "1", "--output-tokens", "fixed:5")
    code, out, err = run(cluster, server, *load, "--workers", str(2 * CPUS), address="auto")
    assert code in (0, 3), err
    assert json.loads(out)["client"]["nodes"] == {"one": CPUS, "two": CPUS}
    code, _, err = run(cluster, server, *load, "--workers", "99")
    assert (code, "99" in err, f"{2 * CPUS} CPUs" in err) == (2, True, True), err


def test_nodes_with_another_flyball_are_named(cluster: RayCluster, server: Exact, tmp_path: Path) -> None:
    made = tmp_path / "flyball-99.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: flyball\nVersion: 99.0\n")
    newer = replace(cluster, env=cluster.env | {"PYTHONPATH": str(tmp_path)})
    code, _, err = run(newer, server, "--rate", "5", "--duration", "1")
    assert code == 1, err
    assert f"has Flyball {version('flyball')}" in err
    assert "here is 99.0" in err


def test_a_cap_stops_them_and_says_what_was_counted(cluster: RayCluster, server: Exact) -> None:
    code, out, err = run(cluster, server, *ENDLESS, "--max-tokens", "500")
    assert code in (0, 3), err
    answer: dict[str, Any] = json.loads(out)
    assert answer["stopped"] == "cap_tokens"
    assert (
        answer["sent"]
        == sum(answer["errors"].values()) + answer["warmup_requests"] + answer["completed"] + answer["abandoned"]
    )


def test_ctrl_c_gives_the_figures_until_then(cluster: RayCluster, server: Exact) -> None:
    with under_way(cluster, server) as (process, _):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    answer = json.loads(out)
    assert answer["stopped"] == "interrupted"
    assert answer["client"]["workers"] == 2


def test_nothing_outlives_a_command_that_is_killed(cluster: RayCluster, server: Exact) -> None:
    with under_way(cluster, server) as (process, processes):
        process.kill()
        assert not psutil.wait_procs(processes, 30)[1]
    quiet = server.log()["requests"]
    time.sleep(1)
    assert server.log()["requests"] == quiet


def test_a_worker_that_is_killed_is_named_with_its_node(cluster: RayCluster, server: Exact) -> None:
    with under_way(cluster, server) as (process, processes):
        processes[0].kill()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "client: the worker on node " in err
    assert "ended with -9" in err


def test_an_address_without_ray_is_said_in_time(cluster: RayCluster, server: Exact) -> None:
    load = ("--rate", "5", "--duration", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = f"127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        code, _, err = run(cluster, server, *load, address=silent)
        assert (code, f"Ray at {silent}" in err, "Traceback" in err) == (1, True, False), (
            err
        )  # by our patience, or by Ray's own
        assert time.monotonic() - began < 60
    began = time.monotonic()
    code, _, err = run(cluster, server, *load, address=silent)
    assert (code, "nothing answers there" in err) == (1, True), err
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("which", ["node", "head"])
def test_a_node_that_dies_is_an_error_and_the_others_stop(server: Exact, which: str) -> None:
    with two_nodes() as made, under_way(made, server) as (process, _):
        found = [p for p in made.process.children() if "gcs_server" in " ".join(p.cmdline())]
        (psutil.Process(made.second) if which == "node" else found[0]).kill()
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "Traceback" not in err
        assert "lost" in err
        assert ("node two" in err) or which == "head"
