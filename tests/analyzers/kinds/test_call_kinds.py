"""The kinds ``quota`` and ``ptu`` learned from an endpoint's own windows: other amounts, what spills over, and the change that is worth it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actuators.shape import Purchase, Shape
from analyzers.finding import Finding
from analyzers.findings import analyze
from analyzers.kinds.base import Basis, Kind, Replayer
from analyzers.kinds.ptu import throughput
from analyzers.kinds.ptu.kind import CalibratedPtu, PtuKind
from analyzers.kinds.ptu.throughput import Ptu
from analyzers.kinds.quota import limits
from analyzers.kinds.quota.kind import CalibratedQuota, QuotaKind
from analyzers.kinds.quota.limits import ApiQuota
from analyzers.kinds.service import Retries, ServiceReplay, Speed
from analyzers.money import Unit, Usage
from analyzers.objective import Objective, Target, attainment
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import CannotPredict
from analyzers.recommend import Decision, recommend
from analyzers.situation import Situation
from collectors.sketch import Sketch
from collectors.window import Gauge, Window
from collectors.workload import Workload

SPEED = Speed(0.8, 0.0)
OBJECTIVE = Objective.from_mapping({"throttle_rate": 0.01})
QUOTA, PTU = QuotaKind(), PtuKind()
TPM = Shape(purchase=Purchase(60_000, "tokens_per_minute"), tier="Standard", engine={"requests_per_1k_tokens": 6.0})
UNITS = Shape(purchase=Purchase(50, "ptu"), tier="ProvisionedManaged")


def traffic(per_minute: float, minutes: int, seed: int = 1, *, mixed: bool = False) -> Workload:
    """Calls of about 400 tokens in and 100 out; ``mixed``: the answers' part swings from minute to minute."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.random(rng.poisson(per_minute * minutes))) * minutes * 60.0
    swing = 1.0 + 0.7 * np.sin(arrivals / 200.0) if mixed else np.ones(arrivals.size)
    prompt = rng.integers(300, 500, arrivals.size)
    output = np.maximum(1, rng.integers(60, 140, arrivals.size) * swing).astype(np.int64)
    return Workload(arrivals, prompt, output, np.zeros(arrivals.size, np.int64))


def hour(
    work: Workload, got: ServiceReplay, *, usage: np.ndarray[Any, Any] | None = None, spills: bool = False
) -> list[Window]:
    """What Azure tells of a replay, by the minute: calls by their answer, tokens of those that were answered."""
    done, tried = got.each.e2e_s >= 0.0, got.each.tries
    minute = (work.arrival_s / 60.0).astype(np.int64)
    windows = []
    for i in range(int(minute.max()) + 1):
        here = minute == i
        served = here & done
        refused = float(tried[here].sum() - served[here].sum())
        counts = {
            "requests": float(served.sum()) + refused,
            "throttled": refused,
            "errors": 0.0,
            "prompt_tokens": float(work.prompt_tokens[served].sum()),
            "output_tokens": float(work.output_tokens[served].sum()),
        }
        gauges = {}
        if usage is not None:
            gauges["ptu_usage"] = Gauge(float(usage[i]), float(usage[i]), float(usage[i]))
        sketches = {"e2e_s": Sketch.from_values(np.full(int(served.sum()), 0.8))} if served.any() else {}
        windows.append(Window("chat", "azure", i * 60.0, 60.0, 1.0, 1, 0, counts, sketches, gauges))
    if spills:
        windows = [replace(w, counts={**w.counts, "spilled": w.counts["throttled"], "throttled": 0.0}) for w in windows]
    return windows


def limited(per_minute: float, tpm: int, *, reserve: float, tries: int = 3, minutes: int = 60) -> list[Window]:
    work = traffic(per_minute, minutes)
    asked = np.ceil(work.output_tokens * reserve).astype(np.int64)
    got = limits.replay(work, ApiQuota.azure(tpm), SPEED, max_tokens=asked, retries=Retries(tries=tries), seed=5)
    return hour(work, got)


def provisioned(
    per_minute: float, truth: Ptu, *, minutes: int = 60, spills: bool = False, mixed: bool = True
) -> list[Window]:
    work = traffic(per_minute, minutes, mixed=mixed)
    got = throughput.replay(work, truth, SPEED, spill=SPEED if spills else None, seed=5)
    minute = (work.arrival_s / 60.0).astype(np.int64)
    used = np.bincount(minute, work.prompt_tokens + truth.output_weight * work.output_tokens, minutes)
    usage = np.minimum(1.0, used / (truth.per_second * 60.0))
    return hour(work, got, usage=usage, spills=spills)


def basis(shape: Shape, **prices: Any) -> Basis:
    return Basis(shape, OBJECTIVE, Catalogue(**prices), {})


def replayer(kind: Kind[Any], windows: list[Window], shape: Shape, **prices: Any) -> Replayer:
    return Replayer(kind, kind.calibrate(windows, shape, None), windows, basis(shape, **prices), 7)


def decide(
    kind: Kind[Any], windows: list[Window], shape: Shape, amounts: list[int], **prices: Any
) -> tuple[list[Finding], Decision]:
    predictor = replayer(kind, windows, shape, **prices)
    catalogue = replace(Catalogue(**prices), spill=predictor.spill)
    policy = Policy(purchase=amounts)
    s = Situation("chat", "azure", windows, 0.0, windows[-1].end, OBJECTIVE, policy, shape, catalogue.per_hour(shape))
    findings = analyze(s)
    return findings, recommend(s, findings, catalogue, predictor)


# -- a rate limit --------------------------------------------------------------------------------------------------------


def test_a_quota_is_sized_from_its_own_arrivals_and_refusals() -> None:
    """110 calls a minute of 500 tokens meet 60,000 a minute; callers leave max_tokens at three times of what comes out."""
    windows = limited(110, 60_000, reserve=3.0)
    observed = attainment(windows, Target("throttle_rate", None, 0.01)).observed
    assert observed is not None
    assert observed > 0.05
    findings, decision = decide(QUOTA, windows, TPM, [40_000, 70_000, 90_000, 120_000, 200_000])
    assert {f.reason.code for f in findings} >= {"OBJECTIVE_BREACH_THROTTLE_RATE", "RATE_LIMITED"}
    advice = decision.recommendation
    assert advice is not None
    assert advice.direction == "grow"
    chosen = advice.proposed.shape.purchase
    assert chosen is not None
    # What callers really ask for: 110 x (400 + 3 x 100) = 77,000 a minute, and a Poisson minute above it.
    assert chosen.amount in (90_000, 120_000)
    promised = advice.proposed.prediction
    assert promised is not None
    truth = limited(110, chosen.amount, reserve=3.0)
    came = attainment(truth, Target("throttle_rate", None, 0.01)).observed
    assert came is not None
    assert promised.metrics["throttle_rate"].low <= came <= promised.metrics["throttle_rate"].high + 1e-3
    assert advice.saving_per_month == 0.0, "a rate limit costs nothing"
    smaller = {o.shape.purchase.amount: o.prediction for o in decision.options if o.shape.purchase is not None}
    assert smaller[40_000] is None, "under a breach nothing smaller is replayed"


def test_a_quota_with_room_is_left_alone_since_a_smaller_one_saves_nothing() -> None:
    windows = limited(40, 200_000, reserve=1.0)
    shape = TPM.with_(purchase=Purchase(200_000, "tokens_per_minute"))
    _, decision = decide(QUOTA, windows, shape, [40_000, 100_000, 400_000])
    assert decision.recommendation is None
    assert [r.code for r in decision.hold] == ["RIGHT_SIZE"]


def test_callers_that_give_up_at_once_are_told_from_those_that_come_again() -> None:
    """Half the calls of a minute are refused and lost: the demand is twice what was answered."""
    windows = limited(240, 60_000, reserve=1.0, tries=1)
    known = QUOTA.calibrate(windows, TPM, None)
    assert known.habits.refused == pytest.approx(0.5, abs=0.1)
    assert not known.habits.missed
    lost = [h for h in known.habits.habits if not h.retries]
    assert lost, "that they are lost is among what explains it"
    demand = lost[0].demand(QUOTA.workload(windows, seed=3))
    assert len(demand) / demand.duration_s == pytest.approx(4.0, rel=0.1)


def test_what_no_habit_explains_is_said() -> None:
    """A tenth refused far below the limit: others share it."""
    windows = [
        replace(w, counts={**w.counts, "throttled": 2.0, "requests": w.counts["requests"] + 2.0})
        for w in limited(18, 200_000, reserve=1.0)
    ]
    shape = TPM.with_(purchase=Purchase(900_000, "tokens_per_minute"))
    known = QUOTA.calibrate(windows, shape, None)
    assert known.misfit
    assert "other deployments that share the limit" in known.notes[0]


def test_a_source_that_does_not_tell_refusals_is_no_proof_of_none() -> None:
    windows = [
        replace(w, counts={k: v for k, v in w.counts.items() if k != "throttled"})
        for w in limited(40, 60_000, reserve=1.0)
    ]
    known = QUOTA.calibrate(windows, TPM, None)
    assert known.habits.refused is None
    assert "does not tell how many calls were refused" in known.notes[0]


# -- provisioned throughput ----------------------------------------------------------------------------------------------

TRUTH = Ptu(50, 3000.0, 4.0)
PRICES: dict[str, Any] = {"per_ptu_hour": 1.0, "by_token": {Unit.INPUT_1K: 0.002, Unit.OUTPUT_1K: 0.008}}


def test_what_a_token_takes_is_learned_from_utilisation() -> None:
    known = PTU.calibrate(provisioned(60, TRUTH), UNITS, None)
    assert known.toll.per_unit == pytest.approx(3000, rel=0.02)
    assert known.toll.weight == pytest.approx(4.0, rel=0.05)
    again = PTU.read(known.as_dict())
    assert isinstance(again, CalibratedPtu)
    assert again == known


def test_one_mix_tells_the_sum_and_not_the_parts() -> None:
    known = PTU.calibrate(provisioned(60, TRUTH, mixed=False), UNITS, None)
    assert known.toll.weight == 4.0
    assert "one proportion" in known.toll.note
    assert known.toll.per_unit == pytest.approx(3000, rel=0.02)


def test_without_utilisation_what_the_vendor_states_is_taken_or_nothing_is_claimed() -> None:
    windows = [replace(w, gauges={}) for w in provisioned(60, TRUTH)]
    with pytest.raises(CannotPredict, match="input_tokens_per_minute_per_ptu"):
        PTU.calibrate(windows, UNITS, None)
    stated = UNITS.with_(engine={"input_tokens_per_minute_per_ptu": 3000, "output_weight": 4})
    known = PTU.calibrate(windows, stated, None)
    assert (known.toll.per_unit, known.toll.weight) == (3000.0, 4.0)
    assert "as stated" in known.notes[0]


def test_provisioned_throughput_that_is_too_large_shrinks_to_what_its_arrivals_take() -> None:
    """60 calls a minute take 48,000 weighted tokens a minute: 16 of 50 units, and bursts above it."""
    windows = provisioned(60, TRUTH)
    _, decision = decide(PTU, windows, UNITS, [15, 20, 25, 30, 40], **PRICES)
    advice = decision.recommendation
    assert advice is not None
    assert advice.direction == "shrink"
    chosen = advice.proposed.shape.purchase
    assert chosen is not None
    assert chosen.amount in (20, 25)
    assert advice.saving_per_month == pytest.approx((50 - chosen.amount) * 730.0)
    promised = advice.proposed.prediction
    assert promised is not None
    assert promised.metrics["throttle_rate"].high <= 0.01
    assert 48_000 / (3000 * chosen.amount) in promised.metrics["ptu_usage_mean"]


def test_too_little_provisioned_throughput_grows() -> None:
    shape = UNITS.with_(purchase=Purchase(15, "ptu"))
    windows = provisioned(60, replace(TRUTH, ptus=15))
    findings, decision = decide(PTU, windows, shape, [10, 20, 25, 50, 100], **PRICES)
    assert "PTU_FULL" in {f.reason.code for f in findings}
    advice = decision.recommendation
    assert advice is not None
    assert advice.direction == "grow"
    assert advice.proposed.shape.purchase in (Purchase(20, "ptu"), Purchase(25, "ptu"))


def test_what_spills_over_is_paid_for_by_the_token_and_weighed_against_units() -> None:
    """Nothing is refused to the client, so all amounts meet the objective: the cheapest of units and overflow together is chosen."""
    shape = UNITS.with_(engine={"spillover": "chat-standard"})
    windows = provisioned(60, TRUTH, spills=True)
    predictor = replayer(PTU, windows, shape, **PRICES)
    catalogue = replace(Catalogue(**PRICES), spill=predictor.spill)
    amounts = [1, 5, 10, 15, 20, 30, 40]
    costs = {n: catalogue.per_hour(shape.with_(purchase=Purchase(n, "ptu"))) for n in amounts}
    # 3,600 calls an hour of 400 in and 100 out: $5.76 by the token, a call spilled costs 0.16 cents.
    everything = predictor.spill(shape.with_(purchase=Purchase(1, "ptu")))
    assert everything is not None
    assert everything.output_tokens == pytest.approx(3600 * 100, rel=0.15)
    assert costs[40] == pytest.approx(40.0)
    assert costs[1] == pytest.approx(1 + 5.76 * 0.95, rel=0.1)
    _, decision = decide(PTU, windows, shape, amounts, **PRICES)
    advice = decision.recommendation
    assert advice is not None
    assert advice.proposed.shape.purchase == Purchase(1, "ptu"), "at a dollar a unit, tokens are cheaper"
    dear = PRICES | {"by_token": {Unit.INPUT_1K: 0.02, Unit.OUTPUT_1K: 0.08}}
    _, decision = decide(PTU, windows, shape, amounts, **dear)
    advice = decision.recommendation
    assert advice is not None
    assert advice.proposed.shape.purchase in (Purchase(15, "ptu"), Purchase(20, "ptu")), (
        "tokens ten times as dear are worth units"
    )


def test_without_a_price_of_what_spills_over_nothing_smaller_is_proposed() -> None:
    shape = UNITS.with_(engine={"spillover": "chat-standard"})
    _, decision = decide(PTU, provisioned(60, TRUTH, spills=True), shape, [15, 30], per_ptu_hour=1.0)
    assert decision.recommendation is None
    assert "PRICE_UNKNOWN" in [r.code for r in decision.hold]


@pytest.mark.parametrize("kind", [QUOTA, PTU], ids=lambda k: k.name)
def test_recorded_bursts_stand_above_what_windows_tell(kind: Kind[Any]) -> None:
    """All calls of three minutes come at once: windows that are drawn from would hide it."""
    work = traffic(60, 30)
    bursts = Workload(
        np.floor(work.arrival_s / 180.0) * 180.0, work.prompt_tokens, work.output_tokens, work.prefix_tokens
    )
    shape = (TPM if kind is QUOTA else UNITS).with_(
        engine={"input_tokens_per_minute_per_ptu": 3000, "output_weight": 4, "requests_per_1k_tokens": 6.0}
    )
    windows = [replace(w, gauges={}) for w in provisioned(60, TRUTH, minutes=30)]
    less = shape.with_(purchase=Purchase(45_000, "tokens_per_minute") if kind is QUOTA else Purchase(25, "ptu"))
    shares = []
    for recorded in (None, bursts):
        known = kind.calibrate(windows, shape, None, recorded)
        predictor = Replayer(kind, known, windows, basis(shape), 7, recorded=recorded)
        shares.append(predictor.predict(less, 1.0).metrics["throttle_rate"].mid)
    assert shares[1] > 2 * shares[0]


@pytest.mark.parametrize(("kind", "shape"), [(QUOTA, UNITS), (PTU, TPM), (QUOTA, Shape(replicas=1))])
def test_a_shape_of_another_kind_is_refused(kind: Kind[Any], shape: Shape) -> None:
    with pytest.raises(CannotPredict) as refused:
        kind.calibrate(provisioned(60, TRUTH), shape, None)
    assert refused.value.code == "UNKNOWN_SHAPE"


def test_a_calibration_is_kept_as_json() -> None:
    known = QUOTA.calibrate(limited(110, 60_000, reserve=2.0), TPM, None)
    again = QUOTA.read(known.as_dict())
    assert isinstance(again, CalibratedQuota)
    assert again == known


def test_what_is_bought_is_paid_for_by_its_own_price() -> None:
    catalogue = Catalogue(own_price=9.0, **PRICES)
    assert catalogue.per_hour(UNITS) == 50.0
    assert catalogue.per_hour(TPM) == 0.0
    used = Usage(hours=1.0, ptu_hours=50.0, prompt_tokens=1000.0, output_tokens=1000.0)
    assert catalogue.billed(TPM).cost(used).usd == pytest.approx(0.010)
    assert catalogue.billed(UNITS).cost(used).usd == 50.0
    assert Catalogue().per_hour(UNITS) is None


def test_what_is_promised_of_other_quotas_comes() -> None:
    """Callers who come again or give up, with max_tokens as it comes out or at thrice of it: 80 % intervals, which mostly hold."""
    target, inside, tried = Target("throttle_rate", None, 0.01), 0, 0
    for reserve in (1.0, 3.0):
        for tries in (1, 3):
            for load in (110, 160):
                known = replayer(QUOTA, limited(load, 60_000, reserve=reserve, tries=tries), TPM)
                for amount in (90_000, 120_000, 240_000):
                    shape = TPM.with_(purchase=Purchase(amount, "tokens_per_minute"))
                    promised = known.predict(shape, 1.0).metrics["throttle_rate"]
                    came = attainment(limited(load, amount, reserve=reserve, tries=tries), target).observed
                    assert came is not None
                    tried += 1
                    inside += promised.low - 0.005 <= came <= promised.high + 0.005
    assert inside >= 0.8 * tried, f"{inside} of {tried}"


def test_what_is_promised_of_other_units_comes() -> None:
    target = Target("throttle_rate", None, 0.01)
    for units in (20, 50):
        known = replayer(PTU, provisioned(60, replace(TRUTH, ptus=units)), UNITS.with_(purchase=Purchase(units, "ptu")))
        for amount in (16, 25, 40):
            promised = known.predict(UNITS.with_(purchase=Purchase(amount, "ptu")), 1.0).metrics
            windows = provisioned(60, replace(TRUTH, ptus=amount))
            came = attainment(windows, target).observed
            assert came is not None
            assert promised["throttle_rate"].low - 0.005 <= came <= promised["throttle_rate"].high + 0.005
            used = float(np.mean([w.gauges["ptu_usage"].mean for w in windows]))
            assert came > 0.005 or promised["ptu_usage_mean"].mid == pytest.approx(used, rel=0.1)
