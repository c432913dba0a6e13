"""What things cost, in US dollars: the only place that computes money.

A price is per something (``Unit``), and says whose it is and as of when. A cost is a tariff's prices times what was used; where a price
or a quantity is not known, the cost says which, and a total says of whom. Unknown is never 0. Owns no price list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from collectors.window import Window

#: A share of an interval from which on it counts as all of it.
_WHOLE = 0.999
#: Of a month, as the vendors' calculators have it.
HOURS_PER_MONTH = 730.0


class Unit(StrEnum):
    """What a price is for."""

    HOUR = "hour"
    """Of the whole endpoint, whatever it runs on."""
    REPLICA_HOUR = "replica_hour"
    """Of a replica or instance that is there, used or not."""
    BUSY_HOUR = "busy_hour"
    """Of an instance with at least one request."""
    REQUEST_HOUR = "request_hour"
    """Of one request being served."""
    PTU_HOUR = "ptu_hour"
    INPUT_1K = "1k_input_tokens"
    """Prompt tokens that no cache held; those that one held too, where they have no price of their own."""
    CACHED_INPUT_1K = "1k_cached_input_tokens"
    OUTPUT_1K = "1k_output_tokens"


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used. None: not known, which is not 0."""

    hours: float | None = None
    replica_hours: float | None = None
    busy_hours: float | None = None
    request_hours: float | None = None
    ptu_hours: float | None = None
    prompt_tokens: float | None = None
    cached_prompt_tokens: float | None = None
    """Of the prompt tokens. None is taken for none: where a cache is not told of, nothing is billed as cached."""
    output_tokens: float | None = None
    requests: float | None = None

    @classmethod
    def of(cls, window: Window, replicas: float | None = None, ptus: float | None = None) -> Usage:
        """Of an endpoint over a window, with so many replicas or units of provisioned throughput; None: not known.

        Tokens that were seen in a part of it only are not known.
        """
        hours = window.duration_s / 3600.0
        counted = {
            name: window.count(name) if window.coverage_of(name) >= _WHOLE else None
            for name in ("prompt_tokens", "cached_prompt_tokens", "output_tokens", "requests")
        }
        reserved = {
            name: None if count is None else count * hours
            for name, count in (("replica_hours", replicas), ("ptu_hours", ptus))
        }
        return cls(hours=hours, **reserved, **counted)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for one unit. Raises ValueError below 0."""

    usd: float
    per: Unit
    source: str = "settings"
    """Who says so."""
    as_of: str = ""
    """When that was read, as a date."""
    since: float = 0.0
    """It holds from then on; Unix seconds."""

    def __post_init__(self) -> None:
        if not 0 <= self.usd < float("inf"):
            raise ValueError(f"usd_per_{self.per} must be US dollars, 0 or more, not {self.usd}")


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars, or what they lack."""

    usd: float | None
    lacking: tuple[str, ...] = ()
    """What is not known: ``price``, or a quantity's name."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices that hold together."""

    prices: tuple[Price, ...] = ()

    @classmethod
    def of(cls, prices: Mapping[Unit, float | None], source: str = "settings") -> Tariff:
        """Those that are known. Raises ValueError."""
        return cls(tuple(Price(usd, unit, source) for unit, usd in prices.items() if usd is not None))

    def at(self, moment: float) -> Tariff:
        """What holds at a moment (Unix seconds): of each unit the latest price since then. None of a unit that had none yet."""
        held: dict[Unit, Price] = {}
        for price in sorted(self.prices, key=lambda p: p.since):
            if price.since <= moment:
                held[price.per] = price
        return Tariff(tuple(held.values()))

    def cost(self, used: Usage) -> Cost:
        """Every priced unit times what was used of it. Nothing is priced: unknown."""
        if not self.prices:
            return Cost(None, ("price",))
        quantities = self._quantities(used)
        lacking = tuple(dict.fromkeys(name for p in self.prices for name in quantities[p.per][1]))
        if lacking:
            return Cost(None, lacking)
        return Cost(sum(p.usd * (quantities[p.per][0] or 0.0) for p in self.prices))

    def _quantities(self, used: Usage) -> dict[Unit, tuple[float | None, tuple[str, ...]]]:
        """Of each unit, and what that is not known of."""
        cached = used.cached_prompt_tokens or 0.0
        apart = any(p.per is Unit.CACHED_INPUT_1K for p in self.prices)
        fresh = None if used.prompt_tokens is None else used.prompt_tokens - (cached if apart else 0.0)
        known = {
            Unit.HOUR: ("hours", used.hours, 1.0),
            Unit.REPLICA_HOUR: ("replica_hours", used.replica_hours, 1.0),
            Unit.BUSY_HOUR: ("busy_hours", used.busy_hours, 1.0),
            Unit.REQUEST_HOUR: ("request_hours", used.request_hours, 1.0),
            Unit.PTU_HOUR: ("ptu_hours", used.ptu_hours, 1.0),
            Unit.INPUT_1K: ("prompt_tokens", fresh, 1e-3),
            Unit.CACHED_INPUT_1K: ("cached_prompt_tokens", cached, 1e-3),
            Unit.OUTPUT_1K: ("output_tokens", used.output_tokens, 1e-3),
        }
        return {
            unit: (None, (name,)) if value is None else (value * share, ())
            for unit, (name, value, share) in known.items()
        }


@dataclass(frozen=True, slots=True)
class Total:
    """A sum of costs: what is known of it, and whose part is not."""

    usd: float | None
    """None: nothing of it is known."""
    lacking: tuple[str, ...] = ()
    """Names of those of whom it is not, or not wholly, known."""

    @classmethod
    def of(cls, costs: Mapping[str, Cost]) -> Total:
        known = [c.usd for c in costs.values() if c.usd is not None]
        lacking = tuple(name for name, c in costs.items() if c.usd is None or c.lacking)
        return cls(sum(known) if known or not costs else None, lacking)

    @property
    def whole(self) -> bool:
        return not self.lacking


def per_month(usd_per_hour: float | None) -> float | None:
    return None if usd_per_hour is None else usd_per_hour * HOURS_PER_MONTH


def per_1k_tokens(usd: float | None, tokens: float | None) -> float | None:
    return None if usd is None or not tokens else 1000.0 * usd / tokens


def per_request(usd: float | None, requests: float | None) -> float | None:
    return None if usd is None or not requests else usd / requests


def parts(costs: Iterable[Cost]) -> Cost:
    """One cost of several of the same thing: what is known of it, and everything that lacks."""
    each = list(costs)
    known = [c.usd for c in each if c.usd is not None]
    return Cost(sum(known) if known else None, tuple(dict.fromkeys(name for c in each for name in c.lacking)))
