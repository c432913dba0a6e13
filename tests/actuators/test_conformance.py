"""What every system must do, run over each one that is registered. A system of another package is checked as far as a stage for it is known."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from pydantic import BaseModel

from actuators.base import Actuator, ActuatorError, CannotPlan, LiveState, Progress, Receipt, SystemContext, Trouble
from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Autoscaling, Operation, Plan, Purchase, Shape
from actuators.vllm_local.actuator import teardown
from tests.actuators.git_parts import FIELDS, TeamRepository
from tests.actuators.support import STANDIN, Caller, carry_out, context, eventually, free_port, reach
from tests.fakes.aws import IDENTITY, REGION, FakeAws
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.compute import add_set, add_vm
from tests.fakes.azure.ml import add_serverless, endpoint_id
from tests.fakes.azure.openai import add_deployment
from tests.fakes.azure.openai import deployment_id as model_id
from tests.fakes.docker import FakeDocker
from tests.fakes.haproxy import FakeHAProxy, FakeServer
from tests.fakes.haproxy.runtime import FORCED
from tests.fakes.kubernetes import Cluster, FakeKubernetes, manifest
from tests.fakes.litellm import MASTER_KEY, FakeProxy
from tests.fakes.modelapis import ADMIN_KEY, FakeOpenAI
from tests.fakes.nomad import FakeNomad, NomadCluster, service_job
from tests.fakes.oscar import PASSWORD, FakeOscar, definition
from tests.fakes.rayserve import FakeApplication, FakeRayServe
from tests.fakes.systemd import FakeSystemd

REGISTERED = sorted(
    [*entry_points(group="flyball.actuators"), *entry_points(group="flyball.emulations")], key=lambda e: e.name
)
OURS = {
    "azure-ml",
    "azure-maas",
    "azure-openai",
    "azure-vm",
    "docker",
    "ec2",
    "emulated",
    "git",
    "haproxy",
    "kubernetes",
    "litellm",
    "nomad",
    "none",
    "openai-api",
    "oscar",
    "ray-serve",
    "sagemaker",
    "systemd",
    "vllm-local",
}


@dataclass
class Stage:
    """A real system with one endpoint on it."""

    entry: EntryPoint
    of: SystemContext
    caller: Caller
    there: Shape | None
    """Another shape that it can reach; None where it changes nothing."""
    elsewhere: Shape | None = None
    """A third one. None: ``there`` with one replica."""

    def make(self) -> Actuator:
        made: Actuator = self.entry.load()(self.of)
        return made


SIZES = {"emu-s": Size(900.0, 120.0, 60_000), "emu-l": Size(2000.0, 300.0, 200_000)}


@contextlib.contextmanager
def _emulated(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    shape = Shape(replicas=1, size="emu-s")
    with EmulatedFleet(folder / "fleet") as fleet:
        url = fleet.start(EmulatedSpec("chat", "tiny", shape, SIZES, cold_start_s=0.1))
        caller = Caller()
        there = Shape(replicas=2, size="emu-l", engine={"max_num_seqs": 8})
        yield Stage(entry, context(folder, url, shape, {}, caller), caller, there)


@contextlib.contextmanager
def _none(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    with _emulated(entry, folder) as stage:
        yield replace(stage, there=None)


@contextlib.contextmanager
def _vllm_local(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    caller, shape = Caller(), Shape(replicas=1, engine={"max_num_seqs": 4})
    options = {"model": "none", "env": {"PYTHONPATH": str(STANDIN)}}
    of = context(folder, f"http://127.0.0.1:{free_port()}", shape, options, caller)
    stage = Stage(entry, of, caller, Shape(replicas=2, engine={"max_num_seqs": 8}))
    try:
        asyncio.run(reach(stage.make, shape, "deploy"))
        yield stage
    finally:
        teardown(folder)


@contextlib.contextmanager
def _azure_ml(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    cloud = Cloud(time.time)
    cloud.create_s = cloud.scale_s = cloud.update_s = cloud.delete_s = 0.1
    at = endpoint_id(cloud, cloud.add("chat", "Standard_F2s_v2", 1))
    with FakeAzure(cloud) as azure:
        options = {"resource": at, "credential": "token", "token": "arm-token", "arm_url": azure.url, "hold_s": 0}
        there = Shape(replicas=2, size="Standard_F4s_v2", cpus=4.0, region="westeurope")
        caller = Caller()
        yield Stage(entry, context(folder, azure.url, Shape(), options, caller), caller, there)


@contextlib.contextmanager
def _azure_vm(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    cloud = Cloud(time.time)
    cloud.scale_s = 0.1
    at = add_set(cloud).path
    with FakeAzure(cloud) as azure:
        options = {"resource": at, "credential": "token", "token": "arm-token", "arm_url": azure.url}
        there = Shape(replicas=3, size="Standard_F4s_v2", cpus=4.0, region="westeurope")
        caller = Caller()
        yield Stage(entry, context(folder, azure.url, Shape(), options, caller), caller, there)


@contextlib.contextmanager
def _azure_maas(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    cloud = Cloud(time.time)
    with FakeAzure(cloud) as azure:
        at, caller = add_serverless(cloud, "mistral"), Caller()
        options = {"resource": at, "credential": "token", "token": "arm-token", "arm_url": azure.url}
        shape = Shape(purchase=Purchase(200_000, "tokens_per_minute"))
        yield Stage(entry, context(folder, azure.url, shape, options, caller), caller, None)


@contextlib.contextmanager
def _azure_openai(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    cloud = Cloud(time.time)
    cloud.scale_s, cloud.model_quota = 0.1, {"OpenAI.GlobalStandard.gpt-4.1": 500}
    add_deployment(cloud, "chat")
    with FakeAzure(cloud) as azure:
        at = model_id(cloud, "chat")
        options = {"resource": at, "credential": "token", "token": "arm-token", "arm_url": azure.url}
        caller = Caller()
        of = context(folder, azure.url, Shape(), options, caller)
        shape = asyncio.run(entry.load()(of).live()).shape
        there, elsewhere = (shape.with_(purchase=Purchase(n, "tokens_per_minute")) for n in (90_000, 30_000))
        yield Stage(entry, of, caller, there, elsewhere)


@contextlib.contextmanager
def _kubernetes(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    server = FakeKubernetes(Cluster(time.time, start_s=0.05))
    with server as url:
        server.cluster.create("deployments", "default", manifest("chat", 1))
        caller = Caller()
        options = {"server": url, "namespace": "default", "token": "flyball-token"}
        of = context(folder, "http://chat.invalid", Shape(), options, caller)
        actuator = entry.load()(of)
        time.sleep(0.1)  # its pod comes up
        shape = asyncio.run(actuator.live()).shape
        yield Stage(entry, of, caller, shape.with_(replicas=2, engine={"max_num_seqs": 8}))


@contextlib.contextmanager
def _haproxy(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    """The real part speaks no HTTP: its commands are told as HTTP's methods would be."""
    with FakeHAProxy([FakeServer("a", 9001), FakeServer("b", 9002, admin=FORCED)], backend="chat") as haproxy:
        caller = Caller()
        haproxy.heard = lambda c: caller.sent.append(("GET" if c.startswith("show ") else "POST", c))
        of = context(folder, f"http://{haproxy.socket}", Shape(), {"socket": haproxy.socket}, caller)
        shape = asyncio.run(entry.load()(of).live()).shape
        yield Stage(entry, of, caller, shape.with_(replicas=2, engine={"weight.a": 7}))


PROXY = """\
model_list:
  - {model_name: chat, litellm_params: {model: openai/m, api_base: "http://127.0.0.1:9/v1", weight: 1}, model_info: {id: own}}
  - {model_name: chat, litellm_params: {model: openai/m, api_base: "http://127.0.0.1:9/v1", weight: 1, rpm: 60}}
"""


@contextlib.contextmanager
def _litellm(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    file = folder / "config.yaml"
    file.write_text(PROXY)
    with FakeProxy(file, starts_s=0.05) as proxy:
        options = {"config": str(file), "restart": list(proxy.restart), "key": MASTER_KEY, "group": "chat"}
        caller = Caller()
        of = context(folder, proxy.url, Shape(), options, caller)
        shape = asyncio.run(entry.load()(of).live()).shape
        there, elsewhere = (shape.with_(engine={"weight.own": w, "num_retries": 1}) for w in (3, 4))
        yield Stage(entry, of, caller, there, elsewhere)


@contextlib.contextmanager
def _git(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    team, caller = TeamRepository.make(folder / "team"), Caller()
    of = context(folder, "http://chat.invalid", Shape(), team.options(), caller)
    yield Stage(entry, of, caller, Shape(replicas=2, engine={"max_num_seqs": 8}))


@contextlib.contextmanager
def _ray_serve(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    serve = FakeRayServe(FakeApplication("chat", stated={"name": "chat", "import_path": "app:app"}), start_s=0.05)
    with serve as url:
        caller = Caller()
        of = context(folder, url, Shape(), {"dashboard": url}, caller)
        shape = asyncio.run(entry.load()(of).live()).shape
        yield Stage(entry, of, caller, shape.with_(replicas=2, engine={"max_concurrency": 7}))


@contextlib.contextmanager
def _sagemaker(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    with FakeAws(update_s=0.05) as aws:
        aws.endpoint("chat")
        caller = _reads_and_writes(aws)
        of = context(folder, aws.url, Shape(), {"region": REGION, "aws_url": aws.url}, Caller())
        shape = asyncio.run(entry.load()(of).live()).shape
        made_of = {"accelerator_count": 4, "cpus": 48.0, "memory_gb": 206.158}
        yield Stage(entry, of, caller, shape.with_(replicas=2, size="ml.g4dn.12xlarge", **made_of))


@contextlib.contextmanager
def _docker(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    with FakeDocker() as docker:
        docker.run("chat", "vllm", "serve", "m")
        caller = Caller()
        of = context(folder, "http://chat.invalid", Shape(), {"host": docker.url}, caller)
        shape = asyncio.run(entry.load()(of).live()).shape
        there = shape.with_(cpus=2.0, engine={"max_num_seqs": 8})
        yield Stage(entry, of, caller, there, there.with_(cpus=3.0))


@contextlib.contextmanager
def _ec2(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    with FakeAws(stop_s=0.05) as aws:
        caller = _reads_and_writes(aws)
        options = {"region": REGION, "aws_url": aws.url, "instance": aws.instance("g4dn.xlarge")}
        of = context(folder, aws.url, Shape(), options, Caller())
        shape = asyncio.run(entry.load()(of).live()).shape
        made_of = {"cpus": 8.0, "memory_gb": 34.36}
        there = shape.with_(size="g4dn.2xlarge", **made_of)
        yield Stage(entry, of, caller, there, there.with_(size="g4dn.4xlarge", cpus=16.0, memory_gb=68.719))


@contextlib.contextmanager
def _systemd(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    """No HTTP is spoken: files and processes alone."""
    with FakeSystemd(folder, "ARGS=--max-num-seqs 4\n") as systemd:
        options = {
            "systemctl": list(systemd.systemctl),
            "environment_file": str(systemd.file),
            "arguments": "ARGS",
            "health": None,
        }
        of = context(folder / "state", "http://chat.invalid", Shape(), options)
        yield Stage(
            entry,
            of,
            Caller(),
            Shape(replicas=1, engine={"max_num_seqs": 8}),
            Shape(replicas=1, engine={"max_num_seqs": 9}),
        )


def _reads_and_writes(aws: FakeAws) -> Caller:
    """All of Amazon's calls are POSTs: they are told as HTTP's methods would be."""
    caller = Caller()
    aws.heard = lambda _service, action, write: caller.sent.append(("POST" if write else "GET", action))
    return caller


@contextlib.contextmanager
def _nomad(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    cluster = NomadCluster(time.time)
    cluster.register(service_job())
    with FakeNomad(cluster) as url:
        caller = Caller()
        of = context(folder, url, Shape(), {"address": url}, caller)
        asyncio.run(eventually(lambda: asyncio.to_thread(lambda: asyncio.run(entry.load()(of).live()).ready)))
        shape = asyncio.run(entry.load()(of).live()).shape
        yield Stage(entry, of, caller, shape.with_(replicas=2, memory_gb=2.0, engine={"cpu_mhz": 700}))


@contextlib.contextmanager
def _oscar(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    oscar = FakeOscar(starts_s=0.05)
    oscar.add(definition())
    with oscar as url:
        caller = Caller()
        of = context(folder, url, Shape(), {"cluster": url, "password": PASSWORD}, caller)
        shape = asyncio.run(entry.load()(of).live()).shape
        there, elsewhere = (shape.with_(cpus=2.0, memory_gb=2.0, autoscaling=Autoscaling(n, 4)) for n in (1, 2))
        yield Stage(entry, of, caller, there, elsewhere)


@contextlib.contextmanager
def _openai_api(entry: EntryPoint, folder: Path) -> Iterator[Stage]:
    with FakeOpenAI({"proj_a": {"tiny": (30_000, 500)}}) as url:
        caller = Caller()
        of = context(folder, url, Shape(), {"url": url, "key": ADMIN_KEY, "project": "proj_a"}, caller)
        there, elsewhere = (
            Shape(purchase=Purchase(n, "tokens_per_minute"), engine={"requests_per_minute": 900})
            for n in (60_000, 90_000)
        )
        yield Stage(entry, of, caller, there, elsewhere)


STAGES: dict[str, Callable[[EntryPoint, Path], contextlib.AbstractContextManager[Stage]]] = {
    "docker": _docker,
    "ec2": _ec2,
    "emulated": _emulated,
    "haproxy": _haproxy,
    "git": _git,
    "kubernetes": _kubernetes,
    "litellm": _litellm,
    "nomad": _nomad,
    "none": _none,
    "openai-api": _openai_api,
    "oscar": _oscar,
    "ray-serve": _ray_serve,
    "sagemaker": _sagemaker,
    "systemd": _systemd,
    "vllm-local": _vllm_local,
    "azure-ml": _azure_ml,
    "azure-openai": _azure_openai,
    "azure-maas": _azure_maas,
    "azure-vm": _azure_vm,
}


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who we are to Amazon."""
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=REGISTERED, ids=lambda e: e.name)
def entry(request: pytest.FixtureRequest) -> EntryPoint:
    found: EntryPoint = request.param
    return found


@pytest.fixture
def stage(entry: EntryPoint, tmp_path: Path) -> Iterator[Stage]:
    if entry.name not in STAGES:
        pytest.skip(f"no stage is known for the system {entry.name}: add one to STAGES")
    with STAGES[entry.name](entry, tmp_path) as built:
        yield built


def test_ours_are_registered() -> None:
    assert {e.name for e in REGISTERED} >= OURS


def test_its_options_forbid_what_they_do_not_know_and_say_its_name(entry: EntryPoint, tmp_path: Path) -> None:
    options = import_module(entry.module).Options
    assert issubclass(options, BaseModel)
    assert options.model_config.get("extra") == "forbid"
    with pytest.raises(ActuatorError, match="modle") as refused:
        entry.load()(context(tmp_path, "http://127.0.0.1:9", Shape(replicas=1), {"modle": 1}))
    assert refused.value.code == "BAD_OPTIONS"
    assert "chat" in refused.value.detail


def test_it_says_what_it_can_change(stage: Stage) -> None:
    actuator = stage.make()
    assert actuator.system == stage.entry.name
    assert {c for c in actuator.changes if not c.startswith("engine.")} <= set(Shape.__slots__)


def test_live_only_reads_and_says_the_same_twice(stage: Stage) -> None:
    stage.caller.sent.clear()
    first, second = (asyncio.run(stage.make().live()) for _ in range(2))
    assert first == second
    assert first.ready
    assert first.version
    assert {method for method, _ in stage.caller.sent} <= {"GET"}


def test_a_plan_is_deterministic_only_reads_and_survives_json(stage: Stage) -> None:
    live = asyncio.run(stage.make().live())
    wanted = stage.there or live.shape
    stage.caller.sent.clear()
    one, two = (asyncio.run(stage.make().plan(live, wanted)) for _ in range(2))
    assert one.hash == two.hash
    assert (one.before, one.after, one.version) == (live.shape, wanted, live.version)
    assert (one.endpoint, one.system) == ("chat", stage.entry.name)
    assert Plan.from_dict(json.loads(json.dumps(one.as_dict()))).hash == one.hash
    assert all(o.deadline_s > 0 and o.summary for o in one.operations)
    assert {method for method, _ in stage.caller.sent} <= {"GET"}
    assert asyncio.run(stage.make().live()) == live


def test_the_way_back_from_a_plan_of_which_nothing_was_done_does_nothing(stage: Stage) -> None:
    live = asyncio.run(stage.make().live())
    plan = asyncio.run(stage.make().plan(live, stage.there or live.shape))
    assert asyncio.run(stage.make().back(plan, [], live)).operations == ()


def test_the_plan_to_where_it_is_does_nothing(stage: Stage) -> None:
    live = asyncio.run(stage.make().live())
    plan = asyncio.run(stage.make().plan(live, live.shape))
    assert (plan.operations, plan.restarts, plan.downtime_s) == ((), False, 0.0)


def test_there_and_back_with_every_step_done_twice(stage: Stage) -> None:
    if stage.there is None:
        pytest.skip(f"{stage.entry.name} changes nothing")
    there = stage.there

    async def story() -> None:
        before = await stage.make().live()
        plan = await stage.make().plan(before, there)
        assert plan.operations
        await carry_out(stage.make, plan, "go")
        after = await stage.make().live()
        assert (after.shape, after.ready) == (there, True)
        assert after.version != before.version
        last = plan.operations[-1]
        receipt = await stage.make().do(last, f"go/{len(plan.operations) - 1}", None)  # once more, long after
        assert (await stage.make().done(last, receipt)).progress is Progress.DONE
        assert await stage.make().live() == after
        back = await reach(stage.make, before.shape, "back")
        assert (back.shape, back.ready) == (before.shape, True)
        assert back.version not in (before.version, after.version)

    asyncio.run(story())


def test_a_plan_of_yesterday_changes_nothing_today(stage: Stage) -> None:
    if stage.there is None:
        pytest.skip(f"{stage.entry.name} changes nothing")
    there, today = stage.there, stage.elsewhere or stage.there.with_(replicas=1)

    async def story() -> None:
        old = await stage.make().plan(await stage.make().live(), there)
        live = await reach(stage.make, today, "today")
        for operation in old.operations:  # refused, or there is nothing to be done any more
            with contextlib.suppress(ActuatorError):
                await stage.make().do(operation, "yesterday/0", None)
        assert (await stage.make().live()).version == live.version

        async def anew() -> None:
            await stage.make().clear(old.operations[0], None)
            await stage.make().do(old.operations[0], "yesterday/0", None)

        with pytest.raises(ActuatorError) as refused:
            await anew()
        assert refused.value.trouble is Trouble.DRIFT

    asyncio.run(story())


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "spot"},
        {"purchase": Purchase(10, "ptu")},
        {"autoscaling": Autoscaling(1, 2)},
        {"replicas": None},
        {"replicas": -1},
    ],
)
def test_what_it_cannot_do_is_a_clear_refusal(stage: Stage, change: dict[str, object]) -> None:
    live = asyncio.run(stage.make().live())
    if live.shape.autoscaling is not None:  # its bounds can be changed, and no count be given beside them
        instead: dict[str, object] = {"autoscaling": Autoscaling(3, 1), "replicas": 3}
        change = {name: instead.get(name, value) for name, value in change.items()}
    if live.shape.with_(**change) == live.shape:
        pytest.skip(f"{stage.entry.name} has no {', '.join(change)}")
    with pytest.raises(CannotPlan) as refused:
        asyncio.run(stage.make().plan(live, live.shape.with_(**change)))
    assert refused.value.code.isupper()
    assert len(refused.value.detail) > 20


def test_an_unknown_step_is_refused(stage: Stage) -> None:
    step = Operation("paint_it_red", {}, 1.0, "")
    with pytest.raises(ActuatorError):
        asyncio.run(stage.make().clear(step, None))
    with pytest.raises(ActuatorError):
        asyncio.run(stage.make().do(step, "t", None))
    with pytest.raises(ActuatorError):
        asyncio.run(stage.make().done(step, Receipt({"token": "t"})))


def test_nobody_there_is_said_and_nothing_else_raised(entry: EntryPoint, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    azure = {
        "resource": endpoint_id(Cloud(time.time), Cloud(time.time).add("chat")),
        "credential": "token",
        "token": "t",
    }
    options = {
        "vllm-local": {"model": "m"},
        "azure-ml": {**azure, "arm_url": url},
        "azure-vm": {
            "resource": add_vm(Cloud(time.time)).path,
            "credential": "token",
            "token": "t",
            "arm_url": url,
        },
        "azure-maas": {
            "resource": add_serverless(Cloud(time.time), "mistral"),
            "credential": "token",
            "token": "t",
            "arm_url": url,
        },
        "azure-openai": {
            "resource": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g/providers/Microsoft.CognitiveServices/accounts/a/deployments/d",
            "credential": "token",
            "token": "t",
            "arm_url": url,
        },
        "haproxy": {"socket": url.removeprefix("http://")},
        "kubernetes": {"server": url, "token": "t"},
        "git": {"repository": f"{url}/deploy.git", "fields": FIELDS},
        "nomad": {"address": url},
        "openai-api": {"url": url, "key": "k", "project": "proj_a"},
        "oscar": {"cluster": url},
        "ray-serve": {"dashboard": url},
        "sagemaker": {"region": REGION, "aws_url": url},
        "docker": {"host": url},
        "systemd": {"systemctl": ["sh", "-c", f"echo Failed to connect to bus at {url} >&2; exit 1"]},
        "ec2": {"region": REGION, "aws_url": url, "instance": "i-0123"},
    }.get(entry.name, {})
    of = context(tmp_path, url, Shape(replicas=1), options)
    live: LiveState | None = None
    error: ActuatorError | None = None
    try:
        live = asyncio.run(entry.load()(of).live())
    except ActuatorError as raised:
        error = raised
    if live is not None:
        assert live.detail
        assert not live.ready or live.shape.replicas == 0
    else:
        assert error is not None
        assert error.passes
        assert of.url.removeprefix("http://") in error.detail
