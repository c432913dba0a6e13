"""Whether one address is one server: behind a load balancer each page may be another server's, and differences of such pages are
wrong by orders of magnitude. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from collectors.increase import SAME_START_S
from collectors.window import CollectError, Reading

#: So soon after a fall a counter that is back where it was has not grown there: readings.
_SOON = 5
#: Returns without a start time that tell a second server from one that just fell over twice.
_RETURNS = 2
#: So many readings in a row without a sign make it one server again.
_CALM = 5


@dataclass(slots=True)
class Identity:
    """What was seen of one target. A server that restarts starts later than before and counts from 0; one that starts *earlier* than
    the one before it, or whose counters fall and are back at once, is another one."""

    several: bool = False
    _fell: Mapping[str, float] = field(default_factory=dict)
    """Counters as they were before they last fell."""
    _since: int = 0
    _returns: int = 0
    _calm: int = 0

    def check(self, before: Reading, after: Reading) -> None:
        """Raises CollectError ``several_servers`` while two readings in a row may be of two servers."""
        if self._is_another(before, after):
            self.several, self._calm = True, 0
        elif self.several:
            self._calm += 1
            if self._calm >= _CALM:
                self.several, self._calm, self._returns, self._fell = False, 0, 0, {}
        if self.several:
            raise CollectError(
                "several_servers",
                f"{after.target} is several servers in turn, so nothing that it counts can be added up: give each replica an address of "
                "its own, or read them through Prometheus",
            )

    def _is_another(self, before: Reading, after: Reading) -> bool:
        if before.started_at is not None and after.started_at is not None:
            moved = after.started_at - before.started_at
            if moved < -SAME_START_S:
                return True
            if moved > SAME_START_S:
                return self.several  # a restart; or, of two servers, the younger one again
        return self._returned(before, after)

    def _returned(self, before: Reading, after: Reading) -> bool:
        falls = {n: v for n, v in before.counters.items() if n in after.counters and after.counters[n] < v}
        self._since += 1
        if falls:
            self._fell, self._since = falls, 0
            return self.several
        shared = [name for name in self._fell if name in after.counters and name in before.counters]
        if not shared or self._since > _SOON:
            return False
        back = all(after.counters[n] >= self._fell[n] > before.counters[n] for n in shared)
        if back:
            self._fell = {}
            self._returns += 1
        return back and self._returns >= _RETURNS
