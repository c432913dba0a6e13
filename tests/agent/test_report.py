"""The weekly report: figures that can be checked by head, one file that fetches nothing, gaps that stay gaps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agent import charts, views
from agent.report import summary, weekly
from agent.settings import Settings
from agent.spend import rows as rows_of
from agent.store import Store, changes, fleet, mutes, outbox, recommendations, windows
from analyzers.money import Tariff, Unit
from tests.agent.records import T0, change_row, fill, finding, ledger_row, recommendation_row, window

HOUR = 3600.0


def settings(tmp_path: Path, *names: str, **other: Any) -> Settings:
    endpoints = [
        {"name": name, "url": "http://127.0.0.1:1", "objective": {"ttft_p95_s": 0.5, "error_rate": 0.01}}
        for name in names or ("chat",)
    ]
    return Settings.model_validate({"endpoints": endpoints, "report": {"directory": tmp_path}, **other})


@pytest.fixture
def week(store: Store) -> Store:
    """Two hours of ``chat`` at 2 dollars an hour and one of ``code`` at 10, of which half an hour was not seen."""
    rows = [window(T0 + 60 * i) for i in range(120)]
    rows += [window(T0 + 60 * i, endpoint="code", coverage=float(i < 30), ttft=(1.0,)) for i in range(60)]
    with store.write() as db:
        windows.save(db, rows, {"chat": Tariff.of({Unit.HOUR: 2.0}), "code": Tariff.of({Unit.HOUR: 10.0})})
    return store


def test_money_requests_and_objectives(week: Store, tmp_path: Path) -> None:
    figures = summary(week, settings(tmp_path, "chat", "code", "new"), start=T0, end=T0 + 2 * HOUR, now=T0 + 2 * HOUR)
    chat, code, new = figures["endpoints"]
    assert (chat["spent_usd"], code["spent_usd"], new["spent_usd"]) == (pytest.approx(4.0), pytest.approx(10.0), None)
    assert figures["spent_usd"] == pytest.approx(14.0)
    assert figures["spent_lacking"] == []
    assert (chat["requests"], code["requests"], new["requests"]) == (14_400.0, 3_600.0, None)
    assert chat["tokens"] == 14_400 * 150
    assert (chat["coverage"], code["coverage"], new["coverage"]) == (1.0, pytest.approx(0.25), None)
    assert [o["met"] for o in chat["objective"]] == [True, True]
    assert [o["met"] for o in code["objective"]] == [False, True]
    assert [o["met"] for o in new["objective"]] == [None, None]


def test_an_unknown_cost_is_said_and_is_no_zero(week: Store, tmp_path: Path) -> None:
    """Spent $14, and an unknown amount on `free`: also where only some of its windows have no price."""
    with week.write() as db:
        windows.save(db, [window(T0 + 60 * i, endpoint="free") for i in range(10)])
        windows.save(
            db, [window(T0 + 60 * i, endpoint="half") for i in range(5)], {"half": Tariff.of({Unit.HOUR: 6.0})}
        )
        windows.save(db, [window(T0 + 60 * i, endpoint="half") for i in range(5, 10)])
    chosen = settings(tmp_path, "chat", "code", "free", "half")
    figures = summary(week, chosen, start=T0, end=T0 + 2 * HOUR, now=T0 + 2 * HOUR)
    assert figures["spent_usd"] == pytest.approx(14.5)
    assert figures["spent_lacking"] == ["free", "half"]
    written = weekly(week, chosen, start=T0, end=T0 + 2 * HOUR, now=T0 + 3 * HOUR, path=tmp_path / "r.html")
    assert written is not None
    assert "and an unknown amount on `free`, `half`" in written.read_text()


def test_figures_are_the_same_after_rolling_up(week: Store, tmp_path: Path) -> None:
    """What is not merged into hours yet is not lost: the ends of the span are taken from finer windows."""
    chosen = settings(tmp_path, "chat", "code")
    span = {"start": T0 - 6 * 86_400 + 1800, "end": T0 + 2 * HOUR - 1800}
    before = summary(week, chosen, **span, now=span["end"])
    windows.roll_up(week, T0 + 2 * HOUR - 1800, 60.0)
    with week.read() as db:
        assert len(windows.load(db, "chat", "vllm", 0.0, 1e12, HOUR)) == 1
    after = summary(week, chosen, **span, now=span["end"])
    assert before["spent_usd"] == pytest.approx(3.0 + 10.0)
    assert after["spent_usd"] == pytest.approx(before["spent_usd"])
    for one, other in zip(before["endpoints"], after["endpoints"], strict=True):
        assert other["requests"] == pytest.approx(one["requests"])
        assert other["coverage"] == pytest.approx(one["coverage"])
        assert [o["observed"] for o in other["objective"]] == pytest.approx([o["observed"] for o in one["objective"]])


def test_time_without_any_window_is_a_gap(store: Store, tmp_path: Path) -> None:
    """Flyball itself was down: nobody wrote a window, and nothing says that all was seen."""
    with store.write() as db:
        windows.save(db, [window(T0), window(T0 + 540)])
    (chat,) = summary(store, settings(tmp_path), start=T0, end=T0 + 600, now=T0 + 600)["endpoints"]
    assert chat["coverage"] == pytest.approx(0.2)
    view = views.endpoints(store, settings(tmp_path), T0 + 600)["endpoints"][0]
    assert view["window"]["coverage"] == pytest.approx(0.2)


def test_now_is_not_known_where_the_newest_window_saw_nothing(store: Store, tmp_path: Path) -> None:
    with store.write() as db:
        windows.save(db, [window(T0 + 60 * i) for i in range(10)])
    (seen,) = views.endpoints(store, settings(tmp_path), T0 + 610)["endpoints"]
    assert seen["now"]["span_s"] == 180.0
    assert seen["now"]["requests_per_s"] == pytest.approx(seen["load"]["requests_per_s"])
    with store.write() as db:  # the server was killed
        windows.save(db, [window(T0 + 600, coverage=0.0)])
    (killed,) = views.endpoints(store, settings(tmp_path), T0 + 670)["endpoints"]
    assert killed["now"] is None
    assert killed["load"]["requests_per_s"] == pytest.approx(seen["load"]["requests_per_s"])
    assert killed["window"]["newest_at"] == T0 + 600
    assert killed["window"]["age_s"] == 70.0


def test_nothing_is_drawn_from_before_the_first_reading(store: Store, tmp_path: Path) -> None:
    """Watched for 90 minutes, from half past: hours are merged already, and the report is of a week."""
    began, end = T0 + HOUR / 2, T0 + 2 * HOUR
    assert T0 % HOUR == 0
    with store.write() as db:
        windows.save(db, [window(began + 60 * i) for i in range(90)])
    windows.roll_up(store, end + HOUR, 60.0)
    chosen = settings(tmp_path)
    with store.read() as db:
        assert windows.load(db, "chat", "vllm", T0, T0 + HOUR, HOUR) != [], "the whole hour is there"
        rows = rows_of(db, chosen, chosen.endpoints[0], end - 7 * 86_400, end)
    assert [(w.start, w.duration_s) for w in rows] == [(began + 60 * i, 60.0) for i in range(90)]
    (chat,) = summary(store, chosen, start=end - 7 * 86_400, end=end, now=end)["endpoints"]
    assert chat["watched_since"] == began
    assert chat["coverage"] == pytest.approx(1.0)
    assert chat["coverage_of_period"] == pytest.approx(1.5 / (7 * 24))
    written = weekly(store, chosen, start=end - 7 * 86_400, end=end, now=end, path=tmp_path / "r.html")
    assert written is not None
    assert re.search(r"100%.*since .* UTC; 1% of the whole period", written.read_text())


def test_a_long_span_is_drawn_from_hours_and_its_first_part_of_an_hour_from_finer_windows(
    store: Store, tmp_path: Path
) -> None:
    began, end = T0 + HOUR / 2, T0 + 100 * HOUR
    with store.write() as db:
        windows.save(db, [window(began + 60 * i) for i in range(60 * 99 + 30)])
    windows.roll_up(store, end + HOUR, 60.0)
    chosen = settings(tmp_path)
    with store.read() as db:
        rows = rows_of(db, chosen, chosen.endpoints[0], T0 - HOUR, end)
    assert rows[0].start == began
    assert [w.duration_s for w in rows] == [300.0] * 6 + [HOUR] * 99
    with store.write() as db:  # the finest ones have aged out
        windows.age_out(db, end, {60.0: HOUR, 300.0: HOUR, HOUR: 1e9})
    with store.read() as db:
        rows = rows_of(db, chosen, chosen.endpoints[0], T0 - HOUR, end)
    assert rows[0].start == T0
    assert {w.duration_s for w in rows} == {HOUR}


def _done(store: Store, identity: str, state: str, at: float) -> None:
    with store.write() as db:
        changes.start(db, change_row(identity, now=at))
        changes.move(
            db, identity, from_states=["applying"], to=state, now=at, reason="x", finished_at=at, outcome={}
        )  # fmt: skip


def test_what_was_done_promised_and_waits(store: Store, tmp_path: Path) -> None:
    _done(store, "c1", "succeeded", T0 + 1)
    _done(store, "c2", "succeeded", T0 + 2)  # bought what the objective needed
    _done(store, "c3", "succeeded", T0 + 3)
    _done(store, "c4", "rolled_back", T0 + 4)
    _done(store, "c5", "failed", T0 + 5)
    _done(store, "c6", "succeeded", T0 - 5)  # before the span
    _done(store, "c7", "succeeded", T0 + 999)  # after it
    with store.write() as db:
        recommendations.insert(db, recommendation_row("r1"))
        recommendations.insert(db, recommendation_row("r2", saving_per_month=-100.0))
        recommendations.insert(db, recommendation_row("r3", saving_per_month=None))
        recommendations.insert(db, recommendation_row("r4", state="rejected"))
        changes.add_ledger(db, [ledger_row("c1", at=T0 + 5), ledger_row("c2", inside=False, at=T0 + 6)])
        changes.add_ledger(
            db, [ledger_row("c3", inside=None, at=T0 + 7), ledger_row("c4", comparable=False, at=T0 + 8)]
        )
        changes.add_ledger(db, [ledger_row("c6", at=T0 - 1)])
    figures = summary(store, settings(tmp_path), start=T0, end=T0 + 600, now=T0 + 600)
    assert figures["saved"]["periods"] == 0
    assert figures["saved"]["saved_usd"] is None, "nothing is attested, which is no saving of 0"
    assert figures["saving_waiting_usd_per_month"] == pytest.approx(730.0)
    assert {k: v for k, v in figures["changes"].items() if v} == {"succeeded": 3, "rolled_back": 1, "failed": 1}
    assert (figures["promises"], figures["promises_held"], figures["open_recommendations"]) == (2, 1, 3)


def test_one_file_that_fetches_nothing(store: Store, tmp_path: Path) -> None:
    fill(store)
    path = weekly(store, settings(tmp_path), start=T0, end=T0 + HOUR, now=T0 + HOUR)
    assert path is not None
    html = path.read_text()
    fetched = re.findall(r"""(?:src|href|xlink:href|action|data)\s*=\s*["']([^"']+)""", html)
    assert [f for f in fetched if not f.startswith(("#", "data:"))] == []
    assert re.findall(r"""url\(\s*["']?(?!#)""", html) == []
    assert "@import" not in html
    assert "<script" not in html
    assert html.count("<svg") >= 4
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "charts share ids"
    assert list(tmp_path.glob("*.partial")) == []


def test_the_report_is_noted_once(store: Store, tmp_path: Path) -> None:
    fill(store)
    for _ in range(2):
        weekly(store, settings(tmp_path), start=T0, end=T0 + HOUR, now=T0 + HOUR)
    with store.read() as db:
        (row,) = outbox.reports(db)
        assert outbox.due(db, 1e12, limit=9)[1:] == []  # no Slack in the settings: nothing to send beside fill()'s own
    assert row["summary"] == summary(store, settings(tmp_path), start=T0, end=T0 + HOUR, now=T0 + HOUR)
    assert Path(row["path"]).exists()


def test_an_empty_database_makes_an_honest_report(store: Store, tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    assert weekly(store, chosen, start=T0, end=T0 + HOUR, now=T0 + HOUR, only_with_data=True) is None
    path = weekly(store, chosen, start=T0, end=T0 + HOUR, now=T0 + HOUR)
    assert path is not None
    html = path.read_text()
    assert "Nothing was observed." in html
    assert "Nothing was changed; nothing waits for a decision." in html
    figures = summary(store, chosen, start=T0, end=T0 + HOUR, now=T0 + HOUR)
    assert figures["spent_usd"] is None
    assert figures["endpoints"][0]["requests"] is None


# -- charts -------------------------------------------------------------------------------------------------------------


def _lines(svg: str) -> list[list[list[tuple[float, float]]]]:
    """Of each drawn line: its unbroken runs of points."""
    marks = re.findall(r'<g[^>]*class="mark-line[^>]*>(.*?)</g>', svg, re.DOTALL)
    paths = [d for group in marks for d in re.findall(r'\bd="([^"]*)"', group)]
    runs = []
    for path in paths:
        pieces = [p for p in path.split("M") if p]
        points = [[tuple(map(float, xy.split(","))) for xy in piece.split("L")] for piece in pieces]
        runs.append(points)
    return runs  # type: ignore[return-value]


def _series(coverage: list[float]) -> list[views.View]:
    return [views.point(window(T0 + 60 * i, coverage=c)) for i, c in enumerate(coverage) if c >= 0]


@pytest.mark.parametrize("missing", [0.0, -1.0], ids=["a noticed gap", "no window at all"])
def test_a_gap_breaks_the_line(missing: float) -> None:
    series = _series([1.0, 1.0, missing, missing, 1.0])
    for svg in (charts.latency(series, "ttft", 1.0, "TTFT"), charts.load(series)):
        lines = _lines(svg)
        assert len(lines) == 2  # p50 and p95; requests and waiting
        for runs in lines:
            assert len(runs) == 2, "the gap is bridged"
            (first, second) = runs
            assert second[0][0] > first[-1][0]
            assert second[-1][0] - second[0][0] == pytest.approx(
                (first[-1][0] - first[0][0]) / 2
            )  # one window, not two


def test_a_gap_is_not_zero() -> None:
    """2 requests a second on both sides of a gap: the line never goes down."""
    (requests, _) = _lines(charts.load(_series([1.0, 0.0, 1.0])))
    assert len({y for run in requests for _, y in run}) == 1


def test_charts_that_have_nothing_to_show() -> None:
    assert charts.front([], "ttft_p95_s", 1.0) is None
    assert charts.promises([]) is None
    assert "<svg" in charts.load(_series([0.0]))


def test_charts_show_text_as_text() -> None:
    options = [
        {
            "money": {"per_hour": 1.0},
            "prediction": {"metrics": {"ttft_p95_s": {"low": 0.1, "mid": 0.2, "high": 0.3}}},
            "label": "<script>alert(1)</script>",
            "verdict": verdict,
        }
        for verdict in ("chosen", "current", "MEETS")
    ]
    svg = charts.front(options, "ttft_p95_s", 1.0)
    assert svg is not None
    assert "<script" not in svg


def test_what_was_found_in_the_period_and_what_nobody_wants_to_hear_of(week: Store, tmp_path: Path) -> None:
    with week.write() as db:
        fleet.found(db, "chat", [finding(code="OLD_NEWS", text="before the week")], T0 - HOUR)
        fleet.found(db, "chat", [finding(), finding(code="QUEUE_WAITING", text="it queues")], T0 + HOUR)
        fleet.found(db, "chat", [finding()], T0 + 2 * HOUR)
        fleet.found(db, "gone", [finding("gone", text="of an endpoint that was taken out")], T0 + HOUR)
        mutes.mute(db, "chat", "LOW_OCCUPANCY", until=None, reason="kept <warm>", now=T0, by="cli:ann")
    path = weekly(week, settings(tmp_path), start=T0, end=T0 + 2 * HOUR, now=T0 + 2 * HOUR)
    assert path is not None
    html = path.read_text(encoding="utf-8")
    found = html[html.index("What was found") : html.index("How to read this")]
    assert "it queues" in found
    assert "suppressed: kept &lt;warm&gt;" in found
    assert "before the week" not in found
    assert "taken out" not in found
