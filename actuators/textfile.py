"""A text file of somebody else's, written so that no reader ever finds half of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """In one rename, with the mode and the owner that the file has. ``path``: where it really is, no link. Raises OSError."""
    beside = path.with_name(f".{path.name}.flyball")
    of = path.stat()
    try:
        beside.unlink(missing_ok=True)
        beside.touch(0o600)
        with beside.open("w", encoding="utf-8", newline="") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        if (of.st_uid, of.st_gid) != (beside.stat().st_uid, beside.stat().st_gid):
            os.chown(beside, of.st_uid, of.st_gid)
        beside.chmod(stat.S_IMODE(of.st_mode))
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str:
    """With its line ends as they are. Raises OSError, ValueError."""
    return path.read_bytes().decode("utf-8")
