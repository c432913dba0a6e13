"""Server-sent events, from bytes as they come off the socket. Owns the framing and nothing of what the data mean.

WHATWG HTML, section 9.2.6 "Interpreting an event stream": lines end in LF, CR or CRLF, a blank line ends an event,
``:`` begins a comment.
"""

from __future__ import annotations

MAX_EVENT = 2**20

#: Its kind, ``message`` unless the server named it; and its data.
Event = tuple[str, str]


class SseReader:
    """Feed it chunks, cut anywhere; it gives back the events that are complete."""

    def __init__(self, *, max_event: int = MAX_EVENT) -> None:
        """``max_event``: bytes of one event, and of one line, at most."""
        self._max_event = max_event
        self._rest = b""
        self._after_cr = False
        self._first = True
        self._kind = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes. Raises ValueError when one is larger than agreed."""
        if (  # one event of one line and nothing else, as nearly every chunk of a server's is
            chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and not (self._rest or self._data or self._kind)
            and b"\r" not in chunk
            and len(chunk) <= self._max_event
        ):
            self._first = self._after_cr = False
            return [("message", chunk[6:-2].decode("utf-8", "replace"))]
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        text = self._rest + chunk
        if b"\r" in text:
            self._after_cr = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        if len(self._rest) > self._max_event:
            raise ValueError(f"a line of an event stream is longer than {self._max_event} bytes")
        return [event for line in lines if (event := self._line(line)) is not None]

    def finish(self) -> list[Event]:
        """At the end of the stream: the last event where only its blank line is missing."""
        lines = [self._rest, b""] if self._rest else [b""]
        self._rest = b""
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value)
            if self._size > self._max_event:
                raise ValueError(f"an event of the stream is longer than {self._max_event} bytes")
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._kind = value.decode("utf-8", "replace")
        return None

    def _dispatch(self) -> Event | None:
        event = (self._kind or "message", "\n".join(self._data)) if self._data else None
        self._kind, self._data, self._size = "", [], 0
        return event
