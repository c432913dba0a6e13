"""A LiteLLM proxy's page as a real one wrote it, whose tokens are whose, and everything that a server can answer instead."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.http import Http
from collectors.litellm import MOST_TAGS, LiteLLMCollector, make
from collectors.metrics import tag_of, tagged
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.servers import TRUST, Handler, answering, serve

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
