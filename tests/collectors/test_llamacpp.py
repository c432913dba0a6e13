"""llama.cpp's page as a real server wrote it, older ones, and everything that a server can do instead of answering with one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.exposition import Exposition
from collectors.http import Http
from collectors.increase import increase
from collectors.llamacpp import _NAMES, facts_of, make, values_of
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import Handler, Request, answering, head_of, serve

RECORDED = Path(__file__).parents[2] / "../shared/data/recorded/llamacpp/metrics.txt"
PAGE = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 3.21457e+06
llamacpp:prompt_tokens_cached_total 430
llamacpp:tokens_predicted_total 20
llamacpp:predicted_tokens_seconds nan
llamacpp:requests_processing 4
llamacpp:requests_deferred 2
"""
#: The fields that llama.cpp documents for /props, with what else may stand there.
PROPS = {
    "default_generation_settings": {"id": 0, "n_ctx": 1024, "params": {"n_predict": -1}},
    "total_slots": 4,
    "model_path": "/home/somebody/models/tiny-q4.gguf",
    "chat_template": "...",
    "build_info": "b6700-abcdef0",
}
DISABLED = json.dumps(
    {
        "error": {
            "code": 501,
            "message": "This server does not support metrics endpoint. Start it with `--metrics`",
            "type": "not_supported_error",
        }
    }
)


def values(page: str | bytes) -> tuple[dict[str, float], dict[str, float]]:
    return values_of(Exposition(_NAMES).parse(page.encode() if isinstance(page, str) else page))


def test_a_real_page() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded llama.cpp page is not beside the project (shared/data)")
    counters, gauges = values(RECORDED.read_bytes())
    assert counters == {"prompt_tokens": 53.0, "cached_prompt_tokens": 0.0, "output_tokens": 20.0}
    assert gauges == {"running": 0.0, "waiting": 0.0}


def test_cached_tokens_are_of_the_prompt() -> None:
    counters, gauges = values(PAGE)
    assert counters == {"prompt_tokens": 3_215_000.0, "cached_prompt_tokens": 430.0, "output_tokens": 20.0}
    assert gauges == {"running": 4.0, "waiting": 2.0}


def test_an_older_server_tells_the_cache_and_not_the_prompt() -> None:
    older = PAGE.replace("llamacpp:prompt_tokens_cached_total 430\n", "llamacpp:kv_cache_usage_ratio 0.25\n")
    counters, gauges = values(older)
    assert counters == {"output_tokens": 20.0}
    assert gauges == {"running": 4.0, "waiting": 2.0, "kv_usage": 0.25}


def test_what_is_no_number_is_not_known() -> None:
    counters, _ = values(PAGE.replace("_cached_total 430", "_cached_total nan"))
    assert counters == {"output_tokens": 20.0}


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (PAGE.replace("total 20", "total -20"), "invalid_value"),
        (PAGE.replace("total 20", "total inf"), "invalid_value"),
        (PAGE + "llamacpp:kv_cache_usage_ratio 25\n", "invalid_value"),
        (PAGE + "llamacpp:requests_deferred 3\n", "several_servers"),
        (PAGE.replace("deferred 2", "deferred two"), "not_metrics"),
        (PAGE[:-3], "truncated"),
        ('vllm:num_requests_running{model_name="m"} 1\n', "not_llamacpp"),
        ("", "not_metrics"),
    ],
)
def test_a_page_that_cannot_be(page: str, kind: str) -> None:
    with pytest.raises(CollectError) as caught:
        values(page)
    assert caught.value.kind == kind


def test_of_the_models_path_only_the_file_is_kept() -> None:
    assert facts_of(PROPS) == {
        "model": "tiny-q4.gguf",
        "engine_version": "b6700-abcdef0",
        "slots": "4",
        "context_tokens": "1024",
    }
    assert facts_of(PROPS | {"model_alias": "tiny"})["model"] == "tiny"
    assert facts_of({"model_path": "C:\\models\\tiny.gguf"}) == {"model": "tiny.gguf"}


def test_properties_of_other_kinds_are_left_out() -> None:
    odd = {
        "default_generation_settings": [],
        "total_slots": True,
        "model_path": 3,
        "build_info": "",
        "model_alias": None,
    }
    assert facts_of(odd) == {}
    assert facts_of({"total_slots": -1, "default_generation_settings": {"n_ctx": 1.5}}) == {}


def collect(handler: Handler, times: int = 1, **options: Any) -> tuple[list[Reading | CollectError], list[Request]]:
    async def run(url: str) -> list[Reading | CollectError]:
        http = Http()
        collector = make(SourceContext("chat", "tiny", http, SetClock(), Sessions(), options))
        results: list[Reading | CollectError] = []
        try:
            for _ in range(times):
                try:
                    (reading,) = await collector.read(ScrapeTarget("a", url, {"authorization": "Bearer key"}))
                    results.append(reading)
                except CollectError as error:
                    results.append(error)
        finally:
            await http.aclose()
        return results

    with serve(handler) as served:
        return asyncio.run(run(served.url)), served.requests


def llama_server(page: Callable[[], tuple[str, str]], props: str | None = json.dumps(PROPS)) -> Handler:
    """``page``: the start's mark and the text."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/metrics":
            start, text = page()
            await answering(text, **{"Process-Start-Time-Unix": start})(request, writer)
        elif request.path == "/props" and props is not None:
            await answering(props, kind="application/json")(request, writer)
        else:
            await answering('{"error":{"code":404}}', "404 Not Found")(request, writer)

    return handler


def test_a_read_with_headers_and_properties() -> None:
    results, requests = collect(llama_server(lambda: ("77", PAGE)), times=3)
    for result in results:
        assert isinstance(result, Reading)
        assert result.target == "a"
        assert result.at == SetClock().time
        assert result.started_at is None
        assert result.facts == facts_of(PROPS)
    assert [r.path for r in requests] == ["/metrics", "/props", "/metrics", "/metrics"]
    assert {r.headers["authorization"] for r in requests} == {"Bearer key"}


def test_a_restart_shows_by_what_falls_and_its_properties_are_asked_again() -> None:
    pages = iter([("77", PAGE), ("9", PAGE.replace("total 20", "total 5"))])
    (before, after), requests = collect(llama_server(lambda: next(pages)), times=2)
    assert isinstance(before, Reading)
    assert isinstance(after, Reading)
    grown = increase(before, after)
    assert grown.restarted
    assert grown.counts["output_tokens"] == 5.0
    assert [r.path for r in requests] == ["/metrics", "/props", "/metrics", "/props"]


@pytest.mark.parametrize("props", [None, "nonsense", "[" * 4000, "[]", '{"total_slots": "x"}', " " * (2 << 20)])
def test_a_server_without_properties_is_tolerated(props: str | None) -> None:
    results, requests = collect(llama_server(lambda: ("77", PAGE), props), times=5)
    for result in results:
        assert isinstance(result, Reading)
        assert result.facts == {}
    assert [r.path for r in requests].count("/props") == 3


@pytest.mark.parametrize("status", ["501 Not Implemented", "404 Not Found"])
def test_without_metrics_it_says_how_to_have_them(status: str) -> None:
    (error,), requests = collect(answering(DISABLED, status, kind="application/json"))
    assert isinstance(error, CollectError)
    assert error.kind == "metrics_off"
    assert error.detail.startswith(f"/metrics answered {status[:3]}: start llama-server with --metrics")
    assert [r.path for r in requests] == ["/metrics"]


def test_everything_else_that_a_server_can_do() -> None:
    async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head_of(length=len(PAGE)) + PAGE[: len(PAGE) // 2].encode())

    def kind_of(handler: Handler, **options: Any) -> str:
        (error,), _ = collect(handler, **options)
        assert isinstance(error, CollectError)
        return error.kind

    loading = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    assert kind_of(hang, timeout_s=0.2) == "timeout"
    assert kind_of(half) == "truncated"
    assert kind_of(answering(loading, "503 Service Unavailable")) == "http_5xx"
    assert kind_of(answering("no", "401 Unauthorized")) == "http_401"
    assert kind_of(answering("<html>Sign in</html>", kind="text/html")) == "not_metrics"
    assert kind_of(answering("", "302 Found", location="/metrics")) == "redirect"
