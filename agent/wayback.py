"""After a way back: whether the endpoint is as it was, by what it shows and not by its shape alone. The change has ended by then.

Judged once as many whole windows are there as a change needs, or at its deadline; written into the change's outcome and the audit, told to
people. It sends nothing and changes nothing: the endpoint is frozen already where a person must look.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from agent.settings import Settings
from agent.store import Store, audit, changes, control, outbox
from agent.store.control import Lead
from agent.store.evidence import judged
from agent.watch import WatchedEndpoint
from analyzers.verify import judge_restored
from collectors.clock import Clock
from collectors.window import Window

log = structlog.get_logger()

#: The message about it, after that of the change's end.
REVISION = 4


class WayBackReview:
    """Of all endpoints."""

    def __init__(self, watched: Mapping[str, WatchedEndpoint], settings: Settings, store: Store, clock: Clock) -> None:
        self._watched = watched
        self._settings = settings
        self._store = store
        self._clock = clock
        self._look_at = float("-inf")
        """Monotonic seconds: nothing new is there before a window is over."""

    def cycle(self, lead: Lead) -> None:
        """Judge each way back whose time has come. Called in a thread."""
        now, width = self._clock.now(), self._settings.collect.window_s
        if self._clock.monotonic() < self._look_at:
            return
        self._look_at = self._clock.monotonic() + width
        longest = max(
            (w.settings.verify.deadline_s + w.settings.verify.warmup_s for w in self._watched.values()), default=0.0
        )
        with self._store.read() as db:
            rows = changes.listed(db, states=["rolled_back"], purpose="change", limit=20)
        for change in rows:
            judged_already = (change["outcome"] or {}).get("way_back") is not None
            if not judged_already and now - (change["finished_at"] or 0.0) <= longest + 2 * width:
                self._look(change, now, lead)

    def _look(self, change: changes.Row, now: float, lead: Lead) -> None:
        watched = self._watched.get(change["endpoint"])
        if watched is None or change["finished_at"] is None:
            return
        endpoint, width = watched.settings, self._settings.collect.window_s
        begin = -(-(change["finished_at"] + endpoint.verify.warmup_s) // width) * width
        with self._store.read() as db:

            def seen(since: float, until: float) -> list[Window]:
                return judged(db, endpoint.name, endpoint.sources, since, until, width)

            (newest,) = changes.listed(db, endpoint=endpoint.name, limit=1)
            if newest["created_at"] > change["created_at"]:  # what is seen now is another change's
                told = {"code": "NOT_SEEN", "text": "another change began before it was judged"}
            else:
                whole = [w for w in seen(begin, now) if w.coverage > 0.5]
                if len(whole) < endpoint.verify.windows and now < begin + endpoint.verify.deadline_s:
                    return
                before = seen(change["created_at"] - endpoint.policy.evidence_s, change["created_at"])
                left = seen(change["finished_at"] - 2 * width, change["finished_at"])
                found = judge_restored(before, left, whole, endpoint.wanted(), endpoint.verify.load_tolerance)
                told = {"code": found.code, "text": found.text}
        with control.leading(self._store, lead) as db:
            changes.update(db, change["id"], outcome={**(change["outcome"] or {}), "way_back": {**told, "at": now}})
            audit.append(db, at=now, actor="flyball", action="way_back_judged", subject=change["id"], body=told)
            if self._settings.slack is not None and told["code"] != "NOT_SEEN":
                outbox.put(db, channel="slack", kind="change", subject=change["id"], revision=REVISION, now=now)
        log.info(
            "way_back_judged", endpoint=change["endpoint"], change=change["id"], code=told["code"], why=told["text"]
        )
