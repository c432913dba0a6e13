"""What a person states about a local vLLM server, and the command line that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from actuators.base import ActuatorError, SystemContext, options_of
from actuators.shape import EngineValue

#: What the actuator itself decides, so that nobody else may.
_OURS = ("model", "served_model_name", "host", "port")


class Options(BaseModel):
    """Settings of the system ``vllm-local``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """A model's folder, or its id on the hub."""
    python: str = sys.executable
    """The interpreter that has vLLM. Default: Flyball's own, for ``pip install flyball[vllm]``."""
    served_model_name: str | None = None
    """The name that clients send. Default: the endpoint's ``model``, or else ``model`` above."""
    listen: str | None = None
    """``HOST:PORT`` of the one address in front of the replicas. Default: that of the endpoint's ``url``."""
    args: Mapping[str, EngineValue | None] = Field(default_factory=dict)
    """Further vLLM arguments by their names: ``load_format: dummy``, ``enforce_eager: true`` (a flag), ``x: false``
    (``--no-x``). Those that Flyball may change belong into the shape's ``engine``."""
    env: Mapping[str, str] = Field(default_factory=dict)
    """Added to the replicas' environment. Of Flyball's own they get paths, locale, and CUDA, HF and VLLM variables only."""
    devices: tuple[str, ...] = ()
    """One entry for each replica's place: the value of CUDA_VISIBLE_DEVICES, such as ``"0"`` or ``"0,1"``. Default: it is not
    set, and any number of replicas is allowed."""
    strategy: Literal["auto", "overlap", "replace"] = "auto"
    """How a restart goes. ``overlap``: new replicas first, then the old ones are drained: no downtime, but room for both is
    needed. ``replace``: drain and stop first. ``auto``: overlap where ``devices`` has free places or is not given, else replace."""
    ready_timeout_s: float = Field(default=900.0, gt=0)
    """How long a replica may take until it serves. Large models load for minutes."""
    start_s: float = Field(default=60.0, gt=0)
    """How long it usually takes. Only for the estimate of a plan's downtime."""
    drain_timeout_s: float = Field(default=300.0, ge=0)
    """How long running requests may take to finish before their replica is stopped all the same."""
    grace_s: float = Field(default=30.0, ge=0)
    """Between SIGTERM and SIGKILL."""

    @field_validator("args")
    @classmethod
    def _not_ours(cls, args: Mapping[str, EngineValue | None]) -> Mapping[str, EngineValue | None]:
        for name in args:
            key = name.lstrip("-").replace("-", "_")
            if key in _OURS:
                raise ValueError(f"{name}: Flyball sets this one itself; state it beside `args`, not in it")
        return args


def parse(context: SystemContext) -> Options:
    """The validated options. Raises ``ActuatorError`` with each problem and its field."""
    return options_of(Options, context, "vllm-local")


def listen_address(options: Options, context: SystemContext) -> tuple[str, int]:
    """Where the router listens. Raises ``ActuatorError`` when neither the options nor the url say a port."""
    text = options.listen if options.listen is not None else urlsplit(context.url).netloc
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ActuatorError("BAD_OPTIONS", f"endpoint {context.endpoint}: `listen` must be HOST:PORT, not {text!r}")
    return host, port


def flags(values: Mapping[str, EngineValue | None]) -> list[str]:
    """vLLM's command line from arguments by name. None leaves one out. Raises ValueError on a name that cannot be one."""
    line: list[str] = []
    for name, value in sorted(values.items()):
        key = name.lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9.-]*", key):
            raise ValueError(f"{name!r} is not the name of an engine argument")
        if value is True:
            line.append(f"--{key}")
        elif value is False:
            line.append(f"--no-{key}")
        elif value is not None:
            line += [f"--{key}", str(value)]
    return line


def command(options: Options, served: str, engine: Mapping[str, EngineValue], port: int) -> list[str]:
    """One replica's command line; the engine's limits win over ``args``. Raises ValueError on a name that cannot be one."""
    args = {k.lstrip("-").replace("-", "_"): v for k, v in options.args.items()}
    limits = {k.replace("-", "_"): v for k, v in engine.items()}
    if ours := [k for k in limits if k in _OURS]:
        raise ValueError(f"{', '.join(ours)} cannot be changed as an engine limit")
    model = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    first = [
        options.python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--served-model-name",
        served,
    ]
    return [*first, "--host", "127.0.0.1", "--port", str(port), *flags({**args, **limits})]


def digest(options: Options, served: str, engine: Mapping[str, EngineValue]) -> str:
    """What decides how a replica serves, as a short hash: command and environment, without port and device."""
    decides = {"command": command(options, served, engine, 0), "env": dict(options.env)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
