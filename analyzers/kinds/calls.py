"""How callers of an API ask, learned from the calls that were refused. What the kinds ``quota`` and ``ptu`` share.

A limit counts what a call may use, and not what it used: ``max_tokens`` that are left high fill it sooner. And a refused call comes again,
or is lost. Neither is in the telemetry, and both decide what another limit would refuse. So the traffic is replayed at the present limit
under several such habits, and those stay that refuse about as many calls as were refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from analyzers.kinds.base import Basis
from analyzers.kinds.service import Retries, ServiceReplay, Speed
from analyzers.objective import answered, merged, total
from analyzers.prediction import CannotPredict, Interval, Prediction
from analyzers.whatif.predict import widened
from analyzers.whatif.traffic import scaled, workload_from_windows
from collectors.window import Window
from collectors.workload import Floats, Ints, Workload

#: Tokens that an answer is admitted with, over those that come out.
_RESERVES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
#: Requests that were made over those that were answered, where some gave up after they had come again.
_ASKED = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
#: Habits stay that are this much farther from what was seen than the nearest one: in logarithms of the odds that a call is refused.
_ALIKE = math.log(1.5)
#: The nearest one that is farther away than this did not reach what was seen, where the shares differ by more than so much, too.
_FAR, _FAR_SHARE = math.log(2.0), 0.02
_LATENCIES = ("ttft_s", "e2e_s", "itl_s", "tpot_s")
_STEPS = (np.arange(200) + 0.5) / 200


@dataclass(frozen=True, slots=True)
class CallerHabit:
    """One way in which callers may ask."""

    retries: bool
    """A refused call comes again, as OpenAI's client sends it. Else it is lost."""
    reserve: float
    """Tokens that an answer is admitted with, over those that come out."""
    asked: float = 1.0
    """Requests that were made, over those that were answered."""

    @property
    def client(self) -> Retries:
        return Retries() if self.retries else Retries(tries=1)

    def demand(self, drawn: Workload) -> Workload:
        """All that was asked for. drawn: what was answered."""
        return drawn if self.asked == 1.0 else scaled(drawn, self.asked)

    def admitted(self, work: Workload) -> Ints:
        """(n,) output tokens that each call is admitted with."""
        tokens: Ints = np.maximum(1, np.ceil(self.reserve * work.output_tokens)).astype(np.int64)
        return tokens


@dataclass(frozen=True, slots=True)
class CallerHabits:
    """Those that explain what was seen, the nearest first; and what was seen."""

    habits: tuple[CallerHabit, ...]
    refused: float | None
    """Calls refused for the limit over all calls. None: the source does not tell."""
    replayed: float
    """The same, as the nearest habit has it."""
    misfit: float
    """Between the two, in logarithms."""
    latency: Mapping[str, tuple[float, ...]]
    """By metric: seconds of answered calls, as evenly spaced quantiles."""
    windows: int
    requests: float
    rates: tuple[float, float]
    """Least and greatest answered calls per second of a window."""

    @property
    def missed(self) -> bool:
        """Whether the nearest habit does not reach what was seen."""
        return self.misfit > _FAR and abs(self.replayed - (self.refused or 0.0)) > _FAR_SHARE

    @property
    def note(self) -> str | None:
        """What a reader must know of it."""
        if self.refused is None:
            return "its source does not tell how many calls were refused: callers are taken to ask for what they get"
        if self.missed:
            return (
                f"a replay at the present limit refuses {self.replayed:.1%} of the calls, and {self.refused:.1%} were: bursts within "
                "a minute, or other deployments that share the limit, are not in it"
            )
        if len(self.habits) > 1:
            reserves = sorted({h.reserve for h in self.habits})
            return (
                f"answers may be admitted with {reserves[0]:g} to {reserves[-1]:g} times the tokens that come out (max_tokens): "
                "what was refused so far fits all of it"
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CallerHabits:
        habits = tuple(CallerHabit(**habit) for habit in data["habits"])
        latency = {name: tuple(values) for name, values in data["latency"].items()}
        rates = (float(data["rates"][0]), float(data["rates"][1]))
        return cls(**{**data, "habits": habits, "latency": latency, "rates": rates})


@dataclass(frozen=True)
class CallReplay:
    """One habit's replay, in figures."""

    got: ServiceReplay
    habit: CallerHabit
    more: Mapping[str, float] = field(default_factory=dict)
    """What the kind has to say beside."""

    @property
    def refused(self) -> float:
        """Of all calls that were sent."""
        sent = float(self.got.each.tries.sum())
        return self.got.throttled / sent if sent else 0.0


def answered_windows(windows: Sequence[Window]) -> list[Window]:
    """Windows whose ``requests`` are those that were answered: tokens and latencies are theirs."""
    found = []
    for window in windows:
        count = answered(window)
        if count is not None:
            counts = {**window.counts, "requests": max(0.0, count - (window.count("rejected") or 0.0))}
            window = replace(window, counts=counts)
        found.append(window)
    return found


def drawn_calls(windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
    """The calls that were answered, drawn from windows. Raises CannotPredict."""
    return workload_from_windows(answered_windows(windows), seed=seed, scale=scale)


def learned(
    windows: Sequence[Window], work: Workload, run: Callable[[CallerHabit], CallReplay], refused: float | None
) -> CallerHabits:
    """The habits under which ``run`` (a replay of ``work`` at the present limit) refuses as large a share of all calls as ``refused``, and
    answers as many as were answered.
    """
    calls = total(windows, "requests") or float(len(work))
    floor = max(1e-3, 1.0 / max(1.0, calls))
    tried: list[tuple[float, float, CallerHabit]] = []
    for habit in _habits(refused):
        got = run(habit)
        off = 0.0
        if refused is not None:
            answers = math.log(max(1, got.got.completed) / len(work))
            off = math.hypot(_odds(got.refused, floor) - _odds(refused, floor), answers)
        tried.append((off, got.refused, habit))
    best = min(off for off, _, _ in tried)
    kept = sorted((t for t in tried if t[0] <= best + _ALIKE), key=lambda t: t[0])
    rates = [r for w in answered_windows(windows) if (r := w.rate("requests")) is not None]
    return CallerHabits(
        tuple(habit for _, _, habit in kept),
        refused,
        kept[0][1],
        best,
        {name: spread for name in _LATENCIES if (spread := _spread(windows, name)) is not None},
        len(windows),
        sum(w.count("requests") or 0.0 for w in answered_windows(windows)),
        (min(rates, default=0.0), max(rates, default=0.0)),
    )


def _odds(share: float, floor: float) -> float:
    """In logarithms."""
    return math.log((share + floor) / (1.0 - share + floor))


def refused_share(windows: Sequence[Window], counter: str = "throttled") -> float | None:
    """Of all calls. None: unknown."""
    known = [w for w in windows if w.count(counter) is not None and w.count("requests") is not None]
    requests = total(known, "requests")
    return (total(known, counter) or 0.0) / requests if requests else None


def mean_speed(windows: Sequence[Window]) -> Speed:
    """Of a whole call, as far as it matters to a limit: how long its estimate stands in place of what it used. 0 where unknown."""
    sketch = merged(windows, "e2e_s")
    mean = sketch.mean if sketch is not None else None
    if mean is None:
        known = [w for w in answered_windows(windows) if w.count("e2e_total_s") is not None]
        seconds, requests = total(known, "e2e_total_s"), total(known, "requests")
        mean = seconds / requests if seconds is not None and requests else 0.0
    return Speed(mean, 0.0)


def predicted(
    replays: Iterable[CallReplay],
    habits: CallerHabits,
    basis: Basis,
    *,
    method: str,
    notes: Sequence[str],
    client_sees: bool,
) -> Prediction:
    """80 % intervals over the replays, the nearest habit's first.

    client_sees: whether a refused call is refused to the client; else it is served elsewhere, and ``throttle_rate`` is 0.
    """
    rows: list[dict[str, float]] = []
    saturated = 0
    for replayed in replays:
        got = replayed.got
        saturated += got.saturated
        row = {"throttle_rate": replayed.refused if client_sees else 0.0} | dict(replayed.more)
        row["requests_per_s"] = got.completed / (got.simulated_s or 1.0)
        rows.append(row | _waits(got, habits, basis))
    if not rows:
        raise CannotPredict("NO_EVIDENCE", "no way in which callers ask is known")
    metrics = {}
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        told = widened(name, Interval(min(values), values[0], max(values)), basis.error.get(name))
        metrics[name] = replace(told, high=min(1.0, told.high)) if name.endswith("_rate") else told
    return Prediction(
        metrics=metrics,
        saturates=saturated / len(rows),
        method=method,
        error={name: basis.error.get(name) for name in metrics},
        notes=tuple(notes),
    )


def _waits(got: ServiceReplay, habits: CallerHabits, basis: Basis) -> dict[str, float]:
    """The objective's latencies: those of answered calls, and the time until they were taken. A gap between tokens waits for nothing."""
    done = got.each.e2e_s >= 0.0
    queue = got.each.queue_s[done]
    found = {}
    for target in basis.objective.targets:
        spread = habits.latency.get(target.metric)
        if target.quantile is None or spread is None or not queue.size:
            continue
        own = np.array(spread)
        if target.metric in ("ttft_s", "e2e_s"):
            own = queue + own[np.random.default_rng(3).integers(0, own.size, queue.size)]
        found[target.name] = float(np.quantile(own, target.quantile))
    return found


def _habits(refused: float | None) -> list[CallerHabit]:
    if refused is None:
        return [CallerHabit(retries=True, reserve=1.0)]
    if refused == 0:
        return [CallerHabit(retries=True, reserve=reserve) for reserve in _RESERVES]
    again = [CallerHabit(True, reserve, asked) for reserve in _RESERVES for asked in _ASKED]
    return [*again, *(CallerHabit(False, reserve, 1.0 / max(0.02, 1.0 - refused)) for reserve in _RESERVES)]


def _spread(windows: Sequence[Window], metric: str) -> tuple[float, ...] | None:
    sketch = merged(windows, metric)
    if sketch is None or sketch.count <= 0:
        return None
    values: Floats = sketch.sample(_STEPS)
    return tuple(float(v) for v in values)
