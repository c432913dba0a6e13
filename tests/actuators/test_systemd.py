"""A unit's environment file and its restart, with a stand-in for systemctl and real processes: every other byte kept, undone to the byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, Trouble
from actuators.shape import Plan, Shape
from actuators.systemd.actuator import SystemdService
from actuators.systemd.environment import EnvironmentFile
from agent.clock import WallClock
from collectors.discovery import DiscoveryContext
from collectors.sessions import Sessions
from collectors.systemd.discover import SystemdSystem
from tests.actuators.support import Caller, carry_out, context, reach, until_done
from tests.fakes.systemd import FakeSystemd

FILE = """\
# Ours. Ask Ada.
HF_TOKEN=hf-very-secret
ARGS="--max-num-seqs 16 --max-model-len=4096"
"""


class Place:
    """One unit, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, systemd: FakeSystemd, **options: Any) -> None:
        self.systemd = systemd
        stated = {
            "systemctl": list(systemd.systemctl),
            "environment_file": str(systemd.file),
            "arguments": "ARGS",
            "health": None,
        }
        self.of = context(folder / "state", "http://127.0.0.1:9", Shape(), {**stated, **options}, Caller())

    def make(self) -> SystemdService:
        return SystemdService(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **engine: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(engine=engine)))


@contextlib.contextmanager
def placed(folder: Path, text: str = FILE, **options: Any) -> Iterator[Place]:
    with FakeSystemd(folder, text) as systemd:
        yield Place(folder, systemd, **options)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


def test_limits_of_the_file_are_the_shape(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(replicas=1, engine={"max_num_seqs": 16, "max_model_len": 4096})
    assert (live.ready, live.serving) == (True, 1)
    assert place.systemd.restarts == []


def test_a_change_keeps_every_other_byte_and_goes_back_to_the_very_file(place: Place) -> None:
    plan = place.plan(max_num_seqs=64)
    assert ([o.name for o in plan.operations], [o.name for o in plan.finish]) == (["write", "restart"], ["forget"])
    assert "hf-very-secret" not in str(plan.as_dict())
    steps = asyncio.run(carry_out(place.make, plan))
    assert [s.progress for s in steps] == [Progress.DONE] * 2
    assert place.systemd.file.read_text() == FILE.replace(
        "--max-num-seqs 16 --max-model-len=4096", "--max-model-len=4096 --max-num-seqs 64"
    )
    assert place.systemd.file.stat().st_mode & 0o777 == 0o640
    assert place.systemd.restarts == ["--max-model-len=4096 --max-num-seqs 64"], "once, though each step was done twice"
    back = asyncio.run(place.make().back(plan, [Receipt()] * 2, place.live()))
    assert [o.name for o in back.operations] == ["restore", "restart", "forget"]
    asyncio.run(carry_out(place.make, back, "b"))
    assert place.systemd.file.read_text() == FILE
    assert len(place.systemd.restarts) == 2
    assert place.live().ready
    assert not list((place.of.state_dir).glob("*.env")), "the copy may hold keys, and is gone"


@pytest.mark.parametrize("name", ["write", "restart"])
def test_a_receipt_that_was_lost_is_no_second_write_nor_restart(place: Place, name: str) -> None:
    plan = place.plan(max_num_seqs=64)

    async def story() -> None:
        last = None
        for number, operation in enumerate(plan.operations):
            if operation.name == name:
                await place.make().do(operation, f"c/{number}", last)
            last = await place.make().do(operation, f"c/{number}", last)
            assert (await until_done(place.make, operation, last)).progress is Progress.DONE

    asyncio.run(story())
    assert len(place.systemd.restarts) == 1
    assert place.live().ready


def test_one_that_does_not_come_up_is_a_failed_step_and_the_file_goes_back(place: Place) -> None:
    plan = place.plan(max_num_seqs=64)
    place.systemd.set(command="false")

    async def story() -> list[Receipt]:
        receipts: list[Receipt] = []
        for number, operation in enumerate(plan.operations):
            receipts.append(await place.make().do(operation, f"c/{number}", receipts[-1] if receipts else None))
            if operation.name == "write":
                await until_done(place.make, operation, receipts[-1])
        for _ in range(200):  # until the process has ended
            step = await place.make().done(plan.operations[-1], receipts[-1])
            if step.progress is Progress.FAILED:
                break
            await asyncio.sleep(0.02)
        assert (step.progress, "journalctl" in step.detail) == (Progress.FAILED, True)
        return receipts

    receipts = asyncio.run(story())
    place.systemd.set(command="sleep 1000")
    back = asyncio.run(place.make().back(plan, receipts, place.live()))
    asyncio.run(carry_out(place.make, back, "b"))
    assert place.systemd.file.read_text() == FILE
    assert place.live().ready


def test_somebody_elses_line_is_kept_on_the_way_back(place: Place) -> None:
    plan = place.plan(max_num_seqs=64)
    asyncio.run(carry_out(place.make, plan))
    place.systemd.file.write_text(place.systemd.file.read_text() + "NEW=1\n")
    back = asyncio.run(place.make().back(plan, [Receipt()] * 2, place.live()))
    assert [o.name for o in back.operations] == ["write", "restart"], "by the limits alone"
    asyncio.run(carry_out(place.make, back, "b"))
    assert place.systemd.file.read_text().endswith("NEW=1\n")
    assert place.live().shape.engine["max_num_seqs"] == 16


def test_somebody_elses_write_voids_the_plan(place: Place) -> None:
    plan = place.plan(max_num_seqs=64)
    place.systemd.file.write_text(FILE + "NEW=1\n")
    for call in ("clear", "do"):
        with pytest.raises(ActuatorError) as refused:
            asyncio.run(
                place.make().clear(plan.operations[0], None)
                if call == "clear"
                else place.make().do(plan.operations[0], "c/0", None)
            )
        assert refused.value.trouble is Trouble.DRIFT


def test_a_file_that_is_newer_than_the_process_is_said_and_restarted(place: Place) -> None:
    place.systemd.file.write_text(FILE.replace("16", "32"))
    live = place.live()
    assert (live.ready, "until its next restart" in live.detail) == (False, True)
    plan = place.plan()
    assert [o.name for o in plan.operations] == ["restart"]
    asyncio.run(carry_out(place.make, plan))
    assert place.live().ready


def test_a_restart_that_polkit_refuses_is_denied(place: Place) -> None:
    plan = place.plan(max_num_seqs=64)
    place.systemd.set(denied=True)
    receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))
    with pytest.raises(ActuatorError, match="authentication") as refused:
        asyncio.run(place.make().do(plan.operations[1], "c/1", receipt))
    assert refused.value.trouble is Trouble.DENIED


def test_a_variable_of_its_own_holds_a_limit(tmp_path: Path) -> None:
    with placed(tmp_path, "SEQS=16\n", arguments=None, variables={"max_num_seqs": "SEQS"}) as place:
        assert asyncio.run(reach(place.make, Shape(replicas=1, engine={"max_num_seqs": 8}))).shape.engine == {
            "max_num_seqs": 8
        }
        assert place.systemd.file.read_text() == "SEQS=8\n"
        with pytest.raises(CannotPlan, match="no variable holds max_model_len"):
            place.plan(max_model_len=1024)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ARGS=--max-num-seqs $N\n", "by hand"),
        ('ARGS="--name \\"a b\\" --max-num-seqs 4"\n', "by hand"),
        ("X=1\n", "not in the file"),
    ],
)
def test_what_systemd_would_read_otherwise_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with placed(tmp_path, text) as place, pytest.raises(CannotPlan, match=said):
        place.plan(max_num_seqs=8)


def test_the_last_line_of_a_variable_counts() -> None:
    file = EnvironmentFile("A='--max-num-seqs 4'\r\nA=--max-num-seqs 8\n", "A", {})
    assert file.engine == {"max_num_seqs": 8}
    assert file.with_engine({"max_num_seqs": 9}) == "A='--max-num-seqs 4'\r\nA=--max-num-seqs 9\n"


def test_it_is_found_with_its_file_and_its_variable(place: Place) -> None:
    async def story() -> None:
        options = {"systemctl": list(place.systemd.systemctl)}
        of = DiscoveryContext(Caller(), WallClock(), Sessions(), options)
        (found,) = [f async for f in SystemdSystem().discover(of)]
        assert found.settings["url"] == "http://127.0.0.1:8000"
        held = found.settings["actuator"]["options"]
        assert (held["unit"], held["environment_file"], held["arguments"]) == (
            "chat.service",
            str(place.systemd.file),
            "ARGS",
        )
        permissions = await SystemdSystem().permitted(of, found.settings)
        assert [p.granted for p in permissions] == [True, True, True, True, None]

    asyncio.run(story())


def test_a_unit_that_is_not_there_is_drift(tmp_path: Path) -> None:
    with (
        placed(tmp_path, unit="other.service") as place,
        pytest.raises(ActuatorError, match=r"other\.service") as refused,
    ):
        place.live()
    assert refused.value.trouble is Trouble.DRIFT
