"""A real Docker Engine: limits as it runs, another container in its place and back, a swarm's service; its refusals and statistics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from actuators.base import ActuatorError, LiveState, Progress, Receipt
from actuators.docker.actuator import DockerActuator
from actuators.shape import Plan, Shape
from agent.clock import WallClock
from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveryContext
from collectors.docker.discover import DockerSystem
from collectors.docker.source import make
from collectors.http import Http
from collectors.sessions import Sessions
from tests.actuators.support import Caller, carry_out, context, reach, until_done
from tests.real.docker_part import IMAGE, RunningDocker, docker

T = TypeVar("T")

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def engine() -> Iterator[RunningDocker]:
    with docker() as running:
        yield running


class Place:
    def __init__(self, folder: Path, engine: RunningDocker, **options: Any) -> None:
        self.engine = engine
        self.folder = folder
        self.options = {"host": engine.host, **options}
        self._made: list[Sessions] = []

    def make(self) -> DockerActuator:
        """A new client each time: a connection to a socket is of one event loop."""
        of = context(self.folder, "http://127.0.0.1:9", Shape(), self.options, Caller())
        self._made.append(of.sessions)
        return DockerActuator(of)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On a loop of its own, with all clients closed at its end."""

        async def closing() -> T:
            try:
                return await work
            finally:
                for sessions in self._made:
                    await sessions.aclose()

        return asyncio.run(closing())

    def live(self) -> LiveState:
        return self.run(self.make().live())

    def reach(self, wanted: Shape, change: str = "c") -> LiveState:
        return self.run(reach(self.make, wanted, change, limit_s=60))

    def plan(self, **changes: Any) -> Plan:
        async def planned() -> Plan:
            live = await self.make().live()
            return await self.make().plan(live, live.shape.with_(**changes))

        return self.run(planned())


def test_limits_change_as_it_runs_and_come_back(engine: RunningDocker, tmp_path: Path) -> None:
    engine.run("limits", "llama-server", "--parallel", "4", "--port", "18181")
    place = Place(tmp_path, engine, container="limits")
    before = place.live()
    assert before.ready
    assert before.shape == Shape(replicas=1, cpus=1.0, memory_gb=(64 << 20) / 1e9, engine={"max_num_seqs": 4})
    started = engine.ask("GET", "/containers/limits/json")["State"]["StartedAt"]
    after = place.reach(before.shape.with_(cpus=0.5, memory_gb=0.1))
    assert (after.shape.cpus, after.shape.memory_gb) == (0.5, 0.1)
    assert engine.ask("GET", "/containers/limits/json")["HostConfig"]["MemorySwap"] == 100_000_000
    back = place.reach(before.shape, "b")
    assert (back.shape, back.ready) == (before.shape, True)
    assert engine.ask("GET", "/containers/limits/json")["State"]["StartedAt"] == started, "it was never restarted"


def test_another_container_takes_its_place_and_the_old_one_goes_after_the_verdict(
    engine: RunningDocker, tmp_path: Path
) -> None:
    engine.run("args", "llama-server", "--parallel", "4")
    place = Place(tmp_path, engine, container="args", stop_s=1)
    plan = place.plan(engine={"max_num_seqs": 8})
    assert [o.name for o in plan.operations] == ["create", "stop", "start"], "it has the host's network"
    steps = place.run(carry_out(place.make, plan))
    assert [s.progress for s in steps] == [Progress.DONE] * 3, steps
    assert engine.names()["args"] == "exited"
    assert engine.names()["args-next"] == "running"

    async def finish() -> None:
        for number, operation in enumerate(plan.finish):
            receipt = await place.make().do(operation, f"f/{number}", None)
            assert (await until_done(place.make, operation, receipt)).progress is Progress.DONE

    place.run(finish())
    assert "args-next" not in engine.names()
    one = engine.ask("GET", "/containers/args/json")
    assert (one["Config"]["Cmd"], one["Config"]["Image"]) == (["llama-server", "--parallel", "8"], IMAGE)
    assert "KEY=very-secret" in one["Config"]["Env"]
    assert (one["HostConfig"]["NanoCpus"], one["HostConfig"]["NetworkMode"]) == (1_000_000_000, "host")


def test_one_that_ends_at_once_fails_and_the_old_one_is_started_again(engine: RunningDocker, tmp_path: Path) -> None:
    engine.run("fails", "llama-server", "--parallel", "4")
    place = Place(tmp_path, engine, container="fails", stop_s=1)
    plan = place.plan(engine={"max_num_seqs": 13})

    async def story() -> None:
        receipts: list[Receipt] = []
        progress = Progress.DONE
        for number, operation in enumerate(plan.operations):
            receipts.append(await place.make().do(operation, f"c/{number}", receipts[-1] if receipts else None))
            if operation.name == "start":
                await asyncio.sleep(0.5)  # until the process has ended
            progress = (await until_done(place.make, operation, receipts[-1])).progress
        assert progress is Progress.FAILED
        back = await place.make().back(plan, receipts, await place.make().live())
        await carry_out(place.make, back, "b")

    place.run(story())
    live = place.live()
    assert (live.shape.engine, live.ready) == ({"max_num_seqs": 4}, True)
    assert "fails-next" not in engine.names()


def test_a_services_replicas_and_an_index_that_is_old(engine: RunningDocker, tmp_path: Path) -> None:
    engine.ask("POST", "/swarm/init", {"ListenAddr": "127.0.0.1:23777", "AdvertiseAddr": "127.0.0.1"})
    try:
        inner = {"Image": IMAGE, "Args": ["llama-server", "--parallel", "4"]}
        task = {"ContainerSpec": inner, "Networks": [{"Target": "host"}]}
        engine.ask(
            "POST", "/services/create", {"Name": "svc", "TaskTemplate": task, "Mode": {"Replicated": {"Replicas": 1}}}
        )
        place = Place(tmp_path, engine, service="svc")
        _until(lambda: place.live().ready)
        before = place.live()
        after = place.reach(before.shape.with_(replicas=3))
        assert (after.shape.replicas, after.serving) == (3, 3)
        service = engine.ask("GET", "/services/svc")
        with pytest.raises(Exception, match="update out of sequence"):
            engine.ask("POST", f"/services/{service['ID']}/update", service["Spec"], version=1)
        assert place.reach(before.shape, "b").shape == before.shape
        engine.ask("DELETE", "/services/svc")
    finally:
        engine.ask("POST", "/swarm/leave", force="true")


def _until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the service does not run"
        time.sleep(0.2)


def test_what_the_engine_refuses_has_its_own_words(engine: RunningDocker, tmp_path: Path) -> None:
    engine.run("refused", "llama-server")
    with pytest.raises(Exception, match="Range of CPUs is from"):
        engine.ask("POST", "/containers/refused/update", {"NanoCpus": 999_000_000_000})
    with pytest.raises(Exception, match="Minimum memory limit allowed is 6MB"):
        engine.ask("POST", "/containers/refused/update", {"Memory": 1000})
    with pytest.raises(ActuatorError, match="no container"):
        Place(tmp_path, engine, container="nobody").live()


def test_it_is_found_and_its_uses_are_read(engine: RunningDocker) -> None:
    engine.run("seen", "llama-server", "--port", "18182")

    async def story() -> None:
        http, sessions = Http(), Sessions()
        try:
            options = {"host": engine.host}
            discovery = DiscoveryContext(http.call, WallClock(), sessions, options)
            found = {f.name: f async for f in DockerSystem().discover(discovery)}
            assert found["seen"].settings["url"] == "http://127.0.0.1:18182"
            assert set(found["seen"].settings["sources"]) == {"llamacpp", "docker"}
            permissions = await DockerSystem().permitted(discovery, None)
            assert [p.granted for p in permissions] == [True, None]
            stated = {**options, "container": "seen"}
            source = make(SourceContext("seen", None, http, WallClock(), sessions, stated))
            (reading,) = await source.read(ScrapeTarget("seen", ""))
            assert 0 <= reading.gauges["cpu_usage"] <= 1.5
            assert 0 < reading.gauges["memory_usage"] < 1
        finally:
            await sessions.aclose()
            await http.aclose()

    asyncio.run(story())
