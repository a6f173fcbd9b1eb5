"""The review in docs/security.md: nothing is left out, each status says something, each test that is named is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
REVIEW = PAGE.partition("\n## Review against OWASP ASVS")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (\d.*?) \| (.*?) \| ?(.*?) ?\|$", REVIEW, re.MULTILINE)

#: How many requirements of levels 1 and 2 each section of ASVS 5.0.0 has; they are numbered from 1 on.
REQUIREMENTS = """
1.1: 2, 1.2: 9, 1.3: 11, 1.4: 3, 1.5: 2
2.1: 3, 2.2: 3, 2.3: 4, 2.4: 1
3.2: 2, 3.3: 4, 3.4: 6, 3.5: 5, 3.7: 2
4.1: 3, 4.2: 1, 4.3: 2, 4.4: 4
5.1: 1, 5.2: 3, 5.3: 2, 5.4: 3
6.1: 3, 6.2: 12, 6.3: 4, 6.4: 4, 6.5: 5, 6.6: 3, 6.8: 4
7.1: 3, 7.2: 4, 7.3: 2, 7.4: 5, 7.5: 2, 7.6: 2
8.1: 2, 8.2: 3, 8.3: 1, 8.4: 1
9.1: 3, 9.2: 4
11.1: 2, 11.2: 3, 11.3: 3, 11.4: 4, 11.5: 1, 11.6: 1
12.1: 3, 12.2: 2, 12.3: 4
13.1: 1, 13.2: 5, 13.3: 2, 13.4: 5
14.1: 2, 14.2: 4, 14.3: 3
15.1: 3, 15.2: 3, 15.3: 7
16.1: 1, 16.2: 5, 16.3: 4, 16.4: 3, 16.5: 3
"""


def numbers(cell: str) -> list[str]:
    """The requirements that a row is about: `1.2.6 to 1.2.8, 1.3.1 what they ask`."""
    found = []
    for first, last in re.findall(r"\b(\d+\.\d+\.\d+)(?: to (\d+\.\d+\.\d+))?", cell):
        section, _, begin = first.rpartition(".")
        end = (last or first).rpartition(".")[2]
        assert not last or last.startswith(f"{section}.")
        found += [f"{section}.{number}" for number in range(int(begin), int(end) + 1)]
    return found


def test_every_requirement_has_its_row_and_no_other_has() -> None:
    """What nobody looked at would seem to be fine."""
    reviewed = [number for cell, _, _ in ROWS for number in numbers(cell)]
    sections = re.findall(r"([\d.]+): (\d+)", REQUIREMENTS)
    wanted = [f"{section}.{number}" for section, most in sections for number in range(1, int(most) + 1)]
    assert sorted(reviewed) == sorted(wanted)


@pytest.mark.parametrize(("cell", "status", "_"), ROWS, ids=[cell.split(" ")[0] for cell, _, _ in ROWS])
def test_a_status_is_one_of_three_and_what_is_not_met_says_why(cell: str, status: str, _: str) -> None:
    """A word that means anything means nothing."""
    assert re.match(r"met(\b|:)|not applicable: \w|not met\b.*\w{3}", status), cell


@pytest.mark.parametrize("name", sorted({name for _, _, cell in ROWS for name in re.findall(r"`(.*?)`", cell)}))
def test_a_test_that_is_named_is_there(name: str) -> None:
    """Tests are renamed, and the review would go on to rest on nothing."""
    file, _, test = name.partition("::")
    assert re.search(rf"^ *(async )?def {test}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_nothing_is_called_met_without_a_test_but_what_only_can_be_read() -> None:
    """A review that tests nothing is an opinion."""
    untested = [numbers(cell) for cell, status, tests in ROWS if status.startswith("met") and not tests]
    assert untested == [["11.1.2"], ["11.2.1"], ["13.1.1"], ["13.2.4", "13.2.5"]]
