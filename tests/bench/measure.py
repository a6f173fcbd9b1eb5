"""Putting it together: a load on a peer, an independent subscriber, and the figures of both, matched by message id."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from tests.bench.load import Plan

FILTERS = ("whatsapp/+/status", "whatsapp/button/+")
#: Seconds that the subscriber listens on after the last answer.
LINGER = 1.5

Figures = dict[str, float]


def measure(plan: Plan, broker: int | None, *, linger: float = LINGER) -> Figures:
    """Run a load against a peer.

    Args:
        plan: The load.
        broker: Where the subscriber listens; None if nothing is published.
        linger: Seconds to wait for what is published after the last answer.

    Returns:
        accepted (updates a second), POST→200 and POST→subscriber in ms at p50 and p99, missing.
    """
    watcher = _watcher(broker) if broker is not None else None
    command = [sys.executable, "-m", "tests.bench.load", json.dumps(asdict(plan))]
    load = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    answered, sent = load["answered"], load["sent"]
    figures: Figures = {
        "accepted": len(answered) / load["seconds"],
        "refused": float(sum(count for status, count in load["statuses"].items() if status != "200")),
        **_percentiles("post", [answered[name] - sent[name] for name in answered]),
    }
    if watcher is not None:
        time.sleep(linger)
        arrived = json.loads(watcher.communicate("")[0])["arrived"]
        figures |= _percentiles("sub", [arrived[name] - sent[name] for name in answered if name in arrived])
        figures["missing"] = float(sum(1 for name in answered if name not in arrived))
    return figures


def _watcher(broker: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.watch", str(broker), *FILTERS]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n", "the subscriber is there"
    return watcher


def _percentiles(name: str, seconds: list[float]) -> Figures:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{name}_p50": ordered[len(ordered) // 2] * 1000,
        f"{name}_p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
    }


def median_of(rounds: list[Figures]) -> dict[str, Any]:
    """Each figure's median over the rounds, with its smallest and largest."""
    found: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds if name in one]
        found[name] = {
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
    return found
