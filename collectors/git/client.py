"""One repository, by the ``git`` command: read at a branch's tip, and written on branches of our own alone.

A bare copy stands in a folder of ours; nothing is ever checked out, and no hook, filter or configuration of the user's runs. The token is
in the environment of the one command, and on no command line.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from collectors.sessions import Sessions
from collectors.text import clean

#: What Flyball signs its commits with.
NAME, EMAIL = "Flyball", "flyball@localhost"
#: Branches that are ours begin so.
OURS = "flyball/"
_TIMEOUT_S = 45.0
_MOST = 4 << 20
_REPOSITORY = r"^(https?://|ssh://|file://|/|[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:)[^\s]+$"
_DENIED = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|error: 40[13]|denied|not allowed|protected",
    re.IGNORECASE,
)
_STALE = re.compile(r"stale info|non-fast-forward|fetch first|cannot lock ref|remote ref does not exist", re.IGNORECASE)


class GitAccount(BaseModel):
    """Which repository, and who Flyball is there."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    repository: str = Field(default="", pattern=_REPOSITORY + "|^$")
    """Its address: https, ssh, or a path on this host."""
    branch: str = Field(default="main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,200}$")
    """The branch that is deployed. Flyball never writes to it. Default: main."""
    token: SecretStr | None = None
    """Sent as the password over https, by reference. Default: none; ssh uses its key."""
    username: str = "flyball"
    """Sent beside the token; most forges take any. Default: flyball."""
    ssh_key_file: Path | None = None
    """The private key for ssh. Default: ssh's own."""

    @model_validator(mode="after")
    def _whole(self) -> GitAccount:
        if not self.repository:
            raise ValueError("repository: name the repository's address")
        host = self.repository.partition("//")[2].partition("/")[0]
        if "@" in host and ":" in host.rpartition("@")[0]:
            raise ValueError("repository holds a password, which would be shown; use `token`")
        plain = self.repository.startswith("http://") and not re.match(r"(127\.0\.0\.1|localhost)(:|$)", host)
        if self.token is not None and plain:
            raise ValueError("repository: a token is sent over https alone")
        return self


class GitError(Exception):
    """``kind``: unreachable, denied, stale (a branch is not where it was), invalid, missing (no git command)."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class CommitNote:
    """One commit, as far as it concerns us."""

    id: str
    trailers: Mapping[str, str]
    by: str
    """The e-mail address of who brought it to the branch; ``unknown`` where only ours is told."""


class GitRepository:
    """See the module. Shared by all endpoints of the repository: commands come one at a time, and who asks while a fetch is under way gets
    what that one brings."""

    def __init__(self, account: GitAccount, folder: Path) -> None:
        self.account = account
        self._folder = folder / "repository.git"
        self._turn = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._fetching: asyncio.Task[str] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def fetch(self) -> str:
        """Bring the branch and ours here; returns the branch's tip. Raises GitError."""
        self._of_this_loop()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(_heard)
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> str:
        if not (self._folder / "HEAD").exists():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            await self._git("init", "--quiet", "--bare", str(self._folder), bare=False)
        branch = self.account.branch
        refs = (f"+refs/heads/{branch}:refs/base", f"+refs/heads/{OURS}*:refs/ours/*")
        await self._git(
            "fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--", self.account.repository, *refs
        )
        return (await self._git("rev-parse", "refs/base")).strip()

    async def fetch_ref(self, name: str) -> str | None:
        """The commit of another branch or tag; None where there is none. Raises GitError."""
        told = await self._git(
            "ls-remote",
            "--",
            self.account.repository,
            f"refs/heads/{name}",
            f"refs/tags/{name}",
            f"refs/tags/{name}^{{}}",
        )
        found = [line.split("\t")[0] for line in told.splitlines()]
        if not found:
            return None
        await self._git(
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--",
            self.account.repository,
            f"+{name}:refs/deployed",
        )
        return found[-1]

    async def file(self, commit: str, path: str) -> str | None:
        """The text of a file; None where there is none. Raises GitError."""
        listed = await self._git("ls-tree", "-z", commit, "--", path)
        head = listed.partition("\0")[0].partition("\t")[0].split()
        if len(head) != 3 or head[1] != "blob" or head[0] == "120000":
            return None
        return await self._git("cat-file", "blob", head[2])

    async def files(self, commit: str) -> list[str]:
        """The paths of all files. Raises GitError."""
        return [path for path in (await self._git("ls-tree", "-r", "-z", "--name-only", commit)).split("\0") if path]

    async def holds(self, commit: str, ancestor: str) -> bool:
        """Whether ``ancestor`` is in the history of ``commit``."""
        try:
            await self._git("merge-base", "--is-ancestor", ancestor, commit)
        except GitError:
            return False
        return True

    async def last_change(self, commit: str, paths: Sequence[str]) -> CommitNote | None:
        """The newest commit that changed any of these files; None: none ever did. Raises GitError."""
        form = "--format=%H%x00%(trailers:only,unfold)"
        told = await self._git("log", "-1", form, commit, "--", *paths)
        if not told.strip():
            return None
        identity, _, trailers = told.partition("\0")
        brought = await self._git("log", "-1", "--first-parent", "--format=%ae%x00%ce", commit, "--", *paths)
        people = [
            each for each in brought.strip().split("\0") if each and each != EMAIL and not each.startswith("noreply@")
        ]
        pairs = (line.partition(": ") for line in trailers.splitlines() if ": " in line)
        return CommitNote(
            identity.strip(), {name: value.strip() for name, _, value in pairs}, people[0] if people else "unknown"
        )

    async def branches(self) -> dict[str, str]:
        """Ours, as they were fetched last: name to commit. Raises GitError."""
        told = await self._git("for-each-ref", "--format=%(refname) %(objectname)", "refs/ours")
        pairs = (line.split(" ") for line in told.splitlines())
        return {OURS + name.removeprefix("refs/ours/"): commit for name, commit in pairs}

    async def trailer(self, commit: str, name: str) -> str | None:
        told = await self._git("log", "-1", f"--format=%(trailers:key={name},valueonly)", commit)
        return told.strip() or None

    async def commit(self, base: str, files: Mapping[str, str], text: str) -> str:
        """A commit on top of ``base`` with these files changed; the same for the same. Nothing is pushed. Raises GitError."""
        self._of_this_loop()
        async with self._committing:  # it has one index
            return await self._commit(base, files, text)

    async def _commit(self, base: str, files: Mapping[str, str], text: str) -> str:
        index = {"GIT_INDEX_FILE": str(self._folder / "flyball.index")}
        await self._git("read-tree", base, env=index)
        for path, content in sorted(files.items()):
            mode = (await self._git("ls-tree", base, "--", path)).split(" ", 1)[0] or "100644"
            blob = (await self._git("hash-object", "-w", "--stdin", stdin=content)).strip()
            await self._git("update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}", env=index)
        tree = (await self._git("write-tree", env=index)).strip()
        date = (await self._git("log", "-1", "--format=%ct +0000", base)).strip()
        signed = {
            "GIT_AUTHOR_NAME": NAME, "GIT_AUTHOR_EMAIL": EMAIL, "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_NAME": NAME, "GIT_COMMITTER_EMAIL": EMAIL, "GIT_COMMITTER_DATE": date,
        }  # fmt: skip
        return (await self._git("commit-tree", tree, "-p", base, "-F", "-", stdin=text, env=signed)).strip()

    async def push(self, commit: str, branch: str, before: str | None) -> None:
        """Put a branch of ours there, where it is still at ``before``; None: it is not there. Raises GitError."""
        assert branch.startswith(OURS), branch
        lease = f"--force-with-lease=refs/heads/{branch}:{before or ''}"
        await self._git("push", "--quiet", lease, "--", self.account.repository, f"{commit}:refs/heads/{branch}")

    async def remove(self, branch: str, commit: str) -> None:
        """Take a branch of ours away, where it is still at this commit. Raises GitError."""
        assert branch.startswith(OURS), branch
        lease = f"--force-with-lease=refs/heads/{branch}:{commit}"
        await self._git("push", "--quiet", lease, "--", self.account.repository, f":refs/heads/{branch}")

    async def may_push(self, commit: str) -> None:
        """Asks the other side whether a branch of ours would be taken; nothing is written. Raises GitError."""
        await self._git(
            "push", "--quiet", "--dry-run", "--", self.account.repository, f"+{commit}:refs/heads/{OURS}check"
        )

    async def _git(
        self, *words: str, stdin: str | None = None, env: Mapping[str, str] | None = None, bare: bool = True
    ) -> str:
        program = shutil.which("git")
        if program is None:
            raise GitError("missing", "there is no `git` command; install git")
        where = ("--git-dir", str(self._folder)) if bare else ()
        self._of_this_loop()
        async with self._turn:
            process = await asyncio.create_subprocess_exec(
                program, *where, *words,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={**self._environment(), **(env or {})},
            )  # fmt: skip
            try:
                out, said = await asyncio.wait_for(
                    process.communicate(None if stdin is None else stdin.encode()), _TIMEOUT_S
                )
            except TimeoutError as error:
                raise GitError(
                    "unreachable", f"{self.account.repository}: git {words[0]} took more than {_TIMEOUT_S:g} s"
                ) from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode != 0:
            raise self._error(words[0], said.decode("utf-8", "replace"))
        if len(out) > _MOST:
            raise GitError("invalid", f"git {words[0]} told more than {_MOST} bytes")
        return out.decode("utf-8", "replace")

    def _of_this_loop(self) -> None:
        """Locks and the fetch under way belong to the loop that asks."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._fetching = loop, None
            self._turn, self._committing = asyncio.Lock(), asyncio.Lock()

    def _error(self, command: str, said: str) -> GitError:
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("hint:", "To "))]
        detail = clean(f"{self.account.repository}: git {command}: {' '.join(lines[-3:])}")
        if _STALE.search(said):
            return GitError("stale", detail)
        if _DENIED.search(said):
            return GitError("denied", detail)
        network = command in ("fetch", "push", "ls-remote")
        return GitError("unreachable" if network else "invalid", detail)

    def _environment(self) -> dict[str, str]:
        kept = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "https_proxy", "no_proxy")
            if name in os.environ
        }
        key = self.account.ssh_key_file
        own = "" if key is None else f" -o IdentitiesOnly=yes -i '{key}'"
        found = kept | {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_SSH_COMMAND": f"ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10{own}",
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
            "GIT_HTTP_LOW_SPEED_TIME": "20",
        }
        if self.account.token is not None and self.account.repository.startswith("http"):
            pair = f"{self.account.username}:{self.account.token.get_secret_value()}"
            found |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "http.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}",
            }
        return found


def shared(sessions: Sessions, account: GitAccount, folder: Path) -> GitRepository:
    """One for all endpoints of it; its copy stands with the first of them."""
    token = None if account.token is None else account.token.get_secret_value()
    key = ("git", account.repository, account.branch, account.username, str(account.ssh_key_file), token)
    return sessions.get(key, lambda: GitRepository(account, folder))


def _heard(task: asyncio.Task[str]) -> None:
    """Whoever waited for it may be gone."""
    if not task.cancelled():
        task.exception()
