"""Calibration on load tests: the engine that served them is found again, and what cannot be used is refused with its reason."""

from __future__ import annotations

import heapq
import re
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.shape import Shape
from analyzers.hardware import ACCELERATORS
from analyzers.prediction import CannotPredict, Interval
from analyzers.whatif.calibrate import CalibratedEngine, calibrate_on_tests
from analyzers.whatif.discrepancy import Discrepancy
from analyzers.whatif.engine import replay
from analyzers.whatif.fit import MISFIT, PosteriorDraw, client_replay, send_times
from analyzers.whatif.loadtests import observation, stated
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.outlook import look
from analyzers.whatif.predict import widened
from collectors.loadtests import LoadTest, LoadTestRecord, RateRamp, Summary
from collectors.plan import Lengths
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
        ({"prompt_tokens": None}, "the number of prompt tokens; give it with --prompt-tokens N"),
        ({"prompt_tokens": None, "output_tokens": None}, "--prompt-tokens N and --output-tokens N"),
        ({"latency": {}}, "a mean latency"),
        ({"failed": 400}, "requests failed"),
        (
            {"controlled": None, "rate_per_s": None, "throughput_per_s": None},
            "--rate N .requests per second. or --concurrency N",
        ),
        ({"controlled": None}, "the rate or the concurrency"),
    ):
        with pytest.raises(CannotPredict, match=says) as refused:
            observation(replace(whole, **change))
        assert refused.value.code == "NO_EVIDENCE"
        known = fitted(whole, replace(whole, **change))
        assert known.windows == 1
        assert any("not used" in note and re.search(says, note) for note in known.notes)
    with pytest.raises(CannotPredict, match="no load test was given"):
        fitted()


def test_lengths_follow_the_quantiles_and_keep_the_mean() -> None:
    wide = replace(open_loop(2.0), prompt_tokens=Summary(600.0, 500.0, 1100.0, 1500.0, 2500.0))
    prompt = observation(wide).workload.prompt_tokens
    assert prompt.mean() == pytest.approx(600.0, rel=0.01)
    assert np.quantile(prompt, 0.9) == pytest.approx(2.2 * np.quantile(prompt, 0.5), rel=0.1)


def test_nothing_known_corrects_nothing() -> None:
    assert Discrepancy().at("itl_s", (0.0, 0.0, 0.0))[0] == 0.0


# -- the traffic that is replayed is the traffic that was measured ------------------------------------------------------


#: An 8B model on an H100, close to its roofline.
LIKELY = EngineModel(IterationCost(0.0069, 7.2e-6, 4.3e-8, 2.4e-5, 1.65e-9), EngineLimits(128, 2048, 400_000))


def measured_at_once(n: int) -> LoadTest:
    """``n`` requests of 512 and 128 tokens, all sent at once: each one's arrival is 0."""
    work = Workload(np.zeros(n), *(np.full(n, tokens, np.int64) for tokens in (512, 128, 0)))
    each = replay(work, LIKELY).per_request
    return replace(
        open_loop(1.0), name=f"{n} at once", sent=n, completed=n, controlled="concurrency", rate_per_s=None,
        concurrency=float(n), throughput_per_s=n / float(each.e2e_s.max()), duration_s=float(each.e2e_s.max()),
        prompt_tokens=Summary(512.0), output_tokens=Summary(128.0),
        latency={"ttft_s": Summary(float(each.ttft_s.mean())), "itl_s": Summary(float((each.e2e_s - each.ttft_s).mean() / 127))},
    )  # fmt: skip


@pytest.mark.parametrize("cap", [1.0, 2.0, 50.0])
def test_a_short_closed_loop_has_no_second_round(cap: float) -> None:
    """By as many clients as requests, or more: the engine is found again although no load was steady."""
    test = measured_at_once(100)
    known = fitted(replace(test, concurrency=cap * 100), model="meta-llama/Llama-3.1-8B")
    seen = observation(replace(test, concurrency=cap * 100))
    assert (len(seen.workload), seen.closed) == (100, 100)
    assert known.model.iteration.base_s == pytest.approx(LIKELY.iteration.base_s, rel=0.1)
    assert known.model.iteration.per_prefill_token_s == pytest.approx(LIKELY.iteration.per_prefill_token_s, rel=0.1)
    assert known.residuals["ttft_s"] < 0.05


@given(n=st.integers(1, 5000), clients=st.integers(1, 5000), failed=st.integers(0, 20), cut=st.integers(0, 20))
@settings(max_examples=40)
def test_a_closed_loop_is_as_many_requests_by_as_many_clients_as_were_sent(
    n: int, clients: int, failed: int, cut: int
) -> None:
    failed = min(failed, n // 25)
    test = replace(
        measured_at_once(3), completed=n, failed=failed, sent=n + failed + cut, concurrency=float(clients), name="x"
    )
    seen = observation(test)
    assert len(seen.workload) == n + failed + cut
    assert seen.closed == min(clients, n + failed + cut)
    (part,) = seen.parts
    assert len(np.arange(len(seen.workload))[part.which]) == n + failed  # those cut off at the end have no latency
    assert np.all(seen.workload.arrival_s == 0.0)


@given(
    n=st.integers(2, 900),
    rate=st.floats(0.1, 100.0),
    burstiness=st.sampled_from([0.25, 1.0, 4.0, np.inf]),
    burst=st.integers(0, 5),
    cap=st.one_of(st.none(), st.integers(1, 50)),
)
@settings(max_examples=40)
def test_an_open_loop_arrives_at_its_rate_as_often_as_it_was_sent(
    n: int, rate: float, burstiness: float, burst: int, cap: int | None
) -> None:
    test = replace(
        open_loop(2.0), sent=n, completed=n, rate_per_s=rate, throughput_per_s=rate, duration_s=n / rate, burstiness=burstiness,
        burst=burst, max_concurrency=cap,
    )  # fmt: skip
    seen = observation(test)
    at = seen.workload.arrival_s
    assert len(at) % n == 0
    assert len(at) >= min(n, 400)
    for begin in range(0, len(at), n):
        run = at[begin : begin + n]
        gaps = np.diff(run)
        own = min(burst, n)
        assert np.count_nonzero(run == run[0]) >= own
        if n - own > 1 and not own:
            assert (run[-1] - (at[begin - 1] if begin else 0.0)) >= (n - 1) / rate * 0.99
        if burstiness == np.inf and not own:
            assert gaps == pytest.approx(1.0 / rate, rel=1e-6)
        if begin:  # the one before has been answered by then
            assert run[0] - at[begin - 1] > 10.0 * n / rate
    assert seen.closed == (cap if cap is not None and cap < n else None)


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_a_ramp_is_replayed_as_it_rose(kind: Literal["linear", "exponential"]) -> None:
    n = 2000
    test = replace(
        open_loop(2.0), sent=n, completed=n, rate_per_s=None, ramp=RateRamp(1.0, 16.0, kind), burstiness=np.inf
    )
    gaps = np.diff(observation(test).workload.arrival_s)
    assert gaps[0] == pytest.approx(1.0, rel=0.02)
    assert gaps[-1] == pytest.approx(1 / 16, rel=0.02)
    assert gaps[n // 2] == pytest.approx(1 / (8.5 if kind == "linear" else 4.0), rel=0.02)


@given(
    gaps=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=30),
    services=st.lists(st.floats(0.1, 9.0), min_size=30, max_size=30),
    cap=st.integers(1, 6),
)
def test_a_cap_holds_requests_back_as_a_semaphore_does(gaps: list[float], services: list[float], cap: int) -> None:
    arrival = np.cumsum(gaps)
    free = [0.0] * cap
    sent, ends = [], []
    for at, service in zip(arrival, services, strict=False):
        begin = max(float(at), heapq.heappop(free))
        heapq.heappush(free, begin + service)
        sent.append(begin)
        ends.append(begin + service)
    found = send_times(arrival, np.array(ends) - arrival, cap)
    assert found == pytest.approx(np.array(sent))


def test_a_capped_rate_is_fitted_by_what_the_capped_requests_saw() -> None:
    """A rate far beyond what the cap lets through: latencies are those of a full cap, and no queue is in them."""
    work = poisson(40.0, 30.0, 3)
    _, times = client_replay(work, TRUTH.with_limits(max_num_seqs=16), PosteriorDraw(TRUTH.iteration, 0.003), closed=16)
    capped = replace(
        open_loop(2.0), name="capped", sent=len(work), completed=len(work), rate_per_s=40.0, max_concurrency=16,
        throughput_per_s=8.0, latency={"ttft_s": Summary(float(times.ttft_s.mean())), "itl_s": Summary(times.mean("itl_s", slice(None)))},
    )  # fmt: skip
    assert times.ttft_s.mean() < 0.2
    known = fitted(capped, open_loop(2.0))
    assert not known.misfit
    assert known.residuals["ttft_s"] < 0.15
    later = poisson(8.0, 200.0, 9)
    assert itl(known, later) == pytest.approx(replay(later, TRUTH).itl.mean, rel=0.1)


def test_requests_that_the_file_has_are_replayed_as_they_were_sent() -> None:
    rows = tuple(LoadTestRecord(0.5 * (i % 7) + i, 100 + i, 10 + i, 0.1, 1.0) for i in reversed(range(50)))
    test = replace(open_loop(1.0), completed=50, sent=50, records=rows)
    work = observation(test).workload
    assert work.arrival_s.tolist() == sorted(r.sent_s for r in rows)  # type: ignore[type-var]
    assert sorted(work.prompt_tokens.tolist()) == list(range(100, 150))
    part = observation(replace(test, records=rows[1:])).workload
    assert len(part) % 50 == 0
    assert len(part) > 50


def test_cached_tokens_are_not_computed() -> None:
    work = observation(replace(open_loop(1.0), prompt_tokens=Summary(400.0), cached_tokens=100.0)).workload
    assert work.prefix_tokens.mean() == pytest.approx(100.0, rel=0.02)
    assert np.all(work.prefix_tokens < work.prompt_tokens)


# -- what is stated -----------------------------------------------------------------------------------------------------


def test_what_a_file_lacks_can_be_stated_and_a_contradiction_is_said() -> None:
    lacking = replace(open_loop(2.0), prompt_tokens=None, controlled=None, rate_per_s=None)
    whole = stated(lacking, prompt=Lengths.parse("lognormal:600:0.5"), rate_per_s=2.0)
    assert whole.notes == ()
    seen = observation(whole)
    assert seen.workload.prompt_tokens.mean() == pytest.approx(600.0, rel=0.02)
    assert np.quantile(seen.workload.prompt_tokens, 0.9) == pytest.approx(1020.0, rel=0.1)
    assert observation(stated(lacking, prompt=Lengths.parse("50"), concurrency=8)).closed == 8
    against = stated(open_loop(2.0), prompt=Lengths.parse("50"), rate_per_s=7.0)
    assert [note.split(":")[0] for note in against.notes] == ["prompt tokens", "rate"]
    assert all("what is stated is taken" in note for note in against.notes)
    assert against.rate_per_s == 7.0
    assert observation(against).workload.prompt_tokens.mean() == pytest.approx(50.0, rel=0.02)


def test_engine_arguments_of_the_tests_are_used_and_stated_ones_win() -> None:
    """A sweep over ``max_num_seqs``: each test is replayed with its own limit."""
    bare = Shape(replicas=1, accelerator="H100")
    tests = [
        replace(open_loop(2.0, i), engine={"max_num_seqs": seqs, "max_num_batched_tokens": 4096})
        for i, seqs in enumerate((32, 64))
    ]
    known = calibrate_on_tests(tests, bare, model=None, hardware=None)
    assert known.model.limits.max_num_seqs == 64
    assert known.model.limits.max_num_batched_tokens == 4096
    assert any(note == "max_num_seqs is 32, 64 by the tests themselves" for note in known.notes)
    assert not any("assumed" in note for note in known.notes)
    own = calibrate_on_tests(tests, bare.with_(engine={"max_num_seqs": 128}), model=None, hardware=None)
    assert own.model.limits.max_num_seqs == 128
    assert any("128 is stated and the tests say 32, 64" in note for note in own.notes)
    split = [replace(t, engine={"tensor_parallel_size": 1 + i}) for i, t in enumerate(tests)]
    with pytest.raises(CannotPredict, match="tensor_parallel_size is 1 and 2"):
        calibrate_on_tests(split, bare, model=None, hardware=None)


# -- a fit that did not reach its data ----------------------------------------------------------------------------------


def behind_a_gateway(rate: float, ttft_s: float, itl_s: float = 0.01) -> LoadTest:
    n = 600
    return replace(
        open_loop(2.0), name=f"{rate:g} a second", sent=n, completed=n, rate_per_s=rate, throughput_per_s=rate, duration_s=n / rate,
        prompt_tokens=Summary(120.0), output_tokens=Summary(128.0),
        latency={"ttft_s": Summary(ttft_s), "itl_s": Summary(itl_s)},
    )  # fmt: skip


def interval(known: CalibratedEngine, test: LoadTest, metric: str) -> tuple[float, float]:
    """The 80 % interval of a metric's mean, at the load of a test, drawn anew."""
    work = observation(test, seed=99).workload
    members = look(work, known.model, [known.best, *known.draws[:16]], known.discrepancy)
    values = [v for m in members if (v := m.times.mean(metric, slice(None))) is not None]
    low, mid, high = (float(v) for v in np.quantile(values, (0.1, 0.5, 0.9)))
    found = widened(f"{metric.removesuffix('_s')}_mean_s", Interval(low, mid, high), None)
    return found.low, found.high


@pytest.mark.parametrize("hardware", [None, "H100"])
@pytest.mark.parametrize("ttft_s", [0.06, 0.25, 1.0, 8.0])
def test_a_time_that_every_request_waits_outside_is_found(ttft_s: float, hardware: str | None) -> None:
    tests = [behind_a_gateway(rate, ttft_s) for rate in (2.0, 10.0, 20.0)]
    shape = Shape(replicas=1, accelerator=hardware)
    known = calibrate_on_tests(
        tests, shape, model="meta-llama/Llama-3.1-8B" if hardware else None, hardware=ACCELERATORS.get(hardware or "")
    )
    assert known.residuals["ttft_s"] < 0.05
    assert not known.misfit
    (best,) = look(observation(tests[1]).workload, known.model, [known.best], known.discrepancy)
    assert best.times.mean("ttft_s", slice(None)) == pytest.approx(ttft_s, rel=0.05)


def test_a_fit_that_cannot_reach_its_data_says_so_and_its_interval_holds_them() -> None:
    """The more load, the shorter the wait: no queue does that."""
    tests = [behind_a_gateway(rate, ttft) for rate, ttft in ((2.0, 2.0), (10.0, 0.1), (20.0, 0.02))]
    known = calibrate_on_tests(tests, Shape(replicas=1), model=None, hardware=None)
    assert known.misfit["ttft_s"] > MISFIT["ttft_s"]
    assert known.warning is not None
    assert "ttft_s is off by" in known.warning
    again = CalibratedEngine.of_engine(EngineModel.from_json(known.engine.to_json()))
    assert again == known
    for test in tests:
        low, high = interval(known, test, "ttft_s")
        assert low <= (test.latency["ttft_s"].mean or 0.0) <= high


@given(ttft=st.lists(st.floats(0.01, 4.0), min_size=2, max_size=3))
@settings(max_examples=6)
def test_an_interval_at_a_measured_load_holds_the_measurement(ttft: list[float]) -> None:
    """Whatever was measured, also what no engine of this model does."""
    tests = [behind_a_gateway(rate, t) for rate, t in zip((1.0, 4.0, 10.0), ttft, strict=False)]
    known = calibrate_on_tests(tests, Shape(replicas=1), model=None, hardware=None)
    for test in tests:
        for metric in ("ttft_s", "itl_s"):
            low, high = interval(known, test, metric)
            assert 0.98 * low <= (test.latency[metric].mean or 0.0) <= 1.02 * high


def test_the_bound_of_a_misfit_is_the_method_s_own_error() -> None:
    for metric, bound in MISFIT.items():
        own = widened(metric, Interval(1.0, 1.0, 1.0), None)
        assert np.log(own.high) == pytest.approx(bound, abs=0.001)


def test_one_load_alone_checks_nothing() -> None:
    one = open_loop(2.0)
    assert fitted(one).loads == fitted(one, one, one).loads == 1
    assert fitted(one, open_loop(8.0)).loads == 2
