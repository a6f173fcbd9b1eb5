"""What `whatsapp2mqtt doctor` looks at: all that the bridge needs, each with a verdict and what to do.

It works whether the bridge runs or not, changes nothing but one retained topic of its own, which it takes away again,
and shows no secrets.
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
from bridge.mqtt import Connection, ConnectionEndedError
from bridge.ports import PortError, check_free
from bridge.running import HiddenError, NotRunningError, ask
from bridge.strength import weak_secrets
from bridge.topics import BRIDGE_DOCTOR

#: Bytes of free space below which there is little, and below which nothing more is stored.
LITTLE_SPACE, NO_SPACE = 200 * 2**20, 2 * 2**20
#: Seconds for a broker, or a web server, to answer.
PATIENCE = 5.0
#: Days before a certificate ends in which that is worth a word.
CERTIFICATE_DAYS = 14
#: adjtimex(2): the clock is not synchronised.
TIME_ERROR = 5


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
    bridge = _bridge(settings)
    yield bridge
    is_running = bridge.verdict is Verdict.OK
    yield from _journal(settings)
    yield _clock()
    yield from _webhook(settings, is_running=is_running)
    yield from _ports(settings, is_running=is_running)
    yield from _brokers(settings, is_running=is_running)


def _bridge(settings: Settings) -> Finding:
    try:
        if ask(settings, "healthz")[0] == 200:
            return Finding("bridge", Verdict.OK, "it runs, and answers")
    except HiddenError as error:
        words, _, remedy = str(error).partition("; ")
        return Finding("bridge", Verdict.WARNING, words, remedy)
    except NotRunningError:
        pass
    return Finding("bridge", Verdict.WARNING, "it does not run; this is looked at without it", "start it")


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


def _is_synchronised() -> bool | None:
    """Whether the kernel knows the clock to be kept right (adjtimex(2)); None: it cannot be asked."""
    try:
        # With `modes` zero it only reads; the structure has 208 bytes on 64-bit machines and fewer on others.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


# --- listeners ------------------------------------------------------------------------------------------------------


def _webhook(settings: Settings, *, is_running: bool) -> Iterator[Finding]:
    webhook = settings.webhook
    if is_running:
        listen = Address(webhook.listen.nearby, webhook.listen.port)
        found = _ask_webhook(f"http://{listen}{webhook.path}", None)
        yield found or Finding("webhook", Verdict.OK, f"it answers at http://{listen}{webhook.path}")
    if webhook.public_url is None:
        yield Finding(
            "public address",
            Verdict.SKIPPED,
            "webhook.public_url is not set",
            "set it to where your tunnel or proxy is found, and it is looked at, too",
        )
        return
    url = f"{webhook.public_url}{webhook.path}"
    if url.startswith("https:"):
        yield from _certificate("public address", *_host_of(url, 443), ssl.create_default_context())
    if is_running:
        found = _ask_webhook(url, ssl.create_default_context())
        if found is None:
            yield Finding("public address", Verdict.OK, f"the webhook answers at {webhook.public_url}")
        else:
            remedy = f"{found.remedy}; some networks hide one's own address from inside"
            yield Finding("public address", Verdict.WARNING, found.words, remedy)


def _ask_webhook(url: str, context: ssl.SSLContext | None) -> Finding | None:
    """What is wrong with the answer to a GET, which the webhook does not take; None: it is the webhook's."""
    host, port = _host_of(url, 443 if context else 80)
    try:
        connection = (
            http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
            if context and url.startswith("https:")
            else http.client.HTTPConnection(host, port, timeout=PATIENCE)
        )
        with contextlib.closing(connection):
            connection.request("GET", urlsplit(url).path)
            answer = connection.getresponse()
            body = answer.read(1_000)
    except (OSError, http.client.HTTPException) as error:
        why = str(error) or type(error).__name__
        return Finding("webhook", Verdict.TROUBLE, f"nothing answers at {url}: {why}", "look at the proxy or tunnel")
    if answer.status in (403, 404, 405, 429) and b'"hint"' in body:
        return None
    return Finding(
        "webhook",
        Verdict.TROUBLE,
        f"what answers at {url} ({answer.status}) is not the bridge",
        "have the proxy or tunnel pass this path on",
    )


def _host_of(url: str, port: int) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or port


def _ports(settings: Settings, *, is_running: bool) -> Iterator[Finding]:
    if is_running:
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


def _certificate(name: str, host: str, port: int, context: ssl.SSLContext) -> Iterator[Finding]:
    """Until when a server's certificate holds; nothing, if it does not answer (others say so)."""
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host) as line,
        ):
            end = ssl.cert_time_to_seconds(str((line.getpeercert() or {}).get("notAfter")))
    except ssl.SSLCertVerificationError as error:
        yield Finding(name, Verdict.TROUBLE, f"its certificate is not trusted: {error.verify_message}", "renew it")
        return
    except (OSError, ValueError):
        return
    days = (end - time.time()) / 86_400
    words = f"its certificate holds for {days:.0f} days"
    if days < CERTIFICATE_DAYS:
        yield Finding(name, Verdict.WARNING, words, "renew it")
    else:
        yield Finding(name, Verdict.OK, words)


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
            with contextlib.suppress(ssl.SSLError, OSError):
                yield from _certificate(self._name, self._url.host, self._url.port, _context(self._settings.mqtt.tls))
        try:
            connection = self._connected()
        except ConnectionEndedError as error:
            words, _, remedy = str(error).partition("; ")
            yield Finding(self._name, Verdict.TROUBLE, words, remedy or "see that it runs, and look at mqtt.url")
            return
        try:
            yield Finding(self._name, Verdict.OK, f"it lets the bridge in, by MQTT {connection.protocol}")
            yield self._rights(connection)
            yield from self._home_assistant(connection)
        except ConnectionEndedError as error:
            yield self._trouble(f"{error}, while it was tried")
        finally:
            connection.close(politely=True)

    def _trouble(self, words: str) -> Finding:
        base = self._settings.mqtt.base_topic
        remedy = f"allow the bridge to publish to {base}/#, and to read {self._topic}; see docs/security.md"
        return Finding(self._name, Verdict.TROUBLE, words, remedy)

    def _connected(self) -> Connection:
        """Connect, by the versions in their order."""
        failover = Failover((self._url,), self._settings.mqtt.protocols)
        failover.choose()
        while True:
            connection = Connection(
                self._url,
                self._settings.mqtt.tls,
                protocol=failover.protocol,
                client_id=f"whatsapp2mqtt-doctor-{os.getpid()}",
                keepalive=self._settings.mqtt.keepalive,
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

    def _rights(self, connection: Connection) -> Finding:
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

    def _home_assistant(self, connection: Connection) -> Iterator[Finding]:
        settings = self._settings.homeassistant
        name = "Home Assistant"
        if not settings.discovery:
            yield Finding(name, Verdict.SKIPPED, "it is told nothing, as homeassistant.discovery is false")
            return
        node = homeassistant.node(self._settings.mqtt.base_topic)
        topic = f"{settings.prefix}/sensor/{node}/doctor/config"
        code = _published(connection, topic, b"")  # takes nothing away: nothing ever stands there
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


def _published(connection: Connection, topic: str, payload: bytes) -> int | None:
    """The reason code with which the broker acknowledged a retained message; None: it did not."""
    number = connection.publish(topic, payload, retain=True)
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
