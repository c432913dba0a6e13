"""Windows: what has no column of its own, quantiles that came as numbers, and which windows are not rolled up yet."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("windows") as table:
        table.add_column(sa.Column("more", sa.JSON(), nullable=False, server_default="{}"))
        table.add_column(sa.Column("quantiles", sa.JSON(), nullable=False, server_default="{}"))
        table.add_column(sa.Column("rolled", sa.Boolean(), nullable=False, server_default=sa.false()))
    # What is coarsest goes nowhere from here.
    op.execute(sa.text("UPDATE windows SET rolled = :yes WHERE duration_s >= 3600").bindparams(yes=True))
    op.create_index(
        op.f("ix_windows_duration_s_rolled_start"), "windows", ["duration_s", "rolled", "start"], unique=False
    )
