"""Not systemctl: a stand-in that knows ``show``, ``list-units`` and ``restart``. Usage: systemctl_standin.py STATE VERB …"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def _alive(pid: int | None) -> bool:
    """Not one that has ended, and that nobody has asked after."""
    try:
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _show(name: str, unit: dict[str, object]) -> str:
    alive = _alive(unit.get("pid"))  # type: ignore[arg-type]
    state = ("active", "running", "success") if alive else ("failed", "failed", "exit-code")
    return "\n".join(
        [
            f"Id={name}",
            "LoadState=loaded",
            f"ActiveState={state[0]}",
            f"SubState={state[1]}",
            f"Result={state[2]}",
            "NRestarts=0",
            f"MainPID={unit.get('pid', 0)}",
            f"ExecMainStartTimestampMonotonic={unit.get('started', 0)}",
            f"ExecStart={{ path=/usr/bin/vllm ; argv[]={unit['argv']} ; ignore_errors=no ; start_time=[n/a] ; pid=0 }}",
            f"EnvironmentFiles={unit['file']} (ignore_errors=no)",
            f"FragmentPath=/etc/systemd/system/{name}",
            "",
        ]
    )


def _restart(folder: Path, unit: dict[str, object]) -> None:
    pid = unit.get("pid")
    if isinstance(pid, int) and _alive(pid):
        os.killpg(pid, signal.SIGTERM)
        while _alive(pid):
            time.sleep(0.01)
    lines = [line.partition("=") for line in Path(str(unit["file"])).read_text().splitlines() if "=" in line]
    values = {name.strip(): value.strip().strip("\"'") for name, _, value in lines if not name.startswith("#")}
    with (folder / "restarts.log").open("a") as log:
        log.write(values.get("ARGS", "") + "\n")
    process = subprocess.Popen(
        str(unit["command"]).split(), env={**os.environ, **values}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    unit |= {"pid": process.pid, "started": time.monotonic_ns() // 1000}


def main() -> int:
    state, verb, *words = Path(sys.argv[1]), *sys.argv[2:]
    units = json.loads(state.read_text())
    names = [w for w in words if w.endswith(".service")]
    match verb:
        case "list-units":
            sys.stdout.write(
                "".join(f"{n} loaded active running {n}\n" for n, u in units.items() if _alive(u.get("pid")))
            )
        case "show":
            parts = [_show(n, units[n]) if n in units else f"Id={n}\nLoadState=not-found\n" for n in names]
            sys.stdout.write("\n".join(parts))
        case "restart":
            if names[0] not in units:
                sys.stderr.write(f"Failed to restart {names[0]}: Unit {names[0]} not found.\n")
                return 5
            if units[names[0]].get("denied"):
                sys.stderr.write(f"Failed to restart {names[0]}: Interactive authentication required.\n")
                return 1
            _restart(state.parent, units[names[0]])
            state.write_text(json.dumps(units))
        case _:
            sys.stderr.write(f"Unknown command verb {verb}.\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
