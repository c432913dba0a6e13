"""The weekly report by e-mail, against a real SMTP server: what arrives, what is tried again, and what is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from pydantic import ValidationError

from agent.clock import VirtualClock
from agent.configfile import BadSettings, load
from agent.governor import Governor
from agent.mail import GIVE_UP_S, RETRY_S
from agent.report import weekly
from agent.settings import EmailSettings, Settings
from agent.store import Store, outbox, schema
from collectors.http import Http
from tests.actuators.support import free_port
from tests.agent.records import T0, fill

NOW = T0 + 3600
PASSWORD = "canary-of-the-mail"


class Mailbox:
    """Takes mail, or answers as it is told to."""

    def __init__(self) -> None:
        self.letters: list[tuple[Envelope, EmailMessage]] = []
        self.answer = ""
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(  # noqa: N802  the library's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address.startswith("nobody@"):
            return "550 there is nobody"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.answer:
            return self.answer
        assert isinstance(envelope.content, bytes)
        letter = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(letter, EmailMessage)
        self.letters.append((envelope, letter))
        return "250 taken"

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: Any
    ) -> AuthResult:
        assert isinstance(login, LoginPassword)
        self.logins.append((login.login, login.password))
        return AuthResult(success=login.password == PASSWORD.encode())


@contextmanager
def mailbox(port: int, **options: Any) -> Iterator[Mailbox]:
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=port, authenticator=box.authenticate, **options)
    server.start()
    try:
        yield box
    finally:
        server.stop()


@pytest.fixture
def made(tmp_path: Path, sqlite_template: Path) -> Iterator[tuple[Governor, VirtualClock, int]]:
    (tmp_path / "flyball.db").write_bytes(sqlite_template.read_bytes())
    store, port, clock = Store(f"sqlite:///{tmp_path}/flyball.db"), free_port(), VirtualClock(NOW)
    fill(store, now=NOW)
    settings = Settings.model_validate(
        {
            "database": store.where,
            "state_dir": tmp_path / "state",
            "report": {"directory": tmp_path / "reports"},
            "endpoints": [{"name": "chat", "url": "http://127.0.0.1:1"}],
            "email": {"host": "127.0.0.1", "port": port, "security": "none", "sender": "flyball@example.com",
                      "to": ["ops@example.com", "nobody@example.com"], "username": "flyball", "password": PASSWORD},
        }
    )  # fmt: skip
    governor = Governor(settings, store, clock, holder="test:1", http=Http(monotonic=clock.monotonic))
    with store.write() as db:  # another leads in what is filled in
        db.execute(sa.delete(schema.leases))
    assert asyncio.run(governor.take_lead()) is not None
    assert weekly(store, settings, start=T0, end=NOW, now=NOW) is not None
    yield governor, clock, port
    store.close()


def post(governor: Governor) -> int:
    assert governor.lead is not None
    return asyncio.run(governor.mailer.cycle(governor.lead))


def waiting(governor: Governor) -> list[outbox.Row]:
    with governor.store.read() as db:
        return outbox.due(db, 1e12, channel="email")


def test_the_first_screen_arrives_with_the_whole_report(made: tuple[Governor, VirtualClock, int]) -> None:
    governor, _, port = made
    with mailbox(port, auth_require_tls=False) as box:
        assert post(governor) == 1
        assert post(governor) == 0, "once"
        ((envelope, letter),) = box.letters
    assert envelope.rcpt_tos == ["ops@example.com"]
    assert letter["Subject"].startswith("Flyball, ")
    assert letter["Auto-Submitted"] == "auto-generated"
    body, attached = letter.get_body(("plain",)), [*letter.iter_attachments()]
    assert body is not None
    assert "## What to do" in body.get_content()
    assert [part.get_content_type() for part in attached] == ["text/html"]
    assert "<html" in attached[0].get_content()
    assert box.logins == [(b"flyball", PASSWORD.encode())]
    assert (
        governor.metrics.registry.get_sample_value("flyball_messages_total", {"channel": "email", "outcome": "sent"})
        == 1
    )


def test_a_server_that_is_away_is_asked_again_and_at_last_given_up(made: tuple[Governor, VirtualClock, int]) -> None:
    governor, clock, port = made
    assert post(governor) == 0
    (row,) = waiting(governor)
    assert row["attempts"] == 1
    assert PASSWORD not in str(row["error"])
    assert post(governor) == 0, "not before its time"
    assert waiting(governor)[0]["attempts"] == 1
    clock.set(clock.now() + RETRY_S)
    with mailbox(port, auth_require_tls=False) as box:
        box.answer = "451 later"
        assert post(governor) == 0
        assert waiting(governor)[0]["error"] == "127.0.0.1 answers 451"
        clock.set(clock.now() + GIVE_UP_S)
        assert post(governor) == 0
    with governor.store.read() as db:
        (row,) = outbox.undelivered(db)
    assert row["state"] == "failed"


def test_what_the_server_refuses_for_good_is_not_tried_again(made: tuple[Governor, VirtualClock, int]) -> None:
    governor, _, port = made
    with mailbox(port, auth_require_tls=False) as box:
        box.answer = "554 no"
        assert post(governor) == 0
    assert waiting(governor) == []


def test_a_password_is_not_sent_in_the_clear() -> None:
    stated = {"host": "mail.example.com", "sender": "a@b", "to": ["c@d"], "security": "none"}
    with pytest.raises(ValidationError, match="would go in the clear"):
        EmailSettings.model_validate(stated)
    with pytest.raises(ValidationError, match="a username needs its password"):
        EmailSettings.model_validate({**stated, "security": "tls", "username": "me"})
    for address in ("a@b\nBcc: x@y", "no-at-sign", "a@b c"):
        with pytest.raises(ValidationError):
            EmailSettings.model_validate({**stated, "security": "tls", "to": [address]})


def test_the_password_is_a_reference(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    path.write_text("email: {host: h, sender: a@b, to: [c@d], username: me, password: written-out}\n")
    with pytest.raises(BadSettings, match="a secret is written into the file"):
        load(path)
