"""OpenAI's costs: ``GET /v1/organization/costs``, by the day, with an admin key. Source: OpenAI's API specification."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlencode

from pydantic import SecretStr

from collectors.billing import DAY_S, MOST_PAGES, Bill, BilledDay, fetched, items, part
from collectors.http import HttpCall
from collectors.window import CollectError

URL = "https://api.openai.com"
#: Buckets of a page at most.
_LIMIT = 31


class OpenAICosts:
    """See ``collectors.billing.CostReport``."""

    vendor: ClassVar[str] = "openai"

    def __init__(self, http: HttpCall, key: SecretStr, project: str | None = None, url: str = URL) -> None:
        """project: of the organization's projects, the one that is asked for. None: all of them."""
        self._http, self._key, self._project, self._url = http, key, project, url.rstrip("/")

    async def days(self, start: float, end: float) -> list[BilledDay]:
        bill, page = Bill(start, end), ""
        for _ in range(MOST_PAGES):
            query = {"start_time": int(start), "end_time": int(end), "bucket_width": "1d", "limit": _LIMIT}
            more = {"project_ids": self._project} if self._project else {}
            text = urlencode({**query, **more, **({"page": page} if page else {})})
            body = await fetched(self._http, f"{self._url}/v1/organization/costs?{text}", self._headers())
            for bucket in items(body, "data"):
                at = bucket.get("start_time")
                if not isinstance(at, int | float):
                    raise CollectError("protocol", f"a bucket of the costs begins at {at!r}")
                day = at // DAY_S * DAY_S
                bill.told(day)
                for item in items(bucket, "results"):
                    amount = part(item, "amount")
                    bill.add(day, amount.get("value"), amount.get("currency"))
            page = str(body.get("next_page") or "")
            if not body.get("has_more") or not page:
                return bill.days
        raise CollectError("protocol", f"the costs have more than {MOST_PAGES} pages, so probably a loop")

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key.get_secret_value()}"}
