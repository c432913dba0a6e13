"""Request spans in all spellings as flight records, and which endpoint they are of. Of what they say, nothing is kept."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from pydantic import SecretStr

from collectors.otlp.prefixes import BLOCK_BYTES, HASH_BYTES, ROTATES_S
from collectors.otlp.routes import OtlpRoute
from collectors.receiver import PushError
from tests.collectors.clocks import SetClock
from tests.collectors.otlp.messages import T0, attributes, push, receiver, record_of, request_span, traces

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
VLLM = {
    "gen_ai.latency.time_to_first_token": 0.2,
    "gen_ai.latency.e2e": 1.5,
    "gen_ai.latency.time_in_queue": 0.05,
    "gen_ai.usage.prompt_tokens": 40,
    "gen_ai.usage.completion_tokens": 12,
    "gen_ai.request.max_tokens": 12,
}


def test_vllms_span() -> None:
    sent = traces([request_span(T0 - 2, 1.6, VLLM, kind=2, name="llm_request")], {"service.name": "unknown_service"})
    record = record_of(receiver().take(push(sent)))
    assert (record.side, record.arrived_at) == ("server", T0 - 2)
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (40, 12, None)
    assert (record.ttft_s, record.e2e_s, record.queue_s, record.error) == (0.2, 1.5, 0.05, None)


@pytest.mark.parametrize(
    ("prompt", "output", "cached"),
    [
        ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens"),
        ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens", "gen_ai.usage.cache_read_input_tokens"),
        ("llm.usage.prompt_tokens", "llm.usage.completion_tokens", "gen_ai.usage.cached_input_tokens"),
    ],
)
def test_an_applications_span_in_each_spelling(prompt: str, output: str, cached: str) -> None:
    told = {**CHAT, prompt: 100, output: 7, cached: 64, "gen_ai.response.time_to_first_chunk": 0.3}
    record = record_of(receiver().take(push(traces([request_span(T0 - 2, 1.25, told)]))))
    assert (record.side, record.prompt_tokens, record.output_tokens, record.cached_tokens) == ("client", 100, 7, 64)
    assert (record.ttft_s, record.e2e_s) == (0.3, pytest.approx(1.25, abs=1e-6))


@pytest.mark.parametrize(
    ("told", "status", "error"),
    [
        ({}, 0, None),
        ({}, 2, "error"),
        ({"error.type": "429"}, 2, "throttled"),
        ({"error.type": "APITimeoutError"}, 2, "error"),
    ],
)
def test_how_it_ended(told: dict[str, Any], status: int, error: str | None) -> None:
    sent = traces([request_span(T0 - 2, 1, {**CHAT, **told}, status={"code": status, "message": "the model said no"})])
    assert record_of(receiver().take(push(sent))).error == error


@pytest.mark.parametrize("name", ["invoke_agent", "execute_tool", "embeddings", "retrieval"])
def test_only_requests_to_generate_are_recorded(name: str) -> None:
    told = {"gen_ai.operation.name": name, "gen_ai.usage.input_tokens": 5}
    taken = receiver().take(
        push(traces([request_span(T0 - 1, 1, told), request_span(T0 - 1, 1, {"http.route": "/"}, number=7)]))
    )
    assert not taken.records
    assert taken.answer.body == b""


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("gen_ai.usage.input_tokens", -1, "prompt_tokens"),
        ("gen_ai.usage.input_tokens", "forty", "prompt_tokens"),
        ("gen_ai.usage.input_tokens", 10**12, "prompt_tokens"),
        ("gen_ai.response.time_to_first_chunk", float("nan"), "ttft_s"),
        ("gen_ai.response.time_to_first_chunk", 99.0, "ttft_s"),
    ],
)
def test_what_cannot_be_is_not_known(name: str, value: Any, field: str) -> None:
    record = record_of(receiver().take(push(traces([request_span(T0 - 2, 1, {**CHAT, name: value})]))))
    assert getattr(record, field) is None


@pytest.mark.parametrize("wrong", [{"span_id": b""}, {"start_time_unix_nano": 0}, {"start_time_unix_nano": 2**63}])
def test_a_span_without_a_name_or_a_time_is_refused(wrong: dict[str, Any]) -> None:
    taken = receiver().take(
        push(traces([{**request_span(T0 - 1, 1, CHAT), **wrong}, request_span(T0 - 1, 1, CHAT, number=9)]))
    )
    said = ExportTraceServiceResponse.FromString(taken.answer.body)
    assert said.partial_success.rejected_spans == 1
    assert len(taken.records) == 1


def test_the_same_span_has_the_same_identity() -> None:
    first, again = (
        record_of(receiver().take(push(traces([request_span(T0 - 1, 1, CHAT)])))).identity for _ in range(2)
    )
    other = record_of(receiver().take(push(traces([request_span(T0 - 1, 1, CHAT, number=5)])))).identity
    assert first == again != other


def test_a_tenant_is_a_tag_and_no_text() -> None:
    route = OtlpRoute("chat", "m", {}, None, tenant="user.team")
    for told, kept in (("search-eu", "search-eu"), ("please tell me a secret", None), ("x" * 300, None)):
        record = record_of(receiver(route).take(push(traces([request_span(T0 - 1, 1, {**CHAT, "user.team": told})]))))
        assert record.tenant == kept
    assert (
        record_of(receiver().take(push(traces([request_span(T0 - 1, 1, {**CHAT, "user.team": "a"})])))).tenant is None
    )


# -- prefixes ----------------------------------------------------------------------------------------------------------

SYSTEM = "You are the governor of an engine. " * 30


def spelled(text: str, how: str) -> dict[str, Any]:
    """A span's fields that tell a prompt."""
    if how == "messages":
        return {"attributes": attributes({**CHAT, "gen_ai.input.messages": f'[{{"role":"user","content":"{text}"}}]'})}
    if how == "prompt":
        return {"attributes": attributes({**CHAT, "gen_ai.prompt": text})}
    if how == "numbered":
        return {
            "attributes": attributes(
                {**CHAT, "gen_ai.prompt.10.content": text[700:], "gen_ai.prompt.2.content": text[:700]}
            )
        }
    event = {"name": "gen_ai.user.message", "attributes": attributes({"content": text})}
    return {"attributes": attributes(CHAT), "events": [event]}


@pytest.mark.parametrize("how", ["messages", "prompt", "numbered", "event"])
def test_prompts_that_begin_alike_have_hashes_that_begin_alike(how: str) -> None:
    to = receiver()

    def blocks(text: str, number: int) -> tuple[list[bytes], float]:
        span = {**request_span(T0 - 1, 1, {}, number=number), **spelled(text, how)}
        record = record_of(to.take(push(traces([span]))))
        assert record.blocks_whole is not None
        return [
            record.blocks[i : i + HASH_BYTES] for i in range(0, len(record.blocks), HASH_BYTES)
        ], record.blocks_whole

    first, whole = blocks(SYSTEM + "What is a valve?", 1)
    second, _ = blocks(SYSTEM + "What is a boiler? " * 20, 2)
    other, _ = blocks("Something else. " + SYSTEM, 3)
    shared = len(SYSTEM) // BLOCK_BYTES
    assert first[:shared] == second[:shared]
    assert len(first) == int(whole)
    assert not set(first) & set(other)
    assert len(set(second)) == len(second), "each block is hashed with all before it"


def test_the_key_of_the_hashes_rotates() -> None:
    clock = SetClock(T0)
    to = receiver(clock=clock)

    def once(number: int) -> bytes:
        span = {**request_span(clock.time - 1, 1, {}, number=number), **spelled(SYSTEM, "prompt")}
        return record_of(to.take(push(traces([span])))).blocks

    first = once(1)
    clock.time += ROTATES_S - 10
    assert once(2) == first
    clock.time += 20
    assert once(3) != first
    fresh = receiver()
    span = {**request_span(T0 - 1, 1, {}), **spelled(SYSTEM, "prompt")}
    assert record_of(fresh.take(push(traces([span])))).blocks != first, "another process has another key"


def test_no_prompt_is_no_hash() -> None:
    record = record_of(receiver().take(push(traces([request_span(T0 - 1, 1, CHAT)]))))
    assert (record.blocks, record.blocks_whole) == (b"", None)


def test_nothing_that_was_said_is_in_a_record() -> None:
    said = "canary7b1"
    told = {
        **CHAT,
        "gen_ai.prompt": said * 60,
        "gen_ai.completion": said,
        "error.type": said,
        "user.id": said,
        "gen_ai.request.id": said,
    }
    span = request_span(
        T0 - 1,
        1,
        told,
        name=said,
        status={"code": 2, "message": said},
        events=[{"name": said, "attributes": attributes({"content": said})}],
    )
    record = record_of(receiver().take(push(traces([span], {"service.name": "chat", "service.instance.id": said}))))
    assert said not in repr(astuple(record))
    assert record.blocks


# -- whose it is -------------------------------------------------------------------------------------------------------


def where(routes: list[OtlpRoute], resource: dict[str, Any], told: dict[str, Any], **more: Any) -> str | None:
    span = request_span(T0 - 1, 1, {"gen_ai.operation.name": "chat", **told})
    records = receiver(*routes).take(push(traces([span], resource), **more)).records
    return records[0][0] if records else None


A, B = OtlpRoute("a", "m", {}, None), OtlpRoute("b", "n", {}, None)


def test_by_the_services_name_by_the_model_or_by_attributes_of_the_resource() -> None:
    assert where([A, B], {"service.name": "b"}, {}) == "b"
    assert where([A, B], {"service.name": "app"}, {"gen_ai.request.model": "n"}) == "b"
    assert (
        where([A, B], {"service.name": "app"}, {"gen_ai.request.model": "alias", "gen_ai.response.model": "m"}) == "a"
    )
    assert where([A, B], {"service.name": "app"}, {}) is None
    bound = OtlpRoute("c", "m", {"service.name": "app", "deployment.environment": "prod"}, None)
    assert (
        where([A, B, bound], {"service.name": "app", "deployment.environment": "prod"}, {"gen_ai.request.model": "m"})
        == "c"
    )
    assert (
        where([A, B, bound], {"service.name": "app", "deployment.environment": "test"}, {"gen_ai.request.model": "m"})
        == "a"
    )


def test_another_model_is_not_an_endpoints_own() -> None:
    assert where([A], {"service.name": "a"}, {"gen_ai.request.model": "n"}) is None
    assert where([A], {"service.name": "whatever"}, {}) == "a", "the only one that may take it does"


def test_what_two_could_take_neither_does() -> None:
    twins = [OtlpRoute("x", "m", {}, None), OtlpRoute("y", "m", {}, None)]
    assert where(twins, {"service.name": "app"}, {"gen_ai.request.model": "m"}) is None


def test_a_token_opens_its_own_endpoints_alone() -> None:
    first, second = "0123456789abcdef-first", "0123456789abcdef-second"
    routes = [OtlpRoute("a", "m", {}, SecretStr(first)), OtlpRoute("b", "n", {}, SecretStr(second))]
    assert where(routes, {"service.name": "a"}, {}, token=first) == "a"
    assert where(routes, {"service.name": "b"}, {}, token=first) == "a", "it is this token's, whatever it calls itself"
    assert where(routes, {}, {"gen_ai.request.model": "n"}, token=first) is None
    for shown in (None, "", "0123456789abcdef", "ünïcode"):
        with pytest.raises(PushError) as refused:
            where(routes, {"service.name": "a"}, {}, token=shown)
        assert refused.value.status == 401


def test_without_a_token_only_this_host_may_send() -> None:
    assert where([A], {"service.name": "a"}, {}, trusted=True) == "a"
    with pytest.raises(PushError):
        where([A], {"service.name": "a"}, {}, trusted=False)
