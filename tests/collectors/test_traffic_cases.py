"""The answers that load generators get wrong, from a server whose timing is known.

The definitions are checked on that server's own bytes with made-up stamps, so to the last digit; the whole way over sockets then counts,
and its times only have to be on the right side of what would be wrong. How exact they are is for ``benchmarks/traffic.py`` to say, on a
machine that has nothing else to do.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest

from collectors.traffic.account import Account, CountRules
from collectors.traffic.record import Exchange, RequestRecord, record_of
from collectors.traffic.schedule import Job
from collectors.traffic.tally import Tally
from tests.collectors.exact import SCRIPT, exact, open_loop, sent, users


def server_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exact_server", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exact_server"] = module
    spec.loader.exec_module(module)
    return module


SERVER = server_module()


def told(case: str, bad: bool = False) -> RequestRecord:
    """What is made of one answer, each write of which is read at once; sent at second 10, due half a second before."""
    exchange = Exchange(Job(9.5, 16, 50), b"", 10.0, sent=10.0)
    plan = SERVER.plan_of(case, SERVER.Timing(), 50, 16, bad)
    for at, data in plan:
        if data == SERVER.RESET:
            exchange.failure = ("broken_stream", "reset")
            break
        payload = exchange.answer.feed(data)
        if payload:
            exchange.reads.append((10.0 + at, payload))
    exchange.ended = 10.0 + plan[-1][0]
    assert exchange.answer.complete or exchange.failure
    return record_of(exchange, 0.0)


def test_the_definitions_on_a_plain_stream() -> None:
    r = told("plain")
    assert r.error is None
    assert (r.output_tokens, r.chunks, r.arrivals, r.token_source, r.packing) == (50, 50, 50, "usage", "one")
    assert (r.ttft_s, r.ttft_sched_s, r.e2e_s) == (pytest.approx(0.1), pytest.approx(0.6), pytest.approx(1.09))
    assert r.tpot_s == pytest.approx(0.01)
    assert r.gaps_s == pytest.approx([0.01] * 49)
    assert r.chunk_gaps_s == r.gaps_s


@pytest.mark.parametrize(("case", "packing"), [("spec4", "text"), ("spec4_usage", "usage")])
def test_four_tokens_in_a_chunk_are_four_tokens(case: str, packing: str) -> None:
    r = told(case)
    assert (r.output_tokens, r.chunks, r.packing) == (50, 13, packing)
    assert r.tpot_s == pytest.approx(0.01)  # 46 tokens after the first four, in 460 ms
    assert r.gaps_s == pytest.approx([0.01] * 46)
    assert r.chunk_gaps_s == pytest.approx([0.04] * 11 + [0.02])


def test_an_early_role_is_no_token() -> None:
    r = told("role_early")
    assert r.ttft_s == pytest.approx(0.1)
    assert r.first_byte_s == pytest.approx(10.005)
    assert (r.chunks, len(r.gaps_s)) == (50, 49)


def test_reasoning_is_output_and_content_comes_later() -> None:
    r = told("reasoning")
    assert (r.output_tokens, r.ttft_s, r.first_content_s) == (50, pytest.approx(0.1), pytest.approx(10.35))


def test_usage_that_comes_late_is_waited_for_in_no_latency() -> None:
    r = told("late_usage")
    assert (r.last_s, r.done_s, r.token_source) == (pytest.approx(10.59), pytest.approx(10.79), "usage")
    assert r.e2e_s == pytest.approx(1.09)


def test_a_stream_that_is_held_up_is_told_apart_from_speculative_decoding() -> None:
    held, packed = Account(CountRules()), Account(CountRules())
    held.add(told("coalesced"))
    packed.add(told("spec4"))
    assert (held.tally.bunched, held.tally.streams, held.tally.tokens / held.tally.chunks) == (1, 1, 1.0)
    assert (packed.tally.bunched, packed.tally.streams, packed.tally.tokens / packed.tally.chunks) == (0, 1, 50 / 13)
    r = told("coalesced")
    assert (r.chunks, r.arrivals) == (50, 10)
    assert r.tpot_s == pytest.approx(0.01)  # 45 tokens after the first five, in 450 ms
    assert r.chunk_gaps_s == pytest.approx(([0.0] * 4 + [0.05]) * 9 + [0.0] * 4)


def test_failures_within_a_stream() -> None:
    assert [told(case, bad=True).error for case in ("http_503", "reset", "in_stream_error", "truncated")] == [
        "http_5xx",
        "broken_stream",
        "in_stream_error",
        "broken_stream",
    ]
    assert told("http_503", bad=True).retry_after_s == 2.0


# -- the whole way ------------------------------------------------------------------------------------------------------


def ran(case: str, rate: float = 10.0, seconds: float = 1.0) -> tuple[Tally, list[RequestRecord], int]:
    with exact(case) as server:
        tally, records = sent(server.url, open_loop(rate, seconds), CountRules(sending_s=seconds))
        log = server.log()
    assert log["requests"] == tally.sent == rate * seconds
    assert tally.ended == len(records) == tally.sent
    return tally, records, int(log["bad"])


@pytest.mark.parametrize("case", ["plain", "spec4", "role_early", "reasoning", "late_usage"])
def test_a_first_token_is_never_early(case: str) -> None:
    tally, records, _ = ran(case)
    assert (tally.ok, tally.errors) == (10, {})
    assert {r.output_tokens for r in records} == {50}
    first = tally.values["ttft_sent_s"].quantiles([0.0, 0.5])
    assert 0.099 <= (first[0] or 0) <= (first[1] or 9) < 0.5
    assert tally.values["tpot_s"].quantiles([0.5])[0] == pytest.approx(0.01, rel=0.25)
    for r in records:
        assert r.sent_s is not None
        assert r.first_s is not None
        assert r.last_s is not None
        assert r.done_s is not None
        assert r.due_s <= r.sent_s <= r.first_s <= r.last_s <= r.done_s


def test_chunks_that_come_together_are_seen_to() -> None:
    tally, _, _ = ran("coalesced")
    assert tally.bunched == tally.streams
    assert tally.tokens / tally.chunks == 1.0
    assert tally.values["icl_s"].quantiles([0.5]) == [0.0]  # as they came: five at once


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("http_503", "http_5xx"),
        ("reset", "broken_stream"),
        ("in_stream_error", "in_stream_error"),
        ("truncated", "broken_stream"),
    ],
)
def test_every_failure_is_counted(case: str, kind: str) -> None:
    tally, _, bad = ran(case, rate=50.0, seconds=1.0)
    assert bad == 5
    assert dict(tally.errors) == {kind: 5}
    assert tally.ok == 45
    assert tally.values["ttft_s"].count == 45, "a failure tells no latency"
    assert tally.retry_after.count == (5 if case == "http_503" else 0)


def test_a_stall_under_a_cap_shows_in_what_counts_from_the_schedule() -> None:
    """Coordinated omission: the server stands still for 3 s, and a cap lets only some of the requests find that out."""
    with exact("stall") as server:
        tally, records = sent(server.url, open_loop(50, 6.0, output=5), most_in_flight=10, connections=10)
    assert tally.ok == tally.sent == 300
    assert tally.held > 50
    # What users waited at worst: nearly all of the stall. At most ten requests at a time could find out by being sent.
    assert (tally.values["ttft_s"].quantiles([0.99])[0] or 0) > 2.5
    by_schedule = sum((r.ttft_sched_s or 0) > 1.0 for r in records)
    by_sending = sum((r.ttft_s or 0) > 1.0 for r in records)
    assert by_schedule >= 100  # those that were due in the first 2 s of the stall, and the queue that they made
    assert by_sending < by_schedule / 2


def test_users_wait_for_their_answers() -> None:
    with exact() as server:
        tally, records = sent(server.url, users(5, 1.5), CountRules(sending_s=1.5), connections=5)
        assert server.log()["requests"] == tally.sent
    assert tally.ok == tally.sent
    assert 5 <= tally.sent <= 15  # five users, 0.59 s each time at least
    assert max(sum(a.due_s <= b.due_s < (a.done_s or 0) for a in records) for b in records) <= 5


def test_constant_is_constant() -> None:
    with exact() as server:
        tally, _ = sent(server.url, open_loop(50, 2.0, output=2))
        at = np.array(server.log()["at"])
    assert tally.unsent == 0
    assert len(at) == tally.sent == 100
    # Counted at the server; the median gap is that of the schedule also where the machine stumbles.
    assert np.median(np.diff(at)) == pytest.approx(0.02, rel=0.05)
