"""Endpoints by the labels that tell deployments apart, as settings that the source takes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.prometheus.discover import PrometheusSystem
from collectors.prometheus.fleet import Options
from collectors.sessions import Sessions
from collectors.window import CollectError
from tests.collectors.clocks import SetClock
from tests.collectors.prometheus.store import FakeStore, Refusal, fake_store


def discovered(options: Mapping[str, Any]) -> list[DiscoveredEndpoint]:
    async def go() -> list[DiscoveredEndpoint]:
        http = Http()
        try:
            context = DiscoveryContext(http.call, SetClock(), Sessions(), options)
            return [found async for found in PrometheusSystem().discover(context)]
        finally:
            await http.aclose()

    return asyncio.run(go())


def permitted(options: Mapping[str, Any], entry: Mapping[str, Any] | None = None) -> list[Permission]:
    async def go() -> list[Permission]:
        http = Http()
        try:
            context = DiscoveryContext(http.call, SetClock(), Sessions(), options)
            return list(await PrometheusSystem().permitted(context, entry))
        finally:
            await http.aclose()

    return asyncio.run(go())


def tell(store: FakeStore) -> None:
    vllm = [
        {
            "namespace": space,
            "job": "vllm",
            "model_name": model,
            "instance": f"10.0.0.{i}:8000",
            "engine": "0",
            "pod": f"p{i}",
        }
        for i, (space, model) in enumerate(
            [("prod", "org/Llama-3"), ("prod", "org/Llama-3"), ("dev", "org/Llama-3"), ("prod", "q")]
        )
    ]
    store.tell("vllm:num_requests_running", *((labels, 1.0) for labels in vllm))
    store.tell("tgi_batch_current_size", ({"job": "tgi", "instance": "h:80"}, 1.0), ({"instance": "nameless:80"}, 1.0))


def test_a_deployment_is_an_endpoint_however_many_replicas_it_has() -> None:
    with fake_store() as store:
        tell(store)
        found = discovered({"url": store.url + "/"})
        where = store.url
    assert [one.name for one in found] == ["org-llama-3", "vllm-org-llama-3", "q", "tgi"]
    assert found[1].settings == {
        "name": "vllm-org-llama-3",
        "url": "http://10.0.0.0:8000",
        "model": "org/Llama-3",
        "sources": {
            "prometheus": {"url": where, "labels": {"namespace": "prod", "job": "vllm", "model_name": "org/Llama-3"}}
        },
    }
    assert found[1].note.startswith("vllm: 2 replicas; url is the first one's")
    assert found[3].settings["sources"]["prometheus"] == {"url": where, "labels": {"job": "tgi"}, "preset": ["tgi"]}
    for one in found:
        Options.model_validate(one.settings["sources"]["prometheus"])


def test_more_matchers_reach_the_store() -> None:
    with fake_store() as store:
        store.tell('vllm:num_requests_running{namespace="prod"}', ({"job": "a"}, 1.0))
        assert [one.name for one in discovered({"url": store.url, "match": 'namespace="prod"'})] == ["a"]


def test_options_that_make_no_sense_say_which() -> None:
    with pytest.raises(CollectError, match="--option urll: Extra inputs"):
        discovered({"urll": "x"})


def test_permissions_are_told_by_trying() -> None:
    with fake_store(headers={"authorization": "Bearer t"}) as store:
        assert [p.granted for p in permitted({"url": store.url, "token": "t"})] == [True, True]
        entry = {"sources": {"prometheus": {"url": store.url, "token": "t"}}}
        assert [p.granted for p in permitted({}, entry)] == [True, True]
    with fake_store() as store:
        store.refuse("up", Refusal("403 Forbidden", body="no"))
        queries, series = permitted({"url": store.url})
    assert (queries.granted, series.granted) == (True, False)
    assert "403" in series.detail
    assert all(one.name in PrometheusSystem().permissions() for one in (queries, series))
