"""What a person may set, with the unit, the default and the reason under each field.

The reference page (docs/settings.md) and the JSON Schema for editors are generated from this module.
"""

from __future__ import annotations

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from actuators.shape import DAYS, EngineValue, Shape
from analyzers.objective import Objective, Target
from collectors.durations import has_unit, seconds_of
from collectors.plan import Lengths

LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: No line break and one at-sign: what a header of a mail can hold.
_ADDRESS = r"^[^@\s<>]+@[^@\s<>]+$"
#: A token that can be guessed is none.
SHORTEST_TOKEN = 16

#: A number of seconds, or text such as 500ms, 5s, 2m, 1h, 7d.
_Written = BeforeValidator(seconds_of, json_schema_input_type=float | str)
Duration = Annotated[float, _Written]
Seconds = Annotated[float, Field(gt=0), _Written]
Share = Annotated[float, Field(gt=0, lt=1)]
Dollars = Annotated[float, Field(ge=0)]


def _lengths(text: str) -> str:
    Lengths.parse(text)
    return text


class Conflict(ValueError):
    """Two settings that do not fit together. ``loc`` is the one to look at, under the model that found it."""

    def __init__(self, loc: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.loc = loc


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class AutoscalingSettings(_Section):
    """What an autoscaler keeps to."""

    least: int = Field(ge=0)
    """Never fewer replicas."""
    most: int = Field(ge=1)
    """Never more replicas."""
    targets: dict[str, float] = {}
    """What it steers to, by its own name of the metric. Default: unknown."""

    @model_validator(mode="after")
    def _bounds(self) -> AutoscalingSettings:
        if self.most < self.least:
            raise Conflict(("most",), f"most ({self.most}) is below least ({self.least})")
        return self


class PurchaseSettings(_Section):
    """Capacity that is bought and not run."""

    amount: int = Field(ge=1)
    """How much, in `unit`."""
    unit: Literal["tokens_per_minute", "ptu", "requests_per_minute"]
    """Tokens a minute, provisioned throughput units, or requests a minute."""


class ShapeSettings(_Section):
    """What an endpoint runs on, as far as its system cannot tell it itself."""

    replicas: int | None = Field(None, ge=0)
    """How many replicas. Default: unknown."""
    size: str | None = None
    """A VM size or instance type, priced under `sizes`. Default: unknown."""
    accelerator: str | None = None
    """A GPU by its short name, such as H100, L40S, A100-80GB. Default: unknown."""
    accelerator_count: int | None = Field(None, ge=1)
    """GPUs per replica. Default: unknown."""
    engine: dict[str, EngineValue] = {}
    """Engine limits by their vLLM names, such as max_num_seqs. Default: unknown."""
    cpus: float | None = Field(None, gt=0)
    """CPU cores per replica, where `size` does not say it. Default: unknown."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory per replica in GB, where `size` does not say it. Default: unknown."""
    autoscaling: AutoscalingSettings | None = None
    """The bounds and targets of the autoscaler that sets the replicas. Default: unknown, or none is there."""
    purchase: PurchaseSettings | None = None
    """What is bought, where capacity is bought and not run. Default: unknown, or nothing is."""
    tier: str | None = None
    """The vendor's kind of offer, such as GlobalStandard or spot. Default: unknown."""
    region: str | None = None
    """Where it runs, by the vendor's name. Default: unknown."""

    def shape(self) -> Shape:
        return Shape.from_dict(self.model_dump(exclude_none=True))


class SizeSettings(_Section):
    """One size that endpoints may run on: its price, and what decides its speed."""

    usd_per_replica_hour: Dollars | None = None
    """US dollars per replica-hour, at the rate that you really pay. Default: unknown, and no saving is claimed."""
    usd_per_replica_hour_reserved: Dollars | None = None
    """US dollars per replica-hour where it is reserved (a commitment, a savings plan), paid whether it runs or not. Default: unknown, and
    no reservation is advised."""
    cpus: float | None = Field(None, gt=0)
    """CPU cores of one replica: what carries an endpoint of kind `vm` from one size to another. Default: unknown."""
    accelerator: str | None = None
    """A GPU by its short name; its bandwidth, arithmetic and memory come from the built-in table. Default: none."""
    accelerator_count: int = Field(1, ge=1)
    """GPUs per replica. Default: 1."""
    bandwidth_gb_s: float | None = Field(None, gt=0)
    """Memory bandwidth in GB/s of one accelerator, where the built-in table does not have it or is wrong."""
    tflops_bf16: float | None = Field(None, gt=0)
    """Dense bf16 arithmetic in TFLOP/s of one accelerator, where the built-in table does not have it or is wrong."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory in GB of one accelerator, where the built-in table does not have it or is wrong."""


class ActuatorSettings(_Section):
    """The system that holds the endpoint, and how to reach it."""

    system: str = "none"
    """An actuator by name; docs/settings.md lists them. Default: none, which only reads."""
    options: dict[str, Any] = {}
    """The actuator's own settings, listed under its name in docs/settings.md."""


class ChangeWindow(_Section):
    """When changes may start, in the settings' time zone."""

    days: str = "mon-sun"
    """Days, such as `mon-fri` or `sat,sun`. Default: every day."""
    start: time = time(0, 0)
    """From this time of day. Default: midnight."""
    end: time = time(23, 59, 59)
    """Until this time of day. Default: the end of the day."""

    @field_validator("days")
    @classmethod
    def _days(cls, value: str) -> str:
        weekdays(value)
        return value


def weekdays(text: str) -> frozenset[int]:
    """``mon-fri,sun`` as 0 (Monday) to 6. Raises ValueError."""
    days: set[int] = set()
    for part in text.lower().replace(" ", "").split(","):
        first, _, last = part.partition("-")
        last = last or first
        if first not in DAYS or last not in DAYS:
            raise ValueError(f"{text!r} is not a set of days; write for instance mon-fri or sat,sun")
        i = DAYS.index(first)
        days.add(i)
        while DAYS[i] != last:
            i = (i + 1) % 7
            days.add(i)
    return frozenset(days)


class PolicySettings(_Section):
    """Which shapes may be proposed, and how sure a proposal must be."""

    min_replicas: int = Field(1, ge=0)
    """Never fewer. Default: 1."""
    max_replicas: int | None = Field(None, ge=1)
    """Never more. Default: the current count, so that replicas are only proposed once you say how far."""
    sizes: list[str] = []
    """Names under `sizes` that may be proposed beside the current one. Default: none."""
    engine: dict[str, list[EngineValue]] = {}
    """Values that may be proposed, by engine argument: `max_num_seqs: [64, 128, 256]`. Default: none."""
    purchase: list[Annotated[int, Field(ge=1)]] = []
    """Amounts that may be proposed of what is bought, in its unit (tokens a minute, or provisioned throughput units). Default: none."""
    max_step_replicas: int = Field(2, ge=1)
    """Replicas added or removed in one change, at most. Default: 2."""
    budget_per_month: Dollars | None = None
    """US dollars a month (730 h) that a proposed shape may cost, at most. Default: no bound."""
    budget_per_hour: Dollars | None = None
    """US dollars an hour that a proposed shape may cost, at most. Default: no bound."""
    margin: float = Field(0.1, ge=0, lt=1)
    """The prediction must meet each limit with this share to spare. Default: 0.1."""
    growth: float = Field(1.2, ge=1)
    """A smaller shape must carry this multiple of the largest load seen, until a season of the load is known. Default: 1.2."""
    max_changes_per_day: int = Field(2, ge=1)
    """After so many changes in a day nothing smaller is proposed; more replicas always are. Default: 2, as for a day and a night."""
    scheduled_steps_per_day: int = Field(8, ge=0, le=48)
    """A schedule of replicas that is proposed has at most so many steps a day; below 2 none is. Default: 8."""
    tune_autoscaler: bool = True
    """Whether other targets and another least count may be proposed for an autoscaler that sets the replicas. Default: yes."""
    schedule_days: float = Field(30.0, gt=0)
    """An approved schedule is kept for so long; then the most replicas that it wants stay, and a new one is proposed. Default: 30 days."""
    reaction_s: Annotated[float, Field(ge=0), _Written] = 1800.0
    """A person takes so long to approve, until it was measured here; more replicas are proposed so much earlier. Default: 30 min."""
    cold_start_s: Annotated[float, Field(ge=0), _Written] = 300.0
    """A new replica serves after so long, until it was measured here. Default: 5 min."""
    min_saving_per_month: Dollars = 20.0
    """US dollars a month below which a smaller shape is not worth its disruption. Default: 20."""
    min_saving_share: float = Field(0.1, ge=0, lt=1)
    """Share of the cost below which a smaller shape is not worth its disruption. Default: 0.1."""
    evidence_s: Seconds = 3600.0
    """Span of telemetry that a decision rests on. Default: one hour."""
    min_coverage: float = Field(0.8, gt=0, le=1)
    """Share of that span that must have been observed. Default: 0.8."""
    min_requests: int = Field(50, ge=1)
    """Requests in that span below which nothing is concluded. Default: 50."""
    stable_cycles: int = Field(3, ge=1)
    """Analyses in a row that must come to the same advice before it is given, or withdrawn. Default: 3."""
    cooldown_s: Annotated[float, Field(ge=0), _Written] = 3600.0
    """After a change, none is proposed for so long. Default: one hour; keep it well above the cold start."""
    expires_s: Seconds = 86_400.0
    """A recommendation can be approved for so long. Default: 24 h."""
    change_windows: list[ChangeWindow] = []
    """When changes may start. Default: at any time."""
    auto: list[Literal["grow", "shrink", "reshape"]] = ["grow"]
    """In `auto` mode, the directions that need no person. Default: grow only."""
    approvers: list[str] = []
    """Names under `people` that may decide for this endpoint, at whichever door. Default: whoever comes through a door."""
    quorum: int = Field(1, ge=1)
    """So many people must approve; each counts once. More than 1 needs as many `approvers`. Default: 1."""
    four_eyes: bool | None = None
    """Whether who asked for a change may not approve it. Default: where two or more `approvers` are named."""

    @model_validator(mode="after")
    def _bounds(self) -> PolicySettings:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            text = f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})"
            raise Conflict(("max_replicas",), text)
        if self.quorum > 1 and self.quorum > len(set(self.approvers)):
            text = f"a quorum of {self.quorum} needs as many approvers; {len(set(self.approvers))} are named"
            raise Conflict(("quorum",), text)
        return self


class VerifySettings(_Section):
    """How a change is checked."""

    warmup_s: Annotated[float, Field(ge=0), _Written] = 120.0
    """Not judged for so long after the change is ready. Default: 2 min."""
    windows: int = Field(5, ge=1)
    """Whole windows after the warm-up that are judged. Default: 5."""
    deadline_s: Seconds = 3600.0
    """Judged by what is there at this time after the warm-up, at the latest. Default: one hour."""
    load_tolerance: float = Field(0.2, gt=0, lt=1)
    """Load within this share of the load before counts as equal. Default: 0.2."""


class ExerciseSettings(_Section):
    """Traffic of Flyball's own for a reference that is busy too seldom to be learned from."""

    every_s: Seconds = 86_400.0
    """Between two times. Default: a day."""
    duration_s: Annotated[float, Field(gt=0, le=1800), _Written] = 120.0
    """How long it lasts, at most half an hour; a quarter, half, and all of the rate for a third of it each. Default: 2 min."""
    rate: float = Field(1.0, gt=0, le=100)
    """Requests per second at most. Default: 1."""
    prompt_tokens: Annotated[str, AfterValidator(_lengths)] = "uniform:64:512"
    """Length of the prompts, as `flyball simulate` reads it. Default: 64 to 512 tokens."""
    output_tokens: Annotated[str, AfterValidator(_lengths)] = "uniform:32:256"
    """Length of the answers. Default: 32 to 256 tokens."""


#: What is asked for under an endpoint's address, and so is no address of one.
_PAGE = re.compile(r"/(metrics|health|version|v1/models|v1/(chat/)?completions)$")


class BillSettings(_Section):
    """The vendor's own report of what an endpoint costs, to stand beside what Flyball reckons."""

    vendor: Literal["openai", "anthropic", "litellm", "azure"]
    """Whose report: OpenAI's or Anthropic's admin API, a LiteLLM proxy with a database, or Azure Cost Management."""
    key: SecretStr | None = None
    """An admin key, or LiteLLM's master key; for Azure a token. By reference only. Default: Azure's own chain; others need one."""
    url: str | None = None
    """Its address. Default: the vendor's own; LiteLLM needs one."""
    scope: str | None = None
    """Azure: `/subscriptions/ID`, or the id of a resource group. Default: none; Azure needs one."""
    only: str | None = None
    """This endpoint's part: an OpenAI project's id, an Anthropic workspace's id, LiteLLM's model, an Azure resource's id. Default: all."""

    @model_validator(mode="after")
    def _whole(self) -> BillSettings:
        if self.vendor != "azure" and self.key is None:
            raise Conflict(("key",), f"the report of {self.vendor} needs a key")
        if self.vendor == "litellm" and self.url is None:
            raise Conflict(("url",), "the report of litellm needs the proxy's address")
        if self.vendor == "azure" and (self.scope is None or not re.match(r"/subscriptions/[^/]+", self.scope)):
            raise Conflict(("scope",), "the report of azure needs a scope, such as /subscriptions/ID")
        return self


class EndpointSettings(_Section):
    """One deployed model that answers requests."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """A short name: lower-case letters, digits, dots, dashes."""
    url: str = Field(pattern=r"^https?://[^/\s?#]+(/[^\s?#]*)?$")
    """Its address, with http:// or https:// and no path behind the server's root."""
    model: str | None = None
    """The model's name as the server knows it. Default: the only one that it serves."""
    kind: Literal["engine", "vm", "quota", "ptu", "serverless"] = "engine"
    """How it responds to load: `engine` batches continuously (vLLM, SGLang, TGI), `vm` is any other server, `quota` is paid for by the token
    under a rate limit, `ptu` is provisioned throughput, `serverless` is run by a platform that starts and stops instances. Default: engine."""
    role: Literal["production", "reference"] = "production"
    """`reference` is the yardstick that others are compared with. Default: production."""
    reference: str | None = None
    """The endpoint with `role: reference` that it is compared with. Default: the one whose model is of its family, else the only one."""
    mode: Literal["observe", "approve", "auto"] = "observe"
    """observe says and never does; approve waits for a person; auto acts inside the policy. Default: observe."""
    exercise: ExerciseSettings | None = None
    """Traffic that Flyball sends to a reference from time to time; its mode must not be observe, which sends nothing. Default: none."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. By reference only: `${NAME}` from the environment, or `file:PATH`."""
    sources: dict[str, dict[str, Any]] = Field(default={"vllm": {}}, min_length=1)
    """Where its telemetry comes from, by collector, with that collector's own settings. The first one is judged. Default: vllm."""
    objective: dict[str, Duration] = {}
    """What must hold: ttft_p95_s, itl_p95_s, e2e_p99_s ... in seconds, or as 200ms, 5m; error_rate as a share, and of the kinds quota and ptu
    throttle_rate, the share of calls that are refused. A number without a unit that can
    hardly be seconds (TTFT above 60, ITL above 5, end to end above 600) is refused."""
    shape: ShapeSettings = ShapeSettings()
    """What it runs on, where its system cannot tell."""
    usd_per_replica_hour: Dollars | None = None
    """US dollars per replica-hour, where `sizes` does not have it. Default: unknown, and no saving is claimed."""
    usd_per_1k_input_tokens: Dollars | None = None
    """US dollars per 1,000 prompt tokens, where it is billed by the token. Default: it is not."""
    usd_per_1k_cached_input_tokens: Dollars | None = None
    """US dollars per 1,000 prompt tokens that the vendor's cache held. Default: as any other prompt token."""
    usd_per_1k_output_tokens: Dollars | None = None
    """US dollars per 1,000 tokens of answers, where it is billed by the token. Default: it is not. Of the kind `ptu`, all three are of what
    spills over to another deployment."""
    usd_per_ptu_hour: Dollars | None = None
    """US dollars per hour of one unit of provisioned throughput, at the rate that you really pay. Default: unknown, and no saving is claimed."""
    usd_per_ptu_hour_reserved: Dollars | None = None
    """US dollars per hour of such a unit where it is reserved for a month or a year. Default: unknown, and no reservation is advised."""
    bill: BillSettings | None = None
    """The vendor's own report of what it costs. Default: none is read."""
    actuator: ActuatorSettings = ActuatorSettings()
    """The system that can change it."""
    policy: PolicySettings = PolicySettings()
    """Which shapes may be proposed."""
    verify: VerifySettings = VerifySettings()
    """How a change is checked."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        root = value.rstrip("/")
        if "@" in root.partition("//")[2].partition("/")[0]:
            raise ValueError("holds a user or a password, which would be shown wherever the address is; use `api_key`")
        if page := _PAGE.search(root):
            raise ValueError(
                f"ends in {page[0]}, which is one of the server's pages: write its root, {root[: page.start()]}. "
                "Metrics at another address go into `sources: {vllm: {url: ...}}`"
            )
        return root

    @field_validator("objective", mode="wrap")
    @classmethod
    def _objective(cls, written: Any, seconds: ValidatorFunctionWrapHandler) -> dict[str, float]:
        value: dict[str, float] = seconds(written)
        for name, limit in value.items():
            Target.parse(name, limit, with_unit=has_unit(written[name]))
        return value

    @model_validator(mode="after")
    def _refused(self) -> EndpointSettings:
        if "throttle_rate" in self.objective and self.kind not in ("quota", "ptu"):
            raise Conflict(
                ("objective", "throttle_rate"), f"{self.name}: only the kinds quota and ptu are judged by it"
            )
        return self

    @model_validator(mode="after")
    def _exercised(self) -> EndpointSettings:
        if self.exercise is not None and self.role != "reference":
            raise Conflict(("exercise",), f"{self.name} has users of its own: only a `role: reference` is exercised")
        if self.exercise is not None and self.mode == "observe":
            raise Conflict(("exercise",), f"{self.name} has the mode observe, which sends nothing but reads")
        if self.exercise is not None and self.model is None:
            raise Conflict(("exercise",), f"{self.name}: name the `model` that requests ask for")
        return self

    def wanted(self) -> Objective:
        return Objective.from_mapping(self.objective)


class CollectSettings(_Section):
    interval_s: Seconds = 15.0
    """Between two readings of one target. Default: 15 s, as Prometheus does."""
    window_s: Seconds = 60.0
    """Length of a window. Default: one minute."""
    timeout_s: Seconds = 10.0
    """A reading that takes longer is a failure. Default: 10 s."""
    max_backoff_s: Seconds = 300.0
    """Longest pause after repeated failures. Default: 5 min."""

    @model_validator(mode="after")
    def _fits(self) -> CollectSettings:
        if self.window_s < self.interval_s:
            text = f"window_s ({self.window_s:g}) must be at least interval_s ({self.interval_s:g})"
            raise Conflict(("window_s",), text)
        return self


class DecideSettings(_Section):
    interval_s: Seconds = 60.0
    """Between two analyses of one endpoint. Default: one minute."""
    act_interval_s: Seconds = 2.0
    """Between two looks for approved changes and their progress. Default: 2 s."""
    seed: int = 7
    """Of the replays' random draws, so that a decision can be repeated. Default: 7."""


class RetentionSettings(_Section):
    raw_days: float = Field(7.0, gt=0)
    """Windows as collected are kept for so long. Default: 7 days."""
    five_minutes_days: float = Field(30.0, gt=0)
    """5-minute windows are kept for so long. Default: 30 days."""
    hours_days: float = Field(400.0, gt=0)
    """1-hour windows are kept for so long. Default: 400 days."""
    requests_days: float = Field(7.0, gt=0)
    """Requests of the flight recorder are kept for so long. Default: 7 days."""
    requests_rows: int = Field(500_000, ge=1)
    """Requests of the flight recorder that are kept of one endpoint, the newest. Default: 500,000, about 100 MB without prefixes."""


class ReportSettings(_Section):
    schedule: str = "mon 08:00"
    """Day of the week and time, in the settings' time zone. Default: Monday, 8:00."""
    directory: Path = Path("reports")
    """Where reports are written. Default: reports/ beside the settings file."""

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str) -> str:
        if not re.fullmatch(r"(mon|tue|wed|thu|fri|sat|sun) ([01]\d|2[0-3]):[0-5]\d", value):
            raise ValueError(f"{value!r} is not a day and a time; write for instance 'mon 08:00'")
        return value


class SavingsSettings(_Section):
    period_s: Seconds = 86_400.0
    """What was saved is attested for each period of this length, counted from midnight UTC. Default: a day."""


class SlackSettings(_Section):
    webhook_url: SecretStr | None = None
    """The incoming webhook. By reference only. Must be at hooks.slack.com or hooks.slack-gov.com, unless `allow_hosts` says otherwise.
    Default: none; then `bot_token` and `channel_id` say where messages go."""
    bot_token: SecretStr | None = None
    """The app's bot token (xoxb-...), with the scope chat:write: messages are posted to `channel_id` as the app, rewritten once they are
    decided, and answered in their threads. By reference only. Default: none; the webhook posts."""
    app_token: SecretStr | None = None
    """The app-level token (xapp-...) of Socket Mode, with connections:write: clicks come over a connection that the leader opens, and no
    public address is needed. By reference only. Default: none."""
    signing_secret: SecretStr | None = None
    """The app's signing secret, for clicks that Slack posts to /slack/actions. Without it and without `app_token` messages carry no
    buttons. By reference only."""
    previous_signing_secret: SecretStr | None = None
    """Accepted beside the new one while it is rotated. By reference only."""
    approvers: list[str] = []
    """Slack user ids (U...) that may decide; nobody else can. Without any, messages carry no buttons."""
    app_id: str | None = None
    """When set, clicks from any other app are refused."""
    team_id: str | None = None
    """When set, clicks from any other workspace are refused."""
    channel_id: str | None = None
    """Where messages go (C...), with a bot token. When set, clicks from any other channel are refused."""
    api_url: str = "https://slack.com/api"
    """Slack's Web API. Default: https://slack.com/api; https://slack-gov.com/api for GovSlack."""
    allow_hosts: list[str] = ["hooks.slack.com", "hooks.slack-gov.com", "slack.com", "slack-gov.com"]
    """Hosts that messages may be sent to. Others, such as a stand-in on 127.0.0.1, must be named."""

    @property
    def takes_clicks(self) -> bool:
        """Whether a click can reach Flyball at all."""
        return self.signing_secret is not None or self.app_token is not None

    @model_validator(mode="after")
    def _posts_somewhere(self) -> SlackSettings:
        if self.bot_token is not None and self.channel_id is None:
            raise Conflict(
                ("channel_id",),
                "is missing: with a bot_token it says where messages go (C..., of the channel's details)",
            )
        if self.bot_token is None and self.webhook_url is None:
            raise Conflict(("webhook_url",), "is missing. Add it, or a bot_token with a channel_id")
        return self

    @field_validator("approvers")
    @classmethod
    def _ids(cls, value: list[str]) -> list[str]:
        for user in value:
            if not re.fullmatch(r"[UW][A-Z0-9]{2,20}", user):
                raise ValueError(
                    f"{user!r} is not a Slack user id; in Slack: profile, three dots, 'Copy member ID' (U012AB3CD)"
                )
        return value


class EmailSettings(_Section):
    """Where the weekly report is sent to by e-mail. It asks for nothing and decides nothing."""

    host: str = Field(min_length=1)
    """The SMTP server."""
    port: int = Field(587, ge=1, le=65_535)
    """Its port. Default: 587, where mail is submitted."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """starttls turns to TLS after the greeting, tls begins with it (port 465), none sends in the clear: on loopback alone. Default: starttls."""
    username: str | None = None
    """Who submits. Default: nobody is asked."""
    password: SecretStr | None = None
    """By reference only: `${NAME}` from the environment, or `file:PATH`."""
    sender: str = Field(pattern=_ADDRESS)
    """The address that it comes from."""
    to: list[Annotated[str, Field(pattern=_ADDRESS)]] = Field(min_length=1)
    """Who gets it."""

    @model_validator(mode="after")
    def _kept_secret(self) -> EmailSettings:
        if (self.username is None) != (self.password is None):
            raise Conflict(("password",), "a username needs its password, and a password its username")
        if self.security == "none" and self.host not in LOOPBACK:
            raise Conflict(("security",), f"mail to {self.host} would go in the clear; use starttls or tls")
        return self


class WebSettings(_Section):
    host: str = "127.0.0.1"
    """Address to listen on. Default: loopback; anything else needs `token`."""
    port: int = Field(8321, ge=0, le=65535)
    """Port. Default: 8321."""
    token: SecretStr | None = None
    """Pages and API ask for it. By reference only. Default: none, which only loopback allows."""
    public_url: str | None = None
    """How people reach the page, for links in Slack. Default: http://HOST:PORT."""

    @model_validator(mode="after")
    def _exposed(self) -> WebSettings:
        if not self.on_loopback and self.token is None:
            text = f"host {self.host} can be reached from elsewhere: set web.token, or listen on 127.0.0.1"
            raise Conflict(("host",), text)
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return self.host in LOOPBACK


class PersonSettings(_Section):
    """Somebody who decides, by one name at all doors."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """A short name: lower-case letters, digits, dots, dashes. What the audit says."""
    slack: str | None = Field(None, pattern=r"^[UW][A-Z0-9]{2,20}$")
    """The Slack user id (profile, three dots, 'Copy member ID'). Default: none; this person decides nothing in Slack."""
    git: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$")
    """The e-mail address of this person's merges. Default: none; no merge is this person's."""
    token: SecretStr | None = None
    """What this person logs in with on the page, 16 characters at least. By reference only. Default: none; no login."""
    login: str | None = None
    """The operating system's user at the command line. Default: the name."""

    @field_validator("token")
    @classmethod
    def _long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < SHORTEST_TOKEN:
            raise ValueError(f"is shorter than {SHORTEST_TOKEN} characters; make one with `openssl rand -hex 16`")
        return value


class OtlpSettings(_Section):
    endpoint: str
    """An OTLP/HTTP receiver, such as http://127.0.0.1:4318; traces of each cycle go there."""


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{name!r} is not a time zone; write for instance Europe/Berlin") from error
    return name


class Settings(BaseSettings):
    """Flyball's settings. `FLYBALL_` environment variables stand above the file: `FLYBALL_WEB__PORT=9000`."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix="FLYBALL_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
        frozen=True,
    )

    database: str = Field("sqlite:///flyball.db", repr=False)
    """Where everything is kept: `sqlite:///PATH`, or `postgresql+psycopg://USER@HOST/DB`; a password by reference. Default: beside the file."""
    state_dir: Path = Path("flyball-state")
    """Process records, logs and the spool. Default: flyball-state/ beside the settings file."""
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Of schedules and change windows. Default: UTC."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged. Default: info."""
    collect: CollectSettings = CollectSettings()
    """How telemetry is read."""
    decide: DecideSettings = DecideSettings()
    """How often the loop reflects and acts."""
    people: list[PersonSettings] = []
    """Who decides, each by one name at all doors. Default: nobody is known by name."""
    fleet_changes_per_day: int = Field(50, ge=0)
    """Changes that Flyball itself proposed and that begin in a day, over all endpoints, at most; the next ones wait. Default: 50."""
    retention: RetentionSettings = RetentionSettings()
    """How long telemetry is kept."""
    report: ReportSettings = ReportSettings()
    """The weekly report."""
    savings: SavingsSettings = SavingsSettings()
    """How savings are attested."""
    web: WebSettings = WebSettings()
    """Pages, API and receivers."""
    slack: SlackSettings | None = None
    """Notices and approvals in Slack. Default: none."""
    email: EmailSettings | None = None
    """The weekly report by e-mail. Default: none."""
    otlp: OtlpSettings | None = None
    """Where traces go. Default: nowhere."""
    tls_ca_file: Path | None = None
    """Certificates to trust beside the system's, for endpoints with a private authority. Default: the system's only."""
    sizes: dict[str, SizeSettings] = {}
    """The sizes that endpoints may run on, by name."""
    endpoints: list[EndpointSettings] = []
    """The deployed models."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over the file, and nothing else: a stray .env must not steer a governor."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        seen: set[str] = set()
        for i, endpoint in enumerate(self.endpoints):
            if endpoint.name in seen:
                raise Conflict(
                    ("endpoints", i, "name"), f"two endpoints are called {endpoint.name!r}: names must differ"
                )
            seen.add(endpoint.name)
            if endpoint.reference is not None:
                self._check_reference(i, endpoint)
            for j, size in enumerate(endpoint.policy.sizes):
                if size not in self.sizes:
                    at = ("endpoints", i, "policy", "sizes", j)
                    raise Conflict(at, f"policy.sizes names {size!r}, which `sizes` does not have")
            self._check_approvers(i, endpoint)
        self._check_people()
        return self

    def _check_approvers(self, i: int, endpoint: EndpointSettings) -> None:
        for j, name in enumerate(endpoint.policy.approvers):
            if name not in {person.name for person in self.people}:
                at = ("endpoints", i, "policy", "approvers", j)
                raise Conflict(at, f"policy.approvers names {name!r}, whom `people` does not have")

    def _check_people(self) -> None:
        """What tells one person from another must be of one person alone."""
        for field in ("name", "slack", "git", "token", "login"):
            seen: set[str] = set()
            for i, person in enumerate(self.people):
                value = getattr(person, field) if field != "login" else person.login or person.name
                text = value.get_secret_value() if isinstance(value, SecretStr) else value
                if text is None:
                    continue
                if text in seen or (field == "token" and self.web.token and self.web.token.get_secret_value() == text):
                    raise Conflict(("people", i, field), f"{field} of {person.name} is somebody else's too")
                seen.add(text)

    def identity(self, actor: str) -> str:
        """``slack:U0ADA`` or ``cli:ada`` as the person's name; whoever is not known stays what he is."""
        kind, _, who = actor.partition(":")
        for person in self.people:
            own = {"slack": person.slack, "git": person.git, "cli": person.login or person.name}
            if who and who == own.get(kind):
                return person.name
        return actor

    @property
    def slack_users(self) -> frozenset[str]:
        """Slack user ids that may press buttons."""
        named = {person.slack for person in self.people if person.slack is not None}
        return frozenset(named | set(self.slack.approvers if self.slack is not None else ()))

    def _check_reference(self, i: int, endpoint: EndpointSettings) -> None:
        at = ("endpoints", i, "reference")
        if endpoint.role == "reference":
            raise Conflict(at, f"{endpoint.name} is a reference itself, and is compared with none")
        standing = [e.name for e in self.endpoints if e.role == "reference"]
        if endpoint.reference not in standing:
            known = ", ".join(standing) or "there is none"
            raise Conflict(at, f"{endpoint.reference!r} is no endpoint with `role: reference` ({known})")

    def endpoint(self, name: str) -> EndpointSettings:
        """By name. Raises KeyError."""
        return next((e for e in self.endpoints if e.name == name), None) or _missing(name)


def _missing(name: str) -> EndpointSettings:
    raise KeyError(name)


#: Fields that hold secrets, as paths with * for any list index: the file may only refer to them.
SECRET_FIELDS = (
    ("email", "password"),
    ("endpoints", "*", "api_key"),
    ("endpoints", "*", "bill", "key"),
    ("people", "*", "token"),
    ("slack", "app_token"),
    ("slack", "bot_token"),
    ("slack", "webhook_url"),
    ("slack", "signing_secret"),
    ("slack", "previous_signing_secret"),
    ("web", "token"),
)
