"""Putting it together: a load on a peer, an independent subscriber, and the figures of both, matched by message id."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.load import Plan
from tests.bench.peers import cpu_seconds
from tests.bench.watch import Watcher

Figures = dict[str, float]


def measure(plan: Plan, processes: Mapping[str, int], watcher: Watcher | None) -> Figures:
    """Run a load against a peer.

    Args:
        plan: The load.
        processes: Whose use of the processor is wanted, by name.
        watcher: The subscriber, which is there already; None if nothing is published.

    Returns:
        `rate`: updates a second that were answered 200. `refused`: POSTs that were not. `post_p50`, `post_p99`,
        `sub_p50`, `sub_p99`: milliseconds from POST to 200, and to the subscriber. `missing`, `doubled`: of the updates
        answered 200, at the subscriber. `cpu_…`: microseconds of each process an update.
    """
    before = {name: cpu_seconds(pid) for name, pid in processes.items()}
    command = [sys.executable, "-m", "tests.bench.load", json.dumps(asdict(plan))]
    load = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    answered, sent = load["answered"], load["sent"]
    figures: Figures = {
        "rate": len(answered) / load["seconds"],
        "refused": float(sum(count for status, count in load["statuses"].items() if status != "200")),
        **_percentiles("post", [answered[name] - sent[name] for name in answered]),
    }
    if watcher is not None:
        figures |= seen(watcher, answered, sent)
    for name, pid in processes.items():
        figures[f"cpu_{name}"] = (cpu_seconds(pid) - before[name]) * 1e6 / max(1, len(answered))
    return figures


def seen(watcher: Watcher, expected: Mapping[str, object], sent: Mapping[str, float] | None = None) -> Figures:
    """What became of updates at the subscriber: `missing`, `doubled`; and how long they took, if `sent` says when."""
    found = watcher.seen(len(expected))
    latencies = [found.arrived[name] - sent[name] for name in expected if name in found.arrived] if sent else []
    return {
        **_percentiles("sub", latencies),
        "missing": float(sum(1 for name in expected if name not in found.arrived)),
        "doubled": float(found.repeated),
    }


def _percentiles(name: str, seconds: list[float]) -> Figures:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        f"{name}_p50": ordered[len(ordered) // 2] * 1000,
        f"{name}_p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the smallest and largest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def of_rounds(rounds: Sequence[Figures]) -> dict[str, Any]:
    """Each figure over the rounds."""
    return {name: spread([one[name] for one in rounds if name in one]) for name in rounds[0]}


def ratios(subject: Sequence[Figures], peer: Sequence[Figures]) -> dict[str, Any]:
    """Each figure that both have, subject to peer, round by round: what slowed the machine slowed both of a pair."""
    found: dict[str, Any] = {}
    for name in subject[0]:
        pairs = [mine[name] / its[name] for mine, its in zip(subject, peer, strict=True) if its.get(name)]
        if pairs and not name.startswith("cpu_"):
            found[name] = spread(pairs)
    return found
