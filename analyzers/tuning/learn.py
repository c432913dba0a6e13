"""What the what-if engine makes of a tune's measurements: an engine fitted to a trial's loads, and the limits of shapes not yet tried.

Its promises are held against the limits that were measured, and how far they were off is the doubt with which it promises the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actuators.shape import Shape
from analyzers.hardware import find
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.prediction import CannotPredict
from analyzers.whatif.calibrate import CalibratedEngine, calibrate_on_tests
from analyzers.whatif.predict import limit_rate
from collectors.loadtests import LoadTest, Summary
from collectors.plan import Lengths
from collectors.workload import Workload

_REQUESTS = 1500


@dataclass(frozen=True, slots=True)
class FittedTrial:
    """An engine, and the shape that it was fitted on."""

    calibrated: CalibratedEngine
    shape: Shape


def learn(
    steps: Sequence[Mapping[str, Any]], shape: Shape, model: str | None, catalogue: Catalogue
) -> FittedTrial | None:
    """Fit an engine to the loads of one trial, one replica's share of each. None where they do not support one."""
    tests = [test for step in steps if (test := _test(step, shape.replicas or 1)) is not None]
    accelerator = shape.accelerator
    hardware = find(accelerator, catalogue.hardware) if accelerator is not None else None
    try:
        return FittedTrial(calibrate_on_tests(tests, shape, model=model, hardware=hardware), shape) if tests else None
    except CannotPredict:
        return None


def _test(step: Mapping[str, Any], replicas: int) -> LoadTest | None:
    """A load as evidence; None of one that was not valid or was hardly answered."""
    got = step.get("figures")
    if not got or step.get("invalid") or not got["completed"]:
        return None
    rate, users = step.get("rate"), step.get("users")
    if users is not None and users < replicas:
        replicas = 1  # one user has one replica
    summaries = {name: _summary(got[name]) for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s")}
    return LoadTest(
        source="flyball",
        name=f"{users} users" if users is not None else f"{rate:.3g}/s",
        sent=got["sent"],
        completed=got["completed"],
        failed=sum(got["errors"].values()),
        duration_s=got["measured_s"],
        controlled="concurrency" if users is not None else "rate",
        rate_per_s=None if rate is None else rate / replicas,
        concurrency=None if users is None else users / replicas,
        throughput_per_s=None if got["requests_per_s"] is None else got["requests_per_s"] / replicas,
        prompt_tokens=_summary(got["prompt_length"]),
        output_tokens=_summary(got["output_length"]),
        latency={name: s for name, s in summaries.items() if s is not None},
    )


def _summary(values: Mapping[str, float | None]) -> Summary | None:
    if values["mean"] is None:
        return None
    return Summary(values["mean"], values["p50"], values["p90"], values["p95"], values["p99"])


def traffic(prompt: str, output: str, prefix: int, seed: int) -> Workload:
    """Poisson arrivals, one a second, with the tune's lengths: what a limit is replayed with, sped up."""
    rng = np.random.default_rng((seed, 7))
    prompts = Lengths.parse(prompt).draw(rng, _REQUESTS) + prefix
    outputs = np.maximum(1, Lengths.parse(output).draw(rng, _REQUESTS))
    return Workload(np.cumsum(rng.exponential(1.0, _REQUESTS)), prompts, outputs, np.zeros(_REQUESTS, np.int64))


def promised(
    known: FittedTrial, shape: Shape, work: Workload, objective: Objective, catalogue: Catalogue
) -> float | None:
    """Requests per second that the shape is predicted to carry; None where the engine cannot tell."""
    try:
        return limit_rate(
            shape,
            work,
            known.calibrated,
            objective=objective,
            base_shape=known.shape,
            hardware=catalogue.hardware,
            router="least_outstanding",
            precision=0.03,
        )
    except CannotPredict:
        return None
