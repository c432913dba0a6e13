"""Learn an engine's iteration model from windows alone.

How: windows alike in load are grouped (``evidence``). Each group's traffic is replayed on the engine, and its mean ITL and TTFT
are compared with what was seen. The five coefficients, and a fixed time a request spends outside the engine, are those that agree
best: robust least squares in their logarithms, so that each stays positive, drawn towards a roofline prior where the data
say little. Replaying, instead of a formula for the mean, takes the wait for the running iteration, chunks, limits and the batch's
own fluctuation into account as the later prediction does.

Capability is learned from the latency of single requests at a known rate or concurrency, never from throughput. A window whose
requests queue is compared at a full batch, and its TTFT only without the queue.

The ensemble is drawn from the fit's posterior in the linear approximation (randomised maximum likelihood: Oliver, He and Reynolds
1996): noise of the size seen in the data, and priors of their own width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from actuators.shape import Shape
from analyzers.hardware import Hardware
from analyzers.prediction import CannotPredict
from analyzers.whatif.engine import replay
from analyzers.whatif.evidence import Group, Sight, groups, sight
from analyzers.whatif.model import EngineModel, Iteration, Limits
from collectors.window import Window
from collectors.workload import Floats

_LEAST_REQUESTS = 30
_REPLAYED = 24_000  # requests in one evaluation: exact enough, and a fit stays within about two seconds
_DRAWS = 24
#: When the settings do not say: vLLM's own defaults for serving on smaller accelerators (0.6 to 0.11). Stated in the notes.
DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Draw:
    """One set of coefficients that the data allow."""

    iteration: Iteration
    overhead_s: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An engine that was learned, how sure that is, and what it rests on."""

    key: str
    """Engine version, model, accelerator and engine arguments: what it holds for."""
    model: EngineModel
    overhead_s: float
    """Added to every TTFT and end-to-end time: network, tokenizer, queueing before the engine."""
    draws: tuple[Draw, ...]
    windows: int
    requests: float
    load: tuple[float, float]
    """Least and greatest mean running sequences per replica that were seen. Beyond is extrapolation."""
    residuals: Mapping[str, float] = field(default_factory=dict)
    """Root mean square relative error of the fit by metric: ``itl_s``, ``ttft_s``, ``e2e_s``."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "key": self.key,
            "model": self.model.to_dict(),
            "overhead_s": self.overhead_s,
            "draws": [[*d.iteration.as_tuple(), d.overhead_s] for d in self.draws],
            "windows": self.windows,
            "requests": self.requests,
            "load": list(self.load),
            "residuals": dict(self.residuals),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibrated:
        """The reverse of ``as_dict``."""
        rest = {k: data[k] for k in ("key", "overhead_s", "windows", "requests", "residuals")}
        return cls(
            model=EngineModel.from_dict(data["model"]),
            draws=tuple(Draw(Iteration(*row[:5]), row[5]) for row in data["draws"]),
            load=(data["load"][0], data["load"][1]),
            notes=tuple(data["notes"]),
            **rest,
        )


def calibration_key(facts: Mapping[str, str], shape: Shape) -> str:
    """What a calibration holds for; another key needs another calibration, or a transfer."""
    hardware = f"{shape.accelerator_count or 1}x{shape.accelerator}" if shape.accelerator else shape.size or "unknown"
    named = {"engine_version", "version", "model", "model_name"}
    told = [f"{k}={facts[k]}" for k in sorted(facts) if k in named]
    arguments = [f"{k}={v}" for k, v in sorted(shape.engine.items())]
    return "/".join([hardware, *told, *arguments])


def calibrate(
    windows: Sequence[Window], shape: Shape, *, prior: EngineModel | None, hardware: Hardware | None, seed: int = 0
) -> Calibrated:
    """Fit the engine that served ``windows`` on ``shape``.

    prior: an engine believed to be like this one (same model on another release, say); its coefficients replace the roofline's.
    hardware: the accelerator; ties prefill to decode by its ridge point. None: a typical ridge, believed less.
    Raises CannotPredict ``NO_EVIDENCE`` that says what is missing.
    """
    known = [s for w in windows if (s := sight(w, max(1, shape.replicas or w.targets or 1))) is not None]
    _check_evidence(windows, known)
    notes: list[str] = []
    if any(s.little for s in known):
        notes.append("concurrency is from Little's law (rate x time in the system): the windows have no running gauge")
    limits = _limits(shape, prior, windows, known, notes)
    found = groups(known, seed, _REPLAYED)
    if not any(g.ttft for g in found):
        notes.append("no usable TTFT (unknown, or mixed with an unknown queue): prefill cost is mostly the prior's")
    engine = EngineModel(Iteration(1.0), limits, bool(shape.engine.get("enable_chunked_prefill", True)))
    centre, width = _prior(known, prior, hardware, notes)
    fit = _Fit(engine, found, centre, width)
    solved = least_squares(
        fit.residuals, centre, fit.jacobian, loss="soft_l1", f_scale=2.0, max_nfev=15, xtol=1e-4, ftol=1e-4,
        bounds=(centre - 6.0, centre + 6.0),
    )  # fmt: skip
    theta = np.asarray(solved.x)
    own, overhead = fit.iteration(theta)
    load = [s.running for s in known]
    source = {"fitted_on_windows": len(known), "load_running": [min(load), max(load)], "overhead_s": overhead}
    return Calibrated(
        key=calibration_key(windows[-1].facts if windows else {}, shape),
        model=replace(engine, iteration=own, source=source),
        overhead_s=overhead,
        draws=fit.draws(theta, np.asarray(solved.jac), seed),
        windows=len(known),
        requests=float(sum(s.requests for s in known)),
        load=(min(load), max(load)),
        residuals=fit.errors(theta),
        notes=tuple(notes),
    )


class _Fit:
    """The replays of all groups as a function of the logarithms of (five coefficients, overhead)."""

    def __init__(self, engine: EngineModel, found: Sequence[Group], centre: Floats, width: Floats) -> None:
        self._engine = engine
        self._groups = found
        self._centre = centre
        self._width = width

    def iteration(self, theta: Floats) -> tuple[Iteration, float]:
        values = [float(v) for v in np.exp(theta)]
        return Iteration(*values[:5]), values[5]

    def _compared(self, theta: Floats) -> list[tuple[str, float, float]]:
        """(metric, log of replayed over seen, relative standard error of the seen) for all groups."""
        own, overhead = self.iteration(theta)
        out = []
        for group in self._groups:
            model = replace(self._engine, iteration=own)
            if group.steady:
                model = model.with_limits(max_num_seqs=max(1, min(round(group.running), model.limits.max_num_seqs)))
            got = _means(group, model)
            if group.itl:
                out.append(("itl_s", math.log(got["itl_s"] / group.itl[0]), group.itl[1]))
            if group.ttft:
                outside = 0.0 if group.engine_ttft else overhead
                out.append(("ttft_s", math.log((got["ttft_s"] + outside) / group.ttft[0]), group.ttft[1]))
            if group.e2e and not group.itl:
                out.append(("e2e_s", math.log((got["e2e_s"] + overhead) / group.e2e[0]), group.e2e[1]))
        return out

    def residuals(self, theta: Floats) -> Floats:
        data = [error / spread for _, error, spread in self._compared(theta)]
        return np.array([*data, *((theta - self._centre) / self._width)])

    def jacobian(self, theta: Floats) -> Floats:
        """By forward differences of 3 %: replays are piecewise smooth, so a smaller step would see their steps."""
        here = self.residuals(theta)
        columns = [(self.residuals(theta + step) - here) / 0.03 for step in 0.03 * np.eye(theta.shape[0])]
        return np.stack(columns, axis=1)

    def errors(self, theta: Floats) -> dict[str, float]:
        by_metric: dict[str, list[float]] = {}
        for metric, error, _ in self._compared(theta):
            by_metric.setdefault(metric, []).append(error)
        return {metric: math.sqrt(sum(e * e for e in all_) / len(all_)) for metric, all_ in by_metric.items()}

    def draws(self, theta: Floats, jacobian: Floats, seed: int) -> tuple[Draw, ...]:
        rng = np.random.default_rng(seed)
        at_best = self.residuals(theta)
        data = at_best[: -theta.shape[0]]
        # Misfit beyond the noise counts as noise: a model that does not fit must not be sure of itself.
        excess = max(1.0, 1.4826 * float(np.median(np.abs(data)))) if data.shape[0] else 1.0
        rows = np.concatenate([np.full(data.shape[0], 1.0 / excess), np.ones(theta.shape[0])])
        weighted = _plain_jacobian(jacobian, at_best) * rows[:, None]
        solve = np.linalg.pinv(weighted)
        out = []
        for _ in range(_DRAWS):
            step = solve @ rng.standard_normal(weighted.shape[0])
            iteration, overhead = self.iteration(np.clip(theta + step, self._centre - 6.0, self._centre + 6.0))
            out.append(Draw(iteration, overhead))
        return tuple(out)


def _plain_jacobian(jacobian: Floats, residuals: Floats) -> Floats:
    """Undo the row scaling that scipy's robust loss (soft_l1, f_scale 2) puts on the Jacobian it returns."""
    z = (residuals / 2.0) ** 2
    first = (1.0 + z) ** -0.5
    second = -0.5 * (1.0 + z) ** -1.5
    scale = np.maximum(first + 2.0 * second * z, np.finfo(float).eps) ** 0.5
    return np.asarray(jacobian / scale[:, None])


def _means(group: Group, model: EngineModel) -> dict[str, float]:
    """Replayed means of the requests in the middle, clear of the empty start and the draining end."""
    each = replay(group.workload, model, per_request=True).per_request
    assert each is not None
    n = len(group.workload)
    middle = slice(n // 6, max(n // 6 + 1, n - n // 8))
    done = each.e2e_s[middle] >= 0
    ttft, e2e, queue = each.ttft_s[middle][done], each.e2e_s[middle][done], each.queue_s[middle][done]
    if not ttft.shape[0]:
        return {"itl_s": 1e9, "ttft_s": 1e9, "e2e_s": 1e9}  # all rejected: no such engine served this
    gaps = np.maximum(group.workload.output_tokens[middle][done] - 1, 0)
    without = group.queue_known or group.steady
    return {
        "itl_s": float((e2e - ttft).sum() / max(gaps.sum(), 1)) or model.iteration.base_s,
        "ttft_s": float((ttft - queue).mean() if without else ttft.mean()),
        "e2e_s": float((e2e - queue).mean() if group.steady else e2e.mean()),
    }


def _prior(
    known: Sequence[Sight], prior: EngineModel | None, hardware: Hardware | None, notes: list[str]
) -> tuple[Floats, Floats]:
    """Centre and width of the logarithms of the coefficients.

    The model's size is not known, so the scale comes from the decode that was seen, and the ratios to ``base_s`` (reading all
    weights once) from the roofline, whatever the size. Prefill per token: (bandwidth at 70 %) / (arithmetic at 50 %), of which 60 %
    adds to the iteration, because the first tokens hide behind the reading of the weights. Cache bytes per token over weight
    bytes: 2e-6 to 9e-6 for transformers with grouped heads (70B: 2e-6, 8B: 8e-6), 4e-5 without. Attention per pair over all
    arithmetic per token: 1 / (6 x hidden size), doubled for its lower efficiency. Sampling: about 15 us of a 7 ms iteration.
    """
    if prior is not None:
        values = [max(v, 1e-12) for v in prior.iteration.as_tuple()]
        notes.append("drawn towards the given engine's coefficients where the windows say little")
        width = [0.4] * 5
    else:
        ridge = 0.004
        if hardware is not None:
            ridge = 0.6 * (hardware.bandwidth_gb_s * 0.7) / (hardware.tflops_bf16 * 1e3 * 0.5)
        ratios = (1.0, 0.002, 5e-6, ridge, 8e-5 * ridge)
        base = min(_unloaded(s, ratios) for s in known)
        values = [base * ratio for ratio in ratios]
        width = [0.4, 1.2, 1.2, 0.6 if hardware is not None else 1.2, 1.0]
    outside = [s.overhead_s for s in known if s.overhead_s is not None and not s.steady]
    if outside:  # seen directly
        values.append(max(float(np.median(outside)), 1e-4))
        return np.log(values), np.array([*width, 0.3])
    values.append(0.2 * values[0])
    return np.log(values), np.array([*width, 1.2])


def _unloaded(s: Sight, ratios: Sequence[float]) -> float:
    """The iteration that this window's gap would shrink to without load, if the prior's ratios held."""
    gap = s.itl_s if s.itl_s is not None else (s.e2e_s or 1.0) / (s.output + 1)
    decode = 1.0 + s.running * (ratios[1] + ratios[2] * (s.prompt + s.output / 2))
    prefill = ratios[3] * s.rate * s.prompt * (1.0 - s.cached) * gap
    return gap / (decode + prefill)


def _check_evidence(windows: Sequence[Window], known: Sequence[Sight]) -> None:
    requests = sum(s.requests for s in known)
    if known and requests >= _LEAST_REQUESTS:
        return
    observed = [w for w in windows if w.coverage > 0]
    served = [w for w in observed if w.count("requests")]
    if not observed:
        detail = f"none of {len(windows)} windows was observed; check that the source can be read"
    elif not served:
        detail = f"no requests in {len(observed)} observed windows; send traffic, or simulate some"
    elif not known:
        detail = (
            "the windows lack latency (itl_s, tpot_s, or ttft_s and e2e_s) or lengths (prompt and output tokens); "
            "collect them from the engine's own metrics"
        )
    else:
        detail = f"only {requests:.0f} requests were seen with latency and lengths; {_LEAST_REQUESTS} are needed"
    raise CannotPredict("NO_EVIDENCE", detail)


def _limits(
    shape: Shape, prior: EngineModel | None, windows: Sequence[Window], known: Sequence[Sight], notes: list[str]
) -> Limits:
    """From the shape's engine arguments, else what the engine reported, else ``prior``, else vLLM's defaults."""
    facts: dict[str, str] = {}
    for window in windows:
        facts.update(window.facts)

    def given(name: str) -> int | None:
        for where in (shape.engine, facts):
            value = where.get(name)
            if value is not None and str(value).isdigit() and int(value) > 0:
                return int(value)
        return getattr(prior.limits, name, None) if prior is not None else None

    seqs, tokens = given("max_num_seqs"), given("max_num_batched_tokens")
    if seqs is None:
        seqs = DEFAULT_MAX_NUM_SEQS
        notes.append(f"max_num_seqs is not stated; {seqs} assumed")
    if tokens is None:
        tokens = max(seqs, DEFAULT_MAX_NUM_BATCHED_TOKENS)
        notes.append(f"max_num_batched_tokens is not stated; {tokens} assumed")
    size = given("block_size") or 16
    kv = given("kv_tokens")
    blocks = given("num_gpu_blocks")
    if kv is None and blocks is not None:
        kv = blocks * size
    if kv is None:
        kv = _kv_from_usage(known)
        if kv is not None:
            notes.append(f"KV capacity estimated from its usage: {kv} tokens")
    return Limits(seqs, tokens, None if kv is None else max(kv, size), size, given("max_model_len"))


def _kv_from_usage(known: Sequence[Sight]) -> int | None:
    """Tokens in the batch over the share of the cache in use; the median over windows where that share is not tiny."""
    found = []
    for s in known:
        usage = s.window.gauges.get("kv_usage")
        if usage is not None and usage.mean > 0.02:
            found.append(s.running * (s.prompt + s.output / 2) / usage.mean)
    return int(np.median(found)) if found else None
