"""The same work on many jobs, over the cores. Threads do: the compiled engine, where the time goes, lets the others run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def each(
    work: Callable[[Job], Result], jobs: Sequence[Job], advance: Callable[[], None] = lambda: None
) -> Iterator[Result]:
    """``work(job)`` for every job, in order; ``advance`` is called after each."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for result in pool.map(work, jobs):
            yield result
            advance()
