"""To go on with what there is in another form or place: `migrate-settings`, `migrate-journal`."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli.common import EXIT_SETTINGS, config_option, explained, fail, load
from bridge.cli.show import progress


@click.command("migrate-settings", short_help="Bring the settings file to today's names.")
@config_option
def migrate_settings(config: Path | None) -> None:
    """Write the settings file with today's names, where an older version had others.

    Values, comments and order stay, and the file as it was is kept beside it.
    """
    with explained():
        from bridge.migrate import migrate

        if config is None:
            fail("name the settings file with --config", EXIT_SETTINGS)
        renamed, kept = migrate(config)
        for one in renamed:
            click.echo(f"{config}:{one.line}: {'.'.join(one.old)} is {'.'.join(one.new)} now")
        click.echo(f"the file as it was is kept as {kept}" if kept else f"{config}: all names in it are today's")


@click.command("migrate-journal", short_help="Move the journal from its file into PostgreSQL.")
@config_option
@click.argument("sqlite")
@click.argument("postgres")
@click.option("--dry-run", is_flag=True, help="Only look whether it can be done, and say how much there is.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object: what was moved, or is to be.")
def migrate_journal(config: Path | None, sqlite: str, postgres: str, dry_run: bool, as_json: bool) -> None:
    """Move a journal from its file SQLITE into the database POSTGRES, e.g. postgresql://user@host/database.

    All of it goes along, so that the bridge goes on there as if nothing had happened: nothing is published again or
    forgotten, and a callback that comes again is a duplicate. The bridge must not run. What was cut off goes on where
    it stopped when it is run again. The file stays, marked as moved.

    The password may stand in journal.password, where the settings name a database, or in ~/.pgpass.
    """
    with explained():
        import dataclasses
        import time

        import orjson

        from bridge import service
        from bridge.config import database_of
        from bridge.journal.engine import PostgresqlEngine

        path = Path(sqlite.removeprefix("sqlite://"))
        if not path.is_file():
            fail(f"there is no journal {path}; `whatsapp2mqtt check` prints the bridge's as journal.url", EXIT_SETTINGS)
        database = database_of(postgres, load(config).settings.journal.password)
        PostgresqlEngine(database).journal()  # or says what is not installed
        from bridge.journal.move import Move

        began = time.monotonic()
        try:
            with service.alone(path, "migrate-journal"), Move(path, database) as move:
                holdings = move.holdings
                if not dry_run:
                    with progress("Moving", holdings.rows) as moved:
                        moved(move.there)
                        move.run(moved)
        except service.StartError as error:
            fail(error, EXIT_SETTINGS)
        if as_json:
            found = {"from": str(path), "to": str(database), "there_before": move.there, "was_done": move.is_done}
            seconds = round(time.monotonic() - began, 3)
            click.echo(
                orjson.dumps({**found, **dataclasses.asdict(holdings), "moved": not dry_run, "seconds": seconds})
            )
            return
        click.echo(
            f"{holdings.updates} updates, {holdings.ledger} topics, {holdings.dead_letters} dead letters, "
            f"{holdings.learned} buttons and phones, {holdings.discoveries} discoveries"
        )
        if move.is_done:
            click.echo(f"They were moved to {database} before.")
        elif dry_run:
            before = f", where {move.there} rows are already" if move.there else ""
            click.echo(f"Nothing was moved; without --dry-run they go to {database}{before}.")
        else:
            click.echo(f"They are in {database} now. Set journal.url to it, and start the bridge.")
