"""Writes the sample files of the README: ``python docs/samples/make.py [FOLDER]``. Nothing here was measured.

``load-4.json`` and ``load-16.json`` are what ``vllm bench serve --save-result --save-detailed`` would have written of an 8B model on an
H100: the times are those of Flyball's own replay of an engine that is stated below. ``requests.csv`` is an hour of drawn traffic, with
a busy ten minutes in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from analyzers.whatif.engine import replay  # noqa: E402
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost  # noqa: E402
from collectors.workload import Workload  # noqa: E402

ENGINE = EngineModel(IterationCost(0.0068, 2e-5, 4e-8, 2.1e-5), EngineLimits(128, 8192, 400_000))
MODEL = "meta-llama/Llama-3.1-8B"
#: Requests per second of the two load tests, and how long each lasts.
RATES, TEST_S = (4, 16), 90.0


def traffic(rate: float, seconds: float, rng: np.random.Generator) -> Workload:
    """Poisson arrivals with lognormal lengths."""
    n = rng.poisson(rate * seconds)
    arrival = np.sort(rng.random(n)) * seconds
    prompt = np.clip(rng.lognormal(np.log(350.0), 0.6, n), 8, 4000).astype(np.int64)
    output = np.clip(rng.lognormal(np.log(160.0), 0.5, n), 2, 1500).astype(np.int64)
    return Workload(arrival, prompt, output, np.zeros(n, np.int64))


def load_test(rate: float, rng: np.random.Generator) -> dict[str, object]:
    """As the file of a load test tells it."""
    work = traffic(rate, TEST_S, rng)
    got = replay(work, ENGINE).per_request
    duration = float((work.arrival_s + got.e2e_s).max())
    return {
        "backend": "vllm",
        "model_id": MODEL,
        "request_rate": rate,
        "burstiness": 1.0,
        "num_prompts": len(work),
        "completed": len(work),
        "failed": 0,
        "duration": round(duration, 3),
        "request_throughput": round(len(work) / duration, 4),
        "total_input_tokens": int(work.prompt_tokens.sum()),
        "total_output_tokens": int(work.output_tokens.sum()),
        "input_lens": work.prompt_tokens.tolist(),
        "output_lens": work.output_tokens.tolist(),
        "start_times": np.round(work.arrival_s, 4).tolist(),
        "ttfts": np.round(got.ttft_s, 5).tolist(),
        "latencies": np.round(got.e2e_s, 5).tolist(),
    }


def main(folder: Path) -> None:
    rng = np.random.default_rng(7)
    for rate in RATES:
        (folder / f"load-{rate}.json").write_text(json.dumps(load_test(rate, rng)) + "\n", encoding="utf-8")
    parts = [(0.0, 1200.0, 2.0), (1200.0, 600.0, 6.0), (1800.0, 1800.0, 2.0)]
    lines = ["arrival_s,prompt_tokens,output_tokens"]
    for begin, seconds, rate in parts:
        work = traffic(rate, seconds, rng)
        columns = zip(
            (work.arrival_s + begin).tolist(), work.prompt_tokens.tolist(), work.output_tokens.tolist(), strict=True
        )
        lines += [f"{at:.3f},{prompt},{output}" for at, prompt, output in columns]
    (folder / "requests.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
