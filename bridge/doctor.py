"""What `whatsapp2mqtt doctor` looks at: all that the bridge needs, each with a verdict and what to do.

It works whether the bridge runs or not, changes nothing but one retained topic of its own, which it takes away again,
and shows no secrets. What else it publishes is empty, and on topics that are nobody's.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import http.client
import os
import secrets
import select
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from bridge import homeassistant
from bridge.clock import FIRST_RELEASE
from bridge.config import Address, BrokerUrl, Loaded, Settings, Tls
from bridge.failover import Failover
from bridge.journal import JournalError
from bridge.mqtt import Connection, ConnectionEndedError, certificate_remedy
from bridge.ports import PortError, check_free
from bridge.running import HiddenError, NotRunningError, SilentError, ask, is_held
from bridge.strength import weak_secrets
from bridge.topics import BRIDGE_DOCTOR, PROBES

#: Bytes of free space below which there is little, and below which nothing more is stored.
LITTLE_SPACE, NO_SPACE = 200 * 2**20, 2 * 2**20
#: Seconds for a broker, or a web server, to answer.
PATIENCE = 5.0
#: Days before a certificate ends in which that is worth a word.
CERTIFICATE_DAYS = 14
#: adjtimex(2): the clock is not synchronised.
TIME_ERROR = 5

#: What to do about a public certificate that is not trusted, by OpenSSL's code (x509_vfy.h): not yet valid, no longer;
#: signed by itself; the one that signed it was not sent along; another name, another address.
_OTHER_TIME = "renew it, or set this machine's clock"
_SIGNED_BY_ITSELF = "get one from a public authority, e.g. Let's Encrypt: senders trust none that is signed by itself"
_INCOMPLETE = "have the proxy send the whole chain (fullchain.pem) of a public authority"
_OTHER_NAME = "write a name that stands in it in webhook.public_url, or get one for this name"
_CERTIFICATE_REMEDIES = {
    9: _OTHER_TIME,
    10: _OTHER_TIME,
    18: _SIGNED_BY_ITSELF,
    19: _SIGNED_BY_ITSELF,
    20: _INCOMPLETE,
    21: _INCOMPLETE,
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}


class Verdict(StrEnum):
    """How something is."""

    OK = "ok"
    WARNING = "warning"
    TROUBLE = "trouble"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found; `remedy` is what to do, where something is wrong."""

    name: str
    verdict: Verdict
    words: str
    remedy: str = ""


def examine(loaded: Loaded, file: Path | None) -> Iterator[Finding]:
    """Look at everything, one after the other.

    Args:
        loaded: The settings, which can be read.
        file: Where they stand; None: defaults and environment.
    """
    settings = loaded.settings
    yield from _settings(settings, file)
    bridge, runs = _bridge(settings)
    yield bridge
    yield from _journal(settings)
    yield _clock()
    yield from _webhook(settings, is_running=bool(runs))
    yield from _ports(settings, is_running=runs)
    yield from _brokers(settings, is_running=bool(runs))


def _bridge(settings: Settings) -> tuple[Finding, bool | None]:
    """How the bridge is, and whether it runs; None: that cannot be seen."""
    name = "bridge"
    anew = "look at its log, and start it anew"
    holds = is_held(settings.journal_path)
    try:
        code, _ = ask(settings, "healthz")
    except HiddenError as error:
        words, _, remedy = str(error).partition("; ")
        return Finding(name, Verdict.WARNING, words, remedy), None
    except SilentError as error:
        if holds:
            words, _, _ = str(error).partition("; ")
            return Finding(name, Verdict.TROUBLE, f"it hangs: {words}", anew), True
    except NotRunningError:
        if holds and settings.admin.listen is None:
            return Finding(name, Verdict.OK, "it runs; with admin.listen off, its webhook alone can be asked"), True
        if holds:
            words = "its journal is in use, and it has no page to be asked: it starts, or a command is at work"
            remedy = "come again in a moment; if it stays so, look at the bridge's log"
            return Finding(name, Verdict.WARNING, words, remedy), None
    else:
        if code == 200:
            return Finding(name, Verdict.OK, "it runs, and answers"), True
        return Finding(name, Verdict.TROUBLE, f"it hangs: /healthz says {code}", anew), True
    words = "it does not run; all else is looked at without it"
    return Finding(name, Verdict.WARNING, words, "start it, or name the --config that it runs with"), False


# --- settings ------------------------------------------------------------------------------------------------------


def _settings(settings: Settings, file: Path | None) -> Iterator[Finding]:
    yield Finding("settings", Verdict.OK, f"{file} is right" if file else "defaults and environment are right")
    if file is not None and file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield Finding(
            "settings", Verdict.WARNING, f"{file} can be read by everybody on this machine", f"chmod o-rwx {file}"
        )
    auth = settings.webhook.auth
    if not auth.is_set:
        yield Finding(
            "authentication",
            Verdict.WARNING,
            "nothing says who may post",
            "set webhook.auth.path_token before the webhook is reached from outside; `whatsapp2mqtt secret` makes one",
        )
        return
    yield Finding("authentication", Verdict.OK, "it is said who may post")
    for weak in weak_secrets(auth):
        words, _, remedy = str(weak).partition("; ")
        yield Finding("authentication", Verdict.WARNING, words, remedy)


# --- the journal ----------------------------------------------------------------------------------------------------


def _journal(settings: Settings) -> Iterator[Finding]:
    if settings.database is not None:
        yield _database(settings)
        return
    from bridge.journal.care import refuse_network_file_system
    from bridge.journal.sqlite import SqliteJournal, check_sqlite, sqlite_version

    path = settings.journal_path
    folder = next(one for one in (path.parent, *path.parent.parents) if one.exists())
    try:
        check_sqlite()
        yield Finding("SQLite", Verdict.OK, f"{sqlite_version()} loses no rows")
        refuse_network_file_system(folder)
    except JournalError as error:
        words, _, remedy = str(error).partition("; ")
        yield Finding("journal", Verdict.TROUBLE, words, remedy)
        return
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        yield Finding(
            "journal",
            Verdict.TROUBLE,
            f"{path} cannot be written by this user",
            "set journal.url to another place, or look as the bridge's user",
        )
        return
    if path.exists():
        try:
            with SqliteJournal(path) as journal:
                journal.settled()
        except JournalError as error:
            words, _, remedy = str(error).partition("; ")
            yield Finding("journal", Verdict.TROUBLE, words, remedy)
            return
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding("journal", Verdict.WARNING, f"{path} can be read by others", f"chmod 600 {path}")
        yield Finding("journal", Verdict.OK, f"{path} can be read and written")
    else:
        yield Finding("journal", Verdict.OK, f"{path} can be made")
    yield _space(folder)


def _space(folder: Path) -> Finding:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    words = f"{free / 2**20:,.0f} MiB are free at {folder}"
    if free < NO_SPACE:
        return Finding("disk", Verdict.TROUBLE, f"{words}: callbacks are answered 503", "make room")
    if free < LITTLE_SPACE:
        return Finding("disk", Verdict.WARNING, words, "make room, before callbacks are answered 503")
    return Finding("disk", Verdict.OK, words)


def _database(settings: Settings) -> Finding:
    from bridge.journal.engine import engine_of

    try:
        with engine_of(settings).journal() as journal:
            journal.settled()
    except JournalError as error:
        words, _, remedy = str(error).partition("; ")
        return Finding("journal", Verdict.TROUBLE, words, remedy or "start the database, or mend journal.url")
    return Finding("journal", Verdict.OK, f"{settings.database} answers, and waits for its disk")


# --- the clock --------------------------------------------------------------------------------------------------------


def _adjtimex() -> int:
    """The state of the kernel's clock; -1: it does not say.

    Raises:
        OSError, AttributeError: The library does not have the call.
    """
    # With `modes` zero it only reads; the structure has 208 bytes on 64-bit machines and fewer on others.
    return int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512)))


def _clock(now: Callable[[], float] = time.time) -> Finding:
    if now() < FIRST_RELEASE:
        at = dt.datetime.fromtimestamp(now(), dt.UTC)
        return Finding(
            "clock", Verdict.TROUBLE, f"it says {at:%Y-%m-%d}, before this program was made", "set it: timedatectl"
        )
    if _is_synchronised() is False:
        return Finding(
            "clock",
            Verdict.WARNING,
            "nothing keeps it right, and clicks that seem too old do not fire",
            "switch on a time service: timedatectl set-ntp true",
        )
    return Finding("clock", Verdict.OK, "it is kept right" if _is_synchronised() else "it shows a time that can be")


def _is_synchronised(adjtimex: Callable[[], int] = _adjtimex) -> bool | None:
    """Whether the kernel knows the clock to be kept right (adjtimex(2)); None: it cannot be asked."""
    try:
        state = adjtimex()
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


# --- listeners ------------------------------------------------------------------------------------------------------


def _webhook(settings: Settings, *, is_running: bool) -> Iterator[Finding]:
    webhook = settings.webhook
    if is_running:
        listen = Address(webhook.listen.nearby, webhook.listen.port)
        url = f"http://{listen}{webhook.path}"
        strange = _ask_webhook(url)
        if strange is None:
            yield Finding("webhook", Verdict.OK, f"it answers at {url}")
        elif strange.is_silent:
            yield Finding("webhook", Verdict.TROUBLE, strange.words, "look at the bridge's log, and start it anew")
        else:
            remedy = "if webhook.listen was changed, start the bridge anew; `ss -ltnp` shows what listens there"
            yield Finding("webhook", Verdict.TROUBLE, strange.words, remedy)
    if webhook.public_url is None:
        yield Finding(
            "public address",
            Verdict.SKIPPED,
            "webhook.public_url is not set",
            "set it to where your tunnel or proxy is found, and it is looked at, too",
        )
        return
    url = f"{webhook.public_url}{webhook.path}"
    name = "public address"
    if url.startswith("https:"):
        try:
            yield _lasts(name, _days_left(*_host_of(url), ssl.create_default_context()))
        except ssl.SSLCertVerificationError as error:
            remedy = _CERTIFICATE_REMEDIES.get(error.verify_code, _SIGNED_BY_ITSELF)
            words = f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
            yield Finding(name, Verdict.TROUBLE, words, remedy)
            return
        except (OSError, ValueError):
            pass  # it does not answer, of which more below
    if is_running:
        hides = "some networks hide one's own address from inside"
        strange = _ask_webhook(url)
        if strange is None:
            yield Finding(name, Verdict.OK, f"the webhook answers at {webhook.public_url}")
        elif strange.is_silent:
            yield Finding(name, Verdict.WARNING, strange.words, f"look at the proxy or tunnel; {hides}")
        else:
            remedy = f"have the proxy or tunnel pass this path on; {hides}"
            yield Finding(name, Verdict.WARNING, strange.words, remedy)


@dataclass(frozen=True, slots=True)
class _Strange:
    """Not the webhook's answer: none at all, or another program's."""

    words: str
    is_silent: bool


def _ask_webhook(url: str) -> _Strange | None:
    """What is wrong with the answer to a GET, which the webhook does not take; None: it is the webhook's."""
    host, port = _host_of(url)
    try:
        connection = (
            http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=ssl.create_default_context())
            if url.startswith("https:")
            else http.client.HTTPConnection(host, port, timeout=PATIENCE)
        )
        with contextlib.closing(connection):
            connection.request("GET", urlsplit(url).path)
            answer = connection.getresponse()
            body = answer.read(1_000)
    except (OSError, http.client.HTTPException) as error:
        return _Strange(f"nothing answers at {url}: {str(error) or type(error).__name__}", is_silent=True)
    if answer.status in (403, 404, 405, 429) and b'"hint"' in body:
        return None
    return _Strange(f"what answers at {url} ({answer.status}) is not the bridge", is_silent=False)


def _host_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _ports(settings: Settings, *, is_running: bool | None) -> Iterator[Finding]:
    if is_running is None:
        yield Finding("port", Verdict.SKIPPED, "it may be the bridge itself that listens there")
    if is_running is not False:
        return
    wanted = [(settings.webhook.listen, "webhook.listen")]
    if settings.admin.listen is not None:
        wanted.append((settings.admin.listen, "admin.listen"))
    if settings.mqtt.is_embedded:
        wanted.append((settings.mqtt.embedded.listen, "mqtt.embedded.listen"))
    for address, setting in wanted:
        try:
            check_free(address, setting)
        except PortError as error:
            words, _, remedy = str(error).partition("; ")
            yield Finding("port", Verdict.TROUBLE, words, remedy)
        else:
            yield Finding("port", Verdict.OK, f"{setting}: {address} is free")


def _days_left(host: str, port: int, context: ssl.SSLContext) -> float:
    """Days for which a server's certificate still holds.

    Raises:
        ssl.SSLCertVerificationError: It is not trusted.
        OSError, ValueError: It does not answer, or not as it should.
    """
    with (
        socket.create_connection((host, port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as line,
    ):
        end = ssl.cert_time_to_seconds(str((line.getpeercert() or {}).get("notAfter")))
    return (end - time.time()) / 86_400


def _lasts(name: str, days: float) -> Finding:
    words = f"its certificate holds for {days:.0f} days"
    if days < CERTIFICATE_DAYS:
        return Finding(name, Verdict.WARNING, words, "renew it")
    return Finding(name, Verdict.OK, words)


# --- brokers --------------------------------------------------------------------------------------------------------


def _brokers(settings: Settings, *, is_running: bool) -> Iterator[Finding]:
    if settings.mqtt.is_embedded and not is_running:
        yield Finding("broker", Verdict.SKIPPED, "the embedded one starts with the bridge")
        return
    for url in settings.brokers:
        yield from _Probe(settings, url).findings()


class _Probe:
    """A look at one broker: login, and whether what is published there comes back."""

    def __init__(self, settings: Settings, url: BrokerUrl) -> None:
        self._settings = settings
        self._url = url
        self._name = f"broker {url}"
        self._topic = f"{settings.mqtt.base_topic}/{BRIDGE_DOCTOR}"

    def findings(self) -> Iterator[Finding]:
        if self._url.is_encrypted:
            yield from self._certificate()
        try:
            connection = self._connected(self._settings.mqtt.protocols)
        except ConnectionEndedError as error:
            words, _, remedy = str(error).partition("; ")
            yield Finding(self._name, Verdict.TROUBLE, words, remedy or "see that it runs, and look at mqtt.url")
            return
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close, politely=True)
            yield Finding(self._name, Verdict.OK, f"it lets the bridge in, by MQTT {connection.protocol}")
            try:
                frank = connection if connection.protocol == "5" else self._frank(stack)
                kept = self._keeps(connection)
                yield kept
                if kept.verdict is Verdict.OK and not self._settings.mqtt.is_embedded:
                    yield self._rights(frank)
                yield from self._home_assistant(connection, frank or connection)
            except ConnectionEndedError as error:
                yield self._trouble(f"{error}, while it was tried")

    def _certificate(self) -> Iterator[Finding]:
        """Until when its certificate holds; that it is not trusted, the connection itself will say."""
        tls = self._settings.mqtt.tls
        unchecked = "set mqtt.tls.dangerously_accept_any_certificate to false"
        try:
            yield _lasts(self._name, _days_left(self._url.host, self._url.port, _context(tls)))
        except ssl.SSLCertVerificationError as error:
            if tls.dangerously_accept_any_certificate:
                words = f"its certificate is not trusted ({error.verify_message.rstrip('.')}), and not checked"
                yield Finding(self._name, Verdict.WARNING, words, f"{certificate_remedy(error)}; then {unchecked}")
        except (OSError, ValueError):
            return
        else:
            if tls.dangerously_accept_any_certificate:
                yield Finding(self._name, Verdict.WARNING, "its certificate is trusted, and not checked", unchecked)

    def _trouble(self, words: str) -> Finding:
        base = self._settings.mqtt.base_topic
        remedy = f"allow the bridge to publish to {base}/#, and to read {self._topic}; see docs/security.md"
        return Finding(self._name, Verdict.TROUBLE, words, remedy)

    def _connected(self, protocols: tuple[str, ...], name: str = "doctor") -> Connection:
        """Connect, by the versions in their order."""
        failover = Failover((self._url,), protocols)
        failover.choose()
        while True:
            connection = Connection(
                self._url,
                self._settings.mqtt.tls,
                protocol=failover.protocol,
                client_id=f"whatsapp2mqtt-{name}-{os.getpid()}",
                keepalive=60.0,
            )
            try:
                connection.open()
                # One that does not answer ends by its own patience, which is shorter.
                _until(connection, partial(getattr, connection, "connected"), 60.0)
                return connection
            except ConnectionEndedError as error:
                connection.close()
                changes = failover.lost(
                    was_ready=False,
                    refused=error.refused,
                    wrong_version=error.wrong_version,
                    other_version=error.other_version,
                )
                if not changes or failover.choose() is None:
                    raise

    def _frank(self, stack: contextlib.ExitStack) -> Connection | None:
        """One on which the broker says what it does not allow, which is by MQTT 5 alone; None: it does not speak it."""
        if self._settings.mqtt.is_embedded:
            return None
        try:
            frank = self._connected(("5",), "doctor-5")
        except ConnectionEndedError:
            return None
        stack.callback(frank.close, politely=True)
        return frank

    def _keeps(self, connection: Connection) -> Finding:
        """Publish something retained, see it come back, and take it away."""
        if not connection.limits.retains:
            remedy = "switch them on (mosquitto: retain_available)"
            return Finding(self._name, Verdict.TROUBLE, "it keeps no retained messages", remedy)
        sent = secrets.token_hex(8).encode()
        code = _published(connection, self._topic, sent)
        if code is None:
            remedy = "look at its log; its disk may be full"
            return Finding(self._name, Verdict.TROUBLE, "it acknowledges nothing", remedy)
        if code >= 0x80:
            return self._trouble(f"it does not allow {self._topic} (0x{code:02X})")
        connection.subscribe(self._topic)
        came = _until(connection, lambda: any(one.payload == sent for one in connection.messages))
        _published(connection, self._topic, b"")
        if not came:
            return self._trouble(f"what is published to {self._topic} does not come back")
        return Finding(self._name, Verdict.OK, "what is published there is kept, and comes back")

    def _rights(self, frank: Connection | None) -> Finding:
        """Publish nothing, where updates go: the broker has no less to say about it, and subscribers need not care."""
        base = self._settings.mqtt.base_topic
        if frank is None:
            words = "it speaks MQTT 3.1.1 alone, by which nobody is told what is not allowed"
            return Finding(self._name, Verdict.SKIPPED, words, f"allow the bridge to publish to {base}/#")
        codes = {topic: _published(frank, f"{base}/{topic}", b"", retain=retain) for topic, retain in PROBES}
        denied = [topic for topic, code in codes.items() if code is None or code >= 0x80]
        if denied:
            return self._trouble(f"it does not allow {', '.join(denied)} below {base}/")
        return Finding(self._name, Verdict.OK, "the bridge may publish updates there")

    def _home_assistant(self, connection: Connection, frank: Connection) -> Iterator[Finding]:
        settings = self._settings.homeassistant
        name = "Home Assistant"
        if not settings.discovery:
            yield Finding(name, Verdict.SKIPPED, "it is told nothing, as homeassistant.discovery is false")
            return
        node = homeassistant.node(self._settings.mqtt.base_topic)
        topic = f"{settings.prefix}/sensor/{node}/doctor/config"
        code = _published(frank, topic, b"")  # takes nothing away: nothing ever stands there
        if code is not None and code >= 0x80:
            yield Finding(
                name,
                Verdict.TROUBLE,
                f"the broker does not allow {topic} (0x{code:02X})",
                f"allow the bridge to publish to {settings.prefix}/#, or set homeassistant.discovery to false",
            )
            return
        if self._heard():
            yield Finding(name, Verdict.OK, "it has said that it is there since the bridge started")
            return
        birth = f"{settings.prefix}/status"
        connection.subscribe(birth)
        _until(connection, lambda: any(one.topic == birth for one in connection.messages), seconds=1.0)
        said = next((one.payload for one in connection.messages if one.topic == birth), None)
        if said == b"online":
            yield Finding(name, Verdict.OK, f"it says that it is there, on {birth}")
        else:
            yield Finding(
                name,
                Verdict.WARNING,
                "it has not said on this broker that it is there, which it does when it starts",
                f"let its MQTT integration connect to this broker, with the discovery prefix {settings.prefix}; "
                "if it has done so, all is well",
            )

    def _heard(self) -> bool:
        with contextlib.suppress(NotRunningError, KeyError, TypeError):
            return ask(self._settings, "api/status")[1]["home_assistant"]["heard_at"] is not None
        return False


def _context(tls: Tls) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)


def _published(connection: Connection, topic: str, payload: bytes, *, retain: bool = True) -> int | None:
    """The reason code with which the broker acknowledged a message; None: it did not."""
    number = connection.publish(topic, payload, retain=retain)
    _until(connection, lambda: any(ack.number == number for ack in connection.acks))
    return next((ack.code for ack in connection.acks if ack.number == number), None)


def _until(connection: Connection, holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Exchange with the broker until this holds, or the time is over; whether it holds.

    Raises:
        ConnectionEndedError: It ended the connection.
    """
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        poller = select.poll()
        connection.poll(poller)
        poller.poll(50)
        connection.exchange()
    return holds()
