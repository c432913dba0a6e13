"""The running daemon takes what the real OpenTelemetry SDK's exporters send: windows, flight records, and never a token of text."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from agent.check import check_plugins
from agent.configfile import load
from agent.governor import Governor
from agent.pushes import MOST_WAITING, PushService
from agent.settings import RetentionSettings, Settings
from agent.store import Store, control, flights, schema, windows
from agent.watch import Watcher
from collectors.clock import Clock
from collectors.flight import FlightRecord
from collectors.http import Http
from collectors.otlp.receiver import METRICS, TRACES
from collectors.receiver import Push, PushAnswer
from collectors.traces import read
from collectors.window import Window
from tests.actuators.support import free_port
from tests.agent.daemons import Daemon, flyball, running, write_settings
from tests.collectors.clocks import MachineClock, SetClock
from tests.collectors.otlp.messages import PROTOBUF, push, request_span, traces

TOKEN = "0123456789abcdef-of-the-sender"
WEB_TOKEN = "0123456789abcdef-of-the-page"
ENV = {"OTLP_TOKEN": TOKEN, "WEB_TOKEN": WEB_TOKEN}
CANARY = "canary-3f9a-the-patient-has"


def settings(folder: Path, **options: Any) -> Path:
    endpoint = {
        "name": "chat",
        "url": f"http://127.0.0.1:{free_port()}",
        "model": "m",
        "sources": {"otlp": {"token": "${OTLP_TOKEN}", "settles_s": 1, "tenant": "user.team", **options}},
    }
    return write_settings(folder, [endpoint], web={"port": free_port(), "token": "${WEB_TOKEN}"})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(settings(tmp_path_factory.mktemp("pushed")), env=ENV) as started:
        started.ready()
        yield started
        assert started.stop() == 0


def url(daemon: Daemon, path: str) -> str:
    return f"http://127.0.0.1:{daemon.settings.web.port}{path}"


def post(daemon: Daemon, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.web.port, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def meters(daemon: Daemon, service: str, *, delta: bool, exponential: bool, token: str = TOKEN) -> MeterProvider:
    temporality = dict.fromkeys(
        (Histogram, Counter), AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
    )
    exporter = OTLPMetricExporter(
        endpoint=url(daemon, METRICS),
        headers={"Authorization": f"Bearer {token}"},
        compression=Compression.Gzip if delta else Compression.NoCompression,
        preferred_temporality=temporality,
    )
    views = (
        [View(instrument_type=Histogram, aggregation=ExponentialBucketHistogramAggregation())] if exponential else []
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    return MeterProvider([reader], Resource({"service.name": "chat", "service.instance.id": service}), views=views)


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("delta", [False, True])
def test_the_sdks_metrics_become_windows(daemon: Daemon, delta: bool, exponential: bool) -> None:
    """Explicit and exponential, delta and cumulative: each value is counted once, whatever the form."""
    provider = meters(daemon, f"{delta}-{exponential}", delta=delta, exponential=exponential)
    meter = provider.get_meter("t")
    told = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    before = seen(daemon)
    e2e = meter.create_histogram(
        "gen_ai.server.request.duration", "s", explicit_bucket_boundaries_advisory=[0.1, 0.2, 0.5, 1, 2, 5]
    )
    ttft = meter.create_histogram(
        "gen_ai.server.time_to_first_token", "ms", explicit_bucket_boundaries_advisory=[10, 20, 50, 100, 200]
    )
    tokens = meter.create_histogram(
        "gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=[1, 4, 16, 64, 256]
    )
    values = np.random.default_rng(7).uniform(0.3, 3.0, 60)
    for i, value in enumerate(values):
        e2e.record(value, {**told, **({"error.type": "500"} if i % 10 == 0 else {})})
        ttft.record(1_000 * value / 20, told)
        tokens.record(100 + i, {**told, "gen_ai.token.type": "input"})
        tokens.record(10, {**told, "gen_ai.token.type": "output"})
        if i == 29:
            provider.force_flush()
            time.sleep(0.05)  # a delta has a length
    provider.force_flush()
    provider.shutdown()
    expected = {"requests": 60, "errors": 6, "prompt_tokens": 60 * 100 + sum(range(60)), "output_tokens": 600}
    gained = daemon.until(lambda: reached(daemon, before, expected), "all that was sent is in windows")
    assert gained["e2e_s"][0] == pytest.approx(60)
    assert gained["e2e_s"][1] == pytest.approx(values.sum())
    assert gained["ttft_s"][1] == pytest.approx(values.sum() / 20)


def seen(daemon: Daemon) -> dict[str, Any]:
    """Sums over all windows; of distributions count and sum."""
    with daemon.store() as store, store.read() as db:
        found: list[Window] = windows.load(db, "chat", "otlp", 0, 1e11, 1.0)
    sums: dict[str, Any] = {
        name: sum(w.counts.get(name, 0.0) for w in found)
        for name in ("requests", "errors", "prompt_tokens", "output_tokens")
    }
    for name in ("e2e_s", "ttft_s"):
        parts = [w.sketches[name] for w in found if name in w.sketches]
        sums[name] = (sum(p.count for p in parts), sum(p.total for p in parts))
    return sums


def reached(daemon: Daemon, before: dict[str, Any], expected: dict[str, float]) -> dict[str, Any] | None:
    now = seen(daemon)
    gained = {name: now[name] - before[name] for name in expected}
    if any(gained[name] < value - 0.5 for name, value in expected.items()):
        return None
    assert gained == {name: pytest.approx(value) for name, value in expected.items()}
    return {name: tuple(a - b for a, b in zip(now[name], before[name], strict=True)) for name in ("e2e_s", "ttft_s")}


def tracers(daemon: Daemon, token: str = TOKEN, **resource: Any) -> TracerProvider:
    exporter = OTLPSpanExporter(
        endpoint=url(daemon, TRACES),
        headers={"Authorization": f"Bearer {token}"},
        compression=Compression.Gzip,
        timeout=10,
    )
    provider = TracerProvider(resource=Resource({"service.name": "chat", **resource}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def test_the_sdks_spans_are_recorded_exported_and_hold_no_word(daemon: Daemon, tmp_path: Path) -> None:
    """A canary stands wherever a sender could write one: it is found in no file of the daemon's, on no page, and in no trace."""
    provider = tracers(daemon, **{"service.instance.id": CANARY, CANARY: CANARY})
    tracer = provider.get_tracer(CANARY)
    system = f"{CANARY}. You are the governor of an engine, and say so. " * 12
    for i in range(8):
        prompt = system + f"Question {i}: {CANARY}?"
        told = {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 200 + i, "gen_ai.usage.output_tokens": 20,
            "gen_ai.response.time_to_first_chunk": 0.25, "gen_ai.input.messages": prompt, "gen_ai.output.messages": CANARY,
            "user.team": CANARY + " of " if i % 2 else "search", CANARY: CANARY, "gen_ai.request.id": CANARY,
        }  # fmt: skip
        span = tracer.start_span(f"chat {CANARY}", kind=SpanKind.CLIENT, attributes=told)
        span.add_event("gen_ai.user.message", {"content": prompt})
        span.add_event(CANARY, {CANARY: CANARY})
        if i == 7:
            span.set_attribute("error.type", CANARY)
            span.set_status(Status(StatusCode.ERROR, CANARY))
            span.record_exception(ValueError(CANARY))
        span.end()
    provider.shutdown()
    meter = meters(daemon, CANARY, delta=True, exponential=False)
    meter.get_meter("t").create_histogram("gen_ai.client.operation.duration", "s").record(
        1.0, {"error.type": CANARY, CANARY: CANARY}
    )
    meter.force_flush()
    meter.shutdown()
    for path, kind in ((TRACES, "json"), (METRICS, "json"), (TRACES, "x-protobuf"), (CANARY, "json")):
        body = f'{{"resourceSpans": "{CANARY}"}}'.encode()
        post(
            daemon,
            f"/{path.lstrip('/')}",
            body,
            {"content-type": f"application/{kind}", "authorization": f"Bearer {TOKEN}"},
        )
    post(
        daemon,
        TRACES,
        b"{}",
        {"content-type": f"{CANARY}/x", "content-encoding": CANARY, "authorization": f"Bearer {CANARY}"},
    )

    out = tmp_path / "trace.csv"
    exported = flyball(
        "recorder", "export", "chat", "--out", str(out), "--since", "1h", "-c", str(daemon.config), env=ENV
    )
    assert exported.returncode == 0, exported.stderr
    trace = read(out)
    assert len(trace.workload) == 7, "the one that failed is no request to replay"
    assert trace.workload.prompt_tokens.tolist() == [200 + i for i in range(7)]
    assert trace.workload.prefix_tokens[0] == 0
    assert all(trace.workload.prefix_tokens[1:] > 150), "they share the system's part"
    listed = flyball("recorder", "list", "-c", str(daemon.config), env=ENV)
    with daemon.store() as store, store.read() as db:
        rows = list(flights.listed(db, "chat", "client", 0, 1e11))
    assert [r["error"] for r in rows] == [None] * 7 + ["error"]
    assert {r["tenant"] for r in rows} == {"search", None}
    told = [exported.stdout, exported.stderr, listed.stdout, out.read_text()]
    for page in (
        "/",
        "/status",
        "/endpoints/chat",
        "/metrics",
        "/index.json",
        "/status.json",
        "/endpoints/chat.json",
        "/openapi.json",
    ):
        told.append(page_of(daemon, page))
    for file in daemon.config.parent.rglob("*"):
        if file.is_file():
            told.append(file.read_bytes().decode("latin-1"))
    assert "flights" in "".join(told), "the database was read"
    assert not [text for text in told if CANARY in text or "the patient" in text or "governor of an engine" in text]


def page_of(daemon: Daemon, path: str, token: str = WEB_TOKEN) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.settings.web.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, f"{path} answered {answer.status}"
    return body


def test_a_wrong_token_and_a_wrong_body_are_answered_and_nobody_dies(daemon: Daemon) -> None:
    body = traces([request_span(time.time(), 1, {"gen_ai.operation.name": "chat"})]).SerializeToString()
    shown = {"authorization": f"Bearer {TOKEN}"}
    assert post(daemon, TRACES, body, dict(PROTOBUF))[0] == 401
    assert post(daemon, TRACES, body, {**PROTOBUF, "authorization": f"Bearer {WEB_TOKEN}"})[0] == 401
    assert post(daemon, TRACES, body, {"content-type": "text/plain", **shown})[0] == 415
    assert post(daemon, TRACES, b"\xff" * 50, {**PROTOBUF, **shown})[0] == 400
    assert post(daemon, TRACES, bytes(2 << 20), {**PROTOBUF, **shown})[0] == 413
    assert (
        post(daemon, TRACES, gzip.compress(bytes(64 << 20)), {**PROTOBUF, **shown, "content-encoding": "gzip"})[0]
        == 413
    )
    assert daemon.get("/readyz")[0] == 200
    with pytest.raises(AssertionError, match="/ answered 401"):  # its token opens no page
        page_of(daemon, "/", TOKEN)
    assert daemon.get("/healthz")[0] == 200


# -- the service -------------------------------------------------------------------------------------------------------


class Scene:
    """The real parts around the service, without a daemon."""

    def __init__(self, store: Store, keep: RetentionSettings | None = None, clock: Clock | None = None) -> None:
        endpoint = {"name": "chat", "url": "http://127.0.0.1:9", "model": "m", "sources": {"otlp": {}}}
        made = Settings.model_validate(
            {"endpoints": [endpoint], "retention": (keep or RetentionSettings()).model_dump()}
        )
        self.governor = Governor(made, store, clock or MachineClock(), holder="t", http=Http())
        self.store = store
        self.service: PushService = self.governor.pushes
        self.watcher: Watcher = self.governor.watcher

    def take(self, sent: Push) -> PushAnswer:
        return asyncio.run(self.service.take(sent, self.lead()))

    def lead(self) -> control.Lead:
        with self.store.write() as db:
            lead = control.acquire(db, "leader", "t", 60)
        assert lead is not None
        return lead


def spans(number: int, at: float | None = None) -> Push:
    told = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 2}
    begin = time.time() - 100 if at is None else at
    return push(traces([request_span(begin + i, 1, told, number=i + 1) for i in range(number)]))


def recorded(store: Store) -> int:
    with store.read() as db:
        return sum(row["requests"] for row in flights.summaries(db))


def test_what_is_acknowledged_is_kept_and_what_comes_again_is_kept_once(store: Store) -> None:
    scene = Scene(store)
    sent = spans(5)
    assert [scene.take(sent).status for _ in range(2)] == [200, 200]
    assert recorded(store) == 5


def test_one_who_stands_by_or_was_deposed_takes_nothing(store: Store) -> None:
    scene = Scene(store)
    standing_by = asyncio.run(scene.service.take(spans(3), None))
    assert (standing_by.status, standing_by.retry_after_s) == (503, 5.0)
    mine = scene.lead()
    with store.write() as db:
        control.release(db, "leader", "t")
        assert control.acquire(db, "leader", "another", 60) is not None
    assert asyncio.run(scene.service.take(spans(3), mine)).status == 503
    assert recorded(store) == 0


def test_while_the_database_is_away_the_sender_is_asked_to_come_again(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'f.db'}")
    store.upgrade()
    scene = Scene(store)
    lead = scene.lead()
    with store.write() as db:
        db.execute(sa.text("ALTER TABLE flights RENAME TO away"))
    answer = asyncio.run(scene.service.take(spans(3), lead))
    assert (answer.status, answer.retry_after_s) == (503, 5.0)
    with store.write() as db:
        db.execute(sa.text("ALTER TABLE away RENAME TO flights"))
    assert asyncio.run(scene.service.take(spans(3), lead)).status == 200
    assert recorded(store) == 3
    store.close()


def test_more_than_can_wait_is_asked_to_come_again(store: Store) -> None:
    """While one push is being kept, which another's transaction holds up here, only so many wait behind it."""
    scene = Scene(store)
    lead = scene.lead()
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with store.write() as db:
            db.execute(sa.update(schema.leases).values(expires_at=schema.leases.c.expires_at))
            held.set()
            free.wait(30)

    async def many() -> list[PushAnswer]:
        sent = [asyncio.create_task(scene.service.take(spans(1, time.time() - i), lead)) for i in range(MOST_WAITING)]
        await asyncio.sleep(0)
        over = await scene.service.take(spans(1), lead)
        free.set()
        return [over, *await asyncio.gather(*sent)]

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    over, *others = asyncio.run(many())
    thread.join()
    assert (over.status, over.retry_after_s) == (429, 1.0)
    assert {answer.status for answer in others} == {200}


def test_the_recorder_is_bounded_in_age_and_in_number(store: Store) -> None:
    scene = Scene(store, RetentionSettings(requests_days=1, requests_rows=4))
    now = time.time()
    assert scene.take(spans(6, now - 60)).status == 200
    assert (
        scene.take(
            push(traces([request_span(now - 2 * 86_400, 1, {"gen_ai.operation.name": "chat"}, number=99)]))
        ).status
        == 200
    )
    assert recorded(store) == 7
    with control.leading(store, scene.lead()) as db:
        scene.service.trim(db, now)
    with store.read() as db:
        rows = list(flights.listed(db, "chat", "client", 0, 1e11))
    assert [round(r["arrived_at"] - now) for r in rows] == [-58, -57, -56, -55], "the newest stay"


def test_a_sender_that_falls_silent_is_missed_unless_it_only_tells_requests(store: Store) -> None:
    clock = SetClock(time.time())
    scene = Scene(store, clock=clock)
    health = scene.governor.watched["chat"].health_of("otlp", "chat")
    lead = scene.lead()

    async def days() -> None:
        await scene.watcher.cycle()
        clock.time += 400
        await scene.watcher.cycle()
        assert "nothing was pushed for 400 s" in (health.last_error or "")
        assert (await scene.service.take(spans(2), lead)).status == 200
        assert health.failures_in_a_row == 0
        clock.time += 4_000
        await scene.watcher.cycle()
        assert health.failures_in_a_row == 0, "no request may have come"
        await scene.watcher.stop()

    asyncio.run(days())


def test_records_are_read_in_order_across_chunks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "_CHUNK", 3)
    records = [("chat", FlightRecord(f"{i:032x}", "server", 100.0 + i // 2)) for i in range(10)]
    with store.write() as db:
        assert flights.keep(db, records[::-1]) == 10
    with store.read() as db:
        rows = list(flights.listed(db, "chat", "server", 0, 1e11))
    assert [r["arrived_at"] for r in rows] == sorted(r["arrived_at"] for r in rows)
    assert len({r["identity"] for r in rows}) == 10


def test_an_open_receiver_is_refused_where_anybody_could_send(tmp_path: Path) -> None:
    path = tmp_path / "flyball.yaml"
    path.write_text(
        "web: {host: 0.0.0.0, token: '${T}'}\nendpoints:\n  - {name: chat, url: http://127.0.0.1:9, sources: {otlp: {}}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T", "0123456789abcdef")
        (problem,) = check_plugins(load(path))
    assert "otlp" in str(problem)
    assert "token" in str(problem)


def test_how_a_sender_is_pointed_here() -> None:
    told = flyball("permissions", "otlp")
    assert told.returncode == 0
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in told.stdout
    listed = flyball("discover", "otlp")
    assert listed.returncode == 2
    assert "flyball permissions otlp" in listed.stderr


def test_a_live_check_asks_nothing_of_one_who_pushes(tmp_path: Path) -> None:
    told = flyball("check", "--live", "-c", str(settings(tmp_path)), env=ENV)
    assert "actuator" in told.stdout + told.stderr, "nobody answers at its address"
    assert "otlp" not in told.stdout + told.stderr
