"""The proxy's HTTP, over a file."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

MASTER_KEY = "sk-flyball-0123456789abcdef0123456789abcdef"
_ROUTER = {
    "routing_strategy": "simple-shuffle",
    "num_retries": 0,
    "allowed_fails": 3,
    "cooldown_time": 5,
    "fallbacks": None,
}
_NO_DATABASE = {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}}


class FakeProxy:
    """Use as ``with FakeProxy(file)``. It is restarted by ``restart``, a command that touches a file: it starts anew when that is newer."""

    def __init__(self, file: Path, *, starts_s: float = 0.0) -> None:
        self.file = file
        self.starts_s = starts_s
        self.touched = file.with_name("restarted")
        self.restart = ("touch", str(self.touched))
        self.down = False
        self.requests: list[tuple[str, str]] = []
        self.starts = 0
        self._read: int | None = None
        """Of which restart what it runs is."""
        self._ready_at = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                key = self.headers.get("authorization", "").removeprefix("Bearer ")
                status, body = outer.answer(self.command, self.path, key)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, key: str) -> tuple[int, Any]:
        self.requests.append((method, path))
        self._start()
        if self.down or time.monotonic() < self._ready_at:
            return 503, b"starting"
        if path == "/metrics/":
            return (200, b"# TYPE x gauge\n") if key == MASTER_KEY else (401, b'"Unauthorized access to metrics"')
        if key != MASTER_KEY:
            return (400, _NO_DATABASE) if key else (500, b"Internal Server Error")
        if method != "GET":
            return 500, {"error": "No DB Connected"}
        if path == "/model/info":
            return 200, {"data": [self._deployment(entry) for entry in self._runs["model_list"]]}
        if path == "/router/settings":
            litellm, router = self._runs.get("litellm_settings") or {}, self._runs.get("router_settings") or {}
            taken = {k: v for k, v in litellm.items() if k == "fallbacks"}
            return 200, {"fields": [], "current_values": {**_ROUTER, **taken, **router}}
        return 404, {"detail": "Not Found"}

    def _start(self) -> None:
        now = self.touched.stat().st_mtime_ns if self.touched.exists() else 0
        if now != self._read:
            self._read = now
            self._runs: dict[str, Any] = yaml.safe_load(self.file.read_text())
            self.starts += 1
            self._ready_at = time.monotonic() + (self.starts_s if self.starts > 1 else 0.0)

    def _deployment(self, entry: dict[str, Any]) -> dict[str, Any]:
        params = {k: v for k, v in entry["litellm_params"].items() if k != "api_key"}
        computed = hashlib.sha256(json.dumps(entry["litellm_params"], sort_keys=True).encode()).hexdigest()
        info = {"id": computed, "db_model": False, **(entry.get("model_info") or {})}
        return {"model_name": entry["model_name"], "litellm_params": params, "model_info": info}
