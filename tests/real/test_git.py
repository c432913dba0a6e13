"""Pull requests with the real daemon and the real git: asked for at the command line, merged by a person, verified, and taken back.

The model is an emulated fleet, which a deployment of the test's own brings to what main says, as Argo CD or a pipeline would.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actuators.emulated.actuator import make as emulated
from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Shape
from agent.clock import WallClock
from agent.store import changes
from collectors.base import ScrapeTarget
from collectors.git.fields import FieldPath, value_of
from collectors.plan import Lengths, TrafficPlan
from collectors.traffic.thread import simulate
from tests.actuators.git_parts import CHAT, FIELDS, TeamRepository
from tests.actuators.support import context, reach
from tests.agent.daemons import Daemon, flyball, running, write_settings

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

SIZES = {"emu-s": Size(900.0, 120.0, 60_000)}


class Deployment:
    """What main says is brought to the fleet."""

    def __init__(self, team: TeamRepository, folder: Path, url: str) -> None:
        self._team = team
        self._of = context(folder, url, Shape(), {})

    def run(self) -> None:
        count = value_of(self._team.text(), FieldPath.parse(FIELDS["replicas"]))
        wanted = asyncio.run(emulated(self._of).live()).shape.with_(replicas=count)
        asyncio.run(reach(lambda: emulated(self._of), wanted, self._team.tip()))


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """A few requests a second, for as long as the block lasts."""
    ended = threading.Event()

    def send() -> None:
        seed = 0
        while not ended.is_set():
            seed += 1
            plan = TrafficPlan(
                rate=4.0, duration_s=3.0, prompt_tokens=Lengths.parse("20"), output_tokens=Lengths.parse("8"), seed=seed, model="tiny",
                api="completions", exact_output=True, timeout_s=30.0,
            )  # fmt: skip
            asyncio.run(simulate(plan, ScrapeTarget("chat", url), WallClock()))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_pull_request_is_merged_verified_and_taken_back(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git; install git")
    team = TeamRepository.make(tmp_path / "team", {"deploy/chat.yaml": CHAT})
    with EmulatedFleet(tmp_path / "fleet") as fleet:
        shape = Shape(replicas=1, size="emu-s", engine={"max_num_seqs": 4})
        url = fleet.start(EmulatedSpec("chat", "tiny", shape, SIZES, cold_start_s=0.1))
        deployment = Deployment(team, tmp_path / "deployment", url)
        config = _configured(tmp_path, team, url)
        checked = flyball("check", "--live", "-c", str(config))
        assert checked.returncode == 0, checked.stdout + checked.stderr
        with traffic(url), running(config) as daemon:
            daemon.ready()
            daemon.until(lambda: _windows(daemon) >= 8, "there is telemetry")
            # One that somebody takes away is a no.
            refused = _asked(daemon, team, 4)
            team.take_away(refused)
            daemon.until(lambda: [r for r in _rows(daemon) if r["state"] == "rejected"], "taking it away is a no")
            # One that is merged is approved, deployed, verified, and in the ledger.
            branch = _asked(daemon, team, 2)
            assert "Why:" in team.message(branch)
            team.merge(branch)
            deployment.run()
            change = daemon.until(lambda: _ended(daemon, "succeeded"), "it is verified")
            assert change["approved_by"] == "git:ada@example.org"
            assert f"Flyball-Plan: {change['plan_hash']}" in team.message("main^2")
            # A person wants it undone: by a branch, too.
            undone = flyball("changes", "rollback", change["id"], "--yes", "-c", str(config))
            assert undone.returncode == 0, undone.stderr
            back = daemon.until(lambda: [b for b in team.branches() if "/revert-" in b], "the way back is shown")[0]
            team.merge(back)
            deployment.run()
            daemon.until(lambda: _ended(daemon, "rolled_back"), "it is taken back")
            assert "replicas: 1 " in team.text()
            assert daemon.stop() == 0
    with daemon.store() as store, store.read() as db:
        assert changes.ledger(db, change_id=change["id"])


def _configured(folder: Path, team: TeamRepository, url: str) -> Path:
    endpoint = {
        "name": "chat",
        "mode": "approve",
        "url": url,
        "model": "tiny",
        "objective": {"ttft_p95_s": 5.0},
        "shape": {"size": "emu-s"},
        "actuator": {"system": "git", "options": team.options(deploy_s=1)},
        "policy": {
            "max_replicas": 6,
            "max_step_replicas": 6,
            "evidence_s": 30,
            "min_requests": 5,
            "min_coverage": 0.1,
            "cooldown_s": 0,
        },
        "verify": {"warmup_s": 0.1, "windows": 3, "deadline_s": 30},
    }
    return write_settings(folder, [endpoint], sizes={"emu-s": {"usd_per_replica_hour": 1.0}})


def _asked(daemon: Daemon, team: TeamRepository, replicas: int) -> str:
    """The branch of what a person asks for."""
    before = set(team.branches())
    asked = flyball("recommendations", "propose", "chat", "--shape", f"replicas={replicas}", "-c", str(daemon.config))
    assert asked.returncode == 0, asked.stderr

    def shown() -> list[str]:
        new = [b for b in team.branches() if b not in before]
        return [b for b in new if f"replicas: {replicas} " in team.text(b)]

    return daemon.until(shown, "the plan is shown in the repository")[0]


def _windows(daemon: Daemon) -> int:
    series: list[Any] = daemon.json("/endpoints/chat.json")["endpoint"]["series"]
    return len(series)


def _rows(daemon: Daemon) -> list[dict[str, Any]]:
    told = flyball("recommendations", "list", "--all", "-c", str(daemon.config), "-o", "json")
    rows: list[dict[str, Any]] = json.loads(told.stdout)["recommendations"]
    return rows


def _ended(daemon: Daemon, state: str) -> dict[str, Any] | None:
    rows = daemon.json("/changes.json")["changes"]
    return next((row for row in rows if row["state"] == state), None)
