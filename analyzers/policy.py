"""What may be proposed for one endpoint, and what counts as evidence. The settings give the values and their reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from actuators.shape import EngineValue, Schedule, Shape
from analyzers.hardware import Hardware
from analyzers.money import Tariff, Unit, Usage, per_month


@dataclass(frozen=True, slots=True)
class Policy:
    min_replicas: int = 1
    max_replicas: int | None = None
    sizes: Sequence[str] = ()
    engine: Mapping[str, Sequence[EngineValue]] = field(default_factory=dict)
    max_step_replicas: int = 2
    budget_per_month: float | None = None
    margin: float = 0.1
    growth: float = 1.2
    max_changes_per_day: int = 2
    scheduled_steps_per_day: int = 8
    tune_autoscaler: bool = True
    min_saving_per_month: float = 20.0
    min_saving_share: float = 0.1
    min_coverage: float = 0.8
    min_requests: int = 50


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What sizes cost and what they are made of."""

    prices: Mapping[str, float | None] = field(default_factory=dict)
    """US dollars per replica-hour, by size."""
    built: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Accelerator and count per replica, by size."""
    cpus: Mapping[str, float] = field(default_factory=dict)
    """CPU cores per replica, by size."""
    hardware: Mapping[str, Hardware] = field(default_factory=dict)
    """By accelerator."""
    own_size: str | None = None
    own_price: float | None = None
    """US dollars per replica-hour of the size that the endpoint has now, where ``prices`` does not have it."""
    by_token: Mapping[Unit, float] = field(default_factory=dict)
    """US dollars per 1,000 tokens of each kind, where the endpoint is billed so."""

    def with_size(self, shape: Shape, size: str | None) -> Shape:
        """The shape on that size, with the cores and accelerators that the size is known to have."""
        if size is None:
            return shape
        if size != shape.size or size in self.cpus:
            shape = shape.with_(size=size, cpus=self.cpus.get(size))
        if size not in self.built:
            return shape
        accelerator, count = self.built[size]
        return shape.with_(accelerator=accelerator, accelerator_count=count)

    def per_replica_hour(self, shape: Shape) -> float | None:
        listed = self.prices.get(shape.size) if shape.size is not None else None
        if listed is not None:
            return listed
        return self.own_price if shape.size == self.own_size else None

    def tariff(self, shape: Shape) -> Tariff:
        """What the shape is paid for by. Without a price where none is known."""
        return Tariff.of({Unit.REPLICA_HOUR: self.per_replica_hour(shape)})

    def billed(self, shape: Shape) -> Tariff:
        """What its use is billed by: replica-hours, tokens, or both. Without a price where none is known."""
        return Tariff((*self.tariff(shape).prices, *Tariff.of(self.by_token).prices))

    def per_hour(self, shape: Shape, serving: float | None = None) -> float | None:
        """US dollars per hour of the whole shape, reserved whether used or not; None where unknown.

        serving: of an autoscaled shape, how many replicas there are on average.
        """
        replicas = serving if shape.replicas is None else shape.replicas
        if shape.schedule is not None:
            replicas = shape.schedule.mean
        return self.tariff(shape).cost(Usage(hours=1.0, replica_hours=replicas)).usd


def violations(shape: Shape, current: Shape, policy: Policy, catalogue: Catalogue) -> list[str]:
    """The guardrails that a shape breaks, each as one sentence. Asked when proposing, and again right before applying."""
    broken = _count_violations(shape, current, policy)
    if broken is None:
        return ["the replica count is not known"]
    if shape.size != current.size and shape.size not in policy.sizes:
        broken.append(f"size {shape.size} is not among the policy's sizes")
    for name, value in shape.engine.items():
        if value != current.engine.get(name) and value not in policy.engine.get(name, ()):
            broken.append(f"{name}={value} is not among the policy's values")
    if policy.budget_per_month is not None:
        # The most that it may cost: a budget must hold whatever an autoscaler does, and however long a schedule is held at its most.
        dearest = shape.with_(replicas=most_replicas(shape), schedule=None)
        monthly = per_month(catalogue.per_hour(dearest))
        if monthly is None:
            broken.append("the budget cannot be checked: the price of this shape is not known")
        elif monthly > policy.budget_per_month:
            broken.append(f"${monthly:,.0f} a month is above the budget of ${policy.budget_per_month:,.0f}")
    return broken


def _count_violations(shape: Shape, current: Shape, policy: Policy) -> list[str] | None:
    """Of the replicas, or of the bounds of the autoscaler that owns them. None: neither is known."""
    most, before = most_replicas(shape), most_replicas(current)
    if most is None:
        return None
    least = shape.replicas if shape.autoscaling is None else shape.autoscaling.least
    what = "replicas" if shape.autoscaling is None else "replicas at most"
    if shape.schedule is not None:
        return _schedule_violations(shape, shape.schedule, current, policy)
    broken: list[str] = []
    if (shape.autoscaling is None) != (current.autoscaling is None):
        broken.append("whether an autoscaler sets the replicas is not Flyball's to change")
    if shape.autoscaling is not None and shape.autoscaling.least > shape.autoscaling.most:
        broken.append(f"at least {shape.autoscaling.least} and at most {most} replicas contradict each other")
    if least is not None and least < policy.min_replicas:
        broken.append(f"{least} replicas are fewer than min_replicas {policy.min_replicas}")
    top = policy.max_replicas if policy.max_replicas is not None else before
    if top is not None and most > top:
        broken.append(f"{most} {what} are more than max_replicas {top}")
    if before is not None and abs(most - before) > policy.max_step_replicas:
        broken.append(
            f"{abs(most - before)} replicas at once are more than max_step_replicas {policy.max_step_replicas}"
        )
    return broken


def _schedule_violations(shape: Shape, schedule: Schedule, current: Shape, policy: Policy) -> list[str]:
    """Of a schedule: each of its counts and steps, and the step to its count of the moment."""
    broken: list[str] = []
    if shape.autoscaling is not None:
        broken.append("an autoscaler sets the replicas: a schedule beside it would fight it")
    if schedule.least < policy.min_replicas:
        broken.append(f"{schedule.least} replicas are fewer than min_replicas {policy.min_replicas}")
    top = policy.max_replicas if policy.max_replicas is not None else most_replicas(current)
    if top is not None and schedule.most > top:
        broken.append(f"{schedule.most} replicas are more than max_replicas {top}")
    now = [(current.replicas, shape.replicas)] if current.replicas is not None and shape.replicas is not None else []
    step = max((abs(after - before) for before, after in [*schedule.changes(), *now]), default=0)
    if step > policy.max_step_replicas:
        broken.append(f"{step} replicas at once are more than max_step_replicas {policy.max_step_replicas}")
    return broken


def most_replicas(shape: Shape) -> int | None:
    """The replicas, or the most that an autoscaler or a schedule may have."""
    if shape.schedule is not None:
        return shape.schedule.most
    return shape.autoscaling.most if shape.autoscaling is not None else shape.replicas


def with_most(shape: Shape, replicas: int) -> Shape:
    """With so many replicas, or with so many at most: an autoscaler's count is never set beside it."""
    if shape.autoscaling is None:
        return shape.with_(replicas=replicas)
    least = min(shape.autoscaling.least, replicas)
    return shape.with_(autoscaling=replace(shape.autoscaling, least=least, most=replicas))


def candidates(current: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
    """Every shape that the guardrails allow, the current one first. Of an autoscaled one, the most replicas are varied."""
    present = most_replicas(current)
    if present is None:
        return [current]
    top = policy.max_replicas if policy.max_replicas is not None else present
    low = max(policy.min_replicas, 1, present - policy.max_step_replicas)
    counts = range(low, min(top, present + policy.max_step_replicas) + 1)
    sizes = dict.fromkeys([current.size, *policy.sizes])
    settings: list[dict[str, EngineValue]] = [dict(current.engine)]
    for name, values in policy.engine.items():
        settings = [{**s, name: v} for s in settings for v in dict.fromkeys([*_known(s, name), *values])]
    found = [current]
    for size in sizes:
        for replicas in counts:
            for engine in settings:
                shape = with_most(catalogue.with_size(current, size), replicas).with_(engine=engine)
                if shape != current and not violations(shape, current, policy, catalogue):
                    found.append(shape)
    return found


def _known(engine: Mapping[str, EngineValue], name: str) -> list[EngineValue]:
    return [engine[name]] if name in engine else []
