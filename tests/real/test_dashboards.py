"""The alert rules by Prometheus' own promtool, and the dashboards' queries by promtool and a real PostgreSQL."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from agent.store import Store, windows
from tests.agent.records import T0, fill
from tests.agent.test_dashboards import BOARDS, DEPLOY, RULES, board, expressions
from tests.real.postgres import server

pytestmark = pytest.mark.real


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (on Debian: apt-get install prometheus)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_rules_are_rules_and_alert_when_they_should() -> None:
    assert "12 rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", DEPLOY / "prometheus" / "flyball.rules.test.yml")


def test_every_expression_of_a_dashboard_is_promql(tmp_path: Path) -> None:
    asked = [re.sub(r"\$__(rate_interval|range)", "5m", text).replace("$endpoint", ".*") for text in expressions()]
    rules = [{"record": f"asked:{i}", "expr": text} for i, text in enumerate(asked)]
    path = tmp_path / "asked.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


def test_every_query_of_a_dashboard_answers_from_the_real_schema() -> None:
    """Grafana's macros as Grafana writes them."""
    with server() as postgres:
        name = postgres.create()
        store = Store(postgres.url(name))
        try:
            store.upgrade()
            fill(store, now=T0 + 3600)
            windows.roll_up(store, T0 + 7200, 60.0)
            answered = {}
            for path in BOARDS:
                for panel in board(path)["panels"]:
                    for target in panel.get("targets", ()):
                        if "rawSql" in target:
                            sql = target["rawSql"].replace("$__unixEpochFrom()", str(int(T0 - 86_400)))
                            sql = sql.replace("$__unixEpochTo()", str(int(T0 + 86_400))).replace("$endpoint", "'chat'")
                            with store.read() as db:
                                answered[panel["title"]] = db.execute(sa.text(sql)).mappings().all()
        finally:
            store.close()
            postgres.drop(name)
    assert len(answered) >= 8
    for title in (
        "Time to first token, 95th percentile",
        "Changes",
        "Predicted against observed",
        "Open recommendations",
    ):
        assert answered[title], title
    point = answered["Time to first token, 95th percentile"][0]
    assert set(point) == {"time", "metric", "value"}
    assert point["value"] > 0
