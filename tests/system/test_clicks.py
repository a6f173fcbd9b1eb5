"""Who may click, at a bridge that runs."""

from __future__ import annotations

import json
import urllib.request

from bridge.simulate import click
from tests.system.conftest import MakeBridge
from tests.system.support import status

FRIEND, STRANGER = "15550001234", "15550007777"


def test_a_strangers_click_reaches_no_topic_until_the_owner_says_so(make_bridge: MakeBridge) -> None:
    """The gate opens for whoever has the message, e.g. because it was passed on."""
    bridge = make_bridge(buttons__allow_from=FRIEND, privacy__numbers="mask").start()
    with bridge.listen("#") as heard:
        refused = bridge.post(click(payload="open_gate", text="Open", sender=STRANGER))
        assert refused.json == {"stored": 0, "duplicate": 0, "ignored": 0, "dead": 1}
        (letter,) = [json.loads(line) for line in bridge.run("dead-letters", "list", "--json").stdout.splitlines()]
        assert letter["reason"] == "who clicked is not in buttons.allow_from"
        still = bridge.run("dead-letters", "replay", letter["number"])
        assert (still.returncode, still.stdout) == (1, "1: still refused: who clicked is not in buttons.allow_from\n")
        # What came later is out, and with it all that the first one could have put there.
        assert bridge.post(status("m1")).json["stored"] == 1
        heard.wait("whatsapp/m1/status")
        assert [one.topic for one in heard.heard if "open_gate" in one.topic + one.payload] == []
        page = bridge.program.wait_log("starting")["page"]
        with urllib.request.urlopen(f"{page}metrics") as metrics:
            counted = metrics.read().decode()
        assert 'whatsapp2mqtt_entries_total{kind="button",outcome="refused"} 1.0' in counted
        bridge.environment["WHATSAPP2MQTT_BUTTONS__ALLOW_FROM"] = f"{FRIEND},+1 555 000-7777"
        assert bridge.run("dead-letters", "replay", letter["number"]).stdout.startswith("1: stored 1,")
        assert heard.wait("whatsapp/event/button/open_gate").json["payload"] == "open_gate"
    assert STRANGER not in bridge.program.said
