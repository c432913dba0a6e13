"""Slack as an app of one's own: posts that can be rewritten and answered, and clicks over a connection that Flyball opens."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from typer.testing import CliRunner

from agent.cases import guardrails_of
from agent.cli import app
from agent.governor import Governor
from agent.settings import SlackSettings
from agent.slack.manifest import manifest
from agent.slack.socket import _checked
from agent.store import Store, audit, outbox, recommendations, schema
from tests.agent.records import T0, change_row
from tests.agent.slack import ADA, BOB, governor, propose, state
from tests.fakes.slack import CHANNEL, FakeSlack, _buttons, fake_slack


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    with fake_slack() as fake:
        yield fake


def _allowed(made: Governor) -> None:
    """The recommendations stand under the policy of today."""
    with made.store.write() as db:
        policy = guardrails_of(made.settings, "chat").hash
        db.execute(sa.update(schema.recommendations).values(policy_hash=policy))


async def _notified(made: Governor, cycles: int = 1) -> None:
    await made.take_lead()
    for _ in range(cycles):
        await made.notify()


async def _until(condition: Callable[[], bool], step: Callable[[], Awaitable[object]] | None = None) -> None:
    async with asyncio.timeout(30):
        while not condition():
            if step is not None:
                await step()
            await asyncio.sleep(0.02)


def _decide(made: Governor, action: str = "approve", channel: str = "cli") -> None:
    with made.store.read() as db:
        row = recommendations.get(db, "aaaa0001")
    assert row is not None
    ruling = made.approvals.decide(
        row["id"],
        action=action,
        actor="cli:ada",
        channel=channel,
        plan_hash=row["plan_hash"],  # type: ignore[arg-type]
    )
    assert ruling.accepted, ruling


def _actions(store: Store) -> list[tuple[str, str]]:
    with store.read() as db:
        return [(e["action"], e["subject"]) for e in audit.entries(db)]


# -- posting as the app --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_what_was_posted_is_rewritten_once_it_is_decided_and_its_outcome_is_a_reply(
    store: Store, tmp_path: Path, slack: FakeSlack
) -> None:
    propose(store)
    with governor(store, tmp_path, **slack.settings) as made:
        _allowed(made)
        asyncio.run(_notified(made, 2))
        (ts,) = slack.messages
        assert slack.messages[ts]["channel"] == CHANNEL
        assert [b["action_id"] for b in _buttons(slack.messages[ts])] == [
            "flyball_approve", "flyball_reject", "flyball_snooze",
        ]  # fmt: skip
        assert len(slack.posts) == 1
        _decide(made)
        asyncio.run(_notified(made, 2))
        assert [p["method"] for p in slack.posts] == ["chat.postMessage", "chat.update"]
        assert _buttons(slack.messages[ts]) == []
        assert 'approved by cli:ada"' in json.dumps(slack.messages[ts])
        with store.write() as db:
            for identity, ended in (("cccc0001", "succeeded"), ("cccc0002", "rolled_back")):
                row = change_row(identity, recommendation_id="aaaa0001", state=ended)
                db.execute(sa.insert(schema.changes).values(**row))
                outbox.put(db, channel="slack", kind="change", subject=identity, revision=0, now=T0)
        asyncio.run(_notified(made))
        replies = slack.posts[2:]
        assert [p["thread_ts"] for p in replies] == [ts, ts]
        assert [p.get("reply_broadcast", False) for p in replies] == [False, True], "what went wrong is told to all"


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_message_of_an_older_revision_loses_its_buttons(store: Store, tmp_path: Path, slack: FakeSlack) -> None:
    propose(store)
    with governor(store, tmp_path, **slack.settings) as made:
        _allowed(made)
        asyncio.run(_notified(made))
        (first,) = slack.messages
        with store.write() as db:
            assert recommendations.refresh(db, "aaaa0001", revision=1, now=T0, values={})
        asyncio.run(_notified(made, 2))
        assert len(slack.messages) == 2
        assert _buttons(slack.messages[first]) == []
        assert "superseded by a newer revision" in json.dumps(slack.messages[first])
        assert len(_buttons(slack.messages[max(slack.messages)])) == 3


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_webhook_tells_what_was_decided_elsewhere_and_nothing_that_slack_shows_already(
    store: Store, tmp_path: Path, slack: FakeSlack
) -> None:
    propose(store)
    with governor(store, tmp_path, **slack.webhook) as made:
        _allowed(made)
        asyncio.run(_notified(made))
        _decide(made, "reject", "page")
        asyncio.run(_notified(made, 3))
        assert [p["method"] for p in slack.posts] == ["webhook", "webhook"]
        assert 'rejected by cli:ada"' in json.dumps(slack.posts[1])
    propose(store, "bbbb0002")
    with governor(store, tmp_path, **slack.webhook) as made:
        _allowed(made)
        asyncio.run(_notified(made))
        with store.write() as db:
            row = recommendations.get(db, "bbbb0002")
            assert row is not None
            token = made.approvals.issue_tokens(db, row)["approve"]
        assert made.approvals.redeem(token, action="approve", actor=f"slack:{ADA}", allowed=True).accepted
        asyncio.run(_notified(made, 3))
        assert len(slack.posts) == 3, "a click rewrites its own message"


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"bot_token": "xoxb-of-another-app"}, "invalid_auth"),
        ({"channel_id": "C0OTHER"}, "channel_not_found"),
        ({"allow_hosts": ["hooks.slack.com"]}, "the host of slack.api_url is not among slack.allow_hosts"),
    ],
)
def test_what_slack_never_takes_is_given_up_and_shown(
    changed: dict[str, Any], problem: str, store: Store, tmp_path: Path, slack: FakeSlack
) -> None:
    propose(store)
    with governor(store, tmp_path, **{**slack.settings, **changed}) as made:
        asyncio.run(_notified(made, 2))
    with store.read() as db:
        (row,) = outbox.undelivered(db)
    assert (row["state"], row["error"]) == ("failed", problem)
    assert state(store) == "proposed"
    assert "xoxb" not in json.dumps(row)


# -- Socket Mode -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_click_over_the_leaders_connection_decides_once(store: Store, tmp_path: Path, slack: FakeSlack) -> None:
    propose(store)

    async def scenario(made: Governor) -> None:
        await made.keep_socket()
        assert slack.opened == 0, "who stands by does not connect: Slack would send him clicks"
        await _notified(made)
        (ts,) = slack.messages
        await _until(lambda: bool(slack.sockets), made.keep_socket)
        press = asyncio.to_thread
        assert await press(slack.press, ts, "flyball_approve", BOB)
        assert state(store) == "notified"
        await _until(lambda: bool(slack.answers))
        assert "not among the approvers" in slack.answers[-1]["text"]
        moved = {"container": {"message_ts": "1700000000.999999", "channel_id": CHANNEL}}
        assert await press(lambda: slack.press(ts, "flyball_approve", ADA, **moved))
        assert await press(lambda: slack.press(ts, "flyball_approve", ADA, channel={"id": "C0OTHER"}))
        assert state(store) == "notified"
        button = _buttons(slack.messages[ts])[0]
        assert await press(slack.send, slack.click(ts, button, ADA), 2)
        await _until(lambda: state(store) == "approved")
        await _notified(made)
        assert _buttons(slack.messages[ts]) == []
        made.lead = None
        await made.keep_socket()
        await _until(lambda: not slack.sockets)
        await made.close()

    with governor(store, tmp_path, **slack.settings) as made:
        _allowed(made)
        asyncio.run(scenario(made))
    refused = [subject for action, subject in _actions(store) if action == "click_refused"]
    assert sorted(refused) == ["replayed", "wrong_channel", "wrong_message"]
    assert [a for a, _ in _actions(store)].count("approved") == 1


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_connection_that_ends_is_made_anew(store: Store, tmp_path: Path, slack: FakeSlack) -> None:
    async def scenario(made: Governor) -> None:
        assert made.socket is not None
        slack.refuses = "invalid_auth"
        await made.take_lead()
        await _until(lambda: made.socket is not None and made.socket.problem is not None, made.keep_socket)
        assert slack.opened == 0
        slack.refuses = None
        await _until(lambda: bool(slack.sockets), lambda: _later(made))
        await asyncio.to_thread(slack.say, json.dumps({"type": "disconnect", "reason": "refresh_requested"}))
        await _until(lambda: slack.opened == 2 and bool(slack.sockets), made.keep_socket)
        for garbage in ("{", "[]", '"text"', "[" * 50_000):
            before = slack.opened
            await asyncio.to_thread(slack.say, garbage)
            await _until(lambda before=before: slack.opened == before + 1 and bool(slack.sockets), lambda: _later(made))
        await made.close()
        await _until(lambda: not slack.sockets)

    with governor(store, tmp_path, **slack.settings) as made:
        asyncio.run(scenario(made))


async def _later(made: Governor) -> None:
    """The next look, after the wait that follows a failure."""
    await made.clock.advance(61)  # type: ignore[attr-defined]
    await made.keep_socket()


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("wss://wss-primary.slack.com/link/?ticket=x", True),
        ("wss://wss.slack-gov.com/link", True),
        ("ws://wss-primary.slack.com/link", False),
        ("wss://slack.com.attacker.example/link", False),
        ("wss://attacker.example/link?.slack.com", False),
        ("ws://127.0.0.1:9/link", False),
        ("http://wss-primary.slack.com/", False),
    ],
)
def test_it_connects_to_slack_alone(address: str, taken: bool) -> None:
    settings = SlackSettings(webhook_url="https://hooks.slack.com/x")  # type: ignore[arg-type]
    if taken:
        assert _checked(address, settings) == address
    else:
        with pytest.raises(ValueError, match="not Slack's"):
            _checked(address, settings)


# -- the command line --------------------------------------------------------------------------------------------------------


def test_the_manifest_says_where_clicks_go() -> None:
    by_http = manifest("https://flyball.example/", socket=False)
    assert by_http["settings"]["interactivity"]["request_url"] == "https://flyball.example/slack/actions"
    assert by_http["settings"]["socket_mode_enabled"] is False
    with pytest.raises(ValueError, match=r"web\.public_url"):
        manifest("http://127.0.0.1:8321", socket=False)
    printed = CliRunner().invoke(app, ["slack", "manifest", "--socket"])
    assert printed.exit_code == 0
    found = yaml.safe_load(printed.stdout)
    assert found["settings"]["socket_mode_enabled"] is True
    assert "chat:write" in found["oauth_config"]["scopes"]["bot"]
    refused = CliRunner().invoke(app, ["slack", "manifest", "--url", "http://x"])
    assert refused.exit_code == 2


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("user", "code", "said"), [(ADA, 0, "may decide"), (BOB, 1, "not among the approvers")])
def test_the_trial_waits_for_its_click(
    user: str, code: int, said: str, store: Store, tmp_path: Path, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes.slack import APP, BOT

    monkeypatch.setenv("BOT", BOT)
    monkeypatch.setenv("APP", APP)
    settings = {
        "database": store.where,
        "state_dir": str(tmp_path / "state"),
        "slack": {
            "bot_token": "${BOT}", "app_token": "${APP}", "channel_id": CHANNEL, "approvers": [ADA],
            "api_url": f"http://{slack.host}/api", "allow_hosts": [slack.host],
        },
        "endpoints": [{"name": "chat", "url": "http://chat.invalid"}],
    }  # fmt: skip
    (tmp_path / "flyball.yaml").write_text(yaml.safe_dump(settings))
    stop = threading.Event()

    async def daemon(made: Governor) -> None:
        await made.take_lead()
        while not stop.is_set():
            await made.keep_socket()
            await asyncio.sleep(0.02)
        await made.close()

    slack.presses = ("flyball_test", user)
    with governor(store, tmp_path, **slack.settings) as made:
        running = threading.Thread(target=lambda: asyncio.run(daemon(made)), daemon=True)
        running.start()
        try:
            asyncio.run(_until(lambda: bool(slack.sockets)))
            trial = CliRunner().invoke(app, ["slack", "test", "-c", str(tmp_path / "flyball.yaml"), "--wait", "30s"])
        finally:
            stop.set()
            running.join(30)
    assert trial.exit_code == code, trial.output
    assert said in trial.output
