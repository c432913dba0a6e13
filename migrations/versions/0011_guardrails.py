"""Under which policy a change was proposed, and which revision was approved."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    policy = ("policy_hash", sa.Text(), "")
    for name, columns in {
        "recommendations": (policy,),
        "tokens": (policy,),
        "approvals": (("revision", sa.Integer(), "0"), policy),
    }.items():
        with op.batch_alter_table(name) as table:
            for column, kind, default in columns:
                table.add_column(sa.Column(column, kind, nullable=False, server_default=default))
