"""Phone numbers out of sight: in updates and dead letters as `privacy.numbers` says, in logs always. Pure.

Promises kept here (numbers as in docs/how-it-works.md):
  3. Stored once: an update is told apart by its own identity, keyed, whatever is shown of it. Two people whose numbers
     look alike once they are masked stay two.

What is replaced is replaced the same way each time, so ids still match, and what was replaced is left alone the next
time: a dead letter is tried again without its numbers.

Where numbers are found: in keys that name a person, in texts that read like a number, and in ids around it. WhatsApp's
ids carry it: `wamid.` and base64 of bytes with the number's digits among them, or, from the On-Premises API, base64 of
0x80 0x11 and the number in packed decimal (both seen by decoding the ids of public examples).
"""

from __future__ import annotations

import binascii
import dataclasses
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import orjson

from bridge import topics
from bridge.model import ButtonClick, Update
from bridge.spellings import BEFORE, GAP, PLUS, SEPARATORS, WIDE_GAP, undisguised
from bridge.topics import Entry

#: Keys of callbacks whose values are people: numbers, users, groups.
PERSON_KEYS = frozenset(
    (
        *("from", "from_user_id", "to", "to_user_id", "wa_id", "user_id", "parent_user_id", "participant", "author"),
        *("recipient_id", "recipient_user_id", "recipient_participant_id", "recipient_participant_user_id"),
        *("phone", "phone_number", "customer", "sender", "group_id"),
    )
)
#: Keys whose values are the business' own, which stands on everything it sends.
BUSINESS_KEYS = frozenset(
    ("business_phone", "merchant_phone", "display_phone_number", "phone_number_id", "wabaId", "waba_id", "app_id")
)
#: Keys whose values are ids of messages.
ID_KEYS = frozenset(("id", "message_id", "msg_id", "meta_msg_id", "mid", "wamid"))
#: Keys whose values automations hang on.
WORD_KEYS = frozenset(("payload", "title"))
#: Keys whose values are digits and never a person's: times, codes, the template's id.
NUMERIC_KEYS = re.compile(r".*(timestamp|time|_at|code|count|amount|expir\w*)|templateId|template_id").fullmatch

#: 7 to 15 digits (ITU-T E.164 has no longer ones), as people write them.
_NUMBER = rf"(?:{PLUS}|(?<!\d))\(?\d(?:{WIDE_GAP}\d){{6,14}}(?!\d)"
#: Commas stand in numbers as well, in groups, but also in amounts (1,234,567.89) and lists.
_AMOUNT = r"\d{1,3}(?:,\d{3}){1,2}(?!,?\d)"
_COMMAS = rf"(?<!\d)(?<!\d[,.])(?!{_AMOUNT})(?=(?:\d,?){{7,15}}(?![\d,]))\d{{1,5}}(?:,\d{{2,5}}){{2,4}}(?!\d)"
_RUN = re.compile(r"(?<!\d)\d{7,15}(?!\d)")
# Each begins where nothing of its kind stands before it, and gives nothing back: no text takes more than one look.
_VEILED = r"h-[0-9a-f]{16}(?:@[\w.]+)?(?!\w)|(?<!\*)\*{3,}+[^\s*]{0,4}(?:@[\w.]+)?(?![\w*])"
_WAMID = r"wamid\.[A-Za-z0-9+/_=\-]+"
_WORD = r"[A-Za-z0-9+/_\-]{12,}={0,2}"
_DATE = r"(?<!\d)\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d{1,9})?)?(?![\d-])"
_PARTS = re.compile(
    rf"(?P<veiled>{_VEILED})|(?P<wamid>{_WAMID})|(?P<date>{_DATE})|(?P<word>{_WORD})|(?P<commas>{_COMMAS})"
    rf"|(?P<number>{_NUMBER})"
)
is_veiled = re.compile(_VEILED).fullmatch
_IS_OPAQUE = re.compile(r"(?:wamid\.|id\.)?(?:[0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})")
_INTERNATIONAL = re.compile(rf"{PLUS}\(?\d(?:{GAP}\d){{6,14}}(?!\d)")
is_phone_like = re.compile(rf"{BEFORE}{PLUS}?{BEFORE}\d[\d{SEPARATORS}]*").fullmatch
_UNUSUAL = re.compile("[,_]")
ANY_WORD = re.compile(_WORD)

#: So many people of one callback are looked for within words, too; of more, whole words alone: the time that takes
#: would grow with their number times the length of all texts.
MANY_PEOPLE = 100
_TOKEN = re.compile(r"\w[\w.@+\-]{3,}\w")

#: What is kept of a body that cannot be searched for numbers.
NOT_KEPT = "{} bytes that are no readable text are not kept, as they could hold a number (privacy.numbers)"


def is_opaque(text: str) -> bool:
    """Whether this is an id that cannot hold a number: 32 hex digits or a UUID."""
    return _IS_OPAQUE.fullmatch(text) is not None and not _is_hex_of_digits(text)


def _is_hex_of_digits(text: str) -> bool:
    found = text.rpartition(".")[2]
    return len(found) == 32 and _RUN.search(bytes.fromhex(found).decode("latin-1")) is not None


def decoded(token: str) -> Iterable[bytes]:
    """What a text of base64 (either alphabet, from any place on, with or without its end) or hex may stand for."""
    plain = token.rstrip("=").translate(_STANDARD)
    for start in range(4):
        part = plain[start:]
        if len(part) % 4 == 1:
            part = part[:-1]
        try:
            yield binascii.a2b_base64(part + "=" * (-len(part) % 4))
        except binascii.Error:
            continue
    digits = token[: len(token) // 2 * 2]
    try:
        yield bytes.fromhex(digits)
    except ValueError:
        return


_STANDARD = str.maketrans("-_", "+/")


def hides_number(token: str) -> bool:
    """Whether an encoded text has a number in it."""
    if token.startswith(("gBE", "gBG")):  # 0x80 0x11, and a number in packed decimal
        return True
    return any(_RUN.search(found.decode("latin-1")) for found in decoded(token))


class Veil:
    """Replaces numbers; made once, used by many threads.

    Args:
        numbers: `mask` or `hash`; `keep` leaves all texts alone, and keys the identities only.
        key: 32 bytes that nobody else knows.
    """

    def __init__(self, numbers: str, key: bytes) -> None:
        self._numbers = numbers
        self._key = key

    def keyed(self, purpose: str, text: str) -> str:
        """32 hex digits that nobody without the key can work out, or try numbers against."""
        said = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, said, hashlib.sha256).hex()[:32]

    def hashing(self) -> Veil:
        """This one, but with everybody's hash: what it hides must be known again."""
        return self if self._numbers == "keep" else Veil("hash", self._key)

    def event_id(self, event_id: str) -> str:
        """The identity of an update: a bare hash of ten digits would be found by trying all of them."""
        return self.keyed("event", event_id)

    def entry(self, update: Update, received: float, *, encode_dots: bool = False) -> Entry:
        """As `topics.entry`, without numbers."""
        return topics.entry(
            self.update(update), received, encode_dots=encode_dots, event_id=self.event_id(update.event_id)
        )

    def update(self, update: Update) -> Update:
        """An update without numbers. Never raises."""
        if self._numbers == "keep":
            return update
        if isinstance(update, ButtonClick):
            return self._click(update)
        sight = _Sight(self, (update.recipient_id, update.participant_id), (update.business_phone,))
        return dataclasses.replace(
            update,
            message_id=sight.identifier(update.message_id),
            status=sight.word(update.status),
            recipient_id=sight.person(update.recipient_id),
            conversation=sight.anything(update.conversation),
            errors=sight.anything(update.errors),
        )

    def _click(self, click: ButtonClick) -> ButtonClick:
        sight = _Sight(self, (click.sender,), (click.business_phone,))
        template = click.template
        if template is not None and "parameters" in template:
            template = template | {"parameters": sight.anything(template["parameters"])}
        return dataclasses.replace(
            click,
            payload=sight.word(click.payload),
            message_id=sight.identifier(click.message_id),
            text=None if click.text is None else sight.word(click.text),
            sender=sight.person(click.sender),
            name=None if click.name is None else sight.text(click.name),
            context=sight.anything(click.context),
            tag_name=None if click.tag_name is None else sight.text(click.tag_name),
            wa_ext=sight.json_or_text(click.wa_ext),
            template=template,
        )

    def body(self, body: bytes) -> bytes:
        """A callback's body, or a part of one, without numbers; for the dead letters. Never raises."""
        if self._numbers == "keep":
            return body
        try:
            root = orjson.loads(body)
            people, business = _people(root)
            return orjson.dumps(_Sight(self, people, business).anything(root))
        except (ValueError, RecursionError, TypeError):
            pass  # no JSON that can be walked through: read as text
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            return NOT_KEPT.format(len(body)).encode()
        if "\0" in text:  # UTF-16, or something packed
            return NOT_KEPT.format(len(body)).encode()
        return _Sight(self, (), ()).text(text).encode()

    def person(self, text: str) -> str:
        """A number, user or group, replaced; what was replaced before stays."""
        if self._numbers == "keep" or not text or is_veiled(text):
            return text
        local, at, server = text.partition("@")
        if self._numbers == "hash":
            return f"{self.hashed(local)}{at}{server}"
        local = canonical(local)
        shown = 4 if len(local) > 7 else 0
        return f"{'*' * max(3, len(local) - shown)}{local[len(local) - shown :]}{at}{server}"

    def hashed(self, text: str) -> str:
        """What stands for a person under `hash`; the same for all spellings of a number."""
        return f"h-{self.keyed('person', canonical(text))[:16]}"

    def identifier(self, text: str) -> str:
        """What stands for a message id that a number is in: as unique as the id itself."""
        return f"{'wamid' if text.startswith('wamid.') else 'id'}.{self.keyed('id', text).upper()}"


def canonical(text: str) -> str:
    """A number without what people put between its digits; any other text as it is."""
    if not is_phone_like(text):
        return text
    if "(0)" in text:  # what is dialled within a country, after its code
        text = text.replace("(0)", "")
    digits = "".join(str(int(one)) for one in text if one.isdecimal())
    return digits.removeprefix("00")


class _Sight:
    """The people of one callback, by whom texts are searched."""

    def __init__(self, veil: Veil, people: Iterable[str | None], business: Iterable[str | None]) -> None:
        self._veil = veil
        self._business = {canonical(one) for one in business if one}
        found = {one for one in people if one and len(one) >= 5 and not is_veiled(one)}
        found |= {canonical(one) for one in found}
        self._people = frozenset(one for one in found if canonical(one) not in self._business)
        # The longest first: one may begin another.
        self._within = sorted(self._people, key=len, reverse=True) if len(self._people) <= MANY_PEOPLE else ()

    def person(self, text: str | None) -> str | None:
        return None if text is None else self._replaced(text)

    def _replaced(self, text: str) -> str:
        return text if canonical(text) in self._business else self._veil.person(text)

    def identifier(self, text: str) -> str:
        """A message id: replaced whole if there is a number in it, as it must stay unique."""
        return self._veil.identifier(text) if self._carries(text) else text

    def _carries(self, text: str) -> bool:
        if is_opaque(text) or is_veiled(text):
            return False
        if text.startswith("wamid.") and re.fullmatch(_WAMID, text):
            return len(text) > 12 or _RUN.search(text) is not None
        return (
            _RUN.search(text) is not None
            or _INTERNATIONAL.search(text) is not None
            or self._names_someone(text)
            or any(hides_number(token) for token in ANY_WORD.findall(text))
        )

    def _names_someone(self, text: str) -> bool:
        if len(self._people) > MANY_PEOPLE:
            return not self._people.isdisjoint(_TOKEN.findall(text))
        return any(one in text for one in self._within)

    def word(self, text: str) -> str:
        """A text that automations hang on: only what is certainly a number goes, and what stands for it is unique."""
        return self._search(text, _INTERNATIONAL, self._unique)

    def text(self, text: str) -> str:
        """Any other text: all that reads like a number goes, and that as an address or a form writes it."""
        plain = undisguised(text)
        if plain != text and (veiled := self._search(plain, _PARTS, self._part)) != plain:
            return veiled
        return self._search(text, _PARTS, self._part)

    def _search(self, text: str, pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str]) -> str:
        unique = pattern is _INTERNATIONAL
        shown = self._veil.hashed if unique else self._veil.person
        for one in self._within:
            if one in text:
                text = text.replace(one, shown(one))
        if len(self._people) > MANY_PEOPLE:
            text = _TOKEN.sub(lambda found: shown(found[0]) if found[0] in self._people else found[0], text)
        if unique:
            text = _CODED.sub(self._encoded, text)
        return pattern.sub(replace, text)

    def _unique(self, found: re.Match[str]) -> str:
        return found[0] if canonical(found[0]) in self._business else self._veil.hashed(found[0])

    def _part(self, found: re.Match[str]) -> str:
        kind, text = found.lastgroup, found[0]
        if kind in ("number", "commas"):
            return self._replaced(_UNUSUAL.sub("", text))
        if kind in ("wamid", "word"):
            veiled = self._encoded(found)
            # Not encoded, but written within a longer word.
            return (
                _BARE.sub(lambda one: self._replaced(_UNUSUAL.sub("", one[0])), text)
                if veiled == text and kind == "word"
                else veiled
            )
        return text

    def _encoded(self, found: re.Match[str]) -> str:
        """An id or another encoded word, replaced if there is a number in it."""
        text = found[0]
        if found.lastgroup == "wamid":
            return self.identifier(text)
        return self._veil.identifier(text) if not is_opaque(text) and hides_number(text) else text

    def anything(self, value: Any, key: str = "") -> Any:
        """Any JSON value, by the names of its keys."""
        if isinstance(value, dict):
            return {self.text(name): self.anything(below, name) for name, below in value.items()}
        if isinstance(value, list):
            return [self.anything(below, key) for below in value]
        if isinstance(value, str):
            return self._valued(value, key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 1_000_000 <= abs(value) < 1e19:
            digits = str(int(value))
            found = self._valued(digits, key)
            return value if found == digits else found
        return value

    def _valued(self, text: str, key: str) -> str:
        is_numeric = NUMERIC_KEYS(key) and text.isdecimal() and canonical(text) not in self._people
        if key in BUSINESS_KEYS or is_numeric:
            return text
        if key in PERSON_KEYS:
            return self._replaced(text)
        if key in WORD_KEYS:
            return self.word(text)
        if key in ID_KEYS:
            return self.identifier(text)
        return str(self.json_or_text(text))

    def json_or_text(self, value: Any) -> Any:
        """A text that may be JSON itself, as `wa_ext` is; verbatim where nothing in it is a number."""
        if not isinstance(value, str):
            return self.anything(value)
        if value[:1] in ("{", "["):
            try:
                inner = orjson.loads(value)
                veiled = self.anything(inner)
            except (ValueError, RecursionError):
                return self.text(value)
            return value if veiled == inner else orjson.dumps(veiled).decode()
        return self.text(value)


_CODED = re.compile(rf"(?P<wamid>{_WAMID})|(?P<word>{_WORD})")
_BARE = re.compile(_NUMBER)


def _people(root: Any) -> tuple[set[str], set[str]]:
    """Who is named in a body as a person, and who as the business."""
    people: set[str] = set()
    business: set[str] = set()
    level = [root] if isinstance(root, (dict, list)) else []
    while level:
        deeper: list[Any] = []
        for node in level:
            for key, value in node.items() if isinstance(node, dict) else (("", one) for one in node):
                if isinstance(value, (dict, list)):
                    deeper.append(value)
                elif isinstance(value, (str, int)) and not isinstance(value, bool):
                    if key in PERSON_KEYS:
                        people.add(str(value))
                    elif key in BUSINESS_KEYS:
                        business.add(str(value))
        level = deeper
    return people, business


# --- logs --------------------------------------------------------------------------------------------------------

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_APART = f"[{SEPARATORS}]{{1,4}}"
#: Groups of digits, as numbers have them and versions, ports and sizes seldom.
_GROUPS = (
    rf"(?:\(\d{{1,5}}\)[{SEPARATORS}]{{0,2}}\d{{2,5}}|\d{{2,5}}{_APART}\d{{2,5}}|\d{_APART}\(?\d{{3,5}})"
    rf"(?:{_APART}\d{{2,5}}){{1,4}}(?!\d)"
)
#: Narrower than in callbacks: addresses, times, versions and sizes must stay readable in a log.
_LOGGED = re.compile(
    r"(?P<moment>(?<!\d)\d{8}T\d{6}(?!\d)"
    r"|(?<!\d)(?:19|20)\d\d(?P<dash>[\-/.])[01]\d(?P=dash)[0-3]\d(?![\d\-/])"
    r"|(?<!\d)\d\d?:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?!\d))"
    rf"|(?P<address>(?<![\d.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\d|\.\d))"
    r"|(?P<wamid>wamid\.(?:[A-Za-z0-9+/_=\-]|%(?:2B|2F|3D))+)"
    rf"|(?P<international>{PLUS}\(?\d(?:{GAP}\d){{6,14}}(?!\d))"
    r"|(?P<word>[A-Za-z0-9+_\-]{12,}={0,2})"  # no slash: it parts topics and paths, and no encoded digit needs one
    rf"|(?P<number>\d{{7,}}|{_COMMAS}|(?<!\d)(?<!\d\.){_GROUPS})"
)

#: Digits within a longer word, but for a moment as file names have it.
_LONG_RUN = re.compile(r"(?<!\d)\d{7,}+(?!T\d{6})|(?<![A-Za-z0-9])\d{1,5}(?:[\-_]\d{2,5}){2,4}(?![A-Za-z0-9])")


def masked(text: str) -> str:
    """A text as logs may show it: numbers but for their last digits gone, ids that carry one shortened to a mark."""
    if len(text) < 7:
        return text
    plain = undisguised(text)  # a topic has the blank as %20, and the digits of other scripts
    if plain != text and (hidden := _LOGGED.sub(_logged, plain)) != plain:
        return hidden
    return _LOGGED.sub(_logged, text)


def _logged(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found[0]
    if kind in ("international", "number"):
        digits = re.sub(r"\D", "", text)
        return text if len(digits) < 7 else f"***{digits[-2:]}"
    if kind == "wamid":
        rest = "/status" if text.endswith("/status") else ""
        whole = unquote(text.removesuffix(rest))
        # The mark tells messages apart in a log; nothing leads back from it.
        return text if is_opaque(whole) else f"wamid.~{hashlib.sha256(whole.encode()).hexdigest()[:6]}{rest}"
    if kind == "word" and not is_opaque(text):
        return "***" if hides_number(text) else _LONG_RUN.sub(_in_word, text)
    return text


def _in_word(found: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", found[0])
    is_date = re.fullmatch(r"(?:19|20)\d\d([\-_])[01]\d\1[0-3]\d", found[0])
    return found[0] if len(digits) < 7 or is_date else f"***{digits[-2:]}"
