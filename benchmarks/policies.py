"""Flyball beside the autoscalers and a clairvoyant: one simulated world, the same traffic and the same truth for all.

    python benchmarks/policies.py [--trace NAME|FILE] [--quick] [--only POLICY,...] [--install-peers DIR | --peers DIR] [--timeline FILE.csv]
        --output FILE

Writes ``{"rows": [{"scenario", "policy", "cost_usd", "within_objective", "ttft_p95_s", "itl_p95_s", "changes", "moves", "wrong_shrinks",
"breach_hours", "settings"}]}``. ``changes`` are those that somebody decided: each move of an autoscaler, each approved change of Flyball's,
of which a schedule is one; ``moves`` are all times that the number of replicas was set. ``world`` says how each is counted,
``analyzers.autoscaling.clairvoyant`` what the clairvoyant is a bound of, ``autoscalers`` how the
peers are set. ``-tuned`` behind a peer's name: with the settings that were best on earlier traffic of the same endpoint.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analyzers.autoscaling import case  # noqa: E402
from analyzers.autoscaling.case import Play, SizeChange  # noqa: E402
from analyzers.autoscaling.clairvoyant import clairvoyant, clairvoyant_by_rules  # noqa: E402
from benchmarks import autoscalers, peer_code, simulators, world  # noqa: E402
from benchmarks.autoscalers import PEERS, Stated  # noqa: E402
from benchmarks.flyball_policy import play_flyball  # noqa: E402
from benchmarks.scenarios import SCENARIOS, of_file  # noqa: E402
from benchmarks.simulators import NotRun  # noqa: E402
from benchmarks.world import Scenario  # noqa: E402


def _flyball_over_hpa(scenario: Scenario) -> Play:
    """It tunes the bounds and targets of ``hpa-concurrency``, which sets the count."""
    return play_flyball(scenario, autoscalers.hpa_concurrency(scenario))


def _static_peak(scenario: Scenario) -> Play:
    """The fewest replicas that hold every hour, found with the whole trace at hand."""
    counts = range(1, scenario.most)
    held = (n for n in counts if not case.breach_hours(scenario, case.in_time(scenario, case.play_static(scenario, n))))
    return case.play_static(scenario, next(held, scenario.most))


def _static_mean(scenario: Scenario) -> Play:
    """The fewest replicas that would hold the same requests if they came evenly spread."""
    even = world.spread(scenario, seed=3)
    held = (
        n for n in range(1, scenario.most) if case.in_time(even, case.play_static(even, n)).mean() >= world.QUANTILE
    )
    return case.play_static(scenario, next(held, scenario.most))


def _on_the_best_size(find: Callable[[Scenario], Play]) -> Callable[[Scenario], Play]:
    """Of the sizes that there are, all of it on the one that turns out cheapest."""

    def found(scenario: Scenario) -> Play:
        plays = []
        for size in scenario.sizes:
            price = size.usd_per_replica_hour / scenario.usd_per_replica_hour
            plays.append(replace(find(scenario.on(size)), sizes=(SizeChange(0.0, size.model, price),)))
        return min(plays, key=lambda played: played.paid_s(scenario.duration_s), default=None) or find(scenario)

    return found


#: What is no peer, by name.
OWN: dict[str, Callable[[Scenario], Play]] = {
    "flyball": play_flyball,
    "flyball-over-hpa": _flyball_over_hpa,
    "oracle": _on_the_best_size(clairvoyant),
    "oracle-by-rules": _on_the_best_size(clairvoyant_by_rules),
    "static-peak": _static_peak,
    "static-mean": _static_mean,
}
#: Behind the name of a peer whose settings were searched for on earlier traffic.
TUNED = "-tuned"


def policies(tuned: bool) -> list[str]:
    """All names; with ``tuned`` the peers a second time."""
    return [*OWN, *PEERS, *((name + TUNED for name in PEERS) if tuned else ())]


def measure(
    scenarios: Sequence[Scenario], names: Sequence[str], folder: Path | None, console: Console
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table's rows, and those over time. A peer that cannot be run is left out, and said so."""
    rows, times = [], []
    for scenario in scenarios:
        for name in names:
            begin = time.perf_counter()
            try:
                played, stated = _played(scenario, name, folder)
            except NotRun as why:
                console.print(f"{scenario.name} {name}: {why}", style="yellow")
                continue
            rows += [row | {"settings": stated} for row in world.score(scenario, name, played)]
            times += world.timeline(scenario, name, played)
            console.print(f"{scenario.name} {name}: {time.perf_counter() - begin:.0f} s", style="dim")
    return rows, times


def _played(scenario: Scenario, name: str, folder: Path | None) -> tuple[Play, Stated]:
    """The play, and what of the policy's settings is not its default. Raises NotRun."""
    if name in OWN:
        return OWN[name](scenario), {}
    peer = PEERS[name.removesuffix(TUNED)]
    if name in PEERS:
        return autoscalers.documented(peer, scenario, folder), peer.documented
    if scenario.earlier is None:
        raise NotRun("there is no earlier traffic to search on")
    return autoscalers.tuned(peer, scenario, scenario.earlier, folder)


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="one world, the same traffic and truth for all")
    table.add_column("scenario")
    table.add_column("policy")
    for column in ("cost", "/ oracle", "within", "TTFT p95", "changes", "moves", "wrong", "breach h"):
        table.add_column(column, justify="right")
    least = {row["scenario"]: row["cost_usd"] for row in rows if row["policy"] == "oracle"}
    for row in rows:
        of = least.get(row["scenario"])
        ttft = row["ttft_p95_s"]
        table.add_row(
            row["scenario"], row["policy"], f"${row['cost_usd']:.2f}", f"{row['cost_usd'] / of:.2f}" if of else "",
            f"{row['within_objective']:.2%}", "never" if ttft is None else f"{ttft:.2f} s", str(row["changes"]), str(row["moves"]),
            str(row["wrong_shrinks"]), str(len(row["breach_hours"])),
        )  # fmt: skip
    console.print(table)


def _scenarios(trace: str | None, quick: bool, console: Console) -> list[Scenario]:
    """One, or all of those whose data is there."""
    if trace is not None:
        return [SCENARIOS[trace](quick) if trace in SCENARIOS else of_file(Path(trace), quick)]
    found = []
    for name, make in SCENARIOS.items():
        try:
            found.append(make(quick))
        except FileNotFoundError as error:
            console.print(f"{name}: not there: {error.filename}", style="yellow")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trace", help=f"one scenario alone ({', '.join(SCENARIOS)}), or a trace's file; without it all"
    )
    parser.add_argument("--quick", action="store_true", help="fewer days and analyses, and no peer searched for")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help="these policies alone, with commas between them"
    )
    parser.add_argument("--peers", type=Path, help="the folder that --install-peers filled")
    parser.add_argument("--install-peers", type=Path, help="install Ray Serve and SkyServe into this folder first")
    parser.add_argument("--timeline", type=Path, help="replicas, load and latency over time, as CSV")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    console = Console(stderr=True, width=110)
    names = args.only or policies(tuned=not args.quick)
    if unknown := [name for name in names if name not in policies(tuned=True)]:
        parser.error(f"unknown policies: {', '.join(unknown)}; there are {', '.join(policies(tuned=True))}")
    if args.install_peers is not None:
        simulators.install(args.install_peers, peer_code.REQUIREMENTS)
    if args.trace is not None and args.trace not in SCENARIOS and not Path(args.trace).is_file():
        parser.error(f"--trace {args.trace}: no scenario, and no file; there are {', '.join(SCENARIOS)}")
    scenarios = _scenarios(args.trace, args.quick, console)
    rows, times = measure(scenarios, names, args.install_peers or args.peers, console)
    show(rows, console)
    args.output.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    if args.timeline is not None:
        with args.timeline.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(times[0]))
            writer.writeheader()
            writer.writerows(times)


if __name__ == "__main__":
    main()
