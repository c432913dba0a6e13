"""Times of measured kernels, from the optional extra ``silicon`` (NVIDIA's ``aiconfigurator-core``): what a datasheet does not tell.

The package holds times of single kernels (matrix products, attention, experts, communication) by GPU and engine, and puts a model's
iteration together from them. It is asked for a grid of iterations, once a process for each model and machine. Measured serving points are in the
package as well; none of them is read. Only models whose configuration it carries are asked for, so nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any

import numpy as np

from analyzers.architecture import Architecture, find_architecture
from analyzers.hardware import Hardware
from analyzers.steptimes import StepTimes

PACKAGE = "aiconfigurator_core"
#: The hardware table's names, and the package's.
_SYSTEMS = {
    "A100-80GB": "a100_sxm", "H100": "h100_sxm", "H200": "h200_sxm", "B200": "b200_sxm", "B300": "b300_sxm", "GB200": "gb200", "GB300": "gb300",
    "L40S": "l40s", "RTX-PRO-6000": "rtx_pro_6000_server",
}  # fmt: skip
#: Number formats to ask for, by bytes of a weight; the first that it has times of. The last leaves the choice to the checkpoint.
_FORMATS: Mapping[float, tuple[str | None, ...]] = {
    2.0: ("bfloat16", None),
    1.0: ("fp8", "fp8_block", None),
    0.5: ("nvfp4", "int4_wo", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8", None),
}
_MOST_CONTEXT = 2**21
_BATCHES, _CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (128, 1024, 4096, 16384)
_CHUNKS, _BEFORE = (32, 128, 512, 2048, 8192), (0, 2048, 8192)
_MIXED_CHUNKS, _MIXED_BATCHES = (512, 2048), (8, 64, 256)


def equipped(table: Mapping[str, Hardware], engine: str = "vllm", expert_parallel: int = 1) -> Mapping[str, Hardware]:
    """The table with the kernel times of those accelerators that have some; as it is where the extra is not installed.

    engine: ``vllm``, ``sglang`` or ``trtllm``. expert_parallel: over how many accelerators whole experts are spread.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return table
    return {
        name: replace(row, kernels=partial(step_times, _SYSTEMS[name], engine, expert_parallel))
        if name in _SYSTEMS and row.kernels is None
        else row
        for name, row in table.items()
    }


@lru_cache(maxsize=256)
def step_times(
    system: str,
    engine: str,
    expert_parallel: int,
    architecture: Architecture,
    accelerators: int,
    weight_bytes: float,
    ranks: int,
) -> StepTimes | None:
    """Times of iterations of ``architecture`` on one replica; None where the package lacks the model or one of its kernels."""
    model = _models().get(architecture)
    if model is None:
        return None
    from aiconfigurator_core.sdk.engine import EngineHandle
    from aiconfigurator_core.sdk.errors import PerfDataNotAvailableError

    width = accelerators * ranks
    if width % expert_parallel:
        return None
    for formats in _formats(model, architecture, weight_bytes):
        try:
            handle = EngineHandle.compile(
                model, system, engine, tp_size=accelerators, attention_dp_size=ranks,
                moe_tp_size=width // expert_parallel, moe_ep_size=expert_parallel, **formats,
            )  # fmt: skip
            return _asked(handle)
        except (ValueError, KeyError, AssertionError, NotImplementedError, PerfDataNotAvailableError):
            continue  # it has no times in this format
    return None


def _asked(handle: Any) -> StepTimes:
    """Decodes, prefills of one prompt, and both in one iteration."""
    rows = [(n, n * context, 0, 0.0, handle.decode_step_latency(n, context, 2)) for n, context in _decodes()]
    rows += [
        (0, 0, chunk, (before + chunk / 2) * chunk, handle.predict_prefill_latency(1, chunk + before, before))
        for chunk, before in itertools.product(_CHUNKS, _BEFORE)
    ]
    rows += [
        (n, n * chunk, chunk, chunk * chunk / 2, handle.mixed_step_latency(chunk, n, chunk, 2))
        for chunk, n in itertools.product(_MIXED_CHUNKS, _MIXED_BATCHES)
    ]
    decoding, context, prefill, products, milliseconds = np.array(rows, np.float64).T
    return StepTimes(decoding, context, prefill, products, milliseconds / 1000.0)


def _decodes() -> Iterator[tuple[int, int]]:
    return ((n, c) for n, c in itertools.product(_BATCHES, _CONTEXTS) if n * c <= _MOST_CONTEXT)


def _formats(model: str, architecture: Architecture, weight_bytes: float) -> Iterator[dict[str, str]]:
    names = _FORMATS.get(weight_bytes, (None,))
    if architecture.experts and weight_bytes == 1.0:
        names = ("fp8_block", "fp8", None)  # how mixtures are published
    if weight_bytes == 0.5 and _mxfp4(model):
        names = (None, *names[1:-1])
    for cache in ({}, {"kvcache_quant_mode": "bfloat16", "fmha_quant_mode": "bfloat16"}):
        for name in names:
            # A format of experts alone leaves the rest to the checkpoint.
            dense = {} if name is None or "mxfp4" in name else {"gemm_quant_mode": name}
            experts = {} if name is None or not architecture.experts else {"moe_quant_mode": name}
            yield {**dense, **experts, **cache}


def _mxfp4(model: str) -> bool:
    """Whether the checkpoint's experts are published in MXFP4."""
    file = files(PACKAGE).joinpath("model_configs", model.replace("/", "--") + "_config.json")
    config = json.loads(file.read_text())
    told = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config") or {}
    return bool(told.get("quant_method") == "mxfp4")


@lru_cache(maxsize=1)
def _models() -> Mapping[Architecture, str]:
    """The models that it carries the configuration of, by their sizes; of those that are alike the shortest name."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # it tells of each table that it fills from another engine
    found: dict[Architecture, str] = {}
    for file in files(PACKAGE).joinpath("model_configs").iterdir():
        name = file.name.removesuffix("_config.json")
        if name == file.name or name.endswith("_hf_quant"):
            continue
        path = name.replace("--", "/", 1)
        architecture = find_architecture(path)
        if architecture is not None and len(path) < len(found.get(architecture, path + " ")):
            found[architecture] = path
    return found
