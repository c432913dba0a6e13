"""Figures as people say them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.words import dollars, figure, heading, lasting, phrase, plain, wording

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"), (0.25, "0.25 s"), (1.5, "1.5 s"), (45.2, "45 s"), (59.7, "1 min"), (60.0, "1 min"), (150.6, "2 min 31 s"),
        (599.8, "10 min"), (750.0, "12 min"), (3580.0, "1 h"), (3600.0, "1 h"), (9000.0, "2 h 30 min"), (86_400.0, "24 h"),
        (172_800.0, "2 d"), (216_000.0, "2 d 12 h"), (2_592_000.0, "30 d"),
    ],
)  # fmt: skip
def test_a_duration_is_said_in_at_most_two_units(seconds: float, said: str) -> None:
    assert lasting(seconds) == said


@given(st.floats(0.001, 1e8))
def test_what_is_said_is_near_what_it_is(seconds: float) -> None:
    words = lasting(seconds).split()
    told = sum(float(n) * UNITS[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    assert told == pytest.approx(seconds, rel=0.055)


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("ttft_p95_s", 0.23, "230 ms"),
        ("ttft_p95_s", 3.564, "3.56 s"),
        ("itl_p99_s", 0.00081, "0.81 ms"),
        ("e2e_p95_s", 151.0, "2 min 31 s"),
        ("error_rate", 0.004, "0.4 %"),
        ("output_tokens_per_s", 29_696.0, "29,696"),
        ("running_mean", 0.0000507, "0.0000507"),
        ("ttft_p95_s", None, "-"),
    ],
)
def test_a_figure_has_its_unit_and_no_exponent(metric: str, value: float | None, said: str) -> None:
    assert figure(metric, value) == said


def test_a_metric_is_said_in_words_and_in_short() -> None:
    assert wording("ttft_p95_s") == "time to first token, p95"
    assert phrase("itl_p99.9_s") == "gap between tokens (p99.9)"
    assert (heading("ttft_p95_s"), heading("e2e_p50_s"), heading("error_rate")) == (
        "TTFT p95",
        "e2e p50",
        "share of errors",
    )
    assert wording("a_strangers_metric") == phrase("a_strangers_metric") == "a_strangers_metric"


@given(st.floats(1e-12, 1e12))
def test_a_number_keeps_three_figures(value: float) -> None:
    said = plain(value)
    assert "e" not in said
    assert float(said.replace(",", "")) == pytest.approx(value, rel=0.006)


def test_little_money_is_told_without_an_exponent() -> None:
    assert dollars(4.96e-05) == "$0.0000496"
