"""A test click: one that says so, and goes the whole way that a click goes."""

from __future__ import annotations

import functools
import secrets
import time

from bridge.config import Settings
from bridge.journal import Callback, Journal
from bridge.model import ButtonClick
from bridge.secret import veil_of
from bridge.topics import entry
from bridge.wakeup import Finger


def click(settings: Settings, journal: Journal, *, payload: str, text: str | None, sender: str | None) -> None:
    """Have a button clicked; on disk when this returns. Automations on it fire, as its JSON differs by `test` alone.

    Args:
        settings: In force.
        journal: Where it is stored.
        payload: Of the button.
        text: On the button.
        sender: Who is to have clicked, for automations that look at that; None: nobody.

    Raises:
        NotStoredError: Nothing was stored; it says why.
    """
    now = time.time()
    made = ButtonClick(
        payload=payload,
        message_id=f"test-{secrets.token_hex(8)}",
        text=text,
        timestamp=int(now),
        sender=sender,
        test=True,
    )
    veil = veil_of(settings, make=True)
    project = functools.partial(veil.entry if veil else entry, encode_dots=settings.mqtt.encode_dots)
    journal.append([Callback((project(made, now),))])
    Finger(settings.journal_path.with_suffix(".bell")).ring()
