"""One client for each Nomad cluster: jobs, allocations, evaluations, deployments, and the agent's errors in one vocabulary.

Nomad tells a conflict by words and not by a status: a stale index is a 500, a deployment under way a 400. Both are told apart here, once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from collectors.http import HttpAnswer, HttpCall
from collectors.jobs import BatchJob
from collectors.sessions import Sessions
from collectors.window import CollectError

_TIMEOUT_S = 20.0
_MAX_BYTES = 32 << 20
#: Allocations whose addresses are remembered: they do not move.
_MOST_ADDRESSES = 10_000
Body = Mapping[str, Any]


class NomadError(CollectError):
    """What Nomad refused, or that it did not answer: denied, missing, conflict, throttled, invalid, unreachable."""


class NomadSettings(BaseModel):
    """Which Nomad cluster, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(default="http://127.0.0.1:4646", pattern=r"^https?://[^/\s]+/?$")
    """Any agent's HTTP address. Default: the agent on this host."""
    namespace: str = "default"
    """Nomad's namespace."""
    region: str | None = None
    """Nomad's region. Default: the agent's own."""
    token: SecretStr | None = None
    """The ACL token's secret id, by reference. Default: that of `token_file`, or none."""
    token_file: Path | None = None
    """A file with the token, read for each request. Default: none."""


@dataclass(frozen=True, slots=True)
class JobAllocation:
    """One allocation of a job: a replica, by its own word."""

    id: str
    name: str
    """``chat.web[0]``."""
    group: str
    running: bool
    """It runs, and is meant to."""
    job_version: int
    healthy: bool | None
    """By the deployment's checks. None: not judged, or not yet."""


@dataclass(frozen=True, slots=True)
class JobDeployment:
    """The newest deployment of a job."""

    id: str
    status: str
    """``running``, ``successful``, ``failed``, ``cancelled``, ``paused``, ``blocked``, ``pending``, ``unblocking``."""
    detail: str
    job_version: int

    @property
    def active(self) -> bool:
        """Whether Nomad refuses to scale because of it."""
        return self.status not in ("successful", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class GroupScale:
    """How many of a group there are."""

    desired: int
    placed: int
    running: int


class NomadClient:
    """Raises ``NomadError`` and nothing else."""

    def __init__(self, settings: NomadSettings, http: HttpCall) -> None:
        self.url = settings.address.rstrip("/")
        self._settings = settings
        self._http = http
        self._addresses: dict[str, Body] = {}

    async def jobs(self) -> list[Body]:
        """A stub of each."""
        return [job for job in await self._json("GET", "/v1/jobs") if isinstance(job, dict)]

    async def job(self, name: str) -> Body:
        """The whole specification, with its ``JobModifyIndex`` and ``Version``."""
        found: Body = await self._object("GET", _job(name))
        return found

    async def scale_of(self, name: str) -> Mapping[str, GroupScale]:
        """By group."""
        body = await self._object("GET", _job(name, "/scale"))
        try:
            return {
                group: GroupScale(int(of["Desired"]), int(of["Placed"]), int(of["Running"]))
                for group, of in (body.get("TaskGroups") or {}).items()
            }
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange(_job(name, "/scale"), error) from error

    async def summary(self, name: str) -> Mapping[str, Mapping[str, int]]:
        """By group: ``Running``, ``Queued``, ``Starting``, ``Failed``, ``Lost``, ``Complete``, ``Unknown``."""
        body = await self._object("GET", _job(name, "/summary"))
        return {
            group: {state: number for state, number in of.items() if isinstance(number, int)}
            for group, of in (body.get("Summary") or {}).items()
            if isinstance(of, dict)
        }

    async def allocations(self, name: str) -> list[JobAllocation]:
        """Those that the scheduler still knows of, ended ones too."""
        path = _job(name, "/allocations")
        try:
            return [
                JobAllocation(
                    str(a["ID"]),
                    str(a["Name"]),
                    str(a["TaskGroup"]),
                    a.get("ClientStatus") == "running" and a.get("DesiredStatus") == "run",
                    int(a.get("JobVersion") or 0),
                    (a.get("DeploymentStatus") or {}).get("Healthy"),
                )
                for a in await self._json("GET", path)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._strange(path, error) from error

    async def runs(self, stub: Body) -> list[BatchJob]:
        """Of a batch job, by its stub: one for each allocation, wanted when the job was submitted."""
        name = str(stub["ID"])
        path = _job(name, "/allocations")
        try:
            return [_run(a, stub) for a in await self._json("GET", path)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._strange(path, error) from error

    async def ports(self, allocation: str) -> Mapping[str, str]:
        """``host:port`` of an allocation, by the port's label. Asked once: an allocation does not move."""
        if allocation not in self._addresses:
            body = await self._object("GET", f"/v1/allocation/{quote(allocation, safe='')}")
            self._addresses[allocation] = ports_of(body)
            while len(self._addresses) > _MOST_ADDRESSES:
                del self._addresses[next(iter(self._addresses))]
        return self._addresses[allocation]

    async def deployment(self, name: str) -> JobDeployment | None:
        """The newest one. None: the job never had one."""
        path = _job(name, "/deployment")
        body = await self._json("GET", path)
        if body is None:
            return None
        try:
            return JobDeployment(
                str(body["ID"]), str(body["Status"]), str(body.get("StatusDescription") or ""), int(body["JobVersion"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange(path, error) from error

    async def versions(self, name: str) -> Sequence[Body]:
        """The specifications that Nomad keeps, newest first."""
        body = await self._object("GET", _job(name, "/versions"))
        return [v for v in body.get("Versions") or () if isinstance(v, dict)]

    async def evaluation(self, evaluation: str) -> Body:
        return await self._object("GET", f"/v1/evaluation/{quote(evaluation, safe='')}")

    async def planned(self, job: Body) -> Body:
        """What the scheduler would do with this specification: a dry run, though it is sent as a POST."""
        return await self._object("POST", _job(str(job["ID"]), "/plan"), {"Job": job, "Diff": False})

    async def scale(self, name: str, group: str, count: int, message: str, meta: Body) -> Body:
        body = {"Count": count, "Target": {"Group": group}, "Message": message, "Meta": meta, "Error": False}
        return await self._object("POST", _job(name, "/scale"), body)

    async def register(self, job: Body, index: int) -> Body:
        """Only where the job's ``JobModifyIndex`` is still this one."""
        body = {"Job": job, "EnforceIndex": True, "JobModifyIndex": index}
        return await self._object("POST", "/v1/jobs", body)

    async def revert(self, name: str, version: int, prior: int) -> Body:
        """To an older version, only where the present one is ``prior``."""
        body = {"JobID": name, "JobVersion": version, "EnforcePriorVersion": prior}
        return await self._object("POST", _job(name, "/revert"), body)

    async def capabilities(self) -> frozenset[str] | None:
        """What the token may do in the namespace. ``*``: everything, as ACLs are off or it is a management token. None: not told."""
        try:
            token = await self._object("GET", "/v1/acl/token/self")
        except NomadError as error:
            if "ACL support disabled" in error.detail:
                return frozenset("*")
            raise
        if token.get("Type") == "management":
            return frozenset("*")
        found: set[str] = set()
        for name in token.get("Policies") or ():
            policy = await self._object("GET", f"/v1/acl/policy/{quote(str(name), safe='')}")
            rules = policy.get("RulesJSON")
            if not isinstance(rules, dict):
                return None
            for space in rules.get("Namespaces") or ():
                if space.get("Name") in (self._settings.namespace, "*"):
                    found |= {str(c) for c in space.get("Capabilities") or ()}
        return None if token.get("Roles") else frozenset(found)

    async def metrics(self, agent: str, timeout_s: float) -> HttpAnswer:
        """An agent's own page. ``agent``: its HTTP address."""
        url = f"{agent.rstrip('/')}/v1/metrics?format=prometheus"
        return await self._call("GET", url, None, timeout_s)

    async def _object(self, method: str, path: str, body: Body | None = None) -> dict[str, Any]:
        found = await self._json(method, path, body)
        if not isinstance(found, dict):
            raise self._strange(path, TypeError(type(found).__name__))
        return found

    async def _json(self, method: str, path: str, body: Body | None = None) -> Any:
        of = {"namespace": self._settings.namespace}
        of |= {} if self._settings.region is None else {"region": self._settings.region}
        answer = await self._call(method, f"{self.url}{path}?{urlencode(of)}", body, _TIMEOUT_S)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise self._strange(path, error) from error

    async def _call(self, method: str, url: str, body: Body | None, timeout_s: float) -> HttpAnswer:
        headers = {} if body is None else {"content-type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        what = f"{method} {url.partition('?')[0]}"
        token = self._token()
        if token is not None:
            headers["X-Nomad-Token"] = token
        try:
            answer = await self._http(
                method, url, headers=headers, content=content, timeout_s=timeout_s, max_bytes=_MAX_BYTES
            )
        except (OSError, ValueError) as error:
            raise NomadError("unreachable", f"{what}: {error}") from error
        if 200 <= answer.status < 300:
            return answer
        raise _refusal(what, answer)

    def _strange(self, path: str, error: Exception) -> NomadError:
        text = (
            f"{self.url}{path} has another form than is known ({type(error).__name__}: {error}): is it a Nomad agent?"
        )
        return NomadError("invalid", text)

    def _token(self) -> str | None:
        if self._settings.token is not None:
            return self._settings.token.get_secret_value()
        if self._settings.token_file is None:
            return None
        try:
            return self._settings.token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise NomadError("denied", f"{self._settings.token_file} cannot be read: {error}") from error


def _run(allocation: Body, stub: Body) -> BatchJob:
    """Its tasks together: from the first one's start to the last one's end."""
    tasks = [t for t in (allocation.get("TaskStates") or {}).values() if isinstance(t, dict)]
    starts = [at for t in tasks if (at := _moment(t.get("StartedAt"))) is not None]
    ends = [at for t in tasks if (at := _moment(t.get("FinishedAt"))) is not None]
    over = allocation.get("ClientStatus") in ("complete", "failed")
    submitted = float(stub.get("SubmitTime") or allocation["CreateTime"]) / 1e9
    return BatchJob(
        str(allocation["Name"]),
        submitted,
        min(starts, default=None),
        max(ends, default=None) if over and len(ends) == len(tasks) else None,
        allocation.get("ClientStatus") in ("failed", "lost"),
    )


def _moment(text: Any) -> float | None:
    """Nomad says the year 1 where there is none. Raises ValueError."""
    if not text or str(text).startswith("0001-"):
        return None
    return datetime.fromisoformat(str(text)).timestamp()


def _job(name: str, rest: str = "") -> str:
    return f"/v1/job/{quote(name, safe='')}{rest}"


#: What Nomad says, and what it means.
_WORDS = (
    ("job scaling blocked due to active deployment", "conflict"),
    ("Enforcing job modify index", "conflict"),
    ("enforcing version", "conflict"),
    ("Permission denied", "denied"),
    ("ACL token not found", "denied"),
    ("not found", "missing"),
)


def _refusal(what: str, answer: HttpAnswer) -> NomadError:
    said = " ".join(answer.body[:500].decode("utf-8", "replace").split())
    text = f"{what} answered {answer.status}: {said}"
    kinds = {401: "denied", 403: "denied", 404: "missing", 429: "throttled"}
    by_words = next((kind for words, kind in _WORDS if words in said), None)
    kind = by_words or kinds.get(answer.status) or ("unreachable" if answer.status >= 500 else "invalid")
    if kind == "denied":
        text += ". `flyball permissions nomad` prints the least policy"
    return NomadError(kind, text)


def ports_of(allocation: Body) -> dict[str, str]:
    """By label, whether the group has the network (Nomad 0.12 and newer) or a task of it."""
    resources = allocation.get("AllocatedResources") or {}
    shared_ = resources.get("Shared") or {}
    found = {
        str(port["Label"]): _address(str(port.get("HostIP") or ""), port["Value"])
        for port in shared_.get("Ports") or ()
        if port.get("HostIP")
    }
    tasks = (resources.get("Tasks") or {}).values()
    networks = [*(shared_.get("Networks") or ()), *(n for task in tasks for n in (task or {}).get("Networks") or ())]
    for network in networks:
        for port in (*(network.get("DynamicPorts") or ()), *(network.get("ReservedPorts") or ())):
            found.setdefault(str(port["Label"]), _address(str(network.get("IP") or ""), port["Value"]))
    return found


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def shared(sessions: Sessions, settings: NomadSettings, http: HttpCall) -> NomadClient:
    """The one client of a cluster's namespace, for one token."""
    token = None if settings.token is None else settings.token.get_secret_value()
    key = ("nomad", settings.address.rstrip("/"), settings.namespace, settings.region, token, settings.token_file)
    return sessions.get(key, lambda: NomadClient(settings, http))
