"""Tables, colours and progress: by rich on a terminal, and plain where another program reads."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import click


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, grows: int = -1) -> None:
    """Print rows below their names.

    Args:
        names: Of the columns.
        rows: Texts that are safe for a terminal.
        grows: The column that is wrapped where the terminal is narrow.
    """
    if not sys.stdout.isatty():
        widths = [max(len(row[at]) for row in (names, *rows)) for at in range(len(names))]
        for row in (names, *rows):
            click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
        return
    _bring_rich()
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(names):
        shown.add_column(name, no_wrap=at != grows % len(names), overflow="fold")
    for row in rows:
        # As texts: brackets in them are no markup.
        shown.add_row(*(Text(text) for text in row))
    Console().print(shown)


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, and nothing elsewhere; call what it yields with how many more are done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    _bring_rich()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda more: bar.update(task, advance=more)


def lamp(state: str) -> str:
    """A state's sign, in its colour on a terminal."""
    sign, colour = {
        "ok": ("✓", "green"),
        "waiting": ("…", "yellow"),
        "warning": ("!", "yellow"),
        "trouble": ("✗", "red"),
        "skipped": ("-", "white"),
    }[state]
    return click.style(f"{sign} {state}", fg=colour)


def _bring_rich() -> None:
    """Let it be imported (see bridge/__init__.py)."""
    if sys.modules.get("rich") is None:
        sys.modules.pop("rich", None)
