"""``python -m tests.world --seeds N --start S``: seeded weeks in parallel. Ends with one line of figures, and non-zero on a violation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext

from tests.world.plants import PLANTS
from tests.world.weeks import WeekResult, drawn, play, shrunk


def _week(seed: int, weeks: float, plant: str | None) -> WeekResult:
    with PLANTS[plant]() if plant else nullcontext():
        return play(seed, drawn(seed, weeks), weeks)


def _explain(seed: int, weeks: float, plant: str | None) -> None:
    with PLANTS[plant]() if plant else nullcontext():
        fewest = shrunk(seed, drawn(seed, weeks), weeks)
        violation = play(seed, fewest, weeks).violation
    print(f"  seed {seed}: {violation}")
    print(f"  the fewest happenings that still break it ({len(fewest)}):")
    for happening in fewest:
        print(f"    {happening}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.world", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="so many seeds, a week each")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--weeks", type=float, default=1.0, help="length of each, in weeks")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="put a known bug in, which must be found")
    parser.add_argument(
        "--no-shrink", action="store_true", help="do not look for the fewest happenings of a failing seed"
    )
    asked = parser.parse_args(arguments)
    done: list[WeekResult] = []
    with ProcessPoolExecutor(asked.workers) as pool:
        seeds = range(asked.start, asked.start + asked.seeds)
        going = [pool.submit(_week, seed, asked.weeks, asked.plant) for seed in seeds]
        for future in as_completed(going):
            result = future.result()
            done.append(result)
            if result.violation is not None:
                print(f"VIOLATION seed {result.seed}: {result.violation}", flush=True)
            if sys.stderr.isatty() or len(done) % 50 == 0:
                print(f"\r{len(done)} of {asked.seeds}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr)
    broken = sorted(r.seed for r in done if r.violation is not None)
    if broken and not asked.no_shrink:
        _explain(broken[0], asked.weeks, asked.plant)
    print(
        f"seeds={len(done)} weeks={len(done) * asked.weeks:g} changes={sum(r.changes for r in done)} "
        f"faults={sum(r.faults for r in done)} violations={len(broken)}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
