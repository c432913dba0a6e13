"""`flyball discover`, `permissions` and `check --live` for Kubernetes, against the stand-in."""

from __future__ import annotations

import time
from pathlib import Path

import yaml

from tests.agent.daemons import flyball, invoke
from tests.fakes.kubernetes import Cluster, FakeKubernetes, manifest

TOKEN = {"KUBERNETES_TOKEN": "flyball-token"}


def test_what_is_discovered_is_checked_and_the_lacking_permission_named(tmp_path: Path) -> None:
    server = FakeKubernetes(Cluster(time.time, start_s=0.0))
    server.cluster.create("deployments", "default", manifest("chat", 2))
    config = tmp_path / "flyball.yaml"
    with server as url:
        found = invoke("discover", "kubernetes", "--option", f"server={url}", "--option", "token=flyball-token")
        assert found.exit_code == 0, found.stderr
        assert "# Deployment default/chat, 2 replicas" in found.stdout
        assert "token: ${KUBERNETES_TOKEN}" in found.stdout
        assert "flyball-token" not in found.stdout + found.stderr
        config.write_text(found.stdout.replace("mode: observe", "mode: approve"))
        server.cluster.denied.add(("patch", "deployments/scale"))
        lacking = invoke("check", "--live", "-c", str(config), env=TOKEN)
    assert lacking.exit_code != 0
    assert "patch deployments/scale.apps" in lacking.stdout + lacking.stderr
    assert server.writes == []


def test_the_least_role_is_printed_ready_to_be_applied() -> None:
    printed = invoke("permissions", "kubernetes")
    assert [d["kind"] for d in yaml.safe_load_all(printed.stdout)] == [
        "ClusterRole",
        "ServiceAccount",
        "ClusterRoleBinding",
    ]


def test_a_cluster_that_cannot_be_reached_is_a_clear_error(tmp_path: Path) -> None:
    gone = flyball("discover", "kubernetes", "--option", f"kubeconfig={tmp_path / 'none'}")
    assert gone.returncode == 2
    assert "name a kubeconfig, or run Flyball in a pod of the cluster" in " ".join((gone.stdout + gone.stderr).split())
