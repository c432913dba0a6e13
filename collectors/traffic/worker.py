"""A process that sends one worker's share: an assignment in by standard input, what it counted out by standard output.

It does nothing else, so that nothing else is in the way of its stamps. Run by ``fleet``, as ``python -m collectors.traffic.worker``.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import struct
import subprocess
import sys
from typing import IO, Any

from collectors.traffic.engine import Assignment, Engine
from collectors.traffic.record import RequestRecord
from collectors.traffic.tally import Tally

_LENGTH = struct.Struct("<I")
#: Seconds that connections may take to open before the traffic begins.
_OPENING_S = 5.0
#: Told together: a longer list would take longer to write than a stamp may be late.
_RECORDS = 20

Row = tuple[Any, ...]
COLUMNS = (
    "due_s", "sent_s", "head_s", "first_byte_s", "first_s", "first_content_s", "last_s", "done_s", "prompt_tokens", "output_tokens",
    "cached_tokens", "asked_prompt", "asked_output", "token_source", "packing", "chunks", "arrivals", "tpot_s", "status", "error",
    "detail", "finish_reason", "retry_after_s", "retried", "session", "turn",
)  # fmt: skip


Frame = tuple[str, Any]


def packed(what: str, value: Any) -> bytes:
    """One frame, as it goes over a pipe."""
    data = pickle.dumps((what, value), pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def unpacked(data: bytes) -> Frame:
    """What is in a frame, without its length. Only what our own processes wrote is ever read."""
    what, value = pickle.loads(data)  # noqa: S301  from our own process, by a way that nobody else has
    return what, value


def write(stream: IO[bytes], what: str, value: Any) -> None:
    """One frame."""
    stream.write(packed(what, value))
    stream.flush()


def taken(stream: IO[bytes]) -> bytes | None:
    """One frame as it came, without its length; None at the end, and where a writer died in the middle of one."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(head)[0]
    data = stream.read(size)
    return data if len(data) == size else None


def read(stream: IO[bytes]) -> Frame | None:
    """One frame; None at the end."""
    data = taken(stream)
    return None if data is None else unpacked(data)


def progress(tally: Tally, in_flight: int) -> dict[str, int]:
    """How it goes, in a few numbers that add up over workers."""
    return {
        "sent": tally.sent,
        "ok": tally.all_ok,
        "errors": tally.all_errors,
        "prompt_tokens": tally.all_prompt,
        "output_tokens": tally.all_output,
        "in_flight": in_flight,
    }


def begin(errors: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """The process, waiting for its assignment. ``errors``: where its standard error goes; None: where ours does.

    In a session of its own: Ctrl-C is for whoever began it, who then stops it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "collectors.traffic.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
        env={
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
        },  # it has no large matrices, and its threads would take CPU to start
    )


def main() -> None:
    """Until the traffic is over, or standard input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what anything prints must not get among the frames
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    first = read(sys.stdin.buffer)
    if first is None:
        return
    assignment: Assignment = first[1]
    rows: list[Row] = []

    def told(record: RequestRecord) -> None:
        rows.append(tuple(getattr(record, name) for name in COLUMNS))
        if len(rows) >= _RECORDS:
            write(out, "records", rows)
            rows.clear()

    engine = Engine(
        assignment,
        told if assignment.records else None,
        lambda engine: write(out, "progress", progress(engine.account.tally, engine.in_flight)),
        control=sys.stdin.fileno(),
    )
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes cycles that last, and a collection would stop the clock of every stream
    engine.open(_OPENING_S)
    write(out, "ready", None)
    begin = read(sys.stdin.buffer)
    if begin is None:
        return
    engine.run(begin[1])
    if rows:
        write(out, "records", rows)
    write(out, "done", engine.account.tally)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # whoever asked for it was killed
        os._exit(1)
