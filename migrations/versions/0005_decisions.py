"""Endpoints: what was decided last, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("endpoints") as table:
        table.add_column(sa.Column("decision", sa.JSON(none_as_null=True)))
