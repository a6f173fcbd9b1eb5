"""Debian's Chromium without a screen, driven by Playwright; and traffic to look at."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

from tests.system.support import Bridge, program

#: Root has no sandbox, and nothing may be asked of anybody on the internet.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--disable-default-apps",
    "--disable-domain-reliability",
)

#: axe-core, by Deque Systems under the MPL-2.0, as it is in its npm package.
AXE = Path(__file__).parent / "vendored" / "axe.min.js"

#: What htmx calls errors when a page is left, or asks for something else, while it is asking: both, for each request.
#: Of one that fails it says the second beside another word.
LEFT = ("htmx:sendAbort", "htmx:afterRequest")


def _of_leaving(words: str) -> str:
    """Which of them this is; empty: neither."""
    return next((one for one in LEFT if one in words), "")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Onlooker:
    """Somebody with a browser of their own, who notices errors, alerts, and requests to anybody else.

    Args:
        browser: The program.
        address: Of the bridge's page, without a path.
        width, height: Of the window, in pixels.
        is_dark: Whether they like it dark.
        errors: Words of errors in the console that are expected, e.g. a 401 that was asked for.
    """

    def __init__(
        self,
        browser: Browser,
        address: str,
        *,
        width: int = 1280,
        height: int = 900,
        is_dark: bool = False,
        errors: tuple[str, ...] = (),
    ) -> None:
        self._address = address
        self._expected = errors
        self._wrong: list[str] = []
        self._context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if is_dark else "light",
            reduced_motion="reduce",
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda said: self._note(said.type in ("error", "warning"), said.text))
        self.page.on("pageerror", lambda error: self._note(True, str(error)))
        self.page.on("dialog", lambda dialog: (self._note(True, f"an alert: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda asked: self._note(not self._is_ours(asked.url), f"asked for {asked.url}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._context.close()
        if kind is None:
            left = Counter(words for words in map(_of_leaving, self._wrong) if words)
            assert left[LEFT[0]] == left[LEFT[1]], self._wrong
            assert left.total() == len(self._wrong), self._wrong

    def _is_ours(self, url: str) -> bool:
        return url.startswith(("data:", f"{self._address}/"))

    def _note(self, is_wrong: bool, what: str) -> None:
        if is_wrong and not any(words in what for words in self._expected):
            self._wrong.append(what)

    def go(self, path: str) -> None:
        self.page.goto(self._address + path)

    @property
    def path(self) -> str:
        return urlsplit(self.page.url).path

    @property
    def text(self) -> str:
        """All that stands in the page's main part."""
        return self.page.locator("main").inner_text()

    def wait_text(self, *words: str) -> None:
        """Until all of these stand in the page's main part."""
        for one in words:
            self.page.locator("main").get_by_text(one).first.wait_for()

    def findings(self) -> list[str]:
        """What axe finds that is serious for people with a screen reader, a keyboard, or weak eyes."""
        # By the debugger and not as a script of the page, whose policy forbids it.
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run()")
        assert found["passes"], "axe looked at nothing"
        return [
            f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    @property
    def is_too_wide(self) -> bool:
        """Whether one has to scroll sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def click(
    payload: str, text: str, sender: str = "15550001234", name: str = "Somebody", about: str | None = None
) -> dict[str, Any]:
    """A callback with one click, as WhatsApp sends it."""
    number = time.monotonic_ns()
    message: dict[str, Any] = {
        "id": f"wamid.click{number}",
        "from": sender,
        "timestamp": str(int(time.time())),
        "type": "button",
        "button": {"payload": payload, "text": text},
    }
    if about is not None:
        message["context"] = {"from": "15550009999", "id": about}
    return {
        "business_phone": "15550009999",
        "contacts": [{"profile": {"name": name}, "wa_id": sender}],
        "messages": [message],
    }


def post(bridge: Bridge, *bodies: object) -> None:
    for body in bodies:
        answer = bridge.post(body)
        assert answer.status == 200, answer
