"""The flight recorder: requests without their content."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.create_table(
        "flights",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("arrived_at", sa.Double(), nullable=False),
        *[sa.Column(name, sa.Integer(), nullable=True) for name in ("prompt_tokens", "cached_tokens", "output_tokens")],
        *[sa.Column(name, sa.Double(), nullable=True) for name in ("ttft_s", "e2e_s", "queue_s")],
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("tenant", sa.Text(), nullable=True),
        sa.Column("blocks", sa.LargeBinary(), nullable=False),
        sa.Column("blocks_whole", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flights")),
        sa.UniqueConstraint("endpoint", "identity", name=op.f("uq_flights_endpoint_identity")),
    )
    op.create_index("ix_flights_endpoint_arrived_at", "flights", ["endpoint", "arrived_at"])
