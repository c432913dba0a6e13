"""Calibration on load tests: the engine that served them is found again, and what cannot be used is refused with its reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.hardware import ACCELERATORS
from analyzers.prediction import CannotPredict
from analyzers.whatif.calibrate import CalibratedEngine, calibrate_on_tests
from analyzers.whatif.discrepancy import Discrepancy
from analyzers.whatif.engine import replay
from analyzers.whatif.fit import PosteriorDraw, client_replay
from analyzers.whatif.loadtests import observation
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.outlook import look
from collectors.loadtests import LoadTest, Summary
from collectors.workload import Workload
from tests.analyzers.whatif.reference_server import poisson

TRUTH = EngineModel(IterationCost(0.007, 3e-5, 4e-8, 3e-5, 2e-9), EngineLimits(128, 2048, 400_000))
SHAPE = Shape(
    replicas=1, accelerator="H100", engine={"max_num_seqs": 128, "max_num_batched_tokens": 2048, "kv_tokens": 400_000}
)


def open_loop(rate: float, seed: int = 0, draw: PosteriorDraw | None = None) -> LoadTest:
    """As a load generator would sum up ``rate`` requests a second on the truth."""
    work = poisson(rate, 400.0, seed)
    _, times = client_replay(work, TRUTH, draw or PosteriorDraw(TRUTH.iteration, 0.003))
    return LoadTest(
        source="vllm-bench", name=f"{rate:g}/s", sent=len(work), completed=len(work), failed=0, duration_s=400.0,
        controlled="rate", rate_per_s=rate, concurrency=None, throughput_per_s=rate,
        prompt_tokens=Summary.of([float(v) for v in work.prompt_tokens]),
        output_tokens=Summary.of([float(v) for v in work.output_tokens]),
        latency={
            "ttft_s": Summary(float(times.ttft_s.mean())),
            "tpot_s": Summary(times.mean("itl_s", slice(None))),
            "e2e_s": Summary(float(times.e2e_s.mean())),
        },
        model="someone/unheard-of",
    )  # fmt: skip


def closed_loop(clients: int, prompt: int, output: int) -> LoadTest:
    n = 10 * clients
    rng = np.random.default_rng(clients)
    vary = rng.uniform(0.9, 1.1, (2, n))
    work = Workload(
        np.zeros(n), (prompt * vary[0]).astype(np.int64), (output * vary[1]).astype(np.int64), np.zeros(n, np.int64)
    )
    _, times = client_replay(
        work, TRUTH.with_limits(max_num_seqs=clients), PosteriorDraw(TRUTH.iteration, 0.003), closed=clients
    )
    return replace(
        open_loop(1.0), name=f"{clients} users", controlled="concurrency", rate_per_s=None, concurrency=float(clients),
        completed=n, sent=n, throughput_per_s=None, prompt_tokens=Summary(float(prompt)), output_tokens=Summary(float(output)),
        latency={"ttft_s": Summary(float(times.ttft_s.mean())), "itl_s": Summary(times.mean("itl_s", slice(None)))},
    )  # fmt: skip


def fitted(*tests: LoadTest, model: str | None = None) -> CalibratedEngine:
    return calibrate_on_tests(tests, SHAPE, model=model, hardware=ACCELERATORS["H100"])


def itl(known: CalibratedEngine, work: Workload) -> float:
    (best,) = look(work, known.model, [known.best], known.discrepancy)
    found = best.times.mean("itl_s", slice(None))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_the_engine_that_served_them_is_found_again(kind: str) -> None:
    mixes = ((500, 120), (100, 300), (1500, 100))
    tests = [open_loop(r, i) for i, r in enumerate((2.0, 8.0, 14.0))]
    if kind == "closed":
        tests = [closed_loop(clients, *mix) for clients in (4, 16, 48) for mix in mixes]
    known = fitted(*tests)
    for rate in (4.0, 11.0):
        work = poisson(rate, 300.0, 9)
        assert itl(known, work) == pytest.approx(replay(work, TRUTH).itl.mean, rel=0.05)
    assert known.windows == len(tests)
    assert known.key.startswith("1xH100/model=someone/unheard-of")


def test_a_known_model_on_known_hardware_is_believed_to_be_like_its_roofline() -> None:
    """One load alone: the datasheet says how it slows beyond."""
    one = open_loop(2.0)
    named, unnamed = fitted(one, model="meta-llama/Llama-3.1-8B"), fitted(one)
    assert named.architecture is not None
    assert unnamed.architecture is None
    spreads = [np.std([np.log(d.iteration.per_context_token_s) for d in k.draws]) for k in (named, unnamed)]
    assert spreads[0] < 0.5 * spreads[1]


def test_what_a_test_lacks_is_named() -> None:
    whole = open_loop(2.0)
    for change, says in (
        ({"prompt_tokens": None}, "prompt and output tokens"),
        ({"latency": {}}, "a mean latency"),
        ({"failed": 400}, "requests failed"),
        ({"controlled": None, "rate_per_s": None, "throughput_per_s": None}, "the rate or the concurrency"),
    ):
        with pytest.raises(CannotPredict, match=says) as refused:
            observation(replace(whole, **change))
        assert refused.value.code == "NO_EVIDENCE"
        known = fitted(whole, replace(whole, **change))
        assert known.windows == 1
        assert any("not used" in note and says in note for note in known.notes)
    with pytest.raises(CannotPredict, match="no load test was given"):
        fitted()


def test_lengths_follow_the_quantiles_and_keep_the_mean() -> None:
    wide = replace(open_loop(2.0), prompt_tokens=Summary(600.0, 500.0, 1100.0, 1500.0, 2500.0))
    prompt = observation(wide).workload.prompt_tokens
    assert prompt.mean() == pytest.approx(600.0, rel=0.01)
    assert np.quantile(prompt, 0.9) == pytest.approx(2.2 * np.quantile(prompt, 0.5), rel=0.1)


def test_nothing_known_corrects_nothing() -> None:
    assert Discrepancy().at("itl_s", (0.0, 0.0, 0.0))[0] == 0.0
