"""The weekly report by e-mail: its first screen as text, the whole as the file that was written. Out of the same outbox as Slack's messages."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

import structlog

from agent.brief import markdown
from agent.metrics import Metrics
from agent.settings import EmailSettings, Settings
from agent.store import Store, control, outbox
from agent.store.control import Lead
from collectors.clock import Clock

log = structlog.get_logger()

#: Seconds that the server has for each of its answers.
_TIMEOUT_S = 30.0
#: A message that did not get out is tried again after so long, twice as long each time, for so long; then it is shown as given up.
RETRY_S, GIVE_UP_S = 60.0, 2 * 86_400.0


class Mailer:
    """Delivers reports by SMTP. A server that is away holds up nothing else."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def cycle(self, lead: Lead) -> int:
        """Send what is due. Returns how many got out. Raises LostLease where ``lead`` is no longer the truth."""
        email = self._settings.email
        return 0 if email is None else await asyncio.to_thread(self._cycle, email, lead)

    def _cycle(self, email: EmailSettings, lead: Lead) -> int:
        now, sent = self._clock.now(), 0
        with self._store.read() as db:
            due = outbox.due(db, now, channel="email")
            reports = {row["path"]: row for row in outbox.reports(db)} if due else {}
        for item in due:
            row = reports.get(item["subject"])
            if row is None:  # made again since, elsewhere
                with control.leading(self._store, lead) as db:
                    outbox.sent(db, item["id"], now)
                continue
            problem, passes = self._submit(email, _letter(email, row["summary"], Path(row["path"]), now))
            self._metrics.messages.labels("email", "sent" if problem is None else "failed").inc()
            with control.leading(self._store, lead) as db:
                if problem is None:
                    outbox.sent(db, item["id"], now)
                    sent += 1
                    continue
                tried = passes and now - item["created_at"] <= GIVE_UP_S
                again = now + min(3600.0, RETRY_S * 2.0 ** min(6, item["attempts"])) if tried else None
                outbox.failed(db, item["id"], error=problem, retry_at=again)
            log.warning("email_failed", subject=item["subject"], error=problem, gives_up=again is None)
            break  # a server that is away is asked once a cycle
        return sent

    def _submit(self, email: EmailSettings, letter: EmailMessage) -> tuple[str | None, bool]:
        """Why it did not get out, and whether that may pass. The password is in no error of SMTP's."""
        context = ssl.create_default_context(cafile=self._settings.tls_ca_file)
        try:
            with _connected(email, context) as server:
                if email.security == "starttls":
                    server.starttls(context=context)
                if email.username is not None and email.password is not None:
                    server.login(email.username, email.password.get_secret_value())
                refused = server.send_message(letter)
        except smtplib.SMTPResponseException as error:
            return f"{email.host} answers {error.smtp_code}", 400 <= error.smtp_code < 500
        except smtplib.SMTPRecipientsRefused as error:
            codes = sorted({code for code, _ in error.recipients.values()})
            return f"{email.host} refuses all recipients ({', '.join(map(str, codes))})", max(codes) < 500
        except (OSError, smtplib.SMTPException) as error:
            return f"{email.host}:{email.port}: {type(error).__name__}: {error}", True
        for address, (code, _) in refused.items():
            log.warning("email_recipient_refused", address=address, code=code)
        return None, True


def _connected(email: EmailSettings, context: ssl.SSLContext) -> smtplib.SMTP:
    if email.security == "tls":
        return smtplib.SMTP_SSL(email.host, email.port, timeout=_TIMEOUT_S, context=context)
    return smtplib.SMTP(email.host, email.port, timeout=_TIMEOUT_S)


def _letter(email: EmailSettings, summary: object, path: Path, now: float) -> EmailMessage:
    """The report's first screen; the whole is attached, where its file is still there."""
    assert isinstance(summary, dict)
    text = markdown(summary)
    letter = EmailMessage()
    letter["Subject"] = text.splitlines()[0].lstrip("# ")
    letter["From"], letter["To"] = email.sender, ", ".join(email.to)
    letter["Date"], letter["Message-ID"] = formatdate(now), make_msgid(domain=email.sender.partition("@")[2])
    letter["Auto-Submitted"] = "auto-generated"  # so that no absence is answered
    letter.set_content(text)
    try:
        letter.add_attachment(path.read_text(encoding="utf-8"), subtype="html", filename=path.name)
    except OSError:
        letter.set_content(f"{text}\n\n{path} is not there any more; write it again with `flyball report`.\n")
    return letter
