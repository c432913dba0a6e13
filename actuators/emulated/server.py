"""An emulated endpoint as a process: OpenAI-compatible over real HTTP, with vLLM's ``/metrics``. No model runs here.

The tokens are words from a list, and they come when a continuous-batching model says that they would. For demonstrations and
tests of Flyball; its figures say nothing about any real server. It is a program of its own in real time, so it reads the clock.

Run: ``python -m actuators.emulated.server --port P --model M --shape JSON --state FILE [--sizes JSON] ...``
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from actuators import wire
from actuators.emulated import api, metrics
from actuators.emulated.endpoint import BadShape, Emulation, Endpoint, Sabotage
from actuators.emulated.engine import Sequence, Size, Timing
from actuators.emulated.replica import Faults
from actuators.shape import Shape

_STREAM_HEAD: wire.Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"transfer-encoding", b"chunked"),
]


class EmulatedServer:
    """Routes requests to the emulated endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.model = endpoint.emulation.model
        self._random = random.Random(f"{endpoint.emulation.seed}/lengths")  # noqa: S311 - lengths, not a secret
        self._numbers = itertools.count(1)
        self._answers: Counter[tuple[str, str, str]] = Counter()
        self._started = time.time()

    async def handle(self, request: wire.Request, writer: asyncio.StreamWriter) -> bool:
        path, method = request.path, request.method.decode("latin-1")
        status = 500
        try:
            if method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
                status = await self._generate(request, writer, chat=path.endswith("chat/completions"))
            else:
                body = await request.json(writer) if request.has_body else None
                status, kind, answer = self._answer(method, path, request, body)
                writer.write(wire.answer(status, kind, answer))
        except asyncio.CancelledError:
            status = 499  # the client has gone, as nginx counts it
            raise
        except wire.BadMessage as error:
            status = error.status
            writer.write(wire.error_answer(status, str(error), close=not request.body_read))
        finally:
            if path.startswith("/v1/"):
                self._answers[path, method, f"{status // 100}xx"] += 1
        return True

    # plain answers

    def _answer(self, method: str, path: str, request: wire.Request, body: Any) -> tuple[int, bytes, bytes]:
        if (method, path) == ("GET", "/metrics"):
            return 200, b"text/plain; version=0.0.4; charset=utf-8", self._metrics().encode()
        status, value = self._json_answer(method, path, request, body)
        return status, b"application/json", json.dumps(value).encode()

    def _json_answer(self, method: str, path: str, request: wire.Request, body: Any) -> tuple[int, Any]:
        match method, path:
            case "GET", "/health":
                return (200 if self.endpoint.serving else 503), {}
            case "GET", "/version":
                return 200, {"version": "emulated"}
            case "GET", "/v1/models":
                card = {
                    "id": self.model,
                    "object": "model",
                    "created": int(self._started),
                    "owned_by": "flyball-emulation",
                }
                return 200, {"object": "list", "data": [{**card, "max_model_len": self._max_model_len()}]}
            case "POST", "/tokenize":
                count = len(api.tokens_of(body if isinstance(body, dict) else {}))
                return 200, {"count": count, "max_model_len": self._max_model_len(), "tokens": list(range(count))}
            case "GET", "/emulated/shape":
                return 200, self.endpoint.status()
            case "PUT", "/emulated/shape":
                return self._put(request, body)
            case "GET", "/emulated/faults":
                return 200, asdict(self.endpoint.faults)
            case "PUT", "/emulated/faults":
                return self._put_faults(body)
        raise wire.BadMessage(f"{method} {path} is not served here", 404)

    def _put(self, request: wire.Request, body: Any) -> tuple[int, Any]:
        if not isinstance(body, dict) or not isinstance(body.get("shape"), dict):
            raise wire.BadMessage('the body must be {"shape": {...}, "token": "..."}', 422)
        token = str(body.get("token", ""))
        if token and token == self.endpoint.token:
            return 202, self.endpoint.status()  # the same step again
        wanted = (request.head.get(b"if-match") or b"").strip(b'"').decode("latin-1")
        if not wanted:
            raise wire.BadMessage("If-Match must name the generation that this change starts from", 428)
        if wanted != str(self.endpoint.generation):
            raise wire.BadMessage(f"the generation is {self.endpoint.generation}, not {wanted}: read it again", 409)
        try:
            self.endpoint.put(Shape.from_dict(body["shape"]), token)
        except (BadShape, TypeError) as error:
            raise wire.BadMessage(str(error), 422) from None
        return 202, self.endpoint.status()

    def _put_faults(self, body: Any) -> tuple[int, Any]:
        """Those that are named; the others stay what they are."""
        try:
            wanted = replace(self.endpoint.faults, **body)
        except (TypeError, ValueError) as error:
            text = f'the body must be some of {{"fail": 0.1, "slow": 2.0, "stick": true}}: {error}'
            raise wire.BadMessage(text, 422) from None
        self.endpoint.faults.become(wanted)
        return 200, asdict(wanted)

    def _max_model_len(self) -> int:
        return self.endpoint.emulation.config(self.endpoint.shape).limits.max_model_len

    def _metrics(self) -> str:
        page = metrics.Page()
        for replica in self.endpoint.replicas:
            scheduler = replica.scheduler
            gauges = (len(scheduler.running), len(scheduler.waiting), scheduler.kv_usage)
            limits = scheduler.limits
            cache = (
                ("block_size", limits.block_size),
                ("num_gpu_blocks", limits.blocks),
                ("enable_prefix_caching", limits.prefix_caching),
            )
            metrics.add_replica(page, replica.metrics, replica.index, self.model, gauges, cache)
        for (path, method, status), count in self._answers.items():
            labels = f'handler="{path}",method="{method}",status="{status}"'
            page.add("http_requests_total", "counter", labels, count)
        page.add("process_start_time_seconds", "gauge", "", self._started)
        page.add("process_cpu_seconds_total", "counter", "", time.process_time())
        return page.text()

    # generation

    async def _generate(self, request: wire.Request, writer: asyncio.StreamWriter, *, chat: bool) -> int:
        body = await request.json(writer)
        name = body.get("model") if isinstance(body, dict) else None
        if name is not None and name != self.model:
            raise wire.BadMessage(f"The model `{name}` does not exist.", 404)
        replica = self.endpoint.choose()
        if replica is None:
            writer.write(wire.error_answer(503, "no replica serves at the moment", headers=[(b"retry-after", b"5")]))
            return 503
        if self._random.random() < self.endpoint.faults.fail:
            writer.write(wire.error_answer(500, "failed as it was asked to"))
            return 500
        limits = replica.scheduler.limits
        completion = api.parse(body, chat=chat, max_model_len=limits.max_model_len, rng=self._random)
        number = next(self._numbers)
        answer = api.AnswerFormat(
            completion, f"{'chatcmpl' if chat else 'cmpl'}-emulated-{number}", self.model, int(time.time())
        )
        finished = asyncio.Event()

        def on_token(sequence: Sequence, now: float) -> None:
            replica.token(sequence, now)
            if completion.stream:
                first = answer.opening() if sequence.produced == 1 else b""
                last = answer.closing() if sequence.finished else b""
                writer.write(first + answer.token(sequence.produced) + last)
            if sequence.finished:
                finished.set()

        sequence = Sequence(
            completion.prompt,
            completion.output,
            replica.now(),
            on_token,
            output_limited=completion.limited,
            content=completion.content(limits.block_size) if limits.prefix_caching else (),
        )
        if not replica.scheduler.fits(completion.prompt, completion.output):
            raise wire.BadMessage(f"{completion.prompt} + {completion.output} tokens do not fit into the KV cache", 400)
        arrives_s = self.endpoint.emulation.overhead_s + self.endpoint.emulation.lag * replica.iteration_s
        if arrives_s > 0:
            await asyncio.sleep(arrives_s)
        replica.submit(sequence)
        if completion.stream:
            writer.write(wire.head_bytes(200, _STREAM_HEAD))
        try:
            await finished.wait()
        finally:
            replica.abort(sequence)  # nothing, once it has finished
        if not completion.stream:
            writer.write(wire.json_answer(200, answer.whole()))
        return 200


async def serve(options: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT; with ``--until-stdin-closes``, until whoever started it is gone."""
    sabotage = Sabotage(options.sabotage["when"], float(options.sabotage["slowdown"])) if options.sabotage else None
    emulation = Emulation(
        model=options.model,
        sizes={name: Size(**size) for name, size in options.sizes.items()},
        timing=Timing(**options.iteration),
        cold_start_s=options.cold_start_s,
        noise=options.noise,
        seed=options.seed,
        sabotage=sabotage,
        overhead_s=options.overhead_s,
        lag=options.lag,
    )
    endpoint = Endpoint(emulation, Shape.from_dict(options.shape), options.state)
    wrong = Faults(options.fail, options.slow, options.stick)
    listening = socket.socket(fileno=options.fd) if options.fd is not None else None
    where = {"sock": listening} if listening is not None else {"host": options.host, "port": options.port}
    server = await wire.start_server(EmulatedServer(endpoint).handle, **where)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    loop.call_later(options.after_s, endpoint.faults.become, wrong)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.until_stdin_closes:
        loop.add_reader(0, lambda: stop.set() if not os.read(0, 1024) else None)
    address = ", ".join("{}:{}".format(*s.getsockname()) for s in server.sockets)
    sys.stdout.write(f"emulated endpoint {options.endpoint}: {endpoint.shape.label()} on {address}\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()
    endpoint.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flyball-emulated", description=__doc__)
    parser.add_argument("--endpoint", required=True, help="the endpoint's name, for people")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shape", required=True, type=json.loads, help="JSON; the state file's shape wins over it")
    parser.add_argument("--sizes", default={}, type=json.loads, help="{NAME: {bandwidth_gb_s, tflops, kv_tokens}}")
    parser.add_argument("--state", required=True, type=Path, help="file that keeps generation and shape")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fd", type=int, help="an open listening socket, instead of host and port")
    parser.add_argument("--iteration", default={}, type=json.loads, help="timing on the reference size: {base_s, ...}")
    parser.add_argument("--cold-start-s", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=0.03, help="sigma of each iteration's lognormal factor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overhead-s", type=float, default=0.0, help="a request reaches the engine so late")
    parser.add_argument("--lag", type=float, default=0.0, help="iterations that a first token is late by")
    parser.add_argument("--fail", type=float, default=0.0, help="the share of requests that are answered 500")
    parser.add_argument("--slow", type=float, default=1.0, help="every iteration takes so many times as long")
    parser.add_argument("--stick", action="store_true", help="nothing comes out any more")
    parser.add_argument("--after-s", type=float, default=0.0, help="from then on")
    parser.add_argument("--sabotage", type=json.loads, help='{"when": {"replicas": 1}, "slowdown": 4.0}')
    parser.add_argument("--until-stdin-closes", action="store_true")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(serve(options))
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f"the emulated endpoint {options.endpoint} cannot start: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
