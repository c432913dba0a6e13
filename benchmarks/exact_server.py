"""A server whose timing is known: an OpenAI-compatible event stream, TTFT 100 ms, then a token each 10 ms, 50 tokens.

One thread around ``epoll``, its answers made of bytes that are there before anyone asks, so that it is fast enough not to matter
beside what is measured. It answers from when the kernel had a request, by the kernel's own stamp, so that reading it late delays nothing.
What it really did is its own log: ``GET /log`` gives, since the last ``GET /reset``, how late it was, and the times from having a request
to sending its first token. ``X-Case`` headers, or ``--case``, ask for the answers that clients get wrong.

    python benchmarks/exact_server.py --port 8399 [--case spec4]
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import select
import socket
import struct
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

CASES = (
    "plain", "spec4", "spec4_usage", "role_early", "reasoning", "late_usage", "coalesced", "http_503", "reset", "in_stream_error", "truncated",
    "stall",
)  # fmt: skip
STALL_AT_S, STALL_S = 2.0, 3.0
#: Linux's SO_TIMESTAMPNS, and what comes with it.
STAMPED, TIMESPEC = 35, struct.Struct("@ll")
_BAD_EVERY = 10


@dataclass(slots=True)
class Timing:
    ttft_s: float = 0.1
    itl_s: float = 0.01
    tokens: int = 50


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(message: dict[str, Any] | str) -> bytes:
    return b"data: " + (message if isinstance(message, str) else json.dumps(message)).encode() + b"\n\n"


def delta(reason: str | None = None, **parts: Any) -> bytes:
    return event(
        {
            "id": "exact-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "exact",
            "choices": [{"index": 0, "delta": parts, "finish_reason": reason}],
        }
    )


def usage(tokens: int, prompt: int) -> bytes:
    return event(
        {
            "id": "exact-1",
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens},
        }
    )


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = chunk(event("[DONE]")) + b"0\r\n\r\n"
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\nbusy"
)
NOTHING = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
#: In a plan of writes: close the connection as a failing machine does.
RESET = b"<reset>"

Plan = list[tuple[float, bytes]]


def arrived(seconds: int, nanoseconds: int) -> float:
    """The kernel's stamp on this process's clock."""
    while True:
        wall, now, again = time.time(), time.perf_counter(), time.time()
        if again - wall < 50e-6:  # nothing came between the two clocks
            return min(now, now - (wall - seconds - nanoseconds * 1e-9))


def plan_of(case: str, timing: Timing, tokens: int, prompt: int, bad: bool) -> Plan:
    """What is written when: seconds from the request, bytes."""
    ttft, itl = timing.ttft_s, timing.itl_s
    at = [ttft + i * itl for i in range(tokens)]
    end = chunk(usage(tokens, prompt)) + LAST
    if case == "http_503" and bad:
        return [(0.0, BUSY)]
    if case.startswith("spec4"):
        return _spec(at, prompt, case == "spec4_usage", end)
    words = [chunk(delta(content="word ")) for _ in at]
    if case == "reasoning":
        words[: tokens // 2] = [chunk(delta(reasoning_content="hm ")) for _ in at[: tokens // 2]]
    words[-1] = chunk(delta("length", content="word "))
    plan: Plan = list(zip(at, words, strict=True))
    if case == "role_early":
        plan.insert(0, (0.005, HEAD + chunk(delta(role="assistant", content=""))))
        return [*plan[:-1], (plan[-1][0], plan[-1][1] + end)]
    if case == "coalesced":
        plan = [(at[min(i + 4, tokens - 1)], b"".join(words[i : i + 5])) for i in range(0, tokens, 5)]
    plan[0] = (plan[0][0], HEAD + plan[0][1])
    if bad and case == "reset":
        return [*plan[: tokens // 2], (at[tokens // 2], RESET)]
    if bad and case == "in_stream_error":
        return [*plan[: tokens // 2], (at[tokens // 2], chunk(event({"error": {"message": "out of memory"}})) + LAST)]
    if bad and case == "truncated":
        return [*plan[: tokens // 2], (at[tokens // 2], b"0\r\n\r\n")]
    if case == "late_usage":
        return [*plan, (plan[-1][0] + 0.2, end)]
    return [*plan[:-1], (plan[-1][0], plan[-1][1] + end)]


def _spec(at: list[float], prompt: int, told: bool, end: bytes) -> Plan:
    """Four tokens in each chunk, each chunk when its last token is there."""
    plan: Plan = []
    for i in range(0, len(at), 4):
        n = min(4, len(at) - i)
        message = json.loads(delta("length" if i + 4 >= len(at) else None, content="word " * n)[6:])
        if told:
            message["usage"] = {"prompt_tokens": prompt, "completion_tokens": i + n}
        plan.append((at[0] + (i + n - 4 if i else 0) * 0.01 if i else at[0], chunk(event(message))))
    plan[0] = (plan[0][0], HEAD + plan[0][1])
    plan[-1] = (plan[-1][0], plan[-1][1] + end)
    return plan


@dataclass(slots=True)
class Client:
    sock: socket.socket
    read: bytes = b""
    out: bytes = b""


@dataclass(slots=True)
class Log:
    """What the server did."""

    requests: int = 0
    bad: int = 0
    at: array[float] = field(default_factory=lambda: array("d"))
    """When each request was read."""
    ttft: array[float] = field(default_factory=lambda: array("d"))
    e2e: array[float] = field(default_factory=lambda: array("d"))
    late_max_s: float = 0.0


class Server:
    def __init__(self, port: int, case: str, timing: Timing, host: str = "127.0.0.1") -> None:
        self._case, self._timing = case, timing
        self._listener = socket.create_server((host, port), backlog=4096)
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, STAMPED, 1)  # those that it accepts inherit it
        self.port = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._clients: dict[int, Client] = {}
        self._timers: list[tuple[float, int, int, Client, Plan, float]] = []
        self._count = 0
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._stalled_until = 0.0
        self._first_at = 0.0
        self.log = Log()

    def run(self) -> None:
        while True:
            now = time.perf_counter()
            wait = self._timers[0][0] - now if self._timers else 1.0
            if wait > 0.003:
                events = self._epoll.poll(wait - 0.002)
            elif wait > 0:
                select.select((self._epoll.fileno(),), (), (), wait)
                events = self._epoll.poll(0)
            else:
                events = self._epoll.poll(0) if self._count % 4 == 0 else []
            got: list[tuple[Client, bytes, float]] = []
            while events:  # stamp all that is there before any of it is looked at: answers are timed from these stamps
                for fd, _ in events:
                    if fd == self._listener.fileno():
                        self._accept()
                    else:
                        self._read(fd, got)
                events = self._epoll.poll(0) if len(got) < 1000 else []
            for client, data, at in got:
                self._take(client, data, at)
            self._due()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients[sock.fileno()] = Client(sock)
                self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, fd: int, got: list[tuple[Client, bytes, float]]) -> None:
        client = self._clients[fd]
        extras: list[Any] = []
        try:
            data, extras, _, _ = client.sock.recvmsg(65536, socket.CMSG_SPACE(TIMESPEC.size))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            at = arrived(*TIMESPEC.unpack(extras[0][2])) if extras else time.perf_counter()
            got.append((client, data, at))
        else:
            self._gone(client)

    def _take(self, client: Client, data: bytes, now: float) -> None:
        if client.out == b"<gone>":
            return
        client.read += data
        head_end = client.read.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = client.read[:head_end].lower()
        mark = head.find(b"content-length:")
        length = int(head[mark + 15 :].split(b"\r\n", 1)[0]) if mark >= 0 else 0
        if len(client.read) < head_end + 4 + length:
            return
        body = client.read[head_end + 4 : head_end + 4 + length]
        client.read = client.read[head_end + 4 + length :]
        self._answer(client, head, body, now)

    def _answer(self, client: Client, head: bytes, body: bytes, now: float) -> None:
        if head.startswith(b"get "):
            self._report(client, head.split(b" ", 2)[1].decode())
            return
        if not head.startswith(b"post ") or not body:  # a client that only looks whether anybody is there
            self._write_all(client, NOTHING)
            return
        asked = json.loads(body)
        tokens = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or self._timing.tokens)
        case = self._case
        mark = head.find(b"x-case:")
        if mark >= 0:
            case = head[mark + 7 :].split(b"\r\n", 1)[0].strip().decode()
        prompt = len(body) // 6
        if tokens > 1:  # else it asks how long its prompt is
            self.log.requests += 1
            self.log.at.append(now)
            self._first_at = self._first_at or now
        bad = tokens > 1 and self.log.requests % _BAD_EVERY == 0
        self.log.bad += bad
        key = (case, tokens, prompt, bad)
        plan = self._plans.get(key)
        if plan is None:
            self._plans[key] = plan = plan_of(case, self._timing, tokens, prompt, bad)
            if len(self._plans) > 1000:
                del self._plans[next(iter(self._plans))]
        if case == "stall" and STALL_AT_S <= now - self._first_at < STALL_AT_S + STALL_S:
            self._stalled_until = self._first_at + STALL_AT_S + STALL_S
        self._push(max(now, self._stalled_until) + plan[0][0], 0, client, plan, now)

    def _push(self, at: float, step: int, client: Client, plan: Plan, asked: float) -> None:
        self._count += 1
        heapq.heappush(self._timers, (at, self._count, step, client, plan, asked))

    def _due(self) -> None:
        timers = self._timers
        now = time.perf_counter()
        done = 0
        while timers and timers[0][0] <= now and done < 64:
            at, _, step, client, plan, asked = heapq.heappop(timers)
            if client.out == b"<gone>":
                continue
            if not self._write(client, plan[step][1]):
                continue
            now = time.perf_counter()
            done += 1
            self.log.late_max_s = max(self.log.late_max_s, now - at)
            if step == 0:
                self.log.ttft.append(now - asked)
            if step + 1 < len(plan):
                self._push(at + plan[step + 1][0] - plan[step][0], step + 1, client, plan, asked)
            else:
                self.log.e2e.append(now - asked)

    def _write(self, client: Client, data: bytes) -> bool:
        """Small writes into an empty buffer: the socket takes them whole."""
        if data == RESET:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            self._gone(client)
            return False
        try:
            client.sock.send(data)
        except OSError:
            self._gone(client)
            return False
        return True

    def _gone(self, client: Client) -> None:
        if client.out != b"<gone>":
            client.out = b"<gone>"
            self._clients.pop(client.sock.fileno(), None)
            client.sock.close()

    def _report(self, client: Client, path: str) -> None:
        log = self.log
        if path == "/reset":
            self.log = Log()
            self._first_at = self._stalled_until = 0.0
            said: Any = {}
        elif path == "/v1/models":
            said = {"object": "list", "data": [{"id": "exact", "object": "model"}]}
        else:
            said = {
                "requests": log.requests,
                "bad": log.bad,
                "late_max_s": log.late_max_s,
                "at": log.at.tolist(),
                "ttft": log.ttft.tolist(),
                "e2e": log.e2e.tolist(),
            }
        data = json.dumps(said).encode()
        self._write_all(
            client,
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data,
        )

    def _write_all(self, client: Client, data: bytes) -> None:
        client.sock.setblocking(True)
        client.sock.sendall(data)
        client.sock.setblocking(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--case", choices=CASES, default="plain")
    parser.add_argument("--ttft-s", type=float, default=0.1)
    parser.add_argument("--itl-s", type=float, default=0.01)
    given = parser.parse_args()
    server = Server(given.port, given.case, Timing(given.ttft_s, given.itl_s))
    print(server.port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
