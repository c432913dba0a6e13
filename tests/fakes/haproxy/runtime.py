"""The runtime API over a Unix socket, and the state behind it."""

from __future__ import annotations

import re
import shutil
import socketserver
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STATE = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change"
    " srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn"
    " srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port"
)
_STATISTICS = (
    "# pxname,svname,qcur,scur,slim,econ,wretr,wredis,status,weight,act,bck,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,"
    "hrsp_other,req_tot,qtime,ctime,rtime,ttime,addr,"
)
#: Bits of the administrative state.
FORCED, BY_FILE, DRAINS = 0x01, 0x04, 0x08


@dataclass
class FakeServer:
    name: str
    port: int
    admin: int = 0
    weight: int = 10
    maxconn: int = 0
    sessions: int = 0
    down: bool = False

    @property
    def status(self) -> str:
        if self.admin & FORCED:
            return "MAINT"
        if self.down:
            return "DOWN"
        return "DRAIN" if self.admin & DRAINS or self.weight == 0 else "UP"


class FakeHAProxy:
    """Use as ``with FakeHAProxy(servers)``. ``socket`` is where it listens."""

    def __init__(self, servers: Sequence[FakeServer], *, backend: str = "be", level: str = "admin") -> None:
        self.servers = {server.name: server for server in servers}
        self.backend = backend
        self.level = level
        self.commands: list[str] = []
        self.heard: Callable[[str], None] = self.commands.append
        """Told each command before it is carried out."""
        self.answered: Callable[[str], None] = lambda _command: None
        """Told each command after it, before its answer is sent. What it raises breaks the connection off."""
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="fbh-"))  # a socket's path has to be short
        self.socket = str(self._folder / "s")
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                command = self.rfile.readline().decode().rstrip("\n")
                with outer._lock:
                    try:
                        outer.heard(command)
                        said = outer.answer(command)
                        outer.answered(command)
                    except ConnectionError:
                        return
                self.wfile.write(said.encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(self.socket, Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> FakeHAProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder)

    @property
    def writes(self) -> list[str]:
        return [command for command in self.commands if not command.startswith("show ")]

    def answer(self, command: str) -> str:
        if command == "show cli level":
            return f"{self.level}\n"
        if command == "show info":
            return "Name: HAProxy\nVersion: 2.6.12\nUptime_sec: 60\nStart_time_sec: 1796067029\n"
        if command == "show stat":
            return "\n".join([_STATISTICS, *(self._row(s) for s in self.servers.values()), self._backend_row()]) + "\n"
        state = re.fullmatch(r"show servers state (\S+)", command)
        if state:
            if state[1] != self.backend:
                return "Can't find backend.\n"
            rows = [self._state(i, s) for i, s in enumerate(self.servers.values(), 1)]
            return "\n".join(["1", _STATE, *rows]) + "\n"
        change = re.fullmatch(r"set (?:maxconn )?server (\S+)/(\S+) (.+)", command)
        if change is None:
            return "Unknown command: type 'help' for a list.\n"
        return self._changed(command, *change.groups())

    def _changed(self, command: str, backend: str, name: str, rest: str) -> str:
        if self.level != "admin":
            return "Permission denied\n"
        if backend != self.backend:
            return "No such backend.\n"
        server = self.servers.get(name)
        if server is None:
            return "No such server.\n"
        if command.startswith("set maxconn"):
            server.maxconn = int(rest)
            return ""
        what, _, value = rest.partition(" ")
        if what == "weight":
            if not 0 <= int(value) <= 256:
                return "Absolute weight can only be between 0 and 256 inclusive.\n"
            server.weight = int(value)
            return ""
        states = {"ready": 0, "drain": DRAINS, "maint": FORCED}
        if what != "state" or value not in states:
            return "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"
        server.admin = server.admin & BY_FILE | states[value]
        return ""

    def _row(self, server: FakeServer) -> str:
        limit = server.maxconn or ""
        return (
            f"{self.backend},{server.name},0,{server.sessions},{limit},0,0,0,{server.status},{server.weight},1,0,"
            f"0,7,0,2,1,0,10,0,0,90,100,127.0.0.1:{server.port},"
        )

    def _backend_row(self) -> str:
        up = [s for s in self.servers.values() if s.status == "UP"]
        sessions = sum(s.sessions for s in self.servers.values())
        return (
            f"{self.backend},BACKEND,3,{sessions},200,4,2,1,UP,{len(up)},{len(up)},0,0,700,0,20,10,0,730,5,1,90,100,,"
        )

    def _state(self, i: int, s: FakeServer) -> str:
        return (
            f"4 {self.backend} {i} {s.name} 127.0.0.1 2 {s.admin} {s.weight} 10 1 6 3 4 6 0 0 0 - {s.port} - 0 0 - - 0"
        )
