"""Names of things in ARM: the id of an online endpoint, and those of what belongs to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

ML = "Microsoft.MachineLearningServices"
ENDPOINTS = f"{ML}/workspaces/onlineEndpoints"
DEPLOYMENTS = f"{ENDPOINTS}/deployments"

_ID = re.compile(
    rf"^/subscriptions/([0-9a-f-]{{36}})/resourceGroups/([^/]+)/providers/{re.escape(ML)}/workspaces/([^/]+)/onlineEndpoints/([^/]+)$",
    re.IGNORECASE,
)
_SHOWN = f"/subscriptions/…/resourceGroups/…/providers/{ML}/workspaces/…/onlineEndpoints/…"


@dataclass(frozen=True, slots=True)
class EndpointId:
    """Where an online endpoint is. ARM does not tell upper from lower case, and does not keep it: compare ``key``."""

    subscription: str
    group: str
    workspace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> EndpointId:
        """Raises ValueError where it is not the id of an online endpoint."""
        match = _ID.match(text.rstrip("/"))
        if match is None:
            raise ValueError(
                f"{text!r} is not the resource id of an online endpoint: {_SHOWN}, as `az ml online-endpoint show` has it"
            )
        return cls(match[1].lower(), match[2], match[3], match[4])

    @property
    def workspace_path(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}/providers/{ML}/workspaces/{self.workspace}"
        )

    @property
    def path(self) -> str:
        return f"{self.workspace_path}/onlineEndpoints/{self.name}"

    @property
    def key(self) -> str:
        return self.path.lower()

    def deployment(self, name: str) -> str:
        """The path of one of its deployments."""
        return f"{self.path}/deployments/{name}"
