"""Several workers as processes: one clock, one answer, and an end whatever happens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from collectors.plan import Lengths
from collectors.traffic.account import CountRules
from collectors.traffic.connection import resolve
from collectors.traffic.engine import Assignment
from collectors.traffic.fleet import WorkerFleet, divided, workers_for
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import OpenSchedule, SessionSchedule, ThinkTime, UserSchedule
from collectors.traffic.worker import COLUMNS, Row
from collectors.window import CollectError
from tests.collectors.exact import exact, open_loop, users


def assignment(url: str, load: Any, **changes: Any) -> Assignment:
    return Assignment(resolve(url), RequestTemplate("m"), load, CountRules(), **changes)


def test_two_workers_send_what_one_would() -> None:
    rows: list[Row] = []
    seen: list[Counter[str]] = []
    with exact() as server, WorkerFleet(2) as fleet:
        parts = divided(assignment(server.url, open_loop(50, 1.0, output=5), records=True), 2)
        run = fleet.send(parts, lambda _, counts: seen.append(counts), rows.extend)
        at = np.array(server.log()["at"])
    assert run.stopped is None
    tally = run.tally
    assert (tally.planned, tally.sent, tally.ok, tally.errors) == (50, 50, 50, {})
    assert (len(rows), len(at), tally.watch.workers) == (50, 50, 2)
    due = sorted(row[COLUMNS.index("due_s")] for row in rows)
    assert due == pytest.approx(np.arange(50) / 50), "one schedule, by one clock"
    assert tally.values["ttft_s"].count == 50
    assert seen[-1]["sent"] <= 50


def test_a_reason_to_stop_stops_all() -> None:
    with exact() as server, WorkerFleet(2) as fleet:
        parts = divided(assignment(server.url, users(4, 300.0, output=3)), 2)
        run = fleet.send(parts, lambda _, counts: "enough" if counts["ok"] >= 8 else None)
    assert run.stopped == "enough"
    assert run.tally.ok >= 8
    assert run.tally.sent == run.tally.ok + run.tally.abandoned
    assert run.elapsed_s < 100


def test_more_workers_than_work_is_fine_and_a_dead_one_is_an_error() -> None:
    with exact() as server:
        with WorkerFleet(3) as fleet:
            run = fleet.send(divided(assignment(server.url, users(1, 0.2, output=2)), 3))
        assert run.tally.ok == run.tally.sent >= 1
        with WorkerFleet(1) as fleet:
            fleet._workers[0].end(0.0)
            with pytest.raises(CollectError) as caught:
                fleet.send([assignment(server.url, open_loop(5, 1.0))])
        assert caught.value.kind == "client"


def test_workers_are_added_before_the_client_is_the_bottleneck() -> None:
    assert workers_for(0.0, cores=8) == 1
    assert workers_for(30_000, cores=8) == 2
    assert workers_for(1e9, cores=8) == 7
    assert workers_for(1e9, cores=1) == 1


def test_connections_and_caps_are_divided_too() -> None:
    server = resolve("http://127.0.0.1:1")
    whole = Assignment(server, RequestTemplate("m"), open_loop(10, 1), CountRules(), connections=9, most_in_flight=5)
    parts = divided(whole, 2)
    assert sum(part.most_in_flight or 0 for part in parts) == 5
    assert sum(part.connections for part in parts) >= 9
    assert (
        len(divided(Assignment(server, RequestTemplate("m"), open_loop(10, 1), CountRules(), most_in_flight=1), 4)) == 1
    )
    turns = SessionSchedule(
        np.arange(7.0), 9.0, Lengths.parse("fixed:5"), Lengths.parse("fixed:5"), Lengths.parse("fixed:2"), ThinkTime()
    )
    loads = [part.load for part in divided(Assignment(server, RequestTemplate("m"), turns, CountRules()), 3)]
    assert sum(load.starts.size for load in loads if isinstance(load, SessionSchedule)) == 7
    assert not any(isinstance(load, OpenSchedule | UserSchedule) for load in loads)
