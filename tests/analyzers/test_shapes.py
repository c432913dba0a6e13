"""One grammar for a shape: what is read, what is refused and with which advice, and what is said of old spellings."""

from __future__ import annotations

import pytest

from actuators.shape import Autoscaling, Shape
from analyzers.grammar import BadQuestion
from analyzers.hardware import ACCELERATORS
from analyzers.policy import Catalogue
from analyzers.shapes import ENGINE_ARGUMENTS, Vocabulary, changed_shape, shape_of, slip
from analyzers.vllm_arguments import ARGUMENTS

CATALOGUE = Catalogue(
    prices={"small": 1.0, "big": 3.0},
    built={"small": ("L4", 1), "big": ("H100", 2)},
    cpus={"small": 4.0},
    hardware=dict(ACCELERATORS),
)
KNOWN = Vocabulary(CATALOGUE, ("gpu_memory_utilization",))
BASE = Shape(replicas=1, size="small", accelerator="L4", accelerator_count=1, engine={"max_num_seqs": 8})


def read(text: str, base: Shape = BASE) -> tuple[Shape, list[str]]:
    notes: list[str] = []
    return shape_of(text, base, KNOWN, notes), notes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("replicas=2", BASE.with_(replicas=2)),
        ("replicas=2, max_num_seqs=64", BASE.with_(replicas=2, engine={"max_num_seqs": 64})),
        ("engine.max_num_seqs=64", BASE.with_(engine={"max_num_seqs": 64})),
        ("gpu_memory_utilization=0.8", BASE.with_(engine={"gpu_memory_utilization": 0.8})),
        ("enable_chunked_prefill=false", BASE.with_(engine={"enable_chunked_prefill": False})),
        ("size=big", BASE.with_(size="big", cpus=None, accelerator="H100", accelerator_count=2)),
        (
            "accelerator=H100,accelerator_count=2",
            BASE.with_(size="big", cpus=None, accelerator="H100", accelerator_count=2),
        ),
        ("accelerator=A100-80GB", BASE.with_(size=None, accelerator="A100-80GB")),
        ("cpus=8,memory_gb=16,region=eu", BASE.with_(cpus=8.0, memory_gb=16.0, region="eu")),
    ],
)
def test_changes_to_a_base(text: str, wanted: Shape) -> None:
    shape, notes = read(text)
    assert shape == wanted
    assert notes == []


def test_old_spellings_are_read_and_said() -> None:
    shape, notes = read("sku=big,replicas=2")
    assert shape.size == "big"
    assert notes == ["sku= is called size= now, and read as that"]
    shape, notes = read("gpu=H100,gpus=2")
    assert (shape.accelerator, shape.accelerator_count) == ("H100", 2)
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("replica=1", "replica: there is no such setting; did you mean replicas?"),
        ("foo=bar", "foo: there is no such setting; known: accelerator"),
        ("enforce_eagr=true", "enforce_eagr: there is no such setting; did you mean enforce_eager?"),
        ("max_num_seq=4", "did you mean max_num_seqs?"),
        ("size=bigg", "did you mean big?"),
        ("accelerator=L50S", "did you mean L40S?"),
        ("size=big,accelerator=H100", "give one"),
        ("replicas=0", "replicas=0: write a whole number, 1 or more"),
        ("replicas=1.5", "write a whole number"),
        ("replicas", "'replicas' is no NAME=VALUE"),
        ("replicas=1,replicas=2", "given twice"),
        ("max_num_seqs=none", "give a value"),
        ("cpus=many", "cpus=many: write a number above 0"),
        ("most=4", "no autoscaler is there"),
    ],
)
def test_what_is_refused_and_with_which_advice(text: str, says: str) -> None:
    with pytest.raises(BadQuestion, match=says.replace("?", r"\?").replace("(", r"\(")):
        read(text)


def test_an_autoscalers_bounds_are_written_and_its_count_is_not() -> None:
    scaled = Shape(size="small", autoscaling=Autoscaling(1, 4, {"cpu": 0.7}))
    assert read("most=6", scaled)[0].autoscaling == Autoscaling(1, 6, {"cpu": 0.7})
    assert read("least=2,most=2", scaled)[0].autoscaling == Autoscaling(2, 2, {"cpu": 0.7})
    with pytest.raises(BadQuestion, match="an autoscaler sets them"):
        read("replicas=2", scaled)
    with pytest.raises(BadQuestion, match="contradict"):
        read("least=5", scaled)


def test_values_of_a_file_are_the_same_grammar() -> None:
    assert (
        changed_shape({"replicas": 3, "engine.max_num_seqs": 32}, BASE, KNOWN, [])
        == read("replicas=3,max_num_seqs=32")[0]
    )


def test_an_argument_of_the_engine_without_a_known_effect_is_taken_and_said_once() -> None:
    notes: list[str] = []
    for text in ("enforce_eager=true", "enforce_eager=true,max_num_seqs=16"):
        shape = shape_of(text, BASE, KNOWN, notes)
    assert shape == BASE.with_(engine={"enforce_eager": True, "max_num_seqs": 16})
    assert notes == [
        "enforce_eager: no effect of it on the prediction is known: it is predicted as if it changed nothing"
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_num_seq", "max_num_seqs"),
        ("max_num_seqs", None),
        ("max_running_requests", None),
        ("mem_fraction_static", None),
    ],
)
def test_a_slip_of_the_pen_is_no_name_of_another_engine(given: str, meant: str | None) -> None:
    assert slip(given, {*ENGINE_ARGUMENTS, *ARGUMENTS}) == meant
