"""The error budget: two spans must agree, and what is not known burns nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analyzers.burn import PAIRS, SPANS, BurnPair, burning
from analyzers.finding import Finding
from collectors.window import Window
from tests.analyzers.situations import HOUR, objective, situation
from tests.analyzers.situations import minute as at_minute

#: A hundredth may fail: 100 is all of the budget's burn.
OBJECTIVE = objective({"error_rate": 0.01})


def windows(span: float, bad: float, *, seen: float = 1.0) -> list[Window]:
    """A span in twenty windows, in which so large a share of the requests failed."""
    width = span / 20
    made = [at_minute(i, requests=100.0, errors=100.0 * bad, coverage=seen) for i in range(20)]
    return [replace(w, start=i * width, duration_s=width) for i, w in enumerate(made)]


def found(rates: dict[float, float], **how: float) -> list[Finding]:
    spans = {span: windows(span, rates.get(span, 0.0) * 0.01, **how) for span in SPANS}
    return list(burning(situation(objective=OBJECTIVE), spans))


def test_the_workbooks_pairs() -> None:
    assert [(p.long_s, p.short_s, p.rate) for p in PAIRS] == [
        (HOUR, 300.0, 14.4),
        (6 * HOUR, 1800.0, 6.0),
        (72 * HOUR, 6 * HOUR, 1.0),
    ]


@pytest.mark.parametrize("pair", PAIRS)
def test_both_spans_of_a_pair_must_burn(pair: BurnPair) -> None:
    long_s, short_s, rate = pair.long_s, pair.short_s, pair.rate
    (f,) = found({long_s: rate * 1.01, short_s: rate * 1.01})
    assert (f.reason.code, f.kind, f.severity) == ("BUDGET_BURN_ERROR_RATE", "burn", pair.severity)
    assert (f.reason.numbers["long_s"], f.reason.numbers["short_s"]) == (long_s, short_s)
    assert f.reason.numbers["long_rate"] == pytest.approx(rate * 1.01)
    assert found({long_s: rate * 1.01, short_s: rate * 0.5}) == [], "it has stopped"
    assert found({long_s: rate * 0.5, short_s: rate * 1.01}) == [], "it has only just begun"


def test_the_fastest_pair_is_the_one_that_is_told() -> None:
    (f,) = found(dict.fromkeys(SPANS, 20.0))
    assert (f.severity, f.reason.numbers["limit"]) == ("critical", 14.4)
    assert "20 times what the objective allows was bad over 1 h, and 20 times over 5 min" in f.reason.text


def test_a_span_that_was_hardly_seen_says_nothing_of_its_length() -> None:
    assert found(dict.fromkeys(SPANS, 50.0), seen=0.4) == []
    assert list(burning(situation(objective=OBJECTIVE), {})) == []


def test_a_percentile_burns_by_what_is_certainly_worse_than_its_limit() -> None:
    """Half of the first tokens are late where a twentieth may be: ten times too many, which is no page of 14.4."""
    late = [at_minute(i, ttft=[0.2] * 5 + [3.0] * 5) for i in range(60)]
    spans = {
        span: [replace(w, start=i * span / 60, duration_s=span / 60) for i, w in enumerate(late)] for span in SPANS
    }
    (f,) = burning(situation(), spans)
    assert (f.reason.code, f.reason.numbers["limit"]) == ("BUDGET_BURN_TTFT_P95_S", 6.0)
    assert f.reason.numbers["long_rate"] == pytest.approx(10.0)
