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

    def parameters_read(self, tokens: float) -> float:
        """Those that one iteration over ``tokens`` tokens reads: with more tokens, more of the experts, each drawn alike."""
        if not self.experts:
            return float(self.parameters_active)
        share = 1.0 - (1.0 - self.experts_active / self.experts) ** max(tokens, 1.0)
        return float(
            self.layers * self._attention
            + self._feed_forward(0)
            + (self.layers - self.dense_layers) * share * self.experts * self._expert
            + self.vocabulary * self.hidden
        )

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> float:
        """Of the cache, over all layers."""
        values = self.kv_latent or 2 * self.kv_heads * self._head
        return self.layers * values * bytes_per_value

    @property
    def attention_operations(self) -> float:
        """Floating-point operations for one token and each token of its context: two products of all heads, two operations each."""
        return 4.0 * self.layers * self.heads * self._head

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
        experts = number("num_local_experts", "n_routed_experts", "num_experts", default=0)
        latent = number("kv_lora_rank", default=0)
        return cls(
            hidden=number("hidden_size"),
            layers=number("num_hidden_layers"),
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads),
            intermediate=number("intermediate_size", default=0),
            vocabulary=number("vocab_size"),
            head_dim=number("head_dim", default=0),
            experts=experts,
            experts_active=number("num_experts_per_tok", default=1) if experts else 0,
            experts_shared=number("n_shared_experts", default=0),
            expert_intermediate=number("moe_intermediate_size", "intermediate_size", default=0) if experts else 0,
            dense_layers=number("first_k_dense_replace", default=0),
            kv_latent=latent + number("qk_rope_head_dim", default=0) if latent else 0,
        )


def _dense(hidden: int, layers: int, heads: int, kv: int, mid: int, vocabulary: int, head: int = 0) -> Architecture:
    return Architecture(hidden, layers, heads, kv, mid, vocabulary, head)


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
    "mixtral-8x7b": Architecture(4096, 32, 32, 8, 14336, 32000, 0, 8, 2, 0, 14336),
    "mixtral-8x22b": Architecture(6144, 56, 48, 8, 16384, 32768, 0, 8, 2, 0, 16384),
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
    "qwen3-30b-a3b": Architecture(2048, 48, 32, 4, 6144, 151936, 128, 128, 8, 0, 768),
    "qwen3-235b-a22b": Architecture(4096, 94, 64, 4, 12288, 151936, 128, 128, 8, 0, 1536),
    "deepseek-v3": Architecture(7168, 61, 128, 128, 18432, 129280, 128, 256, 8, 1, 2048, 3, 576),
    "deepseek-v3.1": Architecture(7168, 61, 128, 128, 18432, 129280, 128, 256, 8, 1, 2048, 3, 576),
    "deepseek-r1": Architecture(7168, 61, 128, 128, 18432, 129280, 128, 256, 8, 1, 2048, 3, 576),
    "kimi-k2": Architecture(7168, 61, 64, 64, 18432, 163840, 128, 384, 8, 1, 2048, 1, 576),
    "kimi-k2.5": Architecture(7168, 61, 64, 64, 18432, 163840, 128, 384, 8, 1, 2048, 1, 576),
    "minimax-m2": Architecture(3072, 62, 48, 8, 1536, 200064, 128, 256, 8, 0, 1536),
    "minimax-m2.5": Architecture(3072, 62, 48, 8, 1536, 200064, 128, 256, 8, 0, 1536),
    "gpt-oss-20b": Architecture(2880, 24, 64, 8, 2880, 201088, 64, 32, 4, 0, 2880),
    "gpt-oss-120b": Architecture(2880, 36, 64, 8, 2880, 201088, 64, 128, 4, 0, 2880),
    "gemma-2-9b": _dense(3584, 42, 16, 8, 14336, 256000, 256),
    "gemma-2-27b": _dense(4608, 46, 32, 16, 36864, 256000, 128),
    "phi-4": _dense(5120, 40, 40, 10, 17920, 100352),
    "yi-34b": _dense(7168, 60, 56, 8, 20480, 64000),
}

#: What a name may carry beyond the model: packaging, tuning and number formats.
_DECORATION = re.compile(
    r"-(hf|instruct|chat|it|base|fp8|fp4|nvfp4|mxfp4|int8|int4|awq|gptq|bf16|fp16|w8a8|w4a16|dynamic|v\d+(\.\d+)?|\d{4})$"
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
