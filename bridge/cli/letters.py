"""`dead-letters`: look at what could not be understood or delivered, try it again, or drop it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from bridge.cli.common import EXIT_FAILED, EXIT_SETTINGS, config_option, explained, fail, load
from bridge.cli.show import table

if TYPE_CHECKING:
    from bridge.journal import Household

#: Dead letters: more than there can be.
EVERY = 1_000_000


@click.group("dead-letters", short_help="Look at what could not be delivered, or retry it.")
def dead_letters() -> None:
    """Look at what could not be understood or delivered, try it again, or drop it."""


@dead_letters.command("list")
@config_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@click.option("--source", type=click.Choice(["callback", "item", "publication"]), help="Only those of one kind.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: number, received, source, reason.")
def dead_letters_list(config: Path | None, limit: int, source: str | None, as_json: bool) -> None:
    """List them, newest first."""
    with explained():
        import orjson

        from bridge.dead_letters import journal_there, listed

        with journal_there(load(config).settings) as journal:
            found = journal.dead_letters(limit=limit if source is None else EVERY)
            letters = [one for one in found if source in (None, one.source)][:limit]
        if as_json:
            for letter in letters:
                keys = {"number": letter.number, "received": letter.received, "source": letter.source}
                click.echo(orjson.dumps({**keys, "reason": letter.reason}))
        elif letters:
            table(("number", "received", "source", "reason"), listed(letters))
        else:
            click.echo("There are no dead letters.")


@dead_letters.command("show")
@config_option
@click.argument("number", type=int)
def dead_letters_show(config: Path | None, number: int) -> None:
    """Show all of one."""
    with explained():
        from bridge.dead_letters import journal_there, shown

        with journal_there(load(config).settings) as journal:
            letter = journal.dead_letter(number)
        if letter is None:
            _no_such_letter(number)
        else:
            click.echo(shown(letter))


@dead_letters.command("replay")
@config_option
@click.argument("numbers", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them, oldest first.")
def dead_letters_replay(config: Path | None, numbers: tuple[int, ...], everything: bool) -> None:
    """Try some again, as if they had just come; one that works is no dead letter any more."""
    with explained():
        from bridge.dead_letters import journal_there, replay

        settings = load(config).settings
        _check_which(numbers, everything)
        failed = False
        with journal_there(settings) as journal:
            if everything:
                numbers = tuple(letter.number for letter in reversed(journal.dead_letters(limit=EVERY)))
            for number in numbers:
                letter = journal.dead_letter(number)
                if letter is None:
                    _no_such_letter(number)
                else:
                    worked, words = replay(settings, journal, letter)
                    failed |= not worked
                    click.echo(f"{number}: {words}")
        sys.exit(EXIT_FAILED if failed else 0)


@dead_letters.command("drop")
@config_option
@click.argument("numbers", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are there; only counted without --yes.")
@click.option("--yes", is_flag=True, help="With --all: really do it.")
def dead_letters_drop(config: Path | None, numbers: tuple[int, ...], everything: bool, yes: bool) -> None:
    """Delete some for good."""
    with explained():
        from bridge.dead_letters import journal_there

        settings = load(config).settings
        _check_which(numbers, everything)
        with journal_there(settings) as journal:
            if everything:
                _drop_all(journal, yes)
                return
            for number in numbers:
                if not journal.drop_dead_letter(number):
                    _no_such_letter(number)
            click.echo(f"dropped {len(numbers)}")


def _drop_all(journal: Household, yes: bool) -> None:
    """Delete those that are there now: one that comes meanwhile was seen by nobody. Another may drop them as well."""
    there = [letter.number for letter in journal.dead_letters(limit=EVERY)]
    if yes:
        click.echo(f"dropped {sum(journal.drop_dead_letter(number) for number in there)}")
    else:
        click.echo(f"{len(there)} dead letter{'' if len(there) == 1 else 's'}")
        click.echo("Nothing was dropped; `dead-letters drop --all --yes` deletes them for good.")


def _check_which(numbers: tuple[int, ...], everything: bool) -> None:
    if everything == bool(numbers):
        fail("say which: their numbers, as `dead-letters list` shows them, or --all", EXIT_SETTINGS)


def _no_such_letter(number: int) -> NoReturn:
    fail(f"there is no dead letter {number}; `dead-letters list` shows them")
