"""One connection to a broker, from its CONNECT to its end. The only home of paho.

A `Connection` is never used twice: a paho client that reconnects replays its own queue, stale retained state over
newer and a poison message for ever. What was not acknowledged is the publisher's to send again, on the next one.

paho's own loop is not used: the owner polls `fileno()` and calls `exchange()`, so that one thread owns everything
about the connection and acknowledgements are settled in batches. Publications and their acknowledgements go past paho,
through the `Line` that it takes for its socket.

Wire facts: MQTT 5.0 (sections 3.1, 3.2, 3.4) and MQTT 3.1.1 (sections 3.1, 3.2).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridge.config import BrokerUrl, Tls
from bridge.line import Ack, Line, publish_packet, publish_properties

#: Protocol levels by the name in settings.
PROTOCOLS = {"5": paho.MQTTv5, "3.1.1": paho.MQTTv311}

#: Seconds for TCP and TLS, and then for the CONNACK.
CONNECT_TIMEOUT = 3.0
CONNACK_TIMEOUT = 5.0

#: Packet identifiers of publications. Those below are left to paho, which numbers what we subscribe to.
FIRST_NUMBER, LAST_NUMBER = 1_000, 65_535

#: Reason codes that mean an answer to us, not to one message: not authorized, quota exceeded.
HOLDING_CODES = frozenset({0x87, 0x97})
#: CONNACK reason codes that say the broker does not speak this version.
WRONG_VERSION_CODES = frozenset({0x84, 0x01})
#: CONNACK reason codes about who we are: bad user name or password, not authorized, banned (in 5 and 3.1.1).
CREDENTIAL_CODES = frozenset({0x86, 0x87, 0x8A, 0x04, 0x05})


_OTHER_CA = "set mqtt.tls.ca to the file of the CA that signed it"
_OTHER_NAME = "write a name that stands in it in mqtt.url"
_OTHER_TIME = "renew it at the broker, or set this machine's clock"
#: What to do, by OpenSSL's code (x509_vfy.h): not yet, or no longer valid; another name, another address.
_CERTIFICATE_REMEDIES = {9: _OTHER_TIME, 10: _OTHER_TIME, 62: _OTHER_NAME, 64: _OTHER_NAME}


class ConnectionEndedError(Exception):
    """The connection is over, or never came about; the message says why, in words for the user.

    Attributes:
        refused: The broker answered and said no; trying again soon is of no use.
        other_version: It may work with the other protocol version.
        wrong_version: The broker said that it does not speak this one.
        hung_up: The broker ended a connection that it had accepted: what was in flight may be why.
    """

    def __init__(
        self,
        why: str,
        *,
        refused: bool = False,
        other_version: bool = False,
        wrong_version: bool = False,
        hung_up: bool = False,
    ) -> None:
        super().__init__(why)
        self.refused = refused
        self.other_version = other_version or wrong_version
        self.wrong_version = wrong_version
        self.hung_up = hung_up


@dataclass(frozen=True, slots=True)
class Message:
    """What the broker sent for one of our subscriptions."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker said in its CONNACK.

    Attributes:
        in_flight: Receive Maximum: how many QoS 1 publications may wait for their PUBACK.
        packet: Maximum Packet Size in bytes.
        retains: Whether retained messages are allowed.
    """

    in_flight: int = 65_535
    packet: int = 268_435_455
    retains: bool = True


class Connection:
    """A connection to a broker.

    Args:
        url: Where, and with which user and password.
        tls: For mqtts and wss.
        protocol: `5` or `3.1.1`.
        client_id: Our name at the broker.
        keepalive: Seconds; a broker that is silent for longer is taken for dead.
        will: Topic and payload that the broker publishes, retained, if the connection breaks; None for none.
        will_delay: Seconds that the broker waits before it publishes the will (MQTT 5 only): a connection of the same
            name that comes meanwhile takes this one's place, and nothing is published.
        largest: Bytes of a message to us; a larger one is read past, whatever it holds. None: all are taken.
    """

    def __init__(
        self,
        url: BrokerUrl,
        tls: Tls,
        *,
        protocol: str,
        client_id: str,
        keepalive: float,
        will: tuple[str, bytes] | None = None,
        will_delay: float = 0.0,
        largest: int | None = None,
    ) -> None:
        self.protocol = protocol
        self._lingers = round(will_delay) if protocol == "5" else 0
        self.limits = Limits()
        self.connected = False
        #: What arrived since the owner last looked; the owner empties them.
        self.acks: list[Ack] = []
        self.messages: list[Message] = []
        self.subscribed: list[int] = []
        #: Of these, those that the broker does not allow, or not all of.
        self.denied: list[int] = []
        self._url = url
        self._tls = tls
        self._keepalive = max(5, round(keepalive))
        self._ended: ConnectionEndedError | None = None
        self._opened = 0.0
        self._numbers = itertools.cycle(range(FIRST_NUMBER, LAST_NUMBER + 1))
        self._in_flight: set[int] = set()
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=PROTOCOLS[protocol],
            transport="websockets" if url.scheme in ("ws", "wss") else "tcp",
            reconnect_on_failure=False,
            **({} if protocol == "5" else {"clean_session": True}),
        )
        client.connect_timeout = CONNECT_TIMEOUT
        client.largest = largest
        if url.username is not None:
            client.username_pw_set(url.username, url.password)
        if will is not None:
            delayed = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=self._lingers) if self._lingers else None
            client.will_set(will[0], will[1], qos=1, retain=True, properties=delayed)
        # With this callback set, paho queues what it has to send until loop_write().
        client.on_socket_register_write = _nothing
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        self._client = client

    # --- life ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect TCP (and TLS, websocket), and send CONNECT; `connected` turns true when the CONNACK came.

        Raises:
            ConnectionEndedError: Nobody is there, or the TLS handshake failed.
        """
        url = self._url
        try:
            if url.is_encrypted:
                self._client.tls_set_context(_tls_context(self._tls))
            if url.scheme in ("ws", "wss"):
                self._client.ws_set_options(path=url.path)
            self._opened = time.monotonic()
            self._client.connect(
                url.host,
                url.port,
                keepalive=self._keepalive,
                clean_start=not self._lingers if self.protocol == "5" else paho.MQTT_CLEAN_START_FIRST_ONLY,
                # A will waits no longer than its session stands (MQTT 5.0, section 3.1.3.2.2).
                properties=_properties(PacketTypes.CONNECT, SessionExpiryInterval=self._lingers)
                if self._lingers
                else None,
            )
        except ssl.SSLCertVerificationError as error:
            raise ConnectionEndedError(
                f"the broker's certificate is not trusted: {error.verify_message.rstrip('.')}; "
                f"{certificate_remedy(error)}",
                refused=True,
            ) from error
        # IndexError: paho's reading of a websocket's answer, at a header without a space behind its colon.
        except (OSError, ValueError, IndexError, paho.WebsocketConnectionError) as error:
            self.close()
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ConnectionEndedError(
                f"no connection to {url}: {words}; see that it runs, and look at mqtt.url"
            ) from error

    def close(self, *, politely: bool = False, at_once: bool = False) -> None:
        """End the connection.

        Args:
            politely: With a DISCONNECT, so that the broker keeps the will to itself.
            at_once: Have the kernel forget what it was given and did not yet send.
        """
        client = self._client
        if at_once:
            with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(self.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.on_disconnect = None
        with contextlib.suppress(Exception):  # it is over, whatever paho makes of it
            if politely and self.connected:
                client.disconnect()
                client.loop_write()
            client._sock_close()  # noqa: SLF001  (paho has no public way to drop a connection)
        self.connected = False

    def fileno(self) -> int:
        sock = self._client.socket()
        return -1 if sock is None else int(sock.fileno())

    def poll(self, poller: select.poll) -> None:
        """Register with what we wait for: incoming data, and room for what is not yet sent."""
        line = self._client.line
        wants_write = self._client.want_write() or (line is not None and line.wants_write)
        poller.register(self.fileno(), select.POLLIN | (select.POLLOUT if wants_write else 0))

    def hear(self) -> None:
        """Read what came, without blocking, and send nothing."""
        client, line = self._client, self._client.line
        while self._ended is None and line is not None:
            has_more = line.fill()
            while line.has_more and client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass
            if line.acks:
                self._in_flight.difference_update([number for number, _ in line.acks])
                self.acks += line.acks
                line.acks.clear()
            if not has_more:
                break

    def exchange(self) -> None:
        """Read what came and send what waits, without blocking; look after the keep-alive.

        Raises:
            ConnectionEndedError: The connection is over; what came before its end is in `acks` and `messages`.
        """
        client, line = self._client, self._client.line
        # Reading comes first: a write that finds the line cut closes the socket, and with it what was not read yet.
        self.hear()
        if self._ended is None and client.want_write():
            client.loop_write()
        if self._ended is None and line is not None:
            try:
                line.flush()
            except OSError:
                self._ended = self._closed()
        client.loop_misc()
        if self._ended is None and client.socket() is None:
            self._ended = self._closed()
        if self._ended is None and not self.connected and time.monotonic() - self._opened > CONNACK_TIMEOUT:
            self._ended = ConnectionEndedError(
                f"{self._url} accepted the connection and does not answer", other_version=True
            )
        if self._ended is not None:
            raise self._ended

    # --- traffic ---------------------------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool,
        expiry: float | None = None,
        properties: tuple[tuple[str, str], ...] = (),
    ) -> int:
        """Queue a QoS 1 publication; returns the number that its `Ack` will bear.

        Args:
            topic: Its full topic.
            payload: Its content; empty takes a retained message away.
            retain: Whether the broker keeps it.
            expiry: Seconds after which the broker may forget it (MQTT 5 only).
            properties: User properties (MQTT 5 only).
        """
        line = self._client.line
        assert line is not None, "it is published before the connection is open"  # noqa: S101  (a caller's mistake)
        number = next(number for number in self._numbers if number not in self._in_flight)
        packed = publish_properties(expiry, properties, payload) if self.protocol == "5" else b""
        line.publish(publish_packet(number, topic, payload, retain=retain and self.limits.retains, properties=packed))
        self._in_flight.add(number)
        return number

    def subscribe(self, *topics: str, qos: int = 1) -> int:
        """Subscribe; returns the number that turns up in `subscribed` when the broker has answered.

        Args:
            topics: Filters.
            qos: The most with which the broker sends what it has for us.
        """
        _, number = self._client.subscribe([(topic, qos) for topic in topics])
        return number or 0

    # --- paho's callbacks: they only note, as an exception here would be lost or deadly ------------------------

    def _on_connect(self, _: Any, __: Any, ___: Any, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            self._ended = self._refusal(reason)
            return
        self.connected = True
        self.limits = Limits(
            in_flight=getattr(properties, "ReceiveMaximum", 65_535),
            packet=getattr(properties, "MaximumPacketSize", 268_435_455),
            retains=bool(getattr(properties, "RetainAvailable", 1)),
        )

    def _on_disconnect(self, _: Any, __: Any, ___: Any, reason: ReasonCode, ____: Any) -> None:
        if self._ended is None:
            # "Unspecified error" is paho's word for a line that was cut.
            self._ended = self._closed("" if str(reason) == "Unspecified error" else str(reason))

    def _on_message(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        with contextlib.suppress(UnicodeDecodeError):  # a topic that is none, of a broker that checks nothing
            self.messages.append(Message(message.topic, bytes(message.payload), message.retain))

    def _on_subscribe(self, _: Any, __: Any, number: int, reasons: list[ReasonCode], ___: Any) -> None:
        self.subscribed.append(number)
        if any(reason.is_failure for reason in reasons):
            self.denied.append(number)

    def _refusal(self, reason: ReasonCode) -> ConnectionEndedError:
        if reason.value in WRONG_VERSION_CODES:
            return ConnectionEndedError(f"{self._url} does not speak MQTT {self.protocol}", wrong_version=True)
        hint = ""
        if reason.value in CREDENTIAL_CODES:
            hint = (
                "; look at mqtt.username and mqtt.password"
                if self._url.username
                else "; set mqtt.username and mqtt.password"
            )
        return ConnectionEndedError(f"{self._url} refuses us: {str(reason).lower()}{hint}", refused=True)

    def _closed(self, why: str = "") -> ConnectionEndedError:
        if self.connected:
            silent = why == "Keep alive timeout"
            return ConnectionEndedError(
                f"{self._url} ended the connection ({why.lower() or 'closed'})", hung_up=not silent
            )
        hint = ""
        if self._url.is_encrypted and self._tls.certificate is None:
            hint = "; if it wants a client's certificate, set mqtt.tls.certificate and mqtt.tls.key"
        # Some brokers cut the line at a CONNECT of a version they do not know.
        return ConnectionEndedError(f"{self._url} closed the connection before it answered{hint}", other_version=True)


class _Client(paho.Client):
    """paho with a `Line` for its socket."""

    line: Line | None = None
    largest: int | None = None

    def _create_socket(self) -> Any:
        """Called by paho's connect(); what comes back is used like a socket (tests/unit/test_line.py holds this)."""
        self.line = Line(super()._create_socket(), self.largest)  # type: ignore[arg-type]
        return self.line


def certificate_remedy(error: ssl.SSLCertVerificationError) -> str:
    """What to do about a broker's certificate that is not trusted, by the reason."""
    return _CERTIFICATE_REMEDIES.get(error.verify_code, _OTHER_CA)


def _properties(packet: int, **values: int) -> Properties:
    found = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(found, name, value)
    return found


def _nothing(*_: Any) -> None:
    """Set as a callback whose presence is all that matters."""


def _tls_context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.certificate and tls.key:
            context.load_cert_chain(tls.certificate, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise ConnectionEndedError(f"mqtt.tls: a file cannot be used: {error}", refused=True) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # a distribution's Python may leave it to OpenSSL
    if tls.dangerously_accept_any_certificate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


__all__ = [
    "HOLDING_CODES",
    "Ack",
    "Connection",
    "ConnectionEndedError",
    "Limits",
    "MQTTErrorCode",
    "Message",
    "certificate_remedy",
]
