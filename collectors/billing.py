"""The nouns of a vendor's bill: what it says of each day, and how its pages are read. Knows no vendor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from collectors.http import HttpAnswer, HttpCall, check_status
from collectors.window import CollectError

DAY_S = 86_400.0
#: A report that goes on for longer is probably a loop.
MOST_PAGES = 100
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class BilledDay:
    """One whole day in UTC, as the vendor has it."""

    start: float
    """Unix seconds."""
    usd: float


class CostReport(Protocol):
    """A vendor's own report of what it bills."""

    vendor: ClassVar[str]

    async def days(self, start: float, end: float) -> list[BilledDay]:
        """Whole days within ``start``..``end`` (Unix seconds), oldest first. A day that the vendor does not tell is absent, and not 0.

        Raises CollectError.
        """
        ...


class Bill:
    """Days that add up from single items. Raises CollectError ``currency`` on other money than US dollars."""

    def __init__(self, start: float, end: float) -> None:
        self._start, self._end = start, end
        self._usd: dict[float, float] = {}

    def told(self, day: float) -> None:
        """The vendor tells this day, be it with nothing."""
        if self._start <= day and day + DAY_S <= self._end:
            self._usd.setdefault(day, 0.0)

    def add(self, day: float, amount: Any, currency: Any) -> None:
        """An item of a day, in dollars."""
        if str(currency).lower() != "usd":
            raise CollectError("currency", f"the bill is in {currency!r}, and only US dollars can be compared")
        self.told(day)
        if day in self._usd:
            self._usd[day] += number(amount)

    @property
    def days(self) -> list[BilledDay]:
        return [BilledDay(day, usd) for day, usd in sorted(self._usd.items())]


def number(value: Any) -> float:
    """A finite amount, given as a number or as its text. Raises CollectError ``protocol``."""
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise CollectError("protocol", f"{value!r} is no amount of money") from error
    if not math.isfinite(found):
        raise CollectError("protocol", f"{value!r} is no amount of money")
    return found


def day_of(text: Any) -> float:
    """The start of a day in UTC, from ``2026-11-30``, ``20261130`` or a moment in RFC 3339. Raises CollectError ``protocol``."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise CollectError("protocol", f"{text!r} is no day") from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return moment.timestamp() // DAY_S * DAY_S


def date_of(at: float) -> str:
    """``2026-11-30``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


async def fetched(http: HttpCall, url: str, headers: Mapping[str, str]) -> Any:
    """The JSON that is at ``url``. Raises CollectError."""
    try:
        answer = await http("GET", url, headers=headers, timeout_s=_TIMEOUT_S)
    except OSError as error:
        raise CollectError("down", str(error)) from error
    except ValueError as error:
        raise CollectError("protocol", str(error)) from error
    check_status(answer.status, answer.url, answer.body)
    return _json(answer)


def _json(answer: HttpAnswer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise CollectError("protocol", f"{answer.url} answered with what is no JSON") from error


def part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under a name. Raises CollectError ``protocol``."""
    found = body.get(name)
    if not isinstance(found, dict):
        raise CollectError("protocol", f"the report has no object {name!r}")
    return found


def items(body: Any, name: str) -> list[Mapping[str, Any]]:
    """The list of objects under a name. Raises CollectError ``protocol``."""
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise CollectError("protocol", f"the report has no list {name!r}")
    return found
