"""How soon the upgrade guard sees a slower or faster engine, and how often it sees one that is not there.

Windows as vLLM's metrics make them, of an emulated engine under a load that moves through the day; at a known moment each coefficient of
its iterations is multiplied. A machine's own unrest is laid over each window's times: independent, or with a memory. Seeded.

Usage: python benchmarks/guard.py [--seeds N] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from analyzers.guard import LEAST_EFFECT, METRICS, shift
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from collectors.sketch import Sketch
from collectors.window import Window
from tests.analyzers.whatif.reference_server import poisson, windows

COST = (0.0085, 3e-5, 3e-8, 5e-5, 2e-9)
LIMITS = EngineLimits(128, 4096, 200_000)
#: Minutes before the change, and after it for as long as it is looked at.
BEFORE, AFTER = 120, 120
#: Standard deviation of a window's unrest, in logarithms, and how much of it lasts to the next.
UNREST = {"none": (0.0, 0.0), "3 %": (0.03, 0.0), "3 %, with a memory of 0.5": (0.03, 0.5)}


@lru_cache(None)
def served(factor: float, minutes: int, seed: int, first: int = 0) -> list[Window]:
    """Minutes of an engine that is ``factor`` times as slow, under three requests a second give or take a half."""
    cost = IterationCost(*(factor * c for c in COST))
    rng = np.random.default_rng((seed, first))
    rows: list[Window] = []
    for at in range(0, minutes, 10):
        rate = 3.0 * (1 + 0.5 * math.sin(2 * math.pi * (first + at) / 240 + seed)) * math.exp(rng.normal(0, 0.1))
        part = windows(EngineModel(cost, LIMITS), poisson(rate, 720.0, seed * 1000 + first + at))[1:11]
        rows += [replace(w, start=60.0 * (first + at + i)) for i, w in enumerate(part)]
    return rows[:minutes]


def restless(rows: Sequence[Window], size: float, memory: float, seed: int) -> list[Window]:
    """The same windows on a machine whose speed wanders."""
    rng, now = np.random.default_rng((seed, 77)), 0.0
    out = []
    for w in rows:
        now = memory * now + math.sqrt(1 - memory**2) * rng.normal(0, size)
        out.append(
            replace(w, sketches={n: _times(s, math.exp(now)) if n.endswith("_s") else s for n, s in w.sketches.items()})
        )
    return out


def _times(sketch: Sketch, factor: float) -> Sketch:
    """A sketch of which only the mean matters here."""
    return Sketch.from_values([(sketch.mean or 0.0) * factor])


def trial(factor: float, size: float, memory: float, seed: int) -> float | None:
    """Seconds from the change until it is sure; None: never within the time that it is looked at."""
    rows = restless([*served(1.0, BEFORE, seed), *served(factor, AFTER, seed, BEFORE)], size, memory, seed)
    at = 60.0 * BEFORE
    found = [shift(rows[:BEFORE], rows[BEFORE + 1 :], metric, at) for metric in METRICS]
    sure = [
        f.sure_after_s
        for f in found
        if f is not None and f.sure_after_s is not None and abs(f.ratio.mid - 1) >= LEAST_EFFECT
    ]
    return min(sure, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = []
    for unrest, (size, memory) in UNREST.items():
        for factor in (1.0, 1.1, 1.3, 0.9):
            delays = [trial(factor, size, memory, seed) for seed in range(given.seeds)]
            seen = sorted(d for d in delays if d is not None)
            row = {
                "unrest": unrest,
                "planted": factor - 1.0,
                "seeds": given.seeds,
                "found": len(seen),
                "median_delay_s": seen[len(seen) // 2] if seen else None,
                "p90_delay_s": seen[int(0.9 * (len(seen) - 1))] if seen else None,
            }
            rows.append(row)
            delay = f"median {row['median_delay_s']} s, 90 % {row['p90_delay_s']} s"
            sys.stdout.write(f"{unrest:28} {factor - 1:+.0%}: found {len(seen)} of {given.seeds}, {delay}\n")
            sys.stdout.flush()
    if given.output is not None:
        given.output.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
