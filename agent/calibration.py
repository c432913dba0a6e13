"""`flyball calibrate`, without its command line: an engine learned from an endpoint's own telemetry or from load tests, as ENGINE.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actuators.shape import Shape
from agent import silicon
from agent.settings import Settings
from agent.store import Store, fleet
from agent.whatif.predictions import evidence
from analyzers.grammar import BadQuestion, place, positive
from analyzers.hardware import ACCELERATORS, find
from analyzers.policy import Catalogue
from analyzers.prediction import CannotPredict
from analyzers.shapes import Vocabulary, shape_of
from analyzers.whatif.calibrate import CalibratedEngine, calibrate, calibrate_on_tests
from analyzers.whatif.loadtests import stated
from collectors.loadtests import LoadTest, read
from collectors.plan import Lengths

SCHEMA_VERSION = 1
#: Engine arguments that a calibration takes into account beside those that are replayed.
_OF_TESTS = ("tensor_parallel_size", "quantization", "dtype", "model", "gpu_memory_utilization")


@dataclass(frozen=True, slots=True)
class StatedLoad:
    """What a person says of load tests, where their files lack it."""

    prompt_tokens: str | None = None
    """As ``50``, ``uniform:50:200``, ``lognormal:MEAN:CV``; so ``output_tokens``."""
    output_tokens: str | None = None
    rate: float | None = None
    """Requests per second."""
    concurrency: int | None = None
    """Requests in flight; beside a rate, at most."""


def from_store(store: Store, settings: Settings, endpoint: str, since_s: float, now: float) -> CalibratedEngine:
    """Fitted on what came since the endpoint's last change, and kept in the store as the daemon keeps its own.

    Raises BadQuestion on an unknown endpoint, CannotPredict ``NO_EVIDENCE``.
    """
    found = evidence(store, settings, endpoint, since_s, now)
    accelerator = found.shape.accelerator
    hardware = find(accelerator, found.catalogue.hardware) if accelerator else None
    known = calibrate(found.since_change, found.shape, prior=None, hardware=hardware)
    with store.write() as db:
        fleet.keep_calibration(db, endpoint, key=known.key, now=now, body=known.as_dict())
    return known


def tested_shape(texts: Sequence[str], notes: list[str]) -> Shape:
    """What load tests were made on, as ``--shape`` says it; ``notes`` takes what has no known effect. Raises BadQuestion."""
    shape, known = Shape(replicas=1, accelerator_count=1), Vocabulary(Catalogue(hardware=ACCELERATORS), _OF_TESTS)
    for one in texts:
        with place(f"--shape {one}"):
            shape = shape_of(one, shape, known, notes)
    return shape


def from_files(
    files: Sequence[Path], *, model: str | None, shape: Shape, load: StatedLoad = StatedLoad()
) -> CalibratedEngine:
    """Fitted on the load tests of all ``files``, as one engine. Raises BadLoadTest, BadQuestion, CannotPredict ``NO_EVIDENCE``."""
    prompt, output = (
        _lengths(text, option)
        for text, option in ((load.prompt_tokens, "--prompt-tokens"), (load.output_tokens, "--output-tokens"))
    )
    rate = positive(load.rate, "--rate")
    tests: list[LoadTest] = []
    for file in files:
        tests += (
            stated(test, prompt=prompt, output=output, rate_per_s=rate, concurrency=load.concurrency)
            for test in read(file)
        )
    hardware = find(shape.accelerator, silicon.equipped(ACCELERATORS)) if shape.accelerator is not None else None
    return calibrate_on_tests(tests, shape, model=model, hardware=hardware)


def _lengths(text: str | None, option: str) -> Lengths | None:
    """Raises BadQuestion."""
    if text is None:
        return None
    try:
        return Lengths.parse(text)
    except ValueError as error:
        raise BadQuestion(f"{option}: {error}") from error


def answer(known: CalibratedEngine) -> dict[str, Any]:
    """For people and programs: each coefficient with its 80 % interval, and what it rests on."""
    rows = []
    for i, (name, value) in enumerate(asdict(known.model.iteration).items()):
        if not value:
            continue  # this engine has none of it
        drawn = sorted(d.iteration.as_tuple()[i] for d in known.draws)
        rows.append({"name": name, "value": value, **_interval(drawn)})
    rows.append(
        {"name": "overhead_s", "value": known.overhead_s, **_interval(sorted(d.overhead_s for d in known.draws))}
    )
    rows.append({"name": "lag", "value": known.lag, **_interval(sorted(d.lag for d in known.draws))})
    return {
        "schema_version": SCHEMA_VERSION,
        "key": known.key,
        "engine": known.engine.to_dict(),
        "unknowns": rows,
        "residuals": {m: value if known.loads > 1 else None for m, value in known.residuals.items()},
        "checked": known.loads > 1,
        "misfit": dict(known.misfit),
        "warnings": list(known.warnings),
        "evidence": {"observations": known.windows, "requests": known.requests, "running": list(known.load)},
        "notes": list(known.notes),
    }


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    """The tenth and ninetieth of a hundred; None without draws."""
    if not values:
        return {"low": None, "high": None}
    last = len(values) - 1
    return {"low": values[math.floor(0.1 * last)], "high": values[math.ceil(0.9 * last)]}


__all__ = ["CannotPredict", "StatedLoad", "answer", "from_files", "from_store", "tested_shape"]
