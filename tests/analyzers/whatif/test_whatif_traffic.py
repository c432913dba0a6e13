"""Windows drawn again as requests: rates, lengths and cache shares come out as they were seen."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.prediction import CannotPredict
from analyzers.whatif.traffic import RecordedLengths, scaled, workload_from_windows
from collectors.sketch import Sketch
from collectors.window import Window
from collectors.workload import Ints, Workload

RNG = np.random.default_rng(5)
PROMPTS = RNG.lognormal(6.0, 0.8, 5000)


def window(
    start: float, requests: float | None, *, coverage: float = 1.0, mean: float | None = 300.0, **more: object
) -> Window:
    counts = {} if requests is None else {"requests": requests}
    if requests and mean is not None:
        counts |= {
            "prompt_tokens": requests * mean,
            "output_tokens": requests * 50.0,
            "cached_prompt_tokens": requests * mean / 4,
        }
    return Window("chat", "vllm", start, 60.0, coverage, 1, counts=counts, **more)  # type: ignore[arg-type]


def test_the_rate_follows_the_windows() -> None:
    work = workload_from_windows([window(0.0, 60.0), window(60.0, 0.0), window(120.0, 1200.0)], seed=1)
    counts, _ = np.histogram(work.arrival_s, (0.0, 60.0, 120.0, 180.0))
    assert counts[1] == 0
    assert counts[0] == pytest.approx(60, abs=5 * 60**0.5)
    assert counts[2] == pytest.approx(1200, abs=5 * 1200**0.5)


def test_a_gap_is_not_zero_load() -> None:
    gap = window(60.0, None, coverage=0.0)
    work = workload_from_windows([window(0.0, 600.0), gap, window(120.0, 600.0)], seed=1)
    assert 60 < work.duration_s <= 120
    assert len(work) == pytest.approx(1200, abs=5 * 1200**0.5)


def test_a_window_seen_in_part_counts_at_its_observed_rate() -> None:
    work = workload_from_windows([window(0.0, 300.0, coverage=0.5)], seed=1)
    assert len(work) == pytest.approx(600, abs=5 * 600**0.5)


def test_lengths_come_from_sketches_and_else_from_means() -> None:
    fine = workload_from_windows([window(0.0, 5000.0, sketches={"prompt_length": Sketch.from_values(PROMPTS)})], seed=2)
    assert np.quantile(fine.prompt_tokens, (0.1, 0.5, 0.9)) == pytest.approx(
        np.quantile(PROMPTS, (0.1, 0.5, 0.9)), rel=0.08
    )
    assert fine.output_tokens.mean() == pytest.approx(50.0)
    assert (fine.prefix_tokens.sum() / fine.prompt_tokens.sum()) == pytest.approx(0.25, abs=0.01)


def test_a_coarse_histogram_keeps_its_exact_mean() -> None:
    edges = (10.0, 100.0, 1000.0, 10_000.0)
    counts, _ = np.histogram(PROMPTS, (0.0, *edges, np.inf))
    sketch = Sketch.from_histogram(edges, counts, float(PROMPTS.sum()))
    work = workload_from_windows([window(0.0, 8000.0, sketches={"prompt_length": sketch})], seed=2)
    assert work.prompt_tokens.mean() == pytest.approx(PROMPTS.mean(), rel=0.05)


def test_a_window_without_lengths_borrows_those_of_the_span() -> None:
    work = workload_from_windows([window(0.0, 600.0, mean=None), window(60.0, 600.0)], seed=3)
    assert work.prompt_tokens.mean() == pytest.approx(300.0)


def test_many_requests_are_thinned_in_time_and_not_in_rate() -> None:
    work = workload_from_windows([window(60.0 * i, 600.0) for i in range(1000)], seed=4, max_requests=5000)
    assert len(work) == pytest.approx(5000, rel=0.15)
    assert len(work) / work.duration_s == pytest.approx(10.0, rel=0.1)
    single = workload_from_windows([window(0.0, 60_000.0)], seed=4, max_requests=5000)
    assert len(single) / single.duration_s == pytest.approx(1000.0, rel=0.1)
    assert len(single) == pytest.approx(5000, rel=0.1)


def test_scale_and_seed() -> None:
    seen = [window(0.0, 600.0)]
    twice = workload_from_windows(seen, seed=1, scale=2.0)
    assert len(twice) == pytest.approx(1200, abs=5 * 1200**0.5)
    again = workload_from_windows(seen, seed=1, scale=2.0)
    assert np.array_equal(twice.arrival_s, again.arrival_s)
    assert not np.array_equal(twice.arrival_s[:50], workload_from_windows(seen, seed=2, scale=2.0).arrival_s[:50])
    assert scaled(twice, 2.0).duration_s == pytest.approx(twice.duration_s / 2)


@pytest.mark.parametrize(
    "seen",
    [[], [window(0.0, None)], [window(0.0, 0.0)], [window(0.0, 5.0, coverage=0.0)], [window(0.0, 500.0, mean=None)]],
)
def test_no_traffic_is_refused(seen: list[Window]) -> None:
    with pytest.raises(CannotPredict) as caught:
        workload_from_windows(seen, seed=1)
    assert caught.value.code == "NO_TRAFFIC"


# -- lengths that were recorded together --------------------------------------------------------------------------------


def _drawn(n: int = 4000) -> Workload:
    rng = np.random.default_rng(3)
    prompt = np.concatenate([rng.integers(10, 100, n // 2), rng.integers(1000, 2000, n - n // 2)])
    return Workload(np.arange(n) * 0.1, prompt, rng.integers(1, 300, n), np.zeros(n, np.int64))


def _rank_correlation(one: Ints, other: Ints) -> float:
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])


@pytest.mark.parametrize("sign", [1, -1])
def test_recorded_lengths_bring_prompts_and_answers_together_and_change_no_length(sign: int) -> None:
    rng = np.random.default_rng(1)
    prompt = rng.lognormal(5.0, 1.0, 500)
    output = prompt**sign * np.exp(rng.normal(0.0, 0.3, 500)) * 1000
    recorded = RecordedLengths(prompt.astype(np.int64), output.astype(np.int64))
    before = _drawn()
    after = recorded.dealt(before, seed=7)
    assert np.array_equal(after.prompt_tokens, before.prompt_tokens)
    assert np.array_equal(after.arrival_s, before.arrival_s)
    for part in (slice(0, 2048), slice(2048, 4000)):
        assert np.array_equal(np.sort(after.output_tokens[part]), np.sort(before.output_tokens[part])), (
            "at each time of day"
        )
    near = slice(0, 512)
    seen = _rank_correlation(recorded.prompt_tokens, recorded.output_tokens)
    assert abs(_rank_correlation(before.prompt_tokens[near], before.output_tokens[near])) < 0.15
    assert _rank_correlation(after.prompt_tokens[near], after.output_tokens[near]) == pytest.approx(seen, abs=0.05)
    assert np.array_equal(recorded.dealt(before, seed=7).output_tokens, after.output_tokens)


def test_lengths_that_have_nothing_to_do_with_each_other_stay_so_and_a_few_records_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    apart = RecordedLengths(rng.integers(1, 1000, 2000), rng.integers(1, 1000, 2000))
    work = _drawn()
    dealt = apart.dealt(work, seed=1)
    assert abs(_rank_correlation(dealt.prompt_tokens[:512], dealt.output_tokens[:512])) < 0.15
    few = RecordedLengths(np.arange(1, 51), np.arange(1, 51))
    assert few.dealt(work, seed=1) is work
    with pytest.raises(ValueError, match="as many prompts as answers"):
        RecordedLengths(np.arange(3), np.arange(4))
