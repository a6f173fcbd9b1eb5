"""To keep what there is, or take it away: `backup`, `restore`, `clean`, `forget`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from bridge.cli.common import EXIT_FAILED, EXIT_SETTINGS, config_option, explained, fail, load
from bridge.cli.show import progress

PG_DUMP = "e.g. `pg_dump --format=custom --schema=whatsapp2mqtt --file=FILE DATABASE`, or a backup of the whole server"
PG_RESTORE = "stop all bridges, then `pg_restore --clean --if-exists --dbname=DATABASE FILE`"


@click.command(short_help="Copy the journal, also while the bridge runs.")
@config_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(config: Path | None, file: Path) -> None:
    """Copy the journal to FILE, consistent, also while the bridge runs."""
    with explained():
        from bridge.journal import care

        settings = load(config).settings
        if settings.database is not None:
            fail(f"{settings.database} is copied with PostgreSQL's own means; {PG_DUMP}", EXIT_SETTINGS)
        written = care.backup(settings.journal_path, file)
        click.echo(f"{file}: {written} bytes")


@click.command(short_help="Put such a copy in the journal's place.")
@config_option
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def restore(config: Path | None, file: Path) -> None:
    """Put FILE, a copy made by `backup`, in the journal's place; the bridge must not run.

    The journal that was there is kept beside it.
    """
    with explained():
        from bridge import service
        from bridge.journal import care

        settings = load(config).settings
        if settings.database is not None:
            fail(f"{settings.database} is restored with PostgreSQL's own means; {PG_RESTORE}", EXIT_SETTINGS)
        path = settings.journal_path
        try:
            with service.alone(path, "restore"):
                aside = care.restore(file, path)
        except service.StartError as error:
            fail(error, EXIT_SETTINGS)
        click.echo(f"{path} is restored" + (f"; the one before is kept as {aside.name}" if aside else ""))


@click.command(short_help="Take all that is the bridge's off the broker.")
@config_option
@click.option("--yes", is_flag=True, help="Really do it; without, only say what would go.")
@click.option("--list", "each", is_flag=True, help="Print every topic.")
def clean(config: Path | None, yes: bool, each: bool) -> None:
    """Take everything the bridge ever put on the broker off it; the bridge must not run.

    Retained topics, what they say about the bridge, and everything Home Assistant was told. The journal stays.
    """
    with explained():
        from bridge import service
        from bridge.clean import CleanError, find, remove, stands
        from bridge.dead_letters import journal_of
        from bridge.journal.engine import engine_of
        from bridge.logs import printable

        settings = load(config).settings
        try:
            presence = engine_of(settings).presence() or contextlib.nullcontext()
            with (
                service.alone(settings.journal_path, "clean"),
                presence,
                service.broker_for(settings),
                contextlib.ExitStack() as stack,
            ):
                known = settings.database is not None or settings.journal_path.exists()
                journal = stack.enter_context(journal_of(settings)) if known else None
                found = find(settings, service.plan(settings), journal)
                if each:
                    click.echo("".join(f"{printable(topic)}\n" for topic in found.all), nl=False)
                click.echo(
                    f"{len(found.updates)} messages and buttons, {len(found.bridge)} topics about the bridge, "
                    f"{len(found.discovery)} discoveries of Home Assistant"
                )
                if not yes:
                    click.echo("Nothing was removed; `clean --yes` removes them.")
                    return
                with progress("Removing", len(found.all)) as removed:
                    remove(settings, found, removed)
                if journal is not None:
                    journal.cleaned()
                left = stands(settings, service.plan(settings))
        except service.StartError as error:
            fail(error, EXIT_SETTINGS)
        except CleanError as error:
            fail(printable(str(error)), EXIT_FAILED)
        if left.all:
            click.echo(
                f"whatsapp2mqtt: {len(left.all)} topics still stand, e.g. {printable(left.all[0])}; "
                "is the bridge allowed to publish to them?",
                err=True,
            )
            sys.exit(EXIT_FAILED)
        click.echo(f"{len(found.all)} topics are gone.")


@click.command(short_help="Remove every trace of a person or a message.")
@config_option
@click.argument("who", metavar="NUMBER|MESSAGE_ID")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="What was removed, and what is left, as one JSON object.")
def forget(config: Path | None, who: str, dry_run: bool, as_json: bool) -> None:
    """Remove every trace of a person or a message, and say what was removed; also while the bridge runs.

    From journal, dead letters, learned names, and the broker's retained topics. A number is written with its country
    code, in any way.
    """
    with explained(), contextlib.ExitStack() as stack:
        import orjson

        from bridge import service
        from bridge.dead_letters import journal_there
        from bridge.forget import ForgetError, forget
        from bridge.running import NotRunningError, ask
        from bridge.traces import WantedError

        settings = load(config).settings
        journal = journal_there(settings)
        try:
            ask(settings, "healthz")
        except NotRunningError:
            # Nobody may start one meanwhile; and its own broker has to be there, to let go of what it keeps.
            try:
                stack.enter_context(service.alone(settings.journal_path, "forget"))
                if not dry_run:
                    stack.enter_context(service.broker_for(settings))
            except service.StartError as error:
                fail(error, EXIT_SETTINGS)
        stack.enter_context(journal)
        try:
            report = forget(settings, service.plan(settings), journal, who, dry_run=dry_run)
        except WantedError as error:
            fail(f"NUMBER|MESSAGE_ID: {error}", EXIT_SETTINGS)
        except ForgetError as error:
            fail(error, EXIT_FAILED)
        counts = {
            "updates": len(report.traces.updates),
            "dead_letters": len(report.traces.letters),
            "learned": len(report.traces.learned),
            "retained_topics": len(report.topics),
        }
        if as_json:
            left = [str(path) for path in (*report.left, report.in_broker) if path]
            click.echo(orjson.dumps({"removed": report.removed, **counts, "left": left}))
            return
        names = {name: name.replace("_", " ").removesuffix("s" if counts[name] == 1 else "") for name in counts}
        said = ", ".join(f"{count} {names[name]}" for name, count in counts.items() if count)
        if report.is_empty:
            click.echo("There is no trace in the journal.")
        else:
            click.echo(f"{'Removed' if report.removed else 'Would be removed'}: {said}.")
        for place in report.left:
            click.echo(f"It still stands in {place}: delete that, if you do not need it.")
        if report.in_broker and dry_run:
            click.echo(f"Bytes of it are in files of the embedded broker, {report.in_broker}.")
        elif report.in_broker:
            click.echo(
                f"Bytes of it are left in files of the embedded broker, {report.in_broker}, until that tidies up by "
                "itself, as more of such a file is wanted. To be rid of them now, stop the bridge and delete that "
                "folder: the bridge gives its own topics back; what other programs had retained there is lost."
            )
        if settings.database is not None and report.removed:
            click.echo("The database's own write-ahead log and backups are beyond this command.")
