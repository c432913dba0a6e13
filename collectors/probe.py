"""The probe: one small streaming request now and then, measured from outside as a client sees it.

It works on every OpenAI-compatible endpoint, whatever metrics that has. Each probe costs the tokens that it asks for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from collectors.base import Scope, ScrapeTarget, SourceContext
from collectors.completion import PATHS, Api, Completion, complete, request_of
from collectors.discovery import Support
from collectors.prompt import prompt_of
from collectors.window import CollectError, Reading

_MAX_TARGETS = 4096


SUPPORT = Support(
    title="a small request of Flyball's own, now and then",
    sees=(
        "TTFT, ITL and end-to-end of one request",
        "whether it answers",
        "how much of a vendor's rate limits is used, by the answer's headers",
    ),
    changes=(),
    verified="real part",
    how="a real vLLM server (CPU)",
)


class Options(BaseModel):
    """Settings of the ``probe`` source."""

    model_config = ConfigDict(extra="forbid")

    api: Api = "chat"
    """chat or completions. Default chat: what most endpoints offer."""
    path: str | None = Field(default=None, pattern=r"^/")
    """Path under the target's address. Default: /v1/chat/completions or /v1/completions, as ``api`` says."""
    prompt_words: int = Field(default=32, gt=0, le=100_000)
    """Words in the prompt. Default 32: small, so that a probe measures the server and not itself."""
    output_tokens: int = Field(default=16, gt=1, le=10_000)
    """Tokens asked for. Default 16: enough gaps for a median."""
    interval_s: float = Field(default=60.0, gt=0, le=86_400)
    """Seconds between two probes of one target. Default 60: a sign of life each minute, for next to no load."""
    timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Seconds for the whole request. Default 30: slower is down, for whoever waits."""
    seed: int = 0
    """Of the words. Each probe draws other words, so that no prefix cache answers in the server's place."""


@dataclass(slots=True)
class _Tally:
    """Of one target, since this process probes it."""

    started_at: float
    counters: dict[str, float] = field(
        default_factory=lambda: {"requests": 0.0, "errors": 0.0, "prompt_tokens": 0.0, "output_tokens": 0.0}
    )


class ProbeCollector:
    """Probes the targets of one endpoint. A failed probe raises, and is an error in the next reading's counters."""

    source: ClassVar[str] = "probe"
    settles_s = 0.0
    scope: Scope = "replica"

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._options = Options.model_validate(dict(context.options))
        self.interval_s: float | None = self._options.interval_s
        self.deadline_s: float | None = (
            self._options.timeout_s + 5
        )  # the request ends by its own; this is for what does not
        self._rng = np.random.default_rng(self._options.seed)
        self._tallies: dict[str, _Tally] = {}
        self._model = context.model

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        """One request, measured. Raises CollectError: the kinds of ``complete``, and no_model."""
        if len(self._tallies) >= _MAX_TARGETS:
            self._tallies.clear()
        tally = self._tallies.setdefault(target.name, _Tally(self._context.clock.now()))
        model = self._model = self._model or await self._only_model(target)
        options = self._options
        body = request_of(options.api, model, prompt_of(options.prompt_words, self._rng), options.output_tokens)
        tally.counters["requests"] += 1
        try:
            done = await complete(
                self._context.http,
                target.url + (options.path or PATHS[options.api]),
                body,
                headers=target.headers,
                timeout_s=options.timeout_s,
            )
        except CollectError:
            tally.counters["errors"] += 1
            raise
        if done.prompt_tokens is None:
            tally.counters.pop("prompt_tokens", None)  # a server that does not always tell leaves the sum unknown
        elif "prompt_tokens" in tally.counters:
            tally.counters["prompt_tokens"] += done.prompt_tokens
        tally.counters["output_tokens"] += done.output_tokens
        return [
            Reading(
                target=target.name,
                at=self._context.clock.now(),
                counters=dict(tally.counters),
                gauges=dict(done.limits_used),
                started_at=tally.started_at,
                facts={"model": model, **done.limits},
                samples=samples_of(done),
            )
        ]

    async def _only_model(self, target: ScrapeTarget) -> str:
        """The server's model, where the settings name none and it has just one."""
        answer = await self._context.http.get(
            target.url + "/v1/models", headers=target.headers, timeout_s=self._options.timeout_s
        )
        try:
            models = [str(entry["id"]) for entry in json.loads(answer.body)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CollectError("no_model", "the server lists no models. Name the endpoint's model") from error
        if len(models) != 1:
            raise CollectError("no_model", f"the server has {len(models)} models. Name the endpoint's model")
        return models[0]


def samples_of(done: Completion) -> dict[str, tuple[float, ...]]:
    """By canonical histogram name."""
    samples: dict[str, tuple[float, ...]] = {
        "ttft_s": (max(0.0, done.ttft_s),),
        "e2e_s": (max(0.0, done.e2e_s),),
        "output_length": (float(done.output_tokens),),
    }
    if done.gaps_s:
        samples["itl_s"] = done.gaps_s
    if done.tpot_s is not None:
        samples["tpot_s"] = (done.tpot_s,)
    if done.prompt_tokens is not None:
        samples["prompt_length"] = (float(done.prompt_tokens),)
    return samples


def make(context: SourceContext) -> ProbeCollector:
    """The entry point. Raises pydantic's ValidationError on options that are not those of ``Options``."""
    return ProbeCollector(context)
