"""A real vLLM server (CPU) that drafts tokens: its page times outputs, and the windows time tokens."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.builder import WindowBuilder
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.tokengaps import accept_length
from collectors.vllm import make
from collectors.window import Reading
from tests.actuators.support import free_port
from tests.collectors.clocks import MachineClock
from tests.real.vllm_parts import ENVIRONMENT, MAX_MODEL_LEN, MODEL_NAME, tiny_model, vllm_python

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
REQUESTS, OUTPUT = 12, 160
DRAFTS = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@contextmanager
def drafting_server(folder: Path) -> Iterator[str]:
    port = free_port()
    arguments = {
        "model": tiny_model(folder), "served-model-name": MODEL_NAME, "load-format": "dummy", "max-model-len": MAX_MODEL_LEN,
        "dtype": "bfloat16", "host": "127.0.0.1", "port": port, "max-num-seqs": 8, "speculative-config": json.dumps(DRAFTS),
    }  # fmt: skip
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT})
        try:
            url = f"http://127.0.0.1:{port}"
            _until_ready(url, process, folder / "vllm.log")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError(f"vLLM did not come up:\n{log.read_text(errors='replace')[-2000:]}")


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
    with drafting_server(tmp_path) as url:
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
