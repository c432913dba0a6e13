"""The replicas of the next day: as few as carry the load to come, changed as seldom as is worth it.

A count may be kept while it carries the upper end of the load until more could serve; a smaller one may be taken only where it carries
it until the next change could be made, by the high end of its prediction. Of all such days the cheapest is found by dynamic
programming over slots, counts and changes. What is proposed now is that day's first step, and it is planned anew in each analysis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.autoscaling.targets import TunedTargets
from analyzers.forecast.horizon import Horizon
from analyzers.policy import Policy
from collectors.workload import Floats

#: A shape that met the objective at a load is taken to carry this multiple of it.
AS_CARRIED = 1.05
#: Loads are asked for on a grid of this ratio, rounded up, so that few replays answer many questions; and so many steps below what is
#: not carried, where nothing is known to be.
GRID, WIDEST = 1.02, 64

#: Whether ``count`` replicas carry a multiple of the load: by the high end of the prediction where ``surely``, else by its middle.
Carries = Callable[[int, float, bool], bool]


@dataclass(frozen=True, slots=True)
class ReplicaPath:
    """Replica counts of the slots to come."""

    counts: tuple[int, ...]
    """Slot by slot; the first is what should be asked for now."""
    saved: float
    """Replica-slots fewer than if the largest of ``counts`` and the present count stayed."""

    @property
    def now(self) -> int:
        return self.counts[0]

    def next_change(self) -> tuple[int, int] | None:
        """(slot, count) of the first change after now; None: there is none."""
        return next(((i, n) for i, n in enumerate(self.counts) if n != self.now), None)


@dataclass(frozen=True, slots=True)
class TargetSearch:
    """What a search over an autoscaler's settings found, and when (Unix seconds)."""

    at: float
    found: TunedTargets | None


class Capacities:
    """What each count of replicas carries, learned by asking as seldom as possible: a count that carries a load carries less of it,
    and more replicas carry it too. Holds for one calibration and one traffic."""

    def __init__(self) -> None:
        self.targets: TargetSearch | None = None
        """Under an autoscaler: what a search over its settings found last."""
        self._most: dict[tuple[int, bool], int] = {}
        self._least: dict[tuple[int, bool], int] = {}
        self._sizes: dict[str, Capacities] = {}

    def of(self, size: str) -> Capacities:
        """Those of another size, under the same calibration and traffic."""
        return self._sizes.setdefault(size, Capacities())

    def carries(self, count: int, load: float, surely: bool, ask: Carries) -> bool:
        """``ask``, where the answers so far do not tell: half-way between what is known to be carried and what is known not to be."""
        if load <= 0:
            return True
        wanted = math.ceil(math.log(load) / math.log(GRID) - 1e-9)
        while True:
            most, least = self._bounds(count, surely)
            if most is not None and wanted <= most:
                return True
            if least is not None and wanted >= least:
                return False
            at = wanted if most is None or least is None else (most + least) // 2
            if ask(count, GRID**at, surely):
                self._most[count, surely] = at
            else:
                self._least[count, surely] = at
                if most is None:  # a lower end from which to halve
                    known = self._most if ask(count, GRID ** (at - WIDEST), surely) else self._least
                    known[count, surely] = at - WIDEST

    def _bounds(self, count: int, surely: bool) -> tuple[int | None, int | None]:
        """On the grid: the most that it is known to carry, and the least that it is known not to."""
        most = [m for (n, sure), m in self._most.items() if n <= count and sure >= surely]
        least = [m for (n, sure), m in self._least.items() if n >= count and sure <= surely]
        return max(most, default=None), min(least, default=None)


def replica_path(
    horizon: Horizon,
    demand: Floats,
    present: int,
    counts: Sequence[int],
    policy: Policy,
    carries: Carries,
    worth: float,
) -> ReplicaPath:
    """The next day's replicas.

    demand: (slots,) multiples of a load, as ``carries`` takes them. counts: what is allowed, fewest first. worth: replica-slots that
    must be saved a day for a change to be worth its disruption. Where no count carries a slot's load, the most that are allowed must do.
    """
    reach = policy.max_step_replicas * (policy.max_changes_per_day + 1)  # in a day
    counts = [count for count in counts if abs(count - present) <= reach]
    top, seasonal = counts[-1], horizon.forecast.season_s is not None
    lead, bound = horizon.slots(horizon.lead_s), horizon.slots(horizon.cooldown_s + horizon.lead_s)
    ahead, until_next = _coming(demand, lead), _coming(demand, bound)

    def keeps(slot: int, count: int) -> bool:
        if count == top or (count == present and not seasonal):
            return True
        if count == present and horizon.carried and ahead[slot] <= AS_CARRIED:
            return True
        return carries(count, float(ahead[slot]), False)

    def enters(slot: int, count: int, before: int) -> bool:
        if not horizon.open(slot) or abs(count - before) > policy.max_step_replicas:
            return False
        if count > before:
            return (
                count == top
                or carries(count, float(until_next[slot]), False)
                or count == before + policy.max_step_replicas
            )
        spent = slot == 0 and horizon.recent_changes >= policy.max_changes_per_day
        return not spent and carries(count, float(until_next[slot]), True)

    best = _cheapest(len(demand), present, counts, policy.max_changes_per_day, keeps, enters)
    for count in counts:  # for good: no change of a day and its night, of which there may be so many
        if count < present and enters(0, count, present):
            lasting = _cheapest(len(demand), count, counts, policy.max_changes_per_day, keeps, enters)
            if max(lasting) == lasting[0] == count and sum(lasting) < sum(best):
                best = lasting
    stay = (max(present, *best),) * len(demand)
    saved = float(sum(stay) - sum(best))
    if max(best) <= present and saved < worth:
        return ReplicaPath((present,) * len(demand), 0.0)
    return ReplicaPath(best, saved)


def _coming(demand: Floats, slots: int) -> Floats:
    """(n,) the most of each slot and those after it, ``slots`` in all. A day is taken to be followed by one like it."""
    n = demand.shape[0]
    around = np.concatenate([demand] * (1 + -(-slots // n)))
    most: Floats = np.lib.stride_tricks.sliding_window_view(around, slots)[:n].max(axis=1)
    return most


def _cheapest(
    slots: int,
    present: int,
    counts: Sequence[int],
    most_changes: int,
    keeps: Callable[[int, int], bool],
    enters: Callable[[int, int, int], bool],
) -> tuple[int, ...]:
    """Counts slot by slot: the fewest replica-slots, then the fewest changes. A slot that is not carried, and a change beyond the most,
    cost more than all replicas of the day."""
    stuck = float(slots * counts[-1] + 1)
    # By count and changes made: (cost, changes) and the way there.
    reached: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(present, 0): (0.0, ())}
    for slot in range(slots):
        following: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}

        def offer(count: int, changes: int, cost: float, way: tuple[int, ...], found: dict = following) -> None:  # type: ignore[type-arg]
            key = (count, changes)
            if key not in found or cost < found[key][0]:
                found[key] = (cost, (*way, count))

        for (count, changes), (cost, way) in reached.items():
            offer(count, changes, cost + count + (0.0 if keeps(slot, count) else stuck), way)
            more = 0.0 if changes < most_changes else stuck
            if more == 0.0 or not keeps(slot, count):
                for other in counts:
                    if other != count and enters(slot, other, count):
                        offer(other, min(changes + 1, most_changes), cost + other + more, way)
        reached = following
    cost, changes = min((cost, changes) for (_, changes), (cost, _) in reached.items())
    return min(way for (_, made), (spent, way) in reached.items() if (spent, made) == (cost, changes))
