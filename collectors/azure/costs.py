"""Azure's costs: a Cost Management query of one scope, by the day. It comes 8 to 24 hours late, and is strictly limited in rate.

Azure OpenAI's deployments are no dimension of it: there only the account's cost as a whole can be had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from collectors.azure.client import AzureClient
from collectors.azure.errors import AzureError
from collectors.billing import Bill, BilledDay, date_of, day_of
from collectors.window import CollectError

_VERSION = "2025-03-01"


class AzureCosts:
    """See ``collectors.billing.CostReport``."""

    vendor: ClassVar[str] = "azure"

    def __init__(self, client: AzureClient, scope: str, resource: str | None = None) -> None:
        """scope: ``/subscriptions/ID`` or a resource group's id. resource: of these, the one that is asked for, by its id."""
        self._client, self._scope, self._resource = client, scope.rstrip("/"), resource

    async def days(self, start: float, end: float) -> list[BilledDay]:
        bill = Bill(start, end)
        try:
            path = f"{self._scope}/providers/Microsoft.CostManagement/query"
            async for body in self._client.query(path, _VERSION, self._query(start, end)):
                columns, rows = _table(body)
                for row in rows:
                    _add(bill, dict(zip(columns, row, strict=True)))
        except AzureError as error:
            raise CollectError(error.kind, str(error)) from error
        return bill.days

    def _query(self, start: float, end: float) -> dict[str, Any]:
        """Days of ``start``..``end``; the query's own last day is within it."""
        dataset: dict[str, Any] = {
            "granularity": "Daily",
            "aggregation": {"totalCost": {"name": "Cost", "function": "Sum"}},
        }
        if self._resource is not None:
            only = {"name": "ResourceId", "operator": "In", "values": [self._resource]}
            dataset["filter"] = {"dimensions": only}
        period = {"from": f"{date_of(start)}T00:00:00Z", "to": f"{date_of(end - 1)}T23:59:59Z"}
        return {"type": "ActualCost", "timeframe": "Custom", "timePeriod": period, "dataset": dataset}


def _add(bill: Bill, row: Mapping[str, Any]) -> None:
    lacking = [name for name in ("Cost", "UsageDate", "Currency") if name not in row]
    if lacking:
        raise CollectError("protocol", f"the query's answer has no column {', '.join(lacking)}")
    bill.add(day_of(row["UsageDate"]), row["Cost"], row["Currency"])


def _table(body: Mapping[str, Any]) -> tuple[list[str], Sequence[Sequence[Any]]]:
    """Columns and rows of an answer. Raises AzureError ``invalid``."""
    found = body.get("properties") or {}
    columns, rows = found.get("columns"), found.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise AzureError("invalid", "the cost query answered without columns and rows")
    return [str(column.get("name")) for column in columns], rows
