"""`flyball deploy`: puts up what is not there, through the endpoint's own system, and touches nothing else.

The processes are real; what they run stands in for vLLM (see tests/actuators/standin).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.vllm_local.actuator import teardown
from actuators.vllm_local.processes import Processes
from agent.store import Store, audit, control
from tests.actuators.support import STANDIN, call, free_port
from tests.agent.daemons import flyball, invoke, write_settings

pytestmark = pytest.mark.timeout(300)


class Place:
    """One endpoint's settings, state and database."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.state = folder / "flyball-state" / "endpoints" / "chat"
        own = {"model": "none", "env": {"PYTHONPATH": str(STANDIN)}, "grace_s": 3.0, **options}
        self.endpoint = {
            "name": "chat",
            "url": self.url,
            "model": "tiny",
            "mode": "approve",
            "shape": {"replicas": 2, "engine": {"max_num_seqs": 4}},
            "actuator": {"system": "vllm-local", "options": own},
        }
        self.config = write_settings(folder, [self.endpoint, {"name": "foreign", "url": self.url}])
        self.store = Store(f"sqlite:///{folder}/flyball.db")

    def deploy(self, name: str = "chat") -> tuple[int, str]:
        """Exit code, and what was said."""
        ended = flyball("deploy", name, "--yes", "-c", str(self.config))
        return ended.returncode, " ".join((ended.stdout + ended.stderr).split())

    def refused(self, name: str = "chat") -> tuple[int, str]:
        """The same within this process, where nothing is to be started."""
        ended = invoke("deploy", name, "--yes", "-c", self.config)
        return ended.exit_code, " ".join(ended.output.split())

    def trail(self) -> list[tuple[str, str]]:
        with self.store.read() as db:
            return [(row["action"], row["actor"].split(":")[0]) for row in audit.entries(db, "chat")][::-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()
    teardown(made.state, grace_s=3.0)
    assert Processes(made.state).scan() == []


def test_it_puts_up_what_the_settings_state_and_notes_it(place: Place) -> None:
    code, said = place.deploy()
    assert code == 0, said
    assert "chat is up: 2 replicas, max_num_seqs=4" in said
    assert set(Processes(place.state).running()) == {"g1-0", "g1-1", "router"}
    assert call("GET", f"{place.url}/health").status == 200
    assert place.trail() == [("deploy", "cli"), ("deployed", "cli")]
    with place.store.read() as db:
        first = json.loads(audit.entries(db, "chat")[-1]["body"])
        assert audit.verify(db) is None
    assert first["after"] == {"replicas": 2, "engine": {"max_num_seqs": 4}}

    code, said = place.deploy()
    assert code == 1
    assert "runs already" in said
    assert "flyball recommendations propose chat" in said
    assert len(place.trail()) == 2, "nothing was begun"


def test_what_has_died_comes_back(place: Place) -> None:
    assert place.deploy()[0] == 0
    processes = Processes(place.state)
    for name in ("g1-0", "g1-1", "router"):
        processes.kill(name)
    code, said = place.deploy()
    assert code == 0, said
    assert set(processes.running()) == {"g2-0", "g2-1", "router"}
    assert call("GET", f"{place.url}/health").status == 200


def test_it_refuses_where_it_must(place: Place) -> None:
    place.store.upgrade()
    assert place.refused("foreign") == (1, "error foreign: its system (none) cannot deploy; start it yourself")
    assert place.refused("nobody")[0] == 2
    with place.store.write() as db:
        control.pause(db, now=time.time(), by="test", reason="wait")
    code, said = place.refused()
    assert (code, "a guardrail forbids it: paused: by test, wait; `flyball resume` first" in said) == (1, True)
    with place.store.write() as db:
        control.resume(db, now=time.time(), by="test")
        assert control.acquire(db, "deploy:chat", "another person", 600.0) is not None
    code, said = place.refused()
    assert (code, "somebody else is deploying it" in said) == (1, True)
    assert Processes(place.state).scan() == []
    assert [action for action, _ in place.trail()] == ["deploy", "deploy_failed"]


def test_a_replica_that_dies_at_its_start_is_told_with_its_log(tmp_path: Path) -> None:
    place = Place(tmp_path, args={"no_such_argument": 1})
    try:
        code, said = place.deploy()
        assert code == 1
        assert "died at start; the end of its log" in said
        assert place.trail()[-1] == ("deploy_failed", "cli")
    finally:
        place.store.close()
        teardown(place.state, grace_s=3.0)
