"""Learn an engine from windows alone.

Windows alike in load are grouped (``evidence``), and an engine is fitted to what was seen of them (``fit``), from the belief that the
datasheet gives (``priors``). Capability is learned from the latency of single requests at a known rate or concurrency, never from
throughput. A window whose requests queue is compared at a full batch, and its TTFT only without the queue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from actuators.shape import Shape
from analyzers.architecture import Architecture, find_architecture, weight_bytes
from analyzers.hardware import Hardware, find
from analyzers.prediction import CannotPredict
from analyzers.vllm_arguments import DEFAULT_MAX_NUM_BATCHED_TOKENS, DEFAULT_MAX_NUM_SEQS
from analyzers.whatif import priors
from analyzers.whatif.discrepancy import Discrepancy
from analyzers.whatif.evidence import WindowEvidence, observations, sight
from analyzers.whatif.fit import MISFIT, OVERHEAD, EngineFit, Observation, PosteriorDraw, Prior, fit, with_draw
from analyzers.whatif.loadtests import observation
from analyzers.whatif.model import EngineLimits, EngineModel, IterationCost
from analyzers.whatif.roofline import RooflineMachine
from collectors.loadtests import LoadTest
from collectors.tokengaps import accept_length
from collectors.window import Window

_LEAST_REQUESTS = 30
#: Loads whose logarithms (running sequences, lengths) round to the same multiple of this are one.
_SAME_LOAD = 0.05
#: Requests in one evaluation: exact enough, and a fit stays within about a second.
REPLAYED = 24_000


@dataclass(frozen=True, slots=True)
class CalibratedEngine:
    """An engine that was learned, how sure that is, and what it rests on."""

    key: str
    """Engine version, model, accelerator and engine arguments: what it holds for."""
    accelerator: str | None
    """Of the shape that it was learned on, by its name in the hardware table; None: not known."""
    accelerator_count: int
    """Per replica."""
    model: EngineModel
    overhead_s: float
    """Added to every TTFT and end-to-end time: network, tokenizer, queueing before the engine."""
    lag: float
    """Iterations that a first token is late by: about one where the engine schedules ahead."""
    draws: tuple[PosteriorDraw, ...]
    windows: int
    requests: float
    load: tuple[float, float]
    """Least and greatest mean running sequences per replica that were seen. Beyond is extrapolation."""
    discrepancy: Discrepancy = field(default_factory=Discrepancy)
    """What the fit was off by, where."""
    architecture: Architecture | None = None
    """Of the model, where its name is known."""
    weight_bytes: float = 2.0
    residuals: Mapping[str, float] = field(default_factory=dict)
    """Root mean square relative error of the fit by metric: ``itl_s``, ``ttft_s``, ``e2e_s``."""
    misfit: Mapping[str, float] = field(default_factory=dict)
    """Those of ``residuals`` that show that the fit did not reach its data."""
    notes: tuple[str, ...] = ()

    @property
    def loads(self) -> int:
        """How many different loads were seen. One alone shows no error: some engine agrees with any."""
        rows = (*self.discrepancy.residuals, *self.discrepancy.unexplained)
        return len({tuple(round(v / _SAME_LOAD) for v in r.where) for r in rows})

    @property
    def warning(self) -> str | None:
        """What must be known of a fit that did not reach its data; None of one that did."""
        if not self.misfit:
            return None
        off = ", ".join(f"{name} is off by {_factor(value)}" for name, value in self.misfit.items())
        return (
            f"the calibration did not reach its data: {off}, where at most {_factor(min(MISFIT[m] for m in self.misfit))} is allowed. "
            "The engine model does not describe what was measured, and intervals are as wide as that"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps it from being believed as it stands."""
        found = [] if self.warning is None else [self.warning]
        if self.loads < 2:
            found.append(
                "not checked: one load only, with which some engine always agrees; its error at other loads is not known"
            )
        return (*found, *(note for note in self.notes if note.startswith(("not used: ", _NO_DECODE))))

    @property
    def best(self) -> PosteriorDraw:
        return PosteriorDraw(self.model.iteration, self.overhead_s, self.lag)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "key": self.key,
            "accelerator": self.accelerator,
            "accelerator_count": self.accelerator_count,
            "model": self.model.to_dict(),
            "overhead_s": self.overhead_s,
            "lag": self.lag,
            "draws": [[*d.iteration.as_tuple(), d.overhead_s, d.lag, d.cache] for d in self.draws],
            "windows": self.windows,
            "requests": self.requests,
            "load": list(self.load),
            "discrepancy": self.discrepancy.as_dict(),
            "architecture": None if self.architecture is None else asdict(self.architecture),
            "weight_bytes": self.weight_bytes,
            "residuals": dict(self.residuals),
            "misfit": dict(self.misfit),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CalibratedEngine:
        """The reverse of ``as_dict``. Raises KeyError on one of an older Flyball, which lacks what this one needs."""
        names = (
            "key",
            "accelerator",
            "accelerator_count",
            "overhead_s",
            "lag",
            "windows",
            "requests",
            "weight_bytes",
            "residuals",
        )
        rest = {name: data[name] for name in names}
        architecture = data["architecture"]
        return cls(
            model=EngineModel.from_dict(data["model"]),
            draws=tuple(PosteriorDraw(IterationCost(*row[:OVERHEAD]), *row[OVERHEAD:]) for row in data["draws"]),
            load=(data["load"][0], data["load"][1]),
            discrepancy=Discrepancy.from_dict(data["discrepancy"]),
            architecture=None if architecture is None else Architecture(**architecture),
            misfit=dict(data.get("misfit", {})),
            notes=tuple(data["notes"]),
            **rest,
        )

    @property
    def engine(self) -> EngineModel:
        """The model with all of this as its ``source``: what ENGINE.json holds."""
        told = self.as_dict()
        del told["model"]
        return replace(self.model, source=told)

    @classmethod
    def of_engine(cls, engine: EngineModel) -> CalibratedEngine | None:
        """The reverse of ``engine``; None where the engine's source carries no calibration."""
        try:
            return cls.from_dict({**engine.source, "model": replace(engine, source={}).to_dict()})
        except (KeyError, TypeError, IndexError):
            return None


def _factor(off: float) -> str:
    """A root mean square of logarithms, as a person says it."""
    return f"{math.exp(off) - 1.0:.0%}"


def calibration_key(facts: Mapping[str, str], shape: Shape) -> str:
    """What a calibration holds for; another key needs another calibration, or a transfer."""
    hardware = f"{shape.accelerator_count or 1}x{shape.accelerator}" if shape.accelerator else shape.size or "unknown"
    named = {"engine_version", "version", "model", "model_name"}
    told = [f"{k}={facts[k]}" for k in sorted(facts) if k in named]
    arguments = [f"{k}={v}" for k, v in sorted(shape.engine.items())]
    return "/".join([hardware, *told, *arguments])


def calibrate(
    windows: Sequence[Window], shape: Shape, *, prior: EngineModel | None, hardware: Hardware | None, seed: int = 0
) -> CalibratedEngine:
    """Fit the engine that served ``windows`` on ``shape``.

    prior: an engine believed to be like this one (same model on another release, say); its coefficients replace the roofline's.
    hardware: the accelerator. With a model whose name is known it gives the roofline; otherwise it ties prefill to decode by its
    ridge point. None: a typical ridge, believed less.
    Raises CannotPredict ``NO_EVIDENCE`` that says what is missing.
    """
    known = [s for w in windows if (s := sight(w, max(1, shape.replicas or w.targets or 1))) is not None]
    _check_evidence(windows, known)
    notes: list[str] = []
    if any(s.little for s in known):
        notes.append("concurrency is from Little's law (rate x time in the system): the windows have no running gauge")
    drafts, accepted = (sum(w.count(name) or 0.0 for w in windows) for name in ("drafts", "accepted_tokens"))
    if (speculated := accept_length(drafts, accepted) or 1.0) > 1.0:
        notes.append(f"it speculates, {speculated:.3g} tokens a step; its iterations are fitted as of one token each")
    facts: dict[str, str] = {}
    for window in windows:
        facts.update(window.facts)
    if facts.get("prefix_caching") == "True" and all(w.count("cached_prompt_tokens") is None for w in windows):
        notes.append(
            "how many prompt tokens came from the prefix cache is not known: prefill may be slower than it looks"
        )
    machine = machine_of(facts, shape, hardware)
    limits = _limits(shape, prior, facts, known, notes)
    found = observations(known, seed, REPLAYED)
    if _no_decode(found):
        notes.append(_NO_DECODE)
    if not any("ttft_s" in part.seen for o in found for part in o.parts):
        notes.append("no usable TTFT (unknown, or mixed with an unknown queue): prefill cost is mostly the prior's")
    engine = EngineModel(IterationCost(1.0), limits, bool(shape.engine.get("enable_chunked_prefill", True)))
    fitted = fit(
        found, engine, _prior(known, prior, hardware, machine, limits, _architecture(facts, shape), notes), seed
    )
    load = [s.running for s in known]
    return calibrated(
        shape,
        windows[-1].facts,
        engine,
        fitted,
        machine=machine,
        windows=len(known),
        requests=float(sum(s.requests for s in known)),
        load=(min(load), max(load)),
        notes=notes,
    )


def calibrate_on_tests(
    tests: Sequence[LoadTest], shape: Shape, *, model: str | None, hardware: Hardware | None, seed: int = 0
) -> CalibratedEngine:
    """Fit the engine that served load tests on ``shape``, one replica.

    model: its name, where the tests do not tell; with ``hardware``, the accelerator, it gives the roofline.
    Raises CannotPredict ``NO_EVIDENCE`` where no test can be used, and says why for each.
    """
    found, used, notes, refused = [], [], [], []
    for i, test in enumerate(tests):
        notes += [f"{test.name}: {note}" for note in test.notes]
        try:
            found.append(observation(test, seed + i))
            used.append(test)
        except CannotPredict as why:
            refused.append(why.detail)
    if not found:
        raise CannotPredict("NO_EVIDENCE", "; ".join(refused) or "no load test was given")
    notes += [f"not used: {why}" for why in refused]
    if _no_decode(found):
        notes.append(_NO_DECODE)
    facts = {"model": name} if (name := model or next((t.model for t in tests if t.model), None)) else {}
    shape, own = _tested_engine(shape, used, notes)
    found = [replace(o, limits=limits) for o, limits in zip(found, own, strict=True)]
    machine = machine_of(facts, shape, hardware)
    limits = _limits(shape, None, facts, (), notes)
    if limits.kv_tokens is None and machine is not None:
        share = shape.engine.get("gpu_memory_utilization")
        tokens = machine.cache_tokens() if share is None else machine.cache_tokens(float(share))
        if tokens:
            limits = replace(limits, kv_tokens=tokens)
            notes.append(
                f"KV capacity from memory less weights: {tokens} tokens, to within {machine.cache_doubt(tokens):.0%}"
            )
    if machine is not None:
        prior = priors.of_machine(machine, cache_known="kv_tokens" in shape.engine, cache_tokens=limits.kv_tokens)
    else:
        notes.append(
            "model or accelerator is not known, so nothing is believed of its size; name both to extrapolate better"
        )
        prior = priors.of_decode(
            [_tested_decode(o) for o in found],
            hardware,
            cache_known="kv_tokens" in shape.engine,
            architecture=_architecture(facts, shape),
        )
    engine = EngineModel(IterationCost(1.0), limits, bool(shape.engine.get("enable_chunked_prefill", True)))
    load = [o.running for o in found]
    return calibrated(
        shape,
        facts,
        engine,
        fit(found, engine, prior, seed),
        machine=machine,
        windows=len(found),
        requests=float(sum(t.completed or 0 for t in tests)),
        load=(min(load), max(load)),
        notes=notes,
    )


_NO_DECODE = "no answer was longer than its first token: what a token costs is believed, not measured"


def _no_decode(found: Sequence[Observation]) -> bool:
    return not any("itl_s" in part.seen or o.workload.output_tokens.mean() >= 2 for o in found for part in o.parts)


#: Engine limits that may differ from test to test of one engine.
_LIMITS_OF_A_TEST = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size")


def _tested_engine(shape: Shape, tests: Sequence[LoadTest], notes: list[str]) -> tuple[Shape, list[dict[str, int]]]:
    """The shape with the engine arguments that the tests tell, and each test's own limits. What ``shape`` states wins.

    Raises CannotPredict ``NO_EVIDENCE`` where the tests are of different engines.
    """
    engine = dict(shape.engine)
    own: list[dict[str, int]] = [{} for _ in tests]
    for name in dict.fromkeys(name for test in tests for name in test.engine):
        told = [test.engine.get(name) for test in tests]
        values = list(dict.fromkeys(value for value in told if value is not None))
        if name in shape.engine:
            others = [str(value) for value in values if str(value) != str(shape.engine[name])]
            if others:
                notes.append(
                    f"{name}: {shape.engine[name]} is stated and the tests say {', '.join(others)}; what is stated is taken"
                )
            continue
        if len(values) > 1 and name not in _LIMITS_OF_A_TEST:
            raise CannotPredict(
                "NO_EVIDENCE",
                f"the tests are of different engines: {name} is {' and '.join(map(str, values))}; calibrate each on its own",
            )
        engine[name] = max(values) if len(values) > 1 else values[0]
        notes.append(f"{name} is {', '.join(map(str, values))} by the tests themselves")
        for limits, value in zip(own, told, strict=True):
            if len(values) > 1 and value is not None:
                limits[name] = int(value)
    return replace(shape, engine=engine), own


def _tested_decode(o: Observation) -> priors.Decode:
    prompt, output = float(o.workload.prompt_tokens.mean()), float(o.workload.output_tokens.mean())
    seen = o.parts[0].seen
    gap = seen["itl_s"][0] if "itl_s" in seen else next(iter(seen.values()))[0] / (output + 1)
    return priors.Decode(gap, o.running, prompt + output / 2, o.running * prompt / (output * gap))


def calibrated(
    shape: Shape,
    facts: Mapping[str, str],
    engine: EngineModel,
    fitted: EngineFit,
    *,
    machine: RooflineMachine | None,
    windows: int,
    requests: float,
    load: tuple[float, float],
    notes: Sequence[str],
) -> CalibratedEngine:
    """A fit on ``shape`` with what it rests on. facts: what the engine says of itself."""
    known = find(shape.accelerator) if shape.accelerator is not None else None
    return CalibratedEngine(
        key=calibration_key(facts, shape),
        accelerator=shape.accelerator if known is None else known.name,
        accelerator_count=shape.accelerator_count or 1,
        model=with_draw(engine, fitted.best),
        overhead_s=fitted.best.overhead_s,
        lag=fitted.best.lag,
        draws=tuple(replace(d, cache=d.cache / fitted.best.cache) for d in fitted.draws),
        windows=windows,
        requests=requests,
        load=load,
        discrepancy=fitted.discrepancy,
        architecture=None if machine is None else machine.architecture,
        weight_bytes=2.0 if machine is None else machine.weight_bytes,
        residuals=fitted.residuals,
        misfit=fitted.misfit,
        notes=tuple(notes),
    )


def machine_of(facts: Mapping[str, str], shape: Shape, hardware: Hardware | None) -> RooflineMachine | None:
    """The replica as model and accelerators; None where either is not known."""
    name, architecture = _model_name(facts, shape), _architecture(facts, shape)
    if architecture is None or hardware is None:
        return None
    precision = shape.engine.get("quantization") or facts.get("quantization") or shape.engine.get("dtype")
    count = shape.engine.get("tensor_parallel_size") or shape.accelerator_count or 1
    return RooflineMachine(
        architecture, hardware, int(count), weight_bytes(name, str(precision) if precision else None)
    )


def _model_name(facts: Mapping[str, str], shape: Shape) -> str:
    return facts.get("model") or facts.get("model_name") or str(shape.engine.get("model", ""))


def _architecture(facts: Mapping[str, str], shape: Shape) -> Architecture | None:
    name = _model_name(facts, shape)
    return find_architecture(name) if name else None


def _prior(
    known: Sequence[WindowEvidence],
    prior: EngineModel | None,
    hardware: Hardware | None,
    machine: RooflineMachine | None,
    limits: EngineLimits,
    architecture: Architecture | None,
    notes: list[str],
) -> Prior:
    cache_known = limits.kv_tokens is not None
    if prior is not None:
        found = priors.of_engine(prior)
        notes.append("drawn towards the given engine's coefficients where the windows say little")
    elif machine is not None:
        found = priors.of_machine(machine, cache_known=cache_known)
        kernels = " and the measured times of its kernels" if machine.measured else ""
        notes.append(f"drawn towards the roofline of its model and accelerator{kernels} where the windows say little")
    else:
        found = priors.of_decode(
            [_decode(s) for s in known], hardware, cache_known=cache_known, architecture=architecture
        )
    outside = [s.overhead_s for s in known if s.overhead_s is not None and not s.steady]
    if outside:  # seen directly
        found.centre[OVERHEAD] = np.log(max(float(np.median(outside)), 1e-4))
        found.doubt[OVERHEAD] = 0.3
    return found


def _decode(s: WindowEvidence) -> priors.Decode:
    gap = s.itl_s if s.itl_s is not None else (s.e2e_s or 1.0) / (s.output + 1)
    return priors.Decode(gap, s.running, s.prompt + s.output / 2, s.rate * s.prompt * (1.0 - s.cached))


def _check_evidence(windows: Sequence[Window], known: Sequence[WindowEvidence]) -> None:
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
    shape: Shape, prior: EngineModel | None, facts: Mapping[str, str], known: Sequence[WindowEvidence], notes: list[str]
) -> EngineLimits:
    """From the shape's engine arguments, else what the engine reported, else ``prior``, else vLLM's defaults."""

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
    return EngineLimits(seqs, tokens, None if kv is None else max(kv, size), size, given("max_model_len"))


def _kv_from_usage(known: Sequence[WindowEvidence]) -> int | None:
    """Tokens in the batch over the share of the cache in use; the median over windows where that share is not tiny."""
    found = []
    for s in known:
        usage = s.window.gauges.get("kv_usage")
        if usage is not None and usage.mean > 0.02:
            found.append(s.running * (s.prompt + s.output / 2) / usage.mean)
    return int(np.median(found)) if found else None
