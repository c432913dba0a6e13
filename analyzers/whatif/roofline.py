"""What the datasheet says an engine should cost: the prior of a calibration, and the way from one accelerator or model to another.

Bytes that an iteration must read over bandwidth, operations over arithmetic (Williams, Waterman and Patterson, "Roofline", 2009),
each at the share that real engines reach. The shares are the prior's centres, their doubt is its width: a calibration moves them
where it has evidence. Pure arithmetic; fits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analyzers.architecture import Architecture
from analyzers.hardware import Hardware
from collectors.workload import Floats

# Shares of the datasheet that serving engines reach, and their doubt (standard deviations of logarithms).
_READ_WEIGHTS, _READ_CACHE, _PREFILL, _ATTENTION = 0.8, 1.0, 0.5, 0.3
_EXPOSED = 0.4
"""Of the decode's arithmetic, at full rate, what does not hide behind the reading of the weights."""
_LINK_BYTES_PER_S = 450e9
"""Between accelerators that share a layer: one direction of a fourth-generation NVLink. Each layer sums twice over all of them."""
_LAYER_S, _LAYER_SPLIT_S = 30e-6, 10e-6
"""Seconds of each layer in which neither memory nor arithmetic is busy: kernels that start and end; more where layers are split."""
_DOUBT = np.array([0.2, 0.5, 0.2, 0.4, 0.6, 0.8, 0.0, 0.0])
_DOUBT_MIXTURE = np.array([0.35, 0.9, 0.3, 0.8, 0.6, 1.0, 0.35, 0.0])
_DOUBT_KERNELS = np.array([*_DOUBT[:6], 0.35, 0.0])
"""Of a mixture of which the times of kernels are known: as of a dense model, and of its experts as before."""
# Of a mixture: what choosing, sorting and gathering by expert take more, of each layer that has experts (in a prefill as often as the kernels
# of a dense one), and of each sequence; and the share of the arithmetic that a prefill reaches in many small products.
_LAYER_EXPERTS_S, _SEQUENCE_EXPERTS_S, _PREFILL_EXPERTS, _PREFILL_LAUNCHES = 80e-6, 20e-6, 0.2, 4.0
_PREFILL_LAYER_S = 0.03e-3
"""Seconds of each layer that an iteration with a prefill takes more than a pure decode, in an engine whose graphs cover most of a prefill, as
vLLM's do."""
LAUNCHED_LAYER_S = 0.125e-3
"""The same in one that launches a prefill kernel by kernel: SGLang, TensorRT-LLM."""
#: The share of the memory that vLLM takes by default, and what it needs of that beside weights and cache (activations, graphs), each.
_USABLE, _WORKSPACE_BYTES = 0.9, 1.5e9
_SPLIT_BYTES = 2e9
"""What each needs besides where layers are split: the buffers of the communication."""
_MEMORY_DOUBT_BYTES, _CACHE_DOUBT = 1.5e9, 0.15
"""How well that is known, for each accelerator; and the least doubt of what it leaves for a cache, as a share."""
#: A coefficient for which the measured kernels show no need is taken as so much of the datasheet's: exp(-2).
_LEAST_OF_DATASHEET = 0.135
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
    prefill_layer_s: float = _PREFILL_LAYER_S
    ranks: int = 1
    """Copies of the attention, each with its own batch, that share the experts (attention data parallel); a batch is one rank's."""

    def coefficients(self) -> Floats:
        """(8,): the iteration's coefficients in the formula's order, at the usual shares of the datasheet.

        Where times of this model's kernels on this accelerator are known, the geometric middle of the datasheet's and theirs: the one knows
        how well kernels reach the hardware, the other what lies between them. Each is off as far as the other, to different sides.
        """
        plain = self._by_datasheet()
        source = self.hardware.kernels
        times = None if source is None else source(self.architecture, self.accelerators, self.weight_bytes, self.ranks)
        if times is None:
            return plain
        measured = times.coefficients(float(plain[-1]))
        found: Floats = np.sqrt(plain * np.maximum(measured, plain * _LEAST_OF_DATASHEET))
        found[-1] = plain[-1]
        return found

    @property
    def by_datasheet(self) -> RooflineMachine:
        """The same, of whose kernels nothing is known."""
        return replace(self, hardware=replace(self.hardware, kernels=None))

    @property
    def measured(self) -> bool:
        """Whether times of its kernels are known."""
        source = self.hardware.kernels
        return (
            source is not None
            and source(self.architecture, self.accelerators, self.weight_bytes, self.ranks) is not None
        )

    def _by_datasheet(self) -> Floats:
        """Reading experts is taken at the datasheet's whole bandwidth: in sweeps of measured mixtures that is the middle."""
        a = self.architecture
        bandwidth = self.hardware.bandwidth_gb_s * 1e9
        arithmetic = self.hardware.tflops_bf16 * 1e12 * self.accelerators * (2.0 if self.weight_bytes <= 1.0 else 1.0)
        operations = 2.0 * a.parameters_active
        layer = _LAYER_S + (_LAYER_SPLIT_S if self.accelerators > 1 else 0.0)
        common = a.parameters_common * self.weight_bytes / (bandwidth * self.accelerators) / _READ_WEIGHTS
        mixed = a.layers - a.dense_layers if a.experts else 0
        experts = a.parameters_routed * self.weight_bytes / (bandwidth * self.accelerators * self.ranks)
        return np.array(
            [
                common + a.layers * layer + mixed * _LAYER_EXPERTS_S,
                _EXPOSED * operations / arithmetic + self._summing_s + (_SEQUENCE_EXPERTS_S if mixed else 0.0),
                a.kv_bytes_per_token(self.cache_bytes) / (bandwidth * self._cache_split) / _READ_CACHE,
                operations / arithmetic / (_PREFILL_EXPERTS if mixed else _PREFILL),
                a.attention_operations / arithmetic / _ATTENTION,
                a.layers * self.prefill_layer_s * (_PREFILL_LAUNCHES if mixed else 1.0),
                experts,
                1.0 - (1.0 - a.expert_share) ** self.ranks,
            ]
        )

    @property
    def _cache_split(self) -> int:
        """Over how many of the accelerators the cache is divided: by whole heads, and a latent not at all."""
        return 1 if self.architecture.kv_latent else min(self.accelerators, self.architecture.kv_heads)

    @property
    def _summing_s(self) -> float:
        """Seconds a token for adding up what the accelerators of a layer computed: ring all-reduce, 2 (n - 1) / n of the bytes."""
        n = self.accelerators
        return 2 * self.architecture.layers * self.architecture.hidden * 2.0 * 2 * (n - 1) / n / _LINK_BYTES_PER_S

    def doubt(self) -> Floats:
        """(8,) standard deviations of the coefficients' logarithms."""
        if not self.architecture.experts:
            return _DOUBT
        return _DOUBT_KERNELS if self.measured else _DOUBT_MIXTURE

    def cache_tokens(self, share: float = _USABLE) -> int | None:
        """Tokens that the KV cache holds when the engine may use ``share`` of the memory; None where the weights leave no room."""
        left = self._free_bytes(share)
        held = self.architecture.kv_bytes_per_token(self.cache_bytes) / self._cache_split
        return int(left / held) if left > 0 else None

    def cache_doubt(self, tokens: int | None = None) -> float:
        """Standard deviation of the logarithm of a cache of ``tokens`` that follows from memory less weights; None: ``cache_tokens()``."""
        tokens = tokens or self.cache_tokens() or 1
        held = tokens * self.architecture.kv_bytes_per_token(self.cache_bytes) / self._cache_split
        return max(_CACHE_DOUBT, min(1.0, _MEMORY_DOUBT_BYTES / held))

    def _free_bytes(self, share: float) -> float:
        """Of each accelerator, beside weights and workspace."""
        a, n = self.architecture, self.accelerators
        workspace = _WORKSPACE_BYTES + (_SPLIT_BYTES if n > 1 else 0.0)
        embedding = a.vocabulary * a.hidden
        weights = ((a.parameters_common + embedding) / n + a.parameters_routed / (n * self.ranks)) * self.weight_bytes
        return self.hardware.memory_gb * _GB * share - workspace - weights
