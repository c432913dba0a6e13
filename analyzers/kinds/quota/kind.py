"""A pay-per-token API behind a rate limit as a kind: its own traffic and refusals, replayed at other limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actuators.shape import Shape
from analyzers.hardware import Hardware
from analyzers.kinds import calls
from analyzers.kinds.base import Basis
from analyzers.kinds.calls import CallerHabit, CallerHabits, CallReplay
from analyzers.kinds.quota import limits
from analyzers.kinds.quota.limits import ApiQuota, QuotaLimit
from analyzers.kinds.service import Speed
from analyzers.money import Usage
from analyzers.policy import Catalogue, Policy, purchases
from analyzers.prediction import AutoscaledDay, Bar, CannotPredict, Miss, Prediction
from collectors.window import Window
from collectors.workload import Workload

#: Of the shape's ``engine``: requests a minute for each 1,000 tokens a minute. 6 is what Azure gives older models.
REQUESTS_PER_1K, _REQUESTS_PER_1K = "requests_per_1k_tokens", 6.0
#: Of the shape's ``engine``, instead: requests a minute, of a vendor that limits them beside tokens.
REQUESTS = "requests_per_minute"
#: Requests are judged over so long.
_REQUEST_PERIOD_S = 10.0


@dataclass(frozen=True, slots=True)
class CalibratedQuota:
    """How callers ask."""

    key: str
    habits: CallerHabits

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
        return {"throttle_rate": self.habits.misfit}

    @property
    def misfit(self) -> Mapping[str, float]:
        return self.residuals if self.habits.missed else {}

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.habits.note is None else (self.habits.note,)

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "habits": self.habits.as_dict()}


class QuotaKind:
    """See ``kinds.base.Kind``."""

    name = "quota"
    bursts = True

    def key(self, facts: Mapping[str, str], shape: Shape) -> str:
        """Not the limit's: callers ask as they do, whatever it is."""
        return "/".join(["quota", shape.tier or "unknown", *(f"{k}={facts[k]}" for k in sorted(facts) if k == "model")])

    def calibrate(
        self, windows: Sequence[Window], shape: Shape, _hardware: Hardware | None, recorded: Workload | None = None
    ) -> CalibratedQuota:
        quota = quota_of(shape)
        work = recorded if recorded is not None else calls.drawn_calls(windows, seed=7)

        def run(habit: CallerHabit) -> CallReplay:
            return _replay(habit.demand(work), quota, habit)

        habits = calls.learned(windows, work, run, calls.refused_share(windows))
        return CalibratedQuota(self.key(windows[-1].facts if windows else {}, shape), habits)

    def read(self, data: Mapping[str, Any]) -> CalibratedQuota:
        return CalibratedQuota(data["key"], CallerHabits.from_dict(data["habits"]))

    def workload(self, windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
        return calls.drawn_calls(windows, seed=seed, scale=scale)

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
        return purchases(shape, policy, catalogue)

    def predict(self, shape: Shape, workload: Workload, calibrated: CalibratedQuota, basis: Basis) -> Prediction:
        quota, habits = quota_of(shape), calibrated.habits
        replays = (_replay(habit.demand(workload), quota, habit) for habit in habits.habits)
        return calls.predicted(replays, habits, basis, method="quota", notes=calibrated.notes, client_sees=True)

    def screen(
        self, shape: Shape, workload: Workload, calibrated: CalibratedQuota, basis: Basis, _bar: Bar
    ) -> Prediction | Miss:
        return self.predict(shape, workload, calibrated, basis)  # its replays cost next to nothing

    def follow(
        self, shape: Shape, _workload: Workload, _calibrated: CalibratedQuota, _basis: Basis, _cold_start_s: float, /
    ) -> AutoscaledDay:
        raise CannotPredict("UNREPLAYABLE_AUTOSCALER", f"{shape.label()}: a rate limit has no autoscaler")

    def spill(self, _shape: Shape, _workload: Workload, _calibrated: CalibratedQuota, _basis: Basis) -> Usage | None:
        return None


def quota_of(shape: Shape) -> ApiQuota:
    """The limits that a shape states. Raises CannotPredict where it states none."""
    bought = shape.purchase
    if bought is None or bought.unit == "ptu":
        text = f"{shape.label()}: no rate limit is known; set shape.purchase, or an actuator that tells it"
        raise CannotPredict("UNKNOWN_SHAPE", text)
    if bought.unit == "requests_per_minute":
        return ApiQuota(requests=QuotaLimit(bought.amount, _REQUEST_PERIOD_S))
    requests = shape.engine.get(REQUESTS)
    if isinstance(requests, int | float) and not isinstance(requests, bool) and requests > 0:
        return ApiQuota(QuotaLimit(bought.amount), QuotaLimit(requests))
    ratio = shape.engine.get(REQUESTS_PER_1K, _REQUESTS_PER_1K)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio > 0:
        raise CannotPredict("UNKNOWN_SHAPE", f"engine.{REQUESTS_PER_1K} must be a number above 0, not {ratio}")
    return ApiQuota.azure(bought.amount, requests_per_1k_tokens=ratio, request_period_s=_REQUEST_PERIOD_S)


def _replay(demand: Workload, quota: ApiQuota, habit: CallerHabit) -> CallReplay:
    got = limits.replay(demand, quota, Speed(0.0, 0.0), max_tokens=habit.admitted(demand), retries=habit.client, seed=7)
    return CallReplay(got, habit)
