"""Time, as something that is handed in. Nothing below the agent reads a clock of its own."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for durations, and a way to wait."""

    def now(self) -> float:
        """Seconds since the Unix epoch. May jump when the machine's clock is set."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start. Never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock's time."""
