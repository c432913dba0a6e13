"""Calibration learns an engine from its windows, knows how sure it is, and refuses without evidence."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.architecture import MODELS
from analyzers.hardware import ACCELERATORS
from analyzers.prediction import CannotPredict
from analyzers.whatif import calibrate as calibration
from analyzers.whatif import fit as fit_indices
from analyzers.whatif import priors
from analyzers.whatif.calibrate import CalibratedEngine, calibrate
from analyzers.whatif.discrepancy import Discrepancy, Residual
from analyzers.whatif.engine import replay
from analyzers.whatif.fit import Observation, PosteriorDraw, RequestGroup, client_replay, fit
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.outlook import look
from analyzers.whatif.roofline import RooflineMachine
from collectors.window import Window
from collectors.workload import Workload
from tests.analyzers.whatif.reference_server import poisson, windows

TRUTH = EngineModel(IterationCost(0.006, 4e-5, 3e-8, 2.8e-5, 2e-9), EngineLimits(64, 2048, 400_000))
SHAPE = Shape(
    replicas=1,
    accelerator="H100",
    accelerator_count=1,
    engine={"max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_tokens": 400_000},
)


def fitted(*rates: float, leave_out: tuple[str, ...] = (), seconds: float = 600.0) -> CalibratedEngine:
    seen = [w for i, rate in enumerate(rates) for w in windows(TRUTH, poisson(rate, seconds, i), leave_out=leave_out)]
    return calibrate(seen, SHAPE, prior=None, hardware=ACCELERATORS["H100"])


def means(model: EngineModel, rate: float) -> tuple[float, float, float]:
    out = replay(poisson(rate, 600.0, 77), model)
    assert out.itl.mean is not None
    assert out.ttft.mean is not None
    assert out.e2e.mean is not None
    return out.itl.mean, out.ttft.mean, out.e2e.mean


def foreseen(known: CalibratedEngine, rate: float) -> tuple[float, float, float]:
    """As a prediction sees it: what lies between engine and client, and what the fit was off by, included."""
    (best,) = look(poisson(rate, 600.0, 77), known.model, [known.best], known.discrepancy)
    itl, ttft, e2e = (best.times.mean(metric, slice(None)) for metric in ("itl_s", "ttft_s", "e2e_s"))
    assert itl is not None
    assert ttft is not None
    assert e2e is not None
    return itl, ttft, e2e


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests whose bounds a fit to a tenth of the requests keeps as well."""
    monkeypatch.setattr(calibration, "REPLAYED", 2_000)


@pytest.fixture(scope="module")
def learned() -> CalibratedEngine:
    return fitted(1.0, 3.0, 6.0, 9.0)


@pytest.mark.parametrize(("rate", "off"), [(2.0, 0.05), (5.0, 0.05), (11.0, 0.08)])
def test_it_predicts_loads_that_it_did_not_see(learned: CalibratedEngine, rate: float, off: float) -> None:
    """The last lies beyond all that was seen: there, what of a first token's time is outside the engine is not told apart as well."""
    seen, truth = foreseen(learned, rate), means(TRUTH, rate)
    assert seen == pytest.approx(truth, rel=off)
    assert (seen[0], seen[2]) == pytest.approx((truth[0], truth[2]), rel=0.05)


def test_the_truth_is_inside_the_ensemble(learned: CalibratedEngine) -> None:
    per_token = [d.iteration.per_prefill_token_s for d in learned.draws]
    assert min(per_token) <= TRUTH.iteration.per_prefill_token_s <= max(per_token)
    assert learned.model.iteration.base_s == pytest.approx(TRUTH.iteration.base_s, rel=0.05)
    assert max(learned.residuals.values()) < 0.05
    assert learned.load[0] < 3 < 20 < learned.load[1]


def test_little_data_means_wide_and_not_nonsense(learned: CalibratedEngine) -> None:
    narrow = np.std([np.log(d.iteration.per_context_token_s) for d in learned.draws])
    little = fitted(1.0, seconds=130.0)
    wide = np.std([np.log(d.iteration.per_context_token_s) for d in little.draws])
    assert wide > 2 * narrow
    for draw in little.draws:
        assert all(v > 0 for v in draw.iteration.as_tuple())
    assert foreseen(little, 1.0)[0] == pytest.approx(means(TRUTH, 1.0)[0], rel=0.1)


@pytest.mark.usefixtures("quick")
def test_a_saturated_server_is_learned_from_its_full_batch() -> None:
    """Its throughput says what it can carry at most, its TTFT only how long the queue was; its gaps are still good evidence."""
    both = fitted(2.0, 16.0)
    queue_unknown = fitted(2.0, 16.0, leave_out=("queue_s",))
    for found in (both, queue_unknown):
        assert foreseen(found, 8.0)[0] == pytest.approx(means(TRUTH, 8.0)[0], rel=0.06)
        assert foreseen(found, 8.0)[2] == pytest.approx(means(TRUTH, 8.0)[2], rel=0.06)


@pytest.mark.usefixtures("quick")
def test_low_demand_teaches_no_low_capability() -> None:
    """One request every ten seconds: the tokens per second are few, yet the engine is not slow."""
    idle = fitted(0.1, seconds=1200.0)
    assert idle.model.iteration.base_s == pytest.approx(TRUTH.iteration.base_s, rel=0.25)


@pytest.mark.usefixtures("quick")
def test_outliers_do_not_move_it() -> None:
    seen = [w for i, rate in enumerate((2.0, 6.0)) for w in windows(TRUTH, poisson(rate, 600.0, i))]
    slow = windows(EngineModel(IterationCost(0.06, 4e-4, 3e-7, 2.8e-4), TRUTH.limits), poisson(0.5, 120.0, 9))
    found = calibrate([*seen, *slow], SHAPE, prior=None, hardware=ACCELERATORS["H100"])
    assert foreseen(found, 4.0)[0] == pytest.approx(means(TRUTH, 4.0)[0], rel=0.1)


@pytest.mark.usefixtures("quick")
def test_without_a_running_gauge_it_uses_littles_law_and_says_so() -> None:
    found = fitted(2.0, 6.0, leave_out=("running", "waiting"))
    assert any("Little" in note for note in found.notes)
    assert foreseen(found, 4.0)[0] == pytest.approx(means(TRUTH, 4.0)[0], rel=0.05)


@pytest.mark.usefixtures("quick")
def test_without_inter_token_times_the_rest_is_enough() -> None:
    found = fitted(2.0, 6.0, leave_out=("itl_s",))
    assert foreseen(found, 4.0)[2] == pytest.approx(means(TRUTH, 4.0)[2], rel=0.05)


def test_it_survives_json(learned: CalibratedEngine) -> None:
    again = CalibratedEngine.from_dict(json.loads(json.dumps(learned.as_dict())))
    assert again == learned
    assert CalibratedEngine.of_engine(EngineModel.from_json(learned.engine.to_json())) == learned
    assert CalibratedEngine.of_engine(learned.model) is None
    assert EngineModel.from_json(learned.model.to_json()) == learned.model


@pytest.mark.usefixtures("quick")
def test_the_same_windows_and_seed_give_the_same_answer() -> None:
    assert fitted(2.0, seconds=180.0) == fitted(2.0, seconds=180.0)


@pytest.mark.usefixtures("quick")
def test_the_key_tells_versions_hardware_and_arguments_apart() -> None:
    seen = windows(TRUTH, poisson(3.0, 130.0, 1), facts={"engine_version": "0.19.0", "model": "llama", "kv": "x"})
    found = calibrate(seen, SHAPE, prior=TRUTH, hardware=None)
    assert (
        found.key
        == "1xH100/engine_version=0.19.0/model=llama/kv_tokens=400000/max_num_batched_tokens=2048/max_num_seqs=64"
    )


@pytest.mark.usefixtures("quick")
def test_limits_that_nobody_stated_are_assumed_aloud() -> None:
    found = calibrate(windows(TRUTH, poisson(3.0, 120.0, 1)), Shape(replicas=1), prior=None, hardware=None)
    assert found.model.limits.max_num_seqs == 256
    assert any("max_num_seqs is not stated" in note for note in found.notes)


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ([], "none of 0 windows was observed"),
        ([Window("chat", "vllm", 0.0, 60.0, 0.0)], "none of 1 windows was observed"),
        ([Window("chat", "vllm", 0.0, 60.0, 1.0, counts={"requests": 0.0})], "no requests"),
        ([Window("chat", "vllm", 0.0, 60.0, 1.0, counts={"requests": 500.0, "prompt_tokens": 9e4})], "lack latency"),
    ],
)
def test_without_evidence_it_refuses_and_says_what_is_missing(seen: list[Window], says: str) -> None:
    with pytest.raises(CannotPredict, match=says) as caught:
        calibrate(seen, SHAPE, prior=None, hardware=None)
    assert caught.value.code == "NO_EVIDENCE"


def test_a_handful_of_requests_is_no_evidence() -> None:
    seen = windows(TRUTH, poisson(0.2, 130.0, 3))
    with pytest.raises(CannotPredict, match=r"only .* requests|lack latency"):
        calibrate(seen, SHAPE, prior=None, hardware=None)


MIXTURE = EngineModel(
    IterationCost(0.004, 2e-5, 2e-8, 3e-5, 2e-9, 0.006, 0.012, 8 / 128), EngineLimits(256, 8192, 2_000_000)
)


def closed(engine: EngineModel, clients: int, overhead_s: float = 0.003) -> Observation:
    """What a closed loop of so many clients sees of ``engine``."""
    n = 10 * clients
    rng = np.random.default_rng(clients)
    prompt, output = ((mean * rng.uniform(0.9, 1.1, n)).astype(np.int64) for mean in (600, 200))
    work = Workload(np.zeros(n), prompt, output, np.zeros(n, np.int64))
    _, times = client_replay(
        work, engine.with_limits(max_num_seqs=clients), PosteriorDraw(engine.iteration, overhead_s), closed=clients
    )
    seen = {name: (float(times.mean(name, slice(None)) or 0.0), 0.01) for name in ("itl_s", "ttft_s")}
    return Observation(work, (RequestGroup(slice(None), seen),), float(clients), closed=clients)


def test_experts_fill_up_and_then_are_read_whole() -> None:
    """Fitted at 4 and 128 clients, a mixture's gaps at 16 are no mean of theirs; the datasheet's own belief of its experts is a third off."""
    machine = RooflineMachine(MODELS["qwen3-30b-a3b"], ACCELERATORS["H100"])
    prior = priors.of_machine(machine)
    prior.centre[: fit_indices.OVERHEAD] = np.log(MIXTURE.iteration.as_tuple())
    prior.centre[fit_indices.EXPERT_READ] += 0.3
    found = fit([closed(MIXTURE, n) for n in (4, 128)], MIXTURE, prior)
    asked = closed(MIXTURE, 16)
    members = look(asked.workload, MIXTURE, [found.best], found.discrepancy, closed=16)
    gap = next(iter(members)).times.mean("itl_s", slice(None))
    assert gap == pytest.approx(asked.parts[0].seen["itl_s"][0], rel=0.04)
    assert found.best.iteration.expert_share == pytest.approx(8 / 128)
    dense = priors.of_machine(RooflineMachine(MODELS["llama-3.1-8b"], ACCELERATORS["H100"]))
    assert fit([closed(MIXTURE, 4)], MIXTURE, dense).best.iteration.expert_read_s == 0.0


def test_a_latent_and_a_head_that_no_card_is_left_for_are_held_by_each_card() -> None:
    latent, grouped = MODELS["deepseek-v3"], MODELS["llama-3.1-70b"]
    for architecture, cards, same in ((latent, 8, 16), (grouped, 8, 16)):
        one, more = (RooflineMachine(architecture, ACCELERATORS["H200"], n, 1.0) for n in (cards, same))
        assert one.coefficients()[2] == more.coefficients()[2]
    alone, split = (RooflineMachine(grouped, ACCELERATORS["H200"], n, 1.0) for n in (1, 4))
    assert split.coefficients()[2] == pytest.approx(alone.coefficients()[2] / 4)
    # A latent's cache is one and the same on each card: more cards free memory for it, and do not add up.
    eight, sixteen = (RooflineMachine(latent, ACCELERATORS["H200"], n, 1.0).cache_tokens() for n in (8, 16))
    assert eight is not None
    assert sixteen is not None
    assert eight < sixteen < 2 * eight


def test_data_parallel_attention_shares_the_experts() -> None:
    """Eight ranks of a batch of n read the experts of 8 n tokens, an eighth of them each."""
    one, eight = (RooflineMachine(MODELS["deepseek-v3"], ACCELERATORS["H200"], 1, 1.0, ranks=n) for n in (1, 8))
    assert eight.coefficients()[6] == pytest.approx(one.coefficients()[6] / 8)
    left = 1.0 - one.coefficients()[7]
    assert 1.0 - eight.coefficients()[7] == pytest.approx(left**8)


def test_a_single_client_weighs_less_than_a_batch() -> None:
    """A batch of one a third faster, by its own kernels, moves the fit of the others little."""
    prior = priors.of_machine(RooflineMachine(MODELS["llama-3.1-8b"], ACCELERATORS["H100"]))
    loads = [closed(TRUTH, n) for n in (1, 8, 32)]
    (alone,) = loads[0].parts
    fast = {name: (value / 1.3, doubt) for name, (value, doubt) in alone.seen.items()}
    loads[0] = replace(loads[0], parts=(replace(alone, seen=fast),))
    found = fit(loads, TRUTH, prior)
    asked = closed(TRUTH, 16)
    (best,) = look(asked.workload, TRUTH, [found.best], found.discrepancy, closed=16)
    assert best.times.mean("itl_s", slice(None)) == pytest.approx(asked.parts[0].seen["itl_s"][0], rel=0.04)


def test_a_far_client_is_told_from_a_slow_prefill_by_one_load() -> None:
    """A fifth of a second outside: a prefill that took it would slow every other load."""
    machine = RooflineMachine(MODELS["llama-3.1-8b"], ACCELERATORS["H100"])
    truth = EngineModel(IterationCost(*machine.coefficients()), EngineLimits(256, 8192, 400_000))
    found = fit([closed(truth, 8, 0.2)], truth, priors.of_machine(machine))
    assert found.best.overhead_s == pytest.approx(0.2, rel=0.2)
    asked = closed(truth, 64, 0.2)
    (best,) = look(asked.workload, truth, [found.best], found.discrepancy, closed=64)
    assert best.times.mean("itl_s", slice(None)) == pytest.approx(asked.parts[0].seen["itl_s"][0], rel=0.05)


def test_one_group_of_requests_that_is_not_explained_counts_as_its_share_of_those_that_were_seen_there() -> None:
    """A run in 25 parts, of which one waited in a queue that no engine of this form has: the other 24 are not doubted as much as that."""
    where = (math.log(8.0), math.log(500.0), math.log(200.0))
    queued = Residual("ttft_s", where, 2.5, 0.02)
    told = tuple(Residual("ttft_s", where, 0.02 * (-1) ** i, 0.02) for i in range(24))
    alone, among, none = (
        Discrepancy(some, 0.4, odd).at("ttft_s", where)[1]
        for some, odd in (((), (queued,)), (told, (queued,)), (told, ()))
    )
    assert math.exp(1.28 * alone) > math.exp(2.5), "what was seen once lies within the interval"
    assert among == pytest.approx(alone / 5, rel=0.05)
    assert among > 5 * none


def test_beyond_the_loads_that_were_seen_doubt_grows_and_less_so_where_the_fit_was_put_to_the_test() -> None:
    where = [(math.log(n), math.log(500.0), math.log(200.0)) for n in (1, 2, 4, 8)]
    agreed, tested = (
        Discrepancy(tuple(Residual("itl_s", at, 0.01, 0.01, free) for at in where), 0.4) for free in (0.0, 1.0)
    )
    far = [(math.log(n), *where[0][1:]) for n in (8, 16, 64)]
    doubts = [[known.at("itl_s", at)[1] for at in far] for known in (agreed, tested)]
    for row in doubts:
        assert row == sorted(row)
    assert doubts[0][2] - doubts[0][0] > 1.5 * (doubts[1][2] - doubts[1][0])
    assert Discrepancy.from_dict(json.loads(json.dumps(tested.as_dict()))) == tested
