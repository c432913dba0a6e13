"""What people read, whole, as it was looked at last: the report as Markdown, and each kind of message to Slack.

``FLYBALL_GOLDEN=write pytest tests/agent/test_golden.py`` writes them anew; then read the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.brief import markdown
from agent.report import summary
from agent.settings import Settings
from agent.slack import message
from agent.store import Store, changes, fleet, recommendations
from tests.agent.records import T0, fill

GOLDEN = Path(__file__).parent / "golden"
NOW = T0 + 3600
PAGE = "https://flyball.example.com"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path_factory.mktemp('golden')}/flyball.db")
    made.upgrade()
    fill(made, now=NOW)
    yield made
    made.close()


def same(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("FLYBALL_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} reads otherwise; see this module's first lines"


def settings_of(store: Store) -> Settings:
    stated = {
        "name": "chat",
        "url": "http://127.0.0.1:1",
        "mode": "approve",
        "actuator": {"system": "emulated"},
        "objective": {"ttft_p95_s": 1.0, "error_rate": 0.01},
    }
    return Settings.model_validate({"database": store.where, "endpoints": [stated]})


def test_the_report_as_markdown(store: Store) -> None:
    same("report.md", markdown(summary(store, settings_of(store), start=T0, end=NOW, now=NOW)))


@pytest.mark.parametrize(
    "name", ["recommendation", "decided", "succeeded", "rolled-back", "way-back", "finding", "report", "refused"]
)
def test_messages_to_slack(name: str, store: Store) -> None:
    with store.read() as db:
        row = recommendations.get(db, "aaaa0001")
        good, bad = changes.get(db, "cccc0001"), changes.get(db, "cccc0002")
        assert row is not None
        assert good is not None
        assert bad is not None
        ledgers = {c["id"]: changes.ledger(db, change_id=c["id"]) for c in (good, bad)}
        (found,) = fleet.findings(db)
        known = fleet.get(db, "chat")
    told = {
        **(bad["outcome"] or {}),
        "way_back": {"code": "AS_BEFORE", "text": "the objective is met at the same load", "at": NOW},
    }
    figures = summary(store, settings_of(store), start=T0, end=NOW, now=NOW)
    report = {
        "path": "reports/flyball.html",
        "period_start": T0,
        "period_end": NOW,
        "made_at": NOW,
        "summary": figures,
        "id": 1,
    }
    made = {
        "recommendation": lambda: message.recommendation(
            row, {"approve": "t1", "reject": "t2", "snooze": "t3"}, PAGE, []
        ),
        "decided": lambda: message.decided(row, "U0ADA", "approved", PAGE),
        "succeeded": lambda: message.change(good, ledgers[good["id"]], PAGE),
        "rolled-back": lambda: message.change(bad, ledgers[bad["id"]], PAGE),
        "way-back": lambda: message.way_back({**bad, "outcome": told}, PAGE),
        "finding": lambda: message.finding(
            {**found, "body": {**found["body"], "kind": "breach"}}, known["decision"] if known else None, PAGE
        ),
        "report": lambda: message.report(report, PAGE),
        "refused": lambda: message.refused("this was decided already"),
    }
    same(f"slack-{name}.json", json.dumps(made[name](), indent=1, ensure_ascii=False) + "\n")
