"""One name, one thing: no two modules of the product define a class of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "analyzers", "actuators", "collectors")
#: Entry points want one name in each of their modules.
BY_CONTRACT = frozenset(("Options",))
#: What still stands twice. This list only ever gets shorter.
STILL_TWICE: frozenset[str] = frozenset(
    (
        "Account",
        "Fleet",
        "Found",
        "Histogram",
        "Job",
        "Receiver",
        "Record",
        "Run",
        "Server",
        "Sessions",
        "Stream",
        "Target",
    )
)


def classes() -> dict[str, list[str]]:
    """Public classes by name, with the modules that define them."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = str(path.relative_to(ROOT))
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
            for name in names:
                found[name].append(module)
    return found


def twice() -> dict[str, list[str]]:
    return {name: where for name, where in classes().items() if len(where) > 1 and name not in BY_CONTRACT}


def test_a_class_name_stands_for_one_thing() -> None:
    new = {name: where for name, where in twice().items() if name not in STILL_TWICE}
    assert not new, f"give one of each pair another name: {new}"


def test_the_list_of_exceptions_only_gets_shorter() -> None:
    gone = STILL_TWICE - set(twice())
    assert not gone, f"these stand once now; take them off the list: {sorted(gone)}"


@pytest.mark.parametrize(
    "word", ["Asked", "Given", "Ran", "Told", "Look", "Seen", "Sight", "Judged", "Learned", "Fitted", "Served", "Kept"]
)
def test_no_class_is_called_by_a_participle(word: str) -> None:
    assert word not in classes(), f"{word} says when, and not what: {classes()[word]}"
