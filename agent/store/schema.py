"""The tables. Times are Unix seconds in floats, money is US dollars; unknown is NULL."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _real(name: str, *, nullable: bool = True) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _serial() -> sa.Column[int]:
    return sa.Column("id", _Id, primary_key=True, autoincrement=True)


#: Plain columns for a person's own SQL; ``sketches`` is what they are made from and what merges.
windows = sa.Table(
    "windows",
    metadata,
    _serial(),
    _text("endpoint"),
    _text("source"),
    _real("start", nullable=False),
    _real("duration_s", nullable=False),
    _real("coverage", nullable=False),
    sa.Column("targets", sa.Integer, nullable=False),
    sa.Column("restarts", sa.Integer, nullable=False),
    _real("requests"),
    _real("errors"),
    _real("prompt_tokens"),
    _real("cached_prompt_tokens"),
    _real("output_tokens"),
    _real("preemptions"),
    *[_real(f"{m}_p{q}_s") for m in ("ttft", "itl", "tpot", "e2e", "queue") for q in (50, 95, 99)],
    *[_real(f"{g}_{how}") for g in ("running", "waiting", "kv_usage") for how in ("mean", "max")],
    _real("gpu_usage_mean"),
    _real("cpu_usage_mean"),
    _real("cost_usd"),
    sa.Column("sketches", sa.LargeBinary, nullable=False),
    sa.Column("gauges", sa.JSON, nullable=False),
    sa.Column("read_errors", sa.JSON, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("more", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("quantiles", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("rolled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("endpoint", "source", "duration_s", "start"),
)
#: For what is yet to be merged into the next coarser resolution, late windows included, and for what is old.
sa.Index("ix_windows_duration_s_rolled_start", windows.c.duration_s, windows.c.rolled, windows.c.start)

#: How each source of each endpoint fares, for `flyball status` while no daemon runs.
sources = sa.Table(
    "sources",
    metadata,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("source", sa.Text, primary_key=True),
    _real("last_ok_at"),
    _real("last_error_at"),
    _text("last_error", nullable=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("failures_in_a_row", sa.Integer, nullable=False),
    _real("next_try_at"),
)

endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("shape", sa.JSON, nullable=False),
    _text("shape_version"),
    sa.Column("ready", sa.Boolean, nullable=False),
    _text("detail"),
    sa.Column("serving", sa.Integer),
    sa.Column("owner", sa.JSON(none_as_null=True)),
    _real("seen_at", nullable=False),
    _real("price_per_hour"),
    _text("frozen_because", nullable=True),
    _real("frozen_at"),
    _real("last_change_at"),
    sa.Column("decision", sa.JSON(none_as_null=True)),
    sa.Column("schedule", sa.JSON(none_as_null=True)),
    sa.Column("comparison", sa.JSON(none_as_null=True)),
    _text("comparison_lacks", nullable=True),
)

findings = sa.Table(
    "findings",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("endpoint", sa.Text, nullable=False, index=True),
    _text("kind"),
    _text("severity"),
    _text("code"),
    sa.Column("body", sa.JSON, nullable=False),
    _real("first_seen_at", nullable=False),
    _real("last_seen_at", nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
)

#: Findings that people do not want to be told of; ``until`` is NULL for ever.
mutes = sa.Table(
    "mutes",
    metadata,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("code", sa.Text, primary_key=True),
    _real("until"),
    _text("reason"),
    _real("at", nullable=False),
    _text("by"),
)

#: What happened to an endpoint that its figures may follow from.
events = sa.Table(
    "events",
    metadata,
    _serial(),
    _text("endpoint"),
    _real("at", nullable=False),
    _text("kind"),
    _text("text"),
    sa.Column("body", sa.JSON, nullable=False),
)
sa.Index("ix_events_endpoint_at", events.c.endpoint, events.c.at)

calibrations = sa.Table(
    "calibrations",
    metadata,
    _serial(),
    sa.Column("endpoint", sa.Text, nullable=False, index=True),
    _text("key"),
    _real("fitted_at", nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)

recommendations = sa.Table(
    "recommendations",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("endpoint", sa.Text, nullable=False, index=True),
    sa.Column("fingerprint", sa.Text, nullable=False, index=True),
    sa.Column("revision", sa.Integer, nullable=False),
    _text("state"),
    _text("state_reason"),
    _text("state_by"),
    _text("requested_by"),
    _text("plan_hash"),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    _real("saving_per_month"),
    _real("created_at", nullable=False),
    _real("refreshed_at", nullable=False),
    _real("expires_at", nullable=False),
    _real("snoozed_until"),
    _real("decided_at"),
    sa.Column("policy_hash", sa.Text, nullable=False, server_default=""),
)

#: Every press of a button or call of a command, accepted or refused.
approvals = sa.Table(
    "approvals",
    metadata,
    _serial(),
    sa.Column("recommendation_id", sa.Text, nullable=False, index=True),
    _text("action"),
    _text("actor"),
    _text("channel"),
    _text("plan_hash"),
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    sa.Column("policy_hash", sa.Text, nullable=False, server_default=""),
    sa.Column("accepted", sa.Boolean, nullable=False),
    _text("reason"),
    _real("at", nullable=False),
)

#: What a button carries is one of these, opaque and for one use; the rest stays here.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    _text("recommendation_id"),
    sa.Column("revision", sa.Integer, nullable=False),
    _text("plan_hash"),
    sa.Column("policy_hash", sa.Text, nullable=False, server_default=""),
    _text("action"),
    _real("expires_at", nullable=False),
    _real("used_at"),
)

#: Signatures of requests that were seen, so that none is taken twice.
seen_signatures = sa.Table(
    "seen_signatures",
    metadata,
    sa.Column("signature", sa.Text, primary_key=True),
    _real("seen_at", nullable=False),
)

ACTIVE_CHANGE = ("applying", "warming", "verifying", "finishing", "rolling_back")

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _text("recommendation_id"),
    sa.Column("endpoint", sa.Text, nullable=False, index=True),
    _text("state"),
    _text("state_reason"),
    sa.Column("purpose", sa.Text, nullable=False, server_default="change"),
    _real("since"),
    _text("approved_by"),
    _text("plan_hash"),
    sa.Column("plan", sa.JSON, nullable=False),
    sa.Column("rollback_plan", sa.JSON(none_as_null=True)),
    sa.Column("prediction", sa.JSON(none_as_null=True)),
    sa.Column("epoch", sa.Integer, nullable=False),
    _real("created_at", nullable=False),
    _real("applied_at"),
    _real("judged_from"),
    _real("finished_at"),
    sa.Column("rollback_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("outcome", sa.JSON(none_as_null=True)),
)
#: Never two changes at once on one endpoint: the database itself refuses the second.
sa.Index(
    "uq_changes_active",
    changes.c.endpoint,
    unique=True,
    sqlite_where=changes.c.state.in_(ACTIVE_CHANGE),
    postgresql_where=changes.c.state.in_(ACTIVE_CHANGE),
)

#: Intents, written before each operation, and what came of it.
journal = sa.Table(
    "journal",
    metadata,
    _serial(),
    _text("change_id"),
    _text("direction"),
    sa.Column("step", sa.Integer, nullable=False),
    _text("token"),
    sa.Column("operation", sa.JSON, nullable=False),
    _text("state"),
    _text("detail"),
    sa.Column("epoch", sa.Integer, nullable=False),
    _real("intent_at", nullable=False),
    _real("started_at"),
    _real("ask_at"),
    _real("done_at"),
    sa.Column("receipt", sa.JSON(none_as_null=True)),
    sa.UniqueConstraint("change_id", "direction", "step"),
)

#: What no two changes may touch at once, wider than an endpoint: an account, a whole configuration.
locks = sa.Table(
    "locks",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    _text("change_id"),
    sa.Column("epoch", sa.Integer, nullable=False),
)

#: Predicted against observed, a row a metric.
ledger = sa.Table(
    "ledger",
    metadata,
    _serial(),
    sa.Column("change_id", sa.Text, nullable=False, index=True),
    sa.Column("endpoint", sa.Text, nullable=False, index=True),
    _text("metric"),
    _text("method"),
    _real("low"),
    _real("predicted"),
    _real("high"),
    _real("before"),
    _real("observed"),
    _real("observed_low"),
    _real("observed_high"),
    sa.Column("inside", sa.Boolean),
    _real("error"),
    sa.Column("comparable", sa.Boolean, nullable=False),
    _real("at", nullable=False),
    sa.UniqueConstraint("change_id", "metric"),
)

#: Append-only, hash-chained: who did or was refused what, and when.
audit = sa.Table(
    "audit",
    metadata,
    _serial(),
    _real("at", nullable=False),
    _text("actor"),
    _text("action"),
    _text("subject"),
    sa.Column("body", sa.Text, nullable=False),
    _text("previous"),
    _text("hash"),
    sa.UniqueConstraint("previous"),
)

#: Messages to be sent, until they are.
outbox = sa.Table(
    "outbox",
    metadata,
    _serial(),
    _text("channel"),
    _text("kind"),
    _text("subject"),
    sa.Column("revision", sa.Integer, nullable=False),
    _text("state"),
    sa.Column("attempts", sa.Integer, nullable=False),
    _text("error", nullable=True),
    _real("created_at", nullable=False),
    _real("next_try_at", nullable=False),
    _real("sent_at"),
    _text("message_channel", nullable=True),
    _text("message_ts", nullable=True),
    sa.UniqueConstraint("channel", "kind", "subject", "revision"),
)

#: Experiments that try shapes on an endpoint, one under way for each at most.
tunes = sa.Table(
    "tunes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("endpoint", sa.Text, nullable=False, index=True),
    _text("state"),
    sa.Column("question", sa.JSON, nullable=False),
    _text("digest"),
    sa.Column("original", sa.JSON(none_as_null=True)),
    _text("started_by"),
    _real("started_at", nullable=False),
    _real("ended_at"),
    sa.Column("result", sa.JSON(none_as_null=True)),
)
sa.Index(
    "uq_tunes_running",
    tunes.c.endpoint,
    unique=True,
    sqlite_where=tunes.c.state == "running",
    postgresql_where=tunes.c.state == "running",
)

#: One shape that was deployed, sent traffic and watched: a row of a tune's table. ``body`` has each step that was measured.
trials = sa.Table(
    "trials",
    metadata,
    _serial(),
    sa.Column("tune_id", sa.Text, nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    _text("name"),
    sa.Column("shape", sa.JSON, nullable=False),
    _text("state"),
    _text("why"),
    sa.Column("body", sa.JSON, nullable=False),
    _real("limit_low"),
    _real("limit_high"),
    _real("cost_per_1k_output_tokens_usd"),
    _real("busy_s"),
    _real("spent_usd"),
    _real("started_at"),
    _real("ended_at"),
    sa.UniqueConstraint("tune_id", "number"),
)

#: What sizes and endpoints were paid for by, and from when on: a row when a price changes.
prices = sa.Table(
    "prices",
    metadata,
    _serial(),
    _text("subject"),
    _text("per"),
    _real("usd", nullable=False),
    _text("source"),
    _real("since", nullable=False),
    sa.UniqueConstraint("subject", "per", "since"),
)

#: What vendors say that a day of an endpoint cost.
bills = sa.Table(
    "bills",
    metadata,
    sa.Column("endpoint", sa.Text, primary_key=True),
    sa.Column("day", sa.Double, primary_key=True, autoincrement=False),
    _text("vendor"),
    _real("usd", nullable=False),
    _real("read_at", nullable=False),
)

#: What a row of changes saved in a period: attested once, append-only, hash-chained. ``body`` is what is hashed; the columns are of it.
savings = sa.Table(
    "savings",
    metadata,
    _serial(),
    _text("endpoint"),
    _text("change_id"),
    _real("period_start", nullable=False),
    _real("period_end", nullable=False),
    _real("spent_usd"),
    _real("would_cost_usd"),
    _real("saved_low_usd"),
    _real("saved_usd"),
    _real("saved_high_usd"),
    _real("missed_s"),
    _real("would_miss_s"),
    sa.Column("body", sa.Text, nullable=False),
    _real("attested_at", nullable=False),
    _text("previous"),
    _text("hash"),
    sa.UniqueConstraint("endpoint", "period_start"),
    sa.UniqueConstraint("previous"),
)

#: Requests without their content. ``identity`` is the same each time that one is told.
flights = sa.Table(
    "flights",
    metadata,
    _serial(),
    _text("endpoint"),
    _text("identity"),
    _text("side"),
    _real("arrived_at", nullable=False),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("cached_tokens", sa.Integer),
    sa.Column("output_tokens", sa.Integer),
    _real("ttft_s"),
    _real("e2e_s"),
    _real("queue_s"),
    _text("error", nullable=True),
    _text("tenant", nullable=True),
    sa.Column("blocks", sa.LargeBinary, nullable=False),
    _real("blocks_whole"),
    sa.UniqueConstraint("endpoint", "identity"),
)
sa.Index("ix_flights_endpoint_arrived_at", flights.c.endpoint, flights.c.arrived_at)

reports = sa.Table(
    "reports",
    metadata,
    _serial(),
    _real("period_start", nullable=False),
    _real("period_end", nullable=False),
    _real("made_at", nullable=False),
    _text("path"),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.UniqueConstraint("period_start", "period_end"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    _text("holder"),
    sa.Column("epoch", sa.Integer, nullable=False),
    _real("expires_at", nullable=False),
)

#: The pause and other single values: paused, heartbeat of each loop.
control = sa.Table(
    "control",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
    _real("at", nullable=False),
    _text("by"),
)
