"""Every body in tests/payloads has the outcome that its file says: the contract, case by case.

A file holds `about` (one sentence), the body (`body` as JSON, `body_text` as it stands on the wire, or `body_base64`)
and its `outcome`: `updates` with topics and JSON, `ignored`, `dead` with the reasons; or `not_understood`.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bridge.payload import NotUnderstoodError, Parsed, parse
from bridge.topics import entry

FILES = sorted((Path(__file__).parent.parent / "payloads").glob("*.json"))
RECEIVED = 1_767_225_605.5
RECEIVED_AT = "2026-01-01T00:00:05.500Z"


def read(file: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return case


def bodies(case: dict[str, Any]) -> list[bytes]:
    """The body as bytes; one that is given as JSON in several spellings that all mean the same."""
    if "body_base64" in case:
        return [base64.b64decode(case["body_base64"], validate=True)]
    if "body_text" in case:
        return [case["body_text"].encode()]
    return [
        json.dumps(case["body"], ensure_ascii=False).encode(),
        json.dumps(case["body"], ensure_ascii=True, separators=(",", ":")).encode(),
        json.dumps(case["body"], ensure_ascii=False, indent=4).replace("\n", "\r\n").encode(),
    ]


def told(parsed: Parsed) -> dict[str, Any]:
    """What came out, in the words of the files; what belongs to this one receipt is checked and taken away."""
    updates = []
    for update in parsed.updates:
        made = entry(update, RECEIVED)
        document = json.loads(made.document)
        assert document.pop("received_at") == RECEIVED_AT
        assert document.pop("event_id") == made.event_id == update.event_id
        assert re.fullmatch(r"[0-9a-f]{32}", made.event_id)
        updates.append({"topic": made.topic, "event_topic": made.event_topic, "document": document})
    return {"updates": updates, "ignored": parsed.ignored, "dead": [item.reason for item in parsed.dead]}


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in FILES])
def test_the_body_has_the_outcome_that_its_file_says(file: Path) -> None:
    """A user's topics or JSON would change, or a callback that really arrives would be lost."""
    case = read(file)
    for body in bodies(case):
        if "not_understood" in case["outcome"]:
            with pytest.raises(NotUnderstoodError) as caught:
                parse(body)
            # Behind a colon the JSON reader says in its own words what it did not like.
            assert str(caught.value).split(":")[0] == case["outcome"]["not_understood"]
        else:
            # As text, because the order of keys and 1 against true are part of the contract.
            assert json.dumps(told(parse(body)), indent=1) == json.dumps(case["outcome"], indent=1)


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in FILES])
def test_what_is_set_aside_can_be_read_and_posted_again(file: Path) -> None:
    """A dead letter that is no JSON, or no longer what arrived, could not be looked at or tried again."""
    case = read(file)
    if "not_understood" in case["outcome"]:
        return
    for body in bodies(case):
        for item in parse(body).dead:
            for array in ("statuses", "messages"):
                if item.reason.startswith(f"{array}[]"):
                    again = parse(item.body.encode())
                    assert again.dead == (item,)
                    assert (again.updates, again.ignored) == ((), 0)
                    break
            else:
                json.loads(item.body)


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in FILES])
def test_the_file_is_complete(file: Path) -> None:
    """A misspelt key in a file would make its case pass without being tried."""
    case = read(file)
    assert re.fullmatch(r"[a-z0-9-]+", file.stem)
    assert re.fullmatch(r"[^\n]+\.", case.pop("about"))
    outcome = case.pop("outcome")
    assert set(outcome) in ({"not_understood"}, {"updates", "ignored", "dead"})
    for update in outcome.get("updates", ()):
        assert list(update) == ["topic", "event_topic", "document"]
    assert len(case) == 1
    assert set(case) <= {"body", "body_text", "body_base64"}


def test_there_are_files() -> None:
    """A folder that was moved would leave all of the above green and empty."""
    assert len(FILES) > 200
