"""Tallies of parts merge to that of the whole; intervals hold what they promise; windows hold what was counted."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.sketch import Sketch
from collectors.traffic.account import Account, CountRules
from collectors.traffic.record import RequestRecord
from collectors.traffic.tally import LATENCIES, Tally, Values, ranks
from collectors.traffic.windows import windows_of


def record(
    due: float = 0.0, ttft: float = 0.1, gaps: int = 4, error: str | None = None, prompt: int | None = 20
) -> RequestRecord:
    last = due + ttft + 0.01 * gaps
    found = RequestRecord(due, due + 0.001, due + ttft, last, (0.01,) * gaps, prompt, gaps + 1, error, done_s=last)
    found.tpot_s, found.chunks, found.arrivals = 0.01, gaps + 1, gaps + 1
    return found


records = st.builds(
    record,
    st.floats(0, 100),
    st.floats(0.002, 5),
    st.integers(1, 9),
    st.sampled_from([None, None, "timeout", "http_5xx"]),
    st.sampled_from([20, 30]),
)


@given(st.lists(records, max_size=40), st.integers(1, 4))
def test_parts_merge_to_exactly_the_whole(several: list[RequestRecord], n: int) -> None:
    rules = CountRules(warmup_s=10.0, sending_s=90.0, limits={"ttft_s": 1.0}, slice_s=5.0)
    whole, parts = Account(rules), [Account(rules) for _ in range(n)]
    for i, one in enumerate(several):
        whole.add(one)
        parts[i % n].add(one)
    merged = Tally()
    for part in parts:
        merged.merge(pickle.loads(pickle.dumps(part.tally)))
    for name in (
        "ok",
        "good",
        "warmup",
        "steady_ok",
        "steady_good",
        "steady_tokens",
        "tokens",
        "prompt_tokens",
        "errors",
        "chunks",
        "all_output",
    ):
        assert getattr(merged, name) == getattr(whole.tally, name), name
    for name in LATENCIES:
        mine, its = merged.values[name], whole.tally.values[name]
        assert mine.count == its.count
        assert mine.quantiles([0.1, 0.5, 0.99]) == its.quantiles([0.1, 0.5, 0.99])
    assert merged.slices.keys() == whole.tally.slices.keys()
    for index, piece in merged.slices.items():
        other = whole.tally.slices[index]
        assert (piece.ok, piece.errors, piece.output_tokens) == (other.ok, other.errors, other.output_tokens)


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=300), st.integers(1, 50))
def test_many_values_become_a_sketch_and_stay_the_same_in_any_order(values: list[float], kept: int) -> None:
    one, parts = Values(kept), [Values(kept), Values(kept)]
    for i, value in enumerate(values):
        one.add(value)
        parts[i % 2].add(value)
    parts[0].merge(parts[1])
    assert one.count == parts[0].count == len(values)
    assert one.mean == pytest.approx(np.mean(values))
    for share in (0.0, 0.5, 0.9, 1.0):
        truth = float(np.sort(values)[max(0, int(np.ceil(share * len(values) - 1e-9)) - 1)])
        assert one.quantiles([share])[0] == pytest.approx(truth, rel=0.0101 if not one.exact else 1e-12)
    assert one.sketch().quantile(0.5) == parts[0].sketch().quantile(0.5) == Sketch.from_values(values).quantile(0.5)


def test_nothing_is_none_and_not_zero() -> None:
    empty = Values()
    assert (empty.count, empty.mean, empty.quantiles([0.5]), empty.interval(0.5)) == (0, None, [None], (None, None))


@pytest.mark.parametrize(("n", "share"), [(20, 0.5), (200, 0.9), (2000, 0.99), (100_000, 0.5)])
def test_the_interval_holds_the_quantile_as_often_as_it_says(n: int, share: float) -> None:
    low, high = ranks(n, share)
    assert low is not None
    assert high is not None
    below = np.random.default_rng(5).binomial(n, share, 20_000)  # values below the true quantile
    held = float(np.mean((below >= low) & (below < high)))
    assert held + 0.005 >= 0.95
    assert held < 0.985, "no wider than it need be"


def test_few_values_do_not_bound_a_far_quantile() -> None:
    assert ranks(100, 0.999)[1] is None
    assert ranks(5, 0.5) == (None, None)
    assert ranks(0, 0.5) == (None, None)
    assert ranks(100, 0.01)[0] is None


def test_the_warm_up_is_in_no_figure_and_failures_in_no_latency() -> None:
    account = Account(CountRules(warmup_s=10.0, sending_s=100.0))
    for one in (record(5.0, ttft=9.0), record(20.0), record(30.0, error="timeout"), record(5.0, error="timeout")):
        account.add(one)
    tally = account.tally
    assert (tally.warmup, tally.ok, dict(tally.errors)) == (2, 1, {"timeout": 1})
    assert tally.values["ttft_s"].quantiles([1.0]) == [pytest.approx(0.1)]
    assert (tally.all_ok, tally.all_errors) == (2, 2)


def test_good_is_every_limit_kept_by_the_schedule() -> None:
    account = Account(CountRules(limits={"ttft_s": 0.2, "itl_s": 0.02}))
    late = record(ttft=0.5)
    late.sent_s = 0.45  # soon after it was sent, but long after it was due
    for one in (record(), late, record(error="timeout")):
        account.add(one)
    assert (account.tally.ok, account.tally.good, account.tally.ended) == (2, 1, 3)


def test_a_server_that_tells_no_prompt_tokens_leaves_them_unknown() -> None:
    account = Account(CountRules())
    account.add(record())
    account.add(record(prompt=None))
    assert account.tally.prompt_tokens is None
    (window,) = windows_of(account.tally, 1.0, "e", 60.0, 0.0, 5.0)
    assert window.count("prompt_tokens") is None
    assert window.count("requests") == 2


def test_windows_hold_what_ended_in_them() -> None:
    started = 1_800_000_030.0
    account = Account(CountRules(slice_s=5.0, started_at=started))
    for due in (0.0, 10.0, 50.0, 89.0):
        account.add(record(due))
    account.add(record(40.0, error="timeout"))
    windows = windows_of(account.tally, 5.0, "chat", 60.0, started, 90.0)
    assert [w.start for w in windows] == [1_800_000_000.0, 1_800_000_060.0]
    assert [(w.count("requests"), w.count("errors")) for w in windows] == [(2, 0), (3, 1)]
    assert [w.coverage for w in windows] == [0.5, 1.0]
    assert [w.sketches["ttft_s"].count for w in windows] == [2, 2]
    assert {(w.source, w.endpoint) for w in windows} == {("traffic", "chat")}
    with pytest.raises(ValueError, match="slices of 7 s"):
        windows_of(account.tally, 7.0, "chat", 60.0, started, 90.0)
