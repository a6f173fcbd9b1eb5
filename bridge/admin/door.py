"""Who is let in, by which name, and from which page a change may come.

The page can fire a click and shows numbers, and a browser lets every site on the web send requests to it. So:

- Only names on a list are answered (against DNS rebinding: a stranger's name that leads to 127.0.0.1).
- A change must be a POST, and must come from a page of ours (Sec-Fetch-Site, Origin).
- Beyond loopback, a password is needed; only its scrypt hash is known here. Attempts are limited for each address.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter
from werkzeug.security import check_password_hash

from bridge.config import Admin
from bridge.throttle import Counts, network_of

COOKIE = "whatsapp2mqtt"
#: Seconds that a login holds without a look at the page, and how many hold at once.
LOGIN_HOLDS = 12 * 3600.0
LOGINS = 50
#: Wrong passwords in a minute, from one address.
ATTEMPTS = 5


class Refusal(Enum):
    """Why a request is not answered; the value is for people, and repeats nothing of it."""

    NAME = "the page does not go by this name; add it to admin.hosts, or use 127.0.0.1"
    ADDRESS = "only the proxies of admin.trusted_proxies may ask; set admin.password to let others log in"
    ORIGIN = "a change must come from a page of the bridge itself"
    PASSWORD = "log in first"  # noqa: S105  (no password)
    LIMIT = "too many wrong passwords; wait a minute"


@dataclass(frozen=True, slots=True)
class Caller:
    """A request, as far as the door looks at it.

    Attributes:
        address: Of the one who connected.
        header: A header by its name, in lower case; empty if there is none.
        cookie: That of our name, or empty.
        path: What is asked for, below any prefix.
    """

    method: str
    address: str
    header: Callable[[str], str]
    cookie: str
    path: str = "/"


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
        self._limit = RateLimitItemPerMinute(ATTEMPTS)
        self._lock = threading.Lock()
        self._logins: dict[bytes, float] = {}  # hashes of cookies: until when they hold
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
        try:
            address = ipaddress.ip_address(caller.address)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def prefix(self, caller: Caller) -> str:
        """The path below which a trusted proxy shows the page; empty: at the top."""
        path = caller.header("x-ingress-path") or caller.header("x-forwarded-prefix")
        known = self.is_trusted(caller) and re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+/?", path)
        return path.rstrip("/") if known else ""

    def is_encrypted(self, caller: Caller) -> bool:
        """Whether the browser came by HTTPS, as a trusted proxy says."""
        return self.is_trusted(caller) and caller.header("x-forwarded-proto") == "https"

    def look(self, caller: Caller, *, is_change: bool = False, is_public: bool = False) -> Refusal | None:
        """Whether to answer.

        Args:
            caller: Who asks.
            is_change: Whether this changes something.
            is_public: Whether everybody may see it: health, and the login page.
        """
        trusted = self.is_trusted(caller)
        if not trusted and not self._is_our_name(caller.header("host")):
            return Refusal.NAME
        with_token = self._has_token(caller)
        if not trusted and not self._is_open and not self.asks and not with_token:
            return Refusal.ADDRESS
        if is_change and not with_token and not self._is_from_our_page(caller, trusted=trusted):
            return Refusal.ORIGIN
        if is_public or trusted or self._is_open or with_token or self._is_logged_in(caller):
            return None
        return self._by_basic(caller)

    def log_in(self, caller: Caller, password: str) -> str | Refusal:
        """The cookie for whoever knows the password."""
        refusal = self._check(caller, password)
        if refusal is not None:
            return refusal
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            now = self._now()
            self._logins = {key: until for key, until in self._logins.items() if until > now}
            while len(self._logins) >= LOGINS:
                del self._logins[next(iter(self._logins))]
            self._logins[_hash(cookie)] = now + LOGIN_HOLDS
        return cookie

    def log_out(self, caller: Caller) -> None:
        """The cookie opens nothing any more."""
        with self._lock:
            self._logins.pop(_hash(caller.cookie), None)

    def _is_logged_in(self, caller: Caller) -> bool:
        key = _hash(caller.cookie)
        with self._lock:
            until = self._logins.get(key)
            if until is None or until < self._now():
                return False
            self._logins[key] = self._now() + LOGIN_HOLDS
            return True

    def _by_basic(self, caller: Caller) -> Refusal | None:
        """HTTP Basic, for Prometheus and scripts; any user name."""
        scheme, _, given = caller.header("authorization").partition(" ")
        if scheme.lower() != "basic":
            return Refusal.PASSWORD
        try:
            password = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return Refusal.PASSWORD
        return self._check(caller, password)

    def _check(self, caller: Caller, password: str) -> Refusal | None:
        """Compare with the hash, one at a time: each takes 32 MiB and a good part of a second on a small machine."""
        address = network_of(caller.address)
        with self._lock:
            seen = hashlib.blake2b(password.encode("utf-8", "replace"), key=self._salt).digest()
            if self._proven is not None and hmac.compare_digest(seen, self._proven):
                return None
            if not self._attempts.test(self._limit, address):
                return Refusal.LIMIT
            if self._settings.password and check_password_hash(self._settings.password, password[:1_000]):
                self._proven = seen
                return None
            self._attempts.hit(self._limit, address)
        return Refusal.PASSWORD

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
    return Caller(
        method=request.method,
        address=request.environ.get("REMOTE_ADDR", ""),
        header=lambda name: str(request.environ.get(f"HTTP_{name.upper().replace('-', '_')}", "")),
        cookie=request.get_cookie(COOKIE) or "",
        path=request.path,
    )


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+))(?::\d{1,5})?", host)
    return (match[1] or match[2]).lower() if match else ""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
