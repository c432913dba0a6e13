"""Pages of vLLM: the recorded one, and old ones written by the names that each version had."""

from __future__ import annotations

from pathlib import Path

import pytest

RECORDED = Path(__file__).parents[2] / "../shared/data/recorded/vllm/metrics_0.32.0_cpu_after_load.txt"


def recorded() -> bytes:
    if not RECORDED.exists():
        pytest.skip("the recorded vLLM page is not beside the project (shared/data)")
    return RECORDED.read_bytes()


def histogram(name: str, labels: str, counts: dict[str, float], total: float) -> str:
    lines = [f'{name}_bucket{{{labels},le="{edge}"}} {count}' for edge, count in counts.items()]
    return "\n".join([*lines, f"{name}_count{{{labels}}} {counts['+Inf']}", f"{name}_sum{{{labels}}} {total}"])


def v0_6() -> str:
    """0.6: no engine label, gpu_cache_usage_perc, the gap between tokens under its old name."""
    of = 'model_name="m"'
    return "\n".join(
        [
            f"vllm:num_requests_running{{{of}}} 3.0",
            f"vllm:num_requests_waiting{{{of}}} 2.0",
            f"vllm:num_requests_swapped{{{of}}} 1.0",
            f"vllm:gpu_cache_usage_perc{{{of}}} 0.25",
            f"vllm:prompt_tokens_total{{{of}}} 1000.0",
            f"vllm:generation_tokens_total{{{of}}} 400.0",
            f"vllm:num_preemptions_total{{{of}}} 0.0",
            f'vllm:request_success_total{{{of},finished_reason="stop"}} 7.0',
            f'vllm:request_success_total{{{of},finished_reason="length"}} 3.0',
            histogram("vllm:time_to_first_token_seconds", of, {"0.1": 4, "1.0": 10, "+Inf": 10}, 2.5),
            histogram("vllm:time_per_output_token_seconds", of, {"0.01": 300, "0.1": 390, "+Inf": 390}, 4.0),
            histogram("vllm:time_in_queue_requests", of, {"0.3": 10, "+Inf": 10}, 0.5),
            'vllm:cache_config_info{block_size="16",gpu_memory_utilization="0.9",num_gpu_blocks="100"} 1.0',
            "",
        ]
    )


def v0_9() -> str:
    """0.9 to 0.11: engines, both spellings of the KV usage and of the gap, prefix cache counted in tokens."""
    lines = []
    for engine in ("1", "0"):
        of = f'engine="{engine}",model_name="m"'
        lines += [
            f"vllm:num_requests_running{{{of}}} {4 + int(engine)}.0",
            f"vllm:num_requests_waiting{{{of}}} 0.0",
            f"vllm:kv_cache_usage_perc{{{of}}} 0.5",
            f"vllm:gpu_cache_usage_perc{{{of}}} 0.5",
            f"vllm:prefix_cache_hits_total{{{of}}} 64.0",
            f"vllm:gpu_prefix_cache_hits_total{{{of}}} 64.0",
            f"vllm:generation_tokens_total{{{of}}} 400.0",
            f"vllm:generation_tokens_created{{{of}}} 1.79e+09",
            f'vllm:request_success_total{{{of},finished_reason="stop"}} 10.0',
            histogram("vllm:inter_token_latency_seconds", of, {"0.01": 300, "0.1": 390, "+Inf": 390}, 4.0),
            histogram("vllm:time_per_output_token_seconds", of, {"0.01": 300, "0.1": 390, "+Inf": 390}, 4.0),
            f'vllm:cache_config_info{{block_size="16",engine="{engine}",num_gpu_blocks="None"}} 1.0',
        ]
    lines.append('http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 20.0')
    lines.append('http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"} 2.0')
    lines.append('http_requests_total{handler="/admin",method="POST",status="5xx"} 9.0')
    return "\n".join([*lines, ""])
