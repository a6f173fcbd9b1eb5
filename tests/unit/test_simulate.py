"""What `whatsapp2mqtt simulate` posts, and what it says when that does not work."""

from __future__ import annotations

import base64
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
import pytest

from bridge import payload, simulate
from bridge.config import Address, Auth, Settings, Webhook
from bridge.journal import Callback, NotStoredError, Outcome
from bridge.model import ButtonClick, Kind, StatusUpdate
from bridge.receiver import Receiver
from bridge.simulate import STATUSES, SimulationError, click, in_cloud_envelope, message_id_for, post, status
from tests.unit.callers import as_wsgi

NUMBER = "15550001234"


def parsed(value: dict[str, Any]) -> Any:
    """The one update in a body."""
    found = payload.parse(orjson.dumps(value))
    assert (found.ignored, found.dead) == (0, ())
    (update,) = found.updates
    return update


class TestBodies:
    @pytest.mark.parametrize("kind", STATUSES)
    def test_a_status_reads_as_the_one_that_was_asked_for(self, kind: str) -> None:
        """What is tried out must be what WhatsApp sends; otherwise the trial proves nothing."""
        before = int(time.time())
        update = parsed(status(kind, message_id="m", recipient=NUMBER))
        assert isinstance(update, StatusUpdate)
        assert (update.message_id, update.status, update.recipient_id) == ("m", kind, NUMBER)
        assert update.business_phone == simulate.BUSINESS_PHONE
        assert update.timestamp is not None
        assert before <= update.timestamp <= time.time()
        assert (update.errors is not None) == (kind == "failed")
        assert (update.conversation is not None) == (kind in ("sent", "delivered"))
        assert ("expiration_timestamp" in (update.conversation or {})) == (kind == "sent")

    def test_a_click_reads_as_the_one_that_was_asked_for(self) -> None:
        """The automation that is tried out reads payload, text, sender and template."""
        update = parsed(click(payload="gate/1", text="Open", sender=NUMBER))
        assert isinstance(update, ButtonClick)
        assert (update.payload, update.text, update.sender, update.name) == ("gate/1", "Open", NUMBER, "Somebody")
        assert update.template == {"id": 1, "name": "somebody_is_at_the_gate", "parameters": ["the garden gate"]}
        assert update.context is not None
        assert update.tag_name == "simulated"

    @pytest.mark.parametrize("kind", [*STATUSES, "button"])
    def test_the_envelope_of_the_cloud_api_says_the_same(self, kind: str) -> None:
        """Meta's own shape is unwrapped by other code: a trial of one says nothing of the other."""
        value = (
            click(payload="go", text="Go", sender=NUMBER)
            if kind == "button"
            else status(kind, message_id="m", recipient=NUMBER)
        )
        before = orjson.dumps(value)
        assert parsed(in_cloud_envelope(value)) == parsed(value)
        assert orjson.dumps(value) == before

    def test_each_click_is_a_new_one(self) -> None:
        """With the same id the second click would be a duplicate, and the gate stay shut."""
        first, second = (parsed(click(payload="go", text="Go", sender=NUMBER)) for _ in range(2))
        assert first.event_id != second.event_id

    @pytest.mark.parametrize("number", [NUMBER, "", "49é", "1" * 300, "US.1349\udcff"])
    def test_a_message_id_has_the_form_of_whatsapps_and_holds_the_number(self, number: str) -> None:
        """Ids hold the phone number in Base64: topics made of them must be seen as they will be."""
        found = message_id_for(number)
        inside = base64.b64decode(found.removeprefix("wamid."), validate=True)
        digits = number.encode("utf-8", "replace")[:255]
        assert found.startswith("wamid.")
        assert inside[3] == len(digits)
        assert inside[4 : 4 + len(digits)] == digits
        assert message_id_for(number) != found


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name)
        """Says nothing."""


class SixServer(WSGIServer):
    address_family = socket.AF_INET6


class Bridge:
    """A running receiver: its settings, and what it was asked to store."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.callbacks: list[Callback] = []
        self.paths: list[str] = []
        self.fails = False

    async def append(self, callback: Callback) -> Outcome:
        if self.fails:
            raise NotStoredError("the disk is full")
        self.callbacks.append(callback)
        return Outcome(len(callback.entries), 0)

    @property
    def entries(self) -> list[Any]:
        return [entry for callback in self.callbacks for entry in callback.entries]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@contextmanager
def serving(auth: Auth | None = None, host: str = "127.0.0.1", told: str | None = None) -> Iterator[Bridge]:
    """The real application on a free port; the settings name the address `told` if that is another one."""
    bridge = Bridge()
    webhook = Webhook(auth=auth or Auth())
    app = as_wsgi(Receiver(webhook, bridge.append))

    def noted(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        bridge.paths.append(environ["PATH_INFO"] + (f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""))
        # This server closes each connection by itself, and takes no word about it from an application.
        return app(
            environ, lambda line, headers: start_response(line, [one for one in headers if one[0] != "Connection"])
        )

    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    kind = SixServer if ":" in host else WSGIServer
    with make_server(host, 0, noted, server_class=kind, handler_class=Quiet) as server:
        listen = Address(told or host, server.server_port)
        bridge.settings = Settings(webhook=dataclasses.replace(webhook, listen=listen))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield bridge
        finally:
            server.shutdown()
            thread.join()


EVERYTHING = Auth(
    path_token=("right-token", "other-token"),
    header_name="X-Mine",
    header_token=("right", "other"),
    basic=("üser:pässword",),
    meta_app_secret=("secret",),
    vendor_secret=("key:secret",),
)


class TestPosting:
    def test_each_kind_is_posted_and_told_of(self) -> None:
        """One line each: what was sent, and what the bridge made of it."""
        with serving() as bridge:
            kinds = ("sent", "delivered", "read", "button", "cloud-failed", "cloud-button")
            lines = list(post(bridge.settings, kinds, payload="gate", sender="49123"))
        counts = '{"stored":1,"duplicate":0,"ignored":0,"dead":0}'
        assert lines == [f"{kind}: {counts}" for kind in kinds]
        assert [entry.kind for entry in bridge.entries] == [*[Kind.STATUS] * 3, Kind.BUTTON, Kind.STATUS, Kind.BUTTON]
        assert bridge.entries[3].topic == "button/gate"
        assert json.loads(bridge.entries[3].document)["from"] == "49123"

    def test_statuses_are_about_one_message(self) -> None:
        """sent, delivered, read of three messages would show no message's life."""
        with serving() as bridge:
            list(post(bridge.settings, ("sent", "cloud-read")))
            list(post(bridge.settings, ("sent",)))
            list(post(bridge.settings, ("sent", "read"), message_id="mine"))
        topics = [entry.topic for entry in bridge.entries]
        assert topics[0] == topics[1] != topics[2]
        assert topics[3:] == ["mine/status"] * 2

    def test_lines_come_as_they_happen(self) -> None:
        """With the first callback lost, one must see which one it was."""
        with serving() as bridge:
            lines = post(bridge.settings, ("sent", "read"))
            assert next(lines).startswith("sent: ")
            assert len(bridge.callbacks) == 1
            lines.close()  # type: ignore[attr-defined]  # a generator

    def test_it_brings_all_credentials_that_are_set(self) -> None:
        """A 401 here would send the user looking for a mistake that is not there."""
        with serving(EVERYTHING) as bridge:
            assert len(list(post(bridge.settings, ("read", "cloud-button")))) == 2
        assert bridge.paths == ["/webhook/right-token"] * 2

    @pytest.mark.parametrize(
        ("host", "told"), [("127.0.0.1", "0.0.0.0"), ("::1", "::"), ("::1", None), ("127.0.0.1", None)]
    )
    def test_a_listener_on_all_addresses_is_reached_nearby(self, host: str, told: str | None) -> None:
        """0.0.0.0 is where it listens and nothing that one can connect to."""
        with serving(host=host, told=told) as bridge:
            assert list(post(bridge.settings, ("read",)))

    @pytest.mark.parametrize(
        ("behind", "path"),
        [
            ("", "/webhook"),
            ("/", "/webhook"),
            ("/webhook", "/webhook"),
            ("/webhook?a=b&c=%20", "/webhook?a=b&c=%20"),
            ("?a=b", "/webhook?a=b"),
            ("/other", "/other"),
            ("/webhook/", "/webhook/"),
        ],
    )
    def test_a_url_is_used_as_it_is_and_without_a_path_gets_the_settings(self, behind: str, path: str) -> None:
        """Through the tunnel, with its own path and query: just what the vendor will call."""
        with serving() as bridge:
            url = f"http://{bridge.settings.webhook.listen}{behind}"
            if path.startswith("/webhook") and path != "/webhook/":
                assert list(post(Settings(), ("read",), url=url))
            else:
                with pytest.raises(SimulationError, match="the bridge answered 404"):
                    list(post(Settings(), ("read",), url=url))
        assert bridge.paths == [path]

    @pytest.mark.parametrize("behind", ["", "/", "/webhook"])
    def test_the_secret_of_the_path_need_not_stand_in_the_url(self, behind: str) -> None:
        """On a command line everybody on the machine can read it, and the shell writes it into its history."""
        with serving(EVERYTHING) as bridge:
            url = f"http://{bridge.settings.webhook.listen}{behind}"
            assert list(post(bridge.settings, ("read",), url=url))
        assert bridge.paths == ["/webhook/right-token"]


class TestTrouble:
    @pytest.mark.parametrize("kind", ["opened", "cloud-opened", "cloud-cloud-read", "", "Read", "cloud-"])
    def test_an_unknown_kind_is_named_before_anything_is_posted(self, kind: str) -> None:
        """A slip in the third word must not leave the first two posted."""
        with serving() as bridge:
            with pytest.raises(SimulationError, match=rf"^{kind} is no kind; choose from sent, .*button, or cloud-…"):
                list(post(bridge.settings, ("sent", kind)))
            assert bridge.paths == []

    def test_that_nobody_listens_is_said_with_what_to_do(self) -> None:
        """The likeliest slip is that the bridge does not run."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        settings = Settings(webhook=Webhook(listen=Address("127.0.0.1", port)))
        with pytest.raises(SimulationError, match=rf"nobody answers at 127\.0\.0\.1:{port}: .*`whatsapp2mqtt run`"):
            list(post(settings, ("read",)))

    def test_a_refusal_is_passed_on_with_its_hint(self) -> None:
        """The bridge's own words say what to change."""
        with serving(EVERYTHING) as bridge:
            strangers = dataclasses.replace(EVERYTHING, header_token=("wrong",))
            settings = Settings(webhook=dataclasses.replace(bridge.settings.webhook, auth=strangers))
            with pytest.raises(SimulationError, match=r"the bridge answered 401: .*compare with webhook\.auth"):
                list(post(settings, ("read",)))
            bridge.fails = True
            with pytest.raises(SimulationError, match=r"the bridge answered 503: .*could not be stored"):
                list(post(bridge.settings, ("read",)))

    @pytest.mark.parametrize(
        "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]
    )
    def test_what_speaks_no_http_is_named(self, answer: bytes) -> None:
        """A wrong port must give a sentence and not a stack of calls."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    said = b""
                    while not said.endswith(b"}"):
                        said += connection.recv(65_536)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(SimulationError, match=r"what answers at 127\.0\.0\.1:\d+ does not speak HTTP"):
                list(post(Settings(), ("read",), url=url))
            thread.join()

    @pytest.mark.parametrize(
        "url",
        [
            "localhost:8080/webhook",
            "ftp://localhost/webhook",
            "http://",
            "/webhook",
            "http://localhost:http/webhook",
            "http://localhost:99999/webhook",
            "http://[::1/webhook",
        ],
    )
    def test_a_url_that_is_none_is_named_with_an_example(self, url: str) -> None:
        """Taken for a host that does not answer, it would send the user looking at the network."""
        with pytest.raises(SimulationError, match=r"the url .*; write e\.g\. http://127\.0\.0\.1:8080/webhook"):
            list(post(Settings(), ("read",), url=url))

    @pytest.mark.parametrize(
        ("auth", "url"),
        [
            (Auth(header_token=("ключ-swordfish",)), None),
            (Auth(header_token=("swordfish\n",)), None),
            (Auth(vendor_secret=("swordfish\r\n:secret",)), None),
            (Auth(), "http://127.0.0.1:1/sword fish"),
            (Auth(), "http://127.0.0.1:1/é-swordfish"),
            (Auth(), f"http://{'a' * 80}.example/swordfish"),
        ],
    )
    def test_what_http_cannot_send_is_said_without_the_secret(self, auth: Auth, url: str | None) -> None:
        """Python's own words quote the header; a message on a screen is shared and photographed."""
        with serving() as bridge:
            settings = Settings(webhook=dataclasses.replace(bridge.settings.webhook, auth=auth))
            with pytest.raises(SimulationError, match="holds characters that HTTP cannot send") as caught:
                list(post(settings, ("read",), url=url))
        assert "fish" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_protected_address_is_spoken_to_with_tls(self) -> None:
        """Sent in the clear to a port that expects TLS, the credentials would be read on the way."""
        heard: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(65_536))

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/webhook"
            with pytest.raises(SimulationError, match="nobody answers"):
                list(post(Settings(webhook=Webhook(auth=EVERYTHING)), ("read",), url=url))
            thread.join()
        assert heard[0].startswith(b"\x16\x03")  # a TLS handshake
        assert b"right" not in heard[0]
