"""Peers beside the what-if engine: what is asked of them, and what is said where they are not there. None is installed here."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from benchmarks import accuracy_peers, simulators
from collectors.workload import Workload

MODEL = EngineModel(IterationCost(0.01, per_prefill_token_s=0.001), EngineLimits(4, 1000, kv_tokens=4096))
WORK = Workload(np.array([0.0, 5.0]), np.array([100, 200]), np.array([3, 1]), np.zeros(2, np.int64))
#: A peer's script that has the right answers by heart, or fails.
ANSWERS = """
import json, sys
from pathlib import Path
question = json.loads(Path(sys.argv[1]).read_text())
if isinstance(question, dict):
    assert question["requests"] == [[0.0, 100, 3], [5.0, 200, 1]] and question["limits"]["max_num_seqs"] == 4
    answer = {"wall_s": [0.5], "ttft_s": [0.11, 0.21], "e2e_s": [0.13, 0.21]}
else:
    answer = [{"ttft_s": 0.2, "tpot_s": 0.01, "wall_s": 1.0 if i else 9.0} for i, _ in enumerate(question)]
Path(sys.argv[2]).write_text(json.dumps(answer))
"""


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as ``install`` leaves it, with this interpreter in the place of each peer's."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, requirement in simulators.REQUIREMENTS.items():
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").symlink_to(sys.executable)
        (tmp_path / name / "installed.txt").write_text(requirement)
        (scripts / f"run_{name}.py").write_text(ANSWERS)
    monkeypatch.setattr(simulators, "_SCRIPTS", scripts)
    return tmp_path


def test_rates_are_of_the_answers_alone(peers: Path) -> None:
    vidur, configurator, *others = simulators.beside(peers, WORK, MODEL, 2)
    assert vidur.theirs_per_s == 4.0
    assert configurator.theirs_per_s == 1.0, "the first answer, which reads the tables, does not count"
    for row in (vidur, configurator):
        assert row.ratio is not None
        assert row.ratio > 1
    assert {row.simulator for row in others} == set(simulators.ELSEWHERE)
    assert all(row.ratio is None and row.note.startswith("not run: ") for row in others)


def test_what_is_not_there_says_so(tmp_path: Path, peers: Path) -> None:
    assert {row.note for row in simulators.beside(tmp_path / "none", WORK, MODEL, 2)[:2]} == {
        "not installed: give --install-peers"
    }
    (peers / "vidur" / "installed.txt").unlink()
    (peers / "vidur" / "failed.txt").write_text("ERROR: no such version")
    (peers / "scripts" / "run_aiconfigurator.py").write_text("raise RuntimeError('no tables')")
    vidur, configurator = simulators.beside(peers, WORK, MODEL, 2)[:2]
    assert vidur.note == "not installed: ERROR: no such version"
    assert configurator.note == "did not run: RuntimeError: no tables"


def test_another_predictor_is_compared_on_the_points_that_both_have(peers: Path) -> None:
    point = {
        "backend": "vllm", "backend_version": "0.19.0", "model_path": "m", "system": "h100_sxm", "precision": "fp8", "mode": "agg",
        "isl": "1024", "osl": "512", "gemm_quant_mode": "fp8", "moe_quant_mode": "", "batch_size": "8", "tp_size": "2", "pp_size": "1",
        "attention_dp_size": "2", "moe_tp_size": "0", "moe_ep_size": "",
    }  # fmt: skip
    table = peers / "aiconfigurator/lib/python3.11/site-packages/aiconfigurator_core/systems/silicon_sample.csv"
    table.parent.mkdir(parents=True)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(point))
        writer.writeheader()
        writer.writerows([point, {**point, "mode": "disagg"}])
    system = "vllm 0.19.0 m h100_sxm fp8 2 1 2 0 -"
    row = {"protocol": "transfer", "system": system, "experiment": "1024 in, 512 out", "stage": "16 clients"}
    rows = [
        {**row, "metric": "tpot_mean", "predicted": 0.022, "actual": 0.02},
        {**row, "metric": "tpot_mean", "predicted": 1.0, "actual": 0.02, "stage": "32 clients"},
    ]
    found = accuracy_peers.compare(peers, rows, 10)
    assert (found["asked"], found["answered"]) == (1, 1)
    (only,) = found["summary"]
    assert (only["n"], only["ours"], only["theirs"]) == (1, pytest.approx(0.1), pytest.approx(0.5))
    with pytest.raises(simulators.NotRun, match="install-peers"):
        accuracy_peers.compare(peers / "none", rows, 10)
