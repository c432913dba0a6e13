"""Provisioned throughput as a kind: its utilisation tells what a token takes of it, and its own traffic is replayed on other amounts.

Utilisation is what was used over what is bought, so that in each window units x share = a x uncached prompt tokens + b x output tokens a
minute: 1/a is what a unit carries, b/a what an answer's token counts. Windows at the limit say nothing, and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.optimize

from actuators.shape import Shape
from analyzers.hardware import Hardware
from analyzers.kinds import calls
from analyzers.kinds.base import Basis
from analyzers.kinds.calls import CallerHabit, CallerHabits, CallReplay
from analyzers.kinds.ptu import throughput
from analyzers.kinds.ptu.throughput import Ptu
from analyzers.kinds.service import Speed
from analyzers.money import Usage
from analyzers.policy import Catalogue, Policy, purchases
from analyzers.prediction import AutoscaledDay, Bar, CannotPredict, Miss, Prediction
from collectors.window import Window
from collectors.workload import Floats, Workload

#: Of the shape's ``engine``: what the vendor states of the model, and the deployment that takes what this one has no room for.
PER_UNIT, WEIGHT, SPILLOVER = "input_tokens_per_minute_per_ptu", "output_weight", "spillover"
#: Where prompts and answers always come in one proportion, and nobody states it: as of gpt-4.1.
_USUAL_WEIGHT = 4.0
#: Windows that a fit needs; the variation of output over prompt that tells the two apart; and from where a window is at its limit.
_LEAST_WINDOWS, _LEAST_MIX, _FULL = 3, 0.1, 0.98
#: The least doubt of what a unit carries, as a share.
_LEAST_DOUBT = 0.02


@dataclass(frozen=True, slots=True)
class TokenToll:
    """What tokens take of a unit."""

    per_unit: float
    """Uncached prompt tokens a minute that one unit carries."""
    weight: float
    """Prompt tokens that one output token counts as."""
    doubt: float
    """Standard deviation of ``per_unit``, as a share."""
    scatter: float
    """Relative error of a window's utilisation."""
    note: str = ""

    def units(self, amount: float, doubt: float = 0.0) -> Ptu:
        return Ptu(amount, self.per_unit * math.exp(doubt * self.doubt), self.weight)


@dataclass(frozen=True, slots=True)
class CalibratedPtu:
    """What tokens take, and how callers ask."""

    key: str
    toll: TokenToll
    habits: CallerHabits
    call_s: float
    """Seconds of a whole call, on average. 0: not known."""

    @property
    def windows(self) -> int:
        return self.habits.windows

    @property
    def requests(self) -> float:
        return self.habits.requests

    @property
    def load(self) -> tuple[float, float]:
        """Calls a second, as there is no replica to be in."""
        return self.habits.rates

    @property
    def residuals(self) -> Mapping[str, float]:
        return {"ptu_usage": self.toll.scatter, "throttle_rate": self.habits.misfit}

    @property
    def misfit(self) -> Mapping[str, float]:
        return {"throttle_rate": self.habits.misfit} if self.habits.missed else {}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for note in (self.toll.note, self.habits.note) if note)

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "toll": asdict(self.toll), "habits": self.habits.as_dict(), "call_s": self.call_s}


class PtuKind:
    """See ``kinds.base.Kind``."""

    name = "ptu"
    bursts = True

    def key(self, facts: Mapping[str, str], shape: Shape) -> str:
        """Not the units': a token takes as much of each, however many there are."""
        return "/".join(
            ["ptu", shape.tier or "unknown", *(f"{k}={facts[k]}" for k in sorted(facts) if k in ("model", "version"))]
        )

    def calibrate(
        self, windows: Sequence[Window], shape: Shape, _hardware: Hardware | None, recorded: Workload | None = None
    ) -> CalibratedPtu:
        toll = _toll(windows, shape)
        work = recorded if recorded is not None else calls.drawn_calls(windows, seed=7)
        speed, spills = calls.mean_speed(windows), _spills(shape)
        units = toll.units(_amount(shape))

        def run(habit: CallerHabit) -> CallReplay:
            return _replay(habit.demand(work), units, speed, habit, spills=spills)

        refused = calls.refused_share(windows, "spilled" if spills else "throttled")
        habits = calls.learned(windows, work, run, refused)
        key = self.key(windows[-1].facts if windows else {}, shape)
        return CalibratedPtu(key, toll, habits, float(np.atleast_1d(speed.ttft_s)[0]))

    def read(self, data: Mapping[str, Any]) -> CalibratedPtu:
        habits = CallerHabits.from_dict(data["habits"])
        return CalibratedPtu(data["key"], TokenToll(**data["toll"]), habits, float(data["call_s"]))

    def workload(self, windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
        return calls.drawn_calls(windows, seed=seed, scale=scale)

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
        return purchases(shape, policy, catalogue)

    def predict(self, shape: Shape, workload: Workload, calibrated: CalibratedPtu, basis: Basis) -> Prediction:
        amount, spills = _amount(shape), _spills(shape)
        toll, habits, speed = calibrated.toll, calibrated.habits, Speed(calibrated.call_s, 0.0)
        replays: list[CallReplay] = []
        for habit in habits.habits:
            for doubt in (0.0,) if replays else (0.0, -1.28, 1.28):
                demand, units = habit.demand(workload), toll.units(amount, doubt)
                replays.append(_replay(demand, units, speed, habit, spills=spills))
        return calls.predicted(replays, habits, basis, method="ptu", notes=calibrated.notes, client_sees=not spills)

    def screen(
        self, shape: Shape, workload: Workload, calibrated: CalibratedPtu, basis: Basis, _bar: Bar
    ) -> Prediction | Miss:
        return self.predict(shape, workload, calibrated, basis)  # its replays cost next to nothing

    def follow(
        self, shape: Shape, _workload: Workload, _calibrated: CalibratedPtu, _basis: Basis, _cold_start_s: float, /
    ) -> AutoscaledDay:
        raise CannotPredict("UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: provisioned throughput has no autoscaler")

    def spill(self, shape: Shape, workload: Workload, calibrated: CalibratedPtu, _basis: Basis) -> Usage | None:
        """Tokens that spill over in an hour. None: nothing takes them."""
        if not _spills(shape):
            return None
        habit = calibrated.habits.habits[0]
        demand, units = habit.demand(workload), calibrated.toll.units(_amount(shape))
        got = _replay(demand, units, Speed(calibrated.call_s, 0.0), habit, spills=True).got
        per_hour = 3600.0 / got.simulated_s
        kinds = ("prompt_tokens", "cached_prompt_tokens", "output_tokens")
        return Usage(**{name: got.used[f"spilled_{name}"] * per_hour for name in kinds})


def _amount(shape: Shape) -> float:
    if shape.purchase is None or shape.purchase.unit != "ptu":
        text = f"{shape.label()}: no provisioned throughput is known; set shape.purchase, or an actuator that tells it"
        raise CannotPredict("UNKNOWN_SHAPE", text)
    return float(shape.purchase.amount)


def _spills(shape: Shape) -> bool:
    return bool(shape.engine.get(SPILLOVER))


def _replay(demand: Workload, units: Ptu, speed: Speed, habit: CallerHabit, *, spills: bool) -> CallReplay:
    got = throughput.replay(
        demand,
        units,
        speed,
        max_tokens=habit.admitted(demand),
        spill=speed if spills else None,
        retries=habit.client,
        seed=7,
    )
    spilled = got.gauges["spilled_requests"]
    done = got.each.e2e_s >= 0.0
    uncached = (demand.prompt_tokens - demand.prefix_tokens)[done].sum() + units.output_weight * demand.output_tokens[
        done
    ].sum()
    elsewhere = got.used["spilled_prompt_tokens"] - got.used["spilled_cached_prompt_tokens"]
    used = float(uncached) - elsewhere - units.output_weight * got.used["spilled_output_tokens"]
    more = {"ptu_usage_mean": used / (units.per_second * got.simulated_s) if got.simulated_s > 0 else 0.0}
    if spills:
        more["spill_rate"] = spilled / got.requests
    return CallReplay(got, habit, more)


def _toll(windows: Sequence[Window], shape: Shape) -> TokenToll:
    """What tokens take of a unit, as their utilisation tells, or else as is stated. Raises CannotPredict."""
    rows, used = _points(windows, _amount(shape))
    stated_unit, stated_weight = (_stated(shape, name) for name in (PER_UNIT, WEIGHT))
    if used.size < _LEAST_WINDOWS:
        if stated_unit is None or stated_weight is None:
            text = (
                f"{used.size} windows below its limit tell their utilisation and their tokens, {_LEAST_WINDOWS} are needed; "
                f"or state shape.engine.{PER_UNIT} and .{WEIGHT}"
            )
            raise CannotPredict("NO_EVIDENCE", text)
        return TokenToll(stated_unit, stated_weight, 0.1, 0.0, "what a unit carries is as stated, and not yet seen")
    mix = rows[:, 1] / np.maximum(rows[:, 0], 1.0)
    found = scipy.optimize.nnls(rows / used[:, None], np.ones(used.size))[0]
    note = ""
    if float(mix.std()) < _LEAST_MIX * float(mix.mean()) or found.min() <= 0:
        weight = stated_weight or _USUAL_WEIGHT
        weighted = rows[:, 0] + weight * rows[:, 1]
        found = np.array([1.0, weight]) * float(np.median(used / weighted))
        note = f"prompts and answers come in one proportion: an answer's token is taken for {weight:.3g} of a prompt's"
    scatter = float(np.sqrt(np.mean((rows @ found / used - 1.0) ** 2)))
    doubt = max(_LEAST_DOUBT, scatter / math.sqrt(used.size))
    return TokenToll(1.0 / float(found[0]), float(found[1] / found[0]), doubt, scatter, note)


def _points(windows: Sequence[Window], amount: float) -> tuple[Floats, Floats]:
    """(n, 2) uncached prompt and output tokens a minute, and (n,) units in use, of windows below the limit."""
    rows, used = [], []
    for window in windows:
        gauge = window.gauges.get("ptu_usage")
        prompt, output = window.rate("prompt_tokens"), window.rate("output_tokens")
        if gauge is None or prompt is None or output is None or gauge.maximum >= _FULL or gauge.mean <= 0:
            continue
        rows.append((60.0 * (prompt - (window.rate("cached_prompt_tokens") or 0.0)), 60.0 * output))
        used.append(gauge.mean * amount)
    return np.array(rows).reshape(-1, 2), np.array(used)


def _stated(shape: Shape, name: str) -> float | None:
    value = shape.engine.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
