"""Times of measured kernels become the coefficients that describe them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analyzers.architecture import MODELS, Architecture
from analyzers.hardware import ACCELERATORS
from analyzers.steptimes import StepTimes
from analyzers.whatif import priors
from analyzers.whatif.fit import EXPERT_SHARE, OVERHEAD
from analyzers.whatif.roofline import RooflineMachine
from collectors.workload import Floats

COSTS = np.array([0.006, 4e-5, 3e-8, 2.8e-5, 2e-10, 2e-3, 9e-3, 1 / 16])


def times(costs: Floats = COSTS) -> StepTimes:
    rng = np.random.default_rng(0)
    decoding = np.concatenate([2.0 ** np.arange(10), np.zeros(8), [16.0, 64.0]])
    context = decoding * rng.integers(100, 9000, 20)
    prefill = np.concatenate([np.zeros(10), 2.0 ** np.arange(4, 12), [512.0, 2048.0]])
    products = prefill * (prefill / 2 + rng.integers(0, 8000, 20))
    touched = 1.0 - (1.0 - costs[7]) ** (decoding + prefill)
    terms = np.stack([np.ones(20), decoding, context, prefill, products, prefill > 0, touched])
    return StepTimes(decoding, context, prefill, products, costs[:7] @ terms)


def test_the_coefficients_that_made_the_times_are_found() -> None:
    assert times().coefficients(1 / 16) == pytest.approx(COSTS, rel=1e-6)


def test_what_no_iteration_asks_for_is_zero() -> None:
    dense = np.where(np.arange(8) < 6, COSTS, 0.0)
    assert times(dense).coefficients(0.0) == pytest.approx(dense, rel=1e-6, abs=1e-15)


def test_a_prior_lies_in_the_middle_of_datasheet_and_kernels() -> None:
    asked: list[tuple[Architecture, int, float, int]] = []

    def source(*machine: object) -> StepTimes:
        asked.append(machine)  # type: ignore[arg-type]
        return times()

    plain = RooflineMachine(MODELS["qwen3-30b-a3b"], ACCELERATORS["H100"], 2, 1.0)
    known = replace(plain, hardware=replace(plain.hardware, kernels=source))
    assert known.measured
    assert not plain.measured
    assert asked[0] == (MODELS["qwen3-30b-a3b"], 2, 1.0, 1)
    costs = COSTS.copy()
    costs[EXPERT_SHARE] = plain.coefficients()[EXPERT_SHARE]
    assert known.coefficients() == pytest.approx(np.sqrt(plain.coefficients() * costs), rel=1e-6)
    centre = priors.of_machine(known).centre[:OVERHEAD]
    assert np.exp(centre) == pytest.approx(known.coefficients(), rel=1e-9)


def test_a_coefficient_without_a_need_stays_a_part_of_the_datasheets() -> None:
    free = np.where(np.arange(8) == 5, 0.0, COSTS)
    plain = RooflineMachine(MODELS["qwen3-30b-a3b"], ACCELERATORS["H100"])
    known = replace(plain, hardware=replace(plain.hardware, kernels=lambda *_: times(free)))
    assert 0.0 < known.coefficients()[5] < 0.5 * plain.coefficients()[5]


def test_a_model_that_the_source_does_not_know_has_the_datasheet() -> None:
    plain = RooflineMachine(MODELS["llama-3.1-8b"], ACCELERATORS["H100"])
    unknown = replace(plain, hardware=replace(plain.hardware, kernels=lambda *_: None))
    assert not unknown.measured
    assert (unknown.coefficients() == plain.coefficients()).all()
