"""Calibration learns an engine from its windows, knows how sure it is, and refuses without evidence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.hardware import ACCELERATORS
from analyzers.prediction import CannotPredict
from analyzers.whatif import calibrate as calibration
from analyzers.whatif.calibrate import CalibratedEngine, calibrate
from analyzers.whatif.engine import replay
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.outlook import look
from collectors.window import Window
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
