"""Servers of a backend in and out of rotation, weights and limits: read back, resumed after any command, kept in the file after the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, Trouble
from actuators.haproxy.actuator import HAProxyBackend
from actuators.haproxy.configtext import FileServer, UneditableLine, server_of, with_servers
from actuators.shape import Operation, Plan, Shape
from tests.actuators.support import carry_out, context, reach
from tests.fakes.haproxy import FakeHAProxy, FakeServer
from tests.fakes.haproxy.runtime import BY_FILE, FORCED

FILE = """\
# Ours.
backend other
  server a 127.0.0.1:9 weight 7
backend be
  balance roundrobin
  server a 127.0.0.1:9001 check weight 10 maxconn 8
  server b 127.0.0.1:9002 check  weight 10\tmaxconn 8 disabled   # the spare
  server c 127.0.0.1:9003 check disabled
"""


class Place:
    """An HAProxy with one backend, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, haproxy: FakeHAProxy, **options: Any) -> None:
        self.haproxy = haproxy
        self.file = folder / "haproxy.cfg"
        self.file.write_text(FILE)
        self.file.chmod(0o640)
        stated = {"socket": haproxy.socket, "backend": "be", "config": str(self.file), **options}
        self.of = context(folder / "state", "http://127.0.0.1:9", Shape(), stated)

    def make(self) -> HAProxyBackend:
        return HAProxyBackend(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **changes: Any) -> Plan:
        live = self.live()
        return asyncio.run(self.make().plan(live, live.shape.with_(**changes)))


@contextlib.contextmanager
def placed(folder: Path, level: str = "admin", **options: Any) -> Iterator[Place]:
    servers = [
        FakeServer("a", 9001, maxconn=8),
        FakeServer("b", 9002, maxconn=8, admin=FORCED | BY_FILE),
        FakeServer("c", 9003, admin=FORCED | BY_FILE),
    ]
    with FakeHAProxy(servers, level=level) as haproxy:
        yield Place(folder, haproxy, **options)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with placed(tmp_path) as made:
        yield made


def test_servers_in_rotation_weights_and_limits_are_the_shape(place: Place) -> None:
    live = place.live()
    assert live.shape == Shape(
        replicas=1, engine={"weight.a": 10, "weight.b": 10, "weight.c": 10, "maxconn.a": 8, "maxconn.b": 8}
    )
    assert (live.ready, live.serving, live.targets) == (True, 1, {"a": "http://127.0.0.1:9001"})
    assert place.haproxy.writes == []


def test_health_is_no_configuration(place: Place) -> None:
    before = place.live()
    place.haproxy.servers["a"].down = True
    live = place.live()
    assert (live.ready, live.serving, live.targets) == (False, 0, {})
    assert "a is DOWN" in live.detail
    assert (live.shape, live.version) == (before.shape, before.version)


def test_there_and_back_and_kept_in_the_file_only_after_the_verdict(place: Place) -> None:
    async def story() -> None:
        before = await place.make().live()
        wanted = before.shape.with_(replicas=2, engine={"weight.a": 5, "maxconn.c": 4})
        plan = await place.make().plan(before, wanted)
        assert [o.name for o in plan.operations] == ["set", "ready"]
        await carry_out(place.make, plan)
        after = await place.make().live()
        assert (after.shape, after.ready) == (wanted, True)
        assert place.file.read_text() == FILE, "a verdict comes first"
        assert "a reload would change it" in after.detail
        (persist,) = plan.finish
        await place.make().clear(persist, None)
        for _ in range(2):
            receipt = await place.make().do(persist, "c/9", None)
        assert (await place.make().done(persist, receipt)).progress is Progress.DONE
        assert (await place.make().live()).detail == ""
        assert place.file.read_text() == FILE.replace(
            "check weight 10 maxconn 8\n", "check weight 5 maxconn 8\n"
        ).replace(" disabled   # the", "   # the").replace("9003 check disabled", "9003 check disabled maxconn 4")
        assert place.file.stat().st_mode & 0o777 == 0o640
        assert (await reach(place.make, before.shape, "back")).shape == before.shape

    asyncio.run(story())


def test_who_leaves_is_drained_first_and_his_requests_are_waited_for(place: Place) -> None:
    place.haproxy.servers["b"].admin = 0
    place.haproxy.servers["b"].sessions = 3

    async def story() -> None:
        live = await place.make().live()
        plan = await place.make().plan(live, live.shape.with_(replicas=1))
        assert [(o.name, o.args["server"]) for o in plan.operations] == [("drain", "b"), ("maint", "b")]
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        step = await place.make().done(plan.operations[0], receipt)
        assert (step.progress, step.detail) == (Progress.PENDING, "b has 3 requests yet")
        place.haproxy.servers["b"].sessions = 0
        assert (await place.make().done(plan.operations[0], receipt)).progress is Progress.DONE
        last = await place.make().do(plan.operations[1], "c/1", receipt)
        assert (await place.make().done(plan.operations[1], last)).progress is Progress.DONE

    asyncio.run(story())
    assert place.haproxy.writes == ["set server be/b state drain", "set server be/b state maint"]


def test_the_way_back_is_to_just_the_servers_that_were_there(place: Place) -> None:
    place.haproxy.servers["c"].admin = 0  # a and c serve; b comes in, and c must not go out for it

    async def story() -> None:
        before = await place.make().live()
        plan = await place.make().plan(before, before.shape.with_(replicas=3))
        steps = await carry_out(place.make, plan)
        back = await place.make().back(plan, [Receipt() for _ in steps], await place.make().live())
        assert {o.args["server"] for o in back.operations} == {"b"}
        await carry_out(place.make, back, "b")
        assert [s.name for s in place.haproxy.servers.values() if s.status == "UP"] == ["a", "c"]

    asyncio.run(story())


def test_who_wants_a_kept_change_back_has_the_file_back_too(place: Place) -> None:
    async def story() -> None:
        before = await place.make().live()
        plan = await place.make().plan(before, before.shape.with_(replicas=2, engine={"weight.a": 5}))
        done = [Receipt({"step": o.name}) for o in plan.operations]
        await carry_out(place.make, plan)
        live = await place.make().live()
        early = await place.make().back(plan, done, live)
        assert "persist" not in [o.name for o in early.operations], "nothing was written yet"
        place.file.unlink()
        assert (await place.make().back(plan, done, live)).operations == early.operations, "no file stands in the way"
        place.file.write_text(FILE)
        done.append(await place.make().do(plan.finish[0], "c/9", None))
        back = await place.make().back(plan, done, await place.make().live())
        assert [o.name for o in back.operations] == ["set", "drain", "maint", "persist"]
        assert back.finish == ()
        await carry_out(place.make, back, "b")
        assert (await place.make().live()).shape == before.shape

    asyncio.run(story())
    states = [server_of(place.file.read_text(), "be", name) for name in ("a", "b", "c")]
    assert states == [server_of(FILE, "be", name) for name in ("a", "b", "c")]


def test_a_kill_before_or_after_any_command_is_resumed_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    """The connection breaks at the n-th write, before it is carried out and after."""

    async def resumed(place: Place, at: int, after: bool) -> int:
        number = itertools.count()

        def cut(command: str) -> None:
            if not command.startswith("show ") and next(number) == at:
                raise ConnectionResetError

        live = await place.make().live()
        plan = await place.make().plan(live, live.shape.with_(replicas=2, engine={"weight.a": 5, "weight.c": 6}))
        listens = place.haproxy.heard

        def heard(command: str) -> None:
            cut(command)
            listens(command)

        if after:
            place.haproxy.answered = cut
        else:
            place.haproxy.heard = heard
        last: Receipt | None = None
        broken = 0
        for i, operation in enumerate(plan.operations):
            for _ in range(3):
                try:
                    receipt = await place.make().do(operation, f"c/{i}", last)
                    break
                except ActuatorError as error:
                    broken += error.passes
            assert (await place.make().done(operation, receipt)).progress is Progress.DONE
            last = receipt
        assert (await place.make().live()).shape.replicas == 2
        assert len(set(place.haproxy.writes)) == len(place.haproxy.writes) == 3
        return broken

    for at, after in itertools.product(range(3), (False, True)):
        folder = tmp_path / f"{at}{after}"
        folder.mkdir()
        with placed(folder) as place:
            assert asyncio.run(resumed(place, at, after)) == 1


def test_a_reload_in_between_is_a_failed_step(place: Place) -> None:
    async def story() -> None:
        live = await place.make().live()
        plan = await place.make().plan(live, live.shape.with_(replicas=2))
        receipt = await place.make().do(plan.operations[0], "c/0", None)
        place.haproxy.servers["b"].admin = FORCED | BY_FILE
        step = await place.make().done(plan.operations[0], receipt)
        assert (step.progress, "reloaded" in step.detail) == (Progress.FAILED, True)

    asyncio.run(story())


@pytest.mark.parametrize("call", ["clear", "do"])
def test_somebody_elses_change_voids_the_plan(place: Place, call: str) -> None:
    plan = place.plan(engine={"weight.a": 5})
    place.haproxy.servers["c"].weight = 1
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(
            place.make().clear(plan.operations[0], None)
            if call == "clear"
            else place.make().do(plan.operations[0], "c/0", None)
        )
    assert refused.value.trouble is Trouble.DRIFT
    assert place.haproxy.writes == []


def test_a_socket_of_a_lower_level_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with placed(tmp_path, level="operator") as place:
        plan = place.plan(replicas=2)
        with pytest.raises(ActuatorError, match="level admin") as refused:
            asyncio.run(place.make().clear(plan.operations[0], None))
        assert refused.value.trouble is Trouble.DENIED
        assert place.haproxy.writes == []
        with pytest.raises(ActuatorError, match="level admin"):
            asyncio.run(place.make().do(plan.operations[0], "c/0", None))


def test_without_a_file_it_is_said_that_a_reload_loses_it(tmp_path: Path) -> None:
    with placed(tmp_path, config=None) as place:
        plan = place.plan(replicas=2)
        assert plan.finish == ()
        assert "until HAProxy's next reload" in plan.way_back


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 4}, "has 3 servers"),
        ({"engine": {"weight.a": 0}}, "by replicas"),
        ({"engine": {"weight.a": 257}}, "from 1 to 256"),
        ({"engine": {"maxconn.a": -3}}, "whole number"),
        ({"engine": {"weight.a": 1.5}}, "whole number"),
        ({"engine": {"weight.z": 5}}, "one of a, b, c"),
        ({"size": "big"}, "the servers behind it"),
    ],
)
def test_what_haproxy_would_misread_is_refused(place: Place, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotPlan, match=said):
        place.plan(**changes)


def test_engine_limits_that_the_settings_state_come_along_and_are_no_change(place: Place) -> None:
    live = place.live()
    filled = replace(live, shape=live.shape.with_(engine={"max_num_seqs": 16}))
    plan = asyncio.run(place.make().plan(filled, filled.shape.with_(replicas=2)))
    assert [o.name for o in plan.operations] == ["ready"]
    with pytest.raises(CannotPlan, match="known are"):
        asyncio.run(place.make().plan(filled, filled.shape.with_(engine={"max_num_seqs": 8})))


def test_a_server_of_a_template_cannot_be_kept_and_that_is_said_first(place: Place) -> None:
    place.file.write_text(FILE.replace("server b", "server-template b 1-3"))
    with pytest.raises(CannotPlan, match="a template"):
        place.plan(replicas=2)


def test_a_file_changed_meanwhile_keeps_what_others_wrote(place: Place) -> None:
    plan = place.plan(replicas=2)
    place.file.write_text(FILE.replace("# Ours.", "# Theirs."))
    asyncio.run(place.make().do(plan.finish[0], "c/9", None))
    assert place.file.read_text().startswith("# Theirs.")
    assert not server_of(place.file.read_text(), "be", "b").disabled


# -- the text ----------------------------------------------------------------------------------------------------------

_VALUES = st.fixed_dictionaries(
    {}, optional={"weight": st.integers(1, 256), "maxconn": st.integers(0, 10**6), "disabled": st.booleans()}
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), _VALUES))
def test_what_is_set_is_read_and_nothing_else_moves(changes: dict[str, dict[str, int | bool]]) -> None:
    text = with_servers(FILE, "be", changes)
    for server in ("a", "b", "c"):
        before, after, values = server_of(FILE, "be", server), server_of(text, "be", server), changes.get(server, {})
        assert after == FileServer(
            values.get("weight", before.weight),
            values.get("maxconn", before.maxconn),
            bool(values.get("disabled", before.disabled)),
        )
    assert server_of(text, "other", "a").weight == 7
    assert [line.partition("#")[2] for line in text.splitlines()] == [
        line.partition("#")[2] for line in FILE.splitlines()
    ]
    assert with_servers(text, "be", changes) == text


@pytest.mark.parametrize("line", ['  server b 127.0.0.1:9 weight "10"\n', "  server-template b 3 127.0.0.1:9\n", ""])
def test_a_line_that_cannot_be_read_for_certain_is_left_alone(line: str) -> None:
    with pytest.raises(UneditableLine):
        with_servers(f"backend be\n{line}", "be", {"b": {"weight": 2}})


def test_an_unknown_step_of_another_flyball_is_refused(place: Place) -> None:
    with pytest.raises(ActuatorError, match="plan again"):
        asyncio.run(place.make().do(Operation("reload", {}, 1.0, ""), "c/0", None))
