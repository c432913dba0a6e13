"""One address with two servers behind it is found out, and a restart is not taken for one."""

from __future__ import annotations

import pytest

from collectors.builder import WindowBuilder
from collectors.window import CollectError, Reading, Window

T0 = 1_800_000_000.0


def played(servers: str, *, starts: bool, a: float = 1e6, b: float = 500.0) -> tuple[list[Window], int]:
    """Pages of server A or B every 10 s, each of which serves one request a second. The windows, and how often it was refused."""
    builder = WindowBuilder("chat", "vllm", 60.0, max_gap_s=40.0)
    refused = 0
    for i, server in enumerate(servers):
        at = T0 + 10.0 * i
        began = {"A": 1000.0, "B": 2000.0, "C": T0 + 105.0, "D": T0 + 205.0}[server] if starts else None
        count = {"A": a, "B": b, "C": -105.0, "D": -205.0}[server] + 10.0 * i
        reading = Reading("a", at, {"requests": count, "output_tokens": 7 * count}, started_at=began)
        try:
            builder.add(reading)
        except CollectError as error:
            builder.failed("a", at, error.kind)
            refused += 1
    return builder.close(T0 + 10.0 * len(servers)), refused


@pytest.mark.parametrize("servers", ["AB" * 30, "AABABB" * 10, "ABBB" * 15, "BA" * 30])
@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("b", [500.0, 999_000.0])
def test_two_servers_behind_one_address_are_no_telemetry(servers: str, starts: bool, b: float) -> None:
    windows, refused = played(servers, starts=starts, b=b)
    assert refused > 40
    assert any("several_servers" in w.errors for w in windows)
    settled = windows[2:]
    assert settled
    assert all(w.coverage == 0 and w.count("requests") is None for w in settled)
    if starts:
        assert all(w.coverage == 0 for w in windows)


@pytest.mark.parametrize("starts", [True, False])
def test_a_server_that_restarts_is_one_server(starts: bool) -> None:
    servers = "A" * 11 + "C" * 10 + "D" * 20
    windows, refused = played(servers, starts=starts)
    assert refused == 0
    assert sum(w.restarts for w in windows) == 2
    assert sum(w.count("requests") or 0.0 for w in windows) == pytest.approx(360.0, abs=15)


def test_once_it_is_one_server_again_it_is_read_again() -> None:
    windows, _ = played("AB" * 6 + "A" * 25, starts=True)
    assert windows[-1].coverage == pytest.approx(1.0)
    assert windows[-1].count("requests") == pytest.approx(60.0)


def test_it_says_what_to_do() -> None:
    builder = WindowBuilder("chat", "vllm", 60.0, max_gap_s=40.0)
    builder.add(Reading("a", T0, {"requests": 1.0}, started_at=2000.0))
    with pytest.raises(CollectError, match="give each replica an address of its own") as caught:
        builder.add(Reading("a", T0 + 10, {"requests": 1.0}, started_at=1000.0))
    assert caught.value.kind == "several_servers"
