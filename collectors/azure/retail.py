"""Azure's public price list, asked for by a meter's id (what Azure itself names as the meters of a model) or by a VM size.

No name of a meter is read for its meaning: they are not spelt in one way. A meter without exactly one price is not known.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from collectors.azure.errors import AzureError
from collectors.http import HttpCall

PRICES_URL = "https://prices.azure.com"
_VERSION = "2023-01-01-preview"
#: So many meters are asked for at once.
_AT_ONCE = 10
_MOST_PAGES = 20


@dataclass(frozen=True, slots=True)
class MeterPrice:
    """US dollars, at the list price of everybody: no agreement, no reservation."""

    meter: str
    name: str
    usd: float
    per: str
    """Azure's own word for the unit: ``1K``, ``1M``, ``1 Hour``, ``1/Hour``."""
    since: str
    """From when on it holds, as a date."""

    def __str__(self) -> str:
        return f"{self.name}: ${self.usd:g} per {self.per}, list price since {self.since}"


async def meter_prices(http: HttpCall, meters: Sequence[str], url: str = PRICES_URL) -> dict[str, MeterPrice]:
    """By meter id, of those that have exactly one price. Raises ``AzureError``."""
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for first in range(0, len(meters), _AT_ONCE):
        for row in await _rows(http, meters[first : first + _AT_ONCE], url):
            if row.get("type") == "Consumption" and not row.get("tierMinimumUnits"):
                rows[str(row.get("meterId"))].append(row)
    found = {}
    for meter in meters:
        priced = {(row.get("retailPrice"), row.get("unitOfMeasure")): row for row in rows.get(meter, ())}
        if len(priced) == 1:
            row = next(iter(priced.values()))
            usd = row.get("retailPrice")
            if isinstance(usd, int | float) and usd > 0 and row.get("currencyCode") == "USD":
                since = str(row.get("effectiveStartDate", ""))[:10]
                found[meter] = MeterPrice(
                    meter, str(row.get("meterName")), float(usd), str(row.get("unitOfMeasure")), since
                )
    return found


async def machine_price(http: HttpCall, region: str, size: str, url: str = PRICES_URL) -> float | None:
    """US dollars an hour of a Linux machine, pay as you go. None: the list does not have exactly one such row. Raises ``AzureError``."""
    where = f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}' and armSkuName eq '{size}' and priceType eq 'Consumption'"
    rows = [row for row in await _listed(http, where, url) if _plain_linux(row)]
    prices = {row.get("retailPrice") for row in rows}
    usd = prices.pop() if len(prices) == 1 else None
    return float(usd) if isinstance(usd, int | float) and usd > 0 else None


def _plain_linux(row: Mapping[str, Any]) -> bool:
    """No Windows, no host of one's own, no spot price; the meter of its own region, by the hour and from the first one on."""
    product, names = str(row.get("productName", "")), f"{row.get('skuName', '')} {row.get('meterName', '')}"
    other = any(word in product for word in ("Windows", "Dedicated", "CloudServices")) or any(
        w in names for w in ("Spot", "Low Priority")
    )
    whole = (
        row.get("type") == "Consumption" and row.get("unitOfMeasure") == "1 Hour" and not row.get("tierMinimumUnits")
    )
    return whole and not other and row.get("currencyCode") == "USD" and row.get("isPrimaryMeterRegion", True) is True


async def _rows(http: HttpCall, meters: Sequence[str], url: str) -> list[Mapping[str, Any]]:
    wanted = " or ".join(f"meterId eq '{meter}'" for meter in meters)
    return await _listed(http, f"priceType eq 'Consumption' and ({wanted})", url)


async def _listed(http: HttpCall, where: str, url: str) -> list[Mapping[str, Any]]:
    query = {"api-version": _VERSION, "currencyCode": "'USD'", "$filter": where}
    at: str | None = f"{url.rstrip('/')}/api/retail/prices?{urlencode(query, safe='$', quote_via=quote)}"
    rows: list[Mapping[str, Any]] = []
    for _ in range(_MOST_PAGES):
        if at is None:
            break
        if urlsplit(at).netloc != urlsplit(url).netloc:
            raise AzureError("invalid", f"the price list leads to {urlsplit(at).netloc}: not followed")
        try:
            answer = await http("GET", at, timeout_s=20.0)
            body = json.loads(answer.body) if answer.status < 400 else None
        except (OSError, ValueError) as error:
            raise AzureError("unreachable", f"{url}, the price list: {error}") from error
        if not isinstance(body, dict):
            raise AzureError("unreachable", f"{url}, the price list, answered {answer.status}")
        rows += [row for row in body.get("Items") or () if isinstance(row, dict)]
        at = body.get("NextPageLink") or None
    return rows
