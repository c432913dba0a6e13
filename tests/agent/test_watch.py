"""Monitoring, stepped on virtual time: sources that are read seldom, and replicas that go."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from actuators.base import Actuator, ActuatorError, LiveState, Trouble
from actuators.shape import Autoscaling, Shape
from agent.clock import VirtualClock
from agent.metrics import Metrics
from agent.settings import CollectSettings, EndpointSettings
from agent.spool import Spool
from agent.store import Store, fleet, schema, windows
from agent.watch import MAX_GAPS, WatchedEndpoint, Watcher, lag_of
from analyzers.policy import Catalogue
from collectors.base import Collector, FleetMember, FleetQuery, Scope, ScrapeTarget
from collectors.window import CollectError, Reading, Span, Window

START = 1_700_000_400.0


class Counting:
    """A source whose counter grows by one each second, and that keeps when it was read."""

    source: ClassVar[str] = "counting"
    deadline_s: float | None = None
    settles_s: float = 0.0
    scope: Scope = "replica"

    def __init__(self, clock: VirtualClock, interval_s: float | None) -> None:
        self.interval_s = interval_s
        self.reads: list[tuple[str, float]] = []
        self.down: set[str] = set()
        self.trouble: Mishap | None = None
        self.spoils = False
        """Whether it gives what no window can be made of."""
        self._clock = clock

    async def read(self, target: ScrapeTarget) -> Sequence[Reading]:
        if target.name in self.down:
            raise CollectError("down", "nobody is there")
        if self.trouble is not None:
            await self.trouble()
        self.reads.append((target.name, self._clock.now()))
        samples = {"ttft_s": Spoilt((0.1,))} if self.spoils else {}
        requests = self._clock.monotonic() + 1000
        return [Reading(target.name, self._clock.now(), counters={"requests": requests}, samples=samples)]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START)


class Spoilt(tuple[float, ...]):
    """Passes every check, and no window can be made of it."""

    def __iter__(self) -> Iterator[float]:
        return iter((0.1,)) if inspect.stack()[1].function == "checked" else iter((math.nan,))


class Saying:
    """A system that says what a test lets it say; nobody changes anything here."""

    system: ClassVar[str] = "saying"
    poll_s = 0.0

    def __init__(self, live: LiveState | None = None) -> None:
        self.live_now = live or LiveState(Shape(replicas=1), "1", True)
        self.trouble: Mishap | None = None
        self.asked = 0

    async def live(self) -> LiveState:
        self.asked += 1
        if self.trouble is not None:
            await self.trouble()
        return self.live_now


Mishap = Callable[[], Awaitable[None]]


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_and_heed_nothing() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)
            return


def raising(error: Exception) -> Mishap:
    async def trouble() -> None:
        raise error

    return trouble


def watched_of(name: str, source: Collector, system: Saying) -> WatchedEndpoint:
    endpoint = EndpointSettings(name=name, url="http://127.0.0.1:9", sources={"counting": {}})
    return WatchedEndpoint(endpoint, {"counting": source}, cast("Actuator", system))


def watching(clock: VirtualClock, tmp_path: Path, source: Counting) -> tuple[Watcher, WatchedEndpoint, Store]:
    watched = watched_of("chat", source, Saying())
    watcher, store = watcher_of({"chat": watched}, clock, tmp_path)
    return watcher, watched, store


def watcher_of(
    watched: Mapping[str, WatchedEndpoint], clock: VirtualClock, tmp_path: Path, timeout_s: float = 10.0
) -> tuple[Watcher, Store]:
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    store.upgrade()
    settings = CollectSettings(interval_s=15, window_s=60, timeout_s=timeout_s)
    return Watcher(watched, settings, store, Spool(tmp_path / "spool"), clock, Metrics()), store


async def run(watcher: Watcher, clock: VirtualClock, seconds: float) -> None:
    for _ in range(int(seconds / 15)):
        await watcher.cycle()
        await clock.advance(15)


def test_a_source_with_an_interval_of_its_own_is_read_so_often_and_loses_nothing(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, 60.0)
    watcher, _, store = watching(clock, tmp_path, source)
    asyncio.run(run(watcher, clock, 600))
    gaps = [b[1] - a[1] for a, b in zip(source.reads, source.reads[1:], strict=False)]
    assert set(gaps) == {60.0}
    with store.read() as db:
        rows = windows.load(db, "chat", "counting", START, clock.now(), 60.0)
    whole = rows[1:]  # the first window begins with the first reading
    assert len(whole) >= 6
    assert all(w.coverage == pytest.approx(1.0) and w.count("requests") == pytest.approx(60.0) for w in whole)
    store.close()


@pytest.mark.parametrize(("before_s", "kept"), [(105, 0.75), (75, 0.75)])
def test_a_restart_within_a_window_keeps_the_larger_part_of_it(
    before_s: int, kept: float, clock: VirtualClock, tmp_path: Path
) -> None:
    """One watcher ends ``before_s`` after the start; another goes on from then to the end of the second window."""

    async def read(watcher: Watcher, seconds: int) -> None:
        for _ in range(seconds // 15):
            await watcher.cycle()
            await clock.advance(15)
        await watcher.cycle()

    first, _, store = watching(clock, tmp_path, Counting(clock, None))
    second, _, other = watching(clock, tmp_path, Counting(clock, None))

    async def story() -> None:
        await read(first, before_s)
        await first.end()
        await read(second, 135 - before_s)
        await second.end()

    asyncio.run(story())
    whole, parted = loaded(store, "chat", clock)[:2]
    assert (whole.coverage, parted.coverage) == (1.0, pytest.approx(kept))
    store.close()
    other.close()


def test_a_replica_that_is_taken_away_leaves_no_gap_and_no_trouble(clock: VirtualClock, tmp_path: Path) -> None:
    source = Counting(clock, None)
    system = Saying()
    watcher, store = watcher_of({"chat": watched_of("chat", source, system)}, clock, tmp_path)
    both = LiveState(Shape(replicas=2), "1", True, targets={"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"})
    one = LiveState(Shape(replicas=1), "2", True, targets={"a": "http://127.0.0.1:1"})

    async def story() -> None:
        system.live_now = both
        await run(watcher, clock, 300)
        system.live_now = one
        source.down.add("b")
        await run(watcher, clock, 300)

    asyncio.run(story())
    assert {name for name, at in source.reads if at > START + 345} == {"a"}
    with store.read() as db:
        after = windows.load(db, "chat", "counting", START + 420, clock.now(), 60.0)
    assert after
    assert all(w.coverage == pytest.approx(1.0) and not w.errors for w in after)
    assert all(w.count("requests") == pytest.approx(60.0) for w in after)
    store.close()


def test_a_target_that_fails_is_asked_ever_more_seldom_and_its_windows_are_gaps(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, None)
    source.down.add("http://127.0.0.1:9")
    watcher, watched, store = watching(clock, tmp_path, source)
    asyncio.run(run(watcher, clock, 1800))
    health = watched.health["counting", "http://127.0.0.1:9"]
    assert health.failures == health.failures_in_a_row
    assert 8 <= health.failures <= 12  # 15, 30, 60, 120, 240, then every 300 s
    with store.read() as db:
        rows = windows.load(db, "chat", "counting", START, clock.now(), 60.0)
    assert rows
    assert all(w.coverage == 0 and w.count("requests") is None for w in rows)
    store.close()


def loaded(store: Store, name: str, clock: VirtualClock) -> list[Window]:
    with store.read() as db:
        return windows.load(db, name, "counting", START - 86_400, clock.now() + 86_400, 60.0)


N = 4
TROUBLES: Mapping[str, Mishap | None] = {
    "a bug": raising(KeyError("speed")), "a number": raising(OverflowError("too large")), "hang": hang,
    "hang and heed nothing": hang_and_heed_nothing, "spoil": None,
}  # fmt: skip


@pytest.mark.parametrize("bad", [0, N - 1])
@pytest.mark.parametrize(("where", "what"), [*((w, x) for w in ("source", "system") for x in TROUBLES)])
def test_whatever_one_of_n_endpoints_does_costs_the_others_nothing(
    bad: int, where: str, what: str, tmp_path: Path
) -> None:
    clock = VirtualClock(START)
    sources, systems = [Counting(clock, None) for _ in range(N)], [Saying() for _ in range(N)]
    watched = {str(i): watched_of(str(i), sources[i], systems[i]) for i in range(N)}
    if what == "spoil":
        sources[bad].spoils = True
    elif where == "source":
        sources[bad].trouble = TROUBLES[what]
    else:
        systems[bad].trouble = TROUBLES[what]

    async def story() -> Store:
        watcher, store = watcher_of(watched, clock, tmp_path, timeout_s=0.02)
        await run(watcher, clock, 240)
        await watcher.stop()
        return store

    store = asyncio.run(story())
    for i in range(N):
        rows = loaded(store, str(i), clock)
        if i == bad and (what == "spoil" or where == "source"):
            health = watched[str(i)].health["counting", "http://127.0.0.1:9"]
            assert what == "spoil" or health.failures > 0
            assert sum(sum(w.errors.values()) for w in rows) > 0
            assert all(w.count("requests") is None for w in rows)
        else:  # also the one whose system hangs: its telemetry does not wait for that
            assert [w.coverage for w in rows] == [pytest.approx(1.0)] * 3
            assert all(w.count("requests") == pytest.approx(60.0) for w in rows)
    store.close()


def test_what_a_plugin_must_not_raise_is_counted_on_its_endpoint_as_a_bug(clock: VirtualClock, tmp_path: Path) -> None:
    source = Counting(clock, None)
    source.trouble = raising(KeyError("speed"))
    watcher, watched, store = watching(clock, tmp_path, source)
    asyncio.run(run(watcher, clock, 60))
    health = watched.health["counting", "http://127.0.0.1:9"]
    assert health.last_error == "bug: KeyError: 'speed'"
    assert watcher._metrics.read_errors.labels("chat", "counting", "bug")._value.get() == health.failures > 0
    with store.read() as db:
        assert [row["failures"] for row in fleet.sources(db, "chat")] == [health.failures]
    store.close()


def test_a_system_that_is_down_is_counted_and_the_replicas_last_known_are_read_on(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, None)
    system = Saying(
        LiveState(Shape(replicas=2), "1", True, targets={"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"})
    )
    watched = watched_of("chat", source, system)

    async def story() -> None:
        watcher, store = watcher_of({"chat": watched}, clock, tmp_path)
        await run(watcher, clock, 60)
        system.trouble = raising(ActuatorError("UNREACHABLE", "nobody answers", trouble=Trouble.UNREACHABLE))
        source.reads.clear()
        await run(watcher, clock, 60)
        assert watched.live is None
        assert [name for name, _ in source.reads] == ["a", "b"] * 4
        store.close()

    asyncio.run(story())


def test_a_system_is_asked_at_its_own_pace(clock: VirtualClock, tmp_path: Path) -> None:
    system = Saying()
    system.poll_s = 60.0

    async def story() -> None:
        watcher, store = watcher_of({"chat": watched_of("chat", Counting(clock, None), system)}, clock, tmp_path)
        await run(watcher, clock, 600)
        assert system.asked == 10
        store.close()

    asyncio.run(story())


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0, 7 * 86_400.0])
def test_a_clock_that_is_set_costs_a_moment_and_no_hour(seconds: float, clock: VirtualClock, tmp_path: Path) -> None:
    source = Counting(clock, None)
    watcher, _, store = watching(clock, tmp_path, source)

    async def story() -> None:
        await run(watcher, clock, 300)
        clock.jump(seconds)
        source.reads.clear()
        await run(watcher, clock, 300)
        assert len(source.reads) == 20

    asyncio.run(story())
    with store.read() as db:
        after = windows.load(db, "chat", "counting", START + 300 + seconds, clock.now(), 60.0)
    whole = [w for w in after if w.coverage == pytest.approx(1.0)]
    assert len(whole) >= 3
    assert all(w.count("requests") == pytest.approx(60.0) for w in whole)
    store.close()


def test_a_clock_a_week_ahead_writes_a_bounded_number_of_gaps_over_all_endpoints(
    clock: VirtualClock, tmp_path: Path
) -> None:
    number = 100
    watched = {str(i): watched_of(str(i), Counting(clock, None), Saying()) for i in range(number)}

    async def story() -> int:
        watcher, store = watcher_of(watched, clock, tmp_path)
        await run(watcher, clock, 60)
        clock.jump(7 * 86_400.0)
        closed = await watcher.cycle()
        store.close()
        return len(closed)

    assert asyncio.run(story()) <= MAX_GAPS + number


# -- saving ------------------------------------------------------------------------------------------------------------


class Away:
    """The database of a watcher, which a test takes away."""

    def __init__(self, store: Store) -> None:
        self._write = store.write
        self.away = False
        store.write = self.write  # type: ignore[method-assign]

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        if self.away:
            raise OperationalError("connect", None, OSError("the server closed the connection"))
        with self._write() as db:
            yield db


def test_what_waits_on_disk_keeps_the_price_of_its_own_day(clock: VirtualClock, tmp_path: Path) -> None:
    watcher, watched, store = watching(clock, tmp_path, Counting(clock, None))
    watched.catalogue = Catalogue(own_price=60.0)
    database = Away(store)

    async def story() -> None:
        await run(watcher, clock, 75)
        database.away = True
        await run(watcher, clock, 120)
        watched.catalogue = Catalogue(own_price=600.0)
        database.away = False
        await run(watcher, clock, 120)

    asyncio.run(story())
    with store.read() as db:
        costs = db.execute(sa.select(schema.windows.c.cost_usd).order_by(schema.windows.c.start)).scalars().all()
    assert costs == pytest.approx([1.0, 1.0, 1.0, 10.0, 10.0])
    store.close()


def test_whatever_lies_in_the_spool_new_windows_are_saved_and_nothing_is_silent(
    clock: VirtualClock, tmp_path: Path
) -> None:
    watcher, _, store = watching(clock, tmp_path, Counting(clock, None))
    spool = tmp_path / "spool"
    (spool / "000000000001.json").mkdir(parents=True)
    (spool / "000000000002.json").write_text("[" * 100_000)
    (spool / "000000000003.json").write_text('[{"endpoint": "chat"}, 7]')
    asyncio.run(run(watcher, clock, 240))
    assert len(loaded(store, "chat", clock)) == 3
    assert watcher._metrics.dropped.labels("damaged")._value.get() == 4
    assert list(spool.glob("*.json")) == []
    store.close()


def test_one_window_that_the_database_never_takes_blocks_no_other(clock: VirtualClock, tmp_path: Path) -> None:
    """What one endpoint costs overflows: its windows are refused one by one, and counted with the reason."""
    many = Saying(LiveState(Shape(replicas=10_000), "1", True))
    watched = {
        name: watched_of(name, Counting(clock, None), system) for name, system in (("good", Saying()), ("bad", many))
    }
    watched["bad"].catalogue = Catalogue(own_price=1e307)
    watcher, store = watcher_of(watched, clock, tmp_path)
    asyncio.run(run(watcher, clock, 240))
    assert len(loaded(store, "good", clock)) == 3
    assert loaded(store, "bad", clock) == []
    assert watcher._metrics.dropped.labels("refused")._value.get() == 3
    assert len(list((tmp_path / "spool").glob("*.refused"))) == 3
    assert watcher._spool.size() == 0
    store.close()


def test_while_the_database_stands_still_readings_go_on_and_windows_wait_on_disk(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, None)
    watched = watched_of("chat", source, Saying())
    store = Store(f"sqlite:///{tmp_path}/flyball.db")
    store.upgrade()
    spool = Spool(tmp_path / "spool")
    settings = CollectSettings(interval_s=0.05, window_s=60, timeout_s=0.05)
    watcher = Watcher({"chat": watched}, settings, store, spool, clock, Metrics())

    async def story() -> None:
        held = threading.Event()

        def hold() -> None:
            with store.write():
                held.wait(20)

        holder = asyncio.create_task(asyncio.to_thread(hold))
        for _ in range(20):
            await watcher.cycle()
            await clock.advance(15)
        assert len(source.reads) == 20
        assert spool.size() > 0
        held.set()
        await holder
        await watcher.stop()
        await watcher.close_windows()

    asyncio.run(story())
    assert spool.size() == 0
    assert [w.start for w in loaded(store, "chat", clock)] == [START + 60 * i for i in range(5)]
    store.close()


# -- sources of the endpoint as a whole, of many endpoints, and late ones ------------------------------------------------


def test_a_source_of_the_endpoint_is_read_once_however_many_replicas_there_are(
    clock: VirtualClock, tmp_path: Path
) -> None:
    source = Counting(clock, None)
    source.scope = "endpoint"
    system = Saying(
        LiveState(Shape(replicas=2), "1", True, targets={"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"})
    )
    watched = watched_of("chat", source, system)
    watcher, store = watcher_of({"chat": watched}, clock, tmp_path)
    asyncio.run(run(watcher, clock, 240))
    assert {name for name, _ in source.reads} == {"chat"}
    assert len(source.reads) == 16
    assert [(w.targets, w.count("requests")) for w in loaded(store, "chat", clock)[1:]] == [
        (1, pytest.approx(60.0))
    ] * 2
    with store.read() as db:
        assert [row["source"] for row in fleet.sources(db, "chat")] == ["counting"]
    store.close()


class Store3:
    """A store that answers for a whole fleet, three minutes late."""

    source: ClassVar[str] = "store3"
    interval_s: float | None = 60.0
    deadline_s: float | None = 0.2
    settles_s: float = 180.0

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.asked: list[tuple[int, float | None]] = []
        self.trouble: Mishap | None = None
        self.bad: dict[str, CollectError | Span] = {}
        self.silent: set[str] = set()

    async def read_all(
        self, wanted: Sequence[FleetQuery], since: float | None
    ) -> AsyncIterator[tuple[str, Reading | Span | CollectError]]:
        self.asked.append((len(wanted), since))
        if self.trouble is not None:
            await self.trouble()
        end = (self._clock.now() - 120) // 60 * 60
        first = end - 60 if since is None else (since - 120) // 60 * 60
        for member in wanted:
            if member.endpoint in self.silent:
                continue
            if member.endpoint in self.bad:
                yield member.endpoint, self.bad[member.endpoint]
                continue
            for i in range(int((end - first) / 60)):
                yield member.endpoint, Span(member.endpoint, first + 60 * i, first + 60 * (i + 1), {"requests": 60.0})


def fleet_of(clock: VirtualClock, n: int) -> tuple[Store3, dict[str, WatchedEndpoint]]:
    shared = Store3(clock)
    watched = {}
    for i in range(n):
        member = FleetMember(shared, FleetQuery(str(i), None))
        watched[str(i)] = watched_of(str(i), cast("Collector", member), Saying())
    return shared, watched


def test_a_fleet_is_asked_once_for_all_and_late_windows_are_whole(clock: VirtualClock, tmp_path: Path) -> None:
    shared, watched = fleet_of(clock, 3)
    watcher, store = watcher_of(watched, clock, tmp_path)
    asyncio.run(run(watcher, clock, 900))
    assert [n for n, _ in shared.asked] == [3] * 15
    assert shared.asked[1] == (3, START)
    for name in watched:
        rows = loaded(store, name, clock)
        assert [w.coverage for w in rows] == [pytest.approx(1.0)] * len(rows)
        assert len(rows) >= 9
        assert all(w.count("requests") == pytest.approx(60.0) for w in rows)
    assert lag_of(watched["0"].collectors["counting"]) == 240.0
    store.close()


@pytest.mark.parametrize("what", ["an error", "nothing", "what cannot be"])
def test_one_endpoint_of_a_fleet_costs_the_others_nothing(what: str, clock: VirtualClock, tmp_path: Path) -> None:
    shared, watched = fleet_of(clock, 3)
    if what == "an error":
        shared.bad["1"] = CollectError("bad_query", "parse error")
    elif what == "nothing":
        shared.silent.add("1")
    else:
        shared.bad["1"] = Span("1", START, START + 60, {"requests": math.nan})
    watcher, store = watcher_of(watched, clock, tmp_path)
    asyncio.run(run(watcher, clock, 900))
    for name in ("0", "2"):
        assert all(w.coverage == pytest.approx(1.0) for w in loaded(store, name, clock))
        assert watched[name].health["counting", name].failures == 0
    kind = {"an error": "bad_query", "nothing": "no_series", "what cannot be": "invalid_value"}[what]
    assert (watched["1"].health["counting", "1"].last_error or "").startswith(kind)
    rows = loaded(store, "1", clock)
    assert rows
    assert all(w.coverage == 0 for w in rows)
    store.close()


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [(hang, "timeout"), (raising(KeyError("x")), "bug"), (raising(CollectError("down", "nobody")), "down")],
)
def test_a_store_that_does_not_answer_is_counted_on_each_and_delays_no_other_source(
    trouble: Mishap, kind: str, clock: VirtualClock, tmp_path: Path
) -> None:
    shared, watched = fleet_of(clock, 3)
    shared.trouble = trouble
    watched["own"] = watched_of("own", Counting(clock, None), Saying())
    watcher, store = watcher_of(watched, clock, tmp_path)
    asyncio.run(run(watcher, clock, 240))
    for name in ("0", "1", "2"):
        assert (watched[name].health["counting", name].last_error or "").startswith(kind)
    assert [w.coverage for w in loaded(store, "own", clock)] == [pytest.approx(1.0)] * 3
    store.close()


def test_a_count_that_is_stated_beside_an_autoscaler_is_none(clock: VirtualClock) -> None:
    """It would make a fixed shape of it, at the price of that count."""
    watched = watched_of("chat", Counting(clock, None), Saying())
    stated = watched.settings.shape.model_copy(update={"replicas": 2})
    watched.settings = watched.settings.model_copy(update={"shape": stated})
    watched.catalogue = Catalogue(own_price=1.5)
    watched.saw(LiveState(Shape(autoscaling=Autoscaling(1, 6)), "1", True, serving=4))
    assert watched.live is not None
    assert watched.live.shape == Shape(autoscaling=Autoscaling(1, 6))
    assert watched.price_per_hour == 6.0
    watched.saw(LiveState(Shape(), "1", True))
    assert watched.live.shape.replicas == 2
