"""What `healthy` says of answers that a running bridge seldom gives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bridge.config import Settings, load
from bridge.healthy import unwell


class Page(BaseHTTPRequestHandler):
    code = 200
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers["Authorization"]))
        self.send_response(type(self).code)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[HTTPServer]:
    Page.asked = []
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def settings(folder: Path, url: str) -> Settings:
    (folder / "journal.admin").write_text(json.dumps({"url": url, "token": "secret"}))
    return load(None, environ={"WHATSAPP2MQTT_JOURNAL__URL": f"sqlite://{folder}/journal.db"}).settings


@pytest.mark.parametrize("code", [200, 503])
def test_the_page_is_asked_where_the_bridge_left_its_address(page: HTTPServer, tmp_path: Path, code: int) -> None:
    """503 is what a bridge with a thread that hangs says; to be there is not enough."""
    Page.code = code
    url = f"http://127.0.0.1:{page.server_address[1]}/"
    words = "/healthz says 503: a part of the bridge hangs"
    assert unwell(settings(tmp_path, url)) == (None if code == 200 else words)
    assert Page.asked == [("/healthz", "Bearer secret")]


def test_an_address_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Asked by another user than the bridge's, it must not say that the bridge is ill."""
    found = settings(tmp_path, "http://127.0.0.1:1/")
    (tmp_path / "journal.admin").unlink()
    (tmp_path / "journal.admin").mkdir()
    assert "cannot be read: Is a directory; ask as the bridge's user" in str(unwell(found))
