"""One query for each metric, all endpoints: what is told, what is not, and what the store refuses."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from collectors.base import FleetMember, SourceContext
from collectors.builder import WindowBuilder
from collectors.http import Http
from collectors.prometheus.fleet import Options, make, sketch_of
from collectors.prometheus.presets import PRESETS
from collectors.sessions import Sessions
from collectors.window import CollectError, Gauge, Range, Reading, Span
from tests.collectors.clocks import SetClock
from tests.collectors.prometheus.store import FakeStore, Refusal, fake_store

T0 = 1_800_000_000.0
Said = list[tuple[str, Reading | Span | CollectError]]


def read(store: FakeStore, endpoints: dict[str, dict[str, Any]], since: float | None = None, at: float = 95.0) -> Said:
    async def go() -> Said:
        http, sessions, clock = Http(), Sessions(), SetClock(T0 + at)
        try:
            members = [
                make(SourceContext(name, None, http, clock, sessions, {"url": store.url, **options}))
                for name, options in endpoints.items()
            ]
            assert all(member.fleet is members[0].fleet for member in members)
            return [said async for said in members[0].fleet.read_all([m.wanted for m in members], since)]
        finally:
            await http.aclose()

    return asyncio.run(go())


def spans(said: Said, name: str) -> list[Span]:
    return [one for of, one in said if of == name and isinstance(one, Span)]


def only(said: Said, name: str) -> Span:
    (span,) = spans(said, name)
    return span


def error_of(said: Said, name: str) -> CollectError:
    (error,) = (one for of, one in said if of == name and isinstance(one, CollectError))
    return error


def alive(store: FakeStore, *jobs: str, of: float = 2.0, lately: float = 2.0) -> None:
    store.tell("[5m]", *(({"job": job}, lately) for job in jobs))
    store.tell("count by", *(({"job": job}, of) for job in jobs))


def test_many_endpoints_are_told_by_one_query_a_metric() -> None:
    names = [f"e{i}" for i in range(50)]
    with fake_store() as store:
        alive(store, *names)
        store.tell("vllm:prompt_tokens_total", *(({"job": name}, 100.0 + i) for i, name in enumerate(names)))
        said = read(store, {name: {} for name in names})
        assert len(store.queries) <= 45
        assert any("e0|e1|" in query for query in store.queries)
    assert [only(said, name).counts["prompt_tokens"] for name in names] == [100.0 + i for i in range(50)]
    span = only(said, "e0")
    assert (span.start, span.end, span.share, span.target) == (T0, T0 + 60, 1.0, "e0")


def test_a_series_that_is_not_there_is_unknown() -> None:
    with fake_store() as store:
        alive(store, "chat")
        store.tell("vllm:prompt_tokens_total", ({"job": "chat"}, math.nan))
        store.tell("vllm:generation_tokens_total", ({"job": "chat"}, 5.0))
        said = read(store, {"chat": {}, "gone": {}})
    assert only(said, "chat").counts == {"output_tokens": 5.0}
    assert not any(name == "gone" for name, _ in said)


def test_targets_that_did_not_answer_lower_the_share() -> None:
    with fake_store() as store:
        alive(store, "chat", of=3.0, lately=4.0)
        assert only(read(store, {"chat": {}}), "chat").share == 0.75


def test_requests_and_errors_are_what_vllm_and_its_http_layer_count() -> None:
    with fake_store() as store:
        alive(store, "chat", "silent")
        store.tell('finished_reason="error"', ({"job": "chat"}, 1.0), ({"job": "silent"}, 1.0))
        store.tell("vllm:request_success_total", ({"job": "chat"}, 10.0), ({"job": "silent"}, 10.0))
        store.tell("http_requests_total", ({"job": "chat"}, 2.0))
        said = read(store, {"chat": {}, "silent": {}})
    assert only(said, "chat").counts == {"requests": 12.0, "errors": 3.0}
    assert only(said, "silent").counts == {"requests": 10.0}  # nobody knows how many failed before the engine


def test_where_llamacpp_does_not_count_cached_tokens_the_prompts_are_not_known() -> None:
    with fake_store() as store:
        alive(store, "new", "old")
        store.tell("llamacpp:prompt_tokens_total", ({"job": "new"}, 10.0), ({"job": "old"}, 10.0))
        store.tell("llamacpp:prompt_tokens_cached_total", ({"job": "new"}, 4.0))
        said = read(store, {name: {"preset": ("llamacpp",)} for name in ("new", "old")})
    assert only(said, "new").counts == {"prompt_tokens": 14.0, "cached_prompt_tokens": 4.0}
    assert only(said, "old").counts == {}


def test_what_the_http_layer_counts_for_two_models_is_neither_ones() -> None:
    labels = {"a": {"job": "vllm", "model_name": "a"}, "b": {"job": "vllm", "model_name": "b"}}
    with fake_store() as store:
        store.tell("count by", *((of, 1.0) for of in labels.values()))
        store.tell("vllm:request_success_total", *((of, 10.0) for of in labels.values()))
        store.tell("http_requests_total", ({"job": "vllm"}, 2.0))
        both = read(store, {name: {"labels": of} for name, of in labels.items()})
        alone = read(store, {"a": {"labels": labels["a"]}})
    assert only(both, "a").counts == {"requests": 10.0}
    assert only(alone, "a").counts == {"requests": 12.0, "errors": 12.0}


def test_buckets_become_a_sketch_and_old_spellings_are_asked_where_new_ones_say_nothing() -> None:
    def rows(job: str, *counts: float) -> list[tuple[dict[str, str], float]]:
        return [({"job": job, "le": le}, n) for le, n in zip(("0.5", "1.0", "+Inf"), counts, strict=True)]

    with fake_store() as store:
        alive(store, "new", "old")
        store.tell("vllm:inter_token_latency_seconds_bucket", *rows("new", 1, 3, 4))
        store.tell("vllm:inter_token_latency_seconds_sum", ({"job": "new"}, 3.5))
        store.tell("vllm:time_per_output_token_seconds_bucket", *rows("old", 8, 8, 8))
        store.tell("vllm:time_per_output_token_seconds_sum", ({"job": "old"}, 2.0))
        said = read(store, {"new": {}, "old": {}})
        (asked,) = [
            q for q in store.queries if "time_per_output_token_seconds_bucket{" in q and "request_time" not in q
        ]
        assert 'job="old"' in asked
    new, old = only(said, "new").sketches["itl_s"], only(said, "old").sketches["itl_s"]
    assert (new.count, new.total, new.bounds(0.6)) == (4.0, 3.5, (0.5, 1.0))
    assert (old.count, old.mean) == (8.0, 0.25)


@pytest.mark.parametrize("lost", [False, True])
def test_where_all_targets_are_as_before_sums_are_compared_and_a_sum_that_fell_is_unknown(lost: bool) -> None:
    with fake_store() as store:
        store.tell("unless sum by (job) (resets(vllm:generation_tokens_total", ({"job": "steady"}, 2.0))
        alive(store, "steady", "moved")
        rows = [
            ({"job": job, "le": le}, n)
            for job in ("steady", "moved")
            for le, n in (("1", -5.0 if lost else 5.0), ("+Inf", 6.0))
        ]
        store.tell("vllm:e2e_request_latency_seconds_bucket", *rows)
        said = read(store, {"steady": {}, "moved": {}})
        asked = {('job="moved"' in q): q for q in store.queries if "e2e_request_latency_seconds_bucket" in q}
    assert "resets" in asked[True]
    assert "resets" not in asked[False]
    assert ("e2e_s" in only(said, "steady").sketches) is not lost
    assert ("e2e_s" in only(said, "moved").sketches) is not lost


@pytest.mark.parametrize(
    "counts",
    [{math.inf: 3.0}, {0.5: 1.0}, {-1.0: 1.0, math.inf: 2.0}, {0.5: 0.0, math.inf: 0.0}, {}],
    ids=["only +Inf", "no +Inf", "a negative bound", "nothing happened", "nothing"],
)
def test_buckets_that_say_nothing_are_no_sketch(counts: dict[float, float]) -> None:
    assert sketch_of(counts, 1.0) is None


def test_buckets_that_lag_behind_each_other_are_a_sketch_all_the_same() -> None:
    sketch = sketch_of({0.5: 2.0, 1.0: 1.9, math.inf: 4.0}, None)
    assert sketch is not None
    assert sketch.count == pytest.approx(4.0)


def test_gauges_have_a_mean_and_a_maximum() -> None:
    with fake_store() as store:
        alive(store, "chat")
        store.tell("avg_over_time(vllm:num_requests_running", ({"job": "chat"}, 4.0))
        store.tell("max_over_time(vllm:num_requests_running", ({"job": "chat"}, 9.0))
        assert only(read(store, {"chat": {}}), "chat").gauges == {"running": Gauge(4.0, 9.0, 4.0)}


def test_every_interval_since_the_last_read_is_asked_for_and_the_newest_in_any_case() -> None:
    with fake_store() as store:
        alive(store, "chat")
        store.tell("vllm:prompt_tokens_total", ({"job": "chat"}, {T0 + 60.0 * i: float(i) for i in range(100)}))
        missed = read(store, {"chat": {}}, since=T0 + 95, at=95 + 180)
        again = read(store, {"chat": {}}, since=T0 + 95, at=97)
        day = read(store, {"chat": {}}, since=T0, at=86_400)
    assert [s.counts["prompt_tokens"] for s in spans(missed, "chat")] == [2.0, 3.0, 4.0]
    assert [s.end for s in spans(again, "chat")] == [T0 + 60]
    assert len(spans(day, "chat")) == 30


def test_late_intervals_make_whole_windows() -> None:
    builder = WindowBuilder("chat", "prometheus", 60.0, max_gap_s=150.0)
    with fake_store() as store:
        alive(store, "chat")
        store.tell("vllm:prompt_tokens_total", ({"job": "chat"}, 6.0))
        for since, at in ((None, 95), (T0 + 95, 275), (T0 + 275, 335)):
            for span in spans(read(store, {"chat": {}}, since=since, at=at), "chat"):
                builder.span(span)
    assert [(w.coverage, w.count("prompt_tokens")) for w in builder.close(T0 + 300)] == [(1.0, 6.0)] * 5


# -- PromQL of one's own -------------------------------------------------------------------------------------------------


def test_own_queries_take_the_place_of_the_presets() -> None:
    own = {
        "requests": {"promql": "sum(increase(my_total{$sel}[$w]))"},
        "cpu_usage": {"promql": "my_cpu", "kind": "gauge"},
        "e2e_s": {"promql": "my_p95", "kind": "quantile", "q": 0.95},
        "ttft_s": {"promql": "my_buckets", "kind": "histogram"},
    }
    with fake_store() as store:
        alive(store, "chat")
        store.tell("vllm:request_success_total", ({"job": "chat"}, 99.0))
        store.tell('sum(increase(my_total{job="chat"}[60s]))', ({}, 7.0))
        store.tell("my_cpu", ({}, 0.5))
        store.tell("my_p95", ({}, 1.25))
        store.tell("my_buckets", ({"le": "1"}, 1.0), ({"le": "+Inf"}, 2.0))
        span = only(read(store, {"chat": {"queries": own}}), "chat")
        assert not any("request_success" in q and "error" not in q and "or 0" not in q for q in store.queries)
    assert span.counts["requests"] == 7.0
    assert span.gauges["cpu_usage"].mean == 0.5
    assert span.quantiles == {"e2e_s": {0.95: Range(1.25, 1.25)}}
    assert span.sketches["ttft_s"].count == 2.0


def test_own_queries_alone_need_no_preset() -> None:
    with fake_store() as store:
        store.tell("my_total", ({}, 7.0))
        said = read(
            store, {"chat": {"preset": (), "queries": {"requests": {"promql": "my_total"}}}, "gone": {"preset": ()}}
        )
    assert only(said, "chat").counts == {"requests": 7.0}
    assert [name for name, _ in said] == ["chat"]


def test_an_own_query_that_the_store_does_not_take_costs_that_metric_alone() -> None:
    refusal = Refusal(
        "400 Bad Request", "bad_data", "invalid parameter 'query': 1:5: parse error: unexpected end of input"
    )
    with fake_store() as store:
        alive(store, "chat", "other")
        store.refuse("oops(", refusal)
        store.tell("many", ({"a": "1"}, 1.0), ({"a": "2"}, 1.0))
        store.tell("vllm:prompt_tokens_total", ({"job": "chat"}, 5.0), ({"job": "other"}, 6.0))
        own = {"requests": {"promql": "oops()"}}
        said = read(store, {"chat": {"queries": own}, "other": {"queries": {"requests": {"promql": "many"}}}})
    assert only(said, "chat").counts["prompt_tokens"] == 5.0
    error = error_of(said, "chat")
    assert error.kind == "bad_query"
    assert error.detail.startswith("queries.requests: the store does not take the query: invalid parameter 'query'")
    assert "it gives 2 series; one is wanted" in error_of(said, "other").detail
    assert only(said, "other").counts["prompt_tokens"] == 6.0


# -- what the store does instead -----------------------------------------------------------------------------------------


def answered(data: object) -> Refusal:
    return Refusal("200 OK", body=json.dumps({"status": "success", "data": data}))


@pytest.mark.parametrize(
    ("refusal", "kind", "says"),
    [
        (Refusal(), "too_many_samples", "Narrow the labels"),
        (Refusal("422 Unprocessable Entity", "422", "cannot select more than 1 samples"), "too_many_samples", "limit"),
        (Refusal("400 Bad Request", "bad_data", "parse error"), "bad_query", "parse error"),
        (Refusal("503 Service Unavailable", "timeout", "query timed out"), "timeout", "did not finish"),
        (Refusal("500 Internal Server Error", "internal", "oops"), "http_5xx", "oops"),
        (Refusal("401 Unauthorized", body="no"), "http_401", "Check the credentials"),
        (Refusal("404 Not Found", body="404 page not found"), "http_404", "Check the address"),
        (Refusal("200 OK", body="<html>"), "protocol", "check the url"),
        (answered({"resultType": "vector"}), "protocol", "matrix"),
        (answered({"resultType": "matrix", "result": 5}), "protocol", "list"),
        (answered({"resultType": "matrix", "result": [{"metric": {}, "values": [[1]]}]}), "protocol", "number"),
        (answered({"resultType": "matrix", "result": [{"metric": [], "values": []}]}), "protocol", "labels"),
        (Refusal("200 OK", body="[" * 100_000), "protocol", "check the url"),
    ],
)  # fmt: skip
def test_a_store_that_refuses_says_why(refusal: Refusal, kind: str, says: str) -> None:
    with fake_store() as store:
        store.refuse("", refusal)
        with pytest.raises(CollectError, match=says) as caught:
            read(store, {"chat": {}})
    assert caught.value.kind == kind


def test_what_ails_one_group_of_endpoints_is_told_of_each_and_costs_no_other() -> None:
    with fake_store() as store:
        store.refuse("namespace", Refusal())
        alive(store, "chat")
        store.tell("vllm:prompt_tokens_total", ({"job": "chat"}, 5.0))
        said = read(store, {"chat": {}, "a": {"labels": {"namespace": "a"}}, "b": {"labels": {"namespace": "b"}}})
    assert only(said, "chat").counts["prompt_tokens"] == 5.0
    assert [error_of(said, name).kind for name in "ab"] == ["too_many_samples"] * 2


def test_nobody_is_there() -> None:
    with pytest.raises(CollectError, match="refuses connections"):
        read(FakeStore(url="http://127.0.0.1:9"), {"chat": {}})


# -- who asks, and for what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"token": "s3cret"}, {"authorization": "Bearer s3cret"}),
        ({"username": "me", "password": "pw"}, {"authorization": "Basic bWU6cHc="}),
        ({"tenant": "team-a"}, {"x-scope-orgid": "team-a"}),
    ],
)
def test_credentials_are_sent_and_never_shown(options: dict[str, str], headers: dict[str, str]) -> None:
    with fake_store(headers=headers) as store:
        alive(store, "chat")
        store.tell("vllm:prompt_tokens_total", ({"job": "chat"}, 5.0))
        assert only(read(store, {"chat": options}), "chat").counts
    assert "s3cret" not in repr(Options(url="http://x", **options)) + str(options.get("tenant"))


@pytest.mark.parametrize("value", ['a"b', "a\\b", "a.b", "a b", "a|b", "é", "a\nb", "x-1_2"])
def test_any_value_of_a_label_is_matched_as_it_is(value: str) -> None:
    with fake_store() as store:
        store.tell("count by", ({"job": value}, 1.0), ({"job": "plain"}, 1.0))
        store.tell(
            "vllm:prompt_tokens_total", ({"job": value}, 5.0), ({"job": "plain"}, 6.0), ({"job": "stranger"}, 7.0)
        )
        said = read(store, {"odd": {"labels": {"job": value}}, "plain": {"labels": {"job": "plain"}}})
    assert only(said, "odd").counts["prompt_tokens"] == 5.0
    assert {name for name, _ in said} == {"odd", "plain"}


@pytest.mark.parametrize(
    "options", [{"labels": {"a-b": "c"}}, {"url": "ftp://x"}, {"preset": ["dbrx"]}, {"step_s": 1}, {"other": 1}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate(options)


def test_endpoints_of_one_account_share_a_fleet_and_those_of_another_do_not() -> None:
    http, sessions, clock = Http(), Sessions(), SetClock()

    def member(**options: Any) -> FleetMember:
        return make(SourceContext("chat", None, http, clock, sessions, {"url": "http://x:9090/", **options}))

    assert member().fleet is member(labels={"job": "b"}).fleet
    assert member().fleet is not member(token="t").fleet
    asyncio.run(http.aclose())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_asks_what_can_be_asked(name: str) -> None:
    """Balanced, without an unknown placeholder, and every metric of one endpoint goes into its span."""
    with fake_store() as store:
        store.tell("_bucket", ({"job": "chat", "le": "1"}, 1.0), ({"job": "chat", "le": "+Inf"}, 2.0))
        store.tell("", ({"job": "chat"}, 0.5))
        span = only(read(store, {"chat": {"preset": (name,)}}), "chat")
        known = {query.metric for query in PRESETS[name].queries}
    assert {*span.counts, *span.gauges, *span.sketches} == known
