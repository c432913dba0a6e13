"""One grammar for a shape, on every command line and in every file: ``replicas=2,size=NAME,accelerator=L40S,max_num_seqs=64``.

What is written are changes to a base shape. A name that is not known is refused, and so is an engine argument of which no effect is
known: it would be replayed as if it changed nothing. Old spellings are read, and said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from actuators.shape import Autoscaling, Shape
from analyzers import grammar
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
_COUNTS = ("replicas", "least", "most", "accelerator_count")
_AMOUNTS = ("cpus", "memory_gb")
_TEXTS = ("tier", "region")
FIELDS = (*_COUNTS, "size", "accelerator", *_AMOUNTS, *_TEXTS)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What may be written of one endpoint's shape."""

    catalogue: Catalogue
    engine: Collection[str] = ()
    """Engine arguments beyond ``ENGINE_ARGUMENTS`` and those that the shape has: those that the policy allows."""


def shape_of(text: str, base: Shape, known: Vocabulary, notes: list[str]) -> Shape:
    """``base`` with the changes of ``text``. ``notes`` takes what was read by an old name. Raises BadQuestion."""
    return changed_shape(grammar.pairs(text, notes), base, known)


def changed_shape(changes: Mapping[str, Value], base: Shape, known: Vocabulary) -> Shape:
    """``base`` with single settings changed, by their names. Raises BadQuestion."""
    wanted = {name.removeprefix("engine."): value for name, value in changes.items()}
    engine = {
        name: wanted.pop(name) for name in list(wanted) if name in {*ENGINE_ARGUMENTS, *known.engine, *base.engine}
    }
    _check_names(wanted, {*FIELDS, *ENGINE_ARGUMENTS, *known.engine, *base.engine})
    empty = [name for name, value in {**wanted, **engine}.items() if value is None]
    if empty:
        raise BadQuestion(f"{empty[0]}=none: give a value")
    if "size" in wanted and "accelerator" in wanted:
        raise BadQuestion("size and accelerator both say what it runs on; give one")
    shape = _hardware(base, wanted, known.catalogue)
    shape = _counted(shape, wanted)
    more: dict[str, Any] = {name: _amount(name, wanted[name]) for name in _AMOUNTS if name in wanted}
    more |= {name: str(wanted[name]) for name in _TEXTS if name in wanted}
    return shape.with_(engine=engine, **more)


def _check_names(given: Iterable[str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            said = nearest(name, known)
            near = said.startswith("did you mean")
            why = (
                "there is no such setting"
                if near
                else "no effect of it is known; list it in policy.engine if it has one"
            )
            raise BadQuestion(f"{name}: {why}; {said}")


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
