"""Two organizations: their projects and workspaces, limits, and what was used minute by minute."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ADMIN_KEY = "sk-admin-0123456789"
_WIDTHS = {"1m": (60, 1440), "1h": (3600, 168), "1d": (86400, 31)}
Body = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


class Organization:
    """What both have. ``used``: by (part, model, start of a minute): the report's row."""

    def __init__(self, *, page: int = 100) -> None:
        self.page = page
        self.used: dict[tuple[str | None, str, int], Body] = {}
        self.requests: list[tuple[str, str]] = []
        self.fail_next: int | None = None
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
                    status, body = outer.answer(self.command, self.path, dict(self.headers.items()), content)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer  # noqa: N815

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

    def answer(self, method: str, target: str, headers: dict[str, str], content: bytes) -> tuple[int, Body]:
        path = urlsplit(target).path
        self.requests.append((method, path))
        lower = {k.lower(): v for k, v in headers.items()}
        try:
            self.admit(lower)
            body = self.routed(method, path, parse_qs(urlsplit(target).query), json.loads(content or b"null"))
        except Refused as refused:
            return refused.status, {"error": {"message": refused.message, "type": refused.kind}}
        if self.fail_next is not None and method != "GET":
            status, self.fail_next = self.fail_next, None
            return status, {"error": {"message": "The server had an error", "type": "server_error"}}
        return 200, body

    def admit(self, headers: dict[str, str]) -> None:
        raise NotImplementedError

    def routed(self, method: str, path: str, query: dict[str, list[str]], sent: Any) -> Body:
        raise NotImplementedError

    def rows(self, start: int, width: int, parts: list[str], models: list[str]) -> dict[tuple[str | None, str], Body]:
        """Added up over a bucket."""
        found: dict[tuple[str | None, str], Body] = {}
        for (part, model, at), row in self.used.items():
            if not start <= at < start + width or (parts and part not in parts) or (models and model not in models):
                continue
            of = found.setdefault((part, model), {})
            for name, value in row.items():
                of[name] = of.get(name, 0) + value if isinstance(value, int) else value
        return found


class FakeOpenAI(Organization):
    """``limits``: by project and model. ``most``: tokens a minute of the organization, which no project's limit may be above."""

    def __init__(
        self, limits: dict[str, dict[str, tuple[int, int]]], *, most: int = 10_000_000, page: int = 100
    ) -> None:
        super().__init__(page=page)
        self.most = most
        self.limits = {
            project: {
                f"rl-{model}": {
                    "object": "project.rate_limit", "id": f"rl-{model}", "model": model, "max_tokens_per_1_minute": tokens,
                    "max_requests_per_1_minute": requests,
                }
                for model, (tokens, requests) in of.items()
            }
            for project, of in limits.items()
        }  # fmt: skip

    def use(self, project: str, model: str, at: int, requests: int, prompt: int, cached: int, output: int) -> None:
        self.used[project, model, at // 60 * 60] = {
            "num_model_requests": requests, "input_tokens": prompt, "input_cached_tokens": cached, "output_tokens": output,
        }  # fmt: skip

    def admit(self, headers: dict[str, str]) -> None:
        if headers.get("authorization") != f"Bearer {ADMIN_KEY}":
            raise Refused(401, "Incorrect API key provided: sk-...")

    def routed(self, method: str, path: str, query: dict[str, list[str]], sent: Any) -> Body:
        if path == "/v1/organization/projects" and method == "GET":
            every = [{"id": p, "name": p.removeprefix("proj_"), "status": "active"} for p in self.limits]
            return self._list([*every, {"id": "proj_old", "name": "old", "status": "archived"}], query)
        if path == "/v1/organization/usage/completions" and method == "GET":
            return self._usage(query)
        limits = re.fullmatch(r"/v1/organization/projects/([^/]+)/rate_limits(?:/([^/]+))?", path)
        if limits is None or limits[1] not in self.limits:
            raise Refused(404, f"Invalid URL or unknown project ({method} {path})")
        of = self.limits[limits[1]]
        if method == "GET" and limits[2] is None:
            return self._list(list(of.values()), query)
        if method != "POST" or limits[2] not in of:
            raise Refused(404, f"Rate limit {limits[2]} not found")
        for name, value in sent.items():
            if name not in ("max_tokens_per_1_minute", "max_requests_per_1_minute"):
                raise Refused(400, f"Unknown parameter: '{name}'.")
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise Refused(400, f"Invalid type for '{name}': expected an integer.")
            if name == "max_tokens_per_1_minute" and value > self.most:
                raise Refused(400, f"'{name}' must be less than or equal to the organization's limit of {self.most}.")
        of[limits[2]].update(sent)
        return of[limits[2]]

    def _list(self, every: list[Body], query: dict[str, list[str]]) -> Body:
        ids = [row["id"] for row in every]
        begin = ids.index(query["after"][0]) + 1 if "after" in query else 0
        shown = every[begin : begin + min(self.page, int(query.get("limit", ["20"])[0]))]
        more = begin + len(shown) < len(every)
        return {
            "object": "list",
            "data": shown,
            "first_id": ids[0] if ids else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": more,
        }

    def _usage(self, query: dict[str, list[str]]) -> Body:
        width, most = _WIDTHS[query["bucket_width"][0]]
        limit = int(query.get("limit", ["7"])[0])
        if limit > most:
            raise Refused(400, f"limit must be at most {most}")
        start = int(query.get("page", query["start_time"])[0]) // width * width
        end = int(query["end_time"][0])
        starts = list(range(start, end, width))
        shown = starts[: min(limit, self.page)]
        grouped = "model" in query.get("group_by", [])
        data = []
        for at in shown:
            rows = self.rows(at, width, query.get("project_ids", []), query.get("models", []))
            results = [
                {"object": "organization.usage.completions.result", "model": m if grouped else None, **r}
                for (_, m), r in rows.items()
            ]
            data.append({"object": "bucket", "start_time": at, "end_time": at + width, "results": results})
        more = len(shown) < len(starts)
        return {
            "object": "page",
            "data": data,
            "has_more": more,
            "next_page": str(starts[len(shown)]) if more else None,
        }


class FakeAnthropic(Organization):
    """``limits``: by model, of the organization; ``own``: by workspace and model."""

    def __init__(
        self, limits: dict[str, tuple[int, int]], own: dict[str, dict[str, tuple[int, int]]], *, page: int = 100
    ) -> None:
        super().__init__(page=page)
        self.limits, self.own = limits, own

    def use(
        self, workspace: str | None, model: str, at: int, uncached: int, written: int, read: int, output: int
    ) -> None:
        self.used[workspace, model, at // 60 * 60] = {
            "uncached_input_tokens": uncached, "written": written, "cache_read_input_tokens": read, "output_tokens": output,
        }  # fmt: skip

    def admit(self, headers: dict[str, str]) -> None:
        if headers.get("anthropic-version") != "2023-06-01":
            raise Refused(400, "anthropic-version: header is required")
        if headers.get("x-api-key") != ADMIN_KEY:
            raise Refused(401, "invalid x-api-key", "authentication_error")

    def routed(self, method: str, path: str, query: dict[str, list[str]], sent: Any) -> Body:
        if method != "GET":
            raise Refused(405, "Method Not Allowed")
        if path == "/v1/organizations/workspaces":
            data: list[Body] = [{"id": w, "name": w.removeprefix("wrkspc_"), "archived_at": None} for w in self.own]
            return {"data": data, "has_more": False, "first_id": None, "last_id": None}
        if path == "/v1/organizations/rate_limits":
            return {"data": [_group("rate_limit", m, v) for m, v in self.limits.items()], "next_page": None}
        own = re.fullmatch(r"/v1/organizations/workspaces/([^/]+)/rate_limits", path)
        if own is not None and own[1] in self.own:
            return {
                "data": [_group("workspace_rate_limit", m, v) for m, v in self.own[own[1]].items()],
                "next_page": None,
            }
        if path == "/v1/organizations/usage_report/messages":
            return self._usage(query)
        raise Refused(404, "Not found", "not_found_error")

    def _usage(self, query: dict[str, list[str]]) -> Body:
        width, most = _WIDTHS[query["bucket_width"][0]]
        if int(query["limit"][0]) > most:
            raise Refused(400, f"limit: must be at most {most}")
        first = query["page"][0] if "page" in query else query["starting_at"][0]
        start = int(datetime.fromisoformat(first).timestamp()) // width * width
        end = int(datetime.fromisoformat(query["ending_at"][0]).timestamp())
        starts = list(range(start, end, width))
        shown = starts[: min(int(query["limit"][0]), self.page)]
        groups = query.get("group_by[]", [])
        data = []
        for at in shown:
            rows = self.rows(at, width, query.get("workspace_ids[]", []), query.get("models[]", []))
            results = [
                {
                    "workspace_id": w if "workspace_id" in groups else None,
                    "model": m if "model" in groups else None,
                    "cache_creation": {"ephemeral_5m_input_tokens": r["written"], "ephemeral_1h_input_tokens": 0},
                    **{k: v for k, v in r.items() if k != "written"},
                }
                for (w, m), r in rows.items()
            ]
            data.append({"starting_at": _moment(at), "ending_at": _moment(at + width), "results": results})
        more = len(shown) < len(starts)
        return {"data": data, "has_more": more, "next_page": _moment(starts[len(shown)]) if more else None}


def _group(kind: str, model: str, values: tuple[int, int]) -> Body:
    tokens, requests = values
    limits = [{"type": "requests_per_minute", "value": requests}, {"type": "input_tokens_per_minute", "value": tokens}]
    return {"type": kind, "id": f"rlg_{model}", "group_type": "model_group", "models": [model], "limits": limits}


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
