"""Findings as people keep them: listed with when they were seen, suppressed for ever or snoozed, whoever restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from agent.clock import WallClock
from agent.store import Store, audit, fleet, mutes
from tests.agent.daemons import invoke
from tests.agent.records import T0, finding, shape_row

SETTINGS = """
endpoints:
  - {name: chat, url: "http://127.0.0.1:1", objective: {ttft_p95_s: 1.0}}
  - {name: code, url: "http://127.0.0.1:1", objective: {ttft_p95_s: 1.0}}
"""
BREACH = finding(code="OBJECTIVE_BREACH_TTFT_P95_S", text="missed", kind="breach", severity="critical")


@pytest.fixture
def config(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    (tmp_path / "flyball.yaml").write_text(SETTINGS)
    now = WallClock().now()
    with opened(tmp_path) as store, store.write() as db:
        for name in ("chat", "code"):
            fleet.saw_shape(db, name, shape_row(now))
        fleet.found(db, "chat", [finding(), BREACH], now - 600)
        fleet.found(db, "chat", [BREACH], now)
    return tmp_path / "flyball.yaml"


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """Closed at the end, as by a restart."""
    store = Store(f"sqlite:///{folder / 'flyball.db'}")
    yield store
    store.close()


def run(config: Path, *words: str) -> Result:
    return invoke("findings", *words, "-c", config, env={"COLUMNS": "250"})


def listed(config: Path, *words: str) -> dict[str, dict[str, Any]]:
    answer = run(config, "list", "-o", "json", *words)
    assert answer.exit_code == 0, answer.output
    return {f["code"]: f for f in json.loads(answer.stdout)["findings"]}


def test_what_is_found_and_since_when(config: Path) -> None:
    (breach,) = listed(config).values()
    assert (breach["code"], breach["severity"], breach["active"]) == (BREACH.reason.code, "critical", True)
    assert breach["last_seen_at"] - breach["first_seen_at"] == pytest.approx(600.0)
    assert set(listed(config, "--all")) == {BREACH.reason.code, "LOW_OCCUPANCY"}
    assert listed(config, "--endpoint", "code") == {}
    assert run(config, "list", "--endpoint", "caht").exit_code == 2
    assert BREACH.reason.code in run(config, "list").stdout


def test_suppressed_is_for_ever_whoever_restarts_and_still_listed(config: Path) -> None:
    code = BREACH.reason.code
    assert run(config, "suppress", "chat", code, "--reason", "a canary").exit_code == 0
    (breach,) = listed(config).values()
    assert (breach["muted"]["how"], breach["muted"]["until"], breach["muted"]["reason"]) == (
        "suppressed",
        None,
        "a canary",
    )
    assert "suppressed by cli:" in run(config, "list").stdout
    assert "(suppressed)" in invoke("endpoints", "-c", config, env={"COLUMNS": "250"}).stdout
    with opened(config.parent) as store, store.read() as db:
        assert set(mutes.standing(db, T0 + 1e9)) == {("chat", code)}
    assert run(config, "resume", "chat", code).exit_code == 0
    assert listed(config)[code]["muted"] is None
    assert run(config, "resume", "chat", code).exit_code == 1
    with opened(config.parent) as store, store.read() as db:
        did = [(e["action"], json.loads(e["body"])["code"]) for e in audit.entries(db, "chat")]
    assert did == [("resume_finding", code), ("suppress_finding", code)]


def test_snoozed_is_told_of_again_after_its_time(config: Path) -> None:
    code, now = BREACH.reason.code, WallClock().now()
    assert run(config, "snooze", "chat", code, "--for", "2h", "--reason", "a move").exit_code == 0
    until = listed(config)[code]["muted"]["until"]
    assert until == pytest.approx(now + 7200, abs=60)
    with opened(config.parent) as store, store.write() as db:
        assert ("chat", code) in mutes.standing(db, until - 1)
        assert ("chat", code) not in mutes.standing(db, until)
        assert not mutes.unmute(db, "chat", code, now=until, by="cli:ann"), "it was told of by then"
        mutes.mute(db, "chat", code, until=until + 99, reason="again", now=until, by="cli:ann")
        assert mutes.standing(db, until)["chat", code]["reason"] == "again"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("suppress", "caht", BREACH.reason.code, "--reason", "x"), "no endpoint caht"),
        (
            ("suppress", "chat", "LOW_OCUPANCY", "--reason", "x"),
            "chat never had a finding LOW_OCUPANCY; did you mean LOW_OCCUPANCY",
        ),
        (("suppress", "chat", BREACH.reason.code), "--reason"),
        (("snooze", "chat", BREACH.reason.code, "--for", "soon"), "soon"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: Path, words: tuple[str, ...], said: str) -> None:
    answer = run(config, *words)
    assert answer.exit_code == 2
    assert said in " ".join(answer.output.split())
