"""Where a message stands that was posted as the app itself."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    with op.batch_alter_table("outbox") as table:
        table.add_column(sa.Column("message_channel", sa.Text(), nullable=True))
        table.add_column(sa.Column("message_ts", sa.Text(), nullable=True))
