"""ENGINE.json: what it says, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost

MODEL = EngineModel(
    IterationCost(0.006, 4e-5, 3e-8, 2.8e-5, 2e-9), EngineLimits(64, 2048, 400_000), False, {"by": "a person"}
)


def test_it_comes_back_as_it_went() -> None:
    assert EngineModel.from_json(MODEL.to_json()) == MODEL
    assert set(json.loads(MODEL.to_json())) == {"schema_version", "iteration", "limits", "chunked_prefill", "source"}


def test_accept_length_is_written_only_where_it_says_something() -> None:
    drafting = replace(MODEL, accept_length=2.4)
    assert json.loads(drafting.to_json())["accept_length"] == 2.4
    assert EngineModel.from_json(drafting.to_json()) == drafting
    assert EngineModel.from_json(changed("accept_length", 1)) == MODEL


def changed(path: str, value: Any) -> str:
    data = json.loads(MODEL.to_json())
    *parents, last = path.split(".")
    at = data
    for name in parents:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("colour", "red", "colour: unknown field"),
        ("iteration.per_moon_s", 1, r"iteration\.per_moon_s: unknown field"),
        ("limits.max_seqs", 1, r"limits\.max_seqs: unknown field"),
        ("schema_version", 2, "schema_version: 2"),
        ("iteration", None, "iteration: missing"),
        ("iteration.base_s", None, r"iteration\.base_s: missing"),
        ("limits.max_num_seqs", None, r"limits\.max_num_seqs: missing"),
        ("iteration.base_s", -1, r"iteration\.base_s must be"),
        ("iteration.base_s", float("nan"), r"iteration\.base_s must be"),
        ("iteration.base_s", "fast", r"iteration\.base_s must be"),
        ("limits.max_num_seqs", 0, r"limits\.max_num_seqs must be"),
        ("limits.kv_tokens", 2.5, r"limits\.kv_tokens must be"),
        ("limits.max_num_batched_tokens", 32, "below max_num_seqs"),
        ("limits.kv_tokens", 8, "less than one block"),
        ("chunked_prefill", "yes", "chunked_prefill must be"),
        ("limits", 5, "limits must be an object"),
        ("accept_length", 0.9, "accept_length must be"),
        ("accept_length", float("inf"), "accept_length must be"),
        ("accept_length", "2", "accept_length must be"),
        ("accept_length", True, "accept_length must be"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EngineModel.from_json(changed(path, value))


def test_an_engine_that_takes_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would take any time"):
        IterationCost(0.0)


def test_the_compiler_is_not_imported_until_a_replay_needs_it() -> None:
    code = (
        "import sys; import analyzers, analyzers.whatif, analyzers.whatif.model, analyzers.whatif.traffic, analyzers.hardware; "
        "sys.exit('numba' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_not_every_engine_has_may_be_left_out_of_the_file() -> None:
    dense = json.loads(MODEL.to_json())
    for name in ("prefill_base_s", "expert_read_s", "expert_share"):
        del dense["iteration"][name]
    assert EngineModel.from_dict(dense) == MODEL
    mixture = replace(
        MODEL, iteration=IterationCost(0.004, 2e-5, prefill_base_s=0.002, expert_read_s=0.01, expert_share=1 / 16)
    )
    assert EngineModel.from_json(mixture.to_json()) == mixture
    assert mixture.iteration.scaled(2.0) == IterationCost(0.008, 4e-5, 0, 0, 0, 0.004, 0.02, 1 / 16)


@pytest.mark.parametrize(("read", "share"), [(0.01, 0.0), (0.01, 1.0), (0.0, 1.5), (-0.01, 0.1), (0.01, float("nan"))])
def test_experts_of_no_share_are_refused(read: float, share: float) -> None:
    with pytest.raises(ValueError, match="expert_"):
        IterationCost(0.01, expert_read_s=read, expert_share=share)
