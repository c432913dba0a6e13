"""`flyball scorecard` and `whatif --lower-bound`: autoscalers beside a clairvoyant, on what an endpoint was really asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from agent.cli import app
from agent.clock import WallClock
from agent.store import Store, windows
from analyzers.autoscaling.rules import RULES
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.workload import Workload
from tests.analyzers.whatif import reference_server

SETTINGS = """
sizes: {gpu: {usd_per_replica_hour: 2.0}}
endpoints:
  - name: chat
    url: http://127.0.0.1:1
    objective: {ttft_p95_s: 1.0, itl_p95_s: 0.2}
    shape: {replicas: 3, size: gpu, engine: {max_num_seqs: 16}}
    policy: {max_replicas: 4, cold_start_s: 120}
"""
#: About nine requests a second.
MODEL = EngineModel(IterationCost(0.025, 0.0001, 2e-7, 0.0001), EngineLimits(16, 2048, 40_000))
HOURS = 4.2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hours of a load that goes from 2 to 6 requests a second and back, each half alike, as three replicas would have served it."""
    folder = tmp_path_factory.mktemp("scorecard")
    (folder / "flyball.yaml").write_text(SETTINGS)
    parts = []
    for i in range(round(HOURS * 6)):
        rate = 2.0 + 2.0 * (1 - np.cos(2 * np.pi * i / (HOURS * 3)))
        part = reference_server.poisson(rate, 600.0, i, prompt=180.0, output=40.0)
        parts.append(replace(part, arrival_s=part.arrival_s + 600.0 * i))
    columns = ("arrival_s", "prompt_tokens", "output_tokens", "prefix_tokens")
    work = Workload(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    seen = reference_server.windows(MODEL, work, replicas=3)[: round(HOURS * 60)]
    begin = WallClock().now() // 60 * 60 - len(seen) * 60
    rows = [replace(w, start=begin + 60 * i, targets=3) for i, w in enumerate(seen)]
    store = Store(f"sqlite:///{folder}/flyball.db")
    store.upgrade()
    with store.write() as db:
        windows.save(db, rows)
    store.close()
    return folder / "flyball.yaml"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_each_is_scored_as_documented_and_as_it_would_have_done_best(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    rules = ("hpa-concurrency", "keda-waiting", "ray-serve")
    picked = [word for rule in rules for word in ("--rule", rule)]
    done = run("scorecard", "-e", "chat", "-c", config, *picked, "--yaml", file, "-o", "json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    rows = {row["name"]: row for row in answer["rows"]}
    assert list(rows)[:2] == ["clairvoyant", "as it is: 3 replicas"]
    assert [day["learned"] for day in answer["days"]] == [True, False]
    assert rows["as it is: 3 replicas"]["usd"] == pytest.approx(2.0 * 3 * HOURS / 2, rel=0.02)
    assert rows["as it is: 3 replicas"]["wasted_usd"] > 0
    assert answer["least"] <= rows["clairvoyant"]["usd"] + 1e-6
    for rule in rules:
        documented, tuned = rows[f"{rule}, as documented"], rows[f"{rule}, tuned"]
        assert tuned["usd"] >= answer["least"]
        assert documented["moves"] >= 0
    best = yaml.safe_load(file.read_text())
    assert answer["best"] in rules
    assert file.read_text().startswith(f"# {RULES[answer['best']].title}: ")
    assert best == next(t["manifest"] for t in answer["tuned"] if t["rule"] == answer["best"])
    shown = run("scorecard", "-e", "chat", "-c", config, "--rule", answer["best"])
    assert "minutes missed" in shown.stdout.replace("\n", " ") or "minutes" in shown.stdout
    assert "Cheapest that did" in shown.stdout


def test_what_cannot_be_scored_is_said(config: Path) -> None:
    assert "did you mean" in run("scorecard", "-e", "chat", "-c", config, "--rule", "hpa-concurency").stderr
    assert run("scorecard", "-e", "chta", "-c", config).exit_code == 2


def test_the_lower_bound_is_below_what_a_clairvoyant_takes_and_that_below_a_constant(config: Path) -> None:
    done = run("whatif", "--endpoint", "chat", "--since", "5h", "--lower-bound", "-c", config, "-o", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["lower_bound"]
    assert found["least_replica_hours"] <= found["clairvoyant"]["replica_hours"] + 1e-6
    assert found["clairvoyant"]["replica_hours"] <= found["constant"]["replica_hours"] + 1e-6
    assert found["clairvoyant"]["share_in_time"] >= found["share_in_time"]
    shown = run("whatif", "--endpoint", "chat", "--since", "5h", "--lower-bound", "-c", config)
    assert "No policy could have done with less than" in shown.stdout
