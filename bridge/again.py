"""Retained topics once more, for a broker that lost some and does not show it."""

from __future__ import annotations

from collections.abc import Iterator

from bridge.journal import Household

#: Topics that are looked up at once.
SLICE = 1_000
#: Sorts behind every place.
LAST_PLACE = 2**62
#: Sorts behind every topic.
LAST_TOPIC = "\U0010ffff"


def topics_since(journal: Household, moment: float) -> Iterator[str]:
    """The retained topics that stand, below the base topic, and carry an update received from a moment on.

    Args:
        journal: Where they stand.
        moment: Epoch seconds.
    """
    at = (journal.place_before(moment), LAST_TOPIC)
    while rows := journal.retained(at, LAST_PLACE, SLICE):
        yield from (row.topic for row in rows)
        at = (rows[-1].seq, rows[-1].topic)
