"""May this change be made? One pure function gives every rule with its verdict and its numbers, for every stage of a change.

It is asked when a change is proposed, approved, begun and before each of its operations, by `flyball deploy` and by `flyball tune`, and shown
wherever people decide. A stage heeds the rules of ``STAGES``; what is not known allows nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, time
from typing import Any, Literal
from zoneinfo import ZoneInfo

from actuators.shape import Need, Shape
from analyzers.policy import Catalogue, Policy, RuleVerdict, shape_rules

Stage = Literal["propose", "approve", "begin", "operation", "undo", "deploy", "tune", "step"]
Door = Literal["slack", "page", "cli", "git"]

DAY_S = 86_400.0
#: Who asks where Flyball itself does, and who approves where the policy does.
OWN, BY_POLICY = "flyball", "policy"

_SHAPE = (
    "REPLICAS",
    "AUTOSCALER",
    "MIN_REPLICAS",
    "MAX_REPLICAS",
    "STEP",
    "PURCHASE",
    "SIZE",
    "ENGINE",
    "BUDGET_MONTH",
    "BUDGET_HOUR",
)
_STANDING = ("FREEZE", "ONE_AT_A_TIME", "COOLDOWN", "FLEET_DAY")
_PLAN = ("EXPIRY", "PLAN", "POLICY", "OWNER", "QUOTA")
#: By stage: the rules that it heeds. The others are shown all the same.
STAGES: Mapping[Stage, frozenset[str]] = {
    "propose": frozenset((*_SHAPE, "FREEZE", "ONE_AT_A_TIME", "COOLDOWN")),
    "approve": frozenset((*_SHAPE, *_PLAN, "MODE", "FREEZE", "APPROVER", "FOUR_EYES", "DOOR")),
    "begin": frozenset((*_SHAPE, *_STANDING, *_PLAN, "MODE", "PAUSE", "LIVE", "CHANGE_WINDOW", "APPROVAL")),
    "operation": frozenset((*_SHAPE, "MODE", "PAUSE")),
    "undo": frozenset(("MODE", "PAUSE")),
    "deploy": frozenset((*_SHAPE, "MODE", "PAUSE", "ONE_AT_A_TIME")),
    "tune": frozenset(("MODE", "PAUSE", "ONE_AT_A_TIME", "FREEZE")),
    "step": frozenset((*_SHAPE, "MODE", "PAUSE", "ONE_AT_A_TIME", "FREEZE")),  # of a schedule, or of a tune
}


@dataclass(frozen=True, slots=True)
class ChangeHours:
    """When changes may begin, by the local clock."""

    days: frozenset[int]
    """0 is Monday. Of hours over midnight, the days on which they begin."""
    start: time
    end: time

    def hold(self, local: datetime) -> bool:
        at = local.time().replace(microsecond=0, tzinfo=None)
        if self.start <= self.end:
            return local.weekday() in self.days and self.start <= at <= self.end
        late = local.weekday() in self.days and at >= self.start
        return late or ((local.weekday() - 1) % 7 in self.days and at <= self.end)


@dataclass(frozen=True, slots=True)
class Guardrails:
    """What the settings say of the changes of one endpoint."""

    mode: Literal["observe", "approve", "auto"]
    policy: Policy
    catalogue: Catalogue
    cooldown_s: float
    hours: Sequence[ChangeHours]
    timezone: str
    auto: frozenset[str]
    """Directions that need no person in the mode ``auto``."""
    approvers: frozenset[str]
    """Who may decide. Empty: whoever comes through a door."""
    quorum: int
    four_eyes: bool
    """Whether who asked for a change may not approve it."""
    fleet_changes_per_day: int

    @property
    def hash(self) -> str:
        """``sha256:`` and the digest of all but the prices: an approval is given under this policy and no other."""
        told = asdict(self.policy) | {
            name: getattr(self, name)
            for name in ("mode", "cooldown_s", "timezone", "quorum", "four_eyes", "fleet_changes_per_day")
        }
        told |= {"auto": sorted(self.auto), "approvers": sorted(self.approvers)}
        told["hours"] = [[sorted(h.days), str(h.start), str(h.end)] for h in self.hours]
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), default=list)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeCase:
    """One change at one moment: all that the rules look at. Times in Unix seconds. None: not known, unless it is said otherwise."""

    before: Shape
    after: Shape
    now: float
    requested_by: str
    paused: str | None
    """By whom and why; None: it is not."""
    frozen: str | None
    """Why; None: it is not."""
    under_way: str | None
    """What else changes the endpoint; None: nothing does."""
    last_change_at: float | None
    """None: never."""
    fleet_changes: int
    """Begun in the last day, over all endpoints."""
    plan: PlanFacts | None = None
    """None: there is no plan yet, or a person at the keyboard has just seen it."""
    approver: str | None = None
    """Who wants to approve it at this moment. None: nobody does."""
    door: Door | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """A plan that was shown to people, and what was said of it."""

    hash: str
    shown_hash: str
    """Of the plan that people were shown."""
    version: str
    live_version: str | None
    """What the endpoint is now. None: its system does not tell."""
    expires_at: float
    policy_hash: str
    """Under which it was proposed."""
    needs: Sequence[Need]
    by_hand: bool
    by_merge: bool
    """Whether it is approved by the merge of its branch, and at no other door."""
    direction: str
    risk: str
    approvers: frozenset[str]
    """Who has approved it: each counts once."""


def rule_verdicts(case: ChangeCase, rails: Guardrails) -> tuple[RuleVerdict, ...]:
    """Every rule, in the order in which people want to hear of them."""
    found = [*_standing_rules(case, rails), *shape_rules(case.after, case.before, rails.policy, rails.catalogue)]
    if case.plan is not None:
        found += _plan_rules(case, case.plan, rails)
    if case.approver is not None:
        found += _approver_rules(case, case.approver, rails)
    if case.door is not None:
        shut = _shut(case.plan, case.door)
        found.append(RuleVerdict.of("DOOR", shut is None, f"it may be approved at this door ({case.door})", shut or ""))
    return tuple(found)


def _shut(plan: PlanFacts | None, door: Door) -> str | None:
    """Why it cannot be approved at this door; None: it can."""
    if plan is None:
        return None
    if plan.by_merge and door != "git":
        return "it is a branch of its repository: the merge of that approves it"
    if not plan.by_merge and door == "git":
        return "it is no branch of a repository"
    if plan.risk == "high" and door == "slack":
        return "its risk is high: approve it on the page or at the command line"
    return None


def obstacle(verdicts: Sequence[RuleVerdict], stage: Stage) -> RuleVerdict | None:
    """What stands against going on at this stage: a rule that forbids it before one that makes it wait. None: nothing does."""
    heeded = [v for v in verdicts if v.rule in STAGES[stage]]
    return next((v for word in ("no", "wait") for v in heeded if v.verdict == word), None)


def forbidden(verdicts: Sequence[RuleVerdict], stage: Stage) -> str | None:
    """All that forbids it at this stage, as one sentence; None: nothing does, though it may have to wait."""
    broken = [v.text for v in verdicts if v.rule in STAGES[stage] and v.verdict == "no"]
    return "; ".join(broken) or None


def _standing_rules(case: ChangeCase, rails: Guardrails) -> Iterator[RuleVerdict]:
    own = case.requested_by == OWN
    yield RuleVerdict.of(
        "MODE", rails.mode != "observe", f"its mode is {rails.mode}", "its mode is observe: nothing is sent to it"
    )
    yield _waits("PAUSE", case.paused is None, "nothing is paused", f"paused: {case.paused}")
    if case.frozen is None or own:
        yield RuleVerdict.of("FREEZE", case.frozen is None, "it is not frozen", f"frozen: {case.frozen}")
    else:
        yield RuleVerdict("FREEZE", "yes", f"frozen ({case.frozen}), but a person asked for it", {})
    yield _waits("ONE_AT_A_TIME", case.under_way is None, "nothing else changes it", f"{case.under_way} is under way")
    yield _cooldown(case, rails, own=own)
    count, most = case.fleet_changes, rails.fleet_changes_per_day
    text = f"{count} changes in the last day over all endpoints; at most {most}"
    numbers = {"changes": float(count), "most": float(most)}
    yield RuleVerdict("FLEET_DAY", "yes" if count < most or not own else "wait", text, numbers)
    yield _change_window(case, rails)


def _cooldown(case: ChangeCase, rails: Guardrails, *, own: bool) -> RuleVerdict:
    if case.last_change_at is None:
        return RuleVerdict("COOLDOWN", "yes", "it was never changed", {"cooldown_s": rails.cooldown_s})
    left = case.last_change_at + rails.cooldown_s - case.now
    numbers = {"cooldown_s": rails.cooldown_s, "left_s": max(0.0, left)}
    if left <= 0:
        return RuleVerdict("COOLDOWN", "yes", "it has cooled down since the last change", numbers)
    text = f"cooling down after the last change: {left:.0f} s more"
    return RuleVerdict(
        "COOLDOWN", "wait" if own else "yes", text if own else f"{text}, but a person asked for it", numbers
    )


def may_begin(hours: Sequence[ChangeHours], now: float, timezone: str) -> bool:
    """Whether a change may begin at this moment. Without any hours it may at any time."""
    local = datetime.fromtimestamp(now, ZoneInfo(timezone))
    return not hours or any(each.hold(local) for each in hours)


def _change_window(case: ChangeCase, rails: Guardrails) -> RuleVerdict:
    if not rails.hours:
        return RuleVerdict("CHANGE_WINDOW", "yes", "changes may begin at any time", {})
    local = datetime.fromtimestamp(case.now, ZoneInfo(rails.timezone))
    inside = may_begin(rails.hours, case.now, rails.timezone)
    at = f"{local:%a %H:%M} {rails.timezone}"
    return _waits("CHANGE_WINDOW", inside, f"{at} is inside the change windows", f"{at} is outside the change windows")


def _plan_rules(case: ChangeCase, plan: PlanFacts, rails: Guardrails) -> Iterator[RuleVerdict]:
    left = plan.expires_at - case.now
    yield RuleVerdict.of(
        "EXPIRY", left > 0, f"it can be approved and begun for {left:.0f} s more", "it has expired", left_s=left
    )
    shown = plan.hash == plan.shown_hash
    yield RuleVerdict.of("PLAN", shown, "the plan is the one that was shown", "the plan is not the one that was shown")
    same = plan.policy_hash == rails.hash
    yield RuleVerdict.of(
        "POLICY",
        same,
        "the policy is the one that it was proposed under",
        "the policy was changed since it was proposed",
    )
    if plan.live_version is None:
        yield RuleVerdict("LIVE", "wait", "its system does not tell what is there now", {})
    else:
        there = plan.live_version == plan.version
        moved = "somebody changed the endpoint since the plan was made"
        yield RuleVerdict.of("LIVE", there, "the endpoint is what the plan was made for", moved)
    yield RuleVerdict.of(
        "OWNER",
        not plan.by_hand,
        "nobody else owns what it would change",
        "somebody else owns what it would change: apply the patch of its plan by hand",
    )
    yield _quota(plan)
    yield _approval(plan, rails)


def _quota(plan: PlanFacts) -> RuleVerdict:
    if not plan.needs:
        return RuleVerdict("QUOTA", "yes", "it needs no quota", {})
    lacking = [n for n in plan.needs if n.met is False]
    unknown = [n for n in plan.needs if n.met is None]
    numbers = {f"{n.what} wanted": n.wanted for n in plan.needs}
    numbers |= {f"{n.what} free": n.free for n in plan.needs if n.free is not None}
    if lacking:
        text = ", ".join(f"{n.wanted:g} of {n.what}, {n.free:g} free" for n in lacking)
        return RuleVerdict("QUOTA", "no", f"it needs {text}", numbers)
    if unknown:
        text = ", ".join(f"{n.wanted:g} of {n.what}" for n in unknown)
        return RuleVerdict("QUOTA", "yes", f"it needs {text}; what is free is asked for right before the step", numbers)
    return RuleVerdict("QUOTA", "yes", "its system has what it needs", numbers)


def _approval(plan: PlanFacts, rails: Guardrails) -> RuleVerdict:
    if BY_POLICY in plan.approvers:
        allowed = auto_approves(rails, plan.direction, plan.risk, plan.needs)
        forbids = f"the policy no longer allows it by itself ({rails.mode}, {plan.direction}, risk {plan.risk})"
        return RuleVerdict.of("APPROVAL", allowed, f"the policy allows {plan.direction} by itself", forbids)
    count = len(plan.approvers)
    text = f"{count} of {rails.quorum} {'approval' if rails.quorum == 1 else 'approvals'}"
    numbers = {"approvals": float(count), "quorum": float(rails.quorum)}
    return RuleVerdict("APPROVAL", "yes" if count >= rails.quorum else "wait", text, numbers)


def _approver_rules(case: ChangeCase, approver: str, rails: Guardrails) -> Iterator[RuleVerdict]:
    known = not rails.approvers or approver in rails.approvers
    yield RuleVerdict.of(
        "APPROVER", known, f"{approver} may decide", f"{approver} is not among the approvers of this endpoint"
    )
    own = rails.four_eyes and approver == case.requested_by
    yield RuleVerdict.of(
        "FOUR_EYES", not own, f"{approver} did not ask for it", "whoever asked for it may not approve it"
    )


def auto_approves(rails: Guardrails, direction: str, risk: str, needs: Sequence[Need]) -> bool:
    """Whether the policy lets it through without a person."""
    return rails.mode == "auto" and direction in rails.auto and risk != "high" and all(n.met is not None for n in needs)


def _waits(rule: str, kept: bool, yes: str, wait: str) -> RuleVerdict:
    return RuleVerdict.of(rule, kept, yes, wait, word="wait")


def as_dicts(verdicts: Sequence[RuleVerdict]) -> list[dict[str, Any]]:
    """For people and programs."""
    return [{"rule": v.rule, "verdict": v.verdict, "text": v.text, "numbers": dict(v.numbers)} for v in verdicts]
