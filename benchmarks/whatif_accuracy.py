"""How right the what-if engine is, on real measurements that it was not fitted to.

    python benchmarks/whatif_accuracy.py [--data DIR ...] [--protocol NAME ...] [--output FILE]

Protocols, each fitted only on what it names:

- interpolate: a stage from all other stages and workloads of the same model and hardware; of runs request by request at several
  rates, each from all others.
- extrapolate: an experiment's higher rates from its lowest rate alone, with the roofline's belief; of such runs likewise.
- continue: a run's later requests, from their arrivals and lengths and the latencies of its first hundred.
- concurrency: every second concurrency of a system (model, GPU, engine, parallelism) from the others.
- transfer: a system from its datasheet and the model's sizes, with ``--silicon`` from times of its kernels too; of other systems only
  by how many iterations first tokens are late on this engine.

``--data`` is a directory with one of the layouts that ``measurements.py`` reads, or a parent of several; it may be given again. The
table gives median absolute errors; intervals are 80 %, and how often they held is printed. Dense models and mixtures of experts stand
apart, and so does a third of the systems, chosen by a hash of their names: forms, priors and doubts of the engine were found without
it. The JSON has each row. ``--peers DIR``, the folder that
``whatif_speed.py --install-peers`` filled, asks AIConfigurator for some of the same points and prints both errors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analyzers.whatif import priors  # noqa: E402
from analyzers.whatif.discrepancy import Z80, Discrepancy  # noqa: E402
from analyzers.whatif.fit import LAG_DOUBT, EngineFit, Observation, Prior, fit  # noqa: E402
from analyzers.whatif.outlook import Member, look  # noqa: E402
from benchmarks.measurements import Measured, find_all  # noqa: E402

METRICS = ("e2e_mean", "e2e_p90", "itl_mean", "tpot_mean", "ttft_mean", "ttft_p90")
PROTOCOLS = ("interpolate", "extrapolate", "continue", "concurrency", "transfer")
DRAWS = 24
#: From a median absolute deviation to a standard deviation.
_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class Job:
    """One fit, and what it is asked."""

    protocol: str
    seen: tuple[Measured, ...]
    asked: tuple[Measured, ...]
    others: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    """For a transfer: (n, 2), what each measurement of other systems is off their belief, as ``deviations`` gives it."""


# -- the protocols -----------------------------------------------------------------------------------------------------


def jobs(found: dict[str, list[Measured]], protocols: Sequence[str]) -> list[Job]:
    stages, points = _by_system(found["stages"]), _by_system(found["points"])
    out: list[Job] = []
    for system in stages.values():
        out += [Job("interpolate", tuple(o for o in system if o is not m), (m,)) for m in system if len(system) > 1]
    for experiment in _groups(found["stages"], lambda m: (m.system, m.experiment)).values():
        first = min(experiment, key=lambda m: m.load)
        higher = tuple(m for m in experiment if m.load > first.load)
        if higher and not first.saturated:
            out.append(Job("extrapolate", (first,), higher))
    out += [Job("continue", (m,), (m,)) for m in found["requests"]]
    for runs in _by_system(found["requests"]).values():
        rates = sorted((_as_stage(m) for m in runs), key=lambda m: m.load)
        if rates[0].load < rates[-1].load:
            out += [Job("interpolate", tuple(o for o in rates if o is not m), (m,)) for m in rates]
            out.append(Job("extrapolate", tuple(rates[:1]), tuple(m for m in rates if m.load > rates[0].load)))
    for system in points.values():
        loads = sorted({m.load for m in system})
        seen = tuple(m for m in system if m.load in loads[::2])
        asked = tuple(m for m in system if m.load in loads[1::2])
        if seen and asked:
            out.append(Job("concurrency", seen, asked))
    return [job for job in out if job.protocol in protocols]


def _as_stage(run: Measured) -> Measured:
    """A run request by request, seen whole and asked whole."""
    assert run.whole is not None
    return replace(run, observation=run.whole, actual=run.whole_actual, where=slice(0, None), stage=f"{run.load:g}/s")


def held_back(system: str) -> bool:
    """Whether the system belongs to the third that no form, prior or doubt of the engine was fitted to."""
    return zlib.crc32(system.encode()) % 3 == 0


def transfers(found: dict[str, list[Measured]], known: dict[str, tuple[Measured, np.ndarray]]) -> list[Job]:
    """For each system: what the systems of another model are off what is believed of them."""
    out = []
    for system in _by_system([*found["stages"], *found["requests"], *found["points"]]).values():
        target = system[0]
        if target.machine is None:
            continue
        others = [off for other, off in known.values() if other.machine is not None and _lends(target, other)]
        if others:
            out.append(Job("transfer", (), tuple(system), np.concatenate(others)))
    return out


def _lends(one: Measured, other: Measured) -> bool:
    """Whether ``other`` may teach ``one``: another model, in the same engine, measured in the same way."""
    a, b = one.machine, other.machine
    assert a is not None
    assert b is not None
    how, its = ((m.family, m.observation.closed is None, m.observation.inside) for m in (one, other))
    return how == its and a.architecture != b.architecture


def _groups(found: Iterable[Measured], key: Any) -> dict[Any, list[Measured]]:
    out: dict[Any, list[Measured]] = defaultdict(list)
    for m in found:
        out[key(m)].append(m)
    return out


def _by_system(found: Iterable[Measured]) -> dict[str, list[Measured]]:
    return _groups(found, lambda m: m.system)


# -- one job -----------------------------------------------------------------------------------------------------------


def run(job: Job) -> list[dict[str, Any]]:
    """Fit, then predict what is asked. Runs in a process of its own."""
    if job.protocol == "transfer":
        fitted, doubt = _transferred(job)
    else:
        fitted, doubt = _fitted(job.seen), 0.0
    rows = []
    for m in job.asked:
        members = look(
            m.observation.workload,
            m.engine,
            [fitted.best, *fitted.draws[:DRAWS]],
            fitted.discrepancy,
            closed=m.observation.closed,
            inside=m.observation.inside,
            doubt=doubt,
            timeout_s=m.observation.timeout_s,
        )
        rows += _rows(job.protocol, m, list(members))
    return rows


def _fitted(seen: Sequence[Measured]) -> EngineFit:
    return fit([m.observation for m in seen], seen[0].engine, _prior(seen[0], [m.observation for m in seen]))


def _prior(m: Measured, observations: Sequence[Observation]) -> Prior:
    if m.machine is not None:
        return priors.of_machine(m.machine, cache_tokens=m.engine.limits.kv_tokens)
    return priors.of_decode([_decode(o) for o in observations], None, architecture=m.architecture)


def _decode(o: Observation) -> priors.Decode:
    itl = next(part.seen["itl_s"][0] for part in o.parts if "itl_s" in part.seen)
    prompt, output = float(o.workload.prompt_tokens.mean()), float(o.workload.output_tokens.mean())
    return priors.Decode(itl, o.running, prompt + output / 2, o.running * prompt / (output * itl))


def deviations(system: Sequence[Measured]) -> np.ndarray:
    """(n, 2), for each of its measurements that did not saturate: the logarithm of the seen token gap over the believed one, and by how many
    iterations its first tokens come later than believed.

    The last lies outside of what an iteration costs, and goes with the engine: at which intervals it looks for requests, and sends tokens.
    """
    machine = system[0].machine
    assert machine is not None
    belief = fit([], system[0].engine, priors.of_machine(machine)).best
    rows = []
    for m in system:
        if m.saturated:
            continue
        o = m.observation
        (member,) = look(
            o.workload, m.engine, [belief], Discrepancy(), closed=o.closed, inside=o.inside, timeout_s=o.timeout_s
        )
        told = _figures(member, m)
        gap, first = m.actual.get("itl_mean", m.actual.get("tpot_mean")), m.actual.get("ttft_mean")
        if gap and first and told["itl_mean"] and told["ttft_mean"]:
            late = (first - told["ttft_mean"]) / told["itl_mean"] + belief.lag
            waits = float(np.nanmean(member.times.queue_s[m.where])) > 0.5 * told["ttft_mean"]
            rows.append((math.log(gap / told["itl_mean"]), math.nan if waits else late))  # a queue tells of no lag
    return np.array(rows).reshape(-1, 2)


def _transferred(job: Job) -> tuple[EngineFit, float]:
    """The belief about the machine, with the lag that other systems on this engine have; and the doubt that a transfer adds, so that
    an 80 % interval would hold what as many of the others' token gaps are off."""
    machine = job.asked[0].machine
    assert machine is not None
    off, late = job.others.T
    late = late[np.isfinite(late)]
    prior = priors.of_machine(machine)
    if late.size:
        lag = float(np.median(late))
        spread = _TO_DEVIATION * float(np.median(np.abs(late - lag)))
        prior = priors.of_machine(machine, lag=(max(0.0, lag), max(spread, LAG_DOUBT)))
    fitted = fit([], job.asked[0].engine, prior)
    return fitted, float(np.quantile(np.abs(off), 0.8)) / Z80


def _rows(protocol: str, m: Measured, members: Sequence[Member]) -> list[dict[str, Any]]:
    told = [_figures(member, m) for member in members]
    saturates = sum(member.replay.saturated for member in members) / len(members)
    rows = []
    for metric, actual in m.actual.items():
        values = [t[metric] for t in told if t[metric] is not None]
        if not values:
            continue
        low, predicted, high = (float(v) for v in np.quantile(values, (0.1, 0.5, 0.9)))
        rows.append(
            {
                "protocol": protocol,
                "system": m.system,
                "experiment": m.experiment,
                "stage": m.stage,
                "metric": metric,
                "predicted": predicted,
                "actual": actual,
                "low": low,
                "high": high,
                "saturates": saturates,
                "saturated": m.saturated,
                "form": {True: "mixture", False: "dense", None: "unknown"}[m.mixture],
                "held_back": held_back(m.system),
                "kernels": m.machine is not None and m.machine.measured,
            }
        )
    return rows


def _figures(member: Member, m: Measured) -> dict[str, float | None]:
    times, where = member.times, m.where
    done = np.isfinite(times.e2e_s[where])

    def quantile(values: np.ndarray) -> float | None:
        return float(np.quantile(values[where][done], 0.9)) if done.any() else None

    itl = times.mean("itl_s", where)
    return {
        "e2e_mean": times.mean("e2e_s", where),
        "e2e_p90": quantile(times.e2e_s),
        "itl_mean": itl,
        "tpot_mean": itl,
        "ttft_mean": times.mean("ttft_s", where),
        "ttft_p90": quantile(times.ttft_s),
    }


# -- all of it ---------------------------------------------------------------------------------------------------------


def measure(data: Sequence[Path], protocols: Sequence[str], workers: int, *, silicon: bool = False) -> dict[str, Any]:
    started = time.perf_counter()
    found: dict[str, list[Measured]] = defaultdict(list)
    for folder in data:
        for layout, measured in find_all(folder, silicon=silicon).items():
            found[layout] += measured
    todo = jobs(found, protocols)
    with ProcessPoolExecutor(workers) as pool:
        if "transfer" in protocols:
            systems = [
                s for s in _by_system([*found["stages"], *found["requests"], *found["points"]]).values() if s[0].machine
            ]
            offs = track(pool.map(deviations, systems, chunksize=4), "systems", len(systems), transient=True)
            known = {s[0].system: (s[0], off) for s, off in zip(systems, offs, strict=True)}
            todo += transfers(found, known)
        rows = [
            row
            for some in track(pool.map(run, todo, chunksize=2), "predictions", len(todo), transient=True)
            for row in some
        ]
    counts = {layout: len(measured) for layout, measured in found.items()}
    return {
        "schema_version": 1,
        "measurements": counts,
        "summary": summary(rows),
        "apart": {name: summary([r for r in rows if which(r)]) for name, which in _APART.items()},
        "saturation": saturation(rows),
        "wall_s": time.perf_counter() - started,
        "rows": rows,
    }


_APART: dict[str, Callable[[dict[str, Any]], bool]] = {
    "kernel times known": lambda r: r["kernels"],
    "dense models": lambda r: r["form"] == "dense",
    "mixtures of experts": lambda r: r["form"] == "mixture",
    "held back, dense models": lambda r: r["held_back"] and r["form"] == "dense",
    "held back, mixtures of experts": lambda r: r["held_back"] and r["form"] == "mixture",
}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By protocol and metric: number, median, mean and greatest absolute relative error, bias, and the share inside the interval."""
    out = []
    for protocol in PROTOCOLS:
        for metric in METRICS:
            some = [r for r in rows if (r["protocol"], r["metric"]) == (protocol, metric)]
            if not some:
                continue
            off = np.array([r["predicted"] / r["actual"] - 1.0 for r in some])
            steady = [r for r in some if not r["saturated"]]
            held = [r["low"] <= r["actual"] <= r["high"] for r in steady]
            out.append(
                {
                    "protocol": protocol,
                    "metric": metric,
                    "n": len(some),
                    "median": float(np.median(np.abs(off))),
                    "mean": float(np.mean(np.abs(off))),
                    "p90": float(np.quantile(np.abs(off), 0.9)),
                    "greatest": float(np.max(np.abs(off))),
                    "bias": float(np.median(off)),
                    "interval_held": float(np.mean(held)) if held else None,
                }
            )
    return out


def saturation(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each stage of which it is known whether it saturated, with the probability that was stated."""
    seen: dict[tuple[str, str, str], dict[str, Any]] = {}
    for r in rows:
        if r["saturated"] is not None:
            key = (r["protocol"], r["experiment"], r["stage"])
            seen[key] = {
                "protocol": key[0], "experiment": key[1], "stage": key[2],
                "probability": r["saturates"], "saturated": r["saturated"],
            }  # fmt: skip
    return list(seen.values())


def show(result: dict[str, Any], console: Console) -> None:
    for of, some in {"all": result["summary"], **result["apart"]}.items():
        table = Table(title=f"Predicted against measured, absolute relative error: {of}", title_justify="left")
        for name in ("protocol", "metric", "n", "median", "mean", "p90", "greatest", "bias", "80 % interval held"):
            table.add_column(name, justify="left" if name in ("protocol", "metric") else "right")
        for s in some:
            held = "-" if s["interval_held"] is None else f"{s['interval_held']:.0%}"
            table.add_row(
                s["protocol"], s["metric"], str(s["n"]),
                *(f"{s[k]:.1%}" for k in ("median", "mean", "p90", "greatest")), f"{s['bias']:+.1%}", held,
            )  # fmt: skip
        console.print(table)
    told = result["saturation"]
    wrong = [s for s in told if (s["probability"] >= 0.5) != s["saturated"]]
    if told:
        console.print(f"saturates or not: right in {len(told) - len(wrong)} of {len(told)} predictions")
    for s in wrong:
        console.print(f"  wrong: {s['protocol']} {s['experiment']} {s['stage']}: probability {s['probability']:.2f}")
    inside = [r["low"] <= r["actual"] <= r["high"] for r in result["rows"] if not r["saturated"]]
    if inside:
        console.print(f"80 % intervals held in {np.mean(inside):.1%} of {len(inside)} figures")
    console.print(f"{result['wall_s']:.0f} s")


def beside(folder: Path, rows: Sequence[dict[str, Any]], most: int, console: Console) -> dict[str, Any]:
    """AIConfigurator on the same points, printed; or why not."""
    from benchmarks.accuracy_peers import compare
    from benchmarks.simulators import NotRun

    try:
        found = compare(folder, rows, most)
    except NotRun as why:
        console.print(f"AIConfigurator: {why}")
        return {"not_run": str(why)}
    table = Table(title="Median absolute relative error over the same points", title_justify="left")
    for name in ("protocol", "metric", "n", "Flyball", "AIConfigurator"):
        table.add_column(name, justify="left" if name in ("protocol", "metric") else "right")
    for s in found["summary"]:
        table.add_row(s["protocol"], s["metric"], str(s["n"]), f"{s['ours']:.1%}", f"{s['theirs']:.1%}")
    console.print(table)
    console.print(f"AIConfigurator answered {found['answered']} of {found['asked']} points")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", help="may be given again; default: data and data-more beside the project"
    )
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="only this one; may be given again")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--silicon",
        action="store_true",
        help="believe in the kernel times of the extra `silicon` too, where they are known",
    )
    parser.add_argument("--peers", type=Path, help="the folder that whatif_speed.py --install-peers filled")
    parser.add_argument("--peer-points", type=int, default=100, help="points to ask a peer for, about a second each")
    parser.add_argument("--output", type=Path, help="write all rows as JSON")
    args = parser.parse_args()
    data = args.data or [ROOT / ".." / "shared" / name for name in ("data", "data-more")]
    for folder in data:
        if not folder.is_dir():
            print(f"{folder} is not a directory. Give one that holds measurements with --data.", file=sys.stderr)
            return 2
    result = measure(data, args.protocol or PROTOCOLS, args.workers, silicon=args.silicon)
    if not result["rows"]:
        print(
            f"{' and '.join(map(str, data))}: none of experiments.json, requests.csv, points.csv is there that can be used.",
            file=sys.stderr,
        )
        return 2
    show(result, Console(width=140))
    if args.peers is not None:
        result["peers"] = beside(args.peers, result["rows"], args.peer_points, Console(width=140))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
