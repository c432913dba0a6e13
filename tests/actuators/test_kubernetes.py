"""Workloads of a cluster, against a stand-in for the API server that answers as a recorded real one did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actuators.base import ActuatorError, CannotPlan, LiveState, Owner, Progress, Receipt, SystemContext, Trouble
from actuators.kubernetes import spec
from actuators.kubernetes.actuator import KubernetesWorkload
from actuators.shape import Autoscaling, Need, Plan, Shape
from agent.clock import VirtualClock
from collectors.kubernetes.workloads import KINDS, ClusterWorkload, WorkloadId
from collectors.sessions import Sessions
from tests.actuators.support import Caller
from tests.fakes.kubernetes import Cluster, FakeKubernetes, manifest

HPA = {
    "metadata": {"name": "chat"},
    "spec": {
        "scaleTargetRef": {"kind": "Deployment", "name": "chat"},
        "minReplicas": 1,
        "maxReplicas": 4,
        "metrics": [
            {
                "type": "External",
                "external": {
                    "metric": {"name": "queue_depth"},
                    "target": {"type": "AverageValue", "averageValue": "5"},
                },
            }
        ],
    },
}
SCALED_OBJECT = {
    "metadata": {"name": "chat"},
    "spec": {
        "scaleTargetRef": {"name": "chat"},
        "minReplicaCount": 1,
        "maxReplicaCount": 4,
        "triggers": [{"type": "prometheus", "name": "waiting", "metadata": {"query": "sum(x)", "threshold": "5"}}],
    },
}


class Place:
    """A cluster with one workload, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.cluster = Cluster(self.clock.now)
        self.server = FakeKubernetes(self.cluster)
        self.folder = folder
        self.options: dict[str, Any] = {"namespace": "default", "token": "flyball-token"}

    def make(self) -> KubernetesWorkload:
        options = {"server": self.server.url, **self.options}
        return KubernetesWorkload(
            SystemContext(
                "chat",
                "http://chat.invalid",
                "tiny",
                Shape(),
                self.folder,
                Caller(),
                self.clock,
                Sessions(),
                {},
                options,
            )
        )

    def deploy(self, body: dict[str, Any], kind: str = "deployments") -> None:
        self.cluster.create(kind, "default", body)
        self.later(60)

    def later(self, seconds: float) -> None:
        self.clock.set(self.clock.now() + seconds)

    async def with_(self, call: Callable[[KubernetesWorkload], Awaitable[Any]]) -> Any:
        """One call of one actuator, whose connections end with it."""
        made = self.make()
        try:
            return await call(made)
        finally:
            await made.context.sessions.aclose()

    def live(self) -> LiveState:
        found: LiveState = asyncio.run(self.with_(lambda a: a.live()))
        return found

    def plan(self, wanted: Shape, live: LiveState | None = None) -> Plan:
        seen = live or self.live()
        made: Plan = asyncio.run(self.with_(lambda a: a.plan(seen, wanted)))
        return made

    def carry_out(self, operations: Any, seconds: float = 120.0, *, resumed: bool = False) -> list[Receipt]:
        """Each step cleared, done twice under its token, and followed until it is done. ``resumed``: what was begun is not cleared."""
        receipts: list[Receipt] = []

        async def story() -> None:
            last: Receipt | None = None
            for i, operation in enumerate(operations):
                if not resumed:
                    await self.with_(lambda a, o=operation, r=last: a.clear(o, r))
                token = f"c:{i}"
                receipt = await self.with_(lambda a, o=operation, r=last, t=token: a.do(o, t, r))
                assert await self.with_(lambda a, o=operation, r=last, t=token: a.do(o, t, r)) == receipt
                for _ in range(100):
                    step = await self.with_(lambda a, o=operation, r=receipt: a.done(o, r))
                    if step.progress is not Progress.PENDING:
                        break
                    self.later(seconds / 20)
                assert step.progress is Progress.DONE, step.detail
                receipts.append(receipt)
                last = receipt

        asyncio.run(story())
        return receipts

    def object(self, resource: str, name: str = "chat") -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get(resource, "default", name)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    with made.server:
        yield made


def _vllm(*args: str, **labels: str) -> dict[str, Any]:
    return manifest("chat", 2, "--max-num-seqs", "64", *args, **labels)


# -- seeing ------------------------------------------------------------------------------------------------------------


def test_what_is_configured_and_what_serves(place: Place) -> None:
    place.deploy(_vllm("--port=8100"))
    live = place.live()
    assert live.shape == Shape(
        replicas=2, size="g2-standard-8", accelerator="L4", accelerator_count=1, cpus=4.0,
        memory_gb=16 * 2**30 / 1e9, engine={"max_num_seqs": 64},
    )  # fmt: skip
    assert (live.ready, live.serving, live.owner, live.detail) == (True, 2, None, "")
    assert len(live.targets) == 2
    assert all(url.startswith("http://127.0.1.") and url.endswith(":8100") for url in live.targets.values())
    assert {m for m, _ in place.server.requests} == {"GET"}


def test_a_rollout_that_is_not_at_its_end_is_not_ready(place: Place) -> None:
    place.cluster.create("deployments", "default", _vllm())
    live = place.live()
    assert (live.ready, live.serving) == (False, 0)
    assert "0 of 2 serve" in live.detail
    assert live.targets == {}


def test_a_replica_that_dies_is_no_other_version(place: Place) -> None:
    place.deploy(_vllm())
    before = place.live()
    pod = next(k for k in place.cluster.objects if k[0] == "pods")
    del place.cluster.objects[pod]
    after = place.live()
    assert after.version == before.version
    assert not after.ready


def test_a_workload_that_is_not_there_and_a_cluster_that_is_away(place: Place) -> None:
    with pytest.raises(ActuatorError, match=r"Deployment default/chat is not there") as missing:
        place.live()
    assert missing.value.trouble is Trouble.DRIFT
    place.cluster.down = True
    with pytest.raises(ActuatorError) as down:
        place.live()
    assert (down.value.trouble, down.value.passes) == (Trouble.UNREACHABLE, True)


def test_a_wrong_token_and_a_lacking_permission_are_named(place: Place) -> None:
    place.deploy(_vllm())
    place.options["token"] = "wrong"
    with pytest.raises(ActuatorError, match=r"Unauthorized.*flyball permissions kubernetes") as refused:
        place.live()
    assert refused.value.trouble is Trouble.DENIED
    place.options["token"] = "flyball-token"
    place.cluster.denied.add(("list", "pods"))
    with pytest.raises(ActuatorError, match='cannot list resource "pods"'):
        place.live()


def test_throttled_nobody_is_asked_before_the_time(place: Place) -> None:
    place.deploy(_vllm())
    place.cluster.throttle_s = 7
    made = place.make()

    async def story() -> None:
        with pytest.raises(ActuatorError) as first:
            await made.live()
        assert (first.value.trouble, first.value.retry_after_s) == (Trouble.THROTTLED, 7.0)
        asked = len(place.server.requests)
        with pytest.raises(ActuatorError):
            await made.live()
        assert len(place.server.requests) == asked
        place.later(8)
        assert (await made.live()).ready
        await made.context.sessions.aclose()

    asyncio.run(story())


def test_many_endpoints_of_a_cluster_cost_list_calls_and_not_reads_of_their_own(place: Place) -> None:
    sessions, names = Sessions(), [f"m{i}" for i in range(200)]
    for name in names:
        place.cluster.create("deployments", "default", manifest(name, 1))

    async def story() -> None:
        options = {"server": place.server.url, **place.options}
        made = [
            KubernetesWorkload(
                SystemContext(n, "http://x", None, Shape(), place.folder, Caller(), place.clock, sessions, {}, options)
            )
            for n in names
        ]
        await asyncio.gather(*(a.live() for a in made))
        await sessions.aclose()

    asyncio.run(story())
    assert len(place.server.requests) < 10


# -- the count ---------------------------------------------------------------------------------------------------------


def test_replicas_by_the_scale_subresource_in_our_own_name(place: Place) -> None:
    place.deploy(_vllm())
    before = place.live()
    plan = place.plan(before.shape.with_(replicas=3), before)
    assert [o.name for o in plan.operations] == ["scale"]
    assert (plan.finish, plan.restarts) == ((), False)
    (receipt,) = place.carry_out(plan.operations)
    assert place.cluster.written == [("PATCH", "/apis/apps/v1/namespaces/default/deployments/chat/scale", "flyball")]
    after = place.live()
    assert (after.shape.replicas, after.ready, after.version) == (3, True, receipt.leaves)
    assert after.version != before.version
    back = asyncio.run(place.with_(lambda a: a.back(plan, [receipt], after)))
    place.carry_out(back.operations)
    assert place.live().shape == before.shape


def test_what_is_refused_by_a_dry_run_is_never_sent(place: Place) -> None:
    place.deploy(_vllm())
    plan = place.plan(place.live().shape.with_(replicas=4))
    place.cluster.quota = 3
    with pytest.raises(ActuatorError, match="exceeded quota") as refused:
        place.carry_out(plan.operations)
    assert refused.value.trouble is Trouble.QUOTA
    assert place.server.writes == []


def test_somebody_who_scaled_since_is_drift(place: Place) -> None:
    place.deploy(_vllm())
    plan = place.plan(place.live().shape.with_(replicas=3))
    place.object("deployments")["spec"]["replicas"] = 5
    with pytest.raises(ActuatorError, match="has 5 replicas and not 2") as refused:
        place.carry_out(plan.operations)
    assert refused.value.trouble is Trouble.DRIFT
    assert place.server.writes == []


def test_a_rollout_that_cannot_come_to_its_end_says_why(place: Place) -> None:
    place.deploy(_vllm())
    plan = place.plan(place.live().shape.with_(engine={"max_num_seqs": 128}))
    place.cluster.stuck = True

    async def story() -> None:
        (operation,) = plan.operations
        receipt = await place.with_(lambda a: a.do(operation, "t", None))
        assert (await place.with_(lambda a: a.done(operation, receipt))).progress is Progress.PENDING
        place.later(700)
        step = await place.with_(lambda a: a.done(operation, receipt))
        assert (step.progress, "timed out progressing" in step.detail) == (Progress.FAILED, True)

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["StatefulSet", "LeaderWorkerSet"])
def test_other_kinds_scale_and_roll_alike(kind: str, place: Place) -> None:
    body = _vllm()
    if kind == "LeaderWorkerSet":
        inner = body["spec"].pop("template")
        inner["spec"]["containers"].append({"name": "proxy", "image": "envoy"})
        body["spec"]["leaderWorkerTemplate"] = {"size": 4, "workerTemplate": inner}
    place.deploy(body, f"{kind.lower()}s")
    place.options["kind"] = kind
    before = place.live()
    if kind == "LeaderWorkerSet":
        assert (before.shape.accelerator_count, before.shape.extra) == (4, {"group_size": 4})
    plan = place.plan(before.shape.with_(replicas=3, engine={"max_num_seqs": 32}), before)
    assert [o.name for o in plan.operations] == ["patch_template", "scale"]
    place.carry_out(plan.operations)
    after = place.live()
    assert (after.shape, after.ready) == (before.shape.with_(replicas=3, engine={"max_num_seqs": 32}), True)
    if kind == "LeaderWorkerSet":
        holds = place.object("leaderworkersets")["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"]
        assert [c["name"] for c in holds] == ["vllm", "proxy"], "the other container stays"


def _group() -> dict[str, Any]:
    """Four pods a replica; the leader serves, beside a proxy."""
    body = _vllm("--port", "8080")
    leader = body["spec"].pop("template")
    leader["spec"]["containers"].insert(0, {"name": "proxy", "image": "envoy", "args": ["-c", "x"]})
    worker = manifest("chat", 1, gpus=2)["spec"]["template"]
    worker["spec"]["containers"][0]["args"] = ["ray", "start"]
    body["spec"]["leaderWorkerTemplate"] = {"size": 4, "leaderTemplate": leader, "workerTemplate": worker}
    return body


def test_of_a_group_the_leader_serves_and_is_changed(place: Place) -> None:
    place.deploy(_group(), "leaderworkersets")
    place.options["kind"] = "LeaderWorkerSet"
    worker = next(k for k in place.cluster.objects if k[0] == "pods")
    place.object("pods", worker[2])["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] = "1"
    before = place.live()
    assert (before.shape.engine, before.shape.accelerator_count) == ({"max_num_seqs": 64}, 1 + 3 * 2)
    assert [u.rsplit(":", 1)[1] for u in before.targets.values()] == ["8080"], "a worker tells nothing"
    workers = dict(place.object("leaderworkersets")["spec"]["leaderWorkerTemplate"]["workerTemplate"])
    plan = place.plan(before.shape.with_(engine={"max_num_seqs": 128}, cpus=6.0), before)
    assert plan.downtime_s == 1800.0, "no group surges, so that fewer serve meanwhile"
    place.carry_out(plan.operations)
    inner = place.object("leaderworkersets")["spec"]["leaderWorkerTemplate"]
    assert inner["workerTemplate"] == workers
    proxy, vllm = inner["leaderTemplate"]["spec"]["containers"]
    assert proxy["args"] == ["-c", "x"]
    assert vllm["args"][-2:] == ["--max-num-seqs", "128"]
    limits = vllm["resources"]["limits"]
    assert (limits["cpu"], limits["nvidia.com/gpu"]) == ("6000m", "1"), "what it does not name stays"


def test_a_status_that_may_be_of_before_ends_no_rollout(place: Place) -> None:
    place.cluster.start_s = 0.0
    place.deploy(_group(), "leaderworkersets")
    place.options["kind"] = "LeaderWorkerSet"
    (operation,) = place.plan(place.live().shape.with_(engine={"max_num_seqs": 128})).operations

    async def story() -> None:
        receipt = await place.with_(lambda a: a.do(operation, "t", None))
        assert (await place.with_(lambda a: a.done(operation, receipt))).progress is Progress.PENDING
        place.later(31)
        assert (await place.with_(lambda a: a.done(operation, receipt))).progress is Progress.DONE

    asyncio.run(story())


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_status_leaves_out_is_zero(kind: str) -> None:
    """Right after a new template no pod is of it, and the API server leaves zeros out."""
    serve = {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "observedGeneration": 2}
    body = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": serve}
    workload = ClusterWorkload(WorkloadId("default", kind, "chat"), body, None, ())
    assert spec.ready_of(workload)[0] is False
    rolled = replace(workload, body={**body, "status": {**serve, "updatedReplicas": 2}})
    assert spec.ready_of(rolled) == (True, 2, "")


@pytest.mark.parametrize(
    ("kind", "held", "said"),
    [
        ("Deployment", {"paused": True}, "its rollouts are paused"),
        ("StatefulSet", {"updateStrategy": {"type": "OnDelete"}}, "OnDelete"),
        ("StatefulSet", {"updateStrategy": {"rollingUpdate": {"partition": 1}}}, "partition"),
    ],
)
def test_a_template_that_would_not_come_to_all_pods_is_refused(
    kind: str, held: dict[str, Any], said: str, place: Place
) -> None:
    body = _vllm()
    body["spec"] |= held
    place.deploy(body, f"{kind.lower()}s")
    place.options["kind"] = kind
    live = place.live()
    with pytest.raises(CannotPlan, match=said):
        place.plan(live.shape.with_(engine={"max_num_seqs": 128}), live)
    assert place.plan(live.shape.with_(replicas=3), live).operations, "the count may change"


@pytest.mark.parametrize(("strategy", "seconds"), [("RollingUpdate", 0.0), ("Recreate", 1800.0)])
def test_in_a_rollout_that_ends_all_pods_first_nothing_serves(strategy: str, seconds: float, place: Place) -> None:
    body = _vllm()
    body["spec"]["strategy"] = {"type": strategy}
    place.deploy(body)
    live = place.live()
    assert place.plan(live.shape.with_(engine={"max_num_seqs": 128}), live).downtime_s == seconds
    assert place.plan(live.shape.with_(replicas=3), live).downtime_s == 0.0


# -- autoscalers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "body", "kind", "target"),
    [("horizontalpodautoscalers", HPA, "hpa", "queue_depth"), ("scaledobjects", SCALED_OBJECT, "keda", "waiting")],
)
def test_an_autoscaler_owns_the_count_and_its_bounds_are_tuned(
    resource: str, body: dict[str, Any], kind: str, target: str, place: Place
) -> None:
    place.cluster.wants = lambda _now: 3
    place.deploy(_vllm())
    place.cluster.create(resource, "default", body)
    place.later(60)
    live = place.live()
    assert live.shape.autoscaling == Autoscaling(1, 4, {target: 5.0})
    assert (live.shape.replicas, live.serving) == (None, 3)
    assert live.owner == Owner(kind, "chat", frozenset({"replicas"}))
    with pytest.raises(CannotPlan, match=f"{kind} chat sets the replicas"):
        place.plan(live.shape.with_(replicas=2), live)

    place.cluster.wants = lambda _now: 4  # it moves the count: what was approved stays so
    place.later(60)
    assert place.live().version == live.version

    wanted = live.shape.with_(autoscaling=Autoscaling(2, 6, {target: 2.5}))
    plan = place.plan(wanted, live)
    assert [o.name for o in plan.operations] == ["set_bounds"]
    assert plan.needs == (Need("nvidia.com/gpu", 2.0, -4.0, may_grow=True),), (
        "no node has a GPU, and four pods ask for one"
    )
    place.carry_out(plan.operations)
    assert place.live().shape.autoscaling == Autoscaling(2, 6, {target: 2.5})
    assert [m for _, _, m in place.cluster.written] == ["flyball"]
    back = asyncio.run(_back(place, plan))
    place.carry_out(back.operations)
    assert place.live().shape.autoscaling == Autoscaling(1, 4, {target: 5.0})


async def _back(place: Place, plan: Plan) -> Plan:
    live = await place.with_(lambda a: a.live())
    made: Plan = await place.with_(lambda a: a.back(plan, [], live))
    return made


def test_an_hpa_whose_metric_fails_wants_nothing_and_is_not_read_as_zero(place: Place) -> None:
    place.deploy(_vllm())
    place.cluster.create("horizontalpodautoscalers", "default", HPA)
    place.later(60)
    assert place.object("horizontalpodautoscalers")["status"]["desiredReplicas"] == 0
    live = place.live()
    assert (live.serving, live.ready) == (2, True)


@pytest.mark.parametrize("bounds", [Autoscaling(5, 2), Autoscaling(0, 0), Autoscaling(1, 4, {"strange": 1.0})])
def test_bounds_that_no_autoscaler_takes_are_refused(bounds: Autoscaling, place: Place) -> None:
    place.deploy(_vllm())
    place.cluster.create("horizontalpodautoscalers", "default", HPA)
    live = place.live()
    with pytest.raises(CannotPlan):
        place.plan(live.shape.with_(autoscaling=bounds), live)


def test_two_triggers_of_one_type_keep_their_own_thresholds(place: Place) -> None:
    waiting, busy = (
        {"type": "prometheus", "metadata": {"query": q, "threshold": t}} for q, t in (("a", "5"), ("b", "0.80"))
    )
    place.deploy(_vllm())
    body = {**SCALED_OBJECT, "spec": {**SCALED_OBJECT["spec"], "triggers": [waiting, busy]}}  # type: ignore[dict-item]
    place.cluster.create("scaledobjects", "default", body)
    live = place.live()
    assert live.shape.autoscaling == Autoscaling(1, 4, {"prometheus": 5.0, "prometheus#2": 0.8})
    wanted = Autoscaling(1, 4, {"prometheus": 2.5, "prometheus#2": 0.8})
    place.carry_out(place.plan(live.shape.with_(autoscaling=wanted), live).operations)
    assert place.live().shape.autoscaling == wanted
    first, second = place.object("scaledobjects")["spec"]["triggers"]
    assert first["metadata"] == {"query": "a", "threshold": "2.5"}
    assert second == busy, "written as it was"


def test_a_share_is_written_in_whole_percent_and_the_other_metrics_stay(place: Place) -> None:
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}
    place.deploy(_vllm())
    metrics = [*HPA["spec"]["metrics"], cpu]  # type: ignore[index]
    place.cluster.create("horizontalpodautoscalers", "default", {**HPA, "spec": {**HPA["spec"], "metrics": metrics}})  # type: ignore[dict-item]
    live = place.live()
    assert live.shape.autoscaling == Autoscaling(1, 4, {"queue_depth": 5.0, "cpu": 0.6})
    wanted = Autoscaling(1, 4, {"queue_depth": 5.0, "cpu": 0.755})
    place.carry_out(place.plan(live.shape.with_(autoscaling=wanted), live).operations)
    first, second = place.object("horizontalpodautoscalers")["spec"]["metrics"]
    assert first == metrics[0]
    assert second["resource"]["target"] == {"type": "Utilization", "averageUtilization": 76}


@pytest.mark.parametrize("mark", [{"paused": "true"}, {"paused-replicas": "2"}])
def test_an_autoscaler_that_somebody_paused_is_left_alone(mark: dict[str, str], place: Place) -> None:
    place.deploy(_vllm())
    annotations = {f"autoscaling.keda.sh/{k}": v for k, v in mark.items()}
    place.cluster.create(
        "scaledobjects", "default", {**SCALED_OBJECT, "metadata": {"name": "chat", "annotations": annotations}}
    )
    live = place.live()
    assert (live.shape.replicas, live.shape.autoscaling) == (2, None)
    assert live.owner == Owner("keda", "chat", frozenset({"replicas"}))
    for wanted in (live.shape.with_(replicas=3), live.shape.with_(replicas=None, autoscaling=Autoscaling(1, 5))):
        with pytest.raises(CannotPlan, match="somebody paused the ScaledObject"):
            place.plan(wanted, live)
    place.carry_out(place.plan(live.shape.with_(engine={"max_num_seqs": 128}), live).operations)
    resumed = place.object("scaledobjects")
    resumed["metadata"]["annotations"] = {}
    assert place.live().shape.autoscaling == Autoscaling(1, 4, {"waiting": 5.0})


# -- who owns the manifest -----------------------------------------------------------------------------------------------


def test_where_gitops_owns_the_manifest_the_plan_is_a_patch(place: Place) -> None:
    place.cluster.gitops_s = 60.0
    place.deploy(_vllm(**{"argocd.argoproj.io/instance": "models"}))
    live = place.live()
    assert live.owner == Owner("argocd", "models", frozenset({"*"}))
    plan = place.plan(live.shape.with_(replicas=3, engine={"max_num_seqs": 128}), live)
    assert (plan.operations, plan.finish) == ((), ())
    assert plan.by_hand is not None
    assert plan.by_hand.startswith("# Deployment default/chat is owned by argocd (models)")
    template, scale = yaml.safe_load_all(plan.by_hand)
    assert scale["spec"] == {"replicas": 3}
    (container,) = template["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["--model", "tiny", "--max-num-seqs", "128"]
    assert (template["kind"], template["metadata"]["name"]) == ("Deployment", "chat")


def test_one_who_writes_back_unseen_is_found_out(place: Place) -> None:
    """No label says so: only that what was written does not stay."""
    place.deploy(_vllm())
    plan = place.plan(place.live().shape.with_(replicas=3))
    place.cluster.gitops_s = 1.0

    async def story() -> None:
        (operation,) = plan.operations
        receipt = await place.with_(lambda a: a.do(operation, "t", None))
        place.later(120)
        step = await place.with_(lambda a: a.done(operation, receipt))
        assert step.progress is Progress.FAILED
        assert "set Deployment default/chat back" in step.detail

    asyncio.run(story())


# -- engine, CPU, memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "then"),
    [
        (["--max-num-seqs", "64"], ["--model", "tiny", "--max-num-seqs", "96"]),
        (["--max-num-seqs=64", "--port", "8000"], ["--model", "tiny", "--port", "8000", "--max-num-seqs", "96"]),
        (["--max_num_seqs", "64"], ["--model", "tiny", "--max-num-seqs", "96"]),
        ([], ["--model", "tiny", "--max-num-seqs", "96"]),
        (["--max-num-seqs", "8", "--max-num-seqs=64"], ["--model", "tiny", "--max-num-seqs", "96"]),
    ],
)
def test_engine_limits_however_they_were_written(args: list[str], then: list[str], place: Place) -> None:
    place.deploy(manifest("chat", 2, *args))
    plan = place.plan(place.live().shape.with_(engine={"max_num_seqs": 96}))
    assert plan.restarts
    place.carry_out(plan.operations)
    (container,) = place.object("deployments")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == then
    assert place.live().ready


def test_limits_in_a_shells_command_line_are_seen_and_not_rewritten(place: Place) -> None:
    body = _vllm()
    (container,) = body["spec"]["template"]["spec"]["containers"]
    container["command"], container["args"] = ["sh", "-c"], ["vllm serve tiny --max-num-seqs 48 # tuned by hand"]
    place.deploy(body)
    live = place.live()
    assert live.shape.engine == {"max_num_seqs": 48}
    with pytest.raises(CannotPlan, match="change them by hand"):
        place.plan(live.shape.with_(engine={"max_num_seqs": 96}), live)


def test_arguments_that_are_the_images_own_are_not_replaced(place: Place) -> None:
    body = _vllm()
    del body["spec"]["template"]["spec"]["containers"][0]["args"]
    place.deploy(body)
    live = place.live()
    with pytest.raises(CannotPlan, match="the image's own"):
        place.plan(live.shape.with_(engine={"max_num_seqs": 96}), live)


@pytest.mark.parametrize(("wanted", "name"), [({"cpus": 2.0}, "cpu"), ({"memory_gb": 8.0}, "memory")])
@pytest.mark.parametrize("resize", ["rolling", "in_place"])
def test_a_size_that_is_not_stated_is_not_changed(
    resize: str, wanted: dict[str, float], name: str, place: Place
) -> None:
    body = _vllm()
    for part in body["spec"]["template"]["spec"]["containers"][0]["resources"].values():
        del part[name]
    place.options["resize"] = resize
    place.deploy(body)
    live = place.live()
    with pytest.raises(CannotPlan, match=f"states no {name}"):
        place.plan(live.shape.with_(**wanted), live)


def test_cpu_and_memory_by_a_rollout(place: Place) -> None:
    place.deploy(_vllm())
    before = place.live()
    plan = place.plan(before.shape.with_(cpus=6.0, memory_gb=24.0), before)
    assert [o.name for o in plan.operations] == ["patch_template"]
    place.carry_out(plan.operations)
    after = place.live()
    assert (after.shape.cpus, after.shape.memory_gb, after.ready) == (6.0, 24.0, True)
    assert after.shape.accelerator_count == 1


def _burstable() -> dict[str, Any]:
    body = manifest("chat", 2, gpus=0)
    (container,) = body["spec"]["template"]["spec"]["containers"]
    container["resources"] = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}
    return body


def test_in_place_the_running_pods_first_and_the_template_after_the_verdict(place: Place) -> None:
    place.options["resize"] = "in_place"
    place.deploy(_burstable())
    before = place.live()
    pods = [k[2] for k in place.cluster.objects if k[0] == "pods"]
    plan = place.plan(before.shape.with_(cpus=3.0), before)
    assert ([o.name for o in plan.operations], [o.name for o in plan.finish]) == (["resize_pods"], ["patch_template"])
    receipts = place.carry_out(plan.operations)
    assert [k[2] for k in place.cluster.objects if k[0] == "pods"] == pods, "no pod was replaced"
    assert all(place.object("pods", p)["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "3000m" for p in pods)
    back = asyncio.run(place.with_(lambda a: a.back(plan, receipts, before)))
    assert [o.name for o in back.operations] == ["resize_pods"]
    place.carry_out(back.operations)
    assert all(place.object("pods", p)["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "2000m" for p in pods)


def test_in_place_where_no_node_has_room(place: Place) -> None:
    place.options["resize"] = "in_place"
    place.deploy(_burstable())
    plan = place.plan(place.live().shape.with_(cpus=3.0))
    place.cluster.infeasible = True

    async def story() -> None:
        (operation,) = plan.operations
        receipt = await place.with_(lambda a: a.do(operation, "t", None))
        step = await place.with_(lambda a: a.done(operation, receipt))
        assert (step.progress, "too little cpu" in step.detail) == (Progress.FAILED, True)

    asyncio.run(story())


def test_gpus_that_more_replicas_need_are_told(place: Place) -> None:
    node = {"metadata": {"name": "n1"}, "status": {"allocatable": {"nvidia.com/gpu": "4", "cpu": "32"}}}
    place.cluster.create("nodes", "", node)
    place.deploy(_vllm())
    live = place.live()
    assert place.plan(live.shape.with_(replicas=5), live).needs == (Need("nvidia.com/gpu", 3.0, 2.0, may_grow=True),)
    assert place.plan(live.shape.with_(replicas=1), live).needs == ()
    place.cluster.create("nodes", "", {**node, "metadata": {"name": "n2"}, "spec": {"unschedulable": True}})
    assert place.plan(live.shape.with_(replicas=5), live).needs == (Need("nvidia.com/gpu", 3.0, 2.0, may_grow=True),), (
        "n2 is drained"
    )
    pod = next(k for k in place.cluster.objects if k[0] == "pods")
    place.object("pods", pod[2])["spec"]["nodeName"] = "n2"
    place.later(60)
    assert place.plan(live.shape.with_(replicas=5), live).needs == (Need("nvidia.com/gpu", 3.0, 3.0, may_grow=True),), (
        "and so is who is there"
    )
    place.cluster.denied.add(("list", "nodes"))
    assert place.plan(live.shape.with_(replicas=5), live).needs == (Need("nvidia.com/gpu", 3.0, None, may_grow=True),)


def test_what_it_cannot_do_is_a_clear_refusal(place: Place) -> None:
    place.deploy(_vllm())
    live = place.live()
    for wanted in (
        live.shape.with_(size="a3-highgpu-8g"),
        live.shape.with_(accelerator="H100"),
        live.shape.with_(replicas=None),
        live.shape.with_(replicas=-1),
        live.shape.with_(autoscaling=Autoscaling(1, 2)),
        live.shape.with_(engine={"foo": 1}),
        replace(live.shape, tier="spot"),
    ):
        with pytest.raises(CannotPlan) as refused:
            place.plan(wanted, live)
        assert len(refused.value.detail) > 20
    assert place.server.writes == []


def test_the_plan_to_where_it_is_does_nothing(place: Place) -> None:
    place.deploy(_vllm())
    live = place.live()
    assert place.plan(live.shape, live).operations == ()


def test_a_kill_between_any_two_calls_is_no_second_write(place: Place) -> None:
    """Killed after each request in turn, gone on with by another process under the same token."""
    for died_after in range(1, 9):
        place.cluster.objects.clear()
        place.cluster.written.clear()
        place.deploy(_vllm())
        plan = place.plan(place.live().shape.with_(engine={"max_num_seqs": 128}))
        (operation,) = plan.operations

        class Killed(BaseException):
            pass

        really, left = place.server.answer, [died_after]

        def answer(*args: Any, really: Any = really, left: list[int] = left) -> Any:
            left[0] -= 1
            said = really(*args)
            if left[0] == 0:
                place.cluster.down = True  # its answer never arrives, and this process sends nothing more
                return 503, {}, {}
            return said

        place.server.answer = answer  # type: ignore[method-assign]

        async def first(operation: Any = operation) -> None:
            await place.with_(lambda a: a.do(operation, "t", None))

        with contextlib.suppress(ActuatorError):
            asyncio.run(first())
        place.server.answer, place.cluster.down = really, False  # type: ignore[method-assign]
        place.carry_out(plan.operations, resumed=True)
        assert len(place.cluster.written) == 1, died_after
        assert place.live().shape.engine == {"max_num_seqs": 128}
