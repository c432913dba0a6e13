"""Anthropic's costs: ``GET /v1/organizations/cost_report``, by the day, with an admin key; amounts are cents, as text."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar
from urllib.parse import urlencode

from pydantic import SecretStr

from collectors.billing import MOST_PAGES, Bill, BilledDay, day_of, fetched, items, number
from collectors.http import HttpCall
from collectors.window import CollectError

URL = "https://api.anthropic.com"
_VERSION = "2023-06-01"
_LIMIT = 31


class AnthropicCosts:
    """See ``collectors.billing.CostReport``."""

    vendor: ClassVar[str] = "anthropic"

    def __init__(self, http: HttpCall, key: SecretStr, workspace: str | None = None, url: str = URL) -> None:
        """workspace: the id of the one that is asked for. None: the whole organization."""
        self._http, self._key, self._workspace, self._url = http, key, workspace, url.rstrip("/")

    async def days(self, start: float, end: float) -> list[BilledDay]:
        bill, page = Bill(start, end), ""
        for _ in range(MOST_PAGES):
            query = {"starting_at": _moment(start), "ending_at": _moment(end), "bucket_width": "1d", "limit": _LIMIT}
            more = {"group_by[]": "workspace_id"} if self._workspace else {}
            text = urlencode({**query, **more, **({"page": page} if page else {})})
            headers = {"x-api-key": self._key.get_secret_value(), "anthropic-version": _VERSION}
            body = await fetched(self._http, f"{self._url}/v1/organizations/cost_report?{text}", headers)
            for bucket in items(body, "data"):
                day = day_of(bucket.get("starting_at"))
                bill.told(day)
                for item in items(bucket, "results"):
                    if self._workspace is None or item.get("workspace_id") == self._workspace:
                        bill.add(day, number(item.get("amount")) / 100.0, item.get("currency"))
            page = str(body.get("next_page") or "")
            if not body.get("has_more") or not page:
                return bill.days
        raise CollectError("protocol", f"the cost report has more than {MOST_PAGES} pages, so probably a loop")


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
