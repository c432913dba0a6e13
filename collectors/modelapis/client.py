"""One client for each organization of a provider: pages of its admin API, and what it refuses in one vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.http import HttpAnswer, HttpCall
from collectors.window import CollectError

_TIMEOUT_S = 30.0
_MAX_BYTES = 16 << 20
MOST_PAGES = 200
Body = Mapping[str, Any]
Query = Mapping[str, str | list[str]]


class ModelApiError(CollectError):
    """What the admin API refused, or that it did not answer: denied, missing, invalid, throttled, unreachable."""

    def __init__(self, kind: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(kind, detail)
        self.retry_after_s = retry_after_s


class AdminSettings(BaseModel):
    """Whose organization, by its admin key: one for models alone is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: SecretStr | None = None
    """The admin key, by reference. Default: that of `key_file`."""
    key_file: Path | None = None
    """A file with the admin key, read for each request. Default: none."""
    lag_s: float = Field(default=300.0, ge=0, le=3600)
    """A minute of usage is taken as it stands so long after its end. Default 300: the reports come some minutes late."""


@dataclass(frozen=True, slots=True)
class UsageMinute:
    """What a provider reports of one minute."""

    start: float
    """Unix seconds."""
    counts: Mapping[str, float]
    """By canonical counter name."""


@dataclass(frozen=True, slots=True)
class ModelRateLimit:
    """A limit of one model, as the provider has it now."""

    id: str
    model: str
    tokens_per_minute: int | None
    requests_per_minute: int | None


class AdminClient:
    """Raises ``ModelApiError`` and nothing else."""

    def __init__(
        self, url: str, settings: AdminSettings, http: HttpCall, headers: Callable[[str], Mapping[str, str]]
    ) -> None:
        """headers: what carries the key."""
        self.url = url.rstrip("/")
        self._settings, self._http, self._headers = settings, http, headers

    async def get(self, path: str, query: Query) -> Body:
        text = urlencode(query, doseq=True)
        return await self._call("GET", f"{path}?{text}" if text else path, None)

    async def post(self, path: str, body: Body) -> Body:
        return await self._call("POST", path, body)

    async def _call(self, method: str, path: str, body: Body | None) -> Body:
        what = f"{method} {self.url}{path.partition('?')[0]}"
        headers = {**self._headers(self._key()), **({} if body is None else {"content-type": "application/json"})}
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = await self._http(
                method, self.url + path, headers=headers, content=content, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
            )
        except (OSError, ValueError) as error:
            raise ModelApiError("unreachable", f"{what}: {error}") from error
        try:
            told = json.loads(answer.body)
        except (ValueError, RecursionError):
            told = None
        if not 200 <= answer.status < 300:
            raise _refusal(what, answer, told)
        if not isinstance(told, dict):
            raise ModelApiError("invalid", f"{what} gave no JSON object: it is no admin API")
        return told

    def _key(self) -> str:
        if self._settings.key is not None:
            return self._settings.key.get_secret_value()
        if self._settings.key_file is None:
            raise ModelApiError("denied", "no admin key: set key or key_file")
        try:
            return self._settings.key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ModelApiError("denied", f"{self._settings.key_file} cannot be read: {error}") from error


def _refusal(what: str, answer: HttpAnswer, told: Any) -> ModelApiError:
    error = told.get("error") if isinstance(told, dict) else None
    said = error.get("message") if isinstance(error, dict) else answer.body[:300].decode("utf-8", "replace")
    kinds = {401: "denied", 403: "denied", 404: "missing", 429: "throttled"}
    kind = kinds.get(answer.status, "unreachable" if answer.status >= 500 else "invalid")
    after = answer.headers.get("retry-after", "")
    text = f"{what} answered {answer.status}: {' '.join(str(said).split())}"
    if kind == "denied":
        text += ". An admin key of the organization is needed"
    return ModelApiError(kind, text, float(after) if after.isascii() and after.isdigit() else None)


def rows(body: Body, name: str = "data") -> list[Body]:
    """The list of objects under a name. Raises ModelApiError ``invalid``."""
    found = body.get(name)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ModelApiError("invalid", f"the answer has no list {name!r}")
    return found


def whole(row: Body, name: str) -> float:
    """A count that may lack: then it is 0, as the providers leave zeros out. Raises ModelApiError ``invalid``."""
    value = row.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        raise ModelApiError("invalid", f"{name} is {value!r}, which is no count")
    return float(value)


def moment(at: float) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
