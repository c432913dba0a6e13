"""Looking and deciding: `flyball status`, `endpoints`, `recommendations`, `changes`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from agent.cli.output import (
    DEFAULT_CONFIG,
    ConfigOption,
    Output,
    OutputOption,
    actor,
    console,
    fail,
    moment,
    money,
    number,
    print_json,
    read_as,
    stdout,
    table,
    text,
    warnings_on_stderr,
)
from analyzers.words import figure, heading, lasting, observed, track_record, verdict

if TYPE_CHECKING:
    from agent.approvals import Action
    from agent.settings import Settings
    from agent.store import Store

IdArgument = Annotated[str, typer.Argument(help="The id, or how it begins.")]


def add(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(endpoints)
    app.command()(unfreeze)
    group = typer.Typer(help="What Flyball proposes.", no_args_is_help=True)
    group.command("list")(recommendations_list)
    group.command("show")(recommendations_show)
    group.command("approve")(recommendations_approve)
    group.command("reject")(recommendations_reject)
    group.command("snooze")(recommendations_snooze)
    group.command("propose")(recommendations_propose)
    app.add_typer(group, name="recommendations")
    group = typer.Typer(help="What Flyball did.", no_args_is_help=True)
    group.command("list")(changes_list)
    group.command("show")(changes_show)
    group.command("rollback")(changes_rollback)
    app.add_typer(group, name="changes")


@contextmanager
def opened(config: Path) -> Iterator[tuple[Store, Settings]]:
    """The store of these settings, at the right schema."""
    from agent.configfile import load
    from agent.store import Store

    settings = load(config).settings
    store = Store(settings.database)
    try:
        store.check()
        with warnings_on_stderr():
            yield store, settings
    finally:
        store.close()


def named(name: str, settings: Settings) -> None:
    """Exit code 2 where the settings have no endpoint of that name."""
    from analyzers.strict import nearest

    names = [e.name for e in settings.endpoints]
    if name not in names:
        raise fail(f"no endpoint {name}; {nearest(name, names)}", 2)


def _now() -> float:
    from agent.clock import WallClock

    return WallClock().now()


def status(config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.table) -> None:
    """How Flyball itself is: the loop, the pause, what could not be read or delivered."""
    from agent import views

    with opened(config) as (store, settings):
        view = views.status(store, settings, _now())
    if output is Output.json:
        return print_json(view)
    paused, leader = view["paused"], view["leader"]
    rows = [
        ["daemon", "[green]running[/green]" if view["running"] else "[yellow]not running[/yellow]"],
        [
            "last sign of life",
            f"{lasting(view['last_cycle_age_s'])} ago, {moment(view['last_cycle_at'])}"
            if view["last_cycle_at"]
            else "-",
        ],
        ["leader", f"{text(leader['holder'])} (epoch {leader['epoch']})" if leader else "-"],
        [
            "paused",
            f"[red]by {text(paused['by'])}, {moment(paused['at'])}: {text(paused['reason'])}[/red]" if paused else "no",
        ],
        ["database", f"{text(view['database'])}, schema {view['schema']}"],
        ["endpoints", str(view["endpoints"])],
        ["open recommendations", str(view["open_recommendations"])],
        ["changes under way", str(view["active_changes"])],
        ["frozen", text(", ".join(view["frozen"]))],
        ["audit chain", "intact" if view["audit_intact"] else "[red]broken[/red]"],
        ["last report", text(view["last_report"]["path"]) if view["last_report"] else "-"],
    ]
    table("Flyball", ["", ""], rows, "")
    failing = {name: beat["errors"] for name, beat in view["loops"].items() if beat["errors"]}
    table("Loops with errors", ["loop", "errors"], [[n, str(e)] for n, e in failing.items()], "No loop has failed.")
    table(
        "Sources in trouble",
        ["endpoint", "source", "failures in a row", "last error"],
        [
            [s["endpoint"], s["source"], str(s["failures_in_a_row"]), text(s["last_error"])]
            for s in view["sources_in_trouble"]
        ],
        "Every source answers.",
    )
    table(
        "Undelivered messages",
        ["channel", "about", "attempts", "error"],
        [[m["channel"], text(m["subject"]), str(m["attempts"]), text(m["error"])] for m in view["undelivered"]],
        "Every message got out.",
    )
    return None


def endpoints(
    name: Annotated[str | None, typer.Argument(help="Only this one. Default: all.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
) -> None:
    """Every endpoint, or one, against its objective."""
    from agent import views

    with opened(config) as (store, settings):
        if name is not None:
            named(name, settings)
            settings = settings.model_copy(update={"endpoints": [settings.endpoint(name)]})
        view = views.endpoints(store, settings, _now())
    if output is Output.json:
        return print_json(view)
    rows = []
    for e in view["endpoints"]:
        goals = [_goal(o) for o in e["objective"]]
        findings = [f["code"] + (f" ({f['muted']['how']})" if f["muted"] else "") for f in e["findings"]]
        state = "[red]frozen[/red]" if e["frozen"] else ("ready" if e["ready"] else "[yellow]not ready[/yellow]")
        rows.append(
            [
                text(e["name"]),
                e["mode"],
                f"{text(e['label'])}\n{state if e['ready'] is not None else 'not seen yet'}",
                "\n".join(goals) or "-",
                loads(e),
                money(e["money"]["usd_per_month"]),
                money(e["money"]["usd_per_1k_tokens"]),
                "\n".join(findings) or "-",
            ]
        )
    columns = [
        "endpoint",
        "mode",
        "shape",
        "objective (observed / limit)",
        "load",
        "$/month",
        "per 1k tokens",
        "findings",
    ]
    table("Endpoints", columns, rows, "No endpoint is set; see `flyball init`.")
    for e in view["endpoints"]:
        stdout.print(f"{text(e['name'])}: {text(standing(e['decision']))}")
        if e["window"]["old"]:
            stdout.print(f"[yellow]{text(e['name'])}: {text(aged(e['window']))}[/yellow]", highlight=False)
    if not view["watched"]:
        stdout.print("[yellow]Nobody watches: no daemon is running; start `flyball run`[/yellow]", highlight=False)
    return None


def _goal(o: Mapping[str, Any]) -> str:
    """A target with what was observed and whether it is met."""
    said = f"{heading(o['target'])} {observed(o)} / {figure(o['target'], o['limit'])}"
    said += "" if o["observed"] is None else f" {verdict(o['met'])}"
    return f"[{_colour(o['met'])}]{said}[/{_colour(o['met'])}]"


def loads(e: Mapping[str, Any]) -> str:
    """Requests per second now, and on the mean of the span that is judged."""
    now, span = e["now"], e["window"]["span_s"]
    if span is None:
        return "-"
    latest = "not known" if now is None else number(now["requests_per_s"], "/s")
    return f"now {latest}\n{number(e['load']['requests_per_s'], '/s')} over {lasting(span)}"


def aged(window: Mapping[str, Any]) -> str:
    """When old figures are from."""
    return f"the newest figures are of {moment(window['newest_at'])}, {lasting(window['age_s'])} ago"


def standing(decision: Mapping[str, Any] | None) -> str:
    """How an endpoint stands, why, and when that was said."""
    if decision is None:
        return "not judged yet: `flyball run` has not analyzed it so far"
    word = decision["state"].replace("_", " ")
    return (
        f"{word}, {moment(decision['at'])}: {decision['text']}"
        if decision["text"]
        else f"{word}, {moment(decision['at'])}"
    )


def _colour(met: bool | None) -> str:
    return {True: "green", False: "red", None: "dim"}[met]


def unfreeze(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")], config: ConfigOption = DEFAULT_CONFIG
) -> None:
    """Let changes be applied again to an endpoint that a rollback froze."""
    from agent.store import fleet

    with opened(config) as (store, settings), store.write() as db:
        frozen = fleet.unfreeze(db, endpoint, now=_now(), by=actor())
        if not frozen:
            named(endpoint, settings)
            raise fail(f"{endpoint} is not frozen")
    console.print(f"{text(endpoint)} may be changed again")


def recommendations_list(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
    endpoint: Annotated[str | None, typer.Option(help="Only of this endpoint.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that are decided.")] = False,
) -> None:
    """What is proposed."""
    from agent import views
    from agent.store.recommendations import OPEN

    with opened(config) as (store, settings):
        view = views.recommendation_list(
            store, endpoint_name=endpoint, states=None if every else [*OPEN, "approved", "applying"]
        )
    if endpoint is not None and not view["recommendations"]:
        named(endpoint, settings)
    if output is Output.json:
        return print_json(view)
    rows = [
        [
            r["id"],
            text(r["endpoint"]),
            r["state"],
            text(r["what"]),
            "\n".join(text(x["code"]) for x in r["reasons"]),
            money(r["saving_per_month"]),
            r["risk"],
            moment(r["expires_at"]),
        ]
        for r in view["recommendations"]
    ]
    columns = ["id", "endpoint", "state", "change", "why", "saves a month", "risk", "until"]
    table("Recommendations", columns, rows, "Nothing is proposed.")
    return None


def recommendations_show(
    identity: IdArgument, config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.table
) -> None:
    """One, whole: why, what is expected, what else was considered, the plan."""
    from agent import views

    with opened(config) as (store, settings):
        view = views.recommendation(store, settings, identity, _now())
    if view is None:
        raise fail(f"no single recommendation begins with {identity}; see `flyball recommendations list --all`")
    if output is Output.json:
        return print_json(view)
    r = view["recommendation"]
    stdout.print(
        f"[bold]{r['id']}[/bold] {text(r['endpoint'])}: {text(r['current'])} → [bold]{text(r['proposed'])}[/bold]"
    )
    stdout.print(
        f"{r['state']} ({text(r['state_by'])} {text(r['state_reason'])}), until {moment(r['expires_at'])}, risk {r['risk']}"
    )
    for reason in r["reasons"]:
        stdout.print(f"  {reason['code']}: {text(reason['text'])}")
    for reason in r["risk_reasons"]:
        stdout.print(f"  risk: {text(reason)}")
    if r["premortem"]:
        stdout.print(f"  pre-mortem: {text(r['premortem']['text'])}")
    for point in r["turning"]:
        stdout.print(f"  what would change it: {text(point['text'])}")
    stdout.print(f"  such promises so far: {track_record(r['record'])}")
    if r["reference"]:
        stdout.print(f"  reference: it {text(r['reference']['text'])}")
    names = [m for m in r["predicted"] if m in r["predicted_now"] or "_p95" in m]
    rows = [
        [
            m,
            _observed(r["observed_now"].get(m)),
            _interval(r["predicted_now"].get(m)),
            _interval(r["predicted"][m]),
            r["predicted_verdicts"].get(m, "-"),
        ]
        for m in names
    ]
    columns = ["metric", "now, observed", "now, by the model", "proposed, by the model", "limit"]
    table("Expected (80 % intervals)", columns, rows, "Nothing supports a prediction.")
    rows = [
        [text(o["label"]), o["verdict"].lower().replace("_", " "), money(o["money"]["per_hour"]), text(o["why"])]
        for o in r["body"]["options"]
    ]
    table("Considered", ["shape", "verdict", "$/h", "why"], rows, "")
    rows = [
        [str(i), text(o["summary"]), lasting(o["deadline_s"])] for i, o in enumerate(r["plan"].get("operations", []), 1)
    ]
    table(
        f"Plan {r['plan_hash']}",
        ["", "step", "at most"],
        rows,
        "No plan: this system can only be read; make the change yourself.",
    )
    if r["plan"]:
        _print_rest_of_plan(r["plan"])
    rows = [[v["rule"], v["verdict"], text(v["text"])] for v in r["guardrails"]]
    table("Guardrails", ["rule", "", "at this moment"], rows, "Its endpoint is not in the settings any more.")
    return None


def _observed(target: Mapping[str, Any] | None) -> str:
    if target is None:
        return "-"
    return f"{observed(target)} (limit {figure(target['target'], target['limit'])})"


def _print_rest_of_plan(plan: dict[str, Any]) -> None:
    for step in plan.get("finish", ()):
        stdout.print(f"After it is verified: {text(step['summary'])}", highlight=False)
    for need in plan.get("needs", ()):
        free = "not known" if need["free"] is None else number(need["free"])
        stdout.print(f"Needs {number(need['wanted'])} of {text(need['what'])}; free: {free}", highlight=False)
    if plan.get("by_merge"):
        stdout.print("Approved by the merge of its branch in the repository, and at no other door.")
    if plan.get("by_hand"):
        stdout.print("Somebody else owns what it would change. Apply this by hand:")
        stdout.print(text(plan["by_hand"]), highlight=False, soft_wrap=True)
    stdout.print(f"Way back: {text(plan['way_back'])}")


def _interval(i: dict[str, float] | None) -> str:
    return f"{i['mid']:.3g} ({i['low']:.3g} to {i['high']:.3g})" if i else "-"


def recommendations_approve(
    identity: IdArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    plan: Annotated[str | None, typer.Option(help="The plan's hash that you saw; default: ask, showing it.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Approve one. The daemon applies it, or says why not."""
    _decide(identity, "approve", config, plan, yes)


def recommendations_reject(identity: IdArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Reject one. The same advice is not given again for a week."""
    _decide(identity, "reject", config, None, True)


def recommendations_snooze(
    identity: IdArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    hours: Annotated[float, typer.Option(min=0.1, help="For so long.")] = 24.0,
) -> None:
    """Ask again later."""
    _decide(identity, "snooze", config, None, True, hours * 3600)


def _decide(identity: str, action: str, config: Path, plan: str | None, yes: bool, snooze_s: float = 86_400.0) -> None:
    from agent import views
    from agent.approvals import ApprovalService
    from agent.clock import WallClock

    with opened(config) as (store, settings):
        view = views.recommendation(store, settings, identity, _now())
        if view is None:
            raise fail(f"no single recommendation begins with {identity}; see `flyball recommendations list`")
        row = view["recommendation"]
        if action == "approve" and plan is None and not yes:
            stdout.print(f"{text(row['endpoint'])}: {text(row['current'])} → [bold]{text(row['proposed'])}[/bold]")
            stdout.print(f"plan {row['plan_hash']}")
            typer.confirm("Apply this?", abort=True)
        ruling = ApprovalService(settings, store, WallClock()).decide(
            row["id"],
            action=cast("Action", action),
            actor=actor(),
            channel="cli",
            plan_hash=plan or row["plan_hash"],
            snooze_s=snooze_s,
        )
    if not ruling.accepted:
        raise fail(f"not done: {ruling.text}")
    console.print(f"{row['id']}: {ruling.text}")


def recommendations_propose(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.")],
    shape: Annotated[
        list[str] | None, typer.Option(help="Changes to the present one: replicas=2,size=NAME,max_num_seqs=64.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Ask for a change of your own: replayed, priced and bound to a plan like any other, inside the same policy."""
    import asyncio

    from actuators.base import ActuatorError
    from agent.governor import propose
    from analyzers.grammar import BadQuestion, pairs

    wanted = ",".join([*(shape or []), *read_as("--shape", {"--set": ",".join(set_ or []) or None})])
    if not wanted:
        raise fail("give --shape, such as --shape replicas=2,max_num_seqs=64", 2)
    notes: list[str] = []
    try:
        pairs(wanted, [])
    except BadQuestion as error:
        raise fail(f"--shape {wanted}: {error}", 2) from error
    with opened(config) as (store, settings):
        named(endpoint, settings)
        try:
            identity = asyncio.run(propose(store, settings, endpoint, wanted, actor(), notes))
        except BadQuestion as error:
            raise fail(f"--shape {wanted}: {error}", 2) from error
        except (ValueError, ActuatorError) as error:
            raise fail(str(error)) from error
    for note in notes:
        console.print(f"note: {text(note)}", highlight=False)
    console.print(f"Proposed as {identity}: flyball recommendations show {identity}")


def changes_list(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.table,
    endpoint: Annotated[str | None, typer.Option(help="Only of this endpoint.")] = None,
) -> None:
    """What was done, and how it ended."""
    from agent import views

    with opened(config) as (store, settings):
        view = views.change_list(store, endpoint_name=endpoint)
    if endpoint is not None and not view["changes"]:
        named(endpoint, settings)
    if output is Output.json:
        return print_json(view)
    rows = [
        [
            c["id"],
            text(c["endpoint"]),
            c["state"],
            text(c["what"]),
            moment(c["created_at"]),
            text(c["approved_by"]),
            text(c["state_reason"]),
        ]
        for c in view["changes"]
    ]
    table("Changes", ["id", "endpoint", "state", "change", "begun", "approved by", "why"], rows, "Nothing was changed.")
    return None


def changes_show(
    identity: IdArgument, config: ConfigOption = DEFAULT_CONFIG, output: OutputOption = Output.table
) -> None:
    """One, whole: the journal, and what was promised against what came."""
    from agent import views

    with opened(config) as (store, _):
        view = views.change(store, identity)
    if view is None:
        raise fail(f"no single change begins with {identity}; see `flyball changes list`")
    if output is Output.json:
        return print_json(view)
    c = view["change"]
    stdout.print(f"[bold]{c['id']}[/bold] {text(c['endpoint'])}: {text(c['before'])} → [bold]{text(c['after'])}[/bold]")
    stdout.print(f"{c['state']}: {text(c['state_reason'])}")
    back = (c["outcome"] or {}).get("way_back")
    if back is not None:
        stdout.print(f"since the way back: {back['code'].lower().replace('_', ' ')}, {text(back['text'])}")
    rows = [
        [j["direction"], str(j["step"] + 1), text(j["operation"]["summary"]), j["state"], text(j["detail"])]
        for j in c["journal"]
    ]
    table("Journal", ["", "step", "what", "state", "detail"], rows, "No step was begun.")
    print_ledger(c["ledger"])
    return None


def print_ledger(rows: list[dict[str, Any]]) -> None:
    """Predicted against observed."""
    cells = [
        [
            r["metric"],
            number(r["before"]),
            "-" if r["predicted"] is None else f"{number(r['predicted'])} ({number(r['low'])} to {number(r['high'])})",
            r["observed_text"],
            "-" if r["error"] is None else f"{r['error']:+.0%}",
            {"held": "[green]held[/green]", "missed": "[red]missed[/red]"}.get(r["verdict"], r["verdict"]),
        ]
        for r in rows
    ]
    table(
        "Ledger",
        ["metric", "before", "predicted (80 %)", "observed", "off by, at least", "promise"],
        cells,
        "Not verified yet.",
    )


def changes_rollback(
    identity: IdArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Undo one, under way or finished (the newest of its endpoint). The daemon carries it out."""
    from agent.store import changes

    with opened(config) as (store, _):
        with store.read() as db:
            row = changes.get(db, identity)
        if row is None:
            raise fail(f"no single change begins with {identity}; see `flyball changes list`")
        if not yes:
            typer.confirm(f"Take {row['endpoint']} back to what it was before {row['id']}?", abort=True)
        with store.write() as db:
            asked = changes.request_rollback(db, row["id"], now=_now(), by=actor())
    if not asked:
        raise fail(f"{row['id']} is {row['state']}: there is nothing to undo")
    console.print(f"{row['id']}: rollback asked for")
