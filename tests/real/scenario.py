"""What scenarios through the daemon have in common: traffic beside it, what it found, a person who approves, and how a change ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agent import views
from agent.clock import WallClock
from collectors.base import ScrapeTarget
from collectors.http import Http
from collectors.plan import TrafficPlan
from collectors.traffic.thread import simulate
from tests.agent.daemons import Daemon, flyball


@contextmanager
def traffic(plan: TrafficPlan, url: str, headers: Mapping[str, str]) -> Iterator[None]:
    """The plan's requests, of OpenAI's API, for as long as the block lasts. Some may fail."""
    with _meanwhile(lambda: simulate(plan, ScrapeTarget("traffic", url, headers), WallClock(), lambda _record: None)):
        yield


@contextmanager
def posts(url: str, rates: Sequence[float], each_s: float) -> Iterator[None]:
    """So many plain POSTs a second, one rate after the other and again, however long each one takes. Some may fail."""

    async def send() -> None:
        http, going = Http(), set[asyncio.Task[Any]]()
        try:
            for rate in itertools.cycle(rates):
                for _ in range(round(rate * each_s)):
                    going = {task for task in going if not task.done()}
                    going.add(asyncio.create_task(_posted(http, url)))
                    await asyncio.sleep(1 / rate)
        finally:
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)
            await http.aclose()

    with _meanwhile(send):
        yield


async def _posted(http: Http, url: str) -> None:
    with suppress(OSError, ValueError):
        await http.call("POST", url, json={}, timeout_s=8.0)


@contextmanager
def _meanwhile(work: Callable[[], Coroutine[Any, Any, Any]]) -> Iterator[None]:
    """In a thread with a loop of its own."""
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def send() -> None:
        sending = asyncio.create_task(work())
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
