"""The engine that is simulated: what an iteration costs, what it may hold, and the ENGINE.json that carries both.

Owns the nouns and their validation. Does not simulate, does not fit, and reads no files: text in, text out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from analyzers import strict

SCHEMA_VERSION = 1
#: Coefficients that an engine file must state; not every engine has the others.
_EVERY_ENGINE = 5


@dataclass(frozen=True, slots=True)
class IterationCost:
    """Seconds of one engine iteration: ``base_s + per_sequence_s * D + per_context_token_s * C + per_prefill_token_s * P +
    per_prefill_context_token_s * Q + expert_read_s * U(D + P)``, and ``prefill_base_s`` where P > 0.

    D: decoding sequences. C: the sum over them of prompt tokens + output tokens produced so far. P: prefill tokens computed.
    Q: the sum over the prefill chunks of (tokens before the chunk + half the chunk) * chunk tokens.
    U(n) = 1 - (1 - expert_share)^n: the share of a mixture's experts that n tokens touch, each token its own ones at random.
    """

    base_s: float
    per_sequence_s: float = 0.0
    per_context_token_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_prefill_context_token_s: float = 0.0
    prefill_base_s: float = 0.0
    """What any prefill adds, however short: kernels that are launched one by one instead of as a captured graph."""
    expert_read_s: float = 0.0
    """Reading all routed experts of a mixture once; 0: a dense model."""
    expert_share: float = 0.0
    """Of the routed experts, the share that one token passes through: active over all. No seconds."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
                what = "number" if name == "expert_share" else "number of seconds"
                raise ValueError(f"iteration.{name} must be a finite {what}, 0 or more, not {value!r}")
        if self.expert_share >= 1:
            raise ValueError(
                f"iteration.expert_share must be below 1, not {self.expert_share!r}; experts that each token reads are in base_s"
            )
        if self.expert_read_s > 0 and not self.expert_share > 0:
            raise ValueError("iteration.expert_share must be above 0 where expert_read_s is")
        if not any(seconds > 0 for seconds in self.as_tuple()[:-1]):
            raise ValueError("iteration: all coefficients are 0, so nothing would take any time; give at least base_s")

    def as_tuple(self) -> tuple[float, float, float, float, float, float, float, float]:
        """In the order of the fields."""
        return (
            self.base_s,
            self.per_sequence_s,
            self.per_context_token_s,
            self.per_prefill_token_s,
            self.per_prefill_context_token_s,
            self.prefill_base_s,
            self.expert_read_s,
            self.expert_share,
        )

    def scaled(self, factor: float) -> IterationCost:
        """Every iteration ``factor`` times as long."""
        *seconds, share = self.as_tuple()
        return IterationCost(*(*(value * factor for value in seconds), share))


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the scheduler may hold at once. ``None`` is unknown, and simulated as unlimited."""

    max_num_seqs: int
    """Sequences in the batch, partly prefilled ones included."""
    max_num_batched_tokens: int
    """Tokens computed in one iteration: one for each decoding sequence, the rest for prefill."""
    kv_tokens: int | None = None
    """Tokens that the KV cache holds, over all its blocks."""
    block_size: int = 16
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is None and name in ("kv_tokens", "max_model_len"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"limits.{name} must be a whole number, 1 or more, not {value!r}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"limits: max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}), "
                "so a full batch could not decode; raise the one or lower the other (vLLM refuses to start like this too)"
            )
        if self.kv_tokens is not None and self.kv_tokens < self.block_size:
            raise ValueError(
                f"limits: kv_tokens ({self.kv_tokens}) is less than one block of {self.block_size} tokens; "
                "give the whole cache in tokens (vLLM logs it as 'GPU KV cache size')"
            )


@dataclass(frozen=True, slots=True)
class EngineModel:
    """All that a replay needs to know of an engine."""

    iteration: IterationCost
    limits: EngineLimits
    chunked_prefill: bool = True
    source: Mapping[str, Any] = field(default_factory=dict)
    """Provenance and uncertainty, as plain JSON. Nothing in it changes a replay."""
    accept_length: float = 1.0
    """Mean tokens that one decode iteration yields per sequence: 1 without speculative decoding, more with it."""

    def __post_init__(self) -> None:
        value: Any = self.accept_length
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 1:
            raise ValueError(
                f"accept_length must be a finite number of tokens, 1 or more, not {value!r}; leave it out without speculative decoding"
            )

    def with_limits(self, **changes: Any) -> EngineModel:
        """A copy with the named limits changed. Raises ValueError where they contradict each other."""
        return replace(self, limits=replace(self.limits, **changes))

    def to_dict(self) -> dict[str, Any]:
        """The ENGINE.json form, as plain values. ``accept_length`` is there only where it says something."""
        return {
            "schema_version": SCHEMA_VERSION,
            "iteration": asdict(self.iteration),
            "limits": asdict(self.limits),
            "chunked_prefill": self.chunked_prefill,
            **({} if self.accept_length == 1.0 else {"accept_length": self.accept_length}),
            "source": dict(self.source),
        }

    def to_json(self) -> str:
        """The ENGINE.json text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: object) -> EngineModel:
        """The reverse of ``to_dict``. Raises ValueError that names the field: unknown, missing, or not what it must be."""
        if not isinstance(data, Mapping):
            raise ValueError(f"the engine file must be an object, not {data!r}")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version: {version!r} is not known to this program, which reads {SCHEMA_VERSION}")
        rest = {name: value for name, value in data.items() if name != "schema_version"}
        model = strict.read(cls, rest, also=("schema_version",))
        for f in fields(IterationCost)[:_EVERY_ENGINE]:
            if f.name not in rest["iteration"]:  # what costs nothing says 0 in a file
                raise ValueError(f"iteration.{f.name}: missing")
        return replace(model, source=dict(rest.get("source", {})))

    @classmethod
    def from_json(cls, text: str) -> EngineModel:
        """From the ENGINE.json text. Raises ValueError, also where it is not JSON."""
        return cls.from_dict(json.loads(text))
