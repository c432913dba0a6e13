"""What Azure Monitor says of model deployments, minute by minute: both families of metrics, many accounts with each question.

The older family has ``AzureOpenAI`` in its names, the newer one does not and counts partners' models too; a deployment's minutes are taken from
the one that tells its requests, and never from both. Latencies come as means alone: the mean of whole calls as seconds spent in requests.
A minute without a point is unknown, and no zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from collectors.azure.accounts import ACCOUNTS
from collectors.azure.client import AzureClient
from collectors.azure.errors import AzureError
from collectors.azure.questions import BATCH, MetricQuestion, MetricSeries, ask
from collectors.window import Gauge

_BY_NAME = "ModelDeploymentName eq '*'"
_BY_ANSWER = f"{_BY_NAME} and StatusCode eq '*' and IsSpillover eq '*'"


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """The names of one family."""

    requests: str
    prompt: str
    output: str
    cached: str | None
    """Tokens that a cache held."""
    cache_share: str | None
    """Or their share of the prompt's, in percent."""
    first: str
    """Mean milliseconds to the first answer of a stream."""
    whole: str
    """Mean milliseconds to the last byte."""
    gap: str
    """Mean milliseconds between tokens."""
    usage: str
    """Percent of provisioned throughput."""

    @property
    def questions(self) -> tuple[MetricQuestion, ...]:
        means = [self.first, self.whole, self.gap, self.usage, *([self.cache_share] if self.cache_share else [])]
        counts = [self.prompt, self.output, *([self.cached] if self.cached else [])]
        return (
            MetricQuestion(ACCOUNTS, (self.requests,), _BY_ANSWER, "total"),
            MetricQuestion(ACCOUNTS, tuple(counts), _BY_NAME, "total"),
            MetricQuestion(ACCOUNTS, tuple(means), _BY_NAME, "average,maximum"),
        )


OPENAI = MetricFamily(
    requests="AzureOpenAIRequests",
    prompt="ProcessedPromptTokens",
    output="GeneratedTokens",
    cached=None,
    cache_share="AzureOpenAIContextTokensCacheMatchRate",
    first="AzureOpenAITimeToResponse",
    whole="AzureOpenAITTLTInMS",
    gap="AzureOpenAINormalizedTBTInMS",
    usage="AzureOpenAIProvisionedManagedUtilizationV2",
)
MODELS = MetricFamily(
    requests="ModelRequests",
    prompt="InputTokens",
    output="OutputTokens",
    cached="cacheReadInputTokens",
    cache_share=None,
    first="TimeToResponse",
    whole="TimeToLastByte",
    gap="NormalizedTimeBetweenTokens",
    usage="ProvisionedUtilization",
)


@dataclass(frozen=True, slots=True)
class CallMinute:
    """One deployment in one minute, as far as Azure tells."""

    start: float
    counts: Mapping[str, float] = field(default_factory=dict)
    """requests, errors (5xx), throttled (429), rejected (other 4xx), spilled, tokens, e2e_total_s (seconds spent in answered requests)."""
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    """``ptu_usage``, 1 is all of it; ``ttft_mean_s`` and ``itl_mean_s``, seconds."""


async def read_calls(
    client: AzureClient, region: str, accounts: Sequence[str], start: float, end: float
) -> dict[str, dict[str, list[CallMinute]] | AzureError]:
    """By account path, and in it by deployment in lower case: its minutes that begin in [start, end), oldest first."""
    found: dict[str, dict[str, list[CallMinute]] | AzureError] = {}
    for first in range(0, len(accounts), BATCH):
        batch = list(accounts[first : first + BATCH])
        answers: dict[tuple[MetricFamily, str], list[MetricSeries] | AzureError] = {}
        for family in (OPENAI, MODELS):
            for question in family.questions:
                for path, lines in (await ask(client, region, question, batch, start, end)).items():
                    before = answers.get((family, path), [])
                    if isinstance(before, AzureError):
                        continue
                    answers[family, path] = lines if isinstance(lines, AzureError) else [*before, *lines]
        for path in batch:
            found[path] = _account(answers[OPENAI, path], answers[MODELS, path])
    return found


def _account(
    older: list[MetricSeries] | AzureError, newer: list[MetricSeries] | AzureError
) -> dict[str, list[CallMinute]] | AzureError:
    """An account that does not know one of the families is read by the other."""
    if isinstance(older, AzureError) and isinstance(newer, AzureError):
        return older
    told = {
        family: {} if isinstance(lines, AzureError) else _by_deployment(lines)
        for family, lines in ((OPENAI, older), (MODELS, newer))
    }
    return {
        name: list(_minutes(*next((f, told[f][name]) for f in (OPENAI, MODELS) if name in told[f])))
        for name in {**told[OPENAI], **told[MODELS]}
    }


def _by_deployment(lines: Sequence[MetricSeries]) -> dict[str, list[MetricSeries]]:
    """Only those with a request in them."""
    found: dict[str, list[MetricSeries]] = defaultdict(list)
    for line in lines:
        found[line.labels.get("modeldeploymentname", "").lower()].append(line)
    counting = (OPENAI.requests, MODELS.requests)
    return {name: each for name, each in found.items() if any(line.metric in counting and line.total for line in each)}


def _minutes(family: MetricFamily, lines: Sequence[MetricSeries]) -> Iterator[CallMinute]:
    starts = {at for line in lines for values in (line.average, line.total) for at in values}
    for start in sorted(starts):
        counts, gauges = _counts(family, lines, start), _gauges(family, lines, start)
        if counts or gauges:
            yield CallMinute(start, counts, gauges)


def _counts(family: MetricFamily, lines: Sequence[MetricSeries], start: float) -> dict[str, float]:
    by_code: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = {}
    spilled = 0.0
    for line in lines:
        value = line.total.get(start)
        if line.metric == family.requests and value is not None:
            if line.labels.get("isspillover", "").lower() == "true":
                spilled += value
            by_code[line.labels.get("statuscode", "")] += value
    if not by_code:
        return counts
    counts["requests"] = sum(by_code.values())
    if all(code.isdigit() for code in by_code):  # a code that is none leaves open what failed
        counts["errors"] = sum(n for code, n in by_code.items() if code.startswith("5"))
        counts["throttled"] = by_code.get("429", 0.0)
        counts["rejected"] = sum(n for code, n in by_code.items() if code.startswith("4") and code != "429")
        counts["spilled"] = spilled
    for name, metric in (
        ("prompt_tokens", family.prompt),
        ("output_tokens", family.output),
        ("cached_prompt_tokens", family.cached),
    ):
        told = [line.total[start] for line in lines if line.metric == metric and start in line.total]
        if told:
            counts[name] = sum(told)
    share = _average(lines, family.cache_share, start)
    if share is not None and "prompt_tokens" in counts:
        counts["cached_prompt_tokens"] = counts["prompt_tokens"] * min(1.0, share / 100)
    mean = _average(lines, family.whole, start)
    if mean is not None and "throttled" in counts:
        answered = counts["requests"] - counts["throttled"] - counts["rejected"]
        counts["e2e_total_s"] = answered * mean / 1000
    return counts


def _gauges(family: MetricFamily, lines: Sequence[MetricSeries], start: float) -> dict[str, Gauge]:
    found = {}
    for name, metric, scale in (
        ("ptu_usage", family.usage, 100),
        ("ttft_mean_s", family.first, 1000),
        ("itl_mean_s", family.gap, 1000),
    ):
        mean = _average(lines, metric, start)
        if mean is not None:
            highest = max(
                line.maximum.get(start, line.average[start])
                for line in lines
                if line.metric == metric and start in line.average
            )
            found[name] = Gauge(mean / scale, max(highest, mean) / scale, mean / scale)
    return found


def _average(lines: Sequence[MetricSeries], metric: str | None, start: float) -> float | None:
    told = [line.average[start] for line in lines if line.metric == metric and start in line.average]
    return sum(told) / len(told) if told else None
