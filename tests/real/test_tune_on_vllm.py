"""`flyball tune` on real vLLM servers (CPU): three values of max_num_seqs on one and on two replicas, killed in the middle and gone on with.

Two replicas share this machine's cores, so which shape is best here says nothing of any other machine; what is asserted is that each limit
was measured or ruled out with a reason, that nothing measured was lost by the kill, and that nothing is left running.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from actuators.vllm_local.actuator import teardown
from agent.tune.table import carried
from tests.actuators.support import free_port
from tests.agent.daemons import ROOT
from tests.real.vllm_parts import LARGER, MODEL_NAME, vllm_options

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(1500)]

NAME = "tuned"
SPACE = {"replicas": [1, 2], "engine": {"max_num_seqs": [1, 2, 8]}}


def configure(folder: Path) -> Path:
    settings = {
        "database": f"sqlite:///{folder}/flyball.db",
        "state_dir": str(folder / "state"),
        "endpoints": [
            {
                "name": NAME,
                "url": f"http://127.0.0.1:{free_port()}",
                "model": MODEL_NAME,
                "role": "reference",
                "mode": "approve",
                "usd_per_replica_hour": 0.5,
                "shape": {"replicas": 1, "engine": {"max_num_seqs": 8}},
                "sources": {"vllm": {}},
                "actuator": {"system": "vllm-local", "options": vllm_options(folder, LARGER, grace_s=20.0)},
                "objective": {"ttft_p95_s": 0.5},
            }
        ],
    }
    path = folder / "flyball.yaml"
    path.write_text(yaml.safe_dump(settings))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return path


def command(config: Path) -> list[str]:
    folder = config.parent
    traffic = ["--prompt-tokens", "fixed:32", "--output-tokens", "fixed:16", "--exact-output", "--api", "completions"]
    effort = ["--step-seconds", "3", "--max-steps", "5", "--budget-time", "15m"]
    asked = [
        "--endpoint",
        NAME,
        "--space",
        str(folder / "space.yaml"),
        "--html",
        str(folder / "tune.html"),
        "--yes",
        "-o",
        "json",
    ]
    return [sys.executable, "-m", "agent", "tune", "-c", str(config), *asked, *traffic, *effort]


def steps(config: Path) -> int:
    """How many loads are in the store."""
    try:
        with sqlite3.connect(f"file:{config.parent}/flyball.db?mode=ro", uri=True) as db:
            return sum(len(json.loads(body).get("steps", [])) for (body,) in db.execute("SELECT body FROM trials"))
    except sqlite3.OperationalError:
        return 0


def left(folder: Path) -> list[str]:
    """Processes that have something of this folder in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.pid != os.getpid():
            found.append(line[:200])
    return found


def test_three_limits_on_one_and_two_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(tmp_path)
    try:
        with (tmp_path / "first.log").open("wb") as log:
            first = subprocess.Popen(command(config), cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while steps(config) < 2:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < deadline, "no load was kept"
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.wait()
        kept = steps(config)
        done = subprocess.run(command(config), cwd=ROOT, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert "going on with tune" in done.stderr
        assert left(tmp_path) == []
    finally:
        teardown(tmp_path / "state" / "endpoints" / NAME, grace_s=20.0)
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(told(found)) + "\n")
    check(found, kept)
    page = (tmp_path / "tune.html").read_text()
    assert "1 replica, max_num_seqs=8" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def told(found: dict[str, Any]) -> list[str]:
    """A line for each shape."""
    lines = [
        f"  {t['label']:30} {carried(t):>16}/s  predicted {t['promised_per_s'] or 0:.3g}  users {t['users'] or 0:.0f}  "
        f"{len(t['steps'])} loads  {t['why']}"
        for t in found["trials"]
    ]
    best = found["recommended"]
    return [*lines, f"  take {best['label']}: {best['why']}" if best else "  take none"]


def check(found: dict[str, Any], kept: int) -> None:
    assert found["ended"] == "done"
    assert len(found["trials"]) == 6
    states = [t["state"] for t in found["trials"]]
    assert set(states) <= {"done", "pruned"}
    assert states.count("done") >= 2, "what cannot win is ruled out by something measured"
    for trial in found["trials"]:
        if trial["state"] == "pruned":
            assert trial["why"]
            continue
        assert trial["server"]["running_max"] is not None, "the server's side was watched"
        if not trial["carries_per_s"]:
            assert trial["why"], "a limit, or the reason why there is none"
            continue  # on a machine that stalls no load may be kept, and two servers share the cores of one
        assert trial["cost_per_1k_output_tokens_usd"] > 0
        assert trial["below_per_s"] is None or trial["below_per_s"] > trial["carries_per_s"]
    assert len(found["trials"][0]["steps"]) >= kept or sum(len(t["steps"]) for t in found["trials"]) > kept
    known = [t["cost_per_1k_output_tokens_usd"] for t in found["trials"] if t["cost_per_1k_output_tokens_usd"]]
    best = found["recommended"]
    assert (best is None) == (not known)
    if best is not None:
        assert best["cost_per_1k_output_tokens_usd"] == min(known)
