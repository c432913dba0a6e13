"""Plans of ``vllm-local`` as values: whatever runs, nothing that stays is stopped and nothing is stopped before it is drained."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actuators.base import CannotPlan, Live
from actuators.shape import Plan, Shape
from actuators.vllm_local import planning, settings
from actuators.vllm_local.planning import ROUTER, Serving, World
from actuators.vllm_local.processes import Record


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, Live, Shape]:
    devices = draw(st.sampled_from([(), ("0",), ("0", "1"), ("0", "1", "2", "3")]))
    strategy = draw(st.sampled_from(["auto", "overlap", "replace"]))
    options = settings.Options(model="m", devices=devices, strategy=strategy)
    most = len(devices) or 4
    serving_count, stray_count = draw(st.integers(0, most)), draw(st.integers(0, 2))
    now, wanted = ({"max_num_seqs": draw(st.sampled_from([4, 8]))} for _ in range(2))
    names = [f"g3-{i}" for i in range(serving_count)] + [f"g4-{i}" for i in range(stray_count)]
    digest = settings.digest(options, "m", now)
    places = [*devices, None, None, None, None, None, None]
    records = {n: Record(n, (), digest, 0, places[i], "t", "", 1, 1) for i, n in enumerate(names)}
    running = {n for n in names if draw(st.booleans())} | ({ROUTER} if draw(st.booleans()) else set())
    shape = Shape(replicas=serving_count, engine=now)
    serving = Serving(3, shape, dict.fromkeys(names[:serving_count], "http://x"), "t")
    world = World("chat", "m", options, serving, records, running)
    return world, Live(shape, "3-x", True), Shape(replicas=draw(st.integers(0, most)), engine=wanted)


def planned(case: tuple[World, Live, Shape]) -> Plan | None:
    """None where the person insists on overlapping and there is no room."""
    try:
        return planning.plan(*case)
    except CannotPlan:
        if case[0].options.strategy != "overlap":
            raise
        return None


@given(worlds())
def test_the_last_switch_leads_to_the_wanted_replicas_and_no_stray_is_left(case: tuple[World, Live, Shape]) -> None:
    world, _, wanted = case
    plan = planned(case)
    if plan is None:
        return
    serving, running = set(world.serving.backends), set(world.running) - {ROUTER}
    generation = world.serving.generation
    stopped: set[str] = set()
    drained: set[str] = set()
    for operation in plan.operations:
        names = set(operation.args["replicas"])
        match operation.name:
            case "start_replicas":
                assert operation.args["generation"] == generation
                assert not names & (running | set(world.records)), "a name is never used twice"
                held = [world.records[n].device for n in running] + list(operation.args["replicas"].values())
                if world.options.devices and not set(world.running) - {ROUTER} - serving - stopped:
                    assert len(set(held)) == len(held), "one replica a device"
                running |= names
            case "switch":
                assert operation.args["from_generation"] == generation
                assert names <= running
                serving, generation = names, operation.args["generation"]
            case "drain":
                assert not names & serving
                drained |= names
            case _:
                assert not names & serving, "what serves is never stopped"
                assert names & set(world.serving.backends) <= drained
                stopped |= names
                running -= names
    assert len(serving) == wanted.replicas
    assert running == serving
    assert planning.plan(*case).hash == plan.hash


@given(worlds())
def test_overlap_never_serves_less_than_it_could(case: tuple[World, Live, Shape]) -> None:
    world, _, wanted = case
    plan = planned(case)
    if plan is None or plan.downtime_s:
        return
    switches = [o for o in plan.operations if o.name == "switch"]
    alive = len(set(world.serving.backends) & set(world.running))
    assert all(len(o.args["replicas"]) >= min(alive, wanted.replicas or 0) for o in switches)
