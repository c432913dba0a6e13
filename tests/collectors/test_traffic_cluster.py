"""Workers over a cluster, without one: clocks that differ, names of nodes, other Flyballs, and the relay of a worker's frames."""

from __future__ import annotations

import itertools
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.traffic import relay
from collectors.traffic.cluster import Cluster, reach
from collectors.traffic.fleet import WorkerFleet, divided
from collectors.traffic.relay import Relay, check, node_names, offset
from collectors.traffic.worker import Frame, packed, unpacked
from collectors.window import CollectError
from tests.collectors.exact import exact, open_loop
from tests.collectors.test_traffic_fleet import assignment


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0)), min_size=15, max_size=15))
def test_an_offset_is_wrong_by_half_of_the_least_round_trip_at_most(
    ahead: float, ways: list[tuple[float, float]]
) -> None:
    now = [1000.0]
    trips = iter(ways)

    def there() -> float:
        out, back = next(trips)
        now[0] += out
        stamp = now[0] + ahead
        now[0] += back
        return stamp

    assert abs(offset(there, lambda: now[0], len(ways)) - ahead) <= min(map(sum, ways)) / 2 + 1e-6


def test_nodes_that_share_a_name_are_told_apart() -> None:
    def node(name: str, number: str) -> dict[str, Any]:
        return {"NodeName": name, "NodeID": number * 40}

    assert node_names([node("10.0.0.1", "a"), node("10.0.0.2", "b"), node("10.0.0.1", "c")]) == {
        "a" * 40: "10.0.0.1/aaaaaaaa",
        "b" * 40: "10.0.0.2",
        "c" * 40: "10.0.0.1/cccccccc",
    }


def test_another_flyball_on_a_node_is_refused() -> None:
    check("n1", "3.12.1", "0.2.0", "", "0.2.0")
    with pytest.raises(CollectError, match=r"node n1 has Flyball 0\.1\.0, with Python 3\.12\.1; here is 0\.2\.0"):
        check("n1", "3.12.1", "0.1.0", "", "0.2.0")
    with pytest.raises(CollectError, match=r"node n1 has no Flyball that starts \(No module named 'collectors'\)"):
        check("n1", "3.12.1", None, "No module named 'collectors'", "0.2.0")


def test_what_ray_says_is_one_line() -> None:
    error = RuntimeError(
        "\nVersion mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\nThis process ..."
    )
    assert relay.brief(error, 3) == "Version mismatch: The cluster was started with: Ray: 2.60.0 Python: 3.12.1"
    assert relay.brief(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("address", ["head", "head:x", "ray://head:10001", "local", ":6379"])
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(CollectError, match="give HOST:PORT"):
        reach(address)


def test_nothing_at_an_address_is_said_before_ray_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CollectError, match=r"nothing answers there \(Connection refused\)"):
        Cluster(f"127.0.0.1:{port}")


def frames(of: Relay) -> Iterator[Frame | None]:
    while True:
        for data in of.read():
            yield None if data is None else unpacked(data)


@pytest.fixture
def started() -> Iterator[Relay]:
    made = Relay()
    made.begin()
    yield made
    made.end(0.0)


def test_a_relay_passes_on_all_that_its_worker_says(started: Relay) -> None:
    python, version, _ = started.hello()
    assert (python, version is not None) == (".".join(map(str, sys.version_info[:3])), True)
    with exact() as server:
        [part] = divided(assignment(server.url, open_loop(20, 0.5, output=3), records=True), 1)
        started.write(packed("assignment", part))
        said = frames(started)
        assert next(said) == ("ready", None)
        started.write(packed("start", started.clock() + 0.05))
        got = [frame for frame in itertools.takewhile(lambda frame: frame is not None, said) if frame is not None]
        assert got[-1][0] == "done"
        assert (
            got[-1][1].sent
            == server.log()["requests"]
            == sum(len(rows) for what, rows in got if what == "records")
            == 10
        )
    assert started.end(5.0) == "ended with 0"


def test_a_relay_says_how_its_worker_died(started: Relay) -> None:
    started.write(b"\x02\x00\x00\x00no")
    assert next(frames(started)) is None
    assert started.end(5.0).startswith("ended with 1: ")
    started.write(b"to nobody")


def test_a_relay_that_is_cut_off_ends_its_worker_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(relay, "SILENCE_S", 0.2)
    monkeypatch.setattr(relay.os, "_exit", left.append)
    cut_off = Relay()
    cut_off.begin()
    until = time.monotonic() + 20
    while not left and time.monotonic() < until:
        time.sleep(0.05)
    assert left == [1]
    assert cut_off.end(0.0).startswith("ended with ")


class _Elsewhere:
    """A worker behind a relay, as on another machine."""

    def __init__(self) -> None:
        self.node: str | None = "elsewhere"
        self._relay = Relay()
        self._relay.begin()
        self._frames = frames(self._relay)

    def write(self, what: str, value: Any) -> None:
        self._relay.write(packed(what, value))

    def read(self) -> Frame | None:
        return next(self._frames)

    def hang_up(self) -> None:
        self._relay.hang_up()

    def end(self, within_s: float) -> None:
        self._relay.end(within_s)

    def why(self) -> str:
        return self._relay.end(5.0)


class _Far:
    lead_s = 0.3

    def hire(self, workers: int) -> Sequence[_Elsewhere]:
        return [_Elsewhere() for _ in range(workers)]


def test_a_fleet_takes_workers_of_any_place() -> None:
    with exact() as server, WorkerFleet(2, _Far()) as fleet:
        run = fleet.send(divided(assignment(server.url, open_loop(40, 0.5, output=3)), 2))
        at = sorted(server.log()["at"])
    assert run.nodes == {"elsewhere": 2}
    assert (run.tally.sent, run.tally.ok, len(at)) == (20, 20, 20)
    assert at[-1] - at[0] == pytest.approx(19 / 40, abs=0.2)
