"""Alembic's entry: runs on the connection, and inside the lock and transaction, that ``agent.store.database`` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
