"""The demo's course: raise the fleet, send traffic, run the daemon, watch what it does, and show what came of it."""

from __future__ import annotations

import asyncio
import json
import os
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
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actuators.emulated.fleet import EmulatedFleet, FleetError
from actuators.shape import Shape, difference
from agent import report, views
from agent.cli.output import money, number, stdout
from agent.clock import WallClock
from agent.configfile import load
from agent.demo.cast import ROLES, SECRET_ENV, SLACK_USER, WEBHOOK_ENV, settings
from agent.demo.slack_stand_in import SlackStandIn
from agent.settings import Settings
from agent.store import Store
from analyzers.money import per_month
from analyzers.words import spread
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
        slack = SlackStandIn(http, self._clock, secret=secrets.token_hex(16), user=SLACK_USER)
        slack.actions_url = f"http://127.0.0.1:{self._port}/slack/actions"
        daemon: subprocess.Popen[bytes] | None = None
        traffic: list[asyncio.Task[object]] = []
        try:
            with EmulatedFleet(self._folder / "fleet") as fleet:
                stdout.print(
                    "Starting four [bold]emulated[/bold] endpoints, their traffic, a stand-in for Slack, and the daemon ..."
                )
                urls = await asyncio.to_thread(_raise, fleet)
                await slack.start()
                config = self._configure(urls, slack)
                daemon = self._start_daemon(config, slack)
                traffic = [asyncio.create_task(_send(i, urls[r.name], self._clock)) for i, r in enumerate(ROLES)]
                loaded = load_with(config, slack)
                ended = await self._watch(loaded, daemon, slack)
                code = self._finish(loaded, ended)
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
        return path

    def _start_daemon(self, config: Path, slack: SlackStandIn) -> subprocess.Popen[bytes]:
        log = (self._folder / "flyball.log").open("wb")
        line = [sys.executable, "-m", "agent", "run", "-c", str(config)]
        with log:
            return subprocess.Popen(line, env=os.environ | _secrets(slack), stdout=log, stderr=log)  # noqa: S603

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
            store.close()

    async def _stay(self, daemon: subprocess.Popen[bytes]) -> None:
        stdout.print(f"\nThe page stays up at [bold]http://127.0.0.1:{self._port}[/bold] until Ctrl-C.")
        try:
            await asyncio.to_thread(daemon.wait)
        except asyncio.CancelledError:  # Ctrl-C is how this is meant to end
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self, loaded: Settings, ended: bool) -> int:
        store = Store(loaded.database)
        try:
            now = self._clock.now()
            path = report.weekly(
                store, loaded, start=self._started, end=now, now=now, path=self._folder / "report.html"
            )
            summary = _summary(store, loaded, now, now - self._started)
            _print_tradeoffs(store)
            _print_ledger(summary)
        finally:
            store.close()
        wrong = [
            f"{n}: expected {v['expected']}, came {v['came']}"
            for n, v in summary["story"].items()
            if not v["as_expected"]
        ]
        summary["ok"] = not wrong
        (self._folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
        stdout.print(
            f"\nReport: [bold]{path}[/bold]\nFigures: {self._folder / 'summary.json'}\nDatabase: {self._folder / 'flyball.db'}"
        )
        if wrong:
            late = "" if ended else f" (stopped after {LONGEST_S:.0f} s)"
            stdout.print(f"[red]The story did not end as it should{late}:[/red] " + "; ".join(wrong))
            return 1
        return 0


def load_with(config: Path, slack: SlackStandIn) -> Settings:
    """The same settings that the daemon reads: its secrets stand in our environment only while they are read."""
    before = {name: os.environ.get(name) for name in (SECRET_ENV, WEBHOOK_ENV)}
    os.environ.update(_secrets(slack))
    try:
        return load(config).settings
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _secrets(slack: SlackStandIn) -> dict[str, str]:
    return {SECRET_ENV: slack._secret, WEBHOOK_ENV: slack.webhook_url}


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
    return e["change"] is not None and e["change"]["state"] in ("succeeded", "rolled_back", "failed")


def _scene(seen: Mapping[str, Mapping[str, Any]], slack: SlackStandIn, elapsed_s: float, port: int) -> Group:
    table = Table(
        title=f"deploy → simulate → monitor → reflect → adjust → verify    {elapsed_s:3.0f} s", title_justify="left"
    )
    for column in ("endpoint", "TTFT p95", "ITL p95", "load", "findings", "what happens"):
        table.add_column(column, no_wrap=column == "endpoint")
    for e in seen.values():
        goals = {o["target"]: o for o in e["objective"]}
        table.add_row(
            e["name"],
            _goal(goals.get("ttft_p95_s")),
            _goal(goals.get("itl_p95_s")),
            number(e["load"]["requests_per_s"], "/s", 2),
            "\n".join(f["code"] for f in e["findings"] if f["kind"] != "insufficient_data") or "-",
            _happening(e),
        )
    line = Text(f"\nSlack stand-in: {len(slack.messages)} messages, {len(slack.clicks)} signed clicks. ")
    line.append(f"Page: http://127.0.0.1:{port}")
    return Group(table, line)


def _goal(goal: Mapping[str, Any] | None) -> Text:
    if goal is None or goal["observed"] is None:
        return Text("-", "dim")
    colour = {True: "green", False: "red", None: "yellow"}[goal["met"]]
    return Text(f"{spread(goal['observed'], goal['at_least'], goal['at_most'])} / {goal['limit']:g} s", colour)


def _happening(e: Mapping[str, Any]) -> Text:
    change, advice = e["change"], e["advice"]
    if change is not None:
        colour = {"succeeded": "green", "rolled_back": "yellow", "failed": "red"}.get(change["state"], "cyan")
        return Text(f"{change['state'].replace('_', ' ')}: {change['what']}", colour)
    if advice is not None:
        return Text(f"{advice['state']}: {advice['what']}", "cyan")
    state = e["decision"]["state"] if e["decision"] is not None else "gathering"
    return Text(_STATES[state], "dim" if state in ("fine", "gathering", "not_known") else "yellow")


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
        wanted = {"grow": "succeeded", "shrink": "succeeded", "rollback": "rolled_back", "right": "right"}[
            role.expected
        ]
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


def _print_tradeoffs(store: Store) -> None:
    """What each considered shape would cost and do."""
    table = _table("Trade-offs: every shape that was considered", "$/month", "TTFT p95, s", "ITL p95, s", "verdict")
    for brief in views.recommendation_list(store)["recommendations"]:
        view = views.recommendation(store, brief["id"])
        assert view is not None
        now = Shape.from_dict(view["recommendation"]["body"]["current"]["shape"])
        table.add_row(f"[bold]{brief['endpoint']}[/bold]")
        for o in view["recommendation"]["body"]["options"][:6]:
            style = {"chosen": "bold green", "current": "bold"}.get(o["verdict"], "dim")
            table.add_row(
                difference(now, Shape.from_dict(o["shape"])) or "as it is",
                money(per_month(o["money"]["per_hour"])),
                _interval(o, "ttft_p95_s"),
                _interval(o, "itl_p95_s"),
                o["verdict"].lower().replace("_", " "),
                style=style,
            )
    stdout.print(table)


def _table(title: str, *columns: str) -> Table:
    """Of endpoints, and under each what differs: readable at 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", min_width=19, overflow="fold")
    for column in columns:
        table.add_column(column)
    return table


def _interval(option: Mapping[str, Any], metric: str) -> str:
    interval = (option["prediction"] or {"metrics": {}})["metrics"].get(metric)
    return f"{interval['low']:.2g} to {interval['high']:.2g}" if interval else "-"


_PLAIN = {"ttft_p95_s": "TTFT p95, s", "itl_p95_s": "ITL p95, s"}


def _print_ledger(summary: Mapping[str, Any]) -> None:
    table = _table("Ledger: promised and observed", "metric", "before", "promised", "observed", "promise")
    for c in summary["changes"]:
        table.add_row(f"[bold]{c['endpoint']}[/bold]")
        for i, r in enumerate(r for r in c["ledger"] if r["metric"] in _PLAIN):
            table.add_row(
                c["what"] if i == 0 else "",
                _PLAIN[r["metric"]],
                number(r["before"], digits=2),
                f"{number(r['low'], digits=2)} to {number(r['high'], digits=2)}",
                r["observed_text"],
                {"held": "[green]held[/green]", "missed": "[red]missed[/red]"}.get(r["verdict"], r["verdict"]),
            )
    stdout.print(table)
    reasons = [
        f"[bold]{c['endpoint']}[/bold] {c['state'].replace('_', ' ')}: {c['state_reason']}" for c in summary["changes"]
    ]
    stdout.print(Panel("\n".join(reasons) or "nothing was changed", title="How each change ended", title_align="left"))
