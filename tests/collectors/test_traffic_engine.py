"""The engine against servers that misbehave: each failure has its class, and nothing crashes or hangs."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.traffic.account import CountRules
from collectors.traffic.connection import ServerAddress, resolve
from collectors.traffic.engine import Assignment, Clocks, Engine
from collectors.traffic.preflight import only_model, tokens_per_word
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import UserSchedule
from collectors.window import CollectError
from tests.collectors.exact import exact, open_loop, raw, sent, users
from tests.collectors.servers import answering, certificate, chat_events, serve, streaming

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices": [{"delta": {"content": "w"}}]}\n\n'
FINISH = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(*events: bytes) -> bytes:
    return HEAD + b"".join(chunk(e) for e in events) + b"0\r\n\r\n"


def writing(*writes: bytes, pause_s: float = 0.0, stay: bool = True) -> object:
    """Writes these, one after the other; ``stay``: leaves the connection open."""

    def script(client: socket.socket, _: bytes) -> None:
        for data in writes:
            client.sendall(data)
            if pause_s:
                time.sleep(pause_s)
        if not stay:
            raise StopIteration

    return script


def kind_of(script: object, **changes: object) -> str | None:
    with raw(script) as url:  # type: ignore[arg-type]
        tally, records = sent(url, open_loop(1, 1), **changes)
    assert tally.sent == 1
    assert tally.ended == len(records) == 1
    return records[0].error


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (writing(whole(TOKEN, FINISH)), None),
        (writing(whole(b": keep-alive\n\n", TOKEN, b": ping\n\n", FINISH)), None),
        (writing(whole(TOKEN.replace(b"\n", b"\r\n"), FINISH.replace(b"\n", b"\r\n"))), None),
        (writing(whole(TOKEN + FINISH)[:-5], stay=False), "broken_stream"),
        (writing(whole(TOKEN)), "broken_stream"),
        (writing(HEAD + chunk(TOKEN), stay=False), "broken_stream"),
        (writing(whole(b"data: {half\n\n")), "broken_stream"),
        (writing(whole(b"data: \xff\xfe\n\n")), "broken_stream"),
        (writing(whole(b"data: " + b"[" * 100_000 + b"\n\n")), "broken_stream"),
        (writing(HEAD + b"nonsense\r\n"), "broken_stream"),
        (writing(whole(FINISH)), "empty"),
        (writing(whole(b"data: [DONE]\n\n")), "empty"),
        (writing(whole()), "broken_stream"),
        (writing(whole(TOKEN, b'data: {"error": {"message": "oom"}}\n\n', FINISH)), "in_stream_error"),
        (writing(HEAD + chunk(TOKEN) + chunk(b'data: {"error": "oom"}\n\n'), stay=False), "in_stream_error"),
        (writing(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"), "broken_stream"),
        (writing(b"HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n"), "rate_limited"),
        (writing(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"), "http_5xx"),
        (writing(b"HTTP/1.1 422 Oh\r\ncontent-length: 0\r\n\r\n"), "http_4xx"),
        (writing(b"HTTP/1.1 401 Oh\r\ncontent-length: 0\r\n\r\n"), "http_401"),
        (writing(b"HTTP/1.1 302 There\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"), "redirect"),
        (writing(b"220 ready\r\n\r\n"), "protocol"),
        (writing(stay=False), "reset"),
    ],
)  # fmt: skip
def test_each_failure_has_its_class(script: object, kind: str | None) -> None:
    assert kind_of(script) == kind


def test_a_stream_that_never_ends_ends_by_time_or_by_size() -> None:
    def endless(client: socket.socket, _: bytes) -> None:
        client.sendall(HEAD)
        while True:
            client.sendall(chunk(TOKEN))
            time.sleep(0.005)

    def flood(client: socket.socket, _: bytes) -> None:
        client.sendall(HEAD)
        while True:
            client.sendall(chunk(TOKEN * 100))

    begun = time.monotonic()
    assert kind_of(endless, timeout_s=0.4) == "timeout"
    assert kind_of(flood, most_bytes=100_000) == "too_large"
    assert time.monotonic() - begun < 30


def test_a_server_that_says_nothing_is_a_timeout() -> None:
    def silent(client: socket.socket, _: bytes) -> None:
        client.recv(1)

    assert kind_of(silent, timeout_s=0.3) == "timeout"


def test_a_character_cut_in_two_is_one_token() -> None:
    event = 'data: {"choices": [{"delta": {"content": "é"}}]}\n\n'.encode()
    at = event.index(b"\xc3") + 1
    data = [HEAD + b"%x\r\n" % len(event) + event[:at], event[at:] + b"\r\n", chunk(FINISH) + b"0\r\n\r\n"]
    with raw(writing(*data, pause_s=0.02)) as url:  # type: ignore[arg-type]
        _, (record,) = sent(url, open_loop(1, 1))
    assert (record.error, record.text, record.output_tokens, record.token_source) == (None, "é", 1, "chunks")


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        tally, _ = sent(f"http://127.0.0.1:{taken.getsockname()[1]}", open_loop(20, 0.2))
    assert (tally.sent, dict(tally.errors)) == (4, {"down": 4})


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(CollectError) as caught:
        resolve("http://no-such-host.invalid:1")
    assert caught.value.kind == "dns"
    for address in ("ftp://a", "http://", "http://a:0", "http://a:x", "nonsense"):
        with pytest.raises(CollectError) as caught:
            resolve(address)
        assert caught.value.kind == "protocol"


def test_tls(tmp_path: Path) -> None:
    with certificate(tmp_path) as (context, cert), serve(streaming(chat_events(5), pause_s=0.01), context) as served:
        tally, records = sent("", open_loop(10, 0.5), server=resolve(served.url, cert))
        assert (tally.ok, tally.sent) == (5, 5), tally.details
        assert all(record.output_tokens == 5 for record in records)
        distrusted, _ = sent(served.url, open_loop(10, 0.2))
        assert dict(distrusted.errors) == {"tls": 2}
        assert "certificate" in distrusted.details["tls"].lower()


def test_tls_to_a_server_without_it_and_the_other_way_round(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def refuse() -> None:
            client, _ = plain.accept()
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        tally, _ = sent(f"https://127.0.0.1:{plain.getsockname()[1]}", open_loop(10, 0.1), timeout_s=5.0, connections=0)
        assert dict(tally.errors) == {"tls": 1}
    with certificate(tmp_path) as (context, _), serve(streaming(chat_events(2)), context) as served:
        tally, _ = sent(served.url.replace("https:", "http:"), open_loop(10, 0.1), timeout_s=5.0)
        assert tally.errors.total() == 1
        assert set(tally.errors) <= {"protocol", "reset"}


def test_connections_are_kept_and_a_stale_one_is_replaced_unseen() -> None:
    served = 0

    def script(client: socket.socket, _: bytes) -> None:
        nonlocal served
        served += 1
        client.sendall(whole(TOKEN, FINISH))
        if served == 2:  # closed just after the answer, as an idle timeout does
            raise StopIteration

    with raw(script) as url:
        tally, _ = sent(url, users(1, 0.3, output=1), connections=1)
    assert tally.errors == {}
    assert tally.ok == served
    assert 2 <= tally.watch.connections <= 4


def test_a_request_that_gets_no_answer_on_an_old_connection_is_sent_once_more() -> None:
    seen = 0

    def script(client: socket.socket, _: bytes) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise StopIteration  # having read the second request, closes without a word
        client.sendall(whole(TOKEN, FINISH))

    with raw(script) as url:
        load = UserSchedule(1, 60.0, users(1, 1).prompt_tokens, users(1, 1).output_tokens, most=3)
        tally, records = sent(url, load, connections=1)
    assert (tally.ok, tally.retried, dict(tally.errors)) == (3, 1, {})
    assert [record.retried for record in records] == [False, True, False]


def test_a_cap_holds_requests_back_and_their_wait_counts() -> None:
    most = now = 0
    lock = threading.Lock()

    def script(client: socket.socket, _: bytes) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        client.sendall(whole(TOKEN, FINISH))

    with raw(script) as url:
        tally, records = sent(url, open_loop(100, 0.2), most_in_flight=4)
    assert most <= 4
    assert (tally.ok, tally.sent) == (20, 20)
    assert tally.held >= 10
    # Twenty in fours take 0.5 s; the last was due at 0.19 s.
    assert max(record.ttft_sched_s or 0 for record in records) >= 0.3
    assert tally.values["ttft_s"].quantiles([0.9])[0] > tally.values["ttft_sent_s"].quantiles([0.9])[0]  # type: ignore[operator]


def test_large_requests_go_out_whole() -> None:
    sizes: list[int] = []

    def script(client: socket.socket, request: bytes) -> None:
        time.sleep(0.05)  # so that the client's buffer fills
        sizes.append(len(json.loads(request.partition(b"\r\n\r\n")[2])["messages"][0]["content"].split()))
        client.sendall(whole(TOKEN, FINISH))

    with raw(script) as url:
        tally, _ = sent(url, open_loop(4, 0.5, prompt=600_000))
    assert tally.errors == {}
    assert sizes == [600_000, 600_000]


@settings(max_examples=40)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_from_a_server_end_the_request(data: bytes, headed: bool) -> None:
    answer = HEAD + data if headed else data
    with raw(writing(answer, stay=False)) as url:  # type: ignore[arg-type]
        tally, records = sent(url, open_loop(1, 1), timeout_s=5.0)
    assert tally.ended == 1
    assert records[0].error in ("broken_stream", "protocol", "reset")


# -- before the traffic -------------------------------------------------------------------------------------------------


def test_tokens_are_counted_by_usage_else_by_tokenize_else_not_at_all() -> None:
    def model(client: socket.socket, request: bytes) -> None:
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        if request.startswith(b"POST /tokenize"):
            data = json.dumps({"count": 5 + 2 * len(body["prompt"].split())}).encode()
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data))
        else:
            client.sendall(whole(TOKEN, FINISH))

    with raw(model) as url:
        words = tokens_per_word(resolve(url), RequestTemplate("m"), 5.0)
    assert (words.fixed, words.each) == (5, 2)
    with raw(writing(whole(TOKEN, FINISH))) as url:  # type: ignore[arg-type]
        words = tokens_per_word(resolve(url), RequestTemplate("m"), 5.0)
    assert (words.fixed, words.each) == (0, 1)


def test_the_only_model() -> None:
    def server(answer: str, **kind: str) -> ServerAddress:
        return resolve(stack.enter_context(serve(answering(answer, **kind))).url)

    with ExitStack() as stack:
        assert only_model(server('{"data": [{"id": "m"}]}'), {}, 5.0) == "m"
        for answer, kind in (
            ('{"data": []}', "no_model"),
            ("no", "no_model"),
            ('{"data": [{"id": 1}, {"id": 2}]}', "no_model"),
        ):
            with pytest.raises(CollectError) as caught:
                only_model(server(answer), {}, 5.0)
            assert caught.value.kind == kind
        with pytest.raises(CollectError) as caught:
            only_model(server("no", status="403 Forbidden"), {}, 5.0)
        assert caught.value.kind == "http_403"


def test_tls_is_verified() -> None:
    context = ServerAddress("https", "h", 1, socket.AF_INET, ("127.0.0.1", 1)).tls()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_the_kernels_stamps_hold_however_late_they_are_read() -> None:
    """A client that sleeps while answers come: they are timed from when they came."""
    with exact(ttft_s=0.1, itl_s=0.02) as server:
        url = server.url
        engine = Engine(
            Assignment(resolve(url), RequestTemplate("m"), open_loop(17, 2.0, output=5), CountRules()),
            on_tick=lambda _: time.sleep(0.015),
        )
        engine.open(5.0)
        engine.run(time.perf_counter())
        truth = np.array(server.log()["ttft"])
    tally = engine.account.tally
    assert tally.ok == 34
    delayed = tally.watch.read_delay.quantiles([1.0])[0]
    assert delayed is not None
    assert delayed > 0.008, "the answers did lie unread"
    # From sent, not from due: what it sleeps, it also sends late.
    seen = np.sort(tally.values["ttft_sent_s"].quantiles([0.05, 0.5]))
    assert seen[0] == pytest.approx(np.quantile(truth, 0.05), abs=0.002)
    assert seen[1] == pytest.approx(np.quantile(truth, 0.5), abs=0.002)


def test_a_wall_clock_that_was_set_gives_no_stamps_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    before = clocks.behind()
    assert before is not None
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 60)
    assert clocks.behind() is None
    after = clocks.behind()
    assert after is not None
    assert after - before == pytest.approx(60, abs=1e-3)


def test_of_a_names_addresses_one_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` is two addresses, and most servers listen on one."""
    with exact() as server:
        port = int(server.url.rsplit(":", 1)[1])
        four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        nobody = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [nobody, four])
        assert resolve(f"http://name:{port}", reach_s=2.0).address == ("127.0.0.1", port)
        assert resolve(f"http://name:{port}").address == ("127.0.0.1", 1)


def test_streams_that_ended_do_not_pile_up_at_a_rate_that_leaves_no_pause() -> None:
    """Requests due every 0.4 ms: what ended is parsed in between all the same, or memory would grow with the traffic."""
    waiting: list[int] = []

    def watch(engine: Engine) -> None:
        waiting.append(len(engine._unread))

    with exact(ttft_s=0.02, itl_s=0.001) as server:
        load = open_loop(2500, 2.0, output=1, prompt=4)
        engine = Engine(
            Assignment(resolve(server.url), RequestTemplate("m"), load, CountRules(), connections=100), on_tick=watch
        )
        engine.open(5.0)
        engine.run(time.perf_counter())
    assert engine.account.tally.ok == 5000
    assert np.median(waiting) < 1000, "a machine that stalls has more for a moment, and no longer"
