"""The source ``llamacpp`` on a real llama-server: its counters against the server's own answers, its slots, and the refusal without metrics."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Coroutine
from typing import Any

import pytest

from agent.clock import WallClock
from collectors.base import ScrapeTarget, SourceContext
from collectors.http import Http
from collectors.llamacpp import make
from collectors.sessions import Sessions
from collectors.window import CollectError, Reading
from tests.real.llamacpp_part import llama_server

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def _complete(url: str, prompt: str, tokens: int) -> dict[str, Any]:
    body = json.dumps({"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}).encode()
    request = urllib.request.Request(f"{url}/completion", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


async def _read(url: str) -> Reading:
    http = Http()
    try:
        source = make(SourceContext("chat", None, http, WallClock(), Sessions(), {}))
        (reading,) = await source.read(ScrapeTarget("a", url))
        assert isinstance(reading, Reading)
        return reading
    finally:
        await http.aclose()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_its_counters_are_what_its_answers_say() -> None:
    with llama_server("--metrics", "--slots", "-np", "2", "-c", "1024") as server:
        before = _run(_read(server.url))
        answers = [_complete(server.url, "abc" * n, 5 * n) for n in (1, 2, 3)]
        after = _run(_read(server.url))
        grown = {name: after.counters[name] - before.counters.get(name, 0.0) for name in after.counters}
        assert grown["output_tokens"] == sum(a["tokens_predicted"] for a in answers) == 30
        assert grown["prompt_tokens"] == sum(a["tokens_evaluated"] for a in answers)
        assert after.facts["slots"] == "2"
        assert after.gauges["running"] == 0


def test_more_requests_than_slots_run_and_wait() -> None:
    async def story() -> None:
        asking = [asyncio.create_task(asyncio.to_thread(_complete, server.url, "abc", 900)) for _ in range(4)]
        seen: list[tuple[float, float]] = []
        while not all(task.done() for task in asking):
            reading = await _read(server.url)
            seen.append((reading.gauges["running"], reading.gauges["waiting"]))
            await asyncio.sleep(0.02)
        await asyncio.gather(*asking)
        assert max(running for running, _ in seen) == 2, "as many as there are slots"
        assert max(waiting for _, waiting in seen) >= 1

    with llama_server("--metrics", "-np", "2", "-c", "2048") as server:
        _run(story())


def test_without_metrics_it_says_what_to_start_it_with() -> None:
    with llama_server("-np", "1", "-c", "512") as server, pytest.raises(CollectError, match="--metrics"):
        _run(_read(server.url))
