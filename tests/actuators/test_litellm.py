"""Limits of a model group in a proxy's file: every byte else kept, restarted once, undone to the byte; what LiteLLM would misread is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Trouble
from actuators.litellm.actuator import LiteLLMGroup
from actuators.litellm.yamltext import UneditableYaml, with_value
from actuators.shape import EngineValue, Plan, Shape
from tests.actuators.support import Caller, carry_out, context, reach
from tests.fakes.litellm import MASTER_KEY, FakeProxy

FILE = """\
# Ours. Ask Ada before you change it.
model_list:
  - model_name: chat
    litellm_params:
      model: openai/own   # on the rack
      api_base: http://127.0.0.1:9/v1
      api_key: sk-very-secret
      weight: 1
    model_info: {id: own}
  - model_name: chat
    litellm_params: {model: azure/gpt, api_base: "http://127.0.0.1:9/v1", api_key: sk-very-secret, weight: 3, rpm: 600}
  - model_name: spare
    litellm_params: {model: openai/spare, api_key: sk-very-secret}

router_settings:
  # the default
  routing_strategy: simple-shuffle
  num_retries: 2
litellm_settings:
  callbacks: ["prometheus"]
  fallbacks: [{"other": ["chat"]}]
"""


class Place:
    """A proxy with its file, and a new actuator for each call, as after a kill."""

    def __init__(self, folder: Path, proxy: FakeProxy, **options: Any) -> None:
        self.folder = folder
        self.proxy = proxy
        self.file = proxy.file
        self.caller = Caller()
        stated = {"config": str(proxy.file), "restart": list(proxy.restart), "restart_s": 10.0, "key": MASTER_KEY}
        self.of = context(folder / "state", proxy.url, Shape(), {"group": "chat", **stated, **options}, self.caller)

    def make(self) -> LiteLLMGroup:
        return LiteLLMGroup(self.of)

    def live(self) -> LiveState:
        return asyncio.run(self.make().live())

    def plan(self, **engine: EngineValue) -> Plan:
        live = self.live()
        named = {name.replace("__", "."): value for name, value in engine.items()}
        return asyncio.run(self.make().plan(live, live.shape.with_(engine=named)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with proxied(tmp_path) as made:
        yield made


@contextlib.contextmanager
def proxied(folder: Path, text: str = FILE, **options: Any) -> Iterator[Place]:
    file = folder / "config.yaml"
    file.write_text(text)
    file.chmod(0o640)
    with FakeProxy(file) as proxy:
        yield Place(folder, proxy, **options)


def test_what_the_file_states_is_the_shape(place: Place) -> None:
    live = place.live()
    assert live.ready
    assert live.shape == Shape(
        replicas=2,
        engine={"weight.own": 1, "weight.2": 3, "rpm.2": 600, "routing_strategy": "simple-shuffle", "num_retries": 2},
    )
    assert live.serving is None, "whether a deployment answers is only known from paid calls"


def test_a_change_keeps_every_other_byte_and_goes_back_to_the_very_file(place: Place) -> None:
    wanted = {"weight.own": 4, "weight.2": 0, "tpm.2": 90_000, "rpm.own": 60, "fallbacks": "spare", "cooldown_time": 30}

    async def story() -> None:
        before = await place.make().live()
        after = await reach(place.make, before.shape.with_(engine=wanted), "go")
        assert after.shape.engine == {**before.shape.engine, **wanted}
        assert after.ready
        data = yaml.safe_load(place.file.read_text())
        assert data["litellm_settings"]["fallbacks"] == [{"other": ["chat"]}, {"chat": ["spare"]}]
        assert data["router_settings"]["cooldown_time"] == 30
        assert "# on the rack" in place.file.read_text()
        assert place.file.stat().st_mode & 0o777 == 0o640
        back = await reach(place.make, before.shape, "back")
        assert (back.shape, back.ready) == (before.shape, True)

    asyncio.run(story())
    assert place.file.read_text() == FILE
    assert place.proxy.starts == 3, "each way one restart, though each step was done twice"
    assert {method for method, _ in place.caller.sent} == {"GET"}
    assert not [p for p in place.file.parent.iterdir() if p.name.startswith(".")], "nothing is left beside the file"


def test_without_a_command_the_plan_is_a_patch_without_keys(tmp_path: Path) -> None:
    with proxied(tmp_path, restart=[]) as place:
        plan = place.plan(weight__own=2, rpm__2=900)
        assert plan.operations == ()
        assert plan.by_hand is not None
        assert "-      weight: 1" in plan.by_hand
        assert "+      weight: 2" in plan.by_hand
        assert "secret" not in plan.by_hand
        assert place.plan().by_hand is None


def test_without_its_file_the_proxy_is_only_seen(tmp_path: Path) -> None:
    with proxied(tmp_path, config=None) as place:
        live = place.live()
        assert live.shape.engine["weight.own"] == 1
        assert live.shape.engine["weight.2"] == 3
        with pytest.raises(CannotPlan, match=r"actuator\.options\.config"):
            place.plan(weight__own=2)


def test_a_proxy_that_does_not_run_its_file_is_said_and_restarted(place: Place) -> None:
    place.live()
    place.file.write_text(FILE.replace("weight: 3", "weight: 5"))
    live = place.live()
    assert (live.ready, live.shape.engine["weight.2"]) == (False, 5)
    assert "weight.2 is 3 and not 5" in live.detail
    plan = place.plan()
    assert [o.name for o in plan.operations] == ["restart"]
    asyncio.run(carry_out(place.make, plan))
    assert place.live().ready


@pytest.mark.parametrize("name", ["write", "restart"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_before_or_after_each_step_ends_in_one_write_and_one_restart(
    place: Place, name: str, after: bool
) -> None:
    async def story() -> None:
        live = await place.make().live()
        plan = await place.make().plan(live, live.shape.with_(engine={"weight.own": 2}))
        last = None
        for number, operation in enumerate(plan.operations):
            token = f"c/{number}"
            if operation.name == name and after:
                await place.make().do(operation, token, last)  # its receipt is lost
            receipt = await place.make().do(operation, token, last)
            step = await place.make().done(operation, receipt)
            assert step.progress is Progress.DONE, step.detail
            last = receipt

    asyncio.run(story())
    assert place.proxy.starts == 2
    assert place.live().shape.engine["weight.own"] == 2


def test_a_restart_that_fails_is_said_with_its_words_and_the_file_goes_back(tmp_path: Path) -> None:
    with proxied(tmp_path, restart=["sh", "-c", "echo no such unit >&2; exit 5"]) as place:

        async def story() -> None:
            before = await place.make().live()
            plan = await place.make().plan(before, before.shape.with_(engine={"weight.own": 2}))
            written = await place.make().do(plan.operations[0], "c/0", None)
            with pytest.raises(ActuatorError, match="ended with 5: no such unit"):
                await place.make().do(plan.operations[1], "c/1", written)
            back = await place.make().back(plan, [written], await place.make().live())
            assert [o.name for o in back.operations] == ["write", "restart"]
            last = await place.make().do(back.operations[0], "b/0", None)
            receipt = await place.make().do(back.operations[1], "b/1", last)  # it never ran anything else: no command
            assert (await place.make().done(back.operations[1], receipt)).progress is Progress.DONE

        asyncio.run(story())
        assert place.file.read_text() == FILE


def test_while_it_starts_it_is_pending_and_a_way_back_is_planned(tmp_path: Path) -> None:
    with proxied(tmp_path) as place:

        async def story() -> None:
            before = await place.make().live()
            plan = await place.make().plan(before, before.shape.with_(engine={"weight.own": 2}))
            last = await place.make().do(plan.operations[0], "c/0", None)
            receipt = await place.make().do(plan.operations[1], "c/1", last)
            place.proxy.down = True
            step = await place.make().done(plan.operations[1], receipt)
            assert (step.progress, step.again_in_s) == (Progress.PENDING, 1.0)
            live = await place.make().live()
            assert not live.ready
            back = await place.make().back(plan, [last, receipt], live)
            assert [o.name for o in back.operations] == ["write", "restart"]

        asyncio.run(story())


def test_somebody_elses_write_voids_the_plan(place: Place) -> None:
    plan = place.plan(weight__own=2)
    place.file.write_text(FILE.replace("num_retries: 2", "num_retries: 1"))
    for call in (lambda a: a.clear(plan.operations[0], None), lambda a: a.do(plan.operations[0], "c/0", None)):
        with pytest.raises(ActuatorError) as refused:
            asyncio.run(call(place.make()))
        assert refused.value.trouble is Trouble.DRIFT
    assert "weight: 1" in place.file.read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_refused_before_anything_is_done(place: Place) -> None:
    plan = place.plan(weight__own=2)
    place.file.chmod(0o440)
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(place.make().clear(plan.operations[0], None))
    assert refused.value.trouble is Trouble.DENIED


def test_a_command_that_is_not_there_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with proxied(tmp_path, restart=["no-such-command"]) as place:
        plan = place.plan(weight__own=2)
        with pytest.raises(ActuatorError, match="no-such-command") as refused:
            asyncio.run(place.make().clear(plan.operations[0], None))
        assert refused.value.trouble is Trouble.DENIED


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"weight.own": 0, "weight.2": 0}, "every weight 0"),
        ({"weight.own": -1}, "0 or more"),
        ({"rpm.2": 0}, "1 or more"),
        ({"rpm.2": 1.5}, "whole number"),
        ({"rpm.mine": 5}, "one of own, 2"),
        ({"max_num_seqs": 5}, "known are"),
        ({"fallbacks": "gone"}, "gone cannot be one"),
        ({"fallbacks": "chat"}, "chat cannot be one"),
        ({"routing_strategy": "random"}, "simple-shuffle"),
        ({"routing_strategy": "least-busy", "weight.own": 2}, "looks at no weight"),
    ],
)
def test_what_litellm_would_misread_is_refused(place: Place, engine: dict[str, EngineValue], said: str) -> None:
    live = place.live()
    with pytest.raises(CannotPlan, match=said):
        asyncio.run(place.make().plan(live, live.shape.with_(engine=engine)))


def test_the_first_weight_of_a_group_needs_the_others_too(tmp_path: Path) -> None:
    with proxied(tmp_path, FILE.replace("      weight: 1\n", "").replace(" weight: 3,", "")) as place:
        with pytest.raises(CannotPlan, match=r"weight\.2 too"):
            place.plan(weight__own=2)
        assert place.plan(weight__own=2, weight__2=1).operations


def test_the_masters_key_is_named_where_it_lacks(tmp_path: Path) -> None:
    with (
        proxied(tmp_path, key="sk-wrong") as place,
        pytest.raises(ActuatorError, match="LITELLM_MASTER_KEY") as refused,
    ):
        place.live()
    assert refused.value.trouble is Trouble.DENIED


def test_a_file_with_a_slip_is_said_without_quoting_it(place: Place) -> None:
    place.file.write_text("model_list:\n  - {api_key: sk-very-secret\n")
    with pytest.raises(ActuatorError, match="no YAML") as refused:
        place.live()
    assert "secret" not in str(refused.value)


# -- the text ----------------------------------------------------------------------------------------------------------

_PATHS: list[tuple[str | int, ...]] = [
    ("model_list", 0, "litellm_params", "rpm"),
    ("model_list", 0, "litellm_params", "weight"),
    ("model_list", 1, "litellm_params", "order"),
    ("model_list", 2, "litellm_params", "tpm"),
    ("router_settings", "cooldown_time"),
    ("router_settings", "num_retries"),
    ("litellm_settings", "fallbacks"),
]
_VALUES = st.one_of(st.integers(0, 10**6), st.floats(0, 100), st.just("spare"), st.just([{"chat": ["a", "b"]}]))


@given(st.lists(st.tuples(st.sampled_from(_PATHS), _VALUES), max_size=6))
def test_any_values_set_and_set_back_give_the_very_text(changes: list[tuple[tuple[str | int, ...], Any]]) -> None:
    def value_at(path: tuple[str | int, ...]) -> Any:
        found: Any = yaml.safe_load(FILE)
        for part in path[:-1]:
            found = found[part]
        return found.get(path[-1])

    text = FILE
    for path, value in changes:
        text = with_value(text, path, value)
    for path in dict.fromkeys(reversed([path for path, _ in changes])):
        text = with_value(text, path, value_at(path))
    assert yaml.safe_load(text) == yaml.safe_load(FILE)
    assert [line for line in text.splitlines() if "#" in line] == [line for line in FILE.splitlines() if "#" in line]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a: &x {k: 1}\nb: *x\n", ("b", "k")),
        ("a: [1]\n", ("a", 3, "k")),
        ("a: 1\nb: |\n  text\n  more\n", ("b", "k", "z")),
        ("a:\n  k: 1\n", ("a", "k")),
    ],
)
def test_what_cannot_be_said_in_one_place_is_refused(text: str, path: tuple[str | int, ...]) -> None:
    with pytest.raises(UneditableYaml):
        with_value(text, path, None if path == ("a", "k") else 2)
