"""A server of the page for tests, and Chromium in front of it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds
DESK, PHONE = (1280, 900), (390, 844)
# Whatever a model's box shows, as often as it changes.
WATCH = """() => {
  window.shown = [];
  const look = () => {
    const texts = [...document.querySelectorAll('.g-chat')].filter(box => box.offsetParent).map(
      box => [...box.querySelectorAll('.bot.message')].map(m => m.innerText.trim()).join(' '));
    const last = window.shown[window.shown.length - 1];
    if (JSON.stringify(texts) !== JSON.stringify(last)) window.shown.push(texts);
  };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
  look();
}"""


def executable() -> str | None:
    """Where a browser is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def start(arguments: list[str], folder: Path) -> tuple[subprocess.Popen, str]:
    """`glmft web` on a port that is free, and its address."""
    command = [sys.executable, "-m", "glmft", "web", *arguments, "--port", "0", "--device", "cpu"]
    log = (folder / "web-errors.txt").open("w")
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    line = server.stdout.readline()
    assert line.startswith("the page is at http://127.0.0.1:"), (folder / "web-errors.txt").read_text()
    return server, line.split()[4].rstrip(";")


def end(server: subprocess.Popen) -> None:
    """As a signal ends it."""
    server.terminate()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
        raise


@contextlib.contextmanager
def driven() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page in the browser, and what went wrong in it."""

    def __init__(self, chromium: Any, address: str, size: tuple[int, int] = DESK, locale: str = "en-US"):
        self.context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, locale=locale)
        self.page, self.address, self.wrong = self.context.new_page(), address, []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda line: self.wrong.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self.look_at)
        self.page.on(
            "response", lambda got: self.wrong.append(f"{got.status} {got.url}") if got.status >= 400 else None
        )
        self.page.goto(address)
        self.page.wait_for_selector("#question textarea, #no-models")

    def look_at(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"asked for {request.url}")

    def open(self, tab: int) -> None:
        self.page.locator("button[role=tab]:visible").nth(tab).click()

    def ask(self, text: str) -> None:
        self.page.fill("#question textarea", text)
        self.page.click("#send")

    def boxes(self) -> list[str]:
        """The last answer in every box."""
        answers = [box.locator(".bot.message") for box in self.page.locator(".g-chat:visible").all()]
        return [answer.last.inner_text().strip() if answer.count() else "" for answer in answers]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come"
            self.page.wait_for_timeout(50)

    def is_answered(self) -> bool:
        return self.page.locator("#send").is_visible() and all(self.boxes()) and "…" not in self.boxes()

    def fits(self) -> bool:
        """Whether nothing sticks out to the right."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
