"""ITL is per token: of servers whose events hold several tokens the gaps are those between their tokens."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actuators.shape import Shape
from analyzers.whatif.calibrate import CalibratedEngine, calibrate
from collectors.builder import WindowBuilder
from collectors.exposition import Exposition
from collectors.tokengaps import accept_length
from collectors.vllm import _NAMES, readings_of
from collectors.window import Window

OF = 'engine="0",model_name="m"'
GAPS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OUTPUT = 151
#: Seconds that a token takes, whatever else the engine does.
EACH = 0.015


def counted(name: str, number: float, value: float, edges: tuple[float, ...]) -> list[str]:
    reached = [f'{name}_bucket{{{OF},le="{edge}"}} {number if value <= edge else 0}' for edge in edges]
    rest = [f'{name}_bucket{{{OF},le="+Inf"}} {number}', f"{name}_count{{{OF}}} {number}"]
    return [*reached, *rest, f"{name}_sum{{{OF}}} {number * value}"]


def page(
    requests: int, per_event: float, *, drafts: bool, tpot: bool = True, per_token: bool = False, tokens: bool = True
) -> str:
    """Answers of 151 tokens, one each 15 ms, several of them in one event. per_token: the values are, though fewer."""
    events = round(requests * (OUTPUT - 1) / per_event)
    lines = [
        f"vllm:num_requests_running{{{OF}}} 9.0",
        f"vllm:num_requests_waiting{{{OF}}} 0.0",
        f"vllm:prompt_tokens_total{{{OF}}} {requests * 500}",
        f'vllm:request_success_total{{{OF},finished_reason="stop"}} {requests}',
        *counted("vllm:inter_token_latency_seconds", events, EACH * (1 if per_token else per_event), GAPS),
        *counted("vllm:time_to_first_token_seconds", requests, 0.2, SECONDS),
        *counted("vllm:e2e_request_latency_seconds", requests, 0.2 + EACH * (OUTPUT - 1), SECONDS),
        *counted("vllm:request_generation_tokens", requests, OUTPUT, (100.0, 200.0)),
        *counted("vllm:request_prompt_tokens", requests, 500, (100.0, 1000.0)),
    ]
    if tokens:
        lines.append(f"vllm:generation_tokens_total{{{OF}}} {requests * OUTPUT}")
    if tpot:
        lines += counted("vllm:request_time_per_output_token_seconds", requests, EACH, GAPS)
    if drafts:
        lines.append(f"vllm:spec_decode_num_drafts_total{{{OF}}} {events}")
        lines.append(f"vllm:spec_decode_num_accepted_tokens_total{{{OF}}} {events * (per_event - 1)}")
    return "\n".join([*lines, ""])


def windows(pages: list[str], every_s: float = 5.0) -> list[Window]:
    reader, builder = Exposition(_NAMES), WindowBuilder("e", "vllm", 30.0, max_gap_s=60.0)
    for i, text in enumerate(pages):
        for reading in readings_of(reader.parse(text.encode()), "a", None, 900.0 + i * every_s):
            builder.add(reading)
    return builder.close(900.0 + (len(pages) - 1) * every_s)


def seen(per_event: float, *, drafts: bool = False, tpot: bool = True, **how: bool) -> list[Window]:
    return windows([page(20 * i, per_event, drafts=drafts, tpot=tpot, **how) for i in range(25)])


@pytest.mark.parametrize("tpot", [True, False])
@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("per_event", [1.0, 1.3, 1.8, 2.5, 4.0, 8.0])
def test_gaps_are_between_tokens_however_many_an_event_holds(per_event: float, drafts: bool, tpot: bool) -> None:
    window = seen(per_event, drafts=drafts, tpot=tpot)[2]
    gaps, tokens = window.sketches["itl_s"], window.count("output_tokens")
    assert tokens is not None
    assert gaps.mean == pytest.approx(EACH, rel=1e-3)
    assert gaps.count == pytest.approx(tokens * (OUTPUT - 1) / OUTPUT, rel=1e-3)
    low, high = gaps.bounds(0.95)
    assert low * 0.99 <= EACH <= high * 1.01
    assert high <= 0.0225


def test_values_that_are_per_token_already_are_left_alone() -> None:
    window = seen(2.5, per_token=True)[2]
    assert window.sketches["itl_s"].mean == pytest.approx(EACH, rel=1e-3)
    assert window.sketches["itl_s"].bounds(0.95) == (0.01, 0.02)


def test_without_a_count_of_tokens_the_drafts_tell() -> None:
    window = seen(2.5, drafts=True, tokens=False)[2]
    assert window.sketches["itl_s"].mean == pytest.approx(EACH, rel=1e-3)


def test_short_intervals_are_judged_by_all_that_happened() -> None:
    """One request between two readings: 60 events, too few for a ratio of their own."""
    window = windows([page(50 + i, 2.5, drafts=False) for i in range(25)])[2]
    assert window.sketches["itl_s"].mean == pytest.approx(EACH, rel=0.01)


def test_the_accept_length_is_kept() -> None:
    window = seen(2.5, drafts=True)[2]
    assert accept_length(window.count("drafts"), window.count("accepted_tokens")) == pytest.approx(2.5)
    assert accept_length(seen(2.5)[2].count("drafts"), None) is None


def fitted(per_event: float) -> CalibratedEngine:
    return calibrate(seen(per_event, drafts=True), Shape(replicas=1), prior=None, hardware=None)


def test_a_speculating_engine_is_calibrated_as_fast_as_it_is() -> None:
    plain, drafting = fitted(1.0), fitted(2.5)
    for name in ("base_s", "per_sequence_s", "per_prefill_token_s"):
        assert getattr(drafting.model.iteration, name) == pytest.approx(getattr(plain.model.iteration, name), rel=0.01)
    assert any("2.5 tokens" in note for note in drafting.notes)
    assert not any("speculat" in note for note in plain.notes)


@given(
    per_event=st.floats(1.0, 10.0),
    requests=st.lists(st.integers(0, 40), min_size=12, max_size=12),
    drafts=st.booleans(),
)
def test_the_sum_of_all_gaps_is_kept_and_their_number_is_that_of_the_tokens(
    per_event: float, requests: list[int], drafts: bool
) -> None:
    reached = [sum(requests[: i + 1]) for i in range(len(requests))]
    pages = [page(50 + n, per_event, drafts=drafts) for n in reached]
    for window in windows(pages):
        gaps, tokens = window.sketches.get("itl_s"), window.count("output_tokens")
        assume(gaps is not None and tokens)
        assert gaps is not None
        assert tokens is not None
        after_first = tokens * (OUTPUT - 1) / OUTPUT
        assert gaps.total == pytest.approx(after_first * EACH, rel=0.02)
        # A ratio below 1.1 counts as one token an event.
        least = after_first / per_event if per_event < 1.11 else 0.97 * after_first
        assert least * 0.97 <= gaps.count <= 1.03 * after_first
        assert math.isfinite(gaps.bounds(0.95)[1])
