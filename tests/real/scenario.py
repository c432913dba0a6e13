"""What scenarios through the daemon have in common: traffic beside it, what it found, a person who approves, and how a change ended."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent import views
from agent.clock import WallClock
from collectors.base import ScrapeTarget
from collectors.plan import TrafficPlan
from collectors.traffic.thread import simulate
from tests.agent.daemons import Daemon, flyball


@contextmanager
def traffic(plan: TrafficPlan, url: str, headers: Mapping[str, str]) -> Iterator[None]:
    """The plan's requests for as long as the block lasts. Some may fail."""
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def send() -> None:
        target = ScrapeTarget("traffic", url, headers)
        sending = asyncio.create_task(simulate(plan, target, WallClock(), lambda _record: None))
        await over.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(send(),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)
        loop.close()


def found_kinds(daemon: Daemon, endpoint: str) -> set[str]:
    """The kinds of what is found now."""
    with daemon.store() as store:
        if store.current() != store.head():
            return set()
        return {finding["kind"] for finding in views.findings(store, time.time(), endpoint)["findings"]}


def open_recommendations(config: Path, env: Mapping[str, str]) -> list[dict[str, Any]]:
    """Those that wait for a person."""
    listed = flyball("recommendations", "list", "-o", "json", "-c", str(config), env=env)
    rows: list[dict[str, Any]] = json.loads(listed.stdout)["recommendations"] if listed.returncode == 0 else []
    return [row for row in rows if row["state"] in ("proposed", "notified")]


def approve(config: Path, env: Mapping[str, str], recommendation: str) -> None:
    approved = flyball("recommendations", "approve", recommendation, "--yes", "-c", str(config), env=env)
    assert approved.returncode == 0, approved.stderr


def ended(daemon: Daemon, number: int) -> dict[str, Any] | None:
    """The ``number``-th change, whole, once it has ended."""
    with daemon.store() as store:
        rows = views.change_list(store)["changes"][::-1]
        if len(rows) < number or rows[number - 1]["state"] not in ("succeeded", "rolled_back", "failed"):
            return None
        found = views.change(store, rows[number - 1]["id"])
    assert found is not None
    change: dict[str, Any] = found["change"]
    return change
