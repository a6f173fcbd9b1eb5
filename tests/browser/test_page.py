"""The page in a real browser, of a real bridge with a real broker, by what people do with it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from bridge.journal import Callback, DeadLetter
from bridge.journal.sqlite import SqliteJournal
from tests.browser.chromium import Onlooker, click, post
from tests.hostile import TEXTS
from tests.system.support import COMMAND, Bridge, free_port, status

Look = Callable[..., Onlooker]
MakeBridge = Callable[..., Bridge]

pytestmark = pytest.mark.timeout(180)

PAGES = {
    "overview": "/",
    "live": "/live",
    "messages": "/messages",
    "history": "/messages/1",
    "update": "/updates/4",
    "buttons": "/buttons",
    "letters": "/dead-letters",
    "letter": "/dead-letters/1",
    "setup": "/setup",
    "missing": "/dead-letters/999",
}
FORMS = [(width, is_dark) for width in (360, 1440) for is_dark in (False, True)]
PASSWORD = "correct horse battery"


def traffic(bridge: Bridge) -> None:
    """A message that was read, another that failed, a click, and a dead letter."""
    for word in ("sent", "delivered", "read"):
        post(bridge, status("m1", word, recipient_id="15550001234"))
    post(bridge, click("open_gate", "Open the gate", "15550001234", "Ada", "m1"))
    post(bridge, status("m2", "failed", errors=[{"code": 131026, "title": "Message undeliverable"}]))
    post(bridge, b"<xml>no callback</xml>")


def bury(bridge: Bridge, body: bytes, reason: str = "an older version did not understand it") -> None:
    """A dead letter that could be replayed."""
    with SqliteJournal(bridge.state / "journal.db") as journal:
        journal.append([Callback((), (DeadLetter("callback", reason, body, time.time()),))])


# --- every page, for everybody --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "is_dark"), FORMS, ids=str)
def test_every_page_is_for_everybody(bridge: Bridge, look: Look, width: int, is_dark: bool) -> None:
    """Who sees little, uses no mouse, or looks by phone could not tell whether the gate works."""
    traffic(bridge)
    onlooker = look(bridge, width=width, is_dark=is_dark, errors=("404",))
    wrong: dict[str, Any] = {}
    for name, path in PAGES.items():
        onlooker.go(path)
        for summary in onlooker.page.locator("main details > summary").all()[:2]:
            summary.click()
        onlooker.page.wait_for_timeout(100)
        if found := onlooker.findings():
            wrong[name] = found
        if onlooker.is_too_wide:
            wrong[f"{name} is too wide"] = onlooker.page.evaluate("document.documentElement.scrollWidth")
    assert wrong == {}


def test_without_a_password_there_is_no_way_to_log_out(bridge: Bridge, look: Look) -> None:
    """A button that does nothing makes one wonder what else does nothing."""
    assert look(bridge).page.get_by_role("button", name="Log out").count() == 0


# --- the first start, and what is wrong -------------------------------------------------------------------------


def test_a_first_start_says_what_to_do(bridge: Bridge, look: Look) -> None:
    """A new user would see empty boxes and think that it does not work."""
    onlooker = look(bridge)
    onlooker.wait_text("Ready for the first callback")
    # As a terminal finds it: from a clone, by its place alone.
    command = "whatsapp2mqtt" if shutil.which("whatsapp2mqtt", path=bridge.environment["PATH"]) else COMMAND
    assert f"{command} simulate button" in onlooker.text
    for path, words in {
        "/live": f"{command} simulate sent delivered read button",
        "/messages": "No messages yet",
        "/buttons": "No button is known yet",
        "/dead-letters": "No dead letters",
        "/setup": "No callback has ever come",
    }.items():
        onlooker.go(path)
        assert words in onlooker.text, path


def test_a_broker_that_is_away_is_named_and_what_to_do(make_bridge: MakeBridge, look: Look) -> None:
    """The user would see that nothing arrives in Home Assistant, and nowhere why."""
    port = free_port()
    bridge = make_bridge(mqtt__url=f"mqtt://127.0.0.1:{port}")
    bridge.start(wait=False).program.wait_log("nothing reaches the broker; everything is kept until it does")
    onlooker = look(bridge)
    onlooker.wait_text("Broker needs a look", f"no connection to mqtt://127.0.0.1:{port}")
    post(bridge, status("m1"))
    onlooker.go("/live")
    onlooker.wait_text("not yet")
    onlooker.go("/setup")
    onlooker.wait_text("Broker reached", f"no connection to mqtt://127.0.0.1:{port}")


def test_a_wrong_password_of_the_broker_is_said_in_words(make_bridge: MakeBridge, look: Look) -> None:
    """The commonest mistake of a first start."""
    broker = make_bridge(
        mqtt__embedded__username="bridge",
        mqtt__embedded__password="right",  # its broker stands in for one of the user's
    ).start()
    bridge = make_bridge(
        mqtt__url=f"mqtt://127.0.0.1:{broker.broker}", mqtt__username="bridge", mqtt__password="mistyped"
    )
    bridge.start(wait=False).program.wait_log("nothing reaches the broker; everything is kept until it does")
    onlooker = look(bridge)
    onlooker.wait_text("Broker needs a look", "look at mqtt.username and mqtt.password")
    assert "mistyped" not in onlooker.page.content()


# --- overview --------------------------------------------------------------------------------------------------


def test_the_overview_follows_what_happens(bridge: Bridge, look: Look) -> None:
    """A glance that shows an hour ago is worse than none."""
    onlooker = look(bridge)
    traffic(bridge)
    onlooker.wait_text("failed")
    onlooker.page.locator(".uplot canvas").wait_for()
    onlooker.wait_text("look at them")
    onlooker.go("/")
    onlooker.page.get_by_role("link", name=re.compile("Dead letters 1")).wait_for()


def test_a_bridge_that_ended_does_not_look_well(bridge: Bridge, look: Look) -> None:
    """The last good look would stay on the wall tablet for days."""
    onlooker = look(bridge, errors=("ERR_CONNECTION_REFUSED", "htmx:"))
    onlooker.page.locator("#away").wait_for(state="hidden")
    assert bridge.program.end() == 0
    onlooker.page.locator("#away").wait_for()
    assert "does not answer" in onlooker.page.locator("#away").inner_text()


# --- live --------------------------------------------------------------------------------------------------


def test_a_click_is_seen_on_its_way(bridge: Bridge, look: Look) -> None:
    """Whoever asks why the gate did not open could not see where the click stopped."""
    onlooker = look(bridge, "/live")
    post(bridge, click("open_gate", "Open the gate", "15550001234", "Ada"))
    row = onlooker.page.locator("#feed > li", has_text="Open the gate")
    expect(row.locator("ol.trace")).to_have_class(re.compile("done"))
    for step in ("received", "stored", "published", "acknowledged"):
        assert step in row.inner_text()
    row.locator("summary").click()
    detail = row.locator(".detail table")
    detail.wait_for()
    for topic in ("whatsapp/event/button/open_gate", "whatsapp/button/open_gate", "whatsapp/last/button"):
        assert topic in detail.inner_text()
    assert '"payload": "open_gate"' in row.inner_text()  # the JSON in
    assert '"event_type": "open_gate"' in row.inner_text()  # and out


def test_a_number_is_masked_until_somebody_asks_for_it(bridge: Bridge, look: Look) -> None:
    """Whoever walks by the screen would read who is at the gate."""
    onlooker = look(bridge, "/live")
    post(bridge, click("open_gate", "Open the gate", "15550001234", "Ada"))
    row = onlooker.page.locator("#feed > li", has_text="Open the gate")
    row.locator("summary").click()
    row.locator(".detail table").wait_for()
    assert "1234" in row.inner_text()
    assert "15550001234" not in onlooker.page.content()
    row.get_by_role("button", name=re.compile("numbers", re.IGNORECASE)).click()
    row.get_by_text('"15550001234"').first.wait_for()
    for path in ("/", "/messages", "/messages/1", "/updates/1", "/buttons", "/setup"):
        onlooker.go(path)
        assert "15550001234" not in onlooker.page.content(), path


def test_the_live_view_is_filtered_and_paused(bridge: Bridge, look: Look) -> None:
    """In a busy hour the one click could not be found, or would scroll away while it is read."""
    onlooker = look(bridge, "/live")
    traffic(bridge)
    onlooker.wait_text("Open the gate")
    onlooker.page.get_by_label("Show").select_option("button")
    expect(onlooker.page.locator("#feed > li")).to_have_count(1)
    onlooker.page.get_by_label("Show").select_option("")
    onlooker.page.get_by_label("with the text").fill("undeliverable")
    expect(onlooker.page.locator("#feed > li")).to_have_count(1)
    onlooker.page.get_by_label("with the text").fill("")
    expect(onlooker.page.locator("#feed > li")).to_have_count(6)
    # Also what was asked for a moment before does not come.
    asked: list[Route] = []
    with onlooker.page.expect_request("**/live"):
        onlooker.page.route("**/live", lambda route: asked.append(route))  # noqa: PLW0108  (it wants a function)
    onlooker.page.get_by_role("button", name="Pause").click()
    post(bridge, status("m3"))
    asked.pop().continue_()
    onlooker.page.unroute("**/live")
    onlooker.page.wait_for_timeout(3_000)
    expect(onlooker.page.locator("#feed > li")).to_have_count(6)
    onlooker.page.get_by_role("button", name="Paused").click()
    expect(onlooker.page.locator("#feed > li")).to_have_count(7)


def test_what_brought_nothing_new_is_seen_too(bridge: Bridge, look: Look) -> None:
    """A vendor that sends everything twice, or a body that is none, would look like silence."""
    onlooker = look(bridge, "/live")
    for _ in range(2):
        post(bridge, status("m1"))
    post(bridge, b"<xml>no callback</xml>")
    onlooker.wait_text("known already", "not understood")


# --- messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["m1", "15550001234", "+1 555 000-1234"])
def test_a_message_is_found_and_tells_its_history(bridge: Bridge, look: Look, words: str) -> None:
    """'Did she get it?' is the question that people ask."""
    traffic(bridge)
    onlooker = look(bridge, "/messages")
    onlooker.page.get_by_label("Message id or phone number").fill(words)
    onlooker.page.get_by_role("button", name="Search").click()
    onlooker.page.locator(".chip", has_text="read").first.wait_for()
    assert "failed" not in onlooker.text
    onlooker.page.locator("li.row", has=onlooker.page.locator(".chip", has_text="read")).get_by_role("link").click()
    onlooker.wait_text("History of a message", "m1")
    for word in ("sent", "delivered", "read", "Open the gate"):
        assert word in onlooker.text
    state = onlooker.page.locator("dl.facts", has_text="State now")
    assert "read" in state.inner_text()
    assert words not in onlooker.page.url.partition("?")[2]


def test_a_search_without_a_find_says_so(bridge: Bridge, look: Look) -> None:
    """An empty page looks like a fault."""
    traffic(bridge)
    onlooker = look(bridge, "/messages")
    onlooker.page.get_by_label("Message id or phone number").fill("no such message")
    onlooker.page.get_by_role("button", name="Search").click()
    onlooker.wait_text("Nothing found")


# --- buttons ----------------------------------------------------------------------------------------------------


def test_a_test_click_fires_and_says_that_it_is_one(bridge: Bridge, look: Look) -> None:
    """Automations could be tried only by somebody with the right phone, or by a click that looks real for ever."""
    traffic(bridge)
    onlooker = look(bridge, "/buttons")
    with bridge.listen("whatsapp/event/button/#") as subscriber:
        onlooker.page.get_by_text("Test click…").click()
        onlooker.page.get_by_label("As if this number had clicked").fill("15550005678")
        onlooker.page.get_by_label("Yes, let the automations fire").check()
        onlooker.page.get_by_role("button", name="Click now").click()
        heard = subscriber.wait("whatsapp/event/button/open_gate", lambda one: one.json.get("test"))
    assert heard.json["test"] is True
    assert heard.json["from"] == "15550005678"
    assert not heard.retain
    onlooker.wait_text("as a test")


def test_a_test_click_wants_to_be_confirmed(bridge: Bridge, look: Look) -> None:
    """A slip of the finger would open the gate."""
    traffic(bridge)
    onlooker = look(bridge, "/buttons")
    with bridge.listen("whatsapp/#") as subscriber:
        onlooker.page.get_by_text("Test click…").click()
        onlooker.page.get_by_role("button", name="Click now").click()  # the browser holds it back
        onlooker.page.evaluate("document.querySelector('form[action$=click] [type=checkbox]').required = false")
        onlooker.page.get_by_role("button", name="Click now").click()
        onlooker.wait_text("Nothing was clicked")
        post(bridge, status("after"))
        subscriber.wait("whatsapp/after/status")
    assert not [one for one in subscriber.on("whatsapp/event/button/open_gate") if "test" in one.json]


# --- dead letters --------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_replayed_and_seen_by_mqtt(bridge: Bridge, look: Look) -> None:
    """What an upgrade understands would stay lost."""
    bury(bridge, json.dumps(status("revived", "read")).encode())
    onlooker = look(bridge, "/dead-letters")
    onlooker.wait_text("an older version did not understand it")
    with bridge.listen("whatsapp/revived/status") as subscriber:
        onlooker.page.get_by_role("button", name="Replay number 1").click()
        assert subscriber.wait("whatsapp/revived/status").json["status"] == "read"
    onlooker.wait_text("No dead letters")


def test_a_dead_letter_that_still_cannot_be_understood_stays(bridge: Bridge, look: Look) -> None:
    """It would be gone, and nobody would know what it was."""
    post(bridge, b"<xml>no callback</xml>")
    onlooker = look(bridge, "/dead-letters/1")
    assert "<xml>no callback</xml>" in onlooker.text
    onlooker.page.get_by_role("button", name="Replay").click()
    onlooker.wait_text("stays here")
    onlooker.page.get_by_text("Delete…").click()
    onlooker.page.get_by_role("button", name="Delete for good").click()
    onlooker.wait_text("was deleted", "No dead letters")


def test_all_dead_letters_are_replayed_at_once(bridge: Bridge, look: Look) -> None:
    """After an upgrade somebody would click five hundred times."""
    for number in range(60):
        bury(bridge, json.dumps(status(f"r{number}", "read")).encode())
    post(bridge, b"<xml>no callback</xml>")
    onlooker = look(bridge, "/dead-letters")
    onlooker.page.get_by_text("Replay all…").click()
    onlooker.page.get_by_role("button", name="Replay all").click()
    onlooker.wait_text("60 dead letters were tried again; 1 letter stays")
    with bridge.listen("whatsapp/+/status") as subscriber:
        subscriber.wait_until(lambda heard: len({one.topic for one in heard}) >= 60)


# --- setup --------------------------------------------------------------------------------------------------


def test_the_address_to_paste_is_shown_when_asked_for(make_bridge: MakeBridge, look: Look) -> None:
    """The secret would be on every screenshot that a user posts for help; or nobody would know what to paste."""
    bridge = make_bridge(
        webhook__public_url="https://hook.example.org", webhook__auth__path_token="a-secret-of-the-address"
    ).start()
    onlooker = look(bridge, "/setup")
    onlooker.wait_text("https://hook.example.org/webhook/")
    assert "a-secret-of-the-address" not in onlooker.page.content()
    onlooker.page.get_by_role("button", name="Show the secret").click()
    onlooker.wait_text("https://hook.example.org/webhook/a-secret-of-the-address")
    assert "secret" not in onlooker.page.url


def test_the_checklist_says_what_is_still_to_do(bridge: Bridge, look: Look) -> None:
    """A user would go live without anything that says who may post."""
    onlooker = look(bridge, "/setup")
    onlooker.wait_text("Authentication", "webhook.auth", "Home Assistant", "Clock", "No callback has ever come")
    post(bridge, status("m1"))
    onlooker.go("/setup")
    onlooker.wait_text("They come, and are taken")


def test_no_secret_stands_on_any_page(make_bridge: MakeBridge, look: Look) -> None:
    """A screenshot would give the broker away."""
    bridge = make_bridge(
        mqtt__embedded__username="bridge",
        mqtt__embedded__password="a-secret-of-the-broker",
        webhook__auth__path_token="a-secret-of-the-address",
    )
    bridge.start()
    onlooker = look(bridge, errors=("404",))
    for path in PAGES.values():
        onlooker.go(path)
        assert "a-secret-of" not in onlooker.page.content(), path


# --- who may look -----------------------------------------------------------------------------------------------


@pytest.fixture
def locked(make_bridge: MakeBridge) -> Bridge:
    from werkzeug.security import generate_password_hash

    return make_bridge(admin__password=generate_password_hash(PASSWORD, method="scrypt:1024:8:1")).start()


def test_the_page_wants_its_password_and_says_when_it_is_wrong(locked: Bridge, look: Look) -> None:
    """Anybody in the network could open the gate."""
    onlooker = look(locked, "/dead-letters", errors=("401",))
    assert onlooker.path == "/login"
    assert onlooker.findings() == []
    onlooker.page.get_by_label("Password").fill("a wrong one")
    onlooker.page.get_by_role("button", name="Log in").click()
    onlooker.wait_text("This password is not right.")
    onlooker.page.get_by_label("Password").fill(PASSWORD)
    onlooker.page.get_by_role("button", name="Log in").click()
    onlooker.wait_text("No dead letters")
    assert onlooker.path == "/dead-letters"
    onlooker.page.get_by_role("button", name="Log out").click()
    onlooker.page.get_by_label("Password").wait_for()
    onlooker.go("/")
    assert onlooker.path == "/login"


def test_the_cookie_is_for_the_page_alone(locked: Bridge, look: Look) -> None:
    """A script of another page could take it and open the gate."""
    onlooker = look(locked, "/login")
    onlooker.page.get_by_label("Password").fill(PASSWORD)
    onlooker.page.get_by_role("button", name="Log in").click()
    onlooker.wait_text("Ready for the first callback")
    (cookie,) = onlooker.page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert onlooker.page.evaluate("document.cookie") == ""


def test_who_is_logged_in_comes_in_also_by_a_link_on_another_site(locked: Bridge, look: Look) -> None:
    """A dashboard that links to the page would ask for the password at each click, as it brings no cookie along."""
    onlooker = look(locked, "/login")
    onlooker.page.get_by_label("Password").fill(PASSWORD)
    onlooker.page.get_by_role("button", name="Log in").click()
    onlooker.wait_text("Ready for the first callback")
    onlooker.page.goto("about:blank")
    onlooker.page.set_content(f'<a href="{locked.page}/setup">the bridge</a>')
    with onlooker.page.expect_response("**/login?to=setup"):  # it is asked without the cookie
        onlooker.page.get_by_text("the bridge").click()
    onlooker.page.wait_for_url("**/setup")


def test_without_any_referrer_a_form_would_not_say_where_it_was_sent_from(locked: Bridge, look: Look) -> None:
    """Why the policy is `same-origin`: by `no-referrer` a form of ours has the origin `null`, as a stranger's may."""
    onlooker = look(locked, "/login", errors=("401", "403"))
    origins = []
    for policy in ("same-origin", "no-referrer"):
        onlooker.go("/login")
        onlooker.page.evaluate(
            "policy => { const meta = document.createElement('meta');"
            "meta.name = 'referrer'; meta.content = policy; document.head.append(meta); }",
            policy,
        )
        onlooker.page.get_by_label("Password").fill("wrong")
        with onlooker.page.expect_request(lambda request: request.method == "POST") as sent:
            onlooker.page.get_by_role("button", name="Log in").click()
        origins.append(sent.value.all_headers().get("origin"))
    assert origins == [locked.page, "null"]


# --- hostile text, and hands without a mouse ---------------------------------------------------------------------


def test_hostile_names_are_shown_as_text(bridge: Bridge, look: Look) -> None:
    """A stranger's profile name would run in the browser of whoever looks at the page, and open the gate from there."""
    onlooker = look(bridge, "/live", errors=("404",))
    for number, text in enumerate(TEXTS.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            continue
        message = click(text[:256], text, "15550001234", text, text)
        message["messages"][0] |= {"id": f"{number}{text}", "tag_name": text}
        post(bridge, message, status(f"{text}{number}", text or "sent", errors=[{"code": 1, "title": text}]))
    post(bridge, TEXTS["img"].encode(), TEXTS["json-in-html"].encode())
    bury(bridge, TEXTS["script"].encode(), TEXTS["img"])
    onlooker.page.locator("#feed > li").nth(20).wait_for()
    paths = ["/", "/live", "/messages", "/buttons", "/dead-letters", "/setup"]
    paths += [f"/updates/{seq}" for seq in range(1, 40, 3)] + [f"/messages/{seq}" for seq in range(2, 40, 6)]
    paths += [f"/dead-letters/{number}" for number in range(1, 4)]
    for path in paths:
        onlooker.go(path)
        for summary in onlooker.page.locator("main details > summary").all()[:5]:
            summary.click()
        ours = onlooker.page.evaluate(
            "[...document.querySelectorAll('img, script, iframe, object, embed, link, base')]"
            ".filter(one => !(one.src ?? one.href ?? 'none').startsWith(location.origin)).map(one => one.outerHTML)"
        )
        handlers = onlooker.page.evaluate(
            "[...document.querySelectorAll('main *')]"
            ".flatMap(one => one.getAttributeNames()).filter(name => name.startsWith('on'))"
        )
        assert (ours, handlers) == ([], []), path
        assert "49" not in onlooker.page.title()
    onlooker.go("/dead-letters")
    onlooker.wait_text(TEXTS["img"])


def test_everything_can_be_done_by_keyboard(bridge: Bridge, look: Look) -> None:
    """Who cannot use a mouse could look, and do nothing."""
    bury(bridge, json.dumps(status("revived", "read")).encode())
    onlooker = look(bridge)
    keyboard, page = onlooker.page.keyboard, onlooker.page

    def focused() -> str:
        return str(page.evaluate("(document.activeElement.innerText || '').trim()"))

    keyboard.press("Tab")
    assert focused() == "Skip to the content"
    for _ in range(20):
        keyboard.press("Tab")
        if focused().startswith("Dead letters"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    keyboard.press("Enter")
    page.wait_for_url("**/dead-letters")
    for _ in range(30):
        keyboard.press("Tab")
        if focused().startswith("Replay") and "…" not in focused():
            break
    with bridge.listen("whatsapp/revived/status") as subscriber:
        keyboard.press("Enter")
        subscriber.wait("whatsapp/revived/status")
    onlooker.wait_text("was tried again")
    assert "was tried again" in focused()  # it is read out
