"""The sketch keeps its promises: 1 %, honest bounds, exact bytes, and merging in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.sketch import Sketch

values = st.lists(st.one_of(st.floats(1e-8, 1e6), st.just(0.0)), min_size=1, max_size=200)
shares = st.floats(0, 1)
HistogramParts = tuple[tuple[float, ...], list[int], float]


@st.composite
def histograms(draw: st.DrawFn) -> HistogramParts:
    edges = sorted(draw(st.sets(st.integers(1, 10_000), min_size=1, max_size=12)))
    counts = draw(st.lists(st.integers(0, 50), min_size=len(edges) + 1, max_size=len(edges) + 1))
    return tuple(e / 100 for e in edges), counts, float(draw(st.integers(0, 1000)))


sketches = st.one_of(
    values.map(Sketch.from_values), histograms().map(lambda h: Sketch.from_histogram(*h)), st.just(Sketch())
)


@given(values, shares)
def test_a_quantile_of_samples_is_within_one_percent(samples: list[float], q: float) -> None:
    found = Sketch.from_values(samples).quantile(q)
    true = np.sort(samples)[max(0, math.ceil(q * len(samples) - 1e-9) - 1)]
    assert found == pytest.approx(true, rel=0.01 + 1e-9, abs=1e-9)


@given(values, shares)
def test_the_bounds_of_samples_hold_the_truth_and_the_quantile(samples: list[float], q: float) -> None:
    sketch = Sketch.from_values(samples)
    low, high = sketch.bounds(q)
    true = np.sort(samples)[max(0, math.ceil(q * len(samples) - 1e-9) - 1)]
    assert low * (1 - 1e-9) <= true <= high * (1 + 1e-9) + 1e-9
    found = sketch.quantile(q)
    assert found is not None
    assert low <= found <= high
    assert high <= low * 1.0203 + 1e-9


@given(values)
def test_sum_count_and_extremes_of_samples_are_exact(samples: list[float]) -> None:
    sketch = Sketch.from_values(samples)
    assert sketch.count == len(samples)
    assert (sketch.minimum, sketch.maximum) == (min(samples), max(samples))
    assert sketch.mean == pytest.approx(np.mean(samples))


@given(st.lists(sketches, max_size=6), st.integers(0, 6))
def test_merging_is_associative_and_commutative(several: list[Sketch], cut: int) -> None:
    whole = Sketch.merge(several)
    nested = Sketch.merge([Sketch.merge(several[cut:]), Sketch.merge(several[:cut])])
    assert nested.count == whole.count == sum(s.count for s in several)
    assert nested.total == pytest.approx(whole.total)
    assert (nested.minimum, nested.maximum) == (whole.minimum, whole.maximum)
    if whole.count:
        for q in (0.0, 0.25, 0.5, 0.9, 1.0):
            assert nested.quantile(q) == whole.quantile(q)
            assert nested.bounds(q) == whole.bounds(q)


@given(values, values, shares)
def test_a_merged_quantile_is_that_of_all_samples(left: list[float], right: list[float], q: float) -> None:
    assert Sketch.merge([Sketch.from_values(left), Sketch.from_values(right)]).quantile(q) == pytest.approx(
        Sketch.from_values(left + right).quantile(q)
    )


@given(st.lists(sketches, max_size=4))
def test_bytes_come_back_exactly(several: list[Sketch]) -> None:
    sketch = Sketch.merge(several)
    back = Sketch.from_bytes(sketch.to_bytes())
    assert back == sketch
    assert hash(back) == hash(sketch)
    assert back.to_bytes() == sketch.to_bytes()
    assert back.total == sketch.total


@given(st.binary(max_size=200))
def test_garbage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="sketch"):
        Sketch.from_bytes(data)


@given(sketches, st.data())
def test_a_damaged_sketch_is_a_value_error_or_another_sound_sketch(sketch: Sketch, data: st.DataObject) -> None:
    whole = sketch.to_bytes()
    with pytest.raises(ValueError, match="sketch"):
        Sketch.from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match="sketch"):
        Sketch.from_bytes(whole + b"x")
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        other = Sketch.from_bytes(bytes(flipped))
    except ValueError:
        return
    assert Sketch.from_bytes(other.to_bytes()) == other
    assert math.isfinite(other.count)


def histogram_quantile(edges: tuple[float, ...], counts: list[int], q: float) -> float:
    """As PromQL documents it: linear within the bin in which the rank falls."""
    reached = np.cumsum(counts)
    rank = q * reached[-1]
    b = int(np.searchsorted(reached, rank, side="left"))
    if b >= len(edges):
        return math.nan
    low = edges[b - 1] if b else 0.0
    before = reached[b - 1] if b else 0
    return float(low + (edges[b] - low) * (rank - before) / counts[b])


@given(histograms(), st.floats(0.01, 1))
def test_a_quantile_of_a_histogram_is_what_promql_gives(h: HistogramParts, q: float) -> None:
    edges, counts, _ = h
    sketch = Sketch.from_histogram(*h)
    if not sum(counts):
        assert sketch.quantile(q) is None
        return
    expected = histogram_quantile(edges, counts, q)
    found = sketch.quantile(q)
    low, high = sketch.bounds(q)
    if math.isnan(expected):
        assert found is None
        assert (low, high) == (edges[-1], math.inf)
        return
    assert found is not None
    assert low <= found <= high
    assert (low, high) in set(zip((0.0, *edges), edges, strict=False))
    # Within 1 % where the logarithmic bins are finer than the histogram's, else within that bin.
    assert found == pytest.approx(expected, rel=0.021, abs=max(edges[0] * 2e-3, (high - low) / 20))


@given(st.lists(st.tuples(histograms(), st.lists(st.floats(0, 1), min_size=1)), min_size=1, max_size=3), shares)
def test_bounds_stay_honest_when_sources_with_other_edges_are_merged(
    made: list[tuple[HistogramParts, list[float]]], q: float
) -> None:
    """Values are drawn, put into each source's own bins, merged: the true quantile lies within the bounds."""
    everything: list[float] = []
    merged = []
    for (edges, _, _), uniforms in made:
        drawn = [u * edges[-1] * 1.2 for u in uniforms]
        bins = np.searchsorted(edges, drawn, side="left")
        merged.append(
            Sketch.from_histogram(edges, np.bincount(bins, minlength=len(edges) + 1).astype(float), sum(drawn))
        )
        everything += drawn
    sketch = Sketch.merge(merged)
    low, high = sketch.bounds(q)
    true = np.sort(everything)[max(0, math.ceil(q * len(everything) - 1e-9) - 1)]
    assert low <= true <= high
    assert sketch.mean == pytest.approx(np.mean(everything), abs=1e-12)


def test_the_overflow_is_known_only_from_below() -> None:
    sketch = Sketch.from_histogram((1.0, 10.0), [0, 90, 10], 500.0)
    assert sketch.quantile(0.5) == pytest.approx(1 + 9 * 50 / 90, rel=0.02)
    assert sketch.quantile(0.95) is None
    assert sketch.bounds(0.95) == (10.0, math.inf)
    assert sketch.mean == 5.0
    assert sketch.maximum is None
    assert sketch.share_above(10.0) == pytest.approx(0.1)
    assert sketch.share_above(20.0) == pytest.approx(0.1)
    assert list(sketch.sample([0.99])) == [10.0]
    assert math.isnan(sketch.quantiles([0.99])[0])


@given(values, st.floats(0, 1e6))
def test_the_share_above_agrees_with_counting_to_one_percent_in_the_value(samples: list[float], x: float) -> None:
    share = Sketch.from_values(samples).share_above(x)
    array = np.array(samples)
    assert np.mean(array > x * 1.021 + 1e-9) - 1e-12 <= share <= np.mean(array > x / 1.021 - 1e-9) + 1e-12


def test_the_share_above_interpolates_within_a_bin() -> None:
    sketch = Sketch.from_histogram((1.0, 2.0), [50, 50, 0], 100.0)
    assert sketch.share_above(1.5) == pytest.approx(0.25)
    assert sketch.share_above(0.5) == pytest.approx(0.75)
    assert sketch.share_above(2.0) == 0.0


def test_samples_drawn_follow_the_distribution() -> None:
    rng = np.random.default_rng(7)
    original = rng.lognormal(0, 1, 20_000)
    drawn = Sketch.from_values(original).sample(rng.random(20_000))
    assert np.mean(drawn) == pytest.approx(np.mean(original), rel=0.05)
    assert np.quantile(drawn, 0.95) == pytest.approx(np.quantile(original, 0.95), rel=0.05)


def test_adding_gives_a_new_value_and_leaves_the_old() -> None:
    empty = Sketch()
    one = empty.add(2.0, 3.0)
    assert (empty.count, one.count, one.total, one.mean) == (0, 3, 6, 2)
    many = one.add_many([1.0, 4.0])
    assert (many.count, many.minimum, many.maximum) == (5, 1, 4)
    assert one.add(5.0, 0.0) == one
    assert Sketch.from_values([2.0, 2.0, 2.0]) == one


def test_an_empty_sketch_knows_nothing() -> None:
    empty = Sketch()
    assert empty.quantile(0.5) is None
    assert empty.mean is None
    assert empty.minimum is None
    assert Sketch.merge([]) == empty == Sketch.from_values([]) == Sketch.from_histogram((1.0,), [0, 0], 0.0)
    for ask in (lambda: empty.bounds(0.5), lambda: empty.share_above(1.0), lambda: empty.sample([0.5])):
        with pytest.raises(ValueError, match="nothing was observed"):
            ask()


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_values_that_cannot_be_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Sketch.from_values([1.0, bad])
    with pytest.raises(ValueError, match="finite"):
        Sketch().add(1.0, bad)
    with pytest.raises(ValueError, match="finite"):
        Sketch.from_histogram((1.0,), [bad, 0], 0.0)
    with pytest.raises(ValueError, match="finite"):
        Sketch.from_histogram((1.0,), [1, 0], bad)
    with pytest.raises(ValueError, match="edges"):
        Sketch.from_histogram((bad,), [1, 0], 1.0)
    with pytest.raises(ValueError, match="share"):
        Sketch.from_values([1.0]).quantile(bad)


def test_a_histogram_sketch_is_small() -> None:
    edges = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
    sketch = Sketch.from_histogram(edges, [*range(21), 7], 1000.0)
    assert len(sketch.to_bytes()) < 256


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50), st.floats(1e-6, 1e3), st.booleans())
def test_the_share_above_lies_within_its_bounds(values: list[float], x: float, bucketed: bool) -> None:
    edges = (0.01, 0.5, 1.0, 20.0, 500.0)
    if bucketed:
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
        sketch = Sketch.from_histogram(edges, counts, sum(values))
    else:
        sketch = Sketch.from_values(values)
    true = sum(v > x for v in values) / len(values)
    low, high = sketch.share_bounds(x)
    assert low - 1e-9 <= true <= high + 1e-9
    if bucketed:
        at_edge = sum(v > 1.0 for v in values) / len(values)
        assert sketch.share_bounds(1.0) == (pytest.approx(at_edge), pytest.approx(at_edge))
        for q in (0.5, 0.95):
            whole = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
            assert whole <= sketch.most(q) * (1 + 1e-9)


def test_half_of_a_distribution_is_the_same_distribution() -> None:
    whole = Sketch.merge([Sketch.from_values([1.0, 2.0]), Sketch.from_histogram((1.0, 2.0), [2, 4, 0], 7.0)])
    half = whole.scaled(0.5)
    assert (half.count, half.total, half.mean) == (4.0, 5.0, whole.mean)
    assert half.quantile(0.9) == whole.quantile(0.9)
    assert whole.scaled(0.0).count == 0
    with pytest.raises(ValueError, match="share"):
        whole.scaled(-1.0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50), st.floats(0.2, 20.0))
def test_split_values_add_up_to_what_they_were(values: list[float], parts: float) -> None:
    edges, counts = (0.5, 2.0, 8.0), [3.0, 0.0, 2.0, 1.0]
    for whole in (Sketch.from_values(values), Sketch.from_histogram(edges, counts, 30.0)):
        split = whole.split(parts)
        assert split.total == whole.total
        assert split.count == pytest.approx(whole.count * parts)
        low, high = whole.bounds(0.5)
        assert split.bounds(0.5) == (pytest.approx(low / parts, rel=0.05), pytest.approx(high / parts, rel=0.05))
    assert Sketch().split(parts) == Sketch()
    with pytest.raises(ValueError, match="parts above 0"):
        Sketch.from_values(values).split(0.0)
