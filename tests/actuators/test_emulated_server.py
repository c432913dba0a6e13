"""The emulated server as its clients and its governor see it: a real process over real HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec, FleetError
from actuators.shape import Shape
from tests.actuators.support import call

SIZES = {"emu-s": Size(2000.0, 300.0, 4_096), "emu-l": Size(4000.0, 600.0, 200_000)}
FAST = {"base_s": 0.002}


def spec(**more: Any) -> EmulatedSpec:
    return EmulatedSpec(
        **{"name": "chat", "model": "m", "shape": Shape(replicas=1), "sizes": SIZES, "iteration": FAST, **more}
    )


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[EmulatedFleet]:
    with EmulatedFleet(tmp_path) as made:
        yield made


def post(url: str, path: str, **body: Any) -> tuple[int, bytes]:
    answer = call("POST", url + path, json=body)
    return answer.status, answer.body


def events(body: bytes) -> list[Any]:
    assert body.endswith(b"data: [DONE]\n\n")
    return [json.loads(e.removeprefix("data: ")) for e in body.decode().split("\n\n")[:-2]]


def scrape(url: str) -> dict[str, float]:
    text = call("GET", url + "/metrics").body.decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^([a-z0-9_:]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def until(condition: Any, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def status(url: str) -> Any:
    return json.loads(call("GET", url + "/emulated/shape").body)


def put(url: str, generation: int | None, shape: dict[str, Any], token: str = "") -> int:
    headers = {} if generation is None else {"if-match": f'"{generation}"'}
    return call("PUT", url + "/emulated/shape", headers, {"shape": shape, "token": token}).status


def test_a_chat_streams_role_tokens_finish_usage_and_the_end(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec())
    ask = {
        "model": "m",
        "messages": [{"role": "user", "content": "one two three"}],
        "max_tokens": 5,
        "ignore_eos": True,
    }
    code, body = post(url, "/v1/chat/completions", **ask, stream=True, stream_options={"include_usage": True})
    said = events(body)
    assert code == 200
    assert said[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    tokens = said[1:6]
    assert [len(t["choices"][0]["delta"]["content"].split()) for t in tokens] == [1] * 5
    assert [t["choices"][0]["finish_reason"] for t in tokens] == [None] * 4 + ["length"]
    assert said[6]["choices"] == []
    assert said[6]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert {e["object"] for e in said} == {"chat.completion.chunk"}
    assert len({e["id"] for e in said}) == 1
    code, body = post(url, "/v1/chat/completions", **ask)
    whole = json.loads(body)
    assert whole["choices"][0]["message"]["content"] == "".join(t["choices"][0]["delta"]["content"] for t in tokens)
    assert whole["usage"] == said[6]["usage"]


def test_completions_take_texts_and_token_ids_and_end_by_length_or_stop(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec())
    code, body = post(url, "/v1/completions", prompt=[1, 2, 3], max_tokens=3, ignore_eos=True, stream=True)
    assert code == 200
    assert [e["choices"][0]["finish_reason"] for e in events(body)] == [None, None, "length"]
    code, body = post(url, "/v1/completions", prompt="a b", max_tokens=3000)
    whole = json.loads(body)
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert 0 < whole["usage"]["completion_tokens"] < 3000
    code, body = post(url, "/tokenize", prompt="a b")
    assert json.loads(body)["count"] == whole["usage"]["prompt_tokens"] == 6


def test_what_a_client_does_wrong_is_said(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec(shape=Shape(replicas=1, size="emu-s")))
    wrong: list[tuple[int, dict[str, Any]]] = [
        (404, {"model": "other", "prompt": "x"}),
        (400, {"prompt": "x", "n": 2}),
        (400, {"prompt": "x", "max_tokens": 0}),
        (400, {"prompt": "x", "max_tokens": "many"}),
        (400, {"prompt": "x", "max_tokens": 100_000}),
        (400, {"prompt": "x", "max_tokens": 4_092, "ignore_eos": True}),
        (400, {"prompt": ["a", "b"]}),
        (400, {}),
    ]
    for code, body in wrong:
        status_, answer = post(url, "/v1/completions", **body)
        assert (status_, "message" in json.loads(answer)["error"]) == (code, True), body
    assert call("GET", url + "/nothing").status == 404
    assert post(url, "/v1/completions", prompt="x", max_tokens=2)[0] == 200
    assert scrape(url)['http_requests_total{handler="/v1/completions",method="POST",status="4xx"}'] == len(wrong)


def test_metrics_have_vllms_names_and_add_up(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec())
    before = scrape(url)
    for _ in range(4):
        post(url, "/v1/completions", prompt="a b c", max_tokens=5, ignore_eos=True)
    page = scrape(url)
    labels = '{engine="0",model_name="m"}'
    assert page[f"vllm:prompt_tokens_total{labels}"] == 4 * 7
    assert page[f"vllm:generation_tokens_total{labels}"] == 20
    assert page['vllm:request_success_total{engine="0",model_name="m",finished_reason="length"}'] == 4
    counts = {"time_to_first_token_seconds": 4, "inter_token_latency_seconds": 16, "e2e_request_latency_seconds": 4}
    counts |= {"request_time_per_output_token_seconds": 4, "request_queue_time_seconds": 4, "request_prompt_tokens": 4}
    for name, count in counts.items():
        assert page[f"vllm:{name}_count{labels}"] == count
        assert page[f'vllm:{name}_bucket{{engine="0",model_name="m",le="+Inf"}}'] == count
    assert page[f"vllm:request_prompt_tokens_sum{labels}"] == 28
    assert page[f"vllm:num_requests_running{labels}"] == page[f"vllm:num_requests_waiting{labels}"] == 0
    config = 'block_size="16",num_gpu_blocks="25000",enable_prefix_caching="True"'
    assert page[f'vllm:cache_config_info{{{config},engine="0"}}'] == 1
    assert before.keys() <= page.keys()


@pytest.mark.parametrize("caching", [True, False])
def test_a_conversation_finds_what_was_said_in_the_prefix_cache(caching: bool, fleet: EmulatedFleet) -> None:
    url = fleet.start(spec(shape=Shape(replicas=1, engine={"enable_prefix_caching": caching})))
    said: list[dict[str, str]] = [{"role": "user", "content": " ".join(f"w{i}" for i in range(60))}]
    tokens = 4 + 60
    for answer_tokens in (20, 1):
        body = {"messages": said, "max_tokens": answer_tokens, "ignore_eos": True}
        answer = json.loads(post(url, "/v1/chat/completions", **body)[1])
        said += [answer["choices"][0]["message"], {"role": "user", "content": "and then"}]
    page, labels = scrape(url), '{engine="0",model_name="m"}'
    assert page[f"vllm:prefix_cache_queries_total{labels}"] == tokens + (tokens + 20 + 2)
    # The last token that came out was never read, so 83 of 84 are in the cache: five blocks of 16.
    found = 80 if caching else 0
    assert page[f"vllm:prefix_cache_hits_total{labels}"] == page[f"vllm:prompt_tokens_cached_total{labels}"] == found


def test_its_names_and_buckets_are_those_of_a_real_vllm_page(fleet: EmulatedFleet) -> None:
    real_path = Path(__file__).parents[3] / "shared/data/recorded/vllm/metrics_0.32.0_cpu_after_load.txt"
    if not real_path.exists():
        pytest.skip("the recorded vLLM page is not beside the project (../shared/data/recorded/vllm)")
    url = fleet.start(spec(shape=Shape(replicas=1, engine={"max_model_len": 2048})))
    post(url, "/v1/completions", prompt="a", max_tokens=2)

    def series(text: str) -> set[tuple[str, str]]:
        found = re.findall(r'^(vllm:[a-z_0-9]+)(?:\{(?:[^}]*?le="([^"]*)")?[^}]*\})? \S+$', text, re.MULTILINE)
        return {(name, edge) for name, edge in found}

    ours, real = series(call("GET", url + "/metrics").body.decode()), series(real_path.read_text())
    assert ours - real == set()


def test_at_its_slot_limit_it_queues_and_says_so(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec(shape=Shape(replicas=1, engine={"max_num_seqs": 2}), iteration={"base_s": 0.02}))

    async def load() -> None:
        ask: dict[str, Any] = {"prompt": "a", "max_tokens": 40, "ignore_eos": True}
        tasks = [asyncio.to_thread(post, url, "/v1/completions", **ask) for _ in range(5)]
        running = asyncio.gather(*tasks)
        labels = '{engine="0",model_name="m"}'

        def both() -> bool:
            page = scrape(url)
            return (page[f"vllm:num_requests_running{labels}"], page[f"vllm:num_requests_waiting{labels}"]) == (2, 3)

        await asyncio.to_thread(until, both)
        assert {code for code, _ in await running} == {200}

    asyncio.run(load())


def test_a_client_that_leaves_frees_its_slot_and_counts_as_abort(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec())
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=10)
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body))
    answer = connection.getresponse()
    answer.readline()
    answer.close()
    connection.close()
    until(lambda: status(url)["running"] == 0)
    assert scrape(url)['vllm:request_success_total{engine="0",model_name="m",finished_reason="abort"}'] == 1


def test_a_change_overlaps_drains_and_keeps_its_generation_over_a_restart(fleet: EmulatedFleet) -> None:
    chat = spec(cold_start_s=0.2)
    url = fleet.start(chat)

    async def story() -> None:
        ask = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": True}
        running = asyncio.create_task(asyncio.to_thread(post, url, "/v1/completions", **ask))
        await asyncio.to_thread(until, lambda: status(url)["running"] == 1)
        wanted = {"replicas": 2, "size": "emu-l", "engine": {"max_num_seqs": 4}}
        assert put(url, None, wanted) == 428
        assert put(url, 7, wanted) == 409
        assert put(url, 1, wanted, "t1") == 202
        assert put(url, 1, wanted, "t1") == 202  # the same step again
        now = status(url)
        assert (now["generation"], now["ready"], now["ready_replicas"]) == (2, False, 1)
        code, body = await running
        assert code == 200
        assert len(events(body)) == 300
        await asyncio.to_thread(until, lambda: status(url)["ready"])
        now = status(url)
        assert (now["shape"], now["ready_replicas"]) == ({**wanted}, 2)
        assert f'vllm:num_requests_running{{engine="{1}",model_name="m"}}' in scrape(url)

    asyncio.run(story())
    fleet.stop("chat")
    url = fleet.start(chat)
    now = status(url)
    assert (now["generation"], now["token"], now["shape"]["replicas"]) == (2, "t1", 2)


@pytest.mark.parametrize(
    "shape",
    [
        {"replicas": 65},
        {"replicas": 1, "size": "emu-xl"},
        {"replicas": 1, "engine": {"max_num_sekz": 1}},
        {"replicas": 1, "engine": {"max_num_seqs": 0}},
        {"replicas": 1, "engine": {"max_num_seqs": "8"}},
        {"replikas": 1},
    ],
)
def test_a_shape_that_it_does_not_know_is_refused_and_changes_nothing(
    fleet: EmulatedFleet, shape: dict[str, Any]
) -> None:
    url = fleet.start(spec())
    before = status(url)
    assert put(url, 1, shape) == 422
    assert status(url) == before


def test_no_replica_is_a_503_and_unhealthy(fleet: EmulatedFleet) -> None:
    url = fleet.start(spec(shape=Shape(replicas=0)))
    assert call("GET", url + "/health").status == 503
    answer = call("POST", url + "/v1/completions", json={"prompt": "x"})
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


def test_sabotage_slows_the_shapes_that_match(fleet: EmulatedFleet) -> None:
    slow = {"when": {"replicas": 2, "engine": {"max_num_seqs": 4}}, "slowdown": 10.0}
    url = fleet.start(spec(sabotage=slow, iteration={"base_s": 0.01}, cold_start_s=0.0))

    def itl(engines: set[str]) -> float:
        ask = {"prompt": "a", "max_tokens": 12, "ignore_eos": True}
        for _ in engines:
            post(url, "/v1/completions", **ask)
        page = scrape(url)
        total = sum(page[f'vllm:inter_token_latency_seconds_sum{{engine="{e}",model_name="m"}}'] for e in engines)
        return total / sum(
            page[f'vllm:inter_token_latency_seconds_count{{engine="{e}",model_name="m"}}'] for e in engines
        )

    first = itl({"0"})
    assert first >= 0.009
    assert put(url, 1, {"replicas": 2, "engine": {"max_num_seqs": 4}}) == 202
    until(lambda: status(url)["ready"])
    assert itl({"1", "2"}) >= 0.09  # ten times the timing, less its noise; a busy machine only adds


def test_a_fleet_leaves_nothing_even_when_it_is_killed(tmp_path: Path) -> None:
    text = f"""
import sys, time
from pathlib import Path
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Shape
fleet = EmulatedFleet(Path({str(tmp_path)!r})).__enter__()
fleet.start(EmulatedSpec("chat", "m", Shape(replicas=1)))
print(fleet.pid("chat"), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_one_that_cannot_start_says_why(fleet: EmulatedFleet) -> None:
    with pytest.raises(FleetError, match=r"size 'huge' is not one of the emulated sizes \(emu-l, emu-s\)"):
        fleet.start(spec(shape=Shape(replicas=1, size="huge")))
    assert fleet.start(spec()).startswith("http://127.0.0.1:")
