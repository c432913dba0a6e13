"""Open-loop traffic: what is due is sent, and what could not be sent is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise

import numpy as np
import pytest

from collectors.base import ScrapeTarget
from collectors.plan import Lengths, TrafficPlan
from collectors.prompt import TokensPerWord
from collectors.traffic.record import RequestRecord
from collectors.traffic.thread import TrafficResult, simulate
from collectors.window import CollectError
from tests.collectors.clocks import MachineClock
from tests.collectors.servers import Handler, Request, answering, serve, streaming

TEMPLATE_TOKENS, TOKENS_PER_WORD = 12, 1.5


def model_server(hold_s: float = 0.0, fail_every: int = 0) -> Handler:
    """Answers with as many tokens as asked for, and counts prompt tokens as a tokenizer of its own would."""
    served = 0

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        body = json.loads(request.body)
        words = len(body["messages"][0]["content"].split())
        if fail_every and served % fail_every == 0:
            await answering("no", "503 Service Unavailable")(request, writer)
            return
        await asyncio.sleep(hold_s if body["max_tokens"] > 1 else 0)
        tokens = body["max_tokens"]
        events: list[dict[str, object] | str] = [{"choices": [{"delta": {"content": "w"}}]} for _ in range(tokens)]
        events.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
        usage = {"prompt_tokens": round(TEMPLATE_TOKENS + TOKENS_PER_WORD * words), "completion_tokens": tokens}
        await streaming([*events, {"choices": [], "usage": usage}], pause_s=0.005)(request, writer)

    return handler


def plan(rate: float = 50.0, duration_s: float = 0.6, **changes: object) -> TrafficPlan:
    settings: dict[str, object] = {
        "rate": rate,
        "duration_s": duration_s,
        "prompt_tokens": Lengths.parse("uniform:40:120"),
        "output_tokens": Lengths.parse("fixed:4"),
        "model": "m",
        "seed": 3,
    }
    return TrafficPlan(**(settings | changes))  # type: ignore[arg-type]


def run(
    handler: Handler,
    traffic: TrafficPlan,
    stop: Callable[[asyncio.Task[TrafficResult], list[RequestRecord]], Awaitable[None]] | None = None,
) -> tuple[TrafficResult, list[Request], list[RequestRecord]]:
    seen: list[RequestRecord] = []

    async def main(url: str) -> TrafficResult:
        task = asyncio.create_task(simulate(traffic, ScrapeTarget("a", url), MachineClock(), seen.append))
        if stop is not None:
            await stop(task, seen)
        return await task

    with serve(handler) as served:
        return asyncio.run(main(served.url)), served.requests, seen


def test_everything_due_is_sent_and_answered() -> None:
    result, requests, seen = run(model_server(), plan(arrivals="constant", exact_output=True))
    assert (result.planned, result.sent, result.held, result.abandoned, result.succeeded) == (30, 30, 0, 0, 30)
    assert not result.cancelled
    assert seen == result.records
    assert result.output_tokens == 120
    assert len(requests) == 32  # two of them for the calibration
    assert all(r.json["ignore_eos"] is True and r.json["min_tokens"] == 4 for r in requests[2:])
    sketches = result.sketches()
    apart = [record for record in result.records if record.tpot_s is not None]  # not all tokens in one read
    assert apart
    assert {name: s.count for name, s in sketches.items()} == {
        **dict.fromkeys(("ttft_s", "ttft_sent_s", "e2e_s", "prompt_length", "output_length"), 30),
        "tpot_s": len(apart),
        "itl_s": sum(len(record.gaps_s) for record in apart),
    }
    for record in result.records:
        assert record.sent_s is not None
        assert record.first_s is not None
        assert record.last_s is not None
        assert record.due_s <= record.sent_s <= record.first_s <= record.last_s


def test_prompts_have_the_planned_lengths_by_the_servers_own_count() -> None:
    traffic = plan(arrivals="constant")
    result, _, _ = run(model_server(), traffic)
    wanted = dict(zip(traffic.workload().arrival_s, traffic.workload().prompt_tokens, strict=True))
    for record in result.records:
        assert record.prompt_tokens == pytest.approx(wanted[record.due_s], abs=1)


def test_a_slow_server_does_not_slow_the_traffic_down() -> None:
    result, _, _ = run(model_server(hold_s=0.5), plan(rate=40, arrivals="constant"))
    assert result.succeeded == result.sent == 24
    due = [record.due_s for record in result.records]
    assert sorted(due) == pytest.approx([i / 40 for i in range(24)])
    assert result.sketches()["ttft_s"].minimum >= 0.5  # type: ignore[operator]


def test_beyond_the_limit_requests_are_held_and_their_wait_counts() -> None:
    result, requests, _ = run(model_server(hold_s=0.3), plan(rate=40, arrivals="constant", max_in_flight=5))
    assert (result.planned, result.sent, result.succeeded) == (24, 24, 24)
    assert result.held >= 15
    assert len(requests) == 2 + 24
    # Five at a time, 0.3 s each: the last of 24 goes after 1.2 s and was due after 0.575 s.
    last = max(result.records, key=lambda record: record.due_s)
    assert last.ttft_sched_s is not None
    assert last.ttft_s is not None
    assert last.ttft_sched_s >= 0.9
    assert last.ttft_sched_s > last.ttft_s + 0.4


def test_failures_are_counted_by_kind() -> None:
    result, _, _ = run(model_server(fail_every=5), plan(arrivals="constant"))
    assert result.errors == {"http_5xx": 6}
    assert result.succeeded == 24
    windows = result.windows("chat", 60.0)
    assert sum(w.counts.get("errors", 0) for w in windows) == 6
    assert sum(w.counts.get("requests", 0) for w in windows) == 30
    assert {w.source for w in windows} == {"traffic"}
    assert sum(w.sketches["ttft_s"].count for w in windows if "ttft_s" in w.sketches) == 24
    assert sum(w.coverage for w in windows) * 60 == pytest.approx(result.elapsed_s, rel=0.01)


def test_cancelling_gives_what_there_is() -> None:
    async def stop(task: asyncio.Task[TrafficResult], seen: list[RequestRecord]) -> None:
        while len(seen) < 3:  # noqa: ASYNC110  the list is filled by calls, not by a task
            await asyncio.sleep(0.01)
        task.cancel()

    result, _, _ = run(model_server(hold_s=0.2), plan(rate=20, duration_s=100.0, arrivals="constant"), stop)
    assert result.cancelled
    assert result.planned == 2000
    assert 3 <= result.succeeded < result.sent < 1000
    assert result.sent == len(result.records) + result.abandoned
    assert result.abandoned > 0


def test_a_server_that_cannot_answer_gets_no_traffic() -> None:
    with pytest.raises(CollectError) as caught:
        run(answering("no", "401 Unauthorized"), plan())
    assert caught.value.kind == "http_401"


def test_the_same_seed_gives_the_same_workload() -> None:
    one, two, other = plan(seed=1).workload(), plan(seed=1).workload(), plan(seed=2).workload()
    assert np.array_equal(one.arrival_s, two.arrival_s)
    assert np.array_equal(one.prompt_tokens, two.prompt_tokens)
    assert not np.array_equal(one.arrival_s, other.arrival_s)


def test_poisson_and_constant_arrivals() -> None:
    poisson = plan(rate=100, duration_s=200.0).workload().arrival_s
    gaps = np.diff(poisson)
    assert len(poisson) == pytest.approx(20_000, rel=0.03)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1.0, abs=0.03)
    constant = plan(rate=50, duration_s=2.0, arrivals="constant").workload().arrival_s
    assert len(constant) == 100
    assert all(b - a == pytest.approx(0.02) for a, b in pairwise(constant))


def test_lengths() -> None:
    rng = np.random.default_rng(1)
    assert set(Lengths.parse("fixed:7").draw(rng, 5).tolist()) == {7}
    assert Lengths.parse("7") == Lengths.parse("fixed:7"), "as every peer takes it"
    uniform = Lengths.parse("uniform:5:9").draw(rng, 5000)
    assert (uniform.min(), uniform.max()) == (5, 9)
    log = Lengths.parse("lognormal:200:0.5").draw(rng, 50_000)
    assert log.mean() == pytest.approx(200, rel=0.02)
    assert log.std() / log.mean() == pytest.approx(0.5, rel=0.05)
    assert log.min() >= 1


@pytest.mark.parametrize(
    "text",
    ["", "0", "fixed", "fixed:0", "fixed:x", "fixed:nan", "uniform:9:5", "uniform:0:5", "lognormal:0.5:1", "zipf:1"],
)
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected 100, uniform:50:200"):
        Lengths.parse(text)


def test_plans_that_cannot_be() -> None:
    for changes in ({"rate": 0.0}, {"duration_s": float("inf")}, {"rate": 1e9}, {"max_in_flight": 0}, {"timeout_s": 0}):
        with pytest.raises(ValueError, match="traffic"):
            plan(**changes)


def test_tokens_per_word() -> None:
    fitted = TokensPerWord.fitted((16, 36), (64, 108))
    assert (fitted.fixed, fitted.each) == (12, 1.5)
    assert fitted.words(112) == 67
    assert fitted.words(1) == 1
    assert TokensPerWord.fitted((16, 36), (64, 36)) == TokensPerWord()
