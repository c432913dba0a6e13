"""`flyball demo --once`, as a stranger runs it: it ends well, in time, and leaves what it promises."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.agent.daemons import flyball

#: What the issue promises, after installation, on two cores.
WITHIN_S = 120.0
ENDED = {
    "support-chat": "succeeded",
    "summaries": "succeeded",
    "search": "right",
    "tickets": "rolled_back",
}


@pytest.mark.timeout(WITHIN_S + 60)
def test_the_demo_ends_well_and_leaves_what_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    told = flyball("demo", "--once", "--dir", str(folder), timeout_s=WITHIN_S)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]

    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["schema_version"], summary["ok"], summary["emulated"]) == (1, True, True)
    assert {name: s["came"] for name, s in summary["story"].items()} == ENDED
    assert {e["name"] for e in summary["endpoints"]} == set(ENDED)
    changes = {c["endpoint"]: c for c in summary["changes"]}
    assert {name: c["state"] for name, c in changes.items()} == {n: s for n, s in ENDED.items() if s != "right"}
    for change in changes.values():
        ttft = next(row for row in change["ledger"] if row["metric"] == "ttft_p95_s")
        assert None not in (ttft["low"], ttft["predicted"], ttft["high"], ttft["before"], ttft["observed"])
        assert ttft["low"] <= ttft["predicted"] <= ttft["high"]
        assert change["approved_by"] == "slack:U0DEMO123"
        assert change["plan_hash"].startswith("sha256:")
    assert {r["endpoint"] for r in summary["recommendations"]} == set(changes)
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
    db.close()

    again = flyball("demo", "--once", "--dir", str(folder))
    assert again.returncode == 2, "an earlier demo is not written over"
