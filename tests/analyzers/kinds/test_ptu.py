"""Purchased throughput: the leaky bucket call by call as a plain reading has it, its figures by hand, and the spill."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analyzers.kinds.ptu.throughput import Ptu, replay
from analyzers.kinds.service import Retries, Speed
from collectors.workload import Workload
from tests.analyzers.kinds.loads import requests_per_s, seconds, steady, workload, workloads

SPEED = Speed(0.25, 0.125)
ONE_A_SECOND = Ptu(ptus=60.0, input_tokens_per_minute_per_ptu=1.0, output_weight=4.0)


def plain(
    load: Workload, ptu: Ptu, retries: Retries, max_tokens: int | None, spills: bool
) -> tuple[list[float], list[bool], int, float, float]:
    """When each was accepted, whether it spilled, refusals, and the highest and the mean level over the bucket to the last event."""
    u = np.random.default_rng((0, 1)).random(len(load))
    full = ptu.per_second * ptu.bucket_s
    level, clock, area, highest = 0.0, 0.0, 0.0, 0.0
    accepted, spilled, tries, refused = [-1.0] * len(load), [False] * len(load), [0] * len(load), 0
    events: list[tuple[float, int, int]] = [(at, 1, i) for i, at in enumerate(load.arrival_s)]  # 0: ends, 1: calls
    while events:
        event = min(events)
        events.remove(event)
        now, kind, i = event
        dry = clock + level / ptu.per_second
        left = max(0.0, level - ptu.per_second * (now - clock))
        area += 0.5 * (level + left) * (min(now, dry) - clock)
        level, clock = left, now
        output = int(load.output_tokens[i])
        uncached = float(load.prompt_tokens[i] - load.prefix_tokens[i])
        estimate = uncached + ptu.output_weight * (output if max_tokens is None else max(output, max_tokens))
        if kind == 0:
            level = max(0.0, level + uncached + ptu.output_weight * output - estimate)
        else:
            tries[i] += 1
            if level < full:
                level += estimate
                accepted[i] = now
                events.append((now + 0.25 + 0.125 * max(output - 1, 0), 0, i))
            else:
                refused += 1
                if spills:
                    accepted[i], spilled[i] = now, True
                elif tries[i] < retries.tries:
                    wait = (math.floor((level - full) / ptu.per_second * 1000) + 1) / 1000
                    if wait > (retries.longest_heeded_s if retries.heeds_retry_after else 0.0):
                        k = tries[i] - 1
                        turn = (u[i] + k * 0.6180339887498949) % 1.0
                        wait = min(retries.first_s * 2**k, retries.most_s) * (1 - retries.jitter * turn)
                    events.append((now + wait, 1, i))
        highest = max(highest, level)
    return accepted, spilled, refused, highest / full, area / full


@given(
    load=workloads(step=0.5),
    ptu=st.builds(
        Ptu, st.sampled_from((15.0, 60.0)), st.sampled_from((4.0, 32.0)), st.sampled_from((1.0, 4.0)), st.just(8.0)
    ),
    retries=st.builds(Retries, tries=st.integers(1, 4), heeds_retry_after=st.booleans()),
    max_tokens=st.none() | st.integers(1, 40),
    spills=st.booleans(),
)
def test_every_call_is_where_the_plain_reading_has_it(
    load: Workload, ptu: Ptu, retries: Retries, max_tokens: int | None, spills: bool
) -> None:
    accepted, spilled, refused, highest, area = plain(load, ptu, retries, max_tokens, spills)
    there = Speed(2.0, 1.0)
    got = replay(load, ptu, SPEED, max_tokens=max_tokens, retries=retries, spill=there if spills else None)
    done = np.array(accepted) >= 0.0
    queue = np.where(done, np.array(accepted) - load.arrival_s, -1.0)
    assert_allclose(got.each.queue_s, queue, rtol=1e-9, atol=1e-9)
    first = np.where(spilled, 2.0, 0.25)
    assert_allclose(got.each.ttft_s[done], (queue + first)[done], rtol=1e-9)
    assert got.throttled == refused
    assert got.gauges["spilled_requests"] == sum(spilled)
    assert got.gauges["utilization_max"] == pytest.approx(highest, rel=1e-9)
    assert got.gauges["utilization_mean"] * got.used["ptu_hours"] * 3600.0 / ptu.ptus == pytest.approx(area, rel=1e-9)
    assert got.used["spilled_prompt_tokens"] == load.prompt_tokens[np.array(spilled)].sum()


def test_utilisation_rises_by_the_estimate_falls_all_the_time_and_is_corrected_at_the_end() -> None:
    # 60 is full, 1 drains each second. 10 prompt + 4 x 20 asked for = 90, of which 4 x 16 did not come out: 26 at the end.
    load = workload((0.0, 10, 4), (0.5, 1, 1), (1.0, 1, 1))
    got = replay(load, ONE_A_SECOND, SPEED, max_tokens=20, retries=Retries(tries=1))
    # At 0.5 s it stands at 89.5: refused. The first call ends at 0.25 + 3 x 0.125 = 0.625; at 1 s it is 90 - 64 - 1 = 25: accepted.
    assert got.gauges["utilization_max"] == pytest.approx((25 + 1 + 80) / 60)
    assert seconds(got.each.queue_s) == [0.0, -1.0, 0.0]


def test_retry_after_is_when_it_is_below_full_again() -> None:
    load = workload((0.0, 70, 0), (1.0, 1, 0))
    got = replay(load, ONE_A_SECOND, SPEED)
    assert got.each.tries.tolist() == [1, 2]
    assert got.each.queue_s[1] == pytest.approx(
        9.001
    )  # 69 at 1 s; at 60 it is still full, so the next whole millisecond


def test_cached_prompt_tokens_weigh_nothing() -> None:
    load = Workload(np.zeros(2), *(np.array([x, x], np.int64) for x in (61, 0, 60)))
    got = replay(load, ONE_A_SECOND, SPEED)
    assert got.throttled == 0
    assert got.gauges["utilization_max"] == pytest.approx(2 / 60)


def test_what_is_paid_for_is_the_reservation_and_the_spilled_tokens() -> None:
    load = workload((0.0, 100, 1), (0.0, 7, 3), (7200.0, 5, 1))
    got = replay(load, ONE_A_SECOND, SPEED, spill=Speed(1.0, 0.5))
    assert got.used["ptu_hours"] == pytest.approx(60.0 * 7200.25 / 3600.0)
    assert (got.used["spilled_prompt_tokens"], got.used["spilled_output_tokens"]) == (7.0, 3.0)
    assert got.each.e2e_s[1] == 2.0


def test_demand_beyond_the_purchase_saturates_unless_it_spills() -> None:
    load = steady(5000, 10.0)  # 10 x (100 + 4 x 20) = 1,800 weighted tokens a second
    small, large = (Ptu(n, 3000.0, 4.0) for n in (18.0, 50.0))  # 900 and 2,500
    assert replay(load, small, SPEED).saturated
    assert not replay(load, large, SPEED).saturated
    spilled = replay(load, small, SPEED, spill=SPEED)
    assert not spilled.saturated
    # What it does not sell by the second goes over: half, and the bucket it begins with.
    assert spilled.gauges["spilled_requests"] / 5000 == pytest.approx(0.5 - 60 * 900 / 180 / 5000, abs=0.02)


@pytest.mark.parametrize("bad", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, math.nan)])
def test_a_purchase_of_nothing_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Ptu(*bad)


def test_a_hundred_thousand_requests_a_second() -> None:
    load = steady(200_000, 10.0)
    assert requests_per_s(lambda: replay(load, Ptu(30.0, 3000.0, 4.0), SPEED), len(load)) > 100_000
