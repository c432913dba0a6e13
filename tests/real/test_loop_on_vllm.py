"""The whole loop on a real vLLM server: deployed, loaded, watched, resized with a signed approval, verified; and a bad change undone.

Everything is the product's own: the command line deploys, the daemon's process watches and acts, the actuator restarts vLLM. Only
Slack's side is a stand-in, which signs as Slack does. The load is measured out on the machine at hand, because its speed varies.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actuators.vllm_local.actuator import teardown
from actuators.vllm_local.processes import Processes
from agent import views
from agent.clock import WallClock
from agent.demo.slack_stand_in import SlackStandIn
from agent.store import Store, changes, fleet, windows
from analyzers.objective import total
from collectors.base import ScrapeTarget
from collectors.completion import PATHS, Completion, complete, request_of
from collectors.http import Http
from collectors.plan import Lengths, TrafficPlan
from collectors.traffic.thread import TrafficResult, simulate
from tests.actuators.support import free_port
from tests.agent.daemons import ROOT, Daemon, flyball, running, write_settings
from tests.real.vllm_parts import MODEL_NAME, off_one_core, vllm_options

# Five to eight minutes on two cores. Two vLLM servers at once can stall a slower machine for minutes, hence the limit.
pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(2400)]

NAME = "chat"
USER = "U0REAL123"
SECRETS = ("FLYBALL_TEST_SIGNING_SECRET", "FLYBALL_TEST_WEBHOOK")
PROMPT_TOKENS = 32
#: A client gives up after so long. It bounds the backlog: what an overloaded server has not begun by then is withdrawn.
PATIENCE_S = 40.0
#: One request alone is made to take about this long, on whatever machine.
REQUEST_S = 0.8
#: A machine that is shared stalls for seconds: readings further apart than 2.5 intervals observe nothing, so they are not too close.
INTERVAL_S, WINDOW_S = 2.0, 4.0
WARMUP_S = 4.0
ARTIFACTS = ROOT / "artifacts"


@dataclass(frozen=True)
class Load:
    """What this machine's server, with one slot, cannot carry; with sixteen it carries many times as much."""

    output_tokens: int
    rate: float
    ttft_limit_s: float


def test_the_whole_loop_on_a_real_vllm_server(tmp_path: Path) -> None:
    state = tmp_path / "flyball-state" / "endpoints" / NAME
    try:
        asyncio.run(_story(tmp_path))
        processes = Processes(state)
        assert {p.name for p in processes.scan()} > {"router"}, "the server outlives Flyball"
    finally:
        teardown(state, grace_s=20.0)
    assert Processes(state).scan() == []
    assert _marked(tmp_path) == []


async def _story(folder: Path) -> None:
    clock = WallClock()
    http = Http()
    url = f"http://127.0.0.1:{free_port()}"
    options = vllm_options(folder, strategy="overlap", drain_timeout_s=1.5 * PATIENCE_S, grace_s=20.0)
    options["python"] = off_one_core(folder)
    slack = SlackStandIn(http, clock, secret="8f742231b10e8888abcd99yyyzzz85a5", user=USER)
    await slack.start()
    try:
        config = _configure(folder, url, options, slack, ttft_limit_s=1.0)
        env = dict(zip(SECRETS, (slack.secret, slack.webhook_url), strict=True))
        await _deploy(config, env)
        load = await _measure_out(url, http)
        config = _configure(folder, url, options, slack, load.ttft_limit_s)
        with running(config, env=env) as daemon:
            async with _traffic(load, url, clock, daemon.settings.database) as traffic:
                slack.actions_url = f"http://127.0.0.1:{daemon.settings.web.port}/slack/actions"
                await asyncio.to_thread(_grows, daemon)
                await asyncio.to_thread(_errs_and_comes_back, daemon, env)
                _keep(daemon, traffic, load)
                assert all(status == 200 for _, status in slack.clicks)
                assert len(slack.clicks) >= 1
                assert await asyncio.to_thread(daemon.stop) == 0
        assert (await _request(http, url, 4)).output_tokens == 4, "the endpoint serves on without Flyball"
        assert set(traffic) <= {"ok", "timeout"}, f"a restart cut requests: {traffic}"
        assert traffic["ok"] > 100
    finally:
        await slack.stop()
        await http.aclose()


# -- the scenes --------------------------------------------------------------------------------------------------------


async def _deploy(config: Path, env: Mapping[str, str]) -> None:
    """The first deployment, by the command line; a second one is refused."""
    first = await asyncio.to_thread(_flyball, config, env, "deploy", NAME, "--yes")
    assert first.returncode == 0, first.stderr
    assert "start g1-0 and wait until they serve" in first.stderr
    second = await asyncio.to_thread(_flyball, config, env, "deploy", NAME, "--yes")
    assert second.returncode == 1
    assert "runs already, as 1 replica, max_num_seqs=1" in " ".join(second.stderr.split())


def _grows(daemon: Daemon) -> None:
    """One slot queues: Flyball finds out, proposes more, is approved, restarts with drain, verifies, and keeps the ledger."""
    change = daemon.until(lambda: _ended(daemon, 1), "the first change has ended", limit_s=600)
    assert change["state"] == "succeeded", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    assert (change["before"], change["after"]) == ("1 replica, max_num_seqs=1", "1 replica, max_num_seqs=16")
    assert change["approved_by"] == f"slack:{USER}"
    done = [(row["operation"]["name"], row["state"]) for row in change["journal"]]
    steps = ("start_replicas", "switch", "drain", "stop_replicas", "kill_replicas")
    assert done == [(name, "done") for name in steps]
    row = next(r for r in change["ledger"] if r["metric"] == "ttft_p95_s")
    assert None not in (row["low"], row["predicted"], row["high"], row["before"], row["observed"])
    assert row["observed"] < row["before"]
    advice = _view(
        daemon, lambda store: views.recommendation(store, daemon.settings, change["recommendation_id"], time.time())
    )["recommendation"]
    assert "OBJECTIVE_BREACH_TTFT_P95_S" in {r["code"] for r in advice["reasons"]}
    assert [(d["channel"], d["action"], bool(d["accepted"])) for d in advice["decisions"]] == [
        ("slack", "approve", True)
    ]


def _errs_and_comes_back(daemon: Daemon, env: Mapping[str, str]) -> None:
    """A person asks for one slot again, and approves at the command line, as Slack may not decide what is of high risk: the regression is
    found and undone, and the endpoint is frozen."""
    daemon.until(lambda: _requests_since_change(daemon) >= 40, "there is evidence of the new shape", limit_s=120)
    proposed = _flyball(daemon.config, env, "recommendations", "propose", NAME, "--shape", "max_num_seqs=1")
    assert proposed.returncode == 0, proposed.stderr
    listed = json.loads(_flyball(daemon.config, env, "recommendations", "list", "-o", "json").stdout)["recommendations"]
    (asked,) = (r for r in listed if r["state"] in ("proposed", "notified"))
    approved = _flyball(daemon.config, env, "recommendations", "approve", asked["id"], "--yes")
    assert approved.returncode == 0, approved.stderr
    change = daemon.until(lambda: _ended(daemon, 2), "the bad change has ended", limit_s=600)
    assert change["state"] == "rolled_back", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    assert change["approved_by"].startswith("cli:")
    assert {row["direction"] for row in change["journal"]} == {"apply", "rollback"}
    assert all(row["state"] == "done" for row in change["journal"])
    row = next(r for r in change["ledger"] if r["metric"] == "ttft_p95_s")
    assert row["observed"] > row["before"]

    def as_it_was() -> dict[str, Any] | None:
        """The shape on the page is that of the last analysis."""
        endpoint: dict[str, Any] = daemon.json(f"/endpoints/{NAME}.json")["endpoint"]
        return endpoint if endpoint["label"] == "1 replica, max_num_seqs=16" and endpoint["ready"] else None

    endpoint = daemon.until(as_it_was, "the shape before is live again")
    assert endpoint["frozen"].startswith(f"change {change['id']} rolled back")


# -- load --------------------------------------------------------------------------------------------------------------


async def _measure_out(url: str, http: Http) -> Load:
    """First one request alone, then what one slot carries at most; the load is a third more than that."""
    for _ in range(2):
        await _request(http, url, 8)  # the first ones compile and warm up
    alone = await _request(http, url, 64)
    gap_s = (alone.last_at - alone.first_at) / 63
    output = int(min(512, max(16, REQUEST_S / gap_s)))
    alone = await _request(http, url, output)
    ended, until = 0, time.monotonic() + 8.0

    async def client() -> None:
        nonlocal ended
        while time.monotonic() < until:
            await _request(http, url, output)
            ended += time.monotonic() < until

    await asyncio.gather(*(client() for _ in range(3)))
    return Load(output, 1.33 * max(ended, 1) / 8.0, 1.25 * (alone.last_at - alone.sent_at))


async def _request(http: Http, url: str, tokens: int) -> Completion:
    body = request_of("completions", MODEL_NAME, "the valve " * (PROMPT_TOKENS // 2), tokens, exact=True)
    return await complete(http, url + PATHS["completions"], body, headers={}, timeout_s=120)


@asynccontextmanager
async def _traffic(load: Load, url: str, clock: WallClock, database: str) -> AsyncIterator[Counter[str]]:
    """Open-loop traffic for as long as the block lasts. Gives how requests ended, counted by kind.

    A fifth of it never stops: those requests a restart must not cut. The rest pauses while replicas are started and stopped: two
    vLLM servers at once, one of them under full load, stall two cores for minutes. Before and after, the load is the same.
    """
    ends: Counter[str] = Counter()

    def send(share: float, seed: int) -> asyncio.Task[TrafficResult]:
        plan = _plan(load, share, seed)
        return asyncio.create_task(
            simulate(plan, ScrapeTarget(NAME, url), clock, lambda record: ends.update([record.error or "ok"]))
        )

    async def rest() -> None:
        store, sending, seed = Store(database), None, 100
        try:
            while True:
                busy = await asyncio.to_thread(_under_way, store)
                if busy and sending is not None:
                    await _end(sending)
                    sending = None
                elif not busy and sending is None:
                    seed += 1
                    sending = send(0.8, seed)
                await asyncio.sleep(0.5)
        finally:
            store.close()
            if sending is not None:
                await _end(sending)

    tasks: list[asyncio.Task[Any]] = [send(0.2, 5), asyncio.create_task(rest())]
    try:
        yield ends
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _end(sending: asyncio.Task[TrafficResult]) -> None:
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


def _under_way(store: Store) -> bool:
    """Whether replicas are being started or stopped."""
    with store.read() as db:
        return any(change["state"] in ("applying", "rolling_back") for change in changes.active(db))


def _plan(load: Load, share: float, seed: int) -> TrafficPlan:
    return TrafficPlan(
        rate=share * load.rate,
        duration_s=3600.0,
        prompt_tokens=Lengths.parse(f"fixed:{PROMPT_TOKENS}"),
        output_tokens=Lengths.parse(f"uniform:{load.output_tokens * 3 // 4}:{load.output_tokens * 5 // 4}"),
        seed=seed,
        model=MODEL_NAME,
        api="completions",
        exact_output=True,
        timeout_s=PATIENCE_S,
    )


# -- looking -----------------------------------------------------------------------------------------------------------


def _ended(daemon: Daemon, number: int) -> dict[str, Any] | None:
    """The ``number``-th change, whole, once it has ended."""
    with daemon.store() as store:
        rows = views.change_list(store)["changes"][::-1] if store.current() == store.head() else []
        if len(rows) < number or rows[number - 1]["state"] not in ("succeeded", "rolled_back", "failed"):
            return None
        found = views.change(store, rows[number - 1]["id"])
    assert found is not None
    change: dict[str, Any] = found["change"]
    return change


def _view(daemon: Daemon, look: Any) -> dict[str, Any]:
    with daemon.store() as store:
        found: dict[str, Any] = look(store)
    return found


def _requests_since_change(daemon: Daemon) -> float:
    def look(store: Store) -> dict[str, Any]:
        with store.read() as db:
            known = fleet.get(db, NAME)
            assert known is not None
            since = known["last_change_at"] + WARMUP_S
            rows = windows.load(db, NAME, "vllm", since, time.time(), WINDOW_S)
        return {"requests": total(rows, "requests") or 0.0}

    return float(_view(daemon, look)["requests"])


def _keep(daemon: Daemon, traffic: Counter[str], load: Load) -> None:
    """What happened, for people: git-ignored."""
    ARTIFACTS.mkdir(exist_ok=True)
    with daemon.store() as store:
        told = {"load": vars(load), "requests": dict(traffic), **views.change_list(store)}
    (ARTIFACTS / "loop_on_vllm.json").write_text(json.dumps(told, indent=1))


def _marked(folder: Path) -> list[str]:
    """Every process of this machine that was started for this test, by its marker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = entry.read_bytes()
        except OSError:
            continue
        if f"FLYBALL_REPLICA={folder}".encode() in environ:
            found.append(entry.parent.name)
    return found


# -- parts -------------------------------------------------------------------------------------------------------------


def _flyball(config: Path, env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return flyball(*words, "-c", str(config), env=env, timeout_s=700)


def _configure(folder: Path, url: str, options: dict[str, Any], slack: SlackStandIn, ttft_limit_s: float) -> Path:
    endpoint = {
        "name": NAME,
        "url": url,
        "model": MODEL_NAME,
        "mode": "approve",
        "objective": {"ttft_p95_s": round(ttft_limit_s, 3), "error_rate": 0.02},
        "shape": {"replicas": 1, "engine": {"max_num_seqs": 1}},
        "usd_per_replica_hour": 0.5,
        "actuator": {"system": "vllm-local", "options": options},
        "policy": {
            "engine": {"max_num_seqs": [1, 16]},
            "evidence_s": 10 * WINDOW_S,
            "min_requests": 15,
            "min_coverage": 0.4,
            "stable_cycles": 2,
            "cooldown_s": 1800,
        },
        "verify": {"warmup_s": WARMUP_S, "windows": 5, "deadline_s": 90, "load_tolerance": 0.35},
    }
    return write_settings(
        folder,
        [endpoint],
        collect={"interval_s": INTERVAL_S, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 4},
        decide={"interval_s": 4, "act_interval_s": 0.5},
        slack={
            "webhook_url": f"${{{SECRETS[1]}}}",
            "signing_secret": f"${{{SECRETS[0]}}}",
            "approvers": [USER],
            "allow_hosts": [f"127.0.0.1:{slack.port}"],
        },
    )
