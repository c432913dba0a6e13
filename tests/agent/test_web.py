"""The pages: each with its .json twin, decisions by form, and the locks on all of it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from agent.cases import guardrails_of
from agent.clock import VirtualClock
from agent.effective import MASK, effective
from agent.governor import Governor
from agent.report import weekly
from agent.settings import Settings
from agent.store import Store, audit, control, events, fleet, recommendations, schema, tunes, windows
from agent.tune.history import told
from agent.web import live
from agent.web.app import create_app
from agent.web.guard import SESSION
from collectors.http import Http
from collectors.sketch import Sketch
from tests.agent.records import NASTY, T0, fill, finding, plan, recommendation_row, shape_row, tune_of_two, window

NOW = T0 + 3600
PAGES = (
    "/",
    "/endpoints/chat",
    "/recommendations",
    "/recommendations/aaaa0001",
    "/changes",
    "/changes/cccc0002",
    "/tunes",
    "/tunes/dddd0002",
    "/savings",
    "/status",
    "/reports",
    "/whatif",
    "/settings",
    "/docs",
)
#: The one script that there is.
OUR_SCRIPT = '<script src="/static/live.js" defer></script>'
ENDPOINT = {
    "name": "chat",
    "url": "http://127.0.0.1:1",
    "mode": "approve",
    "actuator": {"system": "emulated"},
    "objective": {"ttft_p95_s": 1.0, "error_rate": 0.01},
}


class Browser:
    """Calls the application as a server would, keeps cookies, follows no redirect."""

    def __init__(self, app: FastAPI) -> None:
        self._transport = httpx.ASGITransport(app)
        self.cookies = httpx.Cookies()

    def get(self, path: str, **request: Any) -> httpx.Response:
        return asyncio.run(self._send("GET", path, request))

    def post(self, path: str, **request: Any) -> httpx.Response:
        return asyncio.run(self._send("POST", path, request))

    async def _send(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=self._transport, base_url="http://127.0.0.1", cookies=self.cookies
        ) as client:
            answer = await client.request(method, path, **request)
            self.cookies = client.cookies
            return answer


Make = Callable[..., tuple[Governor, Browser]]


@pytest.fixture(scope="module")
def filled_by(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A database with an hour of telemetry and all kinds of rows, by the text that stands in them."""

    @cache
    def filled(text: str) -> Path:
        path = tmp_path_factory.mktemp("filled") / "flyball.db"
        shutil.copy(sqlite_template, path)
        store = Store(f"sqlite:///{path}")
        fill(store, now=NOW, text=text)
        tune_of_two(store, "dddd0001", text=text)
        with store.write() as db:
            tunes.end(db, "dddd0001", state="done", now=NOW, by="cli:ann", result=told(db, "dddd0001"))
        tune_of_two(store, "dddd0002", now=NOW, text=text)
        store.close()  # the last connection folds the write-ahead log into the file
        return path

    return filled


@pytest.fixture
def made(tmp_path: Path, sqlite_template: Path, filled_by: Callable[[str], Path]) -> Iterator[Make]:
    """A governor over a database of its own, with a client; nothing runs behind it."""
    stores: list[Store] = []

    def make(
        *,
        filled: bool = True,
        text: str = "half of it idles",
        people: Sequence[Any] = (),
        approvers: Any = (),
        **web: Any,
    ) -> tuple[Governor, Browser]:
        path = tmp_path / f"flyball-{len(stores)}.db"
        shutil.copy(filled_by(text) if filled else sqlite_template, path)
        store = Store(f"sqlite:///{path}")
        stores.append(store)
        settings = Settings.model_validate(
            {
                "database": f"sqlite:///{path}",
                "state_dir": tmp_path / "state",
                "report": {"directory": tmp_path / "reports"},
                "endpoints": [ENDPOINT | ({"policy": {"approvers": approvers}} if approvers else {})],
                "people": people,
                "web": web,
            }
        )
        with store.write() as db:
            policy = guardrails_of(settings, ENDPOINT["name"]).hash
            db.execute(sa.update(schema.recommendations).values(policy_hash=policy))
        clock = VirtualClock(NOW)
        governor = Governor(settings, store, clock, holder="test:1", http=Http(monotonic=clock.monotonic))
        return governor, Browser(create_app(governor))

    yield make
    for store in stores:
        store.close()


def _twin(path: str) -> str:
    return "/index.json" if path == "/" else f"{path}.json"


# -- looking ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_every_page_and_its_twin(made: Make, path: str) -> None:
    governor, client = made()
    weekly(governor.store, governor.settings, start=T0, end=NOW, now=NOW)
    page = client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f'href="{_twin(path)}"' in page.text
    twin = client.get(_twin(path))
    assert twin.status_code == 200
    assert twin.json()["schema_version"] == 1


@pytest.mark.parametrize(
    "path", ["/", "/endpoints/chat", "/recommendations", "/changes", "/tunes", "/status", "/reports"]
)
def test_pages_of_an_empty_database(made: Make, path: str) -> None:
    _, client = made(filled=False)
    assert client.get(path).status_code == 200
    assert client.get(_twin(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/endpoints/nobody",
        "/recommendations/zzzz",
        "/changes/zzzz",
        "/changes/cccc",
        "/tunes/zzzz",
        "/reports/9/page",
        "/nowhere",
    ],
)
def test_what_is_not_there_is_404(made: Make, path: str) -> None:
    _, client = made()
    assert client.get(path).status_code == 404
    assert client.get(f"{path}.json").status_code == 404


def test_the_twin_says_what_the_page_shows(made: Make) -> None:
    _, client = made()
    (goal, errors) = client.get("/endpoints/chat.json").json()["endpoint"]["objective"]
    assert (goal["target"], goal["met"]) == ("ttft_p95_s", True)
    assert errors["observed"] == 0.0
    assert client.get("/changes/cccc0002.json").json()["change"]["state"] == "rolled_back"


def test_a_tune_is_shown_while_it_is_under_way_and_afterwards(made: Make) -> None:
    _, client = made()
    under_way, over = client.get("/tunes.json").json()["tunes"]
    assert (under_way["id"], under_way["state"], under_way["ended"]) == ("dddd0002", "running", "under way")
    assert (over["id"], over["state"]) == ("dddd0001", "done")
    assert (under_way["measured"], under_way["shapes"], under_way["recommended"]["carries_per_s"]) == (1, 2, 4.0)
    found = client.get("/tunes/dddd0002.json").json()["tune"]
    assert [t["state"] for t in found["trials"]] == ["done", "failed"]
    assert found["trials"][0]["cost_per_1k_output_tokens_usd"] == pytest.approx(3.6 / 3600 / (4.0 * 50) * 1000)
    page = client.get("/tunes/dddd0002").text
    assert "best so far" in page
    assert "proposes nothing on this endpoint" in page
    assert page.count("<svg") == 2, "what each carries, and latency over the rate"
    assert 'href="/tunes/dddd0002"' in client.get("/endpoints/chat").text


def test_a_gap_is_not_drawn_as_zero(made: Make) -> None:
    _, client = made()
    series = client.get("/endpoints/chat.json").json()["endpoint"]["series"]
    gaps = [p for p in series if p["coverage"] == 0]
    assert len(gaps) == 10
    assert all(p["requests_per_s"] is None and p["ttft_p95_s"] is None for p in gaps)


def test_advice_for_an_endpoint_that_was_taken_out_is_still_shown(made: Make) -> None:
    governor, client = made()
    with governor.store.write() as db:
        recommendations.insert(db, recommendation_row("bbbb0001", "gone", now=NOW))
    for path in ("/", "/recommendations", "/recommendations/bbbb0001"):
        assert client.get(path).status_code == 200
    assert 'value="approve"' not in client.get("/recommendations/bbbb0001").text


@pytest.mark.parametrize("path", PAGES)
def test_text_from_elsewhere_is_text(made: Make, path: str) -> None:
    """Model names, error texts, reasons and who paused: none of it may act on a page."""
    governor, client = made(text=NASTY)
    with governor.store.write() as db:
        control.pause(db, now=NOW, by=NASTY, reason=NASTY)
        fleet.saw_shape(db, "chat", shape_row(NOW, ready=False, detail=NASTY, shape={"size": NASTY, "replicas": 1}))
        fleet.freeze(db, "chat", reason=NASTY, now=NOW, by="flyball")
        source = {
            "endpoint": "chat", "source": NASTY, "last_ok_at": None, "last_error_at": NOW, "last_error": NASTY,
            "failures": 1, "failures_in_a_row": 1, "next_try_at": None,
        }  # fmt: skip
        fleet.source_health(db, [source])
    page = client.get(path).text
    assert NASTY not in page
    assert "<script" not in page.replace(OUR_SCRIPT, "")
    if path not in ("/whatif", "/settings", "/docs"):  # which show nothing of the store
        assert "&lt;script&gt;" in page


def test_a_report_is_served_as_it_was_written(made: Make, tmp_path: Path) -> None:
    governor, client = made()
    path = weekly(governor.store, governor.settings, start=T0, end=NOW, now=NOW)
    assert path is not None
    (row,) = client.get("/reports.json").json()["reports"]
    link = f"/reports/{row['id']}/page"
    assert link in client.get("/reports").text
    assert client.get(link).text == path.read_text()
    assert client.get(link).headers["content-security-policy"].startswith("default-src 'none'")
    path.unlink()
    assert client.get(link).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/reports/1e0/page", "/reports/..%2f..%2fetc%2fpasswd/page", "/reports/-1/page", f"/reports/{'9' * 23}/page"],
)
def test_only_reports_that_are_noted_are_served(made: Make, path: str) -> None:
    _, client = made()
    assert client.get(path).status_code in (404, 422)


# -- deciding -----------------------------------------------------------------------------------------------------------


def _state(governor: Governor) -> str:
    with governor.store.read() as db:
        return str((recommendations.get(db, "aaaa0001") or {})["state"])


def _form(client: Browser, **other: str) -> dict[str, str]:
    return {"action": "approve", "plan_hash": plan().hash, "csrf": _key(client, "/recommendations/aaaa0001")} | other


def _key(client: Browser, path: str) -> str:
    """What the forms of a page carry."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get(path).text)
    assert found is not None
    return found[1]


def test_now_is_what_was_observed_and_its_range(made: Make) -> None:
    _, client = made()
    page = client.get("/recommendations/aaaa0001").text
    assert "Now, observed: time to first token, p95: 250 ms to 500 ms" in page
    assert "TTFT p95, predicted" in page
    assert "250 ms to 500 ms" in client.get("/recommendations").text
    assert '<span class="tag good">met</span>' in client.get("/recommendations").text
    told = client.get("/recommendations/aaaa0001.json").json()["recommendation"]
    assert told["predicted_verdicts"] == {"ttft_p95_s": "met"}
    assert "250 ms to 500 ms" in client.get("/changes/cccc0001").text
    assert "held" in client.get("/changes/cccc0001").text


@pytest.mark.parametrize(("action", "state"), [("approve", "approved"), ("reject", "rejected"), ("snooze", "snoozed")])
def test_a_decision_by_form(made: Make, action: str, state: str) -> None:
    governor, client = made()
    answer = client.post("/recommendations/aaaa0001/decide", data=_form(client, action=action))
    assert (answer.status_code, answer.headers["location"]) == (303, "/recommendations/aaaa0001")
    assert _state(governor) == state
    with governor.store.read() as db:
        (decision,) = recommendations.decisions(db, "aaaa0001")
    assert (decision["channel"], decision["actor"], decision["accepted"]) == ("page", "page:127.0.0.1", True)


def test_a_second_press_is_refused_and_said(made: Make) -> None:
    governor, client = made()
    form = _form(client)
    assert client.post("/recommendations/aaaa0001/decide", data=form).status_code == 303
    again = client.post("/recommendations/aaaa0001/decide", data=form | {"action": "reject"})
    assert again.status_code == 409
    assert "it is approved already" in again.text
    assert _state(governor) == "approved"


def test_another_plan_than_the_one_shown_is_refused(made: Make) -> None:
    governor, client = made()
    answer = client.post("/recommendations/aaaa0001/decide", data=_form(client, plan_hash="sha256:other"))
    assert answer.status_code == 409
    assert "the plan has changed since" in answer.text
    assert _state(governor) == "proposed"


@pytest.mark.parametrize("csrf", [None, "", "wrong", "ä"])
def test_a_form_from_elsewhere_is_refused(made: Make, csrf: str | None) -> None:
    governor, client = made()
    form = _form(client)
    form = {k: v for k, v in form.items() if k != "csrf"} | ({} if csrf is None else {"csrf": csrf})
    assert client.post("/recommendations/aaaa0001/decide", data=form).status_code == 403
    assert _state(governor) == "proposed"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://other.localhost"},
        {"origin": "http://localhost:1"},
        {"origin": "null"},
    ],
)
def test_a_form_that_another_site_sent_is_refused(made: Make, headers: dict[str, str]) -> None:
    governor, client = made()
    answer = client.post("/recommendations/aaaa0001/decide", data=_form(client), headers=headers)
    assert answer.status_code == 403
    assert _state(governor) == "proposed"


def test_a_cookie_that_a_sibling_name_set_opens_nothing(made: Make) -> None:
    """Over plain HTTP a browser sends no Sec-Fetch-Site, and a page of a sibling name may set cookies for ours."""
    governor, client = made()
    form = _form(client) | {"csrf": "x"}
    for name in ("flyball_csrf", SESSION):
        answer = client.post(
            "/recommendations/aaaa0001/decide", data=form, headers={"cookie": f"{name}=x", "origin": "http://localhost"}
        )
        assert answer.status_code == 403
    assert _state(governor) == "proposed"


def test_an_unknown_action_is_refused(made: Make) -> None:
    governor, client = made()
    assert client.post("/recommendations/aaaa0001/decide", data=_form(client, action="apply")).status_code == 403
    assert _state(governor) == "proposed"


def test_get_never_changes_anything(made: Make) -> None:
    _, client = made()
    before = client.get("/recommendations/aaaa0001.json").json()
    assert client.get("/recommendations/aaaa0001/decide", params=_form(client)).status_code == 405
    for path in PAGES:
        client.get(path, params={"action": "approve"})
    assert client.get("/recommendations/aaaa0001.json").json() == before


# -- locks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/index.json", "/healthz", "/nowhere", "/static/style.css"])
def test_every_answer_binds_the_browser(made: Make, path: str) -> None:
    _, client = made()
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self';" in policy  # no inline script, and none from elsewhere
    assert "connect-src 'self';" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(made: Make) -> None:
    _, client = made(token=TOKEN)
    cookie = client.post("/login", data={"token": TOKEN}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_other_host_names_are_refused(made: Make) -> None:
    """DNS rebinding: a name of somebody else's that leads to this address."""
    _, client = made(public_url="https://fly.example.org")
    for host in ("evil.example.com", "evil.example.com:8321", "", "127.0.0.1.evil.com", "[::1"):
        answer = client.get("/", headers={"host": host})
        assert answer.status_code == 421, host
        assert "content-security-policy" in answer.headers
    for host in ("127.0.0.1:8321", "localhost", "[::1]:8321", "fly.example.org"):
        assert client.get("/", headers={"host": host}).status_code == 200, host
    assert client.get("/healthz", headers={"host": "10.0.0.7"}).status_code == 200  # a load balancer's probe


TOKEN = "correct-horse"


def test_a_token_is_asked_for(made: Make) -> None:
    _, client = made(token=TOKEN)
    for path in (*PAGES, "/index.json", "/metrics", "/openapi.json", "/reports/1/page"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer ä".encode()}).status_code == 401
    assert client.post("/recommendations/aaaa0001/decide", data={"csrf": "x"}).status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_is_sent_to_the_login_and_back(made: Make) -> None:
    _, client = made(token=TOKEN)
    answer = client.get("/changes", headers={"accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?to=/changes")
    assert 'value="/changes"' in client.get(answer.headers["location"]).text
    wrong = client.post("/login", data={"token": "wrong", "to": "/changes"})
    assert wrong.status_code == 401
    assert SESSION not in client.cookies
    right = client.post("/login", data={"token": TOKEN, "to": "/changes"})
    assert (right.status_code, right.headers["location"]) == (303, "/changes")
    assert TOKEN not in right.headers["set-cookie"]
    assert client.get("/changes").status_code == 200


def test_sessions_end_when_the_token_changes(made: Make) -> None:
    _, client = made(token=TOKEN)
    client.post("/login", data={"token": TOKEN})
    _, other = made(token="another")
    for value in (client.cookies[SESSION], "", "ä"):
        assert other.get("/", headers={"cookie": f"{SESSION}={value}".encode()}).status_code == 401


def test_after_some_wrong_tokens_none_is_looked_at_for_a_minute(made: Make) -> None:
    governor, client = made(token=TOKEN)
    wrong = [client.post("/login", data={"token": f"guess {i}"}).status_code for i in range(8)]
    assert wrong == [401] * 5 + [429] * 3
    assert client.post("/login", data={"token": TOKEN}).status_code == 429, "the right one is not told from a wrong one"
    assert isinstance(governor.clock, VirtualClock)
    asyncio.run(governor.clock.advance(61.0))
    assert client.post("/login", data={"token": TOKEN}).status_code == 303


PEOPLE = [{"name": "ada", "token": "ada's own long token"}, {"name": "bob.b", "token": "bob's own long token"}]


def test_each_person_logs_in_and_decides_by_name(made: Make) -> None:
    governor, client = made(people=PEOPLE, approvers=["bob.b"])
    assert client.get("/status.json").status_code == 401, "whoever has a login is asked for it"
    for token, status in (("ada's own long token", 409), ("bob's own long token", 303)):
        assert client.post("/login", data={"token": token}).status_code == 303
        assert client.post("/recommendations/aaaa0001/decide", data=_form(client)).status_code == status
    with governor.store.read() as db:
        decided = [(d["actor"], d["reason"]) for d in recommendations.decisions(db, "aaaa0001")]
    assert decided == [("ada", "not_allowed"), ("bob.b", "accepted")]


def test_nobody_takes_another_ones_login(made: Make) -> None:
    _, client = made(people=PEOPLE, token=TOKEN)
    client.post("/login", data={"token": TOKEN})
    ends, _, signed = client.cookies[SESSION].partition("..")
    for who in ("ada", "bob.b", "nobody"):
        forged = client.get("/status.json", headers={"cookie": f"{SESSION}={ends}.{who}.{signed}"})
        assert forged.status_code == 401


def test_a_login_ends_after_a_day_and_by_hand(made: Make) -> None:
    governor, client = made(token=TOKEN)
    client.post("/login", data={"token": TOKEN})
    assert client.get("/changes").status_code == 200
    value = client.cookies[SESSION]
    ends, _, _ = value.partition(".")
    longer = value.replace(ends, str(int(ends) + 1), 1)
    assert client.get("/", headers={"cookie": f"{SESSION}={longer}"}).status_code == 401, "it is signed"
    left = client.post("/logout", data={"csrf": _key(client, "/recommendations/aaaa0001")})
    assert (left.status_code, left.headers["location"]) == (303, "/login")
    client.post("/login", data={"token": TOKEN})
    assert isinstance(governor.clock, VirtualClock)
    asyncio.run(governor.clock.advance(86_401.0))
    assert client.get("/changes").status_code == 401


def test_a_path_that_the_host_header_would_make_of_it_opens_nothing(made: Make) -> None:
    _, client = made(token=TOKEN)
    assert client.get("/status.json", headers={"host": "127.0.0.1/healthz?"}).status_code in (401, 421)


@pytest.mark.parametrize(
    "to", ["//evil.com", "https://evil.com", "/\\evil.com", "/\t/evil.com", "/\n/evil.com", "evil.com", ""]
)
def test_the_login_leads_nowhere_else(made: Make, to: str) -> None:
    _, client = made(token=TOKEN)
    assert client.post("/login", data={"token": TOKEN, "to": to}).headers["location"] == "/"


def test_the_login_page_shows_text_as_text(made: Make) -> None:
    _, client = made(token=TOKEN)
    assert NASTY not in client.get("/login", params={"to": f'"{NASTY}'}).text


# -- health -------------------------------------------------------------------------------------------------------------


def test_healthz_tells_when_a_loop_stalls(made: Make) -> None:
    governor, client = made()
    clock = governor.clock
    assert isinstance(clock, VirtualClock)
    for loop in governor.loops:
        loop.status.last_ok_at = clock.now()
    assert client.get("/healthz").status_code == 200
    stalled = next(loop for loop in governor.loops if loop.name == "act")
    clock.set(clock.now() + 3600)
    for loop in governor.loops:
        if loop is not stalled:
            loop.status.last_ok_at = clock.now()
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json() == {"ok": False, "loops": {"act": "has not ended a cycle lately"}}


def test_readyz_waits_for_the_first_cycles(made: Make) -> None:
    governor, client = made()
    assert client.get("/readyz").status_code == 503
    for loop in governor.loops:
        loop.status.last_ok_at = governor.clock.now()
    assert client.get("/readyz").json() == {"ready": True, "leading": False}


def test_a_loops_unexpected_error_is_counted_and_shown(made: Make) -> None:
    governor, client = made()

    async def broken() -> None:
        raise ZeroDivisionError("once")

    loop = governor.loops[0]
    loop._cycle = broken
    assert asyncio.run(loop.once()) is False
    assert client.get("/healthz").json()["loops"] == {loop.name: "ZeroDivisionError: once"}
    families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
    (sample,) = [s for s in families["flyball_cycle_errors"].samples if s.name.endswith("_total")]
    assert (sample.labels, sample.value) == ({"loop": loop.name, "error": "ZeroDivisionError"}, 1.0)


def test_metrics_are_prometheus_text(made: Make) -> None:
    _, client = made()
    client.post("/recommendations/aaaa0001/decide", data=_form(client))
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    assert all(name.startswith("flyball_") for name in families)
    ruled = [s for s in families["flyball_rulings"].samples if s.name == "flyball_rulings_total"]
    assert [(s.labels["channel"], s.labels["code"], s.value) for s in ruled] == [("page", "accepted", 1.0)]


def test_the_api_describes_itself(made: Make) -> None:
    _, client = made()
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/healthz", "/metrics", "/slack/actions", "/status.json"} <= set(paths)
    assert json.dumps(paths)


# -- how an endpoint stands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("span", "days", "width_s"), [("day", 1, 300.0), ("week", 7, 3600.0), ("month", 30, 3600.0)])
def test_an_endpoints_charts_look_back_as_far_as_is_asked(made: Make, span: str, days: int, width_s: float) -> None:
    governor, client = made(filled=False)
    with governor.store.write() as db:
        fleet.saw_shape(db, "chat", shape_row(NOW))
        for width in (300.0, 3600.0):
            kept = int(min(days, 2 if width == 300.0 else 30) * 86_400 / width)
            begin = NOW // 3600 * 3600 - kept * width
            windows.save(db, [window(begin + i * width, duration_s=width) for i in range(kept)])
    found = client.get(f"/endpoints/chat.json?span={span}").json()["endpoint"]
    assert found["span"] == span
    assert found["series"][0]["start"] >= NOW - days * 86_400
    assert found["series"][-1]["start"] - found["series"][0]["start"] > 0.9 * days * 86_400 - 7200
    assert width_s in {point["duration_s"] for point in found["series"]}
    page = client.get(f"/endpoints/chat?span={span}").text
    assert f"<b>a {span}</b>" in page
    assert page.count("<svg") == 3, "load, KV cache, time to first token"
    assert client.get("/endpoints/chat.json?span=century").json()["endpoint"]["span"] == ""


def test_a_pause_and_a_thaw_by_clicks(made: Make) -> None:
    governor, client = made()
    key = _key(client, "/status")
    assert client.post("/pause", data={"action": "pause", "reason": " ", "csrf": key}).status_code == 422
    assert client.post("/pause", data={"action": "pause", "reason": "fire drill", "csrf": "x"}).status_code == 403
    assert client.post("/pause", data={"action": "stop", "csrf": key}).status_code == 403
    assert client.post("/pause", data={"action": "pause", "reason": "fire <drill>", "csrf": key}).status_code == 303
    assert "fire &lt;drill&gt;" in client.get("/status").text
    with governor.store.read() as db:
        paused = control.paused(db)
    assert paused is not None
    assert paused["by"] == "page:127.0.0.1"
    assert client.post("/pause", data={"action": "resume", "csrf": key}).status_code == 303
    assert client.get("/status.json").json()["paused"] is None
    with governor.store.write() as db:
        fleet.freeze(db, "chat", reason="rolled back", now=NOW, by="flyball")
    assert "unfreeze" in client.get("/endpoints/chat").text
    assert client.post("/endpoints/chat/unfreeze", data={"csrf": "x"}).status_code == 403
    assert client.get("/endpoints/chat/unfreeze").status_code == 405
    assert client.post("/endpoints/chat/unfreeze", data={"csrf": key}).headers["location"] == "/endpoints/chat"
    assert client.get("/endpoints/chat.json").json()["endpoint"]["frozen"] is None
    assert client.post("/endpoints/chat/unfreeze", data={"csrf": key}).status_code == 404
    with governor.store.read() as db:
        done = [(e["action"], e["actor"]) for e in audit.entries(db)]
    assert [a for a, who in done if who == "page:127.0.0.1"][:3] == ["unfreeze", "resume", "pause"]


@pytest.mark.parametrize("path", ["/nowhere", "/endpoints/nobody", "/recommendations/none"])
def test_what_is_not_there_is_a_page_for_people_and_json_for_programs(made: Make, path: str) -> None:
    _, client = made()
    page = client.get(path, headers={"accept": "text/html,*/*"})
    assert page.status_code == 404
    assert "<h1>Not done</h1>" in page.text
    assert 'href="/"' in page.text
    program = client.get(path, headers={"accept": "application/json"})
    assert (program.status_code, list(program.json())) == (404, ["detail"])


def _between(page: str, begin: str, end: str) -> str:
    """The words of the first part of a page from ``begin`` to ``end``."""
    return " ".join(re.sub("<[^>]*>", " ", begin + page.partition(begin)[2].partition(end)[0]).split())


@pytest.mark.parametrize("path", ["/", "/endpoints/chat"])
def test_how_it_stands_and_why_is_one_line_of_its_own(made: Make, path: str) -> None:
    governor, client = made()
    assert "not judged yet" in client.get(path).text
    text = "10 min of 1 h were seen; a smaller shape may be proposed from 23:19"
    body = {
        "at": NOW,
        "state": "too_large",
        "text": text,
        "reasons": [{"code": "HELD_BACK", "text": "", "numbers": {}}],
    }
    with governor.store.write() as db:
        fleet.decided(db, "chat", body)
    page = client.get(path).text
    assert "not judged yet" not in page
    at = datetime.fromtimestamp(NOW, UTC).strftime("%H:%M UTC")
    assert _between(page, "<b>too large</b>", "</p>") == f"too large : {text} ({at})"
    with governor.store.write() as db:
        fleet.decided(db, "chat", body | {"state": "fine", "text": ""})
    assert _between(client.get(path).text, "<b>fine</b>", "</p>") == f"fine ({at})"


@pytest.mark.parametrize(
    ("edges", "counts", "said", "verdict"),
    [
        ((0.25, 0.5, 1.0), (90, 10, 0, 0), "250 ms to 500 ms", "met"),
        ((0.25, 0.5, 2.0), (50, 0, 50, 0), "500 ms to 2 s", "not known"),  # the limit, 1 s, lies in the bucket
        ((0.25, 1.0, 2.0), (50, 0, 50, 0), "1 s to 2 s", "missed"),
        ((0.25, 0.5), (50, 0, 50), "at least 500 ms", "not known"),  # beyond the last bucket
    ],
)
def test_a_percentile_that_is_a_range_is_shown_as_one(
    made: Make, edges: tuple[float, ...], counts: tuple[int, ...], said: str, verdict: str
) -> None:
    governor, client = made(filled=False)
    middles = [(low + high) / 2 for low, high in pairwise((0.0, *edges, 2 * edges[-1]))]
    total_s = sum(n * middle for n, middle in zip(counts, middles, strict=True))
    coarse = {"ttft_s": Sketch.from_histogram(edges, counts, total_s)}
    rows = [replace(window(T0 + 60 * i), sketches=coarse) for i in range(60)]
    with governor.store.write() as db:
        windows.save(db, rows)
        fleet.saw_shape(db, "chat", shape_row(NOW))
    for path in ("/", "/endpoints/chat"):
        row = _between(client.get(path).text, 'title="ttft_p95_s">', "</tr>")
        assert f"time to first token, p95 {said} 1 s" in row, path
        assert row.endswith(verdict), path
    made_at = weekly(governor.store, governor.settings, start=T0, end=NOW, now=NOW)
    assert made_at is not None
    row = _between(made_at.read_text(), 'title="ttft_p95_s">', "</tr>")
    assert f"{said} 1 s {verdict}" in row, "the report says the same"


@pytest.mark.parametrize("path", ["/", "/endpoints/chat"])
def test_what_contradicts_itself_stands_there_with_its_weight(made: Make, path: str) -> None:
    governor, client = made()
    found = [
        finding(
            code="SETTINGS_CONTRADICT",
            text="19 run: is max_num_seqs really 16?",
            kind="contradiction",
            severity="warning",
        ),
        finding(
            code="ENGINE_STUCK",
            text="12 requests run, and no token has come out",
            kind="contradiction",
            severity="critical",
        ),
    ]
    with governor.store.write() as db:
        fleet.found(db, "chat", found, NOW)
    page = client.get(path).text
    assert '<span class="tag warn">SETTINGS_CONTRADICT</span> 19 run: is max_num_seqs really 16?' in page
    assert '<span class="tag bad">ENGINE_STUCK</span> 12 requests run, and no token has come out' in page
    twin = client.get(_twin(path)).json()
    told = twin["endpoints"][0] if "endpoints" in twin else twin["endpoint"]
    assert {f["code"] for f in told["findings"]} == {"SETTINGS_CONTRADICT", "ENGINE_STUCK"}


# -- findings that nobody wants to be told of ---------------------------------------------------------------------------


def _mute_form(client: Browser, action: str, **other: str) -> dict[str, str]:
    return {"action": action, "csrf": _key(client, "/endpoints/chat")} | other


def _finding(client: Browser) -> dict[str, Any]:
    (found,) = client.get("/endpoints/chat.json").json()["endpoint"]["findings"]
    return dict(found)


def test_a_finding_is_suppressed_snoozed_and_resumed_on_the_page(made: Make) -> None:
    governor, client = made()
    path = "/endpoints/chat/findings/LOW_OCCUPANCY"
    assert _finding(client)["muted"] is None
    answer = client.post(path, data=_mute_form(client, "suppress", reason="it is a <b>spare</b>"))
    assert (answer.status_code, answer.headers["location"]) == (303, "/endpoints/chat")
    muted = _finding(client)["muted"]
    assert (muted["how"], muted["until"], muted["by"]) == ("suppressed", None, "page:127.0.0.1")
    page = client.get("/endpoints/chat").text
    assert "suppressed by page:127.0.0.1: it is a &lt;b&gt;spare&lt;/b&gt;" in page
    assert "LOW_OCCUPANCY" in page
    client.post(path, data=_mute_form(client, "snooze"))
    assert _finding(client)["muted"]["until"] == NOW + 86_400
    client.post(path, data=_mute_form(client, "resume"))
    assert _finding(client)["muted"] is None
    with governor.store.read() as db:
        did = [row["action"] for row in audit.entries(db, "chat") if row["action"].endswith("_finding")]
    assert did == ["resume_finding", "snooze_finding", "suppress_finding"]


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/endpoints/chat/findings/LOW_OCCUPANCY", {"action": "suppress", "reason": "no", "csrf": "wrong"}, 403),
        ("/endpoints/chat/findings/LOW_OCCUPANCY", {"action": "forget"}, 403),
        ("/endpoints/chat/findings/LOW_OCCUPANCY", {"action": "suppress", "reason": " "}, 422),
        ("/endpoints/chat/findings/NEVER_FOUND", {"action": "snooze"}, 404),
        ("/endpoints/other/findings/LOW_OCCUPANCY", {"action": "snooze"}, 404),
    ],
)
def test_what_must_not_be_muted_is_not(made: Make, path: str, form: dict[str, str], status: int) -> None:
    _, client = made()
    assert client.post(path, data=_mute_form(client, **form)).status_code == status
    assert _finding(client)["muted"] is None


def test_what_happened_is_told_newest_first(made: Make) -> None:
    governor, client = made()
    with governor.store.write() as db:
        events.add(db, "chat", at=NOW - 300, kind="engine", text="engine_version <0.9> → 0.10", body={})
        events.add(db, "chat", at=NOW - 900, kind="engine", text="", body={})
    told = client.get("/endpoints/chat.json").json()["endpoint"]["events"]
    assert told[0] == {"at": NOW - 300, "text": "engine_version <0.9> → 0.10"}
    assert [e["text"].split(":")[0] for e in told[1:]] == ["Flyball's change cccc0002", "Flyball's change cccc0001"]
    page = client.get("/endpoints/chat").text
    assert "engine_version &lt;0.9&gt; → 0.10" in page


# -- what if, settings, programs, and live updates ------------------------------------------------------------------------


def test_the_playground_answers_for_an_endpoint_as_the_command_does(made: Make) -> None:
    _, client = made()
    asked = client.get("/whatif.json?endpoint=chat&replicas=3&times=1.5").json()
    answer = asked["answer"]
    assert asked["form"]["names"] == ["chat"]
    if answer["refused"] is None:
        assert [c["candidate"] for c in answer["candidates"]] == ["present", "replicas=3"]
    else:
        assert answer["refused"], "why there is none"
    page = client.get("/whatif?endpoint=chat&replicas=3").text
    assert "as now" in page or "No answer" in page


@pytest.mark.parametrize(
    ("query", "status", "why"),
    [
        ("endpoint=caht", 200, "chat"),
        ("endpoint=chat&changes=no_such_argument=3", 200, "no_such_argument"),
        ("endpoint=chat&replicas=many", 200, "replicas"),
        ("endpoint=chat&times=1e9", 422, "times"),
        ("endpoint=chat&times=nan", 422, "times"),
    ],
)
def test_what_cannot_be_asked_of_the_playground_is_said(made: Make, query: str, status: int, why: str) -> None:
    _, client = made()
    answer = client.get(f"/whatif.json?{query}")
    assert answer.status_code == status
    assert why in (answer.text if status == 422 else answer.json()["answer"]["refused"])


def test_settings_are_shown_without_a_secret(made: Make) -> None:
    governor, client = made(token=TOKEN)
    governor.referred = frozenset({"http://127.0.0.1:1"})  # as if the endpoint's address had come from a reference
    client.post("/login", data={"token": TOKEN})
    told = client.get("/settings.json").json()
    assert TOKEN not in json.dumps(told)
    assert told["settings"]["web"]["token"] == MASK
    assert told["settings"]["endpoints"][0]["url"] == MASK
    page = client.get("/settings").text
    assert TOKEN not in page
    assert "collect.interval_s" in page


def test_options_of_plugins_are_shown_only_where_they_are_declared_and_no_secrets() -> None:
    sources = {
        "prometheus": {"url": "http://p", "token": "canary-1", "unheard_of": "canary-2"},
        "no-such": {"a": "canary-3"},
    }
    stated = {**ENDPOINT, "sources": sources}
    told = effective(Settings(database="postgresql+psycopg://me:canary-4@h/d", endpoints=[stated]), ())
    assert "canary" not in json.dumps(told)
    assert told["settings"]["endpoints"][0]["sources"]["prometheus"]["url"] == "http://p"


def test_each_route_is_told_to_programs(made: Make) -> None:
    _, client = made()
    page = client.get("/docs").text
    paths = client.get("/openapi.json").json()["paths"]
    assert len(paths) > 20
    assert all(f"<code>{path}</code>" in page for path in paths)


def test_a_stream_says_when_there_is_something_new(tmp_path: Path, sqlite_template: Path) -> None:
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    clock = VirtualClock(NOW)

    async def listen() -> list[str]:
        events = live.Pulse(store, clock).events()
        heard = [await anext(events)]
        for _ in range(2):
            waits = asyncio.ensure_future(anext(events))
            while not waits.done():
                await clock.advance(live.LOOK_S)
                await asyncio.sleep(0.001)  # the look is in a thread
            heard.append(waits.result())
            if len(heard) == 2:
                fill(store, now=NOW)
        await events.aclose()
        return heard

    heard = asyncio.run(listen())
    store.close()
    assert heard == ["retry: 3000\n\n", ": nothing new\n\n", "data: changed\n\n"]


def test_no_more_listen_than_there_is_room_for(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_STREAMS", 0)
    _, client = made()
    assert client.get("/events").status_code == 503
