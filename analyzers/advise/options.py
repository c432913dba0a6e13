"""The ways to put a model up, and under which conditions each is the one to take: the qualitative half of an advice, without a number.

The conditions are those of the guides that platforms give their users, each with its source: AI4OS, "Deployment options in AI4OS";
Azure AI Studio, "What model deployment should I use and why"; "Why do I need to deploy a model in Azure AI"; Microsoft Learn, "Deploy,
simulate, monitor, reflect, adjust"; "Model Deployment Architectures". What they leave open is left out, and not guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum


class DeploymentOption(StrEnum):
    PER_TOKEN = "pay-per-token"  # noqa: S105
    MODEL_SERVICE = "models-as-a-service"
    PROVISIONED = "provisioned"
    MANAGED = "managed-endpoint"
    BATCH = "batch"
    SERVERLESS = "serverless"
    DEDICATED = "dedicated"
    SELF_HOSTED = "self-hosted"
    DISTRIBUTED = "self-hosted-distributed"
    HYBRID = "hybrid"


_D = DeploymentOption
#: What each is, for a reader who knows none of them.
DESCRIPTIONS = {
    _D.PER_TOKEN: "the API of a model's provider, paid by the token",
    _D.MODEL_SERVICE: "a model of a cloud's catalogue behind an endpoint of one's own in that cloud, paid by the token",
    _D.PROVISIONED: "throughput of such a model that is bought by the hour",
    _D.MANAGED: "one's own model on a machine size that the cloud runs",
    _D.SERVERLESS: "a model that is loaded when a request comes, and goes when none does",
    _D.DEDICATED: "a model that is always loaded, on resources that a platform gives",
    _D.SELF_HOSTED: "an engine on one machine of one's own",
    _D.DISTRIBUTED: "an engine on several machines of one's own",
    _D.BATCH: "a set of requests that is worked off by a deadline",
    _D.HYBRID: "machines for the base load, an API by the token for what overflows",
}


class Condition(StrEnum):
    """What is wanted, or what the traffic is like."""

    LOW_LATENCY = "low-latency"
    BATCH = "batch"
    PRIVATE_DATA = "private-data"
    LATEST_MODEL = "latest-model"
    AVAILABILITY = "high-availability"
    THROUGHPUT = "high-throughput"
    CUSTOM_MODEL = "custom-model"
    NO_OPERATIONS = "no-operations"
    PROTOTYPE = "prototype"
    FIXED_COST = "fixed-cost"
    OWN_CLOUD = "own-cloud"
    OWN_ACCESS = "own-access"
    MIXED = "mixed-importance"
    TRANSITION = "transition"
    SPARSE = "spaced-out"
    MANY = "many-at-once"
    FEW = "few-at-once"
    PEAKS = "peaks"
    STEADY = "steady"
    LARGE = "large-scale"


_C = Condition
#: What is seen in traffic, and may be stated of one that is to come. The others are wanted.
TRAITS = frozenset((_C.SPARSE, _C.MANY, _C.FEW, _C.PEAKS, _C.STEADY, _C.LARGE))


class CriterionVerdict(StrEnum):
    FOR = "for"
    AGAINST = "against"
    EXCLUDES = "excludes"


@dataclass(frozen=True, slots=True)
class Criterion:
    """What one condition says of one option."""

    condition: Condition
    option: DeploymentOption
    verdict: CriterionVerdict
    why: str
    source: str
    of_cost: bool = False
    """About what it costs, so that prices answer it better."""


AI4OS, STUDIO, DEPLOY, LOOP, PATTERNS = (
    "AI4OS, deployment options",
    "Azure AI Studio, which deployment",
    "Azure AI, why deploy",
    "Microsoft Learn, deploy and monitor",
    "Model deployment architectures",
)
_PTU = "Microsoft Learn, provisioned throughput"
_IDLE = "it is paid for while nobody uses it"
_ALWAYS = "the model is always loaded"


def _rows() -> Iterable[tuple[Condition, DeploymentOption, str, str, str]]:
    plus, minus, never = "for", "against", "excludes"
    yield from (
        (_C.LOW_LATENCY, _D.DEDICATED, plus, _ALWAYS, AI4OS),
        (_C.LOW_LATENCY, _D.MANAGED, plus, _ALWAYS, AI4OS),
        (_C.LOW_LATENCY, _D.SELF_HOSTED, plus, _ALWAYS, AI4OS),
        (_C.LOW_LATENCY, _D.DISTRIBUTED, plus, _ALWAYS, AI4OS),
        (_C.LOW_LATENCY, _D.PROVISIONED, plus, "calls that are accepted have a steady latency", _PTU),
        (_C.LOW_LATENCY, _D.SERVERLESS, minus, "the model is loaded when a request comes", AI4OS),
        (_C.LOW_LATENCY, _D.BATCH, never, "answers come by a deadline, and not when they are asked for", AI4OS),
        (_C.BATCH, _D.BATCH, plus, "one-off predictions on a data set need no running service", AI4OS),
        (_C.BATCH, _D.SERVERLESS, plus, "asynchronous predictions on files in a bucket", AI4OS),
        (_C.BATCH, _D.DEDICATED, plus, "make the predictions on a GPU, and delete the deployment", AI4OS),
        (_C.PRIVATE_DATA, _D.PER_TOKEN, never, "data leaves your environment", PATTERNS),
        (_C.PRIVATE_DATA, _D.HYBRID, minus, "what overflows leaves your environment", PATTERNS),
        (_C.PRIVATE_DATA, _D.MODEL_SERVICE, minus, "traffic is isolated logically, and served on the provider's machines", DEPLOY),
        (_C.PRIVATE_DATA, _D.PROVISIONED, minus, "traffic is isolated logically, and served on the provider's machines", DEPLOY),
        (_C.PRIVATE_DATA, _D.SELF_HOSTED, plus, "complete data control", PATTERNS),
        (_C.PRIVATE_DATA, _D.DISTRIBUTED, plus, "complete data control", PATTERNS),
        (_C.LATEST_MODEL, _D.PER_TOKEN, plus, "always updated to the latest models", PATTERNS),
        (_C.LATEST_MODEL, _D.MODEL_SERVICE, plus, "the model and its version are chosen, and switched later", DEPLOY),
        (_C.LATEST_MODEL, _D.PROVISIONED, plus, "the model and its version are chosen, and switched later", DEPLOY),
        *((_C.LATEST_MODEL, o, minus, "open models alone can be hosted by oneself", PATTERNS) for o in (_D.SELF_HOSTED, _D.DISTRIBUTED)),
        (_C.AVAILABILITY, _D.DISTRIBUTED, plus, "high availability over several machines", PATTERNS),
        (_C.AVAILABILITY, _D.HYBRID, plus, "one side stands in for the other", PATTERNS),
        (_C.AVAILABILITY, _D.MODEL_SERVICE, plus, "the cloud sees to failover", DEPLOY),
        (_C.AVAILABILITY, _D.SELF_HOSTED, minus, "a single point of failure", PATTERNS),
        (_C.AVAILABILITY, _D.PER_TOKEN, minus, "it depends on the availability of a third party", PATTERNS),
        (_C.THROUGHPUT, _D.DISTRIBUTED, plus, "high throughput, with larger batches over several machines", PATTERNS),
        (_C.THROUGHPUT, _D.SELF_HOSTED, minus, "limited to what one machine carries", PATTERNS),
        (_C.CUSTOM_MODEL, _D.MANAGED, plus, "your own model, with more control and customization", STUDIO),
        (_C.CUSTOM_MODEL, _D.SELF_HOSTED, plus, "configuration and tuning are your own", PATTERNS),
        (_C.CUSTOM_MODEL, _D.DISTRIBUTED, plus, "configuration and tuning are your own", PATTERNS),
        (_C.CUSTOM_MODEL, _D.PER_TOKEN, never, "the provider's models alone; limited customization", PATTERNS),
        (_C.CUSTOM_MODEL, _D.MODEL_SERVICE, minus, "models of the catalogue", STUDIO),
        (_C.CUSTOM_MODEL, _D.PROVISIONED, minus, "models of the catalogue", STUDIO),
        (_C.NO_OPERATIONS, _D.PER_TOKEN, plus, "no infrastructure to manage", PATTERNS),
        (_C.NO_OPERATIONS, _D.MODEL_SERVICE, plus, "the cloud hosts, scales and maintains the model", DEPLOY),
        (_C.NO_OPERATIONS, _D.PROVISIONED, plus, "the cloud hosts and maintains the model", DEPLOY),
        (_C.NO_OPERATIONS, _D.SERVERLESS, plus, "no configuration needed", AI4OS),
        (_C.NO_OPERATIONS, _D.DEDICATED, plus, "no configuration needed", AI4OS),
        (_C.NO_OPERATIONS, _D.SELF_HOSTED, minus, "operating it requires expertise", PATTERNS),
        (_C.NO_OPERATIONS, _D.DISTRIBUTED, minus, "complex to set up and to maintain", PATTERNS),
        (_C.NO_OPERATIONS, _D.HYBRID, minus, "several integrations to maintain", PATTERNS),
        (_C.PROTOTYPE, _D.PER_TOKEN, plus, "quick to use", PATTERNS),
        (_C.PROTOTYPE, _D.MODEL_SERVICE, plus, "immediate access to models of the catalogue", STUDIO),
        (_C.PROTOTYPE, _D.DISTRIBUTED, minus, "complex to set up and to maintain", PATTERNS),
        (_C.FIXED_COST, _D.SELF_HOSTED, plus, "fixed infrastructure costs, no fees per token", PATTERNS),
        (_C.FIXED_COST, _D.PROVISIONED, plus, "bought by the hour, whatever is used", _PTU),
        (_C.FIXED_COST, _D.PER_TOKEN, minus, "costs vary with use", PATTERNS),
        (_C.FIXED_COST, _D.MODEL_SERVICE, minus, "costs vary with use", DEPLOY),
        (_C.OWN_CLOUD, _D.SELF_HOSTED, plus, "you control where it is deployed; no membership needed", AI4OS),
        (_C.OWN_CLOUD, _D.DISTRIBUTED, plus, "you control where it is deployed", AI4OS),
        (_C.OWN_CLOUD, _D.MANAGED, plus, "in your own cloud's subscription", STUDIO),
        (_C.OWN_CLOUD, _D.DEDICATED, minus, "the platform is for its members", AI4OS),
        (_C.OWN_CLOUD, _D.SERVERLESS, minus, "the platform is for its members", AI4OS),
        (_C.OWN_ACCESS, _D.MODEL_SERVICE, plus, "an endpoint, keys, quotas and logs of your own", DEPLOY),
        (_C.OWN_ACCESS, _D.PROVISIONED, plus, "an endpoint, keys and logs of your own", DEPLOY),
        (_C.OWN_ACCESS, _D.PER_TOKEN, minus, "the provider's endpoint, shared by all", DEPLOY),
        (_C.MIXED, _D.HYBRID, plus, "requests go by importance and complexity", PATTERNS),
        (_C.TRANSITION, _D.HYBRID, plus, "for those who move from one to the other", PATTERNS),
        (_C.SPARSE, _D.SERVERLESS, plus, "nothing is consumed while the model is not used", AI4OS),
        (_C.SPARSE, _D.PER_TOKEN, plus, "only the tokens that are used are paid for", STUDIO),
        (_C.SPARSE, _D.MODEL_SERVICE, plus, "a deployment that nobody calls costs nothing", DEPLOY),
        *((_C.SPARSE, o, minus, _IDLE, AI4OS) for o in (_D.DEDICATED, _D.MANAGED, _D.SELF_HOSTED, _D.DISTRIBUTED)),
        (_C.SPARSE, _D.PROVISIONED, minus, _IDLE, _PTU),
        (_C.MANY, _D.SERVERLESS, plus, "it scales by itself to fit peaks in queries", AI4OS),
        (_C.MANY, _D.DEDICATED, minus, "for few queries at once", AI4OS),
        (_C.FEW, _D.DEDICATED, plus, "few queries at once that are close in time", AI4OS),
        (_C.PEAKS, _D.PER_TOKEN, plus, "it scales by itself; for variable and unpredictable loads", PATTERNS),
        (_C.PEAKS, _D.SERVERLESS, plus, "it scales by itself to fit peaks in queries", AI4OS),
        (_C.PEAKS, _D.MODEL_SERVICE, plus, "the cloud balances the load", DEPLOY),
        (_C.PEAKS, _D.SELF_HOSTED, minus, "it may struggle with peaks", PATTERNS),
        (_C.STEADY, _D.SELF_HOSTED, plus, "for consistent, predictable loads", PATTERNS),
        (_C.STEADY, _D.PROVISIONED, plus, "for predictable loads", _PTU),
        (_C.LARGE, _D.DISTRIBUTED, plus, "for large-scale production", PATTERNS),
        (_C.LARGE, _D.SELF_HOSTED, minus, "limited to what one machine carries", PATTERNS),
        (_C.LARGE, _D.PER_TOKEN, minus, "higher variable costs at scale", PATTERNS),
    )  # fmt: skip


#: Of those that are about cost, prices say more.
_OF_COST = {(_C.LARGE, _D.PER_TOKEN)} | {(_C.SPARSE, o) for o in _D}

CRITERIA = tuple(
    Criterion(condition, option, CriterionVerdict(verdict), why, source, (condition, option) in _OF_COST)
    for condition, option, verdict, why, source in _rows()
)


@dataclass(frozen=True, slots=True)
class OptionScore:
    """What the conditions say of one option."""

    option: DeploymentOption
    criteria: tuple[Criterion, ...]

    @property
    def excluded(self) -> bool:
        return self._count(CriterionVerdict.EXCLUDES) > 0

    @property
    def against(self) -> int:
        """Conditions that speak against it, or exclude it."""
        return self._count(CriterionVerdict.AGAINST) + self._count(CriterionVerdict.EXCLUDES)

    @property
    def unmet(self) -> int:
        """Those of them that prices do not answer better."""
        return sum(c.verdict is not CriterionVerdict.FOR and not c.of_cost for c in self.criteria)

    @property
    def points(self) -> int:
        """How many more conditions speak for it than against it."""
        return self._count(CriterionVerdict.FOR) - self.against

    def _count(self, verdict: CriterionVerdict) -> int:
        return sum(c.verdict is verdict for c in self.criteria)


#: Of every question that does not ask for a batch.
_NO_BATCH = Criterion(
    Condition.BATCH,
    DeploymentOption.BATCH,
    CriterionVerdict.AGAINST,
    "answers come by a deadline: ask for batch where that does",
    AI4OS,
)


def score_of(option: DeploymentOption, conditions: Collection[Condition]) -> OptionScore:
    found = tuple(c for c in CRITERIA if c.option is option and c.condition in conditions)
    if option is DeploymentOption.BATCH and Condition.BATCH not in conditions:
        found = (_NO_BATCH, *found)
    return OptionScore(option, found)


def by_conditions(options: Iterable[DeploymentOption], conditions: Collection[Condition]) -> list[OptionScore]:
    """The best first: none that is excluded before one that is not, then by how much speaks for each. Equals keep their order."""
    return sorted((score_of(o, conditions) for o in options), key=lambda s: (s.excluded, -s.points, s.against))
