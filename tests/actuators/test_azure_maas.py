"""The system ``azure-maas``: seen, and never changed; its plans are patches with figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actuators.azure_maas.actuator import AzureMaas, make
from actuators.base import ActuatorError, CannotPlan
from actuators.shape import Operation, Purchase, Shape
from agent.clock import WallClock
from agent.settings import EndpointSettings
from collectors.azure.permissions import MAAS_ROLE
from collectors.azure.serverless import AzureMaasSystem
from collectors.discovery import DiscoveryContext
from collectors.sessions import Sessions
from tests.actuators.support import Caller, context
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION
from tests.fakes.azure.ml import add_serverless

LIMIT = Shape(purchase=Purchase(200_000, "tokens_per_minute"))


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    with FakeAzure(Cloud(time.time)) as fake:
        add_serverless(fake.cloud, "mistral")
        yield fake


def actuator(azure: FakeAzure, folder: Path, shape: Shape = LIMIT, name: str = "mistral") -> AzureMaas:
    at = next(iter(azure.cloud.serverless.values()))["id"].rpartition("/")[0] + f"/{name}"
    options = {"resource": at, "credential": "token", "token": "arm-token", "arm_url": azure.url}
    made = make(context(folder, azure.url, shape, options, Caller()))
    assert isinstance(made, AzureMaas)
    return made


def test_live_is_its_model_and_the_limit_that_is_stated(azure: FakeAzure, tmp_path: Path) -> None:
    live = asyncio.run(actuator(azure, tmp_path).live())
    assert live.shape == Shape(
        purchase=LIMIT.purchase, tier="Consumption", region="westeurope", extra={"model": "Mistral-large"}
    )
    assert live.ready
    next(iter(azure.cloud.serverless.values()))["properties"]["endpointState"] = "Suspended"
    again = asyncio.run(actuator(azure, tmp_path).live())
    assert (again.ready, again.detail) == (False, "it is Suspended, Succeeded")
    assert again.version == live.version, "its state is no specification"


def test_a_larger_limit_is_more_endpoints_fewer_calls_or_another_kind(azure: FakeAzure, tmp_path: Path) -> None:
    made = actuator(azure, tmp_path)
    live = asyncio.run(made.live())
    plan = asyncio.run(made.plan(live, live.shape.with_(purchase=Purchase(500_000, "tokens_per_minute"))))
    assert plan.operations == ()
    assert plan.by_hand is not None
    assert "takes 200,000 tokens a minute, and 500,000 are called for" in plan.by_hand
    assert "3 of this model take 600,000 tokens a minute" in plan.by_hand
    assert "`tpm: 200000`" in plan.by_hand
    assert "flyball advise --endpoint chat" in plan.by_hand
    assert {m for m, _ in azure.cloud.requests} == {"GET"}


@pytest.mark.parametrize(
    ("stated", "changed", "said"),
    [
        (LIMIT, {"purchase": Purchase(15, "ptu")}, "no provisioned throughput"),
        (LIMIT, {"purchase": None}, "nothing to change"),
        (LIMIT, {"replicas": 2}, "nothing to change"),
        (Shape(), {"purchase": Purchase(1000, "tokens_per_minute")}, "state its limit"),
    ],
)
def test_what_makes_no_plan(
    azure: FakeAzure, tmp_path: Path, stated: Shape, changed: dict[str, Any], said: str
) -> None:
    made = actuator(azure, tmp_path, stated)
    live = asyncio.run(made.live())
    with pytest.raises(CannotPlan, match=said):
        asyncio.run(made.plan(live, live.shape.with_(**changed)))


def test_no_step_is_ever_done_and_one_that_is_gone_is_said(azure: FakeAzure, tmp_path: Path) -> None:
    made = actuator(azure, tmp_path)
    with pytest.raises(ActuatorError, match="nothing to change"):
        asyncio.run(made.do(Operation("capacity", {}, 1.0, ""), "t", None))
    with pytest.raises(ActuatorError, match="ResourceNotFound"):
        asyncio.run(actuator(azure, tmp_path, name="gone").live())


def test_discovery_and_the_least_role(azure: FakeAzure) -> None:
    azure.cloud.actions = tuple(json.loads(MAAS_ROLE.definition())["Actions"])
    options = {"credential": "token", "token": "arm-token", "arm_url": azure.url, "subscription": SUBSCRIPTION}
    caller = Caller()
    asked = DiscoveryContext(caller, WallClock(), Sessions(), options)

    async def found() -> list[Any]:
        return [f async for f in AzureMaasSystem().discover(asked)]

    (one,) = asyncio.run(found())
    EndpointSettings(**one.settings)
    assert (one.name, one.settings["model"], one.settings["kind"]) == ("mistral", "Mistral-large", "quota")
    assert "arm-token" not in json.dumps(one.settings)
    assert "state it" in one.note
    entry = {"actuator": {"options": {**one.settings["actuator"]["options"], "token": "arm-token"}}, "sources": {}}
    assert all(p.granted for p in asyncio.run(AzureMaasSystem().permitted(asked, entry)))
    azure.cloud.not_actions = ("*/serverlessEndpoints/read",)
    lacking = [p.name for p in asyncio.run(AzureMaasSystem().permitted(asked, entry)) if not p.granted]
    assert lacking == ["Microsoft.MachineLearningServices/workspaces/serverlessEndpoints/read"]
