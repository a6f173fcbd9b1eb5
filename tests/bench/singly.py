"""The bridge without group commit: each request has a commit, and so an fsync, of its own."""

from __future__ import annotations

import math

from bridge import receiver
from bridge.cli import main
from bridge.journal import commit

load = receiver.load


def load_singly(settings: receiver.ReceiverSettings, parent: int) -> receiver.Receiver:
    """Called in the receiver's process, by granian."""
    commit.MAX_UPDATES = 1
    commit.SLOW = math.inf  # there is nobody to wait for
    return load(settings, parent)


def run() -> None:
    """As `whatsapp2mqtt`."""
    receiver.load = load_singly
    main()
