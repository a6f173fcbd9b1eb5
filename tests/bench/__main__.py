"""`scripts/bench [CASE ...]`: paired rounds, medians, spread and ratios; as text, JSON, and a drawing."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import click

from tests.bench.cases import cases
from tests.bench.measure import Figures, median_of
from tests.bench.peers import install_node_red


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[CASE]...")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each pair: A B A B …")
@click.option("--seconds", type=float, default=5.0, show_default=True, help="How long each load lasts.")
@click.option(
    "--peers", type=click.Path(path_type=Path), default=Path(".bench"), show_default=True, help="For Node-RED."
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
def main(names: tuple[str, ...], rounds: int, seconds: float, peers: Path, file: Path | None) -> None:
    """Measure the bridge beside its peers, in turn, in one run: timings of machines differ, ratios hold."""
    known = cases(install_node_red(peers.resolve()), seconds)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(f"{unknown[0]} is no case; choose from {', '.join(known)}")
    report: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "kind": platform.machine(), "python": platform.python_version()},
        "rounds": rounds,
        "seconds": seconds,
        "cases": {},
    }
    for name in names or known:
        case = known[name]
        click.secho(f"{name}: {case.about}", bold=True)
        sides = [case.subject, *([case.peer] if case.peer else [])]
        found: list[list[Figures]] = [[] for _ in sides]
        for _ in range(rounds):
            for (_, run), collected in zip(sides, found, strict=True):
                collected.append(run())
        result: dict[str, Any] = {}
        for (label, _), collected in zip(sides, found, strict=True):
            key = label if label not in result else f"{label} (2)"
            result[key] = median_of(collected)
            click.echo(f"  {key:<12} " + ", ".join(f"{n} {v['median']:g}" for n, v in result[key].items()))
        if case.peer:
            result["ratios"] = _ratios(found[0], found[1])
            click.echo("  ratio        " + ", ".join(f"{n} {v:.2f}" for n, v in result["ratios"].items()))
        report["cases"][name] = result
    if file:
        file.write_text(json.dumps(report, indent=2) + "\n")


def _ratios(subject: list[Figures], peer: list[Figures]) -> dict[str, float]:
    """The median of the ratios round by round: what slowed the machine slowed both of a pair."""
    ratios: dict[str, float] = {}
    for name in subject[0]:
        pairs = [a[name] / b[name] for a, b in zip(subject, peer, strict=True) if b.get(name) and name in a]
        if pairs:
            ratios[name] = round(sorted(pairs)[len(pairs) // 2], 3)
    return ratios


if __name__ == "__main__":
    main()
