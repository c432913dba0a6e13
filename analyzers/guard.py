"""Did the engine become slower or faster when its version, image or arguments changed? A sequential test at equal load.

The logarithm of a window's mean gap between tokens (and of its mean time to first token) is a linear function of its load, and after the
change of one constant more. Whether that constant is there is told by the e-process of Lindon, Ham, Tingley and Bojinov, "Anytime-Valid
Linear Models and Regression Adjusted Causal Inference in Randomized Experiments" (2022): the Bayes factor of a linear model whose other
coefficients and variance have the right-Haar prior. It may be looked at after every window: under no change it ever reaches 1 / alpha
with a probability of at most alpha (Ville's inequality), where errors are normal and independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analyzers.finding import Finding, Reason
from analyzers.money import per_month
from analyzers.prediction import Interval
from analyzers.sequential import log_bayes_factor
from analyzers.situation import Situation
from analyzers.words import lasting
from collectors.window import Window
from collectors.workload import Floats

#: The chance, for each change, that it is ever called slower or faster and is neither: by the test's own assumptions.
ALPHA = 0.01
#: A difference below this share is no finding, however sure.
LEAST_EFFECT = 0.03
#: The precision of a change's size, in the residual's standard deviations, before anything is seen: one standard deviation is usual.
_PRECISION = 1.0
#: Windows before and after without which nothing is said, and requests of one that counts.
LEAST_BEFORE, LEAST_AFTER, LEAST_REQUESTS = 15, 3, 5.0
#: A residual counts as at most so many standard deviations: one stall of a machine is no upgrade.
_CLIPPED = 4.0
#: Load outside what was seen before the change by more than this share is not comparable.
_BEYOND = 0.15
#: Of the normal distribution: from the median of absolute residuals to its standard deviation, and of an 80 % interval.
_MAD, _Z80 = 1.4826, 1.2816
#: Facts that follow from others, and move from start to start.
_VOLATILE = frozenset(("num_gpu_blocks", "kv_tokens", "memory_bytes"))

METRICS = {"itl_s": "the gap between tokens", "ttft_s": "the time to first token"}


def identity(facts: Mapping[str, str]) -> dict[str, str]:
    """What an engine says of itself that makes it the same one: its version, model and arguments."""
    return {name: text for name, text in sorted(facts.items()) if name not in _VOLATILE}


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """``engine_version 0.9.1 → 0.10.0``."""
    names = [n for n in dict.fromkeys((*before, *after)) if before.get(n) != after.get(n)]
    return ", ".join(f"{n} {before.get(n, 'unknown')} → {after.get(n, 'unknown')}" for n in names)


@dataclass(frozen=True, slots=True)
class EngineShift:
    """What a change of the engine did to one metric at equal load."""

    metric: str
    ratio: Interval
    """After over before."""
    evidence: float
    """Logarithm of the e-process at its highest so far: above log(2 / alpha), for two metrics, it is sure."""
    windows_before: int
    windows_after: int
    sure_after_s: float | None
    """From the change to the end of the window that made it sure. None: it is not."""


def shift(before: Sequence[Window], after: Sequence[Window], metric: str, at: float) -> EngineShift | None:
    """What changed at ``at`` (Unix seconds). None: too little is comparable."""
    old, new = _points(before, metric), _points(after, metric)
    if old is None or new is None or old.values.shape[0] < LEAST_BEFORE:
        return None
    new = new.within(old)
    n = new.values.shape[0]
    if n < LEAST_AFTER:
        return None
    scale = np.maximum(np.abs(old.load).max(axis=0), 1e-12)
    designs = [_design(p.load / scale) for p in (old, new)]
    fitted = np.linalg.lstsq(designs[0], old.values, rcond=None)[0]
    residuals = [p.values - x @ fitted for p, x in zip((old, new), designs, strict=True)]
    sigma = max(float(np.median(np.abs(residuals[0] - np.median(residuals[0])))) * _MAD, 1e-3)
    clipped = [np.clip(r, -_CLIPPED * sigma, _CLIPPED * sigma) for r in residuals]
    design = np.concatenate(designs)
    evidence, sure = -math.inf, None
    for k in range(LEAST_AFTER, n + 1):
        rows = slice(0, old.values.shape[0] + k)
        found = log_evidence(np.concatenate(clipped)[rows], design[rows], old.values.shape[0])
        evidence = max(evidence, found)
        if sure is None and evidence >= threshold():
            sure = float(new.ends[k - 1]) - at
    middle = float(np.median(residuals[1]) - np.median(residuals[0]))
    half = _Z80 * 1.2533 * sigma * math.sqrt(1.0 / n + 1.0 / old.values.shape[0])
    ratio = Interval(math.exp(middle - half), math.exp(middle), math.exp(middle + half))
    return EngineShift(metric, ratio, evidence, old.values.shape[0], n, sure)


def threshold(metrics: int = len(METRICS)) -> float:
    """Of ``log_evidence``: so many metrics are looked at, and the chance is that of all of them together."""
    return math.log(metrics / ALPHA)


def log_evidence(values: Floats, design: Floats, before: int) -> float:
    """``log_bayes_factor`` for a constant from row ``before`` on. values: (n,); design: (n, p), what else explains them."""
    n, p = design.shape
    indicator = (np.arange(n) >= before).astype(np.float64)
    basis, _ = np.linalg.qr(design)
    z = indicator - basis @ (basis.T @ indicator)
    y = values - basis @ (basis.T @ values)
    return log_bayes_factor(float(z @ z), float(z @ y), float(y @ y), n - p, _PRECISION)


@dataclass(frozen=True, slots=True)
class _Points:
    """(n,) logarithms of the metric, (n, 2) load, (n,) ends of the windows."""

    values: Floats
    load: Floats
    ends: Floats

    def within(self, known: _Points) -> _Points:
        low, high = known.load.min(axis=0) * (1 - _BEYOND), known.load.max(axis=0) * (1 + _BEYOND)
        inside = np.all((self.load >= low) & (self.load <= high), axis=1)
        return _Points(self.values[inside], self.load[inside], self.ends[inside])


def _points(windows: Sequence[Window], metric: str) -> _Points | None:
    values: list[float] = []
    load: list[tuple[float, float]] = []
    ends: list[float] = []
    for w in windows:
        mean, requests = _mean(w, metric), w.count("requests")
        prompt, output = (w.rate(name) for name in ("prompt_tokens", "output_tokens"))
        if not mean or requests is None or requests < LEAST_REQUESTS or prompt is None or output is None or w.restarts:
            continue
        values.append(math.log(mean))
        load.append((prompt / max(1, w.targets), output / max(1, w.targets)))
        ends.append(w.end)
    if not values:
        return None
    return _Points(np.array(values), np.array(load), np.array(ends))


def _mean(w: Window, metric: str) -> float | None:
    """A histogram's mean is exact, whatever its buckets; a source of quantiles alone tells the median."""
    found = w.mean(metric)
    return found if found is not None else w.quantile(metric, 0.5)


def _design(load: Floats) -> Floats:
    """(n, 4): a constant, prompt and output tokens a second, and how it bends with the latter."""
    return np.column_stack((np.ones(load.shape[0]), load, load[:, 1] ** 2))


def guard(s: Situation, before: Sequence[Window], after: Sequence[Window], at: float, what: str) -> Finding | None:
    """Whether the change ``what`` of the engine at ``at`` made it slower or faster. None: nothing is sure, or nothing worth a word.

    A slower one is the finding where one metric became slower and another faster.
    """
    seen = [found for metric in METRICS if (found := shift(before, after, metric, at)) is not None]
    sure = [f for f in seen if f.sure_after_s is not None and abs(f.ratio.mid - 1) >= LEAST_EFFECT]
    if not sure:
        return None
    slower = [f for f in sure if f.ratio.mid > 1]
    shown = slower or sure
    itl = next((f for f in shown if f.metric == "itl_s"), None)
    monthly = per_month(s.per_hour)
    usd = None if itl is None or monthly is None else monthly * (itl.ratio.mid - 1)
    parts = [
        f"{METRICS[f.metric]} is {f.ratio.mid - 1:+.0%} (80 %: {f.ratio.low - 1:+.0%} to {f.ratio.high - 1:+.0%})"
        for f in shown
    ]
    soonest = min(f.sure_after_s for f in shown if f.sure_after_s is not None)
    money = (
        ""
        if usd is None
        else f"; as much again from the same engine {'costs' if usd > 0 else 'saves'} ${abs(usd):,.0f} a month"
    )
    text = f"since {what}, at equal load, {' and '.join(parts)}, sure after {lasting(soonest)}{money}"
    numbers = {f"{f.metric}_{end}": getattr(f.ratio, end) for f in shown for end in ("low", "mid", "high")}
    numbers |= {"at": at, "sure_after_s": soonest, "alpha": ALPHA} | ({} if usd is None else {"usd_per_month": usd})
    code = "ENGINE_REGRESSED" if slower else "ENGINE_IMPROVED"
    return Finding(s.endpoint, "regression", "warning" if slower else "info", Reason(code, text, numbers), s.evidence)
