"""Bodies in each encoding, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from collectors.otlp.bodies import MOST_UNPACKED
from collectors.otlp.receiver import METRICS, TRACES
from collectors.receiver import Push, PushError
from tests.collectors.otlp.messages import PROTOBUF, T0, push, receiver, record_of, request_span, traces

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 2}
SENT = traces([request_span(T0 - 1, 1, CHAT)])
BODY = SENT.SerializeToString()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_each_encoding_says_the_same_and_is_answered_in_kind(form: str, packed: bool) -> None:
    taken = receiver().take(push(SENT, form=form, packed=packed))
    assert record_of(taken).prompt_tokens == 9
    assert taken.answer.status == 200
    assert taken.answer.media_type == ("application/json" if form == "json" else "application/x-protobuf")
    assert taken.answer.body == (b"{}" if form == "json" else b"")


def test_json_as_the_protocol_writes_it() -> None:
    """Hexadecimal ids, whole numbers as text, fields that are not known: all of it is in the specification."""
    span = {
        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "chat m", "kind": 3, "flags": 256,
        "startTimeUnixNano": str(int(T0 - 1) * 10**9), "endTimeUnixNano": str(int(T0) * 10**9), "notYetKnown": {"a": [1]},
        "attributes": [
            {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "21"}},
        ],
    }  # fmt: skip
    body = json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [span]}]}]}).encode()
    record = record_of(receiver().take(Push(TRACES, {"content-type": "application/json"}, body, trusted=True)))
    assert (record.prompt_tokens, record.e2e_s, record.arrived_at) == (21, 1.0, T0 - 1)


WRONG = {
    "text": ({"content-type": "text/plain"}, BODY, 415),
    "a form, as a page could send it": ({"content-type": "application/x-www-form-urlencoded"}, BODY, 415),
    "no type": ({}, BODY, 415),
    "another compression": ({**PROTOBUF, "content-encoding": "br"}, BODY, 415),
    "no protobuf": (PROTOBUF, b"\xff\xff\xff", 400),
    "no JSON": ({"content-type": "application/json"}, b"{", 400),
    "no object": ({"content-type": "application/json"}, b"[1]", 400),
    "no UTF-8": ({"content-type": "application/json"}, b"\xff\xfe{}", 400),
    "a field of another type": ({"content-type": "application/json"}, b'{"resourceSpans": "secret-canary"}', 400),
    "a thousand brackets": ({"content-type": "application/json"}, b"[" * 100_000, 400),
    "no gzip": ({**PROTOBUF, "content-encoding": "gzip"}, BODY, 400),
    "half a gzip": ({**PROTOBUF, "content-encoding": "gzip"}, gzip.compress(BODY)[:-9], 400),
    "more behind the gzip": ({**PROTOBUF, "content-encoding": "gzip"}, gzip.compress(BODY) + b"x", 400),
    "a bomb": ({**PROTOBUF, "content-encoding": "gzip"}, gzip.compress(bytes(40 << 20)), 413),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_is_refused_by_its_status_and_nothing_of_it_is_repeated(name: str) -> None:
    headers, body, status = WRONG[name]
    to, sent = receiver(), Push(TRACES, headers, body, trusted=True)
    with pytest.raises(PushError) as refused:
        to.take(sent)
    assert refused.value.status == status
    answer = to.refusal(sent, refused.value)
    assert answer.status == status
    assert b"canary" not in answer.body
    if answer.media_type == "application/json":
        assert json.loads(answer.body)["message"] == refused.value.detail
    else:
        assert Status.FromString(answer.body).message == refused.value.detail


def test_a_bomb_is_not_unpacked() -> None:
    packed = gzip.compress(bytes(200 << 20))
    unpacking = zlib.decompressobj(31)
    assert len(unpacking.decompress(packed, MOST_UNPACKED + 1)) == MOST_UNPACKED + 1
    with pytest.raises(PushError):
        receiver().take(Push(TRACES, {**PROTOBUF, "content-encoding": "gzip"}, packed, trusted=True))


@given(
    body=st.binary(max_size=400), path=st.sampled_from([METRICS, TRACES]), kind=st.sampled_from(["x-protobuf", "json"])
)
def test_any_bytes_are_taken_or_refused(body: bytes, path: str, kind: str) -> None:
    try:
        taken = receiver().take(Push(path, {"content-type": f"application/{kind}"}, body, trusted=True))
    except PushError as error:
        assert error.status == 400  # noqa: PT017
    else:
        assert taken.answer.status == 200


@given(cut=st.integers(0, len(BODY)), flip=st.integers(0, len(BODY) - 1), to=st.integers(0, 255))
def test_a_damaged_body_is_taken_or_refused(cut: int, flip: int, to: int) -> None:
    damaged = bytearray(BODY)
    damaged[flip] = to
    try:
        receiver().take(Push(TRACES, PROTOBUF, bytes(damaged[:cut]), trusted=True))
    except PushError as error:
        assert error.status == 400  # noqa: PT017
