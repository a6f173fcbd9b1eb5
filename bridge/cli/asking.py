"""To ask how it is: `status` and `replay` of the running bridge, `doctor` of everything around it."""

from __future__ import annotations

import datetime as dt
import re
import sys
from pathlib import Path
from typing import Any

import click

from bridge.cli.common import EXIT_FAILED, EXIT_SETTINGS, config_option, explained, fail, load
from bridge.cli.show import lamp

EXIT_NOT_RUNNING = 3


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object.")
def status(config: Path | None, as_json: bool) -> None:
    """Say how the running bridge is.

    Exit code 0: all is well; 1: something needs a look; 2: the settings are wrong; 3: it does not run.
    """
    with explained():
        import orjson

        from bridge.running import NotRunningError, ask

        settings = load(config).settings
        try:
            _, found = ask(settings, "api/status")
        except NotRunningError as error:
            if as_json:
                click.echo(orjson.dumps({"ok": False, "running": False, "why": str(error)}))
                sys.exit(EXIT_NOT_RUNNING)
            fail(error, EXIT_NOT_RUNNING)
        if as_json:
            click.echo(orjson.dumps({**found, "running": True}, option=orjson.OPT_INDENT_2))
        else:
            _print_status(found)
        sys.exit(0 if found["ok"] else EXIT_FAILED)


def _print_status(found: dict[str, Any]) -> None:
    from bridge.logs import printable

    health = found["health"]
    for name in ("webhook", "journal", "broker"):
        click.echo(f"{lamp(found[name]['state']):<10} {name}: {printable(found[name]['why'])}")
    for alarm in found["alarms"]:
        click.echo(f"{lamp('trouble'):<10} {printable(alarm)}")
    click.echo()
    rows = [
        ("version", found["version"]),
        ("last callback", _since(found["webhook"]["last_callback"])),
        ("last click", _since(found["webhook"]["last_click"])),
        ("waiting for the broker", f"{health.get('backlog', 0):,}"),
        ("dead letters", f"{health.get('dead_letters', 0):,}"),
        ("retained topics", f"{health.get('retained_topics', 0):,}"),
        ("broker", f"{found['broker']['url']} (MQTT {found['broker']['protocol'] or '?'})"),
        ("journal", found["journal"]["path"]),
        ("running since", _since(health.get("started_at"))),
    ]
    for name, value in rows:
        click.echo(f"{name + ':':<24}{value}")


def _since(moment: str | None) -> str:
    """A moment, and how long ago that is."""
    from bridge.admin.words import ago

    return f"{moment} ({ago(dt.datetime.fromisoformat(moment).timestamp())})" if moment else "never"


@click.command(short_help="Publish retained topics once more; never events.")
@config_option
@click.option("--since", help="From then on: 2h, 7d, 2026-01-31 or 2026-01-31T12:00.  [required]")
@click.option("--dry-run", is_flag=True, help="Only say which topics would be published.")
def replay(config: Path | None, since: str | None, dry_run: bool) -> None:
    """Have the running bridge publish retained topics once more; never events, so nothing fires.

    For a broker that lost what it had and does not show it. (One that lost everything is noticed by itself.)
    """
    with explained():
        from bridge.again import topics_since
        from bridge.dead_letters import journal_there
        from bridge.running import NotRunningError, ask

        settings = load(config).settings
        if since is None:
            fail("--since: is missing; write from when on, e.g. 2h, 7d, 2026-01-31 or 2026-01-31T12:00", EXIT_SETTINGS)
        moment = _moment(since)
        if moment is None:
            fail("--since: is no time; write e.g. 2h, 7d, 2026-01-31 or 2026-01-31T12:00", EXIT_SETTINGS)
        if dry_run:
            with journal_there(settings) as journal:
                topics = list(topics_since(journal, moment))
            click.echo("".join(f"{settings.mqtt.base_topic}/{topic}\n" for topic in topics), nl=False)
            click.echo(f"{len(topics)} topics would be published again.", err=True)
            return
        try:
            code, answer = ask(settings, "api/replay", {"since": moment})
        except NotRunningError as error:
            fail(error, EXIT_NOT_RUNNING)
        if code != 200:
            fail(answer.get("error", f"it says {code}"), EXIT_FAILED)
        click.echo(f"{answer['topics']} topics are published again.")


def _moment(since: str) -> float | None:
    """Epoch seconds: of a moment in this machine's time zone, or so long ago."""
    ago = re.fullmatch(r"(\d{1,9})([smhd])", since)
    now = dt.datetime.now().astimezone()
    if ago:
        seconds = int(ago[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[ago[2]]
        return now.timestamp() - seconds
    try:
        return dt.datetime.fromisoformat(since).astimezone().timestamp()
    except (ValueError, OverflowError):  # no date, or one that no clock knows: 0001-01-01
        return None


@click.command(short_help="Look at all the bridge needs, and say what to do.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: name, verdict, words, remedy.")
def doctor(config: Path | None, as_json: bool) -> None:
    """Look at everything the bridge needs, whether it runs or not, and say what to do.

    Exit code 0: no trouble was found; 1: there is some; 2: the settings are wrong.
    """
    import orjson

    from bridge.config import ConfigError
    from bridge.doctor import Finding, Verdict, examine

    try:
        loaded = load(config)
    except ConfigError as error:
        findings = [Finding("settings", Verdict.TROUBLE, problem) for problem in error.problems]
        code = EXIT_SETTINGS
    else:
        findings = list(examine(loaded, config))
        code = EXIT_FAILED if any(one.verdict is Verdict.TROUBLE for one in findings) else 0
    for one in findings:
        if as_json:
            keys = {"name": one.name, "verdict": one.verdict.value, "words": one.words, "remedy": one.remedy}
            click.echo(orjson.dumps(keys))
        else:
            from bridge.logs import printable

            click.echo(f"{lamp(one.verdict.value)}  {one.name}: {printable(one.words)}")
            if one.remedy:
                click.echo(f"    {click.style('→', bold=True)} {printable(one.remedy)}")
    sys.exit(code)


@click.command(short_help="Print what completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what completes commands and options in a shell, for its start-up file.

    bash: whatsapp2mqtt completion bash >> ~/.bashrc; likewise zsh and ~/.zshrc, fish and
    ~/.config/fish/completions/whatsapp2mqtt.fish.
    """
    from click.shell_completion import get_completion_class

    from bridge.cli import main

    found = get_completion_class(shell)
    assert found is not None, shell  # noqa: S101  (the argument's choice)
    click.echo(found(main, {}, "whatsapp2mqtt", "_WHATSAPP2MQTT_COMPLETE").source())
