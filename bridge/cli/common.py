"""What every command shares: the settings, one clear message for what is wrong, and the exit codes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from bridge.config import Loaded

EXIT_FAILED = 1
EXIT_SETTINGS = 2


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="WHATSAPP2MQTT_CONFIG",
        show_envvar=True,
        help="The settings file; without one, defaults and environment hold.",
    )(command)


def load(config: Path | None) -> Loaded:
    from bridge.config import load

    loaded = load(config)
    for line in loaded.outdated:
        click.echo(f"whatsapp2mqtt: {line}", err=True)
    return loaded


def fail(why: object, code: int = EXIT_FAILED) -> NoReturn:
    """End with one line that says why."""
    click.echo(f"whatsapp2mqtt: {why}", err=True)
    sys.exit(code)


@contextlib.contextmanager
def explained() -> Iterator[None]:
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
        fail(error, EXIT_SETTINGS)
