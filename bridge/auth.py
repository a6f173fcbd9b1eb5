"""Who may post: secret in the path, header, HTTP Basic, Meta's and the vendor's signatures, addresses. No I/O.

Every secret is a list, so that it can be rotated, and is compared in constant time on bytes. Signatures are checked
over the raw body, before anything is parsed.

Sources of the wire facts: Meta's webhook documents (`X-Hub-Signature-256`), the vendor's signing rules (headers
accesskey, action, biztype, ts, algorithm, sign).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from bridge.config import Auth

Header = Callable[[str], str | None]


class Verdict(Enum):
    """What the gate says of a request."""

    WELCOME = "welcome"
    HIDDEN = "hidden"  # answered like any path that does not exist
    UNKNOWN = "unknown"  # no or wrong credentials
    FORBIDDEN = "forbidden"  # from an address that may not post
    BROWSER = "browser"  # from a web page, where nothing but the place says who posts


@dataclass(frozen=True, slots=True)
class Visitor:
    """A request as the gate sees it.

    Attributes:
        token: What follows the webhook's path, or empty.
        header: Looks up a header by its name, in any case.
        address: Of the other end of the connection.
    """

    token: str
    header: Header
    address: str


class Gate:
    """Checks requests against the settings in `webhook.auth`."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth
        self._any = auth.require == "any"
        self._networks = [ipaddress.ip_network(one) for one in auth.addresses]
        self._proxies = [ipaddress.ip_network(one) for one in auth.proxies]
        self.wants_body = bool(auth.meta_app_secret or auth.vendor_secret)

    def finds_path(self, visitor: Visitor) -> bool:
        """Whether the path is the webhook's; with `any`, a path without token is one as well."""
        if not self._auth.path_token:
            return not visitor.token
        if not visitor.token:
            return self._any
        return is_one_of(visitor.token, self._auth.path_token)

    def before_body(self, visitor: Visitor) -> Verdict | None:
        """The verdict as far as path, headers and address tell; None if it takes the body's signature.

        Whoever is turned away here has not made us read a body.
        """
        if not self.finds_path(visitor):
            return Verdict.HIDDEN
        auth = self._auth
        verdicts: list[Verdict] = []
        if auth.path_token:
            verdicts.append(Verdict.WELCOME if visitor.token else Verdict.UNKNOWN)
        if auth.addresses:
            verdicts.append(self._by_address(visitor))
        if auth.header_token:
            given = visitor.header(auth.header_name)
            verdicts.append(_verdict(given is not None and is_one_of(given, auth.header_token)))
        if auth.basic:
            verdicts.append(_verdict(_basic(visitor.header("authorization"), auth.basic)))
        if not auth.is_set and _is_browser(visitor):
            return Verdict.BROWSER
        if self._any and Verdict.WELCOME in verdicts:
            return Verdict.WELCOME
        turned_away = next((one for one in verdicts if one is not Verdict.WELCOME), None)
        if self.wants_body and (self._any or turned_away is None):
            return None
        return turned_away or Verdict.WELCOME

    def with_body(self, visitor: Visitor, body: bytes) -> Verdict:
        """The verdict of the signatures, where `before_body` left it to them."""
        auth = self._auth
        signed = [
            check(visitor.header, body, secrets)
            for check, secrets in ((_meta, auth.meta_app_secret), (_vendor, auth.vendor_secret))
            if secrets
        ]
        return _verdict(any(signed) if self._any else all(signed))

    def origin(self, visitor: Visitor) -> str:
        """The sender's address: the last one in X-Forwarded-For that no listed proxy has, believed only from one.

        A header that is there but cannot be read is nobody's address: a proxy's own would let in whoever garbles it.
        """
        if not self._proxies:
            return visitor.address
        try:
            return self._behind_proxies(visitor)
        except ValueError:
            return ""

    def _by_address(self, visitor: Visitor) -> Verdict:
        if not self._is_listed(visitor):
            return Verdict.FORBIDDEN
        return Verdict.BROWSER if _is_browser(visitor) else Verdict.WELCOME

    def _is_listed(self, visitor: Visitor) -> bool:
        try:
            origin = ipaddress.ip_address(self.origin(visitor))
        except ValueError:
            return False
        return _within(origin, self._networks)

    def _behind_proxies(self, visitor: Visitor) -> str:
        origin = visitor.address
        header = visitor.header("x-forwarded-for")
        forwarded = [] if header is None else header.split(",")
        while forwarded and _within(ipaddress.ip_address(origin), self._proxies):
            origin = forwarded.pop().strip()
        return origin


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _within(origin: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Iterable[Network]) -> bool:
    mapped = getattr(origin, "ipv4_mapped", None)
    return any(origin in network or (mapped is not None and mapped in network) for network in networks)


def _is_browser(visitor: Visitor) -> bool:
    """Whether a web page sends this, by what browsers add to every POST of one (Fetch Standard, section 3.2).

    A page of a stranger whose name was made to lead to this machine (DNS rebinding) may send JSON, and comes from an
    address of the house. It knows no secret.
    """
    return visitor.header("origin") is not None or visitor.header("sec-fetch-site") is not None


def _verdict(holds: bool) -> Verdict:
    return Verdict.WELCOME if holds else Verdict.UNKNOWN


def is_one_of(given: str | bytes, secrets: Iterable[str]) -> bool:
    """Whether it is one of these; how long this takes tells nothing but how many there are."""
    found = False
    candidate = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
    for one in secrets:
        found |= hmac.compare_digest(candidate, one.encode())
    return found


def _basic(header: str | None, users: Iterable[str]) -> bool:
    scheme, _, credentials = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(credentials.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return is_one_of(given, users)


def _meta(header: Header, body: bytes, secrets: Iterable[str]) -> bool:
    given = header("x-hub-signature-256") or ""
    signatures = [f"sha256={hmac.new(one.encode(), body, hashlib.sha256).hexdigest()}" for one in secrets]
    return is_one_of(given.strip().lower(), signatures)


def _vendor(header: Header, body: bytes, secrets: Iterable[str]) -> bool:
    """The vendor's signature. `ts` is not checked for age: an honest resend bears the first try's."""
    key = header("accesskey") or ""
    algorithm = (header("algorithm") or "").lower()
    signatures = []
    for one in secrets:
        access_key, _, access_secret = one.partition(":")
        signatures.append(
            vendor_signature(
                access_key=access_key,
                access_secret=access_secret,
                action=header("action") or "",
                biztype=header("biztype") or "",
                ts=header("ts") or "",
                algorithm=algorithm,
                body=body,
            )
            if hmac.compare_digest(key.encode("utf-8", "surrogateescape"), access_key.encode())
            else ""
        )
    given = (header("sign") or "").strip().lower()
    return bool(given) and is_one_of(given, signatures)


def vendor_signature(
    *, access_key: str, access_secret: str, action: str, biztype: str, ts: str, algorithm: str, body: bytes
) -> str:
    """The vendor's signature: hex of SHA-256, or of MD5 unless the algorithm is `sha256`."""
    head = f"accessKey={access_key}&action={action}&bizType={biztype}&ts={ts}"
    text = head.encode("utf-8", "surrogateescape")
    if body:
        text += b"&body=" + body
    text += f"&accessSecret={access_secret}".encode()
    if algorithm.lower() == "sha256":
        return hashlib.sha256(text).hexdigest()
    return hashlib.md5(text, usedforsecurity=False).hexdigest()  # the vendor's choice; offered for those who need it


def credentials(auth: Auth, body: bytes, now: float) -> tuple[str, dict[str, str]]:
    """What a sender with the first secret of each kind sends: used by `whatsapp2mqtt simulate`.

    Args:
        auth: The settings.
        body: The raw body to sign.
        now: Epoch seconds.

    Returns:
        What to append to the webhook's path, and the headers.
    """
    headers: dict[str, str] = {}
    if auth.header_token:
        headers[auth.header_name] = auth.header_token[0]
    if auth.basic:
        headers["Authorization"] = f"Basic {base64.b64encode(auth.basic[0].encode()).decode()}"
    if auth.meta_app_secret:
        digest = hmac.new(auth.meta_app_secret[0].encode(), body, hashlib.sha256).hexdigest()
        headers["X-Hub-Signature-256"] = f"sha256={digest}"
    if auth.vendor_secret:
        access_key, _, access_secret = auth.vendor_secret[0].partition(":")
        signed = {"action": "callback", "biztype": "whatsapp", "ts": str(int(now * 1000)), "algorithm": "sha256"}
        signature = vendor_signature(access_key=access_key, access_secret=access_secret, body=body, **signed)
        headers |= {"accesskey": access_key, **signed, "sign": signature}
    return (f"/{auth.path_token[0]}" if auth.path_token else ""), headers
