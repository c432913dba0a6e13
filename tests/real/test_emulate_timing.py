"""The twin of an engine under real traffic at three loads: its times are those of the replay of the same requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agent.cli import app
from tests.agent.test_emulate import file, twin

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


def run(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("rate", [2.0, 6.0, 10.0])
def test_its_times_are_the_replays(rate: float, tmp_path: Path) -> None:
    """A shared machine stands still for seconds at times, which no median of many requests shows; three tries all the same."""
    rng = np.random.default_rng(round(rate))
    arrival = np.cumsum(rng.exponential(1 / rate, round(25 * rate)))
    rows = [f"{at:.4f},{rng.integers(50, 400)},{rng.integers(20, 60)}" for at in arrival]
    trace, engine = tmp_path / "trace.csv", file(tmp_path)
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    answer = run("whatif", "--trace", trace, "--engine", engine, "-o", "json")["candidates"][0]
    tries = []
    for _ in range(3):
        with twin(engine) as port:
            seen = run(
                "simulate", "--url", f"http://127.0.0.1:{port}", "--trace", trace, "--warmup", "0s", "-o", "json"
            )
        off = {name: abs(seen[f"{name}_s"]["p50"] / answer[f"{name}_s"]["p50"] - 1) for name in ("ttft", "itl", "e2e")}
        tries.append(off)
        if off["ttft"] < 0.15 and off["itl"] < 0.05 and off["e2e"] < 0.05:
            return
    pytest.fail(f"{rate} requests/s: off by {tries}")
