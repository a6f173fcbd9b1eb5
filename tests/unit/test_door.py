"""Who may see the page, and change something."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.security import generate_password_hash

from bridge.admin.door import (
    ATTEMPTS,
    ATTEMPTS_OF_ALL,
    LOGIN_HOLDS,
    LOGIN_LASTS,
    LOGINS,
    LONGEST_PASSWORD,
    PASSED_ON,
    Caller,
    Door,
    Refusal,
    headers,
)
from bridge.config import Address, Admin
from bridge.throttle import LINES

TOKEN = "the-token-in-the-file"
#: A cheap one, as many are compared here.
HASH = generate_password_hash("correct horse", method="scrypt:1024:8:1")
HERE, LAN = Address("127.0.0.1", 8081), Address("0.0.0.0", 8081)


def caller(
    *,
    method: str = "GET",
    address: str = "127.0.0.1",
    host: str = "127.0.0.1:8081",
    cookie: str = "",
    authority: str = "",
    **more: str,
) -> Caller:
    known = {"host": host} | {name.replace("_", "-"): value for name, value in more.items()}
    return Caller(method, address, lambda name: known.get(name, ""), cookie, authority=authority)


def door(listen: Address = HERE, now: Callable[[], float] = lambda: 0.0, **settings: Any) -> Door:
    return Door(Admin(listen=listen, **settings), TOKEN, now)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "localhost", "LOCALHOST:1", "[::1]:8081", "named.example"])
def test_the_page_answers_to_its_names(host: str) -> None:
    assert door(hosts=("named.example",)).look(caller(host=host)) is None


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "127.0.0.1.evil.example", "localhost.evil", "evil@127.0.0.1", "10.0.0.7", "[::2]"),
        *("localhost.", "127.0.0.1.", "127.1", "2130706433", "0x7f.0.0.1", "localhost, localhost", "localhost:x"),
        *("localhost:8081:1", "localhost\n", " localhost", "lоcalhost", "[::1", "[localhost]", "::1", "*"),  # noqa: RUF001  (that is the attack)
    ],
)
def test_the_page_answers_to_no_other_name(host: str) -> None:
    """A stranger's site whose name leads to 127.0.0.1 could read the page and open the gate (DNS rebinding)."""
    for is_public in (True, False):
        assert door().look(caller(host=host), is_public=is_public) is Refusal.NAME


@pytest.mark.parametrize("authority", ["evil.example", "evil.example:8081", "localhost@evil.example", "*", "[::2]"])
def test_the_first_line_of_a_request_may_name_no_other_host_either(authority: str) -> None:
    """Of two names a proxy looks at the one, and the page at the other."""
    assert door().look(caller(authority=authority), is_public=True) is Refusal.NAME
    assert door().look(caller(authority="localhost:8081")) is None
    assert door().look(caller(host="evil.example", authority="localhost")) is Refusal.NAME


def test_where_all_addresses_listen_any_number_is_a_name() -> None:
    """Somebody at home types the number of the machine, and no name server can make a number lead elsewhere."""
    here = door(LAN, password=HASH)
    assert here.look(caller(host="192.168.1.5:8081"), is_public=True) is None
    assert here.look(caller(host="evil.example"), is_public=True) is Refusal.NAME


SAME = {"method": "POST", "sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:8081"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (SAME, None),
        ({"method": "POST", "sec_fetch_site": "same-origin"}, None),
        ({"method": "POST", "origin": "http://127.0.0.1:8081"}, None),  # a browser without Sec-Fetch-Site
        (SAME | {"sec_fetch_site": "cross-site"}, Refusal.ORIGIN),
        (SAME | {"sec_fetch_site": "same-site"}, Refusal.ORIGIN),
        (SAME | {"sec_fetch_site": "none"}, Refusal.ORIGIN),
        (SAME | {"origin": "http://evil.example"}, Refusal.ORIGIN),
        (SAME | {"origin": "null"}, Refusal.ORIGIN),
        (SAME | {"origin": "http://127.0.0.1:9999"}, Refusal.ORIGIN),
        ({"method": "POST"}, Refusal.ORIGIN),
        ({"method": "GET", "sec_fetch_site": "same-origin"}, Refusal.ORIGIN),
        ({"method": "POST", "authorization": f"Bearer {TOKEN}"}, None),  # a command, no browser
    ],
)
def test_a_change_comes_from_our_own_page(change: dict[str, str], expected: Refusal | None) -> None:
    """Any site that somebody looks at could click a button here."""
    assert door().look(caller(**change), is_change=True) is expected


def test_beyond_loopback_nobody_comes_in_without_a_password() -> None:
    here = door(LAN, password=HASH)
    assert here.look(caller()) is Refusal.PASSWORD
    assert here.look(caller(authorization=basic("wrong"))) is Refusal.WRONG
    assert here.look(caller(authorization="Basic ???")) is Refusal.PASSWORD
    assert here.look(caller(authorization="Bearer wrong")) is Refusal.WRONG
    assert here.look(caller(cookie="made-up")) is Refusal.PASSWORD
    assert here.look(caller(), is_public=True) is None
    assert here.look(caller(authorization=basic("correct horse"))) is None
    assert here.look(caller(authorization=f"Bearer {TOKEN}")) is None


def test_a_login_opens_the_page_until_it_ends() -> None:
    """Nobody logs in for each look; and a cookie that was left on a foreign machine must not open for ever."""
    time = [0.0]
    here = door(LAN, lambda: time[0], password=HASH)
    cookie = here.log_in(caller(), "correct horse")
    assert isinstance(cookie, str)
    time[0] = LOGIN_HOLDS - 1
    assert here.look(caller(cookie=cookie)) is None
    time[0] += LOGIN_HOLDS - 1
    assert here.look(caller(cookie=cookie)) is None
    here.log_out(caller(cookie=cookie))
    assert here.look(caller(cookie=cookie)) is Refusal.PASSWORD
    again = here.log_in(caller(), "correct horse")
    assert isinstance(again, str)
    time[0] += LOGIN_HOLDS + 1
    assert here.look(caller(cookie=again)) is Refusal.PASSWORD


def test_a_login_ends_also_when_it_is_used_all_the_time() -> None:
    """A stolen cookie that looks once a day would open the page for ever."""
    time = [0.0]
    here = door(LAN, lambda: time[0], password=HASH)
    cookie = here.log_in(caller(), "correct horse")
    assert isinstance(cookie, str)
    while time[0] < LOGIN_LASTS - 3600:
        assert here.look(caller(cookie=cookie)) is None
        time[0] += 3600
    time[0] = LOGIN_LASTS + 1
    assert here.look(caller(cookie=cookie)) is Refusal.PASSWORD


def test_a_login_has_a_new_name_each_time_and_the_old_one_ends() -> None:
    """A name that somebody else chose, or left behind, would open the page to them (session fixation)."""
    here = door(LAN, password=HASH)
    first = here.log_in(caller(cookie="chosen"), "correct horse")
    assert isinstance(first, str)
    assert len(first) >= 43  # 256 bits
    second = here.log_in(caller(cookie=first), "correct horse")
    assert isinstance(second, str)
    assert len({"chosen", first, second}) == 3
    assert here.look(caller(cookie="chosen")) is Refusal.PASSWORD
    assert here.look(caller(cookie=first)) is Refusal.PASSWORD
    assert here.look(caller(cookie=second)) is None


def test_logins_are_bounded_in_number() -> None:
    """A script that logs in for each look would fill the memory."""
    here = door(LAN, password=HASH)
    cookies = [here.log_in(caller(), "correct horse") for _ in range(LOGINS + 1)]
    assert len({here.look(caller(cookie=str(cookie))) for cookie in cookies}) == 2
    assert here.look(caller(cookie=str(cookies[0]))) is Refusal.PASSWORD


def test_wrong_passwords_are_limited_for_each_address() -> None:
    """A password would be guessed in a night; and one who guesses must not lock out the others."""
    here = door(LAN, password=HASH)
    for _ in range(ATTEMPTS):
        assert here.log_in(caller(address="10.0.0.66"), "wrong") is Refusal.WRONG
    assert here.log_in(caller(address="10.0.0.66"), "correct horse") is Refusal.LIMIT
    assert here.look(caller(address="10.0.0.66", authorization=basic("wrong"))) is Refusal.LIMIT
    assert isinstance(here.log_in(caller(address="10.0.0.5"), "correct horse"), str)


def test_who_is_limited_learns_nothing_even_when_the_password_was_right_before() -> None:
    """What was proven once is compared quickly: a thousand guesses a second, and the right one would have come in."""
    here = door(LAN, password=HASH)
    assert here.look(caller(address="10.0.0.5", authorization=basic("correct horse"))) is None
    for _ in range(ATTEMPTS):
        assert here.look(caller(address="10.0.0.66", authorization=basic("wrong"))) is Refusal.WRONG
    assert here.look(caller(address="10.0.0.66", authorization=basic("correct horse"))) is Refusal.LIMIT
    assert here.look(caller(address="10.0.0.5", authorization=basic("correct horse"))) is None


def test_wrong_passwords_are_limited_for_all_addresses_together() -> None:
    """Who has a hundred addresses would guess a hundred times as fast; who is in stays in."""
    here = door(LAN, password=HASH)
    cookie = here.log_in(caller(), "correct horse")
    assert isinstance(cookie, str)
    for number in range(ATTEMPTS_OF_ALL):
        assert here.log_in(caller(address=f"10.0.1.{number}"), "wrong") is Refusal.WRONG
    assert here.log_in(caller(address="10.0.2.1"), "wrong") is Refusal.LIMIT
    assert here.look(caller(cookie=cookie)) is None
    assert here.look(caller(authorization=f"Bearer {TOKEN}")) is None


def test_who_guesses_does_not_shut_out_a_browser_that_logged_in_before() -> None:
    """Behind a proxy everybody has one address: five wrong passwords a minute would keep the owner out for good."""
    time = [0.0]
    here = door(LAN, lambda: time[0], password=HASH)
    cookie = here.log_in(caller(), "correct horse")
    assert isinstance(cookie, str)
    time[0] = LOGIN_LASTS + 1
    again = door(LAN, lambda: time[0], password=HASH)  # started anew meanwhile
    for _ in range(ATTEMPTS):
        assert again.log_in(caller(x_forwarded_for="45.0.0.1"), "wrong") is Refusal.WRONG
    assert again.log_in(caller(), "correct horse") is Refusal.LIMIT
    assert again.look(caller(cookie=cookie)) is Refusal.PASSWORD
    new = again.log_in(caller(cookie=cookie), "correct horse")
    assert isinstance(new, str)
    assert again.look(caller(cookie=new)) is None


def test_a_browser_that_logged_in_before_may_not_guess_either() -> None:
    """Whoever finds an old cookie would guess without end, and a made-up one would do."""
    here = door(LAN, password=HASH)
    cookie = here.log_in(caller(), "correct horse")
    assert isinstance(cookie, str)
    while not set("-_") & set(cookie):
        cookie = here.log_in(caller(), "correct horse")
        assert isinstance(cookie, str)
    for number in range(ATTEMPTS):
        spelt = cookie if number % 2 else cookie.replace("-", "+").replace("_", "/")
        assert here.log_in(caller(cookie=spelt), "wrong") is Refusal.WRONG
    for spelt in (cookie, cookie.replace("-", "+").replace("_", "/")):
        assert here.log_in(caller(cookie=spelt), "correct horse") is Refusal.LIMIT
    assert isinstance(here.log_in(caller(), "correct horse"), str)  # nobody else is kept out by that
    other = door(LAN, password=generate_password_hash("other horse", method="scrypt:1024:8:1"))
    for number in range(ATTEMPTS):
        made_up = ("A" * 64, cookie[:-1], cookie + "A", "", "ä")[number % 5]
        assert other.log_in(caller(cookie=made_up), "wrong") is Refusal.WRONG
    for made_up in (cookie, "A" * 64, cookie[:-1] + "A", "\ud800"):  # of another password, or of none
        assert other.log_in(caller(cookie=made_up), "other horse") is Refusal.LIMIT


def test_behind_a_proxy_that_is_listed_attempts_count_for_the_address_it_tells() -> None:
    """A stranger would keep out every browser that is new; or give another address for each attempt."""
    here = door(LAN, password=HASH, proxies=("127.0.0.1/32",))
    for number in range(ATTEMPTS):
        said = f"9.9.9.{number}, 45.0.0.1"  # what the client claims, and what the proxy adds
        assert here.log_in(caller(x_forwarded_for=said), "wrong") is Refusal.WRONG
    assert here.log_in(caller(x_forwarded_for="9.9.9.9, 45.0.0.1"), "correct horse") is Refusal.LIMIT
    assert isinstance(here.log_in(caller(x_forwarded_for="45.0.0.2"), "correct horse"), str)
    for number in range(ATTEMPTS):
        stranger = caller(address="::ffff:45.0.0.3", x_forwarded_for=f"45.0.1.{number}")
        assert here.log_in(stranger, "wrong") is Refusal.WRONG
    assert here.log_in(caller(address="45.0.0.3", x_forwarded_for="45.0.2.1"), "correct horse") is Refusal.LIMIT
    assert (
        here.look(caller(x_forwarded_for="45.0.0.2", x_ingress_path="/x")) is Refusal.PASSWORD
    )  # believed in nothing else


def test_who_guesses_from_the_internet_does_not_shut_out_the_house() -> None:
    """A few rented machines would keep the owner out, also at home and on the machine itself."""
    here = door(LAN, password=HASH)
    for number in range(ATTEMPTS_OF_ALL):
        assert here.log_in(caller(address=f"45.0.1.{number}"), "wrong") is Refusal.WRONG
    assert here.log_in(caller(address="45.0.2.1"), "correct horse") is Refusal.LIMIT
    for at_home in ("192.168.1.5", "127.0.0.1", "fd00::1", "::ffff:10.0.0.1"):
        assert isinstance(here.log_in(caller(address=at_home), "correct horse"), str)


def test_a_password_is_compared_as_it_is() -> None:
    """What is cut off or folded makes one password out of many."""
    long = "Pässwörd 🔑 " * 10
    here = door(LAN, password=generate_password_hash(long, method="scrypt:1024:8:1"))
    assert isinstance(here.log_in(caller(), long), str)
    for other in (long.lower(), long.strip(), long[:64], long + "x"):
        assert here.log_in(caller(), other) is Refusal.WRONG
    longest = "x" * LONGEST_PASSWORD
    here = door(LAN, password=generate_password_hash(longest, method="scrypt:1024:8:1"))
    assert here.log_in(caller(), longest + "y") is Refusal.WRONG
    assert isinstance(here.log_in(caller(), longest), str)


def test_refusals_do_not_fill_the_log() -> None:
    """Anybody in the network could fill the disk by asking for another name."""
    here = door(LAN, password=HASH)
    assert [here.is_worth_a_line() for _ in range(LINES + 5)] == [True] * LINES + [False] * 5


def test_wrong_tokens_are_attempts_too() -> None:
    """The token opens as much as the password."""
    here = door(LAN, password=HASH)
    for _ in range(ATTEMPTS):
        assert here.look(caller(authorization="Bearer wrong")) is Refusal.WRONG
    assert here.look(caller(authorization="Bearer wrong")) is Refusal.LIMIT
    assert here.log_in(caller(), "correct horse") is Refusal.LIMIT
    assert here.look(caller(authorization=f"Bearer {TOKEN}")) is None


@pytest.mark.parametrize("header", PASSED_ON)
def test_without_a_password_nothing_comes_through_a_proxy(header: str) -> None:
    """Whoever points a tunnel at the page makes the whole internet a machine of the house."""
    header = header.replace("-", "_")
    assert door().look(caller(**{header: "203.0.113.7"})) is Refusal.PROXY
    assert door().look(caller(**{header: "203.0.113.7"}), is_public=True) is None
    assert door(password=HASH).look(caller(**{header: "203.0.113.7"})) is Refusal.PASSWORD
    assert door(trusted_proxies=("127.0.0.1/32",)).look(caller(**{header: "203.0.113.7"})) is None


def test_a_network_of_ipv6_is_one_address() -> None:
    """Each home has 2^64 of them to try from."""
    here = door(LAN, password=HASH)
    for number in range(ATTEMPTS):
        here.log_in(caller(address=f"2001:db8::{number}"), "wrong")
    assert here.log_in(caller(address="2001:db8::ffff"), "correct horse") is Refusal.LIMIT


def test_a_trusted_proxy_has_asked_already() -> None:
    """Home Assistant shows an add-on's page to its own users, below a path and in a frame."""
    here = door(LAN, trusted_proxies=("172.30.32.2/32",))
    proxy = {"address": "172.30.32.2", "host": "home.example:8123", "x_ingress_path": "/api/hassio_ingress/abc"}
    assert here.look(caller(**proxy)) is None
    assert here.prefix(caller(**proxy)) == "/api/hassio_ingress/abc"
    assert here.prefix(caller(**proxy | {"x_ingress_path": '/"><script>'})) == ""
    change = {"method": "POST", "sec_fetch_site": "same-origin", "origin": "https://elsewhere.example"}
    assert here.look(caller(**proxy, **change), is_change=True) is None
    assert here.look(caller(**proxy, **change | {"sec_fetch_site": "cross-site"}), is_change=True) is Refusal.ORIGIN
    assert here.look(caller(**proxy, method="POST", origin="https://evil.example"), is_change=True) is Refusal.ORIGIN


def test_what_a_trusted_proxy_may_say_others_may_not() -> None:
    """Anybody in the home network would be in by sending a header."""
    here = door(LAN, trusted_proxies=("172.30.32.2/32",))
    assert here.look(caller(address="192.168.1.66", x_ingress_path="/x")) is Refusal.ADDRESS
    assert here.prefix(caller(address="192.168.1.66", x_ingress_path="/x")) == ""
    assert here.look(caller(address="no address")) is Refusal.ADDRESS


def test_every_answer_forbids_what_the_page_does_not_need() -> None:
    said = headers(framed=False)
    policy = said["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert said["X-Frame-Options"] == "DENY"
    assert said["Referrer-Policy"] == "same-origin"  # else a form would not say that it is ours
    assert "frame-ancestors 'self'" in headers(framed=True)["Content-Security-Policy"]
