"""The host's own figures, and nothing where nothing is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psutil
import pynvml
import pytest

from collectors.base import ScrapeTarget, SourceContext
from collectors.host import make
from collectors.http import Http
from collectors.metrics import names
from collectors.sessions import Sessions
from collectors.window import Reading
from tests.collectors.clocks import SetClock


def read(times: int, **options: object) -> list[Sequence[Reading]]:
    async def run() -> list[Sequence[Reading]]:
        http = Http()
        collector = make(SourceContext("chat", None, http, SetClock(), Sessions(), options))
        results = []
        for _ in range(times):
            results.append(await collector.read(ScrapeTarget("here", "")))
            started = time.process_time()
            while time.process_time() - started < 0.2:  # something to have used, far above the counter's step of 10 ms
                pass
        await http.aclose()
        return results

    return asyncio.run(run())


def has_gpu() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return bool(pynvml.nvmlDeviceGetCount() > 0)


def test_processor_and_memory() -> None:
    ((first,), (second,)) = read(2)
    assert "cpu_usage" not in first.gauges  # nothing to compare with yet
    assert 0 < second.gauges["cpu_usage"] <= 1
    assert 0 < second.gauges["memory_usage"] < 1
    assert second.started_at == psutil.boot_time()
    assert set(second.gauges) <= set(names("gauge"))


def test_without_a_gpu_its_figures_are_absent() -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    (_, (reading,)) = read(2)
    assert not [name for name in reading.gauges if name.startswith("gpu")]
    assert "gpus" not in reading.facts


def test_gpus() -> None:
    if not has_gpu():
        pytest.skip("this machine has no NVIDIA driver")
    (_, (reading,)) = read(2)
    assert int(reading.facts["gpus"]) == pynvml.nvmlDeviceGetCount()
    for name in ("gpu_usage", "gpu_memory_usage"):
        if name in reading.gauges:
            assert 0 <= reading.gauges[name] <= 1
    (_, (reading,)) = read(2, gpu=False)
    assert "gpu_memory_usage" not in reading.gauges
