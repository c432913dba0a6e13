"""A plain VM endpoint as an engine file: the universal scalability law's coefficients, or load test points to fit it to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar, Self

from analyzers import strict
from analyzers.kinds.results import ReplayResult, ReplayTraffic, Result, of_served
from analyzers.kinds.system import DescribedSystem, check_prices
from analyzers.kinds.vm import usl
from analyzers.kinds.vm.usl import Point, Usl, UslFit
from analyzers.money import Tariff, Unit, Usage
from analyzers.objective import Objective, Target

#: Of a law that is stated and not fitted: so many draws, all alike, for another number of cores to spread.
_DRAWS = 24
_TOLD = tuple(Target(metric, q, 1.0) for metric in ("e2e_s", "queue_s") for q in (0.5, 0.9, 0.95, 0.99))


@dataclass(frozen=True, kw_only=True)
class Machines(DescribedSystem):
    """Machines side by side behind one queue."""

    kind: ClassVar[str] = "vm"

    rate_per_s: float | None = None
    sigma: float = 0.0
    kappa: float = 0.0
    points: tuple[Point, ...] = ()
    """Instead of the three: steady loads of one machine."""
    cores: float | None = None
    """Of the machine that those are of. A candidate's ``cores`` is of the one that is asked about."""
    replicas: int = 1
    max_concurrency: int | None = None
    usd_per_replica_hour: float | None = None
    """Of one machine."""
    asked_cores: Annotated[float | None, strict.APART] = None
    """None: those of ``cores``."""

    def __post_init__(self) -> None:
        check_prices(self)
        if (self.rate_per_s is None) == (not self.points):
            raise ValueError("give either rate_per_s (with sigma and kappa), or points to fit them to")
        if self.points and (self.sigma or self.kappa):
            raise ValueError("sigma and kappa are fitted to the points; leave them out, or the points")
        if self.cores is not None and not self.cores > 0:
            raise ValueError(f"cores must be above 0, not {self.cores}")
        if self.replicas < 1 or (self.max_concurrency is not None and self.max_concurrency < 1):
            raise ValueError("replicas and max_concurrency must be 1 or more")
        _ = self.fitted  # refuses points that support no law

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """``cores`` is asked about and never what was measured; the price of a machine of other cores is not known unless given."""
        rest, data = dict(changes), strict.plain(self)
        asked: Any = rest.pop("cores", self.asked_cores)
        if "cores" in changes:
            if self.cores is None:
                raise ValueError("cores: the engine file must say of how many cores its figures are; add cores there")
            if not isinstance(asked, int | float) or isinstance(asked, bool) or not asked > 0:
                raise ValueError(f"cores={asked}: write a number above 0")
            if asked != (self.asked_cores or self.cores):
                data.pop("usd_per_replica_hour", None)
        return replace(self.read(strict.changed(type(self), data, rest)), asked_cores=asked)

    @cached_property
    def fitted(self) -> UslFit:
        """Raises CannotPredict where the points support no law."""
        if self.rate_per_s is None:
            found = _fit(self.points)
        else:
            law = Usl(self.rate_per_s, self.sigma, self.kappa)
            found = UslFit(law, (law,) * _DRAWS, 0.0, 0, (0.0, float("inf")))
        moved = self.asked_cores is not None and self.cores is not None and self.asked_cores != self.cores
        return usl.on_cores(found, self.asked_cores / self.cores) if moved else found  # type: ignore[operator]

    @property
    def label(self) -> str:
        cores = self.asked_cores or self.cores
        machine = f"VM{'s' * (self.replicas != 1)}" + (f" of {cores:g} cores" if cores is not None else "")
        return f"{self.replicas} {machine}"

    @property
    def notes(self) -> tuple[str, ...]:
        return self.fitted.notes

    def shape(self) -> dict[str, Any]:
        law = self.fitted.best
        found = super().shape() | {"rate_per_s": law.rate_per_s, "sigma": law.sigma, "kappa": law.kappa}
        return found if self.asked_cores is None else found | {"cores": self.asked_cores}

    def run(self, traffic: ReplayTraffic) -> ReplayResult:
        work, how = traffic.workload, {"replicas": self.replicas, "max_concurrency": self.max_concurrency}
        got = usl.replay(work, self.fitted.best, **how)  # type: ignore[arg-type]
        best = of_served(got, replica_s=got.used["replica_s"], replicas_max=self.replicas)
        if self.fitted.points == 0 and not self.notes:
            return ReplayResult(best)
        objective = Objective((*_TOLD, *traffic.objective.targets))
        return ReplayResult(best, usl.predict(self.fitted, work, objective=objective, **how))  # type: ignore[arg-type]

    def cost_usd(self, result: Result) -> float | None:
        used = Usage(replica_hours=result.used["replica_s"] / 3600.0)
        return Tariff.of({Unit.REPLICA_HOUR: self.usd_per_replica_hour}).cost(used).usd


@cache
def _fit(points: tuple[Point, ...]) -> UslFit:
    return usl.fit(points)
