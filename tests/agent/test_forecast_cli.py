"""`flyball forecast`, and the horizon that decisions rest on, from a store of days."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import app
from agent.clock import WallClock
from agent.configfile import load
from agent.horizon import Horizons, load_history
from agent.store import Store, windows
from tests.agent.records import window

SETTINGS = """
endpoints:
  - name: chat
    url: http://127.0.0.1:1
    mode: approve
    objective: {ttft_p95_s: 1.0}
    shape: {replicas: 4}
    policy: {change_windows: [{days: mon-sun, start: "06:00", end: "20:00"}]}
"""


def stored(folder: Path, template: Path, days: float) -> tuple[Path, float]:
    """The settings beside days of 5-minute windows: 4 requests a second, a fifth of it by night. And where they end."""
    (folder / "flyball.yaml").write_text(SETTINGS)
    (folder / "flyball.db").write_bytes(template.read_bytes())
    end = WallClock().now() // 900 * 900
    rows = []
    for i in range(int(days * 288), 0, -1):
        at = end - i * 300
        requests = 300 * 4 * (1 + 0.8 * math.sin(2 * math.pi * at / 86_400))
        counts = {"requests": requests, "prompt_tokens": 100 * requests, "output_tokens": 50 * requests}
        rows.append(window(at, duration_s=300.0, counts=counts))
    store = Store(f"sqlite:///{folder}/flyball.db")
    with store.write() as db:
        windows.save(db, rows)
    store.close()
    return folder / "flyball.yaml", end


def forecast(config: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["forecast", "--endpoint", "chat", "--config", str(config), *more])


def test_a_season_is_forecast_hour_by_hour_and_tested_on_the_past(tmp_path: Path, sqlite_template: Path) -> None:
    config, end = stored(tmp_path, sqlite_template, 3.0)
    answer = json.loads(forecast(config, "-o", "json", "--html", str(tmp_path / "f.html")).stdout)
    assert answer["season_s"] == 86_400
    assert answer["backtest"][0]["model"] == "same hour yesterday"
    assert answer["error"] < 0.01
    for slot in answer["forecast"]:
        expected = 4 * (1 + 0.8 * math.sin(2 * math.pi * (slot["start"] + 450) / 86_400))
        assert slot["requests_per_s"]["mid"] == pytest.approx(expected, rel=0.02)
        assert slot["requests_per_s"]["low"] <= expected <= slot["requests_per_s"]["high"]
    assert answer["forecast"][0]["start"] == end
    shown = forecast(config).stdout
    assert len(re.findall(r"│ \w{3} \d\d:\d\d", shown)) == 24
    page = (tmp_path / "f.html").read_text()
    assert "<svg" in page
    assert "same hour yesterday" in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)  # needs no network


def test_without_a_season_it_says_what_stands_for_it(tmp_path: Path, sqlite_template: Path) -> None:
    config, _ = stored(tmp_path, sqlite_template, 0.5)
    answer = forecast(config)
    assert answer.exit_code == 0
    assert "largest load seen" in answer.stdout
    assert len(re.findall(r"│ \w{3} \d\d:\d\d", answer.stdout)) == 1  # every hour is like the next
    assert "no season is known yet: 12 h" in answer.stderr


def test_nothing_known_is_no_forecast_and_an_unknown_endpoint_is_named(tmp_path: Path, sqlite_template: Path) -> None:
    config, _ = stored(tmp_path, sqlite_template, 0.0)
    answer = forecast(config)
    assert answer.exit_code == 1
    assert "no load is known yet" in answer.stderr
    wrong = CliRunner().invoke(app, ["forecast", "--endpoint", "chta", "--config", str(config)])
    assert wrong.exit_code == 2
    assert "chat" in wrong.stderr


def test_the_horizon_holds_the_busiest_hour_the_change_windows_and_how_long_a_change_takes(
    tmp_path: Path, sqlite_template: Path
) -> None:
    config, end = stored(tmp_path, sqlite_template, 2.0)
    settings = load(config).settings
    store = Store(settings.database)
    endpoint = settings.endpoint("chat")
    horizons = Horizons(settings, store)
    found = horizons.of(endpoint, end, None)
    assert found is not None
    assert horizons.of(endpoint, end + 60, None) is found  # the same until a slot is over
    rate = sum(w.count("requests") or 0.0 for w in found.windows) / sum(w.duration_s for w in found.windows)
    assert rate == pytest.approx(7.2, rel=0.01)
    demand = found.demand()
    assert demand is not None
    assert demand.max() == pytest.approx(1.05, abs=0.1)  # a day like the last ones
    assert found.lead_s == 3 * 60 + 1800 + 300
    assert [found.open(i) for i in range(96)] == [6 <= ((end + 900 * i) % 86_400) / 3600 <= 20 for i in range(96)]
    assert found.carried  # it met the objective in that hour, on the shape that it has
    later = horizons.of(endpoint, end, end - 600)
    assert later is not None
    assert not later.carried
    assert later.ended == found.ended == {}  # nothing was forecast before
    following = horizons.of(endpoint, end + 900, None)
    again = horizons.of(endpoint, end + 960, end - 600)  # made anew within the slot
    assert following is not None
    assert again is not None
    assert following.ended == again.ended == {name: band.high[0] for name, band in later.forecast.bands.items()}
    late = horizons.of(endpoint, end + 3600, None)
    assert late is not None
    assert late.ended == {}  # what was forecast is not of the slot that has just ended
    store.close()


def test_windows_that_are_not_merged_yet_are_part_of_the_load(tmp_path: Path, sqlite_template: Path) -> None:
    config, end = stored(tmp_path, sqlite_template, 0.25)
    settings = load(config).settings
    store = Store(settings.database)
    with store.write() as db:
        windows.save(db, [window(end + 60 * i) for i in range(15)])  # 2 requests a second
    history = load_history(store, settings, settings.endpoint("chat"), end + 900)
    assert history.slots == 25
    assert history.rates["requests"][-1] == pytest.approx(2.0)
    store.close()
