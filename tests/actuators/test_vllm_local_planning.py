"""Plans of ``vllm-local`` as values: whatever runs, nothing that stays is stopped and nothing is stopped before it is drained."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actuators.base import CannotPlan, LiveState
from actuators.shape import Plan, Shape
from actuators.vllm_local import planning, settings
from actuators.vllm_local.planning import ROUTER, PlanContext, Serving
from actuators.vllm_local.processes import ProcessRecord


@st.composite
def worlds(draw: st.DrawFn) -> tuple[PlanContext, LiveState, Shape]:
    devices = draw(st.sampled_from([(), ("0",), ("0", "1"), ("0", "1", "2", "3")]))
    strategy = draw(st.sampled_from(["auto", "overlap", "replace"]))
    options = settings.Options(model="m", devices=devices, strategy=strategy)
    most = len(devices) or 4
    serving_count, stray_count = draw(st.integers(0, most)), draw(st.integers(0, 2))
    now, wanted = ({"max_num_seqs": draw(st.sampled_from([4, 8]))} for _ in range(2))
    names = [f"g3-{i}" for i in range(serving_count)] + [f"g4-{i}" for i in range(stray_count)]
    digest = settings.digest(options, "m", now)
    places = [*devices, None, None, None, None, None, None]
    records = {n: ProcessRecord(n, (), digest, 0, places[i], "t", "", 1, 1) for i, n in enumerate(names)}
    running = {n for n in names if draw(st.booleans())} | ({ROUTER} if draw(st.booleans()) else set())
    shape = Shape(replicas=serving_count, engine=now)
    serving = Serving(3, shape, dict.fromkeys(names[:serving_count], "http://x"), "t")
    context = PlanContext("chat", "m", options, serving, records, running)
    return context, LiveState(shape, "3-x", True), Shape(replicas=draw(st.integers(0, most)), engine=wanted)


def planned(case: tuple[PlanContext, LiveState, Shape]) -> Plan | None:
    """None where the person insists on overlapping and there is no room."""
    try:
        return planning.plan(*case)
    except CannotPlan:
        if case[0].options.strategy != "overlap":
            raise
        return None


@given(worlds())
def test_the_last_switch_leads_to_the_wanted_replicas_and_no_stray_is_left(
    case: tuple[PlanContext, LiveState, Shape],
) -> None:
    context, _, wanted = case
    plan = planned(case)
    if plan is None:
        return
    serving, running = set(context.serving.backends), set(context.running) - {ROUTER}
    generation = context.serving.generation
    stopped: set[str] = set()
    drained: set[str] = set()
    for operation in plan.operations:
        names = set(operation.args["replicas"])
        match operation.name:
            case "start_replicas":
                assert operation.args["generation"] == generation
                assert not names & (running | set(context.records)), "a name is never used twice"
                held = [context.records[n].device for n in running] + list(operation.args["replicas"].values())
                if context.options.devices and not set(context.running) - {ROUTER} - serving - stopped:
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
                assert names & set(context.serving.backends) <= drained
                stopped |= names
                running -= names
    assert len(serving) == wanted.replicas
    assert running == serving
    assert planning.plan(*case).hash == plan.hash


@given(worlds())
def test_overlap_never_serves_less_than_it_could(case: tuple[PlanContext, LiveState, Shape]) -> None:
    context, _, wanted = case
    plan = planned(case)
    if plan is None or plan.downtime_s:
        return
    switches = [o for o in plan.operations if o.name == "switch"]
    alive = len(set(context.serving.backends) & set(context.running))
    assert all(len(o.args["replicas"]) >= min(alive, wanted.replicas or 0) for o in switches)
