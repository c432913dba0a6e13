"""What traffic measured, as windows of the source ``traffic``."""

from __future__ import annotations

import math
from collections import defaultdict

from collectors.sketch import Sketch
from collectors.traffic.tally import Slice, Tally
from collectors.window import Window

_NAMES = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "prompt_length", "output_length")


def windows_of(
    tally: Tally, slice_s: float, endpoint: str, window_s: float, started_at: float, elapsed_s: float
) -> list[Window]:
    """Whole windows, oldest first. A request belongs to the window in which it ended; latencies count from when it was due.

    ``slice_s`` must divide ``window_s``, and be what the tally was counted with.
    """
    if round(window_s / slice_s, 6) % 1:
        raise ValueError(f"slices of {slice_s:g} s do not make up windows of {window_s:g} s")
    merged: defaultdict[int, Slice] = defaultdict(Slice)
    for index, piece in tally.slices.items():
        merged[math.floor((index + 0.5) * slice_s / window_s)].merge(piece)
    ended_at = started_at + elapsed_s
    first, last = math.floor(started_at / window_s), max([math.ceil(ended_at / window_s) - 1, *merged])
    return [_window(merged[k], endpoint, k * window_s, window_s, started_at, ended_at) for k in range(first, last + 1)]


def _window(piece: Slice, endpoint: str, start: float, window_s: float, since: float, until: float) -> Window:
    counts = {"requests": float(piece.ok + piece.errors), "errors": float(piece.errors)}
    counts["output_tokens"] = float(piece.output_tokens)
    if piece.prompt_tokens is not None:
        counts["prompt_tokens"] = float(piece.prompt_tokens)
    observed = min(until, start + window_s) - max(since, start)
    sketches: dict[str, Sketch] = {name: piece.values[name].sketch() for name in _NAMES if name in piece.values}
    return Window(
        endpoint=endpoint,
        source="traffic",
        start=start,
        duration_s=window_s,
        coverage=min(1.0, max(0.0, observed / window_s)),
        targets=1,
        counts=counts,
        sketches=sketches,
    )
