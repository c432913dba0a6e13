"""`flyball discover`, `permissions` and `check --live` for Amazon's systems, against moto behind the strict layer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.daemons import invoke
from tests.fakes.aws import IDENTITY, REGION, FakeAws


@pytest.fixture
def aws() -> Iterator[FakeAws]:
    with FakeAws(prices={"ml.g4dn.xlarge": 0.736, "g4dn.xlarge": 0.526}) as fake:
        fake.endpoint("chat")
        at = time.time() - 240
        fake.put("AWS/SageMaker", "Invocations", at, {1.0: 5}, EndpointName="chat", VariantName="AllTraffic")
        fake.put("AWS/Bedrock", "Invocations", at, {1.0: 5}, ModelId="amazon.nova")
        yield fake


def _options(aws: FakeAws) -> list[str]:
    return ["--option", f"region={REGION}", "--option", f"aws_url={aws.url}"]


def test_what_is_discovered_is_checked_and_the_lacking_permission_named(aws: FakeAws, tmp_path: Path) -> None:
    found = invoke("discover", "sagemaker", *_options(aws), env=IDENTITY)
    assert found.exit_code == 0, found.stderr
    assert "usd_per_replica_hour: 0.736" in found.stdout
    assert "very-secret-key" not in found.stdout
    config = tmp_path / "flyball.yaml"
    config.write_text(found.stdout)
    fine = invoke("check", "--live", "-c", str(config), env=IDENTITY)
    assert fine.exit_code == 0, fine.stdout + fine.stderr
    config.write_text(found.stdout.replace("mode: observe", "mode: approve"))
    aws.denied = {"sagemaker:UpdateEndpoint"}
    lacking = invoke("check", "--live", "-c", str(config), env=IDENTITY)
    assert lacking.exit_code != 0
    assert "lacks sagemaker:UpdateEndpoint" in " ".join((lacking.stdout + lacking.stderr).split())
    assert aws.writes == []


def test_models_of_bedrock_are_seen(aws: FakeAws, tmp_path: Path) -> None:
    found = invoke("discover", "bedrock", *_options(aws), env=IDENTITY)
    assert found.exit_code == 0, found.stderr
    config = tmp_path / "flyball.yaml"
    config.write_text(found.stdout)
    fine = invoke("check", "--live", "-c", str(config), env=IDENTITY)
    assert fine.exit_code == 0, fine.stdout + fine.stderr


def test_instances_are_found_with_their_price(aws: FakeAws) -> None:
    aws.instance(name="solo")
    found = invoke("discover", "ec2", *_options(aws), env=IDENTITY)
    assert found.exit_code == 0, found.stderr
    assert "name: solo" in found.stdout
    assert "sizes: {g4dn.xlarge: {usd_per_replica_hour: 0.526, cpus: 4" in found.stdout


@pytest.mark.parametrize("system", ["sagemaker", "ec2", "bedrock"])
def test_the_least_policy_is_printed_ready_to_be_applied(system: str) -> None:
    printed = invoke("permissions", system)
    policy = json.loads(printed.stdout)
    assert policy["Version"] == "2012-10-17"
    assert {s["Effect"] for s in policy["Statement"]} == {"Allow"}
    assert len(policy["Statement"]) == (1 if system == "bedrock" else 2)
