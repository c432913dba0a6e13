"""A serverless endpoint learned from its own windows: who meets a cold start under other bounds, and which are worth their money."""

from __future__ import annotations

import numpy as np
import pytest

from actuators.shape import Autoscaling, Shape
from agent.advise.sources import function_of
from analyzers.findings import analyze
from analyzers.kinds.base import Basis, Replayer
from analyzers.kinds.results import ReplayTraffic
from analyzers.kinds.serverless.kind import IDLE_S, CalibratedFunction, ServerlessKind
from analyzers.kinds.serverless.platform import Serverless, run
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import CannotPredict
from analyzers.recommend import Decision, recommend, request
from analyzers.situation import Situation
from collectors.sketch import Sketch
from collectors.window import Gauge, Window
from collectors.workload import Workload

KIND = ServerlessKind()
COLD_S, HOURS = 20.0, 6
CATALOGUE = Catalogue(own_price=0.5)
#: A call every two minutes: most of them meet a platform without an instance.
RATE = 1 / 120
SHAPE = Shape(cpus=2.0, autoscaling=Autoscaling(0, 4))
OBJECTIVE = Objective.from_mapping({"e2e_p95_s": 10.0})


def requests(rate: float, seconds: float, seed: int) -> Workload:
    rng = np.random.default_rng(seed)
    n = max(2, int(rng.poisson(rate * seconds)))
    ones = np.ones(n, np.int64)
    return Workload(np.sort(rng.random(n)) * seconds, ones, ones, np.zeros(n, np.int64))


def watched(least: int, rate: float = RATE, **facts: str) -> list[Window]:
    """Hours in five-minute windows, as a platform with these bounds would have told them; calls run two seconds, more or less."""
    work = requests(rate, HOURS * 3600.0, 1)
    times = np.random.default_rng(2).lognormal(np.log(2.0), 0.3, len(work))
    got = run(work, Serverless(1, COLD_S, 4, least, IDLE_S), np.full(len(work), -1.0), times, packed=True)
    found = []
    for i in range(HOURS * 12):
        here = (work.arrival_s >= i * 300.0) & (work.arrival_s < (i + 1) * 300.0)
        queue = got.each.queue_s[here]
        sketches = {
            "processing_s": Sketch.from_values(times[here]),
            "queue_s": Sketch.from_values(queue),
            "e2e_s": Sketch.from_values(got.each.e2e_s[here]),
            "cold_start_s": Sketch.from_values(queue[queue > COLD_S / 2]),
        }
        n = float(np.count_nonzero(here))
        gauges = {"replicas": Gauge(float(least), 4.0, 1.0), "running": Gauge(n * 2 / 300, 1.0, 0.0)}
        told = {name: sketch for name, sketch in sketches.items() if sketch.count}
        counts = {"requests": n, "errors": 0.0}
        found.append(Window("chat", "oscar", i * 300.0, 300.0, 1.0, 1, 0, counts, told, gauges, facts=facts))
    return found


@pytest.fixture(scope="module")
def known() -> CalibratedFunction:
    return KIND.calibrate(watched(0), SHAPE, None)


def basis() -> Basis:
    return Basis(SHAPE, OBJECTIVE, CATALOGUE, {})


def situation(windows: list[Window], shape: Shape, **policy: int) -> Situation:
    rules = Policy(min_replicas=0, max_replicas=4, min_requests=10, min_saving_per_month=1.0, **policy)
    return Situation(
        "chat", "oscar", windows, 0.0, HOURS * 3600.0, OBJECTIVE, rules, shape, None, by_platform=True
    )  # fmt: skip


def decided(windows: list[Window], shape: Shape) -> Decision:
    s = situation(windows, shape)
    predictor = Replayer(KIND, KIND.calibrate(windows, shape, None), windows, basis(), seed=5)
    return recommend(s, analyze(s), CATALOGUE, predictor)


def test_run_times_and_cold_starts_come_out_of_the_windows(known: CalibratedFunction) -> None:
    assert np.median(known.run_s) == pytest.approx(2.0, rel=0.1)
    assert known.cold_s.mid == pytest.approx(COLD_S, rel=0.05)
    assert (known.jobs, known.windows) == (False, HOURS * 12)
    assert KIND.read(known.as_dict()) == known


@pytest.mark.parametrize("least", [0, 1, 2])
def test_the_truth_lies_in_the_interval_under_other_bounds(known: CalibratedFunction, least: int) -> None:
    work = requests(RATE, 24 * 3600.0, 99)
    times = np.random.default_rng(98).lognormal(np.log(2.0), 0.3, len(work))
    truth = run(work, Serverless(1, COLD_S, 4, least, IDLE_S), np.full(len(work), -1.0), times, packed=True)
    got = KIND.predict(SHAPE.with_(autoscaling=Autoscaling(least, 4)), work, known, basis())
    seen = truth.e2e.quantile(0.95)
    assert seen is not None
    assert seen in got.metrics["e2e_p95_s"]
    assert truth.used["instance_s"] / truth.simulated_s in got.metrics["instances_mean"]
    assert got.saturates == 0.0


def test_calls_that_meet_cold_starts_are_a_breach_that_one_warm_instance_ends() -> None:
    advice = decided(watched(0), SHAPE).recommendation
    assert advice is not None
    assert advice.proposed.shape.autoscaling == Autoscaling(1, 4)
    assert advice.direction == "grow"
    prediction = advice.proposed.prediction
    assert prediction is not None
    assert prediction.metrics["e2e_p95_s"].high < 10.0 < COLD_S


def test_more_warm_instances_than_the_objective_needs_are_money_saved() -> None:
    advice = decided(watched(3), SHAPE.with_(autoscaling=Autoscaling(3, 4))).recommendation
    assert advice is not None
    assert advice.proposed.shape.autoscaling == Autoscaling(1, 4)
    now, then = advice.current.money.per_hour, advice.proposed.money.per_hour
    assert now is not None
    assert then is not None
    assert (now, then) == (pytest.approx(1.5, rel=0.1), pytest.approx(0.5, rel=0.2))


def test_what_a_person_asks_for_is_predicted_with_its_money() -> None:
    windows = watched(3)
    shape = SHAPE.with_(autoscaling=Autoscaling(3, 4))
    s = situation(windows, shape)
    predictor = Replayer(KIND, KIND.calibrate(windows, shape, None), windows, basis(), seed=5)
    made = request(s, SHAPE, CATALOGUE, predictor, "ada")
    prediction = made.proposed.prediction
    assert prediction is not None
    assert prediction.metrics["cold_start_share"].mid > 0.3
    assert (made.proposed.money.per_hour or 9.0) < 0.45, "an instance is there while it is wanted, and not else"


def test_jobs_wait_and_run_as_they_did_whatever_the_bounds_are() -> None:
    learned = KIND.calibrate(watched(0, mode="jobs"), SHAPE, None)
    work = requests(RATE, 24 * 3600.0, 99)
    one, two = (KIND.predict(SHAPE.with_(autoscaling=Autoscaling(n, 4)), work, learned, basis()) for n in (0, 3))
    assert learned.jobs
    assert one.metrics == two.metrics
    observed = Sketch.merge([w.sketches["e2e_s"] for w in watched(0) if "e2e_s" in w.sketches]).quantile(0.95)
    assert observed is not None
    assert observed in one.metrics["e2e_p95_s"]


def test_other_cores_change_a_call_by_nothing_up_to_their_ratio(known: CalibratedFunction) -> None:
    work = requests(RATE, 24 * 3600.0, 99)
    warm = SHAPE.with_(autoscaling=Autoscaling(2, 4))
    same, half = (KIND.predict(warm.with_(cpus=c), work, known, basis()) for c in (2.0, 1.0))
    assert (same.extrapolates, half.extrapolates) == (False, True)
    assert half.metrics["e2e_p50_s"].low <= same.metrics["e2e_p50_s"].mid
    assert half.metrics["e2e_p50_s"].high >= 2 * same.metrics["e2e_p50_s"].mid
    with pytest.raises(CannotPredict, match="cpus"):
        KIND.predict(warm.with_(cpus=None), work, known, basis())


def test_without_times_or_bounds_nothing_is_predicted(known: CalibratedFunction) -> None:
    blind = [Window("chat", "oscar", 0.0, 300.0, 1.0, 1, 0, {"requests": 50.0}, {}, {})]
    with pytest.raises(CannotPredict, match="processing_s or e2e_s"):
        KIND.calibrate(blind, SHAPE, None)
    with pytest.raises(CannotPredict, match="autoscaling"):
        KIND.predict(Shape(cpus=2.0), requests(RATE, 3600.0, 1), known, basis())


def test_a_cold_start_that_was_never_seen_is_a_wide_prior_and_said() -> None:
    windows = [
        Window(
            "chat", "probe", 0.0, 300.0, 1.0, 1, 0, {"requests": 50.0}, {"e2e_s": Sketch.from_values([1.0] * 50)}, {}
        )
    ]
    learned = KIND.calibrate(windows, SHAPE, None)
    assert (learned.cold_s.low, learned.cold_s.high) == (3.0, 90.0)
    assert [note.startswith("no cold start was seen") for note in learned.notes] == [False, True]


def test_what_was_learned_is_an_offer_of_its_own(known: CalibratedFunction) -> None:
    offer = function_of(known, SHAPE, 0.5)
    assert offer is not None
    assert (offer.cold_start_s, offer.least, offer.most, offer.idle_s) == (known.cold_s.mid, 0, 4, IDLE_S)
    work = requests(RATE, 24 * 3600.0, 99)
    here = KIND.predict(SHAPE, work, known, basis()).metrics["e2e_p95_s"]
    result = offer.run(ReplayTraffic(work, OBJECTIVE)).best
    assert here.low < (result.distribution("e2e_s").quantile(0.95) or 0.0) < here.high
    assert offer.cost_usd(result) == pytest.approx(0.5 * result.replica_s / 3600.0)
    jobs = function_of(KIND.calibrate(watched(0, mode="jobs"), SHAPE, None), SHAPE, None)
    assert jobs is not None
    assert (jobs.idle_s, jobs.usd_per_billed_hour) == (0.0, None), "a job's instance goes with it"
    assert function_of(known, Shape(cpus=2.0), 0.5) is None
