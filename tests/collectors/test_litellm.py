"""A LiteLLM proxy's page as a real one wrote it, whose tokens are whose, and everything that a server can answer instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.litellm.discover import LiteLLMSystem
from collectors.litellm.source import MOST_DEPLOYMENTS, MOST_TAGS, LiteLLMCollector, make
from collectors.metrics import tag_of, tagged
from collectors.sessions import Sessions
from collectors.window import CollectError, Histogram, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, Handler, answering, serve
from tests.fakes.litellm import MASTER_KEY, FakeProxy

RECORDED = Path(__file__).parents[2] / "../shared/data/recorded/litellm/metrics.txt"


def tokens(name: str, value: float, **labels: str) -> str:
    told = {"requested_model": "gpt", "team_alias": "None", "end_user": "None", **labels}
    text = ",".join(f'{key}="{label}"' for key, label in told.items())
    return f"litellm_{name}_tokens_metric_total{{{text}}} {value}\n"


PAGE = (
    'litellm_proxy_total_requests_metric_total{requested_model="gpt",status_code="200"} 5.0\n'
    'litellm_proxy_total_requests_metric_total{requested_model="gpt",status_code="500"} 1.0\n'
    'litellm_proxy_total_requests_metric_total{requested_model="gpt",status_code="429"} 2.0\n'
    'litellm_proxy_total_requests_metric_total{requested_model="gpt",status_code="401"} 3.0\n'
    'litellm_proxy_total_requests_metric_total{requested_model="other",status_code="200"} 9.0\n'
    + tokens("input", 100, team_alias="search", end_user="u1")
    + tokens("input", 50, team_alias="search", end_user="u2")
    + tokens("input", 30, team_alias="drafts")
    + tokens("input", 20)
    + tokens("input", 700, requested_model="other", team_alias="search")
    + tokens("output", 8, team_alias="drafts")
    + tokens("input_cached", 60, team_alias="search")
    + 'litellm_spend_metric_total{requested_model="gpt"} 0.25\n'
)


def collector(model: str | None = "gpt", http: Http | None = None, **options: Any) -> LiteLLMCollector:
    return make(SourceContext("chat", model, http or Http(tls=TRUST), SetClock(), Sessions(), options))


def counted(page: str | bytes, one: LiteLLMCollector | None = None) -> dict[str, float]:
    one = one or collector()
    body = page.encode() if isinstance(page, str) else page
    return one.counters(one._exposition.parse(body))


def test_a_real_page() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded LiteLLM page is not beside the project (shared/data)")
    assert counted(RECORDED.read_bytes(), collector("tiny")) == {
        "requests": 6.0,
        "errors": 1.0,
        "throttled": 0.0,
        "rejected": 0.0,
        "prompt_tokens": 265.0,
        "cached_prompt_tokens": 260.0,
        "output_tokens": 25.0,
        "billed_usd": pytest.approx(0.000315),
    }


def test_requests_by_outcome_and_tokens_by_team() -> None:
    assert counted(PAGE) == {
        "requests": 11.0,
        "errors": 1.0,
        "throttled": 2.0,
        "rejected": 3.0,
        "prompt_tokens": 200.0,
        "prompt_tokens@search": 150.0,
        "prompt_tokens@drafts": 30.0,
        "output_tokens": 8.0,
        "output_tokens@drafts": 8.0,
        "cached_prompt_tokens": 60.0,
        "cached_prompt_tokens@search": 60.0,
        "billed_usd": 0.25,
    }


def test_another_label_and_all_models() -> None:
    found = counted(PAGE, collector(None, tag="end_user"))
    assert (found["requests"], found["prompt_tokens"]) == (20.0, 900.0)
    assert {name for name in found if "@" in name} == {"prompt_tokens@u1", "prompt_tokens@u2"}


def timed(name: str, model_id: str, counts: tuple[int, int, int], total: float, **labels: str) -> str:
    """One series of a histogram with the bounds 0.1, 1 and +Inf."""
    told = {"requested_model": "gpt", "model_id": model_id, **labels}
    text = ",".join(f'{key}="{label}"' for key, label in told.items())
    lines = [f'{name}_bucket{{le="{le}",{text}}} {n}\n' for le, n in zip(("0.1", "1.0", "+Inf"), counts, strict=True)]
    return "".join(lines) + f"{name}_sum{{{text}}} {total}\n{name}_count{{{text}}} {counts[-1]}\n"


E2E, TTFT = "litellm_request_total_latency_metric", "litellm_llm_api_time_to_first_token_metric"


def times_of(page: str | bytes, one: LiteLLMCollector | None = None) -> dict[str, Histogram]:
    one = one or collector()
    return one.times(one._exposition.parse(page.encode() if isinstance(page, str) else page))


def test_times_of_all_keys_are_added_up_for_the_model_and_for_each_deployment() -> None:
    page = (
        timed(E2E, "own", (1, 2, 3), 4.0, hashed_api_key="a")
        + timed(E2E, "own", (0, 1, 1), 0.5, hashed_api_key="b")
        + timed(E2E, "cloud", (5, 5, 5), 0.2)
        + timed(E2E, "other", (9, 9, 9), 9.0, requested_model="other")
        + timed(E2E, "None", (1, 1, 1), 0.1)
        + timed(TTFT, "own", (1, 1, 1), 0.05)
    )
    assert times_of(page) == {
        "e2e_s": Histogram((0.1, 1.0), (7.0, 9.0, 10.0), pytest.approx(4.8)),
        "e2e_s@own": Histogram((0.1, 1.0), (1.0, 3.0, 4.0), 4.5),
        "e2e_s@cloud": Histogram((0.1, 1.0), (5.0, 5.0, 5.0), 0.2),
        "ttft_s": Histogram((0.1, 1.0), (1.0, 1.0, 1.0), 0.05),
        "ttft_s@own": Histogram((0.1, 1.0), (1.0, 1.0, 1.0), 0.05),
    }


def test_half_of_a_histogram_is_left_out_and_one_that_falls_is_an_error() -> None:
    whole = timed(E2E, "own", (1, 2, 3), 4.0)
    assert times_of("".join(line for line in whole.splitlines(True) if "_sum" not in line)) == {}
    assert times_of("".join(line for line in whole.splitlines(True) if "+Inf" not in line)) == {}
    with pytest.raises(CollectError, match="fall"):
        times_of(timed(E2E, "own", (3, 2, 3), 4.0))


def test_deployments_beyond_the_first_ones_count_in_the_whole_alone() -> None:
    page = "".join(timed(E2E, f"d{i}", (1, 1, 1), 0.1) for i in range(MOST_DEPLOYMENTS + 5))
    found = times_of(page)
    assert found["e2e_s"].counts[-1] == MOST_DEPLOYMENTS + 5
    assert len(found) == 1 + MOST_DEPLOYMENTS


def test_the_recorded_pages_times_and_states() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded LiteLLM page is not beside the project (shared/data)")
    one = collector("tiny")
    found = times_of(RECORDED.read_bytes(), one)
    assert set(found) == {"e2e_s", "e2e_s@dep-a"}, "nothing was streamed"
    assert (found["e2e_s"].counts[-1], found["e2e_s"].total) == (5.0, pytest.approx(0.5515, abs=1e-4))
    assert found["e2e_s"].edges[0] == 0.005, "seconds"
    (reading,), _ = read(answering(RECORDED.read_bytes()))
    assert reading.started_at == pytest.approx(1795218627.16)


def test_so_many_tags_are_told_apart_and_no_more() -> None:
    page = "".join(tokens("input", 1, team_alias=f"t{i:03}") for i in range(MOST_TAGS + 50))
    one = collector()
    for _ in range(2):
        found = counted(page, one)
        assert found["prompt_tokens"] == MOST_TAGS + 50
        assert sum("@" in name for name in found) == MOST_TAGS


def test_a_tag_is_parted_from_its_counter_whatever_it_holds() -> None:
    assert tag_of(tagged("prompt_tokens", "a@b")) == ("prompt_tokens", "a@b")
    assert tag_of("prompt_tokens") == ("prompt_tokens", None)


def test_a_proxy_that_served_nothing_yet_tells_nothing() -> None:
    assert counted("# TYPE litellm_spend_metric_total counter\nprocess_cpu_seconds_total 1.0\n") == {}


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("vllm:num_requests_running 1.0\n", "not_litellm"),
        (PAGE + tokens("output", -1), "invalid_value"),
        ("<html></html>", "not_metrics"),
    ],
)
def test_what_cannot_be_is_an_error(page: str, kind: str) -> None:
    with pytest.raises(CollectError) as refused:
        counted(page)
    assert refused.value.kind == kind


def read(handler: Handler, **options: Any) -> tuple[Any, dict[str, str]]:
    async def main(url: str) -> Any:
        http = Http(tls=TRUST)
        try:
            return await collector(http=http, **options).read(
                ScrapeTarget("chat", url, {"Authorization": "Bearer own"})
            )
        finally:
            await http.aclose()

    with serve(handler) as there:
        found = asyncio.run(main(there.url))
        return found, {"path": there.requests[0].path, **there.requests[0].headers}


def test_it_asks_with_the_proxys_key() -> None:
    (reading,), asked = read(answering(PAGE), key="sk-master")
    assert isinstance(reading, Reading)
    assert reading.counters["requests"] == 11.0
    assert (asked["path"], asked["authorization"]) == ("/metrics/", "Bearer sk-master")
    _, asked = read(answering(PAGE))
    assert asked["authorization"] == "Bearer own"


def test_a_proxy_that_refuses_is_an_error() -> None:
    with pytest.raises(CollectError) as refused:
        read(answering("no", "401 Unauthorized"))
    assert refused.value.kind == "http_401"


# -- discovery ---------------------------------------------------------------------------------------------------------

FILE = """\
model_list:
  - {model_name: Org/Chat, litellm_params: {model: azure/gpt, api_base: "http://127.0.0.1:9", weight: 1}, model_info: {id: own}}
  - {model_name: Org/Chat, litellm_params: {model: openai/m}}
  - {model_name: org-chat, litellm_params: {model: openai/m}}
"""


def asked(folder: Path, then: Callable[[LiteLLMSystem, DiscoveryContext, FakeProxy], Any], **options: Any) -> Any:
    async def main(proxy: FakeProxy) -> Any:
        http, sessions = Http(tls=TRUST), Sessions()
        given = {"url": proxy.url, "key": MASTER_KEY, **options}
        try:
            return await then(LiteLLMSystem(), DiscoveryContext(http.call, SetClock(), sessions, given), proxy)
        finally:
            await http.aclose()

    file = folder / "config.yaml"
    file.write_text(FILE)
    with FakeProxy(file) as proxy:
        found = asyncio.run(main(proxy))
        assert {method for method, _ in proxy.requests} <= {"GET"}
        assert not [path for _, path in proxy.requests if path.startswith("/health")], (
            "it asks every model, and is paid for"
        )
        return found


async def _found(system: LiteLLMSystem, context: DiscoveryContext, _proxy: FakeProxy) -> list[DiscoveredEndpoint]:
    return [one async for one in system.discover(context)]


def test_each_model_is_an_endpoint_with_its_deployments(tmp_path: Path) -> None:
    chat, other = asked(tmp_path, _found, config=tmp_path / "config.yaml")
    assert (chat.name, other.name) == ("org-chat", "org-chat-2")
    assert chat.settings["model"] == "Org/Chat"
    assert chat.settings["policy"] == {"min_replicas": 2, "max_replicas": 2}
    assert chat.settings["actuator"]["options"] == {"config": str(tmp_path / "config.yaml")}
    assert "own: azure/gpt at http://127.0.0.1:9" in chat.note
    assert "model_info.id" in chat.note
    assert MASTER_KEY not in repr(chat)


def test_each_page_that_the_key_may_not_read_is_named(tmp_path: Path) -> None:
    async def lacking(system: LiteLLMSystem, context: DiscoveryContext, _proxy: FakeProxy) -> list[Permission]:
        return [p for p in await system.permitted(context, None) if p.granted is False]

    assert asked(tmp_path, lacking) == []
    refused = asked(tmp_path, lacking, key="sk-wrong")
    assert [p.name for p in refused] == ["GET /model/info", "GET /router/settings", "GET /metrics/"]
    assert all("master key" in p.detail for p in refused)


def test_an_endpoint_is_asked_for_what_it_needs_of_the_proxy_and_of_its_file(tmp_path: Path) -> None:
    async def names(
        system: LiteLLMSystem, context: DiscoveryContext, proxy: FakeProxy
    ) -> list[tuple[str, bool | None]]:
        entry = {
            "url": proxy.url,
            "api_key": SecretStr(MASTER_KEY),
            "sources": {"litellm": {}},
            "actuator": {"system": "litellm", "options": {"config": str(tmp_path / "gone" / "config.yaml")}},
        }
        seen = await system.permitted(context, {**entry, "actuator": {"system": "none", "options": {}}})
        return [(p.name, p.granted) for p in (*seen, *await system.permitted(context, entry))]

    said = asked(tmp_path, names)
    assert said[0] == ("GET /metrics/", True)
    assert said[1:4] == [("GET /model/info", True), ("GET /router/settings", True), ("GET /metrics/", True)]
    assert [granted for _, granted in said[4:]] == [False, False, False]
    assert said[-1][0] == f"write {tmp_path / 'gone'}"
