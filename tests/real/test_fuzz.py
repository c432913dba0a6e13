"""Bytes that nobody meant, for a minute each, at every parser of bytes from outside; and requests made from the OpenAPI document.

A parser may take what it is given or refuse it with its own error; anything else it raises is a finding. Hypothesis mutates true inputs, a new
seed each round, and shrinks what it finds; ``FLYBALL_FUZZ_S`` sets the seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Err

from agent.clock import VirtualClock
from agent.configfile import BadSettings, load
from agent.governor import Governor
from agent.settings import Settings
from agent.slack.receive import ClickError
from agent.store import Store
from agent.web.app import create_app
from collectors.exposition import Exposition
from collectors.http import Http
from collectors.loadtests import BadLoadTest
from collectors.loadtests import parse as parse_loadtest
from collectors.otlp.receiver import METRICS, TRACES
from collectors.receiver import Push, PushError
from collectors.sse import SseReader
from collectors.tracefile import BadTrace
from collectors.traces import read as read_trace
from collectors.vllm import _NAMES, readings_of
from collectors.window import CollectError
from tests.agent.records import T0, fill
from tests.agent.slack import form, governor, payload, propose, signed, tokens
from tests.collectors.otlp.messages import receiver, request_span, traces

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

FUZZ_S = float(os.environ.get("FLYBALL_FUZZ_S", "60"))
#: Examples of one round; the time is looked at between rounds.
ROUND = 300
#: A stream that does not end; and 503 is what these two are there to say.
_APART = ("/events", "/healthz", "/readyz")
SAMPLES = Path(__file__).resolve().parents[2] / "docs" / "samples"
PAGE = b"""# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 4.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 5.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 5.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0
process_start_time_seconds 1.7e9
"""
STREAM = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n: ping\n\nid: 7\nevent: x\ndata: b\ndata: c\n\ndata: [DONE]\n\n'
)
SETTINGS = b"""database: sqlite:///x.db
sizes:
  small: {usd_per_replica_hour: 1.0, accelerator: H100}
endpoints:
  - name: chat
    url: http://127.0.0.1:1
    objective: {ttft_p95_s: 200ms}
    shape: {replicas: 2, size: small, engine: {max_num_seqs: 8}}
    policy: {change_windows: [{days: mon-fri, start: "09:00", end: "17:00"}]}
"""
#: What breaks readers of numbers, text and structure.
TOKENS = [b"NaN", b"-Inf", b"1e400", b"-0", b"\x00", b"\xff\xfe", "é\u2028".encode(), b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"\n", b"\r\n",
          b"\t", b"&a", b"*a", b"!!python/object:os.system", b"9" * 400, b"e" * 50, b"le=\"x\"", b"data:", b"null", b"true"]  # fmt: skip


def mutated(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """A true input with some of it cut, doubled, or replaced by what breaks readers."""

    def apply(start: bytes, edits: list[tuple[float, float, int, bytes]]) -> bytes:
        body = start
        for at, length, how, token in edits:
            begin = int(at * len(body))
            end = min(len(body), begin + int(length * 40))
            put = (b"", body[begin:end] * 2, token, token + body[begin:end])[how]
            body = body[:begin] + put + body[end:]
        return body

    share = st.floats(0, 1)
    edits = st.lists(
        st.tuples(share, share, st.integers(0, 3), st.sampled_from(TOKENS) | st.binary(max_size=8)), max_size=6
    )
    return st.builds(apply, st.sampled_from(samples), edits) | st.binary(max_size=200)


def fuzz(samples: list[bytes], read: Callable[[bytes], object]) -> int:
    """Rounds until the time is over; how many examples were tried. Whatever ``read`` raises, shrunk, ends it."""
    begun, rounds = time.monotonic(), 0
    while time.monotonic() - begun < FUZZ_S:

        @seed(rounds)
        @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=(Phase.generate, Phase.shrink))  # fmt: skip
        @given(mutated(samples))
        def one(body: bytes) -> None:
            read(body)

        one()
        rounds += 1
    assert rounds > 0
    return rounds * ROUND


def test_metrics_pages() -> None:
    def read(body: bytes) -> None:
        with contextlib.suppress(CollectError):
            readings_of(Exposition(_NAMES).parse(body), "t", None, 1.8e9)

    assert fuzz([PAGE], read) > ROUND


def test_streams_of_answers() -> None:
    def read(body: bytes) -> None:
        whole = SseReader()
        try:
            events = [*whole.feed(body), *whole.finish()]
            parts = SseReader()
            split = [*(e for i in range(len(body)) for e in parts.feed(body[i : i + 1])), *parts.finish()]
        except CollectError:
            return
        assert split == events, "wherever the stream is cut, it says the same"

    assert fuzz([STREAM], read) > ROUND


def test_otlp() -> None:
    told = {"gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 7}
    sent = [
        traces([request_span(1.8e9, 2.0, told)]).SerializeToString(),
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{}]}]}]}',
    ]
    taking = receiver()

    def read(body: bytes) -> None:
        for path in (TRACES, METRICS):
            for kind in ("application/x-protobuf", "application/json"):
                for coding in ("", "gzip"):
                    headers = {"content-type": kind} | ({"content-encoding": coding} if coding else {})
                    with contextlib.suppress(PushError):
                        taking.take(Push(path, headers, body, trusted=True))

    assert fuzz(sent, read) > 0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path}/flyball.db")
    made.upgrade()
    yield made
    made.close()


def test_clicks(store: Store, tmp_path: Path) -> None:
    with governor(store, tmp_path) as made:
        propose(store)
        given_tokens = tokens(made)
        true = form(payload(given_tokens["reject"], "reject"))

        def read(body: bytes) -> None:
            if body == true:
                return
            with contextlib.suppress(ClickError):
                made.receiver.click(signed(body, at=made.clock.now()), body)

        assert fuzz([true], read) > ROUND


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"

    def read(body: bytes) -> None:
        path.write_bytes(body)
        with contextlib.suppress(BadSettings):
            load(path)

    assert fuzz([SETTINGS], read) > 0


def test_traces(tmp_path: Path) -> None:
    rows = (SAMPLES / "requests.csv").read_bytes().splitlines(keepends=True)[:8]
    lines = [
        json.dumps({"timestamp": i, "input_length": 5, "output_length": 3, "hash_ids": [i]}).encode() for i in range(4)
    ]
    path = {b".csv": tmp_path / "t.csv", b".jsonl": tmp_path / "t.jsonl"}

    def read(body: bytes) -> None:
        for file in path.values():
            file.write_bytes(body)
            with contextlib.suppress(BadTrace):
                read_trace(file)

    assert fuzz([b"".join(rows), b"\n".join(lines)], read) > 0


def test_load_test_results() -> None:
    samples = [(SAMPLES / name).read_bytes()[:4000] for name in ("load-4.json", "load-16.json")]

    def read(body: bytes) -> None:
        with contextlib.suppress(BadLoadTest):
            parse_loadtest(body.decode("utf-8", "replace"), "x.json")

    assert fuzz(samples, read) > 0


# -- the pages' own API --------------------------------------------------------------------------------------------------


def test_requests_from_the_openapi_document(tmp_path: Path, store: Store) -> None:
    """By somebody who is logged in: no request whatever is an error of the server's."""
    fill(store, now=T0 + 3600)
    token = "a-token-that-is-long-enough"
    stated: dict[str, Any] = {
        "database": f"sqlite:///{tmp_path}/flyball.db",
        "state_dir": tmp_path / "state",
        "web": {"token": token},
        "endpoints": [{"name": "chat", "url": "http://127.0.0.1:1", "mode": "approve", "actuator": {"system": "emulated"},
                       "objective": {"ttft_p95_s": 1.0}}],
    }  # fmt: skip
    clock = VirtualClock(T0 + 3600)
    made = Governor(
        Settings.model_validate(stated), store, clock, holder="test:1", http=Http(monotonic=clock.monotonic)
    )
    document = create_app(made)
    api = schemathesis.openapi.from_dict(document.openapi())
    api.app = document
    headers = {"Authorization": f"Bearer {token}", "Host": "127.0.0.1"}
    known = [found.ok() for found in api.get_all_operations() if not isinstance(found, Err)]
    operations = [operation for operation in known if operation.path not in _APART]
    begun, tried = time.monotonic(), 0
    while time.monotonic() - begun < FUZZ_S:
        for operation in operations:

            @seed(tried)
            @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                      phases=(Phase.generate, Phase.shrink))  # fmt: skip
            @given(case=operation.as_strategy())
            def one(case: schemathesis.Case[Any]) -> None:
                case.call_and_validate(headers=headers, checks=[not_a_server_error])

            one()
            tried += 1
    assert tried >= len(operations)
