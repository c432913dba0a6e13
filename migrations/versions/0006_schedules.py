"""Endpoints: the schedule that is kept, where one was approved."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("endpoints") as table:
        table.add_column(sa.Column("schedule", sa.JSON(none_as_null=True)))
