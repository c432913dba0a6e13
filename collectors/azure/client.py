"""One client for each subscription: tokens, limits, pages and long operations of ARM, and Azure Monitor's batches.

All endpoints of a subscription share it. It waits for nobody: who is asked to come back later is told so (``throttled``, with the
seconds), and asks nobody until then. A token goes to the address that it is for and to no other, also where ARM's own answer names one.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError, of_error, refusal, retry_after
from collectors.clock import Clock
from collectors.credentials import Credential
from collectors.http import HttpAnswer, HttpCall
from collectors.sessions import Sessions

ML_VERSION = "2024-10-01"
AUTOSCALE_VERSION = "2022-10-01"
RESOURCES_VERSION = "2021-04-01"
PERMISSIONS_VERSION = "2022-04-01"
COMPUTE_VERSION, SKUS_VERSION, AKS_VERSION = "2026-04-01", "2021-07-01", "2026-08-01"
COGNITIVE_VERSION = "2025-09-01"
METRICS_VERSION = "2024-02-01"
_TIMEOUT_S = 20.0
#: Requests of one subscription that are under way at once: far below ARM's own limits.
_AT_ONCE = 8
_MOST_PAGES = 1000
#: After an answer of 429 that does not say how long.
_THROTTLED_S = 10.0


@dataclass(frozen=True, slots=True)
class AcceptedWrite:
    """A write that was taken: what there is now, and how to follow what is still to come."""

    body: Mapping[str, Any]
    handle: Mapping[str, str]
    """Where the long operation is followed: ``status`` or ``result``. Empty where all is done."""
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class OperationState:
    """How far a long operation is."""

    state: Literal["running", "succeeded", "failed"]
    error: AzureError | None = None
    again_in_s: float | None = None


class AzureClient:
    """Raises ``AzureError`` and nothing else."""

    def __init__(self, subscription: str, account: AzureAccount, http: HttpCall, clock: Clock) -> None:
        """Raises CollectError ``credentials`` where the account needs a package that is not there."""
        self.subscription = subscription
        self.account = account
        self._http = http
        self._clock = clock
        self._arm, self._metrics = account.credentials()
        self._seats = asyncio.Semaphore(_AT_ONCE)
        self._not_before: dict[str, float] = {}
        self.sent = 0
        """Requests, for those who count."""

    @property
    def clock(self) -> Clock:
        return self._clock

    async def get(self, path: str, version: str, **query: str) -> dict[str, Any]:
        """One resource."""
        return _object(await self._arm_call("GET", self._url(path, version, query)), f"GET {path}")

    async def pages(self, path: str, version: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        url: str | None = self._url(path, version, query)
        for _ in range(_MOST_PAGES):
            if url is None:
                return
            body = _object(await self._arm_call("GET", url), f"GET {path}")
            for item in body.get("value") or ():
                if isinstance(item, dict):
                    yield item
            url = body.get("nextLink") or None
        raise AzureError("invalid", f"GET {path}: more than {_MOST_PAGES} pages, so probably a loop")

    async def post(self, path: str, version: str, body: Any = None) -> dict[str, Any]:
        """An action that only reads, such as listKeys."""
        return _object(await self._arm_call("POST", self._url(path, version, {}), body), f"POST {path}")

    async def query(self, path: str, version: str, body: Any) -> AsyncIterator[dict[str, Any]]:
        """The answers to a question that is posted, page after page: each page's address is posted to again."""
        url: str | None = self._url(path, version, {})
        for _ in range(_MOST_PAGES):
            if url is None:
                return
            answer = _object(await self._arm_call("POST", url, body), f"POST {path}")
            yield answer
            url = (answer.get("properties") or {}).get("nextLink") or None
        raise AzureError("invalid", f"POST {path}: more than {_MOST_PAGES} pages, so probably a loop")

    async def write(
        self, method: str, path: str, version: str, body: Any = None, *, token: str = "", etag: str | None = None
    ) -> AcceptedWrite:
        """A PUT, PATCH, DELETE, or an action that changes something.

        token: what the operation log may be searched for, the same when it is sent again. etag: of what it is written over; of another
        one Azure refuses it (``drift``).
        """
        headers = {"x-ms-client-request-id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"flyball:{token}"))} if token else {}
        headers |= {"if-match": etag} if etag is not None else {}
        answer = await self._arm_call(method, self._url(path, version, {}), body, headers)
        handle = {
            name: answer.headers[header]
            for name, header in (("status", "azure-asyncoperation"), ("result", "location"))
            if answer.headers.get(header)
        }
        text = answer.body.strip()
        return AcceptedWrite(_object(answer, f"{method} {path}") if text else {}, handle, retry_after(answer.headers))

    async def operation(self, handle: Mapping[str, str]) -> OperationState:
        """How far the long operation of a handle is. One that Azure has forgotten has ended: look at the resource."""
        url = handle.get("status") or handle.get("result")
        if not url:
            return OperationState("succeeded")
        try:
            answer = await self._arm_call("GET", url)
        except AzureError as error:
            if error.kind == "missing":
                return OperationState("succeeded")
            if "status" not in handle and error.kind in ("invalid", "quota", "capacity", "conflict"):
                return OperationState("failed", error)  # the result's address answers with the error itself
            raise
        if answer.status == 202:
            return OperationState("running", again_in_s=retry_after(answer.headers))
        body = _object(answer, f"GET {urlsplit(url).path}") if answer.body.strip() else {}
        status = str(body.get("status", "Succeeded")) if handle.get("status") else "Succeeded"
        if status in ("Failed", "Canceled"):
            return OperationState("failed", of_error(body.get("error") or {"code": status}, "the operation"))
        if status != "Succeeded":
            return OperationState("running", again_in_s=retry_after(answer.headers))
        return OperationState("succeeded")

    async def metrics(
        self,
        region: str,
        resources: Sequence[str],
        *,
        namespace: str,
        names: Sequence[str],
        start: str,
        end: str,
        filter_: str,
        aggregation: str = "average,maximum",
    ) -> list[dict[str, Any]]:
        """Azure Monitor's batch: one-minute values of up to 50 resources of one region, one answer for each."""
        base = self.account.metrics_url.replace("{region}", region)
        query = {
            "api-version": METRICS_VERSION,
            "starttime": start,
            "endtime": end,
            "interval": "PT1M",
            "metricnamespace": namespace,
            "metricnames": ",".join(names),
            "aggregation": aggregation,
        } | ({"filter": filter_, "top": "1000"} if filter_ else {})  # fmt: skip
        url = f"{base}/subscriptions/{self.subscription}/metrics:getBatch?{urlencode(query, quote_via=quote)}"
        answer = await self._call(self._metrics, "metrics", "POST", url, {"resourceids": list(resources)}, {})
        values = _object(answer, "metrics:getBatch").get("values")
        if not isinstance(values, list):
            raise AzureError("invalid", "metrics:getBatch answered without `values`")
        return [value for value in values if isinstance(value, dict)]

    # -- one request ---------------------------------------------------------------------------------------------------

    def _url(self, path: str, version: str, query: Mapping[str, str]) -> str:
        text = urlencode({"api-version": version, **query}, safe="$", quote_via=quote)
        return f"{self.account.arm_url.rstrip('/')}{quote(path)}?{text}"

    async def _arm_call(
        self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        own, there = urlsplit(self.account.arm_url), urlsplit(url)
        if (own.scheme, own.netloc.lower()) != (there.scheme, there.netloc.lower()):
            text = f"Azure's answer leads to {there.scheme}://{there.netloc}, which is not {self.account.arm_url}: not followed"
            raise AzureError("invalid", text)
        bucket = "reads" if method in ("GET", "POST") else "writes"
        return await self._call(self._arm, bucket, method, url, body, headers or {})

    async def _call(
        self, credential: Credential, bucket: str, method: str, url: str, body: Any, headers: Mapping[str, str]
    ) -> HttpAnswer:
        what = f"{method} {urlsplit(url).path}"
        left = self._not_before.get(bucket, 0.0) - self._clock.monotonic()
        if left > 0:
            raise AzureError("throttled", f"{what}: Azure asked to wait {left:.0f} s more", retry_after_s=left)
        content = b"" if body is None else json.dumps(body).encode()
        async with self._seats:
            try:
                signed = await credential.headers(method, url, content)
                kind = {"content-type": "application/json"} if body is not None else {}
                self.sent += 1
                answer = await self._http(
                    method, url, headers={**headers, **kind, **signed}, content=content or None, timeout_s=_TIMEOUT_S
                )
            except (OSError, ValueError) as error:
                at = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
                raise AzureError("unreachable", f"{at}, {what}: {error}") from error
        if answer.status < 400:
            return answer
        refused = refusal(answer, what)
        if refused.kind == "throttled":
            wait = _THROTTLED_S if refused.retry_after_s is None else refused.retry_after_s
            self._not_before[bucket] = self._clock.monotonic() + wait
            refused.retry_after_s = wait
        raise refused


def shared(sessions: Sessions, subscription: str, account: AzureAccount, http: HttpCall, clock: Clock) -> AzureClient:
    """The subscription's one client. Raises CollectError ``credentials``."""
    return sessions.get(("azure", subscription, account.key()), lambda: AzureClient(subscription, account, http, clock))


def _object(answer: HttpAnswer, what: str) -> dict[str, Any]:
    try:
        body = json.loads(answer.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise AzureError("invalid", f"{what} answered {answer.status} with something that is no JSON object")
    return body
