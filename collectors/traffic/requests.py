"""The bytes of each request: prompts of a wanted length that share what they should share, as JSON, with an HTTP head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collectors.openai import PATHS, Api, request_of
from collectors.prompt import TokensPerWord, prompt_of
from collectors.traffic.connection import ServerAddress
from collectors.traffic.schedule import Job

_SHARED, _OWN = 11, 12
#: Sessions of a trace that are remembered.
_MOST_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """What all requests have in common."""

    model: str
    api: Api = "chat"
    path: str | None = None
    """None: the usual one of ``api``."""
    exact_output: bool = False
    """Ask for exactly that many tokens (``ignore_eos``): servers other than vLLM may refuse it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the request's JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """May hold a secret: never logged."""
    words: TokensPerWord = field(default_factory=TokensPerWord)
    seed: int = 0


class RequestFactory:
    """Makes requests for one worker."""

    def __init__(self, server: ServerAddress, template: RequestTemplate, worker: int) -> None:
        """Raises ValueError on headers that would break the request."""
        self._template = template
        self._rng = np.random.default_rng((template.seed, _OWN, worker))
        self._shared_rng = np.random.default_rng((template.seed, _SHARED))
        self._shared: list[str] = []
        self._said: dict[int, list[str]] = {}
        """The words of each session's last prompt, of a replayed trace."""
        path = template.path or PATHS[template.api]
        lines = {
            "host": server.authority,
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": "flyball",
        } | {name.lower(): value for name, value in template.headers.items()}
        text = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or " " in path:
            raise ValueError("a header or the path holds a line end or a space: such a request cannot be sent")
        self._head = text.encode("latin-1")

    def request(self, job: Job) -> bytes:
        """Head and body. Notes in the job what it says."""
        template = self._template
        job.said = self._prompt(job)
        extra = dict(template.extra)
        said = job.said
        if job.history and template.api == "chat":
            extra["messages"] = [m for turn in job.history for m in _messages(*turn)] + [_message("user", said)]
        elif job.history:
            said = "\n".join([*(part for turn in job.history for part in turn), said])
        body = request_of(
            template.api, template.model, said, job.output_tokens, exact=template.exact_output, extra=extra
        )
        data = json.dumps(body, separators=(",", ":")).encode()
        return b"%scontent-length: %d\r\n\r\n%s" % (self._head, len(data), data)

    def _prompt(self, job: Job) -> str:
        words = self._template.words.words(job.prompt_tokens)
        prefix = min(words, round(job.prefix_tokens / self._template.words.each))
        if job.history:  # the shared beginning was said in the first turn
            return prompt_of(max(1, words - prefix), self._rng)
        if job.own_prefix and job.session is not None:
            return self._going_on(job.session, words, prefix)
        own = prompt_of(words - prefix, self._rng) if words > prefix else ""
        return f"{self._beginning(prefix)} {own}".strip() if prefix else own

    def _going_on(self, session: int, words: int, prefix: int) -> str:
        """Begins as the session's last prompt did."""
        said = self._said.pop(session, [])[:prefix]
        if words > len(said):
            said = [*said, *prompt_of(words - len(said), self._rng).split(" ")]
        self._said[session] = said
        if len(self._said) > _MOST_SESSIONS:
            del self._said[next(iter(self._said))]
        return " ".join(said)

    def _beginning(self, words: int) -> str:
        """What all prompts begin with."""
        if len(self._shared) < words:
            drawn = prompt_of(words - len(self._shared), self._shared_rng)
            self._shared += drawn.split(" ")
        return " ".join(self._shared[:words])


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _messages(prompt: str, answer: str) -> list[dict[str, str]]:
    return [_message("user", prompt), _message("assistant", answer)]
