"""Finds sources and systems by entry point, so that a stranger's package can add one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from collectors.discovery import Support

COLLECTORS = "flyball.collectors"
ACTUATORS = "flyball.actuators"
SYSTEMS = "flyball.systems"
#: Stands beside the actuators: an emulated one can be named, and is listed nowhere.
EMULATIONS = "flyball.emulations"


class PluginError(Exception):
    """A source or system is not there, cannot be loaded, or refuses its options. The text says what to do."""


@cache
def _points(group: str) -> tuple[EntryPoint, ...]:
    """Of what is installed when it is first asked for: a scan of all packages, which each endpoint would begin anew."""
    return tuple(entry_points(group=group))


def names(group: str) -> list[str]:
    return sorted(point.name for point in _points(group))


def load(group: str, name: str) -> Any:
    """The factory of that name. Raises ``PluginError``."""
    groups = (group, EMULATIONS) if group == ACTUATORS else (group,)
    point: EntryPoint | None = next((p for g in groups for p in _points(g) if p.name == name), None)
    kind = group.removeprefix("flyball.").removesuffix("s")
    if point is None:
        raise PluginError(f"no {kind} is called {name!r}; there are: {', '.join(names(group))}")
    try:
        return point.load()
    except ImportError as error:
        raise PluginError(f"the {kind} {name!r} cannot be loaded: {error}. Install what it needs") from error


def options_of(factory: Any) -> type[BaseModel] | None:
    """The pydantic model of a factory's options, which stands beside it in its module."""
    import sys

    found = getattr(sys.modules[factory.__module__], "Options", None)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def support_of(group: str, name: str) -> Support | None:
    """What a plugin says of itself: a system's own, or the ``SUPPORT`` beside the factory of a source or an actuator."""
    import sys

    made = load(group, name)
    found = getattr(made, "support", None) or getattr(sys.modules[made.__module__], "SUPPORT", None)
    return found if isinstance(found, Support) else None


@dataclass(frozen=True, slots=True)
class BadOption:
    """One thing that is wrong with a plugin's options."""

    loc: tuple[str | int, ...]
    what: str
    unknown: bool
    """Whether the plugin has no option of this name; ``known`` are those that it has."""
    known: tuple[str, ...]


def check_options(group: str, name: str, options: Mapping[str, Any]) -> list[BadOption]:
    """What is wrong with a plugin's options. Raises ``PluginError`` where the plugin is not there."""
    model = options_of(load(group, name))
    if model is None:
        return []
    try:
        model.model_validate(dict(options))
    except ValidationError as error:
        known = tuple(model.model_fields)
        return [
            BadOption(tuple(e["loc"]), _said(e["msg"]), e["type"] == "extra_forbidden", known) for e in error.errors()
        ]
    return []


def _said(message: str) -> str:
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
