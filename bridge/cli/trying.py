"""To see it work: `simulate` posts callbacks, `tail` shows what becomes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bridge.cli.common import EXIT_FAILED, EXIT_SETTINGS, config_option, explained, fail, load


def _kinds(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:  # noqa: ARG001
    """For the shell: those that begin so."""
    from bridge.simulate import KINDS

    return [kind for kind in KINDS if kind.startswith(begun)]


@click.command()
@config_option
@click.argument("kinds", nargs=-1, required=True, metavar="KIND...", shell_complete=_kinds)
@click.option("--message-id", help="The message that statuses are about; a fresh one if absent.")
@click.option("--payload", default="open_gate", show_default=True, help="Of the button that is clicked.")
@click.option("--text", default="Open the gate", show_default=True, help="On the button that is clicked.")
@click.option("--sender", default="15550001234", show_default=True, help="The phone number of who clicks or receives.")
@click.option(
    "--url",
    help="Where to post, e.g. https://hook.example.org; path and secret come from the settings unless it has a path.",
)
def simulate(config: Path | None, kinds: tuple[str, ...], url: str | None, **options: str) -> None:
    """Post realistic callbacks to a running bridge.

    KIND is sent, delivered, read, failed or deleted (a message's status), or button (a click); with cloud- before it,
    in the envelope of Meta's Cloud API. Several are posted one after the other, the statuses about one message.
    """
    with explained():
        from bridge.simulate import SimulationError, UnknownKindError, post

        loaded = load(config)
        try:
            for line in post(loaded.settings, kinds, url=url, **options):
                click.echo(line)
        except UnknownKindError as error:
            fail(error, EXIT_SETTINGS)
        except SimulationError as error:
            fail(error, EXIT_FAILED)


@click.command()
@config_option
@click.option(
    "--topic", help="What to subscribe to, e.g. whatsapp/+/status; everything below the base topic if absent."
)
@click.option("--kind", type=click.Choice(["status", "button", "bridge"]), help="Only messages about these.")
@click.option("--status", help="Only updates of this status, e.g. failed.")
@click.option("--button", help="Only clicks with this payload.")
@click.option("--about", help="Only what holds this message id or phone number in its JSON.")
@click.option("--events", is_flag=True, help="Only events, each once; without what is retained.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: topic, retain, payload.")
@click.option("--retained/--no-retained", default=True, show_default=True, help="Also show what the broker had kept.")
def tail(
    config: Path | None, topic: str | None, count: int | None, as_json: bool, retained: bool, **wanted: Any
) -> None:
    """Print topics as they come; Ctrl+C ends it. What is asked for by several options must all hold."""
    with explained():
        from bridge.tail import Filter, follow, wrong_with

        settings = load(config).settings
        if topic is not None and (words := wrong_with(topic)):
            fail(f"--topic: {words}", EXIT_SETTINGS)
        fits = Filter(settings.mqtt.base_topic, **wanted)
        try:
            for line in follow(settings, topic, fits, count=count, as_json=as_json, retained=retained):
                click.echo(line)
        except KeyboardInterrupt:
            sys.exit(130)
