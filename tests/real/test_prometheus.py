"""A fleet through a real Prometheus and a real VictoriaMetrics that scrape emulated servers: exact counts, and what stores refuse."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
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
    return read_at(store.url, endpoints, since)


def read_at(url: str, endpoints: dict[str, dict[str, Any]], since: float | None = None) -> Said:
    async def go() -> Said:
        http, sessions, clock = Http(), Sessions(), MachineClock()
        shared = {"url": url, "step_s": STEP_S, "delay_s": 3}
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


# -- units that a version or a setting of vLLM changes --------------------------------------------------------------------


class CountingPage(BaseHTTPRequestHandler):
    """vLLM's counters of 10 requests more at each scrape: 640 prompt tokens, of which three quarters were cached, and 41 answered, one each
    10 ms. ``block``: tokens that the prefix cache counts as one; ``event``: tokens that come out at once."""

    begun = time.monotonic()
    block, event = 1, 1.0

    def do_GET(self) -> None:
        n = 10 * int((time.monotonic() - self.begun) / stores.SCRAPE_S + 1)
        of, gaps = 'engine="0",model_name="m"', round(n * 40 / self.event)
        gap = 0.01 * self.event
        body = "\n".join(
            [
                f"vllm:num_requests_running{{{of}}} 2",
                f"vllm:prompt_tokens_total{{{of}}} {n * 640}",
                f"vllm:generation_tokens_total{{{of}}} {n * 41}",
                f"vllm:gpu_prefix_cache_queries_total{{{of}}} {n * 640 / self.block}",
                f"vllm:gpu_prefix_cache_hits_total{{{of}}} {n * 480 / self.block}",
                _histogram("vllm:time_to_first_token_seconds", of, n, 0.1),
                _histogram("vllm:inter_token_latency_seconds", of, gaps, gap),
                _histogram("vllm:request_time_per_output_token_seconds", of, n, 0.01),
                "",
            ]
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Scrapes are not worth a line."""


def _histogram(name: str, of: str, count: int, value: float) -> str:
    edges = [*(0.004, 0.016, 0.064, 0.256), "+Inf"]
    reached = [f'{name}_bucket{{{of},le="{edge}"}} {count if value <= float(edge) else 0}' for edge in edges]
    return "\n".join([*reached, f"{name}_count{{{of}}} {count}", f"{name}_sum{{{of}}} {count * value}"])


@pytest.mark.parametrize("name", ["prometheus", "victoria-metrics"])
def test_blocks_are_tokens_and_events_are_tokens_in_a_store_too(name: str) -> None:
    kinds = {"plain": (1, 1.0), "blocks": (16, 1.0), "events": (1, 4.0)}
    opening = {"prometheus": stores.prometheus, "victoria-metrics": stores.victoria_metrics}[name]
    with ExitStack() as stack:
        jobs = {}
        for job, (block, event) in kinds.items():
            handler = type("Page", (CountingPage,), {"block": block, "event": event})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            stack.callback(server.shutdown)
            Thread(target=server.serve_forever, daemon=True).start()
            jobs[job] = [f"127.0.0.1:{server.server_port}"]
        url = stack.enter_context(opening(jobs))
        found = _whole_spans(url, list(kinds))
    for job, span in found.items():
        prompts, output, gaps = span.counts["prompt_tokens"], span.counts["output_tokens"], span.sketches["itl_s"]
        assert span.counts["cached_prompt_tokens"] == pytest.approx(0.75 * prompts, rel=1e-6), job
        assert gaps.mean == pytest.approx(0.01, rel=0.01), job
        assert gaps.count == pytest.approx(output * 40 / 41, rel=0.01), job


def _whole_spans(url: str, jobs: list[str]) -> dict[str, Span]:
    """Of each, an interval in which something was counted."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        said = read_at(url, {job: {} for job in jobs})
        found = {job: s for job, s in said if isinstance(s, Span) and s.counts.get("prompt_tokens") and s.sketches}
        if len(found) == len(jobs):
            return found
        time.sleep(1)
    raise AssertionError("the store never had a whole interval of all jobs")
