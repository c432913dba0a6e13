"""What was really spent: of each window what its use cost by the price of that moment, tokens by their kind, and what is not known.

Owns which windows a span is read from; ``analyzers.money`` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from agent.settings import EndpointSettings, Settings
from agent.store import Store, prices, windows
from agent.store.evidence import judged, main_source
from agent.store.windows import ROLLUPS
from agent.whatif import predictions
from analyzers.money import Cost, Tariff, Unit, Usage, parts, per_1k_tokens, per_request
from analyzers.objective import total
from analyzers.prediction import CannotPredict
from analyzers.whatif.calibrate import CalibratedEngine
from analyzers.whatif.predict import limit_rate
from collectors.metrics import tag_of
from collectors.window import Window

SCHEMA_VERSION = 1
#: No chart has more points than this: the resolution is chosen so.
POINTS = 700
#: Kinds of tokens that are priced apart.
_KINDS = {"input": Unit.INPUT_1K, "cached_input": Unit.CACHED_INPUT_1K, "output": Unit.OUTPUT_1K}
_TOKENS = ("prompt_tokens", "output_tokens")
_COUNTED = (*_TOKENS, "cached_prompt_tokens")


# -- which windows -------------------------------------------------------------------------------------------------------


def rows(db: sa.Connection, settings: Settings, e: EndpointSettings, start: float, end: float) -> list[Window]:
    """The span since it was first watched, in order: at the finest resolution that fits into a chart and is kept for so long.

    Its two ends are at a finer one. Nothing begins before the first window that was collected: an hour that was merged says nothing of
    when in it that was.
    """
    widths = [settings.collect.window_s, *(w for w in ROLLUPS if w > settings.collect.window_s)]
    since = _watched_since(db, e, start, end, widths)
    for i, width in enumerate(widths):
        kept = windows.first(db, e.name, list(e.sources), start, end, width)
        if (end - since) / width <= POINTS and kept is not None and kept - since <= width:
            return _tiled(db, e, since, end, widths[: i + 1])
    return _tiled(db, e, since, end, widths)


def _watched_since(db: sa.Connection, e: EndpointSettings, start: float, end: float, widths: Sequence[float]) -> float:
    """Where the windows begin, as exactly as the finest of ``widths`` (seconds, ascending) that is kept from then still tells."""
    since, within = start, None
    for width in reversed(widths):
        at = windows.first(db, e.name, list(e.sources), start, end, width)
        if at is not None and (within is None or at < within):
            since, within = at, at + width
    return since


def _tiled(db: sa.Connection, e: EndpointSettings, start: float, end: float, widths: Sequence[float]) -> list[Window]:
    """Windows of the last of ``widths`` (seconds, ascending), and of those before it where it does not reach."""
    if not widths or end - start < widths[0]:
        return []
    *finer, width = widths
    found = judged(db, e.name, e.sources, start, end, width)
    if not found:
        return _tiled(db, e, start, end, finer)
    return [*_tiled(db, e, start, found[0].start, finer), *found, *_tiled(db, e, found[-1].end, end, finer)]


# -- what they cost ------------------------------------------------------------------------------------------------------


def spent(db: sa.Connection, of: Sequence[Window]) -> Cost:
    """US dollars of these windows, as far as a price was known in each."""
    found: list[Cost] = []
    for width, group in groupby(of, key=lambda w: w.duration_s):
        run = list(group)
        found.append(windows.spent(db, run[0].endpoint, main_source(run[0]), run[0].start, run[-1].end, width))
    return parts(found)


def per_1k(cost: Cost, prompt: float | None, output: float | None) -> float | None:
    """US dollars per 1,000 tokens in and out. None where a part of the cost, or of the tokens, is not known."""
    return None if cost.lacking or prompt is None or output is None else per_1k_tokens(cost.usd, prompt + output)


@dataclass(frozen=True, slots=True)
class TokenSpend:
    """One kind of tokens over a span. None: not known."""

    tokens: float | None
    usd: float | None
    """None, too, where it is not billed by the token."""


def by_kind(of: Sequence[Window], tariff: Tariff) -> dict[str, TokenSpend]:
    """``input`` (that no cache held), ``cached_input`` and ``output`` apart, each at the price of its window's start.

    tariff: all prices of the endpoint, with the moments since which they hold. Tokens of windows that told them in a part only count as
    told. Of a source that tells no cached tokens all input is fresh.
    """
    found: dict[str, TokenSpend] = {}
    each: dict[str, Callable[[Window], float | None]] = {
        "input": _fresh,
        "cached_input": _cached,
        "output": lambda w: w.count("output_tokens"),
    }
    for kind, unit in _KINDS.items():
        counted = [(w, tokens) for w in of if (tokens := each[kind](w)) is not None]
        costs = [_priced(tariff.at(w.start), unit, tokens) for w, tokens in counted]
        known = [usd for usd in costs if usd is not None]
        found[kind] = TokenSpend(
            sum(tokens for _, tokens in counted) if counted else None,
            sum(known) if known and len(known) == len(counted) else None,
        )
    return found


def _fresh(window: Window) -> float | None:
    prompt = window.count("prompt_tokens")
    return None if prompt is None else prompt - (_cached(window) or 0.0)


def _cached(window: Window) -> float | None:
    return window.count("cached_prompt_tokens")


def _priced(tariff: Tariff, unit: Unit, tokens: float) -> float | None:
    """Where the cached tokens have no price of their own, they cost as any other."""
    per = {price.per for price in tariff.prices}
    unit = Unit.INPUT_1K if unit is Unit.CACHED_INPUT_1K and unit not in per else unit
    if unit not in per:
        return None
    used = {
        Unit.OUTPUT_1K: "output_tokens",
        Unit.CACHED_INPUT_1K: "cached_prompt_tokens",
        Unit.INPUT_1K: "prompt_tokens",
    }
    one = Tariff(tuple(price for price in tariff.prices if price.per is unit))
    return one.cost(Usage(**{used[unit]: tokens})).usd


def tariff_of(db: sa.Connection, endpoint: EndpointSettings) -> Tariff:
    """The endpoint's own prices, each with the moment since which it holds."""
    return prices.history(db, f"endpoint:{endpoint.name}")


def by_tag(of: Sequence[Window], cost: Cost, tariff: Tariff) -> list[dict[str, Any]]:
    """Whose the tokens were, and which share of the cost that is, as JSON: the largest share first, what carries no tag last.

    Where the endpoint is billed by the token, a tag's tokens at their prices; reserved capacity is shared out by tokens, in and out alike.
    Empty where no request carries a tag.
    """
    tags: dict[str, dict[str, float]] = {}
    for window in of:
        for name, value in window.counts.items():
            counter, tag = tag_of(name)
            if tag is not None:
                weight = tags.setdefault(tag, {"tokens": 0.0, "weight": 0.0})
                weight["tokens"] += value if counter in _TOKENS else 0.0
                weight["weight"] += _weight(counter, value, tariff.at(window.start))
    whole = sum(_weight(name, w.count(name) or 0.0, tariff.at(w.start)) for w in of for name in _COUNTED)
    tokens = sum(w.count(name) or 0.0 for w in of for name in _TOKENS)
    if not tags or not whole:
        return []
    whole = max(whole, sum(each["weight"] for each in tags.values()))
    shares = {tag: each["weight"] / whole for tag, each in tags.items()}
    rest = {"tokens": max(0.0, tokens - sum(each["tokens"] for each in tags.values()))}
    order = [*sorted(tags, key=lambda tag: (-shares[tag], tag)), None]
    left = 1.0 - sum(shares.values())
    known = None if cost.lacking else cost.usd
    return [
        {
            "tag": tag,
            "tokens": (rest if tag is None else tags[tag])["tokens"],
            "share": (share := max(0.0, left) if tag is None else shares[tag]),
            "usd": None if known is None else known * share,
        }
        for tag in order
    ]


def _weight(counter: str, tokens: float, tariff: Tariff) -> float:
    """What tokens of one counter weigh in the cost: their price where they have one, else one a token. Cached ones are prompt tokens too,
    and take off what they are cheaper."""
    by = {price.per: price.usd for price in tariff.prices if price.per in _KINDS.values()}
    if not by:
        return tokens if counter in _TOKENS else 0.0
    fresh, out = by.get(Unit.INPUT_1K, 0.0), by.get(Unit.OUTPUT_1K, 0.0)
    each = {
        "prompt_tokens": fresh,
        "output_tokens": out,
        "cached_prompt_tokens": by.get(Unit.CACHED_INPUT_1K, fresh) - fresh,
    }
    return tokens * each.get(counter, 0.0)


def of_endpoint(
    db: sa.Connection, settings: Settings, endpoint: EndpointSettings, start: float, end: float
) -> dict[str, Any]:
    """What was spent on one endpoint from ``start`` to ``end`` (Unix seconds), as JSON. What is not known stands under ``lacking``."""
    read = rows(db, settings, endpoint, start, end)
    observed = [w for w in read if w.coverage > 0]
    cost = spent(db, read)
    unseen_h = max(0.0, (end - start - sum(w.duration_s for w in read)) / 3600)
    prompt, output = (total(observed, name) for name in _TOKENS)
    requests = total(observed, "requests")
    lacking = list(cost.lacking)
    if unseen_h > 0.01:
        lacking.append("hours without a window")
    tariff = tariff_of(db, endpoint)
    kinds = by_kind(observed, tariff)
    return {
        "endpoint": endpoint.name,
        "usd": cost.usd,
        "charged_usd": total(observed, "billed_usd"),
        "lacking": lacking,
        "hours_without_a_window": unseen_h,
        "requests": requests,
        "tokens": {kind: {"tokens": found.tokens, "usd": found.usd} for kind, found in kinds.items()},
        "usd_per_1k_tokens": per_1k(cost, prompt, output),
        "by_tag": by_tag(observed, cost, tariff),
        "usd_per_request": None if cost.lacking else per_request(cost.usd, requests),
    }


def at_objective(store: Store, settings: Settings, endpoint: EndpointSettings, now: float) -> dict[str, Any]:
    """US dollars per 1,000 tokens at the highest rate at which the present shape still meets the objective, as JSON; or why that is not
    known. By the best fit, under the mix of tokens of the last hour (``policy.evidence_s``)."""
    unknown = {"requests_per_s": None, "usd_per_1k_tokens": None, "why": ""}
    found = predictions.evidence(store, settings, endpoint.name, endpoint.policy.evidence_s, now)
    per_hour = found.catalogue.per_hour(found.shape)
    if per_hour is None:
        return unknown | {"why": "the price of its shape is not known by the hour"}
    try:
        on = predictions.question(found, endpoint.wanted(), seed=settings.decide.seed)
        if not isinstance(on.calibrated, CalibratedEngine):
            return unknown | {"why": f"an endpoint of kind {endpoint.kind} is not replayed request by request"}
        rate = limit_rate(
            found.shape, on.workload, on.calibrated,
            objective=on.basis.objective, base_shape=found.shape, hardware=found.catalogue.hardware,
        )  # fmt: skip
    except CannotPredict as refused:
        return unknown | {"why": refused.detail}
    if not rate:
        return unknown | {"why": "not even a hundredth of the load would meet the objective"}
    each = float(on.workload.prompt_tokens.mean() + on.workload.output_tokens.mean())
    return {"requests_per_s": rate, "usd_per_1k_tokens": per_1k_tokens(per_hour, rate * 3600 * each), "why": ""}
