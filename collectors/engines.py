"""What marks a process as a server of models: the words of its image or its command line."""

from __future__ import annotations

from collections.abc import Iterable

ENGINES = ("vllm", "sglang", "text-generation-inference", "llama.cpp", "llama-server")


def name_of_engine(words: Iterable[object]) -> str | None:
    """The engine that one of the words names."""
    said = [str(word) for word in words]
    return next((engine for engine in ENGINES if any(engine in word for word in said)), None)
