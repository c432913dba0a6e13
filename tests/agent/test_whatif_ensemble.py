"""`flyball whatif` on an engine file that carries its calibration: the ensemble's intervals, and other accelerators by the roofline."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.shape import Shape
from analyzers.architecture import find_architecture
from analyzers.hardware import ACCELERATORS
from analyzers.kinds.engine.engines import Engines
from analyzers.objective import Objective
from analyzers.steptimes import StepTimes
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.discrepancy import Discrepancy, Residual, features
from analyzers.whatif.engine import Router, replay
from analyzers.whatif.fit import PosteriorDraw, client_replay
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.outlook import Member
from analyzers.whatif.predict import Ensemble, predict, replicas_of
from analyzers.whatif.scaling import Hpa, MetricTarget
from collectors.traces import write_trace
from collectors.workload import Workload
from tests.agent.test_whatif_cli import FIELDS, answer, run, trace
from tests.analyzers.whatif.reference_server import poisson

MODEL = EngineModel(IterationCost(0.0085, 3e-5, 3e-8, 5e-5, 2e-9), EngineLimits(32, 4096, 200_000))
BASE = Shape(replicas=1, accelerator="A100-80GB", accelerator_count=1)
DRAWS = 16
OBJECTIVE = Objective.from_mapping({"ttft_p95_s": 0.3, "e2e_p97_s": 9.0})


def _known(accelerator: str | None = "A100-80GB", count: int = 1, **changes: Any) -> CalibratedEngine:
    rng = np.random.default_rng(5)
    draws = tuple(
        PosteriorDraw(
            IterationCost(*(np.array(MODEL.iteration.as_tuple()) * np.exp(0.1 * rng.standard_normal(8)))),
            0.02 * float(np.exp(0.2 * rng.standard_normal())),
            0.5,
        )
        for _ in range(20)
    )
    where = features(poisson(3.0, 300.0, 4), 8.0)
    off = Discrepancy((Residual("itl_s", where, 0.08, 0.01), Residual("ttft_s", where, -0.05, 0.02)))
    made = CalibratedEngine(
        key="some",
        accelerator=accelerator,
        accelerator_count=count,
        model=MODEL,
        overhead_s=0.02,
        lag=0.5,
        draws=draws,
        windows=10,
        requests=1e3,
        load=(2.0, 9.0),
        discrepancy=off,
    )
    return replace(made, **changes)


KNOWN = _known()


@pytest.fixture(scope="module")
def work() -> Workload:
    return poisson(3.0, 200.0, 4)


@pytest.fixture
def asking(tmp_path: Path, work: Workload) -> tuple[str | Path, ...]:
    write_trace(work, tmp_path / "t.parquet")
    (tmp_path / "e.json").write_text(KNOWN.engine.to_json())
    return ("--trace", tmp_path / "t.parquet", "--engine", tmp_path / "e.json")


def check(found: dict[str, Any], shape: Shape, work: Workload, members: list[Member], **how: Any) -> None:
    """Points are the best member's as a client sees them; intervals are those that the daemon would promise of the same engine."""
    best = members[0]
    for metric in ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s"):
        assert found[metric]["p95"] == best.distribution(metric).quantile(0.95), metric
        assert found[metric]["mean"] == best.distribution(metric).mean
    promised = predict(
        shape, work, KNOWN, objective=OBJECTIVE, base_shape=BASE, hardware=ACCELERATORS, error={}, **how
    ).as_dict()
    metrics = found["prediction"]["metrics"]
    for name in ("ttft_p50_s", "ttft_p95_s", "itl_p95_s", "e2e_p95_s", "running_mean", "requests_per_s"):
        assert metrics[name] == promised["metrics"][name], name
    assert metrics["ttft_p95_s"]["low"] < metrics["ttft_p95_s"]["mid"] < metrics["ttft_p95_s"]["high"]
    assert found["saturates"] == promised["saturates"]
    assert found["saturates"] == sum(m.replay.saturated for m in members) / len(members)
    assert found["completed"] == best.replay.completed


def members_of(shape: Shape, work: Workload, router: Router = "round_robin") -> list[Member]:
    ensemble = Ensemble.of(shape, KNOWN, BASE, ACCELERATORS)
    return list(ensemble.members(work, DRAWS, replicas=replicas_of(shape), router=router))


def test_figures_are_the_ensembles(asking: tuple[str | Path, ...], work: Workload) -> None:
    got = answer(
        *asking, "--usd-per-replica-hour", 4, "--objective", "ttft_p95=0.3", "--objective", "e2e_p97=9",
        *("--candidate", "replicas=2,router=least_outstanding", "--candidate", "max_num_seqs=8"),
    )  # fmt: skip
    assert set(got) >= FIELDS
    one, two, small = got["candidates"]
    check(one, BASE, work, members_of(BASE, work))
    pair, few = BASE.with_(replicas=2), BASE.with_(engine={"max_num_seqs": 8})
    check(two, pair, work, members_of(pair, work, "least_outstanding"), router="least_outstanding")
    check(small, few, work, members_of(few, work))
    ttft, e2e = one["objective"]
    assert (ttft["low"], ttft["high"]) == tuple(one["prediction"]["metrics"]["ttft_p95_s"][k] for k in ("low", "high"))
    assert e2e["value"] == one["prediction"]["metrics"]["e2e_p97_s"]["mid"]
    assert one["ttft_s"]["p95"] > replay(work, MODEL).ttft.quantile(0.95), "what lies before the engine is missing"
    assert one["usd_per_hour"] == pytest.approx(4)
    assert one["label"] == "1 x A100-80GB"
    assert one["goodput_per_s"] == pytest.approx(one["prediction"]["metrics"]["goodput_per_s"]["mid"], rel=0.1)


def test_a_bare_engine_file_is_exactly_the_engine(tmp_path: Path, work: Workload) -> None:
    write_trace(work, tmp_path / "t.parquet")
    (tmp_path / "e.json").write_text(replace(MODEL, source={"note": "by hand"}).to_json())
    got, expected = answer("--trace", tmp_path / "t.parquet", "--engine", tmp_path / "e.json"), replay(work, MODEL)
    for metric in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        assert got[metric]["p99"] == expected.distribution(metric).quantile(0.99)
    assert (got["prediction"], got["saturates"], got["notes"]) == (None, 0.0, [])


def test_other_accelerators_by_the_roofline(asking: tuple[str | Path, ...], work: Workload) -> None:
    got = answer(
        *asking, "--usd-per-replica-hour", 4,
        *("--candidate", "accelerator=H100", "--candidate", "accelerator=l4,usd_per_replica_hour=1", "--candidate", "accelerator_count=2"),
        *("--candidate", "accelerator=H100,kv_tokens=50000,max_num_seqs=16"),
    )  # fmt: skip
    shapes = [
        BASE.with_(accelerator="H100"),
        BASE.with_(accelerator="L4"),
        BASE.with_(accelerator_count=2),
        BASE.with_(accelerator="H100", engine={"kv_tokens": 50_000, "max_num_seqs": 16}),
    ]
    for found, shape in zip(got["candidates"][1:], shapes, strict=True):
        check(found, shape, work, members_of(shape, work))
        assert (found["prediction"]["method"], found["prediction"]["extrapolates"]) == ("roofline+simulation", True)
    assert [c["usd_per_hour"] for c in got["candidates"]] == pytest.approx([4, None, 1, None, None])
    assert [c["label"] for c in got["candidates"][1:4]] == ["1 x H100", "1 x L4", "2 x A100-80GB"]
    base, h100, l4 = (c["itl_s"]["p50"] for c in got["candidates"][:3])
    assert h100 < base < l4
    assert any(
        note.startswith("2, 5: calibrated on 1 x A100-80GB, scaled by the roofline to 1 x H100")
        for note in got["notes"]
    )
    assert got["candidates"][4]["shape"]["limits"]["kv_tokens"] == 50_000


def test_other_accelerators_by_their_kernels_where_they_were_measured() -> None:
    """The same road as the daemon's: an engine knows of accelerators what it is given."""
    known = _known(architecture=find_architecture("meta-llama/Llama-3.1-8B"))
    slow = StepTimes(*(np.array(v) for v in _ITERATIONS), seconds=np.array([0.04, 0.06, 0.08, 0.30]))
    rows = {name: replace(ACCELERATORS[name], kernels=lambda *_: slow) for name in ("A100-80GB", "L40S")}
    sheet = Engines(engine=known.model, calibration=known).changed({"accelerator": "L40S"})
    given = replace(sheet, hardware={**ACCELERATORS, **rows})
    scaled = "scaled by the measured times of both accelerators' kernels too"
    assert scaled in given.notes
    assert scaled not in sheet.notes
    # The kernels are as fast on both, so that half of the way (of logarithms) between the two accelerators is left.
    ratio = [e.model.iteration.per_context_token_s / MODEL.iteration.per_context_token_s for e in (sheet, given)]
    assert ratio[1] == pytest.approx(ratio[0] ** 0.5)


#: Decoding, context, prefill, products: decodes of a few and of many, and with more context; a prefill.
_ITERATIONS = ([1.0, 64.0, 64.0, 0.0], [1e3, 64e3, 256e3, 0.0], [0.0, 0.0, 0.0, 2048.0], [0.0, 0.0, 0.0, 2048.0**2 / 2])


def test_what_does_not_fit_is_refused_and_the_others_answered(tmp_path: Path, work: Workload) -> None:
    llama = find_architecture("meta-llama/Llama-3.1-70B-Instruct")
    known = _known(count=4, architecture=llama)
    write_trace(work, tmp_path / "t.parquet")
    (tmp_path / "e.json").write_text(known.engine.to_json())
    arguments = (
        *("--trace", tmp_path / "t.parquet", "--engine", tmp_path / "e.json", "--objective", "ttft_p95=1"),
        *("--candidate", "accelerator=L4", "--html", tmp_path / "p.html"),
    )
    got = answer(*arguments)
    small = got["candidates"][1]
    assert small["refused"]["code"] == "DOES_NOT_FIT"
    assert set(small) == set(got["candidates"][0])
    assert (small["ttft_s"]["p95"], small["meets_objective"], small["saturates"]) == (None, None, None)
    assert got["completed"] == len(work)
    assert "2: not predicted." in run(*arguments).stdout
    assert "leave no room for a KV cache" in (tmp_path / "p.html").read_text()


def test_a_coefficient_that_is_set_moves_every_draw(asking: tuple[str | Path, ...], work: Workload) -> None:
    got = answer(*asking, "--candidate", "base_s=0.017,enable_chunked_prefill=false")
    base = Ensemble.of(BASE, KNOWN, BASE, ACCELERATORS)
    draws = tuple(replace(d, iteration=replace(d.iteration, base_s=2 * d.iteration.base_s)) for d in base.draws)
    moved = replace(base, model=replace(base.model, chunked_prefill=False), draws=draws)
    members = list(moved.members(work, DRAWS))
    assert got["candidates"][1]["itl_s"]["p50"] == pytest.approx(members[0].distribution("itl_s").quantile(0.5))
    middle = np.median([m.distribution("itl_s").quantile(0.95) for m in members])
    assert got["candidates"][1]["prediction"]["metrics"]["itl_p95_s"]["mid"] == pytest.approx(middle)


def test_a_fleet_that_changes_has_intervals_too(asking: tuple[str | Path, ...], work: Workload) -> None:
    """What the fit was off by is read at the load of one replica, not of all together."""
    got = answer(
        *asking,
        "--usd-per-replica-hour",
        3,
        "--timeout",
        60,
        "--autoscale",
        "hpa:in_flight=3,min=1,max=6",
        "--cold-start",
        20,
    )
    fleet = ReplicaFleet(1, 20, Hpa((MetricTarget("in_flight", 3),), most=6))
    how: dict[str, Any] = {
        "fleet": fleet, "router": "round_robin", "horizon": work.duration_s * 2.0 + 600.0, "timeout_s": 60.0,
    }  # fmt: skip
    first, _ = client_replay(work, MODEL, KNOWN.best, **how)
    each = first.running_mean / (first.replica_s / first.simulated_s)
    (decode, _), (start, _) = (KNOWN.discrepancy.at(m, features(work, each)) for m in ("itl_s", "ttft_s"))
    slower = PosteriorDraw(MODEL.iteration.scaled(float(np.exp(decode))), 0.02, 0.5)
    best, times = client_replay(work, MODEL, slower, **how)
    seen = times.with_start(float(np.exp(start))).ttft_s
    assert got["ttft_s"]["p95"] == pytest.approx(np.nanquantile(seen, 0.95))
    assert got["replica_timeline"] == [list(step) for step in best.replicas]
    hours = got["prediction"]["metrics"]["replica_hours"]
    assert hours["low"] < hours["high"], "how many an autoscaler starts is as unsure as the engine"
    assert got["cost_usd"] == pytest.approx(3 * best.replica_s / 3600)
    cost = got["prediction"]["metrics"]["cost_usd"]
    assert (cost["low"], cost["high"]) == pytest.approx((3 * hours["low"], 3 * hours["high"]))


def test_saturation_is_a_probability(tmp_path: Path) -> None:
    """Near the limit some draws carry the load and others do not."""
    found, verdicts = set(), set()
    for rate in (6.0, 8.0, 8.75, 14.0):
        write_trace(poisson(rate, 150.0, 4), tmp_path / "t.parquet")
        (tmp_path / "e.json").write_text(KNOWN.engine.to_json())
        got = answer("--trace", tmp_path / "t.parquet", "--engine", tmp_path / "e.json", "--objective", "itl_p50=4")
        share = got["saturates"]
        expected = "met" if share <= 0.1 else "missed" if share > 0.5 else "not known"
        assert (got["verdict"], got["meets_objective"]) == (expected, {"met": True, "missed": False}.get(expected))
        found.add(share)
        verdicts.add(expected)
    assert any(0 < share < 1 for share in found)
    assert 1.0 in found
    assert any("so this extrapolates" in note for note in got["notes"])


def test_each_requests_times_are_the_clients(asking: tuple[str | Path, ...], work: Workload, tmp_path: Path) -> None:
    answer(*asking, "--requests-out", tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    best = members_of(BASE, work)[0]
    assert [float(row["ttft_s"]) for row in rows] == pytest.approx(best.times.ttft_s.tolist())
    assert {row["state"] for row in rows} == {"completed"}


def test_table_and_page_show_the_intervals(asking: tuple[str | Path, ...], tmp_path: Path) -> None:
    result = run(*asking, "--usd-per-replica-hour", 1, "--candidate", "replicas=2", "--html", tmp_path / "p.html")
    assert result.exit_code == 0, result.output
    assert " to " in result.stdout or "≤" in result.stdout
    html = (tmp_path / "p.html").read_text()
    for text in ("Small figures are 80 % intervals", "Bars: 80 % intervals", "by the best fit alone", "1 x A100-80GB"):
        assert text in html


def test_met_is_yes_no_or_not_known(asking: tuple[str | Path, ...], tmp_path: Path) -> None:
    """Whatever the form that it is read in: a limit within the interval is no promise."""
    interval = answer(*asking)["prediction"]["metrics"]["ttft_p95_s"]
    low, mid, high = interval["low"], interval["mid"], interval["high"]
    for limit, met, said in (
        (high * 1.01, True, "met"),
        ((mid + high) / 2, None, "not known"),
        ((low + mid) / 2, False, "missed"),
    ):
        objective = ("--objective", f"ttft_p95={limit}")
        got = answer(*asking, *objective)
        assert (got["objective"][0]["met"], got["meets_objective"], got["verdict"]) == (met, met, said)
        told = run(*asking, *objective, "--html", tmp_path / "p.html")
        row = next(line for line in told.stdout.splitlines() if "replica" in line)
        assert row.strip().endswith(said), told.stdout
        assert f">{said}</span>" in (tmp_path / "p.html").read_text()


def test_a_calibration_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    data = json.loads(KNOWN.engine.to_json())
    del data["source"]["lag"]
    (tmp_path / "e.json").write_text(json.dumps(data))
    got = answer("--trace", trace(tmp_path, "0,100,3"), "--engine", tmp_path / "e.json")
    assert got["prediction"] is None
    assert "is of another Flyball and cannot be read" in got["notes"][0]


@pytest.mark.parametrize(
    ("accelerator", "candidate", "says"),
    [
        ("A100-80GB", "accelerator=L50S", "accelerator=L50S: its bandwidth is not known; did you mean L40S?"),
        ("A100-80GB", "accelerator_count=half", "accelerator_count=half: write a whole number"),
        ("A100-80GB", "size=Standard_X", "how size=Standard_X would do"),
        ("A100-80GB", "max_num_seqs=0", "limits.max_num_seqs must be a whole number"),
        ("A100-80GB", "max_num_seq=4", "did you mean max_num_seqs?"),
        (None, "accelerator=L40S", "does not tell which accelerator it was calibrated on"),
    ],
)
def test_bad_questions_exit_with_2(tmp_path: Path, accelerator: str | None, candidate: str, says: str) -> None:
    (tmp_path / "e.json").write_text(_known(accelerator).engine.to_json())
    result = run("--trace", trace(tmp_path, "0,100,3"), "--engine", tmp_path / "e.json", "--candidate", candidate)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""
