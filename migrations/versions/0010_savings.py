"""What prices were from when on, what vendors billed, and what changes saved."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("per", sa.Text(), nullable=False),
        sa.Column("usd", sa.Double(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.UniqueConstraint("subject", "per", "since", name=op.f("uq_prices_subject_per_since")),
    )
    op.create_table(
        "bills",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("day", sa.Double(), autoincrement=False, nullable=False),
        sa.Column("vendor", sa.Text(), nullable=False),
        sa.Column("usd", sa.Double(), nullable=False),
        sa.Column("read_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "day", name=op.f("pk_bills")),
    )
    op.create_table(
        "savings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("change_id", sa.Text(), nullable=False),
        sa.Column("period_start", sa.Double(), nullable=False),
        sa.Column("period_end", sa.Double(), nullable=False),
        *[
            sa.Column(name, sa.Double(), nullable=True)
            for name in ("spent_usd", "would_cost_usd", "saved_low_usd", "saved_usd", "saved_high_usd")
        ],
        sa.Column("missed_s", sa.Double(), nullable=True),
        sa.Column("would_miss_s", sa.Double(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attested_at", sa.Double(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_savings")),
        sa.UniqueConstraint("endpoint", "period_start", name=op.f("uq_savings_endpoint_period_start")),
        sa.UniqueConstraint("previous", name=op.f("uq_savings_previous")),
    )
