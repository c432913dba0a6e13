"""Writes docs/settings.md, docs/systems.md and docs/flyball.schema.json from the types themselves: ``python -m agent.settings_docs [FOLDER]``.

Owns only the form. What is said of a field stands under that field, in ``agent.settings`` or in the plugin's ``Options``.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent import plugins
from agent.settings import Settings
from collectors.discovery import Support

Json = Mapping[str, Any]

_HEAD = """# Settings

Made by `python -m agent.settings_docs` from the types in `agent/settings.py` and from each plugin's options; edit those, not this page.

`flyball init` writes a commented file to start from, `flyball check` says what is wrong with yours: file, line, field, and what to do.
Editors complete and check the file with [the JSON Schema](flyball.schema.json): put this in its first line:

    # yaml-language-server: $schema=./flyball.schema.json

- **Secrets** are never written into the file. Fields marked *secret* take `${NAME}` (an environment variable) or `file:PATH` and nothing else.
  In other fields `${NAME}` is put in place as well, so that a database's password can stay outside.
- **The environment stands above the file**: `FLYBALL_WEB__PORT=9000` sets `web.port`.
- **Relative paths** start from the settings file's folder, wherever Flyball is started.
- Times are seconds, money is US dollars, shares are 0 to 1, unless a field says otherwise.
"""


def reference() -> str:
    """The page, as Markdown."""
    schema = Settings.model_json_schema()
    parts = [_HEAD, "## At the top\n\n" + _table(schema, schema["$defs"])]
    for path, text, section in _sections(schema, schema["$defs"]):
        parts.append(f"## `{path}`\n\n{_plain(text)}\n\n" + _table(section, schema["$defs"]))
    for group, title, where in (
        (plugins.COLLECTORS, "Sources", "endpoints[].sources.NAME"),
        (plugins.ACTUATORS, "Systems", "endpoints[].actuator.options"),
    ):
        parts.append(f"# {title}\n\nTheir options stand under `{where}`.\n")
        parts += [_plugin(group, name) for name in plugins.names(group)]
    return "\n".join(parts)


_SYSTEMS = """# Systems

Made by `python -m agent.settings_docs` from what each source and system says of itself.

`flyball discover NAME` lists what is there and writes the entries; `flyball permissions NAME` prints the least role; `flyball check --live`
names each permission that lacks. *Verified* says with what it was tried: the real part, the vendor's own SDK against a stand-in that it
drives too, recorded answers of the real one, or its specification alone.
"""


def systems() -> str:
    """The page of sources and systems, as Markdown."""
    groups = (
        ("Systems", plugins.SYSTEMS),
        ("Other actuators", plugins.ACTUATORS),
        ("Other sources", plugins.COLLECTORS),
    )
    listed = set(plugins.names(plugins.SYSTEMS))
    parts = [_SYSTEMS]
    for title, group in groups:
        names = [name for name in plugins.names(group) if group == plugins.SYSTEMS or name not in listed]
        rows = [f"| `{name}` | {_support(support)} |" for name in names if (support := plugins.support_of(group, name))]
        if rows:
            head = ["| name | is | sees | can change | verified |", "| --- | --- | --- | --- | --- |"]
            parts.append(f"## {title}\n\n" + "\n".join([*head, *rows]) + "\n")
    return "\n".join(parts)


def _support(support: Support) -> str:
    cells = (
        support.title,
        "; ".join(support.sees) or "nothing",
        "; ".join(support.changes) or "nothing",
        f"{support.verified}: {support.how}",
    )
    return " | ".join(_plain(cell) for cell in cells)


def json_schema() -> str:
    """For editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    return json.dumps(schema | {"title": "flyball.yaml"}, indent=2, sort_keys=True) + "\n"


def _sections(schema: Json, definitions: Json, path: str = "") -> Iterator[tuple[str, str, Json]]:
    """Every mapping of settings below this one, with its path and what it is, in the order of the fields."""
    for name, field in schema["properties"].items():
        for suffix, target in _references(field):
            section, below = definitions[target], f"{path}.{name}{suffix}" if path else f"{name}{suffix}"
            yield below, section.get("description") or field["description"], section
            yield from _sections(section, definitions, below)


def _references(field: Json, suffix: str = "") -> Iterator[tuple[str, str]]:
    if "$ref" in field:
        yield suffix, field["$ref"].rsplit("/", 1)[1]
    for option in field.get("anyOf", ()):
        yield from _references(option, suffix)
    if "items" in field:
        yield from _references(field["items"], f"{suffix}[]")
    if isinstance(field.get("additionalProperties"), dict):
        yield from _references(field["additionalProperties"], f"{suffix}.NAME")


def _table(schema: Json, definitions: Json, said: Mapping[str, str] | None = None) -> str:
    rows = ["| field | value | |", "| --- | --- | --- |"]
    for name, field in schema.get("properties", {}).items():
        text = (said or {}).get(name) or field.get("description") or _definition(field, definitions).get("description")
        must = "**Required.** " if name in schema.get("required", ()) else ""
        rows.append(f"| `{name}` | {_kind(field, definitions)} | {must}{_plain(text or '')} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No options.\n"


def _plugin(group: str, name: str) -> str:
    model = plugins.options_of(plugins.load(group, name))
    if model is None:
        return f"## `{name}`\n\nNo options are stated.\n"
    schema = model.model_json_schema()
    return f"## `{name}`\n\n{_plain(inspect.getdoc(model) or '')}\n\n" + _table(
        schema, schema.get("$defs", {}), _said(model)
    )


def _said(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a class, whether or not pydantic was told to take it for the description."""
    said: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if issubclass(one, BaseModel) and one is not BaseModel:
            said |= _said_by(one)
    return said


def _said_by(model: type[BaseModel]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_BOUNDS = (
    ("exclusiveMinimum", "above"),
    ("minimum", "at least"),
    ("exclusiveMaximum", "below"),
    ("maximum", "at most"),
)


def _kind(field: Json, definitions: Json) -> str:
    """What may be written there, in words."""
    if "$ref" in field:
        return _kind(_definition(field, definitions), definitions)
    if "anyOf" in field:
        kinds = [_kind(option, definitions) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds)) if len(kinds) < len(_KINDS) else "value"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("format") == "password":
        return "*secret*"
    if field.get("format") in ("path", "time"):
        return {"path": "path", "time": "time, `HH:MM`"}[field["format"]]
    kind = field.get("type")
    if kind == "array":
        return f"list of {_kind(field.get('items', {}), definitions)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"mapping of {_kind(inner, definitions)}" if isinstance(inner, dict) and inner else "mapping"
    bounds = [f"{words} {field[key]:g}" for key, words in _BOUNDS if key in field]
    return " ".join([_KINDS.get(str(kind), "any value"), ", ".join(bounds)]).strip()


def _definition(field: Json, definitions: Json) -> Json:
    found: Json = definitions[field["$ref"].rsplit("/", 1)[1]] if "$ref" in field else {}
    return found


def _plain(text: str) -> str:
    """One line, that cannot break a table."""
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def write(folder: Path) -> None:
    """The files, into ``folder``."""
    (folder / "systems.md").write_text(systems(), encoding="utf-8")
    (folder / "settings.md").write_text(reference(), encoding="utf-8")
    (folder / "flyball.schema.json").write_text(json_schema(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs")
