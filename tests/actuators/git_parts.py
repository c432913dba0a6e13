"""A real bare repository, and the people who work with it: they commit, merge and take branches away, by the real git."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actuators.base import Actuator, ReviewedActuator
from actuators.git.actuator import GitFiles
from actuators.shape import Plan

CHAT = """\
# The model that answers the chat. Ask the platform team before you change it.
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat}
spec:
  replicas: 1   # by the load of March
  template:
    spec:
      containers:
        - name: vllm
          image: vllm/vllm-openai:v0.32.0
          args: ["--model=org/m", "--max-num-seqs=4"]  # limits
---
apiVersion: v1
kind: Service
metadata: {name: chat}
"""
FIELDS = {
    "replicas": "deploy/chat.yaml#spec.replicas",
    "engine.max_num_seqs": "deploy/chat.yaml#spec.template.spec.containers[name=vllm].args[--max-num-seqs]",
}


class TeamRepository:
    """``bare`` is what Flyball is told of; the people have a clone beside it."""

    def __init__(self, folder: Path) -> None:
        self.bare = folder / "deploy.git"
        self._clone = folder / "clone"

    @classmethod
    def make(cls, folder: Path, files: Mapping[str, str] | None = None) -> TeamRepository:
        """Anew, with a first commit of these files."""
        team = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        team._run("init", "--quiet", "--bare", "--initial-branch=main", str(team.bare), where=folder)
        team._run("clone", "--quiet", str(team.bare), str(team._clone), where=folder)
        team._run("checkout", "--quiet", "-B", "main")
        team.write(files or {"deploy/chat.yaml": CHAT})
        return team

    @classmethod
    def at(cls, bare: Path) -> TeamRepository:
        """One that is there."""
        return cls(bare.parent)

    def copy(self, folder: Path) -> TeamRepository:
        """The same history at another place."""
        shutil.copytree(self.bare.parent, folder)
        team = TeamRepository(folder)
        team._run("remote", "set-url", "origin", str(team.bare))
        return team

    def options(self, **more: Any) -> dict[str, Any]:
        return {"repository": str(self.bare), "fields": FIELDS, "deploy_s": 0, **more}

    def write(self, files: Mapping[str, str], says: str = "by hand") -> str:
        """A person's own commit on main."""
        self._main()
        for path, text in files.items():
            (self._clone / path).parent.mkdir(parents=True, exist_ok=True)
            (self._clone / path).write_text(text)
        self._run("add", "--all")
        self._run("commit", "--quiet", "--message", says)
        self._run("push", "--quiet", "origin", "main")
        return self.tip()

    def merge(self, branch: str, how: str = "merge", by: str = "ada@example.org") -> str:
        """A person merges a branch: with a commit of its own, squashed, or as a fast forward."""
        self._main()
        person = {"GIT_AUTHOR_EMAIL": by, "GIT_COMMITTER_EMAIL": by}
        if how == "squash":
            self._run("merge", "--quiet", "--squash", f"origin/{branch}")
            text = self._run("log", "-1", "--format=%B", f"origin/{branch}")
            self._run("commit", "--quiet", "--message", text, env=person)
        else:
            words = ("--ff-only",) if how == "ff" else ("--no-ff", "--message", f"Merge {branch}")
            self._run("merge", "--quiet", *words, f"origin/{branch}", env=person)
        self._run("push", "--quiet", "origin", "main")
        return self.tip()

    def branches(self) -> list[str]:
        """But for main."""
        told = self._run("for-each-ref", "--format=%(refname:short)", "refs/heads", where=self.bare)
        return sorted(set(told.split()) - {"main"})

    def take_away(self, branch: str) -> None:
        self._run("push", "--quiet", "origin", "--delete", branch)

    def text(self, ref: str = "main", path: str = "deploy/chat.yaml") -> str:
        return self._run("show", f"{ref}:{path}", where=self.bare)

    def message(self, ref: str) -> str:
        return self._run("log", "-1", "--format=%B", ref, where=self.bare)

    def patch(self, ref: str) -> list[str]:
        """The lines that a branch takes away and adds."""
        told = self._run("diff", "--unified=0", "main", ref, where=self.bare)
        return [line for line in told.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]

    def tip(self, ref: str = "main") -> str:
        return self._run("rev-parse", ref, where=self.bare).strip()

    def point(self, name: str, at: str) -> None:
        """What a deployment does: move its branch to what is deployed."""
        self._run("update-ref", f"refs/heads/{name}", at, where=self.bare)

    def _main(self) -> None:
        self._run("fetch", "--quiet", "--prune", "origin")
        if self._run("ls-remote", "origin", "main").strip():
            self._run("reset", "--quiet", "--hard", "origin/main")

    def _run(self, *words: str, where: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        known = {
            "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "Ada", "GIT_COMMITTER_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.org", "GIT_COMMITTER_EMAIL": "ada@example.org",
        }  # fmt: skip
        done = subprocess.run(
            ["git", *words],
            cwd=where or self._clone,
            env={**os.environ, **known, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"git {' '.join(words)}: {done.stderr}"
        return done.stdout


async def reviewed(actuator: Actuator, plan: Plan) -> None:
    """Where plans are reviewed elsewhere: show it there, and have somebody merge it."""
    if not plan.by_merge:
        return
    assert isinstance(actuator, ReviewedActuator)
    assert isinstance(actuator, GitFiles)
    offered = await actuator.offer(plan, "a plan", "evidence")
    if offered.state == "open":
        TeamRepository.at(Path(actuator.options.repository)).merge(offered.where.split()[0])
