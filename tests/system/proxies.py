"""Proxies as docs/exposing.md sets them up: its very text, but for ports, paths and, where a test says so, times."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.system.support import PATIENCE, Answer, Program, free_port, program

DOCUMENT = Path(__file__).parents[2] / "docs" / "exposing.md"
HOST = "hook.example.org"
NAMES = ("nginx", "caddy", "haproxy")


def snippet(language: str) -> str:
    """The one block of this language in the document."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def certify(folder: Path) -> None:
    """Make `hook.crt`, `hook.key`, and `hook.pem` with both."""
    subprocess.run(
        [
            *(
                program("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"),
            *("-keyout", "hook.key", "-out", "hook.crt"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    (folder / "hook.pem").write_text((folder / "hook.crt").read_text() + (folder / "hook.key").read_text())


class Proxy:
    """A running proxy with TLS before an upstream on this machine.

    Args:
        name: One of `NAMES`.
        folder: For its files.
        upstream: The port of what stands behind it.
        changes: What to replace in the document's text, each of which must be there.
    """

    def __init__(self, name: str, folder: Path, upstream: int, **changes: dict[str, str]) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.port = free_port()
        certify(self.folder)
        text = _replaced(snippet({"caddy": "caddyfile"}.get(name, name)), {"127.0.0.1:8080": f"127.0.0.1:{upstream}"})
        text = _replaced(text, changes.get(name, {}))
        self._program = Program(getattr(self, f"_{name}")(text), self.folder, dict(os.environ) | self._home())

    def __enter__(self) -> Self:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except ConnectionRefusedError:
                assert self._program._process.poll() is None, self._program.said
                threading.Event().wait(0.05)
        raise AssertionError(self._program.said)

    def __exit__(self, *_: object) -> None:
        self._program.end(signal.SIGTERM)

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """A connection from one of this machine's addresses."""
        context = ssl.create_default_context(cafile=str(self.folder / "hook.crt"))
        context.set_alpn_protocols(["http/1.1"])
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE, source_address=(source, 0))
        return context.wrap_socket(raw, server_hostname=HOST)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own; status 0 where it was hung up, as some do at a large body."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)
        connection.sock = self.connect()
        try:
            sent = {"Content-Type": "application/json", **(headers or {})}
            with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
                connection.request(method, path, body, sent)
            try:
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException):
                return Answer(0, "")
            return Answer(answer.status, answer.read().decode())
        finally:
            connection.close()

    @property
    def logged(self) -> str:
        """All that it wrote anywhere."""
        kept = [file for file in self.folder.rglob("*") if file.is_file() and "log" in file.name]
        return "\n".join([self._program.said, *(file.read_text() for file in kept)])

    def _home(self) -> dict[str, str]:
        return {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}

    def _nginx(self, text: str) -> list[object]:
        text = _replaced(
            text,
            {
                "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
                "/etc/letsencrypt/live/hook.example.org/fullchain.pem": f"{self.folder}/hook.crt",
                "/etc/letsencrypt/live/hook.example.org/privkey.pem": f"{self.folder}/hook.key",
                "/var/log/nginx/": f"{self.folder}/",
            },
        )
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = self.folder / "nginx.conf"
        owner = "user root;\n" if os.geteuid() == 0 else ""
        file.write_text(
            f"daemon off;\n{owner}pid {self.folder}/pid;\nerror_log {self.folder}/main-error.log;\n"
            f"events {{}}\nhttp {{\n{temporary}access_log off;\n{text}}}\n"
        )
        return [program("nginx"), "-c", file, "-p", self.folder, "-e", self.folder / "main-error.log"]

    def _caddy(self, text: str) -> list[object]:
        text = _replaced(
            text,
            {
                "{\n\tservers {": "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {",
                f"{HOST} {{": f"{HOST}:{self.port} {{\n\tbind 127.0.0.1\n\ttls hook.crt hook.key",
            },
        )
        file = self.folder / "Caddyfile"
        file.write_text(text)
        return [program("caddy"), "run", "--config", file, "--adapter", "caddyfile"]

    def _haproxy(self, text: str) -> list[object]:
        text = _replaced(
            text,
            {
                "bind :443": f"bind 127.0.0.1:{self.port}",
                "/etc/haproxy/hook.example.org.pem": f"{self.folder}/hook.pem",
            },
        )
        file = self.folder / "haproxy.cfg"
        file.write_text(f"global\n    log stdout format raw local0 debug\ndefaults\n    log global\n{text}")
        return [program("haproxy"), "-f", file, "-db"]


def _replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the document does not say {old!r} any more"
        text = text.replace(old, new)
    return text


@dataclass
class Upstream:
    """What stands where the bridge would, and notes down what reaches it."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        noted, counted = self.requests, self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                counted.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                noted.append({"path": self.path, "headers": self.headers.items(), "body": body})
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST  # noqa: N815  (its name)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])
