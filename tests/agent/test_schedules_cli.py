"""`flyball schedules`: what is kept, written out for who else may keep it, and its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from actuators.shape import Schedule, ScheduleStep, Shape
from agent.cli import app
from agent.store import Store, fleet, schedules


@pytest.fixture
def place(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "flyball.yaml").write_text("endpoints: [{name: chat, url: 'http://127.0.0.1:1'}]\n")
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    kept = Schedule((ScheduleStep("06:50", 4), ScheduleStep("20:00", 2)), "Europe/Berlin")
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    with store.write() as db:
        fleet.saw_shape(
            db,
            "chat",
            {
                "shape": Shape(replicas=4).as_dict(),
                "shape_version": "1",
                "ready": True,
                "detail": "",
                "seen_at": 0.0,
                "price_per_hour": None,
            },
        )
        schedules.begin(db, "chat", schedules.StandingSchedule(kept, "c1", "r1", "ada", 0.0, 1e12), 0.0)
    store.close()
    return tmp_path


def run(place: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["schedules", *words, "-c", str(place / "flyball.yaml")])


def test_it_is_written_for_keda_and_for_azure(place: Path) -> None:
    keda = yaml.safe_load(run(place, "export", "chat").stdout)
    assert (keda["kind"], keda["spec"]["minReplicaCount"], keda["spec"]["maxReplicaCount"]) == ("ScaledObject", 2, 4)
    where = ("--resource", "/subscriptions/s/deployments/blue", "--location", "westeurope")
    azure = json.loads(run(place, "export", "chat", "--for", "azure", *where).stdout)
    counts = [profile["capacity"]["default"] for profile in azure["properties"]["profiles"]]
    assert counts == ["4", "2"]
    assert azure["properties"]["targetResourceUri"] == "/subscriptions/s/deployments/blue"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("export", "nobody"), "nobody"),
        (("export", "chat", "--for", "azure"), "--resource ID and --location REGION"),
        (("end", "nobody"), "nobody"),
    ],
)
def test_what_lacks_is_said(place: Path, words: tuple[str, ...], text: str) -> None:
    got = run(place, *words)
    assert got.exit_code != 0
    assert text in got.output


def test_it_is_ended_once(place: Path) -> None:
    assert "keeps its schedule no longer" in run(place, "end", "chat").output
    assert "keeps no schedule" in run(place, "end", "chat").output
    assert "keeps no schedule" in run(place, "export", "chat").output
