"""What Flyball remembers. SQLAlchemy Core over SQLite (WAL) or PostgreSQL.

``database`` opens and migrates; ``schema`` holds the tables; each other module holds the statements of one noun and takes a
``Connection``, so that a caller can join several of them in one transaction.
"""

from agent.store.database import SchemaTooNew, Store, StoreError

__all__ = ["SchemaTooNew", "Store", "StoreError"]
