"""The webhook, request by request: each answer it gives, and what is on disk after it."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import io
import json
import os
import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge import payload, receiver
from bridge.config import Auth, Database, Log, Webhook
from bridge.journal import BrokenStorageError, Callback, NotStoredError, Outcome, Stored
from bridge.journal.commit import GroupCommit
from bridge.journal.engine import Engine, PostgresqlEngine, SqliteEngine
from bridge.journal.sqlite import SqliteJournal
from bridge.meter import Meters
from bridge.model import Kind
from bridge.receiver import RETRY_AFTER, Receiver, ReceiverSettings
from bridge.throttle import FAILURES, LINES
from bridge.wakeup import Doorbell
from tests.unit.callers import BrokenOff, as_wsgi

NOW = 1_767_225_600.25

#: Stands wherever a sender can write something; must stand in no answer and no log.
MARK = "<script>mark"


def status(number: int = 1, **other: object) -> dict[str, Any]:
    return {"id": f"wamid.{number}", "status": "read", "timestamp": "1767225600"} | other


def click(number: int = 1, **other: object) -> dict[str, Any]:
    return {"id": f"wamid.c{number}", "type": "button", "button": {"payload": "go", "text": "Go"}} | other


def body_of(**envelope: object) -> bytes:
    return json.dumps(envelope).encode()


BODY = body_of(statuses=[status()])


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.header("Content-Type") == "application/json"
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) < 2
        return found[0] if found else None


class Unread(io.BytesIO):
    """A body that nobody may read."""

    def read(self, *_: object) -> NoReturn:
        raise AssertionError("the body was read")


def call(
    app: Callable[..., Any],
    body: bytes | io.BytesIO = BODY,
    *,
    method: str = "POST",
    path: str = "/webhook",
    query: str = "",
    address: str = "203.0.113.7",
    **environ: str | None,
) -> Answer:
    """Send a request as granian hands it over; a keyword of None leaves the variable out."""
    stream = io.BytesIO(body) if isinstance(body, bytes) else body
    request: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "hook.example.org",
        "REMOTE_ADDR": address,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(stream.getvalue())),
        "wsgi.input": stream,
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    request |= environ
    started: list[tuple[str, list[tuple[str, str]]]] = []
    chunks = app(
        {key: value for key, value in request.items() if value is not None},
        lambda line, headers, _=None: started.append((line, headers)),
    )
    found = b"".join(chunks)
    ((line, headers),) = started
    return Answer(int(line.split(" ")[0]), headers, found)


@dataclass
class House:
    """A receiver's application on a real journal, with the thread that stores."""

    folder: Path
    fails: Exception | None = None
    uptime: float = 0.0
    asked: list[Callback] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.folder / "journal.db"
        SqliteJournal(self.path).create()
        self._reader = SqliteJournal(self.path)
        self._writer = SqliteJournal(self.path)
        self._commit = GroupCommit(self._writer, lambda: None)
        self._thread = threading.Thread(target=self._commit.run)

    def __enter__(self) -> Self:
        self._reader.__enter__()
        self._writer.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._commit.stop()
        self._thread.join()
        self._writer.__exit__()
        self._reader.__exit__()

    async def append(self, callback: Callback) -> Outcome:
        self.asked.append(callback)
        if self.fails is not None:
            raise self.fails
        return await self._commit.append(callback)

    def app(self, *, encode_dots: bool = False, **webhook: Any) -> Callable[..., Any]:
        self.meter = Meters(1)
        receiver = Receiver(
            Webhook(**webhook),
            self.append,
            encode_dots=encode_dots,
            now=lambda: NOW,
            uptime=lambda: self.uptime,
            meter=self.meter.claim(),
        )
        return as_wsgi(receiver)

    @property
    def updates(self) -> list[Stored]:
        return self._reader.pending(0, 100_000)

    @property
    def dead(self) -> list[tuple[object, ...]]:
        """Source, reason and body of each dead letter."""
        db = apsw.Connection(str(self.path))
        try:
            return list(db.execute("SELECT source, reason, body FROM dead_letters ORDER BY id"))
        finally:
            db.close()

    @property
    def disk(self) -> dict[str, tuple[int, int]]:
        """What would change if anything were written."""
        return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in self.folder.iterdir()}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as made:
        yield made


# Bodies that are nearly callbacks: the known names in any place, and values that trip careless code.
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["read", "button", "interactive", "1767225600", 10**400, -(10**20), "\ud800", ""])
)
NAMES = (
    "statuses messages entry changes field value id status timestamp type button payload text interactive "
    "button_reply list_reply title errors contacts wa_id profile name context wa_ext conversation metadata"
)
keys = st.sampled_from(NAMES.split())
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=15
)
callbacks = st.fixed_dictionaries(
    {},
    optional={
        "statuses": st.lists(st.dictionaries(keys, documents, max_size=6) | documents, max_size=3),
        "messages": st.lists(
            st.dictionaries(keys, documents, max_size=6).map(lambda item: {"type": "button"} | item), max_size=3
        ),
        "entry": documents,
    },
)


class TestStored:
    def test_the_answer_counts_what_became_of_it(self, house: House) -> None:
        """200 and the counts are the proof that what was sent is on disk; the counts are what a tester looks at."""
        body = body_of(
            statuses=[status(1), status(2), status(1), {"id": "", "status": "read"}],
            messages=[click(1), {"id": "t", "type": "text", "text": {"body": "hello"}}, click(2, button=None)],
        )
        answer = call(house.app(), body)
        assert answer.status == 200
        assert answer.json == {"stored": 3, "duplicate": 1, "ignored": 1, "dead": 2}
        assert answer.header("Content-Length") == str(len(answer.body))
        assert [update.topic for update in house.updates] == ["wamid.1/status", "wamid.2/status", "button/go"]
        assert [update.received for update in house.updates] == [NOW] * 3

    def test_the_same_again_is_a_duplicate_and_200(self, house: House) -> None:
        """Answered with anything else, the sender comes again for days."""
        app = house.app()
        assert call(app).json == {"stored": 1, "duplicate": 0, "ignored": 0, "dead": 0}
        assert call(app).json == {"stored": 0, "duplicate": 1, "ignored": 0, "dead": 0}
        assert len(house.updates) == 1

    def test_it_is_on_disk_before_it_is_answered(self, house: House) -> None:
        """Promise 1: by the time the sender reads 200, another process must find the update."""
        found: list[int] = []

        def start_response(line: str, headers: object, _: object = None) -> None:
            with SqliteJournal(house.path) as other:
                found.append(len(other.pending(0, 10)))

        app = house.app()
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/webhook",
            "HTTP_HOST": "hook.example.org",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(BODY)),
            "wsgi.input": io.BytesIO(BODY),
            "wsgi.errors": io.StringIO(),
        }
        app(environ, start_response)
        assert found == [1]

    def test_one_bad_entry_harms_only_itself(self, house: House) -> None:
        """Promise 8: one entry that nobody understands must not cost the click beside it."""
        bad = {"id": None, "status": "read", "note": "é"}
        body = body_of(statuses=[status(1), bad, "nonsense"], messages=[click(1)])
        assert call(house.app(), body).json == {"stored": 2, "duplicate": 0, "ignored": 0, "dead": 2}
        assert [update.topic for update in house.updates] == ["wamid.1/status", "button/go"]
        (first, second) = house.dead
        assert first[:2] == ("item", "statuses[]: id is missing or empty")
        assert json.loads(first[2]) == {"statuses": [bad]}  # type: ignore[arg-type]
        assert second[0] == "item"
        assert second[2] == b'{"statuses":["nonsense"]}'

    def test_what_is_neither_status_nor_click_is_ignored_and_stores_nothing(self, house: House) -> None:
        """Account events are no callbacks of ours; to refuse them would have them sent again for days."""
        before = house.disk
        body = body_of(field="account_update", value={"event": "VERIFIED"})
        assert call(house.app(), body).json == {"stored": 0, "duplicate": 0, "ignored": 1, "dead": 0}
        assert house.asked == []
        assert house.disk == before

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b'{"hello": "world"}',
            b"<xml/>",
            b"statuses=1",
            b"\xff\xfe\x00",
            b'{"statuses": NaN}',
            b'{"statuses": [' + b"[" * 40 + b"]" * 40 + b"]}",
        ],
    )
    def test_what_is_no_callback_is_kept_whole(self, house: House, body: bytes) -> None:
        """Promise 8: refused, it is sent again for days; forgotten, nobody finds out what the vendor changed."""
        answer = call(house.app(), body)
        assert answer.status == 200
        assert answer.json == {"stored": 0, "duplicate": 0, "ignored": 0, "dead": 1}
        ((source, reason, kept),) = house.dead
        assert (source, kept) == ("callback", body)
        assert reason

    def test_a_fault_of_ours_costs_no_callback(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body that our own code stumbles over would be sent again for days, and then be gone."""

        def stumble(*_: object, **__: object) -> NoReturn:
            raise ZeroDivisionError(MARK)

        for name in ("bridge.receiver.payload.parse", "bridge.receiver.entry"):
            monkeypatch.setattr(name, stumble)
            with capture_logs() as logs:
                assert call(house.app()).json == {"stored": 0, "duplicate": 0, "ignored": 0, "dead": 1}
            assert [line["log_level"] for line in logs if "exc_info" in line] == ["error"]
            assert house.dead.pop() == ("callback", "a fault of the bridge: ZeroDivisionError", BODY)
            monkeypatch.undo()
        assert call(house.app()).json["stored"] == 1

    def test_all_envelopes_and_media_types_are_taken(self, house: House) -> None:
        """Vendors write the media type with a charset, in capitals, or as a JSON of their own."""
        app = house.app()
        for number, kind in enumerate(
            ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/cloud.v1+json ;a"]
        ):
            assert call(app, body_of(statuses=[status(number)]), CONTENT_TYPE=kind).json["stored"] == 1
        cloud = {"entry": [{"changes": [{"field": "messages", "value": {"messages": [click()]}}]}]}
        assert call(app, body_of(**cloud)).json["stored"] == 1

    def test_dots_are_encoded_where_that_is_asked(self, house: House) -> None:
        """RabbitMQ turns a dot into a slash: the topics of the whole house would be others."""
        call(house.app(encode_dots=True))
        assert house.updates[0].topic == "wamid%2E1/status"

    def test_the_webhook_stands_where_the_settings_say(self, house: House) -> None:
        """The address is registered with the vendor; it cannot be another one."""
        app = house.app(path="/a/b.c")
        assert call(app, path="/a/b.c").status == 200
        assert call(app).status == 404

    @given(
        st.binary(max_size=200)
        | st.text(max_size=50).map(str.encode)
        | documents.map(lambda found: json.dumps(found).encode())
        | callbacks.map(lambda found: json.dumps(found).encode())
    )
    @settings(max_examples=150)
    def test_whatever_is_sent_the_answer_is_200_and_nothing_is_lost(self, body: bytes) -> None:
        """Promise 8: a body that gets anything but 200 comes again for days; one that is dropped is gone."""
        asked: list[Callback] = []

        async def append(callback: Callback) -> Outcome:
            asked.append(callback)
            return Outcome(len(callback.entries), 0)

        answer = call(as_wsgi(Receiver(Webhook(), append, now=lambda: NOW)), body)
        assert answer.status == 200
        counts = answer.json
        (callback,) = asked or [Callback(())]
        assert (counts["stored"], counts["dead"]) == (len(callback.entries), len(callback.dead))
        assert sum(counts.values()) or payload.parse(body) == payload.Parsed((), 0, ())
        for letter in callback.dead:
            assert "fault" not in letter.reason
            assert letter.source == "item" or letter.body == body
            assert letter.received == NOW


class TestRefused:
    """What is answered with 4xx: never stored, never repeated, and always with a hint."""

    def refused(self, house: House, status_code: int, answer: Answer) -> Answer:
        assert answer.status == status_code
        assert set(answer.json) == {"error", "hint"}
        assert all(answer.json.values())
        assert answer.header("Content-Length") == str(len(answer.body))
        assert house.asked == []
        return answer

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
    def test_other_methods_are_named_wrong(self, house: House, method: str) -> None:
        """Whoever opens the address in a browser must read that it is right and what to do."""
        answer = call(house.app(), Unread(), method=method)
        if method == "HEAD":
            assert (answer.status, answer.body) == (405, b"")
        else:
            self.refused(house, 405, answer)
        assert answer.header("Allow") == "POST"

    @pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "json", "*/*"])
    def test_what_is_not_declared_as_json_is_refused(self, house: House, kind: str | None) -> None:
        """A form that a page in somebody's browser posts must not come in as a callback."""
        self.refused(house, 415, call(house.app(), Unread(), CONTENT_TYPE=kind))

    @pytest.mark.parametrize("kind", ["application/jsonx", "application/+json\n", "application/xjson", "a/json"])
    def test_nor_is_what_only_looks_like_it(self, house: House, kind: str) -> None:
        """Half a match is the usual hole in such a check."""
        self.refused(house, 415, call(house.app(), Unread(), CONTENT_TYPE=kind))

    @pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
    def test_compressed_bodies_are_refused(self, house: House, coding: str) -> None:
        """A kilobyte that unpacks to a gigabyte would stop a small machine; and no vendor compresses."""
        self.refused(house, 415, call(house.app(), Unread(), HTTP_CONTENT_ENCODING=coding))

    def test_a_coding_that_codes_nothing_is_taken(self, house: House) -> None:
        """`identity` says that nothing was done to the body."""
        assert call(house.app(), HTTP_CONTENT_ENCODING=" Identity ").status == 200

    @pytest.mark.parametrize("length", [None, ""])
    def test_a_body_without_a_length_is_refused(self, house: House, length: str | None) -> None:
        """Without a length it would be read until the sender likes to stop."""
        self.refused(house, 411, call(house.app(), Unread(), CONTENT_LENGTH=length))

    @pytest.mark.parametrize("length", ["-1", "+5", "1e3", "5 ", "0x10", "5,5", "²", "٣", "9" * 19, "9" * 5_000, "a"])
    def test_a_length_that_is_no_number_is_refused(self, house: House, length: str) -> None:
        """What two programs read as different lengths is how one request is smuggled inside another."""
        self.refused(house, 400, call(house.app(), Unread(), CONTENT_LENGTH=length))

    def test_a_body_at_the_limit_is_taken_and_one_above_is_not(self, house: House) -> None:
        """The limit must hold what WhatsApp sends, and no byte of what it does not."""
        app = house.app(max_body=len(BODY))
        assert call(app).status == 200
        house.asked.clear()
        self.refused(house, 413, call(app, Unread(BODY + b" ")))

    def test_the_hint_names_the_limit_and_the_setting(self, house: House) -> None:
        """Whoever has larger callbacks must find out what to change."""
        answer = call(house.app(max_body=10), Unread(BODY))
        assert answer.json["hint"] == "send at most 10 bytes, or raise webhook.max_body"

    def test_a_chunked_body_is_taken_within_the_limit(self, house: House) -> None:
        """Some senders stream; their callbacks are as good as others."""
        app = house.app(max_body=len(BODY))
        streamed = {"CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "Chunked"}
        assert call(app, **streamed).json["stored"] == 1
        house.asked.clear()
        self.refused(house, 413, call(app, BODY + b" ", **streamed))

    def test_a_chunked_body_is_never_read_beyond_the_limit(self, house: House) -> None:
        """An endless stream would fill the memory before its length is found out."""
        stream = io.BytesIO(BODY * 100)
        call(house.app(max_body=10), stream, CONTENT_LENGTH=None, HTTP_TRANSFER_ENCODING="chunked")
        assert stream.tell() == 14  # two chunks of this test's server

    @pytest.mark.parametrize("coding", ["", "xchunked", "chunked, identity", "gzip, chunked", "chunked,chunked"])
    def test_a_body_in_another_transfer_coding_is_refused(self, house: House, coding: str) -> None:
        """What is undone in part would be stored as it came, or ends elsewhere than a proxy thinks."""
        answer = call(house.app(), Unread(), CONTENT_LENGTH=None, HTTP_TRANSFER_ENCODING=coding)
        self.refused(house, 501, answer)
        assert answer.header("Connection") == "close"

    @pytest.mark.parametrize("path", ["/webhook", "/elsewhere"])
    def test_a_request_without_a_host_is_refused(self, house: House, path: str) -> None:
        """RFC 9112, 3.2: who speaks HTTP/1.1 and leaves it out speaks it wrongly elsewhere as well."""
        answer = call(house.app(), Unread(), path=path, HTTP_HOST=None)
        self.refused(house, 400, answer)
        assert answer.header("Connection") == "close"

    def test_an_old_request_needs_no_host(self, house: House) -> None:
        """HTTP/1.0 knows none, and haproxy's health checks speak it."""
        assert call(house.app(), HTTP_HOST=None, SERVER_PROTOCOL="HTTP/1.0").json["stored"] == 1

    def test_chunks_that_break_off_are_no_callback(self, house: House) -> None:
        """What came might even be whole JSON: a message whose sender wanted to say more."""
        broken = BrokenOff(BODY)
        self.refused(house, 400, call(house.app(), broken, CONTENT_LENGTH=None, HTTP_TRANSFER_ENCODING="chunked"))
        assert house.asked == []

    def test_a_body_that_ended_early_is_refused(self, house: House) -> None:
        """The rest is lost with the connection; the sender has all of it, and comes again."""
        self.refused(house, 400, call(house.app(), CONTENT_LENGTH=str(len(BODY) + 1)))

    def test_a_longer_stream_is_read_no_further_than_it_said(self, house: House) -> None:
        """What follows on the connection is another request, and none of this one's business."""
        stream = io.BytesIO(BODY + b"POST / HTTP/1.1")
        assert call(house.app(), stream, CONTENT_LENGTH=str(len(BODY))).json["stored"] == 1
        assert stream.tell() == len(BODY)

    def test_no_answer_and_no_log_repeats_what_was_sent(self, house: House) -> None:
        """Promise 7: an echo is how a page, a log viewer or a terminal is made to run a stranger's text."""
        auth = Auth(header_token=("right",), meta_verify_token=("verify",), basic=("u:p",), addresses=("10.0.0.0/8",))
        sent = {
            "query": f"a={MARK}&hub.mode={MARK}&hub.challenge={MARK}",
            "HTTP_USER_AGENT": MARK,
            "HTTP_HOST": MARK,
            "HTTP_X_WEBHOOK_TOKEN": MARK,
            "HTTP_AUTHORIZATION": f"Basic {MARK}",
            "HTTP_X_FORWARDED_FOR": MARK,
            "HTTP_COOKIE": MARK,
        }
        body = json.dumps({"statuses": [{"id": MARK}, MARK], MARK: MARK}).encode()
        verify = f"hub.mode=subscribe&hub.verify_token=verify&hub.challenge={MARK}"
        with capture_logs() as logs:
            answers = [
                call(house.app(), body, **sent),
                call(house.app(), MARK.encode(), **sent),
                call(house.app(), body, **sent | {"CONTENT_TYPE": MARK}),
                call(house.app(), body, **sent | {"CONTENT_LENGTH": MARK}),
                call(house.app(), body, **sent | {"HTTP_CONTENT_ENCODING": MARK}),
                call(house.app(), body, method=MARK, **sent),
                call(house.app(), body, path=f"/webhook/{MARK}", **sent),
                call(house.app(), body, path=f"/{MARK}", **sent),
                call(house.app(auth=auth), body, **sent),
                call(house.app(auth=auth), body, address="10.0.0.1", **sent),
                call(house.app(auth=auth), body, method="GET", **sent),
                call(house.app(auth=auth), body, method="GET", **sent | {"query": verify}),
            ]
            house.fails = NotStoredError("the disk is full")
            answers.append(call(house.app(), body, **sent))
            house.fails = RuntimeError("a fault")
            answers.append(call(house.app(), body, **sent))
        assert [answer.status for answer in answers] == [
            200, 200, 415, 400, 415, 405, 404, 404, 403, 401, 403, 400, 503, 500,
        ]  # fmt: skip
        assert "mark" not in repr([(answer.headers, answer.body) for answer in answers])
        assert "mark" not in repr(logs)


class TestHidden:
    """404: a wrong token looks like any other path that does not exist."""

    @pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE"])
    def test_a_wrong_token_is_byte_for_byte_an_unknown_path(self, house: House, method: str) -> None:
        """Told apart by one byte, a guesser would know that the webhook is there and only the token is wrong."""
        app = house.app(auth=Auth(path_token=("right-token",), meta_verify_token=("verify",)))
        query = "hub.mode=subscribe&hub.verify_token=verify&hub.challenge=1"
        paths = ["/nothing/here", "/", "/webhook", "/webhook/", "/webhook/wrong", "/webhook/right-token/", "/webhook/é"]
        paths += ["/webhook/right-toke", "/webhook/right-token/more", "/webhooks", "//webhook/right-token", "*", ""]
        answers = [
            call(app, Unread(), method=method, path=path, query=query, address=f"203.0.113.{place}")
            for place, path in enumerate(paths)
        ]
        assert answers == [answers[0]] * len(paths)
        assert answers[0].status == 404
        assert answers[0].body == (
            b"" if method == "HEAD" else b'{"error":"there is nothing here","hint":"look at the webhook\'s address"}'
        )

    @pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE"])
    def test_nor_can_it_be_told_apart_by_what_comes_after_too_many(self, house: House, method: str) -> None:
        """Were only wrong tokens counted, or only unknown paths, the first 429 would say which was which."""
        counts = []
        for path in ("/nothing/here", "/webhook", "/webhook/wrong", "/webhook/right-token/"):
            app = house.app(auth=Auth(path_token=("right-token",)))
            answers = [call(app, Unread(), method=method, path=path) for _ in range(2 * FAILURES)]
            counts.append([(answer.status, answer.headers, answer.body) for answer in answers])
        assert counts == [counts[0]] * len(counts)
        assert [status for status, _, _ in counts[0]] == [404] * FAILURES + [429] * FAILURES

    def test_without_a_token_set_no_path_goes_on(self, house: House) -> None:
        """Any path would be the webhook's."""
        app = house.app()
        assert call(app, Unread(), path="/webhook/x") == call(app, Unread(), path="/else")

    def test_the_right_token_opens(self, house: House) -> None:
        """The address as it was registered with the vendor."""
        app = house.app(auth=Auth(path_token=("right-token", "next-token")))
        assert call(app, path="/webhook/right-token").json["stored"] == 1
        assert call(app, path="/webhook/next-token").json["duplicate"] == 1
        assert call(app, Unread(), path="/webhook/right-token", method="GET").status == 405

    def test_nothing_is_logged_about_it(self, house: House) -> None:
        """Scanners try thousands of paths a day: a line each hides what matters, and fills the disk."""
        app = house.app(auth=Auth(path_token=("right-token",)))
        with capture_logs() as logs:
            call(app, path="/webhook/wrong-token")
            call(app, path="/wp-login.php")
        assert logs == []


class TestTurnedAway:
    """401 and 403: nothing is read, nothing is written."""

    def test_wrong_credentials_are_401(self, house: House) -> None:
        """The vendor's console shows the code: 401 means look at the credentials."""
        app = house.app(auth=Auth(header_token=("right",)))
        for environ in ({}, {"HTTP_X_WEBHOOK_TOKEN": "wrong"}, {"HTTP_X_WEBHOOK_TOKEN": "\xe9"}):
            answer = call(app, Unread(), **environ)
            assert answer.status == 401
            assert answer.json == {
                "error": "the credentials are missing or wrong",
                "hint": "compare with webhook.auth",
            }
            assert answer.header("WWW-Authenticate") is None
        assert call(app, HTTP_X_WEBHOOK_TOKEN="right").status == 200

    def test_basic_is_asked_for_by_its_name(self, house: House) -> None:
        """Clients send the password only when they were asked for it."""
        app = house.app(auth=Auth(basic=("user:password",)))
        answer = call(app, Unread())
        assert answer.status == 401
        assert answer.header("WWW-Authenticate") == 'Basic realm="webhook"'
        right = base64.b64encode(b"user:password").decode()
        assert call(app, HTTP_AUTHORIZATION=f"Basic {right}").status == 200

    def test_an_address_that_is_not_listed_is_403(self, house: House) -> None:
        """The code tells the user that it is the address and not the password."""
        app = house.app(auth=Auth(addresses=("203.0.113.0/24",), proxies=("10.0.0.1/32",)))
        answer = call(app, Unread(), address="198.51.100.1")
        assert answer.status == 403
        assert answer.json == {"error": "this address may not post", "hint": "list it in webhook.auth.addresses"}
        assert call(app, Unread(), address="10.0.0.1", HTTP_X_FORWARDED_FOR="198.51.100.1").status == 403
        assert call(app, address="10.0.0.1", HTTP_X_FORWARDED_FOR="203.0.113.7").status == 200

    def test_a_server_that_tells_no_address_lets_nobody_in(self, house: House) -> None:
        """On a socket without addresses a list of addresses must not be open to all."""
        app = house.app(auth=Auth(addresses=("203.0.113.0/24",)))
        assert call(app, Unread(), REMOTE_ADDR=None).status == 403

    def test_a_signature_is_checked_over_the_raw_body(self, house: House) -> None:
        """Parsed first, or written again, every honest callback would be refused."""
        app = house.app(auth=Auth(meta_app_secret=("secret",)))
        signature = "sha256=" + hmac.new(b"secret", BODY, hashlib.sha256).hexdigest()
        assert call(app, HTTP_X_HUB_SIGNATURE_256=signature).json["stored"] == 1
        house.asked.clear()
        assert call(app, BODY + b" ", HTTP_X_HUB_SIGNATURE_256=signature).status == 401
        assert call(app).status == 401
        assert house.asked == []

    def test_limits_hold_before_a_signature_is_looked_at(self, house: House) -> None:
        """A stranger could make the receiver read and hash gigabytes."""
        app = house.app(auth=Auth(meta_app_secret=("secret",)), max_body=10)
        assert call(app, Unread(BODY)).status == 413

    def test_why_and_from_where_is_logged_without_credentials(self, house: House) -> None:
        """A user who set it up wrong finds the line; the secret that was tried is in no log."""
        app = house.app(auth=Auth(header_token=("right",)))
        with capture_logs() as logs:
            call(app, HTTP_X_WEBHOOK_TOKEN="tried")
        (line,) = logs
        assert (line["log_level"], line["why"], line["address"]) == ("warning", "unknown", "203.0.113.7")
        assert "tried" not in repr(line)

    def test_nothing_is_written_before_the_sender_is_known(self, house: House) -> None:
        """A stranger could fill the disk, and with it stop everything."""
        everything = Auth(
            path_token=("right-token",),
            header_token=("right",),
            basic=("u:p",),
            meta_app_secret=("s",),
            vendor_secret=("k:s",),
            addresses=("203.0.113.0/24",),
        )
        before = house.disk
        for auth in (
            everything,
            Auth(header_token=("right",)),
            Auth(basic=("u:p",)),
            Auth(meta_app_secret=("s",)),
            Auth(vendor_secret=("k:s",)),
            Auth(addresses=("10.0.0.0/8",)),
        ):
            for body in (BODY, b"no callback", b""):
                for path in ("/webhook", "/webhook/right-token", "/webhook/wrong-token"):
                    assert call(house.app(auth=auth), body, path=path).status in (401, 403, 404)
        assert house.asked == []
        assert house.disk == before
        assert house.dead == []


def hub(secret: str, body: bytes = BODY) -> dict[str, str]:
    """Meta's signature."""
    return {"HTTP_X_HUB_SIGNATURE_256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


class TestTooMany:
    """429: after a few tries without the right credentials, and for callbacks beyond `webhook.rate_limit`."""

    AUTH = Auth(header_token=("right",))

    def knock(self, app: Callable[..., Any], times: int = 2 * FAILURES, **environ: str) -> list[int]:
        """The answers to tries with wrong credentials."""
        return [call(app, HTTP_X_WEBHOOK_TOKEN="wrong", **environ).status for _ in range(times)]

    def test_after_a_few_wrong_credentials_it_is_429_until_the_minute_is_over(self, house: House) -> None:
        """A sender that is set up wrong learns why from the first answers; a guesser learns no more."""
        app = house.app(auth=self.AUTH)
        assert self.knock(app) == [401] * FAILURES + [429] * FAILURES
        house.uptime = 59.0
        answer = call(app, HTTP_X_WEBHOOK_TOKEN="wrong")
        assert (answer.status, answer.header("Retry-After")) == (429, "1")
        assert set(answer.json) == {"error", "hint"}
        house.uptime = 60.0
        assert self.knock(app) == [401] * FAILURES + [429] * FAILURES

    @pytest.mark.parametrize(
        ("auth", "path", "right"),
        [
            (Auth(path_token=("right-token",)), "/webhook/right-token", {}),
            (AUTH, "/webhook", {"HTTP_X_WEBHOOK_TOKEN": "right"}),
            (Auth(basic=("u:p",)), "/webhook", {"HTTP_AUTHORIZATION": "Basic dTpw"}),
            (Auth(meta_app_secret=("secret",)), "/webhook", hub("secret")),
        ],
        ids=["path", "header", "basic", "signature"],
    )
    def test_the_right_credentials_get_in_all_the_same(
        self, house: House, auth: Auth, path: str, right: dict[str, str]
    ) -> None:
        """Behind a tunnel everybody has one address: one stranger could shut out the sender, and with it the user."""
        app = house.app(auth=auth)
        assert self.knock(app)[-1] == 429
        sent = [call(app, path=path, **right).status for _ in range(3 * FAILURES)]
        assert sent == [200] * len(sent)

    def test_who_gives_way_to_others_is_no_stranger(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """The sender whose callback finds no room would be told to keep away, for what others did."""
        for most in ("MOST", "MOST_LARGEST"):
            monkeypatch.setattr(receiver, most, 0)
        app = house.app(auth=Auth(meta_app_secret=("secret",)))
        with capture_logs() as logs:
            answers = [call(app, **hub("secret")) for _ in range(2 * FAILURES)]
        assert {(answer.status, answer.header("Retry-After")) for answer in answers} == {(503, str(RETRY_AFTER))}
        assert {(line["event"], line["why"]) for line in logs} == {("a body was not read to its end", "crowded")}
        assert call(app, path="/else").status == 404, "none of them was counted"

    def test_who_is_let_in_by_address_is_not_counted_by_it(self, house: House) -> None:
        """A listed sender that mixes in requests to other paths is still the sender."""
        app = house.app(auth=Auth(addresses=("203.0.113.7/32",)))
        assert [call(app, path="/else").status for _ in range(2 * FAILURES)][-1] == 429
        assert call(app).status == 200

    @pytest.mark.parametrize(
        ("method", "path", "query", "environ"),
        [
            ("POST", "/else", "", {}),
            ("GET", "/else", "", {}),
            ("HEAD", "/else", "", {}),
            ("PUT", "/webhook/x", "", {}),
            ("GET", "/webhook", "hub.mode=subscribe&hub.verify_token=wrong&hub.challenge=1", {}),
            ("POST", "/webhook", "", {"HTTP_X_WEBHOOK_TOKEN": "wrong"}),
            ("POST", "/webhook", "", {"HTTP_X_WEBHOOK_TOKEN": "right"}),
            ("POST", "/webhook", "", {"HTTP_X_WEBHOOK_TOKEN": "right", "CONTENT_TYPE": "text/plain"}),
            ("POST", "/webhook", "", {"HTTP_X_WEBHOOK_TOKEN": "right", "CONTENT_LENGTH": "x"}),
            ("POST", "/webhook", "", {"HTTP_X_WEBHOOK_TOKEN": "right", "CONTENT_LENGTH": "999"}),
        ],
    )
    def test_whatever_a_stranger_asks_is_counted(
        self, house: House, method: str, path: str, query: str, environ: dict[str, str]
    ) -> None:
        """A way that is not counted is the one that a guesser, or a flood, would take."""
        auth = Auth(header_token=("right",), meta_app_secret=("secret",), meta_verify_token=("verify",))
        app = house.app(auth=auth)
        answers = [call(app, method=method, path=path, query=query, **environ) for _ in range(FAILURES + 1)]
        assert 400 <= answers[0].status < 429
        assert answers[-1].status == 429
        assert call(app, HTTP_X_WEBHOOK_TOKEN="right", **hub("secret")).status == 200
        query = "hub.mode=subscribe&hub.verify_token=verify&hub.challenge=1"
        assert call(app, Unread(), method="GET", query=query).status == 200

    def test_the_bridges_own_question_is_not_counted(self, house: House) -> None:
        """It is asked every few seconds: who comes through a tunnel on the same machine would be told 429 for it."""
        app = house.app(auth=self.AUTH)
        assert {call(app, method="HEAD", path="/").status for _ in range(2 * FAILURES)} == {404}
        assert self.knock(app, 1) == [401]

    def test_a_known_sender_may_make_mistakes(self, house: House) -> None:
        """A wrong media type is the sender's own trouble: it must read what is wrong each time."""
        app = house.app(auth=self.AUTH)
        right = {"HTTP_X_WEBHOOK_TOKEN": "right"}
        statuses = [call(app, CONTENT_TYPE="text/plain", **right).status for _ in range(2 * FAILURES)]
        assert statuses == [415] * len(statuses)

    def test_each_address_counts_by_itself_and_behind_a_proxy_the_senders(self, house: House) -> None:
        """One stranger would silence all, and behind a proxy nobody would be told what is wrong."""
        app = house.app(auth=Auth(header_token=("right",), proxies=("10.0.0.1/32",)))
        assert self.knock(app)[-1] == 429
        assert self.knock(app, 1, address="203.0.113.8") == [401]
        behind = {"address": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "1.1.1.1, 203.0.113.7"}
        assert self.knock(app, 1, **behind) == [429]
        assert self.knock(app, 1, address="10.0.0.1", HTTP_X_FORWARDED_FOR="203.0.113.7, 203.0.113.9") == [401]
        # From a proxy that is not listed, the header says nothing.
        assert self.knock(app, 1, address="203.0.113.7", HTTP_X_FORWARDED_FOR="203.0.113.10") == [429]

    def test_a_network_of_ipv6_counts_as_one_address(self, house: House) -> None:
        """Whoever has one machine with IPv6 has 2^64 addresses."""
        app = house.app(auth=self.AUTH)
        statuses = [self.knock(app, 1, address=f"2001:db8::{number:x}:1") for number in range(2 * FAILURES)]
        assert statuses == [[401]] * FAILURES + [[429]] * FAILURES
        assert self.knock(app, 1, address="2001:db8:0:1::1") == [401]

    def test_callbacks_beyond_the_limit_are_429_and_the_next_window_takes_them(self, house: House) -> None:
        """A sender that went wild would take the disk from all others; what it is refused, it sends again."""
        app = house.app(auth=self.AUTH, rate_limit=2)
        right = {"HTTP_X_WEBHOOK_TOKEN": "right"}
        answers = [call(app, **right) for _ in range(25)]
        assert [answer.status for answer in answers] == [200] * 20 + [429] * 5
        assert answers[-1].header("Retry-After") == "10"
        assert call(app, address="203.0.113.8", **right).status == 200
        house.uptime = 10.0
        assert call(app, **right).status == 200

    def test_so_they_are_where_the_body_is_signed(self, house: House) -> None:
        """Known only by the body, a sender must not be without limit."""
        app = house.app(auth=Auth(meta_app_secret=("secret",)), rate_limit=1)
        assert [call(app, **hub("secret")).status for _ in range(12)] == [200] * 10 + [429] * 2

    def test_strangers_use_up_nothing_of_the_senders_limit(self, house: House) -> None:
        """Behind a tunnel, a stranger's flood would be refused in the sender's name."""
        app = house.app(auth=self.AUTH, rate_limit=1)
        self.knock(app, 50)
        assert [call(app, HTTP_X_WEBHOOK_TOKEN="right").status for _ in range(10)] == [200] * 10

    def test_a_vendors_burst_is_taken_by_default_and_without_a_limit_everything(self, house: House) -> None:
        """A vendor that was away for an hour sends thousands at once, from few addresses."""
        for webhook in ({}, {"rate_limit": None}):
            app = house.app(auth=self.AUTH, **webhook)
            body = body_of(statuses=[])  # is stored nowhere, so that this is quick
            statuses = {call(app, body, HTTP_X_WEBHOOK_TOKEN="right").status for _ in range(3_000)}
            assert statuses == {200}

    def test_the_log_says_it_once_for_each_address_and_little_of_all(self, house: House) -> None:
        """A flood would fill the disk with lines, and hide the one that matters."""
        app = house.app(auth=self.AUTH)
        with capture_logs() as logs:
            self.knock(app)
        events = [(line["event"], line["address"]) for line in logs]
        assert events[:-1] == [("a request was turned away", "203.0.113.7")] * FAILURES
        assert events[-1][0].startswith("an address was turned away too often")
        with capture_logs() as logs:
            for number in range(200):
                self.knock(app, address=f"198.51.100.{number}")
        assert len(logs) == LINES - FAILURES - 1 + 1
        assert logs[-1]["event"] == "more requests are turned away than are logged"
        house.uptime = 60.0
        with capture_logs() as logs:
            self.knock(app, 1)
        assert len(logs) == 1

    def test_a_sender_with_too_many_is_named_once(self, house: House) -> None:
        """The user must learn that a limit holds something back, and not once for each callback."""
        app = house.app(auth=self.AUTH, rate_limit=1)
        with capture_logs() as logs:
            for _ in range(30):
                call(app, HTTP_X_WEBHOOK_TOKEN="right")
        lines = [line for line in logs if line["log_level"] == "warning"]
        assert [line["address"] for line in lines] == ["203.0.113.7"]

    def test_what_a_stranger_writes_as_its_address_is_in_no_log(self, house: House) -> None:
        """Behind a proxy that passes on what it gets, the log would hold any text of any length."""
        app = house.app(auth=Auth(header_token=("right",), proxies=("203.0.113.7/32",)))
        with capture_logs() as logs:
            self.knock(app, HTTP_X_FORWARDED_FOR=MARK)
        assert logs
        assert MARK not in repr(logs)

    def test_both_are_counted_apart(self, house: House) -> None:
        """Whoever looks at the metrics must see whether a limit holds back the sender or strangers."""
        app = house.app(auth=self.AUTH, rate_limit=1)
        self.knock(app, FAILURES + 3)
        for _ in range(12):
            call(app, HTTP_X_WEBHOOK_TOKEN="right")
        counted = house.meter.read()
        assert counted.limited == {"sender": 2, "stranger": 3}
        assert counted.answers[429] == 5


class TestChallenge:
    """Meta's GET: whether this is the webhook that was registered."""

    AUTH = Auth(meta_verify_token=("first", "pässwort & more"), header_token=("right",))

    def ask(self, house: House, query: str, **environ: Any) -> Answer:
        return call(house.app(auth=self.AUTH), Unread(), method="GET", query=query, **environ)

    @pytest.mark.parametrize("token", ["first", "p%C3%A4sswort%20%26+more"])
    def test_the_right_token_gets_the_challenge_as_plain_text(self, house: House, token: str) -> None:
        """Without this answer Meta does not save the webhook, and no callback ever comes."""
        answer = self.ask(house, f"hub.mode=subscribe&hub.verify_token={token}&hub.challenge=1158201444")
        assert (answer.status, answer.body) == (200, b"1158201444")
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"
        assert answer.header("X-Content-Type-Options") == "nosniff"

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "hub.challenge=1",
            "hub.mode=subscribe&hub.challenge=1",
            "hub.mode=subscribe&hub.verify_token=&hub.challenge=1",
            "hub.mode=subscribe&hub.verify_token=wrong&hub.challenge=1",
            "hub.mode=subscribe&hub.verify_token=%FF%FE&hub.challenge=1",
            "hub.mode=subscribe&hub.verify_token=first%00&hub.challenge=1",
            "hub.mode=unsubscribe&hub.verify_token=first&hub.challenge=1",
            "hub.verify_token=first&hub.challenge=1",
        ],
    )
    def test_anyone_else_gets_403(self, house: House, query: str) -> None:
        """A stranger who gets the challenge back can register this webhook as its own."""
        answer = self.ask(house, query)
        assert answer.status == 403
        assert set(answer.json) == {"error", "hint"}

    @pytest.mark.parametrize(
        "challenge", ["", "%3Cscript%3E", "a%0Ab", "%C3%A9", "a b", "1" * 201, "a%22", "1&hub.challenge=%3C"]
    )
    def test_a_challenge_that_is_no_plain_word_is_not_echoed(self, house: House, challenge: str) -> None:
        """Promise 7: this is the one text that goes back to who sent it; as a page it would run in a browser."""
        answer = self.ask(house, f"hub.mode=subscribe&hub.verify_token=first&hub.challenge={challenge}")
        assert answer.status == 400
        assert set(answer.json) == {"error", "hint"}

    def test_a_missing_challenge_is_said_to_be_missing(self, house: House) -> None:
        """Whoever tries by hand must read what is left out."""
        answer = self.ask(house, "hub.mode=subscribe&hub.verify_token=first")
        assert answer.status == 400
        assert "hub.challenge" in answer.json["error"]

    def test_it_is_not_offered_where_no_token_is_set(self, house: House) -> None:
        """With no token, an empty one would do."""
        query = "hub.mode=subscribe&hub.verify_token=&hub.challenge=1"
        assert call(house.app(), Unread(), method="GET", query=query).status == 405

    def test_nothing_is_stored(self, house: House) -> None:
        """It is a question, and no callback."""
        before = house.disk
        self.ask(house, "hub.mode=subscribe&hub.verify_token=first&hub.challenge=1")
        assert (house.asked, house.disk) == ([], before)


class TestNotStored:
    """503: what cannot be stored is asked for again."""

    @pytest.mark.parametrize("failure", [NotStoredError("the disk is full"), BrokenStorageError("fsync failed")])
    @pytest.mark.parametrize("body", [BODY, b"no callback", body_of(statuses=["bad"])])
    def test_the_sender_is_asked_to_come_again(self, house: House, failure: Exception, body: bytes) -> None:
        """200 would lose it; 4xx would have some senders give up. This holds for the dead letters as well."""
        house.fails = failure
        with capture_logs() as logs:
            answer = call(house.app(), body)
        assert answer.status == 503
        assert answer.header("Retry-After") == str(RETRY_AFTER)
        assert answer.json == {"error": "it could not be stored", "hint": "send it again later"}
        assert (house.updates, house.dead) == ([], [])
        assert [line["why"] for line in logs if line["log_level"] == "error"] == [str(failure)]
        house.fails = None
        assert call(house.app(), body).status == 200

    def test_a_full_disk_is_503_and_afterwards_it_goes_on(self, house: House) -> None:
        """The real journal on a disk without room: nothing half, and no help needed when there is room again."""
        app = house.app()
        db = house._writer._opened()
        pages = db.pragma("max_page_count")
        db.pragma("max_page_count", db.pragma("page_count"))
        large = body_of(statuses=[status(number, conversation={"id": "x" * 1_000}) for number in range(200)])
        assert call(app, large).status == 503
        assert house.updates == []
        db.pragma("max_page_count", pages)
        assert call(app, large).json == {"stored": 200, "duplicate": 0, "ignored": 0, "dead": 0}

    def test_a_fault_of_ours_is_500_without_a_word_about_it(self, house: House) -> None:
        """The sender comes again; what went wrong is for the log, not for a stranger."""
        house.fails = RuntimeError("an inner matter")
        with capture_logs() as logs:
            answer = call(house.app())
        assert answer.status == 500
        assert answer.json == {"error": "this is a fault of the bridge", "hint": "look at its log"}
        assert [line["exc_info"] for line in logs if line["log_level"] == "error"] == [house.fails]


# --- in a process of its own, as granian starts it ---------------------------------------------------------------

PROGRAM = """
import io, os, sys, threading
from pathlib import Path

from bridge import receiver
from bridge.config import Log, Webhook
from bridge.journal import BrokenStorageError
from bridge.journal.engine import SqliteEngine
from bridge.journal.sqlite import SqliteJournal
from tests.unit.callers import LOOP, as_wsgi

folder, trouble = Path(sys.argv[1]), sys.argv[2]


def fail(*_):
    raise BrokenStorageError("fsync failed") if trouble == "broken" else RuntimeError("a fault")


if trouble in ("broken", "fault"):
    SqliteJournal.append = fail
settings = receiver.ReceiverSettings(
    webhook=Webhook(),
    journal=SqliteEngine(folder / "journal.db", max_size=2**30),
    doorbell=folder / "journal.bell",
    encode_dots=True,
    log=Log(level="info", format="json"),
)
loaded = receiver.load(settings, os.getppid())
app = as_wsgi(loaded)
body = b'{"messages": [{"id": "1", "type": "button", "button": {"payload": "a.b"}}]}'
environ = {
    "REQUEST_METHOD": "POST",
    "PATH_INFO": "/webhook",
    "HTTP_HOST": "hook.example.org",
    "CONTENT_TYPE": "application/json",
    "CONTENT_LENGTH": str(len(body)),
    "wsgi.input": io.BytesIO(body),
    "wsgi.errors": io.StringIO(),
}
app(environ, lambda line, headers, _=None: print(line, flush=True))
if trouble != "none":
    threading.Event().wait()
loaded.__rsgi_del__(LOOP)
"""


def run(folder: Path, trouble: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), trouble], capture_output=True, text=True, check=False
    )


class TestProcess:
    def test_it_stores_rings_and_ends_in_order(self, tmp_path: Path) -> None:
        """A receiver that stores and does not ring leaves the click waiting; one that hangs at its end is killed."""
        SqliteJournal(tmp_path / "journal.db").create()
        with Doorbell(tmp_path / "journal.bell") as doorbell:
            ended = run(tmp_path, "none")
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "200 OK\n", "")
            assert select.select([doorbell], [], [], 0)[0]
        with SqliteJournal(tmp_path / "journal.db") as journal:
            assert [update.topic for update in journal.pending(0, 10)] == ["button/a%2Eb"]

    @pytest.mark.parametrize(
        ("trouble", "answer", "said"),
        [("broken", "503", "the journal's storage failed"), ("fault", "500", "the journal's thread failed")],
    )
    def test_a_process_whose_storage_failed_answers_and_ends(
        self, tmp_path: Path, trouble: str, answer: str, said: str
    ) -> None:
        """It must not try again in place: a second fsync may call a lost page stored. A new process is started."""
        SqliteJournal(tmp_path / "journal.db").create()
        ended = run(tmp_path, trouble)
        assert ended.returncode == 1
        assert ended.stdout.startswith(answer)
        events = [json.loads(line)["event"] for line in ended.stderr.splitlines()]
        assert any(event.startswith(said) for event in events)

    def test_a_process_without_a_journal_ends_with_the_reason(self, tmp_path: Path) -> None:
        """Taking callbacks that it cannot store, it would answer 503 for ever with nobody knowing why."""
        ended = run(tmp_path, "none")
        assert (ended.returncode, ended.stdout) == (1, "")
        (line,) = ended.stderr.splitlines()
        assert "it cannot be opened" in json.loads(line)["exception"]

    @pytest.mark.parametrize(
        "engine",
        [
            SqliteEngine(Path("journal.db"), frozenset({Kind.STATUS}), 2**30),
            PostgresqlEngine(Database("postgresql://host/name", "secret"), frozenset({Kind.STATUS}), 2**30),
        ],
    )
    def test_what_it_is_told_can_be_handed_to_a_new_interpreter(self, tmp_path: Path, engine: Engine) -> None:
        """Receivers are spawned: what cannot be pickled keeps every one of them from starting."""
        told = ReceiverSettings(
            webhook=Webhook(auth=Auth(path_token=("right-token",))),
            journal=engine,
            doorbell=tmp_path / "journal.bell",
            encode_dots=False,
            log=Log(),
        )
        handed = pickle.loads(pickle.dumps(functools.partial(receiver.load, told, os.getpid())))
        assert handed.args == (told, os.getpid())
