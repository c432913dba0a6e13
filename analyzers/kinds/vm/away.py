"""What the law leaves out, learned at home: by how much the observed percentiles differ from a replay of the same load on the same shape.

How requests differ from each other, what waits outside the machine, how coarse the source is: none of it is in the law, and all of it goes
along to another size. The ratio is taken window by window, on a replay of just that window's load, so that a busy hour is not held against
a quiet one; percentiles that are only bounded leave the ratio as open as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analyzers.kinds.vm import usl
from analyzers.kinds.vm.usl import UslFit
from analyzers.prediction import Interval
from analyzers.whatif.traffic import workload_from_windows
from collectors.window import Window

_QUANTILES = (0.5, 0.9, 0.95, 0.99)
#: A percentile of fewer requests says little.
_LEAST_REQUESTS = 50
_MOST_WINDOWS = 24
#: A window's load is replayed for so long, or its percentiles would scatter more than the ones observed.
_REPLAY_S = 600.0


def away(windows: Sequence[Window], fit: UslFit, replicas: int, *, seed: int = 7) -> dict[str, Interval]:
    """Observed over replayed, by the objective's names (``e2e_p95_s``). Without a name, nothing is known of it."""
    known = [w for w in windows if (w.count("requests") or 0.0) >= _LEAST_REQUESTS and _observed(w)]
    ratios: dict[str, list[tuple[float, float]]] = {}
    for window in _by_load(known):
        factor = max(1.0, _REPLAY_S / window.duration_s)
        counts = {"requests": (window.count("requests") or 0.0) * factor}
        longer = replace(window, duration_s=window.duration_s * factor, counts=counts, sketches={}, observed={})
        got = usl.replay(workload_from_windows([longer], seed=seed, lengths=False), fit.best, replicas=replicas)
        for q, (least, most) in _observed(window).items():
            at_home = got.e2e.quantile(q)
            if at_home and not got.saturated:
                ratios.setdefault(f"e2e_p{q * 100:g}_s", []).append((least / at_home, most / at_home))
    return {name: _typical(pairs) for name, pairs in ratios.items()}


def carried(metrics: Mapping[str, Interval], ratios: Mapping[str, Interval]) -> dict[str, Interval]:
    """The law's predictions with what it was off by at home."""
    return {
        name: interval
        if (by := ratios.get(name)) is None
        else Interval(interval.low * by.low, interval.mid * by.mid, interval.high * by.high)
        for name, interval in metrics.items()
    }


def _observed(window: Window) -> dict[float, tuple[float, float]]:
    found = {q: r for q in _QUANTILES if (r := window.range("e2e_s", q)) is not None}
    return {q: (r.least, r.most) for q, r in found.items() if r.least > 0 and math.isfinite(r.most)}


def _by_load(windows: Sequence[Window]) -> Sequence[Window]:
    """Some of them, from the quietest to the busiest."""
    ranked = sorted(windows, key=lambda w: w.rate("requests") or 0.0)
    if len(ranked) <= _MOST_WINDOWS:
        return ranked
    return [ranked[round(i * (len(ranked) - 1) / (_MOST_WINDOWS - 1))] for i in range(_MOST_WINDOWS)]


def _typical(pairs: Sequence[tuple[float, float]]) -> Interval:
    """The median ratio, with the doubt of a median of so few, and with what ranges leave open."""
    lows, highs = (np.log(np.array([pair[i] for pair in pairs])) for i in (0, 1))
    middles = (lows + highs) / 2
    mid = float(np.median(middles))
    doubt = 1.28 * 1.25 * float(np.std(middles)) / math.sqrt(len(pairs))
    low, high = min(float(np.median(lows)) - doubt, mid), max(float(np.median(highs)) + doubt, mid)
    return Interval(math.exp(low), math.exp(mid), math.exp(high))
