"""What a tune is to find out, as it was asked: the shapes, the traffic, the objective, and how long and dear it may be."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from actuators.shape import Shape
from analyzers.grammar import BadQuestion, place
from analyzers.objective import Objective
from analyzers.shapes import FIELDS, Vocabulary, changed_shape
from analyzers.strict import nearest
from collectors.plan import Lengths

#: A space with more shapes than these is a slip of the pen.
MOST_CANDIDATES = 200


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that are sent, but for their rate."""

    prompt_tokens: str = "fixed:64"
    output_tokens: str = "fixed:64"
    """As `flyball simulate` takes them."""
    prefix_tokens: int = 0
    api: str = "chat"
    exact_output: bool = False
    think_s: float = 0.0
    """Of a user, between an answer and the next request: how many users a rate is."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard it is looked for."""

    step_s: float = 15.0
    """Seconds of sending at one rate; longer where the objective's percentile needs more requests, three times at most."""
    precision: float = 0.15
    """The limit is found when what was met and what was missed are so close."""
    most_steps: int = 8
    """Rates for each shape."""


@dataclass(frozen=True, slots=True)
class Budget:
    """When it ends with what it has. None: no bound."""

    usd: float | None = None
    minutes: float | None = None


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """A whole tune."""

    endpoint: str
    present: Shape
    """What was there when it was first asked, and the candidates are changes to."""
    candidates: tuple[tuple[str, Shape], ...]
    """Names, as they were asked for, and whole shapes."""
    objective: Objective
    demand: float | None
    """Requests per second that the recommended shape must carry. None: the cheapest per token is recommended."""
    load: Load
    effort: Effort
    budget: Budget
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "endpoint": self.endpoint,
            "present": self.present.as_dict(),
            "candidates": [{"name": name, "shape": shape.as_dict()} for name, shape in self.candidates],
            "objective": {t.name: t.limit for t in self.objective.targets},
            "demand": self.demand,
            "load": {name: getattr(self.load, name) for name in Load.__slots__},
            "effort": {name: getattr(self.effort, name) for name in Effort.__slots__},
            "budget": {"usd": self.budget.usd, "minutes": self.budget.minutes},
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TuneRequest:
        """The reverse."""
        return cls(
            data["endpoint"],
            Shape.from_dict(data["present"]),
            tuple((c["name"], Shape.from_dict(c["shape"])) for c in data["candidates"]),
            Objective.from_mapping(data["objective"]),
            data["demand"],
            Load(**data["load"]),
            Effort(**data["effort"]),
            Budget(**data["budget"]),
            data["seed"],
        )

    @property
    def digest(self) -> str:
        """Of all that decides what is measured; a budget may be raised in the middle."""
        decides = {name: value for name, value in self.as_dict().items() if name != "budget"}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def check_load(load: Load) -> None:
    """Raises BadQuestion where no request could be made of it."""
    try:
        for text in (load.prompt_tokens, load.output_tokens):
            Lengths.parse(text)
    except ValueError as error:
        raise BadQuestion(str(error)) from error
    if load.api not in ("chat", "completions"):
        raise BadQuestion(f"--api {load.api}: known are chat and completions")
    if load.prefix_tokens < 0:
        raise BadQuestion(f"--prefix-tokens {load.prefix_tokens}: give a number of 0 or more")


def space(path: Path, present: Shape, known: Vocabulary, notes: list[str]) -> list[tuple[str, Shape]]:
    """Every combination of a space file: lists under a shape's names and, under ``engine``, those of engine arguments. Raises BadQuestion."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadQuestion(f"--space {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadQuestion(f"--space {path}: is not YAML: {' '.join(str(error).split())}") from error
    axes = _axes(path, data)
    if (combinations := math.prod(len(values) for values in axes.values())) > MOST_CANDIDATES:
        raise BadQuestion(
            f"--space {path}: {combinations} combinations are more than {MOST_CANDIDATES}: each one is deployed; ask for fewer"
        )
    found: list[tuple[str, Shape]] = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        with place(f"--space {path}"):
            shape = changed_shape(chosen, present, known, notes)
        found.append((",".join(f"{name.removeprefix('engine.')}={value}" for name, value in chosen.items()), shape))
    return found


def _axes(path: Path, data: Any) -> dict[str, list[Any]]:
    if not isinstance(data, dict) or not data:
        raise BadQuestion(
            f"--space {path}: write lists under {', '.join(FIELDS)} or engine, such as `replicas: [1, 2]`"
        )
    axes: dict[str, list[Any]] = {}
    for name, values in data.items():
        if name not in (*FIELDS, "engine"):
            known = (*FIELDS, "engine")
            raise BadQuestion(f"--space {path}: {name} is no part of a space; {nearest(str(name), known)}")
        if name != "engine":
            axes[name] = _list(path, name, values)
        elif not isinstance(values, dict) or not values:
            raise BadQuestion(f"--space {path}: engine: write a list for each limit, such as `max_num_seqs: [8, 32]`")
        else:
            axes |= {f"engine.{key}": _list(path, f"engine.{key}", value) for key, value in values.items()}
    return axes


def _list(path: Path, name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values or not all(map(_is_value, values)):
        raise BadQuestion(f"--space {path}: {name}: give a list of values, such as [1, 2]")
    return list(dict.fromkeys(values))


def _is_value(value: Any) -> bool:
    return isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))


def distinct(candidates: Sequence[tuple[str, Shape]]) -> tuple[tuple[str, Shape], ...]:
    """Each shape once, by its first name. Raises BadQuestion on none, and on too many."""
    found: dict[str, tuple[str, Shape]] = {}
    for name, shape in candidates:
        found.setdefault(json.dumps(shape.as_dict(), sort_keys=True), (name, shape))
    if not found:
        raise BadQuestion(
            "give shapes to try: --candidate replicas=2,max_num_seqs=64 (again and again), or --space FILE"
        )
    if len(found) > MOST_CANDIDATES:
        raise BadQuestion(f"{len(found)} shapes are more than {MOST_CANDIDATES}: each one is deployed; ask for fewer")
    return tuple(found.values())
