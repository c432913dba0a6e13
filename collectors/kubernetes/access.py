"""How a cluster is reached: from within a pod, by a kubeconfig, or by an address and a token. TLS is always verified."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from collectors.clock import Clock
from collectors.credentials import AnonymousCredential, BearerToken, Credential, TokenFile
from collectors.window import CollectError

_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_EXEC_S = 30.0
#: An exec plugin's token without an expiry is asked for anew after so long.
_TOKEN_S = 600.0
#: So long before its end a token is not used any more.
_EARLY_S = 60.0


class ClusterSettings(BaseModel):
    """Which cluster, and as whom. Without any of it: the pod's own cluster, or the current context of the kubeconfig."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: str | None = Field(default=None, pattern=r"^https?://")
    """Address of the API server. Default: the pod's own cluster, or the kubeconfig's."""
    token: SecretStr | None = None
    """A bearer token, beside `server`. Default: none."""
    token_file: Path | None = None
    """A file with a token, read for each request, beside `server`. Default: none."""
    ca_file: Path | None = None
    """The cluster's authority, beside `server`. Default: the system's."""
    kubeconfig: Path | None = None
    """A kubeconfig file. Default: `$KUBECONFIG`, then `~/.kube/config`."""
    context: str | None = None
    """A context of the kubeconfig. Default: its current one."""

    @model_validator(mode="after")
    def _one_way(self) -> ClusterSettings:
        beside = (self.token, self.token_file, self.ca_file)
        if self.server is None and any(value is not None for value in beside):
            raise ValueError("token, token_file and ca_file go with `server`")
        if self.server is not None and (self.kubeconfig is not None or self.context is not None):
            raise ValueError("name either `server` or a kubeconfig, not both")
        return self

    def key(self) -> tuple[Any, ...]:
        """What tells two ways apart, for the session's table."""
        token = self.token.get_secret_value() if self.token is not None else None
        return (self.server, token, self.token_file, self.ca_file, self.kubeconfig, self.context)


@dataclass(frozen=True, slots=True)
class Access:
    """A way that was found: where the API is, who Flyball is to it, and whom it trusts."""

    server: str
    credential: Credential
    tls: ssl.SSLContext | None
    """Whom to trust, and as whom to connect, where that is the cluster's own matter; None: as everywhere else."""
    namespace: str
    """Where nothing else is said."""


class ExecCredential:
    """A token from the command that a kubeconfig names, as clouds have it; asked for anew when it runs out."""

    def __init__(self, command: list[str], env: Mapping[str, str], api_version: str, clock: Clock) -> None:
        self._command = command
        self._env = env
        self._api_version = api_version
        self._clock = clock
        self._token: str | None = None
        self._until = 0.0

    async def headers(self, method: str, url: str, body: bytes) -> Mapping[str, str]:
        if self._token is None or self._clock.monotonic() >= self._until:
            self._token, lasts_s = await self._ask()
            self._until = self._clock.monotonic() + lasts_s
        return {"authorization": f"Bearer {self._token}"}

    async def _ask(self) -> tuple[str, float]:
        """A token, and for how many seconds it may be used."""
        info = json.dumps({"apiVersion": self._api_version, "kind": "ExecCredential", "spec": {"interactive": False}})
        env = {**os.environ, **self._env, "KUBERNETES_EXEC_INFO": info}
        try:
            status = json.loads(await _output(self._command, env))["status"]
            token, expiry = status["token"], status.get("expirationTimestamp")
            left_s = _TOKEN_S if expiry is None else _seconds(expiry) - self._clock.now() - _EARLY_S
        except (OSError, TimeoutError, ValueError, KeyError, TypeError, AttributeError) as error:
            text = (
                f"the kubeconfig's command {self._command[0]!r} gave no token ({type(error).__name__}); run it by hand"
            )
            raise CollectError("credentials", text) from error
        if not isinstance(token, str) or not token:
            raise CollectError("credentials", f"the kubeconfig's command {self._command[0]!r} gave an empty token")
        return token, min(_TOKEN_S, max(0.0, left_s))


async def _output(command: list[str], env: Mapping[str, str]) -> bytes:
    """What a command prints; one that hangs is ended. Raises OSError, TimeoutError."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, env=env, stdin=null, stdout=pipe, stderr=null)
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _EXEC_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def access(cluster: ClusterSettings, clock: Clock) -> Access:
    """The way to the cluster. Raises CollectError ``credentials``, which says what is missing where."""
    if cluster.server is not None:
        credential: Credential = AnonymousCredential()
        if cluster.token is not None:
            credential = BearerToken(cluster.token)
        elif cluster.token_file is not None:
            credential = TokenFile(cluster.token_file)
        tls = None if cluster.ca_file is None else _tls(cluster.ca_file)
        return Access(cluster.server.rstrip("/"), credential, tls, "default")
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if cluster.kubeconfig is None and cluster.context is None and host and (_POD / "token").exists():
        host = f"[{host}]" if ":" in host else host
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        namespace = (_POD / "namespace").read_text().strip() if (_POD / "namespace").exists() else "default"
        return Access(f"https://{host}:{port}", TokenFile(_POD / "token"), _tls(_POD / "ca.crt"), namespace)
    return _from_kubeconfig(cluster, clock)


def _from_kubeconfig(cluster: ClusterSettings, clock: Clock) -> Access:
    path = cluster.kubeconfig or Path(os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config")
    path = path.expanduser()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        name = cluster.context or data.get("current-context")
        context = _named(data, "contexts", name, "context")
        server = _named(data, "clusters", context["cluster"], "cluster")
        user = _named(data, "users", context.get("user"), "user") if context.get("user") else {}
        if server.get("insecure-skip-tls-verify"):
            raise CollectError(
                "credentials", f"{path}: insecure-skip-tls-verify is refused; name the authority instead"
            )
        tls = _trusting(server, path.parent)
        _own_certificate(tls, user, path.parent)
        namespace = str(context.get("namespace") or "default")
        return Access(str(server["server"]).rstrip("/"), _user(user, path.parent, clock), tls, namespace)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        do = "set `server` and `token_file`, name a kubeconfig, or run Flyball in a pod of the cluster"
        raise CollectError("credentials", f"{path}: {type(error).__name__}: {error}; {do}") from error


def _named(data: Mapping[str, Any], kind: str, name: object, inner: str) -> Mapping[str, Any]:
    for item in data.get(kind) or ():
        if item.get("name") == name:
            found: Mapping[str, Any] = item[inner]
            return found
    raise KeyError(f"no entry of {kind} is called {name!r}")


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise CollectError("credentials", f"{ca_file} cannot be read as certificates: {error}") from error


def _trusting(server: Mapping[str, Any], folder: Path) -> ssl.SSLContext:
    written = server.get("certificate-authority-data")
    if written:
        trusted = base64.b64decode(written, validate=True).decode("ascii")
        if "CERTIFICATE" not in trusted:  # an empty text would trust whom the system trusts
            raise ValueError("certificate-authority-data holds no certificate")
        return ssl.create_default_context(cadata=trusted)
    file = server.get("certificate-authority")
    return _tls(folder / file if file else None)


def _own_certificate(tls: ssl.SSLContext, user: Mapping[str, Any], folder: Path) -> None:
    """A client's certificate, where the kubeconfig has one. Python reads it from files alone."""
    parts = {}
    with tempfile.TemporaryDirectory() as held:
        for name in ("client-certificate", "client-key"):
            if user.get(f"{name}-data"):
                parts[name] = Path(held) / name
                parts[name].touch(0o600)
                parts[name].write_bytes(base64.b64decode(user[f"{name}-data"]))
            elif user.get(name):
                parts[name] = folder / user[name]
        if len(parts) == 2:
            tls.load_cert_chain(parts["client-certificate"], parts["client-key"])


def _user(user: Mapping[str, Any], folder: Path, clock: Clock) -> Credential:
    if user.get("exec"):
        said = user["exec"]
        env = {item["name"]: item["value"] for item in said.get("env") or ()}
        command = str(said["command"])
        if os.sep in command:  # as kubectl has it: beside the kubeconfig
            command = str(folder / command)
        version = str(said.get("apiVersion") or "client.authentication.k8s.io/v1")
        return ExecCredential([command, *(said.get("args") or ())], env, version, clock)
    if user.get("tokenFile"):
        return TokenFile(folder / user["tokenFile"])
    return BearerToken(SecretStr(user["token"])) if user.get("token") else AnonymousCredential()
