"""The contract of a kind: how an endpoint's own telemetry becomes a prediction of other shapes. One road, for everybody who asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from actuators.shape import Shape
from analyzers.hardware import Hardware
from analyzers.money import Usage
from analyzers.objective import Objective
from analyzers.policy import Catalogue, Policy
from analyzers.prediction import AutoscaledDay, Bar, CannotPredict, LoadCourse, Miss, Prediction
from analyzers.whatif.engine import Router
from analyzers.whatif.traffic import RecordedLengths, on_course, scaled
from collectors.window import Window
from collectors.workload import Workload


class Calibration(Protocol):
    """What was learned of one endpoint from its windows."""

    @property
    def key(self) -> str:
        """What it holds for; evidence of another key needs another one."""
        ...

    @property
    def windows(self) -> int:
        """How many it rests on."""
        ...

    @property
    def requests(self) -> float: ...

    @property
    def load(self) -> tuple[float, float]:
        """Least and greatest mean requests in one replica that were seen. Beyond is extrapolation."""
        ...

    @property
    def residuals(self) -> Mapping[str, float]:
        """Relative error of the fit, by metric."""
        ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def misfit(self) -> Mapping[str, float]:
        """Those of ``residuals`` that show that the fit did not reach its data."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps it from being believed as it stands."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Basis:
    """What all shapes of one endpoint are predicted from, beside the traffic and the calibration."""

    present: Shape
    """What the calibration was learned on."""
    objective: Objective
    catalogue: Catalogue
    error: Mapping[str, float | None]
    """The method's measured relative error by metric (median, from the ledger)."""
    router: Router = "round_robin"
    lengths: RecordedLengths | None = None
    """Of requests that were recorded one by one. None: none were, and prompts and answers are drawn independently of each other."""


C = TypeVar("C", bound=Calibration)


class Kind(Protocol[C]):
    """How endpoints of one kind respond to load."""

    @property
    def name(self) -> str: ...

    @property
    def bursts(self) -> bool:
        """Whether seconds decide, and not minutes: then requests that were recorded one by one stand above those drawn from windows."""
        ...

    def key(self, facts: Mapping[str, str], shape: Shape) -> str:
        """Of the calibration that evidence of ``shape`` with these facts needs."""
        ...

    def calibrate(
        self, windows: Sequence[Window], shape: Shape, hardware: Hardware | None, recorded: Workload | None = None
    ) -> C:
        """Learn from what served ``windows`` on ``shape``. recorded: the requests of these windows, one by one, where all are known.

        Raises CannotPredict that says what is missing.
        """
        ...

    def read(self, data: Mapping[str, Any]) -> C:
        """The reverse of ``as_dict``. Raises KeyError, TypeError or ValueError on one of an older Flyball."""
        ...

    def workload(self, windows: Sequence[Window], *, seed: int, scale: float = 1.0) -> Workload:
        """The traffic that windows saw, at ``scale`` times its rate. Raises CannotPredict."""
        ...

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
        """What may be proposed instead of ``shape``, within the guardrails."""
        ...

    def predict(self, shape: Shape, workload: Workload, calibrated: C, basis: Basis) -> Prediction:
        """Raises CannotPredict."""
        ...

    def screen(self, shape: Shape, workload: Workload, calibrated: C, basis: Basis, bar: Bar) -> Prediction | Miss:
        """``predict``, given up as soon as the bar is certainly missed. Raises CannotPredict."""
        ...

    def follow(
        self, shape: Shape, workload: Workload, calibrated: C, basis: Basis, cold_start_s: float, /
    ) -> AutoscaledDay:
        """The workload under the shape's own autoscaler. Raises CannotPredict."""
        ...

    def spill(self, shape: Shape, workload: Workload, calibrated: C, basis: Basis) -> Usage | None:
        """What of the workload is served elsewhere in an hour, and paid for by the token. None: nothing can be. Raises CannotPredict."""
        ...


class Replayer:
    """A ``Predictor`` of one endpoint's shapes under the traffic that its windows saw, or a multiple of it."""

    def __init__(
        self,
        kind: Kind[C],
        calibrated: C,
        windows: Sequence[Window],
        basis: Basis,
        seed: int,
        change: Callable[[Workload], Workload] | None = None,
        recorded: Workload | None = None,
    ) -> None:
        """recorded: the requests of ``windows``, one by one, in place of those drawn."""
        self._kind: Kind[Any] = kind
        self._calibrated = calibrated
        self._windows = windows
        self._basis = basis
        self._seed = seed
        self._change = change
        self._recorded = recorded
        self._spilled: dict[str, Usage | None] = {}
        self._workloads: dict[float, Workload] = {}

    def knobs(self, shape: Shape, policy: Policy, catalogue: Catalogue, /) -> list[Shape]:
        return self._kind.knobs(shape, policy, catalogue)

    def predict(self, shape: Shape, factor: float, /) -> Prediction:
        return self._kind.predict(shape, self._workload(factor), self._calibrated, self._basis)

    def screen(self, shape: Shape, factor: float, bar: Bar, /) -> Prediction | Miss:
        return self._kind.screen(shape, self._workload(factor), self._calibrated, self._basis, bar)

    def follow(self, shape: Shape, course: LoadCourse, cold_start_s: float, room: float, /) -> AutoscaledDay:
        basis = replace(self._basis, objective=self._basis.objective.scaled(room))
        workload = on_course(self._workload(1.0), course.step_s, course.factors)
        return self._kind.follow(shape, workload, self._calibrated, basis, cold_start_s)

    def under(self, windows: Sequence[Window], /) -> Replayer:
        return Replayer(self._kind, self._calibrated, windows, self._basis, self._seed, self._change)

    def changed(self, change: Callable[[Workload], Workload], /) -> Replayer:
        return Replayer(self._kind, self._calibrated, self._windows, self._basis, self._seed, change, self._recorded)

    def spill(self, shape: Shape) -> Usage | None:
        """What of the load observed is served elsewhere in an hour. None: nothing can be, or it cannot be told."""
        known = repr(shape)
        if known not in self._spilled:
            try:
                self._spilled[known] = self._kind.spill(shape, self._workload(1.0), self._calibrated, self._basis)
            except CannotPredict:
                self._spilled[known] = None
        return self._spilled[known]

    def _workload(self, factor: float) -> Workload:
        if factor not in self._workloads:
            if self._recorded is not None:
                made = scaled(self._recorded, factor)
            else:
                made = self._kind.workload(self._windows, seed=self._seed, scale=factor)
            if self._basis.lengths is not None and self._recorded is None:
                made = self._basis.lengths.dealt(made, seed=self._seed)
            self._workloads[factor] = made if self._change is None else self._change(made)
        return self._workloads[factor]
