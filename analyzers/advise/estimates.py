"""One offer under the traffic: what it costs, how it responds, what it carries, and its cost at any other rate of the same traffic.

What an offer has no model of stays unknown, and is named. Machines are as many as the objective takes, by replay; a batch is judged by
its deadline alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from analyzers.advise import capacity
from analyzers.advise.curves import CostCurve, MachineCurve, OverflowCurve, ReplayCurve, TokenCurve
from analyzers.advise.offers import DeploymentOffer
from analyzers.advise.options import DeploymentOption
from analyzers.advise.profile import TrafficProfile
from analyzers.kinds.results import ReplayTraffic, Result
from analyzers.money import Usage, per_1k_tokens, per_request
from analyzers.prediction import CannotPredict

#: Of latencies that are told beside the objective's.
LATENCIES = ("ttft_p50_s", "ttft_p95_s", "itl_p95_s", "e2e_p50_s", "e2e_p95_s")
#: A smaller share is told as less than this.
_LITTLE = 0.001
#: Machines that are tried at most where the offer sets no bound.
_MOST_UNITS = 256
#: Multiples of the traffic's rate at which what scales by itself is replayed.
_MULTIPLES = tuple(4.0**k for k in range(-4, 4))


@dataclass(frozen=True, slots=True)
class OptionEstimate:
    """None: not known."""

    name: str
    option: DeploymentOption
    usd_per_hour: float | None
    lacking: tuple[str, ...]
    """What its cost lacks."""
    usd_per_request: float | None
    usd_per_1k_tokens: float | None
    units: int | None
    """Machines or PTUs; None: it has none, or they are not known."""
    carries_per_s: float | None
    """Steady requests per second within the objective, of one machine or PTU; infinite: no bound was found."""
    latency: Mapping[str, float | None]
    meets: bool | None
    """The objective. None: not known, or there is none."""
    saturated: bool | None
    notes: tuple[str, ...] = ()
    curve: CostCurve | None = None
    usd_per_unit_hour: float | None = None
    """Of what is there whether it is used or not."""
    overflow: float | None = None
    """Of a hybrid: the share of requests that go by the token."""
    cold_starts: int | None = None
    full: Mapping[str, float | None] = field(default_factory=dict)
    """Latency of a machine that carries as much as it can."""


@dataclass(frozen=True, slots=True)
class AdviceContext:
    """What all offers are judged under."""

    traffic: ReplayTraffic
    profile: TrafficProfile
    seed: int = 0

    @property
    def usage_of_request(self) -> Usage:
        p = self.profile
        return Usage(
            requests=1.0,
            prompt_tokens=p.prompt_tokens,
            cached_prompt_tokens=p.cached_prompt_tokens,
            output_tokens=p.output_tokens,
        )

    def at(self, multiple: float) -> ReplayTraffic:
        """The same traffic, arriving so many times as fast."""
        work = self.traffic.workload
        return replace(self.traffic, workload=replace(work, arrival_s=work.arrival_s / multiple))


def estimate(offer: DeploymentOffer, on: AdviceContext) -> OptionEstimate:
    """Refusals of the offer's model are notes, and what they leave open is unknown."""
    try:
        if offer.by_token:
            return _by_token(offer, on)
        if offer.on_machines:
            return _on_machines(offer, on)
        return _provisioned(offer, on) if offer.option is DeploymentOption.PROVISIONED else _serverless(offer, on)
    except CannotPredict as refused:
        return _unknown(offer, f"not predicted: {refused.detail}")


def _by_token(offer: DeploymentOffer, on: AdviceContext) -> OptionEstimate:
    each = offer.tariff.cost(on.usage_of_request)
    result = None if offer.system is None else offer.system.run(on.traffic).best
    batch = offer.option is DeploymentOption.BATCH
    notes = [] if result is not None or batch else ["no model of its latency is given"]
    if batch:
        deadline = offer.terms.deadline_s
        notes.append("its deadline is not known" if deadline is None else f"answers within {deadline / 3600:g} h")
    if result is not None and result.throttled:
        notes.append(f"{result.throttled:,} calls are refused at its limits and tried again")
    curve = None if each.usd is None else TokenCurve(each.usd)
    usd = None if curve is None else curve.usd_per_hour(on.profile.rate_per_s)
    return _told(offer, on, usd, each.lacking, result, notes, curve=curve, judged=not batch)


def _on_machines(offer: DeploymentOffer, on: AdviceContext) -> OptionEstimate:
    price = offer.by_name.get("usd_per_replica_hour")
    lacking = () if price is not None else ("usd_per_replica_hour",)
    rate, most = on.profile.rate_per_s, offer.most or _MOST_UNITS
    full: Mapping[str, float | None] = {}
    if offer.system is None:
        carries, result = offer.terms.carries_per_s, None
        if carries is None:
            notes = [f"what one machine carries is not known: the cost is that of {offer.least}"]
            usd = None if price is None else offer.least * price
            return _told(offer, on, usd, lacking, None, notes, units=offer.least, price=price)
        curve = MachineCurve(price or 0.0, carries / on.profile.peak, offer.least, offer.most)
        units = curve.machines(rate)
        fits = units <= most
        notes = [] if fits else [f"one machine carries {carries:.3g} requests/s, and this takes {units}"]
    else:
        carries = capacity.carried(offer.sized(1), on.traffic, rate, on.seed)
        if carries is None:
            return _unknown(offer, "not even one request at a time meets the objective on it", meets=False)
        guess = 1 if math.isinf(carries) else math.ceil(rate * on.profile.peak / carries)
        found = _least(offer, on, guess, most)
        fits, units = found is not None, found or most
        result = offer.sized(units).run(on.traffic).best
        notes = [] if fits else [f"not even {most} {_machines(most)} carry this traffic within the objective"]
        curve = MachineCurve(price or 0.0, _with_peaks(carries, units, on), offer.least, offer.most)
        if math.isfinite(carries):
            loaded = replace(on.traffic, workload=capacity.steady(on.traffic.workload, carries, on.seed))
            full = latencies(offer.sized(1).run(loaded).best, loaded)
    usd = None if price is None or not fits else units * price
    told = _told(
        offer, on, usd, lacking, result, notes, units=units, carries=carries, curve=curve if price is not None else None, price=price,
        beyond=not fits,
    )  # fmt: skip
    return replace(told, full=full)


def _least(offer: DeploymentOffer, on: AdviceContext, guess: int, most: int) -> int | None:
    def holds(units: int) -> bool:
        return capacity.meets(offer.sized(units).run(on.traffic).best, on.traffic.objective) is not False

    return capacity.least_units(holds, guess, offer.least, most)


def _with_peaks(carries: float, units: int, on: AdviceContext) -> float:
    """Mean rate of this traffic that one unit carries: less than at steady arrivals, so that ``units`` are what this rate takes."""
    rate = on.profile.rate_per_s
    if math.isinf(carries):
        return math.inf
    guess = carries / on.profile.peak
    if units == 1:
        return max(guess, rate)
    return min(max(guess, rate / units), rate / (units - 1) * (1 - 1e-9))


def _provisioned(offer: DeploymentOffer, on: AdviceContext) -> OptionEstimate:
    price, step = offer.by_name.get("usd_per_ptu_hour"), offer.terms.unit_step
    most = max(1, (offer.most or step * _MOST_UNITS) // step)
    least = max(1, math.ceil(offer.least / step))

    def holds(steps: int) -> bool:
        return capacity.meets(offer.sized(steps * step).run(on.traffic).best, on.traffic.objective) is not False

    found = capacity.least_units(holds, least, least, most)
    units = (found or most) * step
    system = offer.sized(units)
    result = system.run(on.traffic).best
    hours = result.simulated_s / 3600.0
    cost = system.cost_usd(result)
    usd = None if cost is None or not hours or found is None else cost / hours
    carries = capacity.carried(offer.sized(step), on.traffic, on.profile.rate_per_s, on.seed)
    lacking = (
        ()
        if usd is not None or found is None
        else ("usd_per_ptu_hour",)
        if price is None
        else ("prices of what spills over",)
    )
    curve = None
    if price is not None and carries is not None:
        steps = _with_peaks(carries, units // step, on)
        curve = MachineCurve(price * step, steps, least, None if offer.most is None else most)
    notes = [] if found is not None else [f"not even {units:,} PTU carry this traffic within the objective"]
    each = None if carries is None else carries / step
    return _told(
        offer,
        on,
        usd,
        lacking,
        result,
        notes,
        units=units,
        carries=each,
        curve=curve,
        price=price,
        beyond=found is None,
    )


def _serverless(offer: DeploymentOffer, on: AdviceContext) -> OptionEstimate:
    assert offer.system is not None
    result = offer.system.run(on.traffic).best
    usd = _per_hour(offer.system.cost_usd(result), result)
    points = []
    for multiple in _MULTIPLES if usd is not None else ():
        at = offer.system.run(on.at(multiple)).best
        cost = _per_hour(offer.system.cost_usd(at), at)
        if cost and not at.saturated:
            points.append((on.profile.rate_per_s * multiple, cost))
    curve = ReplayCurve(tuple(points)) if points else None
    starts = result.cold_starts or 0
    notes = [f"{starts:,} cold starts for {result.requests:,} requests"]
    lacking = () if usd is not None else ("usd_per_billed_hour",)
    told = _told(offer, on, usd, lacking, result, notes, curve=curve)
    return replace(told, cold_starts=starts)


def hybrid(machine: OptionEstimate, token: OptionEstimate, on: AdviceContext) -> OptionEstimate | None:
    """Machines of the one for the base load, the other for what overflows. None where one of the two has no price, or no capacity."""
    carries, base, over = machine.carries_per_s, machine.curve, token.curve
    if not isinstance(base, MachineCurve) or not isinstance(over, TokenCurve) or carries is None or math.isinf(carries):
        return None
    curve = OverflowCurve(replace(base, least=0), carries, over, on.profile.minutes / on.profile.rate_per_s)
    units, usd, share = curve.best(on.profile.rate_per_s)
    sides = [*([machine.full] if units else []), *([token.latency] if share else [])]
    latency = {name: _worst([side.get(name) for side in sides]) for name in token.latency}
    what = f"{units} x {machine.name}, and {token.name} for {'' if share >= _LITTLE else 'less than '}{max(share, _LITTLE):.1%} of the requests"
    if units == 0:
        what = f"no machine of {machine.name} pays here: all of it by {token.name}"
    return OptionEstimate(
        name=f"{machine.name} + {token.name}",
        option=DeploymentOption.HYBRID,
        usd_per_hour=usd,
        lacking=(),
        usd_per_request=usd / 3600.0 / on.profile.rate_per_s,
        usd_per_1k_tokens=per_1k_tokens(usd, on.profile.rate_per_s * 3600.0 * on.profile.tokens),
        units=units,
        carries_per_s=carries,
        latency=latency,
        meets=_sides_meet(latency, token, on),
        saturated=False,
        notes=(what, "its latency is the worse one of a full machine and of the API"),
        curve=curve,
        overflow=share,
    )


def _sides_meet(latency: Mapping[str, float | None], token: OptionEstimate, on: AdviceContext) -> bool | None:
    """What its latency and the API's errors come to; None where a target is not known of one side."""
    targets = on.traffic.objective.targets
    if not targets:
        return None
    limits = {t.name: t.limit for t in targets if t.quantile is not None}
    found = [None if (value := latency.get(name)) is None else value <= limit for name, limit in limits.items()]
    found += [token.meets] if len(limits) < len(targets) else []
    return False if False in found else None if None in found else True


def _worst(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return max(known) if known and len(known) == len(values) else None


# -- what all of them tell ------------------------------------------------------------------------------------------------


def _told(
    offer: DeploymentOffer,
    on: AdviceContext,
    usd: float | None,
    lacking: tuple[str, ...],
    result: Result | None,
    notes: list[str],
    *,
    units: int | None = None,
    carries: float | None = None,
    curve: CostCurve | None = None,
    price: float | None = None,
    judged: bool = True,
    beyond: bool = False,
) -> OptionEstimate:
    """``beyond``: it does not carry this traffic, so that no cost is that of serving it."""
    objective = on.traffic.objective
    met = None
    if beyond:
        met = False
    elif result is not None and judged and (objective.targets or result.saturated):
        met = capacity.meets(result, objective)
    hourly = on.profile.rate_per_s * 3600.0
    return OptionEstimate(
        name=offer.name,
        option=offer.option,
        usd_per_hour=usd,
        lacking=lacking if usd is None else (),
        usd_per_request=per_request(usd, hourly),
        usd_per_1k_tokens=per_1k_tokens(usd, hourly * on.profile.tokens),
        units=units,
        carries_per_s=carries,
        latency=latencies(result, on.traffic),
        meets=met,
        saturated=None if result is None else result.saturated,
        notes=(*notes, *(() if offer.terms.note is None else (offer.terms.note,))),
        curve=curve,
        usd_per_unit_hour=price,
    )


def _unknown(offer: DeploymentOffer, why: str, meets: bool | None = None) -> OptionEstimate:
    latency: dict[str, float | None] = dict.fromkeys(LATENCIES)
    return OptionEstimate(
        offer.name, offer.option, None, ("a prediction",), None, None, None, None, latency, meets, None, (why,)
    )


def latencies(result: Result | None, traffic: ReplayTraffic) -> dict[str, float | None]:
    """Seconds by the objective's names: the usual ones, and those that the objective bounds."""
    bounds = (t.name for t in traffic.objective.targets if t.quantile is not None)
    found: dict[str, float | None] = {}
    for name in dict.fromkeys((*LATENCIES, *bounds)):
        metric, quantile = name.removesuffix("_s").rsplit("_p", 1)
        share = float(quantile) / 100
        found[name] = None if result is None else result.distribution(f"{metric}_s").quantile(share)
    return found


def _per_hour(usd: float | None, result: Result) -> float | None:
    hours = result.simulated_s / 3600.0
    return None if usd is None or not hours else usd / hours


def _machines(n: int) -> str:
    return "machine" if n == 1 else "machines"


def users_rate(users: float, calls_per_hour: float) -> float:
    """Requests per second of so many users."""
    return users * calls_per_hour / 3600.0
