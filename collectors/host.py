"""The host that Flyball itself runs on: processor, memory, and NVIDIA GPUs where a driver is there.

For endpoints that are processes on this host. What is not there is left out: no driver means no GPU keys, never 0.
All calls are reads of counters and take well under a millisecond each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import psutil
import pynvml
from pydantic import BaseModel, ConfigDict

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.discovery import Support
from collectors.window import Reading

SUPPORT = Support(
    title="this host",
    sees=("CPU and memory", "GPU load, memory and power, where NVIDIA's driver is there"),
    changes=(),
    verified="real part",
    how="this host's own readings; those of a GPU against a stand-in for the driver",
)


class Options(BaseModel):
    """Settings of the ``host`` source."""

    model_config = ConfigDict(extra="forbid")

    gpu: bool = True
    """Also read the GPUs. Default true: where there is none it costs nothing."""


class HostCollector:
    """This host. The target's address is not used."""

    source: ClassVar[str] = "host"
    interval_s: float | None = None
    deadline_s: float | None = None
    settles_s = 0.0
    scope: Scope = "endpoint"  # there is one host, however many replicas stand on it

    def __init__(self, context: SourceContext) -> None:
        self._clock = context.clock
        self._options = Options.model_validate(dict(context.options))
        self._busy: tuple[float, float] | None = None
        self._gpus: list[Any] | None = None

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One Reading. ``cpu_usage`` covers the time since the read before, so the first has none."""
        memory = psutil.virtual_memory()
        gauges = {"memory_usage": 1 - memory.available / memory.total} | self._cpu()
        if self._options.gpu:
            gauges |= self._gpu()
        return [
            Reading(
                target=target.name,
                at=self._clock.now(),
                gauges=gauges,
                started_at=psutil.boot_time(),
                facts={"cpus": str(psutil.cpu_count()), "memory_bytes": str(memory.total)}
                | (_names(self._gpus) if self._gpus else {}),
            )
        ]

    def _cpu(self) -> dict[str, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is part of user time already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        before, self._busy = self._busy, (total - idle, total)
        if before is None or total <= before[1]:
            return {}
        return {"cpu_usage": min(1.0, max(0.0, (total - idle - before[0]) / (total - before[1])))}

    def _gpu(self) -> dict[str, float]:
        if self._gpus is None:
            self._gpus = _handles()
        if not self._gpus:
            return {}
        usage = _each(self._gpus, lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
        memory = _each(self._gpus, _memory_share)
        power = _each(self._gpus, lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000)
        gauges = {}
        if usage is not None:
            gauges["gpu_usage"] = sum(usage) / len(usage)
        if memory is not None:
            gauges["gpu_memory_usage"] = sum(memory) / len(memory)
        if power is not None:
            gauges["gpu_power_w"] = sum(power)
        return gauges


def _handles() -> list[Any]:
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, no GPU, or not allowed
        return []


def _names(gpus: Sequence[Any]) -> dict[str, str]:
    """How many there are, and what they are called where all are called alike."""
    try:
        names = {str(pynvml.nvmlDeviceGetName(gpu)) for gpu in gpus}
    except pynvml.NVMLError:
        names = set()
    return {"gpus": str(len(gpus))} | ({"gpu": names.pop()} if len(names) == 1 else {})


def _memory_share(gpu: Any) -> float:
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    return float(memory.used / memory.total)


def _each(gpus: Sequence[Any], read: Callable[[Any], float]) -> list[float] | None:
    """One value for each GPU; None where one of them cannot tell (partitioned GPUs have no utilization)."""
    try:
        return [read(gpu) for gpu in gpus]
    except pynvml.NVMLError:
        return None


def make(context: SourceContext) -> HostCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return HostCollector(context)
