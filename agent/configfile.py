"""Reads flyball.yaml: every problem with its file, line, field, what is wrong and what to do."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from sqlalchemy.engine import make_url

from agent.settings import SECRET_FIELDS, Settings

Loc = tuple[str | int, ...]
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the settings."""

    file: str
    line: int | None
    field: str
    what: str
    do: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.field}: {self.what}. {self.do}" if self.field else f"{where}: {self.what}. {self.do}"


class BadSettings(Exception):
    """The file cannot be used. Holds every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each of their fields stands in the file."""

    settings: Settings
    path: Path
    lines: Mapping[Loc, int]

    def line(self, loc: Loc) -> int | None:
        return _line(self.lines, loc)


def load(path: Path) -> Loaded:
    """Read and validate. Relative paths are taken from the file's folder. Raises ``BadSettings``."""
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        do = "Write one with `flyball init`, or name yours with -c FILE"
        raise BadSettings([Problem(name, None, "", f"cannot be read ({error})", do)]) from error
    data, lines = _parse(name, text)
    base = path.resolve().parent
    problems: list[Problem] = []
    data = _resolve(name, data, lines, base, problems)
    if problems:
        raise BadSettings(problems)
    try:
        settings = Settings(**data)
    except ValidationError as error:
        raise BadSettings([_problem(name, lines, item) for item in error.errors()]) from error
    return Loaded(_anchored(settings, base), path, lines)


def _parse(name: str, text: str) -> tuple[dict[str, Any], dict[Loc, int]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "is not YAML"
        do = "Check the indentation and the quotes around this line"
        raise BadSettings([Problem(name, mark.line + 1 if mark else None, "", f"not YAML: {what}", do)]) from error
    lines: dict[Loc, int] = {}
    problems: list[Problem] = []
    if node is not None:
        _walk(name, node, (), lines, problems)
    if problems:
        raise BadSettings(problems)
    data = yaml.safe_load(text)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        do = "Write `key: value` lines; `flyball init` shows them all"
        raise BadSettings([Problem(name, 1, "", "is not a mapping of settings", do)])
    return data, lines


def _walk(name: str, node: yaml.Node, loc: Loc, lines: dict[Loc, int], problems: list[Problem]) -> None:
    lines[loc] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                here = key.start_mark.line + 1
                problems.append(Problem(name, here, _field((*loc, key.value)), "is written twice", "Keep one of them"))
            seen.add(key.value)
            _walk(name, value, (*loc, key.value), lines, problems)
            lines[(*loc, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(name, value, (*loc, i), lines, problems)


def _line(lines: Mapping[Loc, int], loc: Loc) -> int | None:
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc)


def _field(loc: Loc) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _is_secret(loc: Loc) -> bool:
    generic = tuple("*" if isinstance(part, int) else part for part in loc)
    return generic in SECRET_FIELDS


def _resolve(
    name: str, value: Any, lines: Mapping[Loc, int], base: Path, problems: list[Problem], loc: Loc = ()
) -> Any:
    """Put values in place of ``${NAME}`` and ``file:PATH``; refuse secrets that are written out."""
    if isinstance(value, dict):
        return {k: _resolve(name, v, lines, base, problems, (*loc, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(name, v, lines, base, problems, (*loc, i)) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def wrong(what: str, do: str) -> None:
        problems.append(Problem(name, _line(lines, loc), _field(loc), what, do))

    secret = _is_secret(loc)
    if secret and value.startswith("file:"):
        path = base / value.removeprefix("file:")
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            wrong(f"the secret's file cannot be read ({error.strerror})", f"Create {path}, readable by Flyball alone")
            return value
    if secret and not _REFERENCE.fullmatch(value):
        wrong("a secret is written into the file", "Refer to it: ${NAME} from the environment, or file:PATH")
        return value

    def from_environment(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            wrong(f"the environment variable {match[1]} is not set", f"Export {match[1]} before Flyball starts")
            return match[0]
        return found

    return _REFERENCE.sub(from_environment, value)


_MESSAGES = {
    "missing": ("is missing", "Add it"),
    "int_parsing": ("is not a whole number", "Write a whole number"),
    "int_type": ("is not a whole number", "Write a whole number"),
    "float_parsing": ("is not a number", "Write a number"),
    "float_type": ("is not a number", "Write a number"),
    "bool_parsing": ("is not true or false", "Write true or false"),
    "string_type": ("is not text", "Put it in quotes"),
    "dict_type": ("is not a mapping", "Write `key: value` lines under it"),
    "list_type": ("is not a list", "Write lines that start with `- ` under it"),
    "model_type": ("is not a mapping", "Write `key: value` lines under it"),
}


def _problem(name: str, lines: Mapping[Loc, int], item: Mapping[str, Any]) -> Problem:
    loc: Loc = tuple(item["loc"])
    kind = str(item["type"])
    if kind == "extra_forbidden":
        known = _known_fields(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        do = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(sorted(known))}"
        return Problem(name, _line(lines, loc), _field(loc), "is not a setting", do)
    if kind in _MESSAGES:
        what, do = _MESSAGES[kind]
        return Problem(name, _line(lines, loc), _field(loc), what, do)
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = (
        "" if _is_secret(loc) or not isinstance(item.get("input"), str | int | float) else f" (found {item['input']!r})"
    )
    return Problem(
        name, _line(lines, loc), _field(loc), message[:1].lower() + message[1:] + shown, "See docs/settings.md"
    )


def _known_fields(loc: Loc) -> list[str]:
    """The names of the fields of the model at ``loc``."""
    model: Any = Settings
    for part in loc:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = _model_in(field.annotation) if field is not None else model
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _anchored(settings: Settings, base: Path) -> Settings:
    """Relative paths stand for paths beside the settings file, wherever Flyball is started from."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        url = url.set(database=str(base / url.database))
    return settings.model_copy(
        update={
            "database": url.render_as_string(hide_password=False),
            "state_dir": base / settings.state_dir,
            "report": settings.report.model_copy(update={"directory": base / settings.report.directory}),
            "tls_ca_file": base / settings.tls_ca_file if settings.tls_ca_file else None,
        }
    )
