"""The kernel times of the extra ``silicon``: which machines they are of, and what they say."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest

from agent import silicon
from agent.whatif.files import engine_file
from analyzers.architecture import MODELS
from analyzers.hardware import ACCELERATORS
from analyzers.kinds.engine.engines import Engines
from analyzers.steptimes import StepTimes
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.roofline import RooflineMachine

needed = pytest.mark.skipif(
    importlib.util.find_spec(silicon.PACKAGE) is None,
    reason="the extra `silicon` is not installed: pip install --require-hashes -r requirements/silicon.txt",
)


def test_without_the_extra_the_table_is_the_datasheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silicon, "PACKAGE", "no_such_package_is_installed")
    assert silicon.equipped(ACCELERATORS) is ACCELERATORS


@needed
def test_only_accelerators_that_were_measured_have_kernels() -> None:
    table = silicon.equipped(ACCELERATORS)
    assert table["H100"].kernels is not None
    assert table["H100"] == ACCELERATORS["H100"]
    assert table["T4"].kernels is None


@needed
@pytest.mark.parametrize(
    ("model", "accelerator", "count", "weight_bytes"),
    [
        ("llama-3.1-8b", "H100", 1, 2.0),
        ("qwen3-32b", "L40S", 2, 1.0),
        ("gpt-oss-120b", "H100", 2, 0.5),
        ("deepseek-v3", "H200", 8, 1.0),
    ],
)
def test_kernels_agree_with_the_datasheet_within_a_few_times(
    model: str, accelerator: str, count: int, weight_bytes: float
) -> None:
    """Two sources of the same iteration: reading the weights, and a prefill of two thousand tokens."""
    plain, known = (
        RooflineMachine(MODELS[model], table[accelerator], count, weight_bytes)
        for table in (ACCELERATORS, silicon.equipped(ACCELERATORS))
    )
    assert known.measured
    one, other = (m.coefficients() for m in (plain, known))
    decode = np.array([1.0, 32.0, 32_000.0, 0.0, 0.0, 0.0, 0.9, 0.0])
    prefill = np.array([1.0, 0.0, 0.0, 2048.0, 2048.0**2 / 2, 1.0, 1.0, 0.0])
    for terms in (decode, prefill):
        assert 0.5 < (one @ terms) / (other @ terms) < 2.0
        assert one @ terms != pytest.approx(other @ terms, rel=1e-6)


@needed
def test_more_takes_longer() -> None:
    source = silicon.equipped(ACCELERATORS)["H100"].kernels
    assert source is not None
    times = source(MODELS["llama-3.1-8b"], 1, 2.0, 1)
    assert isinstance(times, StepTimes)
    decodes = times.prefill == 0
    few, many = (times.seconds[decodes & (times.decoding == n) & (times.context == n * 1024)] for n in (1, 256))
    assert 0.001 < few[0] < many[0] < 0.1
    assert source(MODELS["llama-3.1-8b"], 4, 2.0, 1).seconds[0] < times.seconds[0]  # type: ignore[union-attr]


@needed
def test_what_it_does_not_know_has_none() -> None:
    known = silicon.equipped(ACCELERATORS)["H100"].kernels
    assert known is not None
    assert known(MODELS["dbrx"], 8, 2.0, 1) is None
    assert known(MODELS["llama-3.1-8b"], 7, 2.0, 1) is None


@needed
def test_an_engine_file_knows_them(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    file.write_text(EngineModel(IterationCost(0.01), EngineLimits(64, 2048)).to_json())
    engine = engine_file(file)
    assert isinstance(engine, Engines)
    assert engine.hardware["L40S"].kernels is not None


@needed
def test_the_table_goes_to_another_process() -> None:
    table = pickle.loads(pickle.dumps(dict(silicon.equipped(ACCELERATORS))))
    assert table["H100"].kernels(MODELS["llama-3.1-8b"], 1, 2.0, 1) is not None
