"""Who knocks without the right credentials: what it is answered, and what it cannot do to those who have them."""

from __future__ import annotations

import html
import http.client
import itertools
import json
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bridge.throttle import FAILURES
from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, children, command_line, free_port, status
from tests.system.test_admin import ask, samples

TOKEN = "a-token-that-nobody-may-read-anywhere"


def send(bridge: Bridge, path: str, bodies: list[bytes], statuses: Counter[int]) -> None:
    """Post one after the other on one connection, as vendors do; on another where the bridge hung up."""
    connection = http.client.HTTPConnection("127.0.0.1", bridge.webhook, timeout=PATIENCE)
    try:
        for body in bodies:
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (ConnectionError, http.client.HTTPException):
                # It answers who is turned away without reading the body, and hangs up.
                statuses[0] += 1
                connection.close()
            else:
                statuses[answer.status] += 1
    finally:
        connection.close()


def test_a_stranger_at_the_same_address_keeps_no_callback_out(make_bridge: MakeBridge) -> None:
    """Behind a tunnel all come from one address: a stranger who knocks without end would shut out the sender."""
    bridge = make_bridge(webhook__auth__path_token=TOKEN).start()
    strangers: Counter[int] = Counter()
    senders: Counter[int] = Counter()
    bodies = [json.dumps(status(f"m{number}")).encode() for number in range(2_000)]
    threads = [
        *(threading.Thread(target=send, args=(bridge, "/webhook/wrong", bodies[:1_000], strangers)) for _ in range(2)),
        threading.Thread(target=send, args=(bridge, f"/webhook/{TOKEN}", bodies[:1_000], senders)),
        threading.Thread(target=send, args=(bridge, f"/webhook/{TOKEN}", bodies[1_000:], senders)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert senders == {200: 2_000}
    assert strangers.keys() <= {0, 404, 429}
    found = samples(bridge)
    assert strangers[429] > 100
    # A minute may have ended meanwhile; and the bridge itself asks, when it starts.
    assert strangers[404] <= 2 * FAILURES
    assert strangers[429] <= found["whatsapp2mqtt_webhook_limited_total", "stranger"] <= strangers[429] + strangers[0]
    assert found["whatsapp2mqtt_webhook_limited_total", "sender"] == 0
    lines = [line for line in bridge.program.log if "turned away" in line["event"]]
    assert 1 <= len(lines) <= 2
    assert {line["address"] for line in lines} == {"127.0.0.1"}


# --- the secret in the path -----------------------------------------------------------------------------------------


def raw(bridge: Bridge, request: bytes) -> bytes:
    """All that is answered to these bytes, until the other side hangs up."""
    with socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE) as link:
        link.sendall(request)
        answer = b""
        try:
            while some := link.recv(65_536):
                answer += some
        except ConnectionResetError:
            pass
        return answer


METHODS = ("POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
#: Paths that are not the webhook's, by accident or by intent.
ELSEWHERE = (
    "/nothing",
    "/",
    "/webhook",
    "/webhook/",
    "/webhook/wrong",
    "/webhook/" + "x" * 5_000,
    f"/webhook/{TOKEN}/",
    f"/webhook/{TOKEN}/more",
    f"/webhook//{TOKEN}",
    f"//webhook/{TOKEN}",
    f"/webhook/../webhook/{TOKEN}",
    f"/webhook/{TOKEN[:-1]}",
    f"/webhook/{TOKEN}x",
    f"/webhook/{TOKEN.upper()}",
    f"/webhook/{TOKEN}%00",
    f"/webhook/{TOKEN}%0a",
    f"/webhook/%20{TOKEN}",
    f"/webhook/{TOKEN};a=b",
    f"/webhook/{TOKEN}%3Fa=b",
    f"/webhook/{TOKEN}%252F",
    "/webhook/%ff%fe",
    "/webhook/%",
    "/webhook/%zz",
    f"/webhook?{TOKEN}",
    f"/WEBHOOK/{TOKEN}",
    "http://elsewhere.example/webhook/wrong",
    "*",
)


def test_a_wrong_token_is_byte_for_byte_any_other_path(make_bridge: MakeBridge) -> None:
    """Told apart by one byte, a guesser would know that the webhook is there, and only the token is wrong."""
    bridge = make_bridge(
        webhook__auth__path_token=TOKEN,
        webhook__auth__header_token="a-second-secret",
        webhook__auth__meta_verify_token="a-verify-token",
        webhook__auth__proxies="127.0.0.1",
    ).start()
    addresses = (f"203.0.{number >> 8}.{number & 255}" for number in itertools.count())
    bodies = (
        (b"Content-Type: application/json\r\nContent-Length: 2\r\n", b"{}"),
        (b"", b""),
        (b"Content-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n", b"{}"),
        (b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
        (b"Content-Type: application/json\r\nX-Webhook-Token: a-second-secret\r\nContent-Length: 0\r\n", b""),
    )
    for method, (head, body) in itertools.product(METHODS, bodies):
        found = {}
        for path in ELSEWHERE:
            line = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {next(addresses)}\r\nConnection: close\r\n"
            answer = raw(bridge, line.encode() + head + b"\r\n" + body)
            found[path] = re.sub(rb"\r\ndate: [^\r]*", b"", answer)
        assert found["/nothing"].startswith(b"HTTP/1.1 404 ")
        assert found == dict.fromkeys(ELSEWHERE, found["/nothing"])


def outputs(bridge: Bridge, *options: object) -> Iterator[tuple[str, str]]:
    """All that commands and the page say, with what each is called."""
    for command in (
        ("check",),
        ("status",),
        ("status", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("healthy",),
        ("dead-letters", "list"),
        ("dead-letters", "show", "1"),
        ("clean",),
        ("simulate", "sent"),
        ("simulate", "--url", f"http://127.0.0.1:{bridge.webhook}/else", "sent"),
        ("simulate", "--url", f"http://127.0.0.1:{free_port()}", "sent"),
        ("simulate", "--url", "http://[", "sent"),
        ("tail", "--count", "3"),
        ("replay", "--since", "1h", "--dry-run"),
    ):
        name, *more = command
        words = [name, more.pop(0)] if name == "dead-letters" else [name]
        said = bridge.run(*words, *options, *more)
        yield " ".join(command), said.stdout + said.stderr
    pages = ["/", "/live", "/messages", "/messages/1", "/updates/1", "/buttons", "/dead-letters", "/dead-letters/1"]
    for path in (*pages, "/setup", "/api/status", "/metrics", "/healthz", "/readyz", "/nothing"):
        yield path, ask(bridge, path).text


def processes(bridge: Bridge) -> Iterator[tuple[str, str]]:
    """What everybody, or the same user, sees of the bridge's processes."""
    pids = [bridge.pid, *children(bridge.pid)]
    pids += [below for pid in pids[1:] for below in children(pid)]
    for pid in pids:
        yield f"command line of {pid}", command_line(pid)
        yield f"environment of {pid}", Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield f"name of {thread}", (thread / "comm").read_text()


def test_the_token_in_the_path_is_nowhere(make_bridge: MakeBridge) -> None:
    """Logs, metrics and screenshots are kept and shown; who reads the token in one of them can open the gate."""
    bridge = make_bridge(log__level="debug")
    file = bridge.folder / "settings.yaml"
    token = "T0ken" + "abcdEFGH1234" * 3
    file.write_text(
        f"webhook: {{body_timeout: 500ms, max_body: 100kB, auth: {{path_token: [{token}, {token[::-1]}]}}}}\n"
        "log: {level: debug}\n"
    )
    notified = bridge.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notified))
        systemd.setblocking(False)
        bridge.environment["NOTIFY_SOCKET"] = str(notified)
        bridge.start("--config", str(file))
        with bridge.listen("#") as subscriber:
            provoke(bridge, f"/webhook/{token}")
            subscriber.wait("whatsapp/m1/status")
            subscriber.wait("whatsapp/bridge/health")
            found = dict(outputs(bridge, "--config", file)) | dict(processes(bridge))
            found |= {f"topic {number}": f"{one.topic} {one.payload}" for number, one in enumerate(subscriber.heard)}
        bridge.program.end()
        said = b""
        while True:
            try:
                said += systemd.recv(65_536) + b"\n"
            except BlockingIOError:
                break
    found |= {"log": bridge.program.said, "systemd": said.decode()}
    found |= {str(path): path.read_bytes().decode("latin-1") for path in bridge.state.rglob("*") if path.is_file()}
    # That something was said at all, and by whom it should be.
    assert "READY=1" in found["systemd"]
    assert {200, 400, 404, 405, 408, 411, 413, 415, 429} <= {
        int(code) for code in re.findall(r'answers_total{code="(\d+)"} [1-9]', found["/metrics"])
    }
    assert '"level": "debug"' in found["log"]
    assert '"stored":1' in found["simulate sent"]
    assert "the bridge answered" in found[f"simulate --url http://127.0.0.1:{bridge.webhook}/else sent"]
    assert "The webhook" in found["/setup"]
    assert "no callback" in found["dead-letters show 1"]
    # Of each half alone, too: cut short, it is as good as the whole.
    leaks = [
        name for name, text in found.items() if token[:20] in text or token[::-1][:20] in text or token[-20:] in text
    ]
    assert leaks == []


def test_setup_shows_it_to_whoever_asks_there(make_bridge: MakeBridge) -> None:
    """It is the one place where the address can be copied from; and no other place may be taken for it."""
    bridge = make_bridge(webhook__auth__path_token=TOKEN).start()
    before = ask(bridge, "/setup").text
    assert TOKEN not in before
    assert "webhook.auth.path_token: the secret there looks easy to guess" in html.unescape(before)
    origin = bridge.program.wait_log("starting")["page"].rstrip("/")
    assert TOKEN in ask(bridge, "/setup", "POST", Origin=origin).text


def provoke(bridge: Bridge, path: str) -> None:
    """Everything that can go wrong at the right path, and at nearly the right one."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    json_head = head + b"Content-Type: application/json\r\n"
    assert bridge.post(status("m1"), path=path).status == 200
    assert bridge.post(b"no callback", path=path).status == 200
    assert bridge.post(b'{"statuses": [{}]}', path=path).status == 200
    for request in (
        f"GET {path}?hub.verify_token=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
        head + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}",  # 415
        json_head + b"Connection: close\r\n\r\n",  # 411
        json_head + b"Content-Length: 999999\r\nConnection: close\r\n\r\n",  # 413
        json_head + b"Content-Length: 10\r\nConnection: close\r\n\r\n{",  # 408
        json_head + b"Content-Length: +2\r\nConnection: close\r\n\r\n{}",
        json_head + b"Content-Length: 2\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}",
        json_head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        f"POST {path} HTTP/9.9\r\n\r\n".encode(),
        f"POST {path}\x00 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"POST {path}\r\n\r\n".encode(),
        f"\x16\x03\x01{path}\r\n\r\n".encode("latin-1"),
    ):
        raw(bridge, request)
    # Hangs up in the middle of a body.
    with socket.create_connection(("127.0.0.1", bridge.webhook), timeout=PATIENCE) as link:
        link.sendall(json_head + b"Content-Length: 10\r\n\r\n{")
    for number in range(2 * FAILURES):
        raw(bridge, f"POST {path}{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    # Dies, and is started anew.
    os.kill(bridge.receiver, 9)
    for _ in range(600):
        try:
            if bridge.post(status("m2"), path=path).status == 200:
                break
        except (OSError, http.client.HTTPException):
            pass
