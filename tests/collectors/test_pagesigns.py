"""Pages of other programs: whoever wanted vLLM's is told whose it is, and what to do."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors import llamacpp
from collectors.exposition import Exposition
from collectors.pagesigns import SIGNS, sign_of, told_apart
from collectors.vllm import _NAMES, readings_of
from collectors.window import CollectError, Reading

#: A line that such a program writes, and what must be said: whose it is, and the next step.
FOREIGN = {
    'sglang:num_running_reqs{model_name="q",engine_type="unified"} 3.0': ("SGLang", "sources: {sglang: {}}"),
    "tgi_queue_size 0": ("TGI", "sources: {tgi: {}}"),
    'dynamo_frontend_inflight_requests{model="q"} 1': ("Dynamo", "probe"),
    'ray_vllm_num_requests_waiting{model_name="q",WorkerId="8f"} 0.0': ("Ray", "ray_vllm_"),
    'ray_serve_num_ongoing_http_requests{node_id="8f"} 0.0': ("Ray", "behind it"),
    "llamacpp:tokens_predicted_total 91": ("llama.cpp", "{llamacpp: {}}"),
    'nv_inference_request_success{model="q",version="1"} 4': ("Triton", "{triton: {url: ...}}"),
    'litellm_requests_metric_total{model="q"} 4.0': ("LiteLLM", "behind it"),
    'haproxy_backend_current_queue{proxy="q"} 0': ("HAProxy", "behind it"),
    'vllm:num_requests_waiting{server="http://10.1.0.7:8000"} 0.0': ("router", "server"),
    "# TYPE vllm_router_requests counter": ("router", "vLLM servers behind it"),
    'process_cpu_seconds_total{job="x"} 5.25': ("no engine's that is known", "another port"),
    "prometheus_tsdb_head_series 814": ("Prometheus", "{prometheus: {url: ...}}"),
    'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 12': ("DCGM", "engine's own address"),
}


def read(page: str) -> list[Reading]:
    return readings_of(Exposition(_NAMES).parse(page.encode()), "a", None, 5.0)


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: line.split("{")[0].split(" ")[0])
def test_a_foreign_page_says_what_it_is(line: str) -> None:
    with pytest.raises(CollectError) as caught:
        read(f"# HELP python_info about\npython_info 1.0\n{line}\n")
    assert caught.value.kind == "not_vllm"
    for words in FOREIGN[line]:
        assert words in caught.value.detail


def test_a_page_of_nobody_known() -> None:
    with pytest.raises(CollectError, match=r"none of vLLM's.*probe") as caught:
        read("shop_orders_total 12\n")
    assert caught.value.kind == "not_vllm"


def test_tritons_models_are_read() -> None:
    (reading,) = read('nv_inference_count{model="q"} 2\nvllm:prompt_tokens_total{model="q",version="1"} 5\n')
    assert (reading.facts["model"], reading.counters) == ("q", {"prompt_tokens": 5.0})
    with pytest.raises(CollectError, match="it has q") as caught:
        readings_of(Exposition(_NAMES).parse(b'vllm:prompt_tokens_total{model="q",version="1"} 5\n'), "a", "other", 5.0)
    assert caught.value.kind == "model_not_found"


def test_vllms_names_without_any_model() -> None:
    with pytest.raises(CollectError, match="no model_name label") as caught:
        read('vllm:num_requests_running{engine="0"} 1.0\n')
    assert caught.value.kind == "not_vllm"


def test_llamacpp_too_says_what_the_page_is() -> None:
    page = 'vllm:num_requests_running{engine="0",model_name="q"} 1.0\n'
    with pytest.raises(CollectError, match=r"vLLM's.*\{vllm: \{\}\}") as caught:
        llamacpp.values_of(Exposition(llamacpp._NAMES).parse(page.encode()))
    assert caught.value.kind == "not_llamacpp"


def test_an_idle_page_is_known_by_its_comments() -> None:
    sign = sign_of(b"# HELP tgi_request_count requests\n# TYPE tgi_request_count counter\n")
    assert sign is not None
    assert "TGI" in sign.what
    assert sign_of(b'shop_total{about="tgi_queue_size"} 1\n') is None


def test_each_sign_has_a_next_step() -> None:
    for sign in SIGNS:
        assert "source" in sign.do or "address" in sign.do or "preset" in sign.do
        assert told_apart(b"shop_total 1\n", sign.what) != ""


@given(st.lists(st.sampled_from(sorted(FOREIGN)), min_size=1), st.text(string.ascii_lowercase, min_size=1, max_size=9))
def test_whatever_stands_beside_the_page_is_no_vllm(lines: list[str], own: str) -> None:
    with pytest.raises(CollectError) as caught:
        read("\n".join([*lines, f"own_{own}_total 1", ""]))
    assert caught.value.kind == "not_vllm"
    assert len(caught.value.detail) > 40
