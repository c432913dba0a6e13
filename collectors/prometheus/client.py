"""The HTTP API of Prometheus, as far as Flyball asks: range queries, series, and its errors in Flyball's words.

Owns the envelope and the credentials. It knows nothing of what a query means.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from collectors.http import HttpCall, check_status
from collectors.window import CollectError

Labels = Mapping[str, str]
#: An answer of a fleet's histograms: 2,000 endpoints of 25 buckets are about 10 MB.
_MAX_BYTES = 256 * 2**20
#: Answers larger than this are read on a thread, so that the event loop goes on.
_LARGE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Series:
    """One row of an answer: its labels, and values by Unix seconds. NaN and infinite values are left out: they say nothing."""

    labels: Labels
    values: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class PrometheusAccount:
    """One store, as one reader: what a client is shared by."""

    url: str
    """Base address, without a trailing slash; with the tenant's path where there is one."""
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tenant: str | None = None
    """X-Scope-OrgID."""

    def headers(self) -> dict[str, str]:
        headers = {} if self.tenant is None else {"x-scope-orgid": self.tenant}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        elif self.username is not None:
            pair = f"{self.username}:{self.password or ''}".encode()
            headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers


class PrometheusClient:
    """Few queries at once, each within its deadline."""

    def __init__(self, account: PrometheusAccount, http: HttpCall, timeout_s: float, concurrency: int = 4) -> None:
        self._account = account
        self._http = http
        self._timeout_s = timeout_s
        self._seats = asyncio.Semaphore(concurrency)

    async def range(self, query: str, start: float, end: float, step_s: float) -> list[Series]:
        """``query`` at ``start``, ``start + step_s`` ... ``end``.

        Raises CollectError: bad_query, too_many_samples, too_large, and those of ``Http``.
        """
        form = {"query": query, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s:g}"}
        data = await self._asked("/api/v1/query_range", form)
        if not isinstance(data, dict) or data.get("resultType") != "matrix":
            raise _broken("a range query is answered by a matrix")
        return [_series(row) for row in _listed(data.get("result"))]

    async def series(self, selector: str, start: float, end: float) -> list[Labels]:
        """The label sets of all series that match. Raises CollectError as ``range``."""
        form = {"match[]": selector, "start": f"{start:.3f}", "end": f"{end:.3f}"}
        data = await self._asked("/api/v1/series", form)
        return [_labels(row) for row in _listed(data)]

    async def _asked(self, path: str, form: Mapping[str, str]) -> Any:
        headers = {**self._account.headers(), "content-type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        async with self._seats:
            try:
                answer = await self._http(
                    "POST",
                    self._account.url + path,
                    headers=headers,
                    content=body,
                    timeout_s=self._timeout_s,
                    max_bytes=_MAX_BYTES,
                )
            except (OSError, ValueError) as error:
                raise error.__cause__ if isinstance(error.__cause__, CollectError) else _broken(str(error)) from error
        large = len(answer.body) > _LARGE
        said = await asyncio.to_thread(_json, answer.body) if large else _json(answer.body)
        if not isinstance(said, dict) or "status" not in said:
            check_status(answer.status, answer.url, answer.body)
            raise _broken(f"{path} is not answered as the API of Prometheus does: check the url")
        if said["status"] != "success":
            raise _refused(answer.status, said)
        return said.get("data")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _refused(status: int, body: Mapping[str, Any]) -> CollectError:
    """The store's own words for what it did not like, and what to do."""
    kind, said = str(body.get("errorType", "")), str(body.get("error", ""))
    if (
        "too many samples" in said
        or "cannot select more than" in said
        or "maximum number of" in said
        or "matches too many" in said
    ):
        text = f"the store refuses: {said}. Narrow the labels, shorten step_s, or raise its limit (query.max-samples)"
        return CollectError("too_many_samples", text)
    if kind in ("timeout", "canceled"):
        return CollectError("timeout", f"the store did not finish the query: {said}")
    if kind in ("bad_data", "execution") or status in (400, 422):
        return CollectError("bad_query", f"the store does not take the query: {said}")
    return CollectError(f"http_{status // 100}xx", f"the store answered {status}, {kind}: {said}")


def _listed(rows: Any) -> Sequence[Any]:
    if not isinstance(rows, list):
        raise _broken("the result is no list")
    return rows


def _labels(row: Any) -> Labels:
    if not isinstance(row, dict) or not all(isinstance(text, str) for text in row.values()):
        raise _broken("labels are not text")
    return row


def _series(row: Any) -> Series:
    if not isinstance(row, dict) or not isinstance(row.get("values"), list):
        raise _broken("a series has no values")
    try:
        pairs = [(float(at), float(text)) for at, text in row["values"]]
    except (TypeError, ValueError) as error:
        raise _broken(f"a value is no number: {error}") from error
    return Series(_labels(row.get("metric")), {at: value for at, value in pairs if math.isfinite(value)})


def _broken(what: str) -> CollectError:
    return CollectError("protocol", f"the store's answer cannot be read: {what}")
