"""Containers and services that keep their state, checked as a Docker Engine 20.10 checks them, over HTTP on loopback."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Body = dict[str, Any]


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class FakeDocker:
    """Use with ``with``; its address is ``url``."""

    version: str = "1.41"
    cpus: int = 4
    memory: int = 32_000_000_000
    start_s: float = 0.0
    """From a start until the container is healthy, where it has a health check."""
    fails: str | None = None
    """New containers end at once, with this error."""
    swarm: bool = True
    lost: int = 0
    """So many of the next writes are done, and their answers lost."""
    containers: dict[str, Body] = field(default_factory=dict)
    """By id."""
    services: dict[str, Body] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=lambda: {"vllm:1": "sha256:1"})
    sent: list[tuple[str, str]] = field(default_factory=list)
    writes: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> FakeDocker:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with engine._lock:
                    status, said = engine._answer(self.command, self.path, body)
                text = b"" if said is None else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Api-Version", engine.version)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # -- what is there -------------------------------------------------------------------------------------------------

    def run(self, name: str = "chat", *args: str, image: str = "vllm:1", **host: Any) -> str:
        """A container that runs. ``host``: of its HostConfig. Gives its id."""
        limits = {
            "NanoCpus": 1_000_000_000,
            "Memory": 4_000_000_000,
            "MemorySwap": 4_000_000_000,
            "NetworkMode": "bridge",
        }
        body = {"Image": image, "Cmd": [*args], "Env": ["KEY=very-secret"], "HostConfig": {**limits, **host}}
        made = self._create(name, body)
        self._start(made)
        return str(made["Id"])

    def named(self, name: str) -> Body | None:
        return next((c for c in self.containers.values() if c["Name"] == f"/{name}"), None)

    def serve(self, name: str = "chat", replicas: int = 1) -> None:
        """A service of the swarm."""
        spec = {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": "vllm:1", "Args": ["vllm", "serve", "m"], "Env": ["KEY=very-secret"]}
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
        }
        self.services[name] = {
            "ID": uuid.uuid4().hex,
            "Version": {"Index": 10},
            "Spec": spec,
            "since": time.monotonic(),
        }

    # -- requests ------------------------------------------------------------------------------------------------------

    def _answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        self.sent.append((method, parts.path))
        try:
            if parts.path == "/_ping":
                return 200, None
            found = re.fullmatch(r"/v(\d+)\.(\d+)(/.*)", parts.path)
            if found is None:
                raise _Refused(404, "page not found")
            asked, newest = (int(found[1]), int(found[2])), tuple(map(int, self.version.split(".")))
            if asked > newest:
                text = (
                    f"client version {found[1]}.{found[2]} is too new. Maximum supported API version is {self.version}"
                )
                raise _Refused(400, text)
            said = self._routed(
                method, [unquote(p) for p in found[3].strip("/").split("/")], query, json.loads(body or b"{}")
            )
        except _Refused as refused:
            return refused.status, {"message": refused.message}
        if method != "GET":
            self.writes.append((method, re.sub(r"[0-9a-f]{32,}", "ID", found[3])))
            if self.lost:
                self.lost -= 1
                return 502, {"message": "the answer was lost"}
        return said

    def _routed(self, method: str, path: list[str], query: Mapping[str, str], body: Body) -> tuple[int, Any]:
        match method, path:
            case "GET", ["info"]:
                return 200, {"NCPU": self.cpus, "MemTotal": self.memory}
            case "GET", ["containers", "json"]:
                return 200, [
                    {"Id": i, "Labels": c["Config"]["Labels"]}
                    for i, c in self.containers.items()
                    if c["State"]["Running"]
                ]
            case "GET", ["images", *name, "json"]:
                return self._image("/".join(name))
            case "POST", ["containers", "create"]:
                return 201, {"Id": self._create(query["name"], body)["Id"], "Warnings": []}
            case _, ["containers", name, *verb]:
                return self._container(method, self._found(name), verb, query, body)
            case "GET", ["services"]:
                return 200, list(self._manager().values())
            case _, ["services", name, *verb]:
                return self._service(name, verb, query, body)
            case "GET", ["tasks"]:
                return 200, self._tasks(json.loads(query["filters"])["service"][0])
        raise _Refused(404, "page not found")

    def _found(self, name: str) -> Body:
        found = self.containers.get(name) or self.named(name)
        if found is None:
            raise _Refused(404, f"No such container: {name}")
        self._settle(found)
        return found

    def _image(self, name: str) -> tuple[int, Any]:
        found = self.images.get(name)
        if found is None:
            raise _Refused(404, f"No such image: {name}")
        return 200, {"Id": found}

    # -- containers ----------------------------------------------------------------------------------------------------

    def _create(self, name: str, body: Body) -> Body:
        if self.named(name) is not None:
            other = self.named(name)
            assert other is not None
            text = f'Conflict. The container name "/{name}" is already in use by container "{other["Id"]}".'
            raise _Refused(409, text)
        config, host = copy.deepcopy(body), copy.deepcopy(body.get("HostConfig") or {})
        config.pop("HostConfig", None)
        config.pop("NetworkingConfig", None)
        image = config["Image"]
        if image not in self.images and image not in self.images.values():
            raise _Refused(404, f"No such image: {image}")
        if host.get("NetworkMode") == "host" and config.get("Hostname"):
            raise _Refused(400, "conflicting options: hostname and the network mode")
        self._check(host)
        id_ = uuid.uuid4().hex * 2
        config.setdefault("Labels", {})
        config["Hostname"] = config.get("Hostname") or id_[:12]
        words = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
        made: Body = {
            "Id": id_,
            "Name": f"/{name}",
            "Path": words[0] if words else "",
            "Args": words[1:],
            "Image": self.images.get(image, image),
            "Config": config,
            "HostConfig": host,
            "Mounts": [],
            "NetworkSettings": {"Ports": {}, "Networks": {host.get("NetworkMode", "bridge"): {"Aliases": None}}},
            "State": {"Status": "created", "Running": False, "ExitCode": 0, "Error": ""},
        }
        self.containers[id_] = made
        return made

    def _check(self, host: Body) -> None:
        cpus, memory, swap = host.get("NanoCpus") or 0, host.get("Memory") or 0, host.get("MemorySwap") or 0
        if cpus and not 1e7 <= cpus <= self.cpus * 1e9:
            text = f"Range of CPUs is from 0.01 to {self.cpus}.00, as there are only {self.cpus} CPUs available"
            raise _Refused(400, text)
        if cpus and host.get("CpuQuota"):
            raise _Refused(400, "Conflicting options: Nano CPUs and CPU Quota cannot both be set")
        if memory and memory < 6 * 2**20:
            raise _Refused(400, "Minimum memory limit allowed is 6MB")
        if memory and 0 < swap < memory:
            raise _Refused(400, "Minimum memoryswap limit should be larger than memory limit, see usage")

    def _container(
        self, method: str, found: Body, verb: list[str], query: Mapping[str, str], body: Body
    ) -> tuple[int, Any]:
        match method, verb:
            case "GET", ["json"]:
                return 200, found
            case "POST", ["update"]:
                changed = {**found["HostConfig"], **{k: v for k, v in body.items() if v}}
                if 0 < changed.get("MemorySwap", 0) < changed.get("Memory", 0):
                    raise _Refused(
                        400,
                        "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
                    )
                self._check(changed)
                found["HostConfig"] = changed
                return 200, {"Warnings": None}
            case "POST", ["start"]:
                return self._start(found)
            case "POST", ["stop"]:
                if not found["State"]["Running"]:
                    return 304, None
                found["State"] |= {"Status": "exited", "Running": False, "ExitCode": 143}
                return 204, None
            case "POST", ["rename"]:
                if self.named(query["name"]) is not None:
                    raise _Refused(409, f'Conflict. The container name "/{query["name"]}" is already in use')
                found["Name"] = f"/{query['name']}"
                return 204, None
            case "DELETE", []:
                if found["State"]["Running"]:
                    raise _Refused(
                        409,
                        f"You cannot remove a running container {found['Id']}. Stop the container before attempting removal or force remove",
                    )
                del self.containers[found["Id"]]
                return 204, None
        raise _Refused(404, "page not found")

    def _start(self, found: Body) -> tuple[int, Any]:
        if found["State"]["Running"]:
            return 304, None
        ports = self._ports(found)
        taken = {p for c in self.containers.values() if c["State"]["Running"] for p in self._ports(c)}
        if ports & taken:
            raise _Refused(
                500,
                f"driver failed programming external connectivity: Bind for 0.0.0.0:{min(ports & taken)} failed: port is already allocated",
            )
        found["State"] = {"Status": "running", "Running": True, "ExitCode": 0, "Error": "", "since": time.monotonic()}
        if self.fails is not None and found["Config"]["Labels"]:
            found["State"] |= {"Status": "exited", "Running": False, "ExitCode": 1, "Error": self.fails}
        self._settle(found)
        return 204, None

    @staticmethod
    def _ports(container: Body) -> set[str]:
        bound = (container["HostConfig"].get("PortBindings") or {}).values()
        return {b["HostPort"] for each in bound for b in each or ()}

    def _settle(self, found: Body) -> None:
        state = found["State"]
        if state["Running"] and found["Config"].get("Healthcheck"):
            healthy = time.monotonic() - state["since"] >= self.start_s
            state["Health"] = {"Status": "healthy" if healthy else "starting"}

    # -- services ------------------------------------------------------------------------------------------------------

    def _manager(self) -> dict[str, Body]:
        if not self.swarm:
            raise _Refused(
                503,
                'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.',
            )
        return self.services

    def _service(self, name: str, verb: list[str], query: Mapping[str, str], body: Body) -> tuple[int, Any]:
        found = next((s for n, s in self._manager().items() if name in (n, s["ID"])), None)
        if found is None:
            raise _Refused(404, f"service {name} not found")
        if verb == ["update"]:
            if query.get("version") != str(found["Version"]["Index"]):
                raise _Refused(500, "rpc error: code = Unknown desc = update out of sequence")
            if body.get("Name") != found["Spec"]["Name"] or "TaskTemplate" not in body:
                raise _Refused(400, "the whole specification is needed")
            found["Spec"] = body
            found["Version"]["Index"] += 1
            found["since"] = time.monotonic()
            return 200, {"Warnings": None}
        return 200, {k: v for k, v in found.items() if k != "since"}

    def _tasks(self, name: str) -> list[Body]:
        found = self._manager()[name]
        state = "running" if time.monotonic() - found["since"] >= self.start_s else "preparing"
        return [{"Status": {"State": state}} for _ in range(found["Spec"]["Mode"]["Replicated"]["Replicas"])]
