"""Processes that outlive Flyball: started in their own session, recorded, found again, and stopped without a doubt.

Owns the records, the logs and the signals of one endpoint's processes on this host (Linux: it reads ``/proc``). Decides
nothing. A record is written before a start and again after it, and each process carries a marker in its
environment that its children inherit. So whoever dies at whatever instant, the next look finds a process that can be
adopted, or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actuators.base import ActuatorError

MARKER = "FLYBALL_REPLICA"
KEPT_LOGS = 20
_PROC = Path("/proc")
#: After an interrupted start a process is looked for so long, and so often, before there is none.
_NEWBORN_S, _NEWBORN_LOOKS = 0.5, 10
#: What a process inherits of Flyball's environment. Not the rest: Flyball's secrets are not the model server's business.
_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "HTTPS_PROXY",
    "NO_PROXY",
)
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "NCCL_", "HF_", "VLLM_", "OMP_", "TORCH")


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process that was started, or is about to be (``pid`` is None then)."""

    name: str
    command: tuple[str, ...]
    digest: str
    """Of what decides how it serves, without its port: two replicas with one digest are interchangeable."""
    port: int
    device: str | None
    token: str
    """Of the operation that started it: the same operation never starts it twice."""
    log: str
    pid: int | None = None
    started_ticks: int | None = None
    """Clock ticks after boot, from the kernel: with the pid, it names one process, whatever is done to the clock."""
    stop_token: str | None = None
    stopped_at: float | None = None
    """When it was told to stop, by the monotonic clock."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class MarkedProcess:
    """A process of this host that carries our marker."""

    pid: int
    name: str
    leader: bool
    """It was started by us; the others are its children."""
    started_ticks: int


class Processes:
    """The processes of one endpoint, kept in ``state_dir``."""

    def __init__(self, state_dir: Path) -> None:
        if not (_PROC / "self" / "environ").exists():
            raise ActuatorError("NO_PROC", "vllm-local needs Linux with /proc mounted")
        self.state_dir = state_dir
        self._records = state_dir / "processes"
        self._logs = state_dir / "logs"

    # what is there

    def records(self) -> dict[str, ProcessRecord]:
        """All records by name. Raises ``ActuatorError`` when one cannot be read: guessing could start a process twice."""
        found = {}
        for path in sorted(self._records.glob("*.json")):
            data = read_json(path)
            try:
                found[path.stem] = ProcessRecord(**{**data, "command": tuple(data["command"])})
            except (TypeError, KeyError) as error:
                raise ActuatorError(
                    "STATE_UNREADABLE", f"{path}: {error}; see which processes run, then move it away"
                ) from None
        return found

    def scan(self) -> list[MarkedProcess]:
        """Every running process that carries this endpoint's marker, recorded or not. Zombies are not running."""
        prefix = f"{MARKER}={self._home()}/".encode()
        found = []
        for entry in _PROC.iterdir():
            if not entry.name.isdigit():
                continue
            name = _marker(_environ(int(entry.name)), prefix)
            stat = _stat(int(entry.name)) if name else None
            if name and stat:
                found.append(
                    MarkedProcess(int(entry.name), name, leader=stat[0] == int(entry.name), started_ticks=stat[1])
                )
        return sorted(found, key=lambda f: f.pid)

    def running(self) -> dict[str, list[MarkedProcess]]:
        """``scan`` by process name."""
        by_name: dict[str, list[MarkedProcess]] = {}
        for process in self.scan():
            by_name.setdefault(process.name, []).append(process)
        return by_name

    def alive(self, record: ProcessRecord) -> bool:
        """Whether exactly this process runs: by pid, start time and marker; by the marker alone where no pid is known."""
        return self._locate(record) is not None

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The last lines that a process wrote."""
        record = self.records().get(name)
        path = Path(record.log) if record else self._logs / f"{name}.log"
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 16_384))
                text = file.read().decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error})"
        return "\n".join(text.splitlines()[-lines:])

    # start

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        digest: str,
        port: int,
        token: str,
        env: Mapping[str, str],
        device: str | None = None,
    ) -> ProcessRecord:
        """Start a process, once for each ``token``; one that runs already is adopted. Raises ``ActuatorError``.

        A start that was interrupted is resumed with the command and the port of its record.
        """
        record = self.records().get(name)
        if record is not None:
            process = self._locate(record) if record.pid is not None else self._locate_newborn(record)
            if process is not None:
                if record.digest != digest:
                    raise ActuatorError("NAME_TAKEN", f"{name} runs with other arguments: stop it, then plan again")
                return self._write(replace(record, token=token, pid=process.pid, started_ticks=process.started_ticks))
            if record.token == token and record.pid is not None:
                return record  # it was started by this very operation and has died: done() says so
        if record is None or record.token != token:
            fresh = ProcessRecord(name, tuple(command), digest, port, device, token, str(self._new_log(name)))
            record = self._write(fresh)
        pid = self._spawn(record, env)
        stat = _stat(pid)
        return self._write(replace(record, pid=pid, started_ticks=stat[1] if stat else None))

    def free_port(self) -> int:
        """A port of the loopback that nobody has now, and none of our records names."""
        taken = {r.port for r in self.records().values()}
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in taken:
                return port

    # stop

    def terminate(self, name: str, token: str, now: float) -> None:
        """Ask a process to end, once for each ``token``. One without a record gets one, so that its grace is counted."""
        record = self.records().get(name)
        leaders = [p for p in self.scan() if p.name == name and p.leader]
        if record is None:
            if not leaders:
                return
            log = str(self._logs / f"{name}.log")
            record = ProcessRecord(name, (), "", 0, None, token, log, leaders[0].pid, leaders[0].started_ticks)
        if record.stop_token == token:
            return
        self._write(replace(record, stop_token=token, stopped_at=now))
        for process in leaders:
            self._signal(process, signal.SIGTERM)

    def kill(self, name: str) -> None:
        """End a process and all its children at once."""
        for _ in range(3):  # a child may be born between the look and the blow
            rest = [p for p in self.scan() if p.name == name]
            for process in rest:
                self._signal(process, signal.SIGKILL)

    def forget_dead(self, keep: Sequence[str]) -> None:
        """Remove the records of what no longer runs, except of the names to keep. Logs stay, the newest of them."""
        running = self.running()
        for name, record in self.records().items():
            if name not in keep and name not in running and not self.alive(record):
                (self._records / f"{name}.json").unlink(missing_ok=True)
        logs = sorted(self._logs.glob("*.log*"), key=lambda p: p.stat().st_mtime, reverse=True)
        in_use = {r.log for r in self.records().values()}
        for path in logs[KEPT_LOGS:]:
            if str(path) not in in_use:
                path.unlink(missing_ok=True)

    # inside

    def _home(self) -> str:
        """What tells this endpoint's processes from all others. It stays the same when the folder is moved."""
        path = self.state_dir / "home"
        if path.exists():
            return path.read_text().strip()
        return hashlib.sha256(str(self.state_dir.resolve()).encode()).hexdigest()[:16]

    def _locate(self, record: ProcessRecord) -> MarkedProcess | None:
        if record.pid is not None:
            stat = _stat(record.pid)
            if stat is None or stat[1] != record.started_ticks:
                return None
            _reap(record.pid)
            environ = _environ(record.pid)
            if environ and _marker(environ, f"{MARKER}={self._home()}/".encode()) != record.name:
                return None
            # One that runs and has none is just becoming another program, as a wrapper does.
            if not environ and not _runs(record.pid):
                return None
            return MarkedProcess(record.pid, record.name, leader=True, started_ticks=stat[1])
        return next((p for p in self.scan() if p.name == record.name and p.leader), None)

    def _locate_newborn(self, record: ProcessRecord) -> MarkedProcess | None:
        """Of a start that was interrupted: a process that is just becoming its program has no environment to be known by yet."""
        for _ in range(_NEWBORN_LOOKS):
            found = self._locate(record)
            if found is not None:
                return found
            time.sleep(_NEWBORN_S / _NEWBORN_LOOKS)
        return None

    def _write(self, record: ProcessRecord) -> ProcessRecord:
        write_json(self._records / f"{record.name}.json", asdict(record))
        return record

    def _new_log(self, name: str) -> Path:
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        path, number = self._logs / f"{name}.log", 1
        while path.exists():
            path, number = self._logs / f"{name}.log.{number}", number + 1
        return path

    def _spawn(self, record: ProcessRecord, env: Mapping[str, str]) -> int:
        if not (self.state_dir / "home").exists():
            write_text(self.state_dir / "home", self._home())
        marked = {**inherited(), **env, MARKER: f"{self._home()}/{record.name}", "SPT_NOENV": "1"}
        # SPT_NOENV: setproctitle, which vLLM uses, would otherwise write its title over the marker.
        write_log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            return os.posix_spawn(
                record.command[0],
                record.command,
                marked,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, record.log, write_log, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD],
            )
        except OSError as error:
            raise ActuatorError("START_FAILED", f"{record.command[0]} cannot be started: {error.strerror}") from None

    def _signal(self, process: MarkedProcess, number: signal.Signals) -> None:
        """Signal exactly this process: a handle is taken first, then its identity is looked at again."""
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            stat = _stat(process.pid)
            if stat is not None and stat[1] == process.started_ticks:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def inherited() -> dict[str, str]:
    """The part of our environment that a model server gets."""
    return {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}


def read_json(path: Path) -> Any:
    """The file's content, or None where there is no such file. Raises ``ActuatorError`` when it is broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ActuatorError(
            "STATE_UNREADABLE", f"{path}: {error}; see which processes run, then move it away"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Replace the file in one step that survives a power cut: readers see the old content or the new."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(
        os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
    ) as file:  # arguments may hold keys
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _environ(pid: int) -> bytes:
    """Its environment; empty where there is none to be read: a zombie, in the middle of an ``exec``, another's, or gone."""
    try:
        return (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def _marker(environ: bytes, prefix: bytes) -> str | None:
    """The name in a process's marker."""
    for entry in environ.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def _stat(pid: int) -> tuple[int, int] | None:
    """(session, start time in ticks after boot): fields 6 and 22 of ``/proc/PID/stat``, see proc(5)."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[3]), int(fields[19])


def _runs(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _reap(pid: int) -> None:
    """Collect a child of ours that has ended, so that it does not stay as a zombie. Not our child: init's business."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
