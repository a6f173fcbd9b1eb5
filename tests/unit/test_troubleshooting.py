"""docs/troubleshooting.md has every error and warning that a user can meet, in its exact words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
#: Of sections, and of rows in tables.
HEADINGS = re.findall(r"^(?:### `(.*)`$|\| `(.*?)` \|)", PAGE, re.MULTILINE)
HEADINGS = [section or row for section, row in HEADINGS]

#: Whose words are for the user, and which argument has them. What is wrong with one setting or with a value in a
#: callback (`Invalid`) says itself what to write; it comes as a line of `ConfigError`, or in a dead letter.
FOR_USERS = {
    **dict.fromkeys(
        (
            *("StartError", "PortError", "NotRunningError", "JournalError", "NotStoredError", "ConnectionEndedError"),
            *("BrokerMissingError", "CleanError", "ForgetError", "SimulationError", "InstallError", "ConfigError"),
            *("RefusedError", "AppError", "WantedError", "NotUnderstoodError", "DeadItem", "fail", "warning", "error"),
            *("UnreachableError", "BusyError", "BrokenStorageError", "NameTakenError", "HiddenError", "SilentError"),
            *("UnknownKindError", "MissingError", "DropInError"),
        ),
        0,
    ),
    "DeadLetter": 1,
    "_give_up": 1,
}
#: Errors that nobody sees.
INSIDE = {"UnreadError": "answered by its kind", "UnreadableError": "a page of a damaged file is passed over"}
#: Functions that make such words for others.
MAKERS = {"_permission_wanted", "_words", "refusal", "unwell", "words", "wrong_with"}

#: What stands for words that were made elsewhere, where they are looked at.
MADE_ELSEWHERE = {
    "error": "an exception",
    "str(error)": "an exception",
    "printable(str(error))": "an exception",
    "why": "what the last broker said, what made `_give_up`, or `unwell`",
    "reason": "`refusal`",
    "self._why": "an exception's words, kept",
    "item.reason": "a DeadItem",
    "_words(error)": "one of the makers",
    "self._permission_wanted(flight.topic, ack.code)": "one of the makers",
    "_reason(name, error)": "one of the makers, of what is wrong with a value",
    "problems": "a line for each setting, with what to write there",
    "(_problem(one, values, origins) for one in error.errors)": "a line for each setting, with what to write there",
}
#: What needs no more words than it has: it passes on what another one said, or says all there is to do.
PLAIN = {
    "…: …",
    "… (…)",
    "… (this is …)",
    "journal …: …",
    "a thread ended",
    "it was left out",
    "it says …",
    "the log level is changed",
    # A slip in what was typed, and what to type.
    "--since: is missing; write from when on, e.g. 2h, 7d, 2026-01-31 or 2026-01-31T12:00",
    "--since: is no time; write e.g. 2h, 7d, 2026-01-31 or 2026-01-31T12:00",
    "--topic: …",
    "is no filter of topics: # stands alone, as the last level; write e.g. whatsapp/#",
    "is no filter of topics: + stands for a whole level; write e.g. whatsapp/+/status",
    "is no filter of topics: it has 1 to … bytes, as UTF-8; write e.g. whatsapp/#",
    "NUMBER|MESSAGE_ID: …",
    "is empty; name a number or the id of a message",
    "say which: their numbers, as `dead-letters list` shows them, or --all",
    "choose a password of … characters or more, and of … at most",
    "… is no kind; choose from …, or ……",
    "the database's address …",
    "the database's address is none; write e.g. postgresql://user@host:5432/whatsapp2mqtt",
    "the url is none (…); write e.g. http://127.0.0.1:8080/webhook",
    "the url names no host or no protocol; write e.g. http://127.0.0.1:8080/webhook",
    "the url, or a secret sent in a header, holds characters that HTTP cannot send",
}

TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "bridge").rglob("*.py"))}
#: Words that have a name.
NAMED = {
    target.id: node.value
    for tree in TREES.values()
    for node in tree.body
    if isinstance(node, ast.Assign)
    for target in node.targets
    if isinstance(target, ast.Name)
}


def words(node: ast.expr) -> list[str] | None:
    """The texts that an argument may be, `…` for what is put in; None: it cannot be told from here."""
    if ast.unparse(node) in MADE_ELSEWHERE:
        return []
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)]
    if isinstance(node, ast.Name) and node.id in NAMED:
        return words(NAMED[node.id])
    if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
        return words(node.elt)
    parts = (
        node.elts
        if isinstance(node, (ast.List, ast.Tuple))
        else node.values
        if isinstance(node, ast.BoolOp)
        else [node.body, node.orelse]
        if isinstance(node, ast.IfExp)
        else node.args[1:]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get")
        else []
    )
    found = [words(part) for part in parts]
    return [text for texts in found for text in texts or ()] if found and None not in found else None


def sentences(function: ast.FunctionDef) -> Iterator[str]:
    """What stands in a function that makes words, without its docstring."""
    inside = {id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr) for part in node.values}
    for statement in function.body[1:]:
        for node in ast.walk(statement):
            if isinstance(node, (ast.Constant, ast.JoinedStr)) and id(node) not in inside:
                yield from (text for text in words(node) or () if " " in text.strip())


def said() -> Iterator[tuple[str, str | None]]:
    """Where each error for users is made, and its words; None: they cannot be read."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in MAKERS:
                yield from ((f"{file.name}:{node.lineno}", text) for text in sentences(node))
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            at = FOR_USERS.get(name)
            if at is None or len(node.args) <= at:
                continue
            place, argument = f"{file.name}:{node.lineno}", node.args[at]
            texts = words(argument)
            if texts is not None:
                yield from ((place, text) for text in texts)
            else:
                yield f"{place}: {ast.unparse(argument)}", None


SAID = sorted({text: place for place, text in said() if text is not None}.items())
#: Everything that the code could say.
TEXTS = {
    text
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, (ast.Constant, ast.JoinedStr))
    for text in words(node) or ()
    if text
}


def fits(heading: str, text: str) -> bool:
    """Whether a heading has these words: `…` stands for anything, and the end may be left out."""
    pattern = ".*".join(re.escape(part) for part in heading.split("…"))
    return re.match(pattern, text.replace("`", "")) is not None


@pytest.mark.parametrize(("text", "place"), SAID, ids=[place for _, place in SAID])
def test_an_error_is_explained(text: str, place: str) -> None:
    """Whoever searches the documents for the words on the screen would find nothing."""
    explained = text in PLAIN or any(fits(heading, text) for heading in HEADINGS)
    assert explained, f"{place}: explain `{text}` in docs/troubleshooting.md"


def test_every_class_of_error_is_looked_at() -> None:
    """A new one would be left out without a sound."""
    made = {
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    assert made == {name for name in FOR_USERS if name.endswith("Error")} | set(INSIDE)


def test_no_error_is_passed_over() -> None:
    """One whose words are made elsewhere would be left out without a sound: read them, or list where they are made."""
    assert [place for place, text in said() if text is None] == []


def test_what_needs_no_explanation_is_said_at_all() -> None:
    """An excuse for words that were changed long ago would excuse others by accident."""
    assert {text for text, _ in SAID} >= PLAIN


@pytest.mark.parametrize("heading", HEADINGS)
def test_an_error_that_is_explained_can_come(heading: str) -> None:
    """A page of errors that were renamed long ago is searched in vain."""
    assert any(fits(heading, text) for text in TEXTS)


def test_no_two_headings_are_the_same() -> None:
    """The second would never be read."""
    assert len(set(HEADINGS)) == len(HEADINGS)
