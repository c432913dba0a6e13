"""``flyball discover git`` and what is allowed, on a real bare repository."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actuators.base import CannotPlan
from actuators.git.actuator import GitFiles
from actuators.shape import Schedule, ScheduleStep, Shape
from agent.schedules import plan_of
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.git.discover import GitSystem
from collectors.sessions import Sessions
from collectors.window import CollectError
from tests.actuators.git_parts import CHAT, FIELDS, TeamRepository
from tests.actuators.support import Caller, context, free_port
from tests.collectors.clocks import MachineClock

SCALED = """\
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: chat}
spec:
  scaleTargetRef: {name: chat}
  minReplicaCount: 1
  maxReplicaCount: 4
"""
OTHERS = {
    "deploy/web.yaml": CHAT.replace("vllm", "nginx").replace("name: chat", "name: web"),
    "charts/templates/x.yaml": "{{ if .Values.on }}\nkind: Deployment\n{{ end }}\n",
    "README.md": "vllm",
}


def asking(**options: Any) -> DiscoveryContext:
    return DiscoveryContext(Caller(), MachineClock(), Sessions(), options)


def found(**options: Any) -> list[DiscoveredEndpoint]:
    async def every() -> list[DiscoveredEndpoint]:
        return [each async for each in GitSystem().discover(asking(**options))]

    return asyncio.run(every())


def test_a_workload_that_serves_a_model_is_an_endpoint_whose_fields_are_found(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", {"deploy/chat.yaml": CHAT, **OTHERS})
    (chat,) = found(repository=str(team.bare), token="secret-of-mine-1")
    assert chat.settings["name"] == "chat"
    assert chat.settings["actuator"]["options"] == {
        "repository": str(team.bare),
        "branch": "main",
        "fields": {
            "replicas": "deploy/chat.yaml#spec.replicas",
            "engine.max_num_seqs": "deploy/chat.yaml#spec.template.spec.containers[0].args[--max-num-seqs]",
        },
        "token": "${GIT_TOKEN}",
    }
    options = {**chat.settings["actuator"]["options"], "token": None}
    live = asyncio.run(GitFiles(context(tmp_path, "http://x", Shape(), options)).live())
    assert live.shape == Shape(replicas=1, engine={"max_num_seqs": 4}), "what was found is read"


def test_where_an_autoscaler_sets_the_count_its_bounds_are_the_fields(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", {"deploy/chat.yaml": CHAT, "deploy/so.yaml": SCALED})
    (chat,) = found(repository=str(team.bare))
    fields = chat.settings["actuator"]["options"]["fields"]
    assert "replicas" not in fields
    assert fields["autoscaling.most"] == "deploy/so.yaml#spec.maxReplicaCount"


def permitted(**options: Any) -> list[Permission]:
    entry = {"actuator": {"system": "git", "options": options}}
    return list(asyncio.run(GitSystem().permitted(asking(), entry)))


def test_what_is_allowed_is_asked_of_the_other_side(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", {"deploy/chat.yaml": CHAT})
    both = permitted(repository=str(team.bare), fields=FIELDS)
    assert [(p.name, p.granted) for p in both] == [("read contents", True), ("push flyball/*", True)]
    assert team.branches() == [], "asking writes nothing"
    (none,) = permitted(repository=str(tmp_path / "nowhere"))
    assert (none.name, none.granted) == ("read contents", False)
    assert "nowhere" in none.detail


def test_a_repository_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="unreachable"):
        found(repository=f"http://127.0.0.1:{free_port()}/x.git")
    with pytest.raises(CollectError, match="bad_options"):
        found(repository="")


def test_the_least_role_never_writes_to_what_is_deployed() -> None:
    role = GitSystem().permissions()
    assert "flyball/" in role
    assert "Protect the deployed branch" in role


def test_a_schedule_is_not_planned_for_a_repository(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", {"deploy/chat.yaml": CHAT})
    system = GitFiles(context(tmp_path, "http://x", Shape(), team.options()))

    async def plan() -> None:
        live = await system.live()
        wanted = live.shape.with_(schedule=Schedule((ScheduleStep("08:00", 2),)))
        await plan_of("chat", system, live, None, wanted)

    with pytest.raises(CannotPlan, match="would wait for a merge"):
        asyncio.run(plan())
