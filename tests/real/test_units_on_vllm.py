"""A real vLLM server (CPU) that drafts tokens: its page times outputs, and the windows time tokens."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.builder import WindowBuilder
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.tokengaps import accept_length
from collectors.vllm import make
from collectors.window import Reading
from tests.collectors.clocks import MachineClock
from tests.real.vllm_parts import MODEL_NAME, serving

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(900)]
REQUESTS, OUTPUT = 12, 160
DRAFTS = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


def generate(url: str) -> None:
    body = {"model": MODEL_NAME, "prompt": "the valve and the engine " * 8, "max_tokens": OUTPUT}
    data = json.dumps({**body, "ignore_eos": True, "temperature": 0.0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=120).read()


def read(url: str) -> Reading:
    async def one() -> Reading:
        http = Http()
        try:
            context = SourceContext("chat", MODEL_NAME, http, MachineClock(), Sessions(), {})
            (reading,) = await make(context).read(ScrapeTarget("a", url))
            assert isinstance(reading, Reading)
            return reading
        finally:
            await http.aclose()

    return asyncio.run(one())


def test_a_drafting_servers_gaps_are_between_tokens(tmp_path: Path) -> None:
    builder = WindowBuilder("chat", "vllm", 3600.0, max_gap_s=900.0)
    with serving(tmp_path, max_num_seqs=8, speculative_config=json.dumps(DRAFTS)) as url:
        generate(url)
        before = read(url)
        for _ in range(REQUESTS):
            generate(url)
        after = read(url)
    events = after.histograms["itl_s"].counts[-1] - before.histograms["itl_s"].counts[-1]
    assert events < 0.8 * REQUESTS * OUTPUT, "the server drafted nothing that was accepted: nothing is tried here"
    builder.add(before)
    builder.add(after)
    (window, *_) = builder.close(after.at + 7200)
    gaps, tpot = window.sketches["itl_s"], window.sketches["tpot_s"]
    # All answers are as long as each other, so the mean over tokens is the mean over requests.
    assert gaps.mean == pytest.approx(tpot.mean, rel=0.01)
    assert gaps.count == pytest.approx(window.count("output_tokens") or 0.0, rel=0.02)
    speculated = accept_length(window.count("drafts"), window.count("accepted_tokens"))
    assert speculated is not None
    assert speculated > 1.2
