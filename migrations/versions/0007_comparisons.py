"""Endpoints: how each stands beside its reference server, or what it would take to compare them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("endpoints") as table:
        table.add_column(sa.Column("comparison", sa.JSON(none_as_null=True)))
        table.add_column(sa.Column("comparison_lacks", sa.Text()))
