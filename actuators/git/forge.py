"""The request to merge a branch, on the forge that holds the repository: GitHub, GitLab or Gitea. Opened once; nothing else is asked of it.

Sources: docs.github.com REST "Create a pull request"; docs.gitlab.com "Create MR"; Gitea's swagger "repoCreatePullRequest".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from actuators.base import ActuatorError, Trouble
from collectors.git.client import GitAccount
from collectors.http import HttpAnswer, HttpCall
from collectors.text import clean

ForgeName = Literal["github", "gitlab", "gitea"]
_TROUBLE = {401: Trouble.DENIED, 403: Trouble.DENIED, 429: Trouble.THROTTLED}


class Forge:
    """One repository on one forge."""

    def __init__(self, name: ForgeName, api: str | None, account: GitAccount, http: HttpCall) -> None:
        parts = urlsplit(account.repository)
        self._name = name
        self._account = account
        self._http = http
        self._path = parts.path.strip("/").removesuffix(".git")
        root = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        usual = {"github": "https://api.github.com", "gitlab": f"{root}/api/v4", "gitea": f"{root}/api/v1"}
        self._api = (api or usual[name]).rstrip("/")

    async def open(self, branch: str, title: str, text: str) -> str:
        """Ask for the merge of a branch; its page, or empty where one is asked for already. Raises ActuatorError."""
        base = self._account.branch
        if self._name == "gitlab":
            url = f"{self._api}/projects/{quote(self._path, safe='')}/merge_requests"
            asked = {"source_branch": branch, "target_branch": base, "title": title, "description": text}
            asked |= {"remove_source_branch": True}  # type: ignore[dict-item]
        else:
            url = f"{self._api}/repos/{self._path}/pulls"
            asked = {"head": branch, "base": base, "title": title, "body": text}
        try:
            answer = await self._http("POST", url, headers=self._headers(), json=asked, timeout_s=15.0)
        except (OSError, ValueError) as error:
            raise ActuatorError("UNREACHABLE", f"{url}: {error}", trouble=Trouble.UNREACHABLE) from error
        if answer.status in (200, 201):
            told = _object(answer)
            return clean(str(told.get("html_url") or told.get("web_url") or ""))
        if answer.status == 409 or (answer.status == 422 and b"already exists" in answer.body):
            return ""
        trouble = _TROUBLE.get(answer.status, Trouble.UNREACHABLE if answer.status >= 500 else Trouble.INVALID)
        raise ActuatorError(trouble.name, f"{url} answered {answer.status}: {_said(answer)}", trouble=trouble)

    def _headers(self) -> Mapping[str, str]:
        token = self._account.token.get_secret_value() if self._account.token is not None else ""
        if self._name == "gitlab":
            return {"private-token": token}
        return {"authorization": f"{'Bearer' if self._name == 'github' else 'token'} {token}"}


def _object(answer: HttpAnswer) -> Mapping[str, Any]:
    try:
        found = json.loads(answer.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(answer: HttpAnswer) -> str:
    return clean(str(_object(answer).get("message", "")), 200) or "nothing more"
