"""What a model is made of: the sizes from which bytes and operations per token follow.

Owns the nouns and a small table of published models. Sizes are those of each model's public ``config.json``; a model that is not
in the table is unknown, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer. Counts are whole numbers; a mixture of experts has ``experts`` > 0."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    """Of a dense layer's gated feed-forward block."""
    vocabulary: int
    head_dim: int = 0
    """0: hidden / heads."""
    experts: int = 0
    experts_active: int = 0
    """Routed experts that one token passes through."""
    experts_shared: int = 0
    expert_intermediate: int = 0
    dense_layers: int = 0
    """Of a mixture: the first layers that are dense."""
    kv_latent: int = 0
    """Values that the cache holds for each token and layer with multi-head latent attention; 0: keys and values of all ``kv_heads``."""
    cache_layers: int = 0
    """Layers whose cache grows with the context, where others have linear attention or a short window; 0: all."""

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"architecture: {name} must be 1 or more, not {getattr(self, name)}")

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def _attention(self) -> int:
        """Parameters of one layer's attention. Latent attention: as if projected through its latents, about a third of the full."""
        full = self.hidden * self._head * (2 * self.heads + 2 * self.kv_heads)
        return full // 3 if self.kv_latent else full

    @property
    def _expert(self) -> int:
        return 3 * self.hidden * self.expert_intermediate

    def _feed_forward(self, experts: int) -> int:
        """Parameters of all layers' feed-forward blocks, of which ``experts`` routed ones a layer."""
        dense = 3 * self.hidden * self.intermediate
        if not self.experts:
            return self.layers * dense
        sparse = (experts + self.experts_shared) * self._expert
        return self.dense_layers * dense + (self.layers - self.dense_layers) * sparse

    @property
    def parameters(self) -> int:
        """All, embeddings included once for input and once for output."""
        return self.layers * self._attention + self._feed_forward(self.experts) + 2 * self.vocabulary * self.hidden

    @property
    def parameters_active(self) -> int:
        """Those that one token is multiplied with: no input embedding, and its own experts only."""
        return self.layers * self._attention + self._feed_forward(self.experts_active) + self.vocabulary * self.hidden

    @property
    def parameters_routed(self) -> int:
        """Of all routed experts: those that an iteration reads in part. 0: a dense model."""
        return self._feed_forward(self.experts) - self._feed_forward(0) if self.experts else 0

    @property
    def parameters_common(self) -> int:
        """Those that every iteration reads: all but routed experts and the input embedding."""
        return self.layers * self._attention + self._feed_forward(0) + self.vocabulary * self.hidden

    @property
    def expert_share(self) -> float:
        """Of the routed experts, those that one token passes through; 0: a dense model."""
        return self.experts_active / self.experts if self.experts else 0.0

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> float:
        """Of the cache, over all layers."""
        values = self.kv_latent or 2 * self.kv_heads * self._head
        return self._cache_layers * values * bytes_per_value

    @property
    def _cache_layers(self) -> int:
        return self.cache_layers or self.layers

    @property
    def attention_operations(self) -> float:
        """Floating-point operations for one token and each token of its context: two products of all heads, two operations each."""
        return 4.0 * self._cache_layers * self.heads * self._head

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """From the fields of a Hugging Face ``config.json``. Raises ValueError that names what is missing."""

        def number(*names: str, default: int | None = None) -> int:
            for name in names:
                if isinstance(config.get(name), int):
                    return int(config[name])
            if default is None:
                raise ValueError(f"the model's config has no {names[0]}")
            return default

        heads = number("num_attention_heads")
        experts = number("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", default=0)
        layers = number("num_hidden_layers")
        kinds = config.get("layer_types")
        interval = number("full_attention_interval", default=1)
        latent = number("kv_lora_rank", default=0)
        return cls(
            hidden=number("hidden_size"),
            layers=layers,
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads),
            intermediate=number("intermediate_size", default=0),
            vocabulary=number("vocab_size"),
            head_dim=number("head_dim", default=0),
            experts=experts,
            experts_active=number("num_experts_per_tok", "moe_k", default=1) if experts else 0,
            experts_shared=number(
                "n_shared_experts",
                "moe_num_shared_experts",
                default=1 if config.get("shared_expert_intermediate_size") else 0,
            ),
            expert_intermediate=number("moe_intermediate_size", "intermediate_size", default=0) if experts else 0,
            dense_layers=number("first_k_dense_replace", default=0),
            kv_latent=latent + number("qk_rope_head_dim", default=0) if latent else 0,
            cache_layers=kinds.count("full_attention") if isinstance(kinds, list) else layers // max(interval, 1),
        )


def _dense(hidden: int, layers: int, heads: int, kv: int, mid: int, vocabulary: int, head: int = 0) -> Architecture:
    return Architecture(hidden, layers, heads, kv, mid, vocabulary, head)


def _mixture(
    hidden: int,
    layers: int,
    heads: int,
    kv: int,
    vocabulary: int,
    experts: int,
    active: int,
    expert: int,
    shared: int = 0,
    *,
    dense: int = 0,
    mid: int = 0,
    head: int = 128,
    latent: int = 0,
    cache: int = 0,
) -> Architecture:
    return Architecture(
        hidden, layers, heads, kv, mid, vocabulary, head, experts, active, shared, expert, dense, latent, cache
    )


#: Recalled from the models' public config.json files, 2026-11.
MODELS: Mapping[str, Architecture] = {
    "llama-2-7b": _dense(4096, 32, 32, 32, 11008, 32000),
    "llama-2-13b": _dense(5120, 40, 40, 40, 13824, 32000),
    "llama-2-70b": _dense(8192, 80, 64, 8, 28672, 32000),
    "codellama-34b": _dense(8192, 48, 64, 8, 22016, 32000),
    "llama-3-8b": _dense(4096, 32, 32, 8, 14336, 128256),
    "llama-3-70b": _dense(8192, 80, 64, 8, 28672, 128256),
    "llama-3.1-8b": _dense(4096, 32, 32, 8, 14336, 128256),
    "llama-3.1-70b": _dense(8192, 80, 64, 8, 28672, 128256),
    "llama-3.1-405b": _dense(16384, 126, 128, 8, 53248, 128256),
    "llama-3.2-1b": _dense(2048, 16, 32, 8, 8192, 128256, 64),
    "llama-3.2-3b": _dense(3072, 28, 24, 8, 8192, 128256),
    "llama-3.3-70b": _dense(8192, 80, 64, 8, 28672, 128256),
    "mistral-7b": _dense(4096, 32, 32, 8, 14336, 32768),
    "mistral-small-24b": _dense(5120, 40, 32, 8, 32768, 131072, 128),
    "mixtral-8x7b": _mixture(4096, 32, 32, 8, 32000, 8, 2, 14336),
    "mixtral-8x22b": _mixture(6144, 56, 48, 8, 32768, 8, 2, 16384),
    "qwen2.5-0.5b": _dense(896, 24, 14, 2, 4864, 151936),
    "qwen2.5-1.5b": _dense(1536, 28, 12, 2, 8960, 151936),
    "qwen2.5-3b": _dense(2048, 36, 16, 2, 11008, 151936),
    "qwen2.5-7b": _dense(3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-14b": _dense(5120, 48, 40, 8, 13824, 152064),
    "qwen2.5-32b": _dense(5120, 64, 40, 8, 27648, 152064),
    "qwen2.5-72b": _dense(8192, 80, 64, 8, 29568, 152064),
    "qwen3-0.6b": _dense(1024, 28, 16, 8, 3072, 151936, 128),
    "qwen3-1.7b": _dense(2048, 28, 16, 8, 6144, 151936, 128),
    "qwen3-4b": _dense(2560, 36, 32, 8, 9728, 151936, 128),
    "qwen3-8b": _dense(4096, 36, 32, 8, 12288, 151936, 128),
    "qwen3-14b": _dense(5120, 40, 40, 8, 17408, 151936, 128),
    "qwen3-32b": _dense(5120, 64, 64, 8, 25600, 151936, 128),
    "qwen3-30b-a3b": _mixture(2048, 48, 32, 4, 151936, 128, 8, 768),
    "qwen3-coder-30b-a3b": _mixture(2048, 48, 32, 4, 151936, 128, 8, 768),
    "qwen3-235b-a22b": _mixture(4096, 94, 64, 4, 151936, 128, 8, 1536),
    "qwen3-coder-480b-a35b": _mixture(6144, 62, 96, 8, 151936, 160, 8, 2560),
    "qwen3-next-80b-a3b": _mixture(2048, 48, 16, 2, 151936, 512, 10, 512, 1, head=256, cache=12),
    "qwen3-coder-next": _mixture(2048, 48, 16, 2, 151936, 512, 10, 512, 1, head=256, cache=12),
    "qwen3.5-35b-a3b": _mixture(2048, 40, 16, 2, 248320, 256, 8, 512, 1, head=256, cache=10),
    "qwen3.5-122b-a10b": _mixture(3072, 48, 32, 2, 248320, 256, 8, 1024, 1, head=256, cache=12),
    "qwen3.5-397b-a17b": _mixture(4096, 60, 32, 2, 248320, 512, 10, 1024, 1, head=256, cache=15),
    "deepseek-v2-lite": _mixture(2048, 27, 16, 16, 102400, 64, 6, 1408, 2, dense=1, mid=10944, latent=576),
    "deepseek-v2": _mixture(5120, 60, 128, 128, 102400, 160, 6, 1536, 2, dense=1, mid=12288, latent=576),
    "deepseek-v3": _mixture(7168, 61, 128, 128, 129280, 256, 8, 2048, 1, dense=3, mid=18432, latent=576),
    "deepseek-v3.1": _mixture(7168, 61, 128, 128, 129280, 256, 8, 2048, 1, dense=3, mid=18432, latent=576),
    "deepseek-v3.2": _mixture(7168, 61, 128, 128, 129280, 256, 8, 2048, 1, dense=3, mid=18432, latent=576),
    "deepseek-r1": _mixture(7168, 61, 128, 128, 129280, 256, 8, 2048, 1, dense=3, mid=18432, latent=576),
    "kimi-k2": _mixture(7168, 61, 64, 64, 163840, 384, 8, 2048, 1, dense=1, mid=18432, latent=576),
    "kimi-k2.5": _mixture(7168, 61, 64, 64, 163840, 384, 8, 2048, 1, dense=1, mid=18432, latent=576),
    "kimi-linear-48b-a3b": _mixture(2304, 27, 32, 32, 163840, 256, 8, 1024, 1, dense=1, mid=9216, latent=576, cache=7),
    "glm-4.5": _mixture(5120, 92, 96, 8, 151552, 160, 8, 1536, 1, dense=3, mid=12288),
    "glm-4.6": _mixture(5120, 92, 96, 8, 151552, 160, 8, 1536, 1, dense=3, mid=12288),
    "glm-4.7": _mixture(5120, 92, 96, 8, 151552, 160, 8, 1536, 1, dense=3, mid=12288),
    "glm-4.5-air": _mixture(4096, 46, 96, 8, 151552, 128, 8, 1408, 1, dense=1, mid=10944),
    "glm-4.7-flash": _mixture(2048, 47, 20, 20, 154880, 64, 4, 1536, 1, dense=1, mid=10240, latent=576),
    "glm-5": _mixture(6144, 78, 64, 64, 154880, 256, 8, 2048, 1, dense=3, mid=12288, latent=576),
    "minimax-m2": _mixture(3072, 62, 48, 8, 200064, 256, 8, 1536),
    "minimax-m2.1": _mixture(3072, 62, 48, 8, 200064, 256, 8, 1536),
    "minimax-m2.5": _mixture(3072, 62, 48, 8, 200064, 256, 8, 1536),
    "gpt-oss-20b": _mixture(2880, 24, 64, 8, 201088, 32, 4, 2880, head=64, cache=12),
    "gpt-oss-120b": _mixture(2880, 36, 64, 8, 201088, 128, 4, 2880, head=64, cache=18),
    "llama-4-scout-17b-16e": _mixture(5120, 48, 40, 8, 202048, 16, 1, 8192, 1),
    "llama-4-maverick-17b-128e": _mixture(5120, 48, 40, 8, 202048, 128, 1, 8192, 1, dense=24, mid=16384),
    "ernie-4.5-21b-a3b": _mixture(2560, 28, 20, 4, 103424, 64, 6, 1536, 2, dense=1, mid=12288),
    "ernie-4.5-300b-a47b": _mixture(8192, 54, 64, 8, 103424, 64, 8, 3584, dense=3, mid=28672),
    "step-3.5-flash": _mixture(4096, 45, 64, 8, 128896, 288, 8, 1280, 1, dense=3, mid=11264, cache=12),
    "phi-3.5-moe": _mixture(4096, 32, 32, 8, 32064, 16, 2, 6400),
    "dbrx": _mixture(6144, 40, 48, 8, 100352, 16, 4, 10752),
    "glm-4-9b": _dense(4096, 40, 32, 2, 13696, 151552),
    "glyph": _dense(4096, 40, 32, 2, 13696, 151552),
    "gemma-2-9b": _dense(3584, 42, 16, 8, 14336, 256000, 256),
    "gemma-2-27b": _dense(4608, 46, 32, 16, 36864, 256000, 128),
    "phi-4": _dense(5120, 40, 40, 10, 17920, 100352),
    "yi-34b": _dense(7168, 60, 56, 8, 20480, 64000),
}

#: What a name may carry beyond the model: packaging, tuning and number formats.
_DECORATION = re.compile(
    r"-(hf|instruct|pt|exp|thinking|preview|chat|it|base|fp8|fp4|nvfp4|mxfp4|int8|int4|awq|gptq|bf16|fp16|w8a8|w4a16|dynamic|v\d+(\.\d+)?|\d{4})$"
)


def find_architecture(name: str, table: Mapping[str, Architecture] = MODELS) -> Architecture | None:
    """The row for a model's name as servers and hubs spell it (``meta-llama/Llama-3.1-8B-Instruct``); None where there is none."""
    plain = name.rsplit("/", maxsplit=1)[-1].lower().replace("_", "-").replace("meta-llama-", "llama-")
    while plain not in table:
        shorter = _DECORATION.sub("", plain)
        if shorter == plain:
            return None
        plain = shorter
    return table[plain]


#: Bytes of one weight by number format.
_BYTES = {
    "fp32": 4.0, "float32": 4.0, "bf16": 2.0, "bfloat16": 2.0, "fp16": 2.0, "float16": 2.0, "half": 2.0, "auto": 2.0,
    "fp8": 1.0, "int8": 1.0, "w8a8": 1.0, "fp4": 0.5, "nvfp4": 0.5, "mxfp4": 0.5, "int4": 0.5, "awq": 0.5, "gptq": 0.5, "w4a16": 0.5,
}  # fmt: skip


def weight_bytes(model: str, precision: str | None = None) -> float:
    """Bytes of one weight: by ``precision`` (a dtype or a quantization), else by what the model's name carries, else two."""
    if precision and precision.lower() in _BYTES:
        return _BYTES[precision.lower()]
    words = re.split(r"[-_/.]", model.lower())
    return next((_BYTES[w] for w in words if w in _BYTES and w != "auto"), 2.0)
