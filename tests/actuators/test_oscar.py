"""A service of OSCAR: scale and resources through its whole definition; compared before, resumed, taken back as it was stated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, Trouble
from actuators.oscar.actuator import OscarService
from actuators.shape import Autoscaling, Plan, Shape
from tests.actuators.support import Caller, carry_out, context, reach
from tests.fakes.oscar import PASSWORD, FakeOscar, definition

FUNCTION = definition(synchronous={"min_scale": 0, "max_scale": 5}, environment={"variables": {"MODEL": "plants"}})
EXPOSED = definition(expose={"api_port": [5000], "min_scale": 1, "max_scale": 3, "cpu_threshold": 80})
KSERVE = {
    "name": "chat",
    "image": "",
    "script": "",
    "kserve": {
        "storage_uri": "hf://m",
        "type": "inference",
        "min_scale": 1,
        "max_scale": 2,
        "cpu": "2",
        "memory": "4Gi",
    },
}
GPU = Shape(cpus=0.5, memory_gb=0.512, accelerator_count=1, autoscaling=Autoscaling(0, 100))


class Place:
    """A cluster with the service, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, oscar: FakeOscar, **options: Any) -> None:
        self.oscar = oscar
        self.caller = Caller()
        stated = {"cluster": oscar.url, "password": PASSWORD, **options}
        self.of = context(folder, oscar.url, Shape(), {k: v for k, v in stated.items() if v is not None}, self.caller)

    def make(self) -> OscarService:
        return OscarService(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))

    @property
    def body(self) -> dict[str, Any]:
        return self.oscar.services["chat"].body


@contextlib.contextmanager
def placed(folder: Path, body: dict[str, Any] = FUNCTION, **more: Any) -> Iterator[Place]:
    options, owner = more.pop("options", {}), more.pop("owner", "cluster_admin")
    oscar = FakeOscar(**more)
    oscar.add(body, owner)
    with oscar:
        yield Place(folder, oscar, **options)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (FUNCTION, Shape(cpus=1.0, memory_gb=1.074, autoscaling=Autoscaling(0, 5))),
        (definition(cpu="500m", memory="512M", enable_gpu=True), GPU),
        (EXPOSED, Shape(cpus=1.0, memory_gb=1.074, autoscaling=Autoscaling(1, 3))),
        (KSERVE, Shape(cpus=2.0, memory_gb=4.295, autoscaling=Autoscaling(1, 2))),
    ],
)  # fmt: skip
def test_the_definition_is_the_shape(tmp_path: Path, body: dict[str, Any], shape: Shape) -> None:
    with placed(tmp_path, body) as place:
        live = place.live()
        assert (live.shape, live.ready, live.serving) == (shape, True, shape.autoscaling and shape.autoscaling.least)
        assert place.oscar.writes == []


def test_without_knative_only_jobs_run_and_how_many_serve_is_unknown(tmp_path: Path) -> None:
    with placed(tmp_path, knative=False) as place:
        live = place.live()
        assert (live.ready, live.serving) == (True, None)
        after = asyncio.run(reach(place.make, live.shape.with_(cpus=2.0)))
        assert after.shape.cpus == 2.0


def test_an_update_is_of_the_whole_definition_and_goes_back_as_it_was_stated(place: Place) -> None:
    before = dict(place.body)

    async def story() -> None:
        live = await place.make().live()
        wanted = live.shape.with_(cpus=2.0, memory_gb=4.0, accelerator_count=1, autoscaling=Autoscaling(1, 8))
        plan = await place.make().plan(live, wanted)
        assert [o.name for o in plan.operations] == ["update"]
        steps = await carry_out(place.make, plan)
        assert (await place.make().live()).shape == wanted
        assert place.body == {
            **before,
            "cpu": "2",
            "memory": "4000000000",
            "enable_gpu": True,
            "synchronous": {"min_scale": 1, "max_scale": 8},
        }
        back = await place.make().back(plan, [Receipt() for _ in steps], await place.make().live())
        await carry_out(place.make, back, "b")

    asyncio.run(story())
    assert place.body == before, "1Gi, and not what it comes to"
    assert len(place.oscar.puts) == 2


@pytest.mark.parametrize(("body", "section"), [(EXPOSED, "expose"), (KSERVE, "kserve")])
def test_each_kind_of_service_has_its_own_place_for_scale_and_resources(
    tmp_path: Path, body: dict[str, Any], section: str
) -> None:
    with placed(tmp_path, body) as place:
        wanted = place.live().shape.with_(cpus=4.0, autoscaling=Autoscaling(2, 6))
        assert asyncio.run(reach(place.make, wanted)).shape == wanted
        assert (place.body[section]["min_scale"], place.body[section]["max_scale"]) == (2, 6)
        assert (place.body["kserve"] if section == "kserve" else place.body)["cpu"] == "4"


def test_an_update_takes_its_time_and_a_failed_one_is_a_failed_step(tmp_path: Path) -> None:
    with placed(tmp_path, EXPOSED, starts_s=3600.0) as place:
        plan = place.plan(cpus=2.0)
        receipt = asyncio.run(place.make().do(plan.operations[0], "c/0", None))
        step = asyncio.run(place.make().done(plan.operations[0], receipt))
        assert (step.progress, step.detail.startswith("pending")) == (Progress.PENDING, True)
        place.oscar.services["chat"].failed = "CrashLoopBackOff"
        step = asyncio.run(place.make().done(plan.operations[0], receipt))
        assert (step.progress, "CrashLoopBackOff" in step.detail) == (Progress.FAILED, True)
        assert place.live().ready is False


def test_an_answer_that_was_lost_is_no_second_write(place: Place) -> None:
    async def story() -> None:
        live = await place.make().live()
        plan = await place.make().plan(live, live.shape.with_(cpus=2.0))
        place.oscar.fail_next = 500  # done, and nobody was told
        with pytest.raises(ActuatorError) as lost:
            await place.make().do(plan.operations[0], "c/0", None)
        assert lost.value.passes
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        assert (await place.make().done(plan.operations[0], receipt)).progress is Progress.DONE

    asyncio.run(story())
    assert len(place.oscar.puts) == 1


@pytest.mark.parametrize("call", ["clear", "do"])
def test_somebody_elses_definition_voids_the_plan(place: Place, call: str) -> None:
    plan = place.plan(cpus=2.0)
    place.oscar.add({**FUNCTION, "image": "ghcr.io/ai4os/plants:2"})
    step = plan.operations[0]
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(place.make().clear(step, None) if call == "clear" else place.make().do(step, "c/0", None))
    assert refused.value.trouble is Trouble.DRIFT
    assert place.oscar.writes == []


def test_what_more_is_kept_warm_is_asked_of_the_clusters_memory(place: Place) -> None:
    (need,) = place.plan(memory_gb=4.0, autoscaling=Autoscaling(2, 5)).needs
    assert (need.wanted, need.free, need.met) == (8.0, 64.0, True)
    place.oscar.free_bytes = 1_000_000_000
    (short,) = place.plan(memory_gb=4.0, autoscaling=Autoscaling(2, 5)).needs
    assert short.met is None, "nodes may be added"
    assert place.plan(memory_gb=4.0).needs == (), "nothing is kept warm"


def test_secrets_would_be_emptied_so_such_a_service_is_only_seen(tmp_path: Path) -> None:
    body = definition(environment={"secrets": {"HF_TOKEN": "hf_secret"}})
    with placed(tmp_path, body) as place:
        assert place.live().ready
        with pytest.raises(CannotPlan, match="would empty"):
            place.plan(cpus=2.0)


def test_nothing_of_the_definition_is_in_a_plan_but_what_changes(tmp_path: Path) -> None:
    body = definition(storage_providers={"minio": {"default": {"secret_key": "minio-secret"}}})
    with placed(tmp_path, body) as place:
        assert "minio-secret" not in str(place.plan(cpus=2.0).as_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 2}, "least and most"),
        ({"autoscaling": Autoscaling(0, 0)}, "most of 1"),
        ({"autoscaling": Autoscaling(0, 5, {"cpu": 0.5})}, "no target"),
        ({"cpus": 0.0}, "above 0"),
        ({"memory_gb": 1.23456}, "three decimals"),
        ({"accelerator_count": 2}, "one GPU"),
        ({"engine": {"max_num_seqs": 4}}, "another definition"),
    ],
)
def test_what_oscar_would_not_do_is_refused(place: Place, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_only_the_owner_may_and_whoever_may_not_is_told(tmp_path: Path) -> None:
    people = {"tokens": {"ada": "ada@egi.eu", "eve": "eve@egi.eu"}, "owner": "ada@egi.eu"}
    with placed(tmp_path, **people, options={"token": "ada", "password": None}) as place:
        asyncio.run(reach(place.make, place.live().shape.with_(cpus=2.0)))
    with placed(tmp_path, **people, options={"token": "eve", "password": None}) as place:
        with pytest.raises(ActuatorError, match="token of the service's owner") as refused:
            place.live()
        assert refused.value.trouble is Trouble.DENIED
