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
        programs: That must be installed.
        root: Whether it mounts something.
    """

    function: str
    about: str
    short: int
    long: int
    programs: tuple[str, ...] = ("mosquitto",)
    root: bool = False

    def missing(self) -> str | None:
        """What this machine lacks to run it, in words; None if nothing."""
        lacking = [program for program in self.programs if not _installed(program)]
        if lacking:
            return f"{', '.join(lacking)} is not installed"
        if self.root and os.geteuid() != 0:
            return "it mounts file systems and must be root for that"
        return None

    def run(self, folder: Path, *, seed: int, count: int, say: Callable[[str], None] = print) -> dict[str, Any]:
        module, _, name = self.function.partition(":")
        run: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"tests.torture.{module}"), name)
        return run(folder, seed=seed, count=count, say=say)


def _installed(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


CAMPAIGNS = {
    "kills": Campaign("kills:run", "kill -9 of receiver, main process and both under load", 50, 1_000),
    "broker": Campaign("broker_faults:run", "broker killed, frozen, without memory; updates shuffled", 10_000, 100_000),
    "network": Campaign("network:run", "delay, cut, cut in a packet, black hole, deaf, mute", 6, 60),
    "restore": Campaign("forgetting:restore", "a broker that lost its memory gets it back", 10_000, 100_000),
    "expiry": Campaign("forgetting:expire", "topics expire while updates go through", 20_000, 100_000),
    "soak": Campaign("soak:run", "memory, threads, descriptors and write-ahead log stay flat", 200_000, 1_000_000),
}
