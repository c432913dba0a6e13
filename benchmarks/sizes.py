"""Machines of several sizes under one endpoint: what each can do and costs, and the replicas of a fleet that changes from one to another.

The new size's replicas start beside the old one's; once one of them is ready, requests go to the new size alone, and the old ones leave as
soon as they are empty. Both are paid for meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.whatif.kernel import BLOCKS, ROUND_ROBIN, UNLIMITED, USED, KernelMachine
from analyzers.whatif.model import EngineModel
from collectors.workload import Ints, Workload


@dataclass(frozen=True)
class MachineSize:
    """One that an endpoint may run on."""

    name: str
    accelerator: str
    usd_per_replica_hour: float
    model: EngineModel
    """The truth, which nobody is told."""


class SizedMachine(KernelMachine):
    """Replicas of several sizes, numbered. A new replica is of the size that is wanted when it becomes ready."""

    def __init__(self, workload: Workload, models: Sequence[EngineModel], rows: int) -> None:
        self.wanted = 0
        self._sizes: Ints = np.zeros(rows, np.int64)
        """By row."""
        widest = max(models, key=lambda model: model.limits.max_num_seqs)
        super().__init__(workload, widest, rows, ROUND_ROBIN, math.inf, tracked=False)
        one = Workload(*(column[:1] for column in (workload.arrival_s, *self._work[1:])))
        each = [KernelMachine(one, model, 1, ROUND_ROBIN, math.inf, tracked=False) for model in models]
        self._engines = [(machine._cost, machine._limits) for machine in each]
        self.blocks = min(machine.blocks for machine in each)  # what no size may be asked to hold more than

    def take(self, row: int, number: int) -> None:
        super().take(row, number)
        self._sizes[row] = self.wanted

    def grow(self) -> None:
        super().grow()
        self._sizes = np.concatenate((self._sizes, np.zeros_like(self._sizes)))

    def run(self, first: int, upto: int, since: float, until: float, order: Ints, ready: int) -> tuple[float, float]:
        sizes = self._sizes[order]
        serves = self.wanted if ready == 0 or self.wanted in sizes[:ready] else int(sizes[0])
        running = waiting = 0.0
        for size, engine in enumerate(self._engines):
            mine = np.flatnonzero(sizes == size)
            if mine.size == 0:
                continue
            self._cost, self._limits = engine
            able = int(np.count_nonzero(mine < ready)) if size == serves else 0
            areas = super().run(first if able else upto, upto, since, until, order[mine], able)
            running, waiting = running + areas[0], waiting + areas[1]
        return running, waiting

    def outstanding(self, row: int, at: float) -> int:
        """Of another size than is wanted: none, so that it is the first to go."""
        return super().outstanding(row, at) if self._sizes[row] == self.wanted else -1

    def kv_usage(self, rows: list[int]) -> float | None:
        held = [(int(self.whole[row, USED]), int(self._engines[self._sizes[row]][1][BLOCKS])) for row in rows]
        if not held or any(blocks == UNLIMITED for _, blocks in held):
            return None
        return sum(used / blocks for used, blocks in held) / len(held)
