"""`flyball emulate`: the calibrated twin of an engine as a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.output import console, duration, fail, text

if TYPE_CHECKING:
    from analyzers.whatif.model import EngineModel

#: Without a stated limit the cache of the twin holds so much: more than any prompt fills.
_UNLIMITED_TOKENS, _LONGEST = 100_000_000, 1_000_000


def add(app: typer.Typer) -> None:
    app.command()(emulate)


def emulate(
    engine: Annotated[Path, typer.Option(help="ENGINE.json, as `flyball calibrate` writes it.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the system chooses.")] = 8000,
    host: Annotated[str, typer.Option(help="Where it listens. Default: this machine alone.")] = "127.0.0.1",
    model: Annotated[str | None, typer.Option(help="The name that it serves. Default: the calibration's.")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Engines behind one address.")] = 1,
    noise: Annotated[float, typer.Option(min=0, help="Sigma of each iteration's lognormal factor.")] = 0.0,
    fail_share: Annotated[
        float, typer.Option("--fail", min=0, max=1, help="The share of requests answered 500.")
    ] = 0.0,
    slow: Annotated[float, typer.Option(help="Every iteration takes so many times as long.")] = 1.0,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Prefixes that were computed are found again.")
    ] = True,
    stick: Annotated[bool, typer.Option("--stick", help="Nothing comes out any more, and nobody is told.")] = False,
    after: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="Faults begin so long after the start.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of noise, lengths and failures.")] = 0,
) -> None:
    """Serve as a calibrated engine would: OpenAI's API with streaming, vLLM's /metrics, /health and /version. No model runs.

    Tokens are words from a list, and come when the engine's iterations would let them out, its queue, batch and KV cache with them:
    autoscalers, gateways and load tests can be tried against "your H100" on a laptop. Faults can be changed while it runs:
    PUT /emulated/faults {"fail": 0.1, "slow": 2.0, "stick": true}.
    """
    import tempfile

    from actuators.emulated import server
    from actuators.emulated.engine import REFERENCE
    from analyzers.whatif.calibrate import CalibratedEngine

    known = _read(engine)
    calibrated = CalibratedEngine.of_engine(known)
    name = model or str(known.source.get("model") or "twin")
    limits = known.limits
    shape = {
        "replicas": replicas,
        "size": "twin",
        "engine": {
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "block_size": limits.block_size,
            "max_model_len": limits.max_model_len or min(_LONGEST, limits.kv_tokens or _LONGEST),
            "enable_prefix_caching": prefix_caching,
        },
    }
    size = {
        "bandwidth_gb_s": REFERENCE.bandwidth_gb_s,
        "tflops": REFERENCE.tflops,
        "kv_tokens": limits.kv_tokens or _UNLIMITED_TOKENS,
    }
    coefficients = asdict(known.iteration)
    overhead_s, lag = (0.0, 0.0) if calibrated is None else (calibrated.overhead_s, calibrated.lag)
    with tempfile.TemporaryDirectory(prefix="flyball-twin-") as folder:
        arguments = [
            "--endpoint",
            "twin",
            "--model",
            name,
            "--shape",
            json.dumps(shape),
            "--sizes",
            json.dumps({"twin": size}),
        ]
        arguments += [
            "--iteration",
            json.dumps(coefficients),
            "--state",
            str(Path(folder) / "state.json"),
            "--cold-start-s",
            "0",
        ]
        arguments += ["--host", host, "--port", str(port), "--noise", str(noise), "--seed", str(seed)]
        arguments += [
            "--overhead-s",
            str(overhead_s),
            "--lag",
            str(lag),
            "--fail",
            str(fail_share),
            "--slow",
            str(slow),
        ]
        arguments += ["--after-s", str(after), *(["--stick"] if stick else [])]
        console.print(f"{text(name)}: no model runs here; ends with Ctrl-C", highlight=False)
        code = server.main(arguments)
    raise typer.Exit(code)


def _read(file: Path) -> EngineModel:
    """The engine of a file. What the twin does not do is said before it starts."""
    from agent.whatif.files import engine_file
    from analyzers.grammar import BadQuestion
    from analyzers.kinds.engine.engines import Engines

    try:
        found = engine_file(file)
    except BadQuestion as error:
        raise fail(str(error), 2) from error
    if not isinstance(found, Engines):
        raise fail(f"{file}: of kind {found.kind}; only an engine is emulated", 2)
    if found.engine.accept_length > 1:
        raise fail(f"{file}: speculative decoding (accept_length) is not emulated", 2)
    if not found.engine.chunked_prefill:
        raise fail(f"{file}: whole-prompt prefill (chunked_prefill: false) is not emulated", 2)
    return found.engine
