"""How hard a secret is to guess, as far as it shows. Pure.

Nobody can see how a secret was made. What can be seen is of which characters it is, whether it repeats itself or what
everybody types, and whether it reads like words: an estimate from above, that takes what looks random for random.
"""

from __future__ import annotations

import itertools
import math
import re
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.config import Auth

#: Bits of randomness below which a secret is called weak: what nobody can try through, however fast.
ENOUGH = 128

#: Of a good secret: letters and digits, which stand in addresses, headers and YAML as they are, and are marked by a
#: double click as a whole; 32 of them have 190 bits.
ALPHABET = string.ascii_letters + string.digits
LENGTH = 32

#: What everybody types: rows of keys in both directions, and words that stand where a secret should.
_ROWS = ("abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm")
_WORDS = "password passwort secret geheim token webhook whatsapp mqtt bridge admin changeme example letmein welcome"
_KNOWN = " ".join([*_ROWS, *(row[::-1] for row in _ROWS), _WORDS])
#: Characters; fewer that are known already may be so by chance.
_REPEATED = 6
#: Pairs of letters that make up two thirds of a text in a language of western Europe, and a sixth of a random one.
_PAIRS = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me "
    "de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ei ie ge un la ta el di os ad et id us no ke ot "
    "ut em am il lo wh ee ss tt so do ac ai ca ec ns rs sh tr wa we ni ol na po pe ag ho mo ck ul"
)
#: A text has so many of them by chance once in so many times: then it is called words.
_CHANCE = 1e-5
#: Bits of a letter within words (Shannon, "Prediction and Entropy of Printed English").
_LETTER = 2.0
#: Characters that are looked at; of more, no secret needs to be.
_MOST = 256


def make() -> str:
    """A new secret that nobody guesses, and that does not look weak by chance."""
    while True:
        made = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        if bits(made) >= ENOUGH:
            return made


def bits(secret: str) -> float:
    """The randomness that a secret seems to have, in bits: at most so much, and no less than any part of it."""
    text = secret[:_MOST]
    return max(map(_bits, (text, *re.split(r"[^A-Za-z0-9]+", text))))


def _bits(text: str) -> float:
    if re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text):
        return 122.0  # a UUID: six of its bits say which kind
    each = math.log2(_alphabet(text))
    letter = min(each, _LETTER) if _reads_like_words(text) else each
    folded = text.lower()
    total, at = 0.0, 0
    while at < len(text):
        if length := _known_before(folded, at):
            total += math.log2(len(_KNOWN) + at)
            at += length
        else:
            total += letter if text[at].isalpha() else each
            at += 1
    return total


def _alphabet(text: str) -> int:
    """Of how many characters a text seems to be made."""
    if re.fullmatch(r"[0-9a-f]*|[0-9A-F]*", text):
        return 10 if text.isdigit() else 16
    if set(string.ascii_lowercase) & set(text) and set(string.ascii_uppercase) & set(text):
        # Both cases: whoever mixed these would have taken digits, too, and signs if there is one.
        return 62 + (0 if text.isalnum() else 2 if set(text) <= set(ALPHABET + "-_+/=") else 32)
    kinds = (
        (string.digits, 10),
        (string.ascii_lowercase, 26),
        (string.ascii_uppercase, 26),
        ("-_", 2),
        ("+/=", 2),
        (" ", 1),
        ("!\"#$%&'()*,.:;<>?@[\\]^`{|}~", 27),
    )
    return max(2, sum(size for kind, size in kinds if set(kind) & set(text)) + (0 if text.isascii() else 64))


def _reads_like_words(text: str) -> bool:
    """Whether so many of its pairs of letters are those of a language that this is no chance."""
    pairs = [a + b for a, b in itertools.pairwise(text) if a.isalpha() and b.isalpha() and b.islower()]
    usual = sum(pair.lower() in _PAIRS for pair in pairs)
    rate = (len(_PAIRS) + 1) // 3 / 26**2
    chance = sum(
        math.comb(len(pairs), hits) * rate**hits * (1 - rate) ** (len(pairs) - hits)
        for hits in range(usual, len(pairs) + 1)
    )
    return chance < _CHANCE


def _known_before(text: str, at: int) -> int:
    """How many characters from here on stood before, or are what everybody types; 0: too few."""
    length = 0
    while at + length < len(text):
        piece = text[at : at + length + 1]
        if piece not in _KNOWN and piece not in text[: at + length]:
            break
        length += 1
    return length if length >= _REPEATED else 0


@dataclass(frozen=True, slots=True)
class Weak:
    """A secret that could be guessed; nothing in it tells the secret.

    Attributes:
        setting: Where it stands.
        number: Its place there, from 1.
        of: How many stand there.
    """

    setting: str
    number: int
    of: int

    def __str__(self) -> str:
        which = f" (number {self.number} of {self.of})" if self.of > 1 else ""
        return (
            f"{self.setting}: the secret there{which} looks easy to guess: it seems to have fewer than {ENOUGH} random "
            "bits; `whatsapp2mqtt secret` makes a better one"
        )


def weak_secrets(auth: Auth) -> Iterator[Weak]:
    """Those among the secrets of the webhook that the user chose and that could be guessed.

    Meta's and the vendor's are made by them.
    """
    passwords = [one.partition(":")[2] for one in auth.basic]
    for name, found in (
        ("path_token", auth.path_token),
        ("header_token", auth.header_token),
        ("basic", passwords),
        ("meta_verify_token", auth.meta_verify_token),
    ):
        for number, one in enumerate(found, 1):
            if bits(one) < ENOUGH:
                yield Weak(f"webhook.auth.{name}", number, len(found))
