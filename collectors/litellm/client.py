"""One client for each LiteLLM proxy: which deployments it runs, its router's settings, and its refusals in one vocabulary.

Sends GETs alone. Never ``/health``: that asks every model, and is paid for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from collectors.http import HttpAnswer, HttpCall
from collectors.sessions import Sessions
from collectors.window import CollectError

#: It deep-copies its list of models for each answer, between requests.
_TIMEOUT_S = 30.0
_MAX_BYTES = 32 << 20  # a deployment takes 10 kB of /model/info
#: The variable that LiteLLM itself reads its master key from.
KEY_VARIABLE = "LITELLM_MASTER_KEY"
DEPLOYMENTS, ROUTER, METRICS = "/model/info", "/router/settings", "/metrics/"


class LiteLLMError(CollectError):
    """What the proxy refused, or that it did not answer: denied, missing, throttled, unreachable, invalid."""


class ProxySettings(BaseModel):
    """Which proxy, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: SecretStr | None = None
    """The proxy's master key, by reference. Default: that of `key_file`, then the endpoint's `api_key`, then `$LITELLM_MASTER_KEY`."""
    key_file: Path | None = None
    """A file with the key, read for each request. Default: none."""

    def own_key(self) -> str | None:
        """The key that these settings name. Raises LiteLLMError where its file cannot be read."""
        if self.key is not None:
            return self.key.get_secret_value()
        if self.key_file is None:
            return None
        try:
            return self.key_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise LiteLLMError("denied", f"{self.key_file}, the key's file, cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class ProxyDeployment:
    """One deployment that the proxy runs."""

    group: str
    """The model's name that clients ask for."""
    id: str
    """``model_info.id``; where the file states none, a hash of its parameters, which changes with them."""
    params: Mapping[str, Any]
    """``litellm_params``, without keys."""
    stored: bool
    """Whether it stands in the proxy's database, and not in its file."""


class LiteLLMClient:
    """Raises ``LiteLLMError`` and nothing else."""

    def __init__(self, url: str, settings: ProxySettings, headers: Mapping[str, str], http: HttpCall) -> None:
        """``headers``: the endpoint's own, for where ``settings`` name no key."""
        self.url = url.rstrip("/")
        self._settings = settings
        self._headers = headers
        self._http = http

    async def deployments(self) -> list[ProxyDeployment]:
        """In the file's order, then the database's."""
        rows = (await self._json(DEPLOYMENTS)).get("data")
        if not isinstance(rows, list):
            raise LiteLLMError("invalid", f"{self.url}{DEPLOYMENTS} is no LiteLLM proxy's: it lists no `data`")
        return [_deployment(row) for row in rows if isinstance(row, dict)]

    async def router(self) -> dict[str, Any]:
        """The router's settings as they are in effect, by name."""
        body = await self._json(ROUTER)
        current = body.get("current_values")
        if not isinstance(current, dict):
            raise LiteLLMError(
                "invalid", f"{self.url}{ROUTER} tells no `current_values`: LiteLLM 1.80 or newer is needed"
            )
        return current

    async def allowed(self, path: str) -> tuple[bool | None, str]:
        """Whether a page may be read; None: the answer does not tell. And what was answered."""
        try:
            await self._get(path)
        except LiteLLMError as error:
            return (False if error.kind == "denied" else None), error.detail
        return True, ""

    async def _json(self, path: str) -> dict[str, Any]:
        answer = await self._get(path)
        try:
            body = json.loads(answer.body)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise LiteLLMError("invalid", f"{self.url}{path} gave no JSON object: it is no LiteLLM proxy")
        return body

    async def _get(self, path: str) -> HttpAnswer:
        headers = dict(self._headers)
        key = self._settings.own_key()
        if key is None and not headers:
            key = os.environ.get(KEY_VARIABLE)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        try:
            answer = await self._http(
                "GET", self.url + path, headers=headers, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
            )
        except (OSError, ValueError) as error:
            raise LiteLLMError("unreachable", f"{self.url}{path}: {error}") from error
        if answer.status == 200:
            return answer
        raise _refusal(f"{self.url}{path}", answer, keyless="Authorization" not in headers)


def _refusal(where: str, answer: HttpAnswer, *, keyless: bool) -> LiteLLMError:
    """Without a database a proxy knows its master key alone: it answers 400 to any other, and 500 to none."""
    said = " ".join(answer.body[:200].decode("utf-8", "replace").split())
    text = f"{where} answered {answer.status}: {said}"
    if (
        answer.status in (401, 403)
        or (answer.status == 400 and "no_db_connection" in said)
        or (answer.status == 500 and keyless)
    ):
        return LiteLLMError("denied", f"{text}. Give the proxy's master key: api_key, key, key_file or ${KEY_VARIABLE}")
    if answer.status == 404:
        return LiteLLMError("missing", f"{text}. Check the address: it is the proxy's, without /v1")
    if answer.status == 429:
        return LiteLLMError("throttled", text)
    return LiteLLMError("unreachable" if answer.status >= 500 else "invalid", text)


def _deployment(row: Mapping[str, Any]) -> ProxyDeployment:
    params, info = row.get("litellm_params"), row.get("model_info")
    params, info = params if isinstance(params, dict) else {}, info if isinstance(info, dict) else {}
    return ProxyDeployment(str(row.get("model_name")), str(info.get("id")), params, stored=info.get("db_model") is True)


def shared(
    sessions: Sessions, url: str, settings: ProxySettings, headers: Mapping[str, str], http: HttpCall
) -> LiteLLMClient:
    """The one client of a proxy, for one key."""
    key = None if settings.key is None else settings.key.get_secret_value()
    named = ("litellm", url.rstrip("/"), key, settings.key_file, tuple(sorted(headers.items())))
    return sessions.get(named, lambda: LiteLLMClient(url, settings, headers, http))
