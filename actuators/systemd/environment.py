"""An environment file of systemd: variables read, and one line written with every other byte as it was. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from actuators.commandline import ENGINE_LIMITS, argument, replaced
from actuators.shape import EngineValue

_LINE = re.compile(r"[ \t]*(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*?)[ \t]*\r?$")
#: What systemd would take for more than letters, or continue on the next line.
_SPECIAL = re.compile(r"[\"'\\$`]")


class EnvironmentFile:
    """``arguments``: the variable that holds the engine's command line; ``variables``: those that hold one limit each, by the limit."""

    def __init__(self, text: str, arguments: str | None, variables: Mapping[str, str]) -> None:
        self.text = text
        self._arguments = arguments
        self._variables = variables

    @property
    def engine(self) -> dict[str, EngineValue]:
        """Limits that are stated; a default is not."""
        words = (self._value(self._arguments) or "").split() if self._arguments else []
        stated = {name: argument(words, name) for name in ENGINE_LIMITS}
        stated |= {limit: self._value(variable) for limit, variable in self._variables.items()}
        return {name: int(value) for name, value in stated.items() if value is not None and value.isdigit()}

    def with_engine(self, changes: Mapping[str, EngineValue | None]) -> str:
        """The text with these limits; None: without that one. Raises ValueError where it cannot be written safely."""
        text = self.text
        own = {limit: value for limit, value in changes.items() if limit in self._variables}
        for limit, value in own.items():
            text = _with(text, self._variables[limit], None if value is None else str(value))
        others = {limit: value for limit, value in changes.items() if limit not in self._variables}
        if others:
            if self._arguments is None:
                raise ValueError(
                    f"no variable holds {', '.join(sorted(others))}: name it in `variables`, or `arguments`"
                )
            line = self._value(self._arguments)
            if line is None:
                raise ValueError(f"{self._arguments} is not in the file")
            text = _with(text, self._arguments, " ".join(replaced(line.split(), others)))
        return text

    def _value(self, name: str | None) -> str | None:
        """Without the quotes around it; the last one counts, as it does for systemd."""
        found = None
        for line in self.text.splitlines():
            match = _LINE.match(line)
            if match is not None and match["name"] == name:
                found = match["value"].strip()
        if found is None:
            return None
        return found[1:-1] if len(found) >= 2 and found[0] == found[-1] and found[0] in "\"'" else found


def _with(text: str, name: str, value: str | None) -> str:
    """The last line of that variable with another value, in the quotes that it has. Raises ValueError."""
    lines = text.splitlines(keepends=True)
    at = next(
        (i for i in reversed(range(len(lines))) if (m := _LINE.match(lines[i])) is not None and m["name"] == name), None
    )
    if at is None:
        if value is None:
            return text
        return text + ("" if not text or text.endswith("\n") else "\n") + f"{name}={value}\n"
    match = _LINE.match(lines[at])
    assert match is not None
    old = match["value"].strip()
    quote = old[0] if len(old) >= 2 and old[0] == old[-1] and old[0] in "\"'" else ""
    inner = old[1:-1] if quote else old
    if _SPECIAL.search(inner) or _SPECIAL.search(value or ""):
        raise ValueError(f"{name} holds quotes, escapes or variables: change it by hand")
    if value is None:
        del lines[at]
        return "".join(lines)
    begin, end = match.span("value")
    lines[at] = lines[at][:begin] + f"{quote}{value}{quote}" + lines[at][end:]
    return "".join(lines)
