"""`flyball watch`: the fleet, live in the terminal. Reads the database alone, as the daemon writes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from agent.cli.inspect import opened, standing
from agent.cli.output import DEFAULT_CONFIG, ConfigOption, duration, money, number, stdout, text
from analyzers.words import figure, heading, lasting, observed, verdict

#: By how an endpoint stands.
_COLOURS = {
    "too_small": "red",
    "stuck": "red",
    "contradiction": "red",
    "frozen": "red",
    "too_large": "yellow",
    "fine": "green",
}
_MET = {True: "green", False: "red", None: "dim"}
_BARS = "▁▂▃▄▅▆▇█"
#: Lines beside those of endpoints: title, fleet, what waits, and how to end it.
_FRAME = 6
#: Windows of a small chart.
_TREND = 32


def add(app: typer.Typer) -> None:
    app.command()(watch)


def watch(
    name: Annotated[str | None, typer.Argument(help="Only this one. Default: all, the worst first.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    every: Annotated[float, typer.Option(parser=duration, metavar="<duration>", help="Between two looks.")] = "2s",  # type: ignore[assignment]
    once: Annotated[bool, typer.Option("--once", help="Print it once, as where no terminal watches.")] = False,
) -> None:
    """The fleet live in the terminal: what is known already, what is waited for, and what waits for you. Ctrl-C ends it.

    Needs `flyball run` beside it, which is who looks.
    """
    from agent.cli.inspect import named
    from agent.clock import WallClock

    clock = WallClock()
    with opened(config) as (store, settings):
        if name is not None:
            named(name, settings)

        def shown(height: int | None = None) -> RenderableType:
            return _screen(_seen(store, settings, clock.now(), name), height)

        if once or not stdout.is_terminal:
            stdout.print(shown(), highlight=False)
            return
        try:
            with Live(shown(stdout.height), console=stdout, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(max(0.2, every))
                    live.update(shown(stdout.height), refresh=True)
        except KeyboardInterrupt:
            pass


def _seen(store: Any, settings: Any, now: float, name: str | None) -> dict[str, Any]:
    """The overview, with the series of the endpoints that it shows, and what is under way."""
    from agent import views
    from agent.overview import FleetFilter, overview
    from agent.store import recommendations

    if name is not None:
        settings = settings.model_copy(update={"endpoints": [settings.endpoint(name)]})
    view = overview(store, settings, now, FleetFilter())
    known = views.series(store, settings, [e["name"] for e in view["endpoints"]], now)
    for e in view["endpoints"]:
        e["series"] = known[e["name"]]
    waiting = views.recommendation_list(store, endpoint_name=name, states=recommendations.OPEN)["recommendations"]
    under_way = [c for c in views.change_list(store, endpoint_name=name)["changes"] if c["outcome"] is None]
    return {**view, "now": now, "waiting": waiting, "under_way": under_way}


def _screen(view: Mapping[str, Any], height: int | None) -> RenderableType:
    """Of the endpoints as many as ``height`` lines hold, one at least; None: all."""
    parts: list[RenderableType] = [_head(view)]
    blocks = [_block(e, view["now"]) for e in view["endpoints"]]
    room, shown = (height or 1 << 30) - _FRAME - len(view["waiting"][:3]) - len(view["under_way"][:3]), 0
    for lines, block in blocks:
        if shown and room < lines:
            break
        parts.append(block)
        room, shown = room - lines, shown + 1
    hidden = view["found"] - shown
    if hidden > 0:
        parts.append(
            f"[dim]and {hidden} more, less urgent: flyball watch NAME, flyball endpoints, or a taller terminal[/dim]"
        )
    parts += [
        f"[bold]waits for you[/bold] {text(r['id'])}  {text(r['endpoint'])}: {text(r['what'])}"
        for r in view["waiting"][:3]
    ]
    parts += [
        f"[bold]under way[/bold] {text(c['endpoint'])}: {text(c['what'])}, {text(c['state'].replace('_', ' '))}"
        for c in view["under_way"][:3]
    ]
    if not view["watched"]:
        parts.append("[yellow]Nobody watches: no daemon is running; start `flyball run`[/yellow]")
    return Group(*parts)


def _head(view: Mapping[str, Any]) -> str:
    fleet = view["fleet"]
    states = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in fleet["states"].items())
    known = fleet["usd_per_month"]
    cost = "cost not known" if known is None else f"{money(known)} a month"
    if known is not None and fleet["usd_lacking"]:
        cost += " and what is not known"
    at = time.strftime("%H:%M:%S", time.localtime(view["now"]))
    return f"[bold]Flyball[/bold]  {at}  {view['found']} endpoint{'s' * (view['found'] != 1)}: {states}; {cost}\n"


def _block(e: Mapping[str, Any], now: float) -> tuple[int, RenderableType]:
    """One endpoint, and how many lines it takes."""
    state = e["state"]
    colour = _COLOURS.get(state, "dim")
    title = (
        f"[bold]{text(e['name'])}[/bold]  [{colour}]{state.replace('_', ' ')}[/{colour}]  [dim]{text(e['label'])}[/dim]"
    )
    body = Table.grid(padding=(0, 2))
    for _ in range(3):
        body.add_column(no_wrap=True)
    latest = e["now"] or {}
    rows = [
        ("  requests", number(latest.get("requests_per_s"), "/s"), _bars(e["series"], "requests_per_s")),
        (
            "  running, waiting",
            f"{number(latest.get('running_mean'))}, {number(latest.get('waiting_mean'))}",
            _bars(e["series"], "running_mean"),
        ),
    ]
    for o in e["objective"]:
        limit = figure(o["target"], o["limit"])
        said = f"limit {limit}" if o["observed"] is None else f"{observed(o)} of {limit} {verdict(o['met'])}"
        colour = _MET[o["met"]]
        rows.append((f"  {heading(o['target'])}", f"[{colour}]{said}[/{colour}]", _bars(e["series"], o["target"])))
    for row in rows:
        body.add_row(*row)
    troubles = [
        f"  [yellow]{text(s['source'])}: {text(s['last_error'])}[/yellow]" for s in e["sources"] if s["last_error"]
    ]
    notes = [f"  {text(standing(e['decision']))}"]
    if e["window"]["span_s"] is None and not troubles:
        notes.append(f"  [dim]{text(_waits(e, now))}[/dim]")
    elif e["window"]["old"]:
        notes.append(f"  [yellow]the newest figures are {lasting(e['window']['age_s'])} old[/yellow]")
    notes += troubles
    return 2 + len(rows) + 2 * len(notes), Group(title, body, *notes, "")


def _waits(e: Mapping[str, Any], now: float) -> str:
    """What an endpoint of which nothing is known yet is waiting for."""
    heard = [s["last_ok_at"] for s in e["sources"] if s["last_ok_at"] is not None]
    if heard:
        return f"it was read {lasting(now - max(heard))} ago; a window is told once it has ended"
    return "it was not read yet: the daemon reads it within its interval"


def _bars(series: Sequence[Mapping[str, Any]], name: str) -> str:
    """The last windows as bars from zero; a gap is a blank. Empty where nothing is known."""
    values = [point.get(name) for point in series[-_TREND:]]
    most = max((value for value in values if value is not None), default=None)
    if most is None:
        return ""
    steps = len(_BARS) - 1
    bars = (" " if v is None else _BARS[round(steps * v / most) if most > 0 else 0] for v in values)
    return f"[dim]{''.join(bars)}[/dim]"
