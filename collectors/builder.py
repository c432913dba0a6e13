"""Readings in, windows out: the differences of counters, the splitting over windows, and what was not seen.

Owns the arithmetic of time. Does no I/O and reads no clock: each reading says when it was made, and ``close`` is told
the time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from collectors.accumulator import Accumulator
from collectors.door import checked, checked_span
from collectors.identity import Identity
from collectors.increase import Increase, increase
from collectors.window import CollectError, Reading, Span, Window

#: A gap is written as this many empty windows at most, unless ``close`` is told otherwise; older ones are simply absent.
_MAX_GAP_WINDOWS = 1_000
#: How long a target that failed last is missed, when nobody says that it is gone: longer than any backoff.
_FAILING_S = 3600.0
#: Closed windows that are kept for what comes late, and intervals of one target that are remembered.
_MOST_SHUT, _MOST_SPANS = 64, 256


@dataclass(slots=True)
class _Presence:
    """From when to when a target was there to be read."""

    first: float
    last: float
    failing: bool = False
    gone: float | None = None

    def missed_until(self, max_gap_s: float) -> float:
        """Until when it is missed after its last sign: one that fails is retried rarely, one that was read is just gone."""
        return self.last + (_FAILING_S if self.failing else max_gap_s)

    def within(self, start: float, end: float, max_gap_s: float) -> float:
        """Seconds of [start, end) in which it should have been observed."""
        until = end if self.missed_until(max_gap_s) >= end else self.last
        until = until if self.gone is None else min(self.gone, end)
        return max(0.0, min(end, until) - max(start, self.first))


class WindowBuilder:
    """The windows of one endpoint from one source.

    Call ``add`` or ``failed`` for each target in each cycle, then ``close(now)``: the reading after a window's end
    brings what happened in its last seconds. Two readings of a target at most ``max_gap_s`` apart observe all that
    lies between them; further apart they observe nothing, because nobody knows when in between it happened.
    """

    def __init__(self, endpoint: str, source: str, window_s: float, *, max_gap_s: float) -> None:
        if not (window_s > 0 and max_gap_s > 0):
            raise ValueError("a window builder needs a window_s and a max_gap_s above 0")
        self._endpoint = endpoint
        self._source = source
        self._window_s = float(window_s)
        self._max_gap_s = max_gap_s
        self._open: dict[int, Accumulator] = {}
        self._next: int | None = None
        """Which window closes next, counted from the Unix epoch; None before anything was seen."""
        self._first: int | None = None
        self._latest = -math.inf
        """The newest moment that anybody spoke of."""
        self._set_back_s = max(max_gap_s, 2 * self._window_s)
        """By more than this no slow reading is late: the clock was set."""
        self._last: dict[str, Reading] = {}
        self._present: dict[str, _Presence] = {}
        self._identities: dict[str, Identity] = {}
        self._told: dict[str, set[str]] = {}
        """By target: every metric that it ever told."""
        self._spans: dict[str, OrderedDict[tuple[float, float], None]] = {}
        """By target: the intervals that it told, the newest last."""
        self._reopens = False
        """Whether what comes may be late: then closed windows are kept for a while."""
        self._shut: OrderedDict[int, Accumulator] = OrderedDict()

    def add(self, reading: Reading) -> None:
        """What a target said. A reading older than the target's last one counts as the error ``clock_back``.

        Raises CollectError: ``invalid_value`` on what cannot be, ``several_servers`` where one address is more than one; then what is
        open is given up, since what was added up so far may be wrong by orders of magnitude.
        """
        reading = checked(reading)
        before = self._last.get(reading.target)
        if before is not None and reading.at < before.at:
            window = self._seen(reading.target, reading.at)
            window.errors["clock_back"] += 1
            self._last[reading.target] = reading  # the clock was set: go on from here
            return
        window = self._seen(reading.target, reading.at)
        window.read.add(reading.target)
        self._present[reading.target].failing = False
        window.facts[reading.target] = reading.facts
        for name, values in reading.samples.items():
            window.sample(name, values)
        if before is None or reading.at > before.at:
            self._last[reading.target] = reading
        for name, value in reading.gauges.items():
            window.point(reading.target, name, value)
        if before is None:
            return
        try:
            self._identities.setdefault(reading.target, Identity()).check(before, reading)
        except CollectError:
            for open_window in self._open.values():
                open_window.spoil()
            raise
        happened = increase(before, reading)
        window.restarts += happened.restarted
        if 0 < reading.at - before.at <= self._max_gap_s:
            self._spread(before, reading, happened)

    def span(self, span: Span) -> None:
        """What a source says of an interval. It may come late: a window that is closed already is opened once more, for a while.

        Raises CollectError ``invalid_value`` on what cannot be.
        """
        span = checked_span(span)
        told = self._spans.setdefault(span.target, OrderedDict())
        if (span.start, span.end) in told:
            return
        told[span.start, span.end] = None
        if len(told) > _MOST_SPANS:
            told.popitem(last=False)
        self._reopens = True
        presence = self._arrived(span.target, span.start)
        presence.first, presence.last = min(presence.first, span.start), max(presence.last, span.end)
        presence.failing = False
        names = {*span.counts, *span.sketches, *span.gauges, *span.quantiles}
        known = self._told.setdefault(span.target, set())
        known |= names
        touched = list(self._split(span.start, span.end))
        if not touched:
            self._window(self._next or 0).errors["late"] += 1
        for window, _, seconds in touched:
            share, seconds = seconds / (span.end - span.start), seconds * span.share
            window.read.add(span.target)
            window.facts[span.target] = span.facts
            window.observed[span.target] = window.observed.get(span.target, 0.0) + seconds
            for name, more in span.counts.items():
                window.count(name, share * more)
            for name, sketch in span.sketches.items():
                window.merge(name, sketch if share == 1 else sketch.scaled(share))
            for name, gauge in span.gauges.items():
                window.stretch(span.target, name, gauge, seconds)
            for name, ranges in span.quantiles.items():
                for q, among in ranges.items():
                    window.quantile(name, q, among)
            for name in known - names:
                window.lose(name, seconds)

    def failed(self, target: str, at: float, kind: str) -> None:
        """A target could not be read, with all engines behind it. ``kind`` is ``CollectError.kind``."""
        behind = [t for t in self._present if t == target or t.startswith((f"{target}#", f"{target}@"))] or [target]
        for each in behind:
            window = self._seen(each, at)
            self._present[each].failing = True
        window.errors[kind] += 1

    def gone(self, target: str, at: float) -> None:
        """A target is no longer there by intention (a replica was removed): from then on it is not missed."""
        if target in self._present:
            self._present[target].gone = at

    def settle(self, serving: int) -> None:
        """The system says that so many replicas serve. Where as many speak, whoever fell silent without failing was removed: it is not
        missed, and its share of the load is the others' now."""
        there = {target: presence for target, presence in self._present.items() if presence.gone is None}
        newest = max((presence.last for presence in there.values()), default=0.0)
        silent = {t: p for t, p in there.items() if p.last <= newest - self._window_s and not p.failing}
        speaking = {target.partition("#")[0] for target, p in there.items() if target not in silent and not p.failing}
        if len(speaking) >= serving:
            for presence in silent.values():
                presence.gone = presence.last

    def observe(
        self,
        at: float,
        *,
        target: str = "",
        requests: float | None = None,
        errors: float | None = None,
        counts: Mapping[str, float] | None = None,
        samples: Mapping[str, Sequence[float]] | None = None,
        spans_s: float = 0.0,
    ) -> None:
        """What somebody measured itself, not as differences of counters. All of it falls into the window of ``at``.

        counts: increases by canonical counter name, beside ``requests`` and ``errors``.
        samples: values by canonical histogram name.
        spans_s: the seconds before ``at`` that this observes, for the coverage.
        """
        window = self._seen(target, at)
        window.read.add(target)
        given = {"requests": requests, "errors": errors, **(counts or {})}
        for name, more in given.items():
            if more is not None:
                window.count(name, more)
        for name, values in (samples or {}).items():
            window.sample(name, values)
        for overlapped, _, seconds in self._split(at - spans_s, at):
            overlapped.observed[target] = overlapped.observed.get(target, 0.0) + seconds

    def close(self, until: float) -> list[Window]:
        """Every window that ended by ``until``, oldest first, those without any reading included. Each comes once."""
        return [self.close_window(index) for index in self.ended(until)]

    def ended(self, until: float, most_gaps: int = _MAX_GAP_WINDOWS) -> list[int]:
        """Which windows ended by ``until``, oldest first, for ``close_window``: each is named once.

        Of a longer gap than ``most_gaps`` windows only the newest are named, so that a clock set ahead by a week costs nothing.
        """
        if self._next is None:
            return []
        self._forget()
        ended = self._index(until)  # the first that has not
        gaps = range(max(self._next, ended - most_gaps), ended)
        due = sorted({index for index in self._open if index < ended} | set(gaps))
        self._next = max(self._next, ended)
        return due

    def close_window(self, index: int) -> Window:
        """One of those that ``ended`` named. Whatever it raises, the others are as they were."""
        window = self._open.pop(index) if index in self._open else self._new(index)
        if self._reopens:
            self._shut[index] = window
            if len(self._shut) > _MOST_SHUT:
                self._shut.popitem(last=False)
        return self._closed(window)

    def gap(self, index: int, kind: str) -> Window:
        """What stands in for a window that cannot be made: nothing is known of it, and why."""
        return Window(self._endpoint, self._source, index * self._window_s, self._window_s, 0.0, errors={kind: 1})

    def _closed(self, window: Accumulator) -> Window:
        start, end = window.start, window.end
        present = sum(presence.within(start, end, self._max_gap_s) for presence in self._present.values())
        expected, observed = max(present, end - start), sum(window.observed.values())
        return Window(
            endpoint=self._endpoint,
            source=self._source,
            start=start,
            duration_s=self._window_s,
            coverage=min(1.0, observed / expected),
            targets=len(window.read),
            restarts=window.restarts,
            counts=dict(window.counts),
            sketches=window.sketches(),
            gauges=window.gauges(),
            errors=dict(window.errors),
            facts=window.told(),
            quantiles=window.quantiles(),
            observed={
                name: min(1.0, max(0.0, observed - seconds) / expected) for name, seconds in sorted(window.lost.items())
            },
        )

    def _forget(self) -> None:
        """Drop targets that nobody tried to read for long, so that replicas that come and go leave nothing behind."""
        assert self._next is not None
        now = self._next * self._window_s
        for target in [t for t, presence in self._present.items() if presence.missed_until(self._max_gap_s) < now]:
            del self._present[target]
            self._last.pop(target, None)
            for remembered in (self._identities, self._told, self._spans):
                remembered.pop(target, None)

    def _seen(self, target: str, at: float) -> Accumulator:
        """The window of ``at``; the oldest open one where that is closed."""
        if at < self._latest - self._set_back_s:
            self._begin_again()
        self._latest = max(self._latest, at)
        self._arrived(target, at)
        return self._window(max(self._index(at), self._next or 0))

    def _arrived(self, target: str, at: float) -> _Presence:
        """A target spoke of that moment."""
        if self._next is None:
            self._next = self._first = self._index(at)
        presence = self._present.get(target)
        if presence is None or presence.gone is not None:
            # What is there when we begin was there before: the first window is not whole.
            begin = self._index(at) * self._window_s if self._index(at) == self._first else at
            presence = self._present[target] = _Presence(begin, at)
        else:
            presence.last = max(presence.last, at)
        return presence

    def _begin_again(self) -> None:
        """The clock was set back: what is open lies in a time that has not come yet, and nothing is due before it."""
        self._open.clear()
        self._last.clear()
        self._present.clear()
        self._identities.clear()
        self._spans.clear()
        self._shut.clear()
        self._next, self._latest = None, -math.inf

    def _index(self, at: float) -> int:
        return math.floor(at / self._window_s)

    def _window(self, index: int) -> Accumulator:
        window = self._open.get(index)
        if window is None:
            window = self._open[index] = self._shut.pop(index) if index in self._shut else self._new(index)
        return window

    def _new(self, index: int) -> Accumulator:
        return Accumulator(index * self._window_s, (index + 1) * self._window_s)

    def _split(self, start: float, end: float) -> Iterator[tuple[Accumulator, float, float]]:
        """The open windows that (start, end) touches: where the span begins in each, and how long it is there."""
        assert self._next is not None
        oldest = self._next - (_MOST_SHUT if self._reopens else 0)
        for index in range(max(oldest, self._index(start)), self._index(end) + 1):
            begin = max(start, index * self._window_s)
            seconds = min(end, (index + 1) * self._window_s) - begin
            if seconds > 0:
                yield self._window(index), begin, seconds

    def _spread(self, before: Reading, after: Reading, happened: Increase) -> None:
        """Spread what happened between two readings evenly over the windows that they touch."""
        target, span = after.target, after.at - before.at
        known = self._told.setdefault(target, set())
        for reading in (before, after):
            known.update(reading.counters, reading.histograms, reading.gauges)
        told = {
            *happened.counts,
            *(filled.name for filled in happened.histograms),
            *(before.gauges.keys() & after.gauges.keys()),
        }
        lost = known - told
        for window, start, seconds in self._split(before.at, after.at):
            share = seconds / span
            window.observed[target] = window.observed.get(target, 0.0) + seconds
            for name, more in happened.counts.items():
                window.count(name, share * more)
            for name in lost:
                window.lose(name, seconds)
            for filled in happened.histograms:
                window.fill(filled.name, filled.edges, filled.increments * share, filled.total * share)
            for name, value in after.gauges.items():
                if name in before.gauges:
                    slope = (value - before.gauges[name]) / span
                    first = before.gauges[name] + slope * (start - before.at)
                    window.course(target, name, first, first + slope * seconds, seconds)
