"""``flyball discover git`` and ``flyball permissions git``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ValidationError

from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission, Support
from collectors.git.client import GitAccount, GitError, GitRepository
from collectors.window import CollectError

_ENGINES = re.compile(r"vllm|sglang|text-generation-inference|llama-server|llama\.cpp")
_FLAGS = ("--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization", "--max-model-len")
_WORKLOADS = ("Deployment", "StatefulSet")
_MOST_FILES = 2_000

_ROLE = """\
# What Flyball needs of a repository, and nothing more:
# - to see: read its contents (GitHub: a fine-grained token with Contents: read; GitLab: read_repository; a read-only deploy key)
# - to propose: push branches that begin with flyball/ (GitHub: Contents: write; GitLab: write_repository, role Developer; a deploy key that may
#   write), and, with `forge`, open requests (GitHub: Pull requests: write; GitLab: scope api; Gitea: write:repository)
# Protect the deployed branch: only people may push to it or merge into it. A merge is an approval.
# GitHub, a ruleset on the deployed branch: require a pull request, with one approval at least; no bypass for Flyball's token.
# GitLab: protected branch, allowed to merge: Maintainers; allowed to push: no one.
# Gitea: branch protection, whitelist of those who merge; Flyball is not on it.
"""


class GitSystem:
    """See ``collectors.discovery.System``."""

    name: ClassVar[str] = "git"
    options: ClassVar[type[BaseModel]] = GitAccount
    support: ClassVar[Support] = Support(
        title="any system, by pull request: files of a git repository",
        sees=("what the files of the deployed branch say", "which plan was merged, and by whom"),
        changes=(
            "whatever a value in YAML, JSON or tfvars sets: replicas, size, engine limits, an autoscaler's bounds and targets",
            "by a branch with the evidence as its text: its merge is the approval, and the way back is a branch, too",
        ),
        verified="real part",
        how="the real git with a bare repository; requests on GitHub, GitLab and Gitea against stand-ins made after their documentation",
    )

    async def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """A Deployment or StatefulSet in the branch's files that serves a model, with the ScaledObject or HPA that scales it."""
        account = _account(context.options)
        with tempfile.TemporaryDirectory() as folder:
            repository = GitRepository(account, Path(folder))
            try:
                tip = await repository.fetch()
                paths = [p for p in await repository.files(tip) if p.endswith((".yaml", ".yml"))][:_MOST_FILES]
                manifests = [(path, each) for path in paths for each in _objects(await repository.file(tip, path))]
            except GitError as error:
                raise CollectError(error.kind, error.detail) from error
        for path, manifest in manifests:
            if manifest.get("kind") in _WORKLOADS and _ENGINES.search(str(manifest.get("spec"))):
                yield _endpoint(account, path, manifest, manifests)

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        options = context.options if entry is None else entry["actuator"]["options"]
        known = {name: value for name, value in options.items() if name in GitAccount.model_fields}
        with tempfile.TemporaryDirectory() as folder:
            repository = GitRepository(_account(known), Path(folder))
            try:
                tip = await repository.fetch()
            except GitError as error:
                return [Permission("read contents", "see", False, error.detail)]
            read = Permission("read contents", "see", True)
            try:
                await repository.may_push(tip)
            except GitError as error:
                granted = False if error.kind == "denied" else None
                return [read, Permission("push flyball/*", "change", granted, error.detail)]
            return [read, Permission("push flyball/*", "change", True)]

    def permissions(self) -> str:
        """The least role."""
        return _ROLE


def _account(options: Mapping[str, Any]) -> GitAccount:
    try:
        return GitAccount.model_validate(dict(options))
    except ValidationError as error:
        raise CollectError("bad_options", "; ".join(e["msg"] for e in error.errors())) from error


def _objects(text: str | None) -> list[dict[str, Any]]:
    """What is no YAML, as a Helm template, is passed by."""
    try:
        return [each for each in yaml.safe_load_all(text or "") if isinstance(each, dict)]
    except yaml.YAMLError:
        return []


def _endpoint(
    account: GitAccount, path: str, manifest: Mapping[str, Any], manifests: Sequence[tuple[str, Mapping[str, Any]]]
) -> DiscoveredEndpoint:
    name = str((manifest.get("metadata") or {}).get("name", "model"))
    fields: dict[str, str] = {}
    if "replicas" in (manifest.get("spec") or {}):
        fields["replicas"] = f"{path}#spec.replicas"
    containers = (((manifest.get("spec") or {}).get("template") or {}).get("spec") or {}).get("containers") or []
    for number, container in enumerate(containers):
        arguments = [str(a) for a in container.get("args") or []]
        for flag in _FLAGS:
            if any(a == flag or a.startswith(f"{flag}=") for a in arguments):
                place = f"{path}#spec.template.spec.containers[{number}].args[{flag}]"
                fields[f"engine.{flag.removeprefix('--').replace('-', '_')}"] = place
    for where, other in manifests:
        target = ((other.get("spec") or {}).get("scaleTargetRef") or {}).get("name")
        if other.get("kind") in ("ScaledObject", "HorizontalPodAutoscaler") and target == name:
            low, high = (
                ("minReplicaCount", "maxReplicaCount")
                if other["kind"] == "ScaledObject"
                else ("minReplicas", "maxReplicas")
            )
            fields.pop("replicas", None)
            fields |= {"autoscaling.least": f"{where}#spec.{low}", "autoscaling.most": f"{where}#spec.{high}"}
    options: dict[str, Any] = {"repository": account.repository, "branch": account.branch, "fields": fields}
    if account.token is not None:
        options["token"] = "${GIT_TOKEN}"  # noqa: S105  a reference
    note = "set url to where clients reach it; fields: what stands in another file, such as Helm values, is to be added"
    entry = {
        "name": name,
        "url": f"http://{name}:8000",
        "mode": "observe",
        "actuator": {"system": "git", "options": options},
    }
    return DiscoveredEndpoint(name, entry, note)
