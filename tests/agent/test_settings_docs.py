"""The reference page and the JSON Schema are made from the types, say something of every field, and are up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from agent import plugins, settings_docs
from agent.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("settings.md", settings_docs.reference),
        ("systems.md", settings_docs.systems),
        ("flyball.schema.json", settings_docs.json_schema),
    ],
)
def test_the_files_are_up_to_date(name: str, made: object) -> None:
    assert callable(made)
    assert (DOCS / name).read_text(encoding="utf-8") == made(), "run: python -m agent.settings_docs"


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        text = str(field.annotation)
        for name in re.findall(r"agent\.settings\.(\w+)", text):
            yield from _models(getattr(__import__("agent.settings", fromlist=[name]), name))


def test_every_field_is_there_and_explained() -> None:
    page = settings_docs.reference()
    for model in _models(Settings):
        for name in model.model_fields:
            rows = re.findall(rf"^\| `{name}` \| (.*?) \| (.+) \|$", page, re.MULTILINE)
            assert rows, name
            assert all(value and text.strip() for value, text in rows), name


@pytest.mark.parametrize("group", [plugins.COLLECTORS, plugins.ACTUATORS])
def test_every_plugin_is_there_with_its_options(group: str) -> None:
    sources, systems = settings_docs.reference().split("\n# Systems\n")  # a source and a system may have one name
    page = sources if group == plugins.COLLECTORS else systems
    for name in plugins.names(group):
        section = page.split(f"\n## `{name}`\n")[-1].split("\n## ")[
            0
        ]  # a section of the settings may have its name, before
        model = plugins.options_of(plugins.load(group, name))
        assert model is not None
        for option in model.model_fields:
            assert re.search(rf"^\| `{option}` \| .+ \| .{{10,}} \|$", section, re.MULTILINE), (name, option)


def test_the_schema_refuses_what_the_settings_refuse() -> None:
    schema = json.loads(settings_docs.json_schema())
    assert schema["additionalProperties"] is False
    assert all(d["additionalProperties"] is False for d in schema["$defs"].values() if d["type"] == "object")
    assert schema["$defs"]["EndpointSettings"]["required"] == ["name", "url"]


def test_both_files_are_written_where_one_says(tmp_path: Path) -> None:
    settings_docs.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flyball.schema.json", "settings.md", "systems.md"]


def test_every_plugin_of_ours_says_how_it_was_verified() -> None:
    page = settings_docs.systems()
    for group in (plugins.SYSTEMS, plugins.ACTUATORS, plugins.COLLECTORS):
        for name in plugins.names(group):
            assert plugins.support_of(group, name) is not None or f"`{name}`" in page, name
    assert "emulated" not in page
