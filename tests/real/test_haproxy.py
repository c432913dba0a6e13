"""A real HAProxy before emulated vLLM servers: discovered, found too small, a spare brought into rotation, verified, kept over a reload."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveryContext
from collectors.haproxy.discover import HAProxySystem
from collectors.haproxy.source import make
from collectors.http import Http
from collectors.plan import Lengths, TrafficPlan
from collectors.sessions import Sessions
from collectors.window import Reading
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.collectors.clocks import MachineClock
from tests.real import stores
from tests.real.haproxy_part import RunningHAProxy, haproxying
from tests.real.scenario import approve, ended, found_kinds, open_recommendations, traffic

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

NAME = "chat"
WINDOW_S = 4.0
#: Two at a time, and each takes about 32 iterations of 8 ms and more: one server carries five or six requests a second.
SLOTS, OUTPUT, RATE = 2, 32, 6.0


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[RunningHAProxy]:
    with (
        stores.emulated(3, tmp_path, model="tiny", max_num_seqs=SLOTS, slow=(1.5, 1.5, 1.5)) as servers,
        haproxying(servers.addresses) as part,
    ):
        yield part


def read(**options: Any) -> Reading:
    async def main() -> Reading:
        http = Http()
        try:
            (reading,) = await make(SourceContext(NAME, None, http, MachineClock(), Sessions(), options)).read(
                ScrapeTarget(NAME, "http://127.0.0.1:9")
            )
            return reading
        finally:
            await http.aclose()

    return asyncio.run(main())


def test_socket_and_exporter_count_what_was_sent_and_how_long_it_took(haproxy: RunningHAProxy) -> None:
    body = b'{"model": "tiny", "prompt": "how are you", "max_tokens": 8}'
    began = time.monotonic()
    for _ in range(20):
        request = urllib.request.Request(f"{haproxy.url}/v1/completions", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=30).read()
    took_s = time.monotonic() - began
    by_socket = read(socket=haproxy.user_socket)
    by_page = read(url=f"http://127.0.0.1:{haproxy.statistics}/metrics")
    spent = by_socket.counters["e2e_total_s"]
    assert by_socket.counters == {**by_page.counters, "e2e_total_s": spent}
    assert "e2e_total_s" not in by_page.counters, "the exporter divides by 512 before there were so many"
    assert (by_socket.counters["requests"], by_socket.counters["errors"]) == (20.0, 0.0)
    assert 0.5 * took_s < spent <= took_s, "one after the other: they fill the time"
    assert by_socket.gauges["replicas"] == by_page.gauges["replicas"] == 1.0
    assert by_socket.facts["server s2"] == by_page.facts["server s2"] == "MAINT"
    assert by_socket.started_at == by_page.started_at


def test_a_socket_of_level_user_lacks_the_permission_to_change(haproxy: RunningHAProxy) -> None:
    async def lacking(socket: str) -> list[str]:
        http = Http()
        try:
            context = DiscoveryContext(http.call, MachineClock(), Sessions(), {"socket": socket})
            return [p.name for p in await HAProxySystem().permitted(context, None) if p.granted is False]
        finally:
            await http.aclose()

    assert asyncio.run(lacking(haproxy.socket)) == []
    assert asyncio.run(lacking(haproxy.user_socket)) == ["stats socket level admin"]


def test_from_discovery_to_the_ledger_and_over_a_reload(haproxy: RunningHAProxy, tmp_path: Path) -> None:
    config = _configure(tmp_path, haproxy)
    checked = flyball("check", "--live", "-c", str(config))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    whole = haproxy.file.read_text()
    plan = TrafficPlan(
        rate=RATE,
        duration_s=3600.0,
        prompt_tokens=Lengths.parse("fixed:8"),
        output_tokens=Lengths.parse(f"fixed:{OUTPUT}"),
        seed=3,
        model="tiny",
        api="completions",
        exact_output=True,
        timeout_s=8.0,
    )
    with traffic(plan, haproxy.url, {}), running(config) as daemon:
        daemon.until(lambda: "breach" in found_kinds(daemon, NAME), "the breach is found", limit_s=240)
        (asked,) = daemon.until(lambda: open_recommendations(config, {}), "more servers are proposed", limit_s=240)
        assert haproxy.file.read_text() == whole, "watching writes nothing"
        assert haproxy.ask("show stat").count(",MAINT,") == 2
        approve(config, {}, asked["id"])
        change = daemon.until(lambda: ended(daemon, 1), "the change has ended", limit_s=400)
        _judge(change, daemon)
        _goes_back(daemon, config, haproxy)
        assert daemon.stop() == 0
    _kept_over_a_reload(haproxy, whole)


def _judge(change: dict[str, Any], daemon: Daemon) -> None:
    assert change["state"] == "succeeded", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    names = [row["operation"]["name"] for row in change["journal"]]
    assert set(names) == {"ready", "persist"}
    assert names[-1] == "persist"
    assert all(row["state"] == "done" for row in change["journal"])
    row = next(r for r in change["ledger"] if r["metric"] == "ttft_p95_s")
    assert None not in (row["predicted"], row["before"], row["observed"])
    assert row["observed"] < row["before"]


def _goes_back(daemon: Daemon, config: Path, haproxy: RunningHAProxy) -> None:
    """One server again, as a person asks: too few, found out, and brought back; the file knows nothing of it."""
    kept, serving = haproxy.file.read_text(), _serving(haproxy)
    quiet = {"breach", "insufficient_data"}
    daemon.until(lambda: not found_kinds(daemon, NAME) & quiet, "there is evidence of more servers", limit_s=240)
    asked = flyball("recommendations", "propose", NAME, "--shape", "replicas=1", "-c", str(config))
    assert asked.returncode == 0, asked.stderr
    (row,) = [r for r in open_recommendations(config, {}) if "1 replica" in json.dumps(r)]
    approve(config, {}, row["id"])
    change = daemon.until(lambda: ended(daemon, 2), "the bad change has ended", limit_s=400)
    assert change["state"] == "rolled_back", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    names = [(r["direction"], r["operation"]["name"]) for r in change["journal"]]
    assert ("apply", "drain") in names
    assert ("rollback", "ready") in names
    assert (haproxy.file.read_text(), _serving(haproxy)) == (kept, serving)


def _serving(haproxy: RunningHAProxy) -> list[str]:
    lines = haproxy.ask("show stat").splitlines()
    return sorted(line.split(",")[1] for line in lines if line.startswith(f"{NAME},s") and ",UP" in line)


def _kept_over_a_reload(haproxy: RunningHAProxy, whole: str) -> None:
    after = haproxy.file.read_text()
    assert after != whole
    assert "# a spare" in after
    serving = _serving(haproxy)
    assert len(serving) > 1
    haproxy.reload()
    states = {
        line.split()[3]: int(line.split()[6])
        for line in haproxy.ask(f"show servers state {NAME}").splitlines()[2:]
        if line
    }
    assert sorted(name for name, admin in states.items() if admin == 0) == serving


def _configure(folder: Path, haproxy: RunningHAProxy) -> Path:
    """What discovery writes, with the objective and the policy."""
    options = [f"socket={haproxy.socket}", f"url={haproxy.url}", f"config={haproxy.file}"]
    found = flyball("discover", "haproxy", *(word for o in options for word in ("--option", o)))
    assert found.returncode == 0, found.stderr
    (entry,) = yaml.safe_load(found.stdout)["endpoints"]
    assert entry["name"] == NAME
    policy = {
        **entry["policy"],
        "evidence_s": 10 * WINDOW_S,
        "min_requests": 15,
        "min_coverage": 0.4,
        "stable_cycles": 2,
        "cooldown_s": 0,
    }
    more = {
        "model": "tiny",
        "mode": "approve",
        "objective": {"ttft_p95_s": 0.5, "error_rate": 0.5},
        "usd_per_replica_hour": 0.5,
        "shape": {"engine": {"max_num_seqs": SLOTS}},
        "policy": policy,
        "verify": {"warmup_s": 8, "windows": 4, "deadline_s": 120, "load_tolerance": 0.6},
    }
    return write_settings(
        folder,
        [{**entry, **more}],
        collect={"interval_s": 1.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 2},
        decide={"interval_s": 2, "act_interval_s": 0.5},
    )
