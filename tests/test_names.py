"""One name, one thing, and each name a noun: no two modules of the product define a class of the same name, and none is a participle."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "analyzers", "actuators", "collectors")
#: Entry points want one name in each of their modules.
BY_CONTRACT = frozenset(("Options",))
#: Words that look like participles, and are nouns of the field.
NOUNS = frozenset(("Autoscaling", "Finding", "Need", "Reading", "Saving", "Serving", "Speed", "Timing", "Tracing"))
#: Participles, and words that say when, how or where, and not what.
NO_NOUN = re.compile(
    r"\w+(ed|ing)|Given|Ran|Told|Seen|Kept|Held|Lost|Found|Known|Said|Made|Taken|Left|Gone|Done|Sent|Meant|Begun|Drawn|Shown|Written"
    r"|Built|Bought|Live|Open|Here|There|Inside|Outside|Now|Alike|Think|Look|Sight"
)
_LAST_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")


def definitions() -> Iterator[tuple[str, str]]:
    """Every class of the product, private and inner ones too, with the module that defines it."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield node.name, str(path.relative_to(ROOT))


def is_noun(name: str) -> bool:
    """Whether the last word of a class name can be a noun of the field."""
    last = _LAST_WORD.findall(name)[-1]
    return last in NOUNS or NO_NOUN.fullmatch(last) is None


def test_a_class_name_stands_for_one_thing() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for name, module in definitions():
        if not name.startswith("_") and name not in BY_CONTRACT:
            found[name].append(module)
    assert len(found) > 200, "the product's classes were not found"
    twice = {name: modules for name, modules in found.items() if len(modules) > 1}
    assert not twice, f"give one of each pair another name: {twice}"


def test_no_class_is_called_by_a_participle() -> None:
    wrong = {name: module for name, module in definitions() if not is_noun(name)}
    assert not wrong, f"these say when or how, and not what; name the thing, or add a true noun to NOUNS: {wrong}"


def test_no_noun_is_allowed_that_no_class_needs() -> None:
    needed = {_LAST_WORD.findall(name)[-1] for name, _ in definitions()}
    assert needed >= NOUNS, f"take them off the list: {sorted(NOUNS - needed)}"


@pytest.mark.parametrize("name", ["Asked", "_Kept", "SettingsLoaded", "Wording", "_Inside", "GaugeSeen", "LeaseLost"])
def test_a_participle_is_known_as_one(name: str) -> None:
    assert not is_noun(name)


@pytest.mark.parametrize(
    "name", ["Finding", "ServerReading", "WatchedEndpoint", "_Fit", "HTTP", "CalibratedEngine", "H11Protocol"]
)
def test_a_noun_is_known_as_one(name: str) -> None:
    assert is_noun(name)
