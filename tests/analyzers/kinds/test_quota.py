"""A rate-limited API: request by request as a plain reading of the rules has it, and the rules themselves by hand."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analyzers.kinds.quota.limits import ApiQuota, QuotaLimit, replay
from analyzers.kinds.service import Retries, Speed
from collectors.workload import Workload
from tests.analyzers.kinds.loads import requests_per_s, seconds, steady, workload, workloads

SPEED = Speed(0.25, 0.0625)
ONCE = Retries(tries=1)


class Counter:
    """One limit, as plainly as possible."""

    def __init__(self, limit: QuotaLimit | None) -> None:
        self.limit = limit
        self.window = 0
        self.left = math.inf if limit is None else limit.amount
        self.at = 0.0

    def free_at(self, now: float, need: float) -> float:
        if self.limit is None:
            return now
        if self.limit.continuous:
            per_second = self.limit.amount / self.limit.period_s
            self.left = min(self.limit.amount, self.left + (now - self.at) * per_second)
            self.at = now
            missing = need - self.left
            return now if missing <= 1e-9 * self.limit.amount else now + missing / per_second
        if math.floor(now / self.limit.period_s) != self.window:
            self.window = math.floor(now / self.limit.period_s)
            self.left = self.limit.amount
        return now if self.left > 1e-9 else (self.window + 1) * self.limit.period_s


def plain(
    load: Workload, quota: ApiQuota, retries: Retries, max_tokens: int | None, seed: int
) -> tuple[list[float], list[int], int]:
    """When each was accepted (-1: never), its calls, and the refusals."""
    u = np.random.default_rng((seed, 1)).random(len(load))
    tokens, requests = Counter(quota.tokens), Counter(quota.requests)
    accepted, tries, refused = [-1.0] * len(load), [0] * len(load), 0
    events = [(at, i) for i, at in enumerate(load.arrival_s)]
    heapq.heapify(events)
    while events:
        now, i = heapq.heappop(events)
        tries[i] += 1
        output = int(load.output_tokens[i])
        need = float(load.prompt_tokens[i] + (output if max_tokens is None else max(output, max_tokens)))
        if quota.tokens is not None and quota.tokens.continuous and need > quota.tokens.amount:
            continue
        free = (requests.free_at(now, 1.0), tokens.free_at(now, need))
        if free[0] == now:
            requests.left -= 1
            if free[1] == now:
                tokens.left -= need
                accepted[i] = now
                continue
        refused += 1
        if tries[i] == retries.tries:
            continue
        allowed, k = max(free), tries[i] - 1
        if not retries.heeds_retry_after or allowed - now > retries.longest_heeded_s:
            turn = (u[i] + k * 0.6180339887498949) % 1.0
            allowed = now + min(retries.first_s * 2**k, retries.most_s) * (1.0 - retries.jitter * turn)
        heapq.heappush(events, (allowed, i))
    return accepted, tries, refused


limits = st.one_of(
    st.none(),
    st.builds(QuotaLimit, st.sampled_from((60.0, 240.0, 1000.0)), st.sampled_from((1.0, 10.0, 60.0)), st.booleans()),
)
clients = st.builds(
    Retries,
    tries=st.integers(1, 5),
    heeds_retry_after=st.booleans(),
    longest_heeded_s=st.sampled_from((5.0, 60.0)),
    jitter=st.sampled_from((0.0, 0.25)),
)


@given(
    load=workloads(step=0.5),
    quota=st.builds(ApiQuota, limits, limits),
    retries=clients,
    max_tokens=st.none() | st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_every_call_is_where_the_plain_reading_has_it(
    load: Workload, quota: ApiQuota, retries: Retries, max_tokens: int | None, seed: int
) -> None:
    accepted, tries, refused = plain(load, quota, retries, max_tokens, seed)
    got = replay(load, quota, SPEED, max_tokens=max_tokens, retries=retries, seed=seed)
    done = np.array(accepted) >= 0.0
    expected = np.where(done, np.array(accepted) - load.arrival_s, -1.0)
    assert_allclose(got.each.queue_s, expected, rtol=1e-9, atol=1e-9)
    assert got.each.tries.tolist() == tries
    assert got.throttled == refused
    assert got.completed == done.sum()
    assert got.completed + got.rejected + got.gave_up == got.requests == len(load)
    whole = 0.25 + 0.0625 * np.maximum(load.output_tokens - 1, 0)
    assert_allclose(got.each.e2e_s[done], expected[done] + whole[done], rtol=1e-9)
    assert_allclose(got.each.ttft_s[done], expected[done] + 0.25, rtol=1e-9)
    assert got.used["output_tokens"] == load.output_tokens[done].sum()
    assert got.used["cached_prompt_tokens"] == load.prefix_tokens[done].sum()


def test_azure_counts_tokens_by_the_minute_and_requests_by_ten_seconds() -> None:
    quota = ApiQuota.azure(1000.0)  # and 6 requests a minute: one in 10 s
    assert quota == ApiQuota(QuotaLimit(1000.0, 60.0), QuotaLimit(6.0, 10.0))
    load = workload((1.0, 5, 5), (2.0, 5, 5), (11.0, 5, 5), (12.0, 5, 5))
    got = replay(load, quota, SPEED, retries=ONCE)
    assert seconds(got.each.queue_s) == [0.0, -1.0, 0.0, -1.0]
    assert (got.throttled, got.gave_up) == (2, 2)


def test_the_call_that_reaches_the_token_limit_is_still_accepted() -> None:
    load = workload((0.0, 90, 9), (1.0, 90, 9), (2.0, 1, 0), (61.0, 1, 0))
    got = replay(load, ApiQuota(QuotaLimit(100.0)), SPEED, retries=ONCE)
    assert seconds(got.each.queue_s) == [0.0, 0.0, -1.0, 0.0]
    assert got.gauges["tokens_per_minute_max"] == 198.0


def test_max_tokens_is_what_the_limit_counts_and_the_bill_does_not() -> None:
    load = workload((0.0, 10, 5), (1.0, 10, 5))
    quota = ApiQuota(QuotaLimit(60.0, continuous=True))
    assert replay(load, quota, SPEED, retries=ONCE).completed == 2
    tight = replay(load, quota, SPEED, max_tokens=40, retries=ONCE)
    assert tight.completed == 1
    assert tight.used["output_tokens"] == 5
    with pytest.raises(ValueError, match="max_tokens"):
        replay(load, quota, SPEED, max_tokens=0)
    with pytest.raises(ValueError, match="max_tokens"):
        replay(load, quota, SPEED, max_tokens=np.array([1, 2, 3]))


def test_a_bucket_takes_a_call_whole_and_never_one_that_is_larger() -> None:
    quota = ApiQuota(QuotaLimit(60.0, continuous=True))  # 1 token a second, 60 at most
    load = workload((0.0, 40, 10), (0.0, 20, 10), (0.0, 60, 1))
    got = replay(load, quota, SPEED)
    assert seconds(got.each.queue_s) == [0.0, 20.0, -1.0]  # 10 left, 30 needed
    assert (got.rejected, got.gave_up, got.throttled) == (1, 0, 1)


def test_clients_that_do_not_heed_back_off_doubling_and_give_up() -> None:
    load = workload((0.0, 1, 0), (0.0, 1, 0))
    client = Retries(tries=4, first_s=1.0, most_s=3.0, jitter=0.0, heeds_retry_after=False)
    got = replay(load, ApiQuota(requests=QuotaLimit(1.0)), SPEED, retries=client)
    assert got.each.tries.tolist() == [1, 4]
    assert got.throttled == 4
    assert got.simulated_s == 1.0 + 2.0 + 3.0
    jittered = replay(load, ApiQuota(requests=QuotaLimit(1.0)), SPEED, retries=Retries(4, 1.0, 3.0, 0.5, False))
    assert 3.0 <= jittered.simulated_s < 6.0


def test_demand_beyond_the_limit_saturates_and_below_it_does_not() -> None:
    load = steady(5000, 10.0)  # 1,200 tokens a second
    assert not replay(load, ApiQuota(QuotaLimit(90_000.0)), SPEED).saturated
    over = replay(load, ApiQuota(QuotaLimit(60_000.0)), SPEED)
    assert over.saturated
    assert over.used["prompt_tokens"] + over.used["output_tokens"] <= 61_000.0 * (over.simulated_s / 60.0 + 1)


def test_empty_and_impossible_are_refused() -> None:
    nothing = Workload(*(np.array([], t) for t in (float, np.int64, np.int64, np.int64)))
    with pytest.raises(ValueError, match="no requests"):
        replay(nothing, ApiQuota(), SPEED)
    with pytest.raises(ValueError, match="above 0"):
        QuotaLimit(0.0)


def test_a_hundred_thousand_requests_a_second() -> None:
    load = steady(200_000, 10.0)
    assert requests_per_s(lambda: replay(load, ApiQuota.azure(60_000.0), SPEED), len(load)) > 100_000
