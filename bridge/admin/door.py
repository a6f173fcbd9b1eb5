"""Who is let in, by which name, and from which page a change may come.

The page can fire a click and shows numbers, and a browser lets every site on the web send requests to it. So:

- Only names on a list are answered (against DNS rebinding: a stranger's name that leads to 127.0.0.1).
- A change must be a POST, and must come from a page of ours (Sec-Fetch-Site, Origin).
- Beyond loopback, a password is needed; only its scrypt hash is known here. Attempts are limited, for each address and
  for all together. So that nobody who guesses shuts out others, a browser that logged in before has attempts of its own
  (OWASP, "Slow Down Online Guessing Attacks with Device Cookies"), and so has the house, apart from the internet.
- Without a password, what came through a proxy is not answered: a tunnel makes everyone on the internet loopback.
- A command on this machine that may read the journal's folder may look, too: it shows a token from a file there.
- A proxy of `admin.trusted_proxies` has asked already (Home Assistant does, before it shows an add-on's page).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter
from werkzeug.security import check_password_hash

from bridge.config import Admin
from bridge.throttle import LINES, Counts, network_of

#: Names of the cookie: over HTTPS browsers hold it to this host alone by its prefix (RFC 6265bis, section 4.1.3.2).
COOKIE, COOKIE_OF_HTTPS = "whatsapp2mqtt", "__Host-whatsapp2mqtt"
#: Seconds that a login holds without a look at the page, and at most; and how many hold at once.
LOGIN_HOLDS = 12 * 3600.0
LOGIN_LASTS = 7 * 86_400.0
LOGINS = 50
#: Seconds that a browser keeps its cookie, by which it is known when it logs in again; browsers keep none for longer.
COOKIE_LASTS = 400 * 86_400
#: Bytes of a cookie: random ones, and what only this password's holder got.
_RANDOM, _SEAL = 32, 16
#: Characters of a password; nothing is cut off, as what is left might open.
LONGEST_PASSWORD = 1_000
#: Wrong passwords and tokens in a minute, from one address and from all.
ATTEMPTS = 5
ATTEMPTS_OF_ALL = 30
#: What proxies and tunnels add to what they pass on.
PASSED_ON = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-ray")


class Refusal(Enum):
    """Why a request is not answered; the value is for people, and repeats nothing of it."""

    NAME = "the page does not go by this name; add it to admin.hosts, or use 127.0.0.1"
    ADDRESS = "only the proxies of admin.trusted_proxies may ask; set admin.password to let others log in"
    ORIGIN = "a change must come from a page of the bridge itself"
    PROXY = "a proxy or tunnel passed this on; set admin.password, or list the proxy in admin.trusted_proxies"
    PASSWORD = "log in first"  # noqa: S105  (no password)
    WRONG = "the password or token is not right"
    LIMIT = "too many wrong passwords; wait a minute"


@dataclass(slots=True)
class Login:
    """One that somebody has: until when it holds, in seconds; the first as long as nobody looks, the other at most."""

    unused_until: float
    until: float


@dataclass(frozen=True, slots=True)
class Caller:
    """A request, as far as the door looks at it.

    Attributes:
        address: Of the one who connected.
        header: A header by its name, in lower case; empty if there is none.
        cookie: That of our name, or empty.
        path: What is asked for, below any prefix.
        authority: The host of a request whose first line names one (absolute-form), or empty.
    """

    method: str
    address: str
    header: Callable[[str], str]
    cookie: str
    path: str = "/"
    authority: str = ""


class Door:
    """Decides about requests; used by several threads.

    Args:
        settings: Who may come in.
        token: What commands on this machine show.
        now: Seconds that never jump.
    """

    def __init__(self, settings: Admin, token: str, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._token = token
        self._now = now
        self._proxies = [ipaddress.ip_network(one) for one in settings.trusted_proxies]
        self._attempts = FixedWindowRateLimiter(Counts(now=now))
        self._of_one, self._of_all = RateLimitItemPerMinute(ATTEMPTS), RateLimitItemPerMinute(ATTEMPTS_OF_ALL)
        self._counted_proxies = [ipaddress.ip_network(one) for one in settings.proxies]
        self._lines = RateLimitItemPerMinute(LINES, namespace="LINES")
        self._hashing = threading.Lock()
        self._lock = threading.Lock()
        self._logins: dict[bytes, Login] = {}  # by the hashes of their cookies
        self._salt = secrets.token_bytes(16)
        self._proven: bytes | None = None  # of a password that was right, so that each scrape need not take 50 ms
        listen = settings.listen
        self._names = {"localhost", "127.0.0.1", "::1", *settings.hosts}
        self._any_number = listen is not None and ipaddress.ip_address(listen.host).is_unspecified
        self._is_open = listen is not None and listen.is_loopback and not settings.password
        if listen is not None:
            self._names.add(listen.host)

    @property
    def asks(self) -> bool:
        """Whether there is a password."""
        return self._settings.password is not None

    def is_trusted(self, caller: Caller) -> bool:
        """Whether a proxy passes this on that has asked who it is."""
        return _is_within(caller.address, self._proxies)

    def prefix(self, caller: Caller) -> str:
        """The path below which a trusted proxy shows the page; empty: at the top."""
        path = caller.header("x-ingress-path") or caller.header("x-forwarded-prefix")
        known = self.is_trusted(caller) and re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+/?", path)
        return path.rstrip("/") if known else ""

    def is_encrypted(self, caller: Caller) -> bool:
        """Whether a form came by HTTPS, as the browser itself or a trusted proxy says."""
        by_proxy = self.is_trusted(caller) and caller.header("x-forwarded-proto") == "https"
        return by_proxy or caller.header("origin").startswith("https://")

    def look(self, caller: Caller, *, is_change: bool = False, is_public: bool = False) -> Refusal | None:
        """Whether to answer.

        Args:
            caller: Who asks.
            is_change: Whether this changes something.
            is_public: Whether everybody may see it: health, and the login page.
        """
        trusted = self.is_trusted(caller)
        if not trusted and not all(map(self._is_our_name, _hosts(caller))):
            return Refusal.NAME
        with_token = self._has_token(caller)
        if not trusted and not self._is_open and not self.asks and not with_token:
            return Refusal.ADDRESS
        is_passed_on = not trusted and not with_token and any(map(caller.header, PASSED_ON))
        if self._is_open and is_passed_on and not is_public:
            return Refusal.PROXY
        if is_change and not with_token and not self._is_from_our_page(caller, trusted=trusted):
            return Refusal.ORIGIN
        if is_public or trusted or self._is_open or with_token or self._is_logged_in(caller):
            return None
        return self._by_header(caller)

    def log_in(self, caller: Caller, password: str) -> str | Refusal:
        """The cookie for whoever knows the password."""
        refusal = self._check(caller, password)
        if refusal is not None:
            return refusal
        random = secrets.token_bytes(_RANDOM)
        cookie = base64.urlsafe_b64encode(random + self._seal(random)).decode()
        with self._lock:
            now = self._now()
            self._logins.pop(_hash(caller.cookie), None)
            self._logins = {key: one for key, one in self._logins.items() if now < min(one.unused_until, one.until)}
            while len(self._logins) >= LOGINS:
                del self._logins[next(iter(self._logins))]
            self._logins[_hash(cookie)] = Login(now + LOGIN_HOLDS, now + LOGIN_LASTS)
        return cookie

    def log_out(self, caller: Caller) -> None:
        """The cookie opens nothing any more."""
        with self._lock:
            self._logins.pop(_hash(caller.cookie), None)

    def origin(self, caller: Caller) -> str:
        """The address that attempts count for; of a proxy of `admin.proxies` the one it tells of."""
        origin, forwarded = caller.address, [one for one in caller.header("x-forwarded-for").split(",") if one]
        while forwarded and _is_within(origin, self._counted_proxies):
            origin = forwarded.pop().strip()
        return origin

    def is_worth_a_line(self) -> bool:
        """Whether one more refusal may stand in the log: nobody may fill it."""
        with self._hashing:
            return self._attempts.hit(self._lines, "lines")

    def _is_logged_in(self, caller: Caller) -> bool:
        key = _hash(caller.cookie)
        with self._lock:
            login, now = self._logins.get(key), self._now()
            if login is None or now > min(login.unused_until, login.until):
                self._logins.pop(key, None)
                return False
            login.unused_until = now + LOGIN_HOLDS
            return True

    def _by_header(self, caller: Caller) -> Refusal | None:
        """HTTP Basic, for Prometheus and scripts, by any user name; a token that comes here is wrong."""
        scheme, _, given = caller.header("authorization").partition(" ")
        if scheme.lower() == "bearer":
            with self._hashing:
                return self._limited(caller) or self._wrong(caller)
        if scheme.lower() != "basic":
            return Refusal.PASSWORD
        try:
            password = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return Refusal.PASSWORD
        return self._check(caller, password)

    def _check(self, caller: Caller, password: str) -> Refusal | None:
        """Compare with the hash, one at a time: each takes 32 MiB and a good part of a second on a small machine."""
        with self._hashing:
            # Before anything is compared, or who is limited would go on guessing at what was right before.
            if refusal := self._limited(caller):
                return refusal
            seen = hashlib.blake2b(password.encode("utf-8", "replace"), key=self._salt).digest()
            if self._proven is not None and hmac.compare_digest(seen, self._proven):
                return None
            wanted = self._settings.password
            if wanted and len(password) <= LONGEST_PASSWORD and check_password_hash(wanted, password):
                self._proven = seen
                return None
            return self._wrong(caller)

    def _limited(self, caller: Caller) -> Refusal | None:
        """Whether nothing more is compared for a while; many addresses can belong to one who guesses."""
        is_free = all(self._attempts.test(limit, key) for limit, key in self._counters(caller))
        return None if is_free else Refusal.LIMIT

    def _wrong(self, caller: Caller) -> Refusal:
        for limit, key in self._counters(caller):
            self._attempts.hit(limit, key)
        return Refusal.WRONG

    def _counters(self, caller: Caller) -> tuple[tuple[RateLimitItem, str], ...]:
        """What an attempt counts for."""
        if browser := self._browser(caller):
            return ((self._of_one, f"browser {browser}"),)
        origin = self.origin(caller)
        place = "house" if _is_of_the_house(origin) else "internet"
        return (self._of_one, network_of(origin)), (self._of_all, place)

    def _browser(self, caller: Caller) -> str:
        """Which one this is, if it logged in before by the same password; its cookie may open nothing any more."""
        try:
            raw = base64.b64decode(caller.cookie.encode(), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            return ""
        random, seal = raw[:_RANDOM], raw[_RANDOM:]
        return random.hex() if self.asks and hmac.compare_digest(seal, self._seal(random)) else ""

    def _seal(self, random: bytes) -> bytes:
        key = (self._settings.password or "").encode()
        return hmac.digest(key, b"a browser that logged in\0" + random, hashlib.sha256)[:_SEAL]

    def _has_token(self, caller: Caller) -> bool:
        given = caller.header("authorization").encode("utf-8", "replace")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())

    def _is_our_name(self, host: str) -> bool:
        name = _name(host)
        if name in self._names:
            return True
        # Nobody's name server says what a number means, so numbers need no list where every address listens.
        return self._any_number and _is_number(name)

    def _is_from_our_page(self, caller: Caller, *, trusted: bool) -> bool:
        if caller.method != "POST":
            return False
        site, origin = caller.header("sec-fetch-site"), caller.header("origin")
        if site and site != "same-origin":
            return False
        hosts = {caller.header("host").lower()} | ({caller.header("x-forwarded-host").lower()} if trusted else set())
        if origin and urlsplit(origin).netloc.lower() in hosts - {""}:
            return True
        # A trusted proxy may keep the name to itself under which the browser knows it; the browser knows best then.
        return bool(site) and (trusted or not origin)


def headers(*, framed: bool) -> Mapping[str, str]:
    """What every answer says to the browser: nothing from elsewhere, nothing inline, no frames, no referrer elsewhere.

    With no referrer at all, a browser would hide from us where a form was sent from.

    Args:
        framed: Whether a trusted proxy shows the page in a frame of its own site, as Home Assistant does.
    """
    frames = "'self'" if framed else "'none'"
    return {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            f"form-action 'self'; base-uri 'none'; frame-ancestors {frames}"
        ),
        "X-Frame-Options": "SAMEORIGIN" if framed else "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
        "Cache-Control": "no-store",
    }


def caller_of(request: Any) -> Caller:
    """A request of Bottle's."""
    target = str(request.environ.get("REQUEST_URI", "/"))
    return Caller(
        method=request.method,
        address=request.environ.get("REMOTE_ADDR", ""),
        header=lambda name: str(request.environ.get(f"HTTP_{name.upper().replace('-', '_')}", "")),
        cookie=request.get_cookie(COOKIE_OF_HTTPS) or request.get_cookie(COOKIE) or "",
        path=request.path,
        authority="" if target.startswith("/") else target.partition("://")[2].partition("/")[0] or "*",
    )


def _hosts(caller: Caller) -> set[str]:
    """Every host that a request names: its header, and its first line if that is absolute (RFC 9112, section 3.2.2)."""
    return {caller.header("host"), caller.authority or caller.header("host")}


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).lower() if match else ""


def _is_number(name: str) -> bool:
    return _address(name) is not None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_within(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    found = _address(address)
    return found is not None and any(found in network for network in networks)


def _is_of_the_house(address: str) -> bool:
    found = _address(address)
    return found is not None and not found.is_global


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
