"""The source ``azure-openai``: one reading of Azure Monitor for all model deployments of a subscription's accounts, minutes late and said so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar

from pydantic import Field, ValidationError, field_validator

from collectors.azure.accounts import ModelAccounts, ModelDeploymentId, model_accounts
from collectors.azure.calls import CallMinute, read_calls
from collectors.azure.client import AzureClient, shared
from collectors.azure.credentials import AzureAccount
from collectors.azure.errors import AzureError
from collectors.azure.settled import MINUTE, SettledMinutes
from collectors.base import FleetMember, FleetQuery, SourceContext
from collectors.discovery import Support
from collectors.options import problems_of
from collectors.window import CollectError, Reading, Span


class Options(AzureAccount):
    """Settings of the source ``azure-openai``."""

    resource: str = ""
    """The deployment's resource id, as `az cognitiveservices account deployment show --query id` has it."""
    lag_s: float = Field(default=180.0, ge=0, le=1800)
    """A minute is taken as it stands so long after its end: Azure's metrics come one to three minutes late."""

    @field_validator("resource")
    @classmethod
    def _an_id(cls, value: str) -> str:
        if value:
            ModelDeploymentId.parse(value)
        return value


SUPPORT = Support(
    title="Azure Monitor, of Azure OpenAI and Foundry model deployments",
    sees=(
        "requests, errors, throttling, spillover",
        "tokens, cached ones apart",
        "mean times (no percentiles: read the callers' own beside it)",
        "PTU utilisation",
    ),
    changes=(),
    verified="official SDK",
    how="the stand-in of the system `azure-openai`, which azure-monitor-querymetrics drives too",
)


class DeploymentMetrics:
    """All deployments of one subscription that are read alike. See ``collectors.base.FleetCollector``."""

    source: ClassVar[str] = "azure-openai"
    interval_s: float | None = MINUTE
    deadline_s: float | None = 120.0

    def __init__(self, client: AzureClient, accounts: ModelAccounts, lag_s: float) -> None:
        self._client = client
        self._accounts = accounts
        self._minutes = SettledMinutes(client.clock, lag_s)
        self.settles_s = self._minutes.settles_s

    async def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        """The minutes of each that have settled since it was last read, and the newest of them in any case."""
        end = self._minutes.end()
        spans: dict[tuple[float, str], dict[str, list[tuple[str, ModelDeploymentId]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for one in wanted:
            id_ = ModelDeploymentId.parse(str(one.options["resource"]))
            try:
                region = (await self._accounts.account(id_.account_path)).region
            except AzureError as error:
                yield one.endpoint, error
                continue
            first = self._minutes.first(id_.key, end)
            spans[first, region][id_.account_path].append((one.endpoint, id_))
        for (start, region), accounts in sorted(spans.items()):
            found = await read_calls(self._client, region, list(accounts), start, end)
            for path, members in accounts.items():
                answer = found[path]
                for name, id_ in members:
                    if isinstance(answer, AzureError):
                        yield name, answer
                        continue
                    self._minutes.read(id_.key, end)
                    for minute in answer.get(id_.name.lower(), ()):
                        yield name, _span(name, minute)


def _span(endpoint: str, minute: CallMinute) -> Span:
    return Span(
        target=endpoint,
        start=minute.start,
        end=minute.start + MINUTE,
        counts=minute.counts,
        gauges=minute.gauges,
    )


def make(context: SourceContext) -> FleetMember:
    """The entry point. Raises CollectError ``settings``, ``credentials``."""
    try:
        options = Options(**context.options)
        problem = "" if options.resource else "resource: the deployment's resource id is needed"
    except ValidationError as error:
        problem = problems_of(error, Options)
    if problem:
        raise CollectError("settings", f"endpoint {context.endpoint}, azure-openai: {problem}")
    sessions, id_ = context.sessions, ModelDeploymentId.parse(options.resource)
    client = shared(sessions, id_.subscription, options, context.http.call, context.clock)
    fleet = sessions.get(
        ("azure-openai", id(client), options.lag_s),
        lambda: DeploymentMetrics(client, model_accounts(sessions, client), options.lag_s),
    )
    return FleetMember(fleet, FleetQuery(context.endpoint, context.model, {"resource": options.resource}))
