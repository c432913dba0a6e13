"""One client for each account, cluster or server, shared by all endpoints of it: its credentials, limits and cached lists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Sessions:
    """Made once for each set of settings. A client with an ``aclose`` is closed with it."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The client of that key, made at the first call. ``key`` names all that the client depends on."""
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    async def aclose(self) -> None:
        for made in self._made.values():
            close = getattr(made, "aclose", None)
            if close is not None and inspect.iscoroutinefunction(close):
                await close()
        self._made.clear()
