"""`flyball audit`: an altered row is named, and so is an end that was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from agent.cli import app
from agent.store import Store, audit, schema

ENDPOINT = "endpoints: [{name: chat, url: 'http://127.0.0.1:1'}]\n"


@pytest.fixture
def place(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "flyball.yaml").write_text(ENDPOINT)
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    with store.write() as db:
        for i in range(4):
            audit.append(db, at=1.0 + i, actor="ada", action="approve", subject=f"r{i}", body={"reason": f"no. {i}"})
    store.close()
    return tmp_path


def run(place: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["audit", *words, "-c", str(place / "flyball.yaml")])


def change(place: Path, statement: sa.Executable) -> None:
    store = Store(f"sqlite:///{place}/flyball.db")
    with store.write() as db:
        db.execute(statement)
    store.close()


def test_a_whole_chain_is_intact_and_tells_its_last_hash(place: Path) -> None:
    done = run(place, "verify")
    assert done.exit_code == 0
    assert done.stdout.startswith("intact, up to row 4: ")
    last = done.stdout.split()[-1]
    assert run(place, "verify", "--expect", last).exit_code == 0
    assert run(place, "verify", "--expect", last[:16]).exit_code == 0
    listed = run(place, "list", "--subject", "r2", "-o", "json")
    assert '"no. 2"' in listed.stdout.replace("\\", "")
    assert "no. 1" not in listed.stdout


def test_an_altered_row_is_named(place: Path) -> None:
    change(place, sa.update(schema.audit).where(schema.audit.c.id == 2).values(actor="eve"))
    done = run(place, "verify")
    assert done.exit_code == 1
    assert "row 2 was altered" in done.stderr


def test_an_end_that_was_cut_off_shows_against_a_hash_that_was_kept(place: Path) -> None:
    last = run(place, "verify").stdout.split()[-1]
    change(place, sa.delete(schema.audit).where(schema.audit.c.id == 4))
    assert run(place, "verify").exit_code == 0, "the chain alone cannot tell"
    done = run(place, "verify", "--expect", last)
    assert done.exit_code == 1
    assert "cut off" in done.stderr
    assert run(place, "verify", "--expect", "abc").exit_code == 2
