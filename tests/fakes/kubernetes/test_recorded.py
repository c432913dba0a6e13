"""What a real API server 1.36 answered, the stand-in answers alike: status, reason, and what was stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kubernetes import Cluster, FakeKubernetes

RECORDED = Path(__file__).parents[4] / "shared" / "data" / "recorded" / "k8s" / "real_apiserver_1.36_calls.json"
#: Spoken by others, and never by Flyball.
NOT_OURS = ("application/json-patch+json", "application/apply-patch+yaml")


def _same(real: Any, ours: Any, at: str) -> None:
    """Every value that both have is the same."""
    if isinstance(real, dict) and isinstance(ours, dict):
        for key in real.keys() & ours.keys():
            _same(real[key], ours[key], f"{at}.{key}")
    elif isinstance(real, list) and isinstance(ours, list):
        assert len(real) == len(ours), at
        for i, (a, b) in enumerate(zip(real, ours, strict=True)):
            _same(a, b, f"{at}[{i}]")
    else:
        assert real == ours, at


def test_it_answers_as_the_real_one_did() -> None:
    if not RECORDED.exists():
        pytest.skip(f"{RECORDED} is not there: the recorded answers do not come with the project")
    cluster = Cluster(lambda: 0.0, start_s=1e9)
    server = FakeKubernetes(cluster)
    replayed, versions = 0, dict[str, str]()
    for call in json.loads(RECORDED.read_text()):
        if call["content_type"] in NOT_OURS:
            if call["status"] == 200:  # what it did to the count, others are recorded upon
                count = call["response"]["spec"]["replicas"]
                cluster.objects["deployments", "default", "vllm"]["spec"]["replicas"] = count
            continue
        sent = call["request"]
        stated = (sent or {}).get("metadata", {}).get("resourceVersion") if isinstance(sent, dict) else None
        if stated is not None:  # the real server's numbers are its own
            sent = {**sent, "metadata": {**sent["metadata"], "resourceVersion": versions.get(stated, "1")}}
        token = "nobody" if call["status"] == 401 else "flyball-token"
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": call["content_type"],
            "user-agent": "Python-urllib/3",
        }
        content = json.dumps(sent).encode() if sent is not None else b""
        status, body, _ = server.answer(call["method"], call["path"], headers, content)
        assert status == call["status"], (call["name"], body)
        if status >= 400:
            assert body["reason"] == call["response"]["reason"], call["name"]
            assert body["code"] == call["response"]["code"]
        else:
            _same(call["response"].get("spec"), body.get("spec"), call["name"])
            version = (call["response"].get("metadata") or {}).get("resourceVersion")
            if version is not None and "dryRun" not in call["path"]:
                versions[version] = body["metadata"]["resourceVersion"]
        replayed += 1
    assert replayed >= 28
