"""The bridge's own secret, in its state directory: numbers and identities are keyed with it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from bridge.config import ConfigError, Settings, state_directory
from bridge.privacy import Veil

#: Bytes.
LENGTH = 32


def path() -> Path:
    return state_directory() / "privacy.key"


def veil_of(settings: Settings, *, make: bool = False) -> Veil | None:
    """What hides numbers under these settings; None: nothing ever did.

    Where numbers were once hidden there is a key, and identities stay keyed with it for good: the same callback is
    known again whatever `privacy.numbers` says by then.

    Args:
        settings: In force.
        make: Make the key if numbers are to be hidden and there is none.

    Raises:
        ConfigError: The key cannot be read or made, or is none.
    """
    numbers = settings.privacy.numbers
    key = _read()
    if key is None and numbers != "keep":
        if not make:
            raise ConfigError([f"privacy.numbers: there is no {path()} yet; start the bridge once, it makes it"])
        key = _make()
    return None if key is None else Veil(numbers, key)


def veils_of() -> list[Veil]:
    """All by which numbers may ever have been hidden here, whatever the settings say now: a mask needs no key.

    Raises:
        ConfigError: As in `veil_of`.
    """
    key = _read()
    return [Veil("mask", key or b"")] + ([Veil("hash", key)] if key is not None else [])


def _read() -> bytes | None:
    try:
        written = path().read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"privacy.numbers: {path()} cannot be read: {_why(error)}"]) from error
    if not re.fullmatch(rf"[0-9a-f]{{{2 * LENGTH}}}", written):
        hint = (
            "put it back from a copy, or delete it: then a new one is made, and numbers get other hashes from then on"
        )
        raise ConfigError([f"privacy.numbers: {path()} holds no key; {hint}"])
    return bytes.fromhex(written)


def _make() -> bytes:
    """Make the key; where another process was faster, its key is the one."""
    unfinished = path().with_name(f"privacy.key.{os.getpid()}")
    try:
        path().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(LENGTH)}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path())
        folder = os.open(path().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError([f"privacy.numbers: {path()} cannot be made: {_why(error)}"]) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    key = _read()
    assert key is not None, "the key that was just made is there"  # noqa: S101  (whoever deletes it knows)
    return key


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is no text"
