"""docs/settings.md and docs/topics.md are what the code says; what the code publishes is explained there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge import topics
from scripts import reference

PAYLOADS = Path(__file__).parent.parent / "payloads"
PAGES = reference.pages()


def documents(first_key: str) -> list[dict[str, object]]:
    """The JSON of all golden payloads that begins with this key, as the publisher would send it."""
    found = []
    for file in PAYLOADS.glob("*.json"):
        for update in json.loads(file.read_text(encoding="utf-8"))["outcome"].get("updates", ()):
            if next(iter(update["document"])) == first_key:
                found.append(update["document"] | {"received_at": "", "event_id": ""})
    return found


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    """A user would read of settings or keys that are not there."""
    written = (reference.DOCS / name).read_text(encoding="utf-8")
    assert written == PAGES[name], f"docs/{name}: write it anew: python scripts/reference.py"


@pytest.mark.parametrize(
    ("keys", "first_key", "added"),
    [(reference.STATUS_KEYS, "message_id", set()), (reference.CLICK_KEYS, "payload", {"late", "test"})],
    ids=["status", "click"],
)
def test_every_key_that_is_published_is_explained_and_no_other(
    keys: dict[str, str], first_key: str, added: set[str]
) -> None:
    """A user would meet a key that stands nowhere, or wait for one that never comes."""
    seen = {key for document in documents(first_key) for key in document}
    assert seen | added == set(keys)


def test_every_topic_about_the_bridge_is_explained() -> None:
    """A user would see a topic appear and not know what it is."""
    own = {value for name, value in vars(topics).items() if name.startswith("BRIDGE_")}
    assert own <= {name.partition("/<")[0] for name in reference.TOPICS}


def test_a_late_click_says_so_by_the_key_that_is_explained() -> None:
    """An automation that looks at `late` would look in vain."""
    late = json.loads(topics.marked_late(reference.example("spec-click").document))
    assert late["late"] is True
    assert "late" in reference.CLICK_KEYS
