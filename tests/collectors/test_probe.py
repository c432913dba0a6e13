"""One streaming request: what counts as a success, and when its tokens came."""

from __future__ import annotations

import asyncio
import json

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.completion import Completion, complete, request_of
from collectors.http import Http
from collectors.probe import make
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import Handler, Request, answering, chat_events, serve, streaming


def completion(handler: Handler, timeout_s: float = 30.0) -> Completion:
    async def run(url: str) -> Completion:
        http = Http()
        try:
            return await complete(http, url, request_of("chat", "m", "hi", 8), headers={}, timeout_s=timeout_s)
        finally:
            await http.aclose()

    with serve(handler) as served:
        return asyncio.run(run(served.url))


def kind_of(handler: Handler, timeout_s: float = 30.0) -> str:
    with pytest.raises(CollectError) as caught:
        completion(handler, timeout_s)
    return caught.value.kind


def test_a_success() -> None:
    done = completion(streaming(chat_events(5), pause_s=0.02))
    assert (done.output_tokens, done.prompt_tokens, done.token_source) == (5, 20, "usage")
    assert done.finish_reason == "length"
    assert len(done.gaps_s) == 4
    # The role comes 20 ms before the first token and is none; the usage after the last one is not waited for.
    assert done.ttft_s >= 0.02
    assert sum(done.gaps_s) == pytest.approx(done.last_at - done.first_at)
    assert done.tpot_s == pytest.approx(sum(done.gaps_s) / 4)
    assert done.e2e_s == pytest.approx(done.ttft_s + sum(done.gaps_s))


def test_several_tokens_in_a_chunk() -> None:
    events = chat_events(5)
    events[-1] = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 17}}
    done = completion(streaming(events, pause_s=0.02))
    assert done.output_tokens == 17
    assert done.packing == "text"
    assert done.packed == (3.4,) * 5  # texts of one length: each holds as many tokens
    # The 3.4 tokens of the first chunk came at once: the time after it is that of the other 13.6.
    assert done.tpot_s == pytest.approx((done.last_at - done.first_at) / 13.6)
    assert sorted(set(done.gaps_s)) == pytest.approx(sorted({gap / 3.4 for gap in done.chunk_gaps_s}))


def test_reasoning_and_tools_and_plain_completions_are_tokens() -> None:
    for choice in (
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"text": "w"},
    ):
        events: list[dict[str, object] | str] = [{"choices": [choice]}, {"choices": [{"finish_reason": "stop"}]}]
        done = completion(streaming(events))
        assert (done.output_tokens, done.token_source, done.prompt_tokens) == (1, "chunks", None)
        assert done.tpot_s is None


def test_tokens_without_text_are_tokens() -> None:
    events: list[dict[str, object] | str] = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": ""}}]},
        {"choices": [{"delta": {"content": ""}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 2}},
    ]
    done = completion(streaming(events, pause_s=0.02))
    assert (done.output_tokens, len(done.gaps_s)) == (2, 1)
    assert done.ttft_s >= 0.02


def test_failures() -> None:
    async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    error: list[dict[str, object] | str] = [*chat_events(2)[:2], {"error": {"message": "out of memory"}}]
    named: list[dict[str, object] | str] = [*chat_events(2)[:2], 'event: error\ndata: {"detail": "oh"}\n\n']
    assert kind_of(hang, 0.2) == "timeout"
    assert kind_of(answering("no", "401 Unauthorized")) == "http_401"
    assert kind_of(answering("later", "503 Service Unavailable")) == "http_5xx"
    assert kind_of(answering('{"choices": []}', kind="application/json")) == "broken_stream"
    assert kind_of(answering("", "302 Found", location="/")) == "redirect"
    assert kind_of(streaming(error)) == "in_stream_error"
    assert kind_of(streaming(named)) == "in_stream_error"
    assert kind_of(streaming([{"choices": [{"finish_reason": "error"}]}])) == "in_stream_error"
    assert kind_of(streaming(chat_events(5), cut=4)) == "truncated"
    assert kind_of(streaming(chat_events(5)[:4], done=False)) == "broken_stream"
    assert kind_of(streaming(["data: {half\n\n"])) == "broken_stream"
    assert kind_of(streaming(["data: " + "[" * 100_000 + "\n\n"])) == "broken_stream"
    assert kind_of(streaming(["data: 7\n\n"])) == "broken_stream"
    assert kind_of(streaming(["data: " + "x" * 2_000_000 + "\n\n"])) == "broken_stream"
    assert kind_of(streaming([])) == "empty"
    assert (
        kind_of(streaming([{"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 0}}]))
        == "empty"
    )


def probe(
    handler: Handler, *, times: int, model: str | None = "m", **options: object
) -> tuple[list[Reading | str], list[Request]]:
    async def run(target: ScrapeTarget) -> list[Reading | str]:
        http = Http()
        clock = SetClock()
        collector = make(SourceContext("chat", model, http, clock, Sessions(), options))
        results: list[Reading | str] = []
        for _ in range(times):
            try:
                results += await collector.read(target)
            except CollectError as error:
                results.append(error.kind)
            clock.time += 30
        await http.aclose()
        return results

    with serve(handler) as served:
        return asyncio.run(run(ScrapeTarget("a", served.url, {"authorization": "Bearer key"}))), served.requests


def test_the_probe_counts_and_samples() -> None:
    (first, second), requests = probe(streaming(chat_events(5)), times=2, prompt_words=7, output_tokens=5)
    assert isinstance(first, Reading)
    assert isinstance(second, Reading)
    assert second.counters == {"requests": 2, "errors": 0, "prompt_tokens": 40, "output_tokens": 10}
    assert second.started_at == first.started_at
    assert second.at == first.at + 30
    assert set(second.samples) == {"ttft_s", "itl_s", "tpot_s", "e2e_s", "prompt_length", "output_length"}
    assert len(second.samples["itl_s"]) == 4
    assert second.samples["output_length"] == (5.0,)
    bodies = [r.json for r in requests]
    assert [r.path for r in requests] == ["/v1/chat/completions"] * 2
    assert requests[0].headers["authorization"] == "Bearer key"
    assert (bodies[0]["model"], bodies[0]["max_tokens"], bodies[0]["stream"]) == ("m", 5, True)
    assert bodies[0]["stream_options"] == {"include_usage": True}
    prompts = [str(b["messages"][0]["content"]) for b in bodies]  # type: ignore[index]
    assert [len(p.split()) for p in prompts] == [7, 7]
    assert prompts[0] != prompts[1]


def test_a_failed_probe_is_an_error_in_the_next_reading() -> None:
    answers = iter([answering("no", "503 Service Unavailable"), streaming(chat_events(2))])

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await next(answers)(request, writer)

    (first, second), _ = probe(handler, times=2)
    assert first == "http_5xx"
    assert isinstance(second, Reading)
    assert (second.counters["requests"], second.counters["errors"]) == (2, 1)


def test_completions_and_the_only_model() -> None:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/v1/models":
            await answering('{"data":[{"id":"found"}]}')(request, writer)
        else:
            await streaming([{"choices": [{"text": "w", "finish_reason": "stop"}]}])(request, writer)

    (reading,), requests = probe(handler, times=1, model=None, api="completions")
    assert isinstance(reading, Reading)
    assert reading.facts == {"model": "found"}
    assert [r.path for r in requests] == ["/v1/models", "/v1/completions"]
    assert requests[1].json["model"] == "found"
    assert isinstance(requests[1].json["prompt"], str)


@pytest.mark.parametrize("models", ['{"data":[]}', '{"data":[{"id":"a"},{"id":"b"}]}', "[]", "no"])
def test_no_model_or_many(models: str) -> None:
    (kind,), _ = probe(answering(models), times=1, model=None)
    assert kind == "no_model"


def test_what_the_answers_headers_tell_of_limits_are_facts() -> None:
    told = (
        "x-ratelimit-limit-tokens: 60000\r\nx-ratelimit-remaining-tokens: 59000\r\nx-ratelimit-limit-requests: 360\r\n"
    )
    (reading,), _ = probe(streaming(chat_events(2), headers=told), times=1)
    assert isinstance(reading, Reading)
    assert reading.facts == {"model": "m", "token_limit": "60000", "request_limit": "360"}


def test_how_much_of_a_vendors_limits_is_used_is_read_from_the_answer() -> None:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in chat_events(3)) + "data: [DONE]\n\n"
    limits = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "900"}

    async def run(url: str) -> Reading:
        http = Http()
        try:
            (reading,) = await make(SourceContext("chat", "m", http, SetClock(), Sessions(), {})).read(
                ScrapeTarget("chat", url)
            )
            return reading
        finally:
            await http.aclose()

    with serve(answering(text, kind="text/event-stream", **limits)) as served:
        assert asyncio.run(run(served.url)).gauges == {"token_limit_used": pytest.approx(0.1)}
    with serve(streaming(chat_events(3))) as served:
        assert asyncio.run(run(served.url)).gauges == {}
