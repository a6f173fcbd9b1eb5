"""`scripts/bench [CASE ...]`: paired rounds, medians, spread and ratios; as text, JSON, and a drawing."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import Any

import click

from tests.bench.cases import TINY, Case, Size, cases
from tests.bench.ground import Shelf
from tests.bench.measure import Figures, of_rounds, ratios
from tests.bench.peers import install_node_red
from tests.bench.report import drawing


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[CASE]...")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Of each side: A B A B …")
@click.option("--seconds", type=float, default=Size.seconds, show_default=True, help="How long each load lasts.")
@click.option("--tiny", is_flag=True, help="Too small for figures: only whether anything is missing or doubled.")
@click.option("--list", "lists", is_flag=True, help="Say which cases there are.")
@click.option("--without-node-red", is_flag=True, help="Do not bring Node-RED, nor measure it.")
@click.option(
    "--peers", type=click.Path(path_type=Path), default=Path(".bench"), show_default=True, help="For Node-RED."
)
@click.option(
    "--json",
    "file",
    type=click.Path(path_type=Path),
    help="Write the figures here, beside those of other cases that are there, and the drawing beside it.",
)
def main(
    names: tuple[str, ...],
    rounds: int,
    seconds: float,
    tiny: bool,
    lists: bool,
    without_node_red: bool,
    peers: Path,
    file: Path | None,
) -> None:
    """Measure the bridge beside its peers, in turn, in one run: timings of machines differ, ratios hold."""
    node_red = None if lists or without_node_red else install_node_red(peers.resolve())
    with Shelf() as shelf:
        known = cases(node_red, TINY if tiny else Size(seconds=seconds), shelf)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise click.UsageError(f"{unknown[0]} is no case; choose from {', '.join(known)}")
        for name in names or known:
            click.secho(f"{name}: {known[name].about}", bold=True)
            if not lists:
                found = run(known[name], rounds)
                say(found)
                if file is not None:
                    write(file, name, found)


def run(case: Case, rounds: int) -> dict[str, Any]:
    """The rounds of a case, its sides in turn."""
    began = dt.datetime.now(dt.UTC)
    collected: dict[str, list[Figures]] = {side: [] for side in case.sides}
    for _ in range(rounds):
        for side, measured in case.sides.items():
            collected[side].append(measured())
    subject, *peers = collected
    return {
        "about": case.about,
        "when": f"{began:%Y-%m-%d %H:%M} UTC",
        "load_average": round(os.getloadavg()[1], 1),
        "rounds": rounds,
        "sides": {side: of_rounds(figures) for side, figures in collected.items()},
        "ratios": {peer: ratios(collected[subject], collected[peer]) for peer in peers},
    }


def say(found: dict[str, Any]) -> None:
    """Print the medians, and in brackets from where to where they went."""
    for side, figures in found["sides"].items():
        click.echo(f"  {side:<16} {_line(figures)}")
    for peer, figures in found["ratios"].items():
        click.echo(f"  against {peer:<8} {_line(figures)}")


def _line(figures: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {one['median']:g} ({one['min']:g}…{one['max']:g})" for name, one in figures.items())


def write(file: Path, name: str, found: dict[str, Any]) -> None:
    """Add a case to the figures in a file, and draw them anew."""
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"cases": {}}
    report["machine"] = {"cores": os.cpu_count(), "kind": platform.machine(), "python": platform.python_version()}
    report["cases"][name] = found
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".svg").write_text(drawing(report), encoding="utf-8")


if __name__ == "__main__":
    main()
