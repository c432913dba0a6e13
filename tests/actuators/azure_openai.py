"""The system ``azure-openai`` on the stand-in for Azure: a stage with its own time, for the driver that carries plans out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from actuators.azure_openai.actuator import AzureOpenAi, make
from actuators.base import SystemContext
from actuators.shape import Shape
from agent.clock import VirtualClock
from collectors.sessions import Sessions
from tests.actuators.azure import NOW, CountingHttp, Stage
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.openai import ModelDeployment, add_deployment, deployment_id

QUOTA = {
    "OpenAI.GlobalStandard.gpt-4.1": 300,
    "OpenAI.Standard.gpt-4o": 100,
    "OpenAI.GlobalProvisionedManaged": 100,
    "OpenAI.ProvisionedManaged": 0,
}


class ModelStage(Stage):
    """One model deployment."""

    @property
    def deployment(self) -> ModelDeployment:
        found: ModelDeployment = self.cloud.accounts["rg-chat/ai-chat"].deployments["chat"]
        return found

    def make(self, *, restarted: bool = False, **options: Any) -> AzureOpenAi:  # type: ignore[override]
        if restarted:
            self.sessions = Sessions()
        stated = {
            "resource": deployment_id(self.cloud, "chat"),
            "credential": "token",
            "token": "arm-token",
            "metrics_token": "metrics-token",
            "arm_url": self.azure.url,
            "metrics_url": self.azure.url,
            **self.options,
            **options,
        }
        context = SystemContext(
            endpoint="chat",
            url=self.azure.url,
            model="chat",
            shape=Shape(),
            state_dir=self.folder,
            http=self.http.call,
            clock=self.clock,
            sessions=self.sessions,
            options=stated,
        )
        made = make(context)
        assert isinstance(made, AzureOpenAi)
        return made

    @property
    def writes(self) -> list[tuple[str, str]]:
        """What was really asked to be changed."""
        return [(m, u) for m, u in self.http.writes if "/calculateModelCapacity" not in u]


@asynccontextmanager
async def stage(
    folder: Path, sku: str = "GlobalStandard", capacity: int = 60, **properties: Any
) -> AsyncIterator[ModelStage]:
    clock = VirtualClock(NOW)
    cloud = Cloud(clock.now)
    cloud.scale_s, cloud.model_quota = 60.0, dict(QUOTA)
    add_deployment(cloud, "chat", sku, capacity, **properties)
    http = CountingHttp()
    with FakeAzure(cloud) as azure:
        try:
            yield ModelStage(azure, clock, http, folder)
        finally:
            await http.aclose()
