"""The what-if engine on a real vLLM server: calibrated at two loads by the command line, it foretells a third load and another limit.

The product's own parts: the command line deploys, the daemon collects, `flyball calibrate` fits. Four choices make its errors mean
something on two cores that others use too:

- The model's iterations are arithmetic (``LARGER``). Those of the tiny one are processes that wake each other, whose speed the machine's
  other work decides, and not the batch.
- The third load lies between the two that were seen: what is asked is the engine's answer, not how far it can be stretched.
- Another ``max_num_seqs`` is asked at a load that it carries, where the queue has a length. One without end is only asked whether it is.
- The greater of the two loads comes again after the third, request for request. By how much its times differ is the machine's drift,
  printed beside the errors; bounds are wide beside it, and nothing is corrected by it. A neighbour who came and went in between is in
  no drift.

What was measured is the server's own page before and after, so that it is these requests' and no others'.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.shape import Shape
from actuators.vllm_local.actuator import VllmLocal, teardown
from agent.clock import WallClock
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.model import EngineModel
from analyzers.whatif.outlook import Member, look
from collectors.base import ScrapeTarget, SourceContext
from collectors.http import Http
from collectors.plan import Arrivals, Lengths, TrafficPlan
from collectors.sessions import Sessions
from collectors.traffic.account import CountRules
from collectors.traffic.connection import resolve
from collectors.traffic.engine import Assignment, Engine
from collectors.traffic.preflight import tokens_per_word
from collectors.traffic.record import RequestRecord
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import OpenSchedule
from collectors.vllm import VllmCollector
from collectors.window import Histogram, Reading
from collectors.workload import Floats, Workload
from tests.actuators.support import carry_out, context, free_port
from tests.agent.daemons import ROOT, flyball, running, write_settings
from tests.real.vllm_parts import LARGER, MODEL_NAME, vllm_options

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(1800)]

NAME = "chat"
SLOTS, FEW = 16, 1
WINDOW_S = 4.0
#: Shares of what the server does at most: the calibration's two, and the third between them.
LOW, HIGH, BETWEEN = 0.12, 0.6, 0.35
#: Of what one slot serves, at a request's time under the low load.
CARRIED, TOO_MUCH = 0.75, 8.0
METRICS = ("ttft_s", "itl_s", "e2e_s")
#: How far a prediction may be off on a machine that does not drift, and how many drifts more.
ALLOWED, DRIFTS = 0.25, 2.0
ARTIFACTS = ROOT / "artifacts"


@dataclass(frozen=True)
class Seen:
    """What came of one load, by the server's own metrics: a client that shares two cores with it is late itself."""

    workload: Workload
    means: Mapping[str, float]
    """Seconds by metric."""
    running: float
    """Mean requests in the server that do not wait for a slot, from the first request to the last answer."""
    saturated: bool
    """By the rule of ``Replay.saturated``."""


@dataclass(frozen=True)
class Told:
    """A load, and what was foretold of it."""

    what: str
    seen: Seen
    members: Sequence[Member]

    def mean(self, metric: str) -> float:
        return _mean(self.members[0], metric)

    def error(self, metric: str) -> float:
        return self.mean(metric) / self.seen.means[metric] - 1.0

    @property
    def saturates(self) -> bool:
        return self.members[0].replay.saturated


def test_it_foretells_a_load_and_a_limit_that_it_has_not_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    options = vllm_options(tmp_path, LARGER, drain_timeout_s=60.0, grace_s=20.0)
    config = _configure(tmp_path, url, options)
    state = tmp_path / "flyball-state" / "endpoints" / NAME
    try:
        deployed = flyball("deploy", NAME, "--yes", "-c", str(config), timeout_s=700)
        assert deployed.returncode == 0, deployed.stderr
        most = _capacity(url)
        with running(config) as daemon:
            daemon.ready()
            time.sleep(WINDOW_S)  # its start takes a core, which no later load would see taken
            greater = _plan(HIGH * most, 20.0)
            low, high = _send(url, _plan(LOW * most, 40.0)), _send(url, greater)
            known = _calibrated(tmp_path, config)
            third, again = _send(url, _plan(BETWEEN * most, 25.0)), _send(url, greater)
            asyncio.run(_resize(state, url, options, FEW))
            one = 1.0 / low.means["e2e_s"]  # requests a second of one slot: at the low load they hardly meet
            _requests(url, _plan(2.0, 2.0))  # the first ones compile
            carried = _send(url, _plan(CARRIED * one, 40.0))
            flooded = _send(url, _plan(TOO_MUCH * one, 4.0, "constant"))
            assert daemon.stop() == 0
    finally:
        teardown(state, grace_s=20.0)
    wide = _foretold("a third load", known, third, SLOTS)
    narrow = _foretold(f"max_num_seqs={FEW}", known, carried, FEW)
    endless = _foretold(f"max_num_seqs={FEW}, too much", known, flooded, FEW)
    drift = {metric: again.means[metric] / high.means[metric] - 1.0 for metric in METRICS}
    with capsys.disabled():
        _keep([wide, narrow, endless], {"low": low, "high": high, "high again": again}, drift, known)
    assert known.model.limits.max_num_seqs == SLOTS
    assert low.running < third.running < high.running, "the third load lies between the two"
    for told, saturates in ((wide, False), (narrow, False), (endless, True)):
        assert (told.saturates, told.seen.saturated) == (saturates, saturates), told.what
    assert narrow.mean("ttft_s") > 2 * wide.mean("ttft_s"), "one slot was foretold to queue"
    assert carried.means["ttft_s"] > 2 * third.means["ttft_s"], "and so it did"
    # Behind a queue, times move with the speed by 1 + 1 / (1 - load) times as much: Pollaczek and Khinchine's mean wait. Without one, a
    # first token is so few milliseconds that a neighbour's time slice counts.
    behind = 1.0 + 1.0 / (1.0 - min(carried.running, 0.8))
    for told, factors in ((wide, (2.0, 1.0, 1.0)), (narrow, (behind, 1.0, behind))):
        for metric, factor in zip(METRICS, factors, strict=True):
            bound = factor * math.log1p(ALLOWED + DRIFTS * max(abs(drift["itl_s"]), abs(drift[metric])))
            assert abs(math.log1p(told.error(metric))) < bound, f"{told.what}: {metric} {told.error(metric):+.0%}"


def _foretold(what: str, known: CalibratedEngine, seen: Seen, slots: int) -> Told:
    model = known.model.with_limits(max_num_seqs=slots)
    return Told(what, seen, list(look(seen.workload, model, [known.best, *known.draws], known.discrepancy)))


def _mean(member: Member, metric: str) -> float:
    found = member.times.mean(metric, slice(None))
    assert found is not None
    return found


def _keep(told: Sequence[Told], loads: Mapping[str, Seen], drift: Mapping[str, float], known: CalibratedEngine) -> None:
    """The errors, for people: printed, and git-ignored."""
    rows: list[dict[str, Any]] = []
    say = sys.stdout.write
    say("\nrunning: " + ", ".join(f"{what} {seen.running:.2f}" for what, seen in loads.items()) + "\n")
    say(
        f"{'load':<26}{'running':>8}  {'metric':<7}{'predicted':>10}{'80 %':>17}{'actual':>9}{'error':>8}{'drift':>8}\n"
    )
    for one in told:
        for metric in METRICS:
            low, high = np.quantile([_mean(m, metric) for m in one.members[1:]], (0.1, 0.9))
            row = {
                "what": one.what, "metric": metric, "predicted": one.mean(metric), "actual": one.seen.means[metric],
                "low": low, "high": high, "error": one.error(metric), "drift": drift[metric],
                "running": one.seen.running, "saturated": one.seen.saturated, "foretold_saturated": one.saturates,
            }  # fmt: skip
            rows.append(row)
            say(
                f"{one.what:<26}{one.seen.running:8.2f}  {metric:<7}{row['predicted']:10.4g}{f'{low:.3g} .. {high:.3g}':>17}"
                f"{row['actual']:9.4g}{row['error']:+8.1%}{row['drift']:+8.1%}\n"
            )
    for one in told:
        say(f"{one.what}: saturates {one.saturates}, saturated {one.seen.saturated}\n")
    seen = {what: {"running": load.running, **load.means} for what, load in loads.items()}
    found = {
        "rows": rows, "loads": seen, "drift": dict(drift), "residuals": dict(known.residuals), "load": list(known.load),
        "iteration": known.model.iteration.as_tuple(), "lag": known.lag, "overhead_s": known.overhead_s,
    }  # fmt: skip
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "whatif_on_vllm.json").write_text(json.dumps(found, indent=1))


# -- traffic -----------------------------------------------------------------------------------------------------------


def _capacity(url: str) -> float:
    """Requests a second that this machine's server does at most, by a burst that fills all slots three times."""
    _requests(url, _plan(2.0, 4.0))  # the first ones compile
    records = _requests(url, _plan(200.0, 0.25))
    ended = max(r.last_s for r in records if r.last_s is not None)
    return len(records) / ended


def _plan(rate: float, seconds: float, arrivals: Arrivals = "poisson") -> TrafficPlan:
    """Prompts are shorter than a cache block (128 tokens on a CPU), so that no load finds what another one left there."""
    return TrafficPlan(
        rate=rate, duration_s=seconds, prompt_tokens=Lengths.parse("uniform:16:64"), output_tokens=Lengths.parse("uniform:24:72"),
        arrivals=arrivals, seed=round(1000 * rate), model=MODEL_NAME, api="completions", exact_output=True, timeout_s=240.0,
    )  # fmt: skip


def _send(url: str, plan: TrafficPlan) -> Seen:
    template = _template(url, plan)  # it sends, too: before the page is read
    before, start = asyncio.run(_page(url)), time.monotonic()
    records = _requests(url, plan, template)
    spent, after = time.monotonic() - start, asyncio.run(_page(url))
    means, totals = {}, {}
    for metric in (*METRICS, "queue_s"):
        totals[metric], count = _between(before, after, metric)
        assert metric == "itl_s" or count == len(records), "the server counts other requests too"
        means[metric] = totals[metric] / count
    sent = np.array([r.sent_s for r in records], np.float64)
    prompt, output = (
        np.array([getattr(r, f"{what}_tokens") for r in records], np.int64) for what in ("prompt", "output")
    )
    return Seen(
        workload=Workload(sent - sent[0], prompt, output, np.zeros_like(prompt)),
        means=means,
        running=(totals["e2e_s"] - totals["queue_s"]) / spent,
        saturated=_saturated(sent, np.array([r.first_s for r in records], np.float64)),
    )


def _template(url: str, plan: TrafficPlan) -> RequestTemplate:
    """Two small requests tell how many tokens a word has."""
    template = RequestTemplate(plan.model, plan.api, exact_output=plan.exact_output, seed=plan.seed)
    return replace(template, words=tokens_per_word(resolve(url), template, plan.timeout_s))


def _requests(url: str, plan: TrafficPlan, template: RequestTemplate | None = None) -> list[RequestRecord]:
    """Sent by the engine of ``flyball simulate``, whose stamps are the kernel's."""
    records: list[RequestRecord] = []
    template, load = template or _template(url, plan), OpenSchedule(plan.workload(), plan.duration_s)
    assignment = Assignment(resolve(url), template, load, CountRules(), plan.timeout_s, records=True)
    Engine(assignment, records.append).run(time.perf_counter())
    failed = [f"{r.error}: {r.detail}" for r in records if r.error is not None]
    assert not failed, failed[:3]
    return sorted(records, key=lambda r: r.sent_s or 0.0)


def _saturated(sent: Floats, first: Floats) -> bool:
    """Whether more waited for a first token at the last arrival than half-way, by the margins of ``Replay.saturated``."""
    late = len(sent) - len(sent) // 2

    def waiting(at: float) -> int:
        return int(np.count_nonzero((sent <= at) & (first > at)))

    grown = waiting(float(sent[-1])) - waiting(float(sent[len(sent) // 2]))
    return grown > max(0.05 * late, 3.0 * math.sqrt(late))


async def _page(url: str) -> Reading:
    await asyncio.sleep(0.2)  # the server counts a request a moment after its last byte
    http = Http()
    try:
        (reading,) = await VllmCollector(SourceContext(NAME, MODEL_NAME, http, WallClock(), Sessions())).read(
            ScrapeTarget(NAME, url)
        )
        return reading
    finally:
        await http.aclose()


def _between(before: Reading, after: Reading, metric: str) -> tuple[float, float]:
    """(sum, count) of what was added."""
    nothing = Histogram((), (0.0,), 0.0)
    old, new = (page.histograms.get(metric, nothing) for page in (before, after))
    return new.total - old.total, new.counts[-1] - old.counts[-1]


# -- parts -------------------------------------------------------------------------------------------------------------


def _configure(folder: Path, url: str, options: dict[str, Any]) -> Path:
    endpoint = {
        "name": NAME,
        "mode": "approve",
        "url": url,
        "model": MODEL_NAME,
        "objective": {"ttft_p95_s": 5.0},
        "shape": {"replicas": 1, "engine": {"max_num_seqs": SLOTS}},
        "actuator": {"system": "vllm-local", "options": options},
        "verify": {"warmup_s": 0.1},
    }
    collect = {"interval_s": 1.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 4}
    return write_settings(folder, [endpoint], collect=collect)


def _calibrated(folder: Path, config: Path) -> CalibratedEngine:
    """What the command line learns from the windows until now."""
    time.sleep(WINDOW_S + 2.0)  # until the last one is closed
    engine = folder / "engine.json"
    # A machine that other work shares changes its speed between two windows: then no engine model reaches both, and it says so.
    asked = ("--endpoint", NAME, "--since", "10m", "--accept-misfit", "--out", str(engine), "-c", str(config))
    learned = flyball("calibrate", *asked)
    assert learned.returncode == 0, learned.stderr
    known = CalibratedEngine.of_engine(EngineModel.from_json(engine.read_text()))
    assert known is not None
    return known


async def _resize(state: Path, url: str, options: dict[str, Any], slots: int) -> None:
    def make() -> VllmLocal:
        return VllmLocal(context(state, url, Shape(replicas=1), options))

    live = await make().live()
    plan = await make().plan(live, Shape(replicas=1, engine={"max_num_seqs": slots}))
    await carry_out(make, plan, "narrow", limit_s=600)
