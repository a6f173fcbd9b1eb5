"""`scripts/screenshots`: the pictures in docs/images, of the real page with simulated traffic.

The traffic is made up, and so are all names and numbers in it.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import apsw
from playwright.sync_api import Browser, Page

from bridge.simulate import message_id_for, status
from bridge.strength import make
from tests.browser.chromium import chromium, click, post
from tests.system.support import Bridge
from tests.torture.harness import wait_until

IMAGES = Path(__file__).parents[2] / "docs" / "images"
NAMES = ("Ada", "Béla", "Chidi", "Dana", "Emre", "Frida")
BUTTONS = (
    ("open_gate", "Open the gate"),
    ("ring_back", "I am on my way"),
    ("not_today", "Not today"),
)


@dataclass(frozen=True)
class Shot:
    """A picture to be made."""

    path: str
    width: int = 1280
    height: int = 860
    is_dark: bool = False


#: Those that stand in the documents.
KEPT = {
    "overview": Shot("/"),
    "live": Shot("/live", height=940),
    "setup": Shot("/setup", height=940),
    "live-phone-dark": Shot("/live", width=390, height=844, is_dark=True),
}
#: All pages in all forms, to be looked at.
ALL = {
    f"{name}-{width}-{'dark' if is_dark else 'light'}": Shot(path, width, 900, is_dark)
    for name, path in (
        ("overview", "/"),
        ("live", "/live"),
        ("messages", "/messages"),
        ("history", "/messages/{status}"),
        ("update", "/updates/{click}"),
        ("buttons", "/buttons"),
        ("letters", "/dead-letters"),
        ("letter", "/dead-letters/1"),
        ("setup", "/setup"),
    )
    for width in (360, 1440)
    for is_dark in (False, True)
}


def number_of(person: int) -> str:
    return f"1555000{1200 + 37 * person}"


def an_hour_of_traffic(bridge: Bridge) -> None:
    """Statuses and clicks, most of them dated back so that the chart has something to show."""
    dice = random.Random(7)
    upto: list[int] = []
    for minute in range(60):
        for _ in range(dice.choice((0, 1, 1, 2, 3, 4, 6)) + (6 if 22 < minute < 30 else 0)):
            person = dice.randrange(len(NAMES))
            about = message_id_for(number_of(person))
            post(
                bridge, *(status(word, message_id=about, recipient=number_of(person)) for word in ("sent", "delivered"))
            )
            if dice.random() < 0.6:
                post(bridge, status("read", message_id=about, recipient=number_of(person)))
            if dice.random() < 0.2:
                payload, text = dice.choice(BUTTONS)
                post(bridge, click(payload, text, number_of(person), NAMES[person], about))
        upto.append(newest(bridge))
    delivered(bridge)  # what waits meanwhile would have waited for an hour
    date_back(bridge, upto)


def newest(bridge: Bridge) -> int:
    return asked(bridge, "SELECT coalesce(max(seq), 0) FROM updates")


def delivered(bridge: Bridge) -> None:
    """Wait until the broker has all."""
    wait_until(
        lambda: asked(bridge, "SELECT value FROM facts WHERE name = 'settled'") >= newest(bridge), "delivery", 60
    )


def asked(bridge: Bridge, question: str) -> int:
    database = apsw.Connection(str(bridge.state / "journal.db"))
    database.set_busy_timeout(10_000)
    found = int(next(database.execute(question))[0])
    database.close()
    return found


def date_back(bridge: Bridge, upto: list[int]) -> None:
    """Spread what was stored over the last hour: a minute for each place up to which it came in it."""
    database = apsw.Connection(str(bridge.state / "journal.db"))
    database.set_busy_timeout(10_000)
    after = 0
    for minute, place in enumerate(upto, 1):
        database.execute(
            "UPDATE updates SET received = received - ?1, uptime = uptime - ?1 WHERE seq > ?2 AND seq <= ?3",
            (60.0 * (len(upto) - minute), after, place),
        )
        after = place
    database.close()


def fresh_traffic(bridge: Bridge) -> None:
    """What comes while somebody watches."""
    about = message_id_for(number_of(1))
    post(
        bridge,
        status("sent", message_id=about, recipient=number_of(1)),
        status("delivered", message_id=about, recipient=number_of(1)),
        status("delivered", message_id=about, recipient=number_of(1))
        | {
            "statuses": [
                {"id": about, "status": "read", "timestamp": str(int(time.time())), "recipient_id": number_of(1)}
            ]
        },
        click("open_gate", "Open the gate", number_of(1), NAMES[1], about),
        status("failed", message_id=message_id_for(number_of(3)), recipient=number_of(3)),
    )


def take(browser: Browser, address: str, shot: Shot, file: Path, *, whole: bool) -> None:
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme="dark" if shot.is_dark else "light",
        locale="en-GB",
        timezone_id="Europe/Berlin",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(address + shot.path)
    page.wait_for_timeout(400)
    if shot.path == "/live" and not whole:
        open_first_click(page)
    page.screenshot(path=file, full_page=whole)
    context.close()


def open_first_click(page: Page) -> None:
    page.locator("#feed summary", has=page.locator(".chip.click")).first.click()
    page.wait_for_timeout(500)


def main(arguments: list[str]) -> None:
    """With a folder, every page in every form goes there; without, the pictures of the documents are made anew."""
    folder = Path(arguments[0]) if arguments else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    secret = make()
    with tempfile.TemporaryDirectory() as state, chromium() as browser:
        bridge = Bridge(
            Path(state),
            admin__listen="127.0.0.1:8081",
            webhook__public_url="https://hook.example.org",
            webhook__auth__path_token=secret,
            homeassistant__buttons='[{payload: open_gate, name: Open the gate, icon: "mdi:gate"}]',
        )
        bridge.path = f"/webhook/{secret}"
        try:
            bridge.start()
            address = "http://127.0.0.1:8081"
            an_hour_of_traffic(bridge)
            watcher = browser.new_page()
            watcher.goto(f"{address}/live")
            post(bridge, b'{"statuses": [{"status": "sent", "timestamp": "1"}]}', b"<xml>no callback</xml>")
            fresh_traffic(bridge)
            delivered(bridge)
            watcher.wait_for_timeout(3_000)  # the overview's figures are as old as that
            places = {
                kind: asked(bridge, f"SELECT max(seq) FROM updates WHERE kind = '{name}'")
                for kind, name in (("click", "button"), ("status", "status"))
            }
            for name, shot in (ALL if arguments else KEPT).items():
                ready = Shot(shot.path.format(**places), shot.width, shot.height, shot.is_dark)
                take(browser, address, ready, folder / f"{name}.png", whole=bool(arguments))
        finally:
            bridge.__exit__()


if __name__ == "__main__":
    main(sys.argv[1:])
