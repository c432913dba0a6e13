"""A model deployment's shape, and plans for it: its capacity in place; another sku or version, which is a second deployment, as a patch.

Pure. Azure sends no share of the traffic from one deployment to another: callers name the one that they want. And provisioned throughput is
paid for from its creation. So a second deployment is nothing that Flyball makes before somebody sends callers there: the plan says how, and
where a LiteLLM proxy stands before both, its weights are that proxy's own endpoint (system ``litellm``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actuators.arm import digest
from actuators.base import CannotPlan
from actuators.shape import EngineValue, Need, Operation, Plan, Purchase, Shape
from collectors.azure.accounts import ModelAccount, ModelOffer, TokenRates

Body = Mapping[str, Any]

#: Of a standard deployment, what one unit of ``sku.capacity`` is, where its limits do not say it.
_TOKENS_PER_UNIT = 1000
#: Fields of a Shape that a model deployment does not have.
_FIXED = (
    "replicas",
    "size",
    "accelerator",
    "accelerator_count",
    "cpus",
    "memory_gb",
    "autoscaling",
    "schedule",
    "region",
)
#: What the service alone writes.
_READ_ONLY = ("provisioningState", "rateLimits", "callRateLimit", "capabilities", "currentCapacity", "capacitySettings")


@dataclass(frozen=True, slots=True)
class CapacityRoom:
    """What Azure says of a model in a sku, and has free of it."""

    offer: ModelOffer | None
    """None: not offered, or it may not be read."""
    quota: float | None
    """Free units of the subscription's quota. None: not told."""
    available: float | None
    """Free units of Azure's own. None: not told."""

    def needs(self, more: float, what: str) -> tuple[Need, ...]:
        """``more`` units of capacity."""
        if more <= 0:
            return ()
        name = self.offer.usage if self.offer is not None and self.offer.usage else what
        found = [Need(f"quota {name}", more, self.quota)]
        if self.available is not None:
            found.append(Need(f"Azure's capacity of {what}", more, self.available))
        return tuple(found)


def unit_of(sku: str) -> Literal["ptu", "tokens_per_minute"]:
    """What a sku is bought in."""
    return "ptu" if "provisioned" in sku.lower() else "tokens_per_minute"


def sku_of(deployment: Body) -> str:
    return str((deployment.get("sku") or {}).get("name", ""))


def capacity_of(deployment: Body) -> int | None:
    capacity = (deployment.get("sku") or {}).get("capacity")
    return capacity if isinstance(capacity, int) and not isinstance(capacity, bool) else None


def properties_of(deployment: Body) -> Body:
    return deployment.get("properties") or {}


def model_of(deployment: Body) -> Body:
    return properties_of(deployment).get("model") or {}


def shape_of(account: ModelAccount, deployment: Body, rates: TokenRates | None = None) -> Shape:
    """rates: what Azure's calculator says of provisioned throughput."""
    sku, capacity = sku_of(deployment), capacity_of(deployment)
    engine: dict[str, EngineValue] = {}
    if unit_of(sku) == "ptu":
        amount = capacity
        if rates is not None:
            engine |= {
                "input_tokens_per_minute_per_ptu": round(rates.per_unit),
                "output_weight": round(rates.weight, 2),
            }
        spillover = properties_of(deployment).get("spilloverDeploymentName")
        engine |= {"spillover": spillover} if isinstance(spillover, str) and spillover else {}
    else:
        amount = None if capacity is None else capacity * tokens_per_unit(deployment)
        tokens, requests = (_per_minute(deployment, key) for key in ("token", "request"))
        if tokens and requests:
            engine["requests_per_1k_tokens"] = 1000.0 * requests / tokens
    model = model_of(deployment)
    return Shape(
        purchase=None if amount is None else Purchase(amount, unit_of(sku)),
        tier=sku or None,
        region=account.region or None,
        engine=engine,
        extra={
            name: str(model[key]) for name, key in (("model", "name"), ("model_version", "version")) if model.get(key)
        },
    )


def tokens_per_unit(deployment: Body) -> int:
    """Tokens a minute of one unit of its capacity, as its limits have it."""
    capacity, tokens = capacity_of(deployment), _per_minute(deployment, "token")
    if not capacity or not tokens or tokens % capacity:
        return _TOKENS_PER_UNIT
    return round(tokens / capacity)


def version_of(deployment: Body) -> str:
    """Of what is configured, and of when that was written last: the same capacity once more is another version."""
    stated = {k: v for k, v in properties_of(deployment).items() if k not in _READ_ONLY}
    stated["model"] = {k: v for k, v in model_of(deployment).items() if k != "callRateLimit"}
    sku = {k: v for k, v in (deployment.get("sku") or {}).items() if k in ("name", "capacity")}
    at = (deployment.get("systemData") or {}).get("lastModifiedAt")
    return digest({"sku": sku, "properties": stated, "at": at})


def plan(
    endpoint: str,
    account: ModelAccount,
    deployment: Body,
    live: Shape,
    wanted: Shape,
    room: CapacityRoom,
    deadline_s: float,
) -> Plan:
    """From what is there to ``wanted``. ``room`` is of the sku and the model that are wanted. Raises CannotPlan."""
    _check(live, wanted)
    assert wanted.purchase is not None  # what _check found
    if (wanted.purchase, wanted.tier, wanted.extra) == (live.purchase, live.tier, live.extra):
        return _made(endpoint, account, deployment, live, wanted, (), "nothing is done")
    if (wanted.tier, wanted.extra) != (live.tier, live.extra):
        return _second(endpoint, account, deployment, live, wanted, room)
    before, after = capacity_of(deployment), _units(wanted.purchase, deployment)
    assert before is not None
    _check_offer(room, after, wanted)
    step = capacity_step(str(deployment.get("name")), sku_of(deployment), before, after, deadline_s)
    return _made(
        endpoint,
        account,
        deployment,
        live,
        wanted,
        (step,),
        f"the capacity is set back to {before}",
        needs=room.needs(
            after - before, f"{sku_of(deployment)} {model_of(deployment).get('name')} in {account.region}"
        ),
    )


def capacity_step(name: str, sku: str, before: int, after: int, deadline_s: float) -> Operation:
    args = {"deployment": name, "sku": sku, "from": before, "capacity": after}
    return Operation("capacity", args, deadline_s, f"{name}: {sku} capacity {before} becomes {after}")


def _check(live: Shape, wanted: Shape) -> None:
    fixed = [name for name in _FIXED if getattr(wanted, name) != getattr(live, name)]
    fixed += [name for name, value in live.engine.items() if wanted.engine.get(name) != value]
    if fixed:
        raise CannotPlan("UNSUPPORTED_CHANGE", f"a model deployment has no {', '.join(fixed)} to change here")
    if live.purchase is None:
        raise CannotPlan("INCOMPLETE_SHAPE", "Azure does not tell the deployment's capacity, so nothing is changed")
    if wanted.purchase is None or not wanted.tier:
        raise CannotPlan("INCOMPLETE_SHAPE", "say how much is bought (purchase), and of which sku (tier)")
    if wanted.purchase.unit != unit_of(wanted.tier):
        text = f"{wanted.tier} is bought in {unit_of(wanted.tier)}, not {wanted.purchase.unit}: name a sku (tier) of that kind, too"
        raise CannotPlan("INCOMPLETE_SHAPE", text)
    if set(wanted.extra) - set(live.extra):
        raise CannotPlan(
            "UNSUPPORTED_CHANGE", f"a model deployment has no {', '.join(set(wanted.extra) - set(live.extra))}"
        )


def _units(bought: Purchase, deployment: Body) -> int:
    """Of ``sku.capacity``. Raises CannotPlan."""
    if bought.unit == "ptu":
        return bought.amount
    each = tokens_per_unit(deployment)
    if bought.amount % each or bought.amount < each:
        text = f"{bought.amount} tokens a minute is no whole number of units of {each:,}"
        raise CannotPlan("INVALID_AMOUNT", text)
    return bought.amount // each


def _check_offer(room: CapacityRoom, capacity: int, wanted: Shape) -> None:
    refusal = room.offer.refusal(capacity) if room.offer is not None else None
    if refusal is not None:
        raise CannotPlan("INVALID_AMOUNT", f"{wanted.tier} capacity {capacity}: {refusal}")


def _second(
    endpoint: str, account: ModelAccount, deployment: Body, live: Shape, wanted: Shape, room: CapacityRoom
) -> Plan:
    """Another sku or version: what to create, where to send callers, what to delete."""
    assert wanted.purchase is not None
    sku = str(wanted.tier)
    if room.offer is None:
        model = f"{wanted.extra.get('model')} {wanted.extra.get('model_version')}"
        text = f"{account.path.rpartition('/')[2]} is not known to be offered {model} as {sku}"
        raise CannotPlan("NOT_OFFERED", text)
    capacity = _units(wanted.purchase, deployment if unit_of(sku) == unit_of(sku_of(deployment)) else {})
    _check_offer(room, capacity, wanted)
    group, name = account.path.split("/")[4], account.path.rpartition("/")[2]
    old, told = str(deployment.get("name")), model_of(deployment)
    new = next(n for i in itertools.count(2) if account.deployment(n := f"{old}-{i}") is None)
    paid = " It is paid for by the hour from its creation on." if unit_of(sku) == "ptu" else ""
    text = (
        f"A sku or a version is not changed in place: make a second deployment, send callers there, then delete {old}.\n\n"
        f"    az cognitiveservices account deployment create -g {group} -n {name} --deployment-name {new} \\\n"
        f"      --model-format {told.get('format')} --model-name {wanted.extra.get('model')} "
        f"--model-version {wanted.extra.get('model_version')} \\\n"
        f"      --sku-name {sku} --sku-capacity {capacity}\n\n"
        f"Callers name the deployment that they want: change `{old}` to `{new}` there, or move the weights of a proxy before "
        f"both (an endpoint of the system litellm, which Flyball can move and verify).{paid} "
        f"Then name `{new}` as this endpoint's resource. When it holds:\n\n"
        f"    az cognitiveservices account deployment delete -g {group} -n {name} --deployment-name {old}\n"
    )
    needs = room.needs(float(capacity), f"{sku} {told.get('name')} in {account.region}")
    return _made(
        endpoint, account, deployment, live, wanted, (), f"callers go back to {old}", needs=needs, by_hand=text
    )


def _per_minute(deployment: Body, key: str) -> float | None:
    """Of its effective limits, as the service tells them."""
    for rule in properties_of(deployment).get("rateLimits") or ():
        count, period = rule.get("count"), rule.get("renewalPeriod")
        if rule.get("key") == key and isinstance(count, int | float) and isinstance(period, int | float) and period > 0:
            return 60.0 * count / period
    return None


def _made(
    endpoint: str,
    account: ModelAccount,
    deployment: Body,
    before: Shape,
    after: Shape,
    operations: tuple[Operation, ...],
    way_back: str,
    *,
    needs: tuple[Need, ...] = (),
    by_hand: str | None = None,
) -> Plan:
    return Plan(
        endpoint=endpoint,
        system="azure-openai",
        before=before,
        after=after,
        version=version_of(deployment),
        operations=operations,
        restarts=False,
        downtime_s=0.0,
        way_back=way_back,
        locks=(f"azure-openai:{account.path.lower()}",) if operations else (),
        needs=needs,
        by_hand=by_hand,
    )
