"""How often Flyball itself wrote, for systems whose configuration has no version of its own: it is part of what a plan rests on."""

from __future__ import annotations

import json
from pathlib import Path


class WriteCount:
    """Kept in a file, so that it outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def value(self) -> int:
        try:
            return int(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return 0

    def add(self) -> None:
        """After the write: whoever dies between the two finds it done, under the version before."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.value + 1), encoding="utf-8")
