"""A connection of the traffic's own: a socket that never blocks, with TLS where the address says so.

Owns sockets and their failures. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from collectors.window import CollectError

READ = 2**16
#: Ask the kernel when it got what is read: ``SO_TIMESTAMPNS`` of Linux's asm-generic/socket.h, and the ``timespec`` that comes with it.
_STAMPED = 35
_TIMESPEC = struct.Struct("@ll")
_ROOM = socket.CMSG_SPACE(_TIMESPEC.size)
_UNDER_WAY = (0, errno.EINPROGRESS)
#: The client's own limits, not the server's doing.
OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the traffic goes, its name resolved once: looking it up is part of no latency."""

    scheme: str
    host: str
    port: int
    family: int
    address: tuple[Any, ...]
    """As ``socket`` takes it."""
    ca_file: Path | None = None
    """PEM of the authorities to trust instead of the system's."""

    @property
    def authority(self) -> str:
        """The Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.scheme == "https" else 80) else f"{name}:{self.port}"

    def tls(self) -> ssl.SSLContext | None:
        """None for plain HTTP. Raises OSError where ``ca_file`` cannot be read."""
        if self.scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        context.set_alpn_protocols(["http/1.1"])
        return context


def resolve(url: str, ca_file: Path | None = None, reach_s: float | None = None) -> ServerAddress:
    """The server of an address. Raises CollectError ``protocol`` for what is none, ``dns`` for an unknown name.

    reach_s: where a name has several addresses, the first that takes a connection within so long (``localhost`` is two, and a server may
    listen on one); None: the first.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https") or port == 0:
        raise CollectError("protocol", f"{url.partition('?')[0]!r} is no address such as http://host:port")
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise CollectError("dns", f"{host}: the name is not known. Check the address") from error
    chosen = found[0]
    if reach_s is not None and len(found) > 1:
        chosen = next((one for one in found if _answers(one[0], one[4], reach_s)), chosen)
    family, _, _, _, address = chosen
    return ServerAddress(parts.scheme, host, port, int(family), tuple(address), ca_file)


def _answers(family: int, address: tuple[Any, ...], within_s: float) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.settimeout(within_s)
        return tried.connect_ex(address) == 0


class Connection:
    """Open it, and go on with ``ready`` whenever the socket says so, until that is true; then ``send`` and ``receive``."""

    __slots__ = ("_context", "_host", "_message", "_out", "_plain", "carrying", "fd", "receive", "sock", "up", "used")

    def __init__(self, server: ServerAddress, context: ssl.SSLContext | None) -> None:
        """Raises OSError."""
        self.sock = socket.socket(server.family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # where the kernel knows no stamps, the reader's are taken
            self.sock.setsockopt(socket.SOL_SOCKET, _STAMPED, 1)
        code = self.sock.connect_ex(server.address)
        if code not in _UNDER_WAY:
            self.sock.close()
            raise OSError(code, "cannot connect")
        self.fd = self.sock.fileno()
        self._context, self._host = context, server.host
        self._plain = True
        self._out = b""
        self.up = False
        """Connected, and through with TLS."""
        self.used = False
        """It carried a request before, so the server may close it at any moment."""
        self.carrying: Any = None
        """The request under way."""
        self._message = self.sock.recvmsg
        self.receive: Callable[[int], tuple[bytes, float | None]] = self._receive
        """Bytes (none at the end), and the Unix second at which the kernel had the last of them; None where it does not say.
        Raises BlockingIOError where there are none yet, OSError."""

    def ready(self) -> bool:
        """Go on with opening it. Raises OSError (of which ssl.SSLError is one) where that failed."""
        if self.up:
            return True
        if self._plain:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, "cannot connect")
            self._plain = False
            if self._context is not None:
                self.sock = self._context.wrap_socket(
                    self.sock, server_hostname=self._host, do_handshake_on_connect=False
                )
                self.receive = self._receive_tls
        if isinstance(self.sock, ssl.SSLSocket):
            try:
                self.sock.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
        self.up = True
        return True

    def send(self, data: bytes) -> bool:
        """Hand over what the socket takes; whether that was all. Else call ``flush`` when it takes more. Raises OSError."""
        self._out = data
        return self.flush()

    def flush(self) -> bool:
        """Whether all is handed over."""
        while self._out:
            try:
                taken = self.sock.send(self._out)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            self._out = self._out[taken:]
        return True

    @property
    def sending(self) -> bool:
        """Whether a part of what was to be sent is still here."""
        return bool(self._out)

    def close(self) -> None:
        self.sock.close()
        self.carrying = None
        self.receive = _closed

    def _receive(self, size: int) -> tuple[bytes, float | None]:
        data, extras, _, _ = self._message(size, _ROOM)
        if not extras:
            return data, None
        seconds, nanoseconds = _TIMESPEC.unpack(extras[0][2])
        return data, seconds + nanoseconds * 1e-9

    def _receive_tls(self, size: int) -> tuple[bytes, float | None]:
        """All that is there: what TLS holds back already decrypted makes no socket ready. Its records hide the kernel's stamps."""
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            data = self.sock.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        except ssl.SSLEOFError:
            return b"", None
        while data and self.sock.pending():
            data += self.sock.recv(size)
        return data, None


def _closed(_size: int) -> tuple[bytes, float | None]:
    raise BlockingIOError


def judged(error: OSError) -> tuple[str, str]:
    """Kind and detail of a connection's failure."""
    if isinstance(error, ssl.SSLError):
        return "tls", f"{error.reason or error}. Trust its authority (--ca-file), or correct the address"
    if error.errno in OWN_LIMITS:
        return "client_limit", f"this machine gives no more connections ({error.strerror}). Raise `ulimit -n`"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset", "the server reset the connection"
    return "down", f"the server refuses connections or cannot be reached ({error.strerror or error})"
