"""Cached prompt tokens, from counters that count tokens in one version and blocks in another under the same name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.exposition import Exposition
from collectors.prefixcache import PrefixCacheContext, PrefixCacheCount, cached_tokens, unit_of
from collectors.vllm import _NAMES, readings_of

REQUESTS, PROMPT, SHARE = 400, 960, 0.8
WORDS = {"blocks": "in terms of number of cached blocks.", "tokens": "in terms of number of cached tokens."}


def page(
    unit: str,
    *,
    size: int = 16,
    cache: str = "vllm:gpu_prefix_cache",
    ending: str = "_total",
    told: str | None = None,
    queries: bool = True,
    engines: tuple[str, ...] = ("0",),
    running: float = 3.0,
    size_known: bool = True,
    cpu_hits: float | None = None,
) -> str:
    """Each engine read 960 tokens of each of 400 prompts, of which its prefix cache had four fifths."""
    per = size if unit == "blocks" else 1
    lines = [] if told is None else [f"# HELP {cache}_hits{ending} Prefix cache hits, {told}"]
    for engine in engines:
        of = f'engine="{engine}",model_name="m"'
        lines += [
            f"vllm:num_requests_running{{{of}}} {running}",
            f"vllm:prompt_tokens_total{{{of}}} {REQUESTS * PROMPT}",
            f'vllm:time_to_first_token_seconds_bucket{{{of},le="1.0"}} {REQUESTS}',
            f'vllm:time_to_first_token_seconds_bucket{{{of},le="+Inf"}} {REQUESTS}',
            f"vllm:time_to_first_token_seconds_sum{{{of}}} 40.0",
            f"vllm:time_to_first_token_seconds_count{{{of}}} {REQUESTS}",
            f"{cache}_hits{ending}{{{of}}} {REQUESTS * PROMPT * SHARE / per}",
        ]
        if queries:
            lines.append(f"{cache}_queries{ending}{{{of}}} {REQUESTS * PROMPT / per}")
        if cpu_hits is not None:
            lines.append(f"vllm:cpu_prefix_cache_hits_total{{{of}}} {cpu_hits}")
        if size_known:
            lines.append(f'vllm:cache_config_info{{block_size="{size}",engine="{engine}",num_gpu_blocks="900"}} 1.0')
    return "\n".join([*lines, ""])


def cached(text: str, version: str | None = None) -> list[float | None]:
    readings = readings_of(Exposition(_NAMES).parse(text.encode()), "a", None, 5.0, version)
    return [reading.counters.get("cached_prompt_tokens") for reading in readings]


RIGHT = pytest.approx(REQUESTS * PROMPT * SHARE)


@pytest.mark.parametrize("size", [8, 16, 32, 128])
@pytest.mark.parametrize("unit", ["blocks", "tokens"])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("ending", ["_total", ""])
@pytest.mark.parametrize("cache", ["vllm:gpu_prefix_cache", "vllm:prefix_cache"])
def test_both_units_give_the_same_tokens(size: int, unit: str, told: bool, ending: str, cache: str) -> None:
    words = WORDS[unit] if told else None
    assert cached(page(unit, size=size, told=words, ending=ending, cache=cache)) == [RIGHT]


@pytest.mark.parametrize("unit", ["blocks", "tokens"])
def test_each_of_several_engines_has_its_own(unit: str) -> None:
    assert cached(page(unit, engines=("0", "1", "2"))) == [RIGHT] * 3


@pytest.mark.parametrize(
    ("version", "unit"),
    [
        ("0.8.5", "blocks"), ("0.8.5.post1", "blocks"), ("0.9.0", "tokens"), ("0.10.2", "tokens"), ("0.33.0", "tokens"), ("1.0.0", "tokens"),
    ],
)  # fmt: skip
def test_the_version_decides_where_nothing_is_counted_beside(version: str, unit: str) -> None:
    alone = page(unit, queries=False)
    assert cached(alone, version) == [RIGHT]
    of_page = alone.replace("cache_config_info{block", f'cache_config_info{{version="{version}",block')
    assert cached(of_page) == [RIGHT]


def test_what_the_page_says_goes_before_the_version() -> None:
    assert cached(page("blocks", told=WORDS["blocks"], queries=False), "0.9.0") == [RIGHT]


def test_a_help_that_names_both_or_neither_says_nothing() -> None:
    for told in ("hits of the cache.", "tokens of cached blocks."):
        assert cached(page("blocks", told=told)) == [RIGHT]


def test_what_cannot_be_decided_is_unknown() -> None:
    assert cached(page("blocks", queries=False)) == [None]
    assert cached(page("blocks", queries=False), "0.8.5.dev300+g1a2b3c") == [None]
    assert cached(page("blocks", size_known=False)) == [None]
    assert cached(page("blocks", told=WORDS["blocks"], size_known=False)) == [None]
    # More run than were read: what was looked up and what was read are not of the same requests yet.
    assert cached(page("blocks", running=REQUESTS + 1.0)) == [None]


def test_more_blocks_than_prompt_tokens_hold_are_tokens() -> None:
    assert cached(page("tokens", queries=False)) == [RIGHT]


def test_no_hits_are_none_in_any_unit() -> None:
    hits = f'vllm:gpu_prefix_cache_hits_total{{engine="0",model_name="m"}} {REQUESTS * PROMPT * SHARE}'
    assert hits in page("tokens")
    assert cached(page("tokens", queries=False).replace(hits, hits.rpartition(" ")[0] + " 0")) == [0.0]


@pytest.mark.parametrize(("unit", "per"), [("blocks", 16), ("tokens", 1)])
def test_the_cache_in_the_hosts_memory_counts_in_the_same_unit(unit: str, per: int) -> None:
    more = 0.1 * REQUESTS * PROMPT
    assert cached(page(unit, cpu_hits=more / per)) == [pytest.approx(REQUESTS * PROMPT * SHARE + more)]


def test_tokens_that_are_counted_as_such_are_taken() -> None:
    more = 'vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 77\n'
    assert cached(page("blocks") + more) == [77.0]


@given(
    size=st.sampled_from((8, 16, 32, 64, 128, 256)),
    unit=st.sampled_from(("blocks", "tokens")),
    prompts=st.lists(st.integers(300, 8000), min_size=1, max_size=60),
    share=st.floats(0.0, 1.0),
    running=st.integers(0, 60),
    evidence=st.sampled_from(("help", "version", "queries")),
)
def test_it_is_right_or_unknown(
    size: int, unit: str, prompts: list[int], share: float, running: int, evidence: str
) -> None:
    """Whatever the sizes, never the other unit: what was looked up are whole blocks, those of requests under way included."""
    blocks = sum(prompt // size for prompt in prompts) + min(running, len(prompts)) * (max(prompts) // size)
    hit_blocks = int(share * sum(prompt // size for prompt in prompts))
    per = 1 if unit == "blocks" else size
    words = WORDS[unit] if evidence == "help" else ""
    version = {"blocks": "0.8.3", "tokens": "0.9.1"}[unit] if evidence == "version" else None
    count = PrefixCacheCount(float(hit_blocks * per), float(blocks * per), words)
    context = PrefixCacheContext(float(sum(prompts)), float(len(prompts)), float(running), size, version)
    got = cached_tokens([count], context)
    assert got is None or got == pytest.approx(hit_blocks * size)
    if evidence != "queries":
        assert unit_of(count, context) == unit
        assert got is not None
