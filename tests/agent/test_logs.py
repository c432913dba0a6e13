"""The log must neither stop nor end whoever writes it."""

from __future__ import annotations

import json
import os
import threading
import time

import structlog

from agent import logs
from agent.logs import PatientStream


class Sink:
    """A stream whose reader can be slow, or gone."""

    def __init__(self) -> None:
        self.open, self.broken, self.lines = threading.Event(), False, list[str]()
        self.open.set()

    def write(self, text: str) -> int:
        self.open.wait()
        if self.broken:
            raise BrokenPipeError(32, "Broken pipe")
        self.lines.append(text)
        return len(text)

    def flush(self) -> None:
        pass


def test_a_slow_reader_keeps_nobody_waiting_and_is_told_what_it_missed(monkeypatch: object) -> None:
    sink = Sink()
    sink.open.clear()
    patient = PatientStream(sink)  # type: ignore[arg-type]
    began = time.monotonic()
    for number in range(logs._WAITING + 50):
        patient.write(f"{number}\n")
    assert time.monotonic() - began < 30, "it did not wait for the reader"
    assert 48 <= patient.dropped <= 50
    dropped = patient.dropped
    sink.open.set()
    patient.drain(60)
    assert sink.lines.count("0\n") == 1
    assert json.loads(next(line for line in sink.lines if "dropped" in line))["lines"] == dropped


def test_a_reader_that_is_gone_ends_nobody() -> None:
    sink = Sink()
    patient = PatientStream(sink)  # type: ignore[arg-type]
    sink.broken = True
    patient.write("lost\n")
    patient.drain(60)
    sink.broken = False
    patient.write("there again\n")
    patient.drain(60)
    assert sink.lines[-1] == "there again\n"
    assert patient.dropped == 1


def test_a_pipe_without_a_reader() -> None:
    """As with `flyball run 2>&1 | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with os.fdopen(writing, "w") as stream:
            logs.configure("info", stream=stream)
            for _ in range(10):
                structlog.get_logger().info("said")
            time.sleep(0.1)
            os.close(os.dup(writing))  # the descriptor is still ours: nothing closed it
            stream.detach()
    except (BrokenPipeError, ValueError):
        pass
    finally:
        structlog.reset_defaults()
