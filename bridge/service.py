"""The main process: who owns which thread, in which order things start and stop, and what ends the process.

granian supervises the receiver processes from here; the publisher, the embedded broker and the heartbeat are threads.
A thread that ends unasked takes the process down with its reason: whoever supervises us starts it anew, and the
journal holds everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.net import SocketHolder  # type: ignore[attr-defined]  # not in its list of exports
from granian.server import MPServer

from bridge import __version__, logs, receiver, systemd
from bridge.broker import BrokerMissingError, EmbeddedBroker, find_program, is_a_broker
from bridge.clock import Clock
from bridge.config import Address, ConfigError, Loaded, Settings, state_directory
from bridge.deeds import deeds_of
from bridge.discovery import Discovery
from bridge.homeassistant import Plan
from bridge.journal import JournalError, NotStoredError
from bridge.journal.engine import Engine, engine_of
from bridge.keeper import Keeper
from bridge.loglevel import LogLevel, hold_signals
from bridge.meter import Meters
from bridge.model import Kind
from bridge.ports import BACKLOG, PortError, bound, check_free, listen
from bridge.privacy import Veil, masked
from bridge.publisher import Publisher, PublisherSettings
from bridge.pulse import Pulse
from bridge.requests import Requests
from bridge.running import answers
from bridge.secret import veil_of
from bridge.strength import weak_secrets
from bridge.tap import tap_of
from bridge.wakeup import Doorbell

if TYPE_CHECKING:
    from bridge.admin.listener import Listener
    from bridge.replicas import Group

log = structlog.get_logger()

#: Seconds that a receiver has for the requests it is answering when the bridge stops.
RECEIVER_PATIENCE = 4
#: Seconds that the publisher's thread has to end.
PUBLISHER_PATIENCE = 5.0
#: Milliseconds that a connection may take for the head of a request, or rest between two requests.
HEADER_PATIENCE = 10_000
#: Bytes of requests that a connection may have waiting, and so the largest head: with all connections, 32 MiB.
HEAD = 32 * 2**10
#: Seconds between two heartbeats, unless systemd's watchdog wants more of them.
HEARTBEAT = 5.0


class StartError(Exception):
    """The bridge cannot start as it is set up; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What listens where, for whoever asked to be told; `page` is the address for a browser, or None."""

    webhook: Address
    broker: str
    page: str | None


def run(loaded: Loaded, on_ready: Callable[[Ready], None] | None = None) -> int:
    """Run the bridge until a signal ends it; returns the exit code.

    Args:
        loaded: The settings.
        on_ready: Called once when callbacks are taken.

    Raises:
        StartError, ConfigError, JournalError: It cannot start; nothing was left behind.
    """
    settings = loaded.settings
    logs.configure(settings.log.level, settings.log.format)
    hold_signals()
    for weak in weak_secrets(settings.webhook.auth):
        log.warning(
            "a secret of the webhook looks easy to guess; `whatsapp2mqtt secret` makes a better one",
            setting=weak.setting,
            number=weak.number,
        )
    program = _embedded_program(settings)
    _make_state_directory()
    with alone(settings.journal_path):
        listener = _inherited_listener(settings.webhook.listen) or _listen(settings.webhook.listen)
        bound(listener)
        if program is not None:
            _check_broker_free(settings.mqtt.embedded.listen)
        engine = engine_of(settings)
        alarm = engine.prepare()
        veil = veil_of(settings, make=True)
        return _Bridge(loaded, engine, program, on_ready, alarm, listener, veil).serve()


class _Server(MPServer):
    """granian's supervisor with a socket of ours, or of systemd's, that stops with a delay.

    In a socket of ours connections wait while a receiver is started anew, in one of systemd's also while the bridge is;
    and it bounds them (`bridge.ports`). granian has no setting for it, but keeps such a socket itself where each worker
    cannot open its own; the same attributes are used here.

    With a delay nobody is refused either where a load balancer stands before several bridges: it has time to see that
    this one is about to go, and turns to the others.
    """

    def __init__(self, *arguments: Any, listener: socket.socket, drain: float, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._listener = listener
        self._drain = drain
        self.is_draining = False

    def signal_handler_interrupt(self, *signal: Any) -> None:
        """A first signal begins to drain; a second one, or a failure, ends it at once."""
        if signal and self._drain and not self.is_draining:
            self.is_draining = True
            threading.Thread(target=self._drained, name="drain", daemon=True).start()
            return
        super().signal_handler_interrupt(*signal)  # type: ignore[no-untyped-call]

    def _drained(self) -> None:
        log.info("draining: callbacks are still taken, and /readyz says no", seconds=self._drain)
        time.sleep(self._drain)
        super().signal_handler_interrupt()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        self._listener.setblocking(False)  # as those that granian makes
        self._listener.set_inheritable(True)
        self._sfd = self._listener.fileno()  # type: ignore[assignment]  # first None there
        self._shd = SocketHolder(self._sfd, False, BACKLOG)  # type: ignore[assignment,call-arg]  # likewise
        self._sso = self._listener


class _Bridge:
    """The running bridge: made once, served once."""

    def __init__(
        self,
        loaded: Loaded,
        engine: Engine,
        program: Path | None,
        on_ready: Callable[[Ready], None] | None,
        alarm: str | None,
        listener: socket.socket,
        veil: Veil | None,
    ) -> None:
        self._settings = settings = loaded.settings
        self._engine = engine
        self._veil = veil
        self._on_ready = on_ready
        self._listener = listener
        self._failure: str | None = None
        self._threads: dict[str, threading.Thread] = {}
        self._stopping = threading.Event()
        self._bell_path = settings.journal_path.with_suffix(".bell")
        self._doorbell = Doorbell(self._bell_path)
        self._journal = engine.journal(durable=False)
        self._group = _group(settings)
        self._publisher: Publisher | Group = self._group or Publisher(
            _publisher_settings(settings),
            self._journal,
            self._doorbell,
            Clock(),
            discovery=Discovery(plan(settings), self._journal),
        )
        self._kept = engine.journal(durable=False)
        self._keeper = Keeper(
            settings.retain,
            settings.journal,
            self._kept,
            settings.journal_path if settings.database is None else None,
            Clock(),
            is_connected=lambda: self._publisher.connected,
            announce=self._publisher.announce,
            mark_made=self._publisher.clear_expired,
            alarms=(alarm,) if alarm else (),
            leads=lambda: self._group is None or self._group.leads,
            members=lambda: self._group.members if self._group is not None else (),
        )
        self._broker = (
            EmbeddedBroker(settings.mqtt.embedded, state_directory() / "broker", program) if program else None
        )
        self._meters = Meters(settings.webhook.workers)
        self._pulse = Pulse(self._meters, self._receiver_pids)
        self._log_level = LogLevel(settings.log.level, self._meters, self._receiver_pids)
        self._requests = self._publisher.requests = self._take_requests()
        self._page = self._listen(loaded)
        self._server = self._granian()

    def serve(self) -> int:
        with self._doorbell, self._group or contextlib.nullcontext():
            try:
                self._server.serve(
                    target_loader=self._receiver,  # type: ignore[arg-type]  # RSGI also takes objects
                    wrap_loader=False,
                )
            except SystemExit as ended:  # granian's word for receivers that die again and again
                self._failure = self._failure or f"the receivers ended (exit code {ended.code})"
                self._stop()
        if self._failure:
            log.error("the bridge ends", why=self._failure)
            return 1
        with contextlib.suppress(JournalError, NotStoredError), self._journal:
            self._journal.close_in_order()
        log.info("stopped")
        return 0

    # --- receivers ---------------------------------------------------------------------------------------------

    def _granian(self) -> _Server:
        webhook = self._settings.webhook
        # A receiver starts as a new interpreter: what this process knows (the broker's password), it does not.
        multiprocessing.set_start_method("spawn", force=True)
        _forget_main()
        server = _Server(
            "whatsapp2mqtt",
            listener=self._listener,
            drain=webhook.drain,
            address=webhook.listen.host,
            port=webhook.listen.port,
            interface=Interfaces.RSGI,
            loop=Loops.uvloop if find_spec("uvloop") else Loops.asyncio,
            workers=webhook.workers,
            backlog=BACKLOG,
            backpressure=webhook.connections,
            # Of HTTP/1.1 alone it ends connections that say nothing; and nobody who sends callbacks needs another.
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=HEADER_PATIENCE, max_buffer_size=HEAD),
            websockets=False,
            log_level=LogLevels.error,
            log_dictconfig=logs.GRANIAN_LOGGING,
            respawn_failed_workers=True,
            workers_kill_timeout=RECEIVER_PATIENCE,
        )
        server.on_startup(self._start)
        server.on_shutdown(self._stop)
        return server

    @property
    def _receiver(self) -> Callable[..., receiver.Receiver]:
        settings = receiver.ReceiverSettings(
            webhook=self._settings.webhook,
            journal=self._engine,
            doorbell=self._bell_path,
            encode_dots=self._settings.mqtt.encode_dots,
            log=self._settings.log,
            buttons=self._settings.buttons,
            veil=self._veil,
            meters=self._meters,
            tap=tap_of(self._settings) if self._page is not None else None,
        )
        return functools.partial(receiver.load, settings, os.getpid())

    def _end_who_hangs(self, seconds: float) -> None:
        """End a receiver that hangs: granian starts another in its place."""
        if (pid := self._pulse.look(seconds)) is None:
            return
        log.error("a receiver hangs; it is ended and started anew", pid=pid)
        for worker in list(self._server.wrks):
            if worker.inner.pid == pid:
                worker.inner.kill()  # not the worker's own `kill`, after which granian would start no other

    def _receiver_pids(self) -> list[int]:
        return [worker.inner.pid for worker in list(self._server.wrks) if worker.inner.pid is not None]

    # --- requests by MQTT ------------------------------------------------------------------------------------------

    def _take_requests(self) -> Requests:
        settings = self._settings.mqtt.requests
        deeds = deeds_of(self._settings, self._publisher.reconnect, self._keeper, self._log_level)
        return Requests(
            deeds, frozenset(what for what in deeds if getattr(settings, what)), answer=self._publisher.answer
        )

    # --- the page --------------------------------------------------------------------------------------------------

    def _listen(self, loaded: Loaded) -> Listener | None:
        """The listener of the page; None where it is off."""
        settings = loaded.settings
        listen = settings.admin.listen
        if listen is None:
            return None
        try:
            _check_free(listen, "admin.listen")
        except StartError as error:
            if "admin.listen" in loaded.origins:
                raise
            # Nobody asked for it, and callbacks are worth more than the page.
            log.warning("there is no page", why=str(error))
            return None
        # Only now: who has it off need not carry its libraries.
        from bridge.admin.listener import Listener
        from bridge.admin.status import Sources

        sources = Sources(
            loaded,
            self._publisher,
            self._keeper,
            self._meters,
            self._pulse,
            self._engine.browsable(),
            lambda: self._server.is_draining,
        )
        return Listener(listen, sources, settings.journal_path.with_suffix(".admin"))

    # --- threads -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        log.info(
            "starting",
            version=__version__,
            webhook=f"http://{self._settings.webhook.listen}{self._settings.webhook.path}",
            broker=", ".join(map(str, self._settings.brokers)) + (" (embedded)" if self._broker is not None else ""),
            journal=str(self._settings.journal_place),
            page=self._page.url if self._page is not None else None,
        )
        if self._settings.mqtt.tls.dangerously_accept_any_certificate:
            log.warning(
                "the broker's certificate is not checked: anyone on the way can read and change all",
                setting="mqtt.tls.dangerously_accept_any_certificate",
            )
        if self._broker is not None:
            self._thread("broker", self._broker.run)
        self._thread("publisher", self._publish)
        self._thread("keeper", self._keep)
        self._thread("requests", self._requests.run)
        self._thread("log level", self._log_level.run)
        if self._page is not None:
            self._thread("page", self._page.run)
        self._thread("heartbeat", self._beat)

    def _publish(self) -> None:
        if self._broker is not None:
            self._broker.await_start()
        if self._group is not None:
            self._group.run()
            return
        with self._journal:
            self._publisher.run()

    def _keep(self) -> None:
        with self._kept:
            self._keeper.run()

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except Exception as error:
                self._fail(f"{name}: {error}", error)
            else:
                if not self._stopping.is_set():
                    self._fail(f"{name}: ended unasked")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _fail(self, why: str, error: Exception | None = None) -> None:
        log.error("a thread ended", why=why, exc_info=error)
        self._failure = self._failure or why
        self._server.signal_handler_interrupt()

    def _stop(self) -> None:
        """After the last request was answered: publish what is in flight, then let the broker go."""
        if self._stopping.is_set():
            return
        systemd.notify(STOPPING=1)
        self._stopping.set()
        self._keeper.stop()
        self._publisher.stop()
        self._requests.stop()
        if self._page is not None:
            self._page.stop()
        for name in ("keeper", "publisher", "page"):
            if name in self._threads:
                self._threads[name].join(PUBLISHER_PATIENCE)
        if self._broker is not None:
            self._broker.stop()
            if "broker" in self._threads:
                self._threads["broker"].join(PUBLISHER_PATIENCE)

    # --- signs of life -------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Tell systemd (and whoever asked) that callbacks are taken, and then that all threads live."""
        while not answers(self._settings.webhook.listen):
            if self._stopping.wait(0.02):
                return
        log.info("ready", webhook=f"http://{self._settings.webhook.listen}{self._settings.webhook.path}")
        systemd.notify(READY=1)
        if self._on_ready is not None:
            page = self._page.url if self._page is not None else None
            self._on_ready(Ready(self._settings.webhook.listen, str(self._publisher.broker), page))
        interval = min(HEARTBEAT, (systemd.watchdog_interval() or HEARTBEAT * 3) / 3)
        while not self._stopping.wait(interval):
            self._end_who_hangs(interval)
            if self._publisher.is_alive():
                status = "connected" if self._publisher.connected else (self._publisher.trouble or "connecting")
                systemd.notify(WATCHDOG=1, STATUS=masked(status))


def _lifetimes(settings: Settings) -> dict[Kind, float]:
    return {Kind.STATUS: settings.retain.status, Kind.BUTTON: settings.retain.button}


def _publisher_settings(settings: Settings) -> PublisherSettings:
    mqtt = settings.mqtt
    return PublisherSettings(
        brokers=settings.brokers,
        at_random=mqtt.pick == "random",
        tls=mqtt.tls,
        protocols=mqtt.protocols,
        client_id=settings.client_id,
        keepalive=mqtt.keepalive,
        base_topic=mqtt.base_topic,
        max_age=settings.events.max_age,
        retain=_lifetimes(settings),
        info={"version": __version__, "settings": {"events.max_age": settings.events.max_age}},
    )


def _group(settings: Settings) -> Group | None:
    """This bridge as one of several; None: its journal is its own."""
    if settings.database is None:
        return None
    # Only now: the driver is there only for who asked for it.
    from bridge.replicas import Group

    chosen = settings.mqtt.client_id
    return Group(
        _publisher_settings(settings),
        None if chosen == "auto" else chosen,
        settings.replica,
        settings.database,
        plan(settings),
    )


def plan(settings: Settings) -> Plan:
    """What Home Assistant is to be shown, from the settings."""
    return Plan(
        enabled=settings.homeassistant.discovery,
        prefix=settings.homeassistant.prefix,
        base_topic=settings.mqtt.base_topic,
        version=__version__,
        link=settings.homeassistant.link,
        buttons=settings.homeassistant.buttons,
        max_buttons=settings.homeassistant.max_buttons,
        encode_dots=settings.mqtt.encode_dots,
    )


def _embedded_program(settings: Settings) -> Path | None:
    if not settings.mqtt.is_embedded:
        return None
    if settings.mqtt.protocol == "5":
        raise ConfigError(["mqtt.protocol: the embedded broker speaks 3.1.1 only; say auto, or use another broker"])
    try:
        return find_program()
    except BrokerMissingError as error:
        raise StartError(f"{error} (this is {platform.machine()})") from error


def _make_state_directory() -> None:
    try:
        state_directory().mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StartError(
            f"the state directory {state_directory()} cannot be made: {error.strerror}; "
            "set STATE_DIRECTORY or XDG_STATE_HOME to a place that can be written"
        ) from error


@contextlib.contextmanager
def alone(journal: Path, command: str = "") -> Iterator[None]:
    """Hold the journal's lock: two bridges on one journal would publish everything twice.

    Args:
        journal: Its file.
        command: Who asks for it, for the words; a bridge if empty.

    Raises:
        StartError: Somebody else holds it.
        JournalError: Its folder cannot be written.
    """
    path = journal.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield
            finally:
                _hand_over(path.parent)
    except BlockingIOError:
        if command:
            raise StartError(f"{command}: a bridge or a command uses {journal}; stop it, and try again") from None
        raise StartError(
            f"journal.url: another bridge uses {journal}; stop it, or give this one its own journal"
        ) from None
    except PermissionError as error:
        raise JournalError(
            f"journal {journal}: its folder cannot be written; be the user it belongs to, "
            "or set journal.url to another place"
        ) from error


def _hand_over(folder: Path) -> None:
    """Give what root made in the state directory of a service's user to that user, who could not use it otherwise."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0 or folder != state_directory():
        return
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(f"{place}/{name}").st_uid == 0:
                    os.lchown(f"{place}/{name}", owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def broker_for(settings: Settings) -> Iterator[None]:
    """Have the embedded broker run, where it is the one that is used, for a command that needs it."""
    program = _embedded_program(settings)
    if program is None:
        yield
        return
    logs.configure("warning", settings.log.format)
    _check_broker_free(settings.mqtt.embedded.listen)
    broker = EmbeddedBroker(settings.mqtt.embedded, state_directory() / "broker", program)
    thread = threading.Thread(target=broker.run, name="broker", daemon=True)
    thread.start()
    try:
        broker.await_start()
        yield
    finally:
        broker.stop()
        thread.join(PUBLISHER_PATIENCE)


def _inherited_listener(listen: Address) -> socket.socket | None:
    """The socket of systemd's that the receivers serve, if there is one.

    Raises:
        StartError: It is another one than the settings say, whose safety was checked.
    """
    try:
        listener = systemd.inherited_socket()
    except OSError as error:
        raise StartError(f"systemd's socket: {error}; whatsapp2mqtt.socket must have one ListenStream") from error
    if listener is None:
        return None
    found = Address(*listener.getsockname()[:2]) if listener.family != socket.AF_UNIX else "a path"
    if found != listen:
        raise StartError(
            f"webhook.listen: is {listen}, but systemd listens on {found}; make ListenStream in whatsapp2mqtt.socket "
            "the same: `whatsapp2mqtt install-service` does"
        )
    return listener


def _listen(address: Address) -> socket.socket:
    try:
        return listen(address, "webhook.listen")
    except PortError as error:
        raise StartError(str(error)) from None


def _check_free(address: Address, setting: str) -> None:
    try:
        check_free(address, setting)
    except PortError as error:
        raise StartError(str(error)) from None


def _check_broker_free(address: Address) -> None:
    try:
        _check_free(address, "mqtt.embedded.listen")
    except StartError as error:
        if not is_a_broker(address):
            raise
        raise StartError(
            f"mqtt.embedded.listen: a broker runs at {address} already; "
            f"to use that one, set `mqtt.url: mqtt://{address}`"
        ) from error


def _forget_main() -> None:
    """Keep receivers from importing the command line: a new interpreter would run this one's main module first."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    if hasattr(main, "__file__"):
        del main.__file__
