"""What the README says to type does what it says, as it stands, on the files that come with the project."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli import app

ROOT = Path(__file__).parents[2]


def _commands(heading: str) -> list[list[str]]:
    """The commands of the first block under a heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    found = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return [shlex.split(line, comments=True) for line in found[1].replace("\\\n", " ").splitlines() if line.strip()]


def test_what_if_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "samples").symlink_to(ROOT / "docs" / "samples")
    monkeypatch.chdir(tmp_path)
    said = ""
    for program, *arguments in _commands("Ask what if"):
        assert program == "flyball"
        ended = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
        assert ended.exit_code == 0, ended.output
        said = ended.stdout
    table = said.partition("What if")[2].partition("1:")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "missed" in said, "four sequences at a time are too few"
    assert said.count("met") == 3
    assert "</html>" in (tmp_path / "whatif.html").read_text(encoding="utf-8")


def test_the_samples_are_what_their_script_writes(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "docs" / "samples" / "make.py"))["main"](tmp_path)
    kept = ROOT / "docs" / "samples"
    assert (tmp_path / "requests.csv").read_text() == (kept / "requests.csv").read_text()
    for name in ("load-4.json", "load-16.json"):
        made, there = (json.loads((folder / name).read_text()) for folder in (tmp_path, kept))
        assert made.keys() == there.keys()
        for key, value in there.items():
            assert made[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, list) else value), key
