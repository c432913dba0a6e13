"""An agent's HTTP: paths, who may what, and the page of what it measures."""

from __future__ import annotations

import copy
import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.nomad.cluster import Allocation, Job, NomadCluster, Refused

NODE = "78537172-965a-aed6-709e-ba6c0b6807cd"
_READS = {"list-jobs", "read-job"}


class FakeNomad:
    """Use as ``with FakeNomad(cluster) as url``. ``tokens``: capabilities in the namespace ``default`` by token; None: ACLs are off."""

    def __init__(
        self, cluster: NomadCluster, tokens: dict[str, set[str]] | None = None, *, prometheus: bool = True
    ) -> None:
        self.cluster = cluster
        self.tokens = tokens
        self.prometheus = prometheus
        self.requests: list[tuple[str, str]] = []
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
                    status, body = outer.answer(self.command, self.path, self.headers.get("x-nomad-token", ""), content)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                kind = "text/plain; version=0.0.4" if isinstance(body, str) else "application/json"
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
        """What may have changed something: a plan is a question."""
        return [(m, p) for m, p in self.requests if m != "GET" and not p.endswith("/plan")]

    def answer(self, method: str, target: str, token: str, content: bytes) -> tuple[int, Any]:
        path = unquote(urlsplit(target).path)
        self.requests.append((method, path))
        query = parse_qs(urlsplit(target).query)
        self.cluster.settle()
        try:
            self._allow(method, path, token, query.get("namespace", ["default"])[0])
            body = self._read(path, token) if method == "GET" else self._write(method, path, json.loads(content))
        except Refused as refused:
            return refused.status, refused.text
        if self.fail_next is not None and method != "GET" and not path.endswith("/plan"):
            status, self.fail_next = self.fail_next, None
            return status, "rpc error: EOF"
        return 200, copy.deepcopy(body)

    def _allow(self, method: str, path: str, token: str, namespace: str) -> None:
        if self.tokens is None or path.startswith(("/v1/acl/", "/v1/metrics")):
            return
        if token and token not in self.tokens:
            raise Refused(403, "ACL token not found")
        needed = {"scale-job", "submit-job"} if path.endswith("/scale") else {"submit-job"}
        if method == "GET":
            needed = {"list-jobs"} if path == "/v1/jobs" else {"read-job"}
        if namespace != "default" or not needed & self.tokens.get(token, set()):
            raise Refused(403, "Permission denied")

    def _read(self, path: str, token: str) -> Any:
        if path.startswith("/v1/acl/"):
            return self._acl(path, token)
        if path == "/v1/metrics":
            if not self.prometheus:
                raise Refused(415, "Prometheus is not enabled")
            return self.page()
        if path == "/v1/jobs":
            return [
                {k: j.body.get(k) for k in ("ID", "Name", "Type", "Status", "Stop", "SubmitTime")}
                for j in self.cluster.jobs.values()
            ]
        if evaluation := re.fullmatch(r"/v1/evaluation/([^/]+)", path):
            if evaluation[1] not in self.cluster.evaluations:
                raise Refused(404, "eval not found")
            return self.cluster.evaluations[evaluation[1]]
        if allocation := re.fullmatch(r"/v1/allocation/([^/]+)", path):
            found = [a for j in self.cluster.jobs.values() for a in j.allocations if a.id == allocation[1]]
            if not found:
                raise Refused(404, "alloc not found")
            return _stub(found[0]) | {"AllocatedResources": {"Shared": {"Ports": [_port(found[0])]}, "Tasks": {}}}
        return self._of_job(path)

    def _of_job(self, path: str) -> Any:
        asked = re.fullmatch(r"/v1/job/(.+?)(?:/(scale|summary|allocations|deployment|versions))?", path)
        if asked is None:
            raise Refused(404, "Invalid URL")
        name, what = asked.groups()
        if name not in self.cluster.jobs:
            raise Refused(404, "job not found")
        job: Job = self.cluster.jobs[name]
        match what:
            case None:
                return job.body
            case "scale":
                return self.cluster.scale_status(name)
            case "summary":
                return self.cluster.summary(name)
            case "allocations":
                return [_stub(a) for a in job.allocations]
            case "deployment":
                return job.deployment
            case "versions":
                return {"Versions": job.versions, "Diffs": None}
        raise Refused(404, "Invalid URL")

    def _write(self, method: str, path: str, sent: Any) -> Any:
        if path == "/v1/jobs":
            return self.cluster.register(sent["Job"], sent["JobModifyIndex"] if sent.get("EnforceIndex") else None)
        asked = re.fullmatch(r"/v1/job/(.+)/(scale|plan|revert)", path)
        if asked is None or method not in ("POST", "PUT"):
            raise Refused(405, "Invalid method")
        name, what = asked.groups()
        if what == "scale":
            return self.cluster.scale(name, sent)
        if what == "revert":
            return self.cluster.revert(name, sent)
        if sent["Job"]["ID"] != name:
            raise Refused(400, "Job ID does not match")
        return self.cluster.plan(sent["Job"])

    def _acl(self, path: str, token: str) -> Any:
        if self.tokens is None:
            raise Refused(401, "ACL support disabled")
        if token not in self.tokens:
            raise Refused(403, "ACL token not found")
        if path == "/v1/acl/token/self":
            management = "*" in self.tokens[token]
            return {"Type": "management" if management else "client", "Policies": [] if management else ["flyball"]}
        rules = {"Namespaces": [{"Name": "default", "Policy": "", "Capabilities": sorted(self.tokens[token])}]}
        return {"Name": "flyball", "Rules": "…", "RulesJSON": rules}

    def page(self) -> str:
        """What one agent tells, with what a real one leaves behind: the series of ended allocations, and of a node's states of before."""
        lines = []
        for job in self.cluster.jobs.values():
            for a in job.allocations:
                of = f'{{alloc_id="{a.id}",host="vm",job="{job.body["ID"]}",namespace="default",task="server",task_group="{a.group}"}}'
                given = a.task[0]["Resources"]
                for name, value in (
                    ("cpu_total_ticks", given["CPU"] / 2),
                    ("cpu_allocated", given["CPU"]),
                    ("memory_rss", given["MemoryMB"] * 2**20 * 0.25),
                    ("memory_allocated", given["MemoryMB"] * 2**20),
                ):
                    lines.append(f"nomad_client_allocs_{name}{of} {value}")
        for status, idle in (("initializing", 77.0), ("ready", 40.0)):
            of = f'{{datacenter="dc1",host="vm",node_id="{NODE}",node_status="{status}"}}'
            lines += [f"nomad_client_host_cpu_idle{of} {idle}", f"nomad_client_host_memory_total{of} 1000"]
            lines.append(f"nomad_client_host_memory_available{of} {900 if status == 'initializing' else 600}")
        return "\n".join([*lines, 'nomad_nomad_blocked_evals_total_blocked{host="vm"} 0', ""])


def _stub(a: Allocation) -> dict[str, Any]:
    return {
        "ID": a.id,
        "Name": a.name,
        "TaskGroup": a.group,
        "ClientStatus": a.status,
        "DesiredStatus": a.desired,
        "JobVersion": a.version,
        "DeploymentStatus": None,
        "TaskStates": {
            "server": {"StartedAt": _moment(a.due), "FinishedAt": _moment(a.ended), "Failed": a.status == "failed"}
        },
    }


def _moment(at: float | None) -> str:
    """With nanoseconds; the year 1 is none."""
    if at is None:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%S") + ".123456789Z"


def _port(a: Allocation) -> dict[str, Any]:
    return {"Label": "api", "Value": a.port, "To": 8000, "HostIP": "127.0.0.1"}
