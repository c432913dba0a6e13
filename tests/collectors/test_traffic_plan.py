"""What is due when: rates over time, arrival processes, users, sessions, and how they are divided over workers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.plan import Lengths, Rates, arrivals_of
from collectors.prompt import TokensPerWord
from collectors.traffic.connection import ServerAddress
from collectors.traffic.requests import RequestFactory, RequestTemplate
from collectors.traffic.schedule import Job, OpenSchedule, SessionSchedule, ThinkTime, UserSchedule, shares, source_of
from collectors.workload import Workload

RNG = np.random.default_rng
FIVE, TEN = Lengths.parse("fixed:5"), Lengths.parse("fixed:10")
SERVER = ServerAddress("http", "h", 80, 2, ("127.0.0.1", 80))


def test_constant_arrivals_are_evenly_spaced_and_all_there() -> None:
    at = arrivals_of(Rates.constant(50, 20), "constant", RNG(1))
    assert len(at) == 1000
    assert np.diff(at) == pytest.approx(np.full(999, 0.02))


@pytest.mark.parametrize(
    ("kind", "burstiness", "cv"), [("poisson", 1.0, 1.0), ("gamma", 1.0, 1.0), ("gamma", 3.0, 3.0), ("gamma", 0.3, 0.3)]
)
def test_gaps_have_the_variation_that_was_asked_for(kind: str, burstiness: float, cv: float) -> None:
    at = arrivals_of(Rates.constant(100, 400), kind, RNG(2), burstiness)  # type: ignore[arg-type]
    gaps = np.diff(at)
    assert len(at) == pytest.approx(40_000, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)
    assert at.min() >= 0
    assert at.max() <= 400


@pytest.mark.parametrize("kind", ["constant", "poisson", "gamma"])
def test_every_process_follows_every_curve(kind: str) -> None:
    ramp = Rates(((0.0, 0.0), (100.0, 200.0)))
    steps = Rates.steps([(50, 10), (50, 0), (50, 100)])
    day = Rates.day([10, 100, 10, 100], 200.0, 400.0)
    for rates, edges in ((ramp, (0, 50, 100)), (steps, (0, 50, 100, 150)), (day, (0, 50, 100, 200, 400))):
        at = arrivals_of(rates, kind, RNG(3))  # type: ignore[arg-type]
        fine = np.linspace(0, rates.duration_s, 40_001)
        points = np.array(rates.points)
        for low, high in itertools.pairwise(edges):
            middle = (fine[:-1] + fine[1:]) / 2
            inside = (middle >= low) & (middle < high)
            slot = np.searchsorted(points[:, 0], middle[inside], side="right") - 1
            share = (middle[inside] - points[slot, 0]) / np.maximum(1e-12, points[slot + 1, 0] - points[slot, 0])
            wanted = float(
                np.sum(points[slot, 1] + share * (points[slot + 1, 1] - points[slot, 1])) * (fine[1] - fine[0])
            )
            found = int(np.count_nonzero((at >= low) & (at < high)))
            assert found == pytest.approx(wanted, abs=2 + 6 * math.sqrt(wanted))


@given(st.lists(st.tuples(st.floats(0.1, 50), st.floats(0, 200)), min_size=1, max_size=6))
def test_the_inverse_of_the_integral(steps: list[tuple[float, float]]) -> None:
    if sum(seconds * rate for seconds, rate in steps) < 1:
        return
    rates = Rates.steps(steps)
    at = rates.when(np.linspace(0, rates.expected, 50))
    assert np.all(np.diff(at) >= -1e-9)
    assert at[0] >= 0
    assert at[-1] <= rates.duration_s + 1e-9
    for reached, t in zip(np.linspace(0, rates.expected, 50), at, strict=True):
        begun, total = 0.0, 0.0
        for seconds, rate in steps:
            total += rate * min(seconds, max(0.0, t - begun))
            begun += seconds
        assert total == pytest.approx(reached, rel=1e-6, abs=1e-6)


def test_bursts_have_their_rates_and_their_dwell_times() -> None:
    rates = Rates.bursts([5.0, 50.0], [30.0, 10.0], 40_000.0, seed=4)
    times, levels = np.array(rates.points).T
    spans = {level: np.diff(times)[::2][levels[::2] == level] for level in (5.0, 50.0)}
    assert set(levels) == {5.0, 50.0}
    assert spans[5.0].mean() == pytest.approx(30, rel=0.1)
    assert spans[50.0].mean() == pytest.approx(10, rel=0.1)
    assert Rates.bursts([5.0, 50.0], [30.0, 10.0], 400.0, 4) == Rates.bursts([5.0, 50.0], [30.0, 10.0], 400.0, 4)


@pytest.mark.parametrize(
    "points",
    [
        ((0.0, 1.0),),
        ((1.0, 1.0), (2.0, 1.0)),
        ((0.0, -1.0), (1.0, 1.0)),
        ((0.0, 0.0), (9.0, 0.0)),
        ((0.0, math.nan), (1.0, 1.0)),
        ((0.0, 1e9), (99.0, 1e9)),
    ],
)
def test_rates_that_cannot_be(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="traffic"):
        Rates(points)


def test_think_times() -> None:
    assert ThinkTime.parse("2") == ThinkTime("fixed", 2.0)
    assert ThinkTime.parse("fixed:2").draw(RNG(1)) == 2.0
    assert ThinkTime.parse("exponential:500ms") == ThinkTime("exponential", 0.5)
    drawn = [ThinkTime.parse("exponential:2").draw(RNG(i)) for i in range(2000)]
    assert np.mean(drawn) == pytest.approx(2, rel=0.1)
    for text in ("", "x", "fixed:-1", "zipf:1", "fixed:inf", "fixed:nan"):
        with pytest.raises(ValueError, match="think time"):
            ThinkTime.parse(text)


def test_a_user_sends_again_after_its_answer_and_its_thought() -> None:
    source = source_of(UserSchedule(2, 10.0, FIVE, TEN, ThinkTime("fixed", 1.0)), (0,))
    first, second = source.take(), source.take()
    assert (first.due, second.due, source.due()) == (0.0, 0.0, math.inf)
    source.ended(second, 3.0, None)
    assert source.due() == 4.0
    source.ended(first, 2.5, None)
    assert source.due() == 3.5
    third = source.take()
    assert (third.due, third.user) == (3.5, first.user)
    source.ended(third, 9.5, None)
    source.take()
    assert source.due() == math.inf, "nothing is sent after the end"


def test_users_begin_one_after_the_other() -> None:
    source = source_of(UserSchedule(4, 10.0, FIVE, TEN, ramp_s=1.0), (0,))
    assert [source.take().due for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_users_stop_at_the_most() -> None:
    source = source_of(UserSchedule(3, 10.0, FIVE, TEN, most=2), (0,))
    source.take()
    source.take()
    assert source.due() == math.inf


def test_a_session_goes_on_after_its_answer_and_repeats_it() -> None:
    load = SessionSchedule(
        np.array([0.0, 5.0]), 100.0, TEN, FIVE, Lengths.parse("fixed:3"), ThinkTime("fixed", 2.0), prefix_tokens=4
    )
    source, factory = source_of(load, (0,)), RequestFactory(SERVER, RequestTemplate("m", seed=1), 0)
    first = source.take()
    body = factory.request(first)
    assert (first.turn, first.prompt_tokens, source.due()) == (0, 14, 5.0)
    source.ended(first, 1.0, "an answer")
    second = source.take()
    assert (second.due, second.session, second.turn) == (3.0, 0, 1)
    again = factory.request(second)
    assert (
        b'"messages":[{"role":"user","content":"%s"},{"role":"assistant","content":"an answer"}' % first.said.encode()
        in again
    )
    assert len(second.said.split()) == 10
    assert len(first.said.split()) == 14
    assert body.count(b"role") == 1
    source.ended(second, 4.0, None)
    assert source.due() == 5.0, "a conversation that broke does not go on"
    other = source.take()
    factory.request(other)
    assert other.said.split()[:4] == first.said.split()[:4], "all conversations begin alike"
    assert other.said.split()[4:] != first.said.split()[4:]


def test_prompts_share_what_they_should_and_nothing_else() -> None:
    factory = RequestFactory(SERVER, RequestTemplate("m", seed=1, words=TokensPerWord(0.0, 2.0)), 0)
    a, b = (Job(0.0, 200, 5, prefix_tokens=100) for _ in range(2))
    alone = Job(0.0, 200, 5)
    for job in (a, b, alone):
        factory.request(job)
    words = [job.said.split() for job in (a, b, alone)]
    assert [len(w) for w in words] == [100, 100, 100]
    assert words[0][:50] == words[1][:50]
    assert words[0][50:] != words[1][50:]
    assert words[2][:50] != words[0][:50]
    mine, its = Job(0.0, 100, 5, 60, True, session=1), Job(0.0, 100, 5, 60, True, session=2)
    again = Job(0.0, 200, 5, 100, True, session=1)
    for job in (mine, its, again):
        factory.request(job)
    assert again.said.split()[:50] == mine.said.split()[:50], "a session's next prompt begins as its last one"
    assert again.said.split()[:50] != its.said.split()[:50]
    assert len(again.said.split()) == 100


def test_headers_that_would_break_the_request() -> None:
    with pytest.raises(ValueError, match="line end"):
        RequestFactory(SERVER, RequestTemplate("m", headers={"x": "a\r\nb: c"}), 0)
    assert b"\r\nx-y: z\r\n" in RequestFactory(SERVER, RequestTemplate("m", headers={"X-Y": "z"}), 0).request(
        Job(0.0, 5, 5)
    )


@given(st.integers(1, 5), st.integers(1, 60), st.booleans())
def test_workers_send_the_same_requests_in_all(n: int, requests: int, sessions: bool) -> None:
    at = np.arange(requests) / 10
    numbers = np.arange(1, requests + 1)
    of = numbers % 7 if sessions else None
    whole = Workload(at, numbers, numbers, numbers * 0, of)
    parts = shares(OpenSchedule(whole, 10.0), n)
    found = [job for part in parts for job in _all(part)]
    assert sorted(job.prompt_tokens for job in found) == numbers.tolist()
    if sessions:
        owners = [{job.session for job in _all(part)} for part in parts]
        assert sum(len(owner) for owner in owners) == len(set().union(*owners)), "a session stays with one worker"
    users = [
        part
        for part in shares(UserSchedule(requests, 1.0, FIVE, TEN, most=requests), n)
        if isinstance(part, UserSchedule)
    ]
    assert sum(part.users for part in users) == sum(part.most or 0 for part in users) == requests


def _all(load: object) -> list[Job]:
    source = source_of(load, (0,))  # type: ignore[arg-type]
    jobs = []
    while source.due() < math.inf:
        jobs.append(source.take())
    return jobs
