"""Instance types: what each is made of, and what it costs on demand by Amazon's price list. Unknown stays unknown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from collectors.aws.client import AwsClient
from collectors.aws.errors import AwsError
from collectors.sessions import Sessions

_KEPT_S = 86_400.0
#: Where the price list may be asked.
_PRICES_AT = "us-east-1"
_ML = "ml."
Service = Literal["ec2", "sagemaker"]
#: What makes an EC2 price the one of a Linux machine that runs, on shared hardware.
_EC2 = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "capacitystatus": "Used",
    "preInstalledSw": "NA",
    "licenseModel": "No License required",
}


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One type of a region. SageMaker's ``ml.`` types are made of the EC2 types of their name."""

    name: str
    cpus: int
    memory_gb: float
    """10^9 bytes."""
    accelerator: str | None
    """As Amazon names it: A10G, L4, H100."""
    accelerator_count: int


class InstanceTypeCatalogue:
    """Of one account and region; a day old at most. Raises ``AwsError``."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self._types: dict[str, tuple[float, InstanceType | None]] = {}
        self._prices: dict[tuple[Service, str], tuple[float, float | None]] = {}
        self._asking = asyncio.Lock()

    async def types(self, names: Iterable[str]) -> Mapping[str, InstanceType]:
        """By name, with ``ml.`` where it was asked with it. What may not be asked, or is not there, is absent."""
        wanted = sorted({name.removeprefix(_ML) for name in names})
        async with self._asking:
            now = self._client.clock.monotonic()
            unknown = [n for n in wanted if n not in self._types or now - self._types[n][0] > _KEPT_S]
            if unknown:
                found = await self._ask(unknown)
                self._types |= {name: (now, found.get(name)) for name in unknown}
        known = {name: self._types[name][1] for name in wanted}
        return {name: made for name in names if (made := known.get(name.removeprefix(_ML))) is not None}

    async def _ask(self, names: Sequence[str]) -> dict[str, InstanceType]:
        """By a filter: one type that is not there costs the others nothing."""
        filters = [{"Name": "instance-type", "Values": list(names)}]
        try:
            rows = await self._client.items("ec2", "DescribeInstanceTypes", "InstanceTypes", Filters=filters)
        except AwsError as error:
            if error.kind != "denied":
                raise
            return {}
        return {made.name: made for row in rows if (made := _type(row)) is not None}

    async def usd_per_hour(self, service: Service, name: str) -> float | None:
        """On demand, of one instance. None: the price list may not be asked, or tells none or several."""
        now, key = self._client.clock.monotonic(), (service, name)
        kept = self._prices.get(key)
        if kept is None or now - kept[0] > _KEPT_S:
            kept = self._prices[key] = (now, await self._price(service, name))
        return kept[1]

    async def _price(self, service: Service, name: str) -> float | None:
        if service == "ec2":
            code, named = "AmazonEC2", {"instanceType": name, **_EC2}
        else:
            code, named = "AmazonSageMaker", {"instanceName": name, "component": "Hosting"}
        named["regionCode"] = self._client.region
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in named.items()]
        try:
            rows = await self._client.items(
                "pricing", "GetProducts", "PriceList", at=_PRICES_AT, ServiceCode=code, Filters=filters
            )
        except AwsError:  # a price that is not known stops nobody
            return None
        return price_of(rows)


def price_of(rows: Sequence[Any]) -> float | None:
    """US dollars an hour out of products of the price list, each as JSON text. None unless exactly one price is there."""
    found = set()
    for row in rows:
        try:
            product = json.loads(row)
            terms = product["terms"]["OnDemand"].values()
            parts = [part for term in terms for part in term["priceDimensions"].values()]
            found |= {float(part["pricePerUnit"]["USD"]) for part in parts if part["unit"] in ("Hrs", "Hours")}
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    paid = {price for price in found if price > 0}  # rows of a reservation that covers it cost nothing more
    return paid.pop() if len(paid) == 1 else None


def catalogue(sessions: Sessions, client: AwsClient) -> InstanceTypeCatalogue:
    """The one of that client."""
    return sessions.get(("aws types", id(client)), lambda: InstanceTypeCatalogue(client))


def _type(row: Mapping[str, Any]) -> InstanceType | None:
    """None where the row lacks what a type is."""
    name, cpus = row.get("InstanceType"), (row.get("VCpuInfo") or {}).get("DefaultVCpus")
    memory = (row.get("MemoryInfo") or {}).get("SizeInMiB")
    if not (isinstance(name, str) and isinstance(cpus, int) and isinstance(memory, int)):
        return None
    gpus = [g for g in (row.get("GpuInfo") or {}).get("Gpus") or () if isinstance(g, dict)]
    count = sum(int(g.get("Count") or 0) for g in gpus)
    return InstanceType(
        name, cpus, round(memory * 2**20 / 1e9, 3), str(gpus[0].get("Name")) if len(gpus) == 1 else None, count
    )


def price_line(name: str, known: InstanceType | None, usd: float | None) -> str:
    """A line for `sizes` of the settings; what is not known is left out."""
    parts = [] if usd is None else [f"usd_per_replica_hour: {usd:g}"]
    parts += [] if known is None else [f"cpus: {known.cpus}", f"memory_gb: {known.memory_gb:g}"]
    return f"sizes: {{{name}: {{{', '.join(parts)}}}}}" if parts else f"sizes: {name} is not known, nor its price"
