"""Which secrets are called weak: those that people think up, and none that a machine made at random."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import Auth, path_token
from bridge.strength import ENOUGH, LENGTH, Weak, bits, make, weak_secrets

ALPHANUMERIC = string.ascii_letters + string.digits

#: How secrets of at least 128 bits are made elsewhere.
RECIPES: dict[str, Callable[[random.Random], str]] = {
    "openssl rand -hex 16": lambda dice: dice.randbytes(16).hex(),
    "openssl rand -hex 32": lambda dice: dice.randbytes(32).hex(),
    "in capitals": lambda dice: dice.randbytes(16).hex().upper(),
    "secrets.token_urlsafe(16)": lambda dice: text(dice, ALPHANUMERIC + "-_", 22),
    "secrets.token_urlsafe(32)": lambda dice: text(dice, ALPHANUMERIC + "-_", 43),
    "openssl rand -base64 16": lambda dice: text(dice, ALPHANUMERIC + "+/", 22) + "==",
    "letters and digits": lambda dice: text(dice, ALPHANUMERIC, 22),
    "small letters": lambda dice: text(dice, string.ascii_lowercase, 28),
    "small letters and digits": lambda dice: text(dice, string.ascii_lowercase + string.digits, 26),
    "a password manager's": lambda dice: text(dice, ALPHANUMERIC + "!#$%&*@^", 24),
    "base32": lambda dice: text(dice, string.ascii_uppercase + "234567", 26),
    "base32, small": lambda dice: text(dice, string.ascii_lowercase + "234567", 26),
    "two UUIDs": lambda dice: f"{uuid.UUID(bytes=dice.randbytes(16))}{uuid.UUID(bytes=dice.randbytes(16))}",
    "digits": lambda dice: text(dice, string.digits, 40),
}

THOUGHT_UP = """
changeme
hunter2
Sommer2024!
first-token
swordfishswordfishswordfishswordfish
passwordpasswordpasswordpassword
00000000000000000000000000000000000000000
12345678901234567890123456789012345678901234567890
abcdefghijklmnopqrstuvwxyz0123456789
zyxwvutsrqponmlkjihgfedcba9876543210
qwertyuiopasdfghjklzxcvbnm1234567890
deadbeefdeadbeefdeadbeefdeadbeef
aB3$aB3$aB3$aB3$aB3$aB3$aB3$aB3$
a-token-that-nobody-may-read-anywhere
correct-horse-battery-staple
correct horse battery staple and more words
my-very-secret-webhook-token-for-whatsapp-2024
thisisalongpasswordthatnobodyknows
OpenTheGardenGateWheneverIKnock
HomeAssistantIsTheBestThingEver
WhatsAppWebhookSecretToken2026!
das-ist-ein-sehr-geheimes-wort-fuer-das-gartentor
ichmoechtedasgaragentoroeffnen
el-perro-de-san-roque-no-tiene-rabo-nunca
ouvre-toi-sesame-porte-du-garage-rouge
johnjacobjingleheimerschmidt1985
jackandjillwentupthehilltofetch1985
Th1s1sMyS3cr3tT0k3nF0rTh3G4t3
MyD0gN4m3dR3xL1k3sT0Ch4s3C4ts2024
Gr3etingsFr0mTh3G4rd3nG4t3AtH0me
kjhgkjhgkjshdfkjahsdlkfjhaslkdjfh
2026-11-26T02:10:51
d41d8cd98f00b204
""".strip().splitlines()


def text(dice: random.Random, alphabet: str, length: int) -> str:
    return "".join(dice.choice(alphabet) for _ in range(length))


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_machine_made_at_random_is_not_called_weak(recipe: str) -> None:
    """A warning that is wrong teaches to ignore the one that is right."""
    dice = random.Random(recipe)
    weak = [secret for secret in (RECIPES[recipe](dice) for _ in range(1_000)) if bits(secret) < ENOUGH]
    assert len(weak) <= 2, weak


@pytest.mark.parametrize("secret", THOUGHT_UP)
def test_what_people_think_up_is_called_weak(secret: str) -> None:
    """It is in the lists that guessers try, or in the reach of a few machines."""
    assert bits(secret) < ENOUGH


def test_a_uuid_is_called_weak() -> None:
    """122 bits at most, and of the kind with a clock in it, hardly any."""
    assert bits(str(uuid.UUID(int=random.Random(1).getrandbits(128), version=4))) == 122
    assert bits("6F9619FF-8B86-11D0-B42D-00CF4FC964FF") < ENOUGH


def test_ours_is_good_and_fits_everywhere() -> None:
    """A secret that the next start calls weak, or that the path does not take, makes nobody rotate it."""
    made = {make() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert len(secret) == LENGTH
        assert bits(secret) >= ENOUGH
        assert path_token(secret) == secret
        assert secret.isalnum()


@given(st.text())
def test_any_text_has_an_estimate(secret: str) -> None:
    """The bridge would not start for want of a number that is only good for a warning."""
    assert 0 <= bits(secret) <= 8 * len(secret.encode("utf-8", "replace")) + 8


def test_a_longer_one_is_never_weaker_by_what_is_random_in_it() -> None:
    """Who adds words to a good secret must not be told that it is bad now."""
    for _ in range(100):
        assert bits(make() + "-for-the-garden-gate") >= ENOUGH


def test_a_very_long_one_takes_no_time() -> None:
    """A secret from a file may by mistake be a whole file."""
    assert bits("x7" * 500_000) < ENOUGH


class TestSettings:
    def test_each_weak_one_is_named_by_its_place(self) -> None:
        """While a secret is rotated there are two, and only one of them is to be replaced."""
        good = make()
        auth = Auth(
            path_token=(good, "first-token"),
            header_token=("hunter2",),
            basic=(f"user:{good}", f"{good}:hunter2"),
            meta_verify_token=("verify",),
        )
        assert list(weak_secrets(auth)) == [
            Weak("webhook.auth.path_token", 2, 2),
            Weak("webhook.auth.header_token", 1, 1),
            Weak("webhook.auth.basic", 2, 2),
            Weak("webhook.auth.meta_verify_token", 1, 1),
        ]

    def test_what_others_made_is_not_looked_at(self) -> None:
        """Meta and the vendor choose theirs, and the user cannot choose another."""
        assert list(weak_secrets(Auth(meta_app_secret=("short",), vendor_secret=("key:short",)))) == []

    def test_good_ones_are_not_named(self) -> None:
        """Nothing to do, nothing to say."""
        auth = Auth(
            path_token=(make(),), header_token=(make(),), basic=(f"user:{make()}",), meta_verify_token=(make(),)
        )
        assert list(weak_secrets(auth)) == []

    def test_the_words_have_the_place_and_the_remedy_and_never_the_secret(self) -> None:
        """Logs are copied and shown; a warning with the secret in it would be the leak itself."""
        auth = Auth(path_token=("swordfish-1", "swordfish-2"), basic=("swordfish-user:swordfish-3",))
        for weak in weak_secrets(auth):
            assert "swordfish" not in f"{weak}{weak!r}"
            assert weak.setting in str(weak)
            assert "`whatsapp2mqtt secret`" in str(weak)
        assert "(number 2 of 2)" in str(list(weak_secrets(auth))[1])
        assert "number" not in str(list(weak_secrets(auth))[2])
