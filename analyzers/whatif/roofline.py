"""What the datasheet says an engine should cost: the prior of a calibration, and the way from one accelerator or model to another.

Bytes that an iteration must read over bandwidth, operations over arithmetic (Williams, Waterman and Patterson, "Roofline", 2009),
each at the share that real engines reach. The shares are the prior's centres, their doubt is its width: a calibration moves them
where it has evidence. Pure arithmetic; fits nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analyzers.architecture import Architecture
from analyzers.hardware import Hardware
from collectors.workload import Floats

# Shares of the datasheet that serving engines reach, and their doubt (standard deviations of logarithms).
_READ_WEIGHTS, _READ_CACHE, _PREFILL, _ATTENTION = 0.8, 0.9, 0.5, 0.3
_EXPOSED = 0.5
"""Of the decode's arithmetic, at full rate, what does not hide behind the reading of the weights."""
_LINK_BYTES_PER_S = 450e9
"""Between accelerators that share a layer: one direction of a fourth-generation NVLink. Each layer sums twice over all of them."""
_LAYER_S, _LAYER_SPLIT_S = 30e-6, 10e-6
"""Seconds of each layer in which neither memory nor arithmetic is busy: kernels that start and end; more where layers are split."""
_DOUBT = np.array([0.2, 0.5, 0.2, 0.4, 0.6])
_DOUBT_MIXTURE = np.array([0.4, 0.8, 0.4, 0.6, 0.6])
#: The batches between which a mixture's growing share of experts is taken as a straight line.
_SMALL, _LARGE = 4.0, 64.0
#: The share of the memory that vLLM takes by default, and what it needs of that beside weights and cache (activations, graphs), each.
_USABLE, _WORKSPACE_BYTES = 0.9, 1.5e9
#: Makers name a memory's size in powers of two.
_GB = 1024**3


@dataclass(frozen=True, slots=True)
class RooflineMachine:
    """One replica: a model on its accelerators."""

    architecture: Architecture
    hardware: Hardware
    accelerators: int = 1
    """That share each layer (tensor parallel)."""
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0

    def coefficients(self) -> Floats:
        """(5,) seconds: the iteration's coefficients in the formula's order, at the usual shares of the datasheet."""
        a = self.architecture
        bandwidth = self.hardware.bandwidth_gb_s * 1e9 * self.accelerators
        arithmetic = self.hardware.tflops_bf16 * 1e12 * self.accelerators * (2.0 if self.weight_bytes <= 1.0 else 1.0)
        small, large = (a.parameters_read(n) * self.weight_bytes / bandwidth / _READ_WEIGHTS for n in (_SMALL, _LARGE))
        more_experts = (large - small) / (_LARGE - _SMALL)
        operations = 2.0 * a.parameters_active
        layer = _LAYER_S + (_LAYER_SPLIT_S if self.accelerators > 1 else 0.0)
        return np.array(
            [
                max(small - _SMALL * more_experts, 0.2 * small) + a.layers * layer,
                _EXPOSED * operations / arithmetic + more_experts + self._summing_s,
                a.kv_bytes_per_token(self.cache_bytes) / bandwidth / _READ_CACHE,
                operations / arithmetic / _PREFILL,
                a.attention_operations / arithmetic / _ATTENTION,
            ]
        )

    @property
    def _summing_s(self) -> float:
        """Seconds a token for adding up what the accelerators of a layer computed: ring all-reduce, 2 (n - 1) / n of the bytes."""
        n = self.accelerators
        return 2 * self.architecture.layers * self.architecture.hidden * 2.0 * 2 * (n - 1) / n / _LINK_BYTES_PER_S

    def doubt(self) -> Floats:
        """(5,) standard deviations of the coefficients' logarithms."""
        return _DOUBT_MIXTURE if self.architecture.experts else _DOUBT

    def cache_tokens(self, share: float = _USABLE) -> int | None:
        """Tokens that the KV cache holds when the engine may use ``share`` of the memory; None where the weights leave no room."""
        memory = (self.hardware.memory_gb * _GB * share - _WORKSPACE_BYTES) * self.accelerators
        left = memory - self.architecture.parameters * self.weight_bytes
        return int(left / self.architecture.kv_bytes_per_token(self.cache_bytes)) if left > 0 else None


def distance(one: RooflineMachine, other: RooflineMachine) -> float:
    """How far apart two machines are, for the doubt of a transfer: 0 alike; 1 about a factor of e in size, bandwidth and arithmetic."""
    steps = (
        math.log(one.architecture.parameters / other.architecture.parameters),
        math.log(one.hardware.bandwidth_gb_s / other.hardware.bandwidth_gb_s),
        math.log(one.hardware.tflops_bf16 / other.hardware.tflops_bf16),
        0.5 * math.log(one.accelerators / other.accelerators),
    )
    return math.sqrt(sum(s * s for s in steps) / len(steps))
