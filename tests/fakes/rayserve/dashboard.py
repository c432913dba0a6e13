"""The dashboard's HTTP, and Serve behind it."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What a deployment's entry of a configuration may hold, of those fields that the tests use.
_FIELDS = {"name", "num_replicas", "autoscaling_config", "max_ongoing_requests", "ray_actor_options", "user_config"}
_APPLICATION = {"name", "route_prefix", "import_path", "runtime_env", "deployments", "external_scaler_enabled", "args"}
_CODE = {"num_replicas": 1, "max_ongoing_requests": 5, "ray_actor_options": {"num_cpus": 1.0}}


class Invalid(Exception):
    """What pydantic would say."""


@dataclass
class FakeApplication:
    """An application whose code has these deployments."""

    name: str
    code: dict[str, dict[str, Any]] = field(default_factory=lambda: {"Model": {}})
    """By deployment: what its decorator says."""
    stated: dict[str, Any] | None = None
    """None: deployed by a program."""
    deployed_at: float = 0.0
    failed: str = ""
    targets: dict[str, int] = field(default_factory=dict)
    taken: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By deployment: the resolved configuration that was taken up last; the same again moves no target."""
    running: dict[str, list[str]] = field(default_factory=dict)
    due: float = 0.0

    def resolved(self, deployment: str) -> dict[str, Any]:
        entries = (self.stated or {}).get("deployments") or ()
        own = next((e for e in entries if e["name"] == deployment), {})
        config = {**_CODE, **self.code[deployment], **own, "name": deployment}
        if "autoscaling_config" in own or ("autoscaling_config" in config and "num_replicas" not in own):
            del config["num_replicas"]
        else:
            config.pop("autoscaling_config", None)
        return config


class FakeRayServe:
    """Use as ``with FakeRayServe(applications) as url``."""

    def __init__(self, *applications: FakeApplication, start_s: float = 0.0, room: int = 100, token: str = "") -> None:
        self.applications = {a.name: a for a in applications}
        self.start_s = start_s
        self.room = room
        """Replicas that the cluster has room for."""
        self.token = token
        self.requests: list[tuple[str, str]] = []
        self.puts: list[dict[str, Any]] = []
        self.fail_next: int | None = None
        """A status to answer the next write with, after it was done."""
        self._number = 0
        self._lock = threading.Lock()
        for application in applications:
            self._deploy(application)
            self._settle(application, now=float("inf"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length") or 0))
                with outer._lock:
                    key = self.headers.get("authorization", "").removeprefix("Bearer ")
                    status, body = outer.answer(self.command, self.path, key, content)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path in self.requests if method != "GET"]

    def answer(self, method: str, path: str, key: str, content: bytes) -> tuple[int, Any]:
        self.requests.append((method, path))
        if key != self.token:
            return 401, "Unauthorized: Missing or invalid authentication token"
        for application in self.applications.values():
            self._settle(application, time.time())
        if (method, path) == ("GET", "/api/serve/applications/"):
            return 200, self._state()
        status, body = self._write(method, path, content)
        if self.fail_next is not None and status == 200:
            status, body, self.fail_next = self.fail_next, "Internal Server Error", None
        return status, body

    def _write(self, method: str, path: str, content: bytes) -> tuple[int, Any]:
        if (method, path) == ("PUT", "/api/serve/applications/"):
            try:
                self._configure(json.loads(content))
            except Invalid as error:
                return 400, str(error)
            return 200, ""
        scale = re.fullmatch(r"/api/v1/applications/([^/]+)/deployments/([^/]+)/scale", path)
        if method != "POST" or scale is None:
            return 404, "404: Not Found"
        wanted = json.loads(content).get("target_num_replicas")
        if not isinstance(wanted, int) or wanted < 0:
            return 400, {"error": "Invalid request body: 1 validation error for ScaleDeploymentRequest"}
        application = self.applications.get(scale[1])
        if application is not None and not (application.stated or {}).get("external_scaler_enabled"):
            return 412, {
                "error": "The external scaling API can only be used when 'external_scaler_enabled' is set to true"
            }
        if application is None or scale[2] not in application.code:
            return 404, {"error": "Application or Deployment not found"}
        application.targets[scale[2]] = wanted
        application.due = time.time() + self.start_s
        return 200, {"message": "Scaling request received. Deployment will get scaled asynchronously."}

    def _configure(self, body: dict[str, Any]) -> None:
        for stated in body["applications"]:
            _check(stated)
        self.puts.append(body)
        named = {stated["name"]: stated for stated in body["applications"]}
        for name, application in list(self.applications.items()):
            if name not in named and application.stated is not None:
                del self.applications[name]
        for name, stated in named.items():
            application = self.applications.setdefault(name, FakeApplication(name))
            application.stated = stated
            self._deploy(application)

    def _deploy(self, application: FakeApplication) -> None:
        entries = (application.stated or {}).get("deployments") or ()
        unknown = [e["name"] for e in entries if e["name"] not in application.code]
        application.failed = f"Traceback: deployment {unknown[0]} is not in the application" if unknown else ""
        self._number += 1
        application.deployed_at = 1.8e9 + self._number
        for name in application.code:
            config = application.resolved(name)
            scaling = config.get("autoscaling_config")
            now = application.targets.get(name, 1)
            if application.taken.get(name) == config:
                continue
            application.taken[name] = config
            if scaling is None:
                application.targets[name] = config["num_replicas"]
            else:
                application.targets[name] = min(max(now, scaling["min_replicas"]), scaling["max_replicas"])
        application.due = time.time() + self.start_s

    def _settle(self, application: FakeApplication, now: float) -> None:
        if now < application.due:
            return
        for name, target in application.targets.items():
            running = application.running.setdefault(name, [])
            del running[target:]
            while len(running) < min(target, self.room):
                self._number += 1
                running.append(f"r{self._number}")

    def _state(self) -> dict[str, Any]:
        return {
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "applications": {name: self._of(a) for name, a in self.applications.items()},
        }

    def _of(self, a: FakeApplication) -> dict[str, Any]:
        settled = all(len(a.running.get(n, ())) == t for n, t in a.targets.items())
        deployments = {} if a.failed else {name: self._deployment(a, name) for name in a.code}
        return {
            "name": a.name,
            "route_prefix": "/",
            "status": "DEPLOY_FAILED" if a.failed else "RUNNING" if settled else "DEPLOYING",
            "message": a.failed,
            "last_deployed_time_s": a.deployed_at,
            "deployed_app_config": a.stated,
            "source": "imperative" if a.stated is None else "declarative",
            "external_scaler_enabled": bool((a.stated or {}).get("external_scaler_enabled")),
            "deployments": deployments,
            "deployment_topology": {"ingress_deployment": next(iter(a.code))},
        }

    def _deployment(self, a: FakeApplication, name: str) -> dict[str, Any]:
        running, target = a.running.get(name, []), a.targets[name]
        return {
            "name": name,
            "status": "HEALTHY" if len(running) == target else "UPSCALING",
            "status_trigger": "UPSCALE_COMPLETED",
            "message": "" if len(running) == target else f"Upscaling from {len(running)} to {target} replicas.",
            "deployment_config": a.resolved(name),
            "target_num_replicas": target,
            "replicas": [{"replica_id": r, "state": "RUNNING"} for r in running],
        }


def _check(stated: dict[str, Any]) -> None:
    for strange in stated.keys() - _APPLICATION:
        raise Invalid(f"applications.0.{strange}: Extra inputs are not permitted [type=extra_forbidden]")
    for entry in stated.get("deployments") or ():
        for strange in entry.keys() - _FIELDS:
            raise Invalid(
                f"applications.0.deployments.0.{strange}: Extra inputs are not permitted [type=extra_forbidden]"
            )
        count, scaling = entry.get("num_replicas"), entry.get("autoscaling_config")
        if count is not None and count != "auto" and (not isinstance(count, int) or count < 1):
            raise Invalid(
                "applications.0.deployments.0.num_replicas: Input should be greater than 0 [type=greater_than]"
            )
        if isinstance(count, int) and scaling is not None:
            raise Invalid(
                "Value error, Manually setting num_replicas is not allowed when autoscaling_config is provided."
            )
        if scaling is not None and not 0 <= scaling["min_replicas"] <= scaling["max_replicas"]:
            raise Invalid("max_replicas must be greater than or equal to min_replicas")
