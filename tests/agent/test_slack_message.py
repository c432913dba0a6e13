"""What goes out to Slack: within Slack's limits, escaped, with buttons only where a click could count, and through outages."""

from __future__ import annotations

import asyncio
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import logs, views
from agent.apply import LEASE
from agent.cases import guardrails_of
from agent.governor import Governor
from agent.settings import SlackSettings
from agent.slack import message
from agent.slack.send import GIVE_UP_S
from agent.store import Store, changes, control, fleet, mutes, outbox, recommendations, schema
from analyzers.finding import Cause, Finding
from tests.agent.records import T0, advice, change_row, finding, ledger_row, recommendation_row, shape_row
from tests.agent.slack import (
    ADA,
    BOB,
    OLD_SECRET,
    SECRET,
    form,
    governor,
    payload,
    post,
    propose,
    signed,
    state,
    tokens,
)
from tests.collectors.servers import Handler, Served, answering, serve

BUTTONS = {"approve": "A" * 22, "reject": "R" * 22, "snooze": "S" * 22}
PAGE = "http://127.0.0.1:8321"
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=4000) | st.sampled_from(["<!channel>", "&" * 3000, "<@U0ADA>"])


def _row(text: str = "half of it idles", **changed: Any) -> dict[str, Any]:
    row = recommendation_row("aaaa0001", text=text)
    row["body"] = row["body"] | changed
    return row


def test_the_premortem_is_one_line() -> None:
    texts = "\n".join(_texts(message.recommendation(_row(), BUTTONS, PAGE)["blocks"]))
    assert "*Pre-mortem:* survives 1 of 2; breaks when a replica is lost" in texts
    assert "Pre-mortem" not in "\n".join(_texts(message.recommendation(_row(premortem=None), BUTTONS, PAGE)["blocks"]))


def _texts(block: Any) -> list[str]:
    """Every text of a message that Slack reads as markup."""
    if isinstance(block, dict):
        own = [block["text"]] if block.get("type") == "mrkdwn" else []
        return own + [t for v in block.values() for t in _texts(v)]
    return [t for v in block for t in _texts(v)] if isinstance(block, list) else []


def _buttons(sent: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for b in sent["blocks"] if b["type"] == "actions" for e in b["elements"]]


def assert_within_limits(sent: dict[str, Any]) -> None:
    """facts: 50 blocks; header 150; section 1..3000; 10 context elements; button text 75, value 2000; about 13,200 characters in all."""
    assert 0 < len(sent["text"]) <= 3000
    assert len(sent["blocks"]) <= 50
    for block in sent["blocks"]:
        assert len(block.get("block_id", "")) <= 255
        if block["type"] == "header":
            assert 0 < len(block["text"]["text"]) <= 150
        if block["type"] == "section":
            assert 0 < len(block["text"]["text"]) <= 3000
        if block["type"] == "context":
            assert len(block["elements"]) <= 10
            assert all(0 < len(e["text"]) <= 2000 for e in block["elements"])
    for button in _buttons(sent):
        assert len(button["text"]["text"]) <= 75
        assert len(button["value"]) <= 2000
        if "confirm" in button:
            assert len(button["confirm"]["title"]["text"]) <= 100
            assert len(button["confirm"]["text"]["text"]) <= 300
    assert sum(len(t) for t in _texts(sent["blocks"])) < 13_000


# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_recommendation_says_everything_that_a_person_decides_by() -> None:
    row = _row()
    sent = message.recommendation(row, BUTTONS, PAGE)
    said = "\n".join([sent["text"], *_texts(sent["blocks"])])
    for wanted in (
        "2 x small", "1 x small", "half of it idles", "time to first token, p95", "400 ms",
        "now 250 ms to 500 ms", "320 ms to 480 ms", "the limit is 1 s: met",
        "its error so far: TTFT p95 10%",
        "saves $730 a month", "*Risk:* medium", "its error is not measured yet", row["plan_hash"][:19], "until 2027-01-16",
        "revision 1", f"{PAGE}/recommendations/aaaa0001",
    ):  # fmt: skip
        assert wanted in said
    assert [b["action_id"] for b in _buttons(sent)] == ["flyball_approve", "flyball_reject", "flyball_snooze"]
    assert [b["value"] for b in _buttons(sent)] == list(BUTTONS.values())
    assert (
        sent["text"] == "chat: replicas 2 → 1; saves $730 a month; time to first token (p95) 400 ms, the limit is 1 s"
    )
    for direction in ("shrink", "grow"):  # what costs more deserves the question too
        asked = _buttons(message.recommendation(_row(direction=direction, risk="low"), BUTTONS, PAGE))[0]["confirm"]
        assert asked["text"]["text"] == "chat: replicas 2 → 1; saves $730 a month"


def test_without_tokens_it_carries_no_button_and_says_where_to_decide() -> None:
    sent = message.recommendation(_row(), None, PAGE)
    assert _buttons(sent) == []
    assert "`flyball recommendations show aaaa0001`" in json.dumps(sent)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=_TEXTS, label=_TEXTS, risks=st.lists(_TEXTS, max_size=30), reasons=st.integers(1, 60))
def test_whatever_the_texts_are_the_message_is_within_limits_and_mentions_nobody(
    text: str, label: str, risks: list[str], reasons: int
) -> None:
    body = advice(text=text).as_dict()
    proposed = body["proposed"] | {"label": label}
    row = _row(reasons=body["reasons"] * reasons, risk_reasons=risks, proposed=proposed)
    for sent in (
        message.recommendation(row, BUTTONS, PAGE),
        message.recommendation(row, None, PAGE),
        message.decided(row, ADA, "approved", PAGE),
        message.change(change_row("cccc0001", state="failed", state_reason=text), [], PAGE),
    ):
        assert_within_limits(sent)
        for each in [sent["text"], *_texts(sent["blocks"])]:
            rest = each.replace(f"<@{ADA}>", "").replace(f"<{PAGE}/", "").replace("<http", "")
            assert "<!" not in rest
            assert "<@" not in rest
            assert "<" not in rest


def test_a_name_from_elsewhere_is_no_line_of_flyballs_own() -> None:
    row = _row("\n*Money:* saves $99,999 `now` ~never~ https://evil.example")
    texts = "\n".join(_texts(message.recommendation(row, None, PAGE)["blocks"]))
    assert "\n*Money:* saves $99,999" not in texts
    assert "\u2217Money:\u2217 saves $99,999 \u02cbnow\u02cb \u223cnever\u223c" in texts
    assert "https://evil" not in texts


def test_a_refusal_is_escaped_and_seen_by_one_person_alone() -> None:
    sent = message.refused("it is failed already (<!channel> " + "x" * 5000)
    assert sent["response_type"] == "ephemeral"
    assert sent["replace_original"] is False
    assert "&lt;!channel&gt;" in sent["text"]
    assert len(sent["text"]) <= 3000


def test_a_decided_message_has_no_buttons_and_says_who() -> None:
    sent = message.decided(_row(), ADA, "approved", PAGE)
    assert _buttons(sent) == []
    said = json.dumps(sent, ensure_ascii=False)
    for kept in (
        f"approved by <@{ADA}>",
        "replicas 2 → 1",
        "saves $730 a month",
        "half of it idles",
        f"{PAGE}/recommendations/aaaa0001",
    ):
        assert kept in said


def test_an_end_says_what_was_promised_and_what_came() -> None:
    row = change_row("cccc0001", state="rolled_back", state_reason="ttft_p95_s is 2 s")
    sent = message.change(row, [ledger_row("cccc0001")], PAGE)
    said = json.dumps(sent)
    assert "promised 320 ms to 480 ms, came 250 ms to 500 ms: held" in said
    assert "frozen until a person unfreezes it" in said


# -- what is wrong, whatever is proposed ---------------------------------------------------------------------------------


def _breach(store: Store, now: float, *found: Finding) -> None:
    with store.write() as db:
        fleet.saw_shape(db, "chat", shape_row(now))
        fleet.decided(db, "chat", {"at": now, "state": "too_small", "text": "the policy allows no more", "reasons": []})
        fleet.found(db, "chat", found, now)


BREACH = finding(
    code="OBJECTIVE_BREACH_TTFT_P95_S", text="<!here> ttft_p95_s is 4 s", kind="breach", severity="warning"
)


@pytest.mark.parametrize("mode", ["observe", "approve", "auto"])
def test_of_a_breach_people_hear_in_every_mode_and_why_nothing_is_proposed(
    mode: str, store: Store, tmp_path: Path
) -> None:
    _breach(store, T0, BREACH, finding())
    with serve(answering("ok")) as server, governor(store, tmp_path, mode=mode, **_to(server)) as made:
        (sent,) = _sent(made, server, cycles=3)
    said = json.dumps(sent)
    assert "chat: objective missed" in said
    assert "&lt;!here&gt; ttft_p95_s is 4 s" in said
    assert "the policy allows no more" in said
    assert "LOW_OCCUPANCY" not in said
    assert_within_limits(sent)


def test_one_that_comes_and_goes_is_told_once_an_hour(store: Store, tmp_path: Path) -> None:
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        for at in (T0, T0 + 300, T0 + 1200):
            _breach(store, at, BREACH)
            _sent(made, server)
            _breach(store, at + 60)
        assert len(server.requests) == 1
        _breach(store, T0 + 3700, BREACH)
        assert len(_sent(made, server)) == 2


def test_what_has_passed_before_it_could_be_told_is_not_told(store: Store, tmp_path: Path) -> None:
    _breach(store, T0, BREACH)
    with store.write() as db:
        outbox.put(db, channel="slack", kind="finding", subject=BREACH.key, revision=0, now=T0)
    _breach(store, T0 + 60)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert _sent(made, server) == []
    with store.read() as db:
        assert outbox.due(db, T0 + 1e6) == []


def _mute(store: Store, until: float | None) -> None:
    with store.write() as db:
        mutes.mute(db, "chat", BREACH.reason.code, until=until, reason="a canary", now=T0, by="cli:ann")


def test_of_what_is_suppressed_nobody_is_told_and_of_what_is_snoozed_after_its_time(
    store: Store, tmp_path: Path
) -> None:
    _breach(store, T0, BREACH)
    _mute(store, None)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert _sent(made, server, cycles=2) == []
        _mute(store, T0 + 60)
        assert _sent(made, server) == []
        asyncio.run(made.clock.advance(61))
        assert len(_sent(made, server)) == 1


def test_what_was_suppressed_before_it_could_be_told_is_not_told(store: Store, tmp_path: Path) -> None:
    _breach(store, T0, BREACH)
    with store.write() as db:
        outbox.put(db, channel="slack", kind="finding", subject=BREACH.key, revision=0, now=T0)
    _mute(store, None)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert _sent(made, server) == []


def test_an_upgrade_that_made_it_slower_is_told_with_whose_it_is(store: Store, tmp_path: Path) -> None:
    slower = finding(code="ENGINE_REGRESSED", text="since 0.10", kind="regression", severity="warning")
    _breach(store, T0, replace(slower, cause=Cause("OWN", "it does not on gpu")))
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        (sent,) = _sent(made, server)
    assert "chat: the engine became slower" in sent["text"]
    assert "it does not on gpu" in json.dumps(sent)


def test_a_proposal_says_of_its_breach_itself(store: Store, tmp_path: Path) -> None:
    propose(store)
    _breach(store, T0, BREACH)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        (sent,) = _sent(made, server)
    assert sent["text"].startswith("chat: replicas 2 → 1")


# -- which message carries buttons -------------------------------------------------------------------------------------


def _sent(made: Governor, server: Served, cycles: int = 1) -> list[dict[str, Any]]:
    async def send() -> None:
        for _ in range(cycles):
            await made.take_lead()
            await made.notify()

    asyncio.run(send())
    return [dict(r.json) for r in server.requests]


def _to(server: Served) -> dict[str, Any]:
    return {"webhook_url": f"{server.url}/services/T0/B0/secretpath", "allow_hosts": [f"127.0.0.1:{server.port}"]}


@pytest.mark.parametrize(
    ("slack", "mode", "row", "buttons"),
    [
        ({}, "approve", {}, 3),
        ({}, "auto", {}, 3),
        ({"signing_secret": None}, "approve", {}, 0),
        ({"approvers": []}, "approve", {}, 0),
        ({}, "observe", {}, 0),
        ({}, "approve", {"plan_hash": "", "plan": {}}, 0),
        ({}, "auto", {"state": "approved"}, 0),
    ],
)
def test_buttons_come_only_where_a_click_could_count(
    slack: dict[str, Any], mode: str, row: dict[str, Any], buttons: int, store: Store, tmp_path: Path
) -> None:
    propose(store, **row)
    with serve(answering("ok")) as server, governor(store, tmp_path, mode=mode, **_to(server), **slack) as made:
        with store.write() as db:
            policy = guardrails_of(made.settings, "chat").hash
            db.execute(sa.update(schema.recommendations).values(policy_hash=policy))
        (sent,) = _sent(made, server)
    assert len(_buttons(sent)) == buttons
    assert_within_limits(sent)


def test_a_high_risk_has_no_button_that_approves_and_a_broken_policy_none(store: Store, tmp_path: Path) -> None:
    row = recommendation_row("aaaa0001")
    row["body"]["risk"] = "high"
    propose(store, body=row["body"])
    propose(store, "bbbb0002", policy_hash="sha256:of another policy")
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        high, broken = _sent(made, server)
    assert [b["action_id"] for b in _buttons(high)] == ["flyball_reject", "flyball_snooze"]
    assert _buttons(broken) == []
    assert "no: the policy was changed since it was proposed" in json.dumps(broken)


def test_the_buttons_that_were_sent_work_and_their_message_is_rewritten(store: Store, tmp_path: Path) -> None:
    propose(store)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        (sent,) = _sent(made, server)
        assert state(store) == "notified"
        value = _buttons(sent)[0]["value"]
        body = form(payload(value, response_url=f"{server.url}/actions/1"))
        assert post(made, body, signed(body)).status_code == 200
        answer = server.requests[-1]
    assert state(store) == "approved"
    assert answer.path == "/actions/1"
    assert answer.json["replace_original"] is True
    assert _buttons(dict(answer.json)) == []


def test_who_may_not_is_told_and_nothing_is_rewritten(store: Store, tmp_path: Path) -> None:
    propose(store)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        body = form(payload(tokens(made)["approve"], user=BOB, response_url=f"{server.url}/actions/1"))
        assert post(made, body, signed(body)).status_code == 200
        answer = server.requests[-1].json
    assert answer == {
        "response_type": "ephemeral",
        "replace_original": False,
        "text": "Not done: you are not among the approvers.",
    }
    assert state(store) == "proposed"


@pytest.mark.parametrize("gone", ["superseded", "expired", "rejected"])
def test_what_is_not_open_any_more_is_not_sent(gone: str, store: Store, tmp_path: Path) -> None:
    propose(store, state=gone)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert _sent(made, server) == []
    with store.read() as db:
        assert outbox.due(db, T0 + 1e6) == []


def test_an_older_revision_and_a_removed_endpoint_hold_up_nobody(store: Store, tmp_path: Path) -> None:
    row = propose(store, "aaaa0001")
    propose(store, "aaaa0002", endpoint="removed")
    propose(store, "aaaa0003")
    with store.write() as db:
        recommendations.refresh(db, row["id"], revision=1, now=T0, values={"saving_per_month": 1.0})
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        sent = [json.dumps(message) for message in _sent(made, server)]
    assert [("aaaa0001" in m, "aaaa0003" in m) for m in sorted(sent, key=lambda m: "aaaa0003" in m)] == [
        (True, False),
        (False, True),
    ]
    assert "revision 2" in next(m for m in sent if "aaaa0001" in m)
    with store.read() as db:
        assert outbox.due(db, T0 + 1e6) == []


# -- outages -----------------------------------------------------------------------------------------------------------


def _outbox(store: Store) -> dict[str, Any]:
    with store.read() as db:
        rows = outbox.undelivered(db)
    assert len(rows) == 1
    return rows[0]


def test_an_outage_delays_is_shown_and_neither_approves_nor_hinders(store: Store, tmp_path: Path) -> None:
    row = propose(store)
    broken = answering("server trouble", "503 Service Unavailable")
    with serve(broken) as server, governor(store, tmp_path, **_to(server)) as made:
        assert len(_sent(made, server, cycles=3)) == 1
        kept = _outbox(store)
        assert (kept["state"], kept["attempts"]) == ("waiting", 1)
        assert kept["next_try_at"] == T0 + 60
        assert "503" in kept["error"]
        assert state(store) == "proposed"
        shown = views.status(store, made.settings, 0.0)
        assert [m["subject"] for m in shown["undelivered"]] == ["aaaa0001"]
        decide = made.approvals.decide
        plan = row["plan_hash"]
        assert decide("aaaa0001", action="approve", actor="cli:ada", channel="cli", plan_hash=plan).accepted
    assert state(store) == "approved"


def test_it_is_sent_once_slack_is_back(store: Store, tmp_path: Path) -> None:
    propose(store)
    with serve(answering("ok")) as server:
        there = _to(server)
    with governor(store, tmp_path, **there) as made:
        assert _sent(made, server) == []  # nobody listens there any more
    assert _outbox(store)["error"] == "down"
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert _sent(made, server) == []  # not before its time
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        made.clock.set(T0 + 31)  # type: ignore[attr-defined]
        assert len(_sent(made, server)) == 1
    with store.read() as db:
        assert outbox.undelivered(db) == []
    assert state(store) == "notified"


@pytest.mark.parametrize(
    ("handler", "after", "problem"),
    [
        (answering("", "429 Too Many Requests", **{"retry-after": "7"}), ("waiting", 7.0), "rate limited"),
        (answering("", "429 Too Many Requests", **{"retry-after": "soon"}), ("waiting", 30.0), "rate limited"),
        (answering("", "500 Oops"), ("waiting", 60.0), "HTTP 500"),
        (answering("no_service", "404 Not Found"), ("failed", None), "HTTP 404 no_service"),
        (answering("invalid_payload", "400 Bad Request"), ("failed", None), "HTTP 400 invalid_payload"),
        (answering("channel_is_archived", "410 Gone"), ("failed", None), "HTTP 410 channel_is_archived"),
        (answering("something_new", "400 Bad Request"), ("waiting", 60.0), "HTTP 400 something_new"),
        (answering("", "307 Moved", location="http://127.0.0.1:1/elsewhere"), ("waiting", 30.0), "redirect"),
    ],
)  # fmt: skip
def test_each_answer_is_taken_for_what_it_says(
    handler: Handler, after: tuple[str, float | None], problem: str, store: Store, tmp_path: Path
) -> None:
    propose(store)
    with serve(handler) as server, governor(store, tmp_path, **_to(server)) as made:
        assert len(_sent(made, server, cycles=2)) == 1
    kept = _outbox(store)
    assert kept["state"] == after[0]
    assert kept["error"] == problem or kept["error"].startswith(problem)
    if after[1] is not None:
        assert kept["next_try_at"] == T0 + after[1]


def test_it_waits_longer_each_time_and_gives_up_after_a_day(store: Store, tmp_path: Path) -> None:
    propose(store, expires_at=T0 + 1e6)
    waits: list[float] = []

    async def days(made: Governor) -> None:
        while (row := _outbox(store) if waits else None) is None or row["state"] == "waiting":
            if row is not None:
                made.clock.set(row["next_try_at"])  # type: ignore[attr-defined]
            before = made.clock.now()
            await made.take_lead()
            await made.notify()
            waits.append(_outbox(store)["next_try_at"] - before)

    with serve(answering("", "500 Oops")) as server, governor(store, tmp_path, **_to(server)) as made:
        asyncio.run(days(made))
    assert waits[:8] == [60.0 * 2**n for n in range(6)] + [3600.0, 3600.0]
    assert made.clock.now() - T0 > GIVE_UP_S
    assert made.clock.now() - T0 < GIVE_UP_S + 2 * 3600


@pytest.mark.parametrize(
    "url", ["https://evil.example/services/x", "http://hooks.slack.com/services/x", "http://[", "x"]
)
def test_the_webhook_itself_must_be_at_slack(url: str, store: Store, tmp_path: Path) -> None:
    propose(store)
    with serve(answering("ok")) as server, governor(store, tmp_path, webhook_url=url) as made:
        assert _sent(made, server) == []
    kept = _outbox(store)
    assert kept["state"] == "failed"
    assert "allow_hosts" in kept["error"]


def test_the_webhook_is_never_shown(store: Store, tmp_path: Path) -> None:
    """Its address is a secret: neither in a log line, nor in the outbox, nor in the settings' own text."""
    propose(store)
    written = io.StringIO()
    patient = logs.configure("debug", stream=written)
    try:
        moved = answering("", "307 Moved", location="http://evil.example/")
        for at, handler in ((T0, answering("", "500 Oops")), (T0 + 600, moved)):
            with serve(handler) as server, governor(store, tmp_path, **_to(server)) as made:
                made.clock.set(at)  # type: ignore[attr-defined]
                assert _sent(made, server)
    finally:
        patient.drain(30)
        structlog.reset_defaults()
    assert "slack_failed" in written.getvalue()
    for text in (written.getvalue(), _outbox(store)["error"], repr(made.settings), made.settings.model_dump_json()):
        assert "secretpath" not in text
        assert SECRET not in text


@pytest.mark.parametrize("seed", range(10))
def test_of_many_messages_each_that_can_be_made_goes_out(
    seed: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the others raise: a state that no table has, a row of an older version, a bug."""
    names = [f"aaaa{number:04d}" for number in range(8)]
    for name in names:
        propose(store, name)
    bad = set(random.Random(seed).sample(names, k=seed % 8))
    really = message.recommendation

    def made_of(row: Any, *rest: Any) -> dict[str, Any]:
        if row["id"] in bad:
            raise random.Random(seed).choice([KeyError("rolling_back"), TypeError("None"), ZeroDivisionError()])
        return really(row, *rest)

    monkeypatch.setattr(message, "recommendation", made_of)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert len(_sent(made, server)) == len(names) - len(bad)
    with store.read() as db:
        assert {row["subject"] for row in outbox.undelivered(db)} == bad


def test_a_change_that_goes_on_again_is_told_as_it_stands(store: Store, tmp_path: Path) -> None:
    """It succeeded while Slack was away, and somebody wants it back."""
    with store.write() as db:
        changes.start(db, change_row("cccc0001"))
        changes.move(
            db, "cccc0001", from_states=["applying"], to="rolling_back", now=T0, reason="asked for by a person"
        )
        outbox.put(db, channel="slack", kind="change", subject="cccc0001", revision=1, now=T0)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        (sent,) = _sent(made, server)
    assert "change is rolling back again" in sent["text"]


def test_a_slack_that_takes_nothing_is_asked_once_a_cycle(store: Store, tmp_path: Path) -> None:
    """Twelve messages of ten seconds each would be two minutes in which nothing else is told."""
    for number in range(12):
        propose(store, f"aaaa{number:04d}")
    with serve(answering("", "503 Service Unavailable")) as server, governor(store, tmp_path, **_to(server)) as made:
        assert len(_sent(made, server)) == 1


def _depose(store: Store) -> None:
    with store.write() as db:
        db.execute(sa.update(schema.leases).values(expires_at=0.0))
        assert control.acquire(db, LEASE, "another", 1e9) is not None


def test_a_deposed_leader_sends_and_queues_nothing(store: Store, tmp_path: Path) -> None:
    propose(store)
    with store.write() as db:
        recommendations.insert(db, recommendation_row("bbbb0002"))  # not queued yet

    async def late(made: Governor) -> None:
        assert await made.take_lead() is not None
        _depose(store)
        await made.notify()
        assert made.lead is None

    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        asyncio.run(late(made))
        assert server.requests == []
    with store.read() as db:
        assert [(row["subject"], row["state"]) for row in outbox.due(db, T0)] == [("aaaa0001", "waiting")]


def test_a_leader_deposed_while_slack_answers_notes_nothing(store: Store, tmp_path: Path) -> None:
    """The next leader sends it once more: a message may come twice, and what one reads of it is what the one who leads wrote."""
    propose(store)

    async def handler(request: Any, writer: Any) -> None:
        await asyncio.to_thread(_depose, store)
        await answering("ok")(request, writer)

    with serve(handler) as server, governor(store, tmp_path, **_to(server)) as made:
        assert len(_sent(made, server)) == 1
        assert made.lead is None
    with store.read() as db:
        assert [row["subject"] for row in outbox.due(db, T0)] == ["aaaa0001"]
    assert state(store) == "proposed"


# -- other messages ----------------------------------------------------------------------------------------------------


def test_the_end_of_a_change_is_told_with_its_ledger(store: Store, tmp_path: Path) -> None:
    with store.write() as db:
        changes.start(db, change_row("cccc0001"))
        changes.move(db, "cccc0001", from_states=["applying"], to="succeeded", now=T0, reason="met", finished_at=T0)
        changes.add_ledger(db, [ledger_row("cccc0001")])
        outbox.put(db, channel="slack", kind="change", subject="cccc0001", revision=1, now=T0)
        outbox.put(db, channel="slack", kind="change", subject="gone", revision=1, now=T0)
    with serve(answering("ok")) as server, governor(store, tmp_path, **_to(server)) as made:
        (sent,) = _sent(made, server)
    assert "change verified" in sent["text"]
    assert_within_limits(sent)


@pytest.mark.parametrize(
    ("field", "value"),
    [("approvers", ["ada"]), ("approvers", ["U0ADA", "@bob"]), ("approvers", ["u0ada"])],
)
def test_names_are_no_ids(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match="Slack user id"):
        SlackSettings(**{"webhook_url": "https://hooks.slack.com/x", field: value})


def test_rotation_of_the_secret_keeps_buttons(store: Store, tmp_path: Path) -> None:
    """While it is rotated, Slack may sign with either; what was sent before still counts."""
    propose(store)
    with governor(store, tmp_path, signing_secret=SECRET, previous_signing_secret=OLD_SECRET) as made:
        body = form(payload(tokens(made)["reject"], "reject", response_url="https://elsewhere.example/"))
        assert post(made, body, signed(body, secret=OLD_SECRET)).status_code == 200
    assert state(store) == "rejected"
