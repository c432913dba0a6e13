"""The replica router over real sockets: streams unbuffered, tells both sides the truth, and stands rude clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actuators import wire
from actuators.vllm_local.processes import write_json
from actuators.vllm_local.router import Router
from tests.actuators.support import eventually

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes = b"hello") -> None:
    """A backend that answers one request, with its body if it has one."""
    head = await wire.read_head(reader)
    assert head is not None
    body = b"".join([data async for _, data in wire.read_body(reader, head, 5.0, until_close=False)])
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text + body) + text + body)
    writer.close()


def port(server: asyncio.Server) -> int:
    number: int = server.sockets[0].getsockname()[1]
    return number


class Front:
    """A router with its serving file, inside this process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "serving.json"
        self.router = Router(self.path)
        self.generation = 0
        self.port = 0
        self.testing = asyncio.all_tasks()

    def serve(self, **backends: int) -> None:
        self.generation += 1
        urls = {n: f"http://127.0.0.1:{p}" for n, p in backends.items()}
        write_json(self.path, {"generation": self.generation, "backends": urls})

    async def open(self) -> Stream:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, text: bytes) -> bytes:
        """Send raw bytes, read to the end of the connection."""
        reader, writer = await self.open()
        writer.write(text)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def in_flight(self, name: str) -> int:
        count: int = (await self.report())["backends"][name]["in_flight"]
        return count

    async def busy(self, name: str) -> None:
        await eventually(lambda: self.in_flight(name))

    async def quiet(self) -> None:
        async def nobody() -> bool:
            return not any([await self.in_flight(n) for n in (await self.report())["backends"]])

        await eventually(nobody)

    async def report(self) -> Any:
        answer = await self.ask(b"GET /.flyball/router HTTP/1.1\r\nconnection: close\r\n\r\n")
        return json.loads(answer.split(b"\r\n\r\n", 1)[1])


@asynccontextmanager
async def world(folder: Path, *backends: Serve) -> AsyncIterator[tuple[Front, list[int]]]:
    front = Front(folder)
    servers = [await asyncio.start_server(b, "127.0.0.1", 0) for b in backends]
    server = await wire.start_server(front.router.handle, host="127.0.0.1", port=0)
    front.port = port(server)
    front.serve(**{f"b{i}": port(s) for i, s in enumerate(servers)})
    yield front, [port(s) for s in servers]
    for each in (server, *servers):
        each.close()
    if others := asyncio.all_tasks() - {asyncio.current_task()} - front.testing:
        await asyncio.wait(others, timeout=5)
    await asyncio.sleep(0.01)  # transports close one turn later


GET = b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 20)

    asyncio.run(bounded())


def test_a_token_reaches_the_client_before_the_next_one_is_made(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await wire.read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(20):
                writer.write(b"9\r\ndata: x\n\n\r\n")
                await go.wait()  # set by the client alone, when it has this token
                go.clear()
            writer.write(b"0\r\n\r\n")
            writer.close()

        async with world(tmp_path, stream) as (front, _):
            reader, writer = await front.open()
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(20):
                assert await reader.readexactly(14) == b"9\r\ndata: x\n\n\r\n"
                go.set()
            assert await reader.read() == b"0\r\n\r\n"
            writer.close()

    run(story())


def test_the_backend_with_the_fewest_requests_is_chosen_and_counted(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()
        seen = [0, 0]

        def slow(number: int) -> Serve:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                seen[number] += 1
                if seen[number] == 1:
                    await go.wait()
                await plain(reader, writer, b"%d" % number)

            return serve

        async with world(tmp_path, slow(0), slow(1)) as (front, _):
            first = asyncio.create_task(front.ask(GET))
            await front.busy("b0")
            second = asyncio.create_task(front.ask(GET))
            await front.busy("b1")
            assert seen == [1, 1]
            go.set()
            assert {(await first)[-1:], (await second)[-1:]} == {b"0", b"1"}
            for _ in range(6):
                await front.ask(GET)
            assert seen == [4, 4]
            assert all(b["in_flight"] == 0 for b in (await front.report())["backends"].values())

    run(story())


def test_without_a_backend_it_says_when_to_come_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, plain) as (front, _):
            front.serve()
            answer = await front.ask(GET)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 5\r\n" in answer
            front.path.unlink()
            assert (await front.ask(GET)).startswith(b"HTTP/1.1 503 ")

    run(story())


def test_a_backend_that_refuses_is_passed_over(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, plain) as (front, ports):
            gone = await asyncio.start_server(plain, "127.0.0.1", 0)
            dead = port(gone)
            gone.close()
            front.serve(dead=dead, good=ports[0])
            for _ in range(4):
                assert (await front.ask(GET)).endswith(b"hello")
            assert {b["in_flight"] for b in (await front.report())["backends"].values()} == {0}

    run(story())


def test_a_client_that_leaves_is_passed_on_to_the_backend(tmp_path: Path) -> None:
    async def story() -> None:
        left = asyncio.Event()

        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await wire.read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
            try:
                await reader.read(1)
            finally:
                left.set()
                writer.close()

        async with world(tmp_path, endless) as (front, _):
            reader, writer = await front.open()
            writer.write(GET)
            await reader.readuntil(b"1\r\nx\r\n")
            writer.close()
            await left.wait()
            await front.quiet()

    run(story())


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked\r\n\r\n5\r\nhe", b"content-length: 9\r\n\r\nhe"])
def test_a_backend_that_dies_in_the_middle_is_a_broken_stream(tmp_path: Path, framing: bytes) -> None:
    async def story() -> None:
        async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await wire.read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n" + framing)
            await writer.drain()
            writer.close()

        async with world(tmp_path, dying) as (front, _):
            reader, writer = await front.open()
            writer.write(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")  # would be kept alive
            head = await wire.read_head(reader)
            assert head is not None
            with pytest.raises(wire.TruncatedMessage):
                async for _ in wire.read_body(reader, head, 5.0, until_close=False):
                    pass
            assert await reader.read() == b""
            writer.close()

    run(story())


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 2", b"SSH-2.0 hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
def test_a_backend_that_does_not_answer_http_is_a_502(tmp_path: Path, said: bytes) -> None:
    async def story() -> None:
        async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await wire.read_head(reader)
            writer.write(said)
            writer.close()

        async with world(tmp_path, broken) as (front, _):
            assert (await front.ask(GET)).startswith(b"HTTP/1.1 502 ")
            assert (await front.report())["backends"]["b0"]["in_flight"] == 0

    run(story())


def test_bodies_arrive_whole_in_either_framing_and_the_connection_is_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, plain) as (front, _):
            reader, writer = await front.open()
            big = b"y" * 300_000
            sent = [
                b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
                b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;q=1\r\nab\r\n1\r\nc\r\n0\r\nt: 1\r\n\r\n",
                b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
                b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(big), big),
                b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(big), big),
                b"GET / HTTP/1.1\r\n\r\n",
            ]
            wanted = [b"abc", b"abc", b"abc", big, big, b""]
            for text, body in zip(sent, wanted, strict=True):
                writer.write(text)
                head = await wire.read_head(reader)
                if head is not None and head.first[1] == b"100":
                    head = await wire.read_head(reader)
                assert head is not None
                assert head.first[1] == b"200"
                got = b"".join([d async for _, d in wire.read_body(reader, head, 5.0, until_close=False)])
                assert got == b"hello" + body
            writer.close()

    run(story())


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\n bad: 1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nname : 1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ncontent-length: -3\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_what_is_not_http_is_refused_and_the_next_client_is_served(tmp_path: Path, text: bytes, status: bytes) -> None:
    async def story() -> None:
        async with world(tmp_path, plain) as (front, _):
            reader, writer = await front.open()
            writer.write(text)
            assert (await reader.readuntil(b"\r\n")).split()[1] == status
            writer.close()
            assert (await front.ask(GET)).endswith(b"hello")
            assert (await front.report())["backends"]["b0"]["in_flight"] == 0

    run(story())


def test_half_a_request_and_a_goodbye_hold_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, plain) as (front, _):
            for half in (b"", b"GET /x HT", b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc"):
                _, writer = await front.open()
                writer.write(half)
                await writer.drain()
                writer.close()
            await front.quiet()
            assert (await front.ask(GET)).endswith(b"hello")

    run(story())


def test_a_switch_sends_new_requests_to_the_new_ones_and_counts_down_the_old(tmp_path: Path) -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            await plain(reader, writer, b"old")

        async with world(tmp_path, slow, plain) as (front, ports):
            front.serve(old=ports[0])
            running = asyncio.create_task(front.ask(GET))
            await front.busy("old")
            front.serve(new=ports[1])
            assert (await front.ask(GET)).endswith(b"hello")
            old = (await front.report())["backends"]["old"]
            assert (old["serving"], old["in_flight"]) == (False, 1)
            assert old["draining_s"] >= 0
            go.set()
            assert (await running).endswith(b"old")
            assert list((await front.report())["backends"]) == ["new"]

    run(story())


def test_a_broken_serving_file_changes_nothing_and_is_reported(tmp_path: Path) -> None:
    async def story() -> None:
        async with world(tmp_path, plain) as (front, _):
            assert (await front.report())["problem"] is None
            for broken in ("{", "[]", '{"generation": "x", "backends": {}}', '{"generation": 3, "backends": 1}'):
                front.path.write_text(broken)
                assert (await front.ask(GET)).endswith(b"hello")
                report = await front.report()
                assert report["generation"] == 1
                assert "serving.json" in report["problem"]

    run(story())


def test_head_requests_and_bodyless_answers_end_where_they_should(tmp_path: Path) -> None:
    async def story() -> None:
        async def head_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await wire.read_head(reader)
            writer.write(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
            writer.close()

        async with world(tmp_path, head_only) as (front, _):
            reader, writer = await front.open()
            for _ in range(2):
                writer.write(b"HEAD / HTTP/1.1\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            writer.close()

    run(story())
