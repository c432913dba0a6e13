"""`flyball permissions` and `flyball discover` for every system, and `check --live` for those whose stand-ins are small."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent import plugins
from tests.agent.daemons import flyball, invoke
from tests.fakes.haproxy import FakeHAProxy, FakeServer
from tests.fakes.haproxy.runtime import FORCED
from tests.fakes.litellm import MASTER_KEY, FakeProxy
from tests.fakes.modelapis import ADMIN_KEY, FakeOpenAI
from tests.fakes.nomad import FakeNomad, NomadCluster, service_job
from tests.fakes.oscar import FakeOscar, definition

PROXY = "model_list:\n  - {model_name: chat, litellm_params: {model: openai/m, weight: 1}, model_info: {id: own}}\n"
CONFIG = "backend chat\n  server a 127.0.0.1:9001 check\n  server b 127.0.0.1:9002 check disabled\n"


@pytest.mark.parametrize("name", plugins.names(plugins.SYSTEMS))
def test_each_system_prints_its_least_role(name: str) -> None:
    printed = invoke("permissions", name)
    assert printed.exit_code == 0, printed.stderr
    assert len(printed.stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("litellm", "url=http://127.0.0.1:9"),
        ("haproxy", "socket=/no/such/socket"),
        ("ray-serve", "dashboard=http://127.0.0.1:9"),
        ("nomad", "address=http://127.0.0.1:9"),
        ("oscar", "cluster=http://127.0.0.1:9"),
    ],
)
def test_a_system_that_cannot_be_reached_is_a_clear_error(name: str, option: str) -> None:
    gone = flyball("discover", name, "--option", option)
    assert gone.returncode == 2
    assert option.partition("=")[2] in " ".join((gone.stdout + gone.stderr).split())
    wrong = flyball("discover", name, "--option", "no_such_option=1")
    assert "no_such_option" in wrong.stdout + wrong.stderr


def test_a_proxys_file_that_lacks_is_named_by_check_live(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(PROXY)
    with FakeProxy(file) as proxy:
        env = {"LITELLM_MASTER_KEY": MASTER_KEY}
        options = ("--option", f"url={proxy.url}", "--option", f"config={file}")
        found = invoke("discover", "litellm", *options, env=env)
        assert found.exit_code == 0, found.stderr
        assert MASTER_KEY not in found.stdout + found.stderr
        settings = tmp_path / "flyball.yaml"
        settings.write_text(found.stdout.replace(str(file), str(tmp_path / "gone.yaml")).replace("observe", "approve"))
        lacking = invoke("check", "--live", "-c", settings, env=env)
    assert lacking.exit_code != 0
    assert f"lacks write {tmp_path / 'gone.yaml'}" in " ".join((lacking.stdout + lacking.stderr).split())
    assert {method for method, _ in proxy.requests} == {"GET"}


def test_a_sockets_level_is_named_by_check_live_where_it_is_to_change(tmp_path: Path) -> None:
    with FakeHAProxy(
        [FakeServer("a", 9001), FakeServer("b", 9002, admin=FORCED)], backend="chat", level="user"
    ) as haproxy:
        found = invoke("discover", "haproxy", "--option", f"socket={haproxy.socket}")
        assert "lacks stats socket level admin" in " ".join((found.stdout + found.stderr).split())
        for mode, lacks in (("observe", False), ("approve", True)):
            settings = tmp_path / f"{mode}.yaml"
            settings.write_text(found.stdout.partition("lacks")[0].replace("mode: observe", f"mode: {mode}"))
            checked = invoke("check", "--live", "-c", settings)
            assert ("lacks stats socket level admin" in " ".join((checked.stdout + checked.stderr).split())) is lacks
    assert haproxy.writes == []


def _checked(settings: Path, entry: str, mode: str, **env: str) -> str:
    """What `check --live` says of a discovered entry in that mode."""
    settings.write_text(entry.replace("mode: observe", f"mode: {mode}"))
    checked = invoke("check", "--live", "-c", settings, env=env)
    return " ".join((checked.stdout + checked.stderr).split())


def test_the_capability_that_lacks_is_named_by_check_live_where_nomad_is_to_change(tmp_path: Path) -> None:
    cluster = NomadCluster(time.time, start_s=0.0)
    cluster.register(service_job())
    with FakeNomad(cluster, {"see": {"list-jobs", "read-job"}}) as url:
        found = invoke("discover", "nomad", "--option", f"address={url}", "--option", "token=see")
        assert found.exit_code == 0, found.stderr
        entry = found.stdout.partition("lacks")[0]
        said = {
            mode: _checked(tmp_path / f"{mode}.yaml", entry, mode, NOMAD_TOKEN="see") for mode in ("observe", "approve")
        }
    assert "lacks scale-job" not in said["observe"]
    assert "lacks scale-job" in said["approve"]
    assert "lacks read-job" not in said["approve"]


def test_a_token_that_is_nobodys_is_named_by_check_live(tmp_path: Path) -> None:
    oscar = FakeOscar(tokens={"ada": "ada@egi.eu"})
    oscar.add(definition("plants"), "ada@egi.eu")
    with oscar as url:
        found = invoke("discover", "oscar", "--option", f"cluster={url}", "--option", "token=ada")
        assert found.exit_code == 0, found.stderr
        said = {
            who: _checked(tmp_path / f"{who}.yaml", found.stdout, "approve", OSCAR_TOKEN=who) for who in ("ada", "eve")
        }
    assert "lacks GET /system/services/plants" not in said["ada"]
    assert "lacks GET /system/services/plants" in said["eve"]


def test_a_key_of_no_admin_is_named_by_check_live(tmp_path: Path) -> None:
    openai = FakeOpenAI({"proj_a": {"tiny": (30_000, 500)}})
    openai.use("proj_a", "tiny", int(time.time()) - 86_400, 1, 1, 0, 1)
    with openai as url:
        found = invoke("discover", "openai-api", "--option", f"url={url}", "--option", f"key={ADMIN_KEY}")
        assert found.exit_code == 0, found.stderr
        assert ADMIN_KEY not in found.stdout
        said = _checked(tmp_path / "flyball.yaml", found.stdout, "approve", OPENAI_ADMIN_KEY="sk-proj")
    assert "lacks GET /v1/organization/projects" in said
    assert openai.writes == []
