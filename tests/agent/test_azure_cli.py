"""`flyball discover`, `permissions` and `check --live` for Azure ML, against the stand-in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.daemons import invoke
from tests.fakes.azure import Cloud, FakeAzure
from tests.fakes.azure.cloud import SUBSCRIPTION

SECRETS = {
    "AZURE_TOKEN": "arm-token",
    "AZURE_METRICS_TOKEN": "metrics-token",
    "CHAT_KEY": "primary-key",
    "DRAW_KEY": "k",
}


@pytest.fixture
def azure() -> Iterator[FakeAzure]:
    cloud = Cloud(time.time)
    cloud.add("chat", count=4)
    cloud.add("draw", "Standard_F4s_v2", 1)
    cloud.rate = lambda _at: 3.0
    with FakeAzure(cloud) as fake:
        yield fake


def _options(azure: FakeAzure) -> list[str]:
    stated = {
        "subscription": SUBSCRIPTION,
        "credential": "token",
        "token": "arm-token",
        "metrics_token": "metrics-token",
        "arm_url": azure.url,
        "metrics_url": azure.url,
    }
    return [word for name, value in stated.items() for word in ("--option", f"{name}={value}")]


def test_what_is_discovered_is_checked_and_the_lacking_permission_named(azure: FakeAzure, tmp_path: Path) -> None:
    found = invoke("discover", "azure-ml", *_options(azure))
    assert found.exit_code == 0, found.stderr
    assert "sizes: {Standard_F2s_v2: {usd_per_replica_hour: 0.097, cpus: 2}}" in found.stdout
    assert "arm-token" not in found.stdout
    config = tmp_path / "flyball.yaml"
    config.write_text(found.stdout)
    fine = invoke("check", "--live", "-c", str(config), env=SECRETS)
    assert fine.exit_code == 0, fine.stdout + fine.stderr
    config.write_text(found.stdout.replace("mode: observe", "mode: approve"))
    azure.cloud.not_actions = ("Microsoft.Insights/AutoscaleSettings/Write",)
    lacking = invoke("check", "--live", "-c", str(config), env=SECRETS)
    assert lacking.exit_code != 0
    assert "lacks Microsoft.Insights/AutoscaleSettings/Write" in lacking.stdout + lacking.stderr


def test_the_least_role_is_printed_ready_to_be_made() -> None:
    printed = invoke("permissions", "azure-ml")
    assert "Microsoft.Insights/Metrics/Read" in json.loads(printed.stdout)["Actions"]
