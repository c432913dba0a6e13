"""Who Flyball is to a vendor: headers for one request at a time, made anew when they are due. Never logged, never stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from collectors.window import CollectError


class Credential(Protocol):
    """Signs requests of one account. It renews what it holds by itself."""

    async def headers(self, method: str, url: str, body: bytes) -> Mapping[str, str]:
        """The headers for just this request. Raises CollectError ``credentials`` where there is nothing to sign with."""


class AnonymousCredential:
    """Where nothing is asked for."""

    async def headers(self, method: str, url: str, body: bytes) -> Mapping[str, str]:
        return {}


class BearerToken:
    """One token that does not change."""

    def __init__(self, token: SecretStr) -> None:
        self._token = token

    async def headers(self, method: str, url: str, body: bytes) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self._token.get_secret_value()}"}


class TokenFile:
    """A token that somebody else renews in a file, as Kubernetes does for its service accounts: read for each request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def headers(self, method: str, url: str, body: bytes) -> Mapping[str, str]:
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise CollectError("credentials", f"{self._path} cannot be read as a token: {error}") from error
        if not token:
            raise CollectError("credentials", f"{self._path} is empty: no token is there")
        return {"authorization": f"Bearer {token}"}
