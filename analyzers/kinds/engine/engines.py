"""An engine or several alike: an engine file as `flyball calibrate` writes it, behind a router, with replicas that stay or come and go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from analyzers import grammar
from analyzers.grammar import BadQuestion, Value
from analyzers.hardware import ACCELERATORS, Hardware
from analyzers.kinds.engine import ensembles, fleets
from analyzers.kinds.results import ReplayResult, ReplayTraffic, Result, of_replay
from analyzers.money import Tariff, Unit, Usage
from analyzers.prediction import CannotPredict
from analyzers.strict import nearest
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.engine import ROUTERS, Router, replay
from analyzers.whatif.fleet import ReplicaFleet
from analyzers.whatif.model import EngineModel
from analyzers.whatif.predict import Ensemble

_OWN = (
    "replicas",
    "router",
    "usd_per_replica_hour",
    "accelerator",
    "accelerator_count",
    "fleet",
    "autoscale",
    "cold_start",
)


@dataclass(frozen=True, kw_only=True)
class Engines:
    kind: ClassVar[str] = "engine"
    heeds_timeout: ClassVar[bool] = True

    engine: EngineModel
    """As its file says."""
    calibration: CalibratedEngine | None = None
    """What the file's source carries."""
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Of the engine, changed."""
    replicas: int = 1
    router: Router = "round_robin"
    usd_per_replica_hour: float | None = None
    """US dollars, of one replica."""
    fleet: fleets.FleetForm | None = None
    """None: the replicas stay."""
    accelerator: str | None = None
    """Other than the calibrated one."""
    accelerator_count: int | None = None
    hardware: Mapping[str, Hardware] = field(default_factory=lambda: ACCELERATORS, repr=False)
    """What is known of accelerators, by name."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError that names the field."""
        engine = EngineModel.from_dict(data)
        return cls(engine=engine, calibration=CalibratedEngine.of_engine(engine))

    @cached_property
    def ensemble(self) -> Ensemble | None:
        """Of a calibrated engine. Raises CannotPredict; None without a calibration."""
        if self.calibration is None:
            return None
        return ensembles.ensemble(
            self.calibration, self.accelerator, self.accelerator_count, self.settings, self.hardware
        )

    @cached_property
    def model(self) -> EngineModel:
        return grammar.with_settings(self.engine, self.settings) if self.ensemble is None else self.ensemble.model

    @cached_property
    def built(self) -> ReplicaFleet | None:
        return None if self.fleet is None else fleets.built(self.fleet, self.model.limits)

    @property
    def refused(self) -> CannotPredict | None:
        try:
            _ = self.ensemble
        except CannotPredict as why:
            return why
        return None

    @property
    def label(self) -> str | None:
        what = []
        if self.calibration is not None and (gpu := ensembles.base_shape(self.calibration).accelerator) is not None:
            count = self.accelerator_count or ensembles.base_shape(self.calibration).accelerator_count
            what.append(f"{count} x {self.accelerator or gpu}")
        if self.fleet is not None:
            what.append(_course(self.fleet))
        return ", ".join(what) or None

    @property
    def notes(self) -> tuple[str, ...]:
        if self.calibration is None and "draws" in self.engine.source:
            return (
                "the engine file's calibration is of another Flyball and cannot be read: no intervals; calibrate again",
            )
        return () if self.ensemble is None else self.ensemble.notes

    @property
    def misfit(self) -> Mapping[str, float]:
        return {} if self.calibration is None else self.calibration.misfit

    @property
    def warnings(self) -> tuple[str, ...]:
        return () if self.calibration is None else self.calibration.warnings

    # -- asking ---------------------------------------------------------------------------------------------------------

    def changed(self, changes: Mapping[str, Any]) -> Self:
        rest: dict[str, Any] = dict(changes)
        replicas = rest.pop("replicas", None)
        router = router_named(str(rest.pop("router", self.router)))
        fleet = fleets.changed(self.fleet, rest, self.replicas if replicas is None else _count(replicas))
        if fleet is not None and replicas is not None:
            fleet = {**fleet, "replicas": _count(replicas)}
        gpu, gpus, price = self._hardware(rest)
        self._check_names(rest, fleet)
        made = replace(
            self,
            router=router,
            fleet=fleet,
            replicas=grammar.whole(replicas, "replicas") if fleet is None and replicas is not None else self.replicas,
            accelerator=gpu,
            accelerator_count=gpus,
            usd_per_replica_hour=grammar.price(rest.pop("usd_per_replica_hour", price), "usd_per_replica_hour"),
            settings={**self.settings, **rest},
        )
        if made.refused is None:
            _ = made.built, made.model
        return made

    def _hardware(self, rest: dict[str, Value]) -> tuple[str | None, int | None, float | None]:
        """Takes ``accelerator`` and ``accelerator_count`` out of ``rest``. The price of one kind of hardware holds for no other."""
        given: dict[str, Value] = {
            name: rest.pop(name) for name in ("accelerator", "accelerator_count") if name in rest
        }
        if "size" in rest:
            given["size"] = rest["size"]
        if not given:
            return self.accelerator, self.accelerator_count, self.usd_per_replica_hour
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        if self.calibration is None or "size" in given:
            raise BadQuestion(
                f"an engine file alone does not tell how {said} would do. Calibrate it (`flyball calibrate`), which "
                "accelerator= and accelerator_count= can move, or on that hardware and give engine=FILE, "
                "or ask an endpoint's own telemetry: flyball whatif --endpoint NAME"
            )
        gpu = (
            ensembles.accelerator(str(given["accelerator"]), self.calibration)
            if "accelerator" in given
            else self.accelerator
        )
        gpus = (
            grammar.whole(given["accelerator_count"], "accelerator_count")
            if "accelerator_count" in given
            else self.accelerator_count
        )
        return (
            gpu,
            gpus,
            self.usd_per_replica_hour if (gpu, gpus) == (self.accelerator, self.accelerator_count) else None,
        )

    def _check_names(self, rest: Mapping[str, Value], fleet: fleets.FleetForm | None) -> None:
        scaler = (fleet or {}).get("autoscaler")
        known = {*grammar.engine_settings(self.engine), *_OWN, *(fleets.settings_of(scaler["kind"]) if scaler else ())}
        for name, value in rest.items():
            if name not in known:
                raise BadQuestion(f"{name}={value}: the engine has no such setting; {nearest(name, known)}")

    def in_place_of(self, other: Engines) -> Self:
        """With all of ``other`` but its engine."""
        return replace(
            self,
            replicas=other.replicas,
            router=other.router,
            usd_per_replica_hour=other.usd_per_replica_hour,
            fleet=other.fleet,
        )

    # -- answering ------------------------------------------------------------------------------------------------------

    def shape(self) -> dict[str, Any]:
        hidden = ("schema_version", "source")
        model = self.engine if self.refused is not None else self.model
        return {
            "replicas": self.replicas if self.fleet is None else self.fleet["replicas"],
            "router": self.router,
            **({} if self.fleet is None else {"fleet": dict(self.fleet)}),
            **{
                name: v
                for name, v in (("accelerator", self.accelerator), ("accelerator_count", self.accelerator_count))
                if v is not None
            },
            **{name: v for name, v in model.to_dict().items() if name not in hidden},
        }

    def prices(self) -> dict[str, float]:
        return {} if self.usd_per_replica_hour is None else {"usd_per_replica_hour": self.usd_per_replica_hour}

    def run(self, traffic: ReplayTraffic) -> ReplayResult:
        if self.ensemble is not None:
            return ensembles.run(self.ensemble, traffic, self.replicas, self.router, self.built, self.cost_usd)
        got = replay(
            traffic.workload,
            self.model,
            replicas=self.replicas if self.built is None else 1,
            router=self.router,
            timeout_s=traffic.timeout_s,
            fleet=self.built,
        )
        return ReplayResult(of_replay(got))

    def cost_usd(self, result: Result) -> float | None:
        used = Usage(replica_hours=None if result.replica_s is None else result.replica_s / 3600)
        return Tariff.of({Unit.REPLICA_HOUR: self.usd_per_replica_hour}).cost(used).usd


def _count(replicas: Value) -> int:
    return grammar.whole(replicas, "replicas", least=0)


def _course(fleet: fleets.FleetForm) -> str:
    scaler = fleet.get("autoscaler")
    if scaler is not None:
        bounds = scaler.get("hpa", scaler)
        least, most = (scaler.get("least", fleet.get("min_replicas")), bounds.get("most", fleet.get("max_replicas")))
        said = f" {least} to {most}" if least is not None else f" up to {most}"
        return f"{scaler['kind']}{said}, cold start {fleet['cold_start_s']:g} s"
    parts = [f"{n} {what}{'s' * (n != 1)}" for name, what in _PARTS if (n := len(fleet.get(name, ())))]
    return f"{fleet['replicas']} at first, {', '.join(parts) or 'no change'}"


_PARTS = (("schedule", "scheduled change"), ("failures", "failure"))


def router_named(name: str) -> Router:
    """Raises BadQuestion on one that there is not."""
    for known in ROUTERS:
        if name == known:
            return known
    raise BadQuestion(f"router {name}: {nearest(name, ROUTERS)}")
