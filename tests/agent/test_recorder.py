"""A recorded stretch as a trace: which requests it has, what is cached, whose session goes on, and what was seen of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent import recorder
from agent.store import Store, flights
from analyzers.whatif.traffic import RecordedLengths
from collectors.flight import FlightRecord
from collectors.traces import read
from collectors.window import Window
from tests.agent.daemons import invoke, write_settings

AT = 1_800_000_000.0


def record(number: int, at: float, **told: Any) -> FlightRecord:
    return FlightRecord(
        f"{number:032x}",
        told.pop("side", "server"),
        AT + at,
        **{"prompt_tokens": 100, "output_tokens": 10, "ttft_s": 0.2, "e2e_s": 1.0, **told},
    )


def stretch(store: Store, *records: FlightRecord, end: float = 1e4) -> recorder.Flights:
    with store.write() as db:
        flights.keep(db, [("chat", each) for each in records])
    with store.read() as db:
        return recorder.stretch(db, "chat", AT, AT + end)


def blocks(*names: str) -> bytes:
    return b"".join(name.encode().rjust(8, b"\0") for name in names)


def test_arrivals_and_lengths_in_order_within_the_stretch(store: Store) -> None:
    found = stretch(store, record(2, 3.5, prompt_tokens=7), record(1, 1.0), record(3, 20_000.0))
    assert found.workload.arrival_s.tolist() == [0.0, 2.5]
    assert found.workload.prompt_tokens.tolist() == [100, 7]
    assert (found.first_at, found.side) == (AT + 1.0, "server")
    assert found.workload.session is None
    assert found.workload.prefix_tokens.tolist() == [0, 0]
    assert "nothing is known of the prefix cache" in found.notes[0]


def test_what_failed_or_does_not_tell_its_lengths_is_left_out_and_counted(store: Store) -> None:
    lacking = record(3, 2.0, output_tokens=None)
    found = stretch(store, record(1, 0.0), record(2, 1.0, error="throttled", ttft_s=99.0), lacking)
    assert len(found.workload) == 1
    assert found.seen["ttft_s"]["count"] == 1
    assert "1 requests that were not served are left out" in found.notes
    assert "1 requests that do not tell their lengths are left out" in found.notes


def test_the_servers_measurement_is_taken_where_callers_measured_too(store: Store) -> None:
    found = stretch(store, record(1, 0.0, ttft_s=0.1), record(2, 0.0, side="client", ttft_s=0.9))
    assert (len(found.workload), found.side, found.seen["ttft_s"]["mean"]) == (1, "server", 0.1)
    assert "callers measured too" in found.notes[0]


def test_a_beginning_that_was_there_before_is_cached_and_who_goes_on_is_of_its_session(store: Store) -> None:
    found = stretch(
        store,
        record(1, 0.0, blocks=blocks("s", "a"), blocks_whole=2.5),
        record(2, 1.0, blocks=blocks("s", "b"), blocks_whole=2.0),
        record(3, 2.0, blocks=blocks("s", "a", "a2"), blocks_whole=4.0),
        record(4, 3.0),
    )
    assert found.workload.prefix_tokens.tolist() == [0, 50, 50, 0]
    assert found.workload.session is not None
    first, second, third, fourth = found.workload.session.tolist()
    assert first == third, "it has all of the first one's blocks"
    assert len({first, second, fourth}) == 3, "the system's part alone is no session"
    assert "3 of 4 requests tell the beginnings" in found.notes[0]


def test_what_the_server_says_was_cached_stands_before_what_hashes_say(store: Store) -> None:
    found = stretch(store, record(1, 0.0, blocks=blocks("s"), blocks_whole=1.0, cached_tokens=0),
                    record(2, 1.0, blocks=blocks("s"), blocks_whole=1.0, cached_tokens=64), record(3, 2.0, cached_tokens=100))  # fmt: skip
    assert found.workload.prefix_tokens.tolist() == [0, 64, 99], "at least one token is computed"


def test_what_was_seen_is_of_those_that_tell_it(store: Store) -> None:
    found = stretch(store, *(record(i, i, ttft_s=0.1 * (i + 1), e2e_s=None) for i in range(10)))
    assert found.seen["ttft_s"] == {
        "count": 10, "mean": pytest.approx(0.55), "p50": pytest.approx(0.55), "p95": pytest.approx(0.955), "p99": pytest.approx(0.991),
    }  # fmt: skip
    assert found.seen["e2e_s"] is None


def test_lengths_are_those_of_the_newest_that_were_answered(store: Store) -> None:
    def lengths(start: float, end: float) -> RecordedLengths | None:
        with store.read() as db:
            return recorder.lengths(db, "chat", AT + start, AT + end)

    answered = [record(i, i, prompt_tokens=100 + i, output_tokens=i) for i in range(1, 201)]
    broken = [record(900 + i, 5.0, error="500", prompt_tokens=1, output_tokens=1) for i in range(150)]
    silent = [record(2000 + i, 6.0, output_tokens=None) for i in range(150)]
    stretch(store, *answered, *broken, *silent)
    found = lengths(0, 1e4)
    assert found is not None
    assert sorted(found.output_tokens.tolist()) == list(range(1, 201))
    assert (found.prompt_tokens - found.output_tokens == 100).all(), "of one request each"
    assert lengths(0, 50) is None, "49 tell nothing"


def test_nothing_to_replay_is_said(store: Store) -> None:
    with pytest.raises(recorder.NoFlights, match="has no request of this time"):
        stretch(store)
    with pytest.raises(recorder.NoFlights, match="none of 1 requests was served"):
        stretch(store, record(1, 0.0, error="error"))


def test_at_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.clock.time.time", lambda: AT + 100)
    config = write_settings(tmp_path, [{"name": "chat", "url": "http://127.0.0.1:9", "model": "m"}])
    store = Store(f"sqlite:///{tmp_path / 'flyball.db'}")
    store.upgrade()
    with store.write() as db:
        flights.keep(db, [("chat", record(i, i)) for i in range(5)])
    store.close()
    out = tmp_path / "t.parquet"
    told = invoke(
        "recorder", "export", "chat", "--out", out, "--since", "97.5", "--until", "1s", "-c", config, "-o", "json"
    )
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert (answer["requests"], answer["prompt_tokens"], answer["first_at"]) == (2, 200, AT + 3)
    assert read(out).workload.arrival_s.tolist() == [0.0, 1.0]
    text = invoke("recorder", "export", "chat", "--out", tmp_path / "t.csv", "-c", config)
    assert "5 requests of chat" in text.stdout
    assert "TTFT" in text.stdout
    listed = json.loads(invoke("recorder", "list", "-c", config, "-o", "json").stdout)
    assert [(r["endpoint"], r["side"], r["requests"]) for r in listed["recorded"]] == [("chat", "server", 5)]
    assert "server" in invoke("recorder", "list", "-c", config).stdout
    assert (
        invoke("recorder", "export", "chat", "--out", tmp_path / "t.csv", "--since", "1s", "-c", config).exit_code == 1
    )
    assert invoke("recorder", "export", "other", "--out", tmp_path / "t.csv", "-c", config).exit_code == 2
    assert invoke("recorder", "export", "chat", "--out", tmp_path / "no" / "t.csv", "-c", config).exit_code == 2


def minutes(requests: list[float], **more: float) -> list[Window]:
    return [
        Window("chat", "otlp", AT + 60.0 * i, 60.0, 1.0, 1, counts={"requests": n, **more})
        for i, n in enumerate(requests)
    ]


def test_a_span_is_whole_where_about_all_that_were_answered_are_recorded(store: Store) -> None:
    with store.write() as db:
        flights.keep(db, [("chat", record(i, 10.0 * i)) for i in range(12)])
    with store.read() as db:
        whole = recorder.whole(db, "chat", minutes([6.0, 6.0]))
        assert whole is not None
        assert whole.arrival_s.tolist() == [10.0 * i for i in range(12)]
        assert recorder.whole(db, "chat", minutes([6.0, 6.0], throttled=0.5)) is not None, (
            "refused calls are no lost ones"
        )
        assert recorder.whole(db, "chat", minutes([6.0, 9.0])) is None, "three are not there"
        assert recorder.whole(db, "chat", minutes([3.0, 3.0])) is None, "more than were counted"
        assert recorder.whole(db, "chat", minutes([0.0, 0.0])) is None
        assert recorder.whole(db, "chat", []) is None
        assert recorder.whole(db, "other", minutes([6.0, 6.0])) is None
