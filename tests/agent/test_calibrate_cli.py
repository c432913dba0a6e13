"""`flyball calibrate`: from the store and from load tests, to a file that `flyball whatif` takes."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from agent.cli import app, output
from agent.store import Store, fleet
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.model import EngineModel
from tests.agent import telemetry
from tests.agent.telemetry import MODEL
from tests.agent.test_whatif_cli import trace
from tests.collectors.test_loadtests import aiperf, inference_perf, vllm_bench


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.stdout, "width", 240)
    monkeypatch.setattr(output.console, "width", 240)


def run(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def answer(*arguments: str | Path | float) -> dict[str, Any]:
    result = run("calibrate", *arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_from_the_store_to_a_file_that_whatif_takes(telemetry: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine.json"
    found = answer("--endpoint", "chat", "--since", "35m", "-c", telemetry, "--out", out)
    base = next(r for r in found["unknowns"] if r["name"] == "base_s")
    assert base["low"] <= base["value"] <= base["high"]
    assert base["value"] == pytest.approx(MODEL.iteration.base_s, rel=0.1)
    engine = EngineModel.from_json(out.read_text())
    assert engine.to_dict() == found["engine"]
    known = CalibratedEngine.of_engine(engine)
    assert known is not None
    assert len(known.draws) > 10
    with Store(f"sqlite:///{telemetry.parent}/flyball.db").read() as db:
        kept = fleet.calibration(db, "chat")
    assert kept is not None
    assert CalibratedEngine.from_dict(kept["body"]) == known
    asked = run("whatif", "--trace", trace(tmp_path, "0,100,10", "1,100,10"), "--engine", out, "-o", "json")
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["completed"] == 2


def test_from_load_tests(tmp_path: Path) -> None:
    file = tmp_path / "stage_0.json"
    file.write_text(json.dumps(inference_perf()))
    found = answer("--from", file, "--model", "meta-llama/Llama-3.1-8B", "--shape", "accelerator=H100,max_num_seqs=64")
    assert found["evidence"]["observations"] == 1
    assert found["engine"]["limits"]["max_num_seqs"] == 64
    assert found["engine"]["limits"]["kv_tokens"] > 100_000
    assert found["engine"]["source"]["architecture"]["layers"] == 32
    shown = run("calibrate", "--from", file)
    assert shown.exit_code == 0
    assert "per_context_token_s" in shown.stdout
    assert "model or accelerator is not known" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "give either --endpoint NAME, or --from FILE"),
        (("--from", "none.json"), 2, "none.json"),
        (("--from", "other.json"), 2, "guidellm"),
        (
            ("--from", "stage.json", "--shape", "accelerator=abacus"),
            2,
            "accelerator=abacus: its bandwidth is not known",
        ),
        (("--from", "stage.json", "--shape", "max_num_seqs"), 2, "NAME=VALUE"),
        (("--from", "lacking.json"), 1, "it lacks"),
        (("--from", "stage.json", "--out", "no/such/folder.json"), 2, "cannot be written"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lacking = inference_perf()
    lacking["successes"].pop("prompt_tokens")
    for name, content in (("stage", inference_perf()), ("other", {"a": 1}), ("lacking", lacking)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    result = run("calibrate", *words)
    assert result.exit_code == code, result.output
    assert says.lower() in result.output.lower()


def vllm_file(folder: Path, name: str, **more: Any) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(vllm_bench(max_num_seqs=64, **more)))
    return file


def test_an_engine_that_did_not_reach_its_data_is_not_written(tmp_path: Path) -> None:
    """The more load, the shorter the wait for a first token: no engine does that."""
    files: list[str | Path] = []
    for rate, ttft_ms in ((2.0, 4000.0), (8.0, 150.0), (20.0, 15.0)):
        files += [
            "--from",
            vllm_file(tmp_path, f"{rate:g}", request_rate=rate, request_throughput=rate, mean_ttft_ms=ttft_ms),
        ]
    out = tmp_path / "engine.json"
    refused = run("calibrate", *files, "--out", out, "-o", "json")
    assert refused.exit_code == 1
    assert not out.exists()
    assert "did not reach its data: ttft_s is off by" in refused.stderr
    assert "--accept-misfit" in refused.stderr
    found = json.loads(refused.stdout)
    assert set(found["misfit"]) == {"ttft_s"}
    assert "did not reach its data" in found["warnings"][0]
    taken = run("calibrate", *files, "--out", out, "--accept-misfit")
    assert taken.exit_code == 0, taken.output
    asking = (
        "whatif",
        "--trace",
        trace(tmp_path, "0,100,10", "1,100,10"),
        "--engine",
        out,
        "--html",
        tmp_path / "p.html",
    )
    same = shown_but_not_believed(*asking)
    assert same == [found["warnings"][0]]
    assert same[0] in html.unescape((tmp_path / "p.html").read_text())
    both = shown_but_not_believed(*asking, "--candidate", "replicas=2")
    assert both == [f"1, 2: {same[0]}"]
    (tmp_path / "known.json").write_text(MODEL.to_json())
    other = shown_but_not_believed(
        "whatif", "--trace", tmp_path / "trace.csv", "--engine", tmp_path / "known.json", "--candidate", f"engine={out}"
    )
    assert other == [f"2: {same[0]}"]


def shown_but_not_believed(*asking: str | Path) -> list[str]:
    """The warnings of an answer that exits with 1 unless the misfit is accepted."""
    asked, accepted = run(*asking, "-o", "json"), run(*asking, "-o", "json", "--accept-misfit")
    assert (asked.exit_code, accepted.exit_code) == (1, 0), asked.output
    warnings: list[str] = json.loads(asked.stdout)["warnings"]
    assert json.loads(accepted.stdout)["warnings"] == warnings
    assert f"error {warnings[0]}. Look at" in asked.stderr
    assert "or take it as it is with --accept-misfit" in asked.stderr
    assert f"warning: {warnings[0]}" in accepted.stderr
    table = run(*asking)
    assert (table.exit_code, "What if" in table.stdout) == (1, True)
    return warnings


def test_a_misfit_of_an_endpoint_is_told_in_the_same_words(tmp_path: Path, sqlite_template: Path) -> None:
    """Its first ten minutes were served by another engine, and nothing notes the change."""
    slow = replace(MODEL, iteration=replace(MODEL.iteration, base_s=0.08, per_prefill_token_s=5e-6))
    config = telemetry.write(tmp_path, sqlite_template, first=slow)
    calibrated = run("calibrate", "-c", config, "--endpoint", "chat", "-o", "json")
    assert calibrated.exit_code == 1, calibrated.output
    warnings = json.loads(calibrated.stdout)["warnings"]
    assert "did not reach its data" in warnings[0]
    asking = ("whatif", "-c", config, "--endpoint", "chat", "--candidate", "replicas=2")
    assert shown_but_not_believed(*asking) == warnings
    answer = json.loads(run(*asking, "-o", "json").stdout)
    assert set(answer["misfit"]) == set(json.loads(calibrated.stdout)["misfit"])


def test_without_decode_nothing_is_known_of_a_tokens_cost(tmp_path: Path) -> None:
    files: list[str | Path] = []
    for rate, ttft_ms in ((2.0, 120.0), (5.0, 150.0)):
        prefill = {"mean_ttft_ms": ttft_ms, "mean_e2el_ms": ttft_ms, "mean_tpot_ms": 0.0, "mean_itl_ms": 0.0}
        sent = {"num_prompts": 600, "completed": 600, "total_input_tokens": 900_000, "total_output_tokens": 600}
        load = {"request_rate": rate, "request_throughput": rate, "duration": 600 / rate}
        files += ["--from", vllm_file(tmp_path, f"{rate:g}", **prefill, **sent, **load)]
    warnings = answer(*files)["warnings"]
    assert any("what a token costs is believed, not measured" in warning for warning in warnings)
    usual = answer("--from", vllm_file(tmp_path, "usual"))["warnings"]
    assert not any("what a token costs" in warning for warning in usual)


def test_one_load_shows_no_error(tmp_path: Path) -> None:
    file = vllm_file(tmp_path, "one")
    found = answer("--from", file)
    assert found["checked"] is False
    assert set(found["residuals"].values()) == {None}
    assert any(warning.startswith("not checked: one load only") for warning in found["warnings"])
    assert "not checked: one load only" in run("calibrate", "--from", file, "--from", file).stdout
    two = answer("--from", file, "--from", vllm_file(tmp_path, "two", request_rate=1.0, request_throughput=1.0))
    assert two["checked"] is True
    assert None not in two["residuals"].values()


def test_what_the_file_lacks_is_asked_for_and_can_be_given(tmp_path: Path) -> None:
    document = aiperf({"phases": [{"name": "profiling", "type": "concurrency", "concurrency": 8}]})
    del document["input_sequence_length"]
    file = tmp_path / "profile_export_aiperf.json"
    file.write_text(json.dumps(document))
    lacking = run("calibrate", "--from", file)
    assert lacking.exit_code == 1
    assert "it lacks the number of prompt tokens; give it with --prompt-tokens N" in lacking.stderr
    for text in ("300", "fixed:300", "lognormal:300:0.5"):
        assert answer("--from", file, "--prompt-tokens", text)["evidence"]["observations"] == 1
    wrong = run("calibrate", "--from", file, "--prompt-tokens", "many")
    assert wrong.exit_code == 2
    assert "--prompt-tokens: lengths 'many'" in wrong.stderr
    contradicted = answer("--from", file, "--prompt-tokens", "300", "--output-tokens", "7")
    assert any("output tokens: 7 is stated and the file says 101" in note for note in contradicted["notes"])


def test_a_load_that_is_not_told_is_asked_for(tmp_path: Path) -> None:
    file = vllm_file(tmp_path, "unknown", request_rate=None)
    lacking = run("calibrate", "--from", file)
    assert lacking.exit_code == 1
    assert "--rate N (requests per second) or --concurrency N" in lacking.stderr
    assert answer("--from", file, "--rate", 4)["evidence"]["observations"] == 1
    assert answer("--from", file, "--concurrency", 5)["evidence"]["running"][0] <= 5


def test_an_unknown_endpoint_names_the_nearest(telemetry: Path) -> None:
    result = run("calibrate", "--endpoint", "chatt", "-c", telemetry)
    assert result.exit_code == 2
    assert "did you mean chat?" in result.output
