"""The event-stream reader gives the same events however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.sse import SseReader

STREAM = (
    b"\xef\xbb\xbf: hello\r\n"
    b"data: one\r\n\r\n"
    b"event: error\ndata: two\ndata:  lines\n\n"
    b"data\rdata:\xc3\xa4\xe2\x82\xac\xf0\x9f\x9a\x80\r\r"
    b"id: 7\nretry: 10\n\n"
    b"event: lost\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    ("message", "one"),
    ("error", "two\n lines"),
    ("message", "\nä€🚀"),
    ("message", "[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cut_anywhere(cuts: list[int]) -> None:
    reader = SseReader()
    places = [0, *sorted(cuts), len(STREAM)]
    found = [e for a, b in itertools.pairwise(places) for e in reader.feed(STREAM[a:b])]
    assert found == EVENTS
    assert reader.finish() == []


def test_byte_by_byte() -> None:
    reader = SseReader()
    assert [e for i in range(len(STREAM)) for e in reader.feed(STREAM[i : i + 1])] == EVENTS


def test_the_last_event_may_lack_its_blank_line() -> None:
    reader = SseReader()
    assert reader.feed(b"data: a\n\ndata: b") == [("message", "a")]
    assert reader.finish() == [("message", "b")]


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: " + b"x" * 100 + b"\n"])
def test_an_event_without_end_is_refused(piece: bytes) -> None:
    reader = SseReader(max_event=1000)

    def feed_on() -> None:
        for _ in range(15):
            reader.feed(piece)

    with pytest.raises(ValueError, match="longer"):
        feed_on()


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes(chunks: list[bytes]) -> None:
    reader = SseReader()
    events = [e for chunk in chunks for e in reader.feed(chunk)] + reader.finish()
    assert len(events) <= b"".join(chunks).count(b"data")
