"""Days of stored windows: budgets by each span's own resolution, and what is unlike its season."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import Purchase, Shape
from agent.seasons import Seasons
from agent.settings import Settings
from agent.store import Store, windows
from analyzers.anomaly import DAY_S, SLOT_S
from analyzers.finding import Finding
from analyzers.money import Tariff, Unit
from collectors.window import Window
from tests.agent.records import T0, window
from tests.analyzers.situations import objective, situation

NOW = T0 + 8 * DAY_S
ENDPOINT = {"name": "chat", "url": "http://127.0.0.1:1", "objective": {"error_rate": 0.01}}


def found(store: Store, now: float = NOW) -> dict[str, Finding]:
    settings = Settings.model_validate({"endpoints": [ENDPOINT]})
    s = situation(objective=objective({"error_rate": 0.01}))
    return {f.reason.code: f for f in Seasons(settings, store).found(settings.endpoint("chat"), s, now)}


def save(store: Store, rows: Sequence[Window]) -> None:
    with store.write() as db:
        windows.save(db, rows)


def failing(start: float, end: float, width: float, share: float) -> list[Window]:
    counts = {"requests": 100.0, "errors": 100.0 * share, "prompt_tokens": 1e4, "output_tokens": 5e3}
    n = int((end - start) / width)
    return [window(start + i * width, duration_s=width, counts=counts) for i in range(n)]


@pytest.mark.parametrize(("share", "code"), [(0.02, True), (0.005, False)])
def test_three_days_that_burn_slowly_are_judged_by_what_was_rolled_up(store: Store, share: float, code: bool) -> None:
    save(store, failing(NOW - 3 * DAY_S, NOW - 3600, 3600.0, share))
    save(store, failing(NOW - 6 * 3600, NOW - 600, 300.0, share))
    save(store, failing(NOW - 3600, NOW, 60.0, share))
    told = found(store)
    assert ("BUDGET_BURN_ERROR_RATE" in told) == code
    if code:
        assert told["BUDGET_BURN_ERROR_RATE"].reason.numbers["long_s"] == 3 * DAY_S
        assert told["BUDGET_BURN_ERROR_RATE"].reason.numbers["long_rate"] == pytest.approx(2.0)


def test_an_hour_that_burns_fast_is_judged_as_it_was_collected(store: Store) -> None:
    save(store, failing(NOW - 3600, NOW, 60.0, 0.2))
    burn = found(store)["BUDGET_BURN_ERROR_RATE"]
    assert (burn.severity, burn.reason.numbers["long_s"], burn.reason.numbers["short_s"]) == ("critical", 3600.0, 300.0)


def test_a_burst_of_errors_that_is_over_burns_no_more(store: Store) -> None:
    save(store, failing(NOW - 3600, NOW - 600, 60.0, 0.2))
    save(store, failing(NOW - 600, NOW, 60.0, 0.0))
    assert found(store) == {}


def day_curve(first: float, last: float, *, slower: float = 1.0) -> list[Window]:
    """Five minutes each, 2/s give or take 1.6 by the hour of the day."""
    rng = np.random.default_rng(int(first))
    rows = []
    for i in range(int((last - first) / SLOT_S)):
        start = first + i * SLOT_S
        rate = (2 + 1.6 * math.sin(2 * math.pi * start / DAY_S)) * math.exp(rng.normal(0, 0.08))
        ttft = slower * (0.1 + 0.05 * rate) * math.exp(rng.normal(0, 0.05))
        n = rate * SLOT_S
        counts = {"requests": n, "errors": 0.0, "prompt_tokens": 600 * n, "output_tokens": 200 * n}
        rows.append(replace(window(start, duration_s=SLOT_S, counts=counts, ttft=(ttft, 2 * ttft))))
    return rows


def test_what_is_unlike_its_season_is_found_and_a_usual_hour_is_not(store: Store) -> None:
    save(store, day_curve(NOW - 8 * DAY_S, NOW - 2 * SLOT_S))
    usual, slow = day_curve(NOW - 2 * SLOT_S, NOW), day_curve(NOW - 2 * SLOT_S, NOW, slower=5.0)
    save(store, usual)
    assert "UNLIKE_ITS_SEASON" not in found(store)
    with store.write() as db:
        db.execute(windows._T.delete().where(windows._T.c.start >= NOW - 2 * SLOT_S))
    save(store, slow)
    f = found(store)["UNLIKE_ITS_SEASON"]
    assert f.kind == "anomaly"
    assert "the median time to first token" in f.reason.text


def test_a_new_endpoint_has_neither_season_nor_budget(store: Store) -> None:
    assert found(store) == {}


@pytest.mark.parametrize(("reserved", "told"), [(0.6, True), (0.995, False), (None, False)])
def test_weeks_of_the_same_replicas_are_worth_reserving_at_a_price_that_pays(
    store: Store, reserved: float | None, told: bool
) -> None:
    size = {"usd_per_replica_hour": 1.0, "usd_per_replica_hour_reserved": reserved}
    settings = Settings.model_validate({"endpoints": [ENDPOINT], "sizes": {"small": size}})
    hours = [window(NOW - (i + 1) * 3600.0, duration_s=3600.0) for i in range(8 * 24)]
    with store.write() as db:
        windows.save_entries(db, [windows.entry_of(w, Tariff.of({Unit.REPLICA_HOUR: 1.0}), 3.0) for w in hours])
    found = Seasons(settings, store).found(settings.endpoint("chat"), situation(), NOW)
    codes = {f.reason.code: f.reason.numbers for f in found}
    assert ("RESERVATION_WOULD_SAVE" in codes) == told
    if told:
        assert codes["RESERVATION_WOULD_SAVE"]["replicas"] == 3.0
        assert codes["RESERVATION_WOULD_SAVE"]["saved_per_month"] == pytest.approx(3 * 0.4 * 730)


def test_provisioned_throughput_of_weeks_is_worth_reserving_too(store: Store) -> None:
    prices = {"usd_per_ptu_hour": 1.0, "usd_per_ptu_hour_reserved": 0.6}
    settings = Settings.model_validate({"endpoints": [{**ENDPOINT, **prices}]})
    hours = [window(NOW - (i + 1) * 3600.0, duration_s=3600.0) for i in range(8 * 24)]
    with store.write() as db:
        windows.save_entries(db, [windows.entry_of(w, Tariff.of({Unit.PTU_HOUR: 1.0}), ptus=50.0) for w in hours])
    bought = situation(shape=Shape(purchase=Purchase(50, "ptu")))
    found = {
        f.reason.code: f.reason.numbers for f in Seasons(settings, store).found(settings.endpoint("chat"), bought, NOW)
    }
    assert found["RESERVATION_WOULD_SAVE"]["replicas"] == 50.0
    assert found["RESERVATION_WOULD_SAVE"]["saved_per_month"] == pytest.approx(50 * 0.4 * 730)
