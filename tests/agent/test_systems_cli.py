"""`flyball permissions` and `flyball discover` for every system, and `check --live` for those whose stand-ins are small."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import plugins
from tests.agent.daemons import flyball, invoke
from tests.fakes.haproxy import FakeHAProxy, FakeServer
from tests.fakes.haproxy.runtime import FORCED
from tests.fakes.litellm import MASTER_KEY, FakeProxy

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
