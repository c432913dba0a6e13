"""Arrays of counts as bytes, and back. Little-endian."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from collectors.bins import Floats

_WIDTHS = ("<f8", "<u1", "<u2", "<u4")


def pack_counts(counts: Floats) -> bytes:
    """Whole numbers in as few bytes as hold them, others as they are; one byte says which."""
    width = 0
    if counts.size and np.all(counts == np.floor(counts)) and counts.max() < 2**32:
        width = 1 + int(np.searchsorted((2**8, 2**16), counts.max(), side="right"))
    return bytes([width]) + counts.astype(_WIDTHS[width]).tobytes()


def take_counts(data: memoryview, at: int, size: int) -> tuple[Floats, int]:
    (width,) = struct.unpack_from("<B", data, at)
    if width >= len(_WIDTHS):
        raise ValueError("sketch: the bytes are damaged")
    array, end = take(data, at + 1, _WIDTHS[width], size)
    return array.astype(np.float64), end


def take(data: memoryview, at: int, kind: str, size: int) -> tuple[NDArray[np.generic], int]:
    end = at + np.dtype(kind).itemsize * size
    if end > len(data):
        raise ValueError(f"sketch: {len(data)} bytes are too few")
    return np.frombuffer(data[at:end], kind).copy(), end
