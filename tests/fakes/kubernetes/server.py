"""The API server's HTTP: paths, media types, dry runs, field managers, pages, and who may what."""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.kubernetes.cluster import CUSTOM, GROUPS, Body, Cluster, Refused, invalid

MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_WORKLOADS = ("deployments", "statefulsets", "leaderworkersets")


class FakeKubernetes:
    """Use as ``with FakeKubernetes(cluster) as url``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request."""
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # head and body in one packet: two would wait for each other's acknowledgement
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                content = self.rfile.read(length)
                with outer._lock:
                    status, body, extra = outer.answer(self.command, self.path, dict(self.headers.items()), content)
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {
                    "content-type": "application/json",
                    "content-length": str(len(data)),
                    **extra,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

        self._handler = Handler
        self.url = ""
        """Where it listens, once it does."""

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
        """What may have changed something: a question that is sent as a POST and a dry run are none."""
        return [(m, p) for m, p in self.requests if m != "GET" and not p.startswith(_REVIEWS) and "dryRun=All" not in p]

    def answer(
        self, method: str, target: str, headers: dict[str, str], content: bytes
    ) -> tuple[int, Body, dict[str, str]]:
        self.requests.append((method, target))
        lower = {k.lower(): v for k, v in headers.items()}
        try:
            if self.cluster.down:
                raise Refused(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            if self.cluster.throttle_s is not None:
                seconds, self.cluster.throttle_s = self.cluster.throttle_s, None
                return (
                    429,
                    Refused(429, "TooManyRequests", "too many requests, please try again later").body(),
                    {"retry-after": str(seconds)},
                )
            if lower.get("authorization", "").removeprefix("Bearer ") not in self.cluster.tokens:
                raise Refused(401, "Unauthorized", "Unauthorized")
            status, body = self._routed(method, target, lower, json.loads(content) if content else None)
            return status, body, {}
        except Refused as refused:
            return refused.code, refused.body(), {}

    def _routed(self, method: str, target: str, headers: dict[str, str], sent: Any) -> tuple[int, Body]:
        parts = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        if parts.path == _REVIEWS and method == "POST":
            asked = sent["spec"]["resourceAttributes"]
            name = asked["resource"] + (f"/{asked['subresource']}" if asked.get("subresource") else "")
            allowed = (asked["verb"], name) not in self.cluster.denied
            return 201, {**sent, "status": {"allowed": allowed}}
        resource, namespace, name, sub = _parse(parts.path, self.cluster)
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "PUT": "update", "POST": "create"}.get(
            method, "delete"
        )
        shown = resource + (f"/{sub}" if sub else "")
        if (verb, shown) in self.cluster.denied:
            text = f'{shown}.{GROUPS[resource][0]} is forbidden: User "flyball" cannot {verb} resource "{shown}"'
            raise Refused(403, "Forbidden", text)
        if method == "POST":
            return 201, self.cluster.create(resource, namespace or "default", sent)
        if method == "GET":
            return 200, self._got(resource, namespace, name, sub, query)
        if method not in ("PATCH", "PUT") or name is None or namespace is None:
            raise Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if method == "PATCH":
            _media(resource, headers.get("content-type", ""))
        return 200, self._written(method, target, resource, namespace, name, sub, headers, query, sent)

    def _got(self, resource: str, namespace: str | None, name: str | None, sub: str, query: dict[str, str]) -> Body:
        if name is not None:
            body = self.cluster.get(resource, namespace or "default", name)
            return _scale(body) if sub == "scale" else body
        found = self.cluster.all(resource, namespace)
        begin, limit = int(query.get("continue") or 0), int(query.get("limit") or 0) or len(found)
        page = [copy.deepcopy(b) for b in found[begin : begin + limit]]
        if resource not in CUSTOM:  # a real server leaves these out of the items of a typed list
            for item in page:
                item.pop("kind", None)
                item.pop("apiVersion", None)
        more = {"continue": str(begin + limit)} if begin + limit < len(found) else {}
        return {"kind": f"{GROUPS[resource][2]}List", "metadata": more, "items": page}

    def _written(
        self, method: str, target: str, resource: str, namespace: str, name: str, sub: str, headers: dict[str, str],
        query: dict[str, str], sent: Body,
    ) -> Body:  # fmt: skip
        cluster, dry = self.cluster, query.get("dryRun") == "All"
        manager = query.get("fieldManager") or headers.get("user-agent", "").partition("/")[0] or "unknown"
        old = cluster.get(resource, namespace, name)
        strategic = headers.get("content-type") == STRATEGIC
        if sub == "scale":
            wanted = (sent.get("spec") or {}).get("replicas")
            if not isinstance(wanted, int) or wanted < 0:
                raise invalid(
                    "Scale",
                    "autoscaling",
                    name,
                    "spec.replicas",
                    f"Invalid value: {wanted}: must be greater than or equal to 0",
                )
            new = {**old, "spec": {**old["spec"], "replicas": wanted}}
        elif method == "PUT":
            new = {**old, **sent, "metadata": old["metadata"]}
        else:
            new = _merged(old, {k: v for k, v in sent.items() if k != "metadata"}, strategic)
            own = {k: v for k, v in (sent.get("metadata") or {}).items() if k in ("labels", "annotations")}
            new = {**new, "metadata": _merged(old["metadata"], own, strategic)}
        if resource == "pods" and sub == "resize":
            body = cluster.resized(namespace, name, new, sent, manager)
        elif resource == "pods" and new.get("spec") != old.get("spec"):
            raise Refused(
                422,
                "Invalid",
                f'Pod "{name}" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`',
            )
        else:
            body = cluster.write(resource, namespace, name, new, sent, manager, dry_run=dry)
        if not dry:
            cluster.written.append((method, urlsplit(target).path, manager))
        return _scale(body) if sub == "scale" else body


def _parse(path: str, cluster: Cluster) -> tuple[str, str | None, str | None, str]:
    """Resource, namespace, name, subresource."""
    words = path.strip("/").split("/")
    rest = words[2:] if words[0] == "api" else words[3:]
    group = "" if words[0] == "api" else words[1]
    namespace = None
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if group == "serving.knative.dev" and rest[:1] == ["services"]:
        rest = ["ksvc", *rest[1:]]
    known = rest and rest[0] in GROUPS and GROUPS[rest[0]][0] == group
    if not known or (rest[0] in CUSTOM and rest[0] not in cluster.installed):
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    return rest[0], namespace, rest[1] if len(rest) > 1 else None, rest[2] if len(rest) > 2 else ""


def _media(resource: str, content_type: str) -> None:
    allowed = (MERGE,) if resource in CUSTOM else (MERGE, STRATEGIC)
    if content_type not in allowed:
        text = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(allowed)
        raise Refused(415, "UnsupportedMediaType", text)


def _merged(old: Any, change: Any, strategic: bool) -> Any:
    """RFC 7386; strategic: lists of things with names merge by name."""
    if (
        isinstance(change, list)
        and strategic
        and isinstance(old, list)
        and all(isinstance(c, dict) and "name" in c for c in change)
    ):
        by_name = {c["name"]: c for c in change}
        kept = [_merged(o, by_name.pop(o["name"]), True) if o.get("name") in by_name else o for o in old]
        return [*kept, *by_name.values()]
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value, strategic)
    return merged


def _scale(body: Body) -> Body:
    meta = {k: body["metadata"][k] for k in ("name", "namespace", "resourceVersion")}
    status = {"replicas": (body.get("status") or {}).get("replicas", 0)}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": meta,
        "spec": {"replicas": body["spec"]["replicas"]},
        "status": status,
    }
