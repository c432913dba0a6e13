"""Real measurements of serving engines, read into what a calibration takes: the three layouts of the accuracy benchmark.

- ``experiments.json`` with ``models.json`` and ``hardware.json``: load-test stages at known rates, with percentiles.
- ``requests.csv`` with ``engine.json``: a run request by request.
- ``points.csv``: closed-loop points at known concurrency, mean TTFT and TPOT; with ``requests``, ``prompt_max`` and ``output_max`` as the
  generator drew them, the very lengths.

Reads files and fits nothing. What is assumed about how a measurement was made stands at the place where it is used.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.silicon import PACKAGE, equipped
from analyzers.architecture import Architecture, find_architecture, weight_bytes
from analyzers.hardware import Hardware, find
from analyzers.whatif.fit import SPREAD, Observation, RequestGroup
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.roofline import LAUNCHED_LAYER_S, RooflineMachine
from collectors.workload import Workload

#: vLLM's default block of the KV cache, in tokens.
BLOCK = 16
#: Clients of inference-perf give up after this (the default of its HTTP library, in seconds).
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Measured:
    """One measurement: a load, and what came of it."""

    system: str
    """What a calibration holds for: model, hardware, engine, parallelism."""
    family: str
    """The engine's name: ``vllm``, ``sglang``, ``trtllm``."""
    experiment: str
    stage: str
    observation: Observation
    engine: EngineModel
    """EngineLimits; its coefficients do not count."""
    machine: RooflineMachine | None
    actual: Mapping[str, float]
    """``e2e_mean e2e_p90 itl_mean ttft_mean ttft_p90 tpot_mean``, those that were measured."""
    where: slice | np.ndarray
    """The requests that ``actual`` is of."""
    saturated: bool | None = None
    """Whether it really did; None: the measurement does not tell."""
    load: float = 0.0
    """Rate or concurrency: what orders the stages of an experiment."""
    expert_parallel: int = 1
    """Over how many accelerators whole experts are spread."""
    mixture: bool | None = None
    """Whether the model is a mixture of experts; None: not known."""
    architecture: Architecture | None = None
    """Of the model, where its name is known."""
    whole: Observation | None = field(default=None, repr=False)
    """For a run request by request: all of its requests are seen, and ``whole_actual`` is of all."""
    whole_actual: Mapping[str, float] = field(default_factory=dict)


def find_all(root: Path, *, silicon: bool = False) -> dict[str, list[Measured]]:
    """All measurements below ``root`` (or in it), by layout: ``stages``, ``requests``, ``points``.

    silicon: the machines' accelerators have the kernel times of the extra ``silicon``. Raises ImportError where it is not installed.
    """
    if silicon:
        importlib.import_module(PACKAGE)
    found: dict[str, list[Measured]] = {"stages": [], "requests": [], "points": []}
    for path in sorted(root.rglob("experiments.json")):
        found["stages"] += read_stages(path.parent)
    for path in sorted(root.rglob("requests.csv")):
        if (path.parent / "engine.json").is_file():
            found["requests"].append(read_requests(path.parent))
    for path in sorted(root.rglob("points.csv")):
        found["points"] += read_points(path)
    return {layout: [_with_kernels(m) for m in some] for layout, some in found.items()} if silicon else found


def _with_kernels(m: Measured) -> Measured:
    if m.machine is None:
        return m
    row = find(m.machine.hardware.name)
    if row is None:
        return m
    known = equipped({row.name: row}, m.family, m.expert_parallel)[row.name].kernels
    return replace(m, machine=replace(m.machine, hardware=replace(m.machine.hardware, kernels=known)))


# -- stages ------------------------------------------------------------------------------------------------------------


def read_stages(folder: Path) -> list[Measured]:
    """``experiments.json``: each stage of each experiment."""
    models = json.loads((folder / "models.json").read_text())
    hardware = json.loads((folder / "hardware.json").read_text())
    out = []
    for experiment in json.loads((folder / "experiments.json").read_text())["experiments"]:
        name, tp = experiment["hardware"], int(experiment["tensor_parallel"])
        machine = RooflineMachine(
            Architecture.from_config(models[experiment["model"]]),
            _hardware(name, hardware[name]),
            tp,
            float(models[experiment["model"]].get("bytes_per_parameter", 2)),
        )
        engine = EngineModel(
            IterationCost(1.0),
            EngineLimits(
                experiment["max_num_seqs"],
                experiment["max_num_batched_tokens"],
                machine.cache_tokens(),
                BLOCK,
                experiment["max_model_len"],
            ),
        )
        system = f"{experiment['model']} {name} tp{tp}"
        out += [_stage(system, experiment, stage, engine, machine, i) for i, stage in enumerate(experiment["stages"])]
    return out


def _hardware(name: str, given: Mapping[str, Any]) -> Hardware:
    known = find(name)
    return Hardware(
        name,
        given.get("memory_bandwidth_gb_per_s", known.bandwidth_gb_s if known else 0.0),
        given.get("bf16_dense_tflops", known.tflops_bf16 if known else 0.0),
        given["memory_gb"],
        str(given.get("source", "hardware.json")),
        "",
    )


def _stage(
    system: str,
    experiment: Mapping[str, Any],
    stage: Mapping[str, Any],
    engine: EngineModel,
    machine: RooflineMachine,
    i: int,
) -> Measured:
    output = int(experiment["output_tokens"])
    workload = _stage_traffic(experiment, stage, seed=i)
    n = len(workload)
    ttft, e2e = stage["ttft_s"], stage["e2e_s"]
    saturated = stage["failed"] > 0.01 * stage["sent"]
    itl = (e2e["mean"] - ttft["mean"]) / (output - 1)
    running = min(stage["rate_per_s"] * e2e["mean"], experiment["max_num_seqs"])
    # Under overload the means are of those who were patient enough, so only the gaps count, and they with doubt.
    seen = {"itl_s": (itl, 0.1 if saturated else 0.01)}
    if not saturated:
        seen["ttft_s"] = (ttft["mean"], 0.03)
        if e2e.get("p10") and e2e.get("p90", 0.0) > e2e["p10"]:
            seen[SPREAD] = (math.log(e2e["p90"] / e2e["p10"]), 0.2)
    middle = slice(0, n) if saturated else slice(n // 20, n - n // 20)
    return Measured(
        system=system,
        family="vllm",
        experiment=experiment["name"],
        stage=f"{stage['rate_per_s']:g}/s",
        observation=Observation(workload, (RequestGroup(middle, seen),), running, timeout_s=PATIENCE_S),
        engine=engine,
        machine=machine,
        actual={
            "e2e_mean": e2e["mean"],
            "e2e_p90": e2e["p90"],
            "itl_mean": itl,
            "ttft_mean": ttft["mean"],
            "ttft_p90": ttft["p90"],
        },
        where=middle,
        saturated=saturated,
        load=float(stage["rate_per_s"]),
        mixture=machine.architecture.experts > 0,
    )


def _stage_traffic(experiment: Mapping[str, Any], stage: Mapping[str, Any], seed: int) -> Workload:
    """Exponential gaps at exactly the stage's mean rate, and prompts of its quantiles.

    The generator asks a few fixed questions again and again (system prompts times users of each), so that all but the last block
    of a prompt is in vLLM's prefix cache, but the first time that it is asked.
    """
    rng = np.random.default_rng(1000 + seed)
    n = int(stage["sent"])
    gaps = rng.exponential(1.0, n)
    told = stage["prompt_tokens"]
    known = sorted((float(k[1:]) / 100, v) for k, v in told.items() if k[0] == "p" and k[1:].isdigit())
    levels, values = zip(*[(0.0, told["min"]), *known, (1.0, told["max"])], strict=True)
    prompt = np.round(np.interp(rng.permutation((np.arange(n) + 0.5) / n), levels, values)).astype(np.int64)
    shared = experiment.get("shared_prefix") or {}
    questions = int(shared.get("system_prompts", 0)) * int(shared.get("users_per_system_prompt", 1))
    prefix = (prompt - 1) // BLOCK * BLOCK if questions else np.zeros(n, np.int64)
    prefix[: min(questions, n)] = 0
    return Workload(
        np.cumsum(gaps / gaps.mean()) / stage["rate_per_s"],
        prompt,
        np.full(n, int(experiment["output_tokens"]), np.int64),
        prefix,
    )


# -- request by request ------------------------------------------------------------------------------------------------

#: Of a run, so many requests are seen; the others are predicted.
FIRST = 100
_IN_A_PART = 10


def read_requests(folder: Path) -> Measured:
    """``requests.csv``: the first hundred as an observation, the others as what is asked."""
    told = json.loads((folder / "engine.json").read_text())
    with (folder / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    order = np.argsort(column["arrival_s"], kind="stable")
    column = {name: values[order] for name, values in column.items()}
    ttft, decode = column["queued_to_first_token_s"], column["first_to_last_token_s"]
    prompt, output = (column[f"{c}_tokens"].astype(np.int64) for c in ("prompt", "output"))
    cached = column["prefix_tokens"].astype(np.int64) if "prefix_tokens" in column else np.zeros(len(rows), np.int64)
    workload = Workload(
        column["arrival_s"] - column["arrival_s"][0], prompt, output, np.clip(cached, 0, np.maximum(prompt - 1, 0))
    )
    tp = int(told.get("tensor_parallel", 1))
    architecture, hardware = find_architecture(told["model"]), find(_spelled(told["gpu"]))
    machine = None
    if architecture is not None and hardware is not None:
        machine = RooflineMachine(architecture, hardware, tp, weight_bytes(told["model"], told.get("dtype")))
    share = float(told.get("gpu_memory_utilization", 0.9))
    limits = EngineLimits(
        told["max_num_seqs"], told["max_num_batched_tokens"], machine.cache_tokens(share) if machine else None, BLOCK
    )
    gaps = np.maximum(output - 1, 1)
    rest = np.arange(FIRST, len(rows))
    e2e = ttft + decode
    running = float(np.mean(e2e[:FIRST]) * FIRST / max(workload.arrival_s[FIRST - 1], 1e-9))
    first = Observation(workload, tuple(_parts(ttft, decode, gaps, FIRST)), running, inside=True)
    return Measured(
        system=f"{told['model']} {told['gpu']} tp{tp}",
        family=str(told.get("engine", "vllm")),
        experiment=folder.name,
        stage=f"{FIRST}..{len(rows)}",
        observation=first,
        engine=EngineModel(IterationCost(1.0), limits),
        machine=machine,
        actual=_latencies(ttft, decode, gaps, rest),
        where=rest,
        load=float(told.get("rate_per_s", 0.0)),
        mixture=None if architecture is None else architecture.experts > 0,
        architecture=architecture,
        whole=replace(first, parts=tuple(_parts(ttft, decode, gaps, len(rows)))),
        whole_actual=_latencies(ttft, decode, gaps, slice(0, None)),
    )


def _latencies(ttft: np.ndarray, decode: np.ndarray, gaps: np.ndarray, of: np.ndarray | slice) -> dict[str, float]:
    e2e = ttft + decode
    return {
        "e2e_mean": float(e2e[of].mean()),
        "e2e_p90": float(np.quantile(e2e[of], 0.9)),
        "itl_mean": float(decode[of].sum() / gaps[of].sum()),
        "ttft_mean": float(ttft[of].mean()),
        "ttft_p90": float(np.quantile(ttft[of], 0.9)),
    }


def _parts(ttft: np.ndarray, decode: np.ndarray, gaps: np.ndarray, upto: int) -> Iterator[RequestGroup]:
    for start in range(0, upto, _IN_A_PART):
        which = np.arange(start, min(start + _IN_A_PART, upto))
        yield RequestGroup(
            which,
            {
                "ttft_s": (float(ttft[which].mean()), 0.05),
                "itl_s": (float(decode[which].sum() / gaps[which].sum()), 0.02),
            },
        )


def _spelled(gpu: str) -> str:
    """``RTXPRO6000``, ``h100_sxm`` and the like, as the hardware table's names."""
    return gpu.upper().replace("_SXM", "").replace("_", "-")


# -- points ------------------------------------------------------------------------------------------------------------

_ENGINE = ("engine", "engine_version", "model", "gpu", "precision")
_PARALLEL = (
    "tensor_parallel", "pipeline_parallel", "attention_data_parallel", "moe_tensor_parallel", "moe_expert_parallel",
)  # fmt: skip
#: Requests that each client of a closed loop sends: the usual ten, of which the first all come at once.
_EACH, _MOST_REQUESTS = 10, 6000
#: None of the points tells them: what such benchmarks set, large enough not to bind.
_MANY_TOKENS = 8192


def read_points(path: Path) -> list[Measured]:
    """``points.csv``: one measurement for each distinct load; repeated rows are taken once, at their median."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    _mark_cached(rows)
    by_load: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        key = (*(row[c] for c in _ENGINE + _PARALLEL), row["prompt_tokens"], row["output_tokens"], row["concurrency"])
        by_load[key].append(row)
    return [m for group in by_load.values() if (m := _point(group)) is not None]


def _mark_cached(rows: list[dict[str, str]]) -> None:
    """``cached``: how many of the first requests were sent before, by the next shorter run of the same shape, which has the same seed.

    They are in the prefix cache, as the times to first tokens of most runs show: that of the first burst is short.
    """
    for row in rows:
        if not row.get("requests"):
            continue
        shape = [row.get(c) for c in (*_ENGINE, *_PARALLEL, "prompt_max", "output_max")]
        shorter = [
            int(other["requests"])
            for other in rows
            if [other.get(c) for c in (*_ENGINE, *_PARALLEL, "prompt_max", "output_max")] == shape
            and int(other["requests"]) < int(row["requests"])
        ]
        row["cached"] = str(max(shorter, default=0))


def point_names(row: Mapping[str, str]) -> tuple[str, str, str]:
    """System, experiment and stage of a row of ``points.csv``."""
    system = " ".join(row[c] or "-" for c in _ENGINE + _PARALLEL)
    return system, f"{row['prompt_tokens']} in, {row['output_tokens']} out", f"{row['concurrency']} clients"


def _point(rows: list[dict[str, str]]) -> Measured | None:
    row = rows[0]
    ttft, tpot = (float(np.median([float(r[c]) for r in rows if r[c]])) for c in ("ttft_mean_s", "tpot_mean_s"))
    if not (ttft > 0 and tpot > 0):
        return None
    clients, prompt, output = (int(row[c]) for c in ("concurrency", "prompt_tokens", "output_tokens"))
    ranks = _count(row["attention_data_parallel"])
    each = max(1, round(clients / ranks))  # each rank of a data-parallel attention has its own batch
    machine = _point_machine(row)
    system, experiment, stage = point_names(row)
    limits = EngineLimits(max(1024, each), max(_MANY_TOKENS, each), None, BLOCK)
    return Measured(
        system=system,
        family=row["engine"],
        experiment=experiment,
        stage=stage,
        observation=Observation(
            _drawn_traffic(row) or _closed_traffic(each, prompt, output),
            (RequestGroup(slice(0, None), {"itl_s": (tpot, 0.01), "ttft_s": (ttft, 0.05)}),),
            float(each),
            closed=each,
        ),
        engine=EngineModel(IterationCost(1.0), limits),
        machine=machine,
        actual={"ttft_mean": ttft, "tpot_mean": tpot},
        where=slice(0, None),
        load=float(clients),
        expert_parallel=_count(row["moe_expert_parallel"]),
        mixture=_mixture(row),
        architecture=find_architecture(row["model"]),
    )


def _mixture(row: Mapping[str, str]) -> bool | None:
    if row.get("kind"):
        return row["kind"] == "moe"
    architecture = find_architecture(row["model"])
    return None if architecture is None else architecture.experts > 0


def _point_machine(row: Mapping[str, str]) -> RooflineMachine | None:
    architecture, hardware = find_architecture(row["model"]), find(_spelled(row["gpu"]))
    if architecture is None or hardware is None:
        return None
    split = _count(row["tensor_parallel"]) * _count(row["pipeline_parallel"])
    precision = weight_bytes(row["model"], row["precision"] or None)
    machine = RooflineMachine(architecture, hardware, split, precision, ranks=_count(row["attention_data_parallel"]))
    return machine if row["engine"] == "vllm" else replace(machine, prefill_layer_s=LAUNCHED_LAYER_S)


def _closed_traffic(clients: int, prompt: int, output: int) -> Workload:
    """All at once, for ``clients`` slots. Lengths vary by a tenth either way, as such benchmarks draw them."""
    rng = np.random.default_rng(clients)
    n = int(min(_EACH * clients, max(_MOST_REQUESTS, 2 * clients)))
    vary = 0.9 + 0.2 * rng.random((2, n))
    lengths = [
        np.maximum(1, np.round(mean * v)).astype(np.int64) for mean, v in zip((prompt, output), vary, strict=True)
    ]
    return Workload(np.zeros(n), lengths[0], np.maximum(2, lengths[1]), np.zeros(n, np.int64))


def _drawn_traffic(row: Mapping[str, str]) -> Workload | None:
    """The requests of SGLang's ``bench_serving`` with random lengths, in order: NumPy's generator with seed 1 draws the prompts
    uniformly from 1 to ``prompt_max``, then the outputs. None where the columns do not say so."""
    if not row.get("requests") or not row.get("prompt_max") or not row.get("output_max"):
        return None
    n, rng = int(row["requests"]), np.random.RandomState(1)
    prompt, output = (rng.randint(1, int(row[f"{name}_max"]) + 1, n).astype(np.int64) for name in ("prompt", "output"))
    if row.get("lengths_reproduced") == "one less":
        prompt -= 1
    prompt = np.maximum(prompt, 1)
    prefix = np.where(np.arange(n) < int(row.get("cached") or 0), prompt - 1, 0)
    return Workload(np.zeros(n), prompt, np.maximum(output, 1), prefix)


def _count(text: str) -> int:
    """An unstated degree of parallelism, or one of 0, is one."""
    return max(1, int(text or 1))
