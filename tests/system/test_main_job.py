"""The main job, from outside: callbacks posted to the installed command, topics seen by an independent subscriber."""

from __future__ import annotations

import http.client
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import MakeBridge
from tests.system.support import PATIENCE, Bridge, Heard, status

PAYLOADS = Path(__file__).parents[1] / "payloads"
EXAMPLES = [*sorted(PAYLOADS.glob("spec-*.json")), PAYLOADS / "cloud-click.json", PAYLOADS / "cloud-status-sent.json"]


def of_this_receipt(heard: Heard) -> Any:
    """The JSON without what is new with each receipt."""
    document = heard.json
    assert document.pop("event_id")
    assert document.pop("received_at")
    return document


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in EXAMPLES])
def test_each_example_of_the_specification_gives_its_topics(make_bridge: MakeBridge, file: Path) -> None:
    """Users' automations stand on exactly these topics and this JSON."""
    case = json.loads(file.read_text())
    bridge = make_bridge(events__max_age="off").start()
    with bridge.listen() as early:
        answer = bridge.post(case["body"])
        assert answer.status == 200
        assert answer.json["stored"] == len(case["outcome"]["updates"])
        for update in case["outcome"]["updates"]:
            event = early.wait(f"whatsapp/{update['event_topic']}")
            assert of_this_receipt(event) == update["document"]
            state = early.wait(f"whatsapp/{update['topic']}")
            assert of_this_receipt(state) == update["document"]
    with bridge.listen() as late:
        for update in case["outcome"]["updates"]:
            kept = late.wait(f"whatsapp/{update['topic']}")
            assert kept.retain
            assert of_this_receipt(kept) == update["document"]
        assert not [one for one in late.heard if "/event/" in one.topic]


def test_a_read_message_stays_read_when_delivered_comes_late(bridge: Bridge) -> None:
    """Otherwise a dashboard says that a message was not read that was."""
    with bridge.listen() as subscriber:
        for word in ("sent", "read", "delivered"):
            assert bridge.post(status("m1", word)).status == 200
        subscriber.wait("whatsapp/event/status/delivered")
        subscriber.wait("whatsapp/last/status", lambda heard: heard.json["status"] == "delivered")
        assert [one.json["status"] for one in subscriber.on("whatsapp/m1/status")][-1] == "read"
    with bridge.listen() as late:
        assert late.wait("whatsapp/m1/status").json["status"] == "read"


def test_the_same_callback_again_changes_nothing(bridge: Bridge) -> None:
    """Senders post again for days; each repetition would run the automations anew."""
    with bridge.listen() as subscriber:
        assert bridge.post(status("m1")).json == {"stored": 1, "duplicate": 0, "ignored": 0, "dead": 0}
        assert bridge.post(status("m1")).json == {"stored": 0, "duplicate": 1, "ignored": 0, "dead": 0}
        assert bridge.post(status("m2")).status == 200
        subscriber.wait("whatsapp/event/status/sent", lambda heard: heard.json["message_id"] == "m2")
        assert [one.json["message_id"] for one in subscriber.on("whatsapp/event/status/sent")] == ["m1", "m2"]


def test_a_bad_entry_and_a_body_that_is_no_callback_harm_nobody(bridge: Bridge) -> None:
    """One bad item would take good ones with it, or have the sender post the same again for days."""
    body = status("good")
    body["statuses"] += [{"id": None, "status": "sent"}]  # type: ignore[operator]
    assert bridge.post(body).json == {"stored": 1, "duplicate": 0, "ignored": 0, "dead": 1}
    assert bridge.post(b"{not json").json == {"stored": 0, "duplicate": 0, "ignored": 0, "dead": 1}
    with bridge.listen() as subscriber:
        assert subscriber.wait("whatsapp/good/status").json["status"] == "sent"


def test_a_thousand_updates_in_one_post_are_all_published(bridge: Bridge) -> None:
    """Meta batches up to a thousand updates; a limit of ours would lose what is beyond it."""
    items = [{"id": f"m{number}", "status": "sent", "timestamp": "1660019986"} for number in range(1000)]
    with bridge.listen("whatsapp/event/#") as subscriber:
        assert bridge.post({"statuses": items}).json["stored"] == 1000
        subscriber.wait_until(lambda heard: len(heard) >= 1000)
        assert [one.json["message_id"] for one in subscriber.heard] == [f"m{number}" for number in range(1000)]


def test_a_body_of_three_megabytes_is_taken_and_a_larger_one_is_not(bridge: Bridge) -> None:
    """The largest callbacks are the ones with most updates: refusing them loses the most."""
    assert bridge.post(status("big", filler="x" * 3_000_000)).json["stored"] == 1
    connection = http.client.HTTPConnection("127.0.0.1", bridge.webhook, timeout=PATIENCE)
    # It is refused by its announced length, so the body is not even sent.
    connection.putrequest("POST", "/webhook")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "3200000")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    with bridge.listen() as subscriber:
        subscriber.wait("whatsapp/big/status")


def test_a_click_of_yesterday_opens_no_gate_today(bridge: Bridge) -> None:
    """A click that was held up would open the gate when nobody stands before it."""
    click = {"id": "c1", "from": "15550001234", "type": "button", "button": {"payload": "gate", "text": "Open"}}
    with bridge.listen() as subscriber:
        assert bridge.post({"messages": [{**click, "timestamp": "1660019986"}]}).status == 200
        kept = subscriber.wait("whatsapp/button/gate")
        subscriber.wait("whatsapp/last/button")
        assert kept.json["late"] is True
        assert not subscriber.on("whatsapp/event/button/gate")


def test_the_bridge_says_who_and_how_it_is(bridge: Bridge) -> None:
    """Home Assistant shows the bridge as away, and nobody can see which version talks to which broker."""
    with bridge.listen() as subscriber:
        assert subscriber.wait("whatsapp/bridge/state").payload == "online"
        info = subscriber.wait("whatsapp/bridge/info").json
    assert info["broker"] == f"mqtt://127.0.0.1:{bridge.broker}"
    assert info["protocol"] == "3.1.1"
    assert info["version"]


def test_metas_challenge_is_answered(make_bridge: MakeBridge) -> None:
    """Meta does not take a webhook that does not answer."""
    bridge = make_bridge(webhook__auth__meta_verify_token="my-verify-token").start()

    query = "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=my-verify-token"
    with urllib.request.urlopen(f"http://127.0.0.1:{bridge.webhook}/webhook?{query}") as answer:
        assert answer.read() == b"1158201444"
