"""The emulated scheduler: by hand for small cases, by invariants for random ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.emulated.engine import REFERENCE, Limits, Scheduler, Sequence, Size, Timing

TIMING = Timing(1.0, 0.1, 0.01, 0.001, 0.0001)


@dataclass
class Out:
    """Runs a scheduler on virtual time and keeps each sequence's token times."""

    limits: Limits
    times: dict[int, list[float]] = field(default_factory=dict)
    preempted: int = 0

    def run(self, requests: list[tuple[float, int, int]]) -> Out:
        scheduler, now, left = Scheduler(self.limits), 0.0, sorted(enumerate(requests), key=lambda r: r[1][0])
        names: dict[int, int] = {}
        self.times = {n: [] for n in range(len(requests))}
        for _ in range(200_000):
            if scheduler.idle:
                if not left:
                    assert scheduler.free_blocks == self.limits.blocks
                    return self
                now = max(now, left[0][1][0])
            while left and left[0][1][0] <= now:
                number, (arrived, prompt, output) = left.pop(0)
                sequence = Sequence(prompt, output, arrived, lambda s, t: self.times[names[id(s)]].append(t))
                names[id(sequence)] = number
                self.keep = [*getattr(self, "keep", []), sequence]
                assert scheduler.fits(prompt, output)
                scheduler.add(sequence)
            iteration = scheduler.begin()
            assert iteration.decoding or iteration.chunks, "an iteration that does nothing would go on for ever"
            assert len(scheduler.running) <= self.limits.max_num_seqs
            assert len(iteration.decoding) + iteration.prefill <= max(
                self.limits.max_num_batched_tokens, len(iteration.decoding)
            )
            held = sum(s.blocks for s in scheduler.running)
            assert held + scheduler.free_blocks == self.limits.blocks
            assert all(s.blocks == 0 for s in scheduler.waiting)
            self.preempted += iteration.preempted
            now += iteration.seconds(TIMING)
            scheduler.end(iteration, now)
        raise AssertionError("it does not end")


def test_one_request_by_hand() -> None:
    # Prefill of 10: 1 + 10 x 0.001 + (0 + 5) x 10 x 0.0001; then two decodes with 11 and 12 tokens of context.
    first = 1 + 0.01 + 0.005
    out = Out(Limits(1000)).run([(0.0, 10, 3)])
    assert out.times[0] == pytest.approx([first, first + 1.1 + 0.11, first + 2.2 + 0.23])


def test_a_long_prompt_is_prefilled_in_chunks_beside_a_decode() -> None:
    out = Out(Limits(1000, max_num_batched_tokens=8)).run([(0.0, 4, 4), (0.5, 10, 1)])
    # The second waits for the first's prefill, then gets 7 tokens of the budget beside one decode, then 3.
    one = 1 + 0.004 + 2 * 4 * 0.0001
    two = one + 1 + 0.1 + 0.05 + 0.007 + 3.5 * 7 * 0.0001
    three = two + 1 + 0.1 + 0.06 + 0.003 + (7 + 1.5) * 3 * 0.0001
    assert out.times[0][:3] == pytest.approx([one, two, three])
    assert out.times[1] == pytest.approx([three])


def test_slots_are_given_in_order_of_arrival() -> None:
    out = Out(Limits(1000, max_num_seqs=2)).run([(0.0, 4, 5), (0.0, 4, 5), (0.0, 4, 1), (0.0, 4, 1)])
    assert max(out.times[0][-1], out.times[1][-1]) < out.times[2][0] == out.times[3][0]


def test_the_latest_is_preempted_when_blocks_run_out_and_still_gives_every_token() -> None:
    out = Out(Limits(64, block_size=16)).run([(0.0, 20, 40), (0.0, 20, 40)])
    assert out.preempted >= 1
    assert [len(t) for t in out.times.values()] == [40, 40]
    assert out.times[0][-1] < out.times[1][-1]


def test_an_abort_frees_what_it_held() -> None:
    scheduler = Scheduler(Limits(64))
    sequences = [Sequence(20, 5, 0.0, lambda s, t: None) for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    iteration = scheduler.begin()
    for sequence in sequences:
        scheduler.remove(sequence)
    assert scheduler.end(iteration, 1.0) == []
    assert scheduler.idle
    assert scheduler.free_blocks == scheduler.limits.blocks
    assert [s.produced for s in sequences] == [0, 0, 0]


def prefill_of(scheduler: Scheduler, prompt: int, content: tuple[int, ...]) -> tuple[int, int]:
    """Tokens that a request's prefill computes when nothing else is there, and those that it finds; it runs to its end."""
    sequence = Sequence(prompt, 1, 0.0, lambda s, t: None, content=content)
    scheduler.add(sequence)
    computed = 0
    while not scheduler.idle:
        iteration = scheduler.begin()
        computed += iteration.prefill
        scheduler.end(iteration, 1.0)
    return computed, sequence.cached


def test_leading_blocks_that_were_computed_are_found_again() -> None:
    scheduler = Scheduler(Limits(1600))
    assert prefill_of(scheduler, 48, (1, 2, 3)) == (48, 0)
    assert prefill_of(scheduler, 60, (1, 2, 9)) == (28, 32)
    assert prefill_of(scheduler, 48, (1, 2, 3)) == (16, 32), (
        "at least the last token is computed, and blocks are found whole"
    )
    assert prefill_of(scheduler, 48, (7, 2, 3)) == (48, 0), "what does not begin alike is not found"
    assert prefill_of(scheduler, 60, ()) == (60, 0)
    assert prefill_of(Scheduler(Limits(1600, prefix_caching=False)), 48, (1, 2, 3)) == (48, 0)


def test_the_least_recent_blocks_make_room() -> None:
    scheduler = Scheduler(Limits(10 * 16))
    prefill_of(scheduler, 48, (1, 2, 3))
    prefill_of(scheduler, 64, (11, 12, 13, 14))
    assert prefill_of(scheduler, 49, (1, 2, 3)) == (1, 48)
    prefill_of(scheduler, 7 * 16, tuple(range(21, 28)))  # with the three that were just asked for, all ten
    assert prefill_of(scheduler, 65, (11, 12, 13, 14)) == (65, 0)
    prefill_of(scheduler, 160, tuple(range(31, 41)))
    assert prefill_of(scheduler, 49, (1, 2, 3)) == (49, 0)


def test_another_size_is_scaled_by_the_roofline() -> None:
    half = Timing().on(Size(REFERENCE.bandwidth_gb_s / 2, REFERENCE.tflops / 4, 1))
    assert half.base_s == pytest.approx(2 * Timing().base_s)
    assert half.per_context_token_s == pytest.approx(2 * Timing().per_context_token_s)
    assert half.per_prefill_token_s == pytest.approx(4 * Timing().per_prefill_token_s)
    assert Timing().on(REFERENCE) == Timing()


@settings(max_examples=150, deadline=None)
@given(
    limits=st.builds(
        Limits,
        kv_tokens=st.integers(64, 400),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(1, 64),
        block_size=st.sampled_from([1, 4, 16]),
    ),
    requests=st.lists(st.tuples(st.floats(0, 60), st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12),
)
def test_every_request_ends_with_every_token_in_order(limits: Limits, requests: list[tuple[float, int, int]]) -> None:
    requests = [r for r in requests if r[1] + r[2] <= limits.blocks * limits.block_size]
    out = Out(limits).run(requests)
    for number, (arrived, _, output) in enumerate(requests):
        times = out.times[number]
        assert len(times) == output
        assert times == sorted(times)
        assert times[0] > arrived
    again = Out(limits).run(requests)
    assert again.times == out.times
