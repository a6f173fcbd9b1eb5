"""What the page's templates make of texts."""

from __future__ import annotations

import pytest

from bridge.admin.words import sentence


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing came yet", "Nothing came yet."),
        ("webhook.path: `whatsapp2mqtt secret` helps", "webhook.path: <code>whatsapp2mqtt secret</code> helps."),
        ("it says `<b>` & goes.", "It says <code>&lt;b&gt;</code> &amp; goes."),
        ("one ` alone", "One ` alone."),
        ("a line\x1b[31m", "A line\\x1b[31m."),
    ],
)
def test_a_reason_becomes_a_sentence_whose_commands_look_like_commands(text: str, shown: str) -> None:
    """A click's text could bring markup into the page, and a command would stand between signs nobody knows."""
    assert sentence(text) == shown
    assert hasattr(sentence(text), "__html__")
