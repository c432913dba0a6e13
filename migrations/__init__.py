"""The SQL schema's history (Alembic)."""
