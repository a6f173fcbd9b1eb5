"""What docs/exposing.md says about nginx, Caddy and haproxy, tried with its very text."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.system.conftest import MakeBridge
from tests.system.proxies import NAMES, Proxy, Upstream
from tests.system.slow import HEAD
from tests.system.support import free_port, status

TOKEN = "a-token-that-nobody-may-read-in-a-log"
CALLBACK = json.dumps(status("wamid.m1")).encode()

Before = Callable[..., Proxy]


@pytest.fixture(params=NAMES)
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Before]:
    """Starts the proxy of the document before a port."""
    with ExitStack() as stack:
        yield lambda port, **changes: stack.enter_context(Proxy(request.param, tmp_path, port, **changes))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as found:
        yield found


def test_callbacks_come_through_and_nothing_else_does(proxy: Before, make_bridge: MakeBridge) -> None:
    """Whoever copies the snippet gets statuses, and shows nobody the page, the metrics or the health checks."""
    bridge = make_bridge(webhook__auth__path_token=TOKEN, webhook__auth__proxies="127.0.0.1").start()
    there = proxy(bridge.webhook)
    assert there.ask("POST", f"/webhook/{TOKEN}", CALLBACK).json["stored"] == 1
    for path in ("/", "/healthz", "/metrics", "/api/status", f"/webhook/{TOKEN}/x", "/webhook/../metrics", "/webhookx"):
        assert there.ask("GET", path).status in (400, 404), path
    assert there.ask("POST", "/webhook/another", CALLBACK).status == 404
    assert there.ask("GET", f"/webhook/{TOKEN}").status == 405


def test_nobody_poses_as_another_address(proxy: Before, make_bridge: MakeBridge) -> None:
    """Headers are anybody's to write: an address list that believes the sender's own lets everyone in."""
    bridge = make_bridge(webhook__auth__addresses="203.0.113.7", webhook__auth__proxies="127.0.0.1").start()
    there = proxy(bridge.webhook)
    for name in ("X-Forwarded-For", "X_Forwarded_For", "X-Forwarded_For", "x_forwarded-for", "Forwarded", "X-Real-IP"):
        assert there.ask("POST", "/webhook", CALLBACK, {name: "203.0.113.7"}).status == 403, name


def test_who_is_on_the_list_comes_in(proxy: Before, make_bridge: MakeBridge) -> None:
    """The other half: a snippet that hides the sender's address would lock WhatsApp out."""
    bridge = make_bridge(webhook__auth__addresses="127.0.0.1", webhook__auth__proxies="127.0.0.1").start()
    assert proxy(bridge.webhook).ask("POST", "/webhook", CALLBACK, {"X-Forwarded-For": "203.0.113.7"}).status == 200


def test_one_address_and_no_header_with_an_underscore_reaches_the_bridge(proxy: Before, upstream: Upstream) -> None:
    """To the bridge X_Hub_Signature_256 is X-Hub-Signature-256: two of a kind, of which one is the stranger's."""
    sent = {"X-Hub-Signature-256": "sha256=00", "X_Hub_Signature_256": "sha256=11", "X_Webhook-Token": "x"}
    there = proxy(upstream.port)
    there.ask("POST", "/webhook", CALLBACK, sent | {"X-Forwarded-For": "203.0.113.7, 198.51.100.1"})
    [came] = upstream.requests
    names = [name.lower() for name, _ in came["headers"]]
    assert not [name for name in names if "_" in name]
    assert names.count("x-hub-signature-256") == 1
    assert [value for name, value in came["headers"] if name.lower() == "x-forwarded-for"] == ["127.0.0.1"]
    assert came["body"] == CALLBACK


def test_the_secret_in_the_path_is_in_no_log(proxy: Before, upstream: Upstream) -> None:
    """Logs are kept for long, copied and shown; the token in them opens the gate."""
    there = proxy(
        upstream.port,
        nginx={"rate=100r/s": "rate=1r/m", "burst=200": "burst=4", "client_body_timeout 10s": "client_body_timeout 1s"},
        haproxy={"gt 1000": "gt 6", "timeout http-request 20s": "timeout http-request 1s"},
    )
    path = f"/webhook/{TOKEN}"
    secret = {"X-Webhook-Token": TOKEN, "Authorization": f"Bearer {TOKEN}"}
    assert there.ask("POST", path, CALLBACK, secret).status == 200
    assert there.ask("POST", path, b"x" * 3_200_000, secret).status in (413, 502, 0)
    with there.connect() as sock:  # hangs up in the middle, and lets the other side wait
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: hook.example.org\r\nContent-Length: 100\r\n\r\nx".encode())
    if there.name != "caddy":  # which lets the other side wait
        with there.connect() as sock:
            sock.sendall(f"POST {path} HTTP/1.1\r\nHost: hook.example.org\r\nContent-Length: 100\r\n\r\nx".encode())
            while sock.recv(1000):
                pass
    with there.connect() as sock:
        sock.sendall(f"BAD {path} \x00\r\nHost: : :\r\n\r\n".encode())
        sock.recv(1000)
    upstream.__exit__()
    assert there.ask("POST", path, CALLBACK, secret).status in (429, 502, 503)
    codes = [there.ask("POST", path, CALLBACK, secret).status for _ in range(6)]
    assert set(codes) <= {429, 502, 503}
    assert there.name == "caddy" or 429 in codes, "the limit was met, which also is logged"
    there.__exit__()
    assert there.logged.strip(), "it logs something at all"
    assert TOKEN not in there.logged


def test_a_body_that_is_too_large_is_refused_at_the_door(proxy: Before, upstream: Upstream) -> None:
    """The bridge refuses it as well; there it has crossed the wire already."""
    there = proxy(upstream.port)
    assert there.ask("POST", "/webhook", b"x" * (3 * 2**20)).status == 200
    before = len(upstream.requests)
    assert there.ask("POST", "/webhook", b"x" * (3 * 2**20 + 1)).status in (413, 502, 0)
    assert [one for one in upstream.requests[before:] if len(one["body"]) > 3 * 2**20] == []


@pytest.mark.parametrize("proxy", NAMES, indirect=True)
def test_who_drips_headers_is_cut_off(proxy: Before, make_bridge: MakeBridge) -> None:
    """A hundred connections that send a byte now and then must not keep WhatsApp out."""
    bridge = make_bridge().start()
    there = proxy(
        bridge.webhook,
        nginx={"client_header_timeout 10s": "client_header_timeout 1s"},
        caddy={"read_header 10s": "read_header 1s"},
        haproxy={"timeout http-request 20s": "timeout http-request 1s"},
    )
    assert _dripped(there, b"") in (b"", b"408", b"400")
    assert there.ask("POST", "/webhook", CALLBACK).json["stored"] == 1


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"], indirect=True)
def test_who_drips_a_body_is_cut_off_and_never_reaches_the_bridge(proxy: Before, upstream: Upstream) -> None:
    """The bridge is for whole requests: whoever drips should not even take a connection of it."""
    there = proxy(
        upstream.port,
        nginx={"client_body_timeout 10s": "client_body_timeout 1s"},
        haproxy={"timeout http-request 20s": "timeout http-request 1s"},
    )
    assert _dripped(there, b"Content-Length: 100\r\n\r\n{") in (b"", b"408", b"400")
    assert upstream.connections == 0


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"], indirect=True)
def test_one_address_has_so_many_connections(proxy: Before, upstream: Upstream) -> None:
    """One stranger could hold all that there are; nginx counts those whose request it has begun to read."""
    there = proxy(
        upstream.port,
        nginx={"limit_conn whatsapp_connections 50": "limit_conn whatsapp_connections 3"},
        haproxy={"sc_conn_cur(0) gt 50": "sc_conn_cur(0) gt 3"},
    )
    head = HEAD.replace(b"Host: a", b"Host: hook.example.org") + b"Content-Length: 100\r\n\r\n"
    with ExitStack() as stack:
        held = [stack.enter_context(there.connect("127.0.0.2")) for _ in range(3)]
        for sock in held:
            sock.sendall(head)
        came = b""
        with suppress(ConnectionError, ssl.SSLError), there.connect("127.0.0.2") as sock:
            sock.sendall(head)
            came = sock.recv(1000)
        assert came == b"" or came.startswith(b"HTTP/1.1 429 ")
        assert there.ask("POST", "/webhook", CALLBACK).status == 200, "from another address"
        for sock in held:
            sock.sendall(b"x" * 100)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 "), "so many are taken"


def _dripped(there: Proxy, rest: bytes) -> bytes:
    """The status, if there is one, with which a request that never ends is ended."""
    with there.connect() as sock:
        head = b"POST /webhook HTTP/1.1\r\nHost: hook.example.org\r\nContent-Type: application/json\r\n"
        sock.sendall(head + rest)
        said = b""
        while came := sock.recv(1000):
            said += came
    return said.split()[1] if said else b""


def test_a_flood_is_turned_away(proxy: Before, upstream: Upstream) -> None:
    """Guesses at the token by the thousand; what the limit is, the document says."""
    there = proxy(
        upstream.port, nginx={"rate=100r/s": "rate=1r/m", "burst=200": "burst=2"}, haproxy={"gt 1000": "gt 3"}
    )
    codes = [there.ask("POST", "/webhook", CALLBACK).status for _ in range(5)]
    assert codes == ([200] * 5 if there.name == "caddy" else [200, 200, 200, 429, 429])


def test_a_bridge_that_is_away_is_told_as_such(proxy: Before) -> None:
    """WhatsApp comes again after a 5xx, and never after a 200 or 404."""
    assert proxy(free_port()).ask("POST", "/webhook", CALLBACK).status in (502, 503)


def test_cloudflared_is_told_to_write_no_addresses() -> None:
    """The secret would stand in the system's log after each restart of the bridge; not tried, as no package has it."""
    exposing = (Path(__file__).parents[2] / "docs/exposing.md").read_text(encoding="utf-8")
    (configuration,) = re.findall(r"```yaml\n(tunnel: .*?)```", exposing, re.DOTALL)
    assert "\nloglevel: fatal\n" in configuration
