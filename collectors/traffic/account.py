"""From records to a tally: which figures a request adds to, and whether it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from collectors.traffic.record import RequestRecord
from collectors.traffic.tally import Tally


@dataclass(frozen=True, slots=True)
class CountRules:
    """What counts."""

    warmup_s: float = 0.0
    """Requests that were due before are in no figure."""
    sending_s: float = float("inf")
    """When the sending ends: rates are counted until then."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Seconds by metric (``ttft_s``, ``itl_s``, ``tpot_s``, ``e2e_s``): a request that keeps all of them is good."""
    slice_s: float = 1.0
    started_at: float = 0.0
    """Unix seconds of second 0; slices are counted from the epoch, so that they make up whole windows."""

    def slice_of(self, at_s: float) -> int:
        return int((self.started_at + at_s) // self.slice_s)


class Account:
    """Adds records to a tally."""

    def __init__(self, rules: CountRules) -> None:
        self.rules = rules
        self.tally = Tally()

    def add(self, record: RequestRecord) -> None:
        ended = record.done_s if record.done_s is not None else record.due_s
        values = dict(samples(record))
        self._slice(record, ended, values)
        tally = self.tally
        tally.retried += record.retried
        paid = record.prompt_tokens if record.prompt_tokens is not None else record.asked_prompt
        tally.all_prompt += paid
        tally.all_output += record.output_tokens
        tally.all_ok += record.error is None
        tally.all_errors += record.error is not None
        counts = record.due_s >= self.rules.warmup_s
        good = counts and record.error is None and self._good(record)
        if record.error is None and self.rules.warmup_s <= ended <= self.rules.sending_s:
            tally.steady_ok += 1
            tally.steady_tokens += record.output_tokens
            tally.steady_good += self._good(record)
        tally.warmup += not counts
        if record.error is not None:
            (tally.errors if counts else tally.warmup_errors)[record.error] += 1
            tally.details.setdefault(record.error, record.detail)
            if record.retry_after_s is not None:
                tally.retry_after.add(record.retry_after_s)
        elif counts:
            self._success(record, good, values)

    def _success(self, record: RequestRecord, good: bool, values: Mapping[str, list[float]]) -> None:
        tally = self.tally
        tally.ok += 1
        tally.good += good
        for name, several in values.items():
            tally.values[name].extend(several)
        tally.tokens += record.output_tokens
        known = record.prompt_tokens is not None and tally.prompt_tokens is not None
        tally.prompt_tokens = (tally.prompt_tokens or 0) + (record.prompt_tokens or 0) if known else None
        tally.chunks += record.chunks
        tally.arrivals += record.arrivals
        tally.token_sources[record.token_source] += 1
        tally.packings[record.packing] += 1
        if record.chunks >= _ENOUGH:
            tally.streams += 1
            tally.bunched += record.chunks >= _BUNCHED * record.arrivals

    def _good(self, record: RequestRecord) -> bool:
        found = {
            "ttft_s": record.ttft_sched_s,
            "e2e_s": record.e2e_s,
            "tpot_s": record.tpot_s,
            "itl_s": record.tpot_s,  # of one request: its gaps' mean
        }
        kept = self.rules.limits.items()
        return all((value := found.get(name)) is None or value <= limit for name, limit in kept)

    def _slice(self, record: RequestRecord, ended: float, values: Mapping[str, list[float]]) -> None:
        piece = self.tally.slice(self.rules.slice_of(ended))
        if record.sent_s is not None:
            self.tally.slice(self.rules.slice_of(record.sent_s)).sent += 1
        if record.error is not None:
            piece.errors += 1
            return
        piece.ok += 1
        piece.output_tokens += record.output_tokens
        known = record.prompt_tokens is not None and piece.prompt_tokens is not None
        piece.prompt_tokens = (piece.prompt_tokens or 0) + (record.prompt_tokens or 0) if known else None
        for name in _IN_SLICES:
            if name in values:
                piece.of(name).extend(values[name])


#: Chunks of a stream from which on it tells how they come.
_ENOUGH = 4
#: So many chunks for each read: the stream is held up on its way.
_BUNCHED = 1.5
_IN_SLICES = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "prompt_length", "output_length")


def samples(record: RequestRecord) -> Iterator[tuple[str, list[float]]]:
    """What a request tells, by name. A failed one tells no latency: it is an error."""
    due, sent, first, last = record.due_s, record.sent_s, record.first_s, record.last_s
    if record.error is not None or first is None or last is None or sent is None:
        return
    yield "ttft_s", [first - due]
    yield "ttft_sent_s", [first - sent]
    yield "e2e_s", [last - due]
    yield "e2e_sent_s", [last - sent]
    yield "itl_s", list(record.gaps_s)
    yield "icl_s", list(record.chunk_gaps_s)
    yield "normalized_s", [(last - due) / record.output_tokens]
    if record.first_content_s is not None:
        yield "ttfo_s", [record.first_content_s - due]
    if record.tpot_s is not None:
        yield "tpot_s", [record.tpot_s]
    if record.prompt_tokens is not None:
        yield "prompt_length", [float(record.prompt_tokens)]
    yield "output_length", [float(record.output_tokens)]
