"""Options with their conditions and their numbers, ranked; break-even rates; and where the numbers contradict the guides.

First what no condition excludes, then what meets the objective, then what fewer conditions speak against, then what costs less. A
condition about cost alone is answered by prices where there are any, and one about latency by an objective that is met. Where nothing has a
price, the conditions alone decide; where one has none, it stands behind its equals and is said to lack it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from analyzers.advise.curves import BreakEven, CheapestRange, CostCurve, TokenCurve, break_even, cheapest
from analyzers.advise.estimates import AdviceContext, OptionEstimate, estimate, hybrid
from analyzers.advise.offers import DeploymentOffer
from analyzers.advise.options import (
    PATTERNS,
    STUDIO,
    Condition,
    CriterionVerdict,
    DeploymentOption,
    OptionScore,
    by_conditions,
    score_of,
)

#: The chart and the ranges reach so many times below and above the traffic's rate.
REACH = 100.0
#: Dearer by more than this is a contradiction, and not rounding.
_CLEARLY = 1.05


@dataclass(frozen=True, slots=True)
class RankedOption:
    score: OptionScore
    estimate: OptionEstimate | None
    """None: nobody offers it, or nothing is known of what does."""

    @property
    def option(self) -> DeploymentOption:
        return self.score.option

    @property
    def name(self) -> str:
        return self.option.value if self.estimate is None else self.estimate.name

    @property
    def usd_per_hour(self) -> float | None:
        return None if self.estimate is None else self.estimate.usd_per_hour


@dataclass(frozen=True, slots=True)
class GuideConflict:
    """Where numbers speak against what a guide says, or what the conditions alone would have chosen."""

    code: str
    detail: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    conditions: Mapping[Condition, str]
    """Each with why it holds: asked for, or the figure that shows it."""
    ranked: tuple[RankedOption, ...]
    guide: DeploymentOption
    """What the conditions alone would choose among the same options."""
    break_even: tuple[BreakEven, ...]
    ranges: tuple[CheapestRange, ...]
    contradictions: tuple[GuideConflict, ...]

    @property
    def first(self) -> RankedOption:
        return self.ranked[0]


def advise(
    offers: Sequence[DeploymentOffer],
    on: AdviceContext | None,
    asked: Collection[Condition],
    among: Collection[DeploymentOption] = tuple(DeploymentOption),
) -> Advice:
    """``on``: the traffic; None: there is none, and the conditions alone decide. ``among``: the options that can be had."""
    estimates = [] if on is None else [estimate(o, on) for o in offers if o.option in among]
    if on is not None and DeploymentOption.HYBRID in among:
        estimates += _hybrids(estimates, on)
    conditions = _conditions(asked, on, estimates)
    priced = any(e.usd_per_hour is not None for e in estimates)
    offered = {e.option for e in estimates}
    rows = [RankedOption(score_of(e.option, conditions), e) for e in estimates]
    rows += [RankedOption(score_of(o, conditions), None) for o in DeploymentOption if o in among and o not in offered]
    ranked = tuple(sorted(rows, key=lambda row: _key(row, priced)))
    reserved, curves = _breaks(estimates), _curves(ranked)
    ranges = () if on is None else tuple(cheapest(curves, on.profile.rate_per_s / REACH, on.profile.rate_per_s * REACH))
    candidates = [o for o in DeploymentOption if o in (offered if priced else {row.option for row in rows})]
    guide = by_conditions(candidates, conditions)[0].option
    return Advice(conditions, ranked, guide, reserved, ranges, tuple(_contradictions(ranked, guide, reserved, on)))


def _key(row: RankedOption, priced: bool) -> tuple[object, ...]:
    """Lower is better. Not known whether the objective is met lies between met and missed; a batch that is asked for has none."""
    at, usd = row.score, row.usd_per_hour
    asked = row.option is DeploymentOption.BATCH and not at.against
    met = 0 if asked else {True: 0, None: 1, False: 2}[None if row.estimate is None else row.estimate.meets]
    if not priced:
        return (at.excluded, met == 2, -at.points, at.against)
    return (at.excluded, met, _unmet(row), usd is None, math.inf if usd is None else usd, -at.points)


def _unmet(row: RankedOption) -> int:
    """Conditions that speak against it, without those that its numbers answer: of cost its prices, of latency the objective."""
    fast = row.estimate is not None and row.estimate.meets is True
    slow = sum(
        c.condition is Condition.LOW_LATENCY and c.verdict is CriterionVerdict.AGAINST for c in row.score.criteria
    )
    return row.score.unmet - (slow if fast else 0)


def _conditions(
    asked: Collection[Condition], on: AdviceContext | None, estimates: Sequence[OptionEstimate]
) -> dict[Condition, str]:
    found = {c: "asked for" for c in Condition if c in asked}
    if on is not None:
        found = {**on.profile.conditions(), **found}
        single = [
            e for e in estimates if e.option is DeploymentOption.SELF_HOSTED and e.meets is False and e.carries_per_s
        ]
        if single and Condition.LARGE not in found:
            found[Condition.LARGE] = f"one machine of {single[0].name} does not carry it"
    if Condition.BATCH in found:  # what waits for a deadline has no peaks, and is not spaced out
        found = {c: why for c, why in found.items() if why == "asked for"}
    return found


def _hybrids(estimates: Sequence[OptionEstimate], on: AdviceContext) -> list[OptionEstimate]:
    """The cheapest of them that there is."""
    token = [e for e in estimates if e.option in (DeploymentOption.PER_TOKEN, DeploymentOption.MODEL_SERVICE)]
    token = sorted(token, key=lambda e: (e.usd_per_hour is None, e.usd_per_hour or 0.0))
    machine = [e for e in estimates if e.usd_per_unit_hour is not None and e.option is not DeploymentOption.PROVISIONED]
    made = [h for m in machine for t in token if (h := hybrid(m, t, on)) is not None]
    return sorted(made, key=lambda h: (h.meets is False, h.usd_per_hour or 0.0))[:1]


def _breaks(estimates: Sequence[OptionEstimate]) -> tuple[BreakEven, ...]:
    """Of every machine or PTU with a price, against everything that is paid by the token and answers at once."""
    found = []
    for token in estimates:
        if not isinstance(token.curve, TokenCurve) or token.option is DeploymentOption.BATCH:
            continue
        for e in estimates:
            if e.usd_per_unit_hour is None or e.option is DeploymentOption.HYBRID:
                continue
            carries = e.carries_per_s if e.carries_per_s is not None and math.isfinite(e.carries_per_s) else None
            at = break_even(e.name, e.usd_per_unit_hour, carries, token.name, token.curve.usd_per_request)
            found += [at] if at is not None else []
    return tuple(found)


def _curves(ranked: Sequence[RankedOption]) -> dict[str, CostCurve]:
    """Of what may be taken: not excluded, and no batch, which answers another question."""
    return {
        row.estimate.name: row.estimate.curve
        for row in ranked
        if row.estimate is not None
        and row.estimate.curve is not None
        and not row.score.excluded
        and row.option is not DeploymentOption.BATCH
    }


# -- where the numbers contradict ----------------------------------------------------------------------------------------


def _contradictions(
    ranked: Sequence[RankedOption], guide: DeploymentOption, breaks: Sequence[BreakEven], on: AdviceContext | None
) -> list[GuideConflict]:
    if on is None:
        return []
    found: list[GuideConflict] = []
    first = ranked[0]
    chosen = next((row for row in ranked if row.option is guide), None)
    if chosen is not None and chosen.estimate is not None and chosen.score.points > first.score.points:
        found.append(GuideConflict("CHOICE", _other_choice(chosen, first)))
    for row in ranked:
        if row.estimate is not None:
            found += _of_row(row, row.estimate, ranked, on)
    for at in breaks:
        if at.share is not None and at.share > 1:
            detail = (
                f"{at.reserved} never costs less than {at.by_token} here: it would have to be used to {at.share:.0%} of what it "
                f"carries within the objective"
            )
            found.append(GuideConflict("NEVER_BREAKS_EVEN", detail, f"{PATTERNS}: higher variable costs at scale"))
    return found


def _other_choice(chosen: RankedOption, first: RankedOption) -> str:
    e = chosen.estimate
    assert e is not None
    said = f"by the conditions alone it would be {chosen.option} ({chosen.name})"
    if e.meets is False:
        return f"{said}; under this traffic that misses the objective, and {first.name} is not known to"
    if e.usd_per_hour is None:
        return f"{said}; its cost is not known ({', '.join(e.lacking)}), and so it cannot be compared with {first.name}"
    if first.usd_per_hour is None:
        return f"{said}; {first.name} breaks fewer conditions"
    return f"{said} at ${e.usd_per_hour:.3g} an hour; {first.name} ({first.option}) costs ${first.usd_per_hour:.3g}"


def _of_row(
    row: RankedOption, e: OptionEstimate, ranked: Sequence[RankedOption], on: AdviceContext
) -> list[GuideConflict]:
    found = []
    for c in row.score.criteria:
        if c.condition is Condition.LOW_LATENCY and c.verdict is CriterionVerdict.AGAINST and e.meets is True:
            seconds = e.latency.get("e2e_p95_s")
            told = "" if seconds is None else f": {seconds:.3g} s end to end at the 95th percentile"
            detail = f"{e.name} meets the objective under this traffic{told}"
            if e.cold_starts is not None:
                detail += f", with {e.cold_starts:,} cold starts for {on.profile.requests:,} requests"
            found.append(GuideConflict("FAST_ENOUGH", detail, f"{c.source}: {c.why}"))
        if c.of_cost and c.verdict is CriterionVerdict.AGAINST and e.usd_per_hour is not None and e.meets is not False:
            found += _of_cost(f"{c.source}: {c.why}", row, e.usd_per_hour, ranked)
    if row.option is DeploymentOption.MANAGED and e.usd_per_unit_hour is not None:
        detail = f"{e.name} costs ${e.usd_per_unit_hour:.3g} an hour for each machine, also while nobody uses it: it is not billed by the token"
        found.append(
            GuideConflict(
                "BILLED_BY_THE_HOUR",
                detail,
                f"{STUDIO}: you only pay for the tokens that you consume",
            )
        )
    return found


def _of_cost(source: str, row: RankedOption, usd: float, ranked: Sequence[RankedOption]) -> list[GuideConflict]:
    """What is warned of for its cost, at ``usd`` an hour, is clearly cheaper than what is praised for it."""
    others = [
        f"{other.name} at ${other.usd_per_hour:.3g}"
        for other in ranked
        if other.usd_per_hour is not None
        and any(c.of_cost and c.verdict is CriterionVerdict.FOR for c in other.score.criteria)
        and other.usd_per_hour > usd * _CLEARLY
    ]
    if not others:
        return []
    return [
        GuideConflict(
            "CHEAPER_ALL_THE_SAME", f"{row.name} costs ${usd:.3g} an hour, less than {', '.join(others)}", source
        )
    ]
