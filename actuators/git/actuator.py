"""The system ``git``: what is deployed stands in files of a repository, and a change is a branch that a person merges.

Flyball writes branches of its own and nothing else. A plan's only step is done once the deployed branch holds it; the merge, which is a
person's, is the approval (docs/decisions/0005-a-merge-is-an-approval.md). The way back is a branch, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator, model_validator

from actuators.base import (
    Actuator,
    ActuatorError,
    CannotPlan,
    LiveState,
    Progress,
    Receipt,
    Review,
    Step,
    SystemContext,
    Trouble,
    options_of,
)
from actuators.git.forge import Forge, ForgeName
from actuators.shape import Autoscaling, Operation, Plan, Shape, difference
from collectors.git.client import OURS, CommitNote, GitAccount, GitError, shared
from collectors.git.fields import FieldError, FieldPath, Value, replaced, value_of

_TROUBLE = {
    "unreachable": Trouble.UNREACHABLE,
    "denied": Trouble.DENIED,
    "stale": Trouble.CONFLICT,
    "invalid": Trouble.INVALID,
    "missing": Trouble.INVALID,
}
_NUMBERS = ("replicas", "accelerator_count", "cpus", "memory_gb", "autoscaling.least", "autoscaling.most")
_TEXTS = ("size", "accelerator", "tier", "region")
_WHOLE = ("replicas", "accelerator_count", "autoscaling.least", "autoscaling.most")
_T = TypeVar("_T")
_PLAN, _REVERTS = "Flyball-Plan", "Flyball-Reverts"
#: Beside ``deploy_s``: the poll between a merge and its being seen.
_SLACK_S = 600.0


class Options(GitAccount):
    """Settings of the system ``git``."""

    fields: dict[str, str] = Field(default_factory=dict)
    """Where each part of the shape stands, such as `replicas: deploy/chat.yaml#spec.replicas`, `size: prod.tfvars#vm_size`; also
    `engine.NAME`, `autoscaling.least`, `autoscaling.most`, `autoscaling.targets.NAME`. What is not named is not changed. docs/systems/git.md
    has more paths."""
    deploy_s: float = Field(default=600.0, ge=0)
    """Seconds from the merge until what deploys the branch is done. Default 600."""
    deployed_ref: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,200}$")
    """A branch or tag that the deployment moves to what is deployed: then it is waited for, `deploy_s` at most beside it. Default: none."""
    revert_s: float = Field(default=86_400.0, gt=0)
    """Seconds that the branch which takes a change back waits for its merge. Default: a day."""
    forge: ForgeName | None = None
    """Opens a pull or merge request for each branch, with `token`: github, gitlab or gitea. Default: none; the branch alone."""
    api_url: str | None = Field(default=None, pattern=r"^https?://")
    """The forge's API. Default: api.github.com; of the others the repository's own host."""

    @field_validator("fields")
    @classmethod
    def _fields(cls, value: dict[str, str]) -> dict[str, str]:
        for name, place in value.items():
            known = name in (*_NUMBERS, *_TEXTS) or name.startswith(("engine.", "autoscaling.targets."))
            if not known:
                raise ValueError(
                    f"{name} is no part of a shape; there are {', '.join((*_NUMBERS, *_TEXTS))}, engine.NAME, autoscaling.targets.NAME"
                )
            FieldPath.parse(place)
        if ("autoscaling.least" in value) != ("autoscaling.most" in value):
            raise ValueError("autoscaling.least and autoscaling.most stand together")
        return value

    @model_validator(mode="after")
    def _requests(self) -> Options:
        if not self.fields:
            raise ValueError("fields: name where the shape stands, such as replicas: deploy/chat.yaml#spec.replicas")
        if self.forge is not None and self.token is None:
            raise ValueError("token: the forge asks for one")
        return self


class GitFiles:
    """See ``actuators.base.Actuator`` and ``actuators.base.ReviewedActuator``."""

    system: ClassVar[str] = "git"
    changes: ClassVar[Sequence[str]] = (
        *_TEXTS,
        "replicas",
        "accelerator_count",
        "cpus",
        "memory_gb",
        "engine.*",
        "autoscaling",
    )
    poll_s = 30.0

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.options = options_of(Options, context, "git")
        self._fields = {name: FieldPath.parse(place) for name, place in self.options.fields.items()}
        self._files = sorted({field.file for field in self._fields.values()})
        self._repository = shared(context.sessions, self.options, context.state_dir)

    # -- reading ---------------------------------------------------------------------------------------------------------

    async def live(self) -> LiveState:
        tip = await self._ask(self._repository.fetch())
        note = await self._note(tip)
        shape = _shape(await self._values(tip))
        return LiveState(shape, version=note.id, ready=True, landed=note.trailers.get(_PLAN))

    async def plan(self, live: LiveState, wanted: Shape) -> Plan:
        before, after = _flat(live.shape), _flat(wanted)
        edits = {name: after.get(name) for name in sorted({*before, *after}) if after.get(name) != before.get(name)}
        for name, value in edits.items():
            if name not in self._fields:
                text = f"{name} stands in no file that Flyball knows: name it under actuator.options.fields"
                raise CannotPlan("NOT_A_FIELD", text)
            if value is None or not _sensible(name, value):
                raise CannotPlan("NO_VALUE", f"{name} cannot be set to {value}: it is a value in {self._fields[name]}")
        operations: tuple[Operation, ...] = ()
        if edits:
            what = f"{self.options.branch} has it: {difference(live.shape, wanted)}"
            args = {"edits": edits, "version": live.version}
            operations = (Operation("land", args, self.options.deploy_s + _SLACK_S, what),)
        return self._plan(live, wanted, operations, by_merge=bool(edits))

    async def back(self, plan: Plan, done: Sequence[Receipt], live: LiveState) -> Plan:
        """Of what the files say; the rest of a shape is the settings' word."""
        before, there = _flat(plan.before), _flat(live.shape)
        edits = {n: before[n] for n in sorted(self._fields) if n in before and before[n] != there.get(n)}
        wanted = _shape({**{n: there[n] for n in self._fields}, **edits})
        operations: tuple[Operation, ...] = ()
        if edits:
            args = {"edits": edits, "version": live.version, "reverts": plan.hash}
            what = f"take it back: {difference(live.shape, wanted)}"
            operations = (Operation("revert", args, self.options.revert_s, what),)
        return self._plan(live, wanted, operations, by_merge=False)

    def _plan(self, live: LiveState, wanted: Shape, operations: tuple[Operation, ...], *, by_merge: bool) -> Plan:
        edits = operations[0].args["edits"] if operations else {}
        restarts = any(not name.startswith(("replicas", "autoscaling")) for name in edits)
        return Plan(
            self.context.endpoint,
            self.system,
            live.shape,
            wanted,
            live.version,
            operations,
            restarts=restarts,
            downtime_s=self.options.deploy_s if restarts else 0.0,
            way_back="a branch that takes it back is opened; its merge ends it" if edits else "nothing is changed",
            locks=(f"git:{self.options.repository}#{self.context.endpoint}",) if edits else (),
            by_merge=by_merge,
        )

    # -- doing -----------------------------------------------------------------------------------------------------------

    async def clear(self, operation: Operation, last: Receipt | None) -> None:
        _known(operation)
        tip = await self._ask(self._repository.fetch())
        if await self._holds(operation, tip):
            return
        await self._unmoved(operation, tip)
        if operation.name == "land":
            raise ActuatorError(
                "NOT_MERGED", f"{self.options.branch} does not have it yet: merge its branch", trouble=Trouble.CONFLICT
            )

    async def do(self, operation: Operation, token: str, last: Receipt | None) -> Receipt:
        """Nothing is written where it has landed; what takes a change back is a branch."""
        await self.clear(operation, last)
        tip = await self._ask(self._repository.fetch())
        handle: dict[str, Any] = {"step": operation.name, "token": token}
        if await self._holds(operation, tip):
            return Receipt(handle | {"at": self.context.clock.now(), "commit": tip}, leaves=(await self._note(tip)).id)
        reverts = str(operation.args["reverts"])
        branch = f"{self._prefix}revert-{_short(reverts)}"
        text = f"{operation.summary}\n\nThe change missed its objective, or a person wants it undone.\n\n{_REVERTS}: {reverts}\n"
        await self._show(branch, operation, tip, operation.summary, text)
        return Receipt(handle | {"branch": branch})

    async def done(self, operation: Operation, receipt: Receipt) -> Step:
        _known(operation)
        now, tip = self.context.clock.now(), await self._ask(self._repository.fetch())
        if not await self._holds(operation, tip):
            if "branch" in receipt.handle:
                return Step(Progress.PENDING, f"{receipt.handle['branch']} waits for its merge")
            return Step(Progress.FAILED, f"{self.options.branch} no longer has it: somebody changed it again")
        if "at" not in receipt.handle:
            landed = Receipt({**receipt.handle, "at": now, "commit": tip}, leaves=(await self._note(tip)).id)
            return Step(Progress.PENDING, "it is merged; the deployment follows", receipt=landed)
        if self.options.deployed_ref is not None:
            deployed = await self._ask(self._repository.fetch_ref(self.options.deployed_ref))
            if deployed is not None and await self._repository.holds(deployed, receipt.handle["commit"]):
                return Step(Progress.DONE, f"{self.options.deployed_ref} has it")
            return Step(Progress.PENDING, f"{self.options.deployed_ref} does not have it yet")
        left = receipt.handle["at"] + self.options.deploy_s - now
        return (
            Step(Progress.DONE, "it is deployed by now")
            if left <= 0
            else Step(Progress.PENDING, f"the deployment has {left:.0f} s more")
        )

    # -- branches --------------------------------------------------------------------------------------------------------

    async def offer(self, plan: Plan, title: str, evidence: str) -> Review:
        known = await self.review(plan)
        if known.state != "absent":
            return known
        (operation,) = plan.operations
        tip = await self._ask(self._repository.fetch())
        await self._unmoved(operation, tip)
        branch = self._branch(plan)
        where = await self._show(branch, operation, tip, title, f"{title}\n\n{evidence}\n\n{_PLAN}: {plan.hash}\n")
        return Review("open", where=" ".join(each for each in (branch, where) if each))

    async def _unmoved(self, operation: Operation, tip: str) -> None:
        """Raises ActuatorError DRIFT where the files are not what the plan was made for."""
        if (await self._note(tip)).id != operation.args["version"]:
            raise ActuatorError("DRIFT", f"somebody else changed {', '.join(self._files)}", trouble=Trouble.DRIFT)

    async def review(self, plan: Plan) -> Review:
        tip = await self._ask(self._repository.fetch())
        note = await self._note(tip)
        if note.trailers.get(_PLAN) == plan.hash and all([await self._holds(o, tip) for o in plan.operations]):
            return Review("merged", by=note.by, where=note.id[:12])
        there = self._branch(plan) in await self._ask(self._repository.branches())
        return Review("open" if there else "absent", where=self._branch(plan))

    async def withdraw(self, keep: Collection[str]) -> None:
        await self._ask(self._repository.fetch())
        kept = {f"{self._prefix}{_short(each)}" for each in keep}
        for branch, commit in (await self._ask(self._repository.branches())).items():
            plans = branch.startswith(self._prefix) and not branch.startswith(f"{self._prefix}revert-")
            if plans and branch not in kept:
                await self._ask(self._repository.remove(branch, commit))

    @property
    def _prefix(self) -> str:
        return f"{OURS}{self.context.endpoint}/"

    def _branch(self, plan: Plan) -> str:
        return self._prefix + _short(plan.hash)

    async def _show(self, branch: str, operation: Operation, tip: str, title: str, text: str) -> str:
        """Push the edits on top of ``tip`` as a branch of ours, and ask for its merge; its page, where there is one."""
        contents = {file: await self._text(tip, file) for file in self._files}
        changed = dict(contents)
        try:
            for name, value in operation.args["edits"].items():
                field = self._fields[name]
                changed[field.file] = replaced(changed[field.file], field, value)
        except FieldError as error:
            raise ActuatorError("FIELD", str(error)) from error
        files = {file: content for file, content in changed.items() if content != contents[file]}
        commit = await self._ask(self._repository.commit(tip, files, text))
        there = (await self._ask(self._repository.branches())).get(branch)
        if there != commit:
            await self._ask(self._repository.push(commit, branch, there))
        if self.options.forge is None:
            return ""
        forge = Forge(self.options.forge, self.options.api_url, self.options, self.context.http)
        return await forge.open(branch, title, text)

    # -- inside ----------------------------------------------------------------------------------------------------------

    async def _holds(self, operation: Operation, tip: str) -> bool:
        values = await self._values(tip)
        return all(values.get(name) == value for name, value in operation.args["edits"].items())

    async def _values(self, tip: str) -> dict[str, Value]:
        texts = {file: await self._text(tip, file) for file in self._files}
        try:
            found = {name: value_of(texts[field.file], field) for name, field in self._fields.items()}
        except FieldError as error:
            raise ActuatorError("FIELD", f"{self.options.repository}, {self.options.branch}: {error}") from error
        for name, value in found.items():
            if not _sensible(name, value):
                raise ActuatorError("FIELD", f"{self._fields[name]} is {value!r}, which is no {name}")
        return found

    async def _text(self, tip: str, file: str) -> str:
        text = await self._ask(self._repository.file(tip, file))
        if text is None:
            raise ActuatorError("FIELD", f"{self.options.repository}, {self.options.branch}: there is no file {file}")
        return text

    async def _note(self, tip: str) -> CommitNote:
        note = await self._ask(self._repository.last_change(tip, self._files))
        if note is None:
            raise ActuatorError(
                "FIELD", f"{self.options.repository}, {self.options.branch}: no commit has {', '.join(self._files)}"
            )
        return note

    async def _ask(self, call: Awaitable[_T]) -> _T:
        try:
            return await call
        except GitError as error:
            raise ActuatorError(error.kind.upper(), error.detail, trouble=_TROUBLE[error.kind]) from error


def _known(operation: Operation) -> None:
    if operation.name not in ("land", "revert"):
        raise ActuatorError("UNKNOWN_STEP", f"git knows no step {operation.name!r}")


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:16]


def _sensible(name: str, value: Value) -> bool:
    if name.startswith(("engine.", "autoscaling.targets.")):
        return not name.startswith("autoscaling.") or (isinstance(value, int | float) and not isinstance(value, bool))
    if name in _TEXTS:
        return isinstance(value, str) and bool(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return number and (name not in _WHOLE or isinstance(value, int))


def _flat(shape: Shape) -> dict[str, Value]:
    """A shape as fields. Raises CannotPlan on what no value in a file says."""
    for name in ("schedule", "purchase"):
        if getattr(shape, name) is not None:
            raise CannotPlan("NOT_A_FIELD", f"a {name} is no value in a file: each of its steps would wait for a merge")
    flat: dict[str, Value | None] = {
        name: getattr(shape, name) for name in ("replicas", "accelerator_count", "cpus", "memory_gb", *_TEXTS)
    }
    flat |= {f"engine.{name}": value for name, value in shape.engine.items()}
    flat |= {f"extra.{name}": value for name, value in shape.extra.items()}
    if shape.autoscaling is not None:
        scaling = shape.autoscaling
        flat |= {"autoscaling.least": scaling.least, "autoscaling.most": scaling.most}
        flat |= {f"autoscaling.targets.{name}": value for name, value in scaling.targets.items()}
    return {name: value for name, value in flat.items() if value is not None}


def _shape(values: Mapping[str, Any]) -> Shape:
    targets = {
        n.removeprefix("autoscaling.targets."): float(v)
        for n, v in values.items()
        if n.startswith("autoscaling.targets.")
    }
    scaled = "autoscaling.least" in values
    return Shape(
        **{name: values[name] for name in (*_NUMBERS[:4], *_TEXTS) if name in values},
        engine={n.removeprefix("engine."): v for n, v in values.items() if n.startswith("engine.")},
        autoscaling=Autoscaling(values["autoscaling.least"], values["autoscaling.most"], targets) if scaled else None,
    )


def make(context: SystemContext) -> Actuator:
    """The entry point. Raises ActuatorError on options that are not those of ``Options``."""
    return GitFiles(context)
