"""A real Ray Serve: discovered, found too small, replicas proposed, approved, configured and verified; a bad change back as it was stated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from actuators.base import ActuatorError, Trouble
from actuators.rayserve.actuator import make
from actuators.shape import Shape
from tests.actuators.support import carry_out, context, reach
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.real.ray_serve import RunningServe, serving
from tests.real.scenario import approve, ended, found_kinds, open_recommendations, posts

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

NAME = "chat"
#: Ray's processes tell their metrics every ten seconds.
WINDOW_S = 10.0
#: One replica carries five a second: more than that and less by turns, so that it queues, and that a law of it can be fitted.
RATES = (5.8, 2.5)


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningServe]:
    with serving() as node:
        yield node


def test_from_discovery_to_the_ledger_and_back(ray: RunningServe, tmp_path: Path) -> None:
    ray.deploy()
    config = _configure(tmp_path, ray)
    checked = flyball("check", "--live", "-c", str(config))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    stated = ray.application()["deployed_app_config"]
    with posts(ray.url, RATES, 20.0), running(config) as daemon:
        daemon.until(lambda: "breach" in found_kinds(daemon, NAME), "the breach is found", limit_s=300)
        (asked,) = daemon.until(lambda: open_recommendations(config, {}), "more replicas are proposed", limit_s=300)
        assert ray.application()["deployed_app_config"] == stated, "watching writes nothing"
        approve(config, {}, asked["id"])
        change = daemon.until(lambda: ended(daemon, 1), "the change has ended", limit_s=400)
        assert change["state"] == "succeeded", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
        assert [r["operation"]["name"] for r in change["journal"]] == ["configure"]
        row = next(r for r in change["ledger"] if r["metric"] == "e2e_p95_s")
        assert row["observed"] < row["before"]
        (entry,) = ray.application()["deployed_app_config"]["deployments"]
        assert entry["num_replicas"] > 1
        _goes_back(daemon, config, ray, entry)
        assert daemon.stop() == 0


def _goes_back(daemon: Daemon, config: Path, ray: RunningServe, entry: dict[str, Any]) -> None:
    """One replica again, as a person asks: too few, found out, and taken back."""
    quiet = {"breach", "insufficient_data"}
    daemon.until(lambda: not found_kinds(daemon, NAME) & quiet, "there is evidence of more replicas", limit_s=300)
    asked = flyball("recommendations", "propose", NAME, "--shape", "replicas=1", "-c", str(config))
    assert asked.returncode == 0, asked.stderr
    (row,) = [r for r in open_recommendations(config, {}) if "1 replica" in json.dumps(r)]
    approve(config, {}, row["id"])
    change = daemon.until(lambda: ended(daemon, 2), "the bad change has ended", limit_s=400)
    assert change["state"] == "rolled_back", f"{change['state']}: {change['state_reason']}\n{daemon.tail()}"
    assert ray.application()["deployed_app_config"]["deployments"] == [entry]


def _configure(folder: Path, ray: RunningServe) -> Path:
    """What discovery writes, with the objective and the policy."""
    options = [f"dashboard={ray.dashboard}", f"metrics={ray.metrics}"]
    found = flyball("discover", "ray-serve", *(word for o in options for word in ("--option", o)))
    assert found.returncode == 0, found.stderr
    (entry,) = yaml.safe_load(found.stdout)["endpoints"]
    assert (entry["name"], entry["url"]) == (NAME, ray.url)
    more = {
        "mode": "approve",
        "objective": {"e2e_p95_s": 0.5, "error_rate": 0.5},
        "usd_per_replica_hour": 0.5,
        "policy": {
            "max_replicas": 3,
            "evidence_s": 6 * WINDOW_S,
            "min_requests": 15,
            "min_coverage": 0.4,
            "stable_cycles": 2,
            "cooldown_s": 0,
        },
        "verify": {"warmup_s": 2 * WINDOW_S, "windows": 3, "deadline_s": 240, "load_tolerance": 0.6},
    }
    return write_settings(
        folder,
        [{**entry, **more}],
        collect={"interval_s": 2.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 2},
        decide={"interval_s": 2, "act_interval_s": 0.5},
    )


def test_the_external_scaler_goes_to_zero_and_back_and_refuses_where_it_is_not_enabled(
    ray: RunningServe, tmp_path: Path
) -> None:
    of = context(tmp_path, ray.url, Shape(), {"dashboard": ray.dashboard, "application": NAME, "rollout_s": 120})
    ray.deploy(external_scaler_enabled=True)

    async def story() -> None:
        before = await make(of).live()
        plan = await make(of).plan(before, before.shape.with_(replicas=2))
        assert [o.name for o in plan.operations] == ["scale"]
        await carry_out(lambda: make(of), plan, "a", 120)
        assert (await reach(lambda: make(of), before.shape.with_(replicas=0), "b", 120)).serving == 0
        await asyncio.to_thread(ray.deploy)  # the scaler is disabled: a plan of before finds it out
        with pytest.raises(ActuatorError) as refused:
            await make(of).do(plan.operations[0], "c/0", None)
        assert refused.value.trouble is Trouble.DRIFT
        live = await make(of).live()
        assert (live.shape.replicas, live.serving, live.ready) == (1, 0, False), "the scaler's count stays"

    asyncio.run(story())
