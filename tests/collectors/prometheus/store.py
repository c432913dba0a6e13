"""A strict stand-in for Prometheus' HTTP API: it evaluates nothing, and answers known queries with what a test gives. The real servers are
asked in ``tests/real``."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.collectors.servers import Request, head_of, serve

#: Labels, and a value at each end of an interval, or one for all of them.
Row = tuple[Mapping[str, str], float | Mapping[float, float]]


@dataclass
class Refusal:
    """How it answers instead."""

    status: str = "422 Unprocessable Entity"
    kind: str = "execution"
    error: str = "query processing would load too many samples into memory in query execution"
    body: str | None = None


@dataclass
class FakeStore:
    """Queries are matched by a part of their text, the first that fits."""

    answers: list[tuple[str, Sequence[Row] | Refusal]] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    """What each request must carry."""
    url: str = ""
    queries: list[str] = field(default_factory=list)

    def tell(self, part: str, *rows: Row) -> None:
        self.answers.append((part, rows))

    def refuse(self, part: str, refusal: Refusal) -> None:
        self.answers.append((part, refusal))

    def answer(self, request: Request) -> tuple[str, str]:
        form = dict(parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True))
        assert request.method == "POST"
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        for name, value in self.headers.items():
            assert request.headers.get(name) == value
        if request.path == "/api/v1/series":
            return self._found(form["match[]"], self._labels)
        assert request.path == "/api/v1/query_range"
        assert set(form) == {"query", "start", "end", "step"}
        start, end, step = (float(form[name]) for name in ("start", "end", "step"))
        assert start <= end
        assert (end - start) / step <= 11_000
        query = form["query"]
        assert "$" not in query
        assert re.search(r"\[(?!\d+[sm]\])", query) is None
        assert query.count("(") == query.count(")")
        assert re.search(r"\{,|,,|,\}|\{\}", query) is None
        self.queries.append(query)
        moments = [start + step * i for i in range(round((end - start) / step) + 1)]
        return self._found(query, lambda rows: {"resultType": "matrix", "result": _matrix(rows, moments)})

    def _found(self, query: str, shape: Callable[[Sequence[Row]], Any]) -> tuple[str, str]:
        for part, answer in self.answers:
            if part in query:
                if isinstance(answer, Refusal):
                    body = {"status": "error", "errorType": answer.kind, "error": answer.error}
                    return answer.status, json.dumps(body) if answer.body is None else answer.body
                return "200 OK", json.dumps({"status": "success", "data": shape(answer)})
        return "200 OK", json.dumps({"status": "success", "data": shape([])})

    def _labels(self, rows: Sequence[Row]) -> list[Mapping[str, str]]:
        return [labels for labels, _ in rows]


def _matrix(rows: Sequence[Row], moments: Sequence[float]) -> list[dict[str, Any]]:
    result = []
    for labels, value in rows:
        points = [(at, value.get(at) if isinstance(value, Mapping) else value) for at in moments]
        result.append({"metric": labels, "values": [[at, _text(v)] for at, v in points if v is not None]})
    return result


def _text(value: float) -> str:
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(str(value), repr(value))


@contextmanager
def fake_store(**fields: Any) -> Iterator[FakeStore]:
    store = FakeStore(**fields)

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        try:
            status, body = store.answer(request)
        except (AssertionError, KeyError, ValueError) as error:
            status, body = (
                "400 Bad Request",
                json.dumps({"status": "error", "errorType": "strict", "error": repr(error)}),
            )
        writer.write(head_of(status, "application/json", len(body.encode())) + body.encode())

    with serve(handler) as served:
        store.url = served.url
        yield store
