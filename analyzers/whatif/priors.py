"""What is believed of an engine before it is seen: from the datasheet and the model's sizes, or, of an unknown model, from the
decode that was seen and the ratios that the roofline gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.architecture import Architecture
from analyzers.hardware import Hardware
from analyzers.whatif.fit import (
    ABSENT,
    CACHE,
    EXPERT_READ,
    EXPERT_SHARE,
    LAG,
    LAG_CENTRE,
    LAG_DOUBT,
    OVERHEAD,
    PREFILL_BASE,
    UNKNOWNS,
    Prior,
)
from analyzers.whatif.model import EngineModel
from analyzers.whatif.roofline import RooflineMachine
from collectors.workload import Floats

#: Seconds between a client on the same network and the engine: HTTP, tokenizer, one queue. Typical of vLLM's server.
OVERHEAD_S, OVERHEAD_DOUBT = 0.005, 1.6
CACHE_DOUBT = 0.15
#: How well its coefficients describe an iteration: of a dense model, of a mixture, and of an engine whose own decode was seen first.
_SMOOTH, _SMOOTH_MIXTURE, _SMOOTH_SEEN = 0.4, 0.55, 0.4
#: An engine of which nothing is known is taken to schedule one iteration at a time. That is the cautious side: what a lag does not
#: explain of a first token's time is prefill, and that work grows with the load.
_CAUTIOUS_LAG = (0.0, 0.15)
#: Of a model of which nothing is known: it may be a mixture, whose experts take as long to read as so much of the rest, and of which a
#: token passes through so many; and what a prefill adds, as a share of an iteration.
_MAYBE_EXPERTS, _MAYBE_SHARE, _MAYBE_PREFILL = 0.02, 1 / 16, 0.02


@dataclass(frozen=True, slots=True)
class Decode:
    """Decoding as it was seen on one replica, on average."""

    itl_s: float
    running: float
    context: float
    """Tokens of one running sequence."""
    prefill_per_s: float
    """Prompt tokens computed a second."""

    def unloaded(self, ratios: Floats) -> float:
        """The iteration that this gap would shrink to without load, if ``ratios`` (of the coefficients to ``base_s``) held."""
        decode = 1.0 + self.running * (ratios[1] + ratios[2] * self.context)
        decode += ratios[EXPERT_READ] * (1.0 - (1.0 - ratios[EXPERT_SHARE]) ** self.running)
        return float(self.itl_s / (decode + ratios[3] * self.prefill_per_s * self.itl_s))


def of_machine(
    machine: RooflineMachine,
    *,
    cache_known: bool = False,
    cache_tokens: int | None = None,
    lag: tuple[float, float] = (LAG_CENTRE, LAG_DOUBT),
) -> Prior:
    """The roofline's belief. ``cache_tokens``: what follows from memory less weights, where not as usual.
    ``lag``: centre and doubt of how many iterations first tokens are late, where the engine's other systems tell."""
    centre, doubt = _outside(cache_known, machine.cache_doubt(cache_tokens))
    centre[:OVERHEAD], doubt[:OVERHEAD] = _logarithms(machine.coefficients()), machine.doubt()
    centre[LAG], doubt[LAG] = lag
    return Prior(centre, doubt, _SMOOTH_MIXTURE if machine.architecture.experts else _SMOOTH)


def _logarithms(coefficients: Floats) -> Floats:
    """Of those that are 0: what stands for that."""
    return np.log(np.maximum(coefficients, math.exp(ABSENT)))


def of_engine(engine: EngineModel) -> Prior:
    """An engine believed to be like this one (the same model on another release, say)."""
    centre, doubt = _outside(engine.limits.kv_tokens is not None)
    known = np.array(engine.iteration.as_tuple())
    centre[:OVERHEAD] = _logarithms(known)
    doubt[:OVERHEAD] = 0.4
    doubt[PREFILL_BASE:OVERHEAD] = np.where(known[PREFILL_BASE:] > 0.0, [0.4, 0.4, 0.0], 0.0)
    return Prior(centre, doubt, _SMOOTH_SEEN)


def of_decode(
    seen: Sequence[Decode],
    hardware: Hardware | None,
    *,
    cache_known: bool = False,
    architecture: Architecture | None = None,
) -> Prior:
    """Of a model or an accelerator that is not known: the scale comes from the decode that was seen, the ratios from the roofline.

    Ratios to ``base_s`` (reading all weights once) hold whatever the size. Prefill per token: (bandwidth at 70 %) / (arithmetic at
    50 %), of which 60 % adds to the iteration, because the first tokens hide behind the reading of the weights. Cache bytes per
    token over weight bytes: 2e-6 to 9e-6 for transformers with grouped heads (70B: 2e-6, 8B: 8e-6), 4e-5 without. Attention per
    pair over all arithmetic per token: 1 / (6 x hidden size), doubled for its lower efficiency. Sampling: about 15 us of a 7 ms
    iteration. architecture: where the model is known; of one that is not, there may be experts or not.
    """
    ridge = 0.004
    if hardware is not None:
        ridge = 0.6 * (hardware.bandwidth_gb_s * 0.7) / (hardware.tflops_bf16 * 1e3 * 0.5)
    experts, share = _MAYBE_EXPERTS, _MAYBE_SHARE
    if architecture is not None:
        # Half of base_s is reading, and half the time of each layer in which nothing is read.
        experts, share = (
            0.5 * architecture.parameters_routed / architecture.parameters_common,
            architecture.expert_share,
        )
    ratios = np.array([1.0, 0.002, 5e-6, ridge, 8e-5 * ridge, _MAYBE_PREFILL, experts, share])
    base = min(s.unloaded(ratios) for s in seen)
    centre, doubt = _outside(cache_known)
    centre[LAG], doubt[LAG] = _CAUTIOUS_LAG
    centre[:OVERHEAD] = _logarithms(base * ratios)
    centre[EXPERT_SHARE] = _logarithms(ratios)[EXPERT_SHARE]
    doubt[:OVERHEAD] = [0.4, 1.2, 1.2, 0.6 if hardware is not None else 1.2, 1.0, 1.0, 1.2, 0.5]
    if architecture is not None:
        doubt[EXPERT_READ:OVERHEAD] = 0.8 if architecture.experts else 0.0, 0.0
    return Prior(centre, doubt, _SMOOTH_SEEN)


def _outside(cache_known: bool, cache_doubt: float = CACHE_DOUBT) -> tuple[Floats, Floats]:
    """Centre and doubt of all unknowns, with those that are not coefficients filled in."""
    centre, doubt = np.zeros(UNKNOWNS), np.ones(UNKNOWNS)
    centre[OVERHEAD], doubt[OVERHEAD] = math.log(OVERHEAD_S), OVERHEAD_DOUBT
    centre[LAG], doubt[LAG] = LAG_CENTRE, LAG_DOUBT
    doubt[CACHE] = 0.0 if cache_known else cache_doubt
    return centre, doubt
