"""Settings: YAML and environment through voluptuous into frozen dataclasses; every setting stands here once.

Each field carries its default as a user would write it, its check, and its sentence for the documents;
`config.example.yaml`, `whatsapp2mqtt check` and the documents follow from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import yaml
from voluptuous import Invalid, MultipleInvalid, Optional, Schema

ENV_PREFIX = "WHATSAPP2MQTT_"
ENV_CONFIG = "WHATSAPP2MQTT_CONFIG"
HIDDEN = "********"

#: Bytes; a smaller file has no room for a callback of the largest size.
SMALLEST_JOURNAL = 8 * 2**20

Key = tuple[str, ...]

#: Settings that had another name in an older version: the old name, and today's. An old name goes on to work, and a
#: line at the start says what it is called now; `whatsapp2mqtt migrate-settings` writes the file anew.
RENAMED: Mapping[Key, Key] = {}


class ConfigError(Exception):
    """The settings cannot be used; the message has a line for each problem: where, what is wrong, what to write."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


# --- checks: what a user may write, to what the program uses -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens: a numeric address or `localhost`, and a port (0: any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def nearby(self) -> str:
        """The host by which this machine reaches the listener itself."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  (compares, does not bind)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(value: object) -> Address:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):(\d{1,5})", str(value))
    host = (match[1] or match[2]) if match else ""
    if not match or int(match[3]) > 65_535:
        raise Invalid("is no address; write host:port, e.g. 127.0.0.1:8080 or [::1]:8080")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise Invalid(
            "needs a numeric address; write 0.0.0.0:8080 for all of this machine's addresses, 127.0.0.1:8080 for itself"
        ) from None
    return Address(host, int(match[3]))


_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def duration(value: object) -> float:
    """Seconds from `5m`, `1h30m`, `7d`, or a bare number of seconds."""
    text = str(value).strip()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])\s*", text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])\s*", "", text):
        raise Invalid("is no duration; write a number with s, m, h or d, e.g. 30s, 5m or 7d")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def duration_or_off(value: object) -> float | None:
    """As `duration`; `off` is None."""
    return None if value is False or str(value).lower() == "off" else duration(value)


_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(value: object) -> int:
    """Bytes from `3MiB`, `500kB`, or a bare number of bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]i?b|b)?", str(value).strip().lower())
    if not match:
        raise Invalid("is no size; write a number with kB, MB, KiB, MiB or GiB, e.g. 3MiB")
    return int(float(match[1]) * _BYTES[match[2] or ""])


def whole(minimum: int, maximum: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)) or not minimum <= int(str(value)) <= maximum:
            raise Invalid(f"is no whole number from {minimum} to {maximum}")
        return int(str(value))

    return check


def whole_or_off(minimum: int, maximum: int) -> Callable[[object], int | None]:
    """As `whole`; `off` is None."""
    check = whole(minimum, maximum)
    return lambda value: None if value is False or str(value).lower() == "off" else check(value)


def yes_or_no(value: object) -> bool:
    text = str(value).lower()
    if text not in ("true", "false", "yes", "no", "on", "off"):
        raise Invalid("is neither true nor false")
    return text in ("true", "yes", "on")


def one_of(*words: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if str(value) not in words:
            raise Invalid(f"is none of {', '.join(words)}")
        return str(value)

    return check


def text(value: object) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise Invalid("is no text")
    found = str(value)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise Invalid("holds bytes that are no UTF-8") from None
    return found


def replica_name(value: object) -> str:
    found = text(value)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", found):
        raise Invalid("is no name of 63 letters, digits, dots, dashes and underscores at most, the first no sign")
    return found


def text_or_none(value: object) -> str | None:
    return None if value is None else text(value)


def file_or_none(value: object) -> Path | None:
    if value is None:
        return None
    path = Path(text(value))
    try:
        path = path.expanduser()
        found = path.is_file()
    except (OSError, RuntimeError):
        found = False
    if not found:
        raise Invalid("names a file that does not exist or cannot be seen")
    return path


def many(check: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    """A list, or one value alone."""

    def check_all(value: object) -> tuple[Any, ...]:
        if value is None:
            return ()
        return tuple(check(one) for one in (value if isinstance(value, list) else [value]))

    return check_all


def secret(value: object) -> str:
    found = text(value)
    if not found.strip():
        raise Invalid("is empty; leave the setting out, or write what `whatsapp2mqtt secret` prints")
    return found


def header_secret(value: object) -> str:
    found = secret(value)
    if not re.fullmatch(r"[\x21-\x7e]+", found):
        raise Invalid("may have no spaces and no other than ASCII characters, as it stands in a header")
    return found


def path_token(value: object) -> str:
    found = secret(value)
    if not re.fullmatch(r"[A-Za-z0-9_.~-]{8,200}", found):
        raise Invalid("must have 8 to 200 characters of A-Z a-z 0-9 - _ . ~, as it stands in the webhook's address")
    return found


def pair(left: str, right: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        found = secret(value)
        name, colon, rest = found.partition(":")
        if not (name and colon and rest):
            raise Invalid(f"must read {left}:{right}")
        return found

    return check


def address_or_off(value: object) -> Address | None:
    """As `address`; `off` or nothing is None."""
    return None if value in (None, False) or str(value).lower() in ("off", "") else address(value)


def password_hash(value: object) -> str | None:
    """A hash as `whatsapp2mqtt password` prints it; a password itself is refused."""
    if value is None:
        return None
    found = text(value)
    if not re.fullmatch(r"scrypt:\d+:\d+:\d+\$[A-Za-z0-9]{8,}\$[0-9a-f]{128}", found):
        raise Invalid("is no hash of a password; `whatsapp2mqtt password` asks for the password and prints the line")
    return found


def host_name(value: object) -> str:
    found = text(value).lower()
    if not re.fullmatch(r"[a-z0-9_.-]{1,253}", found):
        raise Invalid("is no host name; write e.g. whatsapp.example.org, without http:// and without a port")
    return found


def public_address(value: object) -> str | None:
    return None if value is None else web_address(value).rstrip("/")


def person(value: object) -> str:
    """A phone number with the country's code, in any spelling, or a user id."""
    found = text(value).strip()
    digits = re.sub(r"\D", "", found)
    if re.fullmatch(r"[+\d][\d ().\-/]*", found):
        if not 5 <= len(digits) <= 17 or (found.startswith("0") and not found.startswith("00")):
            raise Invalid("is no number with the country's code; write e.g. +49 170 1234567 or 491701234567")
    elif not re.fullmatch(r"[!-~]{1,200}", found):
        raise Invalid("is neither a phone number nor a user id; write e.g. 491701234567")
    return found


def name_or_id(value: object) -> str:
    if not isinstance(value, str) or not value:
        # YAML takes yes, no, on and off for true and false.
        raise Invalid('holds what is no text; put it in quotes, e.g. "yes"')
    return text(value)


def network(value: object) -> str:
    try:
        return str(ipaddress.ip_network(text(value), strict=False))
    except ValueError:
        raise Invalid("is no address or network; write e.g. 203.0.113.7 or 203.0.113.0/24") from None


def header_name(value: object) -> str:
    found = text(value)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", found):
        raise Invalid("is no header name; write e.g. X-Webhook-Token")
    return found


def url_path(value: object) -> str:
    found = text(value)
    if not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", found):
        raise Invalid("is no path; write e.g. /webhook: a slash, then A-Z a-z 0-9 - _ . ~")
    return found


def base_topic(value: object) -> str:
    found = text(value)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", found) or len(found) > 100:
        raise Invalid("is no topic; write e.g. whatsapp or home/whatsapp: at most 100 of A-Z a-z 0-9 - _ . and /")
    return found


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A broker's address, taken apart; `scheme` is one of mqtt, mqtts, ws, wss, or embedded."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def is_embedded(self) -> bool:
        return self.scheme == "embedded"

    @property
    def is_encrypted(self) -> bool:
        return self.scheme in ("mqtts", "wss")

    def __str__(self) -> str:
        """Without user and password."""
        if self.is_embedded:
            return "embedded"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


_BROKER_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


def broker_url(value: object) -> BrokerUrl:
    written = text(value)
    if written == "embedded":
        return BrokerUrl("embedded")
    try:
        parts: SplitResult = urlsplit(written)
    except ValueError:
        raise Invalid("has a host that is no name and no address; write e.g. mqtt://10.0.0.2 or mqtt://[::1]") from None
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise Invalid("has a port that is no number from 1 to 65535")
    if parts.scheme not in _BROKER_PORTS or not parts.hostname:
        raise Invalid(
            "is no broker; write embedded, or mqtt://, mqtts://, ws:// or wss:// and a host, e.g. mqtt://10.0.0.2"
        )
    if parts.query or parts.fragment or (parts.path.strip("/") and parts.scheme in ("mqtt", "mqtts")):
        raise Invalid("has something behind the host and port; write e.g. mqtt://10.0.0.2:1883")
    path = (parts.path or "/mqtt") if parts.scheme in ("ws", "wss") else ""
    return BrokerUrl(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or _BROKER_PORTS[parts.scheme],
        path=path,
        username=unquote(parts.username) if parts.username is not None else None,
        password=unquote(parts.password) if parts.password is not None else None,
    )


class Brokers(tuple[BrokerUrl, ...]):
    """One broker, or several, in the order in which they are preferred."""

    __slots__ = ()

    def __str__(self) -> str:
        """Without users and passwords."""
        return ", ".join(map(str, self))


def broker_urls(value: object) -> Brokers:
    """A broker, or several that know the same: a list, or a text with a comma or a line end between them."""
    parts = value if isinstance(value, list) else re.split(r"(?:\s*,\s*|\s+)(?=\w+://)", text(value).strip())
    found = Brokers(broker_url(part) for part in parts)
    if not found:
        raise Invalid("is an empty list; write embedded, or at least one address, e.g. mqtt://10.0.0.2")
    if len(found) > 1 and any(url.is_embedded for url in found):
        raise Invalid("has embedded beside other brokers; the embedded one stands alone")
    places = [str(url) for url in found]
    if twice := [place for place in places if places.count(place) > 1]:
        raise Invalid(f"has {twice[0]} twice; name each broker once")
    return found


def hide_password(written: object) -> object:
    """A broker's address, or a list of them, as it was written, with the passwords hidden."""
    if isinstance(written, list):
        return [hide_password(one) for one in written]
    return re.sub(r"(://[^/?#:]*):[^/?#]*@", rf"\1:{HIDDEN}@", str(written))


@dataclass(frozen=True, slots=True)
class Button:
    """A button that is known before its first click.

    Attributes:
        payload: What it means to the business, as callbacks bring it.
        name: How Home Assistant shows it.
        icon: For its entity, e.g. `mdi:gate`; None: Home Assistant's own.
    """

    payload: str
    name: str
    icon: str | None = None


_BUTTON_HINT = "write `- {payload: open_gate, name: Open the gate, icon: mdi:gate}`, where name and icon may be absent"


def buttons(value: object) -> tuple[Button, ...]:
    """A list of buttons; one that is a text alone is its payload."""
    found = tuple(_button(one) for one in (value if isinstance(value, list) else [value]) if one is not None)
    for what, words in (("payload", [one.payload for one in found]), ("name", [one.name for one in found])):
        if len(set(words)) < len(words):
            raise Invalid(f"has two buttons of the same {what}; each needs its own")
    return found


def _button(value: object) -> Button:
    if not isinstance(value, dict):
        value = {"payload": value}
    if "payload" not in value or not set(value) <= {"payload", "name", "icon"}:
        raise Invalid(f"holds what is no button; {_BUTTON_HINT}")
    for word in value.values():
        if not isinstance(word, str) or not word or not word.isprintable() or len(word) > 1_000:
            # YAML takes yes, no, on and off for true and false.
            raise Invalid('has a button whose payload, name or icon is no text; put it in quotes, e.g. payload: "yes"')
    payload, name, icon = (str(value.get(key, "")) for key in ("payload", "name", "icon"))
    if icon and not re.fullmatch(r"[a-z0-9-]+:[a-z0-9-]+", icon):
        raise Invalid("has a button whose icon is none; write e.g. mdi:gate")
    return Button(payload, name or payload, icon or None)


def web_address(value: object) -> str:
    found = text(value)
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or not found.isprintable() or " " in found:
        raise Invalid("is no web address; write e.g. http://10.0.0.2:8081")
    return found


@dataclass(frozen=True, slots=True)
class Database:
    """A PostgreSQL database.

    Attributes:
        url: As libpq takes it: what stands behind `?` (sslmode, sslrootcert, target_session_attrs, ...) is passed on.
        password: If it does not stand in the url.
        schema: Where the journal's tables are.
    """

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    schema: str = "whatsapp2mqtt"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names or addresses of its servers; folders of sockets begin with a slash; none: this machine's socket."""
        parts = urlsplit(self.url)
        servers = parts.netloc.rpartition("@")[2]
        found = [re.sub(r":\d*$", "", server).strip("[]") for server in servers.split(",")] if servers else []
        found += ",".join(parse_qs(parts.query).get("host", [])).split(",")
        return tuple(unquote(host) for host in found if host)

    @property
    def unprotected(self) -> str | None:
        """A server on another machine to which nothing says whether the way there is encrypted; None: there is none."""
        if "sslmode" in self.parameters:
            return None
        return next((host for host in self.hosts if not host.startswith("/") and not is_loopback(host)), None)

    @property
    def parameters(self) -> dict[str, str]:
        """What stands behind `?`."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.url).query).items()}

    def __str__(self) -> str:
        """Without user, password and parameters."""
        parts = urlsplit(self.url)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


def unprotected(host: str) -> str:
    """Why a database there is refused, and what to write."""
    return (
        f"what is stored would go to {host} as that server likes it; add ?sslmode=verify-full "
        "(with sslrootcert=/path/ca.pem), or ?sslmode=disable to say that the network between is your own"
    )


def hide_passwords(written: object) -> object:
    """A database's address as it was written, its passwords hidden."""
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", rf"\1{HIDDEN}", str(hide_password(written)))


_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")


def journal_url(value: object) -> Path | Database | None:
    """The journal's file or database; None stands for `journal.db` in the state directory."""
    written = text(value)
    if written == "sqlite":
        return None
    if written.startswith(("postgresql://", "postgres://")):
        try:
            parts = urlsplit(written)
        except ValueError:
            parts = None
        if parts is None or not written.isprintable() or " " in written:
            raise Invalid("is no database; write e.g. postgresql://user@host:5432/whatsapp2mqtt")
        # libpq would take the rest of such a password for a host or a database, and say it in its errors.
        if parts.netloc.count("@") > 1 or "@" in parts.path or parts.fragment or re.search(_NO_ESCAPE, written):
            raise Invalid(
                "has a character in user or password that must be written %40 (@), %2F (/), %23 (#) or %25 (%)"
            )
        if not parts.path.strip("/"):
            raise Invalid("names no database; write e.g. postgresql://user@host:5432/whatsapp2mqtt")
        return Database(written)
    match = re.fullmatch(r"sqlite://(/[^\0]+)", written)
    if not match:
        raise Invalid(
            "is no journal; write sqlite (a file in the state directory), sqlite:///path/of/journal.db, "
            "or postgresql://user@host/database"
        )
    return Path(match[1].replace("//", "/"))


def database_of(written: str, password: str | None = None) -> Database:
    """A database as a command names it.

    Args:
        written: Its address.
        password: If it does not stand there.

    Raises:
        ConfigError: It is none, or what goes there would not be protected. The message shows no password.
    """
    try:
        found = journal_url(written)
    except Invalid as error:
        raise ConfigError([f"the database's address {error}"]) from None
    if not isinstance(found, Database):
        raise ConfigError(["the database's address is none; write e.g. postgresql://user@host:5432/whatsapp2mqtt"])
    if host := found.unprotected:
        raise ConfigError([f"{found}: {unprotected(host)}"])
    return dataclasses.replace(found, password=password)


# --- the settings ------------------------------------------------------------------------------------------------

T = TypeVar("T")


def setting(
    default: Any, check: Callable[[object], T], about: str, *, show: Callable[[object], object] | None = None
) -> T:
    """A field of a section.

    Args:
        default: As a user would write it.
        check: Turns what was written into what is used; raises `voluptuous.Invalid`.
        about: What it is for and why its default is what it is: a sentence for the documents.
        show: How `check` prints what was written; secrets are hidden.
    """
    metadata = {"default": default, "check": check, "about": about, "show": show}
    return field(default=check(default), repr=show is None, metadata=metadata)


def hidden(written: object) -> object:
    """Hide a secret, but say how many there are."""
    if isinstance(written, list):
        return [HIDDEN for _ in written]
    return HIDDEN if written else written


def section(kind: type[T], about: str) -> T:
    return field(default_factory=kind, metadata={"section": kind, "about": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    path_token: tuple[str, ...] = setting(
        [], many(path_token), "Secrets, one of which must follow the path: /webhook/<token>.", show=hidden
    )
    header_name: str = setting(
        "X-Webhook-Token", header_name, "The header that carries header_token, if that is what the sender can do."
    )
    header_token: tuple[str, ...] = setting(
        [], many(header_secret), "Secrets, one of which must stand in the header of header_name.", show=hidden
    )
    basic: tuple[str, ...] = setting(
        [], many(pair("user", "password")), "HTTP Basic: user:password, several allowed.", show=hidden
    )
    meta_app_secret: tuple[str, ...] = setting(
        [], many(secret), "Meta's app secret: X-Hub-Signature-256 over the body must be made with it.", show=hidden
    )
    meta_verify_token: tuple[str, ...] = setting(
        [], many(secret), "The verify token given to Meta: answers its GET challenge.", show=hidden
    )
    vendor_secret: tuple[str, ...] = setting(
        [],
        many(pair("access_key", "access_secret")),
        "The vendor's signature: access_key:access_secret, if signing is switched on at the vendor.",
        show=hidden,
    )
    addresses: tuple[str, ...] = setting(
        [], many(network), "Addresses or networks that may post; empty: all. Loopback is not trusted by itself."
    )
    proxies: tuple[str, ...] = setting(
        [],
        many(network),
        "Proxies whose X-Forwarded-For is believed, where addresses are checked or counted; empty: none.",
    )
    require: str = setting("all", one_of("all", "any"), "Whether all of the above that are set must hold, or any one.")
    anyone_may_post: bool = setting(
        False, yes_or_no, "Say true to listen beyond loopback without authentication: anyone may then open your gate."
    )

    @property
    def is_set(self) -> bool:
        return bool(
            self.path_token
            or self.header_token
            or self.basic
            or self.meta_app_secret
            or self.vendor_secret
            or self.addresses
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    listen: Address = setting(
        "127.0.0.1:8080", address, "Where callbacks arrive; loopback, as a proxy or tunnel stands before it."
    )
    path: str = setting("/webhook", url_path, "The path of the webhook's address.")
    workers: int = setting(1, whole(1, 16), "Receiver processes; one takes thousands of callbacks a second.")
    connections: int = setting(
        1_000, whole(16, 65_536), "Connections that a receiver has open at once; further ones wait."
    )
    max_body: int = setting("3MiB", size, "The largest body taken; WhatsApp sends up to 3 MB.")
    drain: float = setting(
        "0s",
        duration,
        "When it is told to stop, it takes callbacks for so much longer while /readyz says no: for a load balancer.",
    )
    rate_limit: int | None = setting(
        10_000,
        whole_or_off(1, 1_000_000),
        "Callbacks a second, as a mean of ten, that one address may send; more are answered 429 and come again.",
    )
    body_timeout: float = setting("10s", duration, "How long a body may take to arrive before it is given up.")
    public_url: str | None = setting(
        None,
        public_address,
        "Where the internet finds this listener, e.g. https://hook.example.org; for the page alone.",
    )
    auth: Auth = section(Auth, "Who may post; all that is set must hold unless require says any.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    ca: Path | None = setting(None, file_or_none, "Certificates to trust (PEM); null: those of the system.")
    certificate: Path | None = setting(None, file_or_none, "The client's certificate (PEM), if the broker wants one.")
    key: Path | None = setting(None, file_or_none, "The key of that certificate (PEM).")
    dangerously_accept_any_certificate: bool = setting(
        False, yes_or_no, "True lets anyone on the way read and change everything; for a quick test only."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    listen: Address = setting(
        "127.0.0.1:1883", address, "Where the embedded broker listens; beyond loopback it wants a password."
    )
    username: str | None = setting(None, text_or_none, "Who may use the embedded broker; needed beyond loopback.")
    password: str | None = setting(None, text_or_none, "The password of that user.", show=hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    health: bool = setting(True, yes_or_no, "Tell how the bridge is: what bridge/health says, and at once.")
    dead_letters: bool = setting(
        True, yes_or_no, "Try dead letters again; a click among them that is too old by now does not fire."
    )
    log_level: bool = setting(True, yes_or_no, "Have the bridge say more in its log; never less than log.level says.")
    reconnect: bool = setting(True, yes_or_no, "Make a new connection to the broker, at most once a minute.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mqtt:
    url: Brokers = setting(
        "embedded",
        broker_urls,
        "embedded, or mqtt://user:password@host:1883, mqtts://, ws://, wss://; a list: the nodes of a cluster.",
        show=hide_password,
    )
    pick: str = setting(
        "order",
        one_of("order", "random"),
        "Of several brokers: the first that answers, or any, which spreads many bridges over a cluster.",
    )
    username: str | None = setting(None, text_or_none, "The user, if it does not stand in the url.")
    password: str | None = setting(None, text_or_none, "The password, if it does not stand in the url.", show=hidden)
    allow_password_in_the_clear: bool = setting(
        False, yes_or_no, "Say true to send the password unencrypted to a broker on another machine."
    )
    base_topic: str = setting("whatsapp", base_topic, "All topics stand below this one.")
    protocol: str = setting(
        "auto", one_of("auto", "5", "3.1.1"), "MQTT 5, 3.1.1, or auto: 5 first, and 3.1.1 if the broker refuses it."
    )
    client_id: str = setting(
        "auto", text, "The bridge's name at the broker; auto: whatsapp2mqtt- and a hash of machine and journal."
    )
    keepalive: float = setting("30s", duration, "A connection on which the broker is silent for longer is dropped.")
    encode_dots: bool = setting(False, yes_or_no, "Also encode dots in topics, for RabbitMQ and NATS before 2.10.")
    tls: Tls = section(Tls, "For mqtts and wss.")
    embedded: Embedded = section(Embedded, "The broker that comes along, used when url is embedded.")
    requests: Requests = section(Requests, "What others may ask of the bridge, on bridge/request/... below base_topic.")

    @property
    def is_embedded(self) -> bool:
        """Whether the broker that comes along is used."""
        return self.url[0].is_embedded

    @property
    def protocols(self) -> tuple[str, ...]:
        """The versions of MQTT to try, in this order."""
        if self.is_embedded:
            return ("3.1.1",)  # all it speaks
        return ("5", "3.1.1") if self.protocol == "auto" else (self.protocol,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    max_age: float | None = setting(
        "5m", duration_or_off, "A click older than this is recorded as late and not fired; off: every click fires."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Buttons:
    allow_from: tuple[str, ...] = setting(
        [], many(person), "Phone numbers or user ids whose clicks fire; empty: everyone's. Others are dead letters."
    )
    templates: tuple[str, ...] = setting(
        [], many(name_or_id), "Names or ids of the message templates whose buttons fire; empty: all."
    )
    payloads: tuple[str, ...] = setting([], many(name_or_id), "Payloads of the buttons that fire; empty: all.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retain:
    status: float = setting("7d", duration, "How long a message's status stays on the broker; 0: it is never retained.")
    button: float = setting(
        "1d", duration, "How long a button's last click stays on the broker; 0: it is never retained."
    )
    max_topics: int = setting(
        100_000, whole(10, 10_000_000), "More retained topics than this are not kept; the oldest go first."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeAssistant:
    discovery: bool = setting(
        True, yes_or_no, "Show everything in Home Assistant by itself; false takes all of it away again."
    )
    prefix: str = setting("homeassistant", base_topic, "Home Assistant's discovery prefix, as its MQTT settings say.")
    max_buttons: int = setting(
        100, whole(0, 1_000), "More buttons than this are not shown; of those learned, the one unused longest goes."
    )
    buttons: tuple[Button, ...] = setting(
        [], buttons, "Buttons to show before their first click, each {payload: ..., name: ..., icon: mdi:...}."
    )
    link: str = setting(
        "https://pypi.org/project/whatsapp2mqtt/", web_address, "Where the device's page in Home Assistant links to."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    url: Path | Database | None = setting(
        "sqlite",
        journal_url,
        "sqlite: journal.db in the state directory; sqlite:///path/of/journal.db; or postgresql://user@host/database.",
        show=hide_passwords,
    )
    password: str | None = setting(
        None, text_or_none, "The database's password, if it does not stand in the url.", show=hidden
    )
    replica: str = setting(
        "auto", replica_name, "This bridge's name among several on one database; auto: the machine's host name."
    )
    keep: float = setting("30d", duration, "How long what was published is kept, e.g. to know a duplicate again.")
    max_size: int = setting(
        "1GiB",
        size,
        "The largest size of file or tables; before it is reached, the oldest of what was published goes.",
    )
    dead_letters_keep: float = setting("30d", duration, "How long a dead letter is kept.")
    dead_letters_max: int = setting(
        10_000, whole(1, 1_000_000), "More dead letters than this are not kept; the oldest go."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    numbers: str = setting(
        "keep",
        one_of("keep", "mask", "hash"),
        "Phone numbers in topics, JSON and the journal: as they came, as *******1234, or as a keyed hash.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    listen: Address | None = setting(
        "127.0.0.1:8081", address_or_off, "Where the page, the health checks and the metrics are; off: nowhere."
    )
    password: str | None = setting(
        None, password_hash, "The hash that `whatsapp2mqtt password` prints; needed beyond loopback.", show=hidden
    )
    hosts: tuple[str, ...] = setting(
        [], many(host_name), "Names by which browsers reach the page, e.g. through a proxy; no others are answered."
    )
    trusted_proxies: tuple[str, ...] = setting(
        [],
        many(network),
        "Proxies that let in only who may see the page, e.g. 172.30.32.2: no password is asked there.",
    )
    proxies: tuple[str, ...] = setting(
        [],
        many(network),
        "Proxies that tell in X-Forwarded-For from where somebody comes: wrong passwords count for that address.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    level: str = setting(
        "info", one_of("debug", "info", "warning", "error"), "How much to say; debug names bodies' sizes and topics."
    )
    format: str = setting("auto", one_of("auto", "text", "json"), "auto: text on a terminal, JSON otherwise.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    webhook: Webhook = section(Webhook, "Where WhatsApp posts its callbacks.")
    mqtt: Mqtt = section(Mqtt, "Where they are published.")
    events: Events = section(Events, "What fires.")
    buttons: Buttons = section(Buttons, "Whose clicks fire, and which.")
    retain: Retain = section(Retain, "How long retained topics stand.")
    homeassistant: HomeAssistant = section(HomeAssistant, "What Home Assistant shows by itself.")
    journal: Journal = section(Journal, "Where everything accepted is kept until the broker has it.")
    privacy: Privacy = section(Privacy, "What is shown of people.")
    admin: Admin = section(Admin, "The page in the browser, health checks and metrics.")
    log: Log = section(Log, "What the bridge says about itself.")

    @property
    def journal_path(self) -> Path:
        """The journal's file; where it is a database, what stands beside the file still has its name and place."""
        return self.journal.url if isinstance(self.journal.url, Path) else state_directory() / "journal.db"

    @property
    def database(self) -> Database | None:
        """The journal's database, with its password from wherever it was set; None: it is a file."""
        url = self.journal.url
        return dataclasses.replace(url, password=self.journal.password) if isinstance(url, Database) else None

    @property
    def replica(self) -> str:
        """This bridge's name among those that share its journal."""
        if self.journal.replica != "auto":
            return self.journal.replica
        return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63] or "bridge"

    @property
    def journal_place(self) -> Path | Database:
        """Where the journal is, to be shown: no password is in its text."""
        return self.database or self.journal_path

    @property
    def client_id(self) -> str:
        if self.mqtt.client_id != "auto":
            return self.mqtt.client_id
        known_by = f"{socket.gethostname()}:{self.journal_path}"
        return f"whatsapp2mqtt-{hashlib.sha256(known_by.encode()).hexdigest()[:8]}"

    @property
    def brokers(self) -> tuple[BrokerUrl, ...]:
        """The brokers to connect to, with user and password from wherever they were set."""
        mqtt = self.mqtt
        if mqtt.is_embedded:
            listen = mqtt.embedded.listen
            user, password = mqtt.embedded.username, mqtt.embedded.password
            return (BrokerUrl("mqtt", listen.nearby, listen.port, "", user, password),)
        return tuple(
            dataclasses.replace(
                url,
                username=url.username if url.username is not None else mqtt.username,
                password=url.password if url.password is not None else mqtt.password,
            )
            for url in mqtt.url
        )


def state_directory() -> Path:
    """Where the bridge keeps its state: systemd's `$STATE_DIRECTORY`, else `whatsapp2mqtt` in the XDG state home."""
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given.split(":")[0])
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "whatsapp2mqtt"


# --- reading them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings in force, and for each what was written and where.

    Attributes:
        settings: What the program uses.
        written: Dotted name to what the user (or the default) says.
        origins: Dotted name to where it was set; names without an entry have their default.
        outdated: A line for each setting under an older version's name: where it stands, and what it is called now.
    """

    settings: Settings
    written: dict[str, object]
    origins: dict[str, str]
    outdated: tuple[str, ...] = ()


def load(file: Path | None, environ: Mapping[str, str] | None = None, *, is_whole: bool = True) -> Loaded:
    """Read the settings: the file if one is given, and the environment above it.

    Args:
        file: None: there is none.
        environ: None: that of this process.
        is_whole: Whether there are no others; with others, it cannot be told whether they fit together.

    Raises:
        ConfigError: With one line for each problem.
    """
    environ = os.environ if environ is None else environ
    values: dict[Key, object] = {}
    origins: dict[Key, str] = {}
    problems: list[str] = []
    outdated: list[str] = []
    if file is not None:
        _read_file(file, values, origins, problems, outdated)
    _read_environment(environ, values, origins, problems, outdated)
    if problems:
        raise ConfigError(problems)
    try:
        checked = _SCHEMA(_nested(values))
    except MultipleInvalid as error:
        raise ConfigError(_problem(one, values, origins) for one in error.errors) from None
    settings = _build(Settings, checked)
    if is_whole:
        problems.extend(_contradictions(settings))
    if problems:
        raise ConfigError(problems)
    written = {".".join(key): values.get(key, meta["default"]) for key, meta in leaves(Settings)}
    return Loaded(settings, written, {".".join(key): where for key, where in origins.items()}, tuple(outdated))


def leaves(kind: type, prefix: Key = ()) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """Every setting with the metadata that `setting` gave it, in order."""
    for one in dataclasses.fields(kind):
        key = (*prefix, one.name)
        if "section" in one.metadata:
            yield from leaves(one.metadata["section"], key)
        else:
            yield key, one.metadata


def sections(kind: type = Settings, prefix: Key = ()) -> Iterator[tuple[Key, str]]:
    """Every section with its sentence, outer before inner."""
    for one in dataclasses.fields(kind):
        if "section" in one.metadata:
            yield (*prefix, one.name), one.metadata["about"]
            yield from sections(one.metadata["section"], (*prefix, one.name))


_KNOWN: dict[Key, Mapping[str, Any]] = dict(leaves(Settings))
_SECTIONS: frozenset[Key] = frozenset(key for key, _ in sections())


def _schema(kind: type) -> Schema:
    return Schema(
        {
            Optional(one.name): _schema(one.metadata["section"]) if "section" in one.metadata else one.metadata["check"]
            for one in dataclasses.fields(kind)
        }
    )


_SCHEMA = _schema(Settings)


def _build(kind: type[T], checked: Mapping[str, Any]) -> T:
    return kind(
        **{
            one.name: _build(one.metadata["section"], checked.get(one.name, {}))
            if "section" in one.metadata
            else checked[one.name]
            for one in dataclasses.fields(kind)  # type: ignore[arg-type]  # every section is a dataclass
            if "section" in one.metadata or one.name in checked
        }
    )


def _read_file(
    file: Path, values: dict[Key, object], origins: dict[Key, str], problems: list[str], outdated: list[str]
) -> None:
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        remedy = (
            "be its owner, or root" if isinstance(error, PermissionError) else "name an existing file with --config"
        )
        problems.append(f"{file}: cannot be read: {error.strerror}; {remedy}")
        return
    except UnicodeDecodeError:
        problems.append(f"{file}: is not UTF-8; save it as UTF-8")
        return
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        # YAML's words may quote what was written, which may be a secret.
        why = _QUOTED.sub("...", error.problem or error.context or "")
        problems.append(f"{file}{line}: is not YAML: {why}; look at indentation and quotes")
        return
    except yaml.YAMLError as error:
        problems.append(f"{file}: is not YAML: {str(error).splitlines()[0]}")
        return
    if root is not None:
        _walk(file, root, (), values, origins, problems, outdated)


_QUOTED = re.compile(r"'.*'", re.DOTALL)


def _walk(
    file: Path,
    node: yaml.Node,
    key: Key,
    values: dict[Key, object],
    origins: dict[Key, str],
    problems: list[str],
    outdated: list[str],
) -> None:
    where = f"{file}:{node.start_mark.line + 1}"
    if not key or key in _SECTIONS:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return  # a section with everything commented out
        if not isinstance(node, yaml.MappingNode):
            name = ".".join(key) or "the file"
            problems.append(f"{where}: {name}: must hold settings as `name: value`, each on its line")
            return
        for name_node, child in node.value:
            name = str(name_node.value)
            below = (*key, name)
            line = f"{file}:{name_node.start_mark.line + 1}"
            below = _called_today(below, line, outdated)
            if below in origins:
                problems.append(f"{line}: {'.'.join(below)}: stands twice; the other is at {origins[below]}")
            elif below not in _KNOWN and below not in _SECTIONS:
                problems.append(f"{line}: {'.'.join(below)}: is no setting{_nearest(below)}")
            else:
                origins[below] = line
                _walk(file, child, below, values, origins, problems, outdated)
        return
    try:
        values[key] = _plain(node)
    except yaml.MarkedYAMLError:
        # Its words may quote what was written.
        problems.append(f"{where}: {'.'.join(key)}: has a YAML tag that means nothing here; write the value itself")


def _called_today(key: Key, where: str, outdated: list[str]) -> Key:
    """The setting of this name; one that had it in an older version is noted."""
    today = RENAMED.get(key)
    if today is None:
        return key
    outdated.append(f"{where}: {'.'.join(key)}: is called {'.'.join(today)} now; please write that")
    return today


class _Loader(yaml.SafeLoader):
    """Numbers and dates stay as they were written: a password of digits is text."""


def _as_written(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    return loader.construct_scalar(node)  # type: ignore[arg-type]  # refuses what is no scalar


for _tag in ("int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _as_written)


def _plain(node: yaml.Node) -> object:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _read_environment(
    environ: Mapping[str, str],
    values: dict[Key, object],
    origins: dict[Key, str],
    problems: list[str],
    outdated: list[str],
) -> None:
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == ENV_CONFIG or _SERVICE_LINK.search(name):
            continue
        key = _called_today(tuple(name.removeprefix(ENV_PREFIX).lower().split("__")), name, outdated)
        if key not in _KNOWN and key[-1].endswith("_file"):
            secret_key = _called_today((*key[:-1], key[-1].removesuffix("_file")), name, outdated)
            if secret_key in _KNOWN and _KNOWN[secret_key]["show"] is not None:
                key = secret_key
                if key in values and origins[key].startswith(ENV_PREFIX):
                    problems.append(f"{name}: {'.'.join(key)}: stands twice; the other is {origins[key]}")
                    continue
                try:
                    lines = Path(environ[name]).read_text(encoding="utf-8").split("\n")
                except (OSError, UnicodeDecodeError) as error:
                    why = getattr(error, "strerror", None) or "it is not UTF-8"
                    problems.append(f"{name}: the file it names cannot be read: {why}")
                    continue
                found = [line.strip() for line in lines if line.strip()]
                if not found:
                    problems.append(f"{name}: the file it names is empty; write the secret into it, or unset {name}")
                    continue
                values[key] = found if _KNOWN[key]["default"] == [] else "\n".join(found)
                origins[key] = name
                continue
        if key not in _KNOWN:
            problems.append(f"{name}: is no setting{_nearest(key, environment=True)}")
            continue
        values[key] = _from_environment(environ[name], _KNOWN[key])
        origins[key] = name


#: What Docker links and Kubernetes set for a service that is called whatsapp2mqtt.
_SERVICE_LINK = re.compile(r"^WHATSAPP2MQTT_(SERVICE_HOST|SERVICE_PORT|PORT)(_[A-Z0-9_]+)?$")


def _from_environment(written: str, metadata: Mapping[str, Any]) -> object:
    """Text as it is; a list may be written `a,b`, buttons also as JSON; nothing at all is the default."""
    if metadata["check"] is buttons and written.lstrip().startswith("["):
        with contextlib.suppress(yaml.YAMLError):
            node = yaml.compose(written, Loader=yaml.SafeLoader)
            return _plain(node) if node is not None else []
    if metadata["default"] == []:
        return [one.strip() for one in written.split(",") if one.strip()]
    return metadata["default"] if written == "" else written


def _nearest(key: Key, *, environment: bool = False) -> str:
    """The hint for an unknown name: the setting that reads most like it."""
    # A section cannot come from the environment.
    known = sorted(".".join(one) for one in (_KNOWN if environment else (*_KNOWN, *_SECTIONS)))
    dotted = ".".join(key)
    # The right word in the wrong place is the likeliest slip, a misspelling the next.
    same_word = [name for name in known if name.rpartition(".")[2] == key[-1]]
    close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.6) or same_word[:1]
    if not close:
        return "; config.example.yaml shows all of them"
    name = close[0]
    return f"; did you mean {ENV_PREFIX + name.upper().replace('.', '__') if environment else name}?"


def _nested(values: Mapping[Key, object]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in values.items():
        here = root
        for name in key[:-1]:
            here = here.setdefault(name, {})
        here[key[-1]] = value
    return root


def _problem(error: Invalid, values: Mapping[Key, object], origins: Mapping[Key, str]) -> str:
    key = tuple(str(part) for part in error.path)
    written = values.get(key)
    shown = "" if _KNOWN[key]["show"] is not None else f" {written!r}"
    return f"{origins.get(key, 'settings')}: {'.'.join(key)}:{shown} {error.error_message}"


def _contradictions(settings: Settings) -> Iterator[str]:
    """What is right by itself and wrong together."""
    webhook, mqtt = settings.webhook, settings.mqtt
    if not webhook.listen.is_loopback and not webhook.auth.is_set and not webhook.auth.anyone_may_post:
        yield (
            f"webhook.listen: {webhook.listen} can be reached from other machines, and nothing says who may post; "
            "add `webhook: {auth: {path_token: [<a secret>]}}`, or the variable "
            f"{ENV_PREFIX}WEBHOOK__AUTH__PATH_TOKEN (`whatsapp2mqtt secret` makes one), or listen on 127.0.0.1"
        )
    embedded = mqtt.embedded
    if mqtt.is_embedded and not embedded.listen.is_loopback and not (embedded.username and embedded.password):
        yield (
            f"mqtt.embedded.listen: {embedded.listen} can be reached from other machines; "
            "add mqtt.embedded.username and mqtt.embedded.password, or listen on 127.0.0.1"
        )
    if bool(embedded.username) != bool(embedded.password):
        yield "mqtt.embedded: username and password go together; add the one that is missing"
    for broker in settings.brokers:
        if (
            broker.password
            and not broker.is_encrypted
            and not is_loopback(broker.host)
            and not mqtt.allow_password_in_the_clear
            and not mqtt.is_embedded
        ):
            yield (
                f"mqtt.url: the password would go to {broker.host} unencrypted; "
                "use mqtts:// (or wss://), or say mqtt.allow_password_in_the_clear: true"
            )
    database = settings.database
    if database is not None and (host := database.unprotected):
        yield f"journal.url: {unprotected(host)}"
    if settings.journal.password is not None and database is None:
        yield "journal.password: is for postgresql:// only; leave it out"
    admin = settings.admin
    if admin.listen and not admin.listen.is_loopback and not admin.password and not admin.trusted_proxies:
        yield (
            f"admin.listen: {admin.listen} can be reached from other machines; add `admin: {{password: ...}}` "
            "(`whatsapp2mqtt password` prints the line), or listen on 127.0.0.1"
        )
    if (mqtt.tls.certificate is None) != (mqtt.tls.key is None):
        yield "mqtt.tls: certificate and key go together; add the one that is missing"
    if settings.journal.max_size < SMALLEST_JOURNAL:
        yield "journal.max_size: must be 8MiB or more"
    if settings.homeassistant.prefix == mqtt.base_topic:
        yield "homeassistant.prefix: is also mqtt.base_topic; Home Assistant's own topics need a place of their own"
    if not 5 <= mqtt.keepalive <= 3600:
        yield "mqtt.keepalive: must be from 5s to 1h"
