"""What a real Nomad 1.1.2 answered, the stand-in answers alike: status, words, fields; indices are its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nomad import FakeNomad, NomadCluster

RECORDED = Path(__file__).parents[4] / "shared" / "data" / "recorded" / "nomad"
OWN = {"EvalID", "Index", "EvalCreateIndex", "JobModifyIndex", "JobCreateIndex", "CreateIndex", "Time", "KnownLeader"}


def _same(real: Any, ours: Any, at: str) -> None:
    if isinstance(real, dict):
        assert isinstance(ours, dict), at
        assert ours.keys() <= real.keys(), f"{at}: {ours.keys() - real.keys()} is told by no real one"
        for key in ours.keys() - OWN:
            _same(real[key], ours[key], f"{at}.{key}")
    elif isinstance(real, list):
        assert len(real) == len(ours), at
        for i, (a, b) in enumerate(zip(real, ours, strict=True)):
            _same(a, b, f"{at}[{i}]")
    else:
        assert real == ours, at


def test_it_answers_as_the_real_one_did() -> None:
    if not RECORDED.exists():
        pytest.skip(f"{RECORDED} is not there: the recorded answers do not come with the project")
    real = {path.stem: json.loads(path.read_text()) for path in RECORDED.glob("*.json") if path.stem != "scale_post"}
    real["scale_post"] = json.loads((RECORDED / "scale_post.json").read_text().partition("HTTP")[0])
    now = [0.0]
    nomad = FakeNomad(NomadCluster(lambda: now[0], start_s=1.0, healthy_s=10.0))

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return nomad.answer(method, path, "", json.dumps(body).encode())

    wanted = real["plan_request"]["Job"]
    first = json.loads(json.dumps(wanted))
    first["TaskGroups"][0]["Count"] = 1
    _same(real["register"], ask("PUT", "/v1/jobs", {"Job": first})[1], "register")
    now[0] = 2.0
    _same(real["scale_get"], ask("GET", "/v1/job/srv/scale")[1], "scale_get")
    _same(real["plan"], ask("PUT", "/v1/job/srv/plan", real["plan_request"])[1], "plan")
    sent = {"Count": 3, "Target": {"Group": "g"}, "Message": "P scale up", "Meta": {"reason": "queue"}}
    answers = [
        ask("PUT", "/v1/job/srv/scale", sent),
        ask("PUT", "/v1/job/srv/scale", {**sent, "Count": 9}),
        ask("PUT", "/v1/job/nope/scale", sent),
        ask("PUT", "/v1/job/srv/scale", {**sent, "Target": {"Group": "zz"}}),
        ask("PUT", "/v1/jobs", {"Job": wanted, "EnforceIndex": True, "JobModifyIndex": 1}),
    ]
    assert answers == [(e["status"], e["body"]) for e in real["errors_real_1.1.2"]]
    now[0] = 20.0
    _same(real["scale_post"], ask("PUT", "/v1/job/srv/scale", sent)[1], "scale_post")
    now[0] = 22.0
    _same(real["scale_get_after"], ask("GET", "/v1/job/srv/scale")[1], "scale_get_after")
