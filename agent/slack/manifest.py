"""The app that Slack must have of Flyball, as Slack's own manifest. Source: Slack, "App manifest reference"."""

from __future__ import annotations

from typing import Any

#: Post as the app, post through an incoming webhook.
SCOPES = ("chat:write", "incoming-webhook")


def manifest(public_url: str | None, *, socket: bool) -> dict[str, Any]:
    """``public_url``: where Slack reaches Flyball's page; ``socket``: clicks come by Socket Mode, and it need not.

    Raises ValueError where clicks could reach Flyball in neither way.
    """
    interactivity: dict[str, Any] = {"is_enabled": True}
    if not socket:
        if public_url is None or not public_url.startswith("https://"):
            raise ValueError(
                "Slack posts clicks to an https:// address that it can reach: set web.public_url, or use Socket Mode (--socket)"
            )
        interactivity["request_url"] = f"{public_url.rstrip('/')}/slack/actions"
    return {
        "display_information": {
            "name": "Flyball",
            "description": "Proposes sizes for deployed AI models, and takes approvals",
            "background_color": "#1d3557",
        },
        "features": {"bot_user": {"display_name": "Flyball", "always_online": True}},
        "oauth_config": {"scopes": {"bot": list(SCOPES)}},
        "settings": {
            "interactivity": interactivity,
            "org_deploy_enabled": False,
            "socket_mode_enabled": socket,
            "token_rotation_enabled": False,
        },
    }
