"""Server lines of HAProxy's file: weight, maxconn and `disabled` of one server set, every other byte left as it is. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SECTION = re.compile(
    r"(global|defaults|frontend|backend|listen|peers|resolvers|userlist|program|http-errors|ring|cache|mailers)\b"
)
_NUMBERS = ("weight", "maxconn")


class UneditableLine(ValueError):
    """The server has no line of its own, or one that cannot be read for certain."""


@dataclass(frozen=True, slots=True)
class FileServer:
    """What a server's line states. None: nothing, and HAProxy's default or a `default-server` line holds."""

    weight: int | None
    maxconn: int | None
    disabled: bool


def server_of(text: str, backend: str, server: str) -> FileServer:
    """Raises UneditableLine."""
    lines = text.splitlines(keepends=True)
    words = _words(lines[_line(lines, backend, server)])
    numbers = {name: _number(words, name) for name in _NUMBERS}
    return FileServer(numbers["weight"], numbers["maxconn"], "disabled" in words[3:])


def with_servers(text: str, backend: str, changes: Mapping[str, Mapping[str, int | bool]]) -> str:
    """The text with these values, by server: ``weight``, ``maxconn``, ``disabled``. Raises UneditableLine."""
    lines = text.splitlines(keepends=True)
    for server, values in changes.items():
        at = _line(lines, backend, server)
        line = lines[at]
        for name, value in values.items():
            line = _switched(line, bool(value)) if name == "disabled" else _set(line, name, int(value))
        lines[at] = line
    return "".join(lines)


def _line(lines: list[str], backend: str, server: str) -> int:
    """Which line is the server's."""
    section: list[str] = []
    for i, line in enumerate(lines):
        words = line.split()
        if words and _SECTION.fullmatch(words[0]):
            section = words[:2]
        elif words[:2] == ["server", server] and section in (["backend", backend], ["listen", backend]):
            if re.search(r"[\"'\\]", line):
                raise UneditableLine(f"the line of server {backend}/{server} has quotes or backslashes")
            return i
    raise UneditableLine(f"the file has no line `server {server}` in backend {backend}: a template, or another file")


def _words(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _number(words: list[str], name: str) -> int | None:
    """The last one counts, as it does for HAProxy."""
    found = [words[i + 1] for i, word in enumerate(words[:-1]) if word == name and i > 2]
    return int(found[-1]) if found and found[-1].isdigit() else None


def _parted(line: str) -> tuple[str, str]:
    """What HAProxy reads, and the rest: spaces, the comment, the end of the line."""
    read = line.partition("#")[0].rstrip()
    return read, line[len(read) :]


def _set(line: str, name: str, value: int) -> str:
    read, rest = _parted(line)
    places = list(re.finditer(rf"(?<=\s){name}(\s+)([0-9]+)(?=\s|$)", read))
    if not places:
        return f"{read} {name} {value}{rest}"
    start, end = places[-1].span(2)
    return f"{read[:start]}{value}{read[end:]}{rest}"


def _switched(line: str, disabled: bool) -> str:
    read, rest = _parted(line)
    there = "disabled" in _words(line)[3:]
    if disabled == there:
        return line
    return f"{read} disabled{rest}" if disabled else re.sub(r"\s+disabled(?=\s|$)", "", read) + rest
