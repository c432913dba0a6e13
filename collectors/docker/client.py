"""One client for each Docker Engine: over its socket or HTTP, in the newest version of the API that both know, its errors in one vocabulary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field

from collectors.clock import Clock
from collectors.http import Http, HttpAnswer, HttpCall
from collectors.sessions import Sessions
from collectors.window import CollectError

_TIMEOUT_S = 30.0
_MAX_BYTES = 32 << 20
_UNIX = "unix://"
#: The newest version that Flyball was written for. Docker 20.10 has 1.41, 29 takes none below 1.44.
NEWEST = (1, 47)
#: Refusals that come as 500 and mean that somebody else was faster.
_OUT_OF_SEQUENCE = "update out of sequence"
Body = Mapping[str, Any]


class DockerError(CollectError):
    """What the engine refused, or that it did not answer: conflict, denied, invalid, missing, unreachable."""


class DockerSettings(BaseModel):
    """Which Docker Engine."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    host: str = Field(default="unix:///var/run/docker.sock", pattern=r"^(unix:///\S+|https?://[^/\s]+)$")
    """The engine's address: its socket, or a proxy before it that lets just some calls through. Default: Docker's own socket."""


class DockerClient:
    """Raises ``DockerError`` and nothing else."""

    def __init__(self, settings: DockerSettings, http: HttpCall, clock: Clock) -> None:
        self.host = settings.host
        self._own = None
        self._url = settings.host.rstrip("/")
        self._http = http
        if settings.host.startswith(_UNIX):
            self._own = Http(uds=Path(settings.host.removeprefix(_UNIX)), monotonic=clock.monotonic)
            self._http, self._url = self._own.call, "http://docker"
        self._version: str | None = None
        self._asking = asyncio.Lock()

    async def aclose(self) -> None:
        if self._own is not None:
            await self._own.aclose()

    async def version(self) -> str:
        """The API's version that is spoken, such as ``1.41``: the older one of the engine's and ours."""
        async with self._asking:
            if self._version is None:
                answer = await self._exchange("GET", "/_ping", None)
                told = answer.headers.get("api-version", "")
                try:
                    major, minor = (int(part) for part in told.split("."))
                except ValueError:
                    text = f"{self.host} told no version of its API at /_ping: it is no Docker Engine"
                    raise DockerError("unreachable", text) from None
                self._version = ".".join(map(str, min((major, minor), NEWEST)))
            return self._version

    async def get(self, path: str, **query: Any) -> Any:
        return await self._call("GET", path, None, query)

    async def post(self, path: str, body: Body | None = None, *, timeout_s: float = _TIMEOUT_S, **query: Any) -> Any:
        return await self._call("POST", path, body, query, timeout_s)

    async def delete(self, path: str, **query: Any) -> Any:
        return await self._call("DELETE", path, None, query)

    async def container(self, name: str) -> dict[str, Any] | None:
        """As ``docker inspect`` has it. None: there is none of that name."""
        try:
            found: dict[str, Any] = await self.get(f"/containers/{quote(name, safe='')}/json")
        except DockerError as error:
            if error.kind == "missing":
                return None
            raise
        return found

    async def _call(
        self, method: str, path: str, body: Body | None, query: Mapping[str, Any], timeout_s: float = _TIMEOUT_S
    ) -> Any:
        asked = (
            f"?{urlencode({k: json.dumps(v) if isinstance(v, dict) else v for k, v in query.items()})}" if query else ""
        )
        answer = await self._exchange(method, f"/v{await self.version()}{path}{asked}", body, timeout_s)
        try:
            return json.loads(answer.body) if answer.body.strip() else None
        except ValueError as error:
            raise DockerError("unreachable", f"{method} {self.host}{path}: the answer is no JSON") from error

    async def _exchange(self, method: str, path: str, body: Body | None, timeout_s: float = _TIMEOUT_S) -> HttpAnswer:
        what = f"{method} {self.host} {path.partition('?')[0]}"
        try:
            answer = await self._http(
                method,
                self._url + path,
                headers={} if body is None else {"content-type": "application/json"},
                content=None if body is None else json.dumps(body).encode(),
                timeout_s=timeout_s,
                max_bytes=_MAX_BYTES,
            )
        except PermissionError as error:
            raise DockerError("denied", f"{what}: {error}; put Flyball's user into the socket's group") from error
        except (OSError, ValueError) as error:
            kind = "denied" if "ermission denied" in str(error) else "unreachable"
            raise DockerError(kind, f"{what}: {error}") from error
        if answer.status == 304 or 200 <= answer.status < 300:  # 304: it is started, or stopped, already
            return answer
        raise _refusal(what, answer)


def _refusal(what: str, answer: HttpAnswer) -> DockerError:
    try:
        said = str(json.loads(answer.body).get("message"))
    except (ValueError, AttributeError):
        said = answer.body[:300].decode("utf-8", "replace")
    text = f"{what} answered {answer.status}: {' '.join(said.split())[:500]}"
    if _OUT_OF_SEQUENCE in said:
        return DockerError("conflict", text)
    kinds = {400: "invalid", 401: "denied", 403: "denied", 404: "missing", 409: "conflict", 406: "swarm", 503: "swarm"}
    return DockerError(kinds.get(answer.status, "unreachable"), text)


def shared(sessions: Sessions, settings: DockerSettings, http: HttpCall, clock: Clock) -> DockerClient:
    """The one client of an engine."""
    return sessions.get(("docker", settings.host), lambda: DockerClient(settings, http, clock))
