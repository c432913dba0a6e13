"""Runs Vidur on requests that it is given, by the interpreter of Vidur's own environment; no part of Flyball is imported.

Vidur's scheduler, events and clock are its own. Its table of operator times is not in the package, so an iteration takes what Flyball's
five coefficients say: 5 % of the time of a run, and the very same question. Neither metrics nor plots are written.

    python run_vidur.py QUESTION.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from vidur.config import (
    CacheConfig,
    ClusterConfig,
    MetricsConfig,
    ReplicaConfig,
    RoundRobinGlobalSchedulerConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    SyntheticRequestGeneratorConfig,
)
from vidur.entities import Request
from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
from vidur.request_generator.request_generator_registry import RequestGeneratorRegistry
from vidur.simulator import Simulator


class Took(NamedTuple):
    """What an iteration takes, by the names that Vidur reads; seconds."""

    total_time: float
    model_time: float


class Coefficients:
    """In the place of Vidur's predictor of operator times."""

    of: dict[str, float]

    def __init__(self, **_configs: Any) -> None:
        """Vidur gives its configurations; none of them counts here."""

    def get_execution_time(self, batch: Any, _stage: int) -> Took:
        decodes = context = prefill = looked_back = 0.0
        for request, new, held in zip(batch.requests, batch.num_q_tokens, batch.num_kv_tokens, strict=True):
            if request.is_prefill_complete:
                decodes += 1
                context += held - new
            else:
                prefill += new
                looked_back += (held - new + new / 2) * new
        took = (
            self.of["base_s"]
            + self.of["per_sequence_s"] * decodes
            + self.of["per_context_token_s"] * context
            + self.of["per_prefill_token_s"] * prefill
            + self.of["per_prefill_context_token_s"] * looked_back
        )
        return Took(took, took)


class Given:
    """In the place of Vidur's generator: the requests of the question."""

    requests: list[Request]

    def __init__(self, _config: Any) -> None:
        """Vidur gives its configuration; it does not count here."""

    def generate(self) -> list[Request]:
        return self.requests


def main() -> int:
    question = json.loads(Path(sys.argv[1]).read_text())
    limits = question["limits"]
    Coefficients.of = question["iteration"]
    Given.requests = [
        Request(arrived_at=at, num_prefill_tokens=prompt, num_decode_tokens=output)
        for at, prompt, output in question["requests"]
    ]
    generator = SyntheticRequestGeneratorConfig(max_tokens=max(p + o for _, p, o in question["requests"]))
    with tempfile.TemporaryDirectory() as scratch:
        config = SimulationConfig(
            cluster_config=ClusterConfig(
                replica_config=ReplicaConfig(num_pipeline_stages=1, tensor_parallel_size=1),
                cache_config=CacheConfig(
                    block_size=limits["block_size"],
                    num_blocks=limits["kv_tokens"] // limits["block_size"],
                    watermark_blocks_fraction=0.0,
                ),
                global_scheduler_config=RoundRobinGlobalSchedulerConfig(),
                replica_scheduler_config=SarathiSchedulerConfig(
                    batch_size_cap=limits["max_num_seqs"], chunk_size=limits["max_num_batched_tokens"]
                ),
            ),
            request_generator_config=generator,
            metrics_config=MetricsConfig(write_metrics=False, enable_chrome_trace=False, output_dir=scratch),
        )
        for registry, key, own in (
            (ExecutionTimePredictorRegistry, config.execution_time_predictor_config.get_type(), Coefficients),
            (RequestGeneratorRegistry, generator.get_type(), Given),
        ):
            registry.unregister(key)
            registry.register(key, own)
        simulator = Simulator(config)
        simulator._write_output = lambda: None  # it plots even what was not kept
        begin = time.perf_counter()
        simulator.run()
        wall = time.perf_counter() - begin
    answer = {
        "wall_s": [wall],
        "ttft_s": [r.prefill_completed_at - r.arrived_at for r in Given.requests],
        "e2e_s": [r.completed_at - r.arrived_at for r in Given.requests],
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
