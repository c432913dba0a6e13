"""`flyball slack`: the app that Slack needs, and whether a message gets there and a click comes back."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.inspect import opened
from agent.cli.output import DEFAULT_CONFIG, ConfigOption, console, duration, fail, text

if TYPE_CHECKING:
    from agent.store import Store

#: Between two looks for the click.
_LOOK_S = 0.5


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="The app that Slack needs, and a trial of it.", no_args_is_help=True)
    group.command("manifest")(slack_manifest)
    group.command("test")(slack_test)
    app.add_typer(group, name="slack")


def slack_manifest(
    config: ConfigOption = DEFAULT_CONFIG,
    url: Annotated[
        str | None, typer.Option(help="Where Slack reaches Flyball's page. Default: web.public_url.")
    ] = None,
    socket: Annotated[
        bool, typer.Option("--socket", help="Clicks come by Socket Mode; no public address is needed.")
    ] = False,
) -> None:
    """The app's manifest: at api.slack.com/apps choose "Create New App", "From a manifest", and paste it.

    Clicks come by Socket Mode where slack.app_token is set or nothing says how Slack would reach the page.
    """
    import yaml

    from agent.configfile import load
    from agent.slack.manifest import manifest

    if url is None and not socket and config.exists():
        settings = load(config).settings
        url = settings.web.public_url
        socket = settings.slack is not None and settings.slack.app_token is not None
    try:
        made = manifest(url, socket=socket or url is None)
    except ValueError as error:
        raise fail(str(error), 2) from error
    typer.echo(yaml.safe_dump(made, sort_keys=False), nl=False)


def slack_test(
    config: ConfigOption = DEFAULT_CONFIG,
    wait: Annotated[str, typer.Option(help="Wait so long for the click: 30s, 5m.")] = "2m",
) -> None:
    """Post a message with a button, and wait until the running daemon says that it was pressed. Decides nothing.

    Exit code 0: pressed by an approver, or posted where no click can come; 1: not posted, not pressed, or by somebody else.
    """
    import asyncio

    from agent.slack import message
    from agent.slack.channel import Delivery, SlackChannel
    from collectors.http import Http

    with opened(config) as (store, settings):
        slack = settings.slack
        if slack is None:
            raise fail("slack is not set in the settings; `flyball slack manifest` prints the app that it needs", 2)
        token = secrets.token_urlsafe(16) if slack.takes_clicks and settings.slack_users else None

        async def post() -> Delivery:
            http = Http(ca_file=settings.tls_ca_file)
            try:
                return await SlackChannel(slack, http).post(message.trial(token))
            finally:
                await http.aclose()

        delivery = asyncio.run(post())
        if delivery.problem is not None:
            raise fail(f"Slack did not take the message: {delivery.problem}")
        if token is None:
            why = "no signing_secret and no app_token" if not slack.takes_clicks else "no approvers"
            return console.print(
                f"Posted. No button, as there are {why}: people decide on the page or at the command line."
            )
        console.print("Posted. Press its button; the running daemon takes the click.")
        user, approver = _pressed(store, token, duration(wait))
        if user is None:
            raise fail(
                f"no click came within {wait}: is `flyball run` up, and does Slack reach it (the app's Interactivity address, or Socket Mode)?"
            )
        if not approver:
            raise fail(
                f"{text(user)} pressed it, and is not among the approvers: add the id to people or to slack.approvers"
            )
        return console.print(f"{text(user)} pressed it: clicks come back, and this person may decide.")


def _pressed(store: Store, token: str, wait_s: float) -> tuple[str | None, bool]:
    """Who pressed the button, and whether he may decide; None: nobody did in time."""
    from agent.store import audit

    until = time.monotonic() + wait_s
    while True:
        with store.read() as db:
            found = [e for e in audit.entries(db, token) if e["action"] == "slack_test"]
        if found:
            return found[0]["actor"], bool(json.loads(found[0]["body"])["approver"])
        if time.monotonic() >= until:
            return None, False
        time.sleep(_LOOK_S)
