"""What may be proposed for one endpoint, and what counts as evidence. The settings give the values and their reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from actuators.shape import EngineValue, Shape
from analyzers.hardware import Hardware
from analyzers.money import Tariff, Unit, Usage, per_month


@dataclass(frozen=True, slots=True)
class Policy:
    min_replicas: int = 1
    max_replicas: int | None = None
    sizes: Sequence[str] = ()
    engine: Mapping[str, Sequence[EngineValue]] = field(default_factory=dict)
    purchase: Sequence[int] = ()
    """Amounts that may be bought instead, in the unit of the present purchase."""
    max_step_replicas: int = 2
    budget_per_month: float | None = None
    budget_per_hour: float | None = None
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
    """US dollars per 1,000 tokens of each kind, where the endpoint is billed so. Of provisioned throughput: of what spills over."""
    per_ptu_hour: float | None = None
    """US dollars per hour of one unit of provisioned throughput."""
    spill: Callable[[Shape], Usage | None] | None = None
    """What spills over of a shape in an hour at the load observed, to be paid for by the token. None: nothing does, or it is not asked."""
    instances: Callable[[Shape], float | None] | None = None
    """How many instances a platform would run of a shape, on average, at the load observed. None: a replay does not tell it."""

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
        """What the shape is reserved at: a rate limit for nothing. Without a price where none is known."""
        if shape.purchase is None:
            return Tariff.of({Unit.REPLICA_HOUR: self.per_replica_hour(shape)})
        if shape.purchase.unit == "ptu":
            return Tariff.of({Unit.PTU_HOUR: self.per_ptu_hour})
        return Tariff.of({Unit.HOUR: 0.0}, "a rate limit costs nothing")

    def billed(self, shape: Shape) -> Tariff:
        """What its use is billed by: what is reserved, tokens, or both. Without a price where none is known.

        Tokens that spill over from provisioned throughput are billed to the deployment that serves them.
        """
        if shape.purchase is not None and shape.purchase.unit == "ptu":
            return self.tariff(shape)
        tokens = Tariff.of(self.by_token).prices
        return Tariff(tokens if shape.purchase is not None else (*self.tariff(shape).prices, *tokens))

    def per_hour(self, shape: Shape, serving: float | None = None) -> float | None:
        """US dollars per hour of the whole shape, reserved whether used or not; None where unknown.

        serving: of an autoscaled shape, how many replicas there are on average.
        """
        replicas = serving if shape.replicas is None else shape.replicas
        if shape.schedule is not None:
            replicas = shape.schedule.mean
        reserved = self.tariff(shape).cost(Usage(hours=1.0, replica_hours=replicas, ptu_hours=ptus_of(shape)))
        spilled = self.spill(shape) if self.spill is not None else None
        if spilled is None or reserved.usd is None:
            return reserved.usd
        beside = Tariff.of(self.by_token).cost(spilled).usd
        return None if beside is None else reserved.usd + beside


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule says of a change."""

    rule: str
    """Stable, such as MAX_REPLICAS."""
    verdict: Literal["yes", "wait", "no"]
    text: str
    numbers: Mapping[str, float | None]

    @classmethod
    def of(
        cls,
        rule: str,
        kept: bool,
        yes: str,
        otherwise: str | None = None,
        *,
        word: Literal["wait", "no"] = "no",
        **numbers: float | None,
    ) -> RuleVerdict:
        """``yes`` where it is kept, else ``word``. otherwise: the text then, where it is another."""
        if kept:
            return cls(rule, "yes", yes, numbers)
        return cls(rule, word, yes if otherwise is None else otherwise, numbers)


def ptus_of(shape: Shape) -> float | None:
    """Units of provisioned throughput. None: it has none."""
    return float(shape.purchase.amount) if shape.purchase is not None and shape.purchase.unit == "ptu" else None


def units_of(shape: Shape) -> int | None:
    """How much there is at most of what is varied: the amount that is bought, or replicas. None: not known."""
    return shape.purchase.amount if shape.purchase is not None else most_replicas(shape)


def violations(shape: Shape, current: Shape, policy: Policy, catalogue: Catalogue) -> list[str]:
    """The rules that a shape breaks, each as one sentence."""
    return [v.text for v in shape_rules(shape, current, policy, catalogue) if v.verdict == "no"]


def shape_rules(shape: Shape, current: Shape, policy: Policy, catalogue: Catalogue) -> list[RuleVerdict]:
    """Every rule that looks at shapes alone, with its verdict: those of ``analyzers.guardrails`` are these and more."""
    return [
        *(_count_rules(shape, current, policy) if shape.purchase is None else ()),
        _purchase_rule(shape, current, policy),
        _size_rule(shape, current, policy),
        _engine_rule(shape, current, policy),
        *_budget_rules(shape, policy, catalogue),
    ]


def _purchase_rule(shape: Shape, current: Shape, policy: Policy) -> RuleVerdict:
    wanted, present = shape.purchase, current.purchase
    if wanted is None and present is None:
        return RuleVerdict("PURCHASE", "yes", "nothing is bought, and nothing was", {})
    if wanted is None or present is None or wanted.unit != present.unit:
        text = "provisioned throughput, a rate limit and replicas do not become each other in place: it is another deployment"
        return RuleVerdict("PURCHASE", "no", text, {})
    numbers = {"amount": float(wanted.amount)}
    if wanted == present:
        return RuleVerdict("PURCHASE", "yes", "what is bought stays as it is", numbers)
    allowed = wanted.amount in policy.purchase
    said = f"{wanted.amount} {wanted.unit} is {'' if allowed else 'not '}among the policy's amounts (policy.purchase)"
    return RuleVerdict.of("PURCHASE", allowed, said, amount=float(wanted.amount))


def _size_rule(shape: Shape, current: Shape, policy: Policy) -> RuleVerdict:
    if shape.size == current.size:
        return RuleVerdict("SIZE", "yes", f"size {shape.size or 'unknown'}, as it is", {})
    allowed = shape.size in policy.sizes
    return RuleVerdict.of("SIZE", allowed, f"size {shape.size} is {'' if allowed else 'not '}among the policy's sizes")


def _engine_rule(shape: Shape, current: Shape, policy: Policy) -> RuleVerdict:
    changed = {name: value for name, value in shape.engine.items() if value != current.engine.get(name)}
    broken = [f"{name}={value}" for name, value in changed.items() if value not in policy.engine.get(name, ())]
    if broken:
        text = "; ".join(f"{each} is not among the policy's values" for each in broken)
        return RuleVerdict("ENGINE", "no", text, {})
    return RuleVerdict("ENGINE", "yes", "the engine's limits are among the policy's values or as they are", {})


def _budget_rules(shape: Shape, policy: Policy, catalogue: Catalogue) -> Iterator[RuleVerdict]:
    """The most that it may cost: a budget must hold whatever an autoscaler does, and however long a schedule is held at its most."""
    budgets = (
        ("BUDGET_MONTH", policy.budget_per_month, "a month", per_month),
        ("BUDGET_HOUR", policy.budget_per_hour, "an hour", lambda usd: usd),
    )
    for rule, budget, unit, per in budgets:
        if budget is None:
            yield RuleVerdict(rule, "yes", f"no budget {unit} is set", {})
            continue
        usd = per(catalogue.per_hour(shape.with_(replicas=most_replicas(shape), schedule=None)))
        numbers = {"usd": usd, "budget_usd": budget}
        if usd is None:
            text = "the budget cannot be checked: the price of this shape is not known"
            yield RuleVerdict(rule, "no", text, numbers)
            continue
        digits = 0 if unit == "a month" else 2
        text = (
            f"${usd:,.{digits}f} {unit} is {'within' if usd <= budget else 'above'} the budget of ${budget:,.{digits}f}"
        )
        yield RuleVerdict(rule, "yes" if usd <= budget else "no", text, numbers)


def _count_rules(shape: Shape, current: Shape, policy: Policy) -> Iterator[RuleVerdict]:
    """Of the replicas, of each count of a schedule, or of the bounds of the autoscaler that owns them."""
    most, before = most_replicas(shape), most_replicas(current)
    if most is None:
        yield RuleVerdict("REPLICAS", "no", "the replica count is not known", {})
        return
    scaled, schedule = shape.autoscaling, shape.schedule
    yield RuleVerdict("REPLICAS", "yes", "the replica count is known", {"replicas": float(most)})
    yield _autoscaler_rule(shape, current)
    least = schedule.least if schedule is not None else shape.replicas if scaled is None else scaled.least
    if least is not None:
        few, bound = least < policy.min_replicas, policy.min_replicas
        text = f"{least} replicas are {'fewer' if few else 'no fewer'} than min_replicas {bound}"
        yield RuleVerdict.of("MIN_REPLICAS", not few, text, replicas=least, bound=bound)
    top = policy.max_replicas if policy.max_replicas is not None else before
    if top is not None:
        what = "replicas" if scaled is None else "replicas at most"
        text = f"{most} {what} are {'more' if most > top else 'no more'} than max_replicas {top}"
        yield RuleVerdict.of("MAX_REPLICAS", most <= top, text, replicas=most, bound=top)
    step = _step(shape, current)
    if step is not None:
        bound, many = policy.max_step_replicas, step > policy.max_step_replicas
        text = f"{step} replicas at once are {'more' if many else 'no more'} than max_step_replicas {bound}"
        yield RuleVerdict.of("STEP", not many, text, step=step, bound=bound)


def _autoscaler_rule(shape: Shape, current: Shape) -> RuleVerdict:
    scaled = shape.autoscaling
    if scaled is not None and shape.schedule is not None:
        return RuleVerdict(
            "AUTOSCALER", "no", "an autoscaler sets the replicas: a schedule beside it would fight it", {}
        )
    if (scaled is None) != (current.autoscaling is None):
        return RuleVerdict("AUTOSCALER", "no", "whether an autoscaler sets the replicas is not Flyball's to change", {})
    if scaled is not None and scaled.least > scaled.most:
        text = f"at least {scaled.least} and at most {scaled.most} replicas contradict each other"
        return RuleVerdict("AUTOSCALER", "no", text, {"least": float(scaled.least), "most": float(scaled.most)})
    return RuleVerdict("AUTOSCALER", "yes", "who sets the replicas stays the same", {})


def _step(shape: Shape, current: Shape) -> int | None:
    """Replicas at once, at most. None: what is there now is not known."""
    if shape.schedule is not None:
        known = current.replicas is not None and shape.replicas is not None
        now = [(current.replicas or 0, shape.replicas or 0)] if known else []
        return max((abs(after - before) for before, after in [*shape.schedule.changes(), *now]), default=0)
    most, before = most_replicas(shape), most_replicas(current)
    return None if most is None or before is None else abs(most - before)


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


def purchases(current: Shape, policy: Policy, catalogue: Catalogue) -> list[Shape]:
    """Every amount that the policy allows to be bought, the present one first."""
    bought = current.purchase
    if bought is None:
        return [current]
    amounts = sorted(set(policy.purchase) - {bought.amount})
    shapes = [current.with_(purchase=replace(bought, amount=amount)) for amount in amounts]
    return [current, *(s for s in shapes if not violations(s, current, policy, catalogue))]


def _known(engine: Mapping[str, EngineValue], name: str) -> list[EngineValue]:
    return [engine[name]] if name in engine else []
