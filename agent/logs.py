"""Structured logs: one JSON object a line, with the loop, the cycle and the endpoint in each.

Nobody waits for the log, and nobody dies of it: lines are handed to a thread, and where standard error is full, slow or gone they are
dropped and counted.
"""

from __future__ import annotations

import atexit
import io
import logging
import queue
import sys
import threading
import time
from typing import TextIO

import structlog

#: Lines that wait for a slow reader. About ten megabytes at worst.
_WAITING = 10_000
#: After a refusal nothing is tried for so long.
_PAUSE_S = 1.0
#: How long the last lines may take when the process ends.
_LAST_S = 2.0


class PatientStream(io.StringIO):
    """A text stream that never blocks and never raises. What its reader does not take is dropped, and said once it reads again."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(_WAITING)
        self.dropped = 0
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def drain(self, seconds: float = _LAST_S) -> None:
        """Wait until all is written, and no longer than that."""
        until = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _write_on(self) -> None:
        told = 0
        while True:
            text = self._lines.get()
            try:
                if self.dropped > told:
                    self._stream.write(f'{{"event": "log_lines_dropped", "lines": {self.dropped - told}}}\n')
                    told = self.dropped
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # full, or closed: the next one may find it well again
                self.dropped += 1
                time.sleep(_PAUSE_S)
            finally:
                self._lines.task_done()


def configure(level: str, *, stream: TextIO | None = None) -> PatientStream:
    """Send everything, the libraries' own records included, to ``stream`` (standard error) as JSON. Returns what writes it."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    patient = PatientStream(stream or sys.stderr)
    atexit.register(patient.drain)
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=patient),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(patient)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=structlog.processors.JSONRenderer(), foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.raiseExceptions = False
    return patient
