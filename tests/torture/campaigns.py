"""The campaigns by name, each with its short form (CI) and its long one (`scripts/torture`)."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Campaign:
    """Where it is, what it does, and what it needs.

    Attributes:
        function: `module:function` below tests.torture.
        means: `module:function` that names what a machine lacks for it.
    """

    function: str
    about: str
    short: int
    long: int
    means: str | None = None

    def missing(self) -> str | None:
        """What this machine lacks to run it, in words; None if nothing."""
        if shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            return "mosquitto is not installed"
        lacking: str | None = _named(self.means)() if self.means else None
        return f"it needs {lacking}" if lacking else None

    def run(self, folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, Any]:
        figures: dict[str, Any] = _named(self.function)(folder, seed=seed, count=count, say=say)
        return figures


def _named(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"tests.torture.{module}"), name)
    return found


CAMPAIGNS = {
    "kills": Campaign("kills:run", "kill -9 of receiver, main process and both under load", 50, 1_000),
    "broker": Campaign("broker_faults:run", "broker killed, frozen, without memory; updates shuffled", 10_000, 100_000),
    "network": Campaign("network:run", "delay, cut, cut in a packet, black hole, deaf, mute", 6, 60),
    "restore": Campaign("forgetting:restore", "a broker that lost its memory gets it back", 10_000, 100_000),
    "expiry": Campaign("forgetting:expire", "topics expire while updates go through", 20_000, 100_000),
    "power-cut": Campaign(
        "power_cut:run", "power cut over an SD card with a volatile cache", 30, 300, "power_cut:missing_means"
    ),
    "io-faults": Campaign(
        "io_faults:run",
        "fsync and write fail at the Nth call; full disk, full journal",
        30,
        100,
        "io_faults:missing_means",
    ),
    "corruption": Campaign("corruption:run", "the journal overwritten at random places, or cut short", 20, 100),
    "clock": Campaign("clock_jumps:run", "the wall clock jumps a day forwards and back", 20, 100),
    "replicas": Campaign(
        "replicas:run",
        "three bridges on one PostgreSQL killed, paused, cut off; database and brokers too",
        500,
        20_000,
        "replicas:missing_means",
    ),
    "soak": Campaign("soak:run", "memory, threads, descriptors and write-ahead log stay flat", 200_000, 1_000_000),
}
