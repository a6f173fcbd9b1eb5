"""How hard a secret is to guess, as far as it shows. Pure.

Nobody can see how a secret was made. What can be seen is of which characters it is, whether it repeats itself or what
everybody types, and whether it reads like words: an estimate from above, that takes what looks random for random.
"""

from __future__ import annotations

import functools
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
#: What hands that hammer on the keys bring forth.
_HANDS = ("asdfghjkl", "asdfghjklöä", "qwertyuiop", "qwertzuiop")
#: Alphabets of which a text is made that has no other characters, the smallest first.
_WHOLE = (
    *(string.digits, "0123456789abcdef", "0123456789ABCDEF", *_HANDS),
    *(string.ascii_lowercase + "234567", string.ascii_uppercase + "234567"),  # base32, also if it has no digit
)
_SIGNS = "!\"#$%&'()*,.:;<>?@[\\]^`{|}~"
#: In place of all that are not ASCII: nobody chooses from more.
_OTHERS = "".join(map(chr, range(0x100, 0x140)))
#: Characters; fewer that are known already may be so by chance.
_REPEATED = 6
#: Pairs of letters that make up two thirds of a text in a language of western Europe, and a sixth of a random one.
_PAIRS = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me "
    "de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ei ie ge un la ta el di os ad et id us no ke ot "
    "ut em am il lo wh ee ss tt so do ac ai ca ec ns rs sh tr wa we ni ol na po pe ag ho mo ck ul"
)
#: What is typed in place of letters, so that words do not look like words.
_DISGUISE = str.maketrans("0134578@$!", "oieastbasi")
#: A text has so many of them by chance once in so many times: then it is called words, or words in disguise.
_CHANCE, _CHANCE_IN_DISGUISE = 2e-4, 2e-5
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
    alphabet = _alphabet(text)
    each = math.log2(len(alphabet))
    letters = _letters_of_words(text, alphabet)
    folded = text.lower()
    total, at = 0.0, 0
    while at < len(text):
        if length := _known_before(folded, at):
            total += math.log2(len(_KNOWN) + at)
            at += length
        else:
            total += min(each, _LETTER) if text[at] in letters else each
            at += 1
    return total


def _alphabet(text: str) -> frozenset[str]:
    """Of which characters a text seems to be made."""
    used = set(text)
    for whole in _WHOLE:
        if used <= set(whole):
            return frozenset(whole)
    kinds = (string.digits, string.ascii_lowercase, string.ascii_uppercase, "-_", "+/=", " ", _SIGNS)
    found = {one for kind in kinds if used & set(kind) for one in kind}
    if found >= set(string.ascii_letters):
        # Both cases: whoever mixed these would have taken digits, too, and signs if there is one.
        found |= set(string.digits if used <= set(ALPHABET + "-_+/=") else string.digits + _SIGNS + "-_+/=")
    return frozenset(found if text.isascii() else found | set(_OTHERS)) or frozenset("01")


def _letters_of_words(text: str, alphabet: frozenset[str]) -> frozenset[str]:
    """The letters of a text that reads like words, with those in disguise if it takes these to do so; else none."""
    tries: list[tuple[dict[int, int], float]] = [({}, _CHANCE)]
    if any(map(str.isalpha, text)):
        tries.append((_DISGUISE, _CHANCE_IN_DISGUISE))
    for disguise, limit in tries:
        pairs = [pair for a, b in itertools.pairwise(text) if (pair := _pair(a, b, disguise))]
        usual = sum(pair in _PAIRS for pair in pairs)
        rate = _rate(alphabet, is_disguised=bool(disguise))
        chance = sum(
            math.comb(len(pairs), hits) * rate**hits * (1 - rate) ** (len(pairs) - hits)
            for hits in range(usual, len(pairs) + 1)
        )
        if chance < limit:
            return frozenset(one for one in text if one.translate(disguise).isalpha())
    return frozenset()


def _pair(a: str, b: str, disguise: dict[int, int]) -> str:
    """Two letters that follow each other in a word, in small letters; or nothing."""
    pair = (a + b).translate(disguise)
    return pair.lower() if pair.isalpha() and not b.isupper() else ""


@functools.cache
def _rate(alphabet: frozenset[str], *, is_disguised: bool) -> float:
    """How many of the pairs of a random text are usual ones."""
    disguise = _DISGUISE if is_disguised else {}
    pairs = [pair for a, b in itertools.product(alphabet, repeat=2) if (pair := _pair(a, b, disguise))]
    return sum(pair in _PAIRS for pair in pairs) / max(1, len(pairs))


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
