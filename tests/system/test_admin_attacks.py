"""The page's listener of a real bridge, attacked: by hostile web sites in a browser of the house, and by its network.

What a browser sends is written to the socket byte by byte, as no HTTP library sends two hosts or none.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import pytest
from werkzeug.security import generate_password_hash

from bridge.admin.door import ATTEMPTS, COOKIE, COOKIE_OF_HTTPS
from tests.hostile import TEXTS
from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, status

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse battery"
HASH = generate_password_hash(PASSWORD, method="scrypt")
CLICK = {"id": "c1", "from": "15550001234", "type": "button", "button": {"payload": "gate", "text": "Open"}}

#: Every route of the page as its source names it, with its method; so that no new one is left out.
ROUTES = [
    (path, method or "GET")
    for path, method in re.findall(
        r'^    (?:page|answer)\("(/[^"]*)"(?:.*?method="(\w+)")?',
        (ROOT / "bridge/admin/app.py").read_text(),
        re.MULTILINE,
    )
]
PUBLIC = ("/healthz", "/readyz", "/login", "/logout", "/static/")
#: What shows that somebody was let in.
SHOWN = ("15550001234", "whatsapp/", "journal.db", "whatsapp2mqtt_", "open_gate", "Overview")


@dataclass
class Reply:
    code: int
    headers: dict[str, str]
    body: str


def port_of(bridge: Bridge) -> int:
    return int(bridge.program.wait_log("starting")["page"].rstrip("/").rpartition(":")[2])


def send(bridge: Bridge, raw: bytes) -> Reply:
    """Write these bytes, with $PORT in them replaced, and read the answer until the page hangs up."""
    raw = raw.replace(b"$PORT", str(port_of(bridge)).encode())
    with socket.create_connection(("127.0.0.1", port_of(bridge)), timeout=PATIENCE) as connection:
        connection.sendall(raw)
        answer = http.client.HTTPResponse(connection, method=raw.partition(b" ")[0].decode())
        answer.begin()
        try:
            body = answer.read().decode()
        finally:
            answer.close()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


def request(bridge: Bridge, method: str, path: str, *lines: str, body: str = "") -> Reply:
    """A request with these header lines, with our own host unless they name one."""
    named = [] if any(line.lower().startswith("host:") for line in lines) else ["Host: 127.0.0.1:$PORT"]
    form = (
        ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"] if method == "POST" else []
    )
    head = "\r\n".join((f"{method} {path} HTTP/1.1", *named, *form, *lines, "Connection: close"))
    return send(bridge, f"{head}\r\n\r\n{body}".encode())


def place(path: str) -> str:
    """An address of a route that leads to something."""
    return path.replace("<name:path>", "page.css").replace("<number>", "1").replace("<seq>", "1")


def kept(bridge: Bridge) -> dict[str, list[Any]]:
    """All that a request could have changed in the journal."""
    journal = apsw.Connection(str(bridge.state / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        found = {}
        for table in ("updates", "dead_letters"):
            found[table] = journal.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
        return found
    finally:
        journal.close()


def traffic(bridge: Bridge) -> None:
    """A status, a click that the broker has acknowledged, and a dead letter that can be replayed."""
    with bridge.listen() as subscriber:
        assert bridge.post(status("m1", recipient_id="15550001234")).status == 200
        assert bridge.post({"messages": [CLICK]}).status == 200
        assert bridge.post(b"no callback").status == 200
        subscriber.wait("whatsapp/event/button/gate")
        subscriber.wait("whatsapp/m1/status")


def test_the_routes_are_all_there() -> None:
    """What is not in the list below is attacked by nobody."""
    assert len(ROUTES) >= 30
    assert ("/buttons/click", "POST") in ROUTES
    assert ("/static/<name:path>", "GET") in ROUTES


# --- names ------------------------------------------------------------------------------------------------------------

OTHER_NAMES = {
    "another name": ("Host: evil.example",),
    "another name and our port": ("Host: evil.example:$PORT",),
    "a name that begins like ours": ("Host: 127.0.0.1.evil.example:$PORT",),
    "a dot behind our name": ("Host: localhost.:$PORT",),
    "a number in another spelling": ("Host: 2130706433:$PORT",),
    "a user before our name": ("Host: evil@127.0.0.1:$PORT",),
    "an empty one": ("Host:",),
    "two, ours first": ("Host: 127.0.0.1:$PORT", "Host: evil.example"),
    "two, ours last": ("Host: evil.example", "Host: 127.0.0.1:$PORT"),
    "two, both ours": ("Host: 127.0.0.1:$PORT", "Host: 127.0.0.1:$PORT"),
    "ours as a proxy's header": (
        "Host: evil.example",
        "X-Forwarded-Host: 127.0.0.1:$PORT",
        "Forwarded: host=localhost",
    ),
    "ours in another spelling of the header": ("Host: evil.example", "H_ost: 127.0.0.1", "X-Host: 127.0.0.1:$PORT"),
}


def test_a_site_whose_name_leads_here_reads_nothing(bridge: Bridge) -> None:
    """DNS rebinding: a stranger's site whose name turns to 127.0.0.1 would read messages and open the gate."""
    traffic(bridge)
    for path in ("/", "/api/status", "/metrics", "/healthz", "/readyz", "/login", "/static/page.css", "/setup"):
        assert request(bridge, "GET", path).code in (200, 303)
        for about, lines in OTHER_NAMES.items():
            reply = request(bridge, "GET", path, *lines)
            assert reply.code == 421, (about, path)
            assert not [one for one in SHOWN if one in reply.body], (about, path)
            assert "evil" not in reply.body + str(reply.headers), (about, path)


def test_our_own_names_are_answered_in_any_case_and_with_any_port(bridge: Bridge) -> None:
    """Who set up a tunnel by ssh comes with another port."""
    for host in ("127.0.0.1:$PORT", "localhost", "LOCALHOST:$PORT", "LocalHost:1", "[::1]:$PORT"):
        assert request(bridge, "GET", "/api/status", f"Host: {host}").code == 200, host


def test_a_request_that_names_its_host_elsewhere_reads_nothing(bridge: Bridge) -> None:
    """Between a proxy and the page, one believes the first line and the other the header."""
    ours = b"Host: 127.0.0.1:$PORT\r\nConnection: close\r\n\r\n"
    assert send(bridge, b"GET http://127.0.0.1:$PORT/api/status HTTP/1.1\r\n" + ours).code == 200
    for line in (
        b"GET http://evil.example/api/status HTTP/1.1",
        b"GET http://evil.example:$PORT/api/status HTTP/1.1",
        b"GET http://127.0.0.1:$PORT@evil.example/api/status HTTP/1.1",
    ):
        assert send(bridge, line + b"\r\n" + ours).code == 421
    foreign = b"Host: evil.example\r\nConnection: close\r\n\r\n"
    assert send(bridge, b"GET http://127.0.0.1:$PORT/api/status HTTP/1.1\r\n" + foreign).code == 421
    for line in (b"GET /api/status HTTP/1.1", b"GET /api/status HTTP/1.0"):
        assert send(bridge, line + b"\r\nConnection: close\r\n\r\n").code == 421  # no Host at all
    assert send(bridge, b"OPTIONS * HTTP/1.1\r\n" + ours).code in (404, 405)
    assert send(bridge, b"CONNECT 127.0.0.1:$PORT HTTP/1.1\r\n" + ours).code in (400, 404, 405)


def test_what_comes_through_a_tunnel_is_not_this_machine(bridge: Bridge) -> None:
    """Whoever points a tunnel at the page, and sets no password, would show it to the internet."""
    for line in ("X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7", "CF-Ray: 1", "Via: 1.1 proxy"):
        reply = request(bridge, "GET", "/api/status", line)
        assert reply.code == 403
        assert "admin.password" in reply.body
        assert request(bridge, "POST", "/buttons/click", line, "Origin: http://127.0.0.1:$PORT").code == 403
        assert request(bridge, "GET", "/readyz", line).code == 200


# --- changes ----------------------------------------------------------------------------------------------------------

OTHER_PAGES = {
    "neither header": (),
    "another site": ("Sec-Fetch-Site: cross-site", "Origin: https://evil.example"),
    "another site that hides its origin": ("Sec-Fetch-Site: cross-site", "Origin: null"),
    "another site that has our origin": ("Sec-Fetch-Site: cross-site", "Origin: http://127.0.0.1:$PORT"),
    "another name of this site": ("Sec-Fetch-Site: same-site", "Origin: http://other.localhost:$PORT"),
    "another port of this machine": ("Sec-Fetch-Site: same-site", "Origin: http://127.0.0.1:9999"),
    "another port, from a browser without Sec-Fetch-Site": ("Origin: http://127.0.0.1:9999",),
    "a name that begins like ours": ("Origin: http://127.0.0.1:$PORT.evil.example",),
    "our name as a user": ("Origin: http://127.0.0.1:$PORT@evil.example",),
    "no origin, by an older browser": ("Origin: null",),
    "by hand": ("Sec-Fetch-Site: none",),
    "two origins": ("Origin: https://evil.example", "Origin: http://127.0.0.1:$PORT"),
    "two sites": ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
    "a page of ours as referrer alone": ("Referer: http://127.0.0.1:$PORT/buttons",),
    "our origin as another header": ("X-Origin: http://127.0.0.1:$PORT", "Sec_Fetch_Site: same-origin"),
}


def test_no_other_page_changes_anything(bridge: Bridge) -> None:
    """Any site that somebody of the house looks at could open the gate."""
    traffic(bridge)
    before = kept(bridge)
    form = "button=gate&sure=yes&upto=9&since=0"
    for path in [path for path, method in ROUTES if method == "POST"]:
        for about, lines in OTHER_PAGES.items():
            assert request(bridge, "POST", place(path), *lines, body=form).code == 403, (about, path)
    assert kept(bridge) == before


def test_a_look_changes_nothing(bridge: Bridge) -> None:
    """A picture on any page could have an address of ours; a browser that loads pages ahead would click."""
    traffic(bridge)
    before = kept(bridge)
    with bridge.listen("whatsapp/event/#") as subscriber:
        for path, method in ROUTES:
            for verb in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                for form in ("", "?button=gate&sure=yes&upto=9&since=0&password=x") if verb == "GET" else ("",):
                    lines = (
                        "Sec-Fetch-Site: same-origin",
                        "Origin: http://127.0.0.1:$PORT",
                        "X-HTTP-Method-Override: POST",
                    )
                    code = request(bridge, verb, place(path) + form, *lines).code
                    allowed = (200, 303, 404) if verb in ("GET", "HEAD") else ()
                    assert code in (*allowed, 404, 405), (verb, path, method, code)
        assert kept(bridge) == before
        assert bridge.post(status("m2")).status == 200
        subscriber.wait("whatsapp/event/status/sent", lambda one: one.json["message_id"] == "m2")
        assert [one.json["message_id"] for one in subscriber.heard] == ["m2"]


def test_no_web_page_clicks_by_the_webhook_either(bridge: Bridge) -> None:
    """Without a secret, a site whose name leads here could post a click from a browser of the house."""
    for marks in ({"Origin": f"http://evil.example:{bridge.webhook}"}, {"Sec-Fetch-Site": "same-origin"}):
        answer = bridge.post({"messages": [CLICK]}, headers={"Host": f"evil.example:{bridge.webhook}", **marks})
        assert answer.status == 403
        assert "path_token" in answer.json["hint"]
    assert kept(bridge)["updates"] == []
    assert bridge.post({"messages": [CLICK]}).status == 200
    assert len(kept(bridge)["updates"]) == 1


def test_the_page_itself_changes_something(bridge: Bridge) -> None:
    """What refuses everybody proves nothing."""
    traffic(bridge)
    before = kept(bridge)
    for lines in (
        ("Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:$PORT"),
        ("Origin: http://127.0.0.1:$PORT",),
    ):
        assert request(bridge, "POST", "/dead-letters/1/drop", *lines).code in (303, 404)
    assert len(kept(bridge)["dead_letters"]) == len(before["dead_letters"]) - 1


# --- what a browser is told -------------------------------------------------------------------------------------------


def test_every_answer_forbids_what_the_page_does_not_need(make_bridge: MakeBridge) -> None:
    """One answer without the policy is enough to frame the page, or to run what somebody slipped into it."""
    for bridge in (make_bridge().start(), make_bridge(admin__password=HASH).start()):
        traffic(bridge)
        replies = [request(bridge, method, place(path)) for path, method in ROUTES]
        replies += [
            request(bridge, "GET", path) for path in ("/nothing", "/static/nothing", "/messages/99", "/login?to=x")
        ]
        replies += [request(bridge, "GET", "/", "Host: evil.example"), request(bridge, "DELETE", "/")]
        replies += [request(bridge, "POST", "/login", "Origin: http://127.0.0.1:$PORT", body="password=wrong")]
        assert {reply.code for reply in replies} >= {403, 404, 405, 421}
        for reply in replies:
            policy = dict(
                part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";")
            )
            assert policy["default-src"] == "'none'"
            assert (
                policy["script-src"]
                == policy["style-src"]
                == policy["connect-src"]
                == policy["form-action"]
                == "'self'"
            )
            assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
            assert reply.headers["x-frame-options"] == "DENY"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "same-origin"
            assert reply.headers["cross-origin-resource-policy"] == "same-origin"
            assert reply.headers["cross-origin-opener-policy"] == "same-origin"
            assert reply.headers["cache-control"] in ("no-store", "private, max-age=604800")
            assert "server" not in reply.headers
            assert "access-control-allow-origin" not in reply.headers
            if "html" in reply.headers["content-type"]:
                assert reply.headers["content-type"].lower() == "text/html; charset=utf-8"
                assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|javascript:|\sstyle=", reply.body)
        assert {r.headers["cache-control"] for r in replies if "text/css" not in r.headers["content-type"]} == {
            "no-store"
        }


# --- logins -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(make_bridge: MakeBridge) -> Bridge:
    """A bridge whose page asks for a password."""
    return make_bridge(admin__password=HASH).start()


def log_in(bridge: Bridge, *lines: str, scheme: str = "http", password: str = PASSWORD) -> Reply:
    body = f"password={password.replace(' ', '+')}"
    return request(bridge, "POST", "/login", f"Origin: {scheme}://127.0.0.1:$PORT", *lines, body=body)


def cookie_of(reply: Reply) -> str:
    """The cookie as a browser sends it back."""
    return reply.headers["set-cookie"].partition(";")[0]


def test_behind_a_password_there_is_nothing_to_see_and_nothing_to_do(locked: Bridge) -> None:
    """A port that was opened by mistake would show everything, or let everybody click."""
    traffic(locked)
    before = kept(locked)
    for path, method in ROUTES:
        if path.startswith(PUBLIC):
            continue
        for lines in (
            (),
            ("Cookie: whatsapp2mqtt=made-up",),
            ("Authorization: Basic Og==",),
            ("Authorization: Bearer ",),
        ):
            reply = request(
                locked, method, place(path), "Origin: http://127.0.0.1:$PORT", *lines, body="button=gate&sure=yes"
            )
            assert reply.code in (303, 401, 429), (path, reply.code)
            assert reply.code != 303 or reply.headers["location"].startswith("/login")
            assert not [one for one in SHOWN if one in reply.body], path
    assert kept(locked) == before


def test_the_cookie_is_of_no_use_elsewhere(locked: Bridge) -> None:
    """A script, another site, or who listens on the line would take it and be in."""
    plain = log_in(locked)
    assert plain.code == 303
    attributes = {part.strip().lower() for part in plain.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert not [one for one in attributes if one.startswith("domain")]
    assert re.fullmatch(rf"{COOKIE}=[A-Za-z0-9_-]{{64}}", cookie_of(plain))
    encrypted = log_in(locked, scheme="https")  # as a proxy with a certificate passes it on
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= {
        part.strip().lower() for part in encrypted.headers["set-cookie"].split(";")[1:]
    }
    assert cookie_of(encrypted).startswith(f"{COOKIE_OF_HTTPS}=")
    for reply in (plain, encrypted):
        assert request(locked, "GET", "/api/status", f"Cookie: {cookie_of(reply)}").code == 200


def test_a_login_leads_to_no_other_site(locked: Bridge) -> None:
    """A link to the login would end, after it, at a page that looks like ours; or put a password into an address."""
    for to in ("//evil.example", "https://evil.example/", "/\\evil.example", "setup/../..", "%0d%0aSet-Cookie: x=y"):
        body = f"password={PASSWORD.replace(' ', '+')}&to={to}"
        reply = request(locked, "POST", "/login", "Origin: http://127.0.0.1:$PORT", body=body)
        assert (reply.code, reply.headers["location"]) == (303, "/"), to
        assert "x" not in reply.headers["set-cookie"].partition("=")[0].split("-")
    query = f"/login?password={PASSWORD.replace(' ', '+')}"
    assert request(locked, "POST", query, "Origin: http://127.0.0.1:$PORT", body="password=wrong").code == 401
    assert request(locked, "POST", query, "Origin: http://127.0.0.1:$PORT").code == 401


def test_a_cookie_that_somebody_chose_opens_nothing(locked: Bridge) -> None:
    """Who can set a cookie, by another program on this machine, would wait until somebody logs in with it."""
    chosen = f"{COOKIE}={'A' * 43}"
    first = log_in(locked, f"Cookie: {chosen}")
    assert first.code == 303
    assert request(locked, "GET", "/api/status", f"Cookie: {chosen}").code == 401
    second = log_in(locked, f"Cookie: {cookie_of(first)}")
    assert len({chosen, cookie_of(first), cookie_of(second)}) == 3
    assert request(locked, "GET", "/api/status", f"Cookie: {cookie_of(first)}").code == 401
    assert request(locked, "GET", "/api/status", f"Cookie: {cookie_of(second)}").code == 200


def test_a_login_ends_by_logging_out_and_with_the_password(make_bridge: MakeBridge, locked: Bridge) -> None:
    """Who changes the password wants everybody out who knew the old one."""
    mine, other = cookie_of(log_in(locked)), cookie_of(log_in(locked))
    out = request(locked, "POST", "/logout", "Origin: http://127.0.0.1:$PORT", f"Cookie: {mine}")
    assert out.headers["set-cookie"].startswith(f'{COOKIE}=""')
    assert request(locked, "GET", "/api/status", f"Cookie: {mine}").code == 401
    assert request(locked, "GET", "/api/status", f"Cookie: {other}").code == 200
    assert locked.program.end() == 0
    locked.environment["WHATSAPP2MQTT_ADMIN__PASSWORD"] = generate_password_hash("another one", method="scrypt")
    locked.start()
    assert request(locked, "GET", "/api/status", f"Cookie: {other}").code == 401
    assert log_in(locked).code == 401
    assert log_in(locked, password="another one").code == 303


def test_who_guesses_is_stopped_whatever_he_guesses(locked: Bridge) -> None:
    """A password of eight letters would be found in a night; and each guess takes 32 MiB and a processor."""
    key = json.loads((locked.state / "journal.admin").read_text())
    inside = cookie_of(log_in(locked))
    codes = [log_in(locked, password=f"a guess {number}").code for number in range(2)]
    codes += [request(locked, "GET", "/metrics", "Authorization: Basic Onh4").code for _ in range(2)]
    codes += [request(locked, "GET", "/metrics", "Authorization: Bearer a guess").code for _ in range(ATTEMPTS - 4)]
    assert codes == [401] * ATTEMPTS
    for reply in (
        log_in(locked),
        request(locked, "GET", "/metrics", "Authorization: Bearer a guess"),
        request(locked, "GET", "/metrics", "Authorization: Basic OmNvcnJlY3QgaG9yc2UgYmF0dGVyeQ=="),
        log_in(locked, "X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9"),
    ):
        assert reply.code == 429
    assert request(locked, "GET", "/metrics", f"Cookie: {inside}").code == 200
    assert request(locked, "GET", "/metrics", f"Authorization: Bearer {key['token']}").code == 200
    said = [line for line in locked.program.log if line["event"] == "the page turned somebody away"]
    assert len(said) == ATTEMPTS
    assert {line["address"] for line in said} == {"127.0.0.1"}
    assert PASSWORD not in locked.program.said
    assert "a guess" not in locked.program.said
    assert inside.partition("=")[2] not in locked.program.said


def test_who_guesses_through_a_proxy_keeps_out_nobody_who_was_there(locked: Bridge) -> None:
    """Behind a proxy everybody has its address: five wrong passwords a minute would keep the owner out for good."""
    known = cookie_of(log_in(locked))
    locked.program.end()
    locked.start()  # nobody is logged in any more
    assert request(locked, "GET", "/metrics", f"Cookie: {known}").code == 401
    guesses = [log_in(locked, f"X-Forwarded-For: 45.0.0.{number}", password="a guess") for number in range(ATTEMPTS)]
    assert [reply.code for reply in guesses] == [401] * ATTEMPTS
    assert log_in(locked).code == 429
    owner = log_in(locked, f"Cookie: {known}")
    assert owner.code == 303
    assert request(locked, "GET", "/metrics", f"Cookie: {cookie_of(owner)}").code == 200


def test_a_proxy_that_is_listed_tells_who_guesses(make_bridge: MakeBridge) -> None:
    """With `admin.proxies` a stranger shuts out himself alone."""
    locked = make_bridge(admin__password=HASH, admin__proxies="127.0.0.1").start()
    for _ in range(ATTEMPTS):
        assert log_in(locked, "X-Forwarded-For: 45.0.0.1", password="a guess").code == 401
    assert log_in(locked, "X-Forwarded-For: 45.0.0.1").code == 429
    assert log_in(locked, "X-Forwarded-For: 45.0.0.2").code == 303
    assert locked.program.wait_log("somebody logged in to the page")["address"] == "45.0.0.2"
    said = [line["address"] for line in locked.program.log if line["event"] == "the page turned somebody away"]
    assert said == ["45.0.0.1"] * ATTEMPTS


# --- files and sizes --------------------------------------------------------------------------------------------------


ELSEWHERE = (
    *("../app.py", "../../config.py", "..%2fapp.py", "%2e%2e/app.py", "%2e%2e%2f%2e%2e%2fconfig.py", "..\\app.py"),
    *("..%5capp.py", "....//app.py", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "vendored/../../app.py"),
    *("page.css%00.py", "page.css/../../app.py", "%c0%ae%c0%ae/app.py", "%252e%252e/app.py", "", ".", "..", "vendored"),
    *("file:///etc/passwd", "C:\\boot.ini", "page.css/", "~root", "page.css;.py", "\u2025/app.py"),
)


def test_a_path_leads_to_no_other_file(bridge: Bridge) -> None:
    """The settings hold the broker's password."""
    for path in ELSEWHERE:
        reply = request(bridge, "GET", f"/static/{path}")
        assert reply.code in (400, 404), path
        assert "import" not in reply.body
        assert "root:" not in reply.body


def test_no_address_and_no_field_makes_the_page_fail(bridge: Bridge) -> None:
    """A fault is a line with a traceback in the log, and may be the beginning of more."""
    traffic(bridge)
    odd = [TEXTS[name] for name in ("img", "null", "newline", "sql", "traversal", "jinja-expression", "bidi")]
    odd += ["²", "٣", "-1", "0", "9" * 18, "9" * 19, "1e5", "1,²,٣", " 1", "1_0", "\ud800"]
    fields = ("note", "after", "seen", "waiting", "kind", "text", "before", "to", "button", "sender", "upto", "worked")
    origin = "Origin: http://127.0.0.1:$PORT"
    for text in odd:
        word = quote(text, safe="", errors="surrogatepass")
        form = "&".join(f"{name}={word}" for name in fields)
        for path, method in ROUTES:
            there = path.replace("<name:path>", word).replace("<number>", word).replace("<seq>", word)
            if "<" not in path and text in ("²", "1,²,٣", "\ud800", TEXTS["null"], TEXTS["img"]):
                code = request(bridge, method, f"{there}?{form}" if method == "GET" else there, origin, body=form).code
            elif "<" in path:
                code = request(bridge, method, there, origin).code
            else:
                continue
            assert code < 500, (there, ascii(text))
    assert request(bridge, "POST", "/api/replay", origin, body='{"since": 1e400}').code == 400
    for body in (
        "",
        "[]",
        "{}",
        '{"since": []}',
        '{"since": "nan"}',
        '{"since": "-inf"}',
        "[" * 10_000,
        '{"since": 1e300}',
    ):
        assert request(bridge, "POST", "/api/replay", origin, body=body).code < 500, body
    assert not [line for line in bridge.program.log if line["level"] == "error"]


def test_forms_and_headers_without_end_are_refused(bridge: Bridge) -> None:
    """One connection could fill the memory of a small machine, or hold one of four threads for ever."""
    head = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1:$PORT\r\nOrigin: http://127.0.0.1:$PORT\r\nConnection: close\r\n"
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    assert send(bridge, head + form + b"Content-Length: 70000\r\n\r\n").code == 413
    chunks = b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n"
    assert send(bridge, head + form + chunks + (b"1000\r\n" + b"x" * 4096 + b"\r\n") * 16).code == 413
    assert send(bridge, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 300_000 + b"\r\n\r\n").code == 431
    many = "&".join(f"k{number}=" for number in range(8_000))
    assert request(bridge, "POST", "/login", "Origin: http://127.0.0.1:$PORT", body=many[:65_000]).code in (
        400,
        401,
        413,
    )
    part = b"--x\r\nContent-Disposition: form-data; na"
    broken = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n%b" % (len(part), part)
    assert send(bridge, head + broken).code in (400, 401)
    assert request(bridge, "GET", "/healthz").code == 200
    assert not [line for line in bridge.program.log if line["level"] == "error"]


def test_connections_that_say_nothing_leave_the_page_answering(bridge: Bridge) -> None:
    """Four threads, and fifty browsers that were put to sleep: the health check would end the bridge."""
    silent = [socket.create_connection(("127.0.0.1", port_of(bridge))) for _ in range(50)]
    try:
        for one in silent:
            one.sendall(b"GET /readyz HTTP/1.1\r\nHost: 127")
        began = time.monotonic()
        assert request(bridge, "GET", "/readyz").code == 200
        assert time.monotonic() - began < PATIENCE
    finally:
        for one in silent:
            one.close()


# --- where it listens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_without_a_password_it_listens_to_this_machine_alone(make_bridge: MakeBridge, listen: str) -> None:
    """Everybody in the network could open the gate."""
    bridge = make_bridge(admin__listen=listen).start(wait=False)
    assert bridge.program.wait() == 2
    assert "admin.listen" in bridge.program.said
    assert "whatsapp2mqtt password" in bridge.program.said
