"""Gaps between events as gaps between tokens.

An engine that puts out several tokens at once (speculative decoding, multi-token prediction) times its events: vLLM observes
``inter_token_latency_seconds`` once for each output, however many tokens it holds (its pull request 52853). ITL is per token everywhere
here, so such a gap counts as one gap for each of the event's tokens. Arithmetic only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: A ratio so close to 1 is the noise of a page that is not written at one instant.
_ONE = 1.1
#: With fewer events the difference of two readings says too little; what happened since the start says more.
_EVENTS = 100.0
#: From here on the mean gap and TPOT tell a gap of events from one of tokens.
_TELLING = 1.25


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What came out, in an interval or since the start. None: unknown."""

    events: float
    """How many gaps were observed."""
    gap_s: float
    """Their mean."""
    tokens: float | None
    first_tokens: float | None
    """Of the tokens, those that began an answer: no gap leads to them."""
    drafts: float | None = None
    """Steps that verified drafted tokens."""
    accepted: float | None = None
    """Drafted tokens that were accepted."""
    tpot_s: float | None = None
    """Mean time per token of the requests that ended."""

    @property
    def tokens_per_event(self) -> float | None:
        """As counted; else as the drafts say, which counts a step without a draft as no event. None: not known."""
        if self.events > 0 and self.tokens is not None and self.first_tokens is not None:
            return max(0.0, self.tokens - self.first_tokens) / self.events
        return accept_length(self.drafts, self.accepted)

    @property
    def is_per_token(self) -> bool:
        """Whether the gaps are as long as TPOT says that a token takes, although there are fewer of them than tokens."""
        ratio = self.tokens_per_event
        if ratio is None or ratio < _TELLING or not self.tpot_s:
            return False
        return 1 / _ONE < self.gap_s / self.tpot_s < _ONE


def accept_length(drafts: float | None, accepted: float | None) -> float | None:
    """Mean tokens of a speculating step: the accepted ones and the model's own. None where nothing was drafted."""
    if not drafts or accepted is None:
        return None
    return 1.0 + accepted / drafts


def tokens_per_gap(lately: TokenOutput, ever: TokenOutput) -> float:
    """By how many tokens each gap is to be divided; 1 where each leads to one token, or where nobody knows.

    lately: of the interval that is judged. ever: since the engine started, which judges where the interval is short.
    """
    ratio = lately.tokens_per_event if lately.events >= _EVENTS else ever.tokens_per_event
    return 1.0 if ratio is None or ratio < _ONE or ever.is_per_token else ratio


def output_of(counts: Mapping[str, float], distributions: Mapping[str, tuple[float, float]]) -> TokenOutput | None:
    """By canonical names. distributions: how many values, and their sum. None where no gap was observed."""
    events, gaps_s = distributions.get("itl_s", (0.0, 0.0))
    if events <= 0:
        return None
    began = [distributions[name][0] for name in ("ttft_s", "prefill_s", "e2e_s") if name in distributions]
    requests, tpot_s = distributions.get("tpot_s", (0.0, 0.0))
    return TokenOutput(
        events=events,
        gap_s=gaps_s / events,
        tokens=counts.get("output_tokens"),
        first_tokens=began[0] if began else counts.get("requests"),
        drafts=counts.get("drafts"),
        accepted=counts.get("accepted_tokens"),
        tpot_s=tpot_s / requests if requests > 0 else None,
    )
