"""The what-if engine on a real vLLM server: calibrated at two loads by the command line, it foretells a third load and other limits.

The product's own parts: the command line deploys, the daemon collects, `flyball calibrate` fits. The machine's speed varies from minute
to minute, so the errors are printed and kept, and what is asserted is what no slow minute can turn round: order, counts, saturation.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.shape import Shape
from actuators.vllm_local.actuator import VllmLocal, teardown
from agent.clock import WallClock
from agent.store import windows
from analyzers.whatif.calibrate import Calibrated
from analyzers.whatif.model import EngineModel
from analyzers.whatif.outlook import Member, look
from collectors.base import Target
from collectors.plan import Lengths, TrafficPlan
from collectors.sketch import Sketch
from collectors.traffic.inside import simulate
from collectors.traffic.record import Record
from collectors.workload import Workload
from tests.actuators.support import carry_out, context, free_port
from tests.agent.daemons import ROOT, Daemon, flyball, running, write_settings
from tests.real.vllm_parts import MODEL_NAME, vllm_options

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

NAME = "chat"
SLOTS, FEW = 16, 1
SECONDS, WINDOW_S = 40.0, 8.0
ARTIFACTS = ROOT / "artifacts"


@dataclass(frozen=True)
class Seen:
    """What came of one load, by the server's own metrics: a client that shares two cores with it is late itself."""

    workload: Workload
    ttft_s: float
    itl_s: float
    e2e_s: float


@dataclass(frozen=True)
class Sent:
    """Traffic that was sent, and when (Unix seconds)."""

    workload: Workload
    start: float
    end: float


def test_it_foretells_a_load_and_limits_that_it_has_not_seen(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    options = vllm_options(tmp_path, drain_timeout_s=60.0, grace_s=20.0)
    config = _configure(tmp_path, url, options)
    state = tmp_path / "flyball-state" / "endpoints" / NAME
    try:
        deployed = flyball("deploy", NAME, "--yes", "-c", str(config), timeout_s=700)
        assert deployed.returncode == 0, deployed.stderr
        rate = asyncio.run(_capacity(url))
        with running(config) as daemon:
            for share in (0.15, 0.6):
                asyncio.run(_send(url, share * rate))
            engine = tmp_path / "engine.json"
            learned = flyball(
                "calibrate", "--endpoint", NAME, "--since", "10m", "--out", str(engine), "-c", str(config)
            )
            assert learned.returncode == 0, learned.stderr
            third = asyncio.run(_send(url, 0.4 * rate))
            asyncio.run(_resize(state, url, options, FEW))
            narrow = asyncio.run(_send(url, 0.4 * rate))
            time.sleep(3 * WINDOW_S)  # until the last window is closed
            wide_seen, narrow_seen = (_seen(daemon, sent) for sent in (third, narrow))
            assert daemon.stop() == 0
        known = Calibrated.of_engine(EngineModel.from_json(engine.read_text()))
        assert known is not None
        assert known.model.limits.max_num_seqs == SLOTS
    finally:
        teardown(state, grace_s=20.0)
    wide, tight = _foretold(known, wide_seen, SLOTS), _foretold(known, narrow_seen, FEW)
    _keep({"a third load": (wide_seen, wide), f"max_num_seqs={FEW}": (narrow_seen, tight)}, known)
    assert (wide[0].replay.saturated, tight[0].replay.saturated) == (False, True), "one slot cannot carry it"
    assert _mean(tight[0], "ttft_s") > _mean(wide[0], "ttft_s"), "fewer slots were foretold to queue"
    assert narrow_seen.ttft_s > wide_seen.ttft_s, "and so they did"
    for members in (wide, tight):
        assert members[0].replay.completed == len(members[0].times.ttft_s)
        assert np.all(np.isfinite([_mean(m, "itl_s") for m in members]))


def _foretold(known: Calibrated, seen: Seen, slots: int) -> list[Member]:
    model = known.model.with_limits(max_num_seqs=slots)
    return list(look(seen.workload, model, [known.best, *known.draws], known.discrepancy))


def _mean(member: Member, metric: str) -> float:
    found = member.times.mean(metric, slice(None))
    assert found is not None
    return found


def _keep(told: dict[str, tuple[Seen, list[Member]]], known: Calibrated) -> None:
    """The errors, for people: printed, and git-ignored."""
    rows = []
    for what, (seen, members) in told.items():
        for metric in ("ttft_s", "itl_s", "e2e_s"):
            actual, best = getattr(seen, metric), _mean(members[0], metric)
            low, high = np.quantile([_mean(m, metric) for m in members[1:]], (0.1, 0.9))
            rows.append({"what": what, "metric": metric, "predicted": best, "actual": actual, "low": low, "high": high})
            sys.stdout.write(
                f"{what}: {metric} {best:.4g} [{low:.3g}, {high:.3g}], measured {actual:.4g}: {best / actual - 1:+.1%}\n"
            )
    ARTIFACTS.mkdir(exist_ok=True)
    found: dict[str, Any] = {"rows": rows, "residuals": dict(known.residuals), "load": list(known.load)}
    (ARTIFACTS / "whatif_on_vllm.json").write_text(json.dumps(found, indent=1))


# -- traffic -----------------------------------------------------------------------------------------------------------


async def _capacity(url: str) -> float:
    """Requests a second that this machine's server does at most, by a burst that fills all slots."""
    await _send(url, 2.0, 5.0)  # the first ones compile
    records = await _records(url, 200.0, 0.5)
    ended = max(r.last_s for r in records if r.last_s is not None)
    return len(records) / ended


async def _send(url: str, rate: float, seconds: float = SECONDS) -> Sent:
    start = time.time()
    records = sorted((r for r in await _records(url, rate, seconds) if r.error is None), key=lambda r: r.due_s)
    assert len(records) >= 3, "the machine hardly served anything"
    columns = [
        np.array(v, np.int64) for v in zip(*((r.prompt_tokens or 1, r.output_tokens) for r in records), strict=True)
    ]
    arrival = np.array([r.due_s for r in records])
    zeros = np.zeros(len(records), np.int64)
    return Sent(Workload(arrival - arrival[0], columns[0], columns[1], zeros), start, time.time())


def _seen(daemon: Daemon, sent: Sent) -> Seen:
    """The means over the windows in which this traffic was served."""
    with daemon.store() as store, store.read() as db:
        rows = windows.load(db, NAME, "vllm", sent.start - WINDOW_S, sent.end + WINDOW_S, WINDOW_S)
    found = {}
    for metric in ("ttft_s", "itl_s", "e2e_s"):
        mean = Sketch.merge([w.sketches[metric] for w in rows if metric in w.sketches]).mean
        assert mean is not None
        found[metric] = mean
    return Seen(sent.workload, **found)


async def _records(url: str, rate: float, seconds: float) -> list[Record]:
    plan = TrafficPlan(
        rate=rate, duration_s=seconds, prompt_tokens=Lengths.parse("uniform:16:64"), output_tokens=Lengths.parse("uniform:24:72"),
        seed=round(1000 * rate), model=MODEL_NAME, api="completions", exact_output=True, timeout_s=240.0,
    )  # fmt: skip
    return (await simulate(plan, Target(NAME, url), WallClock())).records


# -- parts -------------------------------------------------------------------------------------------------------------


def _configure(folder: Path, url: str, options: dict[str, Any]) -> Path:
    endpoint = {
        "name": NAME,
        "url": url,
        "model": MODEL_NAME,
        "objective": {"ttft_p95_s": 5.0},
        "shape": {"replicas": 1, "engine": {"max_num_seqs": SLOTS}},
        "actuator": {"system": "vllm-local", "options": options},
        "verify": {"warmup_s": 0.1},
    }
    collect = {"interval_s": 2.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 4}
    return write_settings(folder, [endpoint], collect=collect)


async def _resize(state: Path, url: str, options: dict[str, Any], slots: int) -> None:
    def make() -> VllmLocal:
        return VllmLocal(context(state, url, Shape(replicas=1), options))

    live = await make().live()
    plan = await make().plan(live, Shape(replicas=1, engine={"max_num_seqs": slots}))
    await carry_out(make, plan, "narrow", limit_s=600)
