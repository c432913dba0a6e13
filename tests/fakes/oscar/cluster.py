"""The cluster's HTTP, and the services behind it."""

from __future__ import annotations

import base64
import copy
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PASSWORD = "admin-password"
PAGE = 100
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
Body = dict[str, Any]


def definition(name: str = "chat", **more: Any) -> Body:
    """A service as its owner states it: a function, unless it exposes a port."""
    return {
        "name": name,
        "image": "ghcr.io/ai4os/plants:1",
        "script": "#!/bin/sh\ncat $INPUT_FILE_PATH\n",
        "cpu": "1.0",
        "memory": "1Gi",
        **more,
    }


class Refused(Exception):
    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass
class Service:
    body: Body
    owner: str
    due: float = 0.0
    """When its newest deployment is ready."""
    failed: str = ""
    jobs: dict[str, Body] = field(default_factory=dict)


class FakeOscar:
    """Use as ``with FakeOscar() as url``. ``tokens``: users by their OIDC token. ``knative``: whether functions have a deployment too."""

    def __init__(
        self,
        *,
        tokens: dict[str, str] | None = None,
        knative: bool = True,
        starts_s: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.tokens = tokens or {}
        self.knative = knative
        self.starts_s = starts_s
        self.now = now
        self.free_bytes = 64_000_000_000
        self.services: dict[str, Service] = {}
        self.requests: list[tuple[str, str]] = []
        self.puts: list[Body] = []
        self.fail_next: int | None = None
        """A status to answer the next write with, after it was done."""
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length") or 0))
                with outer._lock:
                    status, body = outer.answer(self.command, self.path, self.headers.get("authorization", ""), content)
                data = b"" if status == 204 else body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json; charset=utf-8"
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

        self._handler = Handler
        self.url = ""

    def __enter__(self) -> str:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path in self.requests if method != "GET"]

    # -- what is there ---------------------------------------------------------------------------------------------------

    def add(self, body: Body, owner: str = "cluster_admin") -> Service:
        self.services[body["name"]] = Service(_whole(body, owner), owner)
        return self.services[body["name"]]

    def job(
        self,
        service: str,
        name: str,
        created: float,
        started: float | None = None,
        ended: float | None = None,
        *,
        failed: bool = False,
    ) -> None:
        """One asynchronous call: a pod that waits, runs, and has ended."""
        status = "Pending" if started is None else "Running" if ended is None else "Failed" if failed else "Succeeded"
        times = {"creation_time": created, "start_time": started, "finish_time": ended}
        told = {k: _rfc3339(v) for k, v in times.items() if v is not None}
        self.services[service].jobs[name] = {"status": status, **told}

    # -- HTTP ------------------------------------------------------------------------------------------------------------

    def answer(self, method: str, target: str, authorization: str, content: bytes) -> tuple[int, Any]:
        path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
        self.requests.append((method, path))
        try:
            user = self._user(authorization)
            status, body = self._routed(method, path, query, user, content)
        except Refused as refused:
            return refused.status, refused.text
        if self.fail_next is not None and method != "GET":
            status, body, self.fail_next = self.fail_next, "upstream connect error", None
        return status, copy.deepcopy(body)

    def _user(self, authorization: str) -> str | None:
        """None: the administrator."""
        kind, _, secret = authorization.partition(" ")
        if kind == "Basic" and base64.b64decode(secret).decode() == f"oscar:{PASSWORD}":
            return None
        if kind == "Bearer" and secret in self.tokens:
            return self.tokens[secret]
        raise Refused(401, "Unauthorized")

    def _routed(
        self, method: str, path: str, query: dict[str, list[str]], user: str | None, content: bytes
    ) -> tuple[int, Any]:
        if path == "/system/services":
            match method:
                case "GET":
                    seen = (s for s in self.services.values() if user in (None, s.owner))
                    return 200, [_told(s.body) for s in seen]
                case "POST":
                    return self._create(_read(content), user)
                case "PUT":
                    return self._update(_read(content), user)
        if path == "/system/status" and method == "GET":
            memory = {"total_free_bytes": self.free_bytes, "max_free_on_node_bytes": self.free_bytes}
            return 200, {"cluster": {"nodes_count": 1, "metrics": {"memory": memory}}, "oscar": {"jobs_count": 0}}
        one = re.fullmatch(r"/system/services/([^/]+)(/deployment)?", path)
        if one is not None:
            service = self._service(one[1], user)
            if method == "DELETE" and one[2] is None:
                del self.services[one[1]]
                return 204, ""
            return 200, self._deployment(service) if one[2] else _told(service.body)
        logs = re.fullmatch(r"/system/logs/([^/]+)", path)
        if logs is not None and method == "GET":
            return 200, _page(self._service(logs[1], user).jobs, query.get("page", [""])[0])
        raise Refused(404, "404 page not found")

    def _service(self, name: str, user: str | None) -> Service:
        if name not in self.services:
            raise Refused(404)
        if user not in (None, self.services[name].owner):
            raise Refused(403, f"User {user} doesn't have permision to get this service")
        return self.services[name]

    def _create(self, sent: Body, user: str | None) -> tuple[int, Any]:
        if sent["name"] in self.services:
            raise Refused(409, "A service with the provided name already exists")
        self.add(sent, user or "cluster_admin").due = self.now() + self.starts_s
        return 201, ""

    def _update(self, sent: Body, user: str | None) -> tuple[int, Any]:
        """Whole: what is left out is as if it had never been, or a default."""
        if sent["name"] not in self.services:
            raise Refused(404)
        there = self.services[sent["name"]]
        if user not in (None, there.owner):
            raise Refused(403, f"User {user} doesn't have permision to modify this service")
        if (sent.get("kserve") or {}).get("storage_uri") != (there.body.get("kserve") or {}).get("storage_uri"):
            raise Refused(
                400, "The service specification is not valid: cannot update model storage configuration for KServe"
            )
        self.puts.append(sent)
        old = there.body
        there.body = _whole(sent, there.owner)
        there.body["token"] = old["token"]
        if {k: v for k, v in old.items() if k != "token"} != {k: v for k, v in there.body.items() if k != "token"}:
            there.due = self.now() + self.starts_s
        return 204, ""

    def _deployment(self, service: Service) -> Body:
        body = service.body
        exposed, kserve = bool(body["expose"].get("api_port")), bool((body.get("kserve") or {}).get("storage_uri"))
        kind = "exposed_service" if exposed else "kserve_service" if kserve else "knative_service"
        told = {"service_name": body["name"], "namespace": "oscar-svc", "resource_kind": kind}
        if not exposed and not kserve and not self.knative:
            reason = "Current deployment visibility is unavailable for this service runtime."
            return {
                **told,
                "state": "unavailable",
                "reason": reason,
                "active_instances": 0,
                "affected_instances": 0,
                "resource_kind": "unavailable",
            }
        scale = body["expose"] if exposed else body["kserve"] if kserve else body["synchronous"]
        count = scale.get("min_scale") or 0
        if service.failed:
            return {
                **told,
                "state": "failed",
                "reason": service.failed,
                "active_instances": count,
                "affected_instances": count,
            }
        if self.now() < service.due:
            return {
                **told,
                "state": "pending",
                "reason": "still reconciling",
                "active_instances": count,
                "affected_instances": count,
            }
        return {
            **told,
            "state": "ready",
            "reason": "Deployment is ready.",
            "active_instances": count,
            "affected_instances": 0,
        }


def _read(content: bytes) -> Body:
    """What binding refuses: fields that are required, and resources that are none."""
    try:
        sent = json.loads(content)
    except ValueError as error:
        raise Refused(400, f"The service specification is not valid: {error}") from error
    for name, key in (("Name", "name"), ("Image", "image"), ("Script", "script")):
        if not sent.get(key) and not (key != "name" and (sent.get("kserve") or {}).get("storage_uri")):
            text = f"Key: 'Service.{name}' Error:Field validation for '{name}' failed on the 'required' tag"
            raise Refused(400, f"The service specification is not valid: {text}")
    for of in (sent, sent.get("kserve") or {}):
        for key in ("cpu", "memory"):
            value = of.get(key, "1")
            if not isinstance(value, str):
                text = f"json: cannot unmarshal number into Go struct field Service.{key} of type string"
                raise Refused(400, f"The service specification is not valid: {text}")
            if value and _QUANTITY.fullmatch(value) is None:
                raise Refused(500, "Error updating the service: quantities must match the regular expression")
    for section in ("synchronous", "expose", "kserve"):
        for key in ("min_scale", "max_scale"):
            value = (sent.get(section) or {}).get(key, 0)
            if isinstance(value, bool) or not isinstance(value, int):
                text = f"json: cannot unmarshal into Go struct field Service.{section}.{key} of type int"
                raise Refused(400, f"The service specification is not valid: {text}")
    assert isinstance(sent, dict)
    return sent


def _whole(sent: Body, owner: str) -> Body:
    """With the defaults that OSCAR writes."""
    body = copy.deepcopy(sent)
    body["cpu"], body["memory"] = body.get("cpu") or "0.2", body.get("memory") or "256Mi"
    body.setdefault("enable_gpu", False)
    body["synchronous"] = {"min_scale": 0, "max_scale": 0, **(body.get("synchronous") or {})}
    body["expose"] = {"min_scale": 0, "max_scale": 0, **(body.get("expose") or {})}
    body["environment"] = {"variables": {}, "secrets": {}, **(body.get("environment") or {})}
    body["environment"]["secrets"] = dict.fromkeys(body["environment"]["secrets"] or {}, "")
    return {**body, "owner": owner, "token": "service-token", "labels": body.get("labels") or {}}


def _told(body: Body) -> Body:
    return body


def _page(jobs: dict[str, Body], page: str) -> Body:
    names = sorted(jobs)
    begin = int(page or 0)
    following = begin + PAGE
    more = following < len(names)
    shown = {name: jobs[name] for name in names[begin:following]}
    return {
        "jobs": shown,
        "next_page": str(following) if more else "",
        "remaining_jobs": max(0, len(names) - following),
    }


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
