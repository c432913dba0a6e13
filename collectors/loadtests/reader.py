"""A file of a load generator in, ``LoadTest`` values out: which generator wrote it, and whether its figures agree with each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from collectors.loadtests import aiperf, guidellm, inference_perf, vllm_bench
from collectors.loadtests.fields import mean
from collectors.loadtests.loadtest import BadLoadTest, LoadTest, Summary

#: Relative difference between a program's token gap and (end-to-end - TTFT) / (output tokens - 1) above which the latter is taken.
MOST_DISAGREEMENT = 0.2
_READERS = (inference_perf, guidellm, vllm_bench, aiperf)


def read(path: Path) -> tuple[LoadTest, ...]:
    """The load tests in one file, in its order. Raises BadLoadTest, also where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadLoadTest(
            f"{path}: cannot be read ({problem}); give a JSON file that a load generator wrote"
        ) from problem
    return parse(text, str(path))


def parse(text: str, where: str) -> tuple[LoadTest, ...]:
    """The load tests in a JSON text, or in several one after the other (``--append-result``). ``where`` names it in errors."""
    tests: list[LoadTest] = []
    for document in _records(text, where):
        reader = next((r for r in _READERS if isinstance(document, dict) and r.knows(document)), None)
        if reader is None:
            raise BadLoadTest(
                f"{where}: no load test that is read here; saw {_shape(document)}. Read are: inference-perf's "
                "stage_N_lifecycle_metrics.json, GuideLLM's benchmarks.json, AIPerf's profile_export_aiperf.json, and what "
                "`vllm bench serve --save-result` writes"
            )
        tests += (_consistent(test) for test in reader.read(document, where))
    if not any(test.latency for test in tests):
        raise BadLoadTest(
            f"{where}: none of its {len(tests)} tests has a completed request with a latency; look at the run's errors"
        )
    return tuple(tests)


def _records(text: str, where: str) -> Iterator[Any]:
    """The documents; of one that is a list of objects (``vllm bench sweep`` writes its ``summary.json`` so), those."""
    for document in _documents(text, where):
        if isinstance(document, list) and document and all(isinstance(one, dict) for one in document):
            yield from document
        else:
            yield document


def _consistent(test: LoadTest) -> LoadTest:
    """Token gaps that agree with the whole: (end-to-end - TTFT) / (output tokens - 1), which of means is the mean gap over all tokens.

    A generator that counts chunks, or tokens twice, is off by a factor there; its gaps are then replaced by that mean. Where
    end-to-end is not known, TPOT, which is by tokens, judges ITL, which may be by chunks. Without an ITL the mean is it.
    GuideLLM's gap is by tokens and its end-to-end lasts longer than they do, so there it is the gap that stands.
    """
    if test.completed == 0:
        return replace(test, latency={}, prompt_tokens=None, output_tokens=None)  # zeros that nobody measured
    ttft, e2e, tokens = (mean(s) for s in (test.latency.get("ttft_s"), test.latency.get("e2e_s"), test.output_tokens))
    whole = mean(test.latency.get("tpot_s"))
    said = "its TPOT"
    if ttft is not None and e2e is not None and tokens is not None and tokens > 1 and e2e > ttft:
        whole, said = (e2e - ttft) / (tokens - 1), "(end-to-end - TTFT) / (output tokens - 1)"
    if whole is None:
        return test
    latency, notes = dict(test.latency), list(test.notes)
    for name in ("itl_s", "tpot_s"):
        given = mean(latency.get(name))
        if given is None or abs(given / whole - 1.0) <= MOST_DISAGREEMENT:
            continue
        is_not = f"its {name[:-2].upper()} of {given:.3g} s is not {said}, {whole:.3g} s"
        if test.source == "guidellm":
            notes.append(f"{is_not}: end-to-end holds more than its tokens, and the gap is kept")
        else:
            notes.append(f"{is_not}, which is taken instead")
            latency[name] = Summary(mean=whole)
    latency.setdefault("itl_s", Summary(mean=whole))
    return replace(test, latency=latency, notes=tuple(notes))


def _documents(text: str, where: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        rest = text[at:].lstrip()
        if not rest:
            break
        begin = len(text) - len(rest)
        try:
            document, length = decoder.raw_decode(rest)
        except json.JSONDecodeError as problem:
            line = text.count("\n", 0, begin + problem.pos) + 1
            raise BadLoadTest(
                f"{where}:{line}: is not JSON ({problem.msg}); give the JSON file, not a CSV or a log"
            ) from problem
        at = begin + length
        yield document
    if at == 0:
        raise BadLoadTest(f"{where}: is empty; give the JSON file that a load generator wrote")


def _shape(document: object) -> str:
    if isinstance(document, dict):
        names = list(document)
        return "an object with " + (", ".join(map(str, names[:8])) or "no fields") + (", ..." if len(names) > 8 else "")
    return f"a JSON {type(document).__name__}"
