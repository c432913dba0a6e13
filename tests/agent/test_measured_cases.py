"""Load tests and traces that once were taken for something else: the right answers, on the captures beside the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from agent.cli import app

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def case(name: str) -> Path:
    folder = CASES / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the captures do not come with the project")
    return folder


def replayed(trace: Path, engine: Path, *more: str) -> dict[str, Any]:
    result = run("whatif", "--trace", trace, "--engine", engine, *more, "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", ["inf_cap200", "inf_no_cap"])
def test_two_hundred_requests_at_once_are_two_hundred_requests_at_once(tmp_path: Path, name: str) -> None:
    folder, out = case("short-closed-loop"), tmp_path / "engine.json"
    shape = "accelerator=H100,max_num_seqs=256,max_num_batched_tokens=2048"
    model = "meta-llama/Llama-3.1-8B-Instruct"
    made = run("calibrate", "--from", folder / f"{name}.json", "--model", model, "--shape", shape, "--out", out)
    assert made.exit_code == 0, made.output
    engine = json.loads(out.read_text())
    assert engine["iteration"]["base_s"] == pytest.approx(0.0069, rel=0.05)
    assert engine["source"]["residuals"]["ttft_s"] < 0.02
    found, true = (replayed(folder / "trace20.csv", e) for e in (out, folder / "engine_true.json"))
    assert found["itl_s"]["mean"] == pytest.approx(true["itl_s"]["mean"], rel=0.05)
    # One burst tells neither what lies between client and engine nor a prefill's fixed cost: typical ones are believed in.
    assert found["ttft_s"]["mean"] == pytest.approx(true["ttft_s"]["mean"], rel=0.4)


def test_a_gateway_in_front_is_in_the_prediction(tmp_path: Path) -> None:
    folder, out = case("ttft-thrown-away"), tmp_path / "engine.json"
    files = [word for rate in (2, 10, 20) for word in ("--from", str(folder / f"rate{rate}.json"))]
    assert run("calibrate", *files, "--out", out).exit_code == 0
    found = replayed(folder / "trace.csv", out, "--objective", "ttft_p95=0.2")
    assert found["ttft_s"]["mean"] == pytest.approx(0.252, rel=0.03)
    assert found["meets_objective"] is False


def test_seconds_are_no_milliseconds() -> None:
    folder = case("trace-in-seconds")
    found, right = (replayed(folder / name, folder / "engine.json") for name in ("seconds.jsonl", "right.csv"))
    assert found["ttft_s"] == pytest.approx(right["ttft_s"])
    assert found["trace"]["format"] == "bailian"
    assert found["trace"]["time_unit"] == "s"
    assert found["trace"]["unread_columns"] == ["chat_id", "parent_chat_id", "type", "turn"]


def test_a_prompt_length_that_is_not_told_can_be_given() -> None:
    file = case("aiperf-no-prompt-length") / "profile_export_aiperf.json"
    lacking = run("calibrate", "--from", file)
    assert lacking.exit_code == 1
    assert "it lacks the number of prompt tokens; give it with --prompt-tokens N" in lacking.stderr
    assert run("calibrate", "--from", file, "--prompt-tokens", "300").exit_code == 0
