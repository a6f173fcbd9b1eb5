"""Run campaigns: `python -m tests.torture [CAMPAIGN ...] [--count N] [--seed N]`; see docs/reliability.md."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.torture.campaigns import CAMPAIGNS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[CAMPAIGN]...")
@click.option("--count", type=click.IntRange(min=1), help="How many faults or updates; the long form's if absent.")
@click.option("--short", is_flag=True, help="The form that runs in CI.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything that is left to chance.")
@click.option("--report", type=click.Path(path_type=Path), help="Append the figures here, a JSON object a line.")
@click.option("--list", "only_list", is_flag=True, help="Print the campaigns with their short and long counts.")
def main(
    names: tuple[str, ...], count: int | None, short: bool, seed: int, report: Path | None, only_list: bool
) -> None:
    """Break the bridge's world in every way there is, and see that its promises hold."""
    if only_list:
        for name, campaign in CAMPAIGNS.items():
            click.echo(f"{name:<16} {campaign.short:>7} / {campaign.long:>9}  {campaign.about}")
        return
    unknown = [name for name in names if name not in CAMPAIGNS]
    if unknown:
        raise click.UsageError(f"{unknown[0]} is no campaign; choose from {', '.join(CAMPAIGNS)}")
    failed = []
    for name in names or CAMPAIGNS:
        campaign = CAMPAIGNS[name]
        missing = campaign.missing()
        if missing:
            click.secho(f"{name}: cannot run here: {missing}", fg="yellow")
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"torture-{name}-"))
        number = count or (campaign.short if short else campaign.long)
        click.secho(f"{name}: {number}, seed {seed}", bold=True)
        began = time.monotonic()
        try:
            figures = campaign.run(folder, seed=seed, count=number, say=lambda line: click.echo(f"  {line}"))
        except AssertionError as error:
            failed.append(name)
            click.secho(f"{name}: BROKEN: {error}\n  everything is kept in {folder}", fg="red")
            figures = {"broken": str(error)}
        else:
            shutil.rmtree(folder, ignore_errors=True)
            click.secho(f"{name}: held", fg="green")
        figures |= {"campaign": name, "seed": seed, "count": number, "seconds": round(time.monotonic() - began)}
        figures |= {"machine": platform.machine(), "python": platform.python_version()}
        click.echo(f"  {json.dumps(figures)}")
        if report:
            with report.open("a") as file:
                file.write(json.dumps(figures) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
