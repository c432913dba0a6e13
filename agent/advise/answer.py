"""The whole advice as plain JSON. Unknown is null, and says of what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analyzers.advise.advice import REACH, Advice, RankedOption
from analyzers.advise.curves import grid, sampled
from analyzers.advise.estimates import AdviceContext, OptionEstimate
from analyzers.advise.offers import DeploymentOffer
from analyzers.advise.options import DESCRIPTIONS, TRAITS
from analyzers.money import HOURS_PER_MONTH, per_request

SCHEMA_VERSION = 1


def answer(
    found: Advice,
    on: AdviceContext | None,
    offers: Sequence[DeploymentOffer],
    *,
    workload: str | None,
    users: Sequence[float],
    calls_per_user_hour: float,
    notes: Sequence[str],
) -> dict[str, Any]:
    """``workload``: what the traffic is of. users: how many, each with ``calls_per_user_hour``."""
    terms = {offer.name: offer for offer in offers}
    return {
        "schema_version": SCHEMA_VERSION,
        "workload": None if on is None else {"of": workload, **_traffic(on)},
        "objective": [] if on is None else [{"target": t.name, "limit": t.limit} for t in on.traffic.objective.targets],
        "conditions": [
            {"name": c.value, "why": why, "seen": c in TRAITS and why != "asked for"}
            for c, why in found.conditions.items()
        ],
        "recommended": found.first.name,
        "by_conditions_alone": found.guide.value,
        "options": [
            _row(n, row, terms.get(row.name), users, calls_per_user_hour) for n, row in enumerate(found.ranked, 1)
        ],
        "users": {"counts": list(users), "calls_per_user_hour": calls_per_user_hour},
        "break_even": [
            {
                "reserved": b.reserved,
                "by_token": b.by_token,
                "requests_per_s": b.requests_per_s,
                "share_of_capacity": b.share,
            }
            for b in found.break_even
        ],
        "cheapest": [
            {"from_requests_per_s": r.from_per_s, "name": r.name, "usd_per_hour": r.usd_per_hour} for r in found.ranges
        ],
        "contradictions": [
            {"code": c.code, "detail": c.detail, "guide": c.source or None} for c in found.contradictions
        ],
        "notes": [*notes, *_notes(found, on)],
    }


def curves(found: Advice, on: AdviceContext) -> dict[str, list[tuple[float, float]]]:
    """(requests per second, US dollars per hour) by name, of all that may be taken, from far below the traffic's rate to far above."""
    rate = on.profile.rate_per_s
    rates = grid(rate / REACH, rate * REACH)
    drawn = (row.estimate for row in found.ranked if row.estimate is not None and not row.score.excluded)
    return {e.name: sampled(e.curve, rates) for e in drawn if e.curve is not None}


def _traffic(on: AdviceContext) -> dict[str, Any]:
    p = on.profile
    return {
        "requests": p.requests, "span_s": p.span_s, "requests_per_s": p.rate_per_s, "prompt_tokens": p.prompt_tokens,
        "cached_prompt_tokens": p.cached_prompt_tokens, "output_tokens": p.output_tokens, "busiest_minute_over_mean": p.peak,
        "idle_share": p.idle_share,
    }  # fmt: skip


def _row(
    number: int, row: RankedOption, offer: DeploymentOffer | None, users: Sequence[float], calls: float
) -> dict[str, Any]:
    e = row.estimate
    return {
        "rank": number,
        "option": row.option.value,
        "what": DESCRIPTIONS[row.option],
        "name": row.name,
        "excluded": row.score.excluded,
        "criteria": [
            {"condition": c.condition.value, "verdict": c.verdict.value, "why": c.why, "guide": c.source}
            for c in row.score.criteria
        ],
        **(_figures(e, offer, users, calls) if e is not None else {"offered": False}),
    }


def _figures(e: OptionEstimate, offer: DeploymentOffer | None, users: Sequence[float], calls: float) -> dict[str, Any]:
    carries = e.carries_per_s
    return {
        "offered": True,
        "usd_per_hour": e.usd_per_hour,
        "usd_per_month": None if e.usd_per_hour is None else e.usd_per_hour * HOURS_PER_MONTH,
        "usd_per_request": e.usd_per_request,
        "usd_per_1k_tokens": e.usd_per_1k_tokens,
        "lacking": list(e.lacking),
        "units": e.units,
        "carries_per_s": None if carries is None or math.isinf(carries) else carries,
        "latency_s": dict(e.latency),
        "meets_objective": e.meets,
        "saturated": e.saturated,
        "overflow": e.overflow,
        "cold_starts": e.cold_starts,
        "prices": {} if offer is None else dict(offer.by_name),
        "price_source": None if offer is None else offer.terms.source or None,
        "price_as_of": None if offer is None else offer.terms.as_of or None,
        "users": [_at_users(e, n, calls) for n in users],
        "notes": list(e.notes),
    }


def _at_users(e: OptionEstimate, users: float, calls: float) -> dict[str, Any]:
    """What an hour and a call cost with so many users; null where it cannot carry them, or is not known."""
    rate = users * calls / 3600.0
    usd = None if e.curve is None else e.curve.usd_per_hour(rate)
    return {"users": users, "usd_per_hour": usd, "usd_per_call": per_request(usd, rate * 3600.0)}


def _notes(found: Advice, on: AdviceContext | None) -> list[str]:
    notes = []
    if on is None:
        notes.append("no traffic was given: the conditions alone decide, and nothing is said of cost and latency")
    elif not on.traffic.objective.targets:
        notes.append(
            "no objective was given: a machine does where its queue does not grow, however long its answers take"
        )
    unpriced = [
        f"{r.name} ({', '.join(r.estimate.lacking)})"
        for r in found.ranked
        if r.estimate is not None and r.estimate.lacking
    ]
    if unpriced:
        notes.append(f"not known, and in no comparison of costs: {', '.join(unpriced)}")
    missing = [r.option.value for r in found.ranked if r.estimate is None and not r.score.excluded]
    if on is not None and missing:
        notes.append(f"nobody offers {', '.join(missing)}: what they would cost is not known; --offers FILE states it")
    return notes


def latency_names(told: Mapping[str, Any]) -> list[str]:
    """Those of the table's columns: what the objective bounds, else what most options know."""
    bound = [o["target"] for o in told["objective"] if o["target"].endswith("_s")]
    rows = [o["latency_s"] for o in told["options"] if o["offered"]]
    usual = [name for name in ("ttft_p95_s", "e2e_p95_s") if any(row.get(name) is not None for row in rows)]
    return list(dict.fromkeys((*bound, *usual)))
