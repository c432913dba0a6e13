"""The least that a client in Python does: an ``asyncio.Protocol`` that sends requests, stamps what comes, and reads none of it.

    python benchmarks/bare_reader.py --port 8399 --users 200 --seconds 12

It tells what this machine charges for the sockets alone, so that the CPU of a real client can be given as a ratio to it. Prints JSON:
requests done, time to first token in seconds (the first read with ``"content"``), CPU seconds of the process with its start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

BODY = json.dumps(
    {
        "model": "exact",
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "the valve turns " * 16}],
    }
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bare\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)
LAST_CHUNK = b"0\r\n\r\n"


class Reader(asyncio.Protocol):
    """One user: sends the next request as soon as the answer is whole, until the time is over."""

    def __init__(self, until: float, ttft: list[float]) -> None:
        self._until, self._ttft = until, ttft
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._stamps: list[float] = []
        self._first: float | None = None
        self._sent = time.perf_counter()
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._stamps.append(now)
        if self._first is None and b'"content"' in data:
            self._first = now
        if data.endswith(LAST_CHUNK):
            if self._first is not None:
                self._ttft.append(self._first - self._sent)
            if now < self._until:
                self._send()
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=12.0)
    given = parser.parse_args()
    loop, ttft = asyncio.get_running_loop(), list[float]()
    until = time.perf_counter() + given.seconds
    users = []
    for _ in range(given.users):
        _, user = await loop.create_connection(lambda: Reader(until, ttft), "127.0.0.1", given.port)
        users.append(user)
        await asyncio.sleep(min(1.0, given.seconds / 10) / given.users)  # evenly, as a real client's users come
    await asyncio.gather(*(user.over for user in users))
    print(json.dumps({"requests": len(ttft), "ttft_s": ttft, "cpu_s": time.process_time()}))


if __name__ == "__main__":
    asyncio.run(main())
