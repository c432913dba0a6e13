"""The page in a real browser: opened, a recommendation approved by clicking, and nothing that leaves this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from actuators.emulated.engine import Size
from actuators.emulated.fleet import EmulatedFleet, EmulatedSpec
from actuators.shape import Shape
from agent import views
from agent.store.audit import entries
from tests.agent.daemons import ROOT, Daemon, flyball, running, write_settings

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

ARTIFACTS = ROOT / "artifacts"
#: Without the flags for the background the browser tries to reach the outside by itself.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Watches one emulated endpoint, for which a person has asked for a second replica."""
    spec = EmulatedSpec(
        "chat",
        "tiny",
        Shape(replicas=1, size="small", engine={"max_num_seqs": 8}),
        {"small": Size(680.0, 104.0, 40_000)},
    )
    with EmulatedFleet(tmp_path / "fleet") as fleet:
        endpoint = {
            "name": "chat",
            "url": fleet.start(spec),
            "mode": "approve",
            "objective": {"ttft_p95_s": 1.0},
            "actuator": {"system": "emulated"},
            "policy": {"max_replicas": 2, "evidence_s": 20},
            "usd_per_replica_hour": 1.1,
            "shape": {"size": "small"},
        }
        # Paused: what is approved here stays approved, so that the test can look at it
        with running(write_settings(tmp_path, [endpoint])) as started:
            started.ready()
            assert flyball("pause", "-c", str(started.config)).returncode == 0
            proposed = flyball("recommendations", "propose", "chat", "--shape", "replicas=2", "-c", str(started.config))
            assert proposed.returncode == 0, proposed.stderr
            yield started
            assert started.stop() == 0


def test_a_recommendation_is_approved_by_clicking(browser: Browser, daemon: Daemon) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said, asked = _listen(page)
    page.goto(f"http://127.0.0.1:{daemon.settings.web.port}/")
    expect(page.get_by_role("heading", name="Endpoints against their objectives")).to_be_visible()
    _keep(page, "page_endpoints.png")
    page.get_by_role("navigation").get_by_role("link", name="Inbox").click()
    card = page.locator(".card", has=page.get_by_role("heading", name="chat"))
    expect(card).to_contain_text("2 x small")
    _keep(page, "page_inbox.png")
    card.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/recommendations/*")
    expect(page.get_by_text("approve through page").first).to_be_visible()
    _keep(page, "page_approved.png")

    with daemon.store() as store:
        row = views.recommendation_list(store)["recommendations"][0]
        with store.read() as db:
            trail = [entry["action"] for entry in entries(db, row["id"])]
    assert (row["state"], row["state_by"]) == ("approved", "page:127.0.0.1")
    assert trail, "the decision is in the audit"

    for name in ("Endpoints", "Changes", "Reports", "Health"):
        page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.goto(f"http://127.0.0.1:{daemon.settings.web.port}/endpoints/chat")
    daemon.until(lambda: daemon.json("/endpoints/chat.json")["endpoint"]["series"], "windows are there")
    page.reload()
    expect(page.locator(".chart svg").first).to_be_visible()
    _keep(page, "page_endpoint.png")
    assert said == []
    assert asked
    assert {urlsplit(url).hostname for url in asked} == {"127.0.0.1"}


def test_no_page_is_wider_than_a_phone_in_light_or_dark(browser: Browser, daemon: Daemon) -> None:
    daemon.until(lambda: daemon.json("/endpoints/chat.json")["endpoint"]["series"], "windows are there")
    (advice,) = daemon.json("/recommendations.json")["recommendations"]
    paths = ("/", "/?text=chat&order=cost", "/endpoints/chat", "/recommendations", f"/recommendations/{advice['id']}", "/changes",
             "/tunes", "/savings", "/reports", "/status", "/whatif", "/whatif?endpoint=chat&replicas=2", "/settings", "/docs")  # fmt: skip
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        said, _ = _listen(page)
        for path in paths:
            page.goto(f"http://127.0.0.1:{daemon.settings.web.port}{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        page.goto(f"http://127.0.0.1:{daemon.settings.web.port}/")
        _keep(page, f"page_phone_{scheme}.png")
        context.close()
        assert said == []


def test_a_page_renews_itself_and_takes_nothing_from_under_a_persons_hands(browser: Browser, daemon: Daemon) -> None:
    page = browser.new_page()
    said, _ = _listen(page)
    page.goto(f"http://127.0.0.1:{daemon.settings.web.port}/status")
    resume, pause = (page.get_by_role("button", name=name) for name in ("Resume", "Pause: apply nothing"))
    expect(resume).to_be_visible()
    assert flyball("resume", "-c", str(daemon.config)).returncode == 0
    expect(pause).to_be_visible(timeout=60_000)
    page.get_by_label("Why").fill("I am still wri")
    assert flyball("pause", "-c", str(daemon.config)).returncode == 0
    page.wait_for_timeout(6_000)  # three looks of the daemon's
    expect(page.get_by_label("Why")).to_have_value("I am still wri")
    page.get_by_label("Why").evaluate("field => field.blur()")
    expect(resume).to_be_visible(timeout=60_000)
    assert said == []


def _listen(page: Page) -> tuple[list[str], list[str]]:
    """What the console complains about, and every address that is asked for, as it happens."""
    said: list[str] = []
    asked: list[str] = []

    def request(r: Request) -> None:
        if urlsplit(r.url).scheme != "data":
            asked.append(r.url)

    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda r: said.append(f"{r.url}: {r.failure}") if not _left(r) else None)
    page.on("request", request)
    return said, asked


def _left(request: Request) -> bool:
    """The stream of news ends where its page is left."""
    return urlsplit(request.url).path == "/events" and request.failure == "net::ERR_ABORTED"


def _keep(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / name, full_page=True)
