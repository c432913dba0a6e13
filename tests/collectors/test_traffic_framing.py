"""HTTP/1.1 framing: the same payload however it is cut, an end that is exact, and nothing but BadAnswer on what is none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.sse import SseReader
from collectors.traffic.framing import MAX_HEAD, Answer, BadAnswer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)] or [b""]


def fed(pieces: list[bytes]) -> tuple[Answer, bytes]:
    answer, payload = Answer(), b""
    for piece in pieces:
        assert not answer.complete
        payload += answer.feed(piece)
    return answer, payload


def chunked(parts: list[bytes], extension: bytes = b"") -> bytes:
    return b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in parts if p) + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_chunks_are_the_same_however_they_are_cut(parts: list[bytes], places: list[int]) -> None:
    answer, payload = fed(cut(HEAD + chunked(parts), places))
    assert answer.complete
    assert answer.reusable
    assert payload == b"".join(parts)


def test_a_payload_that_looks_like_an_end_is_none() -> None:
    answer, payload = fed([HEAD, b"5\r\n0\r\n\r\n", b"\r\n", b"7\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"])
    assert answer.complete
    assert payload == b"0\r\n\r\n" + b"\r\n0\r\n\r\n"


def test_extensions_trailers_and_interim_answers() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n"
    for places in ([], [10], list(range(0, len(data), 3))):
        answer, payload = fed(cut(data, places))
        assert (answer.status, payload, answer.complete) == (200, b"abc", True)


def test_ends_by_length_by_closing_and_at_once() -> None:
    answer, payload = fed([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nRetry-After: 7\r\n\r\nbu", b"sy"])
    assert (answer.status, payload, answer.complete, answer.reusable) == (503, b"busy", True, True)
    assert answer.headers["retry-after"] == "7"
    answer, payload = fed([b"HTTP/1.1 200 OK\r\n\r\nabc"])
    assert not answer.complete
    answer.eof()
    assert (answer.complete, answer.reusable, payload) == (True, False, b"abc")
    assert fed([b"HTTP/1.1 204 No Content\r\n\r\n"])[0].complete
    assert fed([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])[0].complete


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
    ],
)
def test_a_connection_that_the_server_closes_is_not_used_again(head: bytes) -> None:
    answer, _ = fed([head])
    assert answer.complete
    assert not answer.reusable


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2xx OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
        HEAD + b"zz\r\n",
        HEAD + b"-3\r\n",
        HEAD + b"\r\n",
        HEAD + b"3\r\nabcd\r\n",
        HEAD + b"fffffffffffffffff\r\n",
        HEAD + b"0\r\n\r\nHTTP/1.1",
        HEAD + b"a" * 9000,
        b"x" * (MAX_HEAD + 1),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        fed([data])


def test_what_broke_off() -> None:
    for data in (
        b"",
        b"HTTP/1.1 200",
        HEAD,
        HEAD + b"5\r\nab",
        HEAD + b"2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
    ):
        answer, _ = fed([data])
        with pytest.raises(BadAnswer):
            answer.eof()


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
def test_any_bytes_are_an_answer_or_bad(data: bytes, places: list[int]) -> None:
    answer = Answer()
    try:
        for piece in cut(data, places):
            if not answer.complete:
                answer.feed(piece)
        answer.eof()
    except BadAnswer:
        return
    assert answer.complete


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1, max_size=12),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 4000), max_size=20),
    st.lists(st.integers(1, 40), max_size=10),
)
def test_events_survive_every_line_end_comment_and_cut(
    texts: list[str], end: str, places: list[int], sizes: list[int]
) -> None:
    """Split within a character, within a line end, within a chunk's size: the events are the same."""
    body = "".join(f": keep-alive{end}{end}data: {text}{end}{end}" for text in texts).encode()
    edges = [0, *sorted({s * 7 % len(body) for s in sizes}), len(body)]
    data = HEAD + chunked([body[a:b] for a, b in itertools.pairwise(edges)])
    answer, reader, events = Answer(), SseReader(), []
    for piece in cut(data, places):
        events += reader.feed(answer.feed(piece))
    events += reader.finish()
    assert answer.complete
    assert [data for _, data in events] == texts
