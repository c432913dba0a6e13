"""Whatever a server does, a request ends soon, and says why in one word."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from collectors.http import Http, HttpAnswer, _next, check_clock
from collectors.window import CollectError
from tests.collectors.servers import Handler, Request, answering, certificate, dated, head_of, serve

T = TypeVar("T")


def using(work: Callable[[Http], Awaitable[T]], **settings: object) -> T:
    async def run() -> T:
        http = Http(**settings)  # type: ignore[arg-type]
        try:
            return await work(http)
        finally:
            await http.aclose()

    return asyncio.run(run())


def get(url: str, timeout_s: float = 30.0, **settings: object) -> HttpAnswer:
    return using(lambda http: http.get(url, timeout_s=timeout_s), **settings)


def kind_of(handler: Handler, timeout_s: float = 30.0, **settings: object) -> str:
    with serve(handler) as served, pytest.raises(CollectError) as caught:
        get(served.url + "/metrics?token=secret", timeout_s, **settings)
    assert "secret" not in caught.value.detail
    return caught.value.kind


def test_a_whole_answer() -> None:
    with serve(answering(b"hello", **{"X-One": "1"})) as served:
        answer = get(served.url + "/a")
    assert (answer.status, answer.body, answer.headers["x-one"], answer.url) == (200, b"hello", "1", served.url + "/a")
    assert answer.elapsed_s > 0
    assert served.requests[0].headers["user-agent"] == "flyball"
    assert served.requests[0].headers["accept-encoding"] == "identity"


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: refused
        with pytest.raises(CollectError) as caught:
            get(f"http://127.0.0.1:{held.getsockname()[1]}/")
    assert caught.value.kind == "down"


def test_an_unknown_name() -> None:
    with pytest.raises(CollectError) as caught:
        get("http://no-such-host.invalid/")
    assert caught.value.kind == "dns"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://[", "http://127.0.0.1:99999/", "nothing", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(CollectError) as caught:
        get(url)
    assert caught.value.kind == "protocol"


def test_a_server_that_hangs() -> None:
    async def hang(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    assert kind_of(hang, timeout_s=0.2) == "timeout"


def test_a_server_that_drips_does_not_hold_us() -> None:
    sent = 0

    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head_of(length=1000))
        for _ in range(1000):
            writer.write(b"x")
            sent += 1
            await writer.drain()
            await asyncio.sleep(0.03)

    assert kind_of(drip, timeout_s=0.3) == "timeout"
    assert 0 < sent < 1000


def test_half_an_answer() -> None:
    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head_of(length=1000) + b"x" * 500)

    async def half_chunked(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")

    assert kind_of(half) == "truncated"
    assert kind_of(half_chunked) == "truncated"


def test_something_that_is_not_http() -> None:
    async def noise(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")

    async def silence(request: Request, writer: asyncio.StreamWriter) -> None:
        return

    assert kind_of(noise) == "protocol"
    assert kind_of(silence) == "down"


def test_a_body_without_end() -> None:
    sent = 0

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head_of())
        while sent < 10_000:
            writer.write(b"x" * 10_000)
            sent += 1
            await writer.drain()

    assert kind_of(endless, max_bytes=100_000) == "too_large"
    assert sent < 10_000
    assert kind_of(answering(b"x" * 1001), max_bytes=1000) == "too_large"


def test_compression_that_was_not_asked_for() -> None:
    assert kind_of(answering(b"\x1f\x8b", **{"content-encoding": "gzip"})) == "protocol"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("401 Unauthorized", "http_401"),
        ("403 Forbidden", "http_403"),
        ("404 Not Found", "http_404"),
        ("429 Too Many Requests", "http_4xx"),
        ("500 Internal Server Error", "http_5xx"),
        ("503 Service Unavailable", "http_5xx"),
        ("304 Not Modified", "protocol"),
    ],
)
def test_statuses(status: str, kind: str) -> None:
    assert kind_of(answering("" if status.startswith("304") else "said so", status)) == kind


def test_redirects_stay_on_their_host_and_end() -> None:
    async def hop(request: Request, writer: asyncio.StreamWriter) -> None:
        left = int(request.path.rsplit("/", 1)[1])
        if left:
            writer.write(head_of("302 Found", length=0, location=f"/{left - 1}"))
        else:
            writer.write(head_of(length=2) + b"ok")

    with serve(hop) as served:
        answer = get(served.url + "/3")
        assert (answer.body, answer.url, len(served.requests)) == (b"ok", served.url + "/0", 4)
        with pytest.raises(CollectError) as caught:
            get(served.url + "/4")
        assert caught.value.kind == "redirect"

    assert kind_of(answering("", "302 Found", location="/metrics")) == "redirect"  # a loop
    assert kind_of(answering("", "302 Found", location="http://[")) == "redirect"


def test_redirects_to_another_server_are_not_followed() -> None:
    with serve(answering(b"ok")) as other:
        for there in (
            other.url,
            "http://localhost:1/",
            "//example.org/",
            "file:///etc/passwd",
        ):
            assert kind_of(answering("", "302 Found", location=there)) == "redirect"
        assert other.requests == []


def test_a_post_is_not_sent_on() -> None:
    with serve(answering("", "307 Temporary Redirect", location="/b")) as served:
        with pytest.raises(CollectError) as caught:
            using(lambda http: http.request("POST", served.url + "/a", json={"a": 1}))
        assert caught.value.kind == "redirect"
        assert [request.path for request in served.requests] == ["/a"]


def test_bodies_are_sent() -> None:
    async def work(http: Http) -> None:
        await http.request("POST", served.url, json={"a": 1})
        await http.request("PUT", served.url, content=b"raw", headers={"authorization": "Bearer x"})
        await http.request("POST", served.url, form={"payload": "a b"})

    with serve(answering(b"")) as served:
        using(work)
        assert served.requests[0].json == {"a": 1}
        assert (served.requests[1].body, served.requests[1].headers["authorization"]) == (b"raw", "Bearer x")
        assert served.requests[2].body == b"payload=a+b"


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    with certificate(tmp_path) as (tls, cert), serve(answering(b"ok"), tls) as served:
        with pytest.raises(CollectError) as caught:
            get(served.url)
        assert caught.value.kind == "tls"
        assert get(served.url, ca_file=cert).body == b"ok"
        with pytest.raises(CollectError) as caught:
            get(served.url.replace("127.0.0.1", "localhost"), ca_file=cert)
        assert caught.value.kind == "tls"


def test_tls_to_a_plain_port() -> None:
    def answer_at_once(listening: socket.socket) -> None:
        there, _ = listening.accept()
        with there:
            there.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer_at_once, args=(listening,))
        thread.start()
        with pytest.raises(CollectError) as caught:
            get(f"https://127.0.0.1:{listening.getsockname()[1]}/")
        thread.join(5)
    assert caught.value.kind == "tls"


def test_the_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serve(answering(b"ok")) as served:
        assert get(served.url).body == b"ok"


def test_cookies_are_not_kept() -> None:
    async def twice(http: Http) -> None:
        await http.get(served.url)
        await http.get(served.url)

    with serve(answering(b"ok", **{"set-cookie": "a=1"})) as served:
        using(twice)
        assert "cookie" not in served.requests[1].headers


def test_call_gives_any_status_and_the_plain_errors() -> None:
    with serve(answering(b"no", "409 Conflict")) as served:
        answer = using(lambda http: http.call("POST", served.url, json={}))
        assert (answer.status, answer.body) == (409, b"no")
    with pytest.raises(OSError, match="down"):
        using(lambda http: http.call("GET", served.url))
    with serve(answering(b"x", **{"content-encoding": "gzip"})) as served, pytest.raises(ValueError, match="gzip"):
        using(lambda http: http.call("GET", served.url))


def test_a_stream_comes_as_it_is_sent() -> None:
    async def slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head_of())
        for part in (b"one", b"two"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)

    async def work(http: Http) -> list[tuple[float, bytes]]:
        async with http.stream("GET", served.url) as stream:
            assert stream.status == 200
            assert stream.sent_at <= stream.opened_at
            return [(stamp - stream.opened_at, chunk) async for stamp, chunk in stream]

    with serve(slowly) as served:
        chunks = using(work)
    assert [chunk for _, chunk in chunks] == [b"one", b"two"]
    assert chunks[1][0] - chunks[0][0] > 0.02


def test_the_deadline_of_a_stream_covers_its_reading() -> None:
    async def forever(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head_of())
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def work(http: Http) -> int:
        async with http.stream("GET", served.url, timeout_s=0.3) as stream:
            return len([chunk async for _, chunk in stream])

    with serve(forever) as served:
        with pytest.raises(CollectError) as caught:
            using(work)
        assert caught.value.kind == "timeout"


def test_a_stalled_event_loop_costs_no_connection_slot() -> None:
    """All deadlines pass at once, at whatever step the requests are; afterwards all slots are there again."""

    async def trial(url: str, steps: int) -> list[str]:
        http = Http(max_connections=40)

        async def one(timeout_s: float) -> str:
            try:
                return str((await http.get(url, timeout_s=timeout_s)).status)
            except CollectError as error:
                return error.kind

        several = [asyncio.create_task(one(0.2)) for _ in range(40)]
        for _ in range(steps):
            await asyncio.sleep(0)
        time.sleep(0.25)  # noqa: ASYNC251  the stall
        await asyncio.gather(*several)
        again = await asyncio.gather(*(one(5.0) for _ in range(40)))
        await http.aclose()
        return again

    with serve(answering("hello")) as served:
        for steps in range(14):
            assert asyncio.run(trial(served.url, steps)) == ["200"] * 40, steps


@pytest.mark.parametrize("steps", range(0, 24, 3))
def test_callers_that_leave_take_no_connection_with_them(steps: int) -> None:
    async def story(url: str) -> None:
        http = Http(max_connections=4)
        for _ in range(3):
            several = [asyncio.create_task(http.get(url, timeout_s=2)) for _ in range(4)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in several:
                task.cancel()
            await asyncio.gather(*several, return_exceptions=True)
        answers = await asyncio.gather(*(http.get(url, timeout_s=5) for _ in range(4)))
        assert [answer.status for answer in answers] == [200] * 4
        await http.aclose()

    with serve(answering("hello")) as served:
        asyncio.run(story(served.url))


def test_callers_of_a_stream_that_leave_take_no_connection_with_them() -> None:
    async def story(url: str) -> None:
        http = Http(max_connections=2)

        async def read() -> bytes:
            async with http.stream("GET", url, timeout_s=2) as stream:
                return await stream.body()

        for steps in range(20):
            task = asyncio.create_task(read())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await read() == b"hello"
        await http.aclose()

    with serve(answering("hello")) as served:
        asyncio.run(story(served.url))


def test_a_server_that_drips_ends_by_the_deadline() -> None:
    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            writer.write(b"x-more: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def story(url: str) -> float:
        http = Http()
        started = time.monotonic()
        with pytest.raises(CollectError, match="timeout"):
            await http.get(url, timeout_s=0.3)
        taken = time.monotonic() - started
        await http.aclose()
        return taken

    with serve(drip) as served:
        assert asyncio.run(story(served.url)) < 2


def test_a_unix_socket_answers(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async def story() -> bytes:
        server = await asyncio.start_unix_server(answer, tmp_path / "it.sock")
        http = Http(uds=tmp_path / "it.sock")
        try:
            return (await http.call("GET", "http://localhost/version")).body
        finally:
            await http.aclose()
            server.close()

    assert asyncio.run(story()) == b"hi"


@pytest.mark.parametrize(
    ("at", "to", "followed"),
    [
        ("http://a.example/", "https://a.example/x", True),
        ("http://a.example:8000/", "https://a.example:8000/x", True),
        ("http://a.example:8000/", "http://a.example:8000/x", True),
        ("http://a.example:80/", "http://a.example/x", True),
        ("http://a.example/", "https://a.example:8443/x", False),
        ("http://a.example:8000/", "https://a.example/x", False),
        ("https://a.example/", "http://a.example/x", False),
        ("http://a.example/", "http://b.example/x", False),
    ],
)
def test_a_redirect_is_followed_to_the_same_server_only(at: str, to: str, followed: bool) -> None:
    if followed:
        assert _next("GET", at, to) == to
    else:
        with pytest.raises(CollectError, match="redirect"):
            _next("GET", at, to)


@pytest.mark.parametrize("off", [-3600.0, -301.0, 301.0, 3600.0])
def test_a_date_far_from_our_clock(off: float) -> None:
    with pytest.raises(CollectError, match=re.escape(f"{off:+.0f} s from our clock")) as caught:
        check_clock(_answer(date=dated(1_000_000.0 + off)), 1_000_000.0)
    assert caught.value.kind == "clock_skew"


@pytest.mark.parametrize("date", [dated(1_000_000.0 - 60), "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT", None])
def test_a_date_that_is_near_or_says_nothing(date: str | None) -> None:
    check_clock(_answer(**({} if date is None else {"date": date})), 1_000_000.0)


def _answer(**headers: str) -> HttpAnswer:
    return HttpAnswer(200, headers, b"", 0.1, "http://model:8000/metrics")
