"""The situations that the platforms' guides describe: the same recommendation, and where numbers say otherwise, both."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from analyzers.advise.advice import Advice, advise
from analyzers.advise.estimates import AdviceContext
from analyzers.advise.offers import DeploymentOffer, offer_of
from analyzers.advise.options import Condition, DeploymentOption
from analyzers.advise.profile import profile_of
from analyzers.kinds.results import ReplayTraffic
from analyzers.objective import Objective
from collectors.workload import Workload

C, D = Condition, DeploymentOption
HOUR = 3600.0


def workload(arrival_s: Any, prompt: int = 400, output: int = 200) -> Workload:
    at = np.sort(np.asarray(arrival_s, np.float64))
    ones = np.ones(at.shape[0], np.int64)
    return Workload(at, ones * prompt, ones * output, ones * 0)


def poisson(rate_per_s: float, seconds: float, seed: int = 1, **lengths: int) -> Workload:
    rng = np.random.default_rng(seed)
    return workload(np.cumsum(rng.exponential(1 / rate_per_s, int(rate_per_s * seconds))), **lengths)


def spaced(bursts: int = 8, each: int = 5, gap_s: float = HOUR) -> Workload:
    """A few requests an hour, and nothing between."""
    return workload([hour * gap_s + 20.0 * n for hour in range(bursts) for n in range(each)])


def context(work: Workload, **limits: float) -> AdviceContext:
    return AdviceContext(ReplayTraffic(work, Objective.from_mapping(limits)), profile_of(work))


SPEED = {"ttft_s": 0.4, "tpot_s": 0.01}
TOKENS = {"usd_per_1k_input_tokens": 0.0004, "usd_per_1k_output_tokens": 0.0016}
#: One machine of the size F2s, and of one with four times its cores: what each does in a second, with what contention costs.
SMALL = {
    "option": "managed-endpoint",
    "kind": "vm",
    "rate_per_s": 0.5,
    "sigma": 0.3,
    "kappa": 0.02,
    "usd_per_replica_hour": 0.097,
    "max_units": 1,
}
LARGE = {
    "option": "managed-endpoint",
    "kind": "vm",
    "rate_per_s": 2.0,
    "sigma": 0.05,
    "kappa": 0.0005,
    "usd_per_replica_hour": 0.388,
    "max_units": 1,
}
#: An instance that takes eight at once and needs a minute to start.
SERVERLESS = {
    "option": "serverless", "kind": "serverless", "concurrency": 8, "cold_start_s": 60.0, "most": 40, "idle_s": 300.0,
    "speed": SPEED, "usd_per_billed_hour": 4.0,
}  # fmt: skip
GPU = {"kind": "vm", "rate_per_s": 2.0, "sigma": 0.02, "usd_per_replica_hour": 3.0}
API = {"option": "pay-per-token", "kind": "quota", "speed": SPEED, **TOKENS}
SERVICE = {**API, "option": "models-as-a-service"}


def offers(**written: dict[str, Any]) -> list[DeploymentOffer]:
    return [offer_of(name.replace("_", "-"), data) for name, data in written.items()]


def by_conditions(*conditions: Condition, among: Collection[DeploymentOption] = tuple(D)) -> DeploymentOption:
    return advise([], None, conditions, among).first.option


def codes(found: Advice) -> set[str]:
    return {c.code for c in found.contradictions}


# -- AI4OS: serverless, dedicated, or one's own cloud ------------------------------------------------------------------------

AI4OS = (D.SERVERLESS, D.DEDICATED, D.SELF_HOSTED, D.BATCH)


@pytest.mark.parametrize(
    ("situation", "recommended"),
    [
        ((C.MANY,), D.SERVERLESS),
        ((C.SPARSE,), D.SERVERLESS),
        ((), D.SERVERLESS),  # "the recommended option by default for all users"
        ((C.LOW_LATENCY, C.FEW), D.DEDICATED),
        ((C.OWN_CLOUD,), D.SELF_HOSTED),
        ((C.BATCH,), D.BATCH),
    ],
)
def test_ai4os(situation: tuple[Condition, ...], recommended: DeploymentOption) -> None:
    assert by_conditions(*situation, among=AI4OS) is recommended


def test_ai4os_one_off_predictions_without_a_batch_service_are_serverless_or_dedicated() -> None:
    found = advise([], None, (C.BATCH,), (D.SERVERLESS, D.DEDICATED, D.SELF_HOSTED))
    assert {row.option for row in found.ranked[:2]} == {D.SERVERLESS, D.DEDICATED}


def test_ai4os_serverless_for_spaced_out_queries_by_numbers() -> None:
    on = context(spaced())
    found = advise(offers(function=SERVERLESS, always={**GPU, "option": "dedicated"}), on, (), AI4OS)
    assert C.SPARSE in found.conditions
    assert (found.first.option, found.guide) == (D.SERVERLESS, D.SERVERLESS)
    first, second = found.ranked[:2]
    assert first.usd_per_hour is not None
    assert second.usd_per_hour == pytest.approx(3.0)
    assert first.usd_per_hour < 3.0


def test_ai4os_numbers_contradict_where_queries_come_before_an_instance_goes() -> None:
    """Twenty minutes apart, but an instance waits for half an hour: it never goes, and costs more than one that is dedicated."""
    on = context(spaced(bursts=30, each=2, gap_s=1200.0))
    patient = {**SERVERLESS, "idle_s": 1800.0}
    found = advise(offers(function=patient, always={**GPU, "option": "dedicated"}), on, (), AI4OS)
    assert C.SPARSE in found.conditions
    assert (found.first.option, found.guide) == (D.DEDICATED, D.SERVERLESS)
    assert {"CHOICE", "CHEAPER_ALL_THE_SAME"} <= codes(found)


def test_ai4os_low_latency_and_few_queries_close_in_time_by_numbers() -> None:
    on = context(poisson(0.05, 2 * HOUR), e2e_p95_s=5.0)
    cold = {**SERVERLESS, "idle_s": 10.0}
    found = advise(offers(function=cold, always={**GPU, "option": "dedicated"}), on, (C.LOW_LATENCY,), AI4OS)
    assert C.FEW in found.conditions
    assert found.first.option is D.DEDICATED
    (function,) = (row.estimate for row in found.ranked if row.option is D.SERVERLESS)
    assert function is not None
    assert function.meets is False
    assert (function.latency["e2e_p95_s"] or 0) > 60.0, "the model is loaded first"


def test_ai4os_numbers_contradict_where_an_instance_is_kept_warm() -> None:
    on = context(poisson(0.05, 2 * HOUR), e2e_p95_s=5.0)
    warm = {**SERVERLESS, "idle_s": 3600.0, "cold_start_s": 2.0, "usd_per_billed_hour": 1.0}
    found = advise(offers(function=warm, always={**GPU, "option": "dedicated"}), on, (C.LOW_LATENCY,), AI4OS)
    assert "FAST_ENOUGH" in codes(found)
    assert (found.first.option, found.guide) == (D.SERVERLESS, D.DEDICATED), (
        "it costs less, and is as fast as it must be"
    )


# -- Azure AI Studio: tokens, or infrastructure -------------------------------------------------------------------------------

STUDIO = (D.MODEL_SERVICE, D.MANAGED)


def test_studio_models_of_the_catalogue_without_infrastructure() -> None:
    assert by_conditions(C.NO_OPERATIONS, among=STUDIO) is D.MODEL_SERVICE


def test_studio_a_model_of_ones_own() -> None:
    assert by_conditions(C.CUSTOM_MODEL, among=STUDIO) is D.MANAGED


def test_studio_a_real_time_endpoint_is_not_billed_by_the_token() -> None:
    """The guide says that one pays for tokens alone; a machine is paid for by the hour."""
    found = advise(offers(maas=SERVICE, endpoint=SMALL), context(spaced()), (), STUDIO)
    assert found.first.option is D.MODEL_SERVICE
    assert "BILLED_BY_THE_HOUR" in codes(found)


# -- Why deploy a model in Azure: a slot, and not a machine --------------------------------------------------------------------


def test_a_deployment_of_a_catalogue_model_is_keys_and_quotas_and_costs_nothing_by_itself() -> None:
    found = advise(offers(maas=SERVICE, api=API), context(spaced()), (C.LATEST_MODEL, C.OWN_ACCESS, C.NO_OPERATIONS))
    assert found.first.option is D.MODEL_SERVICE
    e = found.first.estimate
    assert e is not None
    assert e.curve is not None
    assert e.curve.usd_per_hour(0.0) == 0.0
    assert by_conditions(C.LATEST_MODEL, C.OWN_ACCESS, C.NO_OPERATIONS) is D.MODEL_SERVICE


# -- Deploy, simulate, monitor: a small machine, or a large one -----------------------------------------------------------------


def at_users(users: int, **limits: float) -> Advice:
    """So many users with one call a minute each."""
    return advise(offers(F2s=SMALL, F8s=LARGE), context(poisson(users / 60.0, 2 * HOUR), **limits), (), (D.MANAGED,))


def test_a_small_machine_does_for_light_use() -> None:
    found = at_users(10, e2e_p95_s=10.0)
    assert found.first.name == "F2s"
    assert found.first.estimate is not None
    assert found.first.estimate.meets is True


def test_a_small_machine_struggles_under_a_hundred_users() -> None:
    found = at_users(100, e2e_p95_s=10.0)
    assert found.first.name == "F8s"
    small = found.ranked[1].estimate
    assert small is not None
    assert (small.meets, small.usd_per_hour) == (False, None)
    assert any("not even 1 machine" in note for note in small.notes)


def test_a_larger_machine_need_not_be_more_efficient() -> None:
    """At ten users it costs four times as much for the same tokens."""
    small, large = (row.estimate for row in at_users(10, e2e_p95_s=10.0).ranked)
    assert small is not None
    assert large is not None
    assert large.usd_per_1k_tokens == pytest.approx(4.0 * (small.usd_per_1k_tokens or 0))
    assert (large.latency["e2e_p95_s"] or 9) < (small.latency["e2e_p95_s"] or 0)


# -- Architectures: API, one machine, several, or a mixture ---------------------------------------------------------------------

PATTERNS = (D.PER_TOKEN, D.SELF_HOSTED, D.DISTRIBUTED, D.HYBRID)


@pytest.mark.parametrize(
    ("situation", "recommended"),
    [
        ((C.PROTOTYPE,), D.PER_TOKEN),
        ((C.NO_OPERATIONS,), D.PER_TOKEN),
        ((C.PEAKS,), D.PER_TOKEN),
        ((C.LATEST_MODEL,), D.PER_TOKEN),
        ((C.STEADY, C.FIXED_COST), D.SELF_HOSTED),
        ((C.STEADY, C.PRIVATE_DATA), D.SELF_HOSTED),
        ((C.STEADY, C.CUSTOM_MODEL), D.SELF_HOSTED),
        ((C.THROUGHPUT,), D.DISTRIBUTED),
        ((C.AVAILABILITY, C.LARGE), D.DISTRIBUTED),
        ((C.LARGE,), D.DISTRIBUTED),
        ((C.MIXED,), D.HYBRID),
        ((C.TRANSITION,), D.HYBRID),
    ],
)
def test_architectures(situation: tuple[Condition, ...], recommended: DeploymentOption) -> None:
    assert by_conditions(*situation, among=PATTERNS) is recommended


def test_architectures_self_hosting_pays_at_scale() -> None:
    gpu = {**GPU, "option": "self-hosted", "rate_per_s": 8.0}
    found = advise(offers(api=API, gpu=gpu), context(poisson(3.0, 2 * HOUR)), (), PATTERNS)
    assert C.STEADY in found.conditions
    assert found.first.name == "gpu"
    at = next(b for b in found.break_even if b.reserved == "gpu")
    assert at.requests_per_s == pytest.approx(3.0 / 3600 / (400 * 0.0004 / 1000 + 200 * 0.0016 / 1000))
    assert at.share is not None
    assert at.share < 1


def test_architectures_numbers_contradict_where_a_machine_can_never_pay() -> None:
    """The guide says that an API costs more at scale; a slow machine costs more per token at any scale."""
    slow = {**GPU, "option": "self-hosted", "rate_per_s": 0.5, "sigma": 0.5}
    found = advise(
        offers(api=API, gpu=slow), context(poisson(0.2, 2 * HOUR), e2e_p95_s=10.0), (C.FIXED_COST,), PATTERNS
    )
    assert "NEVER_BREAKS_EVEN" in codes(found)


def test_architectures_private_data_excludes_an_api_whatever_it_costs() -> None:
    gpu = {**GPU, "option": "self-hosted", "rate_per_s": 8.0, "usd_per_replica_hour": 90.0}
    found = advise(offers(api=API, gpu=gpu), context(poisson(0.1, 2 * HOUR)), (C.PRIVATE_DATA,), PATTERNS)
    assert found.first.name == "gpu"
    assert found.ranked[-1].option is D.PER_TOKEN
    assert found.ranked[-1].score.excluded


def test_architectures_peaks_overflow_by_the_token() -> None:
    """A base load that fills machines, and an hour with twelve times as much: the mixture costs less than either alone."""
    base, rush = poisson(2.0, 8 * HOUR, 1), poisson(24.0, 0.25 * HOUR, 2)
    work = workload(np.concatenate([base.arrival_s, 4 * HOUR + rush.arrival_s]))
    gpu = {
        **GPU,
        "option": "self-hosted-distributed",
        "sigma": 0.5,
        "rate_per_s": 4.0,
        "usd_per_replica_hour": 1.5,
        "min_units": 1,
    }
    found = advise(offers(api=API, gpus=gpu), context(work, e2e_p95_s=10.0), (C.MIXED,), PATTERNS)
    assert C.PEAKS in found.conditions
    assert found.first.option is D.HYBRID
    e = found.first.estimate
    assert e is not None
    assert (e.units or 0) >= 1
    assert 0 < (e.overflow or 0) < 0.6
    assert all((row.usd_per_hour or 99) > (e.usd_per_hour or 0) for row in found.ranked[1:])
