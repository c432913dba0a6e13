"""The emulated replica's ``/metrics``: vLLM's own names and buckets (0.32), as Prometheus text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

_LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FINISHED = ("stop", "length", "abort", "error", "repetition")

TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
TPOT = "vllm:request_time_per_output_token_seconds"
E2E = "vllm:e2e_request_latency_seconds"
QUEUE = "vllm:request_queue_time_seconds"
INFERENCE = "vllm:request_inference_time_seconds"
PREFILL = "vllm:request_prefill_time_seconds"
DECODE = "vllm:request_decode_time_seconds"
PROMPT = "vllm:request_prompt_tokens"
GENERATION = "vllm:request_generation_tokens"
STEP = "vllm:iteration_tokens_total"


def _lengths(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10 ... up to the model's length, as vLLM builds them."""
    edges: list[float] = []
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power > max_model_len:
                return tuple(edges)
            edges.append(float(factor * power))
        power *= 10


class BucketCounts:
    """Counts by bucket, and the sum."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(float(e) for e in edges)
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value


class ReplicaMetrics:
    """What one replica counts since it was started."""

    def __init__(self, max_model_len: int, created: float) -> None:
        self.created = created
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.finished = dict.fromkeys(_FINISHED, 0)
        lengths = _lengths(max_model_len)
        self.histograms = {
            **{name: BucketCounts(_LATENCY) for name in (E2E, QUEUE, INFERENCE, PREFILL, DECODE)},
            **{name: BucketCounts(_TOKEN) for name in (ITL, TPOT)},
            **{name: BucketCounts(lengths) for name in (PROMPT, GENERATION)},
            TTFT: BucketCounts(_TTFT),
            STEP: BucketCounts(_STEP),
        }
        self.itl = self.histograms[ITL]
        self.ttft = self.histograms[TTFT]

    def finish(
        self, reason: str, arrived: float, scheduled: float, first: float, last: float, sizes: tuple[int, int]
    ) -> None:
        """Count one finished request: its times, and its (prompt, output) tokens."""
        prompt, output = sizes
        observe = self.histograms
        self.finished[reason] += 1
        observe[E2E].observe(last - arrived)
        observe[QUEUE].observe(scheduled - arrived)
        observe[INFERENCE].observe(last - scheduled)
        observe[PREFILL].observe(first - scheduled)
        observe[DECODE].observe(last - first)
        observe[PROMPT].observe(prompt)
        observe[GENERATION].observe(output)
        if output > 1:
            observe[TPOT].observe((last - first) / (output - 1))


class Page:
    """Builds the text: samples are grouped by family, whichever replica they come from."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, list[str]]] = {}

    def add(self, name: str, kind: str, labels: str, value: float, suffix: str = "") -> None:
        self._families.setdefault(name, (kind, []))[1].append(
            f"{name}{suffix}{{{labels}}} {float(value)!r}" if labels else f"{name}{suffix} {float(value)!r}"
        )

    def histogram(self, name: str, labels: str, values: BucketCounts) -> None:
        running = 0
        for edge, count in zip((*map(repr, values.edges), "+Inf"), values.counts, strict=True):
            running += count
            self.add(name, "histogram", f'{labels},le="{edge}"', running, "_bucket")
        self.add(name, "histogram", labels, running, "_count")
        self.add(name, "histogram", labels, values.total, "_sum")

    def text(self) -> str:
        lines: list[str] = []
        for name, (kind, samples) in self._families.items():
            lines.append(f"# HELP {name} Emulated by Flyball; no model runs here.")
            lines.append(f"# TYPE {name} {kind}")
            lines += samples
        return "\n".join(lines) + "\n"


def add_replica(
    page: Page,
    metrics: ReplicaMetrics,
    index: int,
    model: str,
    gauges: tuple[int, int, float],
    cache: Iterable[tuple[str, object]],
) -> None:
    """One replica's families. ``gauges``: running, waiting, KV usage; ``cache``: the labels of ``cache_config_info``."""
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    labels = f'engine="{index}",model_name="{escaped}"'
    running, waiting, usage = gauges
    page.add("vllm:num_requests_running", "gauge", labels, running)
    page.add("vllm:num_requests_waiting", "gauge", labels, waiting)
    page.add("vllm:num_requests_waiting_by_reason", "gauge", f'{labels},reason="capacity"', waiting)
    page.add("vllm:num_requests_waiting_by_reason", "gauge", f'{labels},reason="deferred"', 0)
    page.add("vllm:kv_cache_usage_perc", "gauge", labels, usage)
    counters = {
        "vllm:prefix_cache_queries": metrics.prompt_tokens,
        "vllm:prefix_cache_hits": metrics.cached_prompt_tokens,
        "vllm:num_preemptions": metrics.preemptions,
        "vllm:prompt_tokens": metrics.prompt_tokens,
        "vllm:prompt_tokens_cached": metrics.cached_prompt_tokens,
        "vllm:generation_tokens": metrics.generation_tokens,
    }
    for name, value in counters.items():
        page.add(f"{name}_total", "counter", labels, value)
        page.add(f"{name}_created", "gauge", labels, metrics.created)
    for reason, count in metrics.finished.items():
        page.add("vllm:request_success_total", "counter", f'{labels},finished_reason="{reason}"', count)
    for name, values in metrics.histograms.items():
        page.histogram(name, labels, values)
    config = ",".join(f'{k}="{v}"' for k, v in cache)
    page.add("vllm:cache_config_info", "gauge", f'{config},engine="{index}"', 1)
