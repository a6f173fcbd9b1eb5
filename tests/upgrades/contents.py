"""What is compared of a journal before and after its upgrade, whichever engine has it."""

from __future__ import annotations

from typing import Any

from bridge.journal.postgresql import PostgresqlJournal
from bridge.journal.sqlite import SqliteJournal


def contents(journal: SqliteJournal | PostgresqlJournal) -> dict[str, Any]:
    """All that the bridge reads of a journal."""
    with journal:
        return {
            "updates": journal.pending(0, 1_000),
            "settled": journal.settled(),
            "retained": journal.retained((0, ""), 1_000, 1_000),
            "dead letters": [journal.dead_letter(one.number) for one in journal.dead_letters()],
            "learned": journal.learned(),
            "discoveries": journal.discoveries(),
            "identity": journal.identity(),
        }
