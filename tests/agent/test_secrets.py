"""Secrets that were planted are looked for in everything that is written: messages, errors, files."""

from __future__ import annotations

import asyncio
import copy
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from actuators.vllm_local.processes import write_json
from agent.check import check_file
from agent.configfile import BadSettings, load
from agent.slack.send import Sender
from agent.store import Store, outbox
from collectors.http import Http
from collectors.window import CollectError
from tests.agent.slack import governor, propose
from tests.collectors.servers import Request, Served, answering, head_of, serve

CANARY = "k4n4r13-canary-value"
#: Every field that takes text, at some place where it may stand.
EVERYTHING: dict[str, Any] = {
    "sizes": {"small": {"usd_per_replica_hour": 1.0, "accelerator": "H100"}},
    "timezone": "UTC",
    "log_level": "info",
    "people": [{"name": "ada", "slack": "U0ADAA", "login": "x"}],
    "report": {"schedule": "mon 08:00"},
    "email": {"host": "h", "sender": "a@b", "to": ["c@d"], "username": "u", "password": "${CANARY}"},
    "slack": {"webhook_url": "${CANARY}", "approvers": ["U0ADA"], "app_id": "A", "allow_hosts": ["h"]},
    "web": {"host": "127.0.0.1", "public_url": "http://x"},
    "otlp": {"endpoint": "http://x"},
    "endpoints": [
        {
            "name": "chat",
            "url": "http://h",
            "model": "m",
            "kind": "engine",
            "role": "production",
            "mode": "observe",
            "sources": {"vllm": {"url": "http://x"}},
            "objective": {"ttft_p95_s": 1.0},
            "shape": {
                "size": "small",
                "accelerator": "H100",
                "engine": {"a": 1},
                "autoscaling": {"least": 1, "most": 2, "targets": {"x": 1}},
                "purchase": {"amount": 1, "unit": "ptu"},
            },
            "actuator": {"system": "none", "options": {"a": "b"}},
            "policy": {
                "sizes": ["small"],
                "engine": {"max_num_seqs": [1]},
                "auto": ["grow"],
                "approvers": ["ada"],
                "change_windows": [{"days": "mon-fri", "start": "09:00"}],
            },
            "bill": {"vendor": "openai", "key": "${CANARY}", "scope": "x"},
        }
    ],
}


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*at, key))
    else:
        yield at


@pytest.mark.parametrize(
    "place", [*_places(EVERYTHING), ("endpoints", 0, "reference")], ids=lambda p: ".".join(map(str, p))
)
def test_no_message_shows_what_a_reference_stands_for(
    place: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", CANARY)
    settings = copy.deepcopy(EVERYTHING)
    inner: Any = settings
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = "${CANARY}"
    path = tmp_path / "flyball.yaml"
    path.write_text(yaml.safe_dump(settings))
    try:
        said = [str(problem) for problem in check_file(load(path))]
    except BadSettings as error:
        said = [str(problem) for problem in error.problems]
        assert said
    assert not [line for line in said if CANARY in line]


def test_an_address_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    path.write_text(yaml.safe_dump({"endpoints": [{"name": "chat", "url": f"http://u:{CANARY}@h"}]}))
    with pytest.raises(BadSettings) as raised:
        load(path)
    assert "use `api_key`" in str(raised.value)
    assert CANARY not in str(raised.value)


def _echo(request: Request) -> str:
    return f"no such key: {request.headers.get('authorization', '')} {request.headers.get('x-api-key', '')}"


@pytest.fixture
def echo() -> Iterator[Served]:
    """A server that refuses, and quotes what it was sent."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        said = _echo(request).encode()
        writer.write(head_of("403 Forbidden", length=len(said)) + said)
        await writer.drain()

    with serve(handler) as served:
        yield served


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {CANARY}"}, {"x-api-key": CANARY}])
def test_a_server_that_quotes_its_key_does_not_get_it_into_our_errors(headers: dict[str, str], echo: Served) -> None:
    async def ask() -> tuple[str, bytes]:
        http = Http()
        try:
            with pytest.raises(CollectError) as refused:
                await http.get(echo.url, headers=headers)
            async with http.stream("GET", echo.url, headers=headers, timeout_s=5.0) as stream:
                return str(refused.value), await stream.body()
        finally:
            await http.aclose()

    error, streamed = asyncio.run(ask())
    assert "no such key" in error
    assert CANARY not in error
    assert CANARY.encode() not in streamed


def test_a_webhook_that_is_quoted_stands_in_no_row(store: Store, tmp_path: Path) -> None:
    propose(store)
    with serve(answering(f"no route for /services/{CANARY}", status="500 Internal Server Error")) as server:
        to = {"webhook_url": f"{server.url}/services/{CANARY}", "allow_hosts": [f"127.0.0.1:{server.port}"]}
        with governor(store, tmp_path, **to) as made:
            sender: Sender = made.sender

            async def send() -> None:
                lead = await made.take_lead()
                assert lead is not None
                await sender.cycle(lead)

            asyncio.run(send())
    with store.read() as db:
        errors = [row["error"] for row in outbox.undelivered(db)]
    assert errors == ["HTTP 500"]


def test_what_a_server_was_started_with_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    write_json(path, {"args": ["--api-key", CANARY]})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
