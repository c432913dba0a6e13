"""Two real daemons on one database: one leads, and stops without a word. For SQLite and PostgreSQL alike."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.agent.daemons import Daemon, running, write_settings

#: What is promised: another one leads so soon.
TAKEOVER_S = 15.0


@contextmanager
def two_daemons(folder: Path, database: str, endpoints: list[dict[str, Any]]) -> Iterator[tuple[Daemon, Daemon]]:
    """The one who leads, and the one who stands by."""
    configs = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        configs.append(write_settings(folder / name, endpoints, database=database))
    with running(configs[0]) as leader:
        leader.ready()
        leader.until(lambda: leader.json("/readyz")["leading"], "the first leads")
        with running(configs[1]) as standby:
            standby.ready()
            assert standby.json("/readyz") == {"ready": True, "leading": False}
            assert standby.get("/recommendations")[0] == 200, "its pages work all the same"
            yield leader, standby


def epoch(daemon: Daemon) -> int:
    """Of who leads, as this one reads it."""
    return int(daemon.json("/status.json")["leader"]["epoch"])


def stop_the_leader(leader: Daemon, standby: Daemon, how: signal.Signals) -> None:
    """The other one leads in time; and one who stood still and goes on stands by."""
    before = epoch(standby)
    at = time.monotonic()
    leader.signal(how)
    standby.until(lambda: standby.json("/readyz")["leading"], "the second leads", limit_s=TAKEOVER_S)
    assert time.monotonic() - at < TAKEOVER_S
    assert epoch(standby) == before + 1
    if how == signal.SIGSTOP:
        leader.signal(signal.SIGCONT)
        leader.until(lambda: leader.get("/readyz")[0] == 200 and not leader.json("/readyz")["leading"], "it stands by")
        assert standby.json("/readyz")["leading"]
        assert epoch(standby) == before + 1


def stall_both(leader: Daemon, standby: Daemon, seconds: float) -> None:
    """The whole machine stands still for longer than a lease lasts: he who led leads on."""
    for daemon in (leader, standby):
        daemon.signal(signal.SIGSTOP)
    time.sleep(seconds)  # what is tested is that time passes for neither
    for daemon in (standby, leader):
        daemon.signal(signal.SIGCONT)
    before = len(leader.lines("leading"))
    leader.until(lambda: leader.get("/readyz")[0] == 200 and leader.json("/readyz")["leading"], "the first leads again")
    for _ in range(20):
        assert not standby.json("/readyz")["leading"]
        time.sleep(0.2)
    assert standby.lines("leading") == []
    assert len(leader.lines("leading")) <= before + 1
