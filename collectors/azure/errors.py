"""What Azure's refusals mean: ARM's error envelope, read down to the cause, as one vocabulary of troubles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from collectors.http import HttpAnswer
from collectors.window import CollectError

_CAPACITY = (
    "SkuNotAvailable",
    "AllocationFailed",
    "ZonalAllocationFailed",
    "OverconstrainedAllocationRequest",
    "OutOfCapacity",
)
_QUOTA = ("QuotaExceeded", "InsufficientQuota", "OutOfQuota")
_QUOTA_TEXT = re.compile(
    r"not enough quota|quota (?:limit|exceeded)|exceeding approved .* quota|exceed.{0,40}quota", re.IGNORECASE
)
_CAPACITY_TEXT = re.compile(r"lack of .{0,40}capacity|not available in location|insufficient capacity", re.IGNORECASE)
_BUSY = ("Conflict", "AnotherOperationInProgress", "RequestConflict", "OperationNotAllowed", "ResourceNotReady")
#: Whose role has the actions of a provider; those of the others are in each.
_SYSTEMS: Mapping[str, tuple[str, ...]] = {
    "azure-openai": ("microsoft.cognitiveservices/",),
    "azure-maas": ("microsoft.machinelearningservices/workspaces/serverlessendpoints/",),
    "azure-vm": ("microsoft.compute/", "microsoft.containerservice/"),
}
_ACTION = re.compile(r"perform action '([^']+)'(?: over scope '([^']+)')?")


class AzureError(CollectError):
    """Azure refused or did not answer.

    ``kind``: conflict, drift, quota, capacity, throttled, denied, invalid, missing, unreachable, credentials. ``code`` is Azure's own.
    """

    def __init__(
        self, kind: str, detail: str, *, code: str = "", action: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(kind, detail)
        self.code = code
        self.action = action
        """The permission that lacks, as Azure names it."""
        self.retry_after_s = retry_after_s


def refusal(answer: HttpAnswer, what: str) -> AzureError:
    """The error that an answer of 400 and above is. ``what``: method and path, for people."""
    try:
        body = json.loads(answer.body) if answer.body else {}
    except ValueError:
        body = {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    return of_error(error if isinstance(error, dict) else {}, what, answer.status, retry_after(answer.headers))


def of_error(error: Mapping[str, Any], what: str, status: int = 0, retry_after_s: float | None = None) -> AzureError:
    """Of ARM's ``error`` object, as an answer or a failed operation carries it."""
    parts = list(_parts(error))
    codes = [code for code, _ in parts if code]
    text = " ".join(message for _, message in parts if message)
    code = codes[0] if codes else f"HTTP_{status}"
    shown = _innermost(text)
    detail = f"{what}: {code}" + (f" ({status})" if status else "") + (f": {shown}" if shown else "")
    kind = _kind(codes, text, status)
    action = _ACTION.search(text)
    if kind == "denied" and action is not None:
        scope = f" on {action[2]}" if action[2] else ""
        system = next((s for s, provider in _SYSTEMS.items() if action[1].lower().startswith(provider)), "azure-ml")
        detail = (
            f"{what}: the identity lacks {action[1]}{scope}; grant it (`flyball permissions {system}` prints the role)"
        )
    return AzureError(kind, detail, code=code, action=action[1] if action else None, retry_after_s=retry_after_s)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, where the answer says so."""
    for name, unit in (("retry-after-ms", 1000.0), ("x-ms-retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if value.isdigit():
            return float(value) / unit
    return None


def _kind(codes: list[str], text: str, status: int) -> str:
    if status == 429 or "TooManyRequests" in codes:
        return "throttled"
    if any(code in _QUOTA for code in codes) or _QUOTA_TEXT.search(text):
        return "quota"
    if any(code in _CAPACITY for code in codes) or _CAPACITY_TEXT.search(text):
        return "capacity"
    if status == 401:
        return "credentials"
    if status == 403 or "AuthorizationFailed" in codes:
        return "denied"
    if status == 404:
        return "missing"
    if status == 412:
        return "drift"
    if status == 409 or any(code in _BUSY for code in codes):
        return "conflict"
    return "unreachable" if status >= 500 or status == 408 else "invalid"


def _parts(error: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Code and message of it and of all that it holds. Details come nested, and as JSON within text."""
    yield str(error.get("code") or ""), str(error.get("message") or "")
    for detail in error.get("details") or ():
        if isinstance(detail, dict) and depth < 5:
            yield from _parts(detail, depth + 1)


def _innermost(text: str) -> str:
    """The sentence that people need, out of JSON within JSON."""
    match = re.search(r"Not enough quota available[^\\\"]*", text)
    said = match[0] if match else text
    return " ".join(said.split())[:400]
