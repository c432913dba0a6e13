"""What comes back from Slack: each line of the approval checklist that a click can meet, up to the HTTP route."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import logs
from agent.governor import Governor
from agent.slack.receive import MAX_BODY, MOST_STRANGE, ClickError, allowed_url
from agent.store import Store, audit, recommendations
from tests.agent.records import T0, plan
from tests.agent.slack import (
    ADA,
    BOB,
    OLD_SECRET,
    SECRET,
    WEBHOOK,
    form,
    governor,
    payload,
    post,
    propose,
    signed,
    state,
    tokens,
)


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Iterator[Governor]:
    with governor(store, tmp_path) as one:
        yield one


def _refused(made: Governor, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    with pytest.raises(ClickError) as caught:
        made.receiver.click(headers, body)
    return caught.value.status, caught.value.code


def _click(made: Governor, token: str, action: str = "approve", **changed: Any) -> str:
    body = form(payload(token, action, **changed))
    return made.receiver.click(signed(body, at=made.clock.now()), body).ruling.code


# -- is it really Slack ------------------------------------------------------------------------------------------------


def test_slacks_published_example_is_genuine_and_any_other_byte_is_not(store: Store, tmp_path: Path) -> None:
    """The vector of Slack's page "Verifying requests from Slack". It is a slash command: genuine, but no click."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    headers = {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    with governor(store, tmp_path, signing_secret="8f742231b10e8888abcd99yyyzzz85a5") as made:
        made.clock.set(1531420618.0)  # type: ignore[attr-defined]
        assert _refused(made, headers, body) == (400, "malformed")
        assert _refused(made, headers, body.replace(b"foobar", b"foobaz")) == (401, "bad_signature")


def test_a_genuine_click_approves_once(made: Governor, store: Store) -> None:
    propose(store)
    button = tokens(made)
    assert _click(made, button["approve"]) == "accepted"
    assert state(store) == "approved"
    made.clock.set(T0 + 1)  # type: ignore[attr-defined]
    assert _click(made, button["approve"]) == "used"
    assert _click(made, button["reject"], "reject") == "decided"


def test_the_same_request_is_taken_once(made: Governor, store: Store) -> None:
    propose(store)
    body = form(payload("not-a-token"))
    headers = signed(body)
    assert made.receiver.click(headers, body).ruling.code == "bad_token"
    assert _refused(made, headers, body) == (401, "replayed")
    for later in (299.0, 300.0):
        made.clock.set(T0 + later)  # type: ignore[attr-defined]
        assert _refused(made, headers, body) == (401, "replayed")


@pytest.mark.parametrize("off", [-301.0, 301.0, 3600.0])
def test_a_stamp_outside_of_five_minutes_is_stale(off: float, made: Governor, store: Store) -> None:
    propose(store)
    body = form(payload(tokens(made)["approve"]))
    assert _refused(made, signed(body, at=T0 + off), body) == (401, "stale")
    assert state(store) == "proposed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-slack-request-timestamp", ""),
        ("x-slack-request-timestamp", "soon"),
        ("x-slack-request-timestamp", "-5"),
        ("x-slack-request-timestamp", "1e9"),
        ("x-slack-request-timestamp", "²³"),
        ("x-slack-request-timestamp", "9" * 5000),
        ("x-slack-signature", ""),
        ("x-slack-signature", "v0="),
        ("x-slack-signature", "v0=é"),
        ("x-slack-signature", "v1=" + "0" * 64),
        ("x-slack-signature", "x" * 10_000),
    ],
)
def test_a_malformed_header_is_a_401(name: str, value: str, made: Governor) -> None:
    body = form(payload("x"))
    status, _ = _refused(made, signed(body) | {name: value}, body)
    assert status == 401


@pytest.mark.parametrize("missing", ["x-slack-request-timestamp", "x-slack-signature"])
def test_a_missing_header_is_a_401(missing: str, made: Governor) -> None:
    body = form(payload("x"))
    headers = {k: v for k, v in signed(body).items() if k != missing}
    assert _refused(made, headers, body)[0] == 401


def test_another_secret_is_refused_and_two_are_accepted_while_it_is_rotated(store: Store, tmp_path: Path) -> None:
    propose(store)
    body = form(payload("x"))
    with governor(store, tmp_path) as made:
        assert _refused(made, signed(body, secret=OLD_SECRET), body) == (401, "bad_signature")
    with governor(store, tmp_path, previous_signing_secret=OLD_SECRET) as made:
        for secret in (OLD_SECRET, SECRET):
            assert made.receiver.click(signed(body, secret=secret), body).ruling.code == "bad_token"


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"payload",
        b"payload=",
        b"payload={",
        b"payload=[]",
        b"payload=null",
        b"payload=" + b"[" * 50_000,
        b"payload=" + b"9" * 6000,
        b"other=1",
        b"&".join([b"a=1"] * 11) + b"&payload={}",
        form({"type": "view_submission"}),
        form(payload("x", actions=[])),
        form(payload("x", actions={"a": 1})),
        form(payload("x", actions=[1])),
        form(payload("x", actions=payload("x")["actions"] * 2)),
        form(payload("x", action="delete")),
        form(payload("")),
        form(payload("x") | {"user": {"id": 7}}),
        form(payload("x") | {"user": "U0ADA"}),
        form(payload("x") | {"user": {"id": "U0\x00ADA"}}),
        form(payload("x") | {"user": {"id": "\ud800"}}),
        form(payload("\ud800")),
    ],
)  # fmt: skip
def test_a_genuine_request_that_is_no_click_is_a_400(body: bytes, made: Governor) -> None:
    assert _refused(made, signed(body), body) == (400, "malformed")


def test_a_body_that_is_no_text_is_a_401(made: Governor) -> None:
    body = b"payload=\xff\xfe"
    assert _refused(made, signed(body), body) == (401, "bad_signature")


def test_a_body_above_64_kib_is_refused_before_it_is_verified(made: Governor) -> None:
    body = b"payload=" + b"x" * MAX_BODY
    assert _refused(made, signed(body), body) == (413, "too_large")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.dictionaries(
        st.sampled_from(["type", "user", "team", "channel", "api_app_id", "actions", "response_url", "container"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("http://["),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["id", "value", "action_id"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_whatever_is_signed_is_refused_or_ruled_on(content: dict[str, Any], made: Governor) -> None:
    """Never an error of ours."""
    body = form(payload("x") | content)
    headers = signed(body)
    try:
        code = made.receiver.click(headers, body).ruling.code
    except ClickError as refused:
        code = refused.code
    assert code in ("malformed", "replayed", "bad_token")


# -- who, and from where -----------------------------------------------------------------------------------------------


def test_only_listed_user_ids_decide_and_the_refusal_is_kept(made: Governor, store: Store) -> None:
    propose(store)
    button = tokens(made)
    assert _click(made, button["approve"], user=BOB) == "not_allowed"
    assert _click(made, button["approve"], user="ADA") == "not_allowed"
    assert state(store) == "proposed"
    with store.read() as db:
        attempts = recommendations.decisions(db, "aaaa0001")
        assert [(a["actor"], a["accepted"], a["reason"]) for a in attempts] == [
            (f"slack:{BOB}", False, "not_allowed"),
            ("slack:ADA", False, "not_allowed"),
        ]
        assert audit.verify(db) is None
        assert [e["actor"] for e in audit.entries(db, "aaaa0001") if e["action"] == "approve"] == [
            "slack:ADA",
            f"slack:{BOB}",
        ]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"api_app_id": "A0OTHER"}, "wrong_app"),
        ({"team": {"id": "T0OTHER"}}, "wrong_team"),
        ({"team": None}, "wrong_team"),
        ({"user": {"id": ADA, "team_id": "T0OTHER"}}, "wrong_team"),
        ({"user": {"id": ADA}}, "wrong_team"),
        ({"container": {"message_ts": "1.2", "channel_id": "C0OTHER"}}, "wrong_channel"),
        ({"channel": {"id": "C0OTHER"}}, "wrong_channel"),
        ({"channel": "C0CHAN"}, "wrong_channel"),
    ],
)
def test_a_click_from_elsewhere_is_a_403(changed: dict[str, Any], code: str, store: Store, tmp_path: Path) -> None:
    propose(store)
    with governor(store, tmp_path, app_id="A0APP", team_id="T0TEAM", channel_id="C0CHAN") as made:
        button = tokens(made)
        body = form(payload(button["approve"]) | changed)
        assert _refused(made, signed(body), body) == (403, code)
        assert state(store) == "proposed"
        with store.read() as db:
            row = audit.entries(db)[0]
        assert (row["action"], row["subject"], row["actor"]) == ("click_refused", code, f"slack:{ADA}")
        assert _click(made, button["approve"]) == "accepted"


def test_what_is_not_slacks_is_written_down_but_cannot_fill_the_audit(store: Store, tmp_path: Path) -> None:
    propose(store)
    with governor(store, tmp_path) as made:
        body = form(payload(tokens(made)["approve"]))
        for _ in range(MOST_STRANGE + 20):
            assert _refused(made, signed(body, secret="another"), body) == (401, "bad_signature")
        with store.read() as db:
            kept = [e for e in audit.entries(db) if e["action"] == "click_refused"]
            assert audit.verify(db) is None
        assert [(e["actor"], e["subject"]) for e in kept] == [("slack:unknown", "bad_signature")] * MOST_STRANGE


@pytest.mark.parametrize("lacking", [{"signing_secret": None}, {"approvers": []}])
def test_fails_closed(lacking: dict[str, Any], store: Store, tmp_path: Path) -> None:
    propose(store)
    with governor(store, tmp_path, **lacking) as made:
        body = form(payload(tokens(made)["approve"]))
        assert _refused(made, signed(body), body) == (403, "not_configured")
        assert _refused(made, signed(body, secret=""), body) == (403, "not_configured")
        assert state(store) == "proposed"


# -- what is decided ---------------------------------------------------------------------------------------------------


def test_a_button_of_an_older_revision_is_superseded(made: Governor, store: Store) -> None:
    row = propose(store)
    old = tokens(made)
    other = plan(version="v2")
    with store.write() as db:
        assert recommendations.refresh(
            db, row["id"], revision=1, now=T0, values={"plan_hash": other.hash, "plan": other.as_dict()}
        )
    new = tokens(made)
    assert _click(made, old["approve"]) == "superseded"
    assert _click(made, old["reject"], "reject") == "superseded"
    assert _click(made, new["approve"]) == "accepted"


def test_the_same_plan_at_another_revision_is_superseded_too(made: Governor, store: Store) -> None:
    row = propose(store)
    old = tokens(made)
    with store.write() as db:
        assert recommendations.refresh(db, row["id"], revision=1, now=T0, values={"saving_per_month": 1.0})
    assert _click(made, old["approve"]) == "superseded"


def test_an_expired_recommendation_cannot_be_approved(made: Governor, store: Store) -> None:
    propose(store, expires_at=T0 + 60)
    button = tokens(made)
    made.clock.set(T0 + 60)  # type: ignore[attr-defined]
    assert _click(made, button["approve"]) == "expired"
    assert state(store) == "proposed"


def test_a_button_stands_for_its_own_action_alone(made: Governor, store: Store) -> None:
    propose(store)
    button = tokens(made)
    assert _click(made, button["reject"], "approve") == "bad_token"
    assert _click(made, "guessed", "approve") == "bad_token"
    assert state(store) == "proposed"


@pytest.mark.parametrize(("action", "after"), [("reject", "rejected"), ("snooze", "snoozed")])
def test_rejecting_and_snoozing_are_as_easy(action: str, after: str, made: Governor, store: Store) -> None:
    propose(store)
    assert _click(made, tokens(made)[action], action) == "accepted"
    assert state(store) == after


def test_of_many_clicks_at_once_one_counts(made: Governor, store: Store) -> None:
    propose(store)
    button = [tokens(made)["approve"] for _ in range(4)]
    codes: list[str] = []
    threads = [threading.Thread(target=lambda t=t: codes.append(_click(made, t))) for t in button]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["accepted", "decided", "decided", "decided"]


def test_a_token_says_nothing_and_is_kept_only_as_its_digest(made: Governor, store: Store, tmp_path: Path) -> None:
    propose(store)
    button = tokens(made)
    assert all(len(t) >= 22 and "aaaa0001" not in t for t in button.values())
    assert len({*button.values(), *tokens(made).values()}) == 6
    kept = b"".join(p.read_bytes() for p in tmp_path.glob("flyball.db*"))
    assert all(t.encode() not in kept for t in button.values())


# -- where an answer may go --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.slack.com/actions/1",
        "https://hooks.slack.com.evil.example/actions/1",
        "https://evil.example/hooks.slack.com",
        "https://user@hooks.slack.com/1",
        "https://hooks.slack.com@evil.example/1",
        "https://hooks.slack.com\\@evil.example/1",
        "https://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:8321/",
        "http://[::1]/",
        "http://[",
        "file:///etc/passwd",
        "//hooks.slack.com/1",
        "hooks.slack.com",
        "",
    ],
)
def test_no_answer_goes_to_any_other_place(url: str, made: Governor, store: Store) -> None:
    assert made.settings.slack is not None
    assert not allowed_url(url, made.settings.slack)
    propose(store)
    body = form(payload(tokens(made)["approve"], response_url=url))
    reply = made.receiver.click(signed(body), body)
    assert reply.ruling.accepted
    assert reply.response_url is None


@pytest.mark.parametrize(
    "url", ["https://hooks.slack.com/a", "https://hooks.slack-gov.com/a", "https://HOOKS.slack.com/a"]
)
def test_an_answer_goes_to_slack(url: str, made: Governor) -> None:
    assert made.settings.slack is not None
    assert allowed_url(url, made.settings.slack)


def test_a_stand_in_must_be_named_and_plain_http_is_for_loopback_alone(store: Store, tmp_path: Path) -> None:
    with governor(store, tmp_path, allow_hosts=["127.0.0.1:9000", "10.0.0.7"]) as made:
        assert made.settings.slack is not None
        assert allowed_url("http://127.0.0.1:9000/x", made.settings.slack)
        assert not allowed_url("http://127.0.0.1:9001/x", made.settings.slack)
        assert not allowed_url("http://10.0.0.7/x", made.settings.slack)
        assert not allowed_url("https://hooks.slack.com/x", made.settings.slack)


# -- the route ---------------------------------------------------------------------------------------------------------


def test_the_route_answers_and_decides(made: Governor, store: Store) -> None:
    propose(store)
    body = form(payload(tokens(made)["approve"], response_url="https://elsewhere.example/"))
    bad = post(made, body, signed(body) | {"x-slack-signature": "v0=00"})
    assert (bad.status_code, bad.text) == (401, "bad_signature")
    assert state(store) == "proposed"
    good = post(made, body, signed(body))
    assert (good.status_code, good.content) == (200, b"")
    assert state(store) == "approved"
    assert post(made, body, signed(body)).status_code == 401
    text = made.metrics.text().decode()
    assert 'flyball_rulings_total{action="approve",channel="slack",code="accepted"} 1.0' in text
    assert 'code="bad_signature"' in text
    assert 'code="replayed"' in text


def test_the_route_never_breaks(made: Governor) -> None:
    large = b"payload=" + b"x" * MAX_BODY
    statuses = [
        post(made, b"", {}).status_code,
        post(made, large, signed(large)).status_code,
        post(made, b"\xff", {"x-slack-request-timestamp": "9" * 5000}).status_code,
    ]
    assert statuses == [401, 413, 401]


def test_neither_body_nor_secret_is_ever_logged(made: Governor, store: Store) -> None:
    propose(store)
    button = tokens(made)
    written = io.StringIO()
    patient = logs.configure("debug", stream=written)
    try:
        for token, action in ((button["approve"], "approve"), ("marker-token", "reject")):
            body = form(payload(token, action, response_url="https://elsewhere.example/"))
            post(made, body, signed(body))
            post(made, body, signed(body, secret="wrong"))
    finally:
        patient.drain(30)
        structlog.reset_defaults()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert {line["code"] for line in lines if line.get("event") == "ruling"} == {"accepted", "bad_token"}
    for secret in (SECRET, WEBHOOK, "verysecretpath", button["approve"], "marker-token", "payload="):
        assert secret not in written.getvalue()
    assert SECRET not in repr(made.settings)
    assert "verysecretpath" not in repr(made.settings)
