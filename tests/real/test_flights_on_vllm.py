"""A real vLLM server (CPU) tells its requests' spans to the running daemon; the recorded stretch is replayed, and set beside what was seen.

The stretch is a small day: four loads one after the other, up and down again. The engine is calibrated on two loads before it, so that
the day itself is not what was learned from. On cores that others use too its speed wanders between the two; the bounds are wide, and the
figures are printed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.store import flights
from tests.actuators.support import free_port
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.real.test_reference_on_vllm import _capacity, _send
from tests.real.vllm_parts import LARGER, MODEL_NAME, serving, tiny_model

pytestmark = [pytest.mark.real, pytest.mark.alone, pytest.mark.timeout(1200)]

WINDOW_S, SLOTS, TOKEN = 4.0, 16, "0123456789abcdef-of-the-engine"
DAY, QUARTER_S = (0.15, 0.4, 0.6, 0.3), 15.0
SAID = "the governor measures the engine"


def test_a_recorded_day_is_replayed_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    tiny_model(tmp_path, LARGER)
    for name, value in {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"Authorization=Bearer%20{TOKEN}",
        "OTEL_SERVICE_NAME": "chat",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTLP_TOKEN": TOKEN,
    }.items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path, max_num_seqs=SLOTS, otlp_traces_endpoint=f"http://127.0.0.1:{port}/v1/traces") as url:
        config = _configured(tmp_path, url, port)
        with running(config) as daemon:
            daemon.ready()
            _send(url, 1.0, 4.0, 1)  # the first ones compile
            most = _capacity(url)
            for seed, share in enumerate((0.12, 0.6), 2):
                _send(url, share * most, 20.0, seed)
            engine = _calibrated(tmp_path, config)
            begun = time.time()
            sent = sum(_send(url, share * most, QUARTER_S, 10 + i) for i, share in enumerate(DAY))
            daemon.until(lambda: _recorded(daemon, begun) >= sent, "the day is recorded", limit_s=60)
            # The command begins to count back a moment later; before the day there was a pause.
            since, day = f"{time.time() - begun + WINDOW_S:.3f}", tmp_path / "day.csv"
            found = _json("recorder", "export", "chat", "--since", since, "--out", str(day), "-c", str(config))
            with daemon.store() as store, store.read() as db:
                rows = list(flights.listed(db, "chat", "server", begun, 1e11))
            assert daemon.stop() == 0
    assert found["side"] == "server"
    assert found["requests"] == len(rows) >= sent  # two more tell how many tokens a word has, each time
    assert all(r["ttft_s"] is not None and r["e2e_s"] is not None and r["queue_s"] is not None for r in rows)
    assert all(0 < r["ttft_s"] <= r["e2e_s"] and not r["blocks"] and r["tenant"] is None for r in rows)
    for file in tmp_path.glob("flyball*"):
        if file.is_file():
            assert SAID.encode() not in file.read_bytes()
    told = _json("whatif", "--trace", str(day), "--engine", str(engine), "--accept-misfit")
    (replayed,) = told["candidates"]
    errors = _compared(found["seen"], replayed, capsys)
    assert replayed["completed"] == found["requests"]
    for name, error in errors.items():
        assert abs(error) < (1.0 if name.startswith("ttft") else 0.6), f"{name}: {error:+.0%}"


def _configured(folder: Path, url: str, port: int) -> Path:
    endpoint = {
        "name": "chat",
        "url": url,
        "model": MODEL_NAME,
        "objective": {"ttft_p95_s": 5.0},
        "shape": {"replicas": 1, "engine": {"max_num_seqs": SLOTS}},
        "sources": {"vllm": {}, "otlp": {"token": "${OTLP_TOKEN}"}},
    }
    collect = {"interval_s": 1.0, "window_s": WINDOW_S, "timeout_s": 10, "max_backoff_s": 4}
    return write_settings(folder, [endpoint], web={"port": port}, collect=collect)


def _recorded(daemon: Daemon, since: float) -> int:
    with daemon.store() as store, store.read() as db:
        return sum(row["requests"] for row in flights.summaries(db, since))


def _calibrated(folder: Path, config: Path) -> Path:
    time.sleep(WINDOW_S + 2.0)  # until the last window is closed
    engine = folder / "engine.json"
    told = flyball(
        "calibrate", "--endpoint", "chat", "--since", "10m", "--accept-misfit", "--out", str(engine), "-c", str(config)
    )
    assert told.returncode == 0, told.stderr
    return engine


def _json(*words: str) -> dict[str, Any]:
    told = flyball(*words, "-o", "json")
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def _compared(seen: dict[str, Any], replayed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Printed for people; the errors of the replay by metric and figure."""
    errors = {}
    with capsys.disabled():
        sys.stdout.write(f"\n{'':<14}{'seen':>9}{'replayed':>10}{'error':>8}\n")
        for metric in ("ttft_s", "e2e_s"):
            for figure in ("mean", "p50", "p95"):
                was, is_now = seen[metric][figure], replayed[metric][figure]
                errors[f"{metric}_{figure}"] = is_now / was - 1
                sys.stdout.write(f"{metric} {figure:<7}{was:9.4f}{is_now:10.4f}{is_now / was - 1:+8.1%}\n")
    return errors
