"""HAProxy: its statistics, its runtime API, and which backends it has."""
