"""Whoever watches the bridge asks `whatsapp2mqtt healthy`: Docker does every 30 seconds."""

from __future__ import annotations

import os
import signal

import pytest

from tests.system.conftest import MakeBridge


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"admin__listen": "off"},
        # As within Home Assistant: only its proxy may ask, and the health check is no proxy.
        {"admin__listen": "0.0.0.0:0", "admin__trusted_proxies": "172.30.32.2"},
    ],
    ids=["page", "no page", "behind Home Assistant"],
)
def test_a_bridge_that_runs_is_healthy_and_one_that_hangs_or_is_gone_is_not(
    make_bridge: MakeBridge, settings: dict[str, str]
) -> None:
    """A container that is always healthy is never looked at; one that never is, is started anew for ever."""
    bridge = make_bridge(**settings).start()
    well = bridge.run("healthy")
    assert (well.returncode, well.stdout) == (0, "healthy\n"), well.stderr
    assert bridge.program.end() == 0
    gone = bridge.run("healthy")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("whatsapp2mqtt: nothing answers at http://")


def test_a_main_process_that_hangs_is_not_healthy(make_bridge: MakeBridge) -> None:
    """Its receivers still take callbacks, and nothing of them gets to the broker."""
    bridge = make_bridge().start()
    os.kill(bridge.pid, signal.SIGSTOP)
    try:
        hangs = bridge.run("healthy")
        assert (hangs.returncode, "nothing answers" in hangs.stderr) == (1, True)
    finally:
        os.kill(bridge.pid, signal.SIGCONT)
    assert bridge.run("healthy").returncode == 0
