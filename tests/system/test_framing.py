"""Ambiguous requests, by raw socket: straight to the bridge, and through the proxies of docs/exposing.md.

None may end elsewhere than its sender's connection and the programs on its way agree on: what a stranger hides in one
would be taken for a request of the proxy itself, or be put before the next sender's.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.system.framings import (
    FIRST,
    FRAMINGS,
    HIDDEN,
    HOST,
    LISTED,
    NEXT,
    OTHERS,
    STRANGER,
    callback,
    whole,
)
from tests.system.proxies import Proxy, Upstream
from tests.system.support import PATIENCE, Bridge

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"

#: No request here is slow; one that never ends for the program that reads it is cut off soon.
SOON = {
    "nginx": {
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 10s": "client_body_timeout 1s",
    },
    "haproxy": {"timeout http-request 20s": "timeout http-request 1s"},
}
#: All senders of a proxy on one connection to the bridge, which is the most that a smuggler could wish for.
SHARED = {
    "nginx": {
        "server {": "upstream bridge {{ server 127.0.0.1:{port}; keepalive 1; }}\nserver {{",
        "proxy_pass http://127.0.0.1:{port};": "proxy_pass http://bridge;",
    },
    "haproxy": {"retries 0": "retries 0\n    http-reuse always"},
}
WAYS = ("directly", "nginx", "haproxy", "nginx, shared", "haproxy, shared")

Connect = Callable[[str], socket.socket]


def proxy(way: str, folder: Path, port: int) -> Proxy:
    """The proxy of this name, as the document sets it up, but for times."""
    name, _, shared = way.partition(", ")
    changes = dict(SOON[name])
    if shared:
        changes |= {
            old.format(port=port) if "port" in old else old: new.format(port=port) for old, new in SHARED[name].items()
        }
    folder = folder / way.replace(", ", "-")
    folder.mkdir()
    return Proxy(name, folder, port, **{name: changes})


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """One that takes callbacks from `LISTED` alone, and believes proxies on this machine."""
    with ExitStack() as stack:
        made = Bridge(
            tmp_path_factory.mktemp("bridge"),
            webhook__auth__addresses=LISTED,
            webhook__auth__proxies="127.0.0.1",
            webhook__body_timeout="1s",
        )
        stack.push(made.__exit__)
        yield made.start()


@pytest.fixture(scope="module")
def ways(bridge: Bridge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Connect]]:
    """How to connect to the bridge, from an address of this machine."""

    def directly(source: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE, source_address=(source, 0))

    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        proxies = {way: stack.enter_context(proxy(way, folder, bridge.webhook)) for way in WAYS[1:]}
        yield {"directly": directly} | {way: found.connect for way, found in proxies.items()}


@dataclass(frozen=True)
class Outcome:
    """What became of an ambiguous request and of a plain one behind it.

    Attributes:
        answers: The status of each answer.
        stored: Which of the callbacks in them were taken for such.
        is_dead: Whether the ambiguous request was taken, and is no callback.
    """

    answers: tuple[int, ...]
    stored: frozenset[str]
    is_dead: bool

    def __str__(self) -> str:
        first, *others = self.answers
        return f"{first}, then {others[0]}" if others else f"{first}, hung up"


numbers = itertools.count()


def send(bridge: Bridge, connect: Connect, source: str, spelling: str) -> Outcome:
    """Send it, and at once a plain request behind it; read until the other side hangs up."""
    number = next(numbers)
    ids = {name: f"{name[:5]}{number:04}" for name in (FIRST, HIDDEN, NEXT)}
    text = spelling + whole(NEXT, "Connection: close")
    for name, mine in ids.items():
        text = text.replace(name, mine)
    came = b""
    with connect(source) as sock:
        sock.sendall(text.encode("latin-1"))
        try:
            while more := sock.recv(65_536):
                came += more
        except ConnectionResetError:
            pass  # what it did not want to read was still on its way
    updates = ids_in(bridge, f"SELECT topic FROM updates WHERE topic GLOB '*{number:04}/status'")
    dead = ids_in(bridge, f"SELECT id FROM dead_letters WHERE instr(body, CAST('{ids[FIRST]}' AS BLOB))")
    return Outcome(
        tuple(statuses(came)),
        frozenset(name for name, mine in ids.items() if f"{mine}/status" in updates),
        is_dead=bool(dead),
    )


def statuses(came: bytes) -> Iterator[int]:
    """The status of each final answer in what came."""
    while came:
        head, _, rest = came.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        assert match, came
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        came = rest[int(length[1]) if length else 0 :]
        if int(match[1]) >= 200:
            yield int(match[1])


def ids_in(bridge: Bridge, query: str) -> set[str]:
    """The first column of what is in the journal."""
    with closing(sqlite3.connect(f"file:{bridge.state}/journal.db?mode=ro", uri=True)) as database:
        return {row[0] for row in database.execute(query)}


class Victim:
    """A sender that may post, on one connection all the time."""

    def __init__(self, connect: Connect) -> None:
        self._connection = http.client.HTTPConnection(HOST, timeout=PATIENCE)
        self._connection.sock = connect(LISTED)
        # Head and body are sent one after the other: the second is not to wait for the first's acknowledgement.
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def post(self) -> tuple[int, object]:
        body = callback(f"victim-{next(numbers)}")
        self._connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())


OWN_ANSWER = (200, {"stored": 1, "duplicate": 0, "ignored": 0, "dead": 0})
SPELLINGS = {
    **{f"{framing.name} {n}": one for framing in FRAMINGS for n, one in enumerate(framing.spellings, 1)},
    **OTHERS,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_nothing_is_taken_for_anothers_request(
    bridge: Bridge, ways: dict[str, Connect], way: str, spelling: str
) -> None:
    """A stranger's click would open the gate in the name of the proxy, or of whoever is next on its connection."""
    with Victim(ways[way]) as victim:
        assert victim.post() == OWN_ANSWER
        stranger = send(bridge, ways[way], STRANGER, spelling)
        assert victim.post() == OWN_ANSWER
        assert not stranger.stored
        assert not stranger.is_dead
        assert all(status >= 400 for status in stranger.answers), stranger

        # Neither does anything of it come in where its sender may post: it is part of something else.
        own = send(bridge, ways[way], LISTED, spelling)
        assert victim.post() == OWN_ANSWER
        assert HIDDEN not in own.stored
    for seen in (stranger, own):
        assert 1 <= len(seen.answers) <= 2, "an answer to what was hidden"
    # What was answered is what was stored, and nothing else.
    assert (FIRST in own.stored) != own.is_dead or own.answers[0] != 200
    assert own.answers[0] == 200 or not (FIRST in own.stored or own.is_dead)
    assert (NEXT in own.stored) == (own.answers[1:] == (200,))


@pytest.mark.parametrize("way", ["nginx, shared", "haproxy, shared"])
def test_senders_share_a_connection_where_these_tests_say_so(tmp_path: Path, way: str) -> None:
    """Otherwise nobody would ever meet what somebody else left behind, and the tests above would prove little."""
    with Upstream() as upstream, proxy(way, tmp_path, upstream.port) as there:
        for _ in range(3):
            assert there.ask("POST", "/webhook", b"{}").status == 200
        assert len(upstream.requests) == 3
        assert upstream.connections < 3


def test_the_document_says_what_happens(bridge: Bridge, ways: dict[str, Connect]) -> None:
    """Whoever chooses a proxy by the table would choose by what once was."""
    rows = ["| | directly | behind nginx | behind haproxy |", "|---|---|---|---|"]
    for framing in FRAMINGS:
        cells = []
        for way in WAYS[:3]:
            seen = {str(send(bridge, ways[way], LISTED, one)) for one in framing.spellings}
            cells.append(" or ".join(sorted(seen)))
        rows.append(f"| {framing.name} | {' | '.join(cells)} |")
    table = "\n".join(rows)
    assert f"\n\n{table}\n\n" in DOCUMENT.read_text(), f"docs/security.md should say\n{table}"


def test_there_are_sixteen() -> None:
    """The document says so."""
    assert len({framing.name for framing in FRAMINGS}) == 16
