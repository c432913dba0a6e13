"""What a tune is asked: spaces of shapes, each shape once, and a question that the store keeps and knows again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.shape import Shape
from agent.tune.request import MOST_CANDIDATES, Budget, Effort, Load, TuneRequest, check_load, distinct, space
from analyzers.grammar import BadQuestion
from analyzers.objective import Objective
from analyzers.policy import Catalogue
from analyzers.shapes import Vocabulary

PRESENT = Shape(replicas=1, size="small", accelerator="L4", accelerator_count=1, engine={"max_num_seqs": 16})
CATALOGUE = Catalogue({"small": 1.0, "large": 2.5, "odd": None}, {"small": ("L4", 1), "large": ("A100", 2)})
KNOWN = Vocabulary(CATALOGUE)


def shapes(tmp_path: Path, text: str | bytes) -> list[tuple[str, Shape]]:
    path = tmp_path / "space.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return space(path, PRESENT, KNOWN, [])


# -- a space -----------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_shape(tmp_path: Path) -> None:
    found = shapes(tmp_path, "replicas: [1, 2]\nengine: {max_num_seqs: [8, 32], enable_chunked_prefill: [true]}\n")
    assert [name for name, _ in found] == [
        f"replicas={r},max_num_seqs={s},enable_chunked_prefill=True" for r in (1, 2) for s in (8, 32)
    ]
    assert found[1][1] == PRESENT.with_(engine={"max_num_seqs": 32, "enable_chunked_prefill": True})
    assert found[2][1].replicas == 2


def test_a_size_brings_its_accelerators_and_its_price(tmp_path: Path) -> None:
    (small, large, odd) = (shape for _, shape in shapes(tmp_path, "size: [small, large, odd]"))
    assert small == PRESENT
    assert (large.accelerator, large.accelerator_count) == ("A100", 2)
    assert [CATALOGUE.per_hour(s) for s in (small, large, odd)] == [1.0, 2.5, None]


def test_a_value_that_is_given_twice_is_one(tmp_path: Path) -> None:
    assert len(shapes(tmp_path, "replicas: [2, 2, 3]")) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is not YAML"),
        ("", "write lists under"),
        ("[1, 2]", "write lists under"),
        ("just words", "write lists under"),
        ("replica: [1, 2]", "did you mean replicas?"),
        ("1: [1, 2]", "1 is no part of a space"),
        ("replicas: []", "replicas: give a list"),
        ("replicas: 2", "replicas: give a list"),
        ("replicas: [[1], 2]", "replicas: give a list"),
        ("replicas: [null]", "replicas: give a list"),
        ("replicas: [0]", "1 or more"),
        ("replicas: [1.5]", "whole number"),
        ("replicas: [true]", "whole number"),
        ("size: [smal]", "did you mean small?"),
        ("size: [3]", "do not have it"),
        ("engine: [8, 32]", "a list for each limit"),
        ("engine: {max_num_seqs: 8}", "engine.max_num_seqs: give a list"),
        ("engine: {}", "a list for each limit"),
        ("engine: {max_num_seqs: [.nan]}", "max_num_seqs: give a list"),
    ],
)
def test_a_space_that_says_nothing_sensible(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(BadQuestion) as error:
        shapes(tmp_path, text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_space_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadQuestion, match="cannot be read"):
        space(tmp_path / "none.yaml", PRESENT, KNOWN, [])
    with pytest.raises(BadQuestion, match="cannot be read"):
        space(tmp_path, PRESENT, KNOWN, [])


def test_a_space_without_end_is_refused_before_it_is_written_out(tmp_path: Path) -> None:
    many = ", ".join(f"limit_{i}: {list(range(10))}" for i in range(12))
    with pytest.raises(BadQuestion, match=f"1000000000000 combinations are more than {MOST_CANDIDATES}"):
        shapes(tmp_path, f"engine: {{{many}}}")


# -- each shape once ---------------------------------------------------------------------------------------------------


def test_each_shape_once_by_its_first_name() -> None:
    two = PRESENT.with_(replicas=2)
    assert distinct([("a", PRESENT), ("b", two), ("c", PRESENT)]) == (("a", PRESENT), ("b", two))


def test_no_shape_and_too_many() -> None:
    with pytest.raises(BadQuestion, match="--candidate"):
        distinct([])
    many = [(str(i), PRESENT.with_(replicas=i)) for i in range(1, MOST_CANDIDATES + 2)]
    with pytest.raises(BadQuestion, match=f"more than {MOST_CANDIDATES}"):
        distinct(many)
    assert len(distinct([*many[:-1], many[0]])) == MOST_CANDIDATES, "so many different ones are not too many"


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Load(prompt_tokens="zipf:2"), "expected 100"),
        (Load(output_tokens="fixed:-1"), "-1"),
        (Load(api="grpc"), "known are chat and completions"),
        (Load(prefix_tokens=-1), "--prefix-tokens"),
    ],
)
def test_a_load_of_which_no_request_can_be_made(load: Load, says: str) -> None:
    with pytest.raises(BadQuestion, match=says):
        check_load(load)
    check_load(Load())


# -- the question in the store -----------------------------------------------------------------------------------------

ASKED = TuneRequest(
    "chat", PRESENT, (("replicas=2", PRESENT.with_(replicas=2)),), Objective.from_mapping({"ttft_p95_s": 0.5}), 3.0,
    Load(), Effort(), Budget(5.0, 30.0),
)  # fmt: skip


def test_a_budget_may_be_raised_in_the_middle_and_nothing_else_may_change() -> None:
    for budget in (Budget(), Budget(50.0), Budget(5.0, 31.0)):
        assert dataclasses.replace(ASKED, budget=budget).digest == ASKED.digest
    others = [
        {"endpoint": "other"},
        {"present": PRESENT.with_(replicas=3)},
        {"candidates": (("replicas=2", PRESENT.with_(replicas=3)),)},
        {"candidates": ASKED.candidates * 2},
        {"objective": Objective.from_mapping({"ttft_p95_s": 0.6})},
        {"demand": None},
        {"seed": 1},
        *({"load": dataclasses.replace(Load(), **{n: v})} for n, v in _OTHER_LOAD.items()),
        *({"effort": dataclasses.replace(Effort(), **{n: v})} for n, v in _OTHER_EFFORT.items()),
    ]
    found = {dataclasses.replace(ASKED, **change).digest for change in others}
    assert len(found | {ASKED.digest}) == len(others) + 1


_OTHER_LOAD = {
    "prompt_tokens": "fixed:65", "output_tokens": "fixed:65", "prefix_tokens": 1, "api": "completions",
    "exact_output": True, "think_s": 1.0,
}  # fmt: skip
_OTHER_EFFORT = {"step_s": 2.0, "precision": 0.2, "most_steps": 3}


def test_every_part_of_the_question_is_in_the_test_above() -> None:
    assert set(_OTHER_LOAD) == {f.name for f in dataclasses.fields(Load)}
    assert set(_OTHER_EFFORT) == {f.name for f in dataclasses.fields(Effort)}


_numbers = st.floats(0.01, 1e6)
_shape = st.builds(
    Shape,
    replicas=st.integers(1, 9),
    size=st.none() | st.sampled_from(["small", "large"]),
    accelerator=st.none() | st.just("L4"),
    accelerator_count=st.none() | st.integers(1, 8),
    engine=st.dictionaries(st.sampled_from(["max_num_seqs", "x"]), st.integers(1, 99) | st.booleans() | st.text()),
)


@given(
    st.builds(
        TuneRequest,
        endpoint=st.text(min_size=1),
        present=_shape,
        candidates=st.lists(st.tuples(st.text(), _shape), min_size=1, max_size=4).map(tuple),
        objective=st.dictionaries(
            st.sampled_from(["ttft_p95_s", "itl_p50_s", "e2e_p99_s"]), st.floats(0.01, 10.0), min_size=1
        ).map(Objective.from_mapping),
        demand=st.none() | _numbers,
        load=st.builds(Load, prefix_tokens=st.integers(0, 99), exact_output=st.booleans(), think_s=_numbers),
        effort=st.builds(Effort, step_s=_numbers, precision=_numbers, most_steps=st.integers(2, 20)),
        budget=st.builds(Budget, usd=st.none() | _numbers, minutes=st.none() | _numbers),
        seed=st.integers(0, 2**31),
    )
)
def test_what_the_store_keeps_is_what_was_asked(asked: TuneRequest) -> None:
    again = TuneRequest.from_dict(json.loads(json.dumps(asked.as_dict())))
    assert again == asked
    assert again.digest == asked.digest
