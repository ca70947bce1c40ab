"""A real chromium that writes down everything it should not see, and looks at pages in two widths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (1440, 768)
HEIGHT = 900
DOCUMENTED = (
    "overview", "first-run", "job-", "restore-wizard-", "workload", "download", "platform", "vm"
)  # fmt: skip
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "img"

# What must not be: a page wider than the window, text cut off, a thing that reaches out of the window.
FLAWS = """() => {
  const found = [];
  const pen = document.createElement("canvas").getContext("2d");
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) found.push(`scrolls sideways: ${root.scrollWidth}`);
  const scrolls = (one) => one.closest(".brs-scroll, .brs-calendar, .brs-log, .simplebar-content-wrapper");
  const name = (one) => `<${one.tagName} class="${one.className}"> ${one.textContent.trim().slice(0, 50)}`;
  for (const one of document.querySelectorAll("#main *, dialog[open] *, #nav-sidebar *")) {
    const box = one.getBoundingClientRect();
    const style = getComputedStyle(one);
    if (!box.width || !box.height || style.visibility === "hidden") continue;
    if (String(one.className).includes("simplebar") || one.className === "material-symbols-outlined") continue;
    const cut = ["hidden", "clip"].includes(style.overflowX) && one.scrollWidth > one.clientWidth + 1;
    if (cut && one.clientWidth > 1 && one.textContent.trim()) found.push(`cut off: ${name(one)}`);
    const written = [...one.childNodes].some((part) => part.nodeType === Node.TEXT_NODE && part.data.trim());
    const isBox = written && !one.ownerSVGElement && style.display !== "inline";
    const inBox = isBox && !["auto", "scroll"].includes(style.overflowX);
    if (!cut && inBox && one.scrollWidth > one.clientWidth + 1) found.push(`spills out: ${name(one)}`);
    const low = ["hidden", "clip"].includes(style.overflowY) && one.scrollHeight > one.clientHeight + 2;
    if (written && low && one.clientHeight > 1) found.push(`cut off below: ${name(one)}`);
    if (one.tagName === "SELECT" && one.selectedOptions.length) {
      pen.font = style.font;
      const room = one.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
      const label = one.selectedOptions[0].text.trim();
      if (pen.measureText(label).width > room + 1) found.push(`choice cut off: ${label}`);
    }
    if (box.right > innerWidth + 1 && !scrolls(one) && one.textContent.trim()) found.push(`outside: ${name(one)}`);
  }
  return found;
}"""


@dataclass
class Sight:
    """One browser page with what it met: console errors, exceptions, dialogs, requests to other hosts."""

    page: Page
    address: str
    shots: Path
    met: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)  # parts of console messages that a test provokes itself

    def listen(self) -> None:
        self.page.on("console", lambda message: message.type == "error" and self._meet(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self._meet(f"exception: {error}"))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("dialog", self._dialog)

    def _meet(self, what: str) -> None:
        if not any(part in what for part in self.allowed):
            self.met.append(f"{what} (on {self.page.url})")

    def _request(self, url: str) -> None:
        if not url.startswith((self.address, self.address.replace("https:", "wss:"), "data:", "blob:")):
            self.met.append(f"request to another host: {url}")

    def _dialog(self, dialog: object) -> None:
        self.met.append(f"a script opened a dialog: {dialog.message}")  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    def go(self, path: str) -> None:
        answer = self.page.goto(self.address + path)
        assert answer is not None
        assert answer.status == 200, f"{path}: {answer.status}"

    def look(self, name: str, *, widths: tuple[int, ...] = WIDTHS) -> None:
        """The page as it stands must be sound in both widths; its picture is kept under ``name``."""
        for width in widths:
            self.page.set_viewport_size({"width": width, "height": HEIGHT})
            self.page.wait_for_timeout(250)  # lets transitions end; nothing is waited for
            suffix = "" if width == WIDTHS[0] else f"-{width}"
            folder = shots_folder(self.shots, name, width)
            self.page.screenshot(path=folder / f"{name}{suffix}.png", full_page=width != WIDTHS[0])
            assert self.page.evaluate(FLAWS) == [], f"{name} at {width} px"
        self.page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
        self.sound()

    def sound(self) -> None:
        assert self.met == []


def shots_folder(own: Path, name: str, width: int) -> Path:
    """The documentation's pictures are made anew only when that is asked for (BRS_SCREENSHOTS=1)."""
    wanted = os.environ.get("BRS_SCREENSHOTS") == "1" and width == WIDTHS[0] and name.startswith(DOCUMENTED)
    folder = IMAGES if wanted else own
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def chapter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a story that a file of tests tells: it cannot be told when the one before it failed."""
    session, module = request.session, request.module
    if getattr(module, "story_failed", False):
        pytest.skip("the chapter before failed")
    failed = session.testsfailed
    yield
    module.story_failed = session.testsfailed > failed


@contextmanager
def sight(address: str, shots: Path, patience_ms: float) -> Iterator[Sight]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(
            ignore_https_errors=True, viewport={"width": WIDTHS[0], "height": HEIGHT}, accept_downloads=True
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        seen = Sight(context.new_page(), address, shots)
        seen.listen()
        seen.page.set_default_timeout(patience_ms)
        expect.set_options(timeout=patience_ms)
        try:
            yield seen
        finally:
            browser.close()
