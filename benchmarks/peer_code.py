"""Peers whose own code decides: Ray Serve's policy and SkyServe's autoscaler, each in an environment of its own, asked line by line.

Installs and runs them. What they see is what they would see: Ray the mean number of requests over its look-back period, SkyServe the
times of the requests. Their clock is the scenario's.

    python benchmarks/policies.py --install-peers DIR      # once; later --peers DIR
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from analyzers.whatif.scaling import ScalingInput, ScalingPolicy
from benchmarks import simulators
from benchmarks.simulators import NotRun
from benchmarks.world import Scenario

#: By name, what pip installs.
REQUIREMENTS = {"ray_serve": "ray[serve]==2.60.0", "skyserve": "skypilot==0.14.1"}


class PolicyProcess:
    """A peer's script, answering. Use as a context manager."""

    def __init__(self, folder: Path, name: str, stated: Mapping[str, Any]) -> None:
        """Raises NotRun where the peer is not installed."""
        simulators.check_installed(folder, name)
        self._name = name
        self._process = subprocess.Popen(
            simulators.script_of(folder, name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._say(stated)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Raises NotRun where it has ended."""
        self._say(question)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NotRun(f"{self._name} ended: run its script by hand to see why")
        return json.loads(line)

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotRun(f"{self._name} ended: run its script by hand to see why") from None


class RayServePolicy:
    """Asked every 10 s, Ray's interval between two reports of a metric; requests are the mean of its look-back of 30 s."""

    interval_s = 10.0

    def __init__(self, process: PolicyProcess) -> None:
        self._process = process
        self._seen: list[float] = []

    def __call__(self, seen: ScalingInput, state: int | None) -> tuple[int, int]:
        self._seen = [*self._seen[-2:], seen.in_flight]
        wanted = seen.ready + seen.starting if state is None else state
        requests = sum(self._seen) / len(self._seen)
        answer = self._process.ask({"at": seen.at_s, "ready": seen.ready, "wanted": wanted, "requests": requests})
        return answer["wanted"], answer["wanted"]


class SkyServePolicy:
    """Asked every 20 s, its own interval."""

    interval_s = 20.0

    def __init__(self, process: PolicyProcess) -> None:
        self._process = process

    def __call__(self, seen: ScalingInput, state: None) -> tuple[int, None]:
        arrived = round(seen.arrivals_per_s * self.interval_s)
        return self._process.ask({"at": seen.at_s, "arrived": arrived})["wanted"], None


@contextmanager
def ray_serve(folder: Path, scenario: Scenario, stated: Mapping[str, float]) -> Iterator[ScalingPolicy]:
    """``stated``: ``target`` (ongoing requests a replica), ``upscale_delay_s``, ``downscale_delay_s``; Ray's defaults without it."""
    with PolicyProcess(folder, "ray_serve", {"least": 1, "most": scenario.most, **stated}) as process:
        yield RayServePolicy(process)


@contextmanager
def skyserve(folder: Path, scenario: Scenario, stated: Mapping[str, float]) -> Iterator[ScalingPolicy]:
    """``stated``: ``target`` (requests a second a replica), ``upscale_delay_seconds``, ``downscale_delay_seconds``."""
    bounds = {"least": 1, "most": scenario.most, "replicas": scenario.replicas}
    with PolicyProcess(folder, "skyserve", {**bounds, **stated}) as process:
        yield SkyServePolicy(process)
