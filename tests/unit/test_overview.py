"""What the page says of what it counted and whom it hides."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from bridge.admin.mask import Mask
from bridge.admin.pages import typical

DOCUMENT = (Path(__file__).parents[2] / "docs" / "admin.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 0), None),
        ((9, 1, 0), "9 of 10 deliveries took 1.0 s or less"),
        ((8, 2, 0), "9 of 10 deliveries took 60 min or less"),
        ((1, 0, 1), "more than 1 of 10 deliveries took over 60 min"),
    ],
)
def test_how_long_it_takes_is_said_as_far_as_it_was_counted(counts: tuple[int, ...], said: str | None) -> None:
    """A bound would pass for a measurement; and after an hour without a broker there would be no overview at all."""
    assert typical("deliveries", (1.0, 3_600.0), counts) == said


def test_whose_numbers_the_page_hides_is_as_its_document_says() -> None:
    """Who shares a picture of the page must know what is on it."""
    document = {
        "event_id": "0" * 32,
        "from": "15550001234",
        "business_phone": "15559998877",
        "context": {"from": "15559998877", "id": "m1"},
    }
    shown = Mask(encode_dots=False).document(orjson.dumps(document).decode())
    assert shown["from"] == "*******1234"
    assert (shown["business_phone"], shown["context"]["from"]) == ("15559998877", "15559998877")
    assert "`business_phone`, and `context.from` of a click" in DOCUMENT
