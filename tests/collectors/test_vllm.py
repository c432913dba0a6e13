"""vLLM's pages, all spellings, and everything that a server can do instead of answering with one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.base import ScrapeTarget, SourceContext
from collectors.exposition import Exposition
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.vllm import _NAMES, VllmCollector, make, readings_of
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.pages import histogram, recorded, v0_6, v0_9
from tests.collectors.servers import Handler, Request, answering, certificate, dated, head_of, serve


def read_page(page: str | bytes, model: str | None = None) -> list[Reading]:
    body = page.encode() if isinstance(page, str) else page
    return readings_of(Exposition(_NAMES).parse(body), "a", model, 5.0)


def test_a_real_page_of_0_32() -> None:
    (reading,) = read_page(recorded(), "tiny")
    assert reading.target == "a"
    assert reading.counters == {
        "requests": 54.0,
        "errors": 0.0,
        "prompt_tokens": 3924.0,
        "cached_prompt_tokens": 0.0,
        "output_tokens": 3424.0,
        "preemptions": 0.0,
    }
    assert reading.gauges == {"running": 0.0, "waiting": 0.0, "kv_usage": 0.0}
    assert reading.started_at == 1795217059.08
    assert reading.facts == {
        "model": "tiny",
        "block_size": "128",
        "num_gpu_blocks": "8192",
        "kv_tokens": "1048576",
        "gpu_memory_utilization": "0.92",
        "prefix_caching": "True",
    }
    assert set(reading.histograms) == {
        "ttft_s",
        "itl_s",
        "tpot_s",
        "e2e_s",
        "queue_s",
        "prefill_s",
        "prompt_length",
        "output_length",
    }
    assert reading.histograms["ttft_s"].counts[-1] == 54
    assert reading.histograms["itl_s"].counts[-1] == 3424 - 54
    assert reading.histograms["itl_s"].edges[0] == 0.01
    assert reading.histograms["prompt_length"].total == 3924


def test_0_6_without_engines() -> None:
    (reading,) = read_page(v0_6())
    assert reading.counters["requests"] == 10
    assert reading.gauges == {"running": 3, "waiting": 3, "kv_usage": 0.25}
    assert reading.histograms["itl_s"].counts == (300, 390, 390)
    assert reading.histograms["queue_s"].total == 0.5
    assert "tpot_s" not in reading.histograms
    assert "cached_prompt_tokens" not in reading.counters
    assert reading.started_at is None
    assert reading.facts["kv_tokens"] == "1600"


def test_0_9_with_engines_and_both_spellings() -> None:
    first, second = read_page(v0_9(), "m")
    assert (first.target, second.target) == ("a", "a#1")
    assert (first.gauges["running"], second.gauges["running"]) == (4, 5)
    # Both spellings count the same: taken once. The HTTP layer counts for the server: once, with the first engine.
    assert first.counters["cached_prompt_tokens"] == 64
    assert (first.counters["requests"], first.counters["errors"]) == (12, 2)
    assert (second.counters["requests"], second.counters["errors"]) == (10, 0)
    assert first.histograms["itl_s"].counts == (300, 390, 390)
    assert first.started_at == 1.79e9
    assert first.facts == {"model": "m", "block_size": "16"}


def test_several_models_and_the_wrong_one() -> None:
    page = v0_9() + v0_9().replace('"m"', '"other"')
    assert [r.target for r in read_page(page)] == ["a@m", "a@m#1", "a@other", "a@other#1"]
    assert [r.target for r in read_page(page, "other")] == ["a", "a#1"]
    with pytest.raises(CollectError, match="it has m, other") as caught:
        read_page(page, "third")
    assert caught.value.kind == "model_not_found"


def test_only_what_waits_for_capacity_waits() -> None:
    page = v0_6() + (
        'vllm:num_requests_waiting_by_reason{model_name="m",reason="capacity"} 5\n'
        'vllm:num_requests_waiting_by_reason{model_name="m",reason="deferred"} 90\n'
    )
    assert read_page(page)[0].gauges["waiting"] == 5


def test_errors_of_the_engine_are_errors() -> None:
    page = v0_6() + 'vllm:request_success_total{model_name="m",finished_reason="error"} 4\n'
    assert read_page(page)[0].counters["errors"] == 4
    assert read_page(page)[0].counters["requests"] == 14


def replaced(old: str, new: str) -> str:
    assert old in v0_6()
    return v0_6().replace(old, new)


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (replaced("vllm:prompt_tokens_total{model_name=\"m\"} 1000.0", 'vllm:prompt_tokens_total{model_name="m"} -5'), "invalid_value"),
        (replaced('finished_reason="stop"} 7.0', 'finished_reason="stop"} -1.0'), "invalid_value"),
        (replaced('finished_reason="stop"} 7.0', 'finished_reason="stop"} +Inf'), "invalid_value"),
        (replaced('gpu_cache_usage_perc{model_name="m"} 0.25', 'gpu_cache_usage_perc{model_name="m"} 25'), "invalid_value"),
        (replaced('num_requests_running{model_name="m"} 3.0', 'num_requests_running{model_name="m"} -3'), "invalid_value"),
        (replaced('le="0.1"} 4', 'le="0.1"} 40'), "invalid_value"),
        (replaced('le="0.1"} 4', 'le="0.1"} -4'), "invalid_value"),
        (replaced('le="0.1"} 4', 'le="soon"} 4'), "invalid_value"),
        (replaced('vllm:time_in_queue_requests_bucket{model_name="m",le="+Inf"} 10\n', ""), "truncated"),
        (replaced("vllm:time_in_queue_requests_sum{model_name=\"m\"} 0.5\n", ""), "truncated"),
        ("python_info 1\n", "not_vllm"),
    ],
)  # fmt: skip
def test_pages_that_cannot_be(page: str, kind: str) -> None:
    with pytest.raises(CollectError) as caught:
        read_page(page)
    assert caught.value.kind == kind


def test_nan_is_unknown_and_not_zero() -> None:
    page = (
        replaced('gpu_cache_usage_perc{model_name="m"} 0.25', 'gpu_cache_usage_perc{model_name="m"} NaN')
        .replace('vllm:prompt_tokens_total{model_name="m"} 1000.0', 'vllm:prompt_tokens_total{model_name="m"} NaN')
        .replace('le="0.1"} 4', 'le="0.1"} NaN')
    )
    (reading,) = read_page(page)
    assert "kv_usage" not in reading.gauges
    assert "prompt_tokens" not in reading.counters
    assert "ttft_s" not in reading.histograms
    assert "itl_s" in reading.histograms


def test_too_many_engines() -> None:
    page = "".join(f'vllm:num_requests_running{{engine="{i}",model_name="m"}} 1\n' for i in range(300))
    with pytest.raises(CollectError) as caught:
        read_page(page)
    assert caught.value.kind == "too_large"


# -- labels that a version leaves out ------------------------------------------------------------------------------

CONFIG = 'vllm:cache_config_info{block_size="32",%snum_gpu_blocks="%d"} 1.0\n'


def running(*labels: str) -> str:
    return "".join(f"vllm:num_requests_running{{{of}}} {i + 1}.0\n" for i, of in enumerate(labels))


RANKED = ('engine="0",model_name="m"', 'engine="1",model_name="m"')


def kv_tokens(page: str) -> list[str | None]:
    return [reading.facts.get("kv_tokens") for reading in read_page(page)]


def test_what_is_said_of_the_cache_without_an_engine_is_of_the_only_one() -> None:
    assert kv_tokens(running(RANKED[0]) + CONFIG % ("", 100)) == ["3200"]
    assert kv_tokens(running('model_name="m"') + CONFIG % ('engine="0",', 100)) == ["3200"]
    assert kv_tokens(running('engine="3",model_name="m"') + CONFIG % ("", 100)) == ["3200"]
    assert kv_tokens(running('engine="3",model_name="m"') + CONFIG % ('engine="0",', 100)) == ["3200"]


def test_what_is_said_of_the_cache_without_an_engine_is_of_all_of_one_process() -> None:
    assert kv_tokens(running(*RANKED) + CONFIG % ("", 100)) == ["3200", "3200"]
    labelled = CONFIG % ('engine="0",', 100) + CONFIG % ('engine="1",', 200)
    assert kv_tokens(running(*RANKED) + labelled) == ["3200", "6400"]
    assert kv_tokens(running(*RANKED) + labelled + CONFIG % ("", 999)) == ["3200", "6400"]
    # Whose is it? One engine's is told, the other's is not known.
    assert kv_tokens(running(*RANKED) + CONFIG % ('engine="0",', 100) + CONFIG % ("", 999)) == ["3200", None]
    assert kv_tokens(running(*RANKED) + CONFIG % ("", 100) + CONFIG % ("", 200)) == [None, None]


def test_a_name_without_the_engine_or_the_model_is_of_the_only_one() -> None:
    page = running(RANKED[0]) + 'vllm:num_requests_waiting{model_name="m"} 5\nvllm:prompt_tokens_total{engine="0"} 70\n'
    (reading,) = read_page(page, "m")
    assert (reading.target, reading.gauges, reading.counters) == (
        "a",
        {"running": 1, "waiting": 5},
        {"prompt_tokens": 70},
    )


def test_a_name_without_the_engine_counts_once_among_several() -> None:
    first, second = read_page(running(*RANKED) + 'vllm:num_preemptions_total{model_name="m"} 9\n')
    assert (first.counters, second.counters) == ({"preemptions": 9}, {})
    assert (first.target, second.target) == ("a", "a#1")
    # An engine's own goes before what is said of all of them.
    both = running(*RANKED) + 'vllm:num_requests_running{model_name="m"} 3\n'
    assert [reading.gauges["running"] for reading in read_page(both)] == [1, 2]


@given(
    ranks=st.sampled_from(((None,), ("0",), ("0", "1"), ("0", "1", "2"), ("5",))),
    bare=st.sets(
        st.sampled_from(("vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"))
    ),
    modelless=st.booleans(),
    model=st.sampled_from(("m", None)),
)
def test_nothing_is_lost_or_counted_twice_where_a_label_is_left_out(
    ranks: tuple[str | None, ...], bare: set[str], modelless: bool, model: str | None
) -> None:
    """Three counters: each by engine, or only for all of them together. The sum over the readings is what was counted."""
    lines = []
    for number, name in enumerate(
        ("vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total"), 1
    ):
        for rank in (None,) if name in bare else ranks:
            labels = ['model_name="m"'] if not (modelless and name in bare) else []
            labels += [] if rank is None else [f'engine="{rank}"']
            lines.append(f"{name}{{{','.join(labels)}}} {number * 10}")
    page = "\n".join(
        [
            running(*(f'model_name="m"{"" if r is None else f",engine={chr(34)}{r}{chr(34)}"}' for r in ranks)),
            *lines,
            "",
        ]
    )
    readings = read_page(page, model)
    assert len(readings) == len({r.target for r in readings}) == len(ranks)
    for number, (name, metric) in enumerate(
        (
            ("vllm:num_preemptions_total", "preemptions"),
            ("vllm:prompt_tokens_total", "prompt_tokens"),
            ("vllm:generation_tokens_total", "output_tokens"),
        ),
        1,
    ):
        assert sum(r.counters.get(metric, 0) for r in readings) == number * 10 * (1 if name in bare else len(ranks))


# -- through a real server ----------------------------------------------------------------------------------------


def collect(
    handler: Handler | None = None,
    url: str | None = None,
    *,
    times: int = 1,
    clock: SetClock | None = None,
    ca_file: Path | None = None,
    model: str | None = "m",
    **options: object,
) -> tuple[list[Sequence[Reading] | CollectError], list[Request]]:
    """Read ``times`` times; readings or the error of each."""

    async def run(target: ScrapeTarget) -> list[Sequence[Reading] | CollectError]:
        http = Http(ca_file=ca_file)
        collector = make(SourceContext("chat", model, http, clock or SetClock(), Sessions(), options))
        results: list[Sequence[Reading] | CollectError] = []
        try:
            for _ in range(times):
                try:
                    results.append(await collector.read(target))
                except CollectError as error:
                    results.append(error)
        finally:
            await http.aclose()
        return results

    if handler is None:
        assert url is not None
        return asyncio.run(run(ScrapeTarget("a", url))), []
    with serve(handler) as served:
        return asyncio.run(run(ScrapeTarget("a", served.url, {"authorization": "Bearer key"}))), served.requests


def kind_of(handler: Handler, **options: object) -> str:
    (result,), _ = collect(handler, **options)  # type: ignore[arg-type]
    assert isinstance(result, CollectError), result
    return result.kind


def vllm_server(page: str, version: str | None, **headers: str) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/metrics":
            await answering(page, **headers)(request, writer)
        elif request.path == "/version" and version is not None:
            await answering(version, kind="application/json")(request, writer)
        else:
            await answering('{"detail":"Not Found"}', "404 Not Found")(request, writer)

    return handler


def test_a_read_with_headers_and_version() -> None:
    results, requests = collect(vllm_server(v0_9(), '{"version":"0.10.2"}'), times=3)
    for result in results:
        assert not isinstance(result, CollectError)
        assert [r.facts["engine_version"] for r in result] == ["0.10.2", "0.10.2"]
    assert [r.path for r in requests] == ["/metrics", "/version", "/metrics", "/metrics"]
    assert {r.headers["authorization"] for r in requests} == {"Bearer key"}


def test_the_version_is_asked_again_after_a_restart() -> None:
    started = iter(["1.79e+09", "1.79e+09", "1.795e+09"])

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        page = v0_9().replace("1.79e+09", next(started)) if request.path == "/metrics" else '{"version":"1"}'
        await answering(page)(request, writer)

    _, requests = collect(handler, times=3)
    assert [r.path for r in requests] == ["/metrics", "/version", "/metrics", "/metrics", "/version"]


@pytest.mark.parametrize("version", [None, "nonsense", "[" * 4000, '{"version": 3}', '["version"]'])
def test_a_server_without_a_version_is_tolerated(version: str | None) -> None:
    results, requests = collect(vllm_server(v0_6(), version), times=6)
    for result in results:
        assert not isinstance(result, CollectError)
        assert "engine_version" not in result[0].facts
    assert [r.path for r in requests].count("/version") == 3


def test_a_clock_an_hour_off() -> None:
    assert kind_of(vllm_server(v0_6(), None, date=dated(SetClock().time - 3600))) == "clock_skew"


def test_a_server_that_is_down() -> None:
    with serve(answering("")) as served:
        url = served.url
    (result,), _ = collect(None, url)
    assert isinstance(result, CollectError)
    assert result.kind == "down"


def test_everything_else_that_a_server_can_do() -> None:
    async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head_of())
        while True:
            writer.write(b"a 1\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        page = v0_6().encode()
        writer.write(head_of(length=len(page)) + page[: len(page) // 2])

    assert kind_of(hang, timeout_s=0.2) == "timeout"
    assert kind_of(drip, timeout_s=0.3) == "timeout"
    assert kind_of(half) == "truncated"
    assert kind_of(answering(v0_6()[:-30])) == "truncated"
    assert kind_of(answering("<html>Sign in</html>", kind="text/html")) == "not_metrics"
    assert kind_of(answering("no", "401 Unauthorized")) == "http_401"
    assert kind_of(answering("oh", "500 Internal Server Error")) == "http_5xx"
    assert kind_of(answering("", "302 Found", location="/metrics")) == "redirect"
    assert kind_of(answering(v0_6()), model="other") == "model_not_found"


def test_wrong_tls(tmp_path: Path) -> None:
    with certificate(tmp_path) as (tls, cert), serve(answering(v0_6()), tls) as served:
        (result,), _ = collect(None, served.url)
        assert isinstance(result, CollectError)
        assert result.kind == "tls"
        (result,), _ = collect(None, served.url, ca_file=cert)
        assert not isinstance(result, CollectError)


def test_a_million_label_sets() -> None:
    page = "".join(f'vllm:num_requests_running{{model_name="m",user="{i}"}} 1\n' for i in range(60_000))
    assert kind_of(answering(page)) == "too_large"
    body = b"".join(b'x{model_name="m",user_with_a_long_name="%d"} 1\n' % i for i in range(1_000_000))
    assert kind_of(answering(body)) == "too_large"


def test_readings_are_of_our_clock() -> None:
    clock = SetClock(1_800_000_123.0)
    (result,), _ = collect(vllm_server(v0_6(), None), clock=clock)
    assert not isinstance(result, CollectError)
    assert result[0].at == 1_800_000_123.0
    assert math.isfinite(result[0].at)


def test_options_are_checked() -> None:
    async def run() -> None:
        http = Http()
        try:
            with pytest.raises(ValueError, match="pat"):
                VllmCollector(SourceContext("chat", None, http, SetClock(), Sessions(), {"pat": "/metrics"}))
        finally:
            await http.aclose()

    asyncio.run(run())


def test_extra_labels_add_up() -> None:
    page = "".join(
        [
            f'vllm:num_requests_running{{model_name="m",replica="{r}"}} 2\n'
            + histogram("vllm:e2e_request_latency_seconds", f'model_name="m",replica="{r}"', {"1.0": 3, "+Inf": 4}, 9.0)
            + "\n"
            for r in ("x", "y")
        ]
    )
    (reading,) = read_page(page)
    assert reading.gauges["running"] == 4
    assert reading.histograms["e2e_s"].counts == (6, 8)
    assert reading.histograms["e2e_s"].total == 18
