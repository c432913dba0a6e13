"""SGLang, TGI, TEI and Triton by pages written after their sources and documents: what counts once, what adds up, what nobody tells."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.builder import WindowBuilder
from collectors.exposition import Exposition
from collectors.http import Http
from collectors.servers import sglang, tei, tgi, triton
from collectors.servers.page import ServerFigures, ServerNames
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import answering, serve


def histogram(name: str, edges: str, counts: str, total: float, labels: str = "") -> str:
    """Cumulative counts, the last of +Inf."""
    found = counts.split()
    lines = [
        f'{name}_bucket{{{labels}le="{edge}"}} {n}' for edge, n in zip([*edges.split(), "+Inf"], found, strict=True)
    ]
    bare = labels.rstrip(",")
    return "\n".join([*lines, f"{name}_sum{{{bare}}} {total}", f"{name}_count{{{bare}}} {found[-1]}"]) + "\n"


def read(names: ServerNames, page: str, model: str | None = None) -> ServerFigures:
    return names.read(Exposition(names.wanted).parse(page.encode()), model)


def scheduler(rank: int, dp: int, running: int, usage: float, model: str = "q") -> str:
    labels = f'model_name="{model}",engine_type="unified",tp_rank="{rank}",pp_rank="0",dp_rank="{dp}"'
    values = {"num_running_reqs": running, "num_queue_reqs": 1, "token_usage": usage, "max_total_num_tokens": 1000}
    return "".join(f"sglang:{name}{{{labels}}} {value}\n" for name, value in values.items())


SGLANG = (
    "".join(scheduler(tp, dp, 3 + dp, 0.2 + 0.4 * dp) for tp in (0, 1) for dp in (0, 1))
    + 'sglang:prompt_tokens_total{model_name="q"} 1000\nsglang:cached_tokens_total{model_name="q"} 400\n'
    + 'sglang:generation_tokens_total{model_name="q"} 500\nsglang:num_requests_total{model_name="q"} 20\n'
    + 'sglang:http_responses_total{endpoint="/v1/chat/completions",status_code="200",method="POST"} 20\n'
    + 'sglang:http_responses_total{endpoint="/v1/chat/completions",status_code="503",method="POST"} 4\n'
    + 'sglang:http_responses_total{endpoint="/health",status_code="503",method="GET"} 99\n'
    + histogram("sglang:time_to_first_token_seconds", "0.1 0.2", "5 8 8", 1.0, 'model_name="q",is_streaming="true",')
    + histogram("sglang:time_to_first_token_seconds", "0.1 0.2", "2 2 2", 0.1, 'model_name="q",is_streaming="false",')
    + histogram("sglang:time_per_output_token_seconds", "0.1", "9 9", 0.5, 'model_name="q",')
)


def test_sglangs_ranks_that_work_together_count_once_and_those_beside_each_other_add_up() -> None:
    found = read(sglang.NAMES, SGLANG)
    assert found.gauges == {"running": 7.0, "waiting": 2.0, "kv_usage": pytest.approx(0.4)}
    assert found.counters == {
        "prompt_tokens": 1000.0, "cached_prompt_tokens": 400.0, "output_tokens": 500.0, "requests": 24.0, "errors": 4.0,
    }  # fmt: skip
    assert found.facts == {"model": "q", "kv_tokens": "2000"}
    assert found.histograms["ttft_s"].counts == (7.0, 10.0, 10.0)
    assert set(found.histograms) == {"ttft_s", "tpot_s"}, (
        "the old name of TPOT is read, and what is not there is not known"
    )


def test_sglang_without_its_http_layers_counts_says_nothing_of_errors() -> None:
    page = 'sglang:num_requests_total{model_name="q"} 20\n'
    assert read(sglang.NAMES, page).counters == {"requests": 20.0}


def test_sglangs_models_are_told_apart() -> None:
    page = SGLANG + scheduler(0, 0, 50, 0.9, "other")
    assert read(sglang.NAMES, page, "q").gauges["running"] == 7.0
    with pytest.raises(CollectError, match="2 models"):
        read(sglang.NAMES, page)
    with pytest.raises(CollectError, match="no model nobody; it has other, q"):
        read(sglang.NAMES, page, "nobody")


TGI = (
    'tgi_request_count 30\ntgi_request_failure{err="validation"} 2\ntgi_request_failure{err="overloaded"} 3\n'
    'tgi_request_failure{err="generation"} 1\ntgi_queue_size 4\ntgi_batch_current_size 8\n'
    + histogram("tgi_request_duration", "1 2", "20 24 24", 30.0)
    + histogram("tgi_request_input_length", "100", "24 24", 2400)
    + histogram("tgi_request_generated_tokens", "100", "24 24", 1200)
)


def test_tgis_failures_are_refusals_want_of_room_or_errors() -> None:
    found = read(tgi.NAMES, TGI)
    assert found.counters == {
        "requests": 30.0, "rejected": 2.0, "throttled": 3.0, "errors": 1.0, "prompt_tokens": 2400.0, "output_tokens": 1200.0,
    }  # fmt: skip
    assert found.gauges == {"running": 8.0, "waiting": 4.0}
    assert set(found.histograms) == {"e2e_s", "prompt_length", "output_length"}
    quiet = read(tgi.NAMES, "tgi_request_count 5\n").counters
    assert quiet == {"requests": 5.0, "rejected": 0.0, "throttled": 0.0, "errors": 0.0}, (
        "their series come with the first"
    )


def test_tei_has_a_prompt_and_a_time() -> None:
    page = (
        'te_request_count{method="batch"} 7\nte_request_count{method="single"} 3\nte_request_failure{err="overloaded"} 1\nte_queue_size 2\n'
        + histogram("te_request_duration", "0.1", "9 10", 1.5)
        + histogram("te_request_input_length", "64", "10 10", 320)
    )
    found = read(tei.NAMES, page)
    assert found.counters == {"requests": 10.0, "errors": 1.0, "prompt_tokens": 320.0}
    assert found.gauges == {"waiting": 2.0}
    assert found.histograms["e2e_s"].total == 1.5


TRITON = """\
nv_inference_request_success{model="q",version="1"} 6
nv_inference_request_success{model="q",version="2"} 4
nv_inference_request_success{model="p",version="1"} 100
nv_inference_request_failure{model="q",version="1",reason="OTHER"} 1
nv_inference_request_failure{model="p",version="1",reason="OTHER"} 50
nv_inference_request_duration_us{model="q",version="1"} 3000000
nv_inference_pending_request_count{model="q",version="1"} 5
nv_gpu_utilization{gpu_uuid="a"} 0.5
nv_gpu_utilization{gpu_uuid="b"} 0.7
nv_gpu_memory_used_bytes{gpu_uuid="a"} 10
nv_gpu_memory_total_bytes{gpu_uuid="a"} 40
"""


def test_tritons_microseconds_are_a_mean_and_no_percentile() -> None:
    found = read(triton.NAMES, TRITON, "q")
    assert found.counters == {"requests": 11.0, "errors": 1.0, "e2e_total_s": 3.0}
    assert found.gauges == {"waiting": 5.0, "gpu_usage": pytest.approx(0.6), "gpu_memory_usage": 0.25}
    assert found.histograms == {}
    with pytest.raises(CollectError, match="2 models"):
        read(triton.NAMES, TRITON)
    with pytest.raises(CollectError, match="it has p, q"):
        read(triton.NAMES, TRITON, "x")


@pytest.mark.parametrize(
    ("names", "page"),
    [
        (sglang.NAMES, 'sglang:token_usage{model_name="q"} 1.5\n'),
        (sglang.NAMES, 'sglang:prompt_tokens_total{model_name="q"} -1\n'),
        (tgi.NAMES, 'tgi_request_duration_bucket{le="1"} 3\n'),
        (tei.NAMES, histogram("te_request_duration", "1", "3 2", 1.0)),
        (triton.NAMES, "nv_gpu_utilization 1.5\n"),
    ],
)
def test_what_cannot_be_is_refused(names: ServerNames, page: str) -> None:
    with pytest.raises(CollectError) as refused:
        read(names, page)
    assert refused.value.kind in ("invalid_value", "truncated")


@pytest.mark.parametrize(
    ("make", "mine"), [(sglang.make, SGLANG), (tgi.make, TGI), (tei.make, "te_queue_size 1\n"), (triton.make, TRITON)]
)
def test_over_http_its_own_page_is_read_and_anothers_is_named(make: Any, mine: str) -> None:
    async def ask(at: str, options: Mapping[str, Any]) -> list[Reading]:
        http = Http()
        try:
            model = "q" if make in (sglang.make, triton.make) else None
            collector = make(SourceContext("chat", model, http, SetClock(), Sessions(), options))
            return list(await collector.read(ScrapeTarget("a", at, {"authorization": "Bearer key"})))
        finally:
            await http.aclose()

    with serve(answering(mine)) as server:
        (found,) = asyncio.run(ask(server.url, {}))
        (elsewhere,) = asyncio.run(ask("http://127.0.0.1:9", {"url": server.url}))
        own, other = server.requests
    assert found.target == "a"
    assert found.counters or found.gauges
    assert elsewhere.gauges == found.gauges
    assert (own.path, "authorization" in own.headers) == ("/metrics", True)
    assert "authorization" not in other.headers, "the endpoint's key is for the endpoint's own address"
    with (
        serve(answering('vllm:num_requests_running{model_name="q",engine="0"} 1\n')) as server,
        pytest.raises(CollectError, match="vLLM"),
    ):
        asyncio.run(ask(server.url, {}))


def test_a_restart_shows_by_counters_that_fall() -> None:
    builder = WindowBuilder("chat", "sglang", 10.0, max_gap_s=30.0)
    for at, page in (
        (100.0, SGLANG),
        (105.0, SGLANG.replace("} 500", "} 900")),
        (110.0, SGLANG.replace("} 500", "} 7")),
    ):
        found = read(sglang.NAMES, page)
        builder.add(Reading("a", at, found.counters, found.histograms, found.gauges, facts=found.facts))
    windows = builder.close(120.0)
    assert sum(w.counts.get("output_tokens", 0.0) for w in windows) == pytest.approx(407.0)
    assert sum(w.restarts for w in windows) == 1
