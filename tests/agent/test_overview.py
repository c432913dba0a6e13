"""The fleet on one page: totals that say what lacks, the worst first, found by text and state, page by page."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.overview import PAGE, FleetFilter, overview
from agent.settings import Settings
from agent.store import Store, fleet, recommendations, windows
from tests.agent.records import T0, recommendation_row, shape_row, window

HOUR = 3600.0
STATES = ("fine", "too_small", "too_large", "fine", "gathering")


@pytest.fixture
def many(store: Store, tmp_path: Path) -> tuple[Store, Settings]:
    names = [f"e{i:03}" for i in range(120)]
    settings = Settings(
        database=store.where,
        state_dir=tmp_path,
        endpoints=[
            {"name": name, "url": f"http://{name}.invalid", "model": "llama" if name < "e010" else "qwen"}
            for name in names
        ],
    )  # type: ignore[arg-type]
    with store.write() as db:
        for i, name in enumerate(names[:-1]):
            price = None if i == 7 else 1.0 + i
            fleet.saw_shape(db, name, shape_row(T0) | {"price_per_hour": price})
            fleet.decided(db, name, {"at": T0, "state": STATES[i % 5], "text": "", "reasons": []})
        fleet.freeze(db, "e003", reason="rolled back", now=T0, by="flyball")
        recommendations.insert(db, recommendation_row("aaaa0001", "e002"))
    return store, settings


def found(many: tuple[Store, Settings], **wanted: object) -> dict[str, object]:
    return overview(*many, T0, FleetFilter(**wanted))  # type: ignore[arg-type]


def names(view: dict[str, object]) -> list[str]:
    return [e["name"] for e in view["endpoints"]]  # type: ignore[attr-defined, index]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_totals_are_of_the_whole_fleet_and_say_what_lacks(many: tuple[Store, Settings]) -> None:
    view = found(many, text="e00", page=None)
    assert view["fleet"] == {
        "endpoints": 120,
        "states": {"too_small": 24, "frozen": 1, "not_judged": 1, "gathering": 23, "too_large": 24, "fine": 47},
        "usd_per_month": pytest.approx(730 * (sum(range(1, 120)) - 8)),
        "usd_lacking": ["e007", "e119"],
        "to_decide": 1,
        "saving_waiting_usd_per_month": 730.0,
    }
    assert view["found"] == 10
    assert len(names(view)) == 10


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_worst_come_first_and_the_dearer_of_them(many: tuple[Store, Settings]) -> None:
    first = names(found(many))
    assert len(first) == PAGE
    assert first[:2] == ["e116", "e111"], "too small, the dearest first"
    assert first[24:26] == ["e003", "e119"], "frozen, then not judged"
    assert names(found(many, order="name"))[:2] == ["e000", "e001"]
    assert names(found(many, order="cost"))[:2] == ["e118", "e117"]
    assert names(found(many, state="frozen")) == ["e003"]
    assert names(found(many, text="LLAMA", order="name")) == [f"e{i:03}" for i in range(10)]
    assert found(many, text="nothing like it")["found"] == 0


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_every_endpoint_stands_on_one_page(many: tuple[Store, Settings]) -> None:
    pages = [found(many, page=page) for page in (1, 2, 3)]
    assert [p["pages"] for p in pages] == [3, 3, 3]
    all_of_them = [name for p in pages for name in names(p)]
    assert sorted(all_of_them) == [e.name for e in many[1].endpoints]
    assert found(many, page=99)["page"] == 3, "a page that there is not is the last"


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_small_chart_has_gaps_where_nothing_is_known(many: tuple[Store, Settings]) -> None:
    store, settings = many
    begin = (T0 - 7 * 24 * HOUR) // HOUR * HOUR
    with store.write() as db:
        for hour in (0, 1, 3):
            windows.save(db, [window(begin + hour * HOUR, endpoint="e000", duration_s=HOUR)])
    (row,) = overview(store, settings, T0, FleetFilter(text="e000"))["endpoints"]
    assert len(row["trend"]) == 168
    assert [value is None for value in row["trend"][:5]] == [False, False, True, False, True]
    (other,) = overview(store, settings, T0, FleetFilter(text="e001"))["endpoints"]
    assert other["trend"] == []
