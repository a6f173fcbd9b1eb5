"""What docs/scaling.md needs on paper follows from what it assumes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
DAY = 86_400


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of a table by their first column; the other columns."""
    table = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n", 1)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {first: others for first, *others in cells}


ASSUMED = {name: float(cells[0].replace(",", "")) for name, cells in rows("assumption").items()}
NEEDED = {name: cells[1] for name, cells in rows("needed").items()}

RATE = ASSUMED["updates a second, day and night"]
MESSAGES = RATE / ASSUMED["updates of a message"]
KEPT = RATE * ASSUMED["hours of `journal.keep`"] * 3600
STANDING = MESSAGES * ASSUMED["minutes of `retain.status`"] * 60
BYTES = ASSUMED["bytes of an update in its tables, with indices"]
LOG = RATE * (ASSUMED["bytes of log for an update stored"] + ASSUMED["bytes of log for an update pruned"])
COMMITS = RATE / ASSUMED["updates in a commit"]
PUBLISHED = RATE * ASSUMED["publications an update"]
SERVER = RATE * ASSUMED["database's microseconds an update"] / 1e6

CALCULATED = {
    "rows a day": RATE * DAY,
    "bytes stored a day": RATE * DAY * BYTES,
    "rows at a time": KEPT,
    "bytes of tables at a time": KEPT * BYTES + STANDING * ASSUMED["bytes of a topic in the ledger, with indices"],
    "bytes of log a second": LOG,
    "bytes of log a day": LOG * DAY,
    "messages a second": MESSAGES,
    "retained topics at a time": STANDING,
    "memory of each broker for them": STANDING * ASSUMED["bytes of a retained topic in the broker"],
    "publications a second": PUBLISHED,
    "publications a second of each partition": PUBLISHED / ASSUMED["partitions of statuses"],
    "commits a second": COMMITS,
    "share of time in which the journal's turn is held": (
        SERVER + COMMITS * ASSUMED["milliseconds for the disk in a commit"] / 1000
    ),
    "cores for the bridges": RATE * ASSUMED["bridge's microseconds an update"] / 1e6,
    "cores of the database for storing": SERVER,
    "connections to the database": ASSUMED["bridges, a receiver each"]
    * (1 + ASSUMED["connections of a bridge beside its receivers'"]),
}
UNITS = {"": 1.0, "%": 0.01, "MB": 1e6, "GB": 1e9}


def test_every_line_is_calculated() -> None:
    """A line without a calculation would be a guess among results."""
    assert CALCULATED.keys() == NEEDED.keys()


@pytest.mark.parametrize("name", CALCULATED)
def test_a_line_follows_from_the_assumptions(name: str) -> None:
    """Who plans a set-up by the table would buy too little."""
    found = re.fullmatch(r"([\d,.]+) ?(|%|MB|GB)", NEEDED[name])
    assert found, NEEDED[name]
    digits = found[1].replace(",", "")
    decimals = len(digits.partition(".")[2])
    assert float(digits) == round(CALCULATED[name] / UNITS[found[2]], decimals)


def test_the_words_say_what_the_table_says() -> None:
    """The sentences below the table are what is read first."""
    share = NEEDED["share of time in which the journal's turn is held"]
    assert f"It is held {share} of the time" in PAGE
    assert f"must take {NEEDED['bytes of log a second']} of log a second" in PAGE
