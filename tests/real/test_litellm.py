"""A real LiteLLM proxy before two emulated servers: from discovery to the ledger with other weights, and a bad change taken back."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from collectors.plan import Lengths, TrafficPlan
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.real import stores
from tests.real.litellm_proxy import MASTER_KEY, RunningProxy, proxying
from tests.real.scenario import approve, ended, found_kinds, open_recommendations, traffic

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

NAME = "chat"
ENV = {"LITELLM_MASTER_KEY": MASTER_KEY}
HEADERS = {"Authorization": f"Bearer {MASTER_KEY}"}
WINDOW_S = 4.0
WARMUP_S = 4.0
FILE = """\
# Two of ours: an old machine and a new one.
model_list:
  - model_name: chat
    litellm_params:
      model: openai/tiny    # the old one
      api_base: http://{old}/v1
      api_key: sk-not-needed
      weight: 1
    model_info: {{id: old}}
  - model_name: chat
    litellm_params: {{model: openai/tiny, api_base: "http://{new}/v1", api_key: sk-not-needed, weight: 1, rpm: 6000}}
    model_info: {{id: new}}
  - model_name: spare
    litellm_params: {{model: openai/tiny, api_base: "http://{new}/v1", api_key: sk-not-needed}}
    model_info: {{id: spare}}
router_settings:
  num_retries: 0
litellm_settings:
  callbacks: ["prometheus"]
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
"""


@contextmanager
def proxied(folder: Path) -> Iterator[RunningProxy]:
    """The old server takes twenty times as long: three seconds and more, however slow the proxy is on a busy machine."""
    with stores.emulated(2, folder, model="tiny", slow=(20.0, 1.0)) as servers:
        config = folder / "config.yaml"
        config.write_text(FILE.format(old=servers.addresses[0], new=servers.addresses[1]))
        with proxying(config) as proxy:
            yield proxy


def test_from_discovery_to_the_ledger_and_back(tmp_path: Path) -> None:
    with proxied(tmp_path) as proxy:
        whole = proxy.config.read_text()
        config = _configure(tmp_path, proxy)
        _refused_without_the_key(config)
        checked = _flyball(config, "check", "--live")
        assert checked.returncode == 0, checked.stderr + checked.stdout
        with traffic(TRAFFIC, proxy.url, HEADERS), running(config, env=ENV) as daemon:
            daemon.until(lambda: "breach" in found_kinds(daemon, NAME), "the breach is found", limit_s=240)
            assert proxy.config.read_text() == whole, "watching writes nothing"
            assert proxy.starts == 1
            _ask(config, "weight.old=0,weight.new=1,fallbacks=spare")
            change = daemon.until(lambda: ended(daemon, 1), "the change has ended", limit_s=400)
            assert change["state"] == "succeeded", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
            assert [row["operation"]["name"] for row in change["journal"]] == ["write", "restart"]
            row = next(r for r in change["ledger"] if r["metric"] == "e2e_p95_s")
            assert row["observed"] < row["before"]
            assert proxy.starts == 2
            assert _runs(proxy, "old", "weight") == 0
            data = yaml.safe_load(proxy.config.read_text())
            assert data["router_settings"]["fallbacks"] == [{"chat": ["spare"]}]
            assert "# the old one" in proxy.config.read_text()
            _goes_back(daemon, config, proxy, whole)
            assert daemon.stop() == 0


def _refused_without_the_key(config: Path) -> None:
    """Each permission that lacks is named, by the page that the key may not read."""
    lacking = flyball(
        "check", "--live", "-c", str(config), env={"LITELLM_MASTER_KEY": "sk-another-key-than-the-masters"}
    )
    assert lacking.returncode == 2
    said = " ".join((lacking.stdout + lacking.stderr).split())
    assert "lacks GET /model/info" in said
    assert "lacks GET /metrics/" in said
    assert "sk-another" not in said


def _goes_back(daemon: Daemon, config: Path, proxy: RunningProxy, whole: str) -> None:
    """Everything to the old machine: worse, found out, and undone to the byte."""
    before = proxy.config.read_text()
    daemon.until(
        lambda: not found_kinds(daemon, NAME) & {"breach", "insufficient_data"},
        "there is evidence of the new weights",
        limit_s=240,
    )
    _ask(config, "weight.old=1,weight.new=0")
    change = daemon.until(lambda: ended(daemon, 2), "the bad change has ended", limit_s=400)
    assert change["state"] == "rolled_back", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    assert {row["direction"] for row in change["journal"]} == {"apply", "rollback"}
    assert proxy.config.read_text() == before
    assert before != whole
    assert (_runs(proxy, "old", "weight"), _runs(proxy, "new", "weight")) == (0, 1)
    assert proxy.starts == 4


def _ask(config: Path, shape: str) -> None:
    """A person proposes, once more where the proxy was too busy to answer, and approves."""
    until = time.monotonic() + 180
    while (proposed := _flyball(config, "recommendations", "propose", NAME, "--shape", shape)).returncode != 0:
        assert "UNREACHABLE" in proposed.stderr, proposed.stderr
        assert time.monotonic() < until, proposed.stderr
    (asked,) = open_recommendations(config, ENV)
    approve(config, ENV, asked["id"])


def _flyball(config: Path, *words: str) -> Any:
    return flyball(*words, "-c", str(config), env=ENV)


def _configure(folder: Path, proxy: RunningProxy) -> Path:
    """What discovery writes, with the objective, the policy and the command that restarts the proxy."""
    options = [f"url={proxy.url}", f"config={proxy.config}"]
    found = flyball("discover", "litellm", *(word for o in options for word in ("--option", o)), env=ENV)
    assert found.returncode == 0, found.stderr
    entries = {entry["name"]: entry for entry in yaml.safe_load(found.stdout)["endpoints"]}
    assert set(entries) == {"chat", "spare"}
    entry = entries[NAME]
    held = {**entry["actuator"]["options"], "restart": proxy.restart, "restart_s": 240}
    weights = {f"weight.{name}": [0, 1] for name in ("old", "new")}
    policy = {
        **entry["policy"],
        "engine": {**weights, "fallbacks": ["spare"]},
        "evidence_s": 10 * WINDOW_S,
        "min_requests": 10,
        "min_coverage": 0.4,
        "cooldown_s": 0,
        "max_changes_per_day": 5,
    }
    more = {
        "mode": "approve",
        "objective": {"e2e_p95_s": 2.0, "error_rate": 0.5},
        "usd_per_replica_hour": 0.5,
        "actuator": {"system": "litellm", "options": held},
        "policy": policy,
        "verify": {"warmup_s": WARMUP_S, "windows": 4, "deadline_s": 120, "load_tolerance": 0.5},
    }
    return write_settings(
        folder,
        [{**entry, **more}],
        collect={"interval_s": 1.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 2},
        decide={"interval_s": 2, "act_interval_s": 0.5},
    )


#: Four requests a second of 20 tokens; those that meet a restart fail.
TRAFFIC = TrafficPlan(
    rate=4.0,
    duration_s=3600.0,
    prompt_tokens=Lengths.parse("fixed:8"),
    output_tokens=Lengths.parse("uniform:16:24"),
    seed=3,
    model=NAME,
    api="chat",
    exact_output=False,
    timeout_s=20.0,
)


def _runs(proxy: RunningProxy, deployment: str, limit: str) -> Any:
    """What the running proxy says of itself."""
    request = urllib.request.Request(f"{proxy.url}/model/info", headers=HEADERS)
    with urllib.request.urlopen(request, timeout=30) as answer:
        rows = json.loads(answer.read())["data"]
    return next(row["litellm_params"].get(limit) for row in rows if row["model_info"]["id"] == deployment)
