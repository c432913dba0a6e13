"""The emulated server's OpenAI-compatible requests and answers: what a body means, and the bytes of each streamed token."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from actuators.wire import BadMessage

TEMPLATE_TOKENS = 4
"""Before a prompt's words, as a chat template would."""
_TEMPLATE = (None,) * TEMPLATE_TOKENS
DEFAULT_MAX_TOKENS = 16
"""Of /v1/completions, as OpenAI's; a chat may go on to the model's length."""
MEDIAN_OUTPUT, SIGMA_OUTPUT = 150.0, 0.7
"""Output lengths of requests without ``ignore_eos``: lognormal."""
WORDS = tuple(
    b" governor engine valve steam speed measure turn load steady spindle arm weight sleeve lever throttle rise".split()
)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One request, understood."""

    chat: bool
    tokens: Sequence[Hashable]
    """Of the prompt."""
    output: int
    limited: bool
    """It ends by its token limit."""
    stream: bool
    include_usage: bool

    @property
    def prompt(self) -> int:
        return len(self.tokens)

    def content(self, block_size: int) -> list[int]:
        """What stands in each full block of prompt and answer: a hash of it and of all before it."""
        tokens = (*self.tokens, *(_word(number) for number in range(1, self.output + 1)))
        found, before = [], 0
        for end in range(block_size, len(tokens) + 1, block_size):
            before = hash((before, tokens[end - block_size : end]))
            found.append(before)
        return found


def _word(number: int) -> str:
    """An answer's ``number``-th token, from 1."""
    return WORDS[number % len(WORDS)].decode()


def tokens_of(body: dict[str, Any]) -> Sequence[Hashable]:
    """A template's, and then the words of the prompt or of all messages. A list of token ids is taken as it is. Raises ``BadMessage``."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(t, int) for t in prompt):
        return prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return [*_TEMPLATE, *prompt.split()]
    messages = body.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        return [*_TEMPLATE, *(word for m in messages for word in _text(m.get("content")).split())]
    raise BadMessage("a `prompt` (one text, or one list of token ids) or `messages` is needed")


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def parse(body: Any, *, chat: bool, max_model_len: int, rng: random.Random) -> CompletionRequest:
    """What a request asks for. Raises ``BadMessage`` with what the client did wrong."""
    if not isinstance(body, dict):
        raise BadMessage("the body must be a JSON object")
    if body.get("n", 1) != 1:
        raise BadMessage("the emulation gives one choice: n must be 1")
    tokens = tokens_of(body)
    prompt = len(tokens)
    asked = body.get("max_completion_tokens", body.get("max_tokens"))
    if asked is None:
        asked = max(1, max_model_len - prompt) if chat else DEFAULT_MAX_TOKENS
    least = body.get("min_tokens", 0)
    for name, value in (("max_tokens", asked), ("min_tokens", least)):
        if isinstance(value, bool) or not isinstance(value, int) or value < (name == "max_tokens"):
            raise BadMessage(f"{name} must be a whole number, not {value!r}")
    if prompt + asked > max_model_len:
        text = f"This model's maximum context length is {max_model_len} tokens: {prompt} in the prompt and {asked} asked for"
        raise BadMessage(text)
    natural = asked
    if not body.get("ignore_eos"):
        natural = max(1, least, round(math.exp(rng.gauss(math.log(MEDIAN_OUTPUT), SIGMA_OUTPUT))))
    options = body.get("stream_options") or {}
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return CompletionRequest(chat, tokens, min(asked, natural), natural >= asked, bool(body.get("stream")), usage)


class AnswerFormat:
    """The answer to one request, in bytes."""

    def __init__(self, request: CompletionRequest, name: str, model: str, created: int) -> None:
        self.request = request
        kind = (
            "chat.completion" if request.chat else "text_completion",
            "chat.completion.chunk" if request.chat else "text_completion",
        )
        self._head = {"id": name, "created": created, "model": model}
        self._kind = kind
        head = json.dumps({**self._head, "object": kind[1]})[:-1]
        field = '"delta":{"content":"' if request.chat else '"text":"'
        self._before = f'data: {head},"choices":[{{"index":0,{field}'.encode()
        close = '"}' if request.chat else '"'
        self._after = f'{close},"logprobs":null,"finish_reason":null}}]}}\n\n'.encode()
        self._last = f'{close},"logprobs":null,"finish_reason":"{self.reason}"}}]}}\n\n'.encode()

    @property
    def reason(self) -> str:
        return "length" if self.request.limited else "stop"

    def usage(self, produced: int) -> dict[str, int]:
        prompt = self.request.prompt
        return {"prompt_tokens": prompt, "completion_tokens": produced, "total_tokens": prompt + produced}

    def opening(self) -> bytes:
        """The chunk before the first token: a chat names its role."""
        if not self.request.chat:
            return b""
        delta = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self._event({**self._head, "object": self._kind[1], "choices": [delta]})

    def token(self, number: int) -> bytes:
        """One token's chunk; the last one says why it is the last."""
        last = number == self.request.output
        return chunk(self._before + b" " + WORDS[number % len(WORDS)] + (self._last if last else self._after))

    def closing(self) -> bytes:
        """After the last token: usage where it was asked for, the end mark, and the end of the body."""
        done = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        if not self.request.include_usage:
            return done
        usage = {"object": self._kind[1], "choices": [], "usage": self.usage(self.request.output)}
        return self._event({**self._head, **usage}) + done

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        text = b"".join(b" " + WORDS[n % len(WORDS)] for n in range(1, self.request.output + 1)).decode()
        said = {"message": {"role": "assistant", "content": text}} if self.request.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.reason}
        return {**self._head, "object": self._kind[0], "choices": [choice], "usage": self.usage(self.request.output)}

    def _event(self, value: dict[str, Any]) -> bytes:
        return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    """In HTTP's chunked framing."""
    return b"%x\r\n%b\r\n" % (len(data), data)
