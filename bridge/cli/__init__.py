"""The command line. Commands import what they need when they run, so that `--help` and `version` are quick.

common.py    what every command shares
show.py      tables, colours and progress bars
running.py   run, check, healthy, install-service, as-service, password, secret, version
asking.py    status, doctor, replay, completion
trying.py    simulate, tail
letters.py   dead-letters
keeping.py   backup, restore, clean, forget
moving.py    migrate-settings, migrate-journal
"""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from bridge.cli import asking, keeping, letters, moving, running, trying


class InOrder(click.Group):
    """Lists commands in the order in which one comes to need them."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run what the command line says; where the terminal or a pipe knows no ✓, there is a ? and no traceback."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # standard error is so by itself
            sys.stdout.reconfigure(errors="replace")
        return super().main(*args, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """WhatsApp Business callbacks in by HTTP, MQTT topics out, nothing lost between."""


for _command in (
    running.run,
    running.check,
    asking.status,
    asking.doctor,
    trying.simulate,
    trying.tail,
    letters.dead_letters,
    asking.replay,
    keeping.backup,
    keeping.restore,
    keeping.clean,
    keeping.forget,
    moving.migrate_settings,
    moving.migrate_journal,
    running.healthy,
    running.install_service,
    running.as_service,
    running.password,
    running.secret,
    asking.completion,
    running.version,
):
    main.add_command(_command)
