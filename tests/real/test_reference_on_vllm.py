"""A real vLLM server (CPU) as the reference, beside an emulated endpoint that is 1.5 times as slow and twice as dear by construction.

The emulated engine gets its speed from what Flyball learned of the real one: each coefficient of an iteration, times 1.5. So what is
tried is the road from two servers' own metrics to the ratios, and not whether vLLM on a shared machine keeps its speed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Shape
from agent.clock import WallClock
from analyzers.prediction import Interval
from analyzers.whatif.model import EngineModel
from collectors.base import ScrapeTarget
from collectors.plan import Lengths, TrafficPlan
from collectors.traffic.thread import simulate
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.real.vllm_parts import LARGER, MODEL_NAME, serving, tiny_model

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(1200)]

SLOWER, DEARER, SLOTS = 1.5, 2.0, 16
TERMS = ("base_s", "per_sequence_s", "per_context_token_s", "per_prefill_token_s", "per_prefill_context_token_s")
METRICS = ("ttft_p50_s", "itl_p50_s", "itl_p95_s", "e2e_p50_s")
WINDOW_S, LOAD_S = 4.0, 40.0


def test_slower_and_dearer_by_construction_lies_within_the_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tmp_path, LARGER)
    with serving(tmp_path, max_num_seqs=SLOTS) as url:
        gpu = _endpoint("gpu", url, usd_per_replica_hour=1.0, role="reference")
        config = write_settings(tmp_path, [gpu], collect=_collect())
        _send(url, 1.0, 4.0, 1)  # the first ones compile
        rate = 0.4 * _capacity(url)
        with running(config) as daemon:
            daemon.ready()
            _send(url, rate, LOAD_S, 2)
            known = _learned(tmp_path, config)
            assert daemon.stop() == 0
        with EmulatedFleet(tmp_path) as fleet:
            slow = {name: SLOWER * float(getattr(known.iteration, name)) for name in TERMS}
            shape = Shape(replicas=1, engine={"max_num_seqs": SLOTS})
            spec = EmulatedSpec("chat", MODEL_NAME, shape, sizes={"cpu": Size(2039.0, 312.0, 60_000)}, iteration=slow)
            there = fleet.start(spec)
            chat = _endpoint("chat", there, usd_per_replica_hour=DEARER)
            config = write_settings(tmp_path, [chat, gpu], collect=_collect())
            with running(config) as daemon:
                daemon.ready()
                _send(
                    there, rate, LOAD_S, 2
                )  # the real one is known by the windows that it has: its speed now is the machine's noise
                found = daemon.until(lambda: _comparison(daemon), "the two are compared", limit_s=120)
                said = flyball("reference", "-c", str(config))
                assert daemon.stop() == 0
    with capsys.disabled():
        sys.stdout.write(f"\n{said.stdout}\n")
    assert f"chat {found['text']}" in said.stdout
    assert found["reference"] == "gpu"
    ratios = {name: Interval(**ratio["ratio"]) for name, ratio in found["ratios"].items()}
    for name in METRICS:
        assert SLOWER in ratios[name], f"{name}: {ratios[name]}"
    for name in ("itl_p50_s", "e2e_p50_s"):  # a first token is so few milliseconds that a neighbour's time slice counts
        assert ratios[name].mid > 1.0, name
    assert DEARER in ratios["usd_per_1k_tokens"]
    assert 1.0 / SLOWER in ratios["requests_per_s"]


def _comparison(daemon: Daemon) -> dict[str, Any] | None:
    found = json.loads(flyball("reference", "chat", "-c", str(daemon.config), "-o", "json").stdout)
    (chat,) = found["endpoints"]
    comparison: dict[str, Any] | None = chat["comparison"]
    return comparison


def _learned(folder: Path, config: Path) -> EngineModel:
    """What the command line learns from the windows until now."""
    time.sleep(WINDOW_S + 2.0)  # until the last one is closed
    file = folder / "engine.json"
    asked = ("--endpoint", "gpu", "--since", "10m", "--accept-misfit", "--out", str(file), "-c", str(config))
    learned = flyball("calibrate", *asked)
    assert learned.returncode == 0, learned.stderr
    return EngineModel.from_json(file.read_text())


def _endpoint(name: str, url: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "url": url,
        "model": MODEL_NAME,
        "objective": {"ttft_p95_s": 5.0, "itl_p95_s": 1.0},
        "shape": {"replicas": 1, "engine": {"max_num_seqs": SLOTS}},
        "policy": {"evidence_s": 1800, "min_requests": 20, "min_coverage": 0.01},
        **more,
    }


def _collect() -> dict[str, float]:
    return {"interval_s": 1.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 4}


def _capacity(url: str) -> float:
    """Requests a second that this machine's server does at most, by a burst that fills all slots."""
    before = time.monotonic()
    sent = _send(url, 200.0, 0.25, 3)
    return sent / (time.monotonic() - before)


def _send(url: str, rate: float, seconds: float, seed: int) -> int:
    """How many requests were answered; all of them. Prompts are shorter than a cache block (128 tokens on a CPU)."""
    plan = TrafficPlan(
        rate=rate, duration_s=seconds, prompt_tokens=Lengths.parse("uniform:16:64"), output_tokens=Lengths.parse("uniform:24:72"),
        seed=seed, model=MODEL_NAME, api="completions", exact_output=True, timeout_s=240.0,
    )  # fmt: skip
    done = asyncio.run(simulate(plan, ScrapeTarget("side", url), WallClock()))
    assert not done.errors
    return done.sent
