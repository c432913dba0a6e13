"""`flyball whatif --endpoint` of what is bought and not run: other amounts, from the store to the answer."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.store import Store, flights, windows
from analyzers.money import Tariff
from collectors.flight import FlightRecord
from collectors.window import Window
from tests.agent.test_whatif_cli import answer, run
from tests.analyzers.kinds.test_call_kinds import TRUTH, limited, provisioned


def written(folder: Path, template: Path, hour: list[Window], entry: dict[str, Any]) -> Path:
    """Settings beside a database with the hour that has just ended."""
    shutil.copy(template, folder / "flyball.db")
    start = time.time() // 60 * 60 - 60.0 * len(hour)
    store = Store(f"sqlite:///{folder}/flyball.db")
    with store.write() as db:
        rows = [replace(w, endpoint="api", source="otlp", start=start + w.start) for w in hour]
        windows.save_entries(db, [windows.entry_of(w, Tariff()) for w in rows])
        if entry.pop("recorded", False):
            each = [
                FlightRecord(f"{i:032x}", "server", start + 180.0 * (i // 180), prompt_tokens=400, output_tokens=100)
                for i in range(int(sum(w.counts["requests"] for w in rows)))
            ]
            flights.keep(db, [("api", one) for one in each])
    store.close()
    base = {"name": "api", "url": "http://127.0.0.1:9", "sources": {"otlp": {}}, "objective": {"throttle_rate": 0.01}}
    path = folder / "flyball.yaml"
    path.write_text(yaml.safe_dump({"database": f"sqlite:///{folder}/flyball.db", "endpoints": [{**base, **entry}]}))
    return path


def test_another_quota(tmp_path: Path, sqlite_template: Path) -> None:
    entry = {"kind": "quota", "shape": {"purchase": {"amount": 60_000, "unit": "tokens_per_minute"}}}
    path = written(tmp_path, sqlite_template, limited(110, 60_000, reserve=3.0), entry)
    got = answer("-c", path, "--endpoint", "api", "--since", "1h", "--candidate", "purchase=120000")
    present, more = got["candidates"]
    assert present["prediction"]["metrics"]["throttle_rate"]["mid"] > 0.1
    assert more["prediction"]["metrics"]["throttle_rate"]["mid"] < 0.01
    assert more["shape"]["purchase"] == {"amount": 120_000, "unit": "tokens_per_minute"}
    assert more["usd_per_hour"] == 0.0
    table = run("-c", path, "--endpoint", "api", "--since", "1h", "--candidate", "purchase=120000")
    assert table.exit_code == 0
    assert "120000 tokens/min" in table.stdout or "purchase=120000" in table.stdout


def test_other_units_with_what_spills_over(tmp_path: Path, sqlite_template: Path) -> None:
    entry = {
        "kind": "ptu",
        "shape": {"purchase": {"amount": 50, "unit": "ptu"}, "engine": {"spillover": "chat-2"}},
        "usd_per_ptu_hour": 1.0,
        "usd_per_1k_input_tokens": 0.02,
        "usd_per_1k_output_tokens": 0.08,
    }
    path = written(tmp_path, sqlite_template, provisioned(60, TRUTH, spills=True), entry)
    got = answer("-c", path, "--endpoint", "api", "--since", "1h", "--candidate", "purchase=10")
    present, less = got["candidates"]
    assert present["usd_per_hour"] == pytest.approx(50.0)
    spilled = less["prediction"]["metrics"]["spill_rate"]["mid"]
    assert 0.2 < spilled < 0.6
    # 3,600 calls an hour, each of about 400 tokens in and 100 out; more spills over while answers are long.
    assert less["usd_per_hour"] == pytest.approx(10.0 + 3600 * spilled * (0.4 * 0.02 + 0.1 * 0.08), rel=0.15)


def test_recorded_bursts_stand_above_what_minutes_tell(tmp_path: Path, sqlite_template: Path) -> None:
    """All calls of three minutes come at once, as the flight recorder saw them."""
    engine = {"input_tokens_per_minute_per_ptu": 3000, "output_weight": 4}
    entry = {"kind": "ptu", "shape": {"purchase": {"amount": 100, "unit": "ptu"}, "engine": engine}}
    hour = [replace(w, gauges={}) for w in provisioned(60, replace(TRUTH, ptus=100.0), minutes=30)]
    shares = []
    for recorded in (False, True):
        folder = tmp_path / str(recorded)
        folder.mkdir()
        path = written(folder, sqlite_template, hour, {**entry, "recorded": recorded})
        got = answer("-c", path, "--endpoint", "api", "--since", "1h", "--candidate", "purchase=25")
        shares.append(got["candidates"][1]["prediction"]["metrics"]["throttle_rate"]["mid"])
    assert shares[1] > 0.2 > shares[0]


def test_what_is_not_bought_is_no_setting(telemetry: Path) -> None:
    refused = run("-c", telemetry, "--endpoint", "chat", "--candidate", "purchase=5")
    assert refused.exit_code == 2
    assert "nothing is bought here" in refused.output
