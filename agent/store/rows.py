"""The rows as they leave the store, so that a wrong name or a forgotten None is found before it runs. ``schema`` has the tables; a test holds
the two together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict, TypeVar, cast

import sqlalchemy as sa

Json = dict[str, Any]


class EndpointRow(TypedDict):
    endpoint: str
    shape: Json
    shape_version: str
    ready: bool
    detail: str
    serving: int | None
    owner: Json | None
    seen_at: float
    price_per_hour: float | None
    frozen_because: str | None
    frozen_at: float | None
    last_change_at: float | None
    decision: Json | None
    schedule: Json | None
    comparison: Json | None
    comparison_lacks: str | None


class SourceRow(TypedDict):
    endpoint: str
    source: str
    last_ok_at: float | None
    last_error_at: float | None
    last_error: str | None
    failures: int
    failures_in_a_row: int
    next_try_at: float | None


class FindingRow(TypedDict):
    key: str
    endpoint: str
    kind: str
    severity: str
    code: str
    body: Json
    first_seen_at: float
    last_seen_at: float
    active: bool


class MuteRow(TypedDict):
    endpoint: str
    code: str
    until: float | None
    reason: str
    at: float
    by: str


class FlightRow(TypedDict):
    id: int
    endpoint: str
    identity: str
    side: str
    arrived_at: float
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    ttft_s: float | None
    e2e_s: float | None
    queue_s: float | None
    error: str | None
    tenant: str | None
    blocks: bytes
    blocks_whole: float | None


class EventRow(TypedDict):
    id: int
    endpoint: str
    at: float
    kind: str
    text: str
    body: Json


class CalibrationRow(TypedDict):
    id: int
    endpoint: str
    key: str
    fitted_at: float
    body: Json


class RecommendationRow(TypedDict):
    id: str
    endpoint: str
    fingerprint: str
    revision: int
    state: str
    state_reason: str
    state_by: str
    requested_by: str
    plan_hash: str
    plan: Json
    body: Json
    saving_per_month: float | None
    created_at: float
    refreshed_at: float
    expires_at: float
    snoozed_until: float | None
    decided_at: float | None
    policy_hash: str


class ApprovalRow(TypedDict):
    id: int
    recommendation_id: str
    action: str
    actor: str
    channel: str
    plan_hash: str
    revision: int
    policy_hash: str
    accepted: bool
    reason: str
    at: float


class TokenRow(TypedDict):
    digest: str
    recommendation_id: str
    revision: int
    plan_hash: str
    policy_hash: str
    action: str
    expires_at: float
    used_at: float | None


class ChangeRow(TypedDict):
    id: str
    recommendation_id: str
    endpoint: str
    state: str
    state_reason: str
    purpose: str
    since: float | None
    approved_by: str
    plan_hash: str
    plan: Json
    rollback_plan: Json | None
    prediction: Json | None
    epoch: int
    created_at: float
    applied_at: float | None
    judged_from: float | None
    finished_at: float | None
    rollback_requested: bool
    outcome: Json | None


class JournalRow(TypedDict):
    id: int
    change_id: str
    direction: str
    step: int
    token: str
    operation: Json
    state: str
    detail: str
    epoch: int
    intent_at: float
    started_at: float | None
    ask_at: float | None
    done_at: float | None
    receipt: Json | None


class LedgerRow(TypedDict):
    id: int
    change_id: str
    endpoint: str
    metric: str
    method: str
    low: float | None
    predicted: float | None
    high: float | None
    before: float | None
    observed: float | None
    observed_low: float | None
    observed_high: float | None
    inside: bool | None
    error: float | None
    comparable: bool
    at: float


class MessageRow(TypedDict):
    id: int
    channel: str
    kind: str
    subject: str
    revision: int
    state: str
    attempts: int
    error: str | None
    created_at: float
    next_try_at: float
    sent_at: float | None
    message_channel: str | None
    """With ``message_ts`` where it stands, where its channel told."""
    message_ts: str | None


class TuneRow(TypedDict):
    id: str
    endpoint: str
    state: str
    question: Json
    digest: str
    original: Json | None
    started_by: str
    started_at: float
    ended_at: float | None
    result: Json | None


class TrialRow(TypedDict):
    id: int
    tune_id: str
    number: int
    name: str
    shape: Json
    state: str
    why: str
    body: Json
    limit_low: float | None
    limit_high: float | None
    cost_per_1k_output_tokens_usd: float | None
    busy_s: float | None
    spent_usd: float | None
    started_at: float | None
    ended_at: float | None


class PriceRow(TypedDict):
    id: int
    subject: str
    per: str
    usd: float
    source: str
    since: float


class BillRow(TypedDict):
    endpoint: str
    day: float
    vendor: str
    usd: float
    read_at: float


class SavingRow(TypedDict):
    id: int
    endpoint: str
    change_id: str
    period_start: float
    period_end: float
    spent_usd: float | None
    would_cost_usd: float | None
    saved_low_usd: float | None
    saved_usd: float | None
    saved_high_usd: float | None
    missed_s: float | None
    would_miss_s: float | None
    body: str
    attested_at: float
    previous: str
    hash: str


class ReportRow(TypedDict):
    id: int
    period_start: float
    period_end: float
    made_at: float
    path: str
    summary: Json


class LeaseRow(TypedDict):
    name: str
    holder: str
    epoch: int
    expires_at: float


class ControlRow(TypedDict):
    key: str
    value: Any
    at: float
    by: str


class AuditRow(TypedDict):
    id: int
    at: float
    actor: str
    action: str
    subject: str
    body: str
    previous: str
    hash: str


R = TypeVar("R")


def every(kind: type[R], found: Iterable[sa.RowMapping]) -> list[R]:  # noqa: ARG001
    """Rows of this kind. What it says of their columns is held to ``schema`` by a test, and not looked at again here."""
    return [cast("R", dict(row)) for row in found]


def one(kind: type[R], found: sa.RowMapping | None) -> R | None:  # noqa: ARG001
    """One row of this kind, or none."""
    return None if found is None else cast("R", dict(found))
