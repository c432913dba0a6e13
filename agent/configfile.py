"""Reads flyball.yaml: every problem with its file, line, field, what is wrong and what to do."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from agent import plugins
from agent.plugins import PluginError
from agent.settings import SECRET_FIELDS, Conflict, Settings

Loc = tuple[str | int, ...]
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ENVIRONMENT = "environment"
#: No setting is nested so deep; a YAML alias that holds itself is.
_DEEPEST = 20
#: More than this no fleet of one daemon has; aliases of aliases soon have.
_MOST_FIELDS = 300_000
#: A referred value that is shorter is not hidden where a message quotes it.
_SHORTEST_HIDDEN = 6


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
        said = f"{self.what}{'' if self.what.endswith('?') else '.'} {self.do}"
        return f"{where}: {self.field}: {said}" if self.field else f"{where}: {said}"


class BadSettings(Exception):
    """The file cannot be used. Holds every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """Settings and where each of their fields stands in the file."""

    settings: Settings
    path: Path
    lines: Mapping[Loc, int]
    resolved: frozenset[str] = frozenset()
    """What stood for references, and so may be secret: no message shows it."""

    def line(self, loc: Loc) -> int | None:
        return _line(self.lines, loc)


def load(path: Path) -> SettingsFile:
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
    referring: set[Loc] = set()
    secrets = frozenset(_plugin_secrets(data))
    reading = _ConfigFile(name, lines, base, problems, referring, secrets)
    data = _resolve(reading, data)
    if problems:
        raise BadSettings(problems)
    try:
        settings = Settings(**data)
    except ValidationError as error:
        hidden = referring | secrets
        found = [_problem(name, lines, item, hidden) for item in error.errors()]
        raise BadSettings(without(found, reading.resolved)) from error
    except SettingsError as error:
        do = "Write it as JSON, or unset the variable"
        raise BadSettings([Problem(_ENVIRONMENT, None, _variable(error), "cannot be understood", do)]) from error
    return SettingsFile(_anchored(name, lines, settings, base), path, lines, frozenset(reading.resolved))


def without(problems: Iterable[Problem], resolved: Iterable[str]) -> list[Problem]:
    """The problems with none of these values in their text. What is as short as a word is told: it is no secret, and stands in many words."""
    hidden = sorted((value for value in resolved if len(value) >= _SHORTEST_HIDDEN), key=len, reverse=True)

    def masked(text: str) -> str:
        for value in hidden:
            text = text.replace(value, "***")
        return text

    return [replace(p, what=masked(p.what), do=masked(p.do)) for p in problems]


def _parse(name: str, text: str) -> tuple[dict[str, Any], dict[Loc, int]]:
    lines: dict[Loc, int] = {}
    problems: list[Problem] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _walk(name, node, (), lines, problems)
        data = None if problems else yaml.safe_load(text)
    except RecursionError as error:
        do = "Nest no deeper than the settings do"
        raise BadSettings([Problem(name, None, "", "is nested without end", do)]) from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:
        # What its constructors raise: a date such as 2024-13-45, `!!bool x`, `!!timestamp x`.
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        if isinstance(error, KeyError | AttributeError | TypeError):
            what = "a value that its tag (`!!...`) cannot have"
        do = "Check the indentation and the quotes around this line"
        raise BadSettings([Problem(name, mark.line + 1 if mark else None, "", f"not YAML: {what}", do)]) from error
    if problems:
        raise BadSettings(problems)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        do = "Write `key: value` lines; `flyball init` shows them all"
        raise BadSettings([Problem(name, 1, "", "is not a mapping of settings", do)])
    return data, lines


def _walk(name: str, node: yaml.Node, loc: Loc, lines: dict[Loc, int], problems: list[Problem]) -> None:
    """Note the line of every field; keys that are written twice, or that are no names, are problems."""
    lines[loc] = node.start_mark.line + 1
    if len(lines) > _MOST_FIELDS:
        if not problems:
            text = f"has more than {_MOST_FIELDS:,} fields, aliases written out"
            problems.append(Problem(name, None, "", text, "Split it over several daemons, or take out the aliases"))
        return
    if len(loc) > _DEEPEST:
        problems.append(Problem(name, lines[loc], "", "is nested without end", "Remove the alias that holds itself"))
        return
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = key.start_mark.line + 1
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                what = f"{key.value!r} is not a name" if isinstance(key, yaml.ScalarNode) else "the key is not a name"
                problems.append(Problem(name, here, field_name(loc), what, "Put the key in quotes"))
                continue
            if key.value in seen:
                problems.append(
                    Problem(name, here, field_name((*loc, key.value)), "is written twice", "Keep one of them")
                )
            seen.add(key.value)
            _walk(name, value, (*loc, key.value), lines, problems)
            lines[(*loc, key.value)] = here
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(name, value, (*loc, i), lines, problems)


def _line(lines: Mapping[Loc, int], loc: Loc) -> int | None:
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc)


def field_name(loc: Loc) -> str:
    """``endpoints[0].policy.sizes``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def _plugin_secrets(data: Mapping[str, Any]) -> Iterator[Loc]:
    """Where a source's or a system's options hold what it declares as a secret. What is not there is somebody else's complaint."""
    endpoints = data.get("endpoints")
    for i, endpoint in enumerate(endpoints if isinstance(endpoints, list) else ()):
        stated = endpoint if isinstance(endpoint, dict) else {}
        sources, actuator = stated.get("sources"), stated.get("actuator")
        for name, options in (sources if isinstance(sources, dict) else {}).items():
            if isinstance(options, dict) and options:
                yield from (("endpoints", i, "sources", name, f) for f in _secrets_of(plugins.COLLECTORS, name))
        if isinstance(actuator, dict) and isinstance(actuator.get("options"), dict):
            named = _secrets_of(plugins.ACTUATORS, actuator.get("system"))
            yield from (("endpoints", i, "actuator", "options", f) for f in named)


def _secrets_of(group: str, name: Any) -> list[str]:
    try:
        model = plugins.options_of(plugins.load(group, name)) if isinstance(name, str) else None
    except PluginError:
        return []
    fields = model.model_fields.items() if model is not None else ()
    return [field for field, info in fields if "SecretStr" in str(info.annotation)]


def _is_secret(loc: Loc) -> bool:
    generic = tuple("*" if isinstance(part, int) else part for part in loc)
    return generic in SECRET_FIELDS


@dataclass(frozen=True, slots=True)
class _ConfigFile:
    """One file while its references are resolved."""

    name: str
    lines: Mapping[Loc, int]
    base: Path
    problems: list[Problem]
    referring: set[Loc]
    """Fields whose value came from elsewhere, and so may be secret: it is not shown."""
    secrets: frozenset[Loc] = frozenset()
    """Those that plugins declare, beside the settings' own."""
    resolved: set[str] = field(default_factory=set)
    """The values themselves."""


def _resolve(reading: _ConfigFile, value: Any, loc: Loc = ()) -> Any:
    """Put values in place of ``${NAME}`` and ``file:PATH``; refuse secrets that are written out."""
    if isinstance(value, dict):
        return {k: _resolve(reading, v, (*loc, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(reading, v, (*loc, i)) for i, v in enumerate(value)]
    secret = _is_secret(loc) or loc in reading.secrets

    def wrong(what: str, do: str) -> None:
        reading.problems.append(Problem(reading.name, _line(reading.lines, loc), field_name(loc), what, do))

    if not isinstance(value, str):
        if secret and value is not None:
            wrong(*_WRITTEN_OUT)
        return value
    if secret and value.startswith("file:"):
        return _secret_file(reading.base / value.removeprefix("file:"), wrong)
    if secret and not _REFERENCE.fullmatch(value):
        wrong(*_WRITTEN_OUT)
        return value

    def from_environment(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            wrong(
                f"the environment variable {match[1]} is not set, or empty", f"Export {match[1]} before Flyball starts"
            )
            return match[0]
        reading.referring.add(loc)
        reading.resolved.add(found)
        return found

    return _REFERENCE.sub(from_environment, value)


def secret_of(reference: str, base: Path) -> str:
    """What a reference stands for that is given beside a file, relative to the folder ``base``. Raises ``BadSettings``."""
    reading = _ConfigFile(reference, {}, base, [], set(), secrets=frozenset({()}))
    value: str = _resolve(reading, reference)
    if reading.problems:
        raise BadSettings(reading.problems)
    return value


_WRITTEN_OUT = ("a secret is written into the file", "Refer to it: ${NAME} from the environment, or file:PATH")


def _secret_file(path: Path, wrong: Callable[[str, str], None]) -> str:
    do = f"Put the secret into {path}, readable by Flyball alone"
    try:
        found = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        wrong(f"the secret's file cannot be read ({error.strerror})", do)
        return ""
    except UnicodeDecodeError:
        wrong("the secret's file is not text", do)
        return ""
    if not found:
        wrong("the secret's file is empty", do)
    return found


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
    "model_attributes_type": ("is not a mapping", "Write `key: value` lines under it"),
}


#: Settings by the name that they had once.
_RENAMED = {"price_per_hour": "usd_per_replica_hour"}


def nearest(given: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(names) or 'none'}"


def _problem(name: str, lines: Mapping[Loc, int], item: Mapping[str, Any], referring: Container[Loc]) -> Problem:
    conflict = item.get("ctx", {}).get("error")
    loc: Loc = (*item["loc"], *(conflict.loc if isinstance(conflict, Conflict) else ()))
    kind = str(item["type"])
    field, line, file = field_name(loc), _line(lines, loc), name
    if loc not in lines and (variable := _set_by(loc)):
        field, line, file = variable, None, _ENVIRONMENT
    if kind == "extra_forbidden" and (now := _RENAMED.get(str(loc[-1]))) in _known_fields(loc[:-1]):
        return Problem(file, line, field, f"is called {now} now", f"Write {now}: a price says of what it is")
    if kind == "extra_forbidden":
        return Problem(file, line, field, "is not a setting", nearest(str(loc[-1]), _known_fields(loc[:-1])))
    if kind in _MESSAGES:
        return Problem(file, line, field, *_MESSAGES[kind])
    message = str(item["msg"]).removeprefix("Value error, ")
    found = item.get("input")
    if isinstance(found, str) and (loc in referring or file != name):
        message = message.replace(repr(found), "the value").replace(found or "''", "the value")
    public = (
        isinstance(found, str | int | float) and not _is_secret(loc) and loc not in referring and "@" not in str(found)
    )
    shown = f" (found {found!r})" if public and file == name else ""
    return Problem(file, line, field, message[:1].lower() + message[1:] + shown, "See docs/settings.md")


def _set_by(loc: Loc) -> str | None:
    """The environment variable that sets this field, as it is written there; None where none does."""
    present = {key.upper(): key for key in os.environ}
    for depth in range(len(loc), 0, -1):
        name = "FLYBALL_" + "__".join(str(part) for part in loc[:depth]).upper()
        if name in present:
            return present[name]
    return None


def _variable(error: SettingsError) -> str:
    """``error parsing value for field "endpoints" ...``: which variable that is."""
    named = re.search(r'field "(\w+)"', str(error))
    return f"FLYBALL_{named[1].upper()}" if named else "FLYBALL_..."


def _known_fields(loc: Loc) -> list[str]:
    """The names of the fields of the model at ``loc``."""
    model: Any = Settings
    below_name = False
    for part in loc:
        if isinstance(part, int) or below_name:  # an item of a list, or a name of the person's own
            below_name = False
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            below_name = getattr(field.annotation, "__origin__", None) is dict
            model = _model_in(field.annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _anchored(name: str, lines: Mapping[Loc, int], settings: Settings, base: Path) -> Settings:
    """Relative paths stand for paths beside the settings file, wherever Flyball is started from."""
    try:
        url = make_url(settings.database)
    except (ArgumentError, ValueError) as error:
        do = "Write sqlite:///PATH or postgresql+psycopg://USER@HOST/DB"
        raise BadSettings(
            [Problem(name, _line(lines, ("database",)), "database", "is not a database's address", do)]
        ) from error
    database = settings.database
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        database = url.set(database=str(base / url.database)).render_as_string(hide_password=False)
    return settings.model_copy(
        update={
            "database": database,
            "state_dir": base / settings.state_dir,
            "report": settings.report.model_copy(update={"directory": base / settings.report.directory}),
            "tls_ca_file": base / settings.tls_ca_file if settings.tls_ca_file else None,
        }
    )
