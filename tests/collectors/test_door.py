"""What no source may say, and that windows close from whatever it does say."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.base import ScrapeTarget, SourceContext
from collectors.builder import WindowBuilder
from collectors.door import checked
from collectors.exposition import Exposition
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.text import clean
from collectors.vllm import _NAMES, VllmCollector, readings_of
from collectors.window import CollectError, Histogram, Reading
from tests.collectors.clocks import SetClock
from tests.collectors.pages import histogram, recorded, v0_6
from tests.collectors.servers import answering, serve

T0 = 1_800_000_000.0
OF = 'model_name="m"'


def read_page(page: bytes) -> list[Reading]:
    return readings_of(Exposition(_NAMES).parse(page), "a", None, T0)


def closes(pages: list[bytes]) -> None:
    """Every page is readings or a CollectError, and every window closes."""
    builder = WindowBuilder("chat", "vllm", 60.0, max_gap_s=40.0)
    for i, page in enumerate(pages):
        at = T0 + 15 * i
        try:
            for reading in readings_of(Exposition(_NAMES).parse(page), "a", None, at):
                builder.add(reading)
        except CollectError as error:
            builder.failed("a", at, error.kind)
    for window in builder.close(T0 + 15 * len(pages) + 120):
        for gauge in window.gauges.values():
            assert math.isfinite(gauge.mean + gauge.maximum + gauge.last)
        assert all(math.isfinite(value) for value in window.counts.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_any_bytes_are_readings_or_a_collect_error(pages: list[bytes]) -> None:
    closes([b'vllm:num_requests_running{model_name="m"} 1\n' + page + b"\n" for page in pages])
    closes(pages)


_VALUES = [
    "1e308", "-1e308", "NaN", "+Inf", "-Inf", "-1", "9" * 400, "1_000", "²", "\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "0",
    "1e18", "999999999999999999", "\x00", "", "a" * 2000, "\\", '"', "None",
]  # fmt: skip


_PLACES = ["value", "le", "engine", "block_size", "model_name", "cut"]
_CHANGES = st.lists(st.tuples(st.integers(0, 400), st.sampled_from(_VALUES), st.sampled_from(_PLACES)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(_CHANGES, min_size=2, max_size=4))
def test_a_real_page_with_anything_in_it_is_readings_or_a_collect_error(
    changes: list[list[tuple[int, str, str]]],
) -> None:
    lines = recorded().decode().splitlines()
    lines = [line for line in lines if line.startswith("vllm:")]
    closes([_changed(lines, several) for several in changes])


def _changed(lines: list[str], changes: list[tuple[int, str, str]]) -> bytes:
    lines = list(lines)
    for number, text, where in changes:
        i = number % len(lines)
        head, _, value = lines[i].rpartition(" ")
        if where == "value":
            lines[i] = f"{head} {text}"
        elif where == "cut":
            lines[i] = lines[i][: len(lines[i]) // 2]
        else:
            before, found, rest = head.partition(f'{where}="')
            lines[i] = f'{before}{found}{text}"{rest.partition(chr(34))[2]} {value}' if found else lines[i]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ({"-1": 1, "1": 2, "+Inf": 2}, "invalid_value"),
        ({"NaN": 1, "+Inf": 2}, "invalid_value"),
        ({"1": 1, "1.0": 1, "2": 1, "+Inf": 2}, "invalid_value"),
        ({"1e301": 1, "+Inf": 2}, "invalid_value"),
        ({"1": 1, "+Inf": 1e300}, "invalid_value"),
    ],
)
def test_histograms_that_cannot_be(counts: dict[str, float], kind: str) -> None:
    page = v0_6() + histogram("vllm:e2e_request_latency_seconds", OF, counts, 1.0) + "\n"
    with pytest.raises(CollectError) as caught:
        read_page(page.encode())
    assert caught.value.kind == kind


def test_a_histogram_of_one_endless_bucket_is_legal_and_says_nothing() -> None:
    page = v0_6() + histogram("vllm:e2e_request_latency_seconds", OF, {"+Inf": 5}, 1.0) + "\n"
    (reading,) = read_page(page.encode())
    assert "e2e_s" not in reading.histograms
    assert "ttft_s" in reading.histograms


@pytest.mark.parametrize("engine", ["²", "9" * 5000, "-1", "٣", ""])
def test_an_engine_with_an_odd_number_is_an_engine_or_a_collect_error(engine: str) -> None:
    page = v0_6().replace('model_name="m"', f'engine="{engine}",model_name="m"')
    closes([page.encode()] * 5)


@pytest.mark.parametrize("size", ["²", "9" * 900, "-3", "None"])
def test_a_block_size_that_is_no_number_is_no_capacity(size: str) -> None:
    (reading,) = read_page(v0_6().replace('block_size="16"', f'block_size="{size}"').encode())
    assert "kv_tokens" not in reading.facts


def test_sums_that_overflow_are_refused() -> None:
    page = v0_6() + 'vllm:num_requests_running{model_name="m",engine="0"} 1e308\n' * 2
    with pytest.raises(CollectError, match="cannot be"):
        read_page(page.encode())


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"vllm:num_requests_running{model_name=" + b'"' + b"x" * 100_000, "too_large"),
        (b"# " + b"x" * 200_000, ""),
        (b'vllm:num_requests_running{model_name="' + b"m" * 2_000 + b'"} 1', "not_metrics"),
        (b'vllm:num_requests_running{' + b",".join(b'l%d="1"' % i for i in range(20_000)) + b"} 1", "too_large"),
    ],
    ids=["no closing quote", "a long comment", "a long label", "many labels"],
)  # fmt: skip
def test_lines_and_labels_have_an_end(page: bytes, kind: str) -> None:
    body = v0_6().encode() + page + b"\n"
    if not kind:
        assert read_page(body)
        return
    with pytest.raises(CollectError) as caught:
        read_page(body)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "date",
    ["Mon, 20 Nov 99999999999999999999 10:00:00 GMT", "²", "Mon, 20 Nov 2026 10:00:00 +9999999999", "\x7f", "0"],
)
def test_a_date_that_cannot_be_is_no_date(date: str) -> None:
    async def read(url: str) -> int:
        http = Http()
        try:
            return len(
                await VllmCollector(SourceContext("chat", None, http, SetClock(), Sessions())).read(
                    ScrapeTarget("a", url)
                )
            )
        finally:
            await http.aclose()

    with serve(answering(v0_6(), date=date)) as served:
        assert asyncio.run(read(served.url)) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"counters": {"requests": math.inf}}, {"counters": {"requests": -1.0}}, {"gauges": {"running": 1e308}}, {"at": math.nan},
        {"at": 1e300}, {"started_at": math.inf}, {"samples": {"ttft_s": (math.nan,)}}, {"samples": {"ttft_s": (-1.0,)}},
        {"histograms": {"ttft_s": Histogram((), (1.0,), 1.0)}}, {"histograms": {"ttft_s": Histogram((1.0,), (2.0, 1.0), 1.0)}},
        {"histograms": {"ttft_s": Histogram((1.0, 1.0), (1.0, 1.0, 1.0), 1.0)}},
        {"histograms": {"ttft_s": Histogram((1.0,), (1.0, 1.0), math.inf)}},
        {"histograms": {"ttft_s": Histogram((1.0,), (1.0,), 1.0)}},
    ],
)  # fmt: skip
def test_no_source_gets_what_cannot_be_past_the_door(bad: dict[str, object]) -> None:
    with pytest.raises(CollectError, match="invalid_value"):
        checked(Reading(**{"target": "a", "at": T0, **bad}))  # type: ignore[arg-type]


@given(st.text(max_size=50))
def test_cleaned_text_can_be_kept(text: str) -> None:
    kept = clean(text)
    kept.encode()
    assert "\x00" not in kept
    assert clean(kept) == kept
    assert CollectError("kind", text).detail == kept


def test_text_has_an_end_and_facts_are_clean() -> None:
    assert len(clean("x" * 10**6)) == 1_000
    reading = checked(Reading("a\x00", T0, facts={"model\ud800": "m\x00" * 10**6}))
    assert reading.target == "a\ufffd"
    ((name, text),) = reading.facts.items()
    assert name == "model\ufffd"
    assert len(text) == 1_000
