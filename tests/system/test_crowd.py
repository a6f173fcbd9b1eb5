"""As many connections as `webhook.connections` allows, and more: at a real bridge, with a small number of them."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Self

import pytest

from tests.system.conftest import MakeBridge
from tests.system.slow import HEAD, Honest
from tests.system.support import PATIENCE, Bridge, status
from tests.system.test_admin import ask, until

CONNECTIONS = 20
CALLBACK = json.dumps(status("wamid.crowd")).encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(CALLBACK)
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def bridge(make_bridge: MakeBridge) -> Bridge:
    return make_bridge(webhook__connections=str(CONNECTIONS), webhook__body_timeout="60s").start()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def connect(stack: ExitStack, bridge: Bridge, text: bytes = b"") -> socket.socket:
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE))
    sock.sendall(text)
    return sock


class Strangers:
    """Half as many connections again as there may be; who is hung up on comes again.

    Args:
        bridge: Whom they visit.
        text: What each of them says, and no more.
    """

    def __init__(self, bridge: Bridge, text: bytes) -> None:
        self.ended = 0
        self._bridge = bridge
        self._text = text
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with ExitStack() as stack:
            there: list[socket.socket] = []
            while not self._done.is_set():
                there += [connect(stack, self._bridge, self._text) for _ in range(CONNECTIONS * 3 // 2 - len(there))]
                for sock in select.select(there, [], [], 0.1)[0]:
                    sock.close()
                    there.remove(sock)
                    self.ended += 1


def test_further_connections_wait_until_there_is_room(bridge: Bridge, stack: ExitStack) -> None:
    """Without a bound, connections are the memory of strangers to use; a bound that refused would cost callbacks."""
    held = [connect(stack, bridge, REQUEST) for _ in range(CONNECTIONS)]
    further = connect(stack, bridge, REQUEST + CALLBACK)
    assert select.select([further, *held], [], [], 2)[0] == [], "all are held by senders that may post"
    answer = ask(bridge, "/readyz")
    assert answer.status == 503
    assert "webhook.connections" in answer.text
    held[0].sendall(CALLBACK)
    assert held[0].recv(1000).startswith(b"HTTP/1.1 200 ")
    held[0].close()
    assert further.recv(1000).startswith(b"HTTP/1.1 200 ")
    for sock in held[1:]:
        sock.sendall(CALLBACK)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 "), "none of them was lost"


@pytest.mark.parametrize("text", [b"", HEAD], ids=["who say nothing", "who say half a head"])
def test_strangers_make_way(bridge: Bridge, stack: ExitStack, text: bytes) -> None:
    """A few thousand connections, which cost nothing, would have each click wait for ten seconds or for ever."""
    known = connect(stack, bridge, REQUEST)
    with Strangers(bridge, text) as strangers, Honest(bridge) as honest:
        bridge.program.wait_log(
            "there are as many connections as webhook.connections allows; those that ask nothing are ended"
        )
        until(lambda: strangers.ended > 3 * CONNECTIONS and len(honest.answers) > 3)
    assert {code for code, _ in honest.answers} == {200}
    known.sendall(CALLBACK)
    assert known.recv(1000).startswith(b"HTTP/1.1 200 "), "who may post has the time of webhook.body_timeout"
    assert len(bridge.program.log) < 10


def test_strangers_who_promise_a_body_make_way(make_bridge: MakeBridge) -> None:
    """Where only a signature tells who posts, a head is anybody's."""
    bridge = make_bridge(
        webhook__connections=str(CONNECTIONS), webhook__body_timeout="60s", webhook__auth__meta_app_secret=SECRET
    ).start()
    with Strangers(bridge, REQUEST) as strangers, Honest(bridge, SECRET) as honest:
        until(lambda: strangers.ended > 3 * CONNECTIONS and len(honest.answers) > 3)
    assert {code for code, _ in honest.answers} == {200}


def test_in_a_crowd_of_its_own_a_sender_loses_nothing(bridge: Bridge, stack: ExitStack) -> None:
    """A proxy that keeps its connections may be hung up on between two requests, and in none."""
    resting = [connect(stack, bridge) for _ in range(CONNECTIONS)]
    for number in range(5 * CONNECTIONS):
        body = json.dumps(status(f"wamid.crowd.{number}")).encode()
        place = number % CONNECTIONS
        for _ in range(2):
            with suppress(ConnectionError):
                resting[place].sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                if came := resting[place].recv(1000):
                    break
            resting[place].close()
            resting[place] = connect(stack, bridge)
        assert came.startswith(b"HTTP/1.1 200 ")
