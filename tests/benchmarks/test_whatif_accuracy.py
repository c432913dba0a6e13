"""The accuracy benchmark is a gate: it runs on the real measurements, and a change that makes predictions worse turns red here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import whatif_accuracy
from benchmarks.measurements import find_all

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "vllm-h100").is_dir(), reason=f"{DATA} is absent: the measurements do not come with the project"
)


@pytest.fixture(scope="module")
def figures() -> dict[tuple[str, str], dict[str, Any]]:
    result = whatif_accuracy.measure([DATA], ("extrapolate", "continue"), workers=2)
    return {(s["protocol"], s["metric"]): s for s in result["summary"]}


@needs_data
@pytest.mark.parametrize("protocol", ["extrapolate", "continue"])
@pytest.mark.parametrize(
    ("metric", "aim"),
    [("e2e_mean", 0.06), ("e2e_p90", 0.06), ("itl_mean", 0.06), ("ttft_mean", 0.15), ("ttft_p90", 0.15)],
)
def test_it_is_as_right_as_is_promised(
    figures: dict[tuple[str, str], dict[str, Any]], protocol: str, metric: str, aim: float
) -> None:
    assert figures[protocol, metric]["median"] <= aim


@needs_data
def test_overload_is_foretold_from_the_other_workloads() -> None:
    found = find_all(DATA / "vllm-h100")
    (job,) = (
        job
        for job in whatif_accuracy.jobs(found, ("interpolate",))
        if job.asked[0].experiment == "llama-2-7b-tp1-reasoning"
    )
    rows = whatif_accuracy.run(job)
    assert {(row["saturates"] > 0.5, row["saturated"]) for row in rows} == {(True, True)}
    ttft = next(row for row in rows if row["metric"] == "ttft_mean")
    assert ttft["predicted"] == pytest.approx(ttft["actual"], rel=0.3)


def test_nothing_is_fitted_on_what_it_predicts(tmp_path: Path) -> None:
    """Each protocol's evidence and questions, on measurements made up for this."""
    found = find_all(_made_up(tmp_path))
    jobs = whatif_accuracy.jobs(found, whatif_accuracy.PROTOCOLS)
    assert [j.protocol for j in jobs].count("interpolate") == 3
    for job in jobs:
        if job.protocol != "continue":
            assert not {id(m) for m in job.seen} & {id(m) for m in job.asked}
    (extrapolate,) = (j for j in jobs if j.protocol == "extrapolate")
    assert ([m.load for m in extrapolate.seen], [m.load for m in extrapolate.asked]) == ([2.0], [4.0])
    (concurrency,) = (j for j in jobs if j.protocol == "concurrency")
    assert ([m.load for m in concurrency.seen], [m.load for m in concurrency.asked]) == ([4.0, 16.0], [8.0])


def test_lengths_that_a_generator_drew_are_those_that_are_replayed(tmp_path: Path) -> None:
    """The published means (610 and 421 tokens over the first ten requests) come out of the generator's seed."""
    (tmp_path / "points.csv").write_text(
        "engine,engine_version,model,gpu,precision,prompt_tokens,output_tokens,concurrency,tensor_parallel,pipeline_parallel,"
        "attention_data_parallel,moe_tensor_parallel,moe_expert_parallel,ttft_mean_s,tpot_mean_s,kind,requests,prompt_max,output_max\n"
        "sglang,1,x,h100_sxm,fp8,610,422,1,1,1,1,1,1,0.1,0.01,moe,10,1000,1000\n"
    )
    (point,) = find_all(tmp_path)["points"]
    work = point.observation.workload
    assert (len(work), work.prompt_tokens.mean(), work.output_tokens.mean()) == (10, 610.1, 422.0)
    assert point.mixture is True


def test_runs_at_several_rates_are_stages_and_cached_prefixes_are_not_computed(tmp_path: Path) -> None:
    for rate in (1, 2, 3):
        folder = tmp_path / f"rate-{rate}"
        folder.mkdir()
        told = {"model": "m", "gpu": "H100", "max_num_seqs": 64, "max_num_batched_tokens": 2048, "rate_per_s": rate}
        (folder / "engine.json").write_text(json.dumps(told))
        head = "arrival_s,prompt_tokens,output_tokens,queued_to_first_token_s,first_to_last_token_s,prefix_tokens\n"
        (folder / "requests.csv").write_text(
            head + "".join(f"{i / rate},100,20,0.1,0.5,{40 * (i % 2)}\n" for i in range(120))
        )
    jobs = whatif_accuracy.jobs(find_all(tmp_path), ("interpolate", "extrapolate", "continue"))
    assert [
        (j.protocol, [m.load for m in j.seen], [m.load for m in j.asked]) for j in jobs if j.protocol != "continue"
    ] == [
        ("interpolate", [2, 3], [1]),
        ("interpolate", [1, 3], [2]),
        ("interpolate", [1, 2], [3]),
        ("extrapolate", [1], [2, 3]),
    ]
    assert len([j for j in jobs if j.protocol == "continue"]) == 3
    assert jobs[0].asked[0].observation.workload.prefix_tokens[:4].tolist() == [0, 40, 0, 40]
    assert jobs[0].asked[0].whole is not None
    assert len(jobs[0].asked[0].whole.parts) == 12


def test_other_systems_on_the_same_engine_teach_how_late_first_tokens_are(tmp_path: Path) -> None:
    """And nothing of what an iteration costs: that is believed of each machine by itself."""
    head, first = (_made_up(tmp_path) / "points.csv").read_text().splitlines()[:2]
    rows = [
        first.replace("vllm", engine).replace(",x,", f",{model},").replace("0.1,0.014", f"{late},0.009")
        for engine, model, late in (
            ("vllm", "llama-3.1-8b", 0.2), ("vllm", "qwen3-8b", 0.2), ("vllm", "llama-3-8b", 0.1), ("sglang", "qwen3-14b", 9.0),
        )
    ]  # fmt: skip
    (tmp_path / "points.csv").write_text("\n".join([head, *rows]) + "\n")
    found = find_all(tmp_path)
    known = {m.system: (m, whatif_accuracy.deviations([m])) for m in found["points"]}
    jobs = {
        job.asked[0].system.split()[2]: job
        for job in whatif_accuracy.transfers({"stages": [], "requests": [], "points": found["points"]}, known)
    }
    assert set(jobs) == {"llama-3.1-8b", "qwen3-8b", "llama-3-8b"}  # nobody else runs on the other engine
    assert [len(jobs[name].others) for name in ("llama-3.1-8b", "qwen3-8b")] == [1, 2]  # one has the same sizes
    fitted, _ = whatif_accuracy._transferred(jobs["llama-3.1-8b"])
    late = known[next(s for s in known if "qwen3-8b" in s)][1][0, 1]
    assert 20.0 < late < 100.0
    assert fitted.best.lag == pytest.approx(late)


def test_a_directory_without_measurements_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, says in ((tmp_path, 2), (tmp_path / "none", 2)):
        monkeypatch.setattr("sys.argv", ["whatif_accuracy.py", "--data", str(folder)])
        assert whatif_accuracy.main() == says


def _made_up(folder: Path) -> Path:
    model = {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "bytes_per_parameter": 2,
    }  # fmt: skip
    times = {
        name: {"mean": mean, "p10": 0.9 * mean, "p90": 1.1 * mean} for name, mean in (("ttft_s", 0.03), ("e2e_s", 2.0))
    }

    def stage(rate: float) -> dict[str, Any]:
        return {
            "rate_per_s": rate, "duration_s": 60, "sent": 60 * rate, "completed": 60 * rate, "failed": 0, **times,
            "prompt_tokens": {"mean": 500.0, "min": 400.0, "max": 600.0, "p50": 500.0},
        }  # fmt: skip

    def experiment(name: str, *rates: float) -> dict[str, Any]:
        return {
            "name": name, "model": "m", "hardware": "H100", "tensor_parallel": 1, "max_model_len": 4096,
            "max_num_batched_tokens": 2048, "max_num_seqs": 128, "output_tokens": 200, "stages": [stage(r) for r in rates],
        }  # fmt: skip

    hardware = {"H100": {"memory_gb": 80, "memory_bandwidth_gb_per_s": 3350, "bf16_dense_tflops": 989}}
    experiments = {"schema_version": 1, "experiments": [experiment("two", 2.0, 4.0), experiment("one", 3.0)]}
    for name, content in (("models", {"m": model}), ("hardware", hardware), ("experiments", experiments)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    head = (
        "engine,engine_version,model,gpu,precision,prompt_tokens,output_tokens,concurrency,tensor_parallel,pipeline_parallel,"
        "attention_data_parallel,moe_tensor_parallel,moe_expert_parallel,ttft_mean_s,tpot_mean_s\n"
    )
    rows = [f"vllm,1,x,h100_sxm,fp8,1024,1024,{c},1,1,1,1,1,0.1,{0.01 + c / 1e3}\n" for c in (4, 8, 16, 8)]
    (folder / "points.csv").write_text(head + "".join(rows))
    return folder
