"""One client for each OSCAR cluster: services as they are defined, their deployments and jobs, and the API's errors in one vocabulary.

A definition that is read may hold credentials of the storage: it goes back to OSCAR, and nowhere else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.http import HttpAnswer, HttpCall
from collectors.sessions import Sessions
from collectors.window import CollectError

_TIMEOUT_S = 30.0
_MAX_BYTES = 32 << 20
_MOST_PAGES = 200
SERVICES = "/system/services"
Body = Mapping[str, Any]


class OscarError(CollectError):
    """What OSCAR refused, or that it did not answer: denied, missing, invalid, throttled, unreachable."""


class OscarSettings(BaseModel):
    """Which OSCAR cluster, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cluster: str = Field(default="http://127.0.0.1:8080", pattern=r"^https?://[^\s]+[^\s/]$")
    """The cluster's address. Default: one on this host."""
    user: str = "oscar"
    """The user of basic authentication, where `password` is given. Default: OSCAR's own."""
    password: SecretStr | None = None
    """Of basic authentication: the cluster's administrator, who may do everything. By reference. Default: a token is used instead."""
    token: SecretStr | None = None
    """An OIDC access token of the service's owner, by reference. Default: that of `token_file`, or none."""
    token_file: Path | None = None
    """A file with the token, which somebody else renews: read for each request. Default: none."""


@dataclass(frozen=True, slots=True)
class OscarJob:
    """One asynchronous call: a pod of its own. Times are Unix seconds, and whole ones."""

    name: str
    status: str
    """``Pending``, ``Running``, ``Succeeded``, ``Failed``; empty: there is no pod yet."""
    created_at: float | None
    started_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class OscarDeployment:
    """What serves calls that are answered at once."""

    state: str
    """``ready``, ``pending``, ``initializing``, ``degraded``, ``failed``, ``stopped``, ``unavailable`` (only jobs run)."""
    reason: str
    instances: int
    affected: int
    """Of those, that do not serve."""


class OscarClient:
    """Raises ``OscarError`` and nothing else."""

    def __init__(self, settings: OscarSettings, http: HttpCall) -> None:
        self.url = settings.cluster.rstrip("/")
        self._settings = settings
        self._http = http

    async def services(self) -> list[Body]:
        found = await self._json("GET", SERVICES)
        if not isinstance(found, list):
            raise self._strange(SERVICES, TypeError(type(found).__name__))
        return [one for one in found if isinstance(one, dict) and one.get("name")]

    async def service(self, name: str) -> Body:
        """Its definition."""
        return await self._object(f"{SERVICES}/{quote(name, safe='')}")

    async def update(self, service: Body) -> None:
        """Put the whole definition. OSCAR has no word for a version, and no dry run."""
        await self._call("PUT", SERVICES, service)

    async def deployment(self, name: str) -> OscarDeployment:
        path = f"{SERVICES}/{quote(name, safe='')}/deployment"
        try:
            body = await self._object(path)
        except OscarError as error:
            if error.kind != "missing":
                raise
            return OscarDeployment("unavailable", "an OSCAR before 4 tells nothing of deployments", 0, 0)
        try:
            return OscarDeployment(
                str(body["state"]),
                str(body.get("reason") or ""),
                int(body.get("active_instances") or 0),
                int(body.get("affected_instances") or 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange(path, error) from error

    async def jobs(self, name: str) -> list[OscarJob]:
        """Those that the cluster still keeps, page after page."""
        path, found, following = f"/system/logs/{quote(name, safe='')}", dict[str, OscarJob](), ""
        for _ in range(_MOST_PAGES):
            body = await self._object(f"{path}?page={quote(following, safe='')}" if following else path)
            paged = isinstance(body.get("jobs"), dict) and ("next_page" in body or "remaining_jobs" in body)
            try:
                found |= {job: _job(job, of) for job, of in (body["jobs"] if paged else body).items()}
            except (TypeError, ValueError, AttributeError) as error:
                raise self._strange(path, error) from error
            following = str(body.get("next_page") or "") if paged else ""
            if not following:
                return list(found.values())
        raise OscarError("invalid", f"{self.url}{path}: more than {_MOST_PAGES} pages, so probably a loop")

    async def free_memory(self) -> float | None:
        """Bytes of the cluster's nodes. None: not told, or not to this user."""
        try:
            body = await self._object("/system/status")
        except OscarError as error:
            if error.kind not in ("denied", "missing"):
                raise
            return None
        metrics = (body.get("cluster") or {}).get("metrics") or {}
        free = (metrics.get("memory") or {}).get("total_free_bytes")
        return float(free) if isinstance(free, int) and free >= 0 else None

    async def _object(self, path: str) -> dict[str, Any]:
        found = await self._json("GET", path)
        if not isinstance(found, dict):
            raise self._strange(path, TypeError(type(found).__name__))
        return found

    async def _json(self, method: str, path: str) -> Any:
        answer = await self._call(method, path)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise self._strange(path, error) from error

    async def _call(self, method: str, path: str, body: Body | None = None) -> HttpAnswer:
        what = f"{method} {self.url}{path.partition('?')[0]}"
        headers = {} if body is None else {"content-type": "application/json"}
        headers |= self._authorization()
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = await self._http(
                method, self.url + path, headers=headers, content=content, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
            )
        except (OSError, ValueError) as error:
            raise OscarError("unreachable", f"{what}: {error}") from error
        if 200 <= answer.status < 300:
            return answer
        raise _refusal(what, answer)

    def _authorization(self) -> dict[str, str]:
        if self._settings.password is not None:
            pair = f"{self._settings.user}:{self._settings.password.get_secret_value()}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        if self._settings.token is not None:
            return {"Authorization": f"Bearer {self._settings.token.get_secret_value()}"}
        if self._settings.token_file is None:
            return {}
        try:
            token = self._settings.token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise OscarError("denied", f"{self._settings.token_file} cannot be read: {error}") from error
        return {"Authorization": f"Bearer {token}"}

    def _strange(self, path: str, error: Exception) -> OscarError:
        text = f"{self.url}{path} has another form than is known ({type(error).__name__}: {error}): is it an OSCAR cluster?"
        return OscarError("invalid", text)


def _refusal(what: str, answer: HttpAnswer) -> OscarError:
    said = " ".join(answer.body[:500].decode("utf-8", "replace").split())
    text = f"{what} answered {answer.status}: {said}"
    kinds = {401: "denied", 403: "denied", 404: "missing", 429: "throttled"}
    kind = kinds.get(answer.status, "unreachable" if answer.status >= 500 else "invalid")
    if kind == "denied":
        text += ". Give password (the administrator's), or a token of the service's owner"
    return OscarError(kind, text)


def _job(name: str, body: Body) -> OscarJob:
    return OscarJob(
        name,
        str(body.get("status") or ""),
        _time(body.get("creation_time")),
        _time(body.get("start_time")),
        _time(body.get("finish_time")),
    )


def _time(text: Any) -> float | None:
    """Raises ValueError."""
    return None if not text else datetime.fromisoformat(str(text)).timestamp()


def shared(sessions: Sessions, settings: OscarSettings, http: HttpCall) -> OscarClient:
    """The one client of a cluster, for one user."""
    secrets = [s.get_secret_value() for s in (settings.password, settings.token) if s is not None]
    key = ("oscar", settings.cluster.rstrip("/"), settings.user, *secrets, settings.token_file)
    return sessions.get(key, lambda: OscarClient(settings, http))
