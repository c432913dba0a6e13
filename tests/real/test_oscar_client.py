"""OSCAR's own Python client drives the stand-in for OSCAR: what it sends is taken, and what it is answered it understands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.oscar import PASSWORD, FakeOscar, definition

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

#: Calls of the client, each answered by its status and text.
STORY = """
import json, sys
import requests
from oscar_python.client import Client

url, password, service = sys.argv[1:]
options = {"cluster_id": "c", "endpoint": url, "user": "oscar", "password": password, "ssl": "False"}
client, plants, told = Client(options), json.loads(service), {}

def ask(name, call, *args):
    try:
        answer = call(*args)
        told[name] = [answer.status_code, answer.text]
    except requests.HTTPError as error:
        told[name] = [error.response.status_code, error.response.text]

ask("create", client.create_service, plants)
ask("list", client.list_services)
ask("get", client.get_service, "plants")
there = json.loads(told["get"][1])
ask("update", client.update_service, "plants", {**there, "cpu": "2.0"})
ask("updated", client.get_service, "plants")
ask("refused", client.update_service, "plants", {k: v for k, v in there.items() if k != "script"})
ask("deployment", client.get_deployment_status, "plants")
ask("status", client.get_cluster_status)
ask("jobs", client.list_jobs, "plants")
ask("page", client.list_jobs, "plants", "100")
ask("remove", client.remove_service, "plants")
ask("gone", client.get_service, "plants")
client.password = "wrong"
ask("denied", client.list_services)
print(json.dumps(told))
"""


def _python() -> str:
    own = Path(__file__).parents[2] / ".venv-oscar" / "bin" / "python"
    path = Path(os.environ.get("FLYBALL_TEST_OSCAR_PYTHON") or own)
    if not path.exists():
        pytest.skip(
            f"no OSCAR client: {path} is missing; run .ci/install-oscar-client, or set FLYBALL_TEST_OSCAR_PYTHON"
        )
    return str(path)


class JobfulOscar(FakeOscar):
    """One whose services have had 120 jobs as soon as they are there."""

    def add(self, body: dict[str, Any], owner: str = "cluster_admin") -> Any:
        made = super().add(body, owner)
        for i in range(120):
            self.job(body["name"], f"j{i:03}", 1000, 1001, 1002)
        return made


def test_a_service_is_created_seen_updated_and_removed(tmp_path: Path) -> None:
    with JobfulOscar() as url:
        command = [_python(), "-c", STORY, url, PASSWORD, json.dumps(definition("plants"))]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name: status for name, (status, _) in told.items()} == {
        "create": 201, "list": 200, "get": 200, "update": 204, "updated": 200, "refused": 400, "deployment": 200, "status": 200,
        "jobs": 200, "page": 200, "remove": 204, "gone": 404, "denied": 401,
    }  # fmt: skip
    text = {name: body for name, (_, body) in told.items()}
    assert [s["name"] for s in json.loads(text["list"])] == ["plants"]
    assert json.loads(text["updated"]) == {**json.loads(text["get"]), "cpu": "2.0"}
    assert text["refused"].startswith("The service specification is not valid:")
    assert json.loads(text["deployment"])["state"] == "ready"
    first, second = json.loads(text["jobs"]), json.loads(text["page"])
    assert (len(first["jobs"]), first["next_page"], len(second["jobs"]), second["next_page"]) == (100, "100", 20, "")
