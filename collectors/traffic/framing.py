"""One HTTP/1.1 answer, from bytes as they come off the socket: its head, its payload, and where it ends (RFC 9112).

Owns the framing and nothing of what the payload means. Feed it reads, cut anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_HEAD = 64 * 2**10
_MAX_LINE = 8 * 2**10
_NO_BODY = (204, 304)


class BadAnswer(ValueError):
    """What came is no HTTP/1.1 answer, or it broke off."""


class Answer:
    """The answer so far. ``feed`` gives the payload of each read; ``complete`` says that there is no more to come."""

    __slots__ = (
        "_between", "_chunked", "_close", "_crlf", "_head", "_last", "_left", "_need", "complete", "headers", "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self.status: int | None = None
        """None: the head is not whole yet."""
        self.headers: Mapping[str, str] = {}
        """Names in lower case."""
        self.complete = False
        self._head = b""
        self._chunked = False
        self._between = False
        """The next byte begins a chunk."""
        self._close = False
        """The end of the connection is the end of the payload."""
        self._need = 0
        """Bytes of payload to come: of the chunk, or of the whole."""
        self._crlf = False
        """A chunk's closing line end is to come."""
        self._last = False
        """The last chunk is through: trailers follow."""
        self._left = b""

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.complete and not self._close and "close" not in self.headers.get("connection", "").lower()

    def feed(self, data: bytes) -> bytes:
        """The payload in this read. Raises BadAnswer."""
        if self._between:  # nearly every read of a stream is one whole chunk
            at = data.find(b"\r\n", 0, 9)
            if at > 0 and data.endswith(b"\r\n") and (digits := data[:at]).isalnum():
                try:
                    size = int(digits, 16)
                except ValueError:
                    size = 0
                if size and size == len(data) - at - 4:
                    return data[at + 2 : -2]
        if self.status is None:
            self._head += data
            data = self._take_head()
            if self.status is None:
                return b""
        if self._chunked:
            return self._chunks(data)
        if self._close:
            return data
        if len(data) > self._need:
            raise BadAnswer("more than the content-length was sent")
        self._need -= len(data)
        self.complete = self._need == 0
        return data

    def eof(self) -> bytes:
        """The server closed the connection; no payload. Raises BadAnswer where more should have come."""
        if self.status is not None and self._close:
            self.complete = True
        if not self.complete:
            raise BadAnswer("the connection was closed in the middle of the answer")
        return b""

    def _take_head(self) -> bytes:
        """Read the head where it is whole; what follows it, or nothing where it is not."""
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_HEAD:
                raise BadAnswer(f"the head is longer than {MAX_HEAD} bytes")
            return b""
        first, *lines = self._head[:end].decode("latin-1").split("\r\n")
        rest, self._head = self._head[end + 4 :], b""
        version, _, after = first.partition(" ")
        code = after[:3]
        if not version.startswith("HTTP/1.") or not code.isdecimal() or not code.isascii():
            raise BadAnswer(f"{first[:40]!r} is no HTTP/1.1 status line")
        if code.startswith("1"):  # an interim answer: the real one follows
            self._head = rest
            return self._take_head() if rest else b""
        self.headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        self.status = int(code)
        self._set_end(version)
        return rest

    def _set_end(self, version: str) -> None:
        length = self.headers.get("content-length")
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if self._chunked:
            return
        if self.status in _NO_BODY:
            self.complete = True
        elif length is None:
            self._close = True
        elif not (length.isascii() and length.isdecimal()) or len(length) > 15:
            raise BadAnswer(f"content-length {length[:20]!r} is no length")
        else:
            self._need = int(length)
            self.complete = self._need == 0
        if version == "HTTP/1.0" and "keep-alive" not in self.headers.get("connection", "").lower():
            self.headers = {**self.headers, "connection": "close"}

    def _chunks(self, data: bytes) -> bytes:
        if self.complete and data:
            raise BadAnswer("bytes follow the end of the answer")
        if self._left:
            data, self._left = self._left + data, b""
        parts: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.complete:
            if self._need:
                part = data[at : at + self._need]
                parts.append(part)
                at += len(part)
                self._need -= len(part)
                self._crlf = self._need == 0
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                if end - at > _MAX_LINE:
                    raise BadAnswer(f"a line between chunks is longer than {_MAX_LINE} bytes")
                break
            self._line(data[at:line_end])
            at = line_end + 2
        if self.complete and at < end:
            raise BadAnswer("bytes follow the end of the answer")
        self._left = data[at:]
        self._between = not (self._need or self._left or self._crlf or self._last)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, line: bytes) -> None:
        """A line outside of a chunk: the end of one, the size of the next, or a trailer."""
        if self._crlf:
            if line:
                raise BadAnswer("a chunk is longer than it says")
            self._crlf = False
        elif self._last:
            self.complete = not line
        else:
            digits = line.partition(b";")[0].strip()
            if not digits or len(digits) > 12 or digits.strip(b"0123456789abcdefABCDEF"):
                raise BadAnswer(f"{line[:20]!r} is no size of a chunk")
            self._need = int(digits, 16)
            self._last = self._need == 0
