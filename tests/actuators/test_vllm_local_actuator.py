"""The system ``vllm-local`` against real processes. What they run is a stand-in server: see ``standin``."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, Progress, Receipt
from actuators.shape import Shape
from actuators.vllm_local.actuator import VllmLocal, teardown
from actuators.vllm_local.processes import Processes
from tests.actuators.support import STANDIN, Caller, call, carry_out, context, eventually, free_port, reach, until_done


class Place:
    """One endpoint's folder and address."""

    def __init__(self, state_dir: Path, **options: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state_dir = state_dir
        self.caller = Caller()
        self.now = 0.0
        self.options = {"model": "none", "env": {"PYTHONPATH": str(STANDIN)}, "grace_s": 5.0, **options}

    def make(self) -> VllmLocal:
        """A new actuator: what was before it is known from the folder and the processes alone."""
        of = context(self.state_dir, self.url, Shape(replicas=1), self.options, self.caller)
        return VllmLocal(of, monotonic=lambda: self.now)

    def who(self) -> Any:
        return json.loads(call("GET", f"{self.url}/who").body)

    def running(self) -> dict[str, int]:
        return {n: len(p) for n, p in Processes(self.state_dir).running().items()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path / "state")
    teardown(tmp_path / "state", grace_s=3.0)
    assert Processes(tmp_path / "state").scan() == []


def seqs(number: int, replicas: int = 1, **more: Any) -> Shape:
    return Shape(replicas=replicas, engine={"max_num_seqs": number, **more})


class Stream(threading.Thread):
    """A client that reads one stream through the router."""

    def __init__(self, place: Place, tokens: int, every_s: float) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=30)
        self.connection.request("POST", "/v1/completions", json.dumps({"tokens": tokens, "every_s": every_s}))
        self.answer = self.connection.getresponse()
        self.first = self.answer.readline()
        self.rest = b""
        self.start()

    def run(self) -> None:
        try:
            self.rest = self.answer.read()
        except http.client.IncompleteRead as broken:
            self.rest = broken.partial
        finally:
            self.connection.close()

    def text(self) -> str:
        self.join(30)
        return (self.first + self.rest).decode()


def test_nothing_there_is_a_valid_state_and_a_plan_deploys(place: Place) -> None:
    async def story() -> None:
        live = await place.make().live()
        assert (live.shape.replicas, live.targets, live.ready) == (0, {}, True)
        assert "nothing is deployed" in live.detail
        assert (await place.make().plan(live, live.shape)).operations == ()
        live = await reach(place.make, seqs(4, replicas=2))
        assert (live.shape, live.ready, sorted(live.targets), live.detail) == (seqs(4, 2), True, ["g1-0", "g1-1"], "")
        assert {place.who()["pid"] for _ in range(4)} == {
            json.loads(call("GET", u).body)["pid"] for u in live.targets.values()
        }
        assert place.running() == {"g1-0": 1, "g1-1": 1, "router": 1}
        again = await place.make().plan(live, live.shape)
        assert again.operations == ()
        assert again.hash == (await place.make().plan(live, live.shape)).hash

    asyncio.run(story())


def test_a_change_overlaps_and_a_stream_in_flight_ends_whole(place: Place) -> None:
    async def story() -> None:
        before = await reach(place.make, seqs(2))
        stream = Stream(place, tokens=40, every_s=0.05)
        plan = await place.make().plan(before, seqs(8))
        assert [o.name for o in plan.operations] == [
            "start_replicas",
            "switch",
            "drain",
            "stop_replicas",
            "kill_replicas",
        ]
        assert (plan.restarts, plan.downtime_s) == (True, 0.0)
        await carry_out(place.make, plan)
        text = stream.text()
        assert text.count("data: 2 ") == 40
        assert text.endswith("data: [DONE]\n\n")
        live = await place.make().live()
        assert (live.shape, live.ready, list(live.targets)) == (seqs(8), True, ["g2-0"])
        assert live.version != before.version
        assert place.who()["max_num_seqs"] == 8
        assert place.running() == {"g2-0": 1, "router": 1}
        assert "--max-num-seqs', '2'" in (place.state_dir / "logs" / "g1-0.log").read_text()

    asyncio.run(story())


def test_scaling_keeps_the_replicas_that_fit(place: Place) -> None:
    async def story() -> None:
        one = await reach(place.make, seqs(4), "a")
        two = await reach(place.make, seqs(4, 2), "b")
        assert set(one.targets.items()) < set(two.targets.items())
        none = await reach(place.make, seqs(4, 0), "c")
        assert (none.shape.replicas, none.ready, place.running()) == (0, True, {"router": 1})
        refused = call("GET", place.url)
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")

    asyncio.run(story())


def test_without_room_for_both_the_old_one_goes_first(tmp_path: Path) -> None:
    place = Place(tmp_path, devices=["0"])

    async def story() -> None:
        before = await reach(place.make, seqs(2), "a")
        plan = await place.make().plan(before, seqs(8))
        names = ["switch", "drain", "stop_replicas", "kill_replicas", "start_replicas", "switch"]
        assert [o.name for o in plan.operations] == names
        assert plan.downtime_s > 0
        live = await reach(place.make, seqs(8), "b")
        assert (live.shape, live.ready, place.running()) == (seqs(8), True, {"g2-0": 1, "router": 1})
        with pytest.raises(CannotPlan, match="NO_FREE_DEVICE"):
            await place.make().plan(live, seqs(8, 2))

    try:
        asyncio.run(story())
    finally:
        teardown(tmp_path)


def test_a_replica_that_dies_at_start_fails_the_step_with_its_log_and_leaves_what_served(place: Place) -> None:
    async def story() -> None:
        before = await reach(place.make, seqs(2), "a")
        plan = await place.make().plan(before, seqs(8, fail_at_start=True))
        steps = await carry_out(place.make, plan, "b")
        assert [s.progress for s in steps] == [Progress.FAILED]
        assert "the stand-in was told to fail" in steps[0].detail
        with pytest.raises(ActuatorError, match="REPLICA_DIED"):
            await place.make().do(plan.operations[1], "b/1", None)
        live = await place.make().live()
        assert (live.version, live.ready, place.who()["max_num_seqs"]) == (before.version, True, 2)
        assert (await place.make().plan(live, before.shape)).operations == ()

    asyncio.run(story())


def test_a_change_left_in_the_middle_is_cleaned_up_by_the_way_back(place: Place) -> None:
    async def story() -> None:
        before = await reach(place.make, seqs(2), "a")
        plan = await place.make().plan(before, seqs(8))
        await place.make().do(plan.operations[0], "b/0", None)
        live = await place.make().live()
        assert (live.shape, live.version) == (before.shape, before.version)
        assert "g2-0 run and serve nobody" in live.detail
        back = await place.make().plan(live, before.shape)
        assert [o.name for o in back.operations] == ["stop_replicas", "kill_replicas"]
        await carry_out(place.make, back, "c")
        assert place.running() == {"g1-0": 1, "router": 1}
        assert (await place.make().plan(live, seqs(8))).operations[0].args["replicas"] == {"g2-0": None}

    asyncio.run(story())


def test_a_dead_replica_shows_with_its_log_and_is_replaced(place: Place) -> None:
    async def story() -> None:
        live = await reach(place.make, seqs(2, 2), "a")
        os.kill(Processes(place.state_dir).running()["g1-0"][0].pid, signal.SIGKILL)

        async def told() -> bool:  # a process is killed before it is gone
            return "g1-0 has died" in (await place.make().live()).detail

        await eventually(told)
        live = await place.make().live()
        assert not live.ready
        assert "g1-0" not in place.running()
        assert "stand-in started" in live.detail
        assert place.who()["max_num_seqs"] == 2  # the router goes on with the other
        live = await reach(place.make, live.shape, "b")
        assert (live.ready, sorted(live.targets)) == (True, ["g1-1", "g2-0"])

    asyncio.run(story())


def test_a_dead_router_shows_and_comes_back(place: Place) -> None:
    async def story() -> None:
        before = await reach(place.make, seqs(2), "a")
        os.kill(Processes(place.state_dir).running()["router"][0].pid, signal.SIGKILL)
        await eventually(lambda: "router" not in place.running())
        live = await place.make().live()
        assert not live.ready
        assert "router does not answer" in live.detail
        live = await reach(place.make, live.shape, "b")
        assert (live.ready, live.targets) == (True, before.targets)

    asyncio.run(story())


def test_one_that_ignores_sigterm_is_killed_after_its_grace_with_its_children(place: Place) -> None:
    async def story() -> None:
        before = await reach(place.make, seqs(2, ignore_sigterm=True, with_child=True), "a")
        await eventually(lambda: place.running()["g1-0"] == 2)
        plan = await place.make().plan(before, seqs(2, 0, ignore_sigterm=True, with_child=True))
        switch, drain, stop, kill = plan.operations
        for number, operation in enumerate((switch, drain)):
            receipt = await place.make().do(operation, f"b/{number}", None)
            assert (await until_done(place.make, operation, receipt)).progress is Progress.DONE
        await place.make().do(stop, "b/2", None)
        assert (await place.make().done(stop, Receipt({"token": "b/2"}))).progress is Progress.PENDING
        place.now += 4.9
        assert (await place.make().done(stop, Receipt({"token": "b/2"}))).progress is Progress.PENDING
        place.now += 0.2
        late = await place.make().done(stop, Receipt({"token": "b/2"}))
        assert late.progress is Progress.DONE
        assert "did not end within 5 s" in late.detail
        assert place.running()["g1-0"] == 2
        receipt = await place.make().do(kill, "b/3", None)
        assert (await until_done(place.make, kill, receipt)).progress is Progress.DONE
        assert place.running() == {"router": 1}

    asyncio.run(story())


def test_a_plan_that_somebody_overtook_switches_nothing(place: Place) -> None:
    async def story() -> None:
        before = await reach(place.make, seqs(2), "a")
        stale = await place.make().plan(before, seqs(4))
        live = await reach(place.make, seqs(8), "b")
        assert live.version != stale.version
        switch = next(o for o in stale.operations if o.name == "switch")
        with pytest.raises(ActuatorError, match="STALE_PLAN"):
            await place.make().do(switch, "c/1", None)
        serving = next(iter(live.targets))
        stop = next(o for o in stale.operations if o.name == "kill_replicas")
        hostile = type(stop)(stop.name, {"replicas": [serving]}, 1.0, "")
        with pytest.raises(ActuatorError, match="STALE_PLAN"):
            await place.make().do(hostile, "c/2", None)
        assert place.who()["max_num_seqs"] == 8

    asyncio.run(story())


def test_settings_that_changed_after_the_plan_void_it(place: Place) -> None:
    async def story() -> None:
        plan = await place.make().plan(await place.make().live(), seqs(2))
        place.options["args"] = {"health_after": 0.0}
        with pytest.raises(ActuatorError, match="SETTINGS_CHANGED"):
            await place.make().do(plan.operations[0], "a/0", None)
        assert place.running() == {}

    asyncio.run(story())


def test_reading_and_planning_send_only_reads(place: Place) -> None:
    async def story() -> None:
        live = await reach(place.make, seqs(2))
        files = {p: p.read_bytes() for p in place.state_dir.rglob("*.json")}
        place.caller.sent.clear()
        await place.make().live()
        await place.make().plan(live, seqs(8, 3))
        assert {method for method, _ in place.caller.sent} == {"GET"}
        assert {p: p.read_bytes() for p in place.state_dir.rglob("*.json")} == files
        assert place.running() == {"g1-0": 1, "router": 1}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (Shape(), "INCOMPLETE_SHAPE"),
        (Shape(replicas=-1), "INCOMPLETE_SHAPE"),
        (Shape(replicas=1, size="Standard_F8s"), "UNSUPPORTED_CHANGE"),
        (Shape(replicas=1, engine={"port": 80}), "BAD_ENGINE_LIMIT"),
        (Shape(replicas=1, engine={"max num; rm": 80}), "BAD_ENGINE_LIMIT"),
    ],
)
def test_what_it_cannot_do_it_says(place: Place, wanted: Shape, code: str) -> None:
    async def story() -> None:
        actuator = place.make()
        with pytest.raises(CannotPlan) as refused:
            await actuator.plan(await actuator.live(), wanted)
        assert refused.value.code == code

    asyncio.run(story())


@pytest.mark.parametrize(
    "options", [{}, {"model": "m", "modle": 1}, {"model": "m", "args": {"--port": 1}}, {"model": "m", "listen": "x"}]
)
def test_wrong_options_name_the_field(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ActuatorError, match="BAD_OPTIONS"):
        VllmLocal(context(tmp_path, "http://127.0.0.1:1", Shape(), options))


def test_a_broken_state_file_stops_everything_rather_than_guessing(place: Place) -> None:
    place.state_dir.mkdir()
    (place.state_dir / "serving.json").write_text('{"generation": 1}')
    with pytest.raises(ActuatorError, match="STATE_UNREADABLE"):
        asyncio.run(place.make().live())
