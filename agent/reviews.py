"""Plans that are reviewed in a repository: shown there as branches, and decided by what becomes of those.

A merge is an approval like any other: it goes through ``ApprovalService``, for the plan's hash that the merged commit names, by whoever
merged it. What is merged and cannot be approved (too late, by nobody who may) is no change of Flyball's: it is noted, and void.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from actuators.base import ActuatorError, Review, ReviewedActuator
from actuators.shape import Plan
from agent.approvals import ApprovalService
from agent.execution import in_time
from agent.metrics import Metrics
from agent.store import Store, control, recommendations
from agent.store.control import Lead
from agent.watch import WatchedEndpoint
from analyzers.words import dollars, figure, heading
from collectors.clock import Clock

log = structlog.get_logger()

#: States in which a plan's branch stays.
_STAYS = (*recommendations.OPEN, "approved", "applying")


class Reviewer:
    """One look at all repositories a cycle. One endpoint's trouble is counted, and stays its own."""

    def __init__(
        self,
        watched: Mapping[str, WatchedEndpoint],
        store: Store,
        approvals: ApprovalService,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._reviewed = {
            name: (endpoint, endpoint.actuator)
            for name, endpoint in watched.items()
            if isinstance(endpoint.actuator, ReviewedActuator) and endpoint.settings.mode != "observe"
        }
        self._store = store
        self._approvals = approvals
        self._clock = clock
        self._metrics = metrics

    @property
    def wanted(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._reviewed)

    async def cycle(self, lead: Lead) -> None:
        """Raises LostLease."""
        await asyncio.gather(*(self._endpoint(name, actuator, lead) for name, (_, actuator) in self._reviewed.items()))

    async def _endpoint(self, name: str, actuator: ReviewedActuator, lead: Lead) -> None:
        rows, paused = await asyncio.to_thread(self._rows, name)
        try:
            for row in rows:
                if row["state"] in recommendations.OPEN and row["plan"]:
                    plan = Plan.from_dict(row["plan"])
                    if plan.by_merge:
                        await self._one(row, plan, actuator, lead, paused=paused)
            if not paused:
                rows, _ = await asyncio.to_thread(self._rows, name)
                await in_time(actuator.withdraw([row["plan_hash"] for row in rows]))
        except ActuatorError as error:
            self._metrics.change_errors.labels(name, error.code).inc()
            log.warning("review_failed", endpoint=name, error=str(error))

    def _rows(self, name: str) -> tuple[list[recommendations.Row], bool]:
        with self._store.read() as db:
            return recommendations.listed(db, endpoint=name, states=_STAYS), control.paused(db) is not None

    async def _one(
        self, row: recommendations.Row, plan: Plan, actuator: ReviewedActuator, lead: Lead, *, paused: bool
    ) -> None:
        review, known = await in_time(actuator.review(plan)), await asyncio.to_thread(self._offered, row)
        if review.state == "merged":
            await asyncio.to_thread(self._merged, row, plan, review, lead)
        elif review.state == "open":
            if known != "shown":
                await asyncio.to_thread(self._note, row, "shown", lead)
        elif known == "shown":
            await asyncio.to_thread(self._gone, row, plan, lead)
        elif known is None and not paused:
            offered = await in_time(actuator.offer(plan, *told(row, plan)))
            await asyncio.to_thread(self._note, row, "shown", lead)
            log.info("plan_offered", endpoint=row["endpoint"], id=row["id"], where=offered.where)

    def _merged(self, row: recommendations.Row, plan: Plan, review: Review, lead: Lead) -> None:
        actor = f"git:{review.by}"
        ruling = self._approvals.decide(row["id"], action="approve", actor=actor, channel="git", plan_hash=plan.hash)
        if not ruling.accepted:
            self._void(row, f"merged by {review.by}, and not approved: {ruling.text}", lead)

    def _gone(self, row: recommendations.Row, plan: Plan, lead: Lead) -> None:
        """Somebody took the branch away: that is a no. Where only some may decide, nobody knows who it was: then it stays undecided, and is
        not shown again."""
        self._approvals.decide(row["id"], action="reject", actor="git:unknown", channel="git", plan_hash=plan.hash)
        self._note(row, "gone", lead)

    def _void(self, row: recommendations.Row, reason: str, lead: Lead) -> None:
        log.warning("review_void", endpoint=row["endpoint"], id=row["id"], why=reason)
        with control.leading(self._store, lead) as db:
            recommendations.move(
                db,
                row["id"],
                from_states=recommendations.OPEN,
                to="superseded",
                now=self._clock.now(),
                by="flyball",
                reason=reason,
            )

    def _offered(self, row: recommendations.Row) -> str | None:
        """``shown`` or ``gone``; None: it was not shown yet."""
        with self._store.read() as db:
            known = control.get(db, _key(row))
        return None if known is None else str(known["value"]["state"])

    def _note(self, row: recommendations.Row, state: str, lead: Lead) -> None:
        with control.leading(self._store, lead) as db:
            control.put(db, _key(row), {"state": state}, self._clock.now(), "flyball")


def _key(row: recommendations.Row) -> str:
    return f"offer/{row['id']}/{row['plan_hash']}"


def told(row: recommendations.Row, plan: Plan) -> tuple[str, str]:
    """The title of a branch, and its text: why, what is promised, what it costs, and how it goes on."""
    body = row["body"]
    title = f"{row['endpoint']}: {plan.before.label()} to {plan.after.label()}"
    saving = row["saving_per_month"]
    lines = [
        "Proposed by Flyball. Merging this branch approves the plan, for just the hash that is named below; closing it, or taking the branch",
        "away, rejects it. Flyball never merges.",
        "",
        "Why:",
        *(f"- {reason['text']}" for reason in body["reasons"]),
        "",
        f"Risk: {body['risk']}" + (f" ({'; '.join(body['risk_reasons'])})" if body["risk_reasons"] else ""),
        "Money: not known"
        if saving is None
        else f"Money: {dollars(abs(saving))} a month {'less' if saving >= 0 else 'more'}",
        *_promised(body["proposed"].get("prediction")),
        "",
        f"Way back: {plan.way_back}.",
        f"Recommendation {row['id']}.",
    ]
    return title, "\n".join(lines)


def _promised(prediction: Mapping[str, Mapping[str, Mapping[str, float]]] | None) -> Sequence[str]:
    if prediction is None:
        return ["Promised: nothing could be predicted"]
    return [
        f"Promised: {heading(name)} {figure(name, interval['low'])} to {figure(name, interval['high'])}"
        for name, interval in sorted(prediction["metrics"].items())
    ]
