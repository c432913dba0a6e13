"""Units of a folder, as the script ``systemctl_standin.py`` runs them: no systemd is PID 1 where the tests run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("systemctl_standin.py")


class FakeSystemd:
    """One unit, ``chat.service``, whose process sleeps with its arguments. Use with ``with``."""

    def __init__(self, folder: Path, environment: str, command: str = "sleep 1000") -> None:
        self.folder = folder
        self.file = folder / "chat.env"
        self.file.write_text(environment)
        self.file.chmod(0o640)
        self.state = folder / "units.json"
        unit = {"command": command, "file": str(self.file), "argv": "/usr/bin/vllm serve m --port 8000 $ARGS"}
        self.state.write_text(json.dumps({"chat.service": unit}))
        self.systemctl = (sys.executable, str(_SCRIPT), str(self.state))
        old = time.time() - 60
        os.utime(self.file, (old, old))

    def __enter__(self) -> FakeSystemd:
        os.spawnv(os.P_WAIT, self.systemctl[0], [*self.systemctl, "restart", "--no-block", "chat.service"])
        self.log.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        pid = self.unit.get("pid")
        if pid:
            os.killpg(pid, signal.SIGKILL)

    @property
    def log(self) -> Path:
        return self.folder / "restarts.log"

    @property
    def unit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.state.read_text())["chat.service"]
        return found

    def set(self, **changes: Any) -> None:
        """``command``: what a restart runs; ``denied``: polkit refuses it."""
        self.state.write_text(json.dumps({"chat.service": {**self.unit, **changes}}))

    @property
    def restarts(self) -> list[str]:
        """The arguments that each restart ran with."""
        return self.log.read_text().splitlines() if self.log.exists() else []
