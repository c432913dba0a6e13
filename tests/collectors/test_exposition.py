"""Our parser of Prometheus text reads what prometheus_client reads, and refuses what is not a page."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from collectors.exposition import Exposition
from collectors.window import CollectError
from tests.collectors.pages import recorded

Series = list[tuple[str, dict[str, str], float]]


def ours(text: str | bytes, names: set[str], content_type: str = "") -> Series:
    body = text.encode() if isinstance(text, str) else text
    reader = Exposition(names)
    first, again = reader.parse(body, content_type), reader.parse(body, content_type)  # again: from remembered heads
    found = [(name, dict(labels), value) for name, series in first.items() for labels, value in series]
    repeated = [(name, dict(labels), value) for name, series in again.items() for labels, value in series]
    assert repr(found) == repr(repeated)
    return found


def theirs(text: str, names: set[str]) -> Series:
    return [
        (sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in names
    ]


def comparable(series: Series) -> list[str]:
    return sorted(repr((name, sorted(labels.items()), float(value))) for name, labels, value in series)


names = st.sampled_from(["vllm:a_total", "vllm:a", "b_bucket", "b:c", "other"])
label_values = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r"), max_size=12)
labels = st.dictionaries(st.sampled_from(["le", "model_name", "x_1"]), label_values, max_size=3)
numbers = st.one_of(st.floats(), st.integers(-(10**6), 10**6).map(float))


def written(value: float) -> str:
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf") if math.isinf(value) else repr(value)


@st.composite
def lines(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(["# HELP vllm:a_total some text", "# TYPE b_bucket gauge", "", "# a remark"]))
    pairs = [
        f'{key}="' + value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') + '"'
        for key, value in draw(labels).items()
    ]
    braces = "{" + ",".join(pairs) + draw(st.sampled_from(["", ","]) if pairs else st.just("")) + "}"
    head = draw(names) + (braces if pairs or draw(st.booleans()) else "")
    stamp = draw(st.sampled_from(["", " 1395066363000"]))
    return head + draw(st.sampled_from([" ", "  ", "\t"])) + written(draw(numbers)) + stamp


@given(st.lists(lines(), min_size=1, max_size=20), st.sets(names))
def test_we_read_what_prometheus_client_reads(page: list[str], wanted: set[str]) -> None:
    text = "\n".join([*page, "last 1", ""])
    assert comparable(ours(text, wanted)) == comparable(theirs(text, wanted))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_page_or_an_error(data: bytes) -> None:
    kind = "none"
    try:
        Exposition({"a", "vllm:b"}).parse(data)
    except CollectError as error:
        kind = error.kind
    assert kind in {"none", "not_metrics", "truncated", "too_large"}


def test_the_recorded_page_of_vllm() -> None:
    page = recorded()
    wanted = {line.split("{")[0].split(" ")[0] for line in page.decode().splitlines() if not line.startswith("#")}
    assert len(wanted) > 100
    assert comparable(ours(page, wanted)) == comparable(theirs(page.decode(), wanted))
    some = {"vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket"}
    assert len(ours(page, some)) == 24


def test_openmetrics_with_exemplars_and_its_end() -> None:
    text = (
        "# TYPE a histogram\n"
        'a_bucket{le="1.0"} 2 # {trace_id="x} y"} 0.67 1.5\n'
        'a_bucket{le="+Inf"} 3 # {} 9.8\n'
        "a_count 3\na_sum 11.3\na_created 1.5e9\n"
        "# TYPE b counter\n"
        "b_total 7 1520879607.789\n"
        "# EOF\n"
    )
    wanted = {"a_bucket", "a_created", "b_total"}
    found = ours(text, wanted, "application/openmetrics-text; version=1.0.0")
    expected = [
        (s.name, dict(s.labels), s.value) for f in parse_openmetrics(text) for s in f.samples if s.name in wanted
    ]
    assert comparable(found) == comparable(expected)
    with pytest.raises(CollectError, match="EOF"):
        ours(text.replace("# EOF\n", ""), wanted, "application/openmetrics-text")


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("", "not_metrics"),
        ("\n \n", "not_metrics"),
        ("<!DOCTYPE html><html><body>Sign in</body></html>\n", "not_metrics"),
        ("  <html>\n", "not_metrics"),
        ('{"error": "not here"}\n', "not_metrics"),
        ("Not Found\n", "not_metrics"),
        ("a 1\na 2", "truncated"),
        ('a{x="1"} 1\na{x="', "truncated"),
        ('a{x="1} 1\n', "not_metrics"),
        ("a one\n", "not_metrics"),
        ("a\n", "not_metrics"),
        ("a 1_000\n", "not_metrics"),
        ("a{x=1} 1\n", "not_metrics"),
    ],
)
def test_pages_that_are_none(page: str, kind: str) -> None:
    with pytest.raises(CollectError) as caught:
        Exposition({"a"}).parse(page.encode())
    assert caught.value.kind == kind


def test_a_page_without_the_wanted_names_is_a_page() -> None:
    assert Exposition({"a"}).parse(b"b 1\n") == {}
    assert Exposition({"a"}).parse(b"# TYPE b counter\n") == {}


def test_broken_lines_of_others_do_no_harm() -> None:
    assert ours('b{x="} oh\na 1\n{"utf8 name"} 2\n', {"a"}) == [("a", {}, 1.0)]


def test_html_by_its_content_type() -> None:
    with pytest.raises(CollectError, match="HTML"):
        Exposition({"a"}).parse(b"a 1\n", "text/html; charset=utf-8")


def test_a_million_label_sets_are_refused_early_and_leave_nothing_behind() -> None:
    page = b"".join(b'a{id="%d"} 1\n' % i for i in range(150_000))
    reader = Exposition({"a"}, max_series=1000)
    for _ in range(20):
        with pytest.raises(CollectError) as caught:
            reader.parse(page)
        assert caught.value.kind == "too_large"
    assert len(reader._heads) <= 1001
    with pytest.raises(CollectError) as caught:
        Exposition({"b"}).parse(b"a 1\n" * 200_001)
    assert caught.value.kind == "too_large"


def test_label_sets_that_change_with_each_page_are_forgotten() -> None:
    reader = Exposition({"a", "b"})
    for i in range(15):
        reader.parse(b"".join(b'%s{id="%d"} 1\n' % (b"a" if j % 2 else b"c", i * 10_000 + j) for j in range(10_000)))
    assert len(reader._heads) <= 50_000


def test_the_help_of_wanted_names_is_kept() -> None:
    page = (
        b"# HELP a_total What\\nis counted.\n# HELP a_total Said twice.\n# TYPE a_total counter\n# HELP other Unwanted.\n"
        b"# HELP a_total\n# HELPless\na_total 1\n"
    )
    samples = Exposition(("a_total", "silent")).parse(page)
    assert samples == {"a_total": [({}, 1.0)]}
    assert samples.help == {"a_total": "What\nis counted."}
    assert samples.page == page
