"""Another predictor beside the what-if engine, on the very points that both can predict.

AIConfigurator's package holds the measured points that ``points.csv`` was converted from, each with the parameters that it takes itself:
so it is asked with its own. It needs no measurement of the system asked about but kernel times of the hardware; the protocol
``transfer`` is the nearest to that, while ``concurrency`` has seen the system at other loads.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurements import point_names
from benchmarks.simulators import NotRun, ask

#: What it calls the columns of ``points.csv`` that name a point.
_NAMES = {
    "engine": "backend",
    "engine_version": "backend_version",
    "model": "model_path",
    "gpu": "system",
    "precision": "precision",
    "prompt_tokens": "isl",
    "output_tokens": "osl",
    "tensor_parallel": "tp_size",
    "pipeline_parallel": "pp_size",
    "attention_data_parallel": "attention_dp_size",
    "moe_tensor_parallel": "moe_tp_size",
    "moe_expert_parallel": "moe_ep_size",
}
#: Arguments of its estimate that are columns of its sample: texts, and numbers of which 0 and nothing leave the default.
_TEXTS = ("gemm_quant_mode", "moe_quant_mode")
_NUMBERS = (
    "isl", "osl", "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size",
)  # fmt: skip
#: Models of the sample whose sizes its package has under another name.
_SAME_SIZES = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
}
_METRICS = {"ttft_mean": "ttft_s", "tpot_mean": "tpot_s"}

Name = tuple[str, str, str]


def compare(folder: Path, rows: Sequence[dict[str, Any]], most: int) -> dict[str, Any]:
    """Median absolute errors of both over the same points, by protocol and metric; at most ``most`` points are asked.

    rows: predictions of points, with ``system``, ``experiment`` and ``stage``. Raises NotRun where the peer is not there.
    """
    sample = _sample(folder)
    names = sorted({name for row in rows if (name := _name(row)) in sample})
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).astype(int))]
    theirs = _answers(folder, {name: _asked(sample[name]) for name in chosen})
    # Some of its models are known to it only in the precision that they come in, which goes by another name in the sample.
    rest = [name for name in chosen if name not in theirs and sample[name]["model_path"] not in _SAME_SIZES]
    theirs |= _answers(folder, {name: _plain(_asked(sample[name])) for name in rest})
    return {"asked": len(chosen), "answered": len(theirs), "summary": _summary(rows, theirs)}


def _answers(folder: Path, asked: dict[Name, dict[str, Any]]) -> dict[Name, dict[str, float]]:
    """Of those that it does not refuse."""
    answers = ask(folder, "aiconfigurator", list(asked.values()))
    return {name: answer for name, answer in zip(asked, answers, strict=True) if "refused" not in answer}


def _summary(rows: Sequence[dict[str, Any]], theirs: dict[Name, dict[str, float]]) -> list[dict[str, Any]]:
    out = []
    for protocol in sorted({row["protocol"] for row in rows}):
        for metric, field in _METRICS.items():
            both = [
                (row["predicted"], theirs[_name(row)][field], row["actual"])
                for row in rows
                if row["protocol"] == protocol and row["metric"] == metric and _name(row) in theirs
            ]
            if both:
                ours, peer, actual = np.array(both).T
                off = [float(np.median(np.abs(predicted / actual - 1.0))) for predicted in (ours, peer)]
                out.append({"protocol": protocol, "metric": metric, "n": len(both), "ours": off[0], "theirs": off[1]})
    return out


def _name(row: dict[str, Any]) -> Name:
    return row["system"], row["experiment"], row["stage"]


def _sample(folder: Path) -> dict[Name, dict[str, str]]:
    """Its measured points of aggregated serving, by the names that they have here."""
    where = "lib/python3*/site-packages/aiconfigurator_core/systems/silicon_sample.csv"
    found = sorted((folder / "aiconfigurator").glob(where))
    if not found:
        raise NotRun(
            "AIConfigurator and its measured points are not there; whatif_speed.py --install-peers brings them"
        )
    out = {}
    with found[0].open(newline="") as file:
        for row in csv.DictReader(file):
            if row["mode"] == "agg":
                clients = int(row["batch_size"]) * max(1, int(row["attention_dp_size"] or 1))
                named = {ours: row[theirs] for ours, theirs in _NAMES.items()}
                out[point_names({**named, "concurrency": str(clients)})] = row
    return out


def _asked(row: dict[str, str]) -> dict[str, Any]:
    known = {name: int(row[name]) for name in _NUMBERS if row[name] not in ("", "0")}
    known |= {name: row[name] for name in _TEXTS if row[name]}
    model = _SAME_SIZES.get(row["model_path"], row["model_path"])
    return {"system_name": row["system"], "backend_name": row["backend"], **known, "model_path": model}


def _plain(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if not name.endswith("_quant_mode")}
