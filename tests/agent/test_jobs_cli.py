"""`flyball jobs`: read from a platform, compared under offers, in a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.agent.daemons import flyball, invoke
from tests.fakes.oscar import PASSWORD, FakeOscar, definition

OFFERS = {
    "schema_version": 1,
    "offers": {
        "box": {"option": "dedicated", "kind": "machine", "usd_per_replica_hour": 2.0},
        "oscar": {
            "option": "serverless", "kind": "serverless", "concurrency": 1, "cold_start_s": 60, "most": 20, "idle_s": 0,
            "speed": {"ttft_s": 1, "tpot_s": 0}, "usd_per_billed_hour": 3.0,
        },
        "night": {"option": "batch", "kind": "tokens", "usd_per_1k_input_tokens": 0.001, "usd_per_1k_output_tokens": 0.004, "deadline_s": 86400},
    },
}  # fmt: skip


def test_from_the_platform_to_the_advice(tmp_path: Path) -> None:
    oscar = FakeOscar()
    oscar.add(definition("plants"))
    for i in range(8):
        oscar.job("plants", f"j{i}", 1000, 1060, 1060 + 3600)
    file, offers = tmp_path / "jobs.csv", tmp_path / "offers.yaml"
    offers.write_text(yaml.safe_dump(OFFERS))
    with oscar as url:
        options = ("--option", f"cluster={url}", "--option", f"password={PASSWORD}")
        read = flyball("jobs", "read", "oscar", "plants", *options, "--out", str(file))
    assert read.returncode == 0, read.stderr
    told = invoke("jobs", "advise", str(file), "--offers", str(offers), "--deadline", "2h", "-o", "json")
    assert told.exit_code == 0, told.stderr
    answer = json.loads(told.stdout)
    assert (answer["seen"]["jobs"], answer["seen"]["run_hours"], answer["seen"]["wait_p95_s"]) == (8, 8.0, 60.0)
    options_by_name = {o["name"]: o for o in answer["options"]}
    assert [o["name"] for o in answer["options"]] == ["box", "oscar", "night"]
    assert (options_by_name["box"]["units"], options_by_name["box"]["usd"]) == (4, 16.0)
    assert options_by_name["oscar"]["usd"] == pytest.approx(24.4)
    assert (options_by_name["night"]["usd"], options_by_name["night"]["meets"]) == (None, False)
    shown = invoke("jobs", "advise", str(file), "--offers", str(offers), "--deadline", "2h")
    assert shown.exit_code == 0
    assert "8 jobs" in shown.stdout
    assert "lacks" in shown.stdout


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    refused = flyball("jobs", "read", "haproxy", "chat")
    assert refused.returncode != 0
    assert "these do: nomad, oscar" in " ".join((refused.stdout + refused.stderr).split())
    offers = tmp_path / "offers.yaml"
    offers.write_text(yaml.safe_dump(OFFERS))
    gone = invoke("jobs", "advise", str(tmp_path / "none.csv"), "--offers", str(offers))
    assert (gone.exit_code, "No such file" in gone.stderr) == (2, True)
    (tmp_path / "bad.csv").write_text("created,started,ended\n1,5,2\n")
    assert "line 2" in invoke("jobs", "advise", str(tmp_path / "bad.csv"), "--offers", str(offers)).stderr
