"""Makes docs/page.png: runs the demo, opens its page in headless Chromium, takes the picture. Usage: python docs/picture.py [CHROMIUM]"""

import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def main(chromium: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "demo"
        demo = subprocess.Popen([sys.executable, "-m", "agent", "demo", "--stay", "--dir", str(place)])  # noqa: S603
        try:
            while not (place / "summary.json").exists():  # the story is told; the page stays up
                if demo.poll() is not None:
                    sys.exit("the demo ended before its page could be seen")
                time.sleep(1)
            port = yaml.safe_load((place / "flyball.yaml").read_text())["web"]["port"]
            base = f"http://127.0.0.1:{port}"
            urllib.request.urlopen(f"{base}/healthz", timeout=5).close()  # noqa: S310
            with sync_playwright() as p:
                browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page(viewport={"width": 1180, "height": 860})
                page.goto(base)
                page.screenshot(path=HERE / "page.png")
                browser.close()
        finally:
            demo.terminate()
            demo.wait(20)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/chromium")
