"""Requests that two programs may read in two ways: where one ends, whose it is, where it comes from.

Each spelling holds `FIRST`, a callback that one reading finds in it. Where the readings differ about the end it also
holds `HIDDEN`, a whole request that claims to come from an address that may post: it is body in one reading, and the
next request in the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

HOST = "hook.example.org"
#: The address that may post, and one that may not.
LISTED, STRANGER = "127.0.0.2", "127.0.0.3"
#: Message ids, all of one length, to be replaced by others of that length.
FIRST, HIDDEN, NEXT = "first-000", "hidden-00", "next-0000"


def callback(message_id: str) -> str:
    return json.dumps({"statuses": [{"id": message_id, "status": "sent", "timestamp": "1660019986"}]})


HEAD = f"POST /webhook HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"


def whole(message_id: str, *headers: str) -> str:
    """A request that has one reading."""
    body = callback(message_id)
    return "".join([HEAD, *(f"{one}\r\n" for one in headers), f"Content-Length: {len(body)}\r\n\r\n", body])


def chunked(body: str) -> str:
    return f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"


BODY = callback(FIRST)
SIZE = len(BODY)
#: The callback in a chunk and a request: together the body where a length counts.
BOTH = chunked(BODY) + whole(HIDDEN, f"X-Forwarded-For: {LISTED}")
CHUNKS = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n"


def sized(*headers: str, head: str = HEAD, body: str = BODY) -> str:
    """The headers, and then a body."""
    return head + "".join(f"{one}\r\n" for one in headers) + "\r\n" + body


def either(*headers: str, head: str = HEAD) -> str:
    """A body that ends early where the coding counts, and late where the length does."""
    return sized(*headers, f"Content-Length: {len(BOTH)}", head=head, body=BOTH)


@dataclass(frozen=True)
class Framing:
    """One row of the table in docs/security.md.

    Attributes:
        name: As it stands there.
        spellings: What is sent.
    """

    name: str
    spellings: tuple[str, ...]


OLD = HEAD.replace("HTTP/1.1", "HTTP/1.0") + "Connection: keep-alive\r\n"
TWICE = BODY + whole(HIDDEN, f"X-Forwarded-For: {LISTED}")

FRAMINGS = (
    Framing(
        "`Content-Length` and `Transfer-Encoding: chunked`, in either order",
        (
            either("Transfer-Encoding: chunked"),
            sized(f"Content-Length: {len(BOTH)}", "Transfer-Encoding: chunked", body=BOTH),
            sized("Content-Length: 4", "Transfer-Encoding: chunked", body=BOTH),
        ),
    ),
    Framing("`Content-Length` twice, the same", (sized(f"Content-Length: {SIZE}", f"Content-Length: {SIZE}"),)),
    Framing(
        "`Content-Length` twice, different",
        (
            sized(f"Content-Length: {SIZE}", f"Content-Length: {len(TWICE)}", body=TWICE),
            sized(f"Content-Length: {len(TWICE)}", f"Content-Length: {SIZE}", body=TWICE),
        ),
    ),
    Framing("`Content-Length: +80`", (sized(f"Content-Length: +{SIZE}"),)),
    Framing("`Content-Length: -1`", (sized("Content-Length: -1", body=TWICE), sized("Content-Length: -0"))),
    Framing("`Content-Length: 80, 80`", (sized(f"Content-Length: {SIZE}, {SIZE}"),)),
    Framing(
        "lines that end in LF alone",
        (sized(f"Content-Length: {SIZE}", body="").replace("\r\n", "\n") + BODY,),
    ),
    Framing("a header that goes on in the next line", (either("Transfer-Encoding:\r\n chunked"),)),
    Framing("two `Host`", (sized("Host: other.example", f"Content-Length: {SIZE}"),)),
    Framing("no `Host`", (sized(f"Content-Length: {SIZE}", head=HEAD.replace(f"Host: {HOST}\r\n", "")),)),
    Framing(
        "`X_Forwarded_For` and its like",
        tuple(
            sized(f"{name}: {LISTED}", f"Content-Length: {SIZE}")
            for name in ("X_Forwarded_For", "X-Forwarded_For", "x_forwarded-for")
        ),
    ),
    Framing(
        "`Transfer-Encoding: xchunked`, or `chunked, identity`",
        tuple(
            spelling
            for coding in ("xchunked", "chunked, identity", "\x0bchunked", "chunked;q=1", '"chunked"')
            for spelling in (either(f"Transfer-Encoding: {coding}"), sized(f"Transfer-Encoding: {coding}", body=BOTH))
        ),
    ),
    Framing(
        "`Transfer-Encoding : chunked`, with a space",
        (either("Transfer-Encoding : chunked"), sized(f"Content-Length : {SIZE}")),
    ),
    Framing(
        "`Transfer-Encoding` in HTTP/1.0",
        (either("Transfer-Encoding: chunked", head=OLD), sized("Transfer-Encoding: chunked", head=OLD, body=BOTH)),
    ),
    Framing(
        "`POST http://other.example/webhook`",
        (sized(f"Content-Length: {SIZE}", head=HEAD.replace("/webhook", "http://other.example/webhook")),),
    ),
    Framing(
        "chunks of `0x50`, `+50`, or a size beyond 64 bits",
        tuple(
            CHUNKS + f"{size}\r\n{BODY}\r\n0\r\n\r\n"
            for size in (f"0x{SIZE:x}", f"+{SIZE:x}", f"1{SIZE:016x}", f"-{SIZE:x}")
        ),
    ),
)

#: Further spellings, in no table: nothing may come through by these either.
OTHERS = {
    "a space within a length": sized(f"Content-Length: {SIZE // 10} {SIZE % 10}"),
    "a hexadecimal length": sized(f"Content-Length: 0x{SIZE:x}"),
    "an empty length": sized("Content-Length:"),
    "a length of many zeros": sized(f"Content-Length: {SIZE:030}"),
    "a length beyond 64 bits": sized(f"Content-Length: {2**64 + SIZE}"),
    "a coding behind a tab, in capitals": sized("Transfer-Encoding:\tChunked \t", body=chunked(BODY)),
    "that, and a length": either("Transfer-Encoding:\tChunked \t"),
    "two codings in two lines": sized("Transfer-Encoding: identity", "Transfer-Encoding: chunked", body=BOTH),
    "chunked twice": sized("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=BOTH),
    "compressed and chunked": sized("Transfer-Encoding: gzip, chunked", body=chunked(BODY)),
    "a name with an underscore": either("Transfer_Encoding: chunked"),
    "a carriage return within a header": either("X: a\rTransfer-Encoding: chunked"),
    "a NUL within a header": either("X: a\0Transfer-Encoding: chunked"),
    "a header that goes on, of addresses": sized(f"X-Forwarded-For: 8.8.8.8,\r\n {LISTED}", f"Content-Length: {SIZE}"),
    "a first header that goes on": sized(
        f"Content-Length: {SIZE}", head=HEAD.replace("Host", " Transfer-Encoding: chunked\r\nHost")
    ),
    "a header without a colon": either("Transfer-Encoding chunked"),
    "an address of one's own": sized(f"X-Forwarded-For: {LISTED}", f"Content-Length: {SIZE}"),
    "two of them": sized(f"X-Forwarded-For: {LISTED}", f"X-Forwarded-For: {LISTED}", f"Content-Length: {SIZE}"),
    "one that is to be dropped on the way": sized(
        "Connection: X-Forwarded-For", f"X-Forwarded-For: {LISTED}", f"Content-Length: {SIZE}"
    ),
    "a length that is to be dropped on the way": sized(
        "Connection: Content-Length", f"Content-Length: {len(TWICE)}", body=TWICE
    ),
    "chunks with extensions": f'{CHUNKS}{SIZE:x};a="b"\r\n{BODY}\r\n0;c\r\n\r\n',
    "an extension that ends in LF": f"{CHUNKS}{SIZE:x};a\n{BODY}\r\n0\r\n\r\n",
    "chunks that end in LF": CHUNKS + chunked(BODY).replace("\r\n", "\n"),
    "a size of many zeros": f"{CHUNKS}{SIZE:030x}\r\n{BODY}\r\n0\r\n\r\n",
    "a size and another": f"{CHUNKS}{SIZE:x} {SIZE:x}\r\n{BODY}\r\n0\r\n\r\n",
    "a chunk that does not end": f"{CHUNKS}{SIZE:x}\r\n{BODY}0\r\n\r\n",
    "trailers": f"{CHUNKS}{SIZE:x}\r\n{BODY}\r\n0\r\nX-Forwarded-For: {LISTED}\r\nContent-Length: 5\r\n\r\n",
    "a GET with a body": f"GET /webhook HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(TWICE)}\r\n\r\n{TWICE}",
    "a body that waits to be wanted": sized("Expect: 100-continue", f"Content-Length: {len(TWICE)}", body=TWICE),
    "another protocol": sized(
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        f"Content-Length: {SIZE}",
    ),
    "a websocket": sized(
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        f"Content-Length: {len(TWICE)}",
        body=TWICE,
    ),
    "a version that is none": either("Transfer-Encoding: chunked", head=HEAD.replace("HTTP/1.1", "HTTP/1.2")),
    "empty lines before it": "\r\n\r\n" + sized(f"Content-Length: {SIZE}"),
}
