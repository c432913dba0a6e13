"""Before the traffic: does the server answer, which model does it have, and how many tokens has a word. A few small requests."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from collectors.prompt import TokensPerWord, prompt_of
from collectors.traffic.account import CountRules
from collectors.traffic.connection import READ, Connection, ServerAddress, judged
from collectors.traffic.engine import Assignment, Engine
from collectors.traffic.framing import Answer, BadAnswer
from collectors.traffic.record import RequestRecord, kind_of
from collectors.traffic.requests import RequestTemplate
from collectors.traffic.schedule import OpenSchedule
from collectors.window import CollectError
from collectors.workload import Workload

#: Words in the requests that measure how many tokens a word has.
_FEW, _MANY = 16, 64
_MOST = 4 * 2**20
#: No worker has this number: prompts are drawn by it.
_OWN = 10_000


def tokens_per_word(
    server: ServerAddress,
    template: RequestTemplate,
    timeout_s: float,
    running: Callable[[Engine], None] = lambda _: None,
) -> TokensPerWord:
    """By the usage of two requests for one token each; where the server gives none, by its ``/tokenize``; else one a word.

    Raises CollectError where the server does not answer as it should: then no traffic should be sent.
    """
    records = _two(server, replace(template, words=TokensPerWord()), timeout_s, running)
    failed = next((record for record in records if record.error is not None), None)
    if failed is not None:
        raise CollectError(str(failed.error), f"{server.authority}: {failed.detail}")
    if len(records) < 2:
        raise CollectError("interrupted", "it was stopped before the traffic began")
    tokens = [n for record in sorted(records, key=lambda r: r.asked_prompt) if (n := record.prompt_tokens) is not None]
    if len(tokens) < 2:
        tokens = [n for words in (_FEW, _MANY) if (n := _tokenized(server, template, words, timeout_s)) is not None]
    return TokensPerWord.fitted((_FEW, tokens[0]), (_MANY, tokens[1])) if len(tokens) == 2 else TokensPerWord()


def _two(
    server: ServerAddress, template: RequestTemplate, timeout_s: float, running: Callable[[Engine], None]
) -> list[RequestRecord]:
    """A few words and many, for one token each."""
    ones = np.ones(2, np.int64)
    load = OpenSchedule(Workload(np.zeros(2), np.array([_FEW, _MANY]), ones, ones * 0), 0.0)
    records: list[RequestRecord] = []
    engine = Engine(
        Assignment(server, template, load, CountRules(), timeout_s, connections=0, worker=_OWN), records.append
    )
    running(engine)
    engine.run(time.perf_counter())
    return records


def _tokenized(server: ServerAddress, template: RequestTemplate, words: int, timeout_s: float) -> int | None:
    """vLLM's count of a prompt; None where the server has no such thing."""
    body = {"model": template.model, "prompt": prompt_of(words, np.random.default_rng(words))}
    try:
        status, data = ask(server, "POST", "/tokenize", template.headers, body, timeout_s)
        found = json.loads(data)["count"] if status == 200 else None
    except (CollectError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def only_model(server: ServerAddress, headers: Mapping[str, str], timeout_s: float) -> str:
    """The server's model, where it has just one. Raises CollectError."""
    status, data = ask(server, "GET", "/v1/models", headers, None, timeout_s)
    if status != 200:
        raise CollectError(kind_of(status), f"{server.authority} answered {status} when asked for its models")
    try:
        models = [str(entry["id"]) for entry in json.loads(data)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CollectError("no_model", f"{server.authority} lists no models. Name one with --model") from error
    if len(models) != 1:
        shown = ", ".join(models[:5]) or "none"
        raise CollectError("no_model", f"{server.authority} has {len(models)} models ({shown}). Name one with --model")
    return models[0]


def ask(
    server: ServerAddress,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None,
    timeout_s: float,
) -> tuple[int, bytes]:
    """Status and payload of one plain request. Raises CollectError."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = {"host": server.authority, "connection": "close", "accept": "*/*", "content-length": str(len(data))}
    lines |= {"content-type": "application/json"} if body is not None else {}
    lines |= {name.lower(): value for name, value in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    until = time.monotonic() + timeout_s
    try:
        connection = Connection(server, server.tls())
    except OSError as error:
        raise CollectError(judged(error)[0], f"{server.authority}: {judged(error)[1]}") from error
    try:
        return _exchanged(connection, head.encode("latin-1") + b"\r\n" + data, until)
    except TimeoutError as error:
        raise CollectError("timeout", f"{server.authority} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise CollectError(judged(error)[0], f"{server.authority}: {judged(error)[1]}") from error
    except BadAnswer as error:
        raise CollectError("protocol", f"{server.authority}: {error}") from error
    finally:
        connection.close()


def _exchanged(connection: Connection, request: bytes, until: float) -> tuple[int, bytes]:
    while not connection.ready():
        _wait(connection, until)
    whole, answer, payload = connection.send(request), Answer(), b""
    while not answer.complete:
        if not whole:
            whole = connection.flush()
        _wait(connection, until, sending=not whole)
        try:
            data, _ = connection.receive(READ)
        except BlockingIOError:
            continue
        if data:
            payload += answer.feed(data)
        else:
            answer.eof()
        if len(payload) > _MOST:
            raise BadAnswer(f"the answer is longer than {_MOST} bytes")
    assert answer.status is not None
    return answer.status, payload


def _wait(connection: Connection, until: float, sending: bool = True) -> None:
    """For the socket; no longer than a moment, because TLS may want the other direction."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    poll = select.poll()
    poll.register(connection.fd, select.POLLIN | (select.POLLOUT if sending else 0))
    poll.poll(min(left, 0.05) * 1000)
