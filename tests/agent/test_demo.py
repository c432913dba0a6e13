"""`flyball demo`, as a stranger runs it: it ends well, in time, leaves what it promises, and hands over to whoever watched."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agent import demo
from agent.cli import app, output
from agent.clock import WallClock
from agent.demo import closing
from agent.demo.slack_stand_in import SlackStandIn
from collectors.http import Http
from tests.agent.daemons import ROOT, flyball

#: What the issue promises, after installation, on two cores.
WITHIN_S = 120.0
ENDED = {
    "support-chat": "succeeded",
    "summaries": "succeeded",
    "search": "right",
    "tickets": "rolled_back",
    "drafts": "proposed",
}


@pytest.mark.timeout(WITHIN_S + 120)
def test_the_demo_ends_well_and_hands_over(tmp_path: Path) -> None:
    folder, log = tmp_path / "demo", tmp_path / "demo.log"
    with told(folder, log) as process:
        wait_for(lambda: "The page stays up" in log.read_text() or process.poll() is not None, WITHIN_S, log)
        said = log.read_text()
        summary = json.loads((folder / "summary.json").read_text())
        left_what_it_promises(folder, summary, said)
        (waiting,) = [r for r in summary["recommendations"] if r["endpoint"] == "drafts"]
        words = [line.strip() for line in said.splitlines() if line.startswith("  ") and " -m agent " in line]
        assert len(words) == 6
        for line in words:  # as they stand there, without any secret in the environment
            ran = subprocess.run(
                shlex.split(line), capture_output=True, input="y\n", text=True, timeout=60, cwd=ROOT, env={}
            )
            assert ran.returncode == 0, (line, ran.stderr)
            assert max(map(len, ran.stdout.splitlines())) <= 80, ran.stdout
            if "endpoints" in line or "changes" in line:
                assert all(name in ran.stdout for name in ("support-chat", "summaries", "tickets")), ran.stdout
        (approve,) = [line for line in words if f"approve {waiting['id']}" in line]
        assert approve
        wait_for(lambda: changed(folder, "drafts") in ("warming", "verifying", "succeeded"), 60, log)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-2000:]

    again = flyball("demo", "--once", "--dir", str(folder))
    assert again.returncode == 2, "an earlier demo is not written over"
    still = flyball("status", "-c", str(folder / "flyball.yaml"))
    assert still.returncode == 0, still.stderr


def left_what_it_promises(folder: Path, summary: dict[str, Any], said: str) -> None:
    assert (summary["schema_version"], summary["ok"], summary["emulated"]) == (1, True, True), said[-3000:]
    assert {name: s["came"] for name, s in summary["story"].items()} == ENDED
    assert {e["name"] for e in summary["endpoints"]} == set(ENDED)
    changes = {c["endpoint"]: c for c in summary["changes"]}
    assert {name: c["state"] for name, c in changes.items()} == {
        n: s for n, s in ENDED.items() if s not in ("right", "proposed")
    }
    for change in changes.values():
        ttft = next(row for row in change["ledger"] if row["metric"] == "ttft_p95_s")
        assert None not in (ttft["low"], ttft["predicted"], ttft["high"], ttft["before"], ttft["observed"])
        assert ttft["low"] <= ttft["predicted"] <= ttft["high"]
        assert change["approved_by"] == "slack:U0DEMO123"
        assert change["plan_hash"].startswith("sha256:")
    assert {r["endpoint"] for r in summary["recommendations"]} == {*changes, "drafts"}
    frozen = {e["name"] for e in summary["endpoints"] if e["frozen"]}
    assert frozen == {"tickets"}

    report = (folder / "report.html").read_text()
    assert all(name in report for name in ENDED)
    assert "<svg" in report
    assert "http://" not in report.replace("http://www.w3.org/", "").replace("http://127.0.0.1", ""), (
        "it needs no network"
    )
    with sqlite3.connect(folder / "flyball.db") as db:
        assert db.execute("SELECT count(*) FROM windows").fetchone()[0] > 0
        assert db.execute("SELECT count(*) FROM ledger").fetchone()[0] > 0
        notices = {row[0] for row in db.execute("SELECT subject FROM outbox WHERE kind = 'finding'")}
    db.close()
    assert {n.split("/")[1] for n in notices} <= {"breach"}, "no contradiction is told of a fleet that has none"
    tables = [line for line in said.splitlines() if str(folder) not in line and "http" not in line]
    assert max(map(len, tables)) <= 80
    assert "…" not in said
    assert said.count("comparab") == said.count("comparable")
    assert "tickets was made to fail: the demo made its machines five times slower" in said
    assert "One proposal is left for you: drafts replicas 2 → 1" in said


def changed(folder: Path, endpoint: str) -> str | None:
    with sqlite3.connect(folder / "flyball.db") as db:
        row = db.execute("SELECT state FROM changes WHERE endpoint = ?", (endpoint,)).fetchone()
    db.close()
    return row[0] if row is not None else None


@contextmanager
def told(folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The demo on a terminal of 80 columns, that stays up; ended at the end."""
    line = [sys.executable, "-m", "agent", "demo", "--stay", "--dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(line, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def wait_for(done: Callable[[], bool], limit_s: float, log: Path) -> None:
    until = monotonic() + limit_s
    while not done():
        assert monotonic() < until, log.read_text()[-3000:]
        sleep(0.5)


def test_the_stand_in_presses_for_some_and_for_a_while() -> None:
    """What is left, and whatever a person proposes once the story is told, is the person's to decide."""

    async def pressed(of: str, *, rests: bool = False) -> list[str]:
        clock, actions = WallClock(), []
        http = Http(monotonic=clock.monotonic)
        slack = SlackStandIn(http, clock, secret="s" * 16, user="U0DEMO123", leaves=["drafts"])
        await slack.start()
        slack.actions_url = f"http://127.0.0.1:{slack.port}/actions/0"  # its own: any address that answers
        if rests:
            slack.rest()
        button = {"type": "actions", "elements": [{"action_id": "flyball_approve", "value": "v"}]}
        try:
            body = json.dumps({"text": f"{of}: a smaller shape proposed", "blocks": [button]}).encode()
            assert (await http.request("POST", slack.webhook_url, content=body, headers={})).status == 200
            actions = [task.get_coro().__name__ for task in slack._presses]
        finally:
            await slack.stop()
            await http.aclose()
        return actions

    assert asyncio.run(pressed("search")) == ["_click"]
    assert asyncio.run(pressed("drafts")) == []
    assert asyncio.run(pressed("search", rests=True)) == []


@pytest.mark.parametrize(
    ("words", "terminal", "once"),
    [((), True, False), ((), False, True), (("--once",), True, True), (("--stay",), False, False)],
)
def test_it_ends_by_itself_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], terminal: bool, once: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(demo, "show", lambda directory, *, once: asked.append(once) or 0)
    monkeypatch.setattr(output, "stdout", Console(force_terminal=terminal))
    monkeypatch.setattr("agent.cli.operate.stdout", output.stdout)
    assert CliRunner().invoke(app, ["demo", *words]).exit_code == 0
    assert asked == [once]


@pytest.mark.parametrize(
    ("came", "says"),
    [
        ({"a": ("right", 0.0), "b": ("right", 0.0)}, "Flyball left 2 alone (a; b)."),
        (
            {"a": ("succeeded", -1.1)},
            "Flyball enlarged 1 endpoint that was too small (a: replicas 1 → 2, $803 a month more by the price list).",
        ),
        ({"a": ("succeeded", None)}, "at a price that is not known"),
        (
            {"a": ("succeeded", 1.1), "b": ("rolled_back", 1.1)},
            "$803 a month less by the price list) and undid 1 change that did harm (b: ",
        ),
        ({"a": ("proposed", 0.0)}, "Flyball changed nothing."),
    ],
)
def test_the_closing_sentence_is_of_what_came(came: dict[str, tuple[str, float | None]], says: str) -> None:
    changes = [
        {
            "endpoint": name,
            "what": "replicas 1 → 2",
            "outcome": {"per_hour_before": 2.0, "per_hour_after": None if saving is None else 2.0 - saving},
        }
        for name, (state, saving) in came.items()
        if state not in ("right", "proposed")
    ]
    story = {name: {"came": state} for name, (state, _) in came.items()}
    assert says in closing.what_happened({"changes": changes, "story": story})
