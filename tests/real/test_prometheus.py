"""A fleet through a real Prometheus and a real VictoriaMetrics that scrape emulated servers: exact counts, and what stores refuse."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from collectors.base import FleetMember, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext
from collectors.http import Http
from collectors.prometheus.discover import PrometheusSystem
from collectors.prometheus.fleet import make
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading, Span
from tests.collectors.clocks import MachineClock
from tests.real import stores

pytestmark = pytest.mark.real
STEP_S = 10.0
REQUESTS, TOKENS = 24, 15
Said = list[tuple[str, Reading | Span | CollectError]]


@dataclass
class Scraped:
    """A store, and the emulated servers that it scrapes."""

    url: str
    servers: stores.EmulatedEndpoints

    @property
    def addresses(self) -> list[str]:
        return self.servers.addresses


@contextmanager
def scraped(name: str, folder: Path) -> Iterator[Scraped]:
    stores_of = {"prometheus": stores.prometheus, "victoria-metrics": stores.victoria_metrics}
    with stores.emulated(3, folder) as servers:
        jobs = {"one": servers.addresses[:1], "two": servers.addresses[1:]}
        opened: AbstractContextManager[str] = stores_of[name](jobs)
        with opened as url:
            yield Scraped(url, servers)


@pytest.fixture(scope="module", params=["prometheus", "victoria-metrics"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    with scraped(request.param, tmp_path_factory.mktemp("fleet")) as running:
        _until_known(running)
        yield running


def _until_known(store: Scraped) -> None:
    """An increase needs a beginning: wait until each series has been there for a whole interval."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        said = read(store, {name: {} for name in ("one", "two")})
        if len([s for _, s in said if isinstance(s, Span) and "requests" in s.counts]) == 2:
            return
        time.sleep(1)
    raise AssertionError("the store never had a whole interval of both jobs")


def read(store: Scraped, endpoints: dict[str, dict[str, Any]], since: float | None = None) -> Said:
    async def go() -> Said:
        http, sessions, clock = Http(), Sessions(), MachineClock()
        shared = {"url": store.url, "step_s": STEP_S, "delay_s": 3}
        try:
            members: list[FleetMember] = [
                make(SourceContext(name, None, http, clock, sessions, {"labels": {"job": name}, **shared, **options}))
                for name, options in endpoints.items()
            ]
            return [said async for said in members[0].fleet.read_all([m.wanted for m in members], since)]
        finally:
            await http.aclose()

    return asyncio.run(go())


def send(address: str, number: int) -> int:
    """Prompt tokens of all requests."""

    def one(_: int) -> int:
        models = urllib.request.urlopen(f"http://{address}/v1/models", timeout=30)
        model = json.loads(models.read())["data"][0]["id"]
        body = {"model": model, "prompt": "how are you", "max_tokens": TOKENS, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return int(json.loads(urllib.request.urlopen(request, timeout=60).read())["usage"]["prompt_tokens"])

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(one, range(number)))


def spans(said: Said, name: str) -> list[Span]:
    return [one for of, one in said if of == name and isinstance(one, Span)]


def total(several: list[Span], metric: str) -> float:
    return sum(span.counts.get(metric, 0.0) for span in several)


def test_what_was_sent_is_what_is_told_whatever_interval_it_fell_into(store: Scraped) -> None:
    begun = time.time()
    prompts = {
        "one": send(store.addresses[0], REQUESTS),
        "two": send(store.addresses[1], REQUESTS) + send(store.addresses[2], 5),
    }
    time.sleep(2 * stores.SCRAPE_S + STEP_S + 4)  # the next interval has ended, and is in the store
    said = read(store, {"one": {}, "two": {}, "nobody": {}}, since=begun - STEP_S)
    for name, number in (("one", REQUESTS), ("two", REQUESTS + 5)):
        several = spans(said, name)
        assert [span.share for span in several] == [1.0] * len(several)
        assert total(several, "requests") == number
        assert total(several, "errors") == 0
        assert total(several, "prompt_tokens") == prompts[name]
        assert total(several, "output_tokens") == number * TOKENS
        for metric, count in (
            ("ttft_s", number),
            ("e2e_s", number),
            ("itl_s", number * (TOKENS - 1)),
            ("output_length", number),
        ):
            assert sum(s.sketches[metric].count for s in several if metric in s.sketches) == count, metric
        assert all({"running", "waiting", "kv_usage"} <= set(s.gauges) for s in several)
    assert not any(name == "nobody" for name, _ in said)


def test_a_server_that_restarts_counts_what_it_has_counted_since(store: Scraped) -> None:
    """Its counters fall to 0 within an interval, while the other server of its job goes on."""
    send(store.addresses[2], 3)
    time.sleep(2 * STEP_S + 4)  # what was before is in intervals of before
    begun = time.time()
    store.servers.restart(2)
    send(store.addresses[2], 7)
    send(store.addresses[1], 4)
    time.sleep(2 * stores.SCRAPE_S + STEP_S + 4)
    several = spans(read(store, {"two": {}}, since=begun - STEP_S), "two")
    assert total(several, "requests") == 11
    assert total(several, "output_tokens") == 11 * TOKENS
    assert sum(s.sketches["e2e_s"].count for s in several if "e2e_s" in s.sketches) == 11


def test_own_promql_and_its_errors_are_the_stores_own(store: Scraped) -> None:
    own = {
        "up": {"promql": "sum(up{$sel})", "kind": "gauge"},
        "e2e_s": {
            "promql": "sum by (le) (increase(vllm:e2e_request_latency_seconds_bucket{$sel}[$w]))", "kind": "histogram",
            "total": "sum(increase(vllm:e2e_request_latency_seconds_sum{$sel}[$w]))",
        },
        "broken": {"promql": "sum("},
    }  # fmt: skip
    said = read(store, {"two": {"queries": own}, "one": {}})
    assert spans(said, "two")[0].gauges["up"].mean == 2.0
    (error,) = (one for name, one in said if name == "two" and isinstance(one, CollectError))
    assert error.kind == "bad_query"
    assert error.detail.startswith("queries.broken: the store does not take the query")
    assert spans(said, "one")


def test_labels_with_odd_values_reach_the_store_as_they_are(store: Scraped) -> None:
    odd = {
        f"e{i}": {"labels": {"job": value}} for i, value in enumerate(['a"b', "a\\b", "a.b|c", "a b", "é-1", "x\ny"])
    }
    assert read(store, {**odd, "one": {}})  # none of them is a broken query, and the one beside them is told


def test_discovery_finds_the_jobs_and_their_replicas(store: Scraped) -> None:
    async def go() -> list[DiscoveredEndpoint]:
        http = Http()
        try:
            context = DiscoveryContext(http.call, MachineClock(), Sessions(), {"url": store.url})
            assert all(p.granted for p in await PrometheusSystem().permitted(context, None))
            return [found async for found in PrometheusSystem().discover(context)]
        finally:
            await http.aclose()

    found = asyncio.run(go())
    labels = [one.settings["sources"]["prometheus"]["labels"] for one in found]
    assert sorted(of["job"] for of in labels) == ["one", "two", "two"]  # two models in the second job
    said = read(store, {one.name: {"labels": of} for one, of in zip(found, labels, strict=True)})
    assert all(spans(said, one.name)[0].share == 1.0 for one in found)
