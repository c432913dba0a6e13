"""One client for each cluster: pages, conditional patches, dry runs, and the API server's errors in one vocabulary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal
from urllib.parse import urlencode

from collectors.clock import Clock
from collectors.http import Http, HttpAnswer, HttpCall
from collectors.kubernetes.access import Access, ClusterSettings, access
from collectors.sessions import Sessions
from collectors.window import CollectError

#: Who Flyball is in ``managedFields``. Without it the server would take the name of the HTTP library.
FIELD_MANAGER = "flyball"
Kind = Literal["conflict", "denied", "missing", "invalid", "quota", "throttled", "unreachable"]
Body = Mapping[str, Any]
_TIMEOUT_S = 20.0
_PAGE = 500
_MOST_PAGES = 1000
#: Requests of one cluster that are under way at once.
_AT_ONCE = 8
_MERGE, _STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"


class KubernetesError(CollectError):
    """What the API server refused, or that it did not answer. ``kind`` is one of ``Kind``, or ``credentials``."""

    def __init__(self, kind: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(kind, detail)
        self.retry_after_s = retry_after_s


class KubernetesClient:
    """Raises ``KubernetesError`` and nothing else."""

    def __init__(self, way: Access, http: HttpCall, clock: Clock) -> None:
        self.namespace = way.namespace
        self.clock = clock
        self._way = way
        self._own = None if way.tls is None else Http(tls=way.tls, monotonic=clock.monotonic)
        self._http = http if self._own is None else self._own.call
        self._seats = asyncio.Semaphore(_AT_ONCE)
        self._not_before = 0.0

    async def aclose(self) -> None:
        if self._own is not None:
            await self._own.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        return await self._call("GET", path)

    async def items(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        following = ""
        for _ in range(_MOST_PAGES):
            asked = {"limit": str(_PAGE), **query} | ({"continue": following} if following else {})
            body = await self._call("GET", f"{path}?{urlencode(asked)}")
            for item in body.get("items") or ():
                if isinstance(item, dict):
                    yield item
            following = str((body.get("metadata") or {}).get("continue") or "")
            if not following:
                return
        raise KubernetesError("invalid", f"GET {path}: more than {_MOST_PAGES} pages, so probably a loop")

    async def review(self, attributes: Body) -> bool:
        """Whether Flyball may do this: a question, though it is sent as a POST."""
        spec = {"resourceAttributes": dict(attributes)}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
        answer = await self._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
        return bool((answer.get("status") or {}).get("allowed"))

    async def patch(self, path: str, body: Body, *, strategic: bool = False, dry_run: bool = False) -> dict[str, Any]:
        """A merge patch. With ``metadata.resourceVersion`` in it, it is refused once somebody else wrote.

        strategic: lists of containers merge by name; built-in kinds only. dry_run: admission and quota are asked, nothing is stored.
        """
        query = urlencode({"fieldManager": FIELD_MANAGER, **({"dryRun": "All"} if dry_run else {})})
        return await self._call("PATCH", f"{path}?{query}", body, _STRATEGIC if strategic else _MERGE)

    async def _call(
        self, method: str, path: str, body: Body | None = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        what = f"{method} {path.partition('?')[0]}"
        if self.clock.monotonic() < self._not_before:
            left = self._not_before - self.clock.monotonic()
            raise KubernetesError("throttled", f"{what}: the API server asked to wait", left)
        headers = {"accept": "application/json", **({"content-type": content_type} if content else {})}
        try:
            headers |= await self._way.credential.headers(method, self._way.server + path, content)
            async with self._seats:
                answer = await self._http(
                    method, self._way.server + path, headers=headers, content=content or None, timeout_s=_TIMEOUT_S,
                    max_bytes=64 << 20,
                )  # fmt: skip
        except CollectError as error:
            raise KubernetesError(error.kind, error.detail) from error
        except (OSError, ValueError) as error:
            raise KubernetesError("unreachable", f"{self._way.server}, {what}: {error}") from error
        return self._taken(what, answer)

    def _taken(self, what: str, answer: HttpAnswer) -> dict[str, Any]:
        try:
            body = json.loads(answer.body)
        except ValueError:
            body = None
        if 200 <= answer.status < 300 and isinstance(body, dict):
            return body
        error = refusal(what, answer.status, body if isinstance(body, dict) else {}, answer.headers)
        if error.kind == "throttled":
            self._not_before = self.clock.monotonic() + (error.retry_after_s or 1.0)
        raise error


def refusal(what: str, status: int, body: Body, headers: Mapping[str, str]) -> KubernetesError:
    """What a ``Status`` of the API server means. A failed quota comes as 403, and is told apart by its words."""
    message = str(body.get("message") or f"status {status}")[:500]
    text = f"{what}: {message}"
    after = headers.get("retry-after", "")
    retry_after_s = float(after) if after.isascii() and after.isdigit() else None
    if status == 409:
        return KubernetesError("conflict", text, retry_after_s)
    if status == 403 and "exceeded quota" in message:
        return KubernetesError("quota", text)
    if status in (401, 403):
        return KubernetesError("denied", f"{text}. `flyball permissions kubernetes` prints the least role")
    if status == 404:
        return KubernetesError("missing", text)
    if status == 429:
        return KubernetesError("throttled", text, retry_after_s)
    if (
        status >= 500 or status < 200 or status == 410
    ):  # 410: a list changed too much between its pages; it is read anew
        return KubernetesError("unreachable", text, retry_after_s)
    return KubernetesError("invalid", text)


def shared(sessions: Sessions, cluster: ClusterSettings, http: HttpCall, clock: Clock) -> KubernetesClient:
    """The one client of a cluster. Raises CollectError ``credentials``."""
    return sessions.get(("kubernetes", *cluster.key()), lambda: KubernetesClient(access(cluster, clock), http, clock))
