"""The system ``git`` on a real bare repository: what it reads, what it pushes, and what it never does."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from actuators.base import ActuatorError, CannotPlan, LiveState, Progress, Receipt, SystemContext, Trouble
from actuators.git.actuator import GitFiles
from actuators.shape import Autoscaling, Plan, Shape
from collectors.git.client import GitAccount, GitError, GitRepository
from collectors.http import HttpAnswer
from tests.actuators.git_parts import CHAT, FIELDS, TeamRepository
from tests.actuators.support import Caller, carry_out, context
from tests.collectors.clocks import SetClock

TEXT = "evidence: it is too slow\n\nmore of it"


@pytest.fixture
def team(tmp_path: Path) -> TeamRepository:
    return TeamRepository.make(tmp_path / "team")


def of(team: TeamRepository, folder: Path, *, http: Any = None, clock: Any = None, **options: Any) -> GitFiles:
    found = context(folder, "http://chat.invalid", Shape(), team.options(**options), http)
    if clock is not None:
        found = SystemContext(**{name: getattr(found, name) for name in found.__slots__} | {"clock": clock})
    return GitFiles(found)


def planned(system: GitFiles, **wanted: Any) -> tuple[LiveState, Plan]:
    async def both() -> tuple[LiveState, Plan]:
        live = await system.live()
        return live, await system.plan(live, live.shape.with_(**wanted))

    return asyncio.run(both())


def offered(system: GitFiles, plan: Plan) -> str:
    return asyncio.run(system.offer(plan, "chat: more", TEXT)).where.split()[0]


def refs(team: TeamRepository) -> dict[str, str]:
    return {name: team.tip(name) for name in ["main", *team.branches()]}


def test_the_shape_is_what_the_files_say(team: TeamRepository, tmp_path: Path) -> None:
    live = asyncio.run(of(team, tmp_path).live())
    assert live.shape == Shape(replicas=1, engine={"max_num_seqs": 4})
    assert live.version == team.tip()
    assert live.landed is None


def test_only_a_change_of_its_files_is_another_version(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path)
    before = asyncio.run(system.live()).version
    team.write({"README.md": "nothing of ours"})
    assert asyncio.run(system.live()).version == before
    team.write({"deploy/chat.yaml": CHAT + "# a word\n"})
    assert asyncio.run(system.live()).version != before


def test_the_branch_has_just_the_change_the_evidence_and_the_hash(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path)
    _, plan = planned(system, replicas=3, engine={"max_num_seqs": 16})
    branch = offered(system, plan)
    assert team.branches() == [branch]
    assert branch.startswith("flyball/chat/")
    assert team.patch(branch) == [
        "-  replicas: 1   # by the load of March",
        "+  replicas: 3   # by the load of March",
        '-          args: ["--model=org/m", "--max-num-seqs=4"]  # limits',
        '+          args: ["--model=org/m", "--max-num-seqs=16"]  # limits',
    ]
    said = team.message(branch)
    assert said.startswith(f"chat: more\n\n{TEXT}\n")
    assert f"\nFlyball-Plan: {plan.hash}\n" in said
    assert plan.by_merge


def test_reading_planning_and_looking_write_nothing(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path)
    before = refs(team)
    _, plan = planned(system, replicas=3)

    async def all_of_it() -> None:
        (land,) = plan.operations
        assert (await system.review(plan)).state == "absent"
        with pytest.raises(ActuatorError) as waits:
            await system.clear(land, None)
        assert (waits.value.code, waits.value.passes) == ("NOT_MERGED", True)
        with pytest.raises(ActuatorError):
            await system.do(land, "t", None)
        assert (await system.done(land, Receipt({"token": "t"}))).progress is Progress.FAILED
        assert not (await system.back(plan, [], await system.live())).operations
        await system.withdraw([])

    asyncio.run(all_of_it())
    assert refs(team) == before


def test_what_is_shown_twice_or_after_a_kill_is_the_same_branch(team: TeamRepository, tmp_path: Path) -> None:
    _, plan = planned(of(team, tmp_path / "a"), replicas=3)
    branch = offered(of(team, tmp_path / "a"), plan)
    first = team.tip(branch)
    assert offered(of(team, tmp_path / "b"), plan) == branch, "another process, with nothing of the first one's"
    team.write({"README.md": "main moves on"})
    assert offered(of(team, tmp_path / "a"), plan) == branch
    assert team.tip(branch) == first


@pytest.mark.parametrize("how", ["merge", "squash", "ff"])
def test_each_way_of_merging_is_known_and_by_whom(team: TeamRepository, tmp_path: Path, how: str) -> None:
    system = of(team, tmp_path)
    live, plan = planned(system, replicas=3)
    branch = offered(system, plan)
    assert asyncio.run(system.review(plan)).state == "open"
    if how != "ff":
        team.write({"README.md": "main moves on"})
    team.merge(branch, how, by="bob@example.org")
    review = asyncio.run(system.review(plan))
    assert review.state == "merged"
    assert review.by == ("unknown" if how == "ff" else "bob@example.org"), "a fast forward names nobody"
    now = asyncio.run(system.live())
    assert (now.landed, now.shape.replicas) == (plan.hash, 3)
    assert now.version != live.version
    steps = asyncio.run(carry_out(lambda: of(team, tmp_path), plan))
    assert [s.progress for s in steps] == [Progress.DONE]


def test_a_merge_that_was_changed_on_the_way_is_none_of_this_plan(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path)
    _, plan = planned(system, replicas=3)
    text = team.text(branch := offered(system, plan)).replace("replicas: 3", "replicas: 9")
    team.write({"deploy/chat.yaml": text}, team.message(branch))  # it even carries the hash
    assert asyncio.run(system.review(plan)).state != "merged"
    with pytest.raises(ActuatorError) as refused:
        asyncio.run(system.clear(plan.operations[0], None))
    assert refused.value.trouble is Trouble.DRIFT


def test_a_plan_of_files_that_were_changed_is_not_shown(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path)
    _, plan = planned(system, replicas=3)
    team.write({"deploy/chat.yaml": CHAT.replace("seqs=4", "seqs=8")})
    with pytest.raises(ActuatorError) as refused:
        offered(system, plan)
    assert refused.value.trouble is Trouble.DRIFT
    assert team.branches() == []


def test_branches_of_plans_that_are_no_longer_wanted_go_and_nobody_elses(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path)
    _, one = planned(system, replicas=3)
    _, two = planned(system, replicas=4)
    kept, gone = offered(system, one), offered(system, two)
    team.point("feature", team.tip())
    team.point("flyball/other/1234", team.tip())
    assert gone in team.branches()
    asyncio.run(system.withdraw([one.hash]))
    assert team.branches() == sorted(["feature", "flyball/other/1234", kept])


def test_the_way_back_is_a_branch_that_waits_for_its_merge(team: TeamRepository, tmp_path: Path) -> None:
    clock = SetClock()
    system = of(team, tmp_path, clock=clock, deploy_s=60)
    live, plan = planned(system, replicas=3)
    team.merge(offered(system, plan))
    before = team.tip()

    async def story() -> None:
        (land,) = plan.operations
        receipt = await system.do(land, "c:apply:0", None)
        assert (await system.done(land, receipt)).progress is Progress.PENDING
        clock.time += 61
        assert (await system.done(land, receipt)).progress is Progress.DONE
        now = await system.live()
        filled = LiveState(now.shape.with_(size="g2"), now.version, True)  # what the settings state beside the files
        back = await system.back(plan, [receipt], filled)
        (revert,) = back.operations
        assert not back.by_merge, "it needs no approval, and is no proposal"
        await system.clear(revert, None)
        receipt = await system.do(revert, "c:rollback:0", None)
        assert (await system.do(revert, "c:rollback:0", None)).handle == receipt.handle
        (branch,) = [b for b in team.branches() if "/revert-" in b]
        assert team.tip() == before
        assert f"Flyball-Reverts: {plan.hash}" in team.message(branch)
        await system.withdraw([])
        assert branch in team.branches(), "it is no plan's"
        waiting = await system.done(revert, receipt)
        assert (waiting.progress, waiting.receipt) == (Progress.PENDING, None)
        team.merge(branch)
        merged = await system.done(revert, receipt)
        assert merged.progress is Progress.PENDING
        assert merged.receipt is not None
        clock.time += 61
        assert (await system.done(revert, merged.receipt)).progress is Progress.DONE
        assert (await system.live()).shape == live.shape

    asyncio.run(story())


def test_what_deploys_says_when_it_is_done(team: TeamRepository, tmp_path: Path) -> None:
    system = of(team, tmp_path, deployed_ref="deployed", deploy_s=5)
    _, plan = planned(system, replicas=3)
    team.point("deployed", team.tip())
    merged = team.merge(offered(system, plan))

    async def far() -> Progress:
        receipt = await system.do(plan.operations[0], "t", None)
        return (await system.done(plan.operations[0], receipt)).progress

    assert asyncio.run(far()) is Progress.PENDING
    team.point("deployed", merged)
    assert asyncio.run(far()) is Progress.DONE


# -- where values stand ------------------------------------------------------------------------------------------------

MANY: Mapping[str, str] = {
    "values.yaml": 'chat:\n  count: "2"   # text in a chart\n  engine: {seqs: 8}\n',
    "so.yaml": "kind: ScaledObject\nspec:\n  minReplicaCount: 1 # least\n  maxReplicaCount: 4\n  triggers:\n    - type: prometheus\n"
    "      metadata: {threshold: '5'}\n",
    "prod.tfvars": '# sizes\nvm_size = "Standard_NC24"  # a GPU\nregion="westeurope"\ncores = 24\n',
    "kustomization.yaml": "replicas:\n  - name: chat\n    count: 2\n",
    "prod.auto.tfvars.json": '{"gpus": 2,\n "tier": "spot"}\n',
}
PLACES = {
    "replicas": "values.yaml#chat.count",
    "engine.max_num_seqs": "values.yaml#chat.engine.seqs",
    "autoscaling.least": "so.yaml#spec.minReplicaCount",
    "autoscaling.most": "so.yaml#spec.maxReplicaCount",
    "autoscaling.targets.waiting": "so.yaml#spec.triggers[type=prometheus].metadata.threshold",
    "size": "prod.tfvars#vm_size",
    "cpus": "prod.tfvars#cores",
    "accelerator_count": "prod.auto.tfvars.json#gpus",
    "tier": "prod.auto.tfvars.json#tier",
}


def test_helm_values_scaled_objects_kustomizations_and_terraform(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", MANY)
    system = of(team, tmp_path, fields=PLACES)
    live, plan = planned(
        system,
        replicas=3,
        engine={"max_num_seqs": 16},
        autoscaling=Autoscaling(2, 6, {"waiting": 2.5}),
        size="Standard_NC48",
        cpus=48,
        accelerator_count=4,
        tier="dedicated",
    )
    assert live.shape == Shape(
        replicas=2, engine={"max_num_seqs": 8}, autoscaling=Autoscaling(1, 4, {"waiting": 5.0}), size="Standard_NC24", cpus=24,
        accelerator_count=2, tier="spot",
    )  # fmt: skip
    branch = offered(system, plan)
    assert sorted(line for line in team.patch(branch) if line.startswith("+")) == sorted(
        [
            '+  count: "3"   # text in a chart',
            "+  engine: {seqs: 16}", "+  minReplicaCount: 2 # least", "+  maxReplicaCount: 6",
            "+      metadata: {threshold: '2.5'}", '+vm_size = "Standard_NC48"  # a GPU',
            "+cores = 48", '+{"gpus": 4,', '+ "tier": "dedicated"}',
        ]
    )  # fmt: skip
    team.merge(branch)
    assert asyncio.run(system.live()).shape == plan.after


def test_a_kustomization(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", MANY)
    system = of(team, tmp_path, fields={"replicas": "kustomization.yaml#replicas[name=chat].count"})
    _, plan = planned(system, replicas=5)
    assert team.patch(offered(system, plan)) == ["-    count: 2", "+    count: 5"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CHAT.replace("  replicas: 1   # by the load of March\n", ""), "is there 0 times"),
        (CHAT + "---\nspec: {replicas: 3}\n", "is there 2 times"),
        (CHAT.replace("replicas: 1 ", "replicas: [1 ").replace("March", "March\n  ]"), "is there 0 times"),
        (CHAT.replace("replicas: 1 ", "replicas: many "), "is no replicas"),
        (CHAT.replace("replicas: 1 ", "replicas: true "), "is no replicas"),
        ("a: [", "is no YAML"),
        ("{{ if .Values.on }}\nspec: {replicas: 1}\n{{ end }}", "is no YAML"),
    ],
)
def test_a_file_that_does_not_say_it_is_a_clear_error(tmp_path: Path, text: str, why: str) -> None:
    team = TeamRepository.make(tmp_path / "team", {"deploy/chat.yaml": text})
    with pytest.raises(ActuatorError, match=why) as error:
        asyncio.run(of(team, tmp_path, fields={"replicas": FIELDS["replicas"]}).live())
    assert not error.value.passes


def test_a_value_that_others_share_is_not_changed(tmp_path: Path) -> None:
    team = TeamRepository.make(tmp_path / "team", {"a.yaml": "spec:\n  replicas: &n 2\nother: {count: *n}\n"})
    system = of(team, tmp_path, fields={"replicas": "a.yaml#spec.replicas"})
    _, plan = planned(system, replicas=3)
    with pytest.raises(ActuatorError, match="anchor"):
        offered(system, plan)


@pytest.mark.parametrize(
    "options",
    [
        {"fields": {}},
        {"fields": {"replicas": "/etc/passwd.yaml#a"}},
        {"fields": {"replicas": "../up.yaml#a"}},
        {"fields": {"replicas": "script.sh#a"}},
        {"fields": {"colour": "a.yaml#b"}},
        {"fields": {"autoscaling.least": "a.yaml#b"}},
        {"repository": "--upload-pack=touch /tmp/x"},
        {"repository": "ext::sh -c whoami"},
        {"repository": "https://flyball:secret@git.example.org/x.git"},
        {"repository": "http://git.example.org/x.git", "token": "t"},
        {"branch": "--help"},
        {"forge": "github"},
    ],
)
def test_options_that_cannot_be_are_refused(team: TeamRepository, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ActuatorError) as refused:
        of(team, tmp_path, **options)
    assert refused.value.code == "BAD_OPTIONS"
    assert "secret" not in refused.value.detail


def test_what_stands_in_no_file_is_not_planned(team: TeamRepository, tmp_path: Path) -> None:
    with pytest.raises(CannotPlan, match=r"actuator\.options\.fields"):
        planned(of(team, tmp_path), size="larger")


# -- over HTTP ---------------------------------------------------------------------------------------------------------


class _Backend(BaseHTTPRequestHandler):
    """git's own smart HTTP server behind a password, as forges have it."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        expected = "Basic " + base64.b64encode(b"flyball:the-token").decode()
        if self.headers.get("authorization") != expected:
            self.send_response(401)
            self.send_header("www-authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            "GIT_PROJECT_ROOT": str(self.server.root), "GIT_HTTP_EXPORT_ALL": "1", "REMOTE_USER": "flyball", "REQUEST_METHOD": self.command,
            "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_TYPE": self.headers.get("content-type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""), "PATH": "/usr/bin:/bin",
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
        }  # type: ignore[attr-defined]  # fmt: skip
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, timeout=30)
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n"))
        self.send_response(int(fields.pop(b"Status", b"200").split()[0]))
        for name, value in fields.items():
            self.send_header(name.decode(), value.decode())
        self.end_headers()
        self.wfile.write(rest)


@contextmanager
def served(root: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Backend)
    server.root = root  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/deploy.git"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_over_http_with_a_token_and_with_a_wrong_one(team: TeamRepository, tmp_path: Path) -> None:
    with served(team.bare.parent) as url:
        system = of(team, tmp_path / "a", repository=url, token="the-token")
        _, plan = planned(system, replicas=3)
        branch = offered(system, plan)
        assert team.branches() == [branch]
        for token in ("wrong-token-1", None):
            other = of(team, tmp_path / str(token), repository=url, **({} if token is None else {"token": token}))
            with pytest.raises(ActuatorError) as refused:
                asyncio.run(other.live())
            assert refused.value.trouble is Trouble.DENIED
            assert url in refused.value.detail
            assert str(token) not in refused.value.detail
    config = (tmp_path / "a" / "repository.git" / "config").read_text()
    assert "the-token" not in config


def test_a_branch_that_somebody_pushed_to_is_not_overwritten(team: TeamRepository, tmp_path: Path) -> None:
    async def story() -> None:
        repository = GitRepository(GitAccount(repository=str(team.bare)), tmp_path / "r")
        tip = await repository.fetch()
        commit = await repository.commit(tip, {"deploy/chat.yaml": "a: 1\n"}, "ours")
        await repository.push(commit, "flyball/chat/1", None)
        other = await repository.commit(tip, {"deploy/chat.yaml": "a: 2\n"}, "another")
        with pytest.raises(GitError) as stale:
            await repository.push(other, "flyball/chat/1", tip)
        assert stale.value.kind == "stale"
        with pytest.raises(GitError):
            await repository.remove("flyball/chat/1", other)
        await repository.remove("flyball/chat/1", commit)

    asyncio.run(story())
    assert team.branches() == []


# -- forges: strict stand-ins, made after their documentation -----------------------------------------------------------

FORGES = {
    "github": (
        "https://api.github.test/repos/team/deploy/pulls",
        ("authorization", "Bearer the-token"),
        {"title", "head", "base", "body"},
    ),
    "gitea": (
        "https://git.test/api/v1/repos/team/deploy/pulls",
        ("authorization", "token the-token"),
        {"title", "head", "base", "body"},
    ),
    "gitlab": (
        "https://git.test/api/v4/projects/team%2Fdeploy/merge_requests",
        ("private-token", "the-token"),
        {"title", "source_branch", "target_branch", "description", "remove_source_branch"},
    ),
}


class _StandInForge(Caller):
    """Knows one address, one token, and the fields of one request; opens it once."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.opened: list[dict[str, Any]] = []
        self.status: int | None = None

    async def __call__(self, method: str, url: str, **options: Any) -> HttpAnswer:
        known, (header, value), fields = FORGES[self.name]
        asked = dict(options["json"])
        if self.status is not None:
            return self._said(self.status, {"message": "just so"}, url)
        if (method, url) != ("POST", known):
            return self._said(404, {"message": "Not Found"}, url)
        if options["headers"].get(header) != value:
            return self._said(401, {"message": "Bad credentials"}, url)
        if set(asked) != fields:
            return self._said(422, {"message": "Validation Failed"}, url)
        if self.opened:
            exists = {
                "message": "Validation Failed",
                "errors": [{"message": "A pull request already exists for team:x"}],
            }
            return self._said(422 if self.name == "github" else 409, exists, url)
        self.opened.append(asked)
        return self._said(201, {"html_url": "https://git.test/pull/1", "web_url": "https://git.test/pull/1"}, url)

    def _said(self, status: int, body: dict[str, Any], url: str) -> HttpAnswer:
        return HttpAnswer(status, {}, json.dumps(body).encode(), 0.0, url)


@pytest.mark.parametrize("name", FORGES)
def test_a_forge_is_asked_once_for_the_merge(team: TeamRepository, tmp_path: Path, name: str) -> None:
    """The branch goes to the real repository; the forge's API is a stand-in, by the address that the repository would have there."""
    from actuators.git.forge import Forge

    caller = _StandInForge(name)
    account = GitAccount(repository="https://git.test/team/deploy.git", token="the-token")
    forge = Forge(name, "https://api.github.test" if name == "github" else None, account, caller)  # type: ignore[arg-type]
    assert asyncio.run(forge.open("flyball/chat/1", "chat: more", TEXT)) == "https://git.test/pull/1"
    assert asyncio.run(forge.open("flyball/chat/1", "chat: more", TEXT)) == "", "it is open"
    assert len(caller.opened) == 1
    (asked,) = caller.opened
    assert {"flyball/chat/1", "main", "chat: more", TEXT} <= set(map(str, asked.values()))
    for status, trouble in (
        (403, Trouble.DENIED),
        (429, Trouble.THROTTLED),
        (502, Trouble.UNREACHABLE),
        (422, Trouble.INVALID),
    ):
        caller.status = status
        with pytest.raises(ActuatorError) as refused:
            asyncio.run(forge.open("flyball/chat/2", "t", "b"))
        assert refused.value.trouble is trouble
        assert "the-token" not in refused.value.detail
