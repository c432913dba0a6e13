"""Receipts in the journal, locks wider than an endpoint, the state ``finishing``; shapes with autoscaling and purchase."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ACTIVE = ("applying", "warming", "verifying", "finishing", "rolling_back")
_UNITS = {"ptu": "ptu"}
#: Every column that holds a shape somewhere in its JSON: table, key, columns.
_SHAPED = (
    ("endpoints", "endpoint", ("shape",)),
    ("recommendations", "id", ("plan", "body")),
    ("changes", "id", ("plan", "rollback_plan")),
    ("journal", "id", ("operation",)),
    ("tunes", "id", ("question", "original", "result")),
    ("trials", "id", ("shape", "body")),
)


def upgrade() -> None:
    op.add_column("journal", sa.Column("started_at", sa.Double(), nullable=True))
    op.add_column("journal", sa.Column("ask_at", sa.Double(), nullable=True))
    op.add_column("journal", sa.Column("receipt", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("changes", sa.Column("purpose", sa.Text(), nullable=False, server_default="change"))
    op.add_column("changes", sa.Column("since", sa.Double(), nullable=True))
    op.add_column("endpoints", sa.Column("serving", sa.Integer(), nullable=True))
    op.add_column("endpoints", sa.Column("owner", sa.JSON(none_as_null=True), nullable=True))
    op.drop_index("uq_changes_active", "changes")
    condition = sa.text(f"state IN ({', '.join(repr(s) for s in _ACTIVE)})")
    op.create_index(
        "uq_changes_active", "changes", ["endpoint"], unique=True, sqlite_where=condition, postgresql_where=condition
    )
    op.create_table(
        "locks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("change_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_locks")),
    )
    _convert(op.get_bind())


def _convert(db: sa.Connection) -> None:
    """The data: shapes in their new form; what is under way goes on; what was proposed on old plans is proposed anew."""
    for name, key, columns in _SHAPED:
        table = sa.table(name, sa.column(key), *(sa.column(c, sa.JSON(none_as_null=True)) for c in columns))
        for row in db.execute(sa.select(table)).mappings().all():
            new = {column: _shaped(row[column]) for column in columns if row[column] is not None}
            if any(new[column] != row[column] for column in new):
                db.execute(sa.update(table).where(table.c[key] == row[key]).values(**new))
    journal = sa.table(
        "journal",
        sa.column("id"),
        sa.column("state"),
        sa.column("token"),
        sa.column("started_at"),
        sa.column("done_at"),
        sa.column("receipt", sa.JSON(none_as_null=True)),
    )
    for row in db.execute(sa.select(journal).where(journal.c.state.in_(["started", "done"]))).mappings().all():
        receipt = {"handle": {"token": row["token"]}, "leaves": None}
        started = {"started_at": row["done_at"]} if row["state"] == "started" else {}
        db.execute(sa.update(journal).where(journal.c.id == row["id"]).values(receipt=receipt, **started))
    db.execute(sa.text("UPDATE changes SET since = COALESCE(judged_from, applied_at, created_at)"))
    db.execute(
        sa.text(
            "UPDATE recommendations SET state = 'superseded', state_by = 'flyball', "
            "state_reason = 'made by an older Flyball, whose plans had another form: it is made anew' "
            "WHERE state IN ('proposed', 'notified', 'snoozed', 'approved')"
        )
    )


def _shaped(value: Any) -> Any:
    """``value`` with every shape in it converted: a shape always said its billing."""
    if isinstance(value, list):
        return [_shaped(item) for item in value]
    if not isinstance(value, dict):
        return value
    new = {key: _shaped(item) for key, item in value.items()}
    if "billing" not in new:
        return new
    billing, least, most = new.pop("billing"), new.pop("min_replicas", None), new.pop("max_replicas", None)
    if least is not None or most is not None:
        known = [n for n in (least, most) if n is not None]
        new["autoscaling"] = {"least": min(known), "most": max(known), "targets": {}}
    capacity = new.pop("capacity", None)
    if capacity is not None:
        new["purchase"] = {"amount": capacity, "unit": _UNITS.get(billing, "tokens_per_minute")}
    return new
