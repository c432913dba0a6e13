"""Public simulators beside the what-if engine, each in an environment of its own and in the same run.

Installs and runs them, and states for each what its answer is: not all of them answer the same question. What is timed is the answer
alone: the start of their interpreter, their imports and their first answer, which reads their tables, count for nothing.

    python benchmarks/whatif_speed.py --install-peers DIR      # once; later --peers DIR
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analyzers.whatif.engine import Replay, replay
from analyzers.whatif.model import EngineModel
from collectors.workload import Workload

#: By name, what pip installs.
REQUIREMENTS = {"vidur": "vidur==0.0.26", "aiconfigurator": "aiconfigurator==0.12.0"}
#: Others, and why they are not in the same run.
ELSEWHERE = {
    "BLIS inference-sim": "no package: a Go program that is built from its source",
    "LLMServingSim": "no package: built from its source together with ASTRA-Sim",
    "AISimulate 0.13": "its package is a stub that fetches the program from an index of its maker",
}
#: Requests of the question to AIConfigurator: with so many, Flyball's own figures are steady.
POINT_REQUESTS = 10_000
_SCRIPTS = Path(__file__).with_name("peers")
#: None may reach for a network in the middle of a measurement.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


class NotRun(Exception):
    """A peer that could not be installed or run, with the reason in one line."""


@dataclass(frozen=True)
class Beside:
    """One peer's rate and Flyball's, on the same question."""

    simulator: str
    answers: str | None
    """What one answer of it is. None here and below: it did not run."""
    unit: str | None
    """What the rates count, per second."""
    theirs_per_s: float | None
    ours_per_s: float | None
    note: str
    """What to know about the comparison, or why there is none."""

    @property
    def ratio(self) -> float | None:
        return None if self.theirs_per_s is None or self.ours_per_s is None else self.ours_per_s / self.theirs_per_s


def install(folder: Path, requirements: Mapping[str, str] = REQUIREMENTS) -> None:
    """Each peer into ``folder``/its name. What is there stays; what failed leaves its reason, and is tried again the next time."""
    for name, requirement in requirements.items():
        if _stamp(folder, name).is_file() and _stamp(folder, name).read_text() == requirement:
            continue
        venv.create(folder / name, with_pip=True, clear=True)
        command = [python_of(folder, name), "-m", "pip", "install", "--quiet", requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            _why(folder, name).write_text(_last_line(done.stderr))
        else:
            _why(folder, name).unlink(missing_ok=True)
            _stamp(folder, name).write_text(requirement)


def ask(folder: Path, name: str, question: Any) -> Any:
    """What the peer's script answers. Raises NotRun."""
    check_installed(folder, name)
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "question.json", Path(scratch) / "answer.json"
        asked.write_text(json.dumps(question))
        command = [*script_of(folder, name), asked, answered]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=scratch, env={**os.environ, **_OFFLINE}
        )
        if done.returncode:
            raise NotRun(f"did not run: {_last_line(done.stderr)}")
        return json.loads(answered.read_text())


def check_installed(folder: Path, name: str) -> None:
    """Raises NotRun, with the reason, unless it is."""
    if not _stamp(folder, name).is_file():
        why = _why(folder, name)
        raise NotRun(f"not installed: {why.read_text() if why.is_file() else 'give --install-peers'}")


def script_of(folder: Path, name: str) -> list[Path]:
    """The command that runs the peer's script in the peer's own environment."""
    return [python_of(folder, name), _SCRIPTS / f"run_{name}.py"]


def python_of(folder: Path, name: str) -> Path:
    return folder.absolute() / name / "bin" / "python"


def _stamp(folder: Path, name: str) -> Path:
    return folder / name / "installed.txt"


def _why(folder: Path, name: str) -> Path:
    return folder / name / "failed.txt"


def _last_line(text: str) -> str:
    """The line that says what was wrong: pip's errors, else the last of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error:")]
    return (errors or lines or ["no message"])[-1][:200]


# -- the comparison ----------------------------------------------------------------------------------------------------


def beside(folder: Path, work: Workload, model: EngineModel, requests: int) -> list[Beside]:
    """All peers on ``work``'s traffic, its first ``requests`` of it where a peer simulates requests."""
    out = []
    for name, compare in (
        ("Vidur", lambda: _vidur(folder, _head(work, requests), model)),
        ("AIConfigurator", lambda: _aiconfigurator(folder, _head(work, POINT_REQUESTS), model)),
    ):
        try:
            out.append(compare())
        except NotRun as why:
            out.append(_not_run(name, str(why)))
    return out + [_not_run(name, f"not run: {why}") for name, why in ELSEWHERE.items()]


def _not_run(name: str, why: str) -> Beside:
    return Beside(name, None, None, None, None, why)


def _vidur(folder: Path, work: Workload, model: EngineModel) -> Beside:
    columns = (work.arrival_s.tolist(), work.prompt_tokens.tolist(), work.output_tokens.tolist())
    question = {
        "iteration": dataclasses.asdict(model.iteration),
        "limits": dataclasses.asdict(model.limits),
        "requests": list(zip(*columns, strict=True)),
    }
    theirs = ask(folder, "vidur", question)
    ours, wall = _fastest(lambda: replay(work, model))
    off = max(_apart(ours.per_request.ttft_s, theirs["ttft_s"]), _apart(ours.per_request.e2e_s, theirs["e2e_s"]))
    return Beside(
        "Vidur 0.0.26",
        "a simulated request",
        "requests",
        len(work) / min(theirs["wall_s"]),
        len(work) / wall,
        f"its events and Sarathi scheduler, with Flyball's iteration costs in place of its table of operators; metrics off; "
        f"{len(work):,} requests; TTFT and end-to-end times apart by {off:.1e} at most",
    )


def _aiconfigurator(folder: Path, work: Workload, model: EngineModel) -> Beside:
    ours, wall = _fastest(lambda: _answered(replay(work, model)))
    prompt, output = round(float(work.prompt_tokens.mean())), round(float(work.output_tokens.mean()))
    steady = max(1, round(ours.running_mean))
    # All different: it keeps what it has worked out. The first reads its tables.
    asked = [_llama(prompt, output, steady + i) for i in range(6)]
    answers = ask(folder, "aiconfigurator", asked)
    refused = [a["refused"] for a in answers if "refused" in a]
    if refused:
        raise NotRun(f"did not answer: {refused[0]}")
    return Beside(
        "AIConfigurator 0.12.0",
        "mean TTFT and TPOT of one operating point",
        "answers",
        1 / min(a["wall_s"] for a in answers[1:]),
        1 / wall,
        f"an 8B model on one H100 with vLLM, {steady} requests of {prompt} + {output} tokens at once: means without arrivals and queue; "
        f"Flyball's answer is a replay of {len(work):,} requests at that load, with percentiles",
    )


def _llama(prompt: int, output: int, at_once: int) -> dict[str, Any]:
    return {
        "model_path": "meta-llama/Meta-Llama-3.1-8B",
        "system_name": "h100_sxm",
        "backend_name": "vllm",
        "isl": prompt,
        "osl": output,
        "batch_size": at_once,
    }


def _answered(out: Replay) -> Replay:
    """With the percentiles drawn that a person asks for."""
    for metric in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        for q in (0.5, 0.95):
            out.distribution(metric).quantile(q)
    return out


def _fastest(run: Callable[[], Replay], repeats: int = 5) -> tuple[Replay, float]:
    walls = []
    for _ in range(repeats):
        begin = time.perf_counter()
        out = run()
        walls.append(time.perf_counter() - begin)
    return out, min(walls)


def _head(work: Workload, n: int) -> Workload:
    return Workload(work.arrival_s[:n], work.prompt_tokens[:n], work.output_tokens[:n], work.prefix_tokens[:n])


def _apart(ours: np.ndarray, theirs: list[float]) -> float:
    """The greatest relative difference."""
    return float(np.max(np.abs(ours / np.array(theirs) - 1.0)))
