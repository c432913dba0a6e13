"""A container of a real Docker Engine from discovery to the ledger: another limit by another container, and a bad one taken back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from collectors.plan import Lengths, TrafficPlan
from tests.actuators.support import free_port
from tests.agent.daemons import ROOT, Daemon, flyball, running, write_settings
from tests.real.docker_part import IMAGE, RunningDocker, docker
from tests.real.scenario import approve, ended, found_kinds, open_recommendations, traffic

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

NAME = "chat"
WINDOW_S = 4.0
#: Four requests a second of 20 tokens, which take most of a second: more than one slot serves, and few of several.
TRAFFIC = TrafficPlan(
    rate=4.0,
    duration_s=3600.0,
    prompt_tokens=Lengths.parse("fixed:8"),
    output_tokens=Lengths.parse("uniform:16:24"),
    seed=3,
    model="tiny",
    exact_output=False,
    timeout_s=10.0,
)


@contextmanager
def served(folder: Path) -> Iterator[tuple[RunningDocker, int]]:
    """The emulated server of this machine's Python, in a container that has this machine's files: its slots are in its command."""
    port = free_port()
    sizes = json.dumps({"emu": {"bandwidth_gb_s": 2000.0, "tflops": 300.0, "kv_tokens": 100_000}})
    program = folder / "vllm"
    program.write_text(
        f"""\
#!{sys.executable}
import json, os, sys
words = dict(zip(sys.argv[1:-1], sys.argv[2:]))
shape = json.dumps({{"replicas": 1, "size": "emu", "engine": {{"max_num_seqs": int(words["--max-num-seqs"])}}}})
os.chdir({str(ROOT)!r})
os.execv(sys.executable, [sys.executable, "-m", "actuators.emulated.server", "--endpoint", "chat", "--model", "tiny", "--shape", shape,
    "--sizes", {sizes!r}, "--state", "{folder}/state-" + words["--max-num-seqs"] + ".json", "--cold-start-s", "0.1", "--slow", "12",
    "--port", words["--port"]])
"""
    )
    program.chmod(0o755)
    with docker() as engine:
        words = ["chroot", "/host", str(program), "serve", "tiny", "--port", str(port), "--max-num-seqs", "1"]
        host = {"NetworkMode": "host", "Binds": ["/:/host"], "NanoCpus": 1_000_000_000, "Memory": 1 << 30}
        body = {"Image": IMAGE, "Cmd": words, "HostConfig": host}
        engine.ask("POST", "/containers/create", body, name=NAME)
        engine.ask("POST", f"/containers/{NAME}/start")
        yield engine, port


def test_from_discovery_to_the_ledger_and_back(tmp_path: Path) -> None:
    with served(tmp_path) as (engine, port):
        config = _configure(tmp_path, engine)
        checked = _flyball(config, "check", "--live")
        assert checked.returncode == 0, checked.stderr + checked.stdout
        with traffic(TRAFFIC, f"http://127.0.0.1:{port}", {}), running(config) as daemon:
            daemon.until(lambda: "breach" in found_kinds(daemon, NAME), "the breach is found", limit_s=120)
            first = engine.ask("GET", f"/containers/{NAME}/json")["Id"]
            _ask(config, "max_num_seqs=16")
            change = daemon.until(lambda: ended(daemon, 1), "the change has ended", limit_s=200)
            assert change["state"] == "succeeded", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
            done = [row["operation"]["name"] for row in change["journal"]]
            assert done == ["create", "stop", "start", "remove", "rename"]
            row = next(r for r in change["ledger"] if r["metric"] == "ttft_p95_s")
            assert row["observed"] < row["before"]
            second = engine.ask("GET", f"/containers/{NAME}/json")
            assert second["Id"] != first
            assert second["Config"]["Cmd"][-2:] == ["--max-num-seqs", "16"]
            assert engine.names() == {NAME: "running"}
            _goes_back(daemon, config, engine, second["Id"])
            assert daemon.stop() == 0


def _goes_back(daemon: Daemon, config: Path, engine: RunningDocker, second: str) -> None:
    """One slot again: worse, found out, and the container of before is started again."""
    daemon.until(
        lambda: not found_kinds(daemon, NAME) & {"breach", "insufficient_data"}, "there is evidence of it", limit_s=200
    )
    _ask(config, "max_num_seqs=1")
    change = daemon.until(lambda: ended(daemon, 2), "the bad change has ended", limit_s=200)
    assert change["state"] == "rolled_back", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    assert {row["direction"] for row in change["journal"]} == {"apply", "rollback"}
    assert engine.ask("GET", f"/containers/{NAME}/json")["Id"] == second
    assert engine.names() == {NAME: "running"}


def _ask(config: Path, shape: str) -> None:
    proposed = _flyball(config, "recommendations", "propose", NAME, "--shape", shape)
    assert proposed.returncode == 0, proposed.stderr
    (asked,) = open_recommendations(config, {})
    approve(config, {}, asked["id"])


def _flyball(config: Path, *words: str) -> Any:
    return flyball(*words, "-c", str(config))


def _configure(folder: Path, engine: RunningDocker) -> Path:
    """What discovery writes, with the objective and the policy."""
    found = flyball("discover", "docker", "--option", f"host={engine.host}")
    assert found.returncode == 0, found.stderr
    (entry,) = yaml.safe_load(found.stdout)["endpoints"]
    assert (entry["name"], set(entry["sources"])) == (NAME, {"vllm", "docker"})
    options = {**entry["actuator"]["options"], "health": "/health", "stop_s": 2, "start_s": 60}
    policy = {
        **entry["policy"],
        "engine": {"max_num_seqs": [1, 16]},
        "evidence_s": 10 * WINDOW_S,
        "min_requests": 10,
        "min_coverage": 0.4,
        "cooldown_s": 0,
        "max_changes_per_day": 5,
    }
    more = {
        "mode": "approve",
        "objective": {"ttft_p95_s": 1.0, "error_rate": 0.5},
        "usd_per_replica_hour": 0.5,
        "actuator": {"system": "docker", "options": options},
        "policy": policy,
        "verify": {"warmup_s": 4.0, "windows": 4, "deadline_s": 120, "load_tolerance": 0.5},
    }
    return write_settings(
        folder,
        [{**entry, **more}],
        collect={"interval_s": 1.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 2},
        decide={"interval_s": 2, "act_interval_s": 0.5},
    )
