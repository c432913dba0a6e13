"""What a LiteLLM proxy reckons: ``GET /spend/logs`` with dates, which adds its log up by the day. It needs the proxy's database."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlencode

from pydantic import SecretStr

from collectors.billing import Bill, BilledDay, date_of, day_of, fetched, items, part
from collectors.http import HttpCall


class LiteLLMSpend:
    """See ``collectors.billing.CostReport``."""

    vendor: ClassVar[str] = "litellm"

    def __init__(self, http: HttpCall, key: SecretStr, url: str, model: str | None = None) -> None:
        """model: of the proxy's models, the one that is asked for. None: all of them."""
        self._http, self._key, self._url, self._model = http, key, url.rstrip("/"), model

    async def days(self, start: float, end: float) -> list[BilledDay]:
        # The last date counts as its first moment: the day that begins there is not told.
        text = urlencode({"start_date": date_of(start), "end_date": date_of(end)})
        headers = {"authorization": f"Bearer {self._key.get_secret_value()}"}
        body = await fetched(self._http, f"{self._url}/spend/logs?{text}", headers)
        bill = Bill(start, end)
        for row in items({"days": body}, "days"):
            spend = row.get("spend") if self._model is None else part(row, "models").get(self._model, 0.0)
            bill.add(day_of(row.get("startTime")), spend, "usd")
        return bill.days
