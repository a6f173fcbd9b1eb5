"""docs/licences.md is what the packages say of themselves; `scripts/licences` writes it anew."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "licences.md"

HEAD = """\
# Licences

whatsapp2mqtt is under the MIT licence. These packages come along with it, in the versions of `requirements.txt`, each
under its own licence as it says itself. `scripts/licences` writes this page.

| package | version | licence |
|---|---|---|
"""

#: What some packages write, and its name in the list of SPDX.
SPDX = {
    "any-OSI": "any licence that the OSI approves of",
    "BSD License": "BSD-3-Clause",
    "ZPL 2.1": "ZPL-2.1",
}


def locked() -> dict[str, str]:
    """Packages and versions of the lock file."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def licence(name: str) -> str:
    """What a package that is installed here says: newer ones as an expression, older ones in a line or a class."""
    found = metadata(name)
    words = found.get("License-Expression") or (found.get("License") or "").strip()
    if not words or "\n" in words:
        kinds = [kind for kind in found.get_all("Classifier") or [] if kind.startswith("License ::")]
        words = ", ".join(kind.rpartition(" :: ")[2] for kind in kinds)
    assert words, f"{name} does not say its licence; look, and write it here"
    return SPDX.get(words, words)


def page() -> str:
    """The text that the page must have."""
    rows = "".join(f"| {name} | {version} | {licence(name)} |\n" for name, version in locked().items())
    return HEAD + rows


def test_the_page_names_the_licence_of_everything_that_comes_along() -> None:
    """Whoever ships the bridge must know what it is made of."""
    assert PAGE.read_text() == page(), "run scripts/licences"


def test_no_licence_asks_more_of_who_ships_it_than_to_say_so() -> None:
    """Under the GPL the bridge itself could not stay under the MIT licence."""
    assert not [name for name in locked() if re.search(r"\bA?GPL", licence(name))]


if __name__ == "__main__":
    PAGE.write_text(page())
