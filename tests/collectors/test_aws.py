"""CloudWatch, discovery and permissions of Amazon's systems, on moto behind the strict layer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session

from collectors.aws.client import AwsAccount, shared
from collectors.aws.cloudwatch import make
from collectors.aws.discover import BedrockSystem, Ec2System, SageMakerSystem
from collectors.aws.errors import AwsError, refusal
from collectors.aws.permissions import policy, principal
from collectors.aws.sizes import price_of
from collectors.base import ScrapeTarget, SourceContext
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.sessions import Sessions
from collectors.window import CollectError, Gauge, Range, Span
from tests.collectors.clocks import SetClock
from tests.fakes.aws import IDENTITY, REGION, FakeAws

NOW = 1_800_000_000.0
#: The minute that has settled three minutes ago.
MINUTE = NOW - 240.0
ACCOUNT = {"region": REGION}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    with FakeAws() as fake:
        yield fake


def read(aws: FakeAws, clock: SetClock | None = None, times: int = 1, **options: Any) -> list[Span]:
    async def reading() -> list[Span]:
        http, sessions = Http(), Sessions()
        try:
            stated = {**ACCOUNT, "aws_url": aws.url, **options}
            source = make(SourceContext("chat", None, http, clock or SetClock(NOW), sessions, stated))
            found: list[Span] = []
            for _ in range(times):
                found += [s for s in await source.read(ScrapeTarget("chat", "http://x")) if isinstance(s, Span)]
                if clock is not None:
                    clock.time += 120.0
            return found
        finally:
            await sessions.aclose()
            await http.aclose()

    return asyncio.run(reading())


def invoked(
    aws: FakeAws, variant: str, model_us: dict[float, int], *, failed: int = 0, overhead_us: float = 2_000.0
) -> None:
    """One minute of a variant as SageMaker tells it: microseconds, and one number for each request."""
    of = {"EndpointName": "chat", "VariantName": variant}
    count = sum(model_us.values())
    aws.put("AWS/SageMaker", "Invocations", MINUTE + 5, {1.0: count}, **of)
    aws.put("AWS/SageMaker", "Invocation5XXErrors", MINUTE + 5, {1.0: failed, 0.0: count - failed}, **of)
    aws.put("AWS/SageMaker", "Invocation4XXErrors", MINUTE + 5, {0.0: count}, **of)
    aws.put("AWS/SageMaker", "ModelLatency", MINUTE + 5, model_us, **of)
    aws.put("AWS/SageMaker", "OverheadLatency", MINUTE + 5, {overhead_us: count}, **of)


def test_microseconds_become_seconds_and_the_overhead_bounds_the_quantile(aws: FakeAws) -> None:
    invoked(aws, "AllTraffic", {100_000.0: 90, 800_000.0: 10}, failed=3)
    of = {"EndpointName": "chat", "VariantName": "AllTraffic"}
    aws.put("/aws/sagemaker/Endpoints", "CPUUtilization", MINUTE + 5, {100.0: 1, 300.0: 1}, **of)
    aws.put("/aws/sagemaker/Endpoints", "GPUUtilization", MINUTE + 5, {50.0: 1}, **of)
    (span,) = read(aws, endpoint="chat", cpus=4)
    assert (span.start, span.end, span.target) == (MINUTE, MINUTE + 60, "chat")
    assert span.counts == {
        "requests": 100.0,
        "errors": 3.0,
        "rejected": 0.0,
        "e2e_total_s": pytest.approx(90 * 0.1 + 10 * 0.8 + 100 * 0.002),
    }
    assert span.quantiles["e2e_s"][0.5] == Range(0.1, pytest.approx(0.102))
    assert span.quantiles["e2e_s"][0.95] == Range(0.8, pytest.approx(0.802))
    assert span.gauges == {"cpu_usage": Gauge(0.5, 0.75, 0.5)}, (
        "4 cores have 400 %; how many GPUs there are is not known"
    )
    assert {a for _, a in aws.sent} == {"GetMetricData"}


def test_variants_are_added_up_and_their_quantiles_stay_ranges(aws: FakeAws) -> None:
    invoked(aws, "a", {100_000.0: 10})
    invoked(aws, "b", {400_000.0: 10}, failed=2)
    (span,) = read(aws, endpoint="chat", variants=["a", "b"])
    assert (span.counts["requests"], span.counts["errors"]) == (20.0, 2.0)
    assert span.quantiles["e2e_s"][0.95] == Range(pytest.approx(0.1), pytest.approx(0.402))


def test_what_one_variant_that_served_does_not_tell_is_not_known_of_all(aws: FakeAws) -> None:
    invoked(aws, "a", {100_000.0: 10})
    aws.put("AWS/SageMaker", "Invocations", MINUTE + 5, {1.0: 5}, EndpointName="chat", VariantName="b")
    (span,) = read(aws, endpoint="chat", variants=["a", "b"])
    assert span.counts == {"requests": 15.0}
    assert span.quantiles == {}


def test_a_minute_without_numbers_is_unknown_and_not_zero(aws: FakeAws) -> None:
    with pytest.raises(CollectError, match="no_series"):
        read(aws, endpoint="chat")


def test_at_first_the_newest_minute_that_tells_anything_is_taken(aws: FakeAws) -> None:
    of = {"EndpointName": "chat", "VariantName": "AllTraffic"}
    for minutes_ago in (5, 20, 90):
        aws.put("AWS/SageMaker", "Invocations", MINUTE - 60 * minutes_ago, {1.0: minutes_ago}, **of)
    (span,) = read(aws, endpoint="chat")
    assert (span.start, span.counts) == (MINUTE - 300, {"requests": 5.0})


def test_minutes_that_were_missed_are_asked_for_once(aws: FakeAws) -> None:
    for minute in range(4):
        aws.put(
            "AWS/SageMaker",
            "Invocations",
            MINUTE + 60 * minute,
            {1.0: minute + 1},
            EndpointName="chat",
            VariantName="AllTraffic",
        )
    spans = read(aws, SetClock(NOW), times=2, endpoint="chat")
    assert [(s.start - MINUTE, s.counts["requests"]) for s in spans] == [(0.0, 1.0), (60.0, 2.0), (120.0, 3.0)]


def test_a_stream_tells_its_first_chunk(aws: FakeAws) -> None:
    invoked(aws, "AllTraffic", {900_000.0: 10})
    aws.put(
        "AWS/SageMaker", "FirstChunkLatency", MINUTE + 5, {250_000.0: 10}, EndpointName="chat", VariantName="AllTraffic"
    )
    (span,) = read(aws, endpoint="chat")
    assert span.quantiles["ttft_s"][0.95] == Range(0.25, 0.25)


def test_bedrocks_milliseconds_tokens_and_refusals(aws: FakeAws) -> None:
    def put(metric: str, values: dict[float, float]) -> None:
        aws.put("AWS/Bedrock", metric, MINUTE + 5, values, ModelId="eu.anthropic.claude")

    put("Invocations", {1.0: 8})
    put("InvocationThrottles", {1.0: 2})
    put("InvocationLatency", {1500.0: 8})
    put("TimeToFirstToken", {400.0: 8})
    put("InputTokenCount", {100.0: 8})
    put("CacheReadInputTokenCount", {50.0: 8})
    put("OutputTokenCount", {20.0: 8})
    (span,) = read(aws, bedrock_model="eu.anthropic.claude")
    assert span.counts == {
        "requests": 10.0,
        "errors": 0.0,
        "rejected": 0.0,
        "throttled": 2.0,
        "prompt_tokens": 1200.0,
        "cached_prompt_tokens": 400.0,
        "output_tokens": 160.0,
    }
    assert span.quantiles == {
        "e2e_s": dict.fromkeys((0.5, 0.9, 0.95, 0.99), Range(1.5, 1.5)),
        "ttft_s": dict.fromkeys((0.5, 0.9, 0.95, 0.99), Range(0.4, 0.4)),
    }


def test_an_instance_is_told_in_five_minutes(aws: FakeAws) -> None:
    start = NOW - 600.0
    aws.put("AWS/EC2", "CPUUtilization", start + 5, {20.0: 1, 60.0: 1}, InstanceId="i-0123")
    (span,) = read(aws, instance="i-0123")
    assert (span.end - span.start, span.gauges) == (300.0, {"cpu_usage": Gauge(0.4, 0.6, 0.4)})


def test_one_question_serves_many_endpoints(aws: FakeAws) -> None:
    """Fifty endpoints of 21 series each: three questions."""

    async def reading() -> set[str]:
        http, sessions = Http(), Sessions()
        try:
            members = [
                make(
                    SourceContext(
                        n, None, http, SetClock(NOW), sessions, {**ACCOUNT, "aws_url": aws.url, "endpoint": n}
                    )
                )
                for n in names
            ]
            assert len({id(m.fleet) for m in members}) == 1
            said = members[0].fleet.read_all([m.wanted for m in members], None)
            return {name async for name, one in said if isinstance(one, Span)}
        finally:
            await sessions.aclose()
            await http.aclose()

    names = [f"m{i}" for i in range(50)]
    for name in names:
        aws.put("AWS/SageMaker", "Invocations", MINUTE, {1.0: 1}, EndpointName=name, VariantName="AllTraffic")
    assert asyncio.run(reading()) == set(names)
    assert len(aws.sent) == 3


def test_a_permission_that_lacks_is_named(aws: FakeAws) -> None:
    aws.denied = {"cloudwatch:GetMetricData"}
    with pytest.raises(CollectError, match="Allow cloudwatch:GetMetricData") as refused:
        read(aws, endpoint="chat")
    assert refused.value.kind == "denied"
    assert "very-secret-key" not in str(refused.value)


def test_after_a_refusal_for_the_rate_that_service_is_left_alone_for_a_while(aws: FakeAws) -> None:
    clock = SetClock(NOW)

    async def story() -> None:
        http, sessions = Http(), Sessions()
        client = shared(sessions, AwsAccount(region=REGION, aws_url=aws.url), http.call, clock)
        try:
            aws.throttled = 1
            for _ in range(2):
                with pytest.raises(AwsError) as refused:
                    await client.items("sagemaker", "ListEndpoints", "Endpoints")
                assert refused.value.kind == "throttled"
            await client.call("sts", "GetCallerIdentity")
            assert [a for _, a in aws.sent] == ["ListEndpoints", "GetCallerIdentity"]
            clock.time += 6
            assert await client.items("sagemaker", "ListEndpoints", "Endpoints") == []
        finally:
            await sessions.aclose()
            await http.aclose()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "name one of"), ({"endpoint": "a", "group": "b"}, "not several"), ({"endpoin": "a"}, "endpoin")],
)
def test_settings_that_say_nothing_or_too_much_are_refused(aws: FakeAws, options: dict[str, Any], said: str) -> None:
    with pytest.raises(CollectError, match=said):
        read(aws, **options)


# -- discovery ---------------------------------------------------------------------------------------------------------


def _asked(
    aws: FakeAws, system: Any, entry: dict[str, Any] | None = None
) -> tuple[list[DiscoveredEndpoint], list[Permission]]:
    async def asking() -> tuple[list[DiscoveredEndpoint], list[Permission]]:
        http, sessions = Http(), Sessions()
        try:
            context = DiscoveryContext(http.call, SetClock(NOW), sessions, {**ACCOUNT, "aws_url": aws.url})
            permissions = await system.permitted(context, entry)
            return [one async for one in system.discover(context)], list(permissions)
        finally:
            await sessions.aclose()
            await http.aclose()

    return asyncio.run(asking())


def test_sagemakers_endpoints_with_prices_and_machines(aws: FakeAws) -> None:
    aws.prices = {"ml.g4dn.xlarge": 0.736}
    aws.endpoint("chat")
    aws.endpoint("two", {"old": ("ml.g4dn.xlarge", 2, 3.0), "new": ("ml.p3.2xlarge", 1, 1.0)})
    found, permissions = _asked(aws, SageMakerSystem())
    assert [p.name for p in permissions if p.granted is not True] == []
    one, two = found
    assert one.settings["sources"]["cloudwatch"] == {
        **ACCOUNT,
        "aws_url": aws.url,
        "endpoint": "chat",
        "variants": ["AllTraffic"],
        "cpus": 4,
        "gpus": 1,
    }
    assert one.settings["actuator"] == {
        "system": "sagemaker",
        "options": {**ACCOUNT, "aws_url": aws.url, "endpoint": "chat"},
    }
    assert "sizes: {ml.g4dn.xlarge: {usd_per_replica_hour: 0.736, cpus: 4, memory_gb: 17.18}}" in one.note
    assert "usd_per_replica_hour" not in two.note.splitlines()[-1], "a price that is not in the list is not known"
    assert two.settings["actuator"]["options"]["variant"] == "old"
    assert aws.writes == []


def test_groups_and_instances_of_no_group(aws: FakeAws) -> None:
    id_ = aws.instance(name="Chat 7B")
    aws.group("workers", least=1, most=4, count=2)
    found, _ = _asked(aws, Ec2System())
    assert [(f.name, f.settings["actuator"]["options"].get("instance")) for f in found] == [
        ("workers", None),
        ("chat-7b", id_),
    ]
    assert found[0].settings["policy"] == {"min_replicas": 1, "max_replicas": 4}
    assert "2 of 1..4" in found[0].note


def test_bedrocks_models_are_those_that_were_called_and_those_that_are_paid_for(aws: FakeAws) -> None:
    arn = f"arn:aws:bedrock:{REGION}:123456789012:provisioned-model/abc"
    aws.provisioned = [
        {
            "provisionedModelName": "mine", "provisionedModelArn": arn,
            "modelArn": "arn:aws:bedrock:::m", "desiredModelArn": "arn:aws:bedrock:::m",
            "foundationModelArn": "arn:aws:bedrock:::m",
            "modelUnits": 2, "desiredModelUnits": 2, "status": "InService",
            "commitmentDuration": "OneMonth", "creationTime": "2026-01-01T00:00:00Z", "lastModifiedTime": "2026-01-01T00:00:00Z",
        }
    ]  # fmt: skip
    aws.put("AWS/Bedrock", "Invocations", MINUTE, {1.0: 1}, ModelId="eu.anthropic.claude")
    found, _ = _asked(aws, BedrockSystem())
    assert [f.settings["model"] for f in found] == [arn, "eu.anthropic.claude"]
    assert "2 model units, InService, OneMonth" in found[0].note
    assert "nobody called it" in found[0].note
    assert {f.settings["actuator"]["system"] for f in found} == {"none"}


@pytest.mark.parametrize("simulates", [True, False])
def test_a_permission_that_lacks_is_found_by_simulation_or_by_trying(aws: FakeAws, simulates: bool) -> None:
    aws.simulates = simulates
    aws.denied = {"sagemaker:ListEndpoints", "sagemaker:UpdateEndpoint"}
    entry = {"mode": "approve", "actuator": {"system": "sagemaker", "options": {**ACCOUNT, "aws_url": aws.url}}}

    async def asking() -> dict[str, bool | None]:
        http, sessions = Http(), Sessions()
        try:
            context = DiscoveryContext(http.call, SetClock(NOW), sessions)
            return {p.name: p.granted for p in await SageMakerSystem().permitted(context, entry)}
        finally:
            await sessions.aclose()
            await http.aclose()

    found = asyncio.run(asking())
    assert found["sagemaker:ListEndpoints"] is False
    assert found["sagemaker:UpdateEndpoint"] is (False if simulates else None), "a change is not tried"
    assert found["application-autoscaling:DescribeScalableTargets"] is True
    assert aws.writes == []


@pytest.mark.parametrize("system", ["sagemaker", "ec2", "bedrock"])
def test_the_least_policy_names_calls_that_there_are(system: str) -> None:
    """By botocore's own forms of Amazon's services."""
    (*statements,) = json.loads(policy(system))["Statement"]
    session = Session()
    known = {"cloudwatch": "cloudwatch"}
    for action in (a for s in statements for a in s["Action"]):
        service, _, operation = action.partition(":")
        model = session.get_service_model(known.get(service, service))
        assert operation in model.operation_names, action


def test_the_role_behind_a_session() -> None:
    assert principal("arn:aws:sts::1:assumed-role/flyball/i-1") == "arn:aws:iam::1:role/flyball"
    assert principal("arn:aws:iam::1:user/ada") == "arn:aws:iam::1:user/ada"


@pytest.mark.parametrize(
    ("code", "message", "status", "kind"),
    [
        ("ValidationException", "Cannot update in-progress endpoint", 400, "conflict"),
        ("ValidationException", 'Could not find endpoint "x".', 400, "missing"),
        ("ValidationException", "1 validation error detected", 400, "invalid"),
        ("com.amazonaws.sagemaker#ResourceLimitExceeded", "The account-level service limit", 400, "quota"),
        ("InsufficientInstanceCapacity", "We currently do not have", 500, "capacity"),
        ("ThrottlingException", "Rate exceeded", 400, "throttled"),
        ("ExpiredToken", "The security token is expired", 403, "credentials"),
        ("InternalFailure", "", 500, "unreachable"),
    ],
)
def test_amazons_codes_in_one_vocabulary(code: str, message: str, status: int, kind: str) -> None:
    assert refusal("x:Y", code, message, status, REGION).kind == kind


def test_a_price_is_one_or_not_known() -> None:
    def row(*prices: str) -> str:
        parts = {str(i): {"unit": "Hrs", "pricePerUnit": {"USD": p}} for i, p in enumerate(prices)}
        return json.dumps({"terms": {"OnDemand": {"a": {"priceDimensions": parts}}}})

    assert price_of([row("0.5"), row("0.0000000000")]) == 0.5
    assert price_of([row("0.5"), row("0.6")]) is None
    assert price_of(["{", json.dumps({"terms": {}})]) is None
