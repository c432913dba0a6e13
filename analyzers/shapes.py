"""One grammar for a shape, on every command line and in every file: ``replicas=2,size=NAME,accelerator=L40S,max_num_seqs=64``.

What is written are changes to a base shape. A name that is not known is refused. An argument that the engine knows and the replay does
not is taken, and said to change nothing that is predicted. Old spellings are read, and said.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from actuators.shape import Autoscaling, Shape
from analyzers import grammar, vllm_arguments
from analyzers.grammar import BadQuestion, Value
from analyzers.hardware import find
from analyzers.policy import Catalogue
from analyzers.strict import nearest

#: Engine arguments whose effect is replayed.
ENGINE_ARGUMENTS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_tokens",
    "block_size",
    "max_model_len",
    "enable_chunked_prefill",
    "max_concurrency",
)
_COUNTS = ("replicas", "least", "most", "accelerator_count", "purchase")
_AMOUNTS = ("cpus", "memory_gb")
_TEXTS = ("tier", "region")
FIELDS = (*_COUNTS, "size", "accelerator", *_AMOUNTS, *_TEXTS)
#: Names that are so alike are one name and a slip of the pen.
_SLIP = 0.8


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What may be written of one endpoint's shape."""

    catalogue: Catalogue
    engine: Collection[str] = ()
    """Engine arguments beyond ``ENGINE_ARGUMENTS`` and those that the shape has: those that the policy allows."""


def shape_of(text: str, base: Shape, known: Vocabulary, notes: list[str]) -> Shape:
    """``base`` with the changes of ``text``. ``notes`` takes what was read by an old name, or has no known effect. Raises BadQuestion."""
    return changed_shape(grammar.pairs(text, notes), base, known, notes)


def changed_shape(changes: Mapping[str, Value], base: Shape, known: Vocabulary, notes: list[str]) -> Shape:
    """``base`` with single settings changed, by their names. Raises BadQuestion."""
    wanted = {name.removeprefix("engine."): value for name, value in changes.items()}
    _note(notes, check_names(wanted, {*FIELDS, *ENGINE_ARGUMENTS, *known.engine, *base.engine}))
    empty = [name for name, value in wanted.items() if value is None]
    if empty:
        raise BadQuestion(f"{empty[0]}=none: give a value")
    engine = {name: value for name, value in wanted.items() if name not in FIELDS and value is not None}
    if "size" in wanted and "accelerator" in wanted:
        raise BadQuestion("size and accelerator both say what it runs on; give one")
    shape = _hardware(base, wanted, known.catalogue)
    shape = _counted(shape, wanted)
    more: dict[str, Any] = {name: _amount(name, wanted[name]) for name in _AMOUNTS if name in wanted}
    if "purchase" in wanted:
        if shape.purchase is None:
            raise BadQuestion("purchase: nothing is bought here; give replicas=")
        more["purchase"] = replace(shape.purchase, amount=grammar.whole(wanted["purchase"], "purchase"))
    more |= {name: str(wanted[name]) for name in _TEXTS if name in wanted}
    return shape.with_(engine=engine, **more)


def check_names(given: Iterable[str], known: Collection[str]) -> list[str]:
    """A note for each engine argument that vLLM has and the replay does not know. Raises BadQuestion on a name that neither has."""
    notes = []
    for name in given:
        if name in known:
            continue
        if name in vllm_arguments.ARGUMENTS:
            notes.append(
                f"{name}: no effect of it on the prediction is known: it is predicted as if it changed nothing"
            )
            continue
        said = nearest(name, known)
        if not said.startswith("did you mean"):
            near = difflib.get_close_matches(name, sorted(vllm_arguments.ARGUMENTS), n=1, cutoff=_SLIP)
            said = f"did you mean {near[0]}?" if near else said
        raise BadQuestion(f"{name}: there is no such setting; {said}")
    return notes


def with_effect(changes: Mapping[str, Value], known: Collection[str], notes: list[str]) -> dict[str, Value]:
    """``changes`` without those arguments that vLLM has and ``known`` has not; ``notes`` takes each of them."""
    idle = [name for name in changes if name in vllm_arguments.ARGUMENTS and name not in known]
    _note(notes, check_names(idle, ()))
    return {name: value for name, value in changes.items() if name not in idle}


def slip(given: str, known: Iterable[str]) -> str | None:
    """The known name that ``given`` is a misspelling of; None: it is a name of its own, known or not."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=_SLIP)
    return near[0] if near and given not in names else None


def _note(notes: list[str], more: Iterable[str]) -> None:
    notes += [note for note in more if note not in notes]


def _hardware(shape: Shape, wanted: Mapping[str, Value], catalogue: Catalogue) -> Shape:
    if "size" in wanted:
        size = str(wanted["size"])
        if size != shape.size and size not in catalogue.prices:
            raise BadQuestion(f"size={size}: the settings' sizes do not have it; {nearest(size, catalogue.prices)}")
        shape = catalogue.with_size(shape, size)
    if "accelerator" in wanted:
        shape = _on_accelerator(shape, str(wanted["accelerator"]), wanted.get("accelerator_count"), catalogue)
    if "accelerator_count" in wanted:
        count = grammar.whole(wanted["accelerator_count"], "accelerator_count")
        shape = shape.with_(accelerator_count=count)
    return shape


def _on_accelerator(shape: Shape, name: str, count: Value, catalogue: Catalogue) -> Shape:
    """On that accelerator: as the one size of the settings that has it, where there is just one; else without a size or price."""
    row = find(name, catalogue.hardware)
    if row is None:
        raise BadQuestion(f"accelerator={name}: its bandwidth is not known; {nearest(name, catalogue.hardware)}")
    of_it = [
        size
        for size, (accelerator, n) in catalogue.built.items()
        if find(accelerator, catalogue.hardware) == row and count in (None, n)
    ]
    if len(of_it) == 1:
        return catalogue.with_size(shape, of_it[0])
    same = shape.accelerator is not None and find(shape.accelerator, catalogue.hardware) == row
    return shape if same else shape.with_(size=None, accelerator=row.name)


def _counted(shape: Shape, wanted: Mapping[str, Value]) -> Shape:
    bounds = {name: grammar.whole(wanted[name], name, least=0) for name in ("least", "most") if name in wanted}
    if shape.autoscaling is not None:
        if "replicas" in wanted:
            raise BadQuestion("replicas: an autoscaler sets them here; give its bounds, least= and most=")
        return shape.with_(autoscaling=_bounded(shape.autoscaling, bounds)) if bounds else shape
    if bounds:
        raise BadQuestion(f"{', '.join(bounds)}: no autoscaler is there whose bounds these would be; give replicas=")
    if "replicas" in wanted:
        return shape.with_(replicas=grammar.whole(wanted["replicas"], "replicas"))
    return shape


def _bounded(autoscaling: Autoscaling, bounds: Mapping[str, int]) -> Autoscaling:
    least, most = bounds.get("least", autoscaling.least), bounds.get("most", autoscaling.most)
    if least > most or most < 1:
        raise BadQuestion(f"least={least} and most={most} contradict each other")
    return replace(autoscaling, least=least, most=most)


def _amount(name: str, value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise BadQuestion(f"{name}={value}: write a number above 0")
    return float(value)
