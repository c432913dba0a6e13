"""Prometheus text, read for the names that are wanted: the hot path of every scrape.

Owns the text format (Prometheus 0.0.4 and OpenMetrics 1.0: escapes, timestamps, exemplars, ``# EOF``) and nothing of
what a name means. A page differs from the last one in its values only, so the head of each line (name and labels) is
parsed once and then looked up. Of the comments only the HELP of wanted names is kept: it may say in which unit a name counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from collectors.window import CollectError

Labels = Mapping[str, str]
#: The labels and the value of each series of one name, in the page's order.
SeriesList = list[tuple[Labels, float]]

_MAX_LINES = 200_000
#: Longest line, and longest text of one label: a page of one endless line must not fill the memory.
_MAX_LINE, _MAX_LABEL = 64 * 1024, 1_000
#: Heads remembered over all pages, and new ones taken from one page: a hostile page cannot fill the memory.
_MAX_HEADS = 50_000
_MAX_NEW_HEADS = 5_000
_LABEL = re.compile(rb'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,|(?=\}))')
_CLOSE = re.compile(rb"\s*\}")
_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SAMPLE = re.compile(rb"\s*[a-zA-Z_:{][^\n]*[\s}][+-]?(?:[0-9.]|Inf|inf|NaN|nan)")
_ESCAPE = re.compile(rb'\\([\\n"])')
_HELP = b"# HELP "
_NO_LABELS: Labels = MappingProxyType({})

#: A remembered head: its name and labels.
_Head = tuple[str, Labels]
_UNWANTED: _Head = ("", _NO_LABELS)


class MetricsPage(dict[str, SeriesList]):
    """The wanted series of one page by name, with what the page says of the names."""

    __slots__ = ("help", "page")

    def __init__(self, page: bytes = b"") -> None:
        super().__init__()
        self.page = page
        """The whole page: a foreign one says what it is by the names that nobody wanted."""
        self.help: dict[str, str] = {}
        """By sample name, as the HELP line has it: OpenMetrics leaves ``_total`` out there."""


class Exposition:
    """A reader for one set of names. Keep it: it remembers the heads of lines."""

    def __init__(self, names: Iterable[str], *, max_series: int = 20_000) -> None:
        """``names``: full sample names, with ``_bucket``, ``_sum``, ``_total``. ``max_series``: more is an error."""
        self._wanted = {name.encode(): name for name in names}
        self._max_series = max_series
        self._heads: dict[bytes, _Head] = {}

    def parse(self, body: bytes, content_type: str = "") -> MetricsPage:
        """The wanted samples of a page. NaN and infinite values are given as they are.

        Raises CollectError: ``not_metrics`` for HTML, nothing at all or a broken line, ``truncated`` when the page
        ends in the middle, ``too_large`` when it has more series than agreed.
        """
        _check_page(body, content_type)
        samples = MetricsPage(body)
        heads = self._heads
        new = number = 0
        for index, line in enumerate(body.split(b"\n")):
            if not line or line[0] == 35:  # "#"
                if line.startswith(_HELP):
                    self._keep_help(line, samples.help)
                continue
            if len(line) > _MAX_LINE:
                raise CollectError("too_large", f"line {index + 1} of the page is longer than {_MAX_LINE} bytes")
            head, _, text = line.rpartition(b" ")
            known = heads.get(head)
            try:
                if known is None:
                    known, value_text = self._split(line)
                    # Remembered only where the head is all that comes before the value: no timestamp, no exemplar.
                    if new < _MAX_NEW_HEADS and _is_head(head) and value_text in (b"", text.strip()):
                        new += 1
                        self._remember(head, known)
                    text = value_text
                if known is _UNWANTED:
                    continue
                value = _number(text)
            except ValueError as error:
                raise CollectError("not_metrics", f"line {index + 1} of the page is broken: {error}") from error
            number += 1
            if number > self._max_series:
                raise CollectError("too_large", f"the page has more than {self._max_series} series of the wanted names")
            name, labels = known
            if name in samples:
                samples[name].append((labels, value))
            else:
                samples[name] = [(labels, value)]
        if not samples:
            _check_metrics(body)
        return samples

    def _keep_help(self, line: bytes, texts: dict[str, str]) -> None:
        name, _, text = line[len(_HELP) : len(_HELP) + _MAX_LABEL].partition(b" ")
        wanted = self._wanted.get(name)
        if wanted is not None:
            texts.setdefault(wanted, _unescaped(text.strip()))

    def _remember(self, head: bytes, known: _Head) -> None:
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[head] = known

    def _split(self, line: bytes) -> tuple[_Head, bytes]:
        """Name and labels, and the value's text. Raises ValueError on a broken line of a wanted name."""
        line = line.strip()
        match = _NAME.match(line)
        name = self._wanted.get(match.group()) if match else None
        if match is None or name is None:
            return _UNWANTED, b""
        labels, rest = _labels(line[match.end() :].lstrip())
        fields = rest.split()
        if not fields:
            raise ValueError(f"{name} has no value")
        return (name, labels), fields[0]


def _check_metrics(body: bytes) -> None:
    """Raises CollectError unless a page without any wanted name is one of metrics all the same."""
    if any(_SAMPLE.match(line) for line in body.split(b"\n") if line[:1] != b"#"):
        return
    if b"# TYPE " not in body and b"# EOF" not in body:
        raise CollectError("not_metrics", "the page holds no metrics. Check the address and its path")


def _number(text: bytes) -> float:
    if b"_" in text:  # Python would read 1_000
        raise ValueError(f"{text[:40]!r} is no number")
    return float(text)


def _is_head(text: bytes) -> bool:
    """Whether a line's text before its last space is a name, or a name and labels, and nothing else."""
    return (text.endswith(b"}") and b"} " not in text) or _NAME.fullmatch(text) is not None


def _labels(text: bytes) -> tuple[Labels, bytes]:
    """The labels at the start of ``text``, and what follows them."""
    if not text.startswith(b"{"):
        return _NO_LABELS, text
    labels: dict[str, str] = {}
    at = 1
    while match := _LABEL.match(text, at):
        key, value, _ = match.groups()
        if len(value) > _MAX_LABEL:
            raise ValueError(f"its label {key.decode()} is longer than {_MAX_LABEL} bytes")
        labels[key.decode()] = _unescaped(value)
        at = match.end()
    close = _CLOSE.match(text, at)
    if close is None:
        raise ValueError(f"labels end at {text[at : at + 40]!r}")
    return MappingProxyType(labels), text[close.end() :]


def _unescaped(value: bytes) -> str:
    if b"\\" in value:
        value = _ESCAPE.sub(lambda m: b"\n" if m[1] == b"n" else m[1], value)
    return value.decode("utf-8", "replace")


def _check_page(body: bytes, content_type: str) -> None:
    start = body[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")) or "text/html" in content_type:
        raise CollectError("not_metrics", "the page is HTML: a login page, a proxy's error, or the wrong address")
    if not start:
        raise CollectError("not_metrics", "the page is empty")
    if not body.endswith((b"\n", b"# EOF")):
        raise CollectError("truncated", "the page ends in the middle of a line")
    if "openmetrics" in content_type and not body.rstrip().endswith(b"# EOF"):
        raise CollectError("truncated", "the page ends before its # EOF")
    if body.count(b"\n") > _MAX_LINES:
        raise CollectError("too_large", f"the page has more than {_MAX_LINES} lines")
