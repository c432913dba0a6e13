"""HAProxy's statistics as rows, whether they came as CSV (the stats socket, the page's ``;csv``) or from its Prometheus exporter.

Owns the names of both. What a number means in Flyball's words is the source's. Pure.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

from collectors.exposition import Exposition
from collectors.pagesigns import told_apart
from collectors.text import clean
from collectors.window import CollectError

_HEAD = "# pxname,svname,"
_BACKEND = "BACKEND"
#: CSV's name to the exporter's, of servers and backends alike, and how many of CSV's units one of the exporter's is: times are ms there.
_EXPORTED: Mapping[str, tuple[str, float]] = {
    "qcur": ("current_queue", 1.0),
    "scur": ("current_sessions", 1.0),
    "slim": ("limit_sessions", 1.0),
    "econ": ("connection_errors_total", 1.0),
    "wretr": ("retry_warnings_total", 1.0),
    "wredis": ("redispatch_warnings_total", 1.0),
    "act": ("active_servers", 1.0),
    "bck": ("backup_servers", 1.0),
    "weight": ("weight", 1.0),
    "uweight": ("uweight", 1.0),
    "req_tot": ("http_requests_total", 1.0),
    "qtime": ("queue_time_average_seconds", 1000.0),
    "ctime": ("connect_time_average_seconds", 1000.0),
    "rtime": ("response_time_average_seconds", 1000.0),
    "ttime": ("total_time_average_seconds", 1000.0),
}
#: Of how many requests a time is the mean: TIME_STATS_SAMPLES in HAProxy's defaults.h.
SAMPLES = 512
_TIMES = ("qtime", "ctime", "rtime", "ttime")
_RESPONSES = "http_responses_total"
_STATUS = "status"
_STARTED = "haproxy_process_start_time_seconds"
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")
NAMES = {
    *(
        f"haproxy_{kind}_{name}"
        for kind in ("backend", "server")
        for name in (*(name for name, _ in _EXPORTED.values()), _RESPONSES, _STATUS)
    ),
    _STARTED,
}


@dataclass(frozen=True, slots=True)
class StatisticsRow:
    """One frontend, backend or server."""

    proxy: str
    server: str
    """``FRONTEND``, ``BACKEND``, or the server's name."""
    fields: Mapping[str, str]
    """By CSV's names, in CSV's units."""

    @property
    def is_backend(self) -> bool:
        return self.server == _BACKEND

    def text(self, name: str) -> str:
        return self.fields.get(name, "")

    def number(self, name: str) -> float | None:
        """None where the row does not have it. Raises CollectError on what is no number."""
        written = self.fields.get(name, "")
        if written in ("", "NaN"):
            return None
        try:
            value = float(written)
        except ValueError as error:
            raise CollectError("invalid_value", f"{self.proxy}/{self.server}: {name} is {written[:40]!r}") from error
        if not math.isfinite(value):
            raise CollectError("invalid_value", f"{self.proxy}/{self.server}: {name} is {written[:40]!r}")
        return value


@dataclass(frozen=True, slots=True)
class StatisticsPage:
    """One reading."""

    rows: list[StatisticsRow]
    started_at: float | None
    """Of the process, Unix seconds; None: not told."""


def rows_of_csv(text: str) -> list[StatisticsRow]:
    """Raises CollectError ``not_haproxy`` where it is no such table."""
    if not text.startswith(_HEAD):
        raise CollectError("not_haproxy", f"the answer is no table of HAProxy's statistics: {clean(text[:80])!r}")
    rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
    return [
        StatisticsRow(row["pxname"], row["svname"], {k: v for k, v in row.items() if k and v})
        for row in rows
        if row.get("pxname") and row.get("svname")
    ]


class StatisticsReader:
    """Reads pages of either form. Keep it: it remembers the exporter's lines."""

    def __init__(self) -> None:
        self._exposition = Exposition(NAMES, max_series=200_000)

    def read(self, body: bytes, content_type: str) -> StatisticsPage:
        """Raises CollectError: not_haproxy, not_metrics, truncated, too_large, invalid_value."""
        if body.startswith(_HEAD.encode()):
            return StatisticsPage(rows_of_csv(body.decode("utf-8", "replace")), None)
        page = self._exposition.parse(body, content_type)
        if not page:
            raise CollectError("not_haproxy", told_apart(body, "HAProxy's"))
        fields: dict[tuple[str, str], dict[str, str]] = {}
        for kind in ("backend", "server"):
            for name, (theirs, times) in _EXPORTED.items():
                for labels, value in page.get(f"haproxy_{kind}_{theirs}", ()):
                    _of(fields, labels)[name] = repr(value * times)
            for labels, value in page.get(f"haproxy_{kind}_{_RESPONSES}", ()):
                _of(fields, labels)[f"hrsp_{labels.get('code')}"] = repr(value)
            for labels, value in page.get(f"haproxy_{kind}_{_STATUS}", ()):
                if value == 1.0:
                    _of(fields, labels)["status"] = labels.get("state", "")
        for each in (
            fields.values()
        ):  # the exporter divides by 512 however few there were: 20 requests of 1 s have a mean of 39 ms there
            if sum(float(v) for name, v in each.items() if name.startswith("hrsp_")) < SAMPLES:
                for name in _TIMES:
                    each.pop(name, None)
        started = page.get(_STARTED)
        rows = [StatisticsRow(proxy, server, each) for (proxy, server), each in fields.items()]
        return StatisticsPage(rows, started[0][1] if started else None)


def _of(fields: dict[tuple[str, str], dict[str, str]], labels: Mapping[str, str]) -> dict[str, str]:
    return fields.setdefault((labels.get("proxy", ""), labels.get("server", _BACKEND)), {})
