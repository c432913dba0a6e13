"""One client for each Ray dashboard: Serve's applications as they are, their configuration, and the dashboard's errors in one vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.http import HttpAnswer, HttpCall
from collectors.sessions import Sessions
from collectors.window import CollectError

#: A PUT builds or imports what is new before it answers: five seconds, and more on a busy cluster.
_TIMEOUT_S = 60.0
_MAX_BYTES = 32 << 20
APPLICATIONS = "/api/serve/applications/"
Body = Mapping[str, Any]


class RayServeError(CollectError):
    """What the dashboard refused, or that it did not answer: denied, missing, disabled, invalid, unreachable."""


class DashboardSettings(BaseModel):
    """Which Ray cluster, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dashboard: str = Field(default="http://127.0.0.1:8265", pattern=r"^https?://[^/\s]+")
    """The dashboard's address. Default: Ray's own port on this host."""
    token: SecretStr | None = None
    """The cluster's token, by reference, where `RAY_AUTH_MODE=token`. Default: that of `token_file`, or none."""
    token_file: Path | None = None
    """A file with the token, read for each request. Default: none."""


@dataclass(frozen=True, slots=True)
class ServeDeployment:
    """One deployment of an application, as Serve has it."""

    application: str
    name: str
    status: str
    """``HEALTHY``, ``UPDATING``, ``UPSCALING``, ``DOWNSCALING``, ``UNHEALTHY``, ``DEPLOY_FAILED``."""
    message: str
    config: Body
    """Resolved: what the code and the configuration say together."""
    target: int
    """How many replicas Serve wants now."""
    running: tuple[str, ...]
    """Ids of those that run."""


@dataclass(frozen=True, slots=True)
class ServeApplication:
    """One application."""

    name: str
    status: str
    """``RUNNING``, ``DEPLOYING``, ``DEPLOY_FAILED``, ``UNHEALTHY``, ``DELETING``."""
    message: str
    route: str | None
    declarative: bool
    """Whether it was deployed by a configuration, and not by a program (``serve.run``)."""
    external: bool
    """Whether the external scaler sets its replicas."""
    deployed_at: float
    """When it was configured last, Unix seconds: each PUT counts."""
    stated: Body
    """The configuration as it was given."""
    ingress: str | None
    deployments: Mapping[str, ServeDeployment]


@dataclass(frozen=True, slots=True)
class ServeState:
    """All of one cluster."""

    applications: Mapping[str, ServeApplication]
    host: str
    port: int
    """Where clients come in."""


class RayServeClient:
    """Raises ``RayServeError`` and nothing else."""

    def __init__(self, settings: DashboardSettings, http: HttpCall) -> None:
        self.url = settings.dashboard.rstrip("/")
        self._settings = settings
        self._http = http

    async def state(self) -> ServeState:
        body = await self._json("GET", APPLICATIONS)
        try:
            options = body.get("http_options") or {}
            found = {name: _application(name, each) for name, each in body["applications"].items()}
            return ServeState(found, str(options.get("host") or "127.0.0.1"), int(options.get("port") or 8000))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"{self.url}{APPLICATIONS} has another form than is known ({type(error).__name__}: {error})"
            raise RayServeError("invalid", f"{text}: Ray 2.9 or newer is needed") from error

    async def configure(self, applications: list[Body]) -> None:
        """Put the configurations of **all** applications that have one: whoever is left out is deleted by Serve."""
        await self._call("PUT", APPLICATIONS, {"applications": applications})

    async def scale(self, application: str, deployment: str, replicas: int) -> None:
        """By the external scaler."""
        path = f"/api/v1/applications/{quote(application, safe='')}/deployments/{quote(deployment, safe='')}/scale"
        await self._call("POST", path, {"target_num_replicas": replicas})

    async def _json(self, method: str, path: str) -> dict[str, Any]:
        answer = await self._call(method, path)
        try:
            body = json.loads(answer.body)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise RayServeError("invalid", f"{self.url}{path} gave no JSON object: it is no Ray dashboard")
        return body

    async def _call(self, method: str, path: str, body: Body | None = None) -> HttpAnswer:
        headers = {"content-type": "application/json"} if body is not None else {}
        content = None if body is None else json.dumps(body).encode()
        what = f"{method} {self.url}{path}"
        token = self._token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            answer = await self._http(
                method, self.url + path, headers=headers, content=content, timeout_s=_TIMEOUT_S, max_bytes=_MAX_BYTES
            )
        except (OSError, ValueError) as error:
            raise RayServeError("unreachable", f"{what}: {error}") from error
        if 200 <= answer.status < 300:
            return answer
        raise _refusal(what, answer)

    def _token(self) -> str | None:
        if self._settings.token is not None:
            return self._settings.token.get_secret_value()
        if self._settings.token_file is None:
            return None
        try:
            return self._settings.token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise RayServeError("denied", f"{self._settings.token_file} cannot be read: {error}") from error


def _refusal(what: str, answer: HttpAnswer) -> RayServeError:
    said = " ".join(answer.body[:500].decode("utf-8", "replace").split())
    text = f"{what} answered {answer.status}: {said}"
    kinds = {401: "denied", 403: "denied", 404: "missing", 412: "disabled", 409: "conflict", 429: "throttled"}
    if answer.status in (401, 403):
        text += ". Give the cluster's token: token or token_file"
    return RayServeError(kinds.get(answer.status, "unreachable" if answer.status >= 500 else "invalid"), text)


def _application(name: str, body: Body) -> ServeApplication:
    topology = body.get("deployment_topology") or {}
    deployments = {n: _deployment(name, n, each) for n, each in (body.get("deployments") or {}).items()}
    ingress = topology.get("ingress_deployment") or (next(iter(deployments)) if len(deployments) == 1 else None)
    stated = body.get("deployed_app_config") or {}
    return ServeApplication(
        name,
        str(body.get("status")),
        str(body.get("message") or ""),
        body.get("route_prefix"),
        str(body.get("source") or ("declarative" if stated else "imperative")) == "declarative" and bool(stated),
        body.get("external_scaler_enabled") is True,
        float(body.get("last_deployed_time_s") or 0.0),
        stated,
        ingress,
        deployments,
    )


def _deployment(application: str, name: str, body: Body) -> ServeDeployment:
    replicas = body.get("replicas") or ()
    return ServeDeployment(
        application,
        name,
        str(body.get("status")),
        str(body.get("message") or ""),
        body.get("deployment_config") or {},
        int(body.get("target_num_replicas") or 0),
        tuple(str(r.get("replica_id")) for r in replicas if r.get("state") == "RUNNING"),
    )


def shared(sessions: Sessions, settings: DashboardSettings, http: HttpCall) -> RayServeClient:
    """The one client of a dashboard, for one token."""
    token = None if settings.token is None else settings.token.get_secret_value()
    key = ("rayserve", settings.dashboard.rstrip("/"), token, settings.token_file)
    return sessions.get(key, lambda: RayServeClient(settings, http))
