"""The bounds of one sender, at a real bridge: of size, number, depth and time; and that nothing else suffers by it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.system.conftest import MakeBridge
from tests.system.slow import HEAD, MODES, Dripping, Honest, SlowHttpTest, resident
from tests.system.support import PATIENCE, Bridge, Program, program, status

#: MB by which a process may have grown when all is over; its heap is not given back to the kernel at once.
GROWTH = 30.0


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(tmp_path_factory.mktemp("limits"), webhook__body_timeout="2s", webhook__max_body="100kB") as made:
        yield made.start()


def ask(bridge: Bridge, request: bytes) -> tuple[int, bytes]:
    """The status of what comes back until the other side hangs up, and all of it; 0 for nothing."""
    came = b""
    with socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE) as sock:
        try:
            sock.sendall(request)
            while more := sock.recv(65_536):
                came += more
        except ConnectionError:
            pass  # it hung up with some of the request still on its way
    return (int(came.split()[1]), came) if came else (0, b"")


def post(bridge: Bridge, body: bytes, *headers: bytes) -> tuple[int, bytes]:
    lines = [HEAD, *(header + b"\r\n" for header in headers)]
    return ask(bridge, b"".join(lines) + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


CALLBACK = json.dumps(status("wamid.limits")).encode()


def test_a_head_has_at_most_96_headers_and_about_32_kib(bridge: Bridge) -> None:
    """Heads are kept before anybody is known: a thousand of them without a bound are all the memory there is."""
    few, many = ([b"X-%d: y" % number for number in range(count)] for count in (90, 120))
    assert post(bridge, CALLBACK, *few)[0] == 200
    assert post(bridge, CALLBACK, *many)[0] == 431
    assert post(bridge, CALLBACK, b"X: " + b"y" * 30_000)[0] == 200
    assert post(bridge, CALLBACK, b"X: " + b"y" * 70_000)[0] in (431, 0)
    assert ask(bridge, b"POST /webhook/" + b"y" * 70_000 + b" HTTP/1.1\r\n")[0] in (414, 431, 0)


def test_a_body_has_at_most_max_body(bridge: Bridge) -> None:
    """Also one that does not say how long it is."""
    assert post(bridge, CALLBACK + b" " * (100_000 - len(CALLBACK)))[0] == 200
    assert post(bridge, CALLBACK + b" " * (100_001 - len(CALLBACK)))[0] == 413
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    assert ask(bridge, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 30 + b"0\r\n\r\n")[0] == 413
    # A length beside chunks binds nobody: only what comes counts.
    both = HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 30 + b"0\r\n\r\n"
    assert ask(bridge, both)[0] == 413


def test_a_body_has_at_most_body_timeout_however_it_drips(bridge: Bridge) -> None:
    """A byte now and then would hold its connection, and its memory, for ever."""
    with socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE) as sock:
        sock.sendall(HEAD + b'Content-Length: 100000\r\n\r\n{"x": "')
        sock.setblocking(False)
        came, give_up = b"", time.monotonic() + PATIENCE
        while not came and time.monotonic() < give_up:
            time.sleep(0.2)
            sock.send(b"x")
            with suppress(BlockingIOError):
                came = sock.recv(1000)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in came.lower()


def nested(levels: int) -> bytes:
    """A status with so many levels of arrays and objects."""
    inner = levels - 3  # the body, its list, the status
    return (
        b'{"statuses": [{"id": "wamid.deep%d", "status": "sent", "timestamp": "1660019986", "x": ' % levels
        + b"[" * inner
        + b"]" * inner
        + b"}]}"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (nested(33), "32"),
        (b"[" * 50_000 + b"]" * 50_000, "depth limit"),
        (json.dumps({"statuses": [0] * 10_001}).encode(), "10,000|10000"),
        (b'{"statuses": [{"id": "\xff\xfe", "status": "sent"}]}', "UTF-8"),
        (CALLBACK.decode().encode("utf-16"), "UTF-8|JSON"),
        (b'{"statuses": [{"id": "\xed\xa0\x80", "status": "sent"}]}', "UTF-8"),
        (b'{"statuses": [{"id": "\xc0\xaf", "status": "sent"}]}', "UTF-8"),
    ],
    ids=["33 levels", "50,000 levels", "10,001 entries", "no UTF-8", "UTF-16", "a surrogate in UTF-8", "overlong"],
)
def test_what_no_callback_looks_like_is_a_dead_letter(bridge: Bridge, body: bytes, reason: str) -> None:
    """WhatsApp would send it again for days; and what is beyond these bounds only wants to hurt a parser."""
    code, came = post(bridge, body)
    assert code == 200
    assert json.loads(came.partition(b"\r\n\r\n")[2]) == {"stored": 0, "duplicate": 0, "ignored": 0, "dead": 1}
    with closing(sqlite3.connect(f"file:{bridge.state}/journal.db?mode=ro", uri=True)) as database:
        [(why, kept)] = database.execute("SELECT reason, body FROM dead_letters ORDER BY id DESC LIMIT 1")
    assert re.search(reason, why), why
    assert kept == body


def test_what_is_within_these_bounds_is_taken(bridge: Bridge) -> None:
    """The bounds must not cost a callback."""
    assert b'"stored":1' in post(bridge, nested(32))[1]


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"x"])
def test_no_content_encoding_is_taken(bridge: Bridge, coding: bytes) -> None:
    """A kilobyte that unpacks to a gigabyte."""
    assert post(bridge, CALLBACK, b"Content-Encoding: " + coding)[0] == 415


def test_who_is_refused_is_hung_up_on(bridge: Bridge) -> None:
    """Strangers who stay, each with a request now and then, would take all connections that there are."""
    for request in (
        b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /webhook HTTP/1.1\r\nHost: a\r\n\r\n",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ):
        code, came = ask(bridge, request * 5)
        assert code in (404, 405, 415)
        assert came.count(b"HTTP/1.1 ") == 1


# --- before authentication --------------------------------------------------------------------------------------------


def test_nothing_is_on_disk_before_the_sender_is_known(make_bridge: MakeBridge) -> None:
    """Strangers would fill the disk, or wear it out."""
    bridge = make_bridge(
        webhook__auth__path_token="a-secret-of-the-path",
        webhook__auth__meta_app_secret="0123456789abcdef0123456789abcdef",
        log__level="debug",
    ).start()
    token = b"/webhook/a-secret-of-the-path"
    trace = bridge.folder / "trace"
    calls = (
        "trace=write,writev,pwrite64,pwritev,pwritev2,openat,creat,ftruncate,fallocate,mkdir,rename,renameat2,unlink"
    )
    watch = [program("strace"), "-f", "-y", "-s", "0", "-e", calls, "-o", trace, "-p", bridge.receiver]
    with Program(watch, bridge.folder, dict(os.environ)) as strace:
        strace.wait_said("attached")
        for _ in range(2):
            assert post(bridge, CALLBACK)[0] == 404
            signed = HEAD.replace(b"/webhook", token) + b"X-Hub-Signature-256: sha256=00\r\nConnection: close\r\n"
            for body in (CALLBACK, b"x" * 3_000_000):
                assert ask(bridge, signed + b"Content-Length: %d\r\n\r\n" % len(body) + body)[0] == 401
            chunks = b"100000\r\n" + b"x" * 0x100000 + b"\r\n0\r\n\r\n"
            assert ask(bridge, signed + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)[0] == 401
        strace.end(signal.SIGINT)
    done = trace.read_text().splitlines()
    assert [line for line in done if re.search(r" write\(2<", line)], "that it logs is seen: this sees what is written"
    assert not [line for line in done if re.search(r"O_CREAT|O_WRONLY|O_RDWR|creat\(|truncate|fallocate", line)]
    written = [line for line in done if re.search(r"\b(p?writev?2?|pwrite64)\((?!2<)\d+</", line)]
    assert not [line for line in written if not re.search(r"<(/dev/null|anon_inode:|pipe:|socket:)", line)]
    with closing(sqlite3.connect(f"file:{bridge.state}/journal.db?mode=ro", uri=True)) as database:
        for table in ("updates", "dead_letters"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# --- many of them -----------------------------------------------------------------------------------------------------


def test_two_hundred_who_drip_keep_nobody_out(bridge: Bridge) -> None:
    """A click stands in line behind strangers who say a byte a second."""
    before = resident(bridge.receiver), resident(bridge.pid)
    with Honest(bridge) as honest, Dripping(bridge, heads=70, bodies=70, readers=60) as dripping:
        give_up = time.monotonic() + PATIENCE
        while dripping.drip() and time.monotonic() < give_up:
            time.sleep(0.2)
        assert dripping.ended == 200, "each was hung up on at last"
    assert {code for code, _ in honest.answers} == {200}
    assert len(honest.answers) > 20
    assert resident(bridge.receiver) - before[0] < GROWTH
    assert resident(bridge.pid) - before[1] < GROWTH


def test_heads_without_an_end_take_no_memory(bridge: Bridge) -> None:
    """The head of a request is kept until it is whole, and nobody knows yet whose it is."""
    before = resident(bridge.receiver)
    with ExitStack() as stack, Honest(bridge) as honest:
        for _ in range(500):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE))
            sock.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):
                sock.sendall(HEAD + b"X: " + b"y" * 300_000)
        held = resident(bridge.receiver) - before
    assert held < GROWTH
    assert {code for code, _ in honest.answers} == {200}


def test_bodies_of_strangers_shut_nobody_out_and_have_a_bound(make_bridge: MakeBridge) -> None:
    """By its signature a sender is known only when its body is there: until then all are strangers, and one address."""
    secret = "0123456789abcdef0123456789abcdef"
    bridge = make_bridge(webhook__auth__meta_app_secret=secret, webhook__body_timeout="60s").start()
    before = resident(bridge.receiver)
    head = HEAD + b"X-Hub-Signature-256: sha256=00\r\nContent-Length: 3000000\r\n\r\n"
    with ExitStack() as stack, Honest(bridge, secret) as honest:

        def stranger(body: bytes) -> socket.socket:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE))
            with suppress(ConnectionError):  # of who is given up meanwhile
                sock.sendall(head + body)
            return sock

        wrong = HEAD + b"Connection: close\r\nX-Hub-Signature-256: sha256=00\r\nContent-Length: 2\r\n\r\n{}"
        assert [ask(bridge, wrong)[0] for _ in range(12)][-1] == 429
        promises = [stranger(b"") for _ in range(40)]
        bodies = [stranger(b"x" * 2_900_000) for _ in range(80)]
        held, came = 0.0, list[bytes]()
        give_up = time.monotonic() + PATIENCE
        while len(came) < 40 and time.monotonic() < give_up:
            held = max(held, resident(bridge.receiver) - before)
            for sock in select.select([*promises, *bodies], [], [], 1)[0]:
                with suppress(ConnectionError):
                    came.append(sock.recv(1000))
                (promises if sock in promises else bodies).remove(sock)
    assert held < 2 * 67.1, "64 MiB, and what the allocator adds; all of them are 232 MB"
    assert {code for code, _ in honest.answers} == {200}
    assert len(promises) == 40, "they take no room"
    assert {answer.split(b"\r\n")[0].split()[1] for answer in came} == {b"503"}
    assert all(b"retry-after: " in answer.lower() for answer in came)


def test_slowhttptest_keeps_nobody_out(bridge: Bridge) -> None:
    """The tool that everybody tries first."""
    before = resident(bridge.receiver), resident(bridge.pid)
    with ExitStack() as stack, Honest(bridge) as honest:
        tools = [stack.enter_context(SlowHttpTest(bridge, mode, connections=200, seconds=12)) for mode in MODES]
        noted = [tool.wait() for tool in tools]
    assert {code for code, _ in honest.answers} == {200}
    for notes in noted:
        assert max(int(one["Connected"]) + int(one["Closed"]) for one in notes) >= 150, "it was there at all"
        assert {one["Service Available"] for one in notes} == {"200"} or all(
            int(one["Service Available"]) for one in notes
        )
    assert resident(bridge.receiver) - before[0] < GROWTH
    assert resident(bridge.pid) - before[1] < GROWTH


def test_the_document_names_these_bounds() -> None:
    """Whoever sets up a proxy takes its bounds from ours."""
    document = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    for words in ("96 headers", "32 KiB", "32 levels", "10,000 entries", "body_timeout", "max_body", "connections"):
        assert words in document
