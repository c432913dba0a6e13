"""A container's limits as it runs, another one in its place, a service's replicas: on a strict stand-in. Beside tests/real/test_docker.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, Trouble
from actuators.docker.actuator import DockerActuator
from actuators.docker.planning import creation
from actuators.shape import Plan, Shape
from collectors.docker.source import uses
from tests.actuators.support import Caller, carry_out, context, reach, until_done
from tests.fakes.docker import FakeDocker

ARGS = ("vllm", "serve", "m", "--max-num-seqs", "16", "--api-key", "very-secret")


def recorded(name: str) -> dict[str, Any]:
    file = Path(__file__).parents[2] / "../shared/data/recorded" / name
    if not file.exists():
        pytest.skip("Docker's recorded answers are not beside the project (shared/data)")
    found: dict[str, Any] = json.loads(file.read_text().strip().splitlines()[0])
    return found


class Place:
    """An engine with one container, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, docker: FakeDocker, **options: Any) -> None:
        self.docker = docker
        self.of = context(folder, "http://127.0.0.1:9", Shape(), {"host": docker.url, **options}, Caller())

    def make(self) -> DockerActuator:
        return DockerActuator(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))

    def finish(self, plan: Plan) -> None:
        async def story() -> None:
            for number, operation in enumerate(plan.finish):
                for _ in range(2):  # once more, as after a kill
                    with contextlib.suppress(ActuatorError):
                        receipt = await self.make().do(operation, f"f/{number}", None)
                assert (await until_done(self.make, operation, receipt)).progress is Progress.DONE

        asyncio.run(story())


@contextlib.contextmanager
def placed(
    folder: Path, *, options: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **docker: Any
) -> Iterator[Place]:
    with FakeDocker(**docker) as engine:
        engine.run("chat", *ARGS, **(host or {}))
        yield Place(folder, engine, **(options or {}))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


def test_limits_and_arguments_are_the_shape(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(replicas=1, cpus=1.0, memory_gb=4.0, engine={"max_num_seqs": 16})
    assert (live.ready, live.serving) == (True, 1)
    assert place.docker.writes == []


def test_cpu_and_memory_change_as_it_runs(place: Place) -> None:
    before = place.live()
    old = place.docker.named("chat")
    after = asyncio.run(reach(place.make, before.shape.with_(cpus=2.5, memory_gb=8.0)))
    assert (after.shape.cpus, after.shape.memory_gb) == (2.5, 8.0)
    assert place.docker.named("chat") is old
    assert old is not None
    assert old["HostConfig"]["MemorySwap"] == 8_000_000_000, "no more swap than before"
    back = asyncio.run(reach(place.make, before.shape, "b"))
    assert back.shape == before.shape
    assert [path for _, path in place.docker.writes] == ["/containers/ID/update"] * 2


def test_another_limit_is_another_container_beside_it_and_the_old_one_goes_after_the_verdict(place: Place) -> None:
    plan = place.plan(engine={"max_num_seqs": 64}, cpus=2.0)
    assert [o.name for o in plan.operations] == ["create", "start", "stop"]
    assert ([o.name for o in plan.finish], plan.downtime_s) == (["remove", "rename"], 0.0)
    assert "very-secret" not in str(plan.as_dict())
    old = place.docker.named("chat")
    asyncio.run(carry_out(place.make, plan))
    live = place.live()
    assert (live.shape.engine, live.shape.cpus, live.ready) == ({"max_num_seqs": 64}, 2.0, True)
    assert old is not None
    assert not old["State"]["Running"]
    place.finish(plan)
    (one,) = place.docker.containers.values()
    assert (one["Name"], one["Config"]["Env"], one["Config"]["Cmd"]) == (
        "/chat",
        ["KEY=very-secret"],
        ["vllm", "serve", "m", "--api-key", "very-secret", "--max-num-seqs", "64"],
    )
    assert place.live().version == live.version, "a name is no part of what is configured"


def test_where_it_takes_a_port_of_the_host_the_old_one_stops_first(tmp_path: Path) -> None:
    ports = {"PortBindings": {"8000/tcp": [{"HostIp": "", "HostPort": "8000"}]}}
    with placed(tmp_path, host=ports) as place:
        plan = place.plan(accelerator_count=2)
        assert ([o.name for o in plan.operations], plan.downtime_s > 0) == (["create", "stop", "start"], True)
        asyncio.run(carry_out(place.make, plan))
        assert place.live().shape.accelerator_count == 2


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_way_back_from_wherever_it_was_left(place: Place, steps: int) -> None:
    before = place.live()
    plan = place.plan(engine={"max_num_seqs": 64})

    async def story() -> None:
        receipts: list[Receipt] = []
        for number, operation in enumerate(plan.operations[:steps]):
            receipts.append(await place.make().do(operation, f"c/{number}", receipts[-1] if receipts else None))
            await until_done(place.make, operation, receipts[-1])
        back = await place.make().back(plan, receipts, await place.make().live())
        await carry_out(place.make, back, "b")

    asyncio.run(story())
    after = place.live()
    assert (after.shape, after.ready) == (before.shape, True)
    assert [c["Name"] for c in place.docker.containers.values()] == ["/chat"]


def test_one_that_ends_at_once_is_a_failed_step(tmp_path: Path) -> None:
    with placed(tmp_path, fails="no such device") as place:
        plan = place.plan(accelerator_count=1)
        steps = asyncio.run(carry_out(place.make, plan))
        assert [s.progress for s in steps] == [Progress.DONE, Progress.FAILED]
        assert "no such device" in steps[-1].detail


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_answer_that_was_lost_is_no_second_write(place: Place, step: int) -> None:
    plan = place.plan(engine={"max_num_seqs": 64})

    async def story() -> None:
        last = None
        for number, operation in enumerate(plan.operations):
            if number == step:
                place.docker.lost = 1
                with pytest.raises(ActuatorError) as lost:
                    await place.make().do(operation, f"c/{number}", last)
                assert lost.value.passes
            last = await place.make().do(operation, f"c/{number}", last)
            assert (await until_done(place.make, operation, last)).progress is Progress.DONE

    asyncio.run(story())
    assert len(place.docker.containers) == 2
    assert place.live().ready


def test_somebody_elses_limits_void_the_plan(place: Place) -> None:
    plan = place.plan(engine={"max_num_seqs": 64})
    old = place.docker.named("chat")
    assert old is not None
    old["HostConfig"]["NanoCpus"] = 3_000_000_000
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(place.make().clear(plan.operations[0], None))
    assert refused.value.trouble is Trouble.DRIFT


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpus": 64.0}, "4 CPUs"),
        ({"memory_gb": 0.001}, "has 32 GB"),
        ({"memory_gb": None}, "for the first time"),
        ({"replicas": 2}, "one replica"),
        ({"engine": {"max_num_seqs": 0}}, "above 0"),
        ({"engine": {"weight": 1}}, "known are"),
    ],
)
def test_what_docker_would_not_do_is_refused(place: Place, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_one_that_docker_removes_once_it_is_stopped_is_not_replaced(tmp_path: Path) -> None:
    with placed(tmp_path, host={"AutoRemove": True}) as place:
        with pytest.raises(CannotPlan, match="--rm"):
            place.plan(engine={"max_num_seqs": 64})
        assert place.plan(cpus=2.0).operations


def test_a_services_replicas_by_its_index_and_back(tmp_path: Path) -> None:
    with FakeDocker(start_s=0.05) as docker:
        docker.serve("chat", 2)
        place = Place(tmp_path, docker, service="chat")
        before = place.live()
        after = asyncio.run(reach(place.make, before.shape.with_(replicas=5)))
        assert (after.shape.replicas, after.serving, after.ready) == (5, 5, True)
        assert docker.services["chat"]["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["KEY=very-secret"]
        assert asyncio.run(reach(place.make, before.shape, "b")).shape == before.shape
        assert len(docker.writes) == 2


def test_a_service_that_somebody_updates_meanwhile_is_out_of_sequence_and_passes(tmp_path: Path) -> None:
    with FakeDocker() as docker:
        docker.serve("chat", 2)
        place = Place(tmp_path, docker, service="chat")
        plan = place.plan(replicas=3)
        inner = docker._service

        def raced(name: str, verb: list[str], query: Any, body: Any) -> Any:
            if verb == ["update"]:
                docker.services["chat"]["Version"]["Index"] += 1
            return inner(name, verb, query, body)

        docker._service = raced  # type: ignore[method-assign]
        with pytest.raises(ActuatorError, match="out of sequence") as refused:
            asyncio.run(place.make().do(plan.operations[0], "c/0", None))
        assert (refused.value.trouble, refused.value.passes) == (Trouble.CONFLICT, True)


def test_where_there_is_no_swarm_it_says_so(tmp_path: Path) -> None:
    with FakeDocker(swarm=False) as docker, pytest.raises(ActuatorError, match="not a swarm manager"):
        Place(tmp_path, docker, service="chat").live()


@pytest.mark.parametrize(("theirs", "spoken"), [("1.41", "v1.41"), ("1.52", "v1.47")])
def test_the_older_version_of_the_api_is_spoken(tmp_path: Path, theirs: str, spoken: str) -> None:
    with placed(tmp_path, version=theirs) as place:
        place.live()
        assert {path.split("/")[1] for _, path in place.docker.sent} == {"_ping", spoken}


def test_a_container_is_made_anew_as_a_real_one_says_it_is() -> None:
    """Of a recorded inspection: a llama-server on the host's network."""
    container = recorded("docker/container_inspect.json")
    body = creation(container, {"engine": {"max_num_seqs": 8}, "cpus": 1.0}, "mark", "llama:1")
    assert body["Cmd"][-2:] == ["--parallel", "8"]
    assert "-np" not in body["Cmd"]
    assert "Hostname" not in body, "the host's own network has the host's name"
    assert (body["HostConfig"]["NanoCpus"], body["HostConfig"]["Memory"]) == (1_000_000_000, 2_147_483_648)
    assert body["HostConfig"]["Binds"] == ["/srv/app:/m.gguf:ro"]


def test_uses_are_shares_of_what_the_container_may_use() -> None:
    """Of recorded statistics: 46,742 ns of 2 s of two cores, and 8.9 MB of 2 GiB, of a container with two CPUs."""
    stats = recorded("docker/container_stats.json")
    found = uses(stats, {"NanoCpus": 2_000_000_000})
    assert found["cpu_usage"] == pytest.approx(46_742 / 2e9)
    assert found["memory_usage"] == pytest.approx(8_912_896 / 2_147_483_648, rel=0.01)
    assert uses({}, {}) == {}, "one that does not run tells nothing"
