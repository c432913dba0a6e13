"""The demo's course: raise the fleet, send traffic, run the daemon, watch what it does, and show what came of it."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actuators.emulated.fleet import EmulatedFleet, FleetError
from agent import report, views
from agent.cli.output import number, stdout
from agent.clock import WallClock
from agent.configfile import load
from agent.demo import closing
from agent.demo.cast import ROLES, SECRET_FILE, SLACK_USER, WEBHOOK_FILE, settings
from agent.demo.slack_stand_in import SlackStandIn
from agent.settings import Settings
from agent.store import Store
from analyzers.words import figure, observed
from collectors.base import ScrapeTarget
from collectors.http import Http
from collectors.traffic.thread import simulate
from collectors.window import CollectError

#: The story ends by itself after so long, told or not.
LONGEST_S = 105.0
PAGE_PORT = 8321
SEED = 11


class StoryError(Exception):
    """The demo could not run; the text says what stood in the way."""


class Story:
    """One performance, in its own folder."""

    def __init__(self, folder: Path, *, once: bool) -> None:
        self._folder = folder
        self._once = once
        self._clock = WallClock()
        self._started = self._clock.now()
        self._port = _free_port(PAGE_PORT)

    async def tell(self) -> int:
        """Returns 0 when every endpoint ended as expected."""
        main = asyncio.current_task()
        assert main is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)  # leave nothing running behind
        http = Http(monotonic=self._clock.monotonic)
        left = [role.name for role in ROLES if role.expected == "open"]
        slack = SlackStandIn(http, self._clock, secret=secrets.token_hex(16), user=SLACK_USER, leaves=left)
        slack.actions_url = f"http://127.0.0.1:{self._port}/slack/actions"
        daemon: subprocess.Popen[bytes] | None = None
        traffic: list[asyncio.Task[object]] = []
        try:
            with EmulatedFleet(self._folder / "fleet") as fleet:
                stdout.print(
                    f"Starting {len(ROLES)} [bold]emulated[/bold] endpoints, their traffic, a stand-in for Slack, and the daemon ..."
                )
                urls = await asyncio.to_thread(_raise, fleet)
                await slack.start()
                config = self._configure(urls, slack)
                daemon = self._start_daemon(config)
                traffic = [asyncio.create_task(_send(i, urls[r.name], self._clock)) for i, r in enumerate(ROLES)]
                loaded = load(config).settings
                ended = await self._watch(loaded, daemon, slack)
                slack.rest()
                code = self._finish(loaded, config, ended)
                if not self._once:
                    await self._stay(daemon)
                return code
        except FleetError as error:
            raise StoryError(str(error)) from error
        finally:
            for task in traffic:
                task.cancel()
            await asyncio.gather(*traffic, return_exceptions=True)
            if daemon is not None:
                _stop(daemon)
            await slack.stop()
            await http.aclose()

    # -- scenery -------------------------------------------------------------------------------------------------------

    def _configure(self, urls: dict[str, str], slack: SlackStandIn) -> Path:
        path = self._folder / "flyball.yaml"
        path.write_text(settings(urls, f"127.0.0.1:{slack.port}", self._port), encoding="utf-8")
        for name, secret in ((SECRET_FILE, slack.secret), (WEBHOOK_FILE, slack.webhook_url)):
            file = self._folder / name
            file.touch(0o600)
            file.write_text(secret, encoding="utf-8")
        return path

    def _start_daemon(self, config: Path) -> subprocess.Popen[bytes]:
        log = (self._folder / "flyball.log").open("wb")
        line = [sys.executable, "-m", "agent", "run", "-c", str(config)]
        with log:
            return subprocess.Popen(line, stdout=log, stderr=log)  # noqa: S603

    # -- watching ------------------------------------------------------------------------------------------------------

    async def _watch(self, loaded: Settings, daemon: subprocess.Popen[bytes], slack: SlackStandIn) -> bool:
        """Show what happens until every endpoint has come to its end. False when time ran out first."""
        store = Store(loaded.database)
        try:
            with Live(console=stdout, refresh_per_second=4, transient=False) as live:
                while True:
                    now = self._clock.now()
                    if daemon.poll() is not None:
                        raise StoryError(f"the daemon ended; its log is {self._folder / 'flyball.log'}")
                    seen = await asyncio.to_thread(_look, store, loaded, now)
                    if seen is not None:
                        live.update(_scene(seen, slack, now - self._started, self._port))
                        if all(_done(role.expected, seen[role.name], now - self._started) for role in ROLES):
                            return True
                    if now - self._started > LONGEST_S:
                        return False
                    await asyncio.sleep(0.5)
        finally:
            stdout.print()
            store.close()

    async def _stay(self, daemon: subprocess.Popen[bytes]) -> None:
        stdout.print(f"The page stays up at [bold]http://127.0.0.1:{self._port}[/bold] until Ctrl-C.")
        try:
            await asyncio.to_thread(daemon.wait)
        except asyncio.CancelledError:  # Ctrl-C is how this is meant to end
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self, loaded: Settings, config: Path, ended: bool) -> int:
        store = Store(loaded.database)
        try:
            now = self._clock.now()
            path = report.weekly(
                store, loaded, start=self._started, end=now, now=now, path=self._folder / "report.html"
            )
            summary = _summary(store, loaded, now, now - self._started)
            closing.tradeoffs(store, loaded, now)
        finally:
            store.close()
        wrong = [
            f"{n}: expected {v['expected']}, came {v['came']}"
            for n, v in summary["story"].items()
            if not v["as_expected"]
        ]
        summary["ok"] = not wrong
        (self._folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
        closing.ledger(summary["changes"])
        closing.handover(summary, config, None if self._once else f"http://127.0.0.1:{self._port}")
        stdout.print(f"Report: {path}\nFigures: {self._folder / 'summary.json'}", highlight=False, soft_wrap=True)
        if wrong:
            late = "" if ended else f" (stopped after {LONGEST_S:.0f} s)"
            stdout.print(f"[red]The story did not end as it should{late}:[/red] " + "; ".join(wrong))
            return 1
        return 0


def _raise(fleet: EmulatedFleet) -> dict[str, str]:
    return {role.name: fleet.start(role.spec(SEED + i)) for i, role in enumerate(ROLES)}


async def _send(i: int, url: str, clock: WallClock) -> object:
    """Open-loop traffic to one endpoint until it is cancelled."""
    plan = ROLES[i].traffic(SEED + i, 24 * 3600.0)
    try:
        return await simulate(plan, ScrapeTarget(ROLES[i].name, url), clock)
    except CollectError as error:
        raise StoryError(f"no traffic reaches {ROLES[i].name}: {error}") from error


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StoryError("no port is free on 127.0.0.1")


def _look(store: Store, loaded: Settings, now: float) -> dict[str, dict[str, Any]] | None:
    """Each endpoint as it is, with its newest recommendation and change; None while the database is not there yet."""
    if store.current() != store.head():
        return None
    seen = {e["name"]: e for e in views.endpoints(store, loaded, now)["endpoints"]}
    advice = views.recommendation_list(store)["recommendations"]
    done = views.change_list(store)["changes"]
    for name, e in seen.items():
        e["advice"] = next((r for r in advice if r["endpoint"] == name), None)
        e["change"] = next((c for c in done if c["endpoint"] == name), None)
    return seen


def _done(expected: str, e: Mapping[str, Any], elapsed_s: float) -> bool:
    if expected == "right":
        return elapsed_s > 40 and e["advice"] is None
    if expected == "open":
        return e["advice"] is not None and e["advice"]["state"] == "notified"
    return e["change"] is not None and e["change"]["state"] in ("succeeded", "rolled_back", "failed")


def _scene(seen: Mapping[str, Mapping[str, Any]], slack: SlackStandIn, elapsed_s: float, port: int) -> Group:
    table = Table(
        title=f"deploy → simulate → monitor → reflect → adjust → verify    {elapsed_s:3.0f} s",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("endpoint", "TTFT p95, s", "ITL p95, s", "load", "what happens"):
        table.add_column(column, no_wrap=column != "what happens", overflow="fold")
    for e in seen.values():
        goals = {o["target"]: o for o in e["objective"]}
        table.add_row(
            e["name"],
            _goal(goals.get("ttft_p95_s")),
            _goal(goals.get("itl_p95_s")),
            number(e["load"]["requests_per_s"], "/s", 2),
            _happening(e),
        )
    line = Text(f"\nSlack stand-in: {len(slack.messages)} messages, {len(slack.clicks)} signed clicks. ")
    line.append(f"Page: http://127.0.0.1:{port}")
    return Group(table, line)


def _goal(goal: Mapping[str, Any] | None) -> Text:
    if goal is None or goal["observed"] is None:
        return Text("-", "dim")
    colour = {True: "green", False: "red", None: "yellow"}[goal["met"]]
    seen = Text(observed(goal), colour)
    return seen.append(f"\nlimit {figure(goal['target'], goal['limit'])}", "dim")


def _happening(e: Mapping[str, Any]) -> Text:
    """What is done, and below it the codes of what was found."""
    change, advice = e["change"], e["advice"]
    if change is not None:
        colour = {"succeeded": "green", "rolled_back": "yellow", "failed": "red"}.get(change["state"], "cyan")
        told = Text(f"{change['state'].replace('_', ' ')}: {change['what']}", colour)
    elif advice is not None:
        told = Text(f"{advice['state']}: {advice['what']}", "cyan")
    else:
        state = e["decision"]["state"] if e["decision"] is not None else "gathering"
        told = Text(_STATES[state], "dim" if state in ("fine", "gathering", "not_known") else "yellow")
    for finding in e["findings"]:
        if finding["kind"] != "insufficient_data":
            told.append(f"\n{finding['code']}", "dim")
    return told


_STATES = {
    "fine": "watched: the size is right",
    "too_small": "too small: looks for a better size",
    "too_large": "larger than it need be: looks for a smaller size",
    "gathering": "gathers evidence",
    "not_known": "gathers evidence",
    "stuck": "requests run and nothing comes out",
    "contradiction": "what it shows contradicts itself",
}


def _summary(store: Store, loaded: Settings, now: float, wall_s: float) -> dict[str, Any]:
    endpoints = views.endpoints(store, loaded, now)["endpoints"]
    advice = views.recommendation_list(store)["recommendations"]
    done = views.change_list(store)["changes"]
    story = {}
    for role in ROLES:
        change = next((c for c in done if c["endpoint"] == role.name), None)
        came = (
            change["state"] if change else ("proposed" if any(r["endpoint"] == role.name for r in advice) else "right")
        )
        wanted = {
            "grow": "succeeded", "shrink": "succeeded", "rollback": "rolled_back", "right": "right", "open": "proposed",
        }[role.expected]  # fmt: skip
        story[role.name] = {"expected": role.expected, "came": came, "as_expected": came == wanted}
    return {
        "schema_version": 1,
        "wall_s": round(wall_s, 1),
        "emulated": True,
        "story": story,
        "endpoints": endpoints,
        "recommendations": advice,
        "changes": done,
        "accuracy": views.accuracy(store)["accuracy"],
    }
