"""The system ``git``: changes by pull request."""
