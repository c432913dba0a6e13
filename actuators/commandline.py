"""An engine's limits in its command line: read, and written with everything else as it was. Knows vLLM's names, and llama.cpp's of the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from actuators.shape import EngineValue

Body = Mapping[str, Any]
#: Arguments of the engine that Flyball may change: whole numbers, by their vLLM names.
ENGINE_LIMITS = (
    "max_num_seqs", "max_num_batched_tokens", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size",
)  # fmt: skip
#: What llama-server has of them: its slots.
_LLAMA = {"max_num_seqs": ("--parallel", "-np")}


def arguments(container: Body) -> list[str]:
    """The engine's own arguments, also where a shell is told to run them."""
    words = [str(w) for w in (*(container.get("command") or ()), *(container.get("args") or ()))]
    if len(words) >= 3 and words[0].rsplit("/", 1)[-1] in ("sh", "bash") and words[1].startswith("-"):
        try:
            return shlex.split(words[2], comments=True)
        except ValueError:
            return words
    return words


def flags_of(words: Sequence[str], name: str) -> tuple[str, ...]:
    """How the engine of that command line calls a limit; the first is what is written. Empty: it has none of it."""
    if any(word.rsplit("/", 1)[-1] == "llama-server" for word in words):
        return _LLAMA.get(name, ())
    return (f"--{name.replace('_', '-')}",)


def argument(words: Sequence[str], name: str) -> str | None:
    """The value of ``--max-num-seqs 64`` or ``--max-num-seqs=64``; the last one counts, as it does for the engine."""
    flags, found = flags_of(words, name), None
    for i, word in enumerate(words):
        head, equals, value = word.partition("=")
        if _is(head, flags):
            found = value if equals else (words[i + 1] if i + 1 < len(words) else None)
    return found


def engine_of(container: Body) -> dict[str, EngineValue]:
    """Engine limits that are stated; a default is not."""
    words = arguments(container)
    stated = {name: argument(words, name) for name in ENGINE_LIMITS}
    return {name: int(value) for name, value in stated.items() if value is not None and value.isdigit()}


def with_engine(container: Body, engine: Mapping[str, EngineValue | None]) -> list[str]:
    """The container's ``args`` with these limits; None: without that one. Raises ValueError where they stand in a shell's text."""
    old = [str(w) for w in container.get("args") or ()]
    if arguments(container) != [*(str(w) for w in container.get("command") or ()), *old]:
        raise ValueError("its arguments stand in a shell's command line: change them by hand")
    command = [str(w) for w in container.get("command") or ()]
    if not old and not command:
        raise ValueError("its arguments are the image's own, and `args` would replace them: state them there first")
    if any(argument(command, name) is not None for name in engine):
        raise ValueError("its limits stand in `command`; move them to `args`")
    return replaced([*command, *old], engine)[len(command) :]


def replaced(words: Sequence[str], engine: Mapping[str, EngineValue | None]) -> list[str]:
    """A command line with these limits; None: without that one. Raises ValueError on one that the engine has not."""
    found = list(words)
    for name, value in sorted(engine.items()):
        flags = flags_of(words, name)
        if not flags:
            raise ValueError(f"llama-server has no {name}: it has {', '.join(_LLAMA)}")
        found = _replaced(found, flags, value)
    return found


def _is(word: str, flags: Sequence[str]) -> bool:
    return word.replace("_", "-") in flags


def _replaced(args: list[str], flags: Sequence[str], value: EngineValue | None) -> list[str]:
    kept, skip = list[str](), False
    for word in args:
        if skip:
            skip = False
            continue
        head, equals, _ = word.partition("=")
        if _is(head, flags):
            skip = not equals
            continue
        kept.append(word)
    return kept if value is None else [*kept, flags[0], str(value)]
