"""docs/troubleshooting.md has every error and warning that a user can meet, in its exact words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)

#: Whose words are for the user. Those about settings explain themselves, and a body's stand in its dead letter.
FOR_USERS = {
    "StartError",
    "PortError",
    "NotRunningError",
    "JournalError",
    "NotStoredError",
    "ConnectionEndedError",
    "BrokerMissingError",
    "CleanError",
    "ForgetError",
    "SimulationError",
    "InstallError",
    "warning",
    "error",
}
#: What needs no more words than it has: it passes on what another one said, or says all there is to do.
PLAIN = {
    "…: …",
    "… (this is …)",
    "journal …: …",
    "the receiver is stopping",
    "a thread ended",
    "it was left out",
    "the log level is changed",
    "… is no kind; choose from …, or ……",
    "the url is none (…); write e.g. http://127.0.0.1:8080/webhook",
    "the url names no host or no protocol; write e.g. http://127.0.0.1:8080/webhook",
    "the url, or a secret sent in a header, holds characters that HTTP cannot send",
}


def words(node: ast.expr) -> str | None:
    """The text of an argument, `…` for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def said() -> Iterator[tuple[str, str]]:
    """Where each error for users is made, and its words."""
    for file in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                text = words(node.args[0])
                if name in FOR_USERS and text is not None:
                    yield f"{file.name}:{node.lineno}", text


SAID = dict(said())
#: Everything that the code could say.
TEXTS = {
    text
    for file in (ROOT / "bridge").rglob("*.py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, (ast.Constant, ast.JoinedStr)) and (text := words(node))
}


def fits(heading: str, text: str) -> bool:
    """Whether a heading has these words: `…` stands for anything, and the end may be left out."""
    pattern = ".*".join(re.escape(part) for part in heading.split("…"))
    return re.match(pattern, text.replace("`", "")) is not None


@pytest.mark.parametrize(("place", "text"), SAID.items(), ids=SAID)
def test_an_error_is_explained(place: str, text: str) -> None:
    """Whoever searches the documents for the words on the screen would find nothing."""
    explained = text in PLAIN or any(fits(heading, text) for heading in HEADINGS)
    assert explained, f"{place}: explain `{text}` in docs/troubleshooting.md"


@pytest.mark.parametrize("heading", HEADINGS)
def test_an_error_that_is_explained_can_come(heading: str) -> None:
    """A page of errors that were renamed long ago is searched in vain."""
    assert any(fits(heading, text) for text in TEXTS)


def test_no_two_headings_are_the_same() -> None:
    """The second would never be read."""
    assert len(set(HEADINGS)) == len(HEADINGS)
