"""The routes. Each page is a view of ``agent.views`` drawn by a template, and the same view as JSON at its .json twin."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import BackgroundTasks, FastAPI, Form, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from agent import views
from agent.approvals import ACTIONS
from agent.effective import effective
from agent.overview import FleetFilter, Order, overview
from agent.report import environment
from agent.slack.receive import MAX_BODY, ClickError
from agent.store import control, fleet, mutes, outbox
from agent.store.recommendations import OPEN
from agent.tune import page as tune_page
from agent.web import live
from agent.web.guard import SESSION, SESSION_S, Guard, address_of, local_path
from agent.web.playground import Playground, WhatIfQuestion
from analyzers.words import wording
from collectors.receiver import Push
from collectors.text import clean

if TYPE_CHECKING:
    from agent.governor import Governor


log = structlog.get_logger()

#: Pages that renew themselves while they are looked at.
LIVE = (
    "overview.html", "endpoint.html", "recommendations.html", "recommendation.html", "changes.html", "change.html", "status.html",
    "tunes.html", "tune.html",
)  # fmt: skip
#: No report has a larger number: the largest of the database.
MOST_REPORTS = 2**63 - 1


def create_app(governor: Governor) -> FastAPI:
    """The application of one governor."""
    app = FastAPI(title="Flyball", docs_url=None, redoc_url=None)
    guard = Guard(governor.settings.web, governor.settings.people, governor.clock, governor.pushes.receivers)
    app.middleware("http")(guard)
    app.mount("/static", StaticFiles(packages=[("agent", "web/static")]), name="static")
    _errors(app, governor, guard)
    _health(app, governor)
    _slack(app, governor)
    _receivers(app, governor)
    _overview(app, governor, guard)
    _endpoint(app, governor, guard)
    _pages(app, governor, guard)
    _decisions(app, governor, guard)
    _mutes(app, governor, guard)
    _brakes(app, governor, guard)
    _login(app, governor, guard)
    _whatif(app, governor, guard)
    _page(app, governor, guard, "/docs", "api.html", lambda: _routes(app))
    live.add(app, governor.store, governor.clock)
    return app


def _errors(app: FastAPI, governor: Governor, guard: Guard) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def say(request: Request, error: StarletteHTTPException) -> Response:
        """To a browser as a page, to programs as JSON."""
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.endswith(".json")
        if not wants_page:
            return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)
        told = {"text": str(error.detail), "identity": None}
        return await asyncio.to_thread(_render, request, governor, guard, "refused.html", told, error.status_code)


def _health(app: FastAPI, governor: Governor) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """200 while every loop ended a cycle lately and what it read is saved: results, not only a server that answers."""
        wrong = governor.alive()
        return JSONResponse({"ok": not wrong, "loops": wrong}, 503 if wrong else 200)

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 once the first cycles are through."""
        ready = governor.ready()
        return JSONResponse({"ready": ready, "leading": governor.lead is not None}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Flyball's own figures, in Prometheus' text format."""
        return PlainTextResponse(governor.metrics.text(), media_type="text/plain; version=0.0.4")


def _slack(app: FastAPI, governor: Governor) -> None:
    @app.post("/slack/actions")
    async def actions(request: Request, later: BackgroundTasks) -> Response:
        """A click in Slack. Answered at once; what came of it is told through the message itself."""
        body = await _bounded(request, MAX_BODY)
        if body is None:
            return PlainTextResponse("too_large", 413)
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            reply = await asyncio.to_thread(governor.receiver.click, headers, body)
        except ClickError as refused:
            governor.metrics.rulings.labels("slack", "unknown", refused.code).inc()
            return PlainTextResponse(refused.code, refused.status)
        later.add_task(governor.sender.answer, reply)
        return Response(status_code=200)


def _receivers(app: FastAPI, governor: Governor) -> None:
    """Where telemetry is pushed to. A page of another site can send to none of them: it may not name their types of content."""
    trusted = governor.settings.web.on_loopback

    async def take(request: Request) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        push = Push(request.scope["path"], headers, await request.body(), trusted)
        answer = await governor.pushes.take(push, governor.lead)
        again = {} if answer.retry_after_s is None else {"Retry-After": f"{answer.retry_after_s:.0f}"}
        return Response(answer.body, answer.status, again, answer.media_type)

    for path in governor.pushes.receivers:
        app.add_api_route(path, take, methods=["POST"], name=f"telemetry at {path}")


async def _bounded(request: Request, limit: int) -> bytes | None:
    """The body, or None when it is larger than ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _overview(app: FastAPI, governor: Governor, guard: Guard) -> None:
    def find(wanted: FleetFilter) -> dict[str, Any]:
        return overview(governor.store, governor.settings, governor.clock.now(), wanted)

    @app.get("/index.json")
    async def as_json(
        text: str = "",
        state: str = "",
        order: Order = "worst",
        page: Annotated[int | None, Query(ge=1, le=10**6)] = None,
    ) -> Response:
        """The fleet; without a page all of it."""
        return JSONResponse(await asyncio.to_thread(find, FleetFilter(text, state, order, page)))

    @app.get("/", response_class=HTMLResponse)
    async def html(
        request: Request,
        text: str = "",
        state: str = "",
        order: Order = "worst",
        page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    ) -> Response:
        """The page of /index.json."""
        data = await asyncio.to_thread(find, FleetFilter(text, state, order, page))
        return await asyncio.to_thread(_render, request, governor, guard, "overview.html", data)


def _endpoint(app: FastAPI, governor: Governor, guard: Guard) -> None:
    async def find(name: str, span: str) -> dict[str, Any]:
        try:
            return await asyncio.to_thread(
                views.endpoint, governor.store, governor.settings, name, governor.clock.now(), span
            )
        except KeyError:
            raise HTTPException(404, "there is no such thing here") from None

    @app.get("/endpoints/{name}.json")
    async def as_json(name: str, span: str = "") -> Response:
        """One endpoint. span: what its series looks back over, ``day``, ``week`` or ``month``."""
        return JSONResponse(await find(name, span))

    @app.get("/endpoints/{name}", response_class=HTMLResponse)
    async def html(request: Request, name: str, span: str = "") -> Response:
        """The page of the same address with .json."""
        data = await find(name, span)
        return await asyncio.to_thread(_render, request, governor, guard, "endpoint.html", data)


def _pages(app: FastAPI, governor: Governor, guard: Guard) -> None:
    for path, (template, view) in _views(governor).items():
        _page(app, governor, guard, path, template, view)

    @app.get("/reports/{number}/page")
    async def report_page(number: Annotated[int, Path(ge=0, le=MOST_REPORTS)]) -> Response:
        """A report as it was written. Only files that the store notes are ever read."""

        def find() -> str | None:
            with governor.store.read() as db:
                row = outbox.report(db, number)
            try:
                return FilePath(row["path"]).read_text(encoding="utf-8") if row else None
            except OSError:
                return None

        html = await asyncio.to_thread(find)
        if html is None:
            raise HTTPException(404, "this report is not there any more; write it again with `flyball report`")
        return HTMLResponse(html)


_View = Callable[..., dict[str, Any] | None]


def _views(governor: Governor) -> dict[str, tuple[str, _View]]:
    """Path to template and view. A view returns None, or raises KeyError, for what is not there."""
    store, settings, clock = governor.store, governor.settings, governor.clock

    def changes() -> dict[str, Any]:
        return views.change_list(store) | {"accuracy": views.accuracy(store)["accuracy"]}

    def reports() -> dict[str, Any]:
        with store.read() as db:
            return {"schema_version": views.SCHEMA_VERSION, "reports": outbox.reports(db)}

    return {
        "/recommendations": ("recommendations.html", lambda: views.recommendation_list(store)),
        "/recommendations/{identity}": (
            "recommendation.html",
            lambda identity: views.recommendation(store, settings, identity, clock.now()),
        ),
        "/changes": ("changes.html", changes),
        "/changes/{identity}": ("change.html", lambda identity: views.change(store, identity)),
        "/tunes": ("tunes.html", lambda: views.tune_list(store)),
        "/tunes/{identity}": ("tune.html", lambda identity: views.tune(store, identity)),
        "/status": ("status.html", lambda: views.status(store, settings, clock.now())),
        "/settings": ("settings.html", lambda: effective(settings, governor.referred)),
        "/savings": ("savings.html", lambda: views.saving_list(store)),
        "/reports": ("reports.html", reports),
    }


def _page(app: FastAPI, governor: Governor, guard: Guard, path: str, template: str, view: _View) -> None:
    """One page and its .json twin."""

    async def data(request: Request) -> dict[str, Any]:
        try:
            found = await asyncio.to_thread(view, **request.path_params)
        except KeyError:
            found = None
        if found is None:
            raise HTTPException(404, "there is no such thing here")
        return found

    async def html(request: Request) -> Response:
        return await asyncio.to_thread(_render, request, governor, guard, template, await data(request))

    async def as_json(request: Request) -> Response:
        return JSONResponse(await data(request))

    twin = "/index.json" if path == "/" else f"{path}.json"
    told = {"parameters": _parameters(path)}
    app.add_api_route(
        twin,
        as_json,
        methods=["GET"],
        name=f"{template} as JSON",
        description=f"What {path} shows.",
        openapi_extra=told,
    )
    app.add_api_route(
        path,
        html,
        methods=["GET"],
        name=template,
        description=f"The page of {twin}.",
        response_class=HTMLResponse,
        openapi_extra=told,
    )


def _parameters(path: str) -> list[dict[str, Any]]:
    """Of a path, as the OpenAPI document tells them: the views take them by name."""
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _render(
    request: Request, governor: Governor, guard: Guard, template: str, data: dict[str, Any], status: int = 200
) -> Response:
    with governor.store.read() as db:
        pause = control.paused(db)
    drawn = tune_page.drawn(data["tune"]) if template == "tune.html" else {"drawn": _drawn(governor, template, data)}
    html = environment().get_template(template).render(
        **data, now=governor.clock.now(), csrf=guard.csrf(), login=guard.asks, pause=pause, path=request.url.path, open_states=OPEN,
        **drawn, live=template in LIVE, modes={e.name: e.mode for e in governor.settings.endpoints},
    )  # fmt: skip
    return HTMLResponse(html, status)


def _drawn(governor: Governor, template: str, data: dict[str, Any]) -> list[str]:
    """The charts of a page."""
    from agent import charts  # takes a while to import, and a daemon draws seldom

    if template == "endpoint.html":
        e = data["endpoint"]
        marks = [{"at": c["applied_at"], "what": "changed"} for c in e["changes"] if c["applied_at"]]
        own = {mark["at"] for mark in marks}
        marks += [{"at": v["at"], "what": "event"} for v in e["events"] if v["at"] not in own]
        drawn = [charts.load(e["series"], marks), charts.cache(e["series"], marks)] if e["series"] else []
        for goal in e["objective"]:
            metric = goal["target"].split("_")[0]
            if metric in ("ttft", "itl", "e2e") and e["series"]:
                drawn.append(
                    charts.latency(e["series"], metric, goal["limit"], wording(goal["target"]).partition(",")[0], marks)
                )
        return drawn
    if template == "recommendation.html":
        r = data["recommendation"]
        watched = [
            e for e in governor.settings.endpoints if e.name == r["endpoint"]
        ]  # it may have been taken out since
        targets = [t for e in watched for t in e.wanted().targets if t.quantile is not None]
        chart = charts.front(r["body"]["options"], targets[0].name, targets[0].limit) if targets else None
        return [chart] if chart else []
    if template == "changes.html":
        rows = [{**row, "endpoint": c["endpoint"]} for c in data["changes"] for row in c["ledger"] if row["comparable"]]
        chart = charts.promises([r for r in rows if "_p95" in r["metric"]])
        return [chart] if chart else []
    return []


def _whatif(app: FastAPI, governor: Governor, guard: Guard) -> None:
    playground = Playground(governor.settings, governor.store, governor.clock)

    async def data(asked: WhatIfQuestion) -> dict[str, Any]:
        told = {
            "schema_version": views.SCHEMA_VERSION,
            "form": playground.form(asked.endpoint),
            "asked": asked.model_dump(),
        }
        return told | {"answer": await playground.ask(asked) if asked.endpoint else None}

    @app.get("/whatif.json")
    async def as_json(asked: Annotated[WhatIfQuestion, Query()]) -> Response:
        """An endpoint's own traffic, at a multiple of it, on another shape. Without an endpoint: what may be asked."""
        return JSONResponse(await data(asked))

    @app.get("/whatif", response_class=HTMLResponse)
    async def html(request: Request, asked: Annotated[WhatIfQuestion, Query()]) -> Response:
        """The page of /whatif.json."""
        return await asyncio.to_thread(_render, request, governor, guard, "playground.html", await data(asked))


def _routes(app: FastAPI) -> dict[str, Any]:
    """What programs may ask, from the OpenAPI document."""
    rows = []
    for path, methods in app.openapi()["paths"].items():
        for method, told in methods.items():
            takes = [
                {"name": p["name"], "least": p["schema"].get("minimum"), "most": p["schema"].get("maximum")}
                for p in told.get("parameters", ())
            ]
            what = (told.get("description") or told["summary"]).replace("``", "")
            rows.append(
                {"path": path, "method": method.upper(), "what": what, "takes": takes, "form": "requestBody" in told}
            )
    return {"schema_version": views.SCHEMA_VERSION, "routes": rows}


def _decisions(app: FastAPI, governor: Governor, guard: Guard) -> None:
    @app.post("/recommendations/{identity}/decide")
    async def decide(
        request: Request,
        identity: str,
        action: Annotated[str, Form()] = "",
        plan_hash: Annotated[str, Form()] = "",
        csrf: Annotated[str, Form()] = "",
    ) -> Response:
        """A decision on the page, for the plan that the page showed."""
        if not guard.form_is_ours(request, csrf) or action not in ACTIONS:
            raise HTTPException(403, "this form did not come from this page; load it again")
        ruling = await asyncio.to_thread(
            governor.approvals.decide,
            identity,
            action=action,
            actor=guard.actor(request),
            channel="page",
            plan_hash=plan_hash,
        )
        if not ruling.accepted:
            return _render(request, governor, guard, "refused.html", {"text": ruling.text, "identity": identity}, 409)
        return RedirectResponse(f"/recommendations/{ruling.recommendation_id}", 303)


#: A finding that is snoozed on the page is heard of again after so long.
SNOOZE_S = 86_400.0


def _mutes(app: FastAPI, governor: Governor, guard: Guard) -> None:
    @app.post("/endpoints/{name}/findings/{code}")
    async def mute(
        request: Request,
        name: str,
        code: str,
        action: Annotated[str, Form()] = "",
        reason: Annotated[str, Form(max_length=500)] = "",
        csrf: Annotated[str, Form()] = "",
    ) -> Response:
        """Suppress, snooze for a day, or resume a finding of an endpoint. A suppression says why."""
        if not guard.form_is_ours(request, csrf) or action not in ("suppress", "snooze", "resume"):
            raise HTTPException(403, "this form did not come from this page; load it again")
        if action == "suppress" and not reason.strip():
            raise HTTPException(422, "say why nobody should be told of it any more")
        actor, now = guard.actor(request), governor.clock.now()

        def write() -> bool:
            with governor.store.write() as db:
                known = {f["code"] for f in fleet.findings(db, name, active=False)}
                if code not in known:
                    return False
                if action == "resume":
                    mutes.unmute(db, name, code, now=now, by=actor)
                else:
                    until = now + SNOOZE_S if action == "snooze" else None
                    mutes.mute(db, name, code, until=until, reason=clean(reason), now=now, by=actor)
                return True

        if not await asyncio.to_thread(write):
            raise HTTPException(404, "there is no such thing here")
        return RedirectResponse(f"/endpoints/{name}", 303)


def _brakes(app: FastAPI, governor: Governor, guard: Guard) -> None:
    @app.post("/pause")
    async def pause(
        request: Request,
        action: Annotated[str, Form()] = "",
        reason: Annotated[str, Form(max_length=500)] = "",
        csrf: Annotated[str, Form()] = "",
    ) -> Response:
        """Stop the next operation, or let operations go on. A pause says why."""
        if not guard.form_is_ours(request, csrf) or action not in ("pause", "resume"):
            raise HTTPException(403, "this form did not come from this page; load it again")
        if action == "pause" and not reason.strip():
            raise HTTPException(422, "say why nothing should be applied")
        actor, now = guard.actor(request), governor.clock.now()

        def write() -> None:
            with governor.store.write() as db:
                if action == "pause":
                    control.pause(db, now=now, by=actor, reason=clean(reason))
                else:
                    control.resume(db, now=now, by=actor)

        await asyncio.to_thread(write)
        return RedirectResponse("/status", 303)

    @app.post("/endpoints/{name}/unfreeze")
    async def unfreeze(request: Request, name: str, csrf: Annotated[str, Form()] = "") -> Response:
        """Let changes be applied again to an endpoint that a rollback froze."""
        if not guard.form_is_ours(request, csrf):
            raise HTTPException(403, "this form did not come from this page; load it again")
        actor, now = guard.actor(request), governor.clock.now()

        def write() -> bool:
            with governor.store.write() as db:
                return fleet.unfreeze(db, name, now=now, by=actor)

        if not await asyncio.to_thread(write):
            raise HTTPException(404, f"{clean(name)} is not frozen")
        return RedirectResponse(f"/endpoints/{name}", 303)


def _login(app: FastAPI, governor: Governor, guard: Guard) -> None:
    def form(to: str, wrong: str, status: int) -> Response:
        return HTMLResponse(environment().get_template("login.html").render(to=to, wrong=wrong), status)

    @app.get("/login")
    async def ask(to: str = "/") -> Response:
        """The form that asks for a token."""
        return form(to, "", 200)

    @app.post("/login")
    async def enter(request: Request, token: Annotated[str, Form()], to: Annotated[str, Form()] = "/") -> Response:
        """Trade a token for a cookie that ends after a day. After some wrong ones, none is looked at for a minute."""
        address = address_of(request)
        if guard.too_many(address):
            governor.metrics.logins.labels("too_many").inc()
            return form(to, "Too many wrong tokens came. Wait a minute.", 429)
        who = guard.owner(token)
        if who is None:
            guard.came_wrong(address)
            governor.metrics.logins.labels("wrong").inc()
            log.warning("login_refused", address=address)
            return form(to, "That is not the token.", 401)
        governor.metrics.logins.labels("accepted").inc()
        response = RedirectResponse(local_path(to), 303)
        secure = request.url.scheme == "https"
        response.set_cookie(
            SESSION, guard.session(who), httponly=True, samesite="strict", secure=secure, max_age=SESSION_S
        )
        return response

    @app.post("/logout")
    async def leave(request: Request, csrf: Annotated[str, Form()] = "") -> Response:
        """This browser's login ends."""
        if not guard.form_is_ours(request, csrf):
            raise HTTPException(403, "this form did not come from this page; load it again")
        response = RedirectResponse("/login", 303)
        response.delete_cookie(SESSION)
        return response
