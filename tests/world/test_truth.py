"""Servers that stick, contradict their settings, lose metrics or tell coarse buckets: what is proposed is held against the truth.

A world draws an engine, a load, an objective and a trouble by its seed, and shows Flyball's analysis what a metrics page would have shown
after five windows and after thirty. Whatever it proposes is then replayed on the true engine at the same load: a smaller shape must
keep the objective, any other must be clearly better than the present one. Each trouble is named within three windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.finding import Finding
from analyzers.findings import analyze
from analyzers.hardware import ACCELERATORS
from analyzers.kinds.base import Basis, Replayer
from analyzers.kinds.engine.kind import EngineKind
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import CannotPredict, Predictor, Refusal
from analyzers.recommend import Decision, recommend
from analyzers.situation import Situation
from analyzers.whatif import calibrate as calibration
from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.window import Window
from collectors.workload import Workload
from tests.analyzers.whatif.reference_server import EDGES, poisson, windows

WIDTH, SPAN, EARLY, LATE = 20.0, 30, 5, 30
COARSE = (0.25, 1.0, 5.0, 30.0)
CATALOGUE = Catalogue(prices={"small": 1.0}, built={"small": ("L4", 1)}, hardware=dict(ACCELERATORS))
TROUBLES = ("none", "stuck", "limit", "lost", "coarse")
#: What a proposal better than the present shape must at least gain.
CLEARLY = 0.95
SEEDS = 3


@dataclass(frozen=True)
class World:
    """The truth of one seed."""

    seed: int
    trouble: str
    model: EngineModel
    """True limits included."""
    work: Workload
    shape: Shape
    """As the settings state it."""
    objective: Objective
    begins: int
    """The window at which the trouble begins."""

    def windows(self) -> list[Window]:
        edges = COARSE if self.trouble == "coarse" else EDGES
        stuck = self.begins * WIDTH if self.trouble == "stuck" else np.inf
        seen = windows(
            self.model, self.work, replicas=self.shape.replicas or 1, edges=edges, stuck_at=stuck, duration_s=WIDTH
        )[:SPAN]
        return [_without(w) if self.trouble == "lost" and i >= self.begins else w for i, w in enumerate(seen)]

    def observed(self, shape: Shape) -> float:
        """The largest share of its limit that any target takes, in truth, on a shape."""
        slots = shape.engine["max_num_seqs"]
        assert isinstance(slots, int)
        if self.trouble == "limit" and slots == self.shape.engine["max_num_seqs"]:
            slots = self.model.limits.max_num_seqs  # what is stated was never true
        model = self.model.with_limits(max_num_seqs=slots)
        each = replay(self.work, model, replicas=shape.replicas or 1).per_request
        assert each is not None
        gaps = (each.e2e_s - each.ttft_s) / np.maximum(self.work.output_tokens - 1, 1)
        values = {"ttft_s": each.ttft_s, "itl_s": gaps}
        return max(float(np.quantile(values[t.metric], t.quantile or 0.0)) / t.limit for t in self.objective.targets)


def world(seed: int, trouble: str) -> World:
    rng = np.random.default_rng([seed, TROUBLES.index(trouble)])
    stated, replicas = int(rng.choice([8, 16, 32])), int(rng.integers(1, 4))
    true = stated // int(rng.choice([2, 4])) if trouble == "limit" else stated
    model = EngineModel(
        IterationCost(
            float(rng.uniform(0.01, 0.03)), float(rng.uniform(5e-5, 2e-4)), 2e-7, float(rng.uniform(5e-5, 2e-4))
        ),
        EngineLimits(true, 2048, 400_000),
    )
    # A limit below which the load stays shows nowhere: it cannot be known, and the risk of a proposal says so.
    rate = replicas * float(rng.uniform(0.9 if trouble == "limit" else 0.1, 1.1)) * _carries(model)
    return World(
        seed,
        trouble,
        model,
        poisson(rate, SPAN * WIDTH, seed, prompt=200.0, output=50.0),
        Shape(replicas=replicas, size="small", accelerator="L4", accelerator_count=1, engine={"max_num_seqs": stated}),
        Objective.from_mapping(
            {"ttft_p95_s": float(rng.uniform(0.3, 3.0)), "itl_p95_s": float(rng.uniform(0.08, 0.3))}
        ),
        int(rng.integers(6, 20)),
    )


def _carries(model: EngineModel) -> float:
    """Requests per second of 200 and 50 tokens that one replica carries, about."""
    n, cost = model.limits.max_num_seqs, model.iteration
    iteration = cost.base_s + n * cost.per_sequence_s
    return 1.0 / (50 * iteration / n + 200 * cost.per_prefill_token_s)


def _without(window: Window) -> Window:
    """The page keeps its gauges, and loses its counters and histograms."""
    gone = dict.fromkeys((*window.counts, *window.sketches), 0.0)
    return replace(window, counts={}, sketches={}, observed=gone)


def situation(w: World, seen: Sequence[Window]) -> Situation:
    policy = Policy(max_replicas=5, engine={"max_num_seqs": [4, 8, 16, 32]}, min_requests=20)
    shown = seen[-1].end
    return Situation(
        "chat", "vllm", seen, 0.0, shown, w.objective, policy, w.shape, CATALOGUE.per_hour(w.shape), wanted_s=SPAN * WIDTH, stated=True
    )  # fmt: skip


def decision(s: Situation, findings: Sequence[Finding]) -> Decision:
    kind = EngineKind()
    try:
        calibrated = kind.calibrate(s.windows, s.shape, ACCELERATORS["L4"])
    except CannotPredict as error:
        return recommend(s, findings, CATALOGUE, Refusal(error))
    predictor: Predictor = Replayer(kind, calibrated, s.windows, Basis(s.shape, s.objective, CATALOGUE, {}), 1)
    return recommend(s, findings, CATALOGUE, predictor)


def refuted(w: World) -> Iterator[str]:
    """Proposals that the truth refutes."""
    seen = w.windows()
    for shown in (EARLY, LATE):
        s = situation(w, seen[:shown])
        found = decision(s, analyze(s)).recommendation
        if found is None:
            continue
        now, then = w.observed(w.shape), w.observed(found.proposed.shape)
        fine = then <= 1.0 or (found.direction != "shrink" and then < now * CLEARLY)
        if w.trouble == "stuck" and shown > w.begins + 3:
            fine = False  # no size helps an engine that is stuck
        if not fine:
            shapes = f"{w.shape.label()} -> {found.proposed.shape.label()}"
            yield f"{w.trouble} {w.seed} after {shown} windows: {shapes}: {now:.2f} -> {then:.2f} of the limit; {found.reasons}"


@pytest.fixture(autouse=True)
def _quick_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "REPLAYED", 2_000)


@pytest.mark.parametrize(
    ("trouble", "seeds"),
    [
        *((t, range(SEEDS)) for t in TROUBLES),
        *(pytest.param(t, range(SEEDS, 40), marks=[pytest.mark.real, pytest.mark.timeout(900)]) for t in TROUBLES),
    ],
)
def test_no_resize_is_proposed_that_the_truth_refutes(trouble: str, seeds: range) -> None:
    """Some of them here, and 200 in all with the real parts, where there is time."""
    assert [line for seed in seeds for line in refuted(world(seed, trouble))] == []


@pytest.mark.parametrize(
    ("trouble", "code"), [("stuck", "ENGINE_STUCK"), ("lost", "METRICS_LOST"), ("limit", "SETTINGS_CONTRADICT")]
)
def test_each_trouble_is_named_within_three_windows(trouble: str, code: str) -> None:
    """Of those that it shows at: an engine that is stuck with something under way, a limit at which requests wait."""
    shows = 0
    for seed in range(40):
        w = world(seed, trouble)
        seen = w.windows()
        at = _shows_at(w, seen)
        if at is None:
            continue
        shows += 1
        codes = [f.reason.code for f in analyze(situation(w, seen[: at + 3]))]
        assert code in codes, f"seed {seed}: {codes}"
    assert shows >= 8


TROUBLE_CODES = {"ENGINE_STUCK", "METRICS_LOST", "SETTINGS_CONTRADICT", "TELEMETRY_CONTRADICTS"}


def test_a_sound_server_is_never_called_troubled() -> None:
    for seed in range(40):
        w = world(seed, "none")
        seen = w.windows()
        for shown in (3, EARLY, LATE):
            codes = {f.reason.code for f in analyze(situation(w, seen[:shown]))}
            assert not codes & TROUBLE_CODES, f"seed {seed} after {shown} windows"


def _shows_at(w: World, seen: Sequence[Window]) -> int | None:
    """The first of three windows in a row in which the trouble shows. None: it does not."""
    if w.trouble == "lost":
        return w.begins
    if w.trouble == "stuck":
        under_way = seen[w.begins].gauges["running"].mean + seen[w.begins].gauges["waiting"].mean
        return w.begins if under_way >= 1 and seen[w.begins].count("output_tokens") == 0 else None
    room = w.model.limits.max_num_seqs * (w.shape.replicas or 1)
    full = [g["running"].mean >= 0.97 * room and g["waiting"].mean >= 1 for g in (x.gauges for x in seen)]
    return next((i for i in range(len(full) - 2) if all(full[i : i + 3]) and not any(full[:i])), None)
